"""What an operator decides: retry or discard what failed, discard what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from eventstore.cli.exits import EXIT_NOT_FOUND
from eventstore.cli.output import note, plain, write_json
from eventstore.cli.session import Session, app_argument, pass_session, shared_options, topic_of
from processors.cli.showing import failures, pending, update_option

if TYPE_CHECKING:
    from eventstore.events import Entry
    from eventstore.processing import Processing

__all__ = ["COMMANDS"]


class _NotFound(click.ClickException):
    """There is nothing of what was named."""

    exit_code = EXIT_NOT_FOUND


@contextmanager
def _processing(session: Session, app: str) -> Iterator[Processing]:
    from eventstore.processing import Processing

    with session.store() as store:
        topic_of(store, app)
        processing = Processing(store.app(app))
        processing.catch_up()
        yield processing


def _names_failures(function: Callable[..., None]) -> Callable[..., None]:
    """Let a verb be told which failures: APP [INSTANCE] [REQUEST], --update, or --all."""
    for decorate in (
        click.option("--all", "every", is_flag=True, help="All that are open in this app."),
        update_option,
        click.argument("request", required=False, type=click.IntRange(min=0)),
        click.argument("instance", required=False),
        app_argument,
    ):
        function = decorate(function)
    return function


def _refuse_unclear(instance: str | None, update: str | None, every: bool) -> None:
    if instance is None and update is None and not every:
        raise click.UsageError("which ones? Give an INSTANCE, --update NAME, or --all")


def _chosen(
    processing: Processing, instance: str | None, sequence: int | None, update: str | None
) -> list[Entry]:
    """Return the open failures that are meant; `sequence` is the request's, or the failure's own.

    Raises:
        click.ClickException: none is.
    """
    from processors.failures import cause_of, open_failures

    found = [
        failure
        for failure in open_failures(processing, instance)
        if (sequence is None or sequence in (cause_of(failure), failure.sequence))
        and (update is None or update == failure.event.name)
    ]
    if not found:
        raise _NotFound(
            "no such failure is open: `processors failures` lists those that are, with --all those"
            " retried or discarded since"
        )
    return found


@failures.command("retry")
@_names_failures
@shared_options
@pass_session
def retry(
    session: Session,
    app: str,
    instance: str | None,
    request: int | None,
    update: str | None,
    every: bool,
) -> None:
    """Request once more what failed: a failure, an instance's, an update's, or --all.

    The new request has the same name, props and policy, and waits its turn. A failure is retried
    once, however often this is called; if the new request fails too, that is a new failure.
    """
    from processors.failures import cause_of, retry_failure

    _refuse_unclear(instance, update, every)
    with _processing(session, app) as processing:
        for failure in _chosen(processing, instance, request, update):
            try:
                entry = retry_failure(processing, failure, actor="processors failures retry")
            except LookupError as error:
                raise _NotFound(str(error)) from None
            _tell(
                session,
                f"{app}/{entry.instance}: request {cause_of(failure)} ({entry.event.name}) is"
                f" requested again as {entry.sequence}",
                app=app, instance=entry.instance, failed=cause_of(failure),
                request=entry.sequence, update=entry.event.name,
            )  # fmt: skip


@failures.command("discard")
@_names_failures
@shared_options
@pass_session
def discard(
    session: Session,
    app: str,
    instance: str | None,
    request: int | None,
    update: str | None,
    every: bool,
) -> None:
    """Note that failures need nothing more: they are not listed again, and stay in the history."""
    from processors.failures import cause_of, discard_failure

    _refuse_unclear(instance, update, every)
    with _processing(session, app) as processing:
        for failure in _chosen(processing, instance, request, update):
            discard_failure(processing, failure, actor="processors failures discard")
            _tell(
                session,
                f"{app}/{failure.instance}: the failure of request {cause_of(failure)}"
                f" ({failure.event.name}) is discarded",
                app=app, instance=failure.instance, failed=cause_of(failure),
                update=failure.event.name, discarded=True,
            )  # fmt: skip


@pending.command("discard")
@app_argument
@click.argument("instance", required=False)
@click.argument("request", required=False, type=click.IntRange(min=0))
@update_option
@shared_options
@pass_session
def discard_pending(
    session: Session, app: str, instance: str | None, request: int | None, update: str | None
) -> None:
    """Give up requests that wait: one, or with --update all of that name.

    For those that no code knows any more. An update that runs meanwhile has no effect. It is an
    event of the history, with the reason `operator`.
    """
    from processors.failures import discard_request

    if (instance is None or request is None) and update is None:
        raise click.UsageError("which ones? Give an INSTANCE and a REQUEST, or --update NAME")
    with _processing(session, app) as processing:
        rows = [
            row
            for row in processing.pending(instance)
            if (request is None or request == row.request.sequence)
            and (update is None or update == row.request.name)
        ]
        if not rows:
            raise _NotFound("no such request waits: `processors pending` lists those that do")
        for row in rows:
            sequence = row.request.sequence
            try:
                closed = discard_request(
                    processing, row.instance, sequence, actor="processors pending discard"
                )
            except LookupError:
                note(f"{app}/{row.instance}: request {sequence} was answered meanwhile")
                continue
            outcome = "is discarded" if str(closed.event.kind) == "discard" else "was answered"
            _tell(
                session,
                f"{app}/{row.instance}: request {sequence} ({row.request.name}) {outcome}",
                app=app, instance=row.instance, request=sequence, update=row.request.name,
                discarded=str(closed.event.kind) == "discard",
            )  # fmt: skip


def _tell(session: Session, text: str, **facts: Any) -> None:
    if session.tables:
        click.echo(plain(text))
    else:
        write_json(facts)


#: The verbs above belong to commands of showing.py.
COMMANDS: Final[Iterable[click.Command]] = ()
