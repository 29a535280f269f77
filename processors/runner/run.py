"""One run of one request: what the handler gets, and what stands behind its Context.

A Run is made for each time that a handler is called. When that is stands in turns.py, where in
handlers.py, and what becomes of its result in answering.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence, Set
from typing import Any, Final, TypeVar

import orjson

from eventstore import (
    Closed,
    Diff,
    Entry,
    Kind,
    LogUnavailable,
    OutcomeUnknown,
    ReadTimeout,
    State,
    Verdict,
)
from eventstore.events import Answer, EffectKey, Event
from eventstore.processing import Processing, instance_fault
from eventstore.testing import fault_point
from processors.component import Component, Update
from processors.context import Context, Superseded
from processors.properties import Properties
from processors.results import Handed, LiveStates
from processors.runner import answers
from processors.runner.lanes import Lane, Session, Waiting

__all__ = ["LogCalls", "Run", "is_interrupt", "sure_entries", "sure_entry"]

_T = TypeVar("_T")

#: How long one append of a run may take before the handler hears of it.
_APPEND_TIMEOUT_S: Final = 60.0
#: How long one waits before the log is tried again.
_LOG_PAUSE_S: Final = 0.2


def sure_entry(
    processing: Processing,
    instance: str,
    event: Event,
    *,
    may_wait: Callable[[], bool] = lambda: False,
) -> Entry:
    """Append an event that counts once by its own nature; return its entry, or its original's.

    Where the log cannot be used it is tried again as long as `may_wait()` says so.

    Raises:
        LogUnavailable, ReadTimeout: as for `Receipt.entry`.
    """
    is_repeated = False
    while True:
        try:
            entry = processing.send([(instance, event)])[0].entry(_APPEND_TIMEOUT_S)
        except (LogUnavailable, ReadTimeout) as error:
            if not isinstance(error, OutcomeUnknown):
                if not may_wait():
                    raise
                time.sleep(_LOG_PAUSE_S)
            is_repeated = True  # sent again, it is a duplicate of itself
            continue
        if is_repeated and entry.verdict == Verdict.DUPLICATE and entry.winner is not None:
            return processing.entry(instance, entry.winner) or entry
        return entry


def sure_entries(processing: Processing, instance: str, events: Sequence[Event]) -> list[Entry]:
    """Append events that may stand in the log twice, together; return the entry of each.

    Raises:
        LogUnavailable, ReadTimeout: as for `Receipt.entry`.
    """
    receipts = processing.send([(instance, event) for event in events])
    entries = []
    for event, receipt in zip(events, receipts, strict=True):
        try:
            entries.append(receipt.entry(_APPEND_TIMEOUT_S))
        except OutcomeUnknown:
            entries.append(sure_entry(processing, instance, event))
    return entries


def is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, which is for the program in whose main thread an update runs."""
    is_ours = threading.current_thread() is threading.main_thread()
    return is_ours and isinstance(error, KeyboardInterrupt)


class Run:
    """One run of one request. Made in the lane's turn, and used by one thread or task at a time."""

    def __init__(
        self,
        component: Component,
        processing: Processing,
        lane: Lane,
        one: Waiting,
        update: Update,
        session: Session,
        *,
        is_stale: Callable[[], bool],
        has_ended: Callable[[], bool],
    ) -> None:
        assert one.event is not None
        self.component = component
        self.lane = lane
        self.one = one
        self.update = update
        self.session = session
        self.event = one.event
        self._handed: Handed | None = None
        #: The handler ended, or was given up: whoever sets it first decides what comes of it.
        self.is_over = False
        #: When the handler was called, by the log's clock.
        self.began_ms = 0
        #: Of a plain update: which thread runs it.
        self.thread = 0
        self.cancel: Callable[[], None] | None = None
        self.was_cancelled = False
        #: What `runs_in` says to the handler's code.
        self.place = (processing.identity, component.name, lane.instance)
        self.calls = LogCalls(processing, lane.instance, one, session, update, is_stale, has_ended)
        self._context: Context | None = None

    def props(self) -> Properties:
        """Return the request's props.

        Raises:
            UnreadableValue, TypeError, ValueError: they are not what handlers can be given.
        """
        return Properties.decode(self.event.body)

    def arguments(self, live: LiveStates) -> tuple[Any, ...]:
        """Return what the handler is called with.

        Raises:
            Whatever `load_state` raises.
            As for `props`.
        """
        self._handed = handed = Handed(self.component, self.update, live)
        given = handed.begin(self.session.state)
        if not self.update.takes_context:
            return (given, self.props())
        self._context = Context(
            self.idempotency_key,
            self.one.runs,
            self.calls,
            is_async=self.update.is_async,
            as_diff=handed.diff_of,
            go_on=handed.go_on,
        )
        return (given, self.props(), self._context)

    def diff_of(self, result: object) -> Diff:
        """Return what a result changes, as it is stored."""
        assert self._handed is not None
        return self._handed.diff_of(result)

    @property
    def given(self) -> Any:
        """What the handler works on; None where it runs in another process."""
        return None if self._handed is None else self._handed.given

    @property
    def idempotency_key(self) -> str:
        """What names the request, on every log that it is copied to."""
        return f"{self.component.name}/{self.lane.instance}/{self.one.sequence}"

    @property
    def outbox(self) -> bytes | None:
        """What the handler sends to others."""
        return None if self._context is None else self._context.outbox


class LogCalls:
    """What stands behind a Context in the runner's own process; see context.Calls.

    A log that cannot be used is waited for: it is no failure of the handler, which could do nothing
    about it, and the call that it has just made would be made again.
    """

    def __init__(
        self,
        processing: Processing,
        instance: str,
        one: Waiting,
        session: Session,
        update: Update,
        is_stale: Callable[[], bool],
        has_ended: Callable[[], bool],
    ) -> None:
        self._processing = processing
        self._instance = instance
        self._one = one
        self._session = session
        self._update = update
        self.is_stale = is_stale
        self._has_ended = has_ended
        #: The number of the next part.
        self.part = 0
        self._accepted: list[Entry] | None = None
        self._is_over = False
        self._mutex = threading.Lock()

    def end(self) -> None:
        """Make no more parts, once one that is under way is judged: the closing one comes next.

        A thread that a handler left running would else number a part like the answer itself, and
        one of the two would be taken for a copy of the other.
        """
        with self._mutex:
            self._is_over = True

    def recorded(self, name: str, call_index: int, digest: str) -> bytes | None:
        """Return the result of an effect; of a retried failure, that of the earlier request too."""

        def look() -> bytes | None:
            for cause in self._causes():
                found = self._processing.effect(self._instance, cause, name, call_index, digest)
                if found is not None:
                    return found.event.body
            return None

        return self._waiting_for_log(look)

    def _waiting_for_log(self, act: Callable[[], _T]) -> _T:
        """Do something with the log, as soon as it can be used.

        Raises:
            Superseded: this runner has ended meanwhile; the request stays pending.
        """
        while True:
            try:
                return act()
            except Closed as error:
                raise Superseded("the runner has ended") from error
            except (LogUnavailable, ReadTimeout) as error:
                if self._has_ended():
                    raise Superseded("the runner has ended") from error
                time.sleep(_LOG_PAUSE_S)

    def _sure_entry(self, event: Event) -> Entry:
        def append() -> Entry:
            return sure_entry(
                self._processing, self._instance, event, may_wait=lambda: not self._has_ended()
            )

        return self._waiting_for_log(append)

    def _causes(self) -> Sequence[int]:
        causes = [self._one.sequence]
        event = self._one.event
        while event is not None and event.request is not None and len(causes) < 100:
            earlier = event.request.retry_of
            if earlier is None or earlier >= causes[-1]:
                break
            causes.append(earlier)
            entry = self._processing.entry(self._instance, earlier)
            event = None if entry is None else entry.event
        return causes

    def record(self, name: str, call_index: int, digest: str, result: bytes) -> bytes:
        """Record an effect's result; return what the fold accepted."""
        fault_point("processor.effect.before")
        event = Event(
            Kind.EFFECT,
            name,
            result,
            answer=Answer(self._one.sequence),
            effect=EffectKey(call_index, digest),
            generation=self._session.generation,
        )
        entry = self._sure_entry(event)
        fault_point("processor.effect.after")
        if entry.verdict == Verdict.ACCEPTED:
            return result
        if entry.verdict == Verdict.DUPLICATE and entry.winner is not None:
            # Another runner was faster. Its result is the one that counts, here too.
            winner = entry.winner
            original = self._waiting_for_log(lambda: self._processing.entry(self._instance, winner))
            if original is not None and original.event.kind == Kind.EFFECT:
                return original.event.body
        raise Superseded(entry.reason)

    def checkpoint(self, diff: bytes, observed: Set[str] = frozenset()) -> State:
        """Record the next part, or go on from it where it is recorded."""
        with self._mutex:
            if self._is_over:
                raise RuntimeError("the update has returned already: its context has ended with it")
            number = self.part
            self.part += 1
            session = self._session
            if number < self._one.parts:
                return self._waiting_for_log(lambda: self._passed(number))
            event = answers.part(
                self._one,
                session,
                Diff.from_json(orjson.loads(diff)),
                session.state.observed | observed,
                self._update,
                number,
                closes=False,
            )
            fault_point("processor.part.before")
            entry = self._sure_entry(event)
            fault_point("processor.part.after")
            if entry.verdict != Verdict.ACCEPTED:
                raise Superseded(entry.reason)
            self._one.parts = number + 1
            session.index += 1
            return self._waiting_for_log(
                lambda: self._go_on(self._processing.state_at(self._instance, entry.version))
            )

    def get(self, instance: str | None, app: str | None) -> State:
        """Return the newest committed state of another instance, by the store that is run on."""
        name = self._instance if instance is None else instance
        app_name = self._processing.name if app is None else app
        if (fault := instance_fault(name)) is not None:
            raise ValueError(f"context: {fault}")
        if (app_name, name) == (self._processing.name, self._instance):
            # Answers before this one may be on their way: what is stored would be older.
            raise ValueError(
                f"context.get: {app_name}/{name} is the instance that this update runs on: its"
                " state is the handler's first parameter, or what context.checkpoint returned"
            )
        return self._waiting_for_log(lambda: self._processing.state_in(app_name, name))

    def _passed(self, number: int) -> State:
        """Return the state after a part that an earlier run made."""
        if self._accepted is None:
            self._accepted = self._processing.parts(self._instance, self._one.sequence)
        if number + 1 < len(self._accepted):
            version = self._accepted[number].version
            return self._go_on(self._processing.state_at(self._instance, version))
        return self._go_on(self._processing.state(self._instance))

    def _go_on(self, state: State) -> State:
        assert state.version is not None
        self._session.base, self._session.state = state.version, state
        return state
