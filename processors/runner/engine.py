"""Runner: runs the updates of one component on one store, in this process.

Requests come from the view's news (`Processing.watch`) and, when shards are gained, from the view
itself. Each instance has a lane (lanes.py), and one thread or task at a time has a lane: it takes
*turns*, in which it runs what waits, one update after the other, and appends each answer without
waiting for the one before it. The answers of a lane form a chain, so they count only in an
unbroken row; when one is refused, those behind it are, too, and all of them run again.

What is promised (tests/fault/test_runner.py, tests/soak):

  - Updates of an instance run one at a time, in the order of their requests.
  - Each request takes effect at most once, because the log closes it once, whoever runs it; and
    exactly once unless it is discarded or fails for good, because it stays pending until it is
    closed, and whoever owns its shard runs what is pending.
  - Ownership only saves work. Two runners of one lane, for a moment, repeat calls of handlers,
    and never an effect.

No call of the log or the view is made under the runner's lock: the thread that folds holds the
view's lock while it tells its news here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar

from eventstore import (
    Closed,
    Diff,
    Discard,
    Entry,
    EventStore,
    EventStoreError,
    EventTooLarge,
    Kind,
    LogUnavailable,
    ReadTimeout,
    Receipt,
    Verdict,
)
from eventstore.events import Event
from eventstore.lifetime import abandon_in_child
from eventstore.processing import Folded, Ownership, Processing
from eventstore.testing import fault_point
from processors.component import Component, Update
from processors.context import Superseded
from processors.relay import Relays, RelayStatus
from processors.results import LiveStates, handler_state, has_hooks
from processors.runner import answers, discards
from processors.runner.clock import LogClock
from processors.runner.handling import Run, sure_entry
from processors.runner.lanes import Lane, Session, Waiting
from processors.runner.loop import shared_loop
from processors.runner.workers import (
    HandlerRaised,
    NotImportable,
    Task,
    WorkerDied,
    Workers,
)

__all__ = ["Runner", "RunnerStatus", "Running"]

_T = TypeVar("_T")

logger: Final = logging.getLogger("processors.runner")

#: A turn ends after so many updates or so much time, so that a busy instance starves no other.
_TURN_UPDATES_MAX: Final = 64
_TURN_S_MAX: Final = 0.02
#: A thread that is at one handler for so long is held up: another one takes what is ready.
_STUCK_S: Final = 0.002
#: Answers of one lane on their way: more would only run again if one is refused.
_IN_FLIGHT_MAX: Final = 256
#: Requests of a lane that an earlier owner may have started: it goes no further ahead than that.
_STARTED_MAX: Final = _IN_FLIGHT_MAX
#: A request whose update keeps meeting newer states becomes a failure after so many.
_CONFLICTS_MAX: Final = 30
_CONFLICT_BACKOFF_S: Final = 0.005
_CONFLICT_BACKOFF_S_MAX: Final = 1.0
#: After so many runs that ended with their process, a request is a failure.
_CRASHES_MAX: Final = 3
#: Triggers that led to triggers: more is taken for a circle.
_HOPS_MAX: Final = 16
#: How long a request waits for code that knows it: a deployment brings it, somewhere, in time.
_UNKNOWN_WAIT_S: Final = 5.0
#: How long a runner waits when the log cannot be written.
_UNAVAILABLE_WAIT_S: Final = 0.5
#: Events of an instance that are searched for what became of the last running update.
_LOOK_BACK_EVENTS: Final = 200
#: Exceptions of handlers kept for whoever waits for their request in this process.
_ERRORS_MAX: Final = 256
#: How long `complete` waits before it looks again whether it can help.
_HELP_INTERVAL_S: Final = 0.25
#: How long `drain` waits before it looks at the log again.
_DRAIN_INTERVAL_S: Final = 0.02
#: The note that asks the log what time it is.
_CLOCK_INSTANCE: Final = "$foldlog/clock"


class Running(NamedTuple):
    """An update that runs now."""

    instance: str
    name: str
    sequence: int
    since_ms: int


class RunnerStatus(NamedTuple):
    """What a runner does, as of now. Counts are of this process, since its start."""

    component: str
    shards: frozenset[int]
    running: tuple[Running, ...]
    waiting: int
    oldest_ms: int | None  #: epoch milliseconds of the oldest request that waits
    unknown: tuple[str, ...]  #: names of requests that this code does not know
    applied: int
    discarded: int
    failed: int
    conflicts: int
    retried: int
    is_stopping: bool


class Runner:
    """See the module's text. Safe to use from any thread."""

    _shared: ClassVar[weakref.WeakKeyDictionary[EventStore, dict[str, Runner]]] = (
        weakref.WeakKeyDictionary()
    )
    _sharing: ClassVar = threading.Lock()

    def __init__(
        self,
        store: EventStore,
        component: Component,
        *,
        concurrency: int = 16,
        async_max: int = 1_000,
        worker: Literal["thread", "process"] = "thread",
        triggers: bool = True,
        unknown_wait_s: float = _UNKNOWN_WAIT_S,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        """Prepare to run; `start` begins.

        Args:
            store: where the component's app is.
            component: whose updates to run.
            concurrency: sync updates that run at the same time, each in a thread.
            async_max: async updates that run at the same time, all on one event loop.
            worker: "process" runs sync updates in spawned processes, unless they say otherwise.
            triggers: whether to turn changes into requests, too, and deliver outboxes.
            unknown_wait_s: how long a request waits that this code does not know, before it
                fails.
            on_event: told what an operator's log should have: "failed", "discarded", "shards".
        """
        self.store = store
        self.component = component
        self.processing = Processing(store.app(component.name))
        self._concurrency = concurrency
        self._async_max = async_max
        self._worker = worker
        self._wants_triggers = triggers
        self._unknown_wait_s = unknown_wait_s
        self._on_event = on_event
        self._chains = secrets.token_urlsafe(9)
        self._chain_numbers = itertools.count()
        self._live = LiveStates.share(store, component)
        self._has_hooks = has_hooks(component)
        self._clock = LogClock()
        self._workers: Workers | None = None
        self._relays: Relays | None = None
        self._loop = shared_loop()
        self._threads = ThreadPoolExecutor(concurrency, f"processors-{component.name}")
        #: For what the runner does itself: it must go on when all handlers' threads are taken.
        self._own_threads = ThreadPoolExecutor(2, f"processors-{component.name}-own")
        self._ownership: Ownership | None = None
        self._unwatch: Callable[[], None] | None = None
        self._uses = 0
        #: Guards everything below; notified when a lane comes to rest.
        self._mutex = threading.Lock()
        self._at_rest = threading.Condition(self._mutex)
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()
        #: What ends async runs: comes before lanes that wait for their turn.
        self._jobs: deque[Callable[[], None]] = deque()
        #: thread -> since when it is at one handler (time.monotonic()).
        self._at_work: dict[int, float] = {}
        self._threads_at_work = 0
        self._looks_for_stuck = False
        self._waits_for_slot: deque[Lane] = deque()
        self._shards: frozenset[int] = frozenset()
        self._taking_over: set[int] = set()
        self._owned_once = threading.Event()
        self._shard_of: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._async_running = 0
        self._busy = 0
        self._unknown: dict[str, float] = {}
        self._errors: OrderedDict[tuple[str, int], BaseException] = OrderedDict()
        self._is_stopping = self._is_stopped = False
        self._applied = self._discarded = self._failed = self._conflicts = self._retried = 0
        abandon_in_child(self)

    # --- starting and ending ---------------------------------------------------------------------

    @classmethod
    def share(
        cls,
        store: EventStore,
        component: Component,
        *,
        worker: Literal["thread", "process"] = "thread",
    ) -> Runner:
        """Return this process's runner of a component on a store, started; `release` it later."""
        with cls._sharing:
            runners = cls._shared.setdefault(store, {})
            runner = runners.get(component.name)
            if runner is None or runner._is_stopping:
                runner = runners[component.name] = cls(store, component, worker=worker)
                runner.start()
            runner._uses += 1
            return runner

    def release(self, timeout_s: float = 30.0) -> None:
        """Give a shared runner back; the last one stops it, as `stop` does."""
        with Runner._sharing:
            self._uses -= 1
            if self._uses > 0:
                return
            Runner._shared.get(self.store, {}).pop(self.component.name, None)
        self.stop(timeout_s)

    def start(self) -> Self:
        """Watch for requests, and join those who share the component's shards."""
        self._unwatch = self.processing.watch(self._folded)
        if self._wants_triggers:
            self._relays = Relays(self.store, self.component, self.processing)
        self._ownership = self.processing.own(self.component.name, self._shards_changed)
        return self

    def stop(self, deadline_s: float = 30.0) -> bool:
        """Stop gracefully: nothing new is begun, and what runs may end within `deadline_s`.

        The rest stays pending for whoever has the shards next, and they can have them at once.
        Returns whether everything that ran had ended.
        """
        with self._mutex:
            if self._is_stopped:
                return True
            self._begin_to_stop()
        if self._relays is not None:
            self._relays.stop(deadline_s)
        deadline = time.monotonic() + deadline_s
        with self._mutex:
            while self._busy and (left := deadline - time.monotonic()) > 0:
                self._at_rest.wait(left)
            ended = not self._busy
        with contextlib.suppress(EventStoreError):
            # What was answered is appended already; the next owner should see it.
            self.store.flush(max(0.1, deadline - time.monotonic()))
        self._end()
        return ended

    def stop_now(self) -> None:
        """Stop at once: what runs is given up, and stays pending."""
        with self._mutex:
            self._begin_to_stop()
        if self._relays is not None:
            self._relays.stop(0.0)
        self._end()

    def _begin_to_stop(self) -> None:
        self._is_stopping = True
        self._ready.clear()
        self._busy -= len(self._waits_for_slot)  # these have not begun
        self._waits_for_slot.clear()

    def _end(self) -> None:
        with self._mutex:
            if self._is_stopped:
                return
            self._is_stopped = True
            cancels = [
                lane.run.cancel
                for lane in self._lanes.values()
                if lane.run is not None and lane.run.cancel is not None
            ]
            self._at_rest.notify_all()
        for cancel in cancels:
            cancel()
        if self._unwatch is not None:
            self._unwatch()
        if self._ownership is not None:
            with contextlib.suppress(EventStoreError):
                self._ownership.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._own_threads.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.close()
        self.processing.close()

    def abandon(self) -> None:
        """Let go in a forked child."""
        self._is_stopping = self._is_stopped = True

    # --- what people ask --------------------------------------------------------------------------

    def snapshot(self) -> RunnerStatus:
        """Return what this runner does now."""
        with self._mutex:
            lanes = list(self._lanes.values())
            waiting = [
                one for lane in lanes for one in (*lane.waiting.values(), *lane.delayed.values())
            ]
            running = tuple(
                Running(lane.instance, lane.running.name, lane.running.sequence,
                        lane.running_since_ms)
                for lane in lanes
                if lane.running is not None
            )  # fmt: skip
            return RunnerStatus(
                self.component.name, self._shards, running, len(waiting),
                min((one.time_ms for one in waiting), default=None), tuple(self._unknown),
                self._applied, self._discarded, self._failed, self._conflicts, self._retried,
                self._is_stopping,
            )  # fmt: skip

    def relays(self) -> list[RelayStatus]:
        """Return how the triggers and outboxes are that this process relays."""
        return [] if self._relays is None else self._relays.status()

    def error_of(self, instance: str, sequence: int) -> BaseException | None:
        """Return the exception with which a request failed in this process, if it did."""
        with self._mutex:
            return self._errors.get((instance, sequence))

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until this runner was given its first shards and took in what is pending there."""
        return self._owned_once.wait(timeout_s)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is pending that this runner could run; False after `timeout_s`.

        Requests that are due later are not waited for.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self.wait_ready(timeout_s):
            return False
        was_idle = False
        while True:
            # What was acknowledged is looked at, and what that brings about, until twice in a row
            # there is nothing: a relay may have sent a request between two looks.
            self.processing.catch_up()
            relays_idle = not any(relay.lag_events for relay in self.relays())
            with self._mutex:
                is_idle = relays_idle and not self._has_work()
                if is_idle and was_idle:
                    return True
                was_idle = is_idle
                left_s = math.inf if deadline is None else deadline - time.monotonic()
                if left_s <= 0:
                    return False
                if not is_idle:
                    self._at_rest.wait(min(left_s, _DRAIN_INTERVAL_S))

    def _has_work(self) -> bool:
        now_ms = self._clock.now_ms()
        return bool(self._taking_over) or any(
            lane.is_busy or lane.in_flight or lane.next(now_ms) is not None
            for lane in self._lanes.values()
            if not lane.is_lost
        )

    def complete(self, receipts: Sequence[Receipt], timeout_s: float | None = None) -> list[Entry]:
        """Wait until each of these requests is closed; return what closed them, in order.

        Where this process owns the lane and nobody runs it, it is run in this thread.

        Raises:
            ReadTimeout: one is still open after `timeout_s`; it stays pending.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        closed = []
        for receipt in receipts:
            entry = receipt.entry(timeout_s)
            if entry.verdict == Verdict.DUPLICATE and entry.winner is not None:
                sequence = entry.winner
            else:
                sequence = entry.sequence
            closed.append(self._completed(receipt.instance, sequence, deadline))
        return closed

    def _completed(self, instance: str, sequence: int, deadline: float | None) -> Entry:
        while True:
            self._help(instance, sequence)
            self._unreserve(instance)
            entry = self.processing.closed_by(instance, sequence)
            if entry is not None:
                return entry
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise ReadTimeout(
                    f"request {sequence} of {self.component.name}/{instance} is still open; it"
                    " stays pending"
                )
            with contextlib.suppress(ReadTimeout):
                wait_s = _HELP_INTERVAL_S if left is None else min(left, _HELP_INTERVAL_S)
                return self.processing.wait_closed(instance, sequence, wait_s)

    def _help(self, instance: str, sequence: int) -> None:
        """Take a turn of a lane in this thread, if it is free, and wait for its answers."""
        with self._mutex:
            lane = self._lanes.get(instance)
            if lane is None or not self._can_go(lane):
                return
            self._take(lane)
        self._turn(lane, until=sequence)
        with self._mutex:
            one = lane.in_flight.get(sequence)
            receipt = None if one is None else one.receipt
        if receipt is not None:
            with contextlib.suppress(EventStoreError):
                receipt.entry()

    @contextlib.contextmanager
    def reserve(self, instance: str) -> Iterator[None]:
        """Leave an instance's lane to this thread, which is about to `complete` a request of it.

        It saves two changes of threads. The first turn that `complete` takes ends it.
        """
        with self._mutex:
            self._reserved[instance] = self._reserved.get(instance, 0) + 1
        try:
            yield
        finally:
            self._unreserve(instance)

    def _unreserve(self, instance: str) -> None:
        with self._mutex:
            if self._reserved.pop(instance, None) is not None:
                lane = self._lanes.get(instance)
                if lane is not None:
                    self._queue(lane)

    # --- shards -----------------------------------------------------------------------------------

    def _shards_changed(self, shards: frozenset[int]) -> None:
        with self._mutex:
            if self._is_stopped:
                return
            gained = shards - self._shards
            self._shards = shards
            self._taking_over |= gained
            for lane in list(self._lanes.values()):
                if lane.shard not in shards:
                    lane.is_lost = True
                    lane.waiting.clear()
                    lane.delayed.clear()
                    self._forget(lane)
                elif lane.is_lost:
                    lane.is_lost = False
            self._taking_over &= shards
        if self._on_event is not None:
            self._on_event("shards", {"shards": sorted(shards)})
        with contextlib.suppress(RuntimeError):  # stopped meanwhile
            self._own_threads.submit(self._take_over, gained, shards)

    def _take_over(self, gained: frozenset[int], shards: frozenset[int]) -> None:
        """Take in what is pending in shards that were somebody else's, or nobody's."""
        while not self._is_stopped:
            try:
                self._take_in(gained)
                break
            except Closed:
                return
            except EventStoreError as error:
                logger.warning("%s: cannot take shards over: %s", self.component.name, error)
                time.sleep(_UNAVAILABLE_WAIT_S)
            except Exception:
                logger.exception("%s: taking shards over failed", self.component.name)
                time.sleep(_UNAVAILABLE_WAIT_S)
        if self._relays is not None and not self._is_stopping:
            self._relays.shards_changed(shards)
        self._owned_once.set()

    def _take_in(self, gained: frozenset[int]) -> None:
        if gained:
            # The last owner's answers come first: what they closed is not run again.
            self.processing.catch_up()
        found = [
            row
            for row in self.processing.pending()
            if row.request.lane == "" and self._shard(row.instance) in gained
        ] if gained else []  # fmt: skip
        if found and not self._clock.is_set:
            self._ask_the_time()
        with self._mutex:
            started: dict[str, int] = {}
            for row in found:
                lane = self._lane(row.instance)
                if lane is None:
                    continue  # lost again
                count = started[row.instance] = started.get(row.instance, 0) + 1
                one = lane.add(row.request, row.time_ms, None, taken_over=True)
                if one is not None and count > _STARTED_MAX:
                    one.taken_over = one.suspect = False
            self._taking_over -= gained
            for lane in list(self._lanes.values()):
                if lane.shard in gained:
                    # What the news brought meanwhile came after all of this.
                    lane.waiting = dict(sorted(lane.waiting.items()))
                    self._queue(lane)
            self._at_rest.notify_all()

    def _ask_the_time(self) -> None:
        note = Event(Kind.NOTE, "clock")
        entry = self.processing.send([(_CLOCK_INSTANCE, note)])[0].entry()
        with self._mutex:
            self._clock.seen(entry.time_ms)

    def _shard(self, instance: str) -> int:
        shard = self._shard_of.get(instance)
        if shard is None:
            if len(self._shard_of) > 100_000:
                self._shard_of.clear()
            shard = self._shard_of[instance] = self.processing.shard_of(instance)
        return shard

    def _lane(self, instance: str) -> Lane | None:
        """Return the lane of an instance, made if there is none; None if it is not ours."""
        lane = self._lanes.get(instance)
        if lane is None:
            shard = self._shard(instance)
            if shard not in self._shards:
                return None
            lane = self._lanes[instance] = Lane(instance, shard)
        return None if lane.is_lost else lane

    def _forget(self, lane: Lane) -> None:
        if lane.is_empty and self._lanes.get(lane.instance) is lane:
            del self._lanes[lane.instance]

    # --- news -------------------------------------------------------------------------------------

    def _folded(self, folded: Sequence[Folded]) -> None:
        """Take note of what the view has folded. Called under the view's lock."""
        with self._mutex:
            if self._is_stopped:
                return
            touched: dict[str, Lane] = {}
            for one in folded:
                self._clock.seen(one.appended_ms)
                lane = self._lanes.get(one.instance)
                if one.opened is not None and one.opened.lane == "":
                    lane = lane or self._lane(one.instance)
                    if lane is not None and not lane.is_lost:
                        lane.add(one.opened, one.time_ms, one.event, taken_over=False)
                        touched[one.instance] = lane
                        self._give_up_running(lane, one.event.name)
                if lane is None:
                    continue
                if one.closed:
                    self._closed(lane, one)
                    touched[one.instance] = lane
                elif one.verdict != Verdict.ACCEPTED and one.event.answer is not None:
                    self._refused(lane, one)
                    touched[one.instance] = lane
            for lane in touched.values():
                if lane.is_broken and not lane.in_flight:
                    self._mend(lane)
                self._queue(lane)
                self._forget(lane)
            if touched:
                self._at_rest.notify_all()

    def _closed(self, lane: Lane, folded: Folded) -> None:
        kind = folded.event.kind
        for cause in folded.closed:
            ours = lane.in_flight.get(cause)
            if ours is not None and not self._is_ours(lane, folded.event):
                # Somebody was faster: what we put on top of our own answer will not count either.
                lane.session = None
                lane.is_broken = len(lane.in_flight) > 1
            elif ours is not None:
                if kind == Kind.DIFF:
                    self._applied += 1
                    lane.accepted_version = folded.version
                    if ours.live is not None and not lane.refused:
                        self._live.keep(lane.instance, folded.version, ours.live)
                elif kind == Kind.DISCARD:
                    self._discarded += 1
                elif kind == Kind.FAILURE:
                    self._failed += 1
            lane.closed(cause)
        if kind == Kind.RESET:
            lane.session = None

    def _refused(self, lane: Lane, folded: Folded) -> None:
        """Take note of an answer that did not count, if it is one of ours."""
        event = folded.event
        assert event.answer is not None
        ours = lane.in_flight.get(event.answer.cause)
        if ours is None or not event.answer.closes or event.kind == Kind.EFFECT:
            return
        if not self._is_ours(lane, event):
            return  # of another runner, or of an earlier row of ours
        del lane.in_flight[event.answer.cause]
        lane.refused.append(ours)
        if not lane.is_broken:
            # Only the first was refused on its own account; the rest fall with it.
            lane.is_broken = True
            if folded.verdict == Verdict.REJECTED:
                ours.rejection = f"its answer did not fit the state at version {folded.version}"
            elif folded.verdict == Verdict.CONFLICT:
                ours.conflicts += 1
                self._conflicts += 1

    def _is_ours(self, lane: Lane, event: Event) -> bool:
        """Whether an answer is one that this runner has in flight, as far as that shows."""
        if event.kind != Kind.DIFF:
            return True
        chain = None if event.guard is None else event.guard.chain
        return chain is not None and chain == lane.chain

    def _mend(self, lane: Lane) -> None:
        """Let the refused wait again, now that nothing of the broken row is on its way."""
        refused, lane.refused = lane.refused, []
        lane.take_back(refused)
        lane.is_broken = False
        lane.session = None
        if refused:
            self._live.forget(lane.instance)
            conflicts = max(one.conflicts for one in refused)
            if conflicts > 1:
                backoff_s = _CONFLICT_BACKOFF_S * 2.0 ** min(conflicts - 2, 20)
                self._pause(lane, min(backoff_s, _CONFLICT_BACKOFF_S_MAX))

    def _append_failed(self, lane: Lane, one: Waiting, error: Exception) -> None:
        """Let a request run again whose answer the log did not take, or may not have taken."""
        with self._mutex:
            if lane.in_flight.pop(one.sequence, None) is None or self._is_stopped:
                return
            if not lane.is_broken:
                logger.warning(
                    "%s/%s: the answer to request %s was not appended: %s; it runs again",
                    self.component.name, lane.instance, one.sequence, error,
                )  # fmt: skip
            lane.is_broken = True
            lane.refused.append(one)
            if not lane.in_flight:
                self._mend(lane)
                self._pause(lane, _UNAVAILABLE_WAIT_S)
            self._queue(lane)

    # --- whose turn it is -------------------------------------------------------------------------

    def _can_go(self, lane: Lane) -> bool:
        """Whether a lane has something to run, and nobody runs it. The lock is held."""
        if lane.is_busy or self._is_stopping or lane.shard in self._taking_over:
            return False
        return self._next(lane) is not None

    def _next(self, lane: Lane) -> Waiting | None:
        """Return what a lane may run now; what comes later is given a timer. The lock is held."""
        if lane.is_lost or lane.is_broken or self._is_stopping:
            return None
        if len(lane.in_flight) >= _IN_FLIGHT_MAX:
            return None
        now_s = time.monotonic()
        if lane.not_before_s > now_s:
            self._later(lane, lane.not_before_s - now_s)
            return None
        one = lane.next(self._clock.now_ms())
        if one is None:
            due_ms = lane.due_ms()
            if due_ms is not None:
                self._later(lane, (due_ms - self._clock.now_ms()) / 1_000)
            return None
        if lane.in_flight and (
            self._has_hooks or one.parts or one.suspect or one.rejection or one.conflicts > 1
        ):
            return None  # it begins on a state that is known to be there
        return one

    def _queue(self, lane: Lane) -> None:
        """Let a thread take a lane's turn, if there is one to take. The lock is held."""
        if lane.is_queued or lane.instance in self._reserved or not self._can_go(lane):
            return
        lane.is_queued = True
        self._ready.append(lane)
        self._wake()

    def _wake(self) -> None:
        """See to it that a thread takes what is ready. The lock is held.

        One thread does as long as handlers are quick: more of them would only take turns at the
        interpreter's lock. Another joins when all that are there are held up by their handlers.
        """
        if self._threads_at_work == 0:
            self._send_thread()
        elif not self._looks_for_stuck and self._threads_at_work < self._concurrency:
            self._looks_for_stuck = True
            self._loop.call_soon_threadsafe(self._loop.call_later, _STUCK_S, self._look_for_stuck)

    def _send_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # stopped meanwhile
            self._threads.submit(self._work)
            self._threads_at_work += 1

    def _look_for_stuck(self) -> None:
        """Send one more thread if all are held up. On the loop."""
        with self._mutex:
            self._looks_for_stuck = False
            if self._is_stopping or not (self._ready or self._jobs):
                return
            now_s = time.monotonic()
            if all(now_s - since_s >= _STUCK_S for since_s in self._at_work.values()):
                self._send_thread()
            self._wake()

    def _later(self, lane: Lane, delay_s: float) -> None:
        """Look at a lane again after a while. The lock is held."""
        at_s = time.monotonic() + delay_s
        if lane.timer_s is not None and lane.timer_s <= at_s:
            return
        lane.timer_s = at_s

        def look() -> None:
            with self._mutex:
                if lane.timer_s == at_s:
                    lane.timer_s = None
                self._queue(lane)
                self._at_rest.notify_all()

        # A moment later than asked, so that it is due when it is looked at.
        self._loop.call_soon_threadsafe(self._loop.call_later, max(0.0, delay_s) + 0.001, look)

    def _pause(self, lane: Lane, delay_s: float) -> None:
        lane.not_before_s = max(lane.not_before_s, time.monotonic() + delay_s)

    def _take(self, lane: Lane) -> None:
        lane.is_busy = True
        self._busy += 1

    def _work(self) -> None:
        """Take what is ready, until nothing is. The body of every thread."""
        thread = threading.get_ident()
        while True:
            with self._mutex:
                self._at_work[thread] = time.monotonic()
                lane = None
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    lane = self._next_lane()
                    if lane is None:
                        self._threads_at_work -= 1
                        del self._at_work[thread]
                        return
                    self._take(lane)
            if job is not None:
                job()
            elif lane is not None:
                self._turn(lane)

    def _next_lane(self) -> Lane | None:
        """Return the lane that has waited longest for its turn. The lock is held."""
        while self._ready:
            lane = self._ready.popleft()
            lane.is_queued = False
            if self._can_go(lane):
                return lane
        return None

    def _submit(self, job: Callable[[], None]) -> bool:
        """Let a thread end a run; False when this runner has ended."""
        with self._mutex:
            if self._is_stopped:
                return False
            self._jobs.append(job)
            self._wake()
            return True

    def _turn(self, lane: Lane, until: int | None = None) -> None:
        """Run what waits in a lane that was taken, for a while, then let go of it."""
        if not self._attempt(lane, lambda: self._steps(lane, until)):
            self._let_go(lane)

    def _steps(self, lane: Lane, until: int | None) -> bool:
        """Run what waits; True if the lane is somebody else's now."""
        thread = threading.get_ident()
        is_helper = thread not in self._at_work  # a caller of `complete`
        end_s = time.monotonic() + _TURN_S_MAX
        is_first = True
        for _ in range(_TURN_UPDATES_MAX):
            with self._mutex:
                one = self._next(lane)
                if one is None:
                    break
                lane.running = one
                lane.running_since_ms = self._clock.now_ms()
            if not is_helper:
                self._at_work[thread] = time.monotonic()
            if self._step(lane, one, is_first=is_first):
                return True
            is_first = False
            if one.sequence >= until if until is not None else time.monotonic() > end_s:
                break
        return False

    def _let_go(self, lane: Lane) -> None:
        with self._mutex:
            lane.is_busy = False
            lane.running = None
            lane.run = None
            self._busy -= 1
            if lane.is_broken and not lane.in_flight:
                self._mend(lane)
            self._queue(lane)
            self._forget(lane)
            self._at_rest.notify_all()

    # --- one request ------------------------------------------------------------------------------

    def _step(self, lane: Lane, one: Waiting, *, is_first: bool) -> bool:
        """Deal with the next request; True if an async update was begun, which has the lane."""
        fault_point("processor.step")
        if one.event is None and not self._load(lane, one):
            return False
        update = self.component.find(one.name)
        if update is None:
            self._meet_unknown(lane, one)
            return False
        if self._refuse(lane, one, update):
            return False
        session = self._session(lane, one, renew=is_first)
        run = Run(
            self.component, self.processing, lane, one, update, session,
            is_stale=lambda: self._running_is_stale(lane, one),
        )  # fmt: skip
        lane.run = run
        one.runs += 1
        if one.suspect or self._is_for_process(update):
            return self._run_in_worker(run)
        return self._begin_async(run) if update.is_async else self._run_here(run)

    def _load(self, lane: Lane, one: Waiting) -> bool:
        """Read a request that was found pending; False when it is not any more."""
        row = self.processing.request(lane.instance, one.sequence)
        entry = None if row is None else self.processing.entry(lane.instance, one.sequence)
        if entry is None:
            with self._mutex:
                lane.closed(one.sequence)
            return False
        one.event = entry.event
        return True

    def _meet_unknown(self, lane: Lane, one: Waiting) -> None:
        now_s = time.monotonic()
        with self._mutex:
            first_s = self._unknown.setdefault(one.name, now_s)
            left_s = first_s + self._unknown_wait_s - now_s
            if left_s > 0:
                self._pause(lane, left_s)
                return
        known = ", ".join(self.component.updates) or "none"
        self._fail(
            lane, one,
            answers.failure_body(
                "unknown", None,
                f"component {self.component.name} has no update {one.name!r}; it has: {known}."
                " Deploy code that knows it and run `processors failures retry`, or discard it",
                one.runs, None,
            ),
        )  # fmt: skip

    def _refuse(self, lane: Lane, one: Waiting, update: Update) -> bool:
        """Close, without running it, a request that is stale or has had its chances."""
        event = one.event
        assert event is not None
        policy = event.request
        if policy is not None and policy.hops > _HOPS_MAX:
            message = f"{policy.hops} triggers led here, one after the other: is it a circle?"
            self._fail(lane, one, answers.failure_body("hops", None, message, one.runs, None))
            return True
        discard = _policy(event)
        if discard is not None:
            verdict = discards.decide(
                discard, age_ms=self._clock.now_ms() - one.time_ms, newer=lane.newer(one)
            )
            if verdict.is_stale:
                self._discard(lane, one, discard, verdict.facts, running=False)
                return True
        if one.rejection is not None:
            self._fail(
                lane, one,
                answers.failure_body("rejected", None, one.rejection, one.runs, None),
            )  # fmt: skip
            return True
        if one.conflicts >= _CONFLICTS_MAX:
            message = f"the state changed under it {one.conflicts} times in a row"
            self._fail(
                lane, one, answers.failure_body("conflict", None, message, one.conflicts, None)
            )
            return True
        if one.taken_over:
            return self._take_over_request(lane, one, update)
        return False

    def _take_over_request(self, lane: Lane, one: Waiting, update: Update) -> bool:
        """Record an attempt at a request that somebody else may have begun; True if it is over.

        A handler that takes its process down would else take down one owner after the other.
        """
        runs_max = max(_CRASHES_MAX, update.retry.attempts)
        if one.runs >= runs_max:
            message = (
                f"it was begun {one.runs} times, and each time its process ended before it did"
            )
            self._fail(lane, one, answers.failure_body("crashed", None, message, one.runs, None))
            return True
        if not self._record_attempt(lane, one, "crashed" if one.suspect else "takeover"):
            return True
        one.taken_over = False
        return False

    def _record_attempt(self, lane: Lane, one: Waiting, why: str, message: str = "") -> bool:
        """Record that a request runs again; False when it is closed already."""
        event = answers.attempt(one, self.processing.generation(), why, message)
        entry = sure_entry(self.processing, lane.instance, event)
        if entry.verdict != Verdict.ACCEPTED:
            with self._mutex:
                lane.closed(one.sequence)
            return False
        self._retried += 1
        return True

    def _session(self, lane: Lane, one: Waiting, *, renew: bool) -> Session:
        """Return the row of answers to go on with, on a state that is as new as can be."""
        session = lane.session
        if one.parts:
            accepted = self.processing.parts(lane.instance, one.sequence)
            session = self._new_session(lane.instance)
            if accepted and accepted[0].event.guard is not None:
                # It starts where its first run started, so that it comes by the same effects.
                base = accepted[0].event.guard.base
                session.base = base
                session.state = self.processing.state_at(lane.instance, base)
        elif session is None or (renew and not lane.in_flight):
            session = self._new_session(lane.instance)
        elif renew and lane.accepted_version > session.base:
            # What counts already is read anew, with what others wrote; the rest is put on top.
            with self._mutex:
                version = lane.accepted_version
                diffs = [ours.diff for ours in lane.in_flight.values() if ours.diff is not None]
            state = self.processing.state_at(lane.instance, version)
            for diff in diffs:
                state = state.after(diff)
            session.base, session.state = version, state
        lane.session, lane.chain = session, session.chain
        return session

    def _new_session(self, instance: str) -> Session:
        """Begin a row of answers on the newest state that the view has."""
        state = self.processing.state(instance)
        assert state.version is not None
        # As good as a random name for each, and much cheaper.
        chain = f"{self._chains}-{next(self._chain_numbers):x}"
        return Session(chain, state.version, state.generation, state)

    # --- running it -------------------------------------------------------------------------------

    def _given(self, run: Run) -> Any:
        return handler_state(self.component, run.session.state, self._live)

    def _run_here(self, run: Run) -> bool:
        """Run a plain update in this thread; True if it took so long that it lost its lane."""
        timeout_s = run.update.timeout_s
        cancel_timer = None if timeout_s is None else self._time_out(run, timeout_s)
        fault_point("processor.handler.before")
        result, error = None, None
        try:
            result = run.update.function(*run.arguments(self._given(run)))
        except BaseException as raised:  # SystemExit too: it is the handler's, not ours
            error = raised
        if cancel_timer is not None:
            cancel_timer()
            if self._is_over(run):
                return True
        self._conclude(run, result, error)
        return False

    def _conclude(
        self, run: Run, result: object, error: BaseException | None, reason: str = "raised"
    ) -> None:
        """Answer for a handler that returned or raised."""
        diff = None
        if error is None:
            try:
                diff = run.diff_of(result)
            except Exception as refused:
                error = refused
        fault_point("processor.handler.after")
        if isinstance(error, Superseded):
            self._superseded(run)
        elif error is not None:
            self._raised(run, error, reason)
        else:
            self._answer(run, diff, run.outbox)

    def _is_over(self, run: Run) -> bool:
        """Note that a run is over; True if it was before."""
        with self._mutex:
            was_over, run.is_over = run.is_over, True
            return was_over

    def _time_out(self, run: Run, timeout_s: float) -> Callable[[], None]:
        """Fail a plain update that takes too long; its thread cannot be stopped, and is left."""

        def fail() -> None:
            if not self._is_over(run):
                with contextlib.suppress(RuntimeError):
                    self._own_threads.submit(self._abandon_run, run, timeout_s)

        handles: list[asyncio.TimerHandle] = []
        self._loop.call_soon_threadsafe(
            lambda: handles.append(self._loop.call_later(timeout_s, fail))
        )

        def stop_timer() -> None:
            for handle in handles:
                handle.cancel()

        def cancel() -> None:
            self._loop.call_soon_threadsafe(stop_timer)

        return cancel

    def _abandon_run(self, run: Run, timeout_s: float) -> None:
        error = TimeoutError(f"it ran longer than timeout_s={timeout_s}; its thread was left alone")
        self._attempt(run.lane, lambda: self._raised(run, error, "timeout"))
        self._let_go(run.lane)

    def _attempt(self, lane: Lane, act: Callable[[], _T]) -> _T | None:
        """Do something for a lane; what cannot be done now is done when its request runs again."""
        try:
            return act()
        except Closed:
            with self._mutex:
                lane.is_lost = True
        except Exception as error:
            if isinstance(error, LogUnavailable):
                logger.warning("%s/%s waits: %s", self.component.name, lane.instance, error)
            else:
                logger.exception("%s/%s: a turn failed", self.component.name, lane.instance)
            with self._mutex:
                lane.session = None
                self._pause(lane, _UNAVAILABLE_WAIT_S)
        return None

    def _is_for_process(self, update: Update) -> bool:
        return not update.is_async and (update.worker or self._worker) == "process"

    def _run_in_worker(self, run: Run) -> bool:
        """Run an update in a spawned process; what cannot be found there runs here if it must."""
        with self._mutex:
            if self._workers is None:
                self._workers = Workers(max(1, min(self._concurrency, os.cpu_count() or 1)))
            workers = self._workers
        task = Task(
            (self.component.module, self.component.name),
            run.one.name,
            run.session.state,
            run.event.body,
            run.idempotency_key,
            run.one.runs,
            run.update.timeout_s,
        )
        try:
            done = workers.run(task, run.calls)
        except NotImportable as error:
            if not self._is_for_process(run.update):
                # A suspect whose component no child can find: its attempts are counted at least.
                return self._begin_async(run) if run.update.is_async else self._run_here(run)
            self._raised(run, error)
        except WorkerDied as error:
            self._died(run, error)
        except TimeoutError as error:
            self._raised(run, error, "timeout")
        except Superseded:
            self._superseded(run)
        except HandlerRaised as error:
            self._raised(run, error)
        else:
            self._answer(run, done.diff, done.outbox)
        return False

    def _begin_async(self, run: Run) -> bool:
        """Hand an update to the event loop, which has the lane until it is done."""
        lane = run.lane
        with self._mutex:
            if self._async_running >= self._async_max:
                self._waits_for_slot.append(lane)
                lane.running = lane.run = None
                return True
            self._async_running += 1
        fault_point("processor.handler.before")
        try:
            arguments = run.arguments(self._given(run))
        except BaseException as error:
            self._free_slot()
            self._raised(run, error)
            return False
        self._loop.call_soon_threadsafe(self._start_task, run, arguments)
        return True

    def _start_task(self, run: Run, arguments: tuple[Any, ...]) -> None:
        """Start an async update. On the loop."""
        task = self._loop.create_task(self._timed(run, arguments))

        def cancel() -> None:
            run.was_cancelled = True
            self._loop.call_soon_threadsafe(task.cancel)

        run.cancel = cancel
        timer = self._watch_age(run)
        task.add_done_callback(lambda done: self._ended(run, done, timer))

    async def _timed(self, run: Run, arguments: tuple[Any, ...]) -> Any:
        timeout_s = run.update.timeout_s
        if timeout_s is None:
            return await run.update.function(*arguments)
        async with asyncio.timeout(timeout_s):
            return await run.update.function(*arguments)

    def _ended(self, run: Run, task: asyncio.Task[Any], timer: asyncio.TimerHandle | None) -> None:
        """Take the lane back from an async update. On the loop."""
        if timer is not None:
            timer.cancel()
        self._free_slot()
        if not self._submit(lambda: self._after_async(run, task)):  # the request stays pending
            if not task.cancelled():
                task.exception()
            self._let_go(run.lane)

    def _after_async(self, run: Run, task: asyncio.Task[Any]) -> None:
        """Answer for an async update that ended, and go on with its lane."""
        self._attempt(run.lane, lambda: self._conclude_async(run, task))
        self._turn(run.lane)

    def _conclude_async(self, run: Run, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            if not (run.was_cancelled and self._discard_running(run)):
                self._raised(run, asyncio.CancelledError("the update cancelled itself"))
            return
        error = task.exception()
        is_late = run.update.timeout_s is not None and isinstance(error, TimeoutError)
        result = None if error is not None else task.result()
        self._conclude(run, result, error, "timeout" if is_late else "raised")

    def _free_slot(self) -> None:
        with self._mutex:
            self._async_running -= 1
            if self._waits_for_slot and self._async_running < self._async_max:
                lane = self._waits_for_slot.popleft()
                self._jobs.append(lambda: self._turn(lane))
                self._wake()

    # --- stale while it runs ----------------------------------------------------------------------

    def _running_is_stale(self, lane: Lane, one: Waiting) -> bool:
        """Whether what runs would be given up by now, and may be."""
        assert one.event is not None
        policy = _policy(one.event)
        if policy is None or not policy.running:
            return False
        with self._mutex:
            age_ms, newer = self._clock.now_ms() - one.time_ms, lane.newer(one)
        is_stale = discards.decide(policy, age_ms=age_ms, newer=newer).is_stale
        return is_stale and self._may_give_up(lane, one.name)

    def _may_give_up(self, lane: Lane, name: str) -> bool:
        """Whether a running update may be given up: never twice in a row, so one gets through."""
        if name not in lane.asked:
            given_up = self._gave_up_last(lane.instance, name)
            with self._mutex:
                lane.asked.add(name)
                if given_up:
                    lane.given_up.add(name)
        return name not in lane.given_up

    def _gave_up_last(self, instance: str, name: str) -> bool:
        """Ask the history what became of the last update of this name that ran."""
        head = self.processing.head(instance)
        if head is None:
            return False
        for sequence in range(head.sequence - 1, max(-1, head.sequence - _LOOK_BACK_EVENTS), -1):
            entry = self.processing.entry(instance, sequence)
            if entry is None or entry.verdict != Verdict.ACCEPTED or entry.event.name != name:
                continue
            answer = entry.event.answer
            if entry.event.kind == Kind.DISCARD:
                if b'"running":true' in entry.event.body:
                    return True
            elif answer is not None and answer.closes:
                return False
        return False

    def _give_up_running(self, lane: Lane, name: str) -> None:
        """Cancel an async update that a newer request has made stale. The lock is held."""
        run = lane.run
        if run is None or run.cancel is None or run.one.name != name or run.was_cancelled:
            return
        policy = _policy(run.event)
        if policy is not None and policy.running and policy.policy == discards.NUM_NEW_UPDATES:
            with contextlib.suppress(RuntimeError):
                self._own_threads.submit(self._cancel_if_stale, run)

    def _watch_age(self, run: Run) -> asyncio.TimerHandle | None:
        """Cancel an async update when it becomes too old. On the loop."""
        policy = _policy(run.event)
        if policy is None or not policy.running:
            return None
        if policy.policy == discards.SECONDS:
            left_ms = run.one.time_ms + policy.after - self._clock.now_ms() + 1
        else:
            left_ms = 0  # newer ones may have come while it was handed over
        return self._loop.call_later(max(0, left_ms) / 1_000, self._look_at_age, run)

    def _look_at_age(self, run: Run) -> None:
        with contextlib.suppress(RuntimeError):
            self._own_threads.submit(self._cancel_if_stale, run)

    def _cancel_if_stale(self, run: Run) -> None:
        if not run.was_cancelled and self._running_is_stale(run.lane, run.one):
            cancel = run.cancel
            if cancel is not None:
                cancel()

    def _discard_running(self, run: Run) -> bool:
        """Give a run up that became stale while it ran; False when it may not be."""
        if not self._running_is_stale(run.lane, run.one):
            return False
        policy = _policy(run.event)
        assert policy is not None
        with self._mutex:
            age_ms, newer = self._clock.now_ms() - run.one.time_ms, run.lane.newer(run.one)
            run.lane.given_up.add(run.one.name)
        verdict = discards.decide(policy, age_ms=age_ms, newer=newer)
        self._discard(run.lane, run.one, policy, verdict.facts, running=True)
        return True

    # --- answering --------------------------------------------------------------------------------

    def _answer(self, run: Run, diff: Diff | None, outbox: bytes | None) -> None:
        """Append what a handler's run changes, and go on without waiting for the verdict."""
        assert diff is not None
        lane, one, session = run.lane, run.one, run.session
        if self._discard_running(run):
            return
        event = answers.part(
            one, session, diff, session.state.observed, run.update,
            max(run.calls.part, one.parts), closes=True, outbox=outbox,
        )  # fmt: skip
        one.diff = diff
        one.live = run.given if has_hooks(self.component) else None
        try:
            self._send(lane, one, event)
        except EventTooLarge as error:
            self._raised(run, error)
            return
        session.index += 1
        # Each handler reads values of its own: one that changes them in place harms nobody.
        session.state = session.state.after(diff)
        if lane.given_up:
            with self._mutex:
                lane.given_up.discard(one.name)

    def _send(self, lane: Lane, one: Waiting, event: Event) -> None:
        """Append an answer. It is on its way before the append, whose news may come at once."""
        with self._mutex:
            lane.answered(one)
        fault_point("processor.append.before")
        try:
            receipt = self.processing.send([(lane.instance, event)])[0]
        except BaseException:
            with self._mutex:
                lane.take_back([one])
            raise
        one.receipt = receipt
        receipt.when_failed(lambda error: self._append_failed(lane, one, error))
        fault_point("processor.append.after")

    def _discard(
        self, lane: Lane, one: Waiting, policy: Discard, facts: dict[str, Any], *, running: bool
    ) -> None:
        offsets = dict(self.processing.position)
        facts = {**facts, "offset": {str(p): offset for p, offset in offsets.items()}}
        generation = self.processing.generation()
        event = answers.discard(one, generation, policy, facts, running=running)
        one.diff = one.live = None
        self._send(lane, one, event)
        if self._on_event is not None:
            self._on_event("discarded", {"instance": lane.instance, "request": one.sequence,
                                         "update": one.name, **facts})  # fmt: skip

    def _raised(self, run: Run, error: BaseException, reason: str = "raised") -> None:
        """Run a request again that raised, if its policy says so; else set it aside."""
        lane, one, retry = run.lane, run.one, run.update.retry
        runs = one.runs
        is_worth_it = (
            error.is_a(retry.retry_on)
            if isinstance(error, HandlerRaised)
            else isinstance(error, retry.retry_on)
        )
        if is_worth_it and runs < retry.attempts:
            if self._record_attempt(lane, one, reason, f"{type(error).__name__}: {error}"):
                backoff_s = min(retry.backoff_s * 2.0 ** min(runs - 1, 60), retry.backoff_s_max)
                with self._mutex:
                    self._pause(lane, backoff_s)
            return
        body = answers.failure_body(reason, error, "", runs, run.session.state.version)
        if isinstance(error, HandlerRaised):
            body |= {"type": error.type_name, "message": error.message,
                     "traceback": error.traceback}  # fmt: skip
            cause = error.exception or error
        else:
            cause = error
        with self._mutex:
            self._errors[lane.instance, one.sequence] = cause
            if len(self._errors) > _ERRORS_MAX:
                self._errors.popitem(last=False)
            lane.given_up.discard(one.name)
        self._fail(lane, one, body)

    def _died(self, run: Run, error: WorkerDied) -> None:
        """Count a run that took its process down; run it again, or set it aside."""
        lane, one = run.lane, run.one
        if one.runs < max(_CRASHES_MAX, run.update.retry.attempts):
            one.suspect = True
            self._record_attempt(lane, one, "crashed", str(error))
            return
        body = answers.failure_body("crashed", None, str(error), one.runs, None)
        self._fail(lane, one, body)

    def _fail(self, lane: Lane, one: Waiting, body: dict[str, Any]) -> None:
        one.diff = one.live = None
        self._send(lane, one, answers.failure(one, self.processing.generation(), body))
        if self._on_event is not None:
            self._on_event(
                "failed",
                {"instance": lane.instance, "request": one.sequence, "update": one.name,
                 "reason": body["reason"], "message": body["message"]},
            )  # fmt: skip

    def _superseded(self, run: Run) -> None:
        """Drop a run whose request somebody else answered, or whose part met a newer state."""
        with self._mutex:
            run.one.conflicts += 1
            self._conflicts += 1
            run.lane.session = None
            if run.one.conflicts > 1:
                self._pause(run.lane, _CONFLICT_BACKOFF_S * 2.0 ** min(run.one.conflicts, 7))
        if self.processing.closed_by(run.lane.instance, run.one.sequence) is not None:
            with self._mutex:
                run.lane.closed(run.one.sequence)


def _policy(event: Event) -> Discard | None:
    """Return a request's discard policy, None where it has none."""
    request = event.request
    if request is None or not request.discard_policy:
        return None
    return Discard(request.discard_policy, request.discard_after, request.discard_running)
