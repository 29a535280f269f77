"""Failures that are open, and an operator's word on them and on requests that wait.

A failure is closed for good by one of two events, both of which count once, however often and by
whomever they are sent: a new request that repeats the failed one, or a note that it needs nothing.
Both are the first number of a source named after the failed request, so whether a failure is
still open is one look at the view. No update runs here, and nothing is decided by itself.

An app is given as a program has it, `store.app("Mail")`: then everything that was acknowledged
before the call counts. Who asks often gives a Processing, and catches up with the log first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import orjson

from eventstore import App, Entry, Event, Kind, OutcomeUnknown, Rejected, Verdict
from eventstore.events import Answer, Origin, Source
from eventstore.processing import Processing

__all__ = [
    "DISCARDED_NOTE",
    "cause_of",
    "discard_failure",
    "discard_request",
    "is_open",
    "open_failures",
    "retry_failure",
]

#: The name of the note that a failure needs nothing more.
DISCARDED_NOTE: Final = "failure/discarded"


def cause_of(failure: Entry) -> int:
    """Return the sequence of the request that failed."""
    answer = failure.event.answer
    return failure.sequence if answer is None else answer.cause


def open_failures(app: App | Processing, instance: str | None = None) -> Iterator[Entry]:
    """Yield the failures that nobody has retried or discarded yet, of one instance or of all.

    Lazily, each instance's in log order.
    """
    processing = _caught_up(app)
    failures = processing.app.failures(instance)
    return (failure for failure in failures if is_open(processing, failure))


def _caught_up(app: App | Processing) -> Processing:
    if isinstance(app, Processing):
        return app
    processing = Processing(app)
    processing.catch_up()
    return processing


def is_open(processing: Processing, failure: Entry) -> bool:
    """Whether a failure was neither retried nor discarded, as far as the view knows."""
    return processing.source(failure.instance, _source_id(cause_of(failure))) is None


def retry_failure(app: App | Processing, failure: Entry, *, actor: str | None = None) -> Entry:
    """Request once more what failed: same name, props, lane and policy; return the new request.

    Of a failure that was retried already, the request that did it. The new request waits behind
    those that came meanwhile, and its age begins anew.

    Raises:
        LookupError: somebody has discarded the failure, or its request cannot be found.
        EventTooLarge, LogUnavailable, ReadTimeout: see errors.py.
    """
    processing = _caught_up(app)
    cause = cause_of(failure)
    request = processing.entry(failure.instance, cause)
    if request is None or request.event.request is None:
        raise LookupError(f"request {cause} of {processing.name}/{failure.instance} is not there")
    policy = request.event.request._replace(retry_of=cause, not_before_ms=None)
    event = Event(
        Kind.REQUEST,
        request.event.name,
        request.event.body,
        source=_source(cause),
        request=policy,
        origin=Origin(actor) if actor else None,
        generation=processing.generation(),
    )
    entry = _counted_once(processing, failure.instance, event)
    if entry.event.kind != Kind.REQUEST:
        raise LookupError(
            f"the failure of request {cause} of {processing.name}/{failure.instance} was discarded"
        )
    return entry


def discard_failure(app: App | Processing, failure: Entry, *, actor: str | None = None) -> Entry:
    """Note that a failure needs nothing more, so that it is not listed again; return the note.

    Of a failure that was retried or discarded already, the event that did it.

    Raises:
        LogUnavailable, ReadTimeout: see errors.py.
    """
    processing = _caught_up(app)
    cause = cause_of(failure)
    event = Event(
        Kind.NOTE,
        DISCARDED_NOTE,
        orjson.dumps({"cause": cause}),
        source=_source(cause),
        origin=Origin(actor) if actor else None,
        generation=processing.generation(),
    )
    return _counted_once(processing, failure.instance, event)


def discard_request(
    app: App | Processing, instance: str, sequence: int, *, actor: str | None = None
) -> Entry:
    """Give up a request that waits, as discarded by an operator; return what closed it.

    An update that runs meanwhile has no effect any more, unless its answer came first: then that
    is what is returned.

    Raises:
        LookupError: no such request waits.
        LogUnavailable, ReadTimeout: see errors.py.
    """
    processing = _caught_up(app)
    row = processing.request(instance, sequence)
    if row is None:
        raise LookupError(f"no request {sequence} of {processing.name}/{instance} waits")
    event = Event(
        Kind.DISCARD,
        row.request.name,
        orjson.dumps({"reason": "operator", "running": False}),
        answer=Answer(sequence, 0, True),
        origin=Origin(actor) if actor else None,
        generation=processing.generation(),
    )
    _counted_once(processing, instance, event)
    closed = processing.closed_by(instance, sequence)
    assert closed is not None  # by this event, or by the one that it lost to
    return closed


def _source_id(cause: int) -> str:
    return f"failure/{cause}"


def _source(cause: int) -> Source:
    return Source(_source_id(cause), (cause, 0))


def _counted_once(processing: Processing, instance: str, event: Event) -> Entry:
    """Append an event that counts once by its nature; return it, or the one that it repeats.

    Raises:
        Rejected: it had no effect; the message says why.
    """
    while True:
        receipt = processing.send([(instance, event)])[0]
        try:
            entry = receipt.entry()
        except OutcomeUnknown:
            continue  # sent again, it is a duplicate of itself
        break
    if entry.verdict == Verdict.DUPLICATE:
        winner = None if entry.winner is None else processing.entry(instance, entry.winner)
        return entry if winner is None else winner
    if entry.verdict != Verdict.ACCEPTED:
        raise Rejected(processing.name, instance, entry.reason)
    return entry
