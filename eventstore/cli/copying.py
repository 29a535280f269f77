"""Copying whole apps to another store."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from eventstore.cli.output import write_json
from eventstore.cli.session import Session, complete_app, pass_session, shared_options, topic_of

if TYPE_CHECKING:
    from eventstore.history.copy import CopyProgress, CopyReport
    from eventstore.store import EventStore

__all__ = ["COMMANDS"]


@click.command(
    epilog="""\b
Examples:
  eventstore copy --to kafka://localhost:9092
  eventstore copy orders --to ./backup
  eventstore copy orders --to . --to-namespace dev
"""
)
@click.argument("apps", nargs=-1, metavar="[APP]...", shell_complete=complete_app)
@click.option("--to", "to_url", required=True, metavar="URL", help="The store to copy to.")
@click.option("--to-namespace", metavar="NAME", help="Namespace there; default: as for the source.")
@click.option("--as", "name", metavar="NAME", help="The app's name there, of a single app.")
@click.option(
    "--compare/--no-compare",
    default=True,
    help="Read both again at the end, and compare every event and state.  [default: compare]",
)
@shared_options
@pass_session
def copy(
    session: Session,
    apps: tuple[str, ...],
    to_url: str,
    to_namespace: str | None,
    name: str | None,
    compare: bool,
) -> None:
    """Copy apps, or all there are, with their whole histories.

    The app there has no events yet, or those of an earlier copy: killed at any moment, the same
    command goes on where it stopped, and adds what came since. Nobody else may write to the copy
    before it is done. Positions of the source mean nothing in it; sequences and versions are the
    same.
    """
    from eventstore.history.copy import copy_app
    from eventstore.store import EventStore

    if name is not None and len(apps) != 1:
        raise click.UsageError("--as renames one app: name just that one")
    with (
        session.store() as source,
        EventStore(to_url, namespace=to_namespace or source.config.namespace) as target,
    ):
        for app in apps:
            topic_of(source, app)  # before the first one is copied
        for app in apps or source.apps():
            with _progress() as progress:
                report = copy_app(source, app, target, to=name, compare=compare, progress=progress)
            _write(session, report, target)


def _write(session: Session, report: CopyReport, target: EventStore) -> None:
    if not session.tables:
        write_json(dataclasses.asdict(report) | {"url": target.url})
        return
    left_out = f", {report.left_out:,} records left out" if report.left_out else ""
    compared = "; source and copy are alike" if report.compared else ""
    click.echo(
        f"{report.app}: {report.written:,} events written to {report.target_app} of {target.url},"
        f" {report.events:,} in all{left_out}{compared}"
    )


@contextmanager
def _progress() -> Iterator[Callable[[CopyProgress], None] | None]:
    """Show progress while a person watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(progress: CopyProgress) -> None:
            bar.update(
                task,
                description=f"{progress.step} {progress.app}",
                completed=progress.records,
                total=progress.records_total,
            )

        yield show


COMMANDS: Final = (copy,)
