"""The board: all lanes of a runner, whose turn it is, and the threads that take the turns.

Its lock guards the lanes and everything in them. No call of the log or the view is made under it:
the thread that folds holds the view's lock while it brings its news here.

One thread takes all turns as long as handlers are quick: more of them would only take turns at the
interpreter's lock. Another joins when all that are there are held up, by a handler or by the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from eventstore import Closed, LogUnavailable
from processors.clock import LogClock
from processors.runner.lanes import Lane, Waiting
from processors.runner.loop import UPDATES_LOOP, shared_loop

__all__ = ["IN_FLIGHT_MAX", "UNAVAILABLE_WAIT_S", "Board", "Counts"]

_T = TypeVar("_T")

logger: Final = logging.getLogger("processors.runner")

#: Answers of one lane on their way: more would only run again if one is refused.
IN_FLIGHT_MAX: Final = 256
#: How long a lane waits when the log cannot be written.
UNAVAILABLE_WAIT_S: Final = 0.5
#: The longest wait of a lane whose turns end by a fault of ours, again and again.
_FAULT_WAIT_S_MAX: Final = 30.0
#: That the log cannot be written is said once in so long, however many lanes wait for it.
_TROUBLE_INTERVAL_S: Final = 30.0
#: A thread that is at one handler for so long is held up: another one takes what is ready.
_STUCK_S: Final = 0.002
_CONFLICT_BACKOFF_S: Final = 0.005
_CONFLICT_BACKOFF_S_MAX: Final = 1.0


@dataclass(slots=True)
class Counts:
    """What became of requests in this process."""

    applied: int = 0
    discarded: int = 0
    failed: int = 0
    conflicts: int = 0
    retried: int = 0


class Board:
    """See the module's text. Methods of the first part take the lock, the others need it held."""

    def __init__(
        self,
        name: str,
        *,
        concurrency: int,
        async_max: int,
        is_pipelined: bool,
        take_turn: Callable[[Lane], None],
    ) -> None:
        """Make an empty board.

        Args:
            name: the component's, for threads and messages.
            concurrency: threads that take turns at the same time, at most.
            async_max: async updates that run at the same time, at most.
            is_pipelined: whether a lane may go on before its last answer is judged.
            take_turn: runs what waits in a lane that was taken; it lets go of the lane itself.
        """
        self.name = name
        self.clock = LogClock()
        self.counts = Counts()
        #: For async updates.
        self.loop: asyncio.AbstractEventLoop = shared_loop(UPDATES_LOOP)
        #: For our own timers, which no update that blocks its loop may hold up.
        self.timers: asyncio.AbstractEventLoop = shared_loop("timers")
        self._async_max = async_max
        self._async_running = 0
        #: Lanes whose async update waits for others to end.
        self._waits_for_slot: deque[Lane] = deque()
        self._concurrency = concurrency
        self._is_pipelined = is_pipelined
        self._take_turn = take_turn
        self._threads = ThreadPoolExecutor(concurrency, f"processors-{name}")
        #: For what the runner does itself: it must go on when all handlers' threads are taken.
        self._own_threads = ThreadPoolExecutor(2, f"processors-{name}-own")
        self.mutex = threading.Lock()
        #: Notified when a lane comes to rest, or news came.
        self.at_rest = threading.Condition(self.mutex)
        self.lanes: dict[str, Lane] = {}
        self.busy = 0
        self.is_stopping = self.is_stopped = False
        self._ready: deque[Lane] = deque()
        #: What ends async runs: comes before lanes that wait for their turn.
        self._jobs: deque[Callable[[], None]] = deque()
        #: thread -> since when it is at one handler (time.monotonic()).
        self._at_work: dict[int, float] = {}
        self._threads_at_work = 0
        #: Threads that a handler has kept for too long.
        self._written_off: set[int] = set()
        self._looks_for_stuck = False
        self._reserved: dict[str, int] = {}
        self._trouble_said_s = -math.inf

    # --- without the lock held --------------------------------------------------------------------

    def aside(self, act: Callable[[], None]) -> None:
        """Do something in a thread of the runner's own; nothing, once it has ended."""
        with contextlib.suppress(RuntimeError):
            self._own_threads.submit(act)

    def submit(self, job: Callable[[], None]) -> bool:
        """Let a thread that takes turns do this first; False when the runner has ended."""
        with self.mutex:
            if self.is_stopped:
                return False
            self._jobs.append(job)
            self._wake()
            return True

    def attempt(self, lane: Lane, act: Callable[[], _T]) -> _T | None:
        """Do something for a lane; what cannot be done now is done when its request runs again."""
        try:
            done = act()
        except Closed:
            with self.mutex:
                lane.is_lost = True
        except BaseException as error:
            wait_s = UNAVAILABLE_WAIT_S if isinstance(error, Exception) else 0.0
            if isinstance(error, LogUnavailable):
                if self.is_news_of_trouble():
                    logger.warning("%s/%s waits: %s", self.name, lane.instance, error)
            elif isinstance(error, Exception):
                logger.exception("%s/%s: a turn failed", self.name, lane.instance)
                wait_s = min(wait_s * 2.0 ** min(lane.faults, 20), _FAULT_WAIT_S_MAX)
                lane.faults += 1
            with self.mutex:
                lane.break_row()
                self.pause(lane, wait_s)
            if not isinstance(error, Exception):
                raise  # Ctrl-C, in the thread of a caller that runs the lane
        else:
            lane.faults = 0
            return done
        return None

    def is_news_of_trouble(self) -> bool:
        """Whether it was not said lately that the log cannot be written."""
        now_s = time.monotonic()
        if now_s < self._trouble_said_s + _TROUBLE_INTERVAL_S:
            return False
        self._trouble_said_s = now_s
        return True

    def let_go(self, lane: Lane) -> None:
        """Give a lane back that was taken."""
        with self.mutex:
            lane.is_busy = False
            lane.run = None
            lane.expected = lane.expected_answer = None
            self.busy -= 1
            if lane.is_broken and not lane.in_flight:
                self.mend(lane)
            self.queue(lane)
            self.forget(lane)
            self.at_rest.notify_all()

    def begin_handler(self) -> None:
        """Note that this thread begins with a handler, if it is one of those that take turns."""
        thread = threading.get_ident()
        if thread in self._at_work:
            self._at_work[thread] = time.monotonic()

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Let another thread take what is ready while this one waits for something else."""
        thread = threading.get_ident()
        if thread not in self._at_work:
            yield
            return
        with self.mutex:
            self._threads_at_work -= 1
            if self._has_ready():
                self._wake()
        try:
            yield
        finally:
            with self.mutex:
                self._threads_at_work += 1
                self._at_work[thread] = time.monotonic()

    def write_off(self, thread: int) -> None:
        """Go on without a thread that a handler does not give back, and with another instead."""
        with self.mutex:
            if self._at_work.pop(thread, None) is None or self.is_stopped:
                return
            self._written_off.add(thread)
            self._threads_at_work -= 1
            # Those of the old pool that are at work go on with it to the end of what is ready.
            self._threads.shutdown(wait=False)
            self._threads = ThreadPoolExecutor(self._concurrency, f"processors-{self.name}")
            if self._has_ready():
                self._wake()

    def take_slot(self, lane: Lane) -> bool:
        """Count one more async update; False, with the lane put back, if that were too many."""
        with self.mutex:
            if self._async_running < self._async_max:
                self._async_running += 1
                return True
            lane.run = None
            lane.is_busy = False
            self.busy -= 1
            if not lane.is_queued:
                lane.is_queued = True
                self._waits_for_slot.append(lane)
            self.at_rest.notify_all()
            return False

    def free_slot(self) -> None:
        """Count one async update less."""
        with self.mutex:
            self._async_running -= 1
            if self._is_slot_wanted():
                self._wake()

    @contextlib.contextmanager
    def reserved(self, instance: str) -> Iterator[None]:
        """Leave an instance's lane to this thread, until `unreserve` or the end of the block."""
        with self.mutex:
            self._reserved[instance] = self._reserved.get(instance, 0) + 1
        try:
            yield
        finally:
            self.unreserve(instance)

    def unreserve(self, instance: str) -> None:
        """Let any thread have an instance's lane again."""
        with self.mutex:
            if self._reserved.pop(instance, None) is not None:
                lane = self.lanes.get(instance)
                if lane is not None:
                    self.queue(lane)

    def begin_nothing(self) -> None:
        """Let what runs end, and begin nothing new from now on."""
        with self.mutex:
            self.is_stopping = True
            self._ready.clear()

    def is_busy(self, shard: int) -> bool:
        """Whether something of a shard runs, or has and its answer is still on its way.

        Be the shard another's by now. Whoever has it next would run what is not answered.
        """
        with self.mutex:
            return any(
                lane.is_busy or lane.in_flight
                for lane in self.lanes.values()
                if lane.shard == shard
            )

    def wait_idle(self, deadline: float) -> bool:
        """Wait for what runs, until `deadline` (time.monotonic()); whether all of it ended."""
        with self.mutex:
            while self.busy and (left_s := deadline - time.monotonic()) > 0:
                self.at_rest.wait(left_s)
            return not self.busy

    def end(self) -> bool:
        """Let go of the threads, and cancel async updates; False when that was done before."""
        with self.mutex:
            if self.is_stopped:
                return False
            self.is_stopping = self.is_stopped = True
            self._ready.clear()
            runs = [lane.run for lane in self.lanes.values() if lane.run is not None]
            self.at_rest.notify_all()
        for run in runs:
            if run.cancel is not None:
                run.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._own_threads.shutdown(wait=False, cancel_futures=True)
        return True

    def _work(self) -> None:
        """Take what is ready, until nothing is. The body of every thread."""
        thread = threading.get_ident()
        while True:
            with self.mutex:
                if thread in self._written_off:
                    self._written_off.discard(thread)
                    return
                self._at_work[thread] = time.monotonic()
                job = self._jobs.popleft() if self._jobs else None
                lane = None if job is not None else self._next_lane()
                if lane is not None:
                    self.take(lane)
                elif job is None:
                    self._threads_at_work -= 1
                    del self._at_work[thread]
                    return
            try:
                if job is not None:
                    job()
                elif lane is not None:
                    self._take_turn(lane)
            except BaseException:  # the thread is counted on, whatever comes
                logger.exception("%s: a turn was ended", self.name)

    # --- with the lock held -----------------------------------------------------------------------

    def take(self, lane: Lane) -> None:
        """Give a lane to this thread."""
        lane.is_busy = True
        self.busy += 1

    def forget(self, lane: Lane) -> None:
        """Drop a lane of which there is nothing to remember."""
        if lane.is_empty and self.lanes.get(lane.instance) is lane:
            del self.lanes[lane.instance]

    def can_go(self, lane: Lane) -> bool:
        """Whether a lane has something to run, and nobody runs it."""
        return not lane.is_busy and self.next(lane) is not None

    def next(self, lane: Lane) -> Waiting | None:
        """Return what a lane may run now; what comes later is given a timer."""
        if lane.is_lost or lane.is_broken or lane.is_taken_over or self.is_stopping:
            return None
        if len(lane.in_flight) >= IN_FLIGHT_MAX:
            return None
        now_s = time.monotonic()
        if lane.not_before_s > now_s:
            self.later(lane, lane.not_before_s - now_s)
            return None
        one = lane.next(self.clock.now_ms() if lane.delayed else 0)
        if one is None:
            due_ms = lane.due_ms()
            if due_ms is not None:
                self.later(lane, (due_ms - self.clock.now_ms()) / 1_000)
            return None
        if lane.in_flight and (not self._is_pipelined or one.needs_settled_state):
            return None
        return one

    def queue(self, lane: Lane) -> None:
        """Let a thread take a lane's turn, if there is one to take."""
        if lane.is_queued or lane.instance in self._reserved or not self.can_go(lane):
            return
        lane.is_queued = True
        self._ready.append(lane)
        self._wake()

    def pause(self, lane: Lane, delay_s: float) -> None:
        """Let a lane rest."""
        lane.not_before_s = max(lane.not_before_s, time.monotonic() + delay_s)

    def pause_after_conflict(self, lane: Lane, conflicts: int) -> None:
        """Let a lane rest whose request has met so many newer states in a row."""
        if conflicts > 1:
            backoff_s = _CONFLICT_BACKOFF_S * 2.0 ** min(conflicts - 2, 20)
            self.pause(lane, min(backoff_s, _CONFLICT_BACKOFF_S_MAX))

    def mend(self, lane: Lane) -> None:
        """Let the refused wait again, now that nothing of the broken row is on its way."""
        refused, lane.refused = lane.refused, []
        lane.take_back(refused)
        lane.is_broken = False
        lane.session = None
        self.pause_after_conflict(lane, max((one.conflicts for one in refused), default=0))

    def later(self, lane: Lane, delay_s: float) -> None:
        """Look at a lane again after a while."""
        at_s = time.monotonic() + delay_s
        if lane.timer_s is not None and lane.timer_s <= at_s:
            return
        lane.timer_s = at_s

        def look() -> None:
            with self.mutex:
                if lane.timer_s == at_s:
                    lane.timer_s = None
                self.queue(lane)
                self.at_rest.notify_all()

        # A moment later than asked, so that it is due when it is looked at.
        self.timers.call_soon_threadsafe(self.timers.call_later, max(0.0, delay_s) + 0.001, look)

    def has_work(self) -> bool:
        """Whether a lane has something to run now, or something on its way."""
        now_ms = self.clock.now_ms()
        return any(
            lane.is_busy or lane.in_flight or lane.next(now_ms) is not None
            for lane in self.lanes.values()
            if not lane.is_lost
        )

    def _next_lane(self) -> Lane | None:
        """Return the lane that has waited longest for its turn."""
        while lanes := self._waits_for_slot if self._is_slot_wanted() else self._ready:
            lane = lanes.popleft()
            lane.is_queued = False
            if self.can_go(lane):
                return lane
        return None

    def _is_slot_wanted(self) -> bool:
        """Whether an async update waits for its turn and can have it.

        A lane that is called may have nothing for the loop by now, so others are called until the
        slot is taken. (tests/fault/test_attacks.py)
        """
        return bool(self._waits_for_slot) and self._async_running < self._async_max

    def _has_ready(self) -> bool:
        return bool(self._ready or self._jobs or self._is_slot_wanted())

    def _wake(self) -> None:
        """See to it that a thread takes what is ready."""
        if self._threads_at_work == 0:
            self._send_thread()
        elif not self._looks_for_stuck and self._threads_at_work < self._concurrency:
            self._looks_for_stuck = True
            self.timers.call_soon_threadsafe(self.timers.call_later, _STUCK_S, self._look_for_stuck)

    def _send_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # ended meanwhile
            self._threads.submit(self._work)
            self._threads_at_work += 1

    def _look_for_stuck(self) -> None:
        """Send one more thread if all are held up. On the loop, which takes the lock here."""
        with self.mutex:
            self._looks_for_stuck = False
            if self.is_stopping or not self._has_ready():
                return
            now_s = time.monotonic()
            if all(now_s - since_s >= _STUCK_S for since_s in self._at_work.values()):
                self._send_thread()
            self._wake()
