"""What can be seen: status, pending, failures, discards, graph. Nothing here changes anything."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from eventstore.cli.output import (
    Cell,
    cut,
    json_text,
    local_time,
    plain,
    present,
    utc_time,
    write_json,
    write_table,
)
from eventstore.cli.session import (
    Session,
    complete_app,
    pass_session,
    shared_options,
    topic_of,
)
from processors.cli.verbs import VerbGroup

if TYPE_CHECKING:
    from eventstore import EventStore
    from eventstore.events import Entry
    from eventstore.processing import PendingRow, Processing
    from processors.notices import Notice
    from processors.status import AppStatus, OwnerElsewhere

__all__ = ["COMMANDS", "failures", "limit_option", "pending", "update_option"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: `status`: something should not stay as it is.
EXIT_FAULT: Final = 1
_WATCH_S: Final = 1.0
#: In place of what only the processes of another host know.
UNKNOWN: Final = "unknown"

limit_option = click.option("--limit", type=click.IntRange(min=0), help="Show at most so many.")
update_option = click.option("--update", metavar="NAME", help="Only requests of this name.")


def _apps_of(store: EventStore, app: str | None) -> list[str]:
    """Return the app that is named, which must have events, or all; creates nothing."""
    if app is None:
        return store.apps()
    topic_of(store, app)
    return [app]


def _processings(store: EventStore, app: str | None) -> Iterator[Processing]:
    """Yield the apps that are meant, each with everything that is acknowledged by now."""
    from eventstore.processing import Processing

    for name in _apps_of(store, app):
        processing = Processing(store.app(name))
        processing.catch_up()
        yield processing


def _optional_app(function: _Function) -> _Function:
    return click.argument("app", required=False, shell_complete=complete_app)(function)


def _limited(rows: Iterable[Any], limit: int | None) -> Iterator[Any]:
    from itertools import islice

    return islice(rows, limit)


# --- status ---------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Exit codes: 0 all is well; 1 something should not stay as it is (requests wait in shards that
nobody holds, a request that no code knows, two codes for one update, a failing trigger, an age
above --age-max), or an error; 2 wrong usage; 3 no such app.
"""
)
@click.argument("apps", nargs=-1, metavar="[APP]...", shell_complete=complete_app)
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option(
    "--age-max",
    "age_max_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Exit with 1 when a request waits longer.",
)
@shared_options
@pass_session
def status(session: Session, apps: tuple[str, ...], watch: bool, age_max_s: float | None) -> None:
    """Show who runs the updates of each app, what waits, and how fast it goes.

    What is pending is known of every log. What runs now and how fast is known of the processes of
    this machine; on Kafka, of those of other hosts only which shards they hold.
    """
    from processors.status import status_of

    with session.store() as store:
        while True:
            names = [name for app in apps or (None,) for name in _apps_of(store, app)]
            found = [status_of(store, name) for name in names]
            if watch and session.tables:
                click.clear()
            faults = [f"{one.app}: {fault}" for one in found for fault in _faults(one, age_max_s)]
            _write_status(session, found, faults)
            if not watch:
                break
            time.sleep(_WATCH_S)
    if faults:
        raise click.exceptions.Exit(EXIT_FAULT)


def _faults(status: AppStatus, age_max_s: float | None) -> list[str]:
    faults = list(status.faults)
    if age_max_s is not None and (status.oldest_age_ms or 0) > age_max_s * 1_000:
        faults.append(f"a request has waited for {_duration(status.oldest_age_ms)}")
    return faults


def _write_status(session: Session, found: Sequence[AppStatus], faults: Sequence[str]) -> None:
    from processors.status import status_json

    if not session.tables:
        for one in found:
            write_json(status_json(one))
        return
    columns = [
        Cell("app", flexible=True), Cell("shards"), Cell("pending", right=True),
        Cell("running", right=True), Cell("delayed", right=True), Cell("oldest", right=True),
        Cell("lag", right=True), Cell("applied/s", right=True), Cell("discarded/s", right=True),
        Cell("failed/s", right=True),
    ]  # fmt: skip
    write_table(columns, map(_status_row, found), empty="no apps yet")
    owners = [
        *(_owner_row(one, notice) for one in found for notice in one.owners),
        *(_elsewhere_row(one, owner) for one in found for owner in one.elsewhere),
    ]
    if owners:
        click.echo()
        columns = [
            Cell("app", flexible=True), Cell("process", right=True), Cell("host"), Cell("since"),
            Cell("shards", flexible=True), Cell("runs now", flexible=True),
        ]  # fmt: skip
        write_table(columns, owners)
    relays = [
        (one.app, relay)
        for one in found
        for relay in one.relays
        if relay.trigger_id or relay.undelivered
    ]
    if relays:
        click.echo()
        columns = [
            Cell("app", flexible=True), Cell("trigger", flexible=True), Cell("watches"),
            Cell("state"), Cell("lag", right=True), Cell("behind", right=True),
            Cell("undelivered", right=True),
        ]  # fmt: skip
        rows = (
            [app, relay.trigger_id or "outbox", relay.watched, relay.state,
             f"{relay.lag_events:,}", _duration(relay.lag_ms), f"{relay.undelivered:,}"]
            for app, relay in relays
        )  # fmt: skip
        write_table(columns, rows)
    for one in found:
        if one.not_known is not None:
            text = f"{one.app}: who holds shards on other hosts is not known: {one.not_known}"
            click.echo(click.style(plain(text), fg="yellow"))
    for fault in faults:
        click.echo(click.style(plain(fault), fg="red"))


def _status_row(status: AppStatus) -> list[str]:
    free = len(status.shards_free)
    here = " here" if status.is_partial else ""
    rates = status.rates
    return [
        status.app,
        f"{status.shards - free} of {status.shards}{' here' if status.not_known else ''}",
        f"{status.pending:,}",
        UNKNOWN if status.running is None else f"{status.running:,}{here}",
        f"{status.delayed:,}",
        _duration(status.oldest_age_ms),
        "" if status.lag_events is None else f"{status.lag_events:,}{here}",
        *(
            UNKNOWN if rates is None else f"{rates[name]:,.1f}{here}"
            for name in ("applied", "discarded", "failed")
        ),
    ]


def _owner_row(status: AppStatus, notice: Notice) -> list[str]:
    from processors.logs import ranges

    first = notice.running[0] if notice.running else None
    running = ""
    if first is not None:
        more = f" and {notice.running_count - 1} more" if notice.running_count > 1 else ""
        running = f"{first.name} of {first.instance}{more}"
    return [
        status.app,
        str(notice.process),
        notice.host,
        local_time(_moment(notice.since_ms)),
        ranges(notice.shards) or ("stopping" if notice.is_stopping else "none: waits"),
        running,
    ]


def _elsewhere_row(status: AppStatus, owner: OwnerElsewhere) -> list[str]:
    from processors.logs import ranges

    process = UNKNOWN if owner.process is None else str(owner.process)
    return [
        status.app, process, owner.host, UNKNOWN, ranges(owner.shards) or "none: waits", UNKNOWN,
    ]  # fmt: skip


def _duration(duration_ms: int | None) -> str:
    """Return a time span in its two largest units."""
    if duration_ms is None:
        return ""
    seconds = duration_ms / 1_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3_600), int(seconds // 86_400)
    if hours < 1:
        return f"{minutes} min {int(seconds % 60)} s"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def _moment(time_ms: int | None) -> datetime.datetime | None:
    if time_ms is None:
        return None
    from eventstore.events import moment

    return moment(time_ms * 1_000)


# --- pending --------------------------------------------------------------------------------------


@click.group(cls=VerbGroup, subcommand_metavar="[APP] [INSTANCE] | discard APP ...")
@shared_options
def pending() -> None:
    """List the requests that wait, of all apps, of one, or of one instance.

    Their state is pending, running, delayed (not due yet), or unknown: no code of a running
    daemon has such an update.
    """


@pending.command("list")
@_optional_app
@click.argument("instance", required=False)
@update_option
@limit_option
@shared_options
@pass_session
def list_pending(
    session: Session, app: str | None, instance: str | None, update: str | None, limit: int | None
) -> None:
    """List the requests that wait."""
    with session.store() as store:
        rows = _limited(_pending_rows(store, app, instance, update), limit)
        if not session.tables:
            for row in rows:
                write_json(_pending_json(*row))
            return
        columns = [
            Cell("app"), Cell("instance", flexible=True), Cell("request", right=True),
            Cell("update", flexible=True), Cell("state"), Cell("attempts", right=True),
            Cell("age", right=True), Cell("not before"),
        ]  # fmt: skip
        write_table(columns, (_pending_row(*row) for row in rows), empty="no request waits")


def _pending_rows(
    store: EventStore, app: str | None, instance: str | None, update: str | None
) -> Iterator[tuple[str, PendingRow, str]]:
    from processors.notices import NoticeBoard
    from processors.status import request_state

    for processing in _processings(store, app):
        notices = NoticeBoard.of(store, processing.name).read()
        state_of = request_state(notices, _now_ms())
        for row in processing.pending(instance):
            if update is None or update == row.request.name:
                yield processing.name, row, state_of(row)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _pending_row(app: str, row: PendingRow, state: str) -> list[str]:
    request = row.request
    return [
        app,
        row.instance,
        str(request.sequence),
        request.name,
        state,
        str(request.attempts),
        _duration(max(0, _now_ms() - row.time_ms)),
        local_time(_moment(request.due_ms)),
    ]


def _pending_json(app: str, row: PendingRow, state: str) -> dict[str, Any]:
    request = row.request
    return present(
        {
            "app": app,
            "instance": row.instance,
            "request": request.sequence,
            "update": request.name,
            "state": state,
            "lane": request.lane,
            "parts": request.parts,
            "attempts": request.attempts,
            "since": utc_time(_moment(row.time_ms)),
            "age_ms": max(0, _now_ms() - row.time_ms),
            "not_before": utc_time(_moment(request.due_ms)),
        }
    )


# --- failures and discards ------------------------------------------------------------------------


@click.group(cls=VerbGroup, subcommand_metavar="[APP] [INSTANCE] | retry APP ... | discard APP ...")
@shared_options
def failures() -> None:
    """List the updates that failed for good, until somebody retries or discards them.

    JSON has the traceback and the props of each.
    """


@failures.command("list")
@_optional_app
@click.argument("instance", required=False)
@update_option
@click.option("--all", "with_closed", is_flag=True, help="Also those retried or discarded since.")
@click.option("--traceback", is_flag=True, help="Show props and traceback of each, not a table.")
@limit_option
@shared_options
@pass_session
def list_failures(
    session: Session,
    app: str | None,
    instance: str | None,
    update: str | None,
    with_closed: bool,
    traceback: bool,
    limit: int | None,
) -> None:
    """List the updates that failed for good."""
    with session.store() as store:
        rows = _limited(_failure_rows(store, app, instance, update, with_closed), limit)
        if not session.tables:
            for processing, entry in rows:
                write_json(_failure_json(processing, entry))
        elif traceback:
            for processing, entry in rows:
                _write_traceback(processing, entry)
        else:
            columns = [
                Cell("app"), Cell("instance", flexible=True), Cell("request", right=True),
                Cell("update", flexible=True), *([Cell("state")] if with_closed else []),
                Cell("reason"), Cell("attempts", right=True), Cell("time"),
                Cell("message", flexible=True),
            ]  # fmt: skip
            shown = (_failure_row(*row, with_state=with_closed) for row in rows)
            write_table(columns, shown, empty="nothing has failed")


def _failure_rows(
    store: EventStore, app: str | None, instance: str | None, update: str | None, with_closed: bool
) -> Iterator[tuple[Processing, Entry]]:
    from processors.failures import open_failures

    for processing in _processings(store, app):
        found = (
            processing.app.failures(instance)
            if with_closed
            else open_failures(processing, instance)
        )
        for entry in found:
            if update is None or update == entry.event.name:
                yield processing, entry


def _facts(entry: Entry) -> dict[str, Any]:
    """Return what an answer says; whoever wrote it, a list stays readable."""
    import orjson

    try:
        found = orjson.loads(entry.event.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _failure_row(processing: Processing, entry: Entry, *, with_state: bool) -> list[str]:
    from processors.failures import cause_of, is_open

    facts = _facts(entry)
    kind, message = str(facts.get("type") or ""), str(facts.get("message") or "")
    state = ["open" if is_open(processing, entry) else "closed"] if with_state else []
    return [
        processing.name,
        entry.instance,
        str(cause_of(entry)),
        entry.event.name,
        *state,
        str(facts.get("reason", "")),
        str(facts.get("attempts", "")),
        local_time(entry.time),
        ": ".join(part for part in (kind, message) if part),
    ]


def _failure_json(processing: Processing, entry: Entry) -> dict[str, Any]:
    import orjson

    from processors.failures import cause_of, is_open

    cause = cause_of(entry)
    request = processing.entry(entry.instance, cause)
    shown = {
        "app": processing.name,
        "instance": entry.instance,
        "request": cause,
        "update": entry.event.name,
        "open": is_open(processing, entry),
        "time": utc_time(entry.time),
        **_facts(entry),
    }
    if request is not None and request.event.body:
        shown["props"] = orjson.Fragment(request.event.body)
    return present(shown)


def _write_traceback(processing: Processing, entry: Entry) -> None:
    from processors.failures import cause_of

    facts, cause = _facts(entry), cause_of(entry)
    head = f"{processing.name}/{entry.instance} request {cause} {entry.event.name}"
    click.echo(click.style(plain(head), bold=True))
    click.echo(plain(f"{facts.get('reason', '')} after {facts.get('attempts', 1)} attempt(s)"))
    request = processing.entry(entry.instance, cause)
    if request is not None and request.event.body:
        click.echo(plain(f"props {cut(request.event.body.decode())}"))
    text = str(facts.get("traceback") or facts.get("message") or "")
    for line in text.rstrip().splitlines():
        click.echo(plain(line))
    click.echo()


@click.command()
@_optional_app
@click.argument("instance", required=False)
@update_option
@limit_option
@shared_options
@pass_session
def discards(
    session: Session, app: str | None, instance: str | None, update: str | None, limit: int | None
) -> None:
    """List the requests that were given up, and why."""
    with session.store() as store:
        found = (
            (processing, entry)
            for processing in _processings(store, app)
            for entry in processing.app.discards(instance)
            if update is None or update == entry.event.name
        )
        rows = _limited(found, limit)
        if not session.tables:
            for processing, entry in rows:
                write_json(_discard_json(processing, entry))
            return
        columns = [
            Cell("app"), Cell("instance", flexible=True), Cell("request", right=True),
            Cell("update", flexible=True), Cell("reason"), Cell("time"),
            Cell("figures", flexible=True),
        ]  # fmt: skip
        write_table(columns, (_discard_row(*row) for row in rows), empty="nothing was discarded")


def _discard_row(processing: Processing, entry: Entry) -> list[str]:
    from processors.failures import cause_of

    facts = _facts(entry)
    reason = str(facts.pop("reason", ""))
    facts.pop("policy", None)
    return [
        processing.name,
        entry.instance,
        str(cause_of(entry)),
        entry.event.name,
        reason,
        local_time(entry.time),
        ", ".join(f"{name} {json_text(value)}" for name, value in facts.items()),
    ]


def _discard_json(processing: Processing, entry: Entry) -> dict[str, Any]:
    from processors.failures import cause_of

    return present(
        {
            "app": processing.name,
            "instance": entry.instance,
            "request": cause_of(entry),
            "update": entry.event.name,
            "time": utc_time(entry.time),
            **_facts(entry),
        }
    )


# --- graph ----------------------------------------------------------------------------------------


@click.command()
@click.argument("component", metavar="MODULE:COMPONENT")
@click.option(
    "--format",
    "form",
    type=click.Choice(["mermaid", "graphviz", "json"]),
    default="mermaid",
    show_default=True,
    help="How to write it.",
)
def graph(component: str, form: str) -> None:
    """Draw what a component's flows lead to: its serves, updates, triggers and state."""
    from processors.cli.loading import load_component

    found = load_component(component)
    if form == "json":
        write_json(found.graph("data"))
    else:
        click.echo(found.graph("mermaid" if form == "mermaid" else "graphviz").rstrip())


COMMANDS: Final = (status, pending, failures, discards, graph)
