"""Lanes: which requests of an instance wait, in which order, and which answers are on their way.

Pure bookkeeping, without threads or log: the board's lock is held around every call.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventstore import Diff, Receipt, State
from eventstore.events import Event
from eventstore.processing import Folded, Pending
from processors.results import LiveState

if TYPE_CHECKING:
    from processors.runner.run import Run

__all__ = ["Lane", "Session", "Waiting"]


@dataclass(slots=True, eq=False)
class Waiting:
    """One request that waits to be run, or whose answer is on its way."""

    sequence: int
    name: str
    time_ms: int
    due_ms: int | None
    #: Runs that were begun, as far as the log says: the first run of a request has no event.
    runs: int
    parts: int
    #: How many requests of its name this lane had seen when it came, itself included.
    ordinal: int
    #: The request, once it was read.
    event: Event | None = None
    #: Where it stands in its partition; None of one that was taken over, until somebody asks.
    offset: int | None = None
    #: An earlier owner may have started it: an attempt is recorded before it runs.
    taken_over: bool = False
    #: An attempt was recorded, and no answer: it may have taken its process down.
    suspect: bool = False
    conflicts: int = 0
    #: Runs that count for no retry policy: what they changed was refused, or never written.
    excused: int = 0
    #: Why an answer of it was refused as not fitting, if one was.
    rejection: str | None = None
    #: What its answer, which is on its way, changes.
    diff: Diff | None = None
    #: What the process keeps in memory once that answer counts (results.LiveState).
    live: LiveState | None = None
    #: Of the answer that is on its way.
    receipt: Receipt | None = None
    #: When it came to this process (time.monotonic()).
    came_s: float = field(default_factory=time.monotonic)

    @property
    def needs_settled_state(self) -> bool:
        """Whether it must not begin on answers that are still on their way."""
        return bool(self.parts or self.suspect or self.rejection or self.conflicts > 1)


@dataclass(slots=True)
class Session:
    """One unbroken row of answers of a lane: their chain, and the state as they leave it.

    `base` is the version that was really read; `state` has our own changes since.
    """

    chain: str
    base: int
    generation: int
    state: State
    index: int = 0


@dataclass(slots=True, eq=False)
class Lane:
    """The requests of one instance for one component."""

    instance: str
    shard: int
    #: In log order. An OrderedDict, because a dict whose first entries are taken away, one after
    #: the other, steps over all of their places each time that somebody asks for the first.
    waiting: OrderedDict[int, Waiting] = field(default_factory=OrderedDict)
    #: Those that wait for their time, in log order.
    delayed: OrderedDict[int, Waiting] = field(default_factory=OrderedDict)
    #: Answered, and the verdict is not known yet; in the order of their answers.
    in_flight: dict[int, Waiting] = field(default_factory=dict)
    #: Some thread, or a task of the loop, has this lane.
    is_busy: bool = False
    #: It stands in the queue of lanes that can go on.
    is_queued: bool = False
    #: An answer was refused: nothing goes on before all answers on their way are judged.
    is_broken: bool = False
    #: The shard is somebody else's now.
    is_lost: bool = False
    #: What an earlier owner left is still being read: nothing runs before it is complete.
    is_taken_over: bool = False
    #: Not before this moment (time.monotonic()): a retry backs off.
    not_before_s: float = 0.0
    #: Turns in a row that ended by a fault that is no handler's.
    faults: int = 0
    session: Session | None = None
    #: The chain of the newest session, which answers in flight are of.
    chain: str | None = None
    #: The newest version that the view has; nothing of ours is missing in it but what is in flight.
    folded_version: int = -1
    #: The newest version that somebody else's change made.
    foreign_version: int = -1
    #: Refused answers, until all that were on their way with them are judged.
    refused: list[Waiting] = field(default_factory=list)
    #: What runs now, if anything does: from when no policy can discard it as it waits any more.
    run: Run | None = None
    #: A request that is about to be written together with its answer, and that answer once it came.
    expected: int | None = None
    expected_answer: Folded | None = None
    #: When a timer looks at this lane again (time.monotonic()).
    timer_s: float | None = None
    #: Names of updates of which a running one was given up last: the next gets through.
    given_up: set[str] = field(default_factory=set)
    #: Names for which the history was asked whether one was given up last.
    asked: set[str] = field(default_factory=set)
    _arrived: dict[str, int] = field(default_factory=dict)
    #: A heap of (due_ms, sequence) of all that are delayed, and of some that are so no more.
    _due: list[tuple[int, int]] = field(default_factory=list)

    def add(
        self,
        request: Pending,
        time_ms: int,
        event: Event | None,
        *,
        taken_over: bool,
        offset: int | None = None,
    ) -> Waiting | None:
        """Take a request in; None when it is known already."""
        sequence = request.sequence
        if sequence in self.waiting or sequence in self.in_flight or sequence in self.delayed:
            return None
        ordinal = self._arrived[request.name] = self._arrived.get(request.name, 0) + 1
        one = Waiting(
            sequence, request.name, time_ms, request.due_ms, request.attempts, request.parts,
            ordinal, event, offset, taken_over, taken_over and request.attempts > 0,
        )  # fmt: skip
        self._let_wait(one)
        return one

    def _let_wait(self, one: Waiting) -> None:
        if one.due_ms is None:
            self.waiting[one.sequence] = one
        else:
            self.delayed[one.sequence] = one
            heapq.heappush(self._due, (one.due_ms, one.sequence))

    def closed(self, sequence: int) -> None:
        """Forget a request that was closed, by whomever."""
        self.waiting.pop(sequence, None)
        self.delayed.pop(sequence, None)
        self.in_flight.pop(sequence, None)

    def part_came(self, cause: int, part: int) -> None:
        """Take note of an accepted part of an answer, whoever made it."""
        if self.run is not None and self.run.one.sequence == cause:
            one: Waiting | None = self.run.one
        else:
            one = self.waiting.get(cause) or self.delayed.get(cause) or self.in_flight.get(cause)
        if one is not None and part >= one.parts:
            one.parts = part + 1

    def newer(self, one: Waiting) -> int:
        """Return how many requests of the same name came after this one."""
        return self._arrived.get(one.name, 0) - one.ordinal

    def next(self, now_ms: int) -> Waiting | None:
        """Return what is to run next: the delayed request that is overdue most, else the first."""
        due_ms = self.due_ms()
        if due_ms is not None and due_ms <= now_ms:
            return self.delayed[self._due[0][1]]
        return next(iter(self.waiting.values()), None)

    def oldest(self) -> Waiting | None:
        """Return the request that has waited longest, delayed ones only where no other waits."""
        first = next(iter(self.waiting.values()), None)
        return first or next(iter(self.delayed.values()), None)

    def first_open(self) -> Waiting | None:
        """Return the first request, in log order, of which no answer counts yet."""
        found = next(iter(self.waiting.values()), None)
        if self.delayed or self.in_flight or self.refused:
            first_delayed = next(iter(self.delayed.values()), None)
            delayed = () if first_delayed is None else (first_delayed,)
            for one in (*delayed, *self.in_flight.values(), *self.refused):
                if found is None or one.sequence < found.sequence:
                    found = one
        return found

    def due_ms(self) -> int | None:
        """Return when the next delayed request is due."""
        while self._due:
            due_ms, sequence = self._due[0]
            if sequence in self.delayed:
                return due_ms
            heapq.heappop(self._due)
        return None

    def answered(self, one: Waiting) -> None:
        """Note that an answer is on its way."""
        (self.waiting if one.due_ms is None else self.delayed).pop(one.sequence, None)
        self.in_flight[one.sequence] = one

    def sort(self, *, delayed: bool = True) -> None:
        """Put what waits into log order."""
        self.waiting = OrderedDict(sorted(self.waiting.items()))
        if delayed:
            self.delayed = OrderedDict(sorted(self.delayed.items()))

    def break_row(self) -> None:
        """End the row of answers: what is on its way is judged before anything else is begun."""
        self.session = None
        self.is_broken = bool(self.in_flight or self.refused)

    def maybe_begun(self, count_max: int) -> list[Waiting]:
        """Return the first that an earlier owner may have begun, as far as they stand in a row."""
        found: list[Waiting] = []
        for one in self.waiting.values():
            if not one.taken_over or one.suspect or len(found) == count_max:
                break
            found.append(one)
        return found

    def take_back(self, refused: list[Waiting]) -> None:
        """Let requests wait again whose answers did not count, in their old order."""
        for one in refused:
            self.in_flight.pop(one.sequence, None)
            self._let_wait(one)
        self.sort(delayed=any(one.due_ms is not None for one in refused))

    @property
    def is_at_rest(self) -> bool:
        """Whether it is ours, complete, and has nothing to run now and nothing on its way."""
        # Those that wait for their time have no place in the order.
        return not (
            self.waiting or self.in_flight or self.is_busy
            or self.is_lost or self.is_taken_over or self.is_broken
        )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remember of this lane."""
        # What was given up last is in the history, too, for whoever asks again.
        return not (self.waiting or self.delayed or self.in_flight or self.is_busy)
