"""Copying: an app's whole history into another store, event by event, and again where it stopped.

What makes a copy safe to repeat is a rule of the fold: a copied event states the place that it had
in its instance, and one that states another place than the next takes no place at all. So nobody
has to remember how far a copy came, two copies at once do no harm, and the sequences and versions
that guards, answers and sources name mean the same in the copy as in the source.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from eventstore import codec
from eventstore.channel import Channel
from eventstore.errors import (
    ConfigError,
    Conflict,
    EventStoreError,
    EventTooLarge,
    LogUnavailable,
)
from eventstore.events import SYSTEM_PREFIX, Copied, Event, Kind, Record, Verdict
from eventstore.fold import GENERATION_NOTE
from eventstore.follow import Follower, repairs_of
from eventstore.receipts import Receipt
from eventstore.testing import fault_point

if TYPE_CHECKING:
    from eventstore.app import App
    from eventstore.store import EventStore
    from eventstore.view.reader import HistoryRow, ViewReader

__all__ = ["CopyProgress", "CopyReport", "copy_app"]

#: Records looked at, and events handed over, at a time; with the next two, what a copy holds in
#: memory, whatever the size of the app.
_BATCH_RECORDS_MAX: Final = 500
_READ_BYTES_MAX: Final = 4 * 1024 * 1024
_SEND_BYTES_MAX: Final = 1024 * 1024
#: Batches on their way while the next one is read.
_UNDERWAY_MAX: Final = 4
#: Instances of which it is remembered where they are, so that most events need no search.
_PLACES_MAX: Final = 100_000
_REPORT_INTERVAL_S: Final = 0.5
#: How long a view may take to fold what there is. It says itself what it cannot do.
_FOLD_S_MAX: Final = 24 * 3600.0
#: Instances with notes about the log itself, which stay with that log.
_LOG_NOTES: Final = f"{SYSTEM_PREFIX}log/"
#: Stands in a copy for every generation that did not fit its place: the copy's own is 0.
_ANOTHER_GENERATION: Final = 1


class CopyProgress(NamedTuple):
    """How far a copy is: records looked at, of those that this step has to look at."""

    app: str
    step: str  #: "checking" the target, "copying", "comparing"
    records: int
    records_total: int
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What `copy_app` found and did.

    `events` is how many the source had, `written` how many of them this call appended (the rest
    was there already). `left_out` counts records of the source that take no place in any instance
    (foreign, misplaced, unreadable, quarantined), and its notes about its own log.
    """

    app: str
    target_app: str
    events: int
    written: int
    left_out: int
    compared: bool


def copy_app(
    source: EventStore,
    name: str,
    target: EventStore,
    *,
    to: str | None = None,
    compare: bool = True,
    progress: Callable[[CopyProgress], None] | None = None,
) -> CopyReport:
    """Copy every event that an app has at the call into an app of another store (or namespace).

    The copy has the same instances with the same histories: sequences, verdicts (refused events
    are copied too), versions, times, states, pending requests, keys, chains and sources, those of
    system instances (trigger cursors) included. The number of partitions may differ. What differs
    is the place in the log: positions and tokens of the source mean nothing in the target.

    Killed at any moment, it can be run again and goes on where it stopped; run again later, it
    adds what the source has got since. Nobody else may write to the target before the last run:
    its requests wait there too, so stop the source's daemons before you start those of the target.
    Apps that send to one another, or watch one another, are all copied before those start.

    Args:
        source: the store to copy from. Others may write to it meanwhile.
        name: the app.
        target: the store to copy to; the app there has no events, or the first ones of the source.
        to: the app's name there, if it shall be another.
        compare: read both again at the end, and compare every event, state and pending request.
        progress: is told twice a second how far it is.

    Raises:
        ConfigError: the source has no such app, the target is the source, or it has events that
            are not the source's. Nothing was written.
        Conflict: somebody else wrote to the target meanwhile: begin again with an empty one.
        EventTooLarge: an event is above the target's `event_bytes_max`; part of the app is copied,
            and with a larger setting the copy goes on.
        LogUnavailable, OutcomeUnknown, LogTruncated, UnknownSchema, ReadTimeout, ViewDamaged: as
            for `App.get` and `App.append`; part of it is copied, so run it again.
    """
    here, there = source.app(name), target.app(name if to is None else to)
    app = _History.of(here)
    if app is None:
        raise ConfigError(f"{source.url} has no app {name!r}, so there is nothing to copy")
    copy = _Copy(app, there, target.url, progress)
    copy.check()
    copy.write()
    if compare:
        copy.compare()
    return CopyReport(
        app=name,
        target_app=there.name,
        events=copy.events,
        written=copy.written,
        left_out=copy.left_out,
        compared=compare,
    )


class _Copy:
    """One run of `copy_app`: check, write, compare."""

    def __init__(
        self,
        source: _History,
        target: App,
        target_url: str,
        progress: Callable[[CopyProgress], None] | None,
    ) -> None:
        self._source = source
        self._target = target
        self._channel: Channel = target._channel
        self._place = f"app {target.name!r} of {target_url}"
        self._progress = progress
        #: The target as it was at the beginning; None where it had no events.
        self._before: _History | None = None
        self.events = self.written = self.left_out = 0

    def check(self) -> None:
        """Refuse a target that is the source, or has anything else than the source's events."""
        before = _History.of(self._target)
        if before is None:
            return
        if before.identity == self._source.identity:
            raise ConfigError(f"{self._place} is the source itself; nothing was written")
        self._before = before
        difference = self._strange("checking", before)
        if difference is not None:
            raise ConfigError(
                f"{self._place} is neither empty nor the beginning of a copy of"
                f" {self._source.name}: {difference.text}. Nothing was written: copy to another"
                " app or namespace"
            )

    def _strange(self, step: str, target: _History) -> _Difference | None:
        """Return the first event of the target that is not the source's."""
        for placed in self._shown(step, target):
            if placed.row is not None:
                said = _difference(self._source.row_like(placed), placed.row)
                if said is not None:
                    return _Difference.at(placed, said)
        return None

    def _missing(self, step: str, target: _History) -> _Difference | None:
        """Return the first event of the source that the target does not have just so."""
        for placed in self._shown(step, self._source):
            if placed.row is not None and not placed.instance.startswith(_LOG_NOTES):
                said = _difference(placed.row, target.row_like(placed)) or _state_difference(
                    placed, self._source, target
                )
                if said is not None:
                    return _Difference.at(placed, said)
        return None

    def write(self) -> None:
        """Append what the target does not have yet, in the order in which the source got it."""
        try:
            self._write()
        except EventStoreError as error:
            error.add_note(
                f"while copying to {self._place}: {self.written:,} events were handed over by then,"
                " and the copy can be run again, to go on from there"
            )
            raise

    def _write(self) -> None:
        underway: deque[list[Receipt]] = deque()
        batch: list[tuple[str, Event]] = []
        size_bytes = 0
        for placed in self._shown("copying", self._source):
            if placed.row is None or placed.instance.startswith(_LOG_NOTES):
                self.left_out += 1
                continue
            self.events += 1
            if self._before is not None and self._before.has(placed.instance, placed.row.sequence):
                continue
            event = _copied(placed.row, placed.generation)
            batch.append((placed.instance, event))
            size_bytes += len(event.body) + len(event.outbox or b"")
            if len(batch) >= _BATCH_RECORDS_MAX or size_bytes >= _SEND_BYTES_MAX:
                self._send(batch, underway)
                batch, size_bytes = [], 0
        self._send(batch, underway)
        while underway:
            _settle(underway.popleft())

    def _send(self, batch: list[tuple[str, Event]], underway: deque[list[Receipt]]) -> None:
        if not batch:
            return
        if len(underway) >= _UNDERWAY_MAX:
            _settle(underway.popleft())
        fault_point("copy.send.before")
        try:
            underway.append(self._channel.send(batch, system=True))
        except EventTooLarge as error:
            for instance, event in batch:
                if len(codec.encode_event(event)) == error.size_bytes:
                    assert event.copied is not None
                    error.add_note(f"event {event.copied.sequence} of {instance!r:.80}")
            raise
        self.written += len(batch)
        fault_point("copy.send.after")

    def compare(self) -> None:
        """Compare source and target both ways; Conflict at the first difference."""
        copy = _History.of(self._target)
        if copy is None:
            assert not self.events  # or there would be a topic with events
            return
        difference = self._strange("comparing", copy) or self._missing("comparing", copy)
        if difference is not None:
            raise Conflict(
                self._target.name,
                difference.instance,
                reason=f"the copy differs from its source: {difference.text}",
                advice=f"nobody else may write to {self._place} while it is copied; copy to an"
                " empty app or namespace",
            )

    def _shown(self, step: str, history: _History) -> Iterator[_Placed]:
        """Yield a history's records, and tell how far it is."""
        if self._progress is None:
            yield from history.records()
            return
        total, count, reported = history.records_total, 0, time.monotonic()
        for placed in history.records():
            yield placed
            count += 1
            now = time.monotonic()
            if now - reported >= _REPORT_INTERVAL_S:
                reported = now
                self._progress(CopyProgress(self._source.name, step, count, total))
        self._progress(CopyProgress(self._source.name, step, count, total, done=True))


class _Placed(NamedTuple):
    """One record of an app: whose it is, and its row; None where it takes no place."""

    instance: str
    row: HistoryRow | None
    time_ms: int
    #: The generation in which it was folded.
    generation: int


class _Difference(NamedTuple):
    """Where source and target are not alike, and how."""

    instance: str
    text: str

    @classmethod
    def at(cls, placed: _Placed, said: str) -> _Difference:
        assert placed.row is not None
        text = f"event {placed.row.sequence} of {placed.instance!r:.80} {said}"
        return cls(placed.instance, text)


class _StateAfter(NamedTuple):
    """What an event left behind: JSON fields, and after an instance's last one what waits."""

    is_last: bool
    fields: dict[str, bytes]
    waiting: list[Any]


class _History:
    """An app's records up to the end that its log had, each with what the fold decided."""

    def __init__(self, app: App, follower: Follower) -> None:
        channel: Channel = app._channel
        self.name = app.name
        self._channel, self._follower = channel, follower
        self._log, self._topic = channel.log, follower.topic
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        begin = repairs_of(self._log, self._topic).begin
        for partition in range(self._topic.partitions):
            first = self._log.offset_first(self._topic, partition)
            self._starts[partition] = max(first, begin.get(partition, 0))
            # What is folded; the log may have grown behind it.
            self._ends[partition] = follower.offsets_next[partition]
        #: instance -> the sequence that its next record is likely to have.
        self._next: dict[str, int] = {}

    @classmethod
    def of(cls, app: App) -> _History | None:
        """Return the history that an app has now; None without any event."""
        follower = app._channel.reading(None, fresh=True, timeout_s=_FOLD_S_MAX)
        return None if follower is None else cls(app, follower)

    @property
    def identity(self) -> tuple[str, str]:
        """What two names of one topic have in common."""
        return self._topic.identity, self._topic.name

    @property
    def records_total(self) -> int:
        """How many records there are, about: offsets may have gaps."""
        return sum(end - self._starts[partition] for partition, end in self._ends.items())

    def records(self) -> Iterator[_Placed]:
        """Yield all records, each partition in its order, and all about in that of their times."""
        self._next.clear()
        partitions = [self._partition(partition) for partition in self._ends]
        return heapq.merge(*partitions, key=_time_ms)

    def row_like(self, placed: _Placed) -> HistoryRow | None:
        """Return the event that stands here where another history has `placed`."""
        assert placed.row is not None
        sequence = placed.row.sequence

        def read() -> HistoryRow | None:
            reader = self._recovered()
            head = reader.head(placed.instance)
            return None if head is None else reader.event(head, sequence)

        row = self._channel.steadily(read)
        if row is None:
            # It may have come since, and be copied already by another copy that runs beside us.
            self._channel.reading(placed.instance, fresh=True, timeout_s=_FOLD_S_MAX)
            row = self._channel.steadily(read)
        return row

    def state_after(self, placed: _Placed) -> _StateAfter | None:
        """Return what an event left behind here; None without such an event."""
        assert placed.row is not None
        end, version = placed.row.sequence + 1, placed.row.version

        def read() -> _StateAfter | None:
            reader = self._recovered()
            head = reader.head(placed.instance)
            if head is None or head.sequence < end:
                return None
            # As bytes, because to Python 1, 1.0 and True are one value.
            items = reader.snapshot(head, version).json_items()
            fields = {field: orjson.dumps(value) for field, value in items}
            is_last = head.sequence == end
            waiting = [row[1:] for row in reader.pending(head)] if is_last else []
            return _StateAfter(is_last, fields, waiting)

        return self._channel.steadily(read)

    def has(self, instance: str, sequence: int) -> bool:
        """Whether an instance has an event of this sequence."""
        head = self._channel.steadily(lambda: self._recovered().head(instance))
        return head is not None and sequence < head.sequence

    def is_last(self, placed: _Placed) -> bool:
        """Whether an event is the last one that its instance has here."""
        assert placed.row is not None
        return not self.has(placed.instance, placed.row.sequence + 1)

    def _recovered(self) -> ViewReader:
        """Return the view's reader, with all that was read from it before it was opened anew."""
        if self._follower.behind:
            self._follower.recover(self._channel.config.read_timeout_s)
        return self._follower.reader

    def _partition(self, partition: int) -> Iterator[_Placed]:
        generation = 0
        offset, end = self._starts[partition], self._ends[partition]
        bytes_max = max(64 * 1024, _READ_BYTES_MAX // len(self._ends))
        while offset < end:
            batch = self._log.read(
                self._topic,
                partition,
                offset,
                records_max=_BATCH_RECORDS_MAX,
                bytes_max=bytes_max,
            )
            if batch.offset_next == offset:
                raise LogUnavailable(
                    f"{self._topic.name}: offset {offset} of partition {partition} was folded, and"
                    " the log does not show it now"
                )
            offset = batch.offset_next
            records = [record for record in batch.records if record.offset < end]
            for placed in self._placed(partition, records):
                yield placed._replace(generation=generation)
                if placed.row is not None:
                    generation = _generation_after(generation, placed.instance, placed.row)

    def _placed(self, partition: int, records: list[Record]) -> list[_Placed]:
        """Return records with their rows, all of them from one opening of the view."""

        def look_up() -> list[_Placed]:
            reader = self._recovered()
            return [self._look_up(reader, partition, record) for record in records]

        return self._channel.steadily(look_up)

    def _look_up(self, reader: ViewReader, partition: int, record: Record) -> _Placed:
        instance = "" if record.key is None else record.key.decode(errors="replace")
        head = reader.head(instance)
        if head is None:
            return _Placed(instance, None, record.time_ms, 0)
        sequence = self._next.get(instance, 0)
        row = reader.event(head, sequence)
        if row is None or row.offset < record.offset:
            sequence = reader.sequence_end_at_offset(head, record.offset) - 1
            row = reader.event(head, sequence) if sequence >= 0 else None
        if row is None or (row.partition, row.offset) != (partition, record.offset):
            return _Placed(instance, None, record.time_ms, 0)
        if len(self._next) >= _PLACES_MAX:
            self._next.clear()
        self._next[instance] = sequence + 1
        return _Placed(instance, row, record.time_ms, 0)


def _time_ms(placed: _Placed) -> int:
    return placed.time_ms


def _generation_after(generation: int, instance: str, row: HistoryRow) -> int:
    """Return the generation that a partition is in after an event (see fold.py)."""
    event = row.event
    if (
        event.kind != Kind.NOTE
        or event.name != GENERATION_NOTE
        or row.verdict != Verdict.ACCEPTED
        or not instance.startswith(SYSTEM_PREFIX)
    ):
        return generation
    return int(orjson.loads(event.body)["generation"])


def _copied(row: HistoryRow, generation: int) -> Event:
    """Return an event as it is appended to the copy.

    Generations count the repairs of one log, and the copy's log had none: what was of its place's
    generation is of generation 0 there, and what was refused for being of another still is.

    Raises:
        ConfigError: it is a note on another generation, where no operator's `repair` writes one:
            the copy's log would take it for its own.
    """
    event = row.event
    if event.kind == Kind.NOTE and event.name == GENERATION_NOTE:
        raise ConfigError(
            f"event {row.sequence} is a note on the log's generation that `repair` did not write;"
            " a log with such notes cannot be copied"
        )
    return event._replace(
        copied=Copied(row.sequence, row.time_ms),
        generation=0 if event.generation == generation else _ANOTHER_GENERATION,
    )


def _difference(ours: HistoryRow | None, theirs: HistoryRow | None) -> str | None:
    """Return in which way the two are not one event and its copy, None if they are."""
    if ours is None:
        return "is not in the source"
    if theirs is None:
        return "is not in the target"
    if _said(ours) != _said(theirs):
        return "is another one in the source"
    decided, again = _decided(ours), _decided(theirs)
    if decided != again:
        return f"was decided as {decided} in the source and as {again} in the target"
    return None


def _said(row: HistoryRow) -> Event:
    return row.event._replace(copied=None, generation=0)


def _decided(row: HistoryRow) -> tuple[Any, ...]:
    return str(row.verdict), row.version, row.winner, row.time_ms


def _state_difference(placed: _Placed, source: _History, target: _History) -> str | None:
    """Compare what the last event of the target's instance left; None at other events."""
    if not target.is_last(placed):
        return None
    ours, theirs = source.state_after(placed), target.state_after(placed)
    if ours is None or theirs is None:
        return "is gone"
    if ours.fields != theirs.fields:
        return "leaves another state"
    if ours.is_last and theirs.is_last and ours.waiting != theirs.waiting:
        return "leaves other pending requests"
    return None


def _settle(receipts: list[Receipt]) -> None:
    for receipt in receipts:
        receipt.result()
