"""Runner: runs the updates of one component on one store, in this process.

Requests come with the view's news (`Processing.watch`) and, when shards are gained, from the view
itself. Each instance has a lane (lanes.py) on the board (board.py), and one thread or task at a
time has a lane: it takes *turns* (turns.py), in which it runs what waits (handlers.py) and appends
each answer without waiting for the one before it (answering.py). The answers of a lane form a
chain, so they count only in an unbroken row; when one is refused, those behind it are, too, and all
of them run again.

What is promised (tests/contract/test_runner.py, tests/fault, tests/soak):

  - Updates of an instance run one at a time, in the order of their requests.
  - Each request takes effect at most once, because the log closes it once, whoever runs it; and
    exactly once unless it is discarded or fails for good, because it stays pending until it is
    closed, and whoever owns its shard runs what is pending.
  - Ownership only saves work. Two runners of one lane, for a moment, repeat calls of handlers,
    and never an effect.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self

from eventstore import (
    Closed,
    Entry,
    EventStore,
    EventStoreError,
    Kind,
    ReadTimeout,
    Receipt,
    Verdict,
)
from eventstore.events import Event
from eventstore.interrupts import HeldBack
from eventstore.lifetime import ProcessLock, abandon_in_child
from eventstore.processing import Folded, Ownership, PendingRow, Processing
from processors.component import Component, Update
from processors.notices import publish
from processors.relay import RelayStatus
from processors.relays import Relays
from processors.results import LiveStates, has_hooks
from processors.runner.answering import Answering
from processors.runner.at_once import AtOnce
from processors.runner.board import IN_FLIGHT_MAX, UNAVAILABLE_WAIT_S, Board
from processors.runner.handlers import Handlers
from processors.runner.lag import Lag
from processors.runner.lanes import Lane
from processors.runner.staleness import Staleness
from processors.runner.turns import Turns

__all__ = ["Runner", "RunnerStatus", "Running"]

logger: Final = logging.getLogger("processors.runner")

#: How long a request waits for code that knows it: a deployment brings it, somewhere, in time.
_UNKNOWN_WAIT_S: Final = 5.0
#: How long `share` waits for the first shards.
_SHARE_WAIT_S: Final = 0.25
#: How long `complete` waits before it looks again whether it can help.
_HELP_INTERVAL_S: Final = 0.25
#: How long `drain` waits before it looks at the log again.
_DRAIN_INTERVAL_S: Final = 0.02
#: The note that asks the log what time it is.
_CLOCK_INSTANCE: Final = "$foldlog/clock"
#: Shards of instances that are remembered.
_SHARDS_KNOWN_MAX: Final = 100_000


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
    _sharing: ClassVar = ProcessLock()

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
                Default: failures are errors in the log of Python.
        """
        self.store = store
        self.component = component
        self.processing = Processing(store.app(component.name))
        self._wants_triggers = triggers
        self._tell = on_event or self._log_failure
        live = LiveStates.share(store, component)
        self._board = board = Board(
            component.name,
            concurrency=concurrency,
            async_max=async_max,
            # What only lives in memory is made of a settled state, not of one that may not count.
            is_pipelined=not has_hooks(component),
            take_turn=lambda lane: self._turns.take(lane),
        )
        self._staleness = Staleness(board, self.processing)
        self._answering = Answering(
            component, self.processing, board, self._staleness, live, self._tell
        )
        self._turns = Turns(
            component, self.processing, board, self._answering, self._staleness, live,
            unknown_wait_s=unknown_wait_s,
        )  # fmt: skip
        self._handlers = self._turns.handlers = Handlers(
            component, board, self._answering, self._staleness, live,
            processes_max=concurrency, worker=worker,
            take_turn=self._turns.take,
        )  # fmt: skip
        self._at_once = AtOnce(
            component, self.processing, board, self._turns, self._handlers, self._answering
        )
        self._lag = Lag(board, self.processing, lambda: self._shards - self._taking_over)
        self._relays: Relays | None = None
        #: How often requests of ours have come or ended. Changed under the board's lock.
        self._moves = 0
        #: Held while the relays are told which shards are held.
        self._relaying = threading.Lock()
        self._ownership: Ownership | None = None
        self._unwatch: Callable[[], None] | None = None
        self._owned_once = threading.Event()
        #: What still ran when the time to stop was over.
        self.cut_off: tuple[Running, ...] = ()
        #: Guarded by the board's lock.
        self._shards: frozenset[int] = frozenset()
        self._taking_over: set[int] = set()
        self._shard_of: dict[str, int] = {}
        #: Guarded by the class's lock.
        self._uses = 0
        self._successor: Runner | None = None
        self._end_notice: Callable[[], None] = lambda: None
        abandon_in_child(self)

    # --- starting and ending ----------------------------------------------------------------------

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
            runner, former = runners.get(component.name), None
            if (
                runner is not None
                and not runner.has_ended
                and component.is_newer_than(runner.component)
            ):
                runner, former = None, runner
            if runner is None or runner.has_ended:
                runner = cls(store, component, worker=worker).start()
                runners[component.name] = runner
                runner._end_notice = publish(runner)
                if former is not None:
                    runner._succeed(former)
            runner._uses += 1
        if former is not None:
            former._give_way(component)
        # What is requested next is then known to be new; where that takes long (a Kafka group),
        # the first requests are marked as perhaps begun by somebody else.
        runner.wait_ready(_SHARE_WAIT_S)
        return runner

    def _succeed(self, former: Runner) -> None:
        """Run on for those who have the former runner, too, until they give that one back.

        They may never call again, and still wait for what they have requested. The class's lock is
        held.
        """
        self._uses = former._uses
        self._handlers.run_as(former._handlers)
        former._successor = self

    def _line(self) -> Iterator[Runner]:
        """Yield this runner and those that came after it. The class's lock is held."""
        runner: Runner | None = self
        while runner is not None:
            yield runner
            runner = runner._successor

    def _give_way(self, component: Component) -> None:
        """Stop, because the component was defined anew: a cell of a notebook was run again, say.

        Instances of the former definition go on with the runner of the new one.
        """
        self._board.begin_nothing()  # in this thread: what is requested next is the new one's
        logger.warning(
            "component %s was defined anew, in module %s: its updates run by that definition from"
            " now on, those of instances that were opened before, too",
            component.name, component.module,
        )  # fmt: skip
        self._end_notice()
        # Elsewhere: what runs may take its time, and has it.
        threading.Thread(target=self.stop, name="processors-former", daemon=True).start()

    def release(self, timeout_s: float = 30.0) -> None:
        """Give a shared runner back; the last one stops it, as `stop` does."""
        unused = []
        with Runner._sharing:
            runners = Runner._shared.get(self.store, {})
            for runner in self._line():
                runner._uses -= 1
                if runner._uses > 0:
                    continue
                unused.append(runner)
                if runners.get(runner.component.name) is runner:
                    del runners[runner.component.name]
        for runner in unused:
            runner._end_notice()
            runner.stop(timeout_s)

    def start(self) -> Self:
        """Watch for requests, and join those who share the component's shards.

        Raises:
            EventStoreError: the log or a view cannot be used; the runner is stopped.
        """
        try:
            self._unwatch = self.processing.watch(self._folded)
            if self._wants_triggers:
                self._relays = Relays(self.store, self.component, self.processing)
                self._relays.decide_starts()
            self._ownership = self.processing.own(
                self.component.name, self._shards_changed, self._lag.offsets, self._board.is_busy
            )
        except BaseException:
            self.stop_now()
            raise
        return self

    def stop(self, deadline_s: float = 30.0) -> bool:
        """Stop gracefully: nothing new is begun, and what runs may end within `deadline_s`.

        The rest stays pending for whoever has the shards next, and they can have them at once.
        Returns whether everything that ran had ended.
        """
        deadline = time.monotonic() + deadline_s
        self._board.begin_nothing()
        if self._relays is not None:
            self._relays.stop(deadline_s)
        ended = self._board.wait_idle(deadline)
        if not ended:
            self.cut_off = self.snapshot().running  # now: what runs in processes ends with them
        if not self._board.is_stopped:
            with contextlib.suppress(EventStoreError):
                # What was answered is appended already; the next owner should see it.
                self.store.flush(max(0.1, deadline - time.monotonic()))
                self.processing.catch_up(max(0.1, deadline - time.monotonic()))
        self._end()
        return ended

    def stop_now(self) -> None:
        """Stop at once: what runs is given up, and stays pending."""
        self._board.begin_nothing()
        if self._relays is not None:
            self._relays.stop(0.0)
        self._end()

    def _end(self) -> None:
        if not self._board.end():
            return
        if self._unwatch is not None:
            self._unwatch()
        if self._ownership is not None:
            with contextlib.suppress(EventStoreError):
                self._ownership.close()
        self._handlers.close()
        self.processing.close()

    def abandon(self) -> None:
        """Let go in a forked child."""
        self._board.is_stopping = self._board.is_stopped = True

    # --- what people ask --------------------------------------------------------------------------

    def snapshot(self) -> RunnerStatus:
        """Return what this runner does now."""
        board = self._board
        with board.mutex:
            lanes = list(board.lanes.values())
            waiting = sum(len(lane.waiting) + len(lane.delayed) for lane in lanes)
            firsts = (one for lane in lanes if (one := lane.oldest()) is not None)
            running = [
                Running(lane.instance, lane.run.one.name, lane.run.one.sequence, lane.run.began_ms)
                for lane in lanes
                if lane.run is not None
            ]
            counts = board.counts
            return RunnerStatus(
                self.component.name, self._shards, tuple(running), waiting,
                min((one.time_ms for one in firsts), default=None), tuple(self._turns.unknown),
                counts.applied, counts.discarded, counts.failed, counts.conflicts,
                counts.retried, board.is_stopping,
            )  # fmt: skip

    def relays(self) -> list[RelayStatus]:
        """Return how the triggers and outboxes are that this process relays."""
        return [] if self._relays is None else self._relays.status()

    @property
    def has_ended(self) -> bool:
        """Whether it begins nothing any more."""
        return self._board.is_stopping

    def run_in(self, instance: str, worker: Literal["thread", "process"]) -> None:
        """Say where sync updates of an instance run here, unless they say it themselves.

        It is so until `run_in_no_more`; what the instance has left pending then runs as the
        runner's other updates do.
        """
        with Runner._sharing:
            for runner in self._line():
                runner._handlers.run_in(instance, worker)

    def run_in_no_more(self, instance: str, worker: Literal["thread", "process"]) -> None:
        """Take back what was said by `run_in`."""
        with Runner._sharing:
            for runner in self._line():
                runner._handlers.run_in_no_more(instance, worker)

    def error_of(self, instance: str, sequence: int) -> BaseException | None:
        """Return the exception with which a request failed in this process, if it did."""
        return self._answering.error_of(instance, sequence)

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until this runner was given its first shards and took in what is pending there.

        Its triggers have then looked where they begin, and see what is appended from now on.
        """
        began_s = time.monotonic()
        if not self._owned_once.wait(timeout_s):
            return False
        left_s = None if timeout_s is None else timeout_s - (time.monotonic() - began_s)
        return self._relays is None or self._relays.wait_begun(left_s)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is pending that this runner could run; False after `timeout_s`.

        Requests that are due later are not waited for.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        if not self.wait_ready(timeout_s):
            return False
        board = self._board
        #: How often requests had come or ended when there was nothing to do at the last look.
        idle_at: int | None = None
        while True:
            # What was acknowledged is looked at, and what that brings about, until twice in a row
            # there is nothing, and no request came or ended meanwhile: a relay may have sent one
            # between two looks, and an update ended between the looks at relays and at lanes.
            self.processing.catch_up()
            moves = self._moves
            relays_idle = not any(relay.lag_events for relay in self.relays())
            with board.mutex:
                is_idle = relays_idle and not self._taking_over and not board.has_work()
                is_idle = is_idle and self._moves == moves
            if is_idle and idle_at == moves:
                return True
            idle_at = moves if is_idle else None
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            if not is_idle:
                with board.mutex:
                    board.at_rest.wait(min(left_s, _DRAIN_INTERVAL_S))

    def _log_failure(self, event: str, facts: dict[str, Any]) -> None:
        """Say that an update failed: nobody may be waiting for it, and who does is told anyway."""
        if event != "failed":
            return
        logger.error(
            "update %s of %s/%s failed: %s: %s"
            " (`processors failures %s %s --traceback` shows more, and `... retry` runs it again)",
            facts["update"], self.component.name, facts["instance"],
            facts["type"] or facts["reason"], facts["message"],
            self.component.name, facts["instance"],
        )  # fmt: skip

    # --- waiting for requests ---------------------------------------------------------------------

    def reserve(self, instance: str) -> AbstractContextManager[None]:
        """Leave an instance's lane to this thread, which is about to `complete` a request of it.

        It saves two changes of threads. The first turn that `complete` takes ends it.
        """
        return self._board.reserved(instance)

    def run_at_once(self, instance: str, update: Update, request: Event) -> Entry | None:
        """Run a quick update whose request is not written yet; return what closed it.

        None, with nothing written, where that cannot be done: the usual way is open then.

        Raises:
            As for `Receipt.entry`.
        """
        is_ours = self.component.updates.get(update.name) is update
        if not is_ours or not self._at_once.is_for(update, instance):
            return None
        board = self._board
        # Before the lane, which knows of all that is folded so far; the rest is seen as newer.
        offset_next = self.processing.offset_next(instance)
        with HeldBack():  # or the lane would be taken for ever
            with board.mutex:
                lane = None if board.is_stopping else self._lane(instance)
                if lane is None:
                    return None
                if not lane.is_at_rest:
                    board.forget(lane)
                    return None
                board.take(lane)
            try:
                done = self._at_once.run(lane, update, request, offset_next)
            finally:
                board.let_go(lane)
        if done is None:
            return None
        if done.closed is None:  # it raised, say
            return self._completed(instance, done.sequence, math.inf)
        return self.processing.entry_of(done.closed)

    def complete(self, receipts: Sequence[Receipt], timeout_s: float | None = None) -> list[Entry]:
        """Wait until each of these requests is closed; return what closed them, in order.

        Where this process owns the lane and nobody runs it, it is run in this thread.

        Raises:
            ReadTimeout: one is still open after `timeout_s`; it stays pending.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        closed = []
        for receipt in receipts:
            entry = receipt.entry(timeout_s)
            is_copy = entry.verdict == Verdict.DUPLICATE and entry.winner is not None
            sequence = entry.winner if is_copy else entry.sequence
            assert sequence is not None
            closed.append(self._completed(receipt.instance, sequence, deadline))
        return closed

    def closed(self, instance: str, sequence: int, timeout_s: float | None = None) -> Entry:
        """Wait until one request is closed, as `complete` does; return what closed it.

        Raises:
            ReadTimeout: it is still open after `timeout_s`; it stays pending.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        return self._completed(instance, sequence, deadline)

    def _completed(self, instance: str, sequence: int, deadline: float) -> Entry:
        while True:
            self._help(instance, sequence)
            self._board.unreserve(instance)
            entry = self.processing.closed_by(instance, sequence)
            if entry is not None:
                return entry
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ReadTimeout(
                    f"request {sequence} of {self.component.name}/{instance} is still open; it"
                    " stays pending"
                )
            with contextlib.suppress(ReadTimeout):
                wait_s = min(left_s, _HELP_INTERVAL_S)
                return self.processing.wait_closed(instance, sequence, wait_s)

    def _help(self, instance: str, sequence: int) -> None:
        """Take a turn of a lane in this thread, if it is free, and wait for its answer."""
        board = self._board
        with HeldBack():  # or the lane would be taken for ever
            with board.mutex:
                lane = board.lanes.get(instance)
                if lane is None or not board.can_go(lane):
                    return
                board.take(lane)
            self._turns.take(lane, until=sequence)
        with board.mutex:
            one = lane.in_flight.get(sequence)
            receipt = None if one is None else one.receipt
        if receipt is not None:
            with contextlib.suppress(EventStoreError):
                receipt.entry()

    # --- shards -----------------------------------------------------------------------------------

    def _shards_changed(self, shards: frozenset[int]) -> None:
        board = self._board
        with board.mutex:
            if board.is_stopped:
                return
            gained = shards - self._shards
            self._shards = shards
            self._lag.tell_anew()
            self._taking_over = (self._taking_over | gained) & shards
            for lane in list(board.lanes.values()):
                lane.is_lost = lane.shard not in shards
                if lane.is_lost:
                    lane.waiting.clear()
                    lane.delayed.clear()
                    board.forget(lane)
                elif lane.shard in gained:
                    lane.is_taken_over = True
        self._tell("shards", {"shards": sorted(shards)})
        board.aside(lambda: self._take_over(gained))

    def _take_over(self, gained: frozenset[int]) -> None:
        """Take in what is pending in shards that were somebody else's, or nobody's."""
        while not self._board.is_stopped:
            try:
                self._take_in(gained)
                break
            except Closed:
                return
            except EventStoreError as error:
                logger.warning("%s: cannot take shards over: %s", self.component.name, error)
                time.sleep(UNAVAILABLE_WAIT_S)
            except Exception:
                logger.exception("%s: taking shards over failed", self.component.name)
                time.sleep(UNAVAILABLE_WAIT_S)
        if self._relays is not None and not self._board.is_stopping:
            # Two of these may run at once, and end in any order: the last has what is held then.
            with self._relaying:
                self._relays.shards_changed(self._shards)
        self._owned_once.set()

    def _take_in(self, gained: frozenset[int]) -> None:
        if gained:
            # The last owner's answers come first: what they closed is not run again.
            self.processing.catch_up()
            for instance, rows in itertools.groupby(
                self.processing.pending(), lambda row: row.instance
            ):
                if self._shard(instance) in gained:
                    self._take_in_lane(instance, [row for row in rows if row.request.lane == ""])
        board = self._board
        with board.mutex:
            self._taking_over -= gained
            for lane in list(board.lanes.values()):
                if lane.shard in gained and lane.is_taken_over:
                    lane.is_taken_over = False
                    board.queue(lane)
            board.at_rest.notify_all()

    def _take_in_lane(self, instance: str, rows: Sequence[PendingRow]) -> None:
        """Take in what is pending of one instance; it can go on while others are still read."""
        if not self._board.clock.is_set:
            self._ask_the_time()
        with self._board.mutex:
            lane = self._lane(instance)
            if lane is None:
                return  # lost again
            for number, row in enumerate(rows):
                # An earlier owner may have begun what it could have had on its way, and one more.
                lane.add(row.request, row.time_ms, None, taken_over=number <= IN_FLIGHT_MAX)
            # What the news brought meanwhile came after all of this.
            lane.sort()
            lane.is_taken_over = False
            self._board.queue(lane)

    def _ask_the_time(self) -> None:
        note = Event(Kind.NOTE, "clock")
        entry = self.processing.send([(_CLOCK_INSTANCE, note)])[0].entry()
        with self._board.mutex:
            self._board.clock.seen(entry.time_ms)

    def _shard(self, instance: str) -> int:
        shard = self._shard_of.get(instance)
        if shard is None:
            if len(self._shard_of) > _SHARDS_KNOWN_MAX:
                self._shard_of.clear()
            shard = self._shard_of[instance] = self.processing.shard_of(instance)
        return shard

    def _lane(self, instance: str) -> Lane | None:
        """Return the lane of an instance, made if there is none; None if it is not ours."""
        lane = self._board.lanes.get(instance)
        if lane is None:
            shard = self._shard(instance)
            if shard not in self._shards:
                return None
            lane = self._board.lanes[instance] = Lane(instance, shard)
            lane.is_taken_over = shard in self._taking_over
        return None if lane.is_lost else lane

    # --- news -------------------------------------------------------------------------------------

    def _folded(self, folded: Sequence[Folded]) -> None:
        """Take note of what the view has folded. Called under the view's lock."""
        board = self._board
        with board.mutex:
            if board.is_stopped or not folded:
                return
            touched: dict[str, Lane] = {}
            board.clock.seen(max(one.appended_ms for one in folded))
            for one in folded:
                if one.event.kind == Kind.RESET:
                    self._turns.was_reset(one.instance)
                lane = board.lanes.get(one.instance)
                if one.opened is not None and one.opened.lane == "":
                    lane = self._lane(one.instance)
                    if lane is not None:
                        lane.add(
                            one.opened, one.time_ms, one.event,
                            taken_over=False, offset=one.offset,
                        )  # fmt: skip
                        if lane.run is not None:
                            self._staleness.newer_came(lane.run, one.event.name)
                        touched[one.instance] = lane
                if lane is None:
                    continue
                if one.verdict == Verdict.ACCEPTED and one.fields:
                    self._answering.changed(lane, one)
                    self._answering.part_came(lane, one)
                if one.closed:
                    self._answering.closed(lane, one)
                    touched[one.instance] = lane
                elif one.verdict != Verdict.ACCEPTED and one.event.answer is not None:
                    self._answering.refused(lane, one)
                    touched[one.instance] = lane
            for lane in touched.values():
                if lane.is_broken and not lane.in_flight:
                    board.mend(lane)
                board.queue(lane)
                board.forget(lane)
            if touched:
                self._moves += 1
                board.at_rest.notify_all()
