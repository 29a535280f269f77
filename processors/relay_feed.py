"""The feed of a relay: an app's accepted events that matter to it, each once and in log order.

It begins at a place in the log and reads what is there already; from the end on it is told what
the view folds, so that nothing is read a second time and nobody polls. One that falls behind what
it can keep in memory reads from the log again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from eventstore import Entry, Position, Verdict
from eventstore.processing import Folded, Processing
from processors.clock import LogClock
from processors.relay_change import as_change, is_system, touched_fields

__all__ = ["Epoch", "Feed", "epoch_of", "newest_entries"]

#: Events that wait in memory before the feed reads them from the log instead, and their bytes.
_WAITING_EVENTS_MAX: Final = 4_096
_WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
#: Entries of the log looked at in one call of `take`, whether or not they matter.
_LOOKED_AT_MAX: Final = 500
#: After so many events that matter to nobody the relay is called, to move its cursor on.
PASSED_MAX: Final = 2_000


class Epoch(NamedTuple):
    """What offsets belong to: a log, and how often it was repaired."""

    identity: str
    repairs: int


def epoch_of(processing: Processing) -> Epoch:
    """Return what the offsets of an app's view belong to now."""
    return Epoch(processing.position.identity, processing.generation())


def newest_entries(processing: Processing, position: Position, count: int) -> list[Entry]:
    """Return the last entries up to a position, about so many of each partition."""
    start = Position(position.identity, {p: max(-1, o - count) for p, o in position.items()})
    return [
        entry
        for entry in processing.app.tail(start=start, follow=False)
        if entry.position <= position
    ]


class Feed:
    """See the module's text. `take` is for one thread; the view tells it from any."""

    def __init__(
        self,
        processing: Processing,
        offsets_next: Mapping[int, int],
        matters: Callable[[Folded], bool],
        ring: Callable[[], None],
    ) -> None:
        """Begin at `offsets_next`; a partition that is missing there begins at its first event.

        `matters` chooses among accepted events of users' instances; `ring` is called when there
        are some to take, by whoever folds: it must be quick, and must not read.
        """
        self.processing = processing
        self.offsets_next = dict(offsets_next)
        self._matters, self._ring = matters, ring
        self.epoch = epoch_of(processing)
        self._mutex = threading.Lock()
        self._waiting: deque[Folded] = deque()
        self._waiting_bytes = 0
        #: partition -> the first offset that the feed was not told of yet.
        self._told_next: dict[int, int] = {}
        #: Whether something was not kept that was told: the log has it.
        self._overflowed = True
        self._passed = 0
        self._clock = LogClock()
        #: The log's time of the oldest event that is not done, while the feed reads the log.
        self._read_up_to_ms = 0
        #: What the log has from `offsets_next` on, while that is read instead of told.
        self._reading: Iterator[Entry] | None = None
        # First, and the reading after it: what is folded in between comes twice, not never.
        self._unwatch = processing.watch(self._told)

    def close(self) -> None:
        """Be told nothing more."""
        self._unwatch()

    # --- being told -----------------------------------------------------------------------------

    def _told(self, folded: Sequence[Folded]) -> None:
        """Keep what matters; called by the view, under its lock."""
        if not folded:
            return
        kept, passed = [], 0
        for one in folded:
            if is_system(one):
                continue
            passed += 1
            if (change := self._change_of(one)) is not None:
                kept.append(change)
        with self._mutex:
            self._clock.seen(folded[-1].appended_ms)
            self._told_next[folded[-1].partition] = folded[-1].offset + 1
            self._passed += passed
            if kept and not self._overflowed:
                self._waiting.extend(kept)
                self._waiting_bytes += sum(len(one.event.outbox or b"") for one in kept)
                if (
                    len(self._waiting) > _WAITING_EVENTS_MAX
                    or self._waiting_bytes > _WAITING_BYTES_MAX
                ):
                    self._overflowed = True
                    self._forget_waiting()
            wanted = bool(kept) or self._passed >= PASSED_MAX
        if wanted:
            self._ring()

    def _change_of(self, folded: Folded) -> Folded | None:
        """Return what is kept of an event of a user's instance; None if it does not matter."""
        if folded.verdict != Verdict.ACCEPTED:
            return None
        change = as_change(folded)
        return _without_body(change) if self._matters(change) else None

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0

    # --- taking ---------------------------------------------------------------------------------

    def take(self, count_max: int) -> list[Folded]:
        """Return the next events that matter, at most so many; none does not mean the end.

        `offsets_next` is behind them then: they are done with once they were dealt with.
        """
        if self._reading is None:
            with self._mutex:
                overflowed = self._overflowed
            if not overflowed:
                return self._take_told(count_max)
        return self._take_read(min(count_max, _LOOKED_AT_MAX))

    @property
    def is_level(self) -> bool:
        """Whether all that was folded was taken."""
        with self._mutex:
            return self._reading is None and not self._waiting and not self._overflowed

    def _read_on(self) -> Iterator[Entry]:
        """Read the log from where the feed is; what is told from now on comes after it."""
        with self._mutex:
            self._overflowed = False
            self._forget_waiting()
        newest = newest_entries(self.processing, self.processing.position, 1)
        with self._mutex:
            for entry in newest:
                self._clock.seen(entry.time_ms)
        if not self.offsets_next:
            return self.processing.app.tail(start="beginning", follow=False)
        last = {partition: offset - 1 for partition, offset in self.offsets_next.items()}
        return self.processing.app.tail(start=Position(self.epoch.identity, last), follow=False)

    def _take_read(self, count_max: int) -> list[Folded]:
        try:
            self._reading = self._reading or self._read_on()
            entries = list(islice(self._reading, count_max))
        except BaseException:
            # Nothing of it was taken: the next call reads from the same place again.
            self._reading = None
            with self._mutex:
                self._overflowed = True
            raise
        taken = []
        for entry in entries:
            ((partition, offset),) = entry.position.items()
            self.offsets_next[partition] = offset + 1
            self._read_up_to_ms = entry.time_ms
            folded = _as_folded(entry, partition, offset)
            if is_system(folded):
                continue
            with self._mutex:
                self._passed += 1
            if (change := self._change_of(folded)) is not None:
                taken.append(change)
        if len(entries) < count_max:
            self._reading = None  # `take` reads on where too much has come in the meantime
        return taken

    def _take_told(self, count_max: int) -> list[Folded]:
        taken: list[Folded] = []
        with self._mutex:
            while self._waiting and len(taken) < count_max:
                one = self._waiting.popleft()
                self._waiting_bytes -= len(one.event.outbox or b"")
                if one.offset >= self.offsets_next.get(one.partition, 0):
                    self.offsets_next[one.partition] = one.offset + 1
                    taken.append(one)
            if not self._waiting:
                for partition, offset in self._told_next.items():
                    if offset > self.offsets_next.get(partition, 0):
                        self.offsets_next[partition] = offset
        return taken

    # --- how far it is --------------------------------------------------------------------------

    @property
    def passed(self) -> int:
        """How many events came by since `rest`, ours left out."""
        with self._mutex:
            return self._passed

    def rest(self) -> None:
        """Begin to count anew."""
        with self._mutex:
            self._passed = 0

    def events_behind(self) -> int:
        """Return how many events the view has that were not taken, about: offsets have gaps."""
        if self.is_level:
            return 0
        position = self.processing.position
        return sum(max(0, end + 1 - self.offsets_next.get(p, 0)) for p, end in position.items())

    def age_ms(self, oldest: Folded | None) -> int:
        """Return how old the oldest event is that is not done: `oldest`, or the next to take."""
        with self._mutex:
            if not self._clock.is_set:
                return 0
            if oldest is not None:
                since_ms = oldest.appended_ms
            elif self._reading is None and self._waiting:
                since_ms = self._waiting[0].appended_ms
            elif self._reading is not None and self._read_up_to_ms:
                since_ms = self._read_up_to_ms
            else:
                return 0
            return max(0, self._clock.now_ms() - since_ms)


def _without_body(folded: Folded) -> Folded:
    # Operations may be megabytes, and a relay needs only which fields they touch.
    return folded._replace(event=folded.event._replace(body=b""))


def _as_folded(entry: Entry, partition: int, offset: int) -> Folded:
    return Folded(
        entry.instance, entry.sequence, entry.version, entry.verdict, entry.event, partition,
        offset, entry.time_ms, entry.time_ms, fields=touched_fields(entry),
    )  # fmt: skip
