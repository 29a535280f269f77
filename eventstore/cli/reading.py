"""Reading: apps, get, instances, history, tail, pending. Nothing here creates anything."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from eventstore.cli.arguments import ABSENT, find, parse_at
from eventstore.cli.entries import ENTRY_COLUMNS, entry_json, entry_row
from eventstore.cli.output import (
    Cell,
    json_text,
    local_time,
    note,
    plain,
    present,
    utc_time,
    write_json,
    write_table,
)
from eventstore.cli.session import (
    NoSuchApp,
    Session,
    app_argument,
    pass_session,
    shared_options,
    topic_of,
)

if TYPE_CHECKING:
    from eventstore.app import App
    from eventstore.events import Entry, Position
    from eventstore.log.base import Topic
    from eventstore.state import State
    from eventstore.store import EventStore
    from eventstore.view.reader import PendingRow

__all__ = ["COMMANDS"]

at_option = click.option(
    "--at",
    metavar="MOMENT",
    help="A version, HEAD, HEAD~2, an ISO time with its zone, occurred:TIME, or a position token.",
)
limit_option = click.option("--limit", type=click.IntRange(min=0), help="Show at most so many.")


@click.command()
@shared_options
@pass_session
def apps(session: Session) -> None:
    """List the apps that have events."""
    with session.store() as store:
        names = store.apps()
        if not session.tables:
            for name in names:
                write_json({"app": name})
        elif names:
            write_table([Cell("app")], ([name] for name in names))
        else:
            note(f"{store.url} has no apps yet; the first append to one creates it")


@click.command(
    epilog="""\b
Examples:
  eventstore get orders o-1
  eventstore get orders o-1 items.0.price --at HEAD~2
  eventstore get orders o-1 --at 2026-05-01T12:00:00+02:00
"""
)
@app_argument
@click.argument("instance")
@click.argument("path", required=False)
@at_option
@click.option("--after", metavar="TOKEN", help="Wait until this position can be read.")
@shared_options
@pass_session
def get(
    session: Session, app: str, instance: str, path: str | None, at: str | None, after: str | None
) -> None:
    """Show an instance, now or in the past.

    PATH leads to one value in it: a field, field.key.3 (numbers are indexes), or ["field","key",3].
    """
    with session.app(app) as opened:
        state: State = opened.get(instance, at=parse_at(at), after=after)
        if path is None:
            _write_state(session, state)
            return
        value = find(state, path)
        if value is ABSENT:
            from eventstore.errors import InstanceNotFound

            raise InstanceNotFound(app, instance, path)
        write_json(value, indented=session.tables)


def _write_state(session: Session, state: State) -> None:
    fields = state.to_json()
    if not session.tables:
        write_json(
            {
                "app": state.app,
                "instance": state.instance,
                "version": state.version,
                "position": str(state.position),
                "state": fields,
            }
        )
        return
    click.echo(f"{state.app}/{plain(str(state.instance))}  version {state.version}")
    write_table(
        [Cell("field"), Cell("value", flexible=True)],
        ([name, json_text(value)] for name, value in fields.items()),
        empty="no fields",
    )


@click.command()
@app_argument
@click.option("--prefix", default="", help="Only names that begin so.")
@limit_option
@shared_options
@pass_session
def instances(session: Session, app: str, prefix: str, limit: int | None) -> None:
    """List the instances of an app."""
    with session.existing_app(app) as opened:
        names = itertools.islice(opened.instances(prefix), limit)
        if session.tables:
            write_table([Cell("instance")], ([name] for name in names), empty="no instances")
        else:
            for name in names:
                write_json({"instance": name})


@click.command()
@app_argument
@click.argument("instance")
@click.option("--states", is_flag=True, help="Also show the state after each event.")
@click.option("--reverse", is_flag=True, help="The newest first.")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=click.Choice(["accepted", "conflict", "duplicate", "rejected"]),
    help="Only events with this verdict; can be given several times.",
)
@limit_option
@shared_options
@pass_session
def history(
    session: Session,
    app: str,
    instance: str,
    states: bool,
    reverse: bool,
    verdicts: tuple[str, ...],
    limit: int | None,
) -> None:
    """Show what happened to an instance.

    Each event with what the fold decided about it, refused ones too. In a table, the states take
    the place of kinds and times.
    """
    with session.app(app) as opened:
        entries: Iterator[Entry] = opened.history(instance, reverse=reverse)
        if verdicts:
            entries = (entry for entry in entries if str(entry.verdict) in verdicts)
        entries = itertools.islice(entries, limit)
        if not session.tables:
            for entry in entries:
                more = {"state": _state_after(opened, entry)} if states else {}
                write_json(entry_json(entry) | more)
        elif states:
            _write_states(opened, entries)
        else:
            write_table(ENTRY_COLUMNS, map(entry_row, entries), empty="no events")


def _write_states(app: App, entries: Iterator[Entry]) -> None:
    """Write what each event says beside what it made: a line has no room for more than that."""
    columns = [column for column in ENTRY_COLUMNS if column.heading not in ("kind", "time")]
    places = [ENTRY_COLUMNS.index(column) for column in columns]
    rows = (
        [*(entry_row(entry)[place] for place in places), json_text(_state_after(app, entry))]
        for entry in entries
    )
    write_table([*columns, Cell("state", flexible=True)], rows, empty="no events")


def _state_after(app: App, entry: Entry) -> dict[str, Any]:
    state: State = app.get(entry.instance, at=entry.version, default=None)
    return {} if state is None else state.to_json()


@click.command()
@app_argument
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until Ctrl-C.")
@click.option(
    "--from",
    "start",
    metavar="now|beginning|TOKEN",
    help="Where to begin; default: now with --follow, else the beginning.",
)
@limit_option
@shared_options
@pass_session
def tail(session: Session, app: str, follow: bool, start: str | None, limit: int | None) -> None:
    """Show events as the log takes them.

    In JSON each has a `resume`: the token from which --from goes on after it.
    """
    with session.store() as store:
        opened = store.app(app)
        begin = start or ("now" if follow else "beginning")
        try:
            seen = _position(store, topic_of(store, app), begin)
        except NoSuchApp:
            if not follow:
                raise
            seen = None  # whatever comes first came after this call
        entries = opened.tail(start=begin if seen is None else seen, follow=follow)
        for entry in itertools.islice(entries, limit):
            seen = entry.position if seen is None else seen.merge(entry.position)
            if session.tables:
                _write_line(entry)
            else:
                write_json(entry_json(entry) | {"resume": str(seen)})


def _position(store: EventStore, topic: Topic, start: str) -> Position:
    """Return where a tail begins, for every partition: so that each `resume` is whole."""
    from eventstore.events import Position

    if start not in ("now", "beginning"):
        return Position.parse(start)
    offset = store.log.offset_end if start == "now" else store.log.offset_first
    offsets = {partition: offset(topic, partition) - 1 for partition in range(topic.partitions)}
    return Position(topic.identity, offsets)


def _write_line(entry: Entry) -> None:
    sequence, version, verdict, kind, what, time = entry_row(entry)
    style: Final = {"accepted": "green", "duplicate": "yellow"}.get(verdict, "red")
    click.echo(
        f"{time}  {plain(entry.instance):<16} #{sequence} v{version}"
        f" {click.style(f'{verdict:<9}', fg=style)} {kind:<7} {what}"
    )


@click.command()
@app_argument
@click.argument("instance", required=False)
@limit_option
@shared_options
@pass_session
def pending(session: Session, app: str, instance: str | None, limit: int | None) -> None:
    """List the requests that wait to be run."""
    with session.existing_app(app) as opened:
        rows = itertools.islice(opened.pending(instance), limit)
        if session.tables:
            columns = [
                Cell("instance", flexible=True), Cell("seq", right=True), Cell("request"),
                Cell("lane"), Cell("attempts", right=True), Cell("since"), Cell("not before"),
            ]  # fmt: skip
            write_table(columns, map(_pending_row, rows), empty="no request waits")
        else:
            for row in rows:
                write_json(_pending_json(row))


def _pending_row(row: PendingRow) -> list[str]:
    request = row.request
    return [
        row.instance,
        str(request.sequence),
        request.name,
        request.lane,
        str(request.attempts),
        local_time(_time(row.time_ms)),
        local_time(_time(request.due_ms)),
    ]


def _pending_json(row: PendingRow) -> dict[str, Any]:
    request = row.request
    return present(
        {
            "instance": row.instance,
            "sequence": request.sequence,
            "name": request.name,
            "lane": request.lane,
            "parts": request.parts,
            "attempts": request.attempts,
            "since": utc_time(_time(row.time_ms)),
            "not_before": utc_time(_time(request.due_ms)),
        }
    )


def _time(time_ms: int | None) -> datetime.datetime | None:
    if time_ms is None:
        return None
    from eventstore.events import moment

    return moment(time_ms * 1_000)


COMMANDS: Final = (apps, get, instances, history, tail, pending)
