"""An operator's calls: quarantine, repair, and views."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from eventstore.cli.output import Cell, local_time, utc_time, write_json, write_table
from eventstore.cli.session import (
    Session,
    app_argument,
    pass_session,
    shared_options,
    topic_of,
)

if TYPE_CHECKING:
    from eventstore.log.base import Topic
    from eventstore.store import EventStore

__all__ = ["COMMANDS", "folder_bytes", "views_of"]


@click.command()
@app_argument
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@click.option("--reason", required=True, help="Why; it is kept with the app.")
@shared_options
@pass_session
def quarantine(session: Session, app: str, partition: int, offset: int, reason: str) -> None:
    """Take one event out for good, where a partition waits at it.

    For an event of a schema that no reader of yours knows. Every view skips it from then on, and
    this cannot be taken back.
    """
    with session.existing_app(app) as opened:
        opened.quarantine(partition, offset, reason=reason)
    if session.tables:
        click.echo(f"offset {offset} of partition {partition} of {app} is skipped from now on")
    else:
        write_json({"app": app, "partition": partition, "offset": offset, "reason": reason})


@click.command()
@app_argument
@click.option("--accept-loss", is_flag=True, help="Yes, give up what the log has lost.")
@shared_options
@pass_session
def repair(session: Session, app: str, accept_loss: bool) -> None:
    """Go on with what a cut log still has.

    For a log that lost events which views had folded already. Views are rebuilt; what writers
    prepared against the lost events is refused.
    """
    if not accept_loss:
        raise click.UsageError("this gives up the events that the log lost: say --accept-loss")
    with session.existing_app(app) as opened:
        opened.repair(accept_loss=True)
    if session.tables:
        click.echo(f"{app} goes on with what its log has")
    else:
        write_json({"app": app, "repaired": True})


@click.group()
def view() -> None:
    """Look at the views of an app, or rebuild one.

    A view is what the events come to, in a database of its own per process. It holds nothing
    that the log has not.
    """


@view.command()
@app_argument
@shared_options
@pass_session
def status(session: Session, app: str) -> None:
    """Show the log and the views of an app, without opening a view."""
    with session.store() as store:
        topic = topic_of(store, app)
        log = _log_status(store, topic)
        views = views_of(store, topic)
    if not session.tables:
        write_json({"app": app, "log": log, "views": views})
        return
    click.echo(f"log {store.url}, identity {topic.identity}, repairs {log['repairs']}")
    write_table(
        [
            Cell("partition", right=True),
            Cell("first", right=True),
            Cell("end", right=True),
            Cell("quarantined", flexible=True),
        ],
        map(_partition_row, log["partitions"]),
    )
    click.echo("\nviews")
    write_table(
        [
            Cell("view"),
            Cell("in use"),
            Cell("bytes", right=True),
            Cell("last used"),
            Cell("set aside because", flexible=True),
        ],
        map(_view_row, views),
    )


def _partition_row(facts: Mapping[str, Any]) -> list[str]:
    quarantined = ", ".join(map(str, facts["quarantined"]))
    return [str(facts["partition"]), f"{facts['first']:,}", f"{facts['end']:,}", quarantined]


def _view_row(facts: Mapping[str, Any]) -> list[str]:
    used = facts["used"]
    return [
        Path(facts["path"]).name,
        {True: "yes", False: "no", None: ""}[facts["busy"]],
        f"{facts['bytes']:,}",
        local_time(None if used is None else datetime.datetime.fromisoformat(used)),
        facts["set_aside"] or "",
    ]


def _log_status(store: EventStore, topic: Topic) -> dict[str, Any]:
    from eventstore.follow import quarantined, repairs_of

    taken_out = quarantined(store.log, topic)
    return {
        "url": store.url,
        "identity": topic.identity,
        "repairs": repairs_of(store.log, topic).number,
        "partitions": [
            {
                "partition": partition,
                "first": store.log.offset_first(topic, partition),
                "end": store.log.offset_end(topic, partition),
                "quarantined": sorted(taken_out.get(partition, ())),
            }
            for partition in range(topic.partitions)
        ],
    }


def views_of(store: EventStore, topic: Topic) -> list[dict[str, Any]]:
    """Return what is known of an app's views on this machine, in use, idle and set aside."""
    from eventstore.view.slots import slot_states, were_set_aside

    root = store.config.view_path or store.log.view_root
    if root is None:
        return []
    found: list[dict[str, Any]] = [
        {
            "path": str(slot.path),
            "busy": slot.busy,
            "bytes": folder_bytes(slot.path),
            "used": utc_time(datetime.datetime.fromtimestamp(slot.used_s, datetime.UTC)),
            "set_aside": None,
        }
        for slot in slot_states(root, topic.name)
    ]
    found += [
        {
            "path": str(path),
            "busy": None,
            "bytes": folder_bytes(path),
            "used": None,
            "set_aside": reason,
        }
        for path, reason in were_set_aside(root, topic.name)
    ]
    return found


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; those that vanish meanwhile count as nothing."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size
        except OSError:
            continue
    return size


@view.command()
@app_argument
@shared_options
@pass_session
def rebuild(session: Session, app: str) -> None:
    """Set a view aside and fold the whole log anew.

    It is the view that this process takes: one that no other process has open.
    """
    with session.existing_app(app) as opened:
        opened.rebuild_view()
    if session.tables:
        click.echo(f"a view of {app} is rebuilt")
    else:
        write_json({"app": app, "rebuilt": True})


COMMANDS: Final = (quarantine, repair, view)
