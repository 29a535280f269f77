"""The component of runner_component.py in a process whose fold lacks a rule: *once*, for answers.

There, an answer to a request that is closed already counts again. Whoever imports this module has
the broken fold, in the view and in the verifier.
"""

from __future__ import annotations

from eventstore.events import Event, Kind, Verdict
from eventstore.fold import fold
from eventstore.history import verify
from eventstore.rows import Outcome, Rows
from eventstore.view import writer
from eventstore.view.instance import Instance
from eventstore.view.writer import ViewWriter
from tests.fault.runner_component import component

__all__ = ["component"]


def fold_without_once(rows: Rows, event: Event, time_ms: int) -> Outcome:
    outcome = fold(rows, event, time_ms)
    if outcome.verdict == Verdict.DUPLICATE and event.kind == Kind.DIFF and event.answer:
        return fold(rows, event._replace(answer=None, guard=None), time_ms)
    return outcome


def fold_and_tell(rows: Rows, event: Event, time_ms: int) -> Outcome:
    """Name the request that was closed before, too: its runner waits to hear of it."""
    outcome = fold_without_once(rows, event, time_ms)
    if outcome.verdict == Verdict.ACCEPTED and event.answer and event.answer.closes:
        return outcome._replace(closed=(event.answer.cause,))
    return outcome


def close_request(view: ViewWriter, instance: Instance, cause: int, sequence: int) -> None:
    if cause in instance.load_requests():
        close_request_once(view, instance, cause, sequence)


close_request_once = ViewWriter._close_request
ViewWriter._close_request = close_request  # type: ignore[method-assign,assignment]
vars(writer)["fold"] = fold_and_tell
vars(verify)["fold"] = fold_without_once
