"""The reading half of a view: states now and then, histories, what is pending.

Any number of threads may read beside the one writer. A snapshot is (instance, version): rows of a
version never change again, so it stays the same however far the writer goes on, without a lock
and without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import orjson

from eventstore import codec, values
from eventstore.diff import ABSENT, Shape, shape_of
from eventstore.events import SYSTEM_PREFIX, Event, Kind, Verdict
from eventstore.fold import Pending
from eventstore.view import keys
from eventstore.view.base import Table
from eventstore.view.keys import U32, U64
from eventstore.view.writer import Progress, replay, sequence_of_version, unpack_pending

__all__ = ["Head", "HistoryRow", "PendingRow", "RefusedRow", "Snapshot", "ViewReader"]

#: Names whose numbers are kept: they never change, and a look-up costs a microsecond each.
_NAMES_MAX: Final = 100_000

_field_head = keys.FIELD.unpack_from
_head = keys.HEAD.unpack_from


class Head(NamedTuple):
    """What is known of an instance without reading its fields."""

    iid: bytes
    sequence: int
    version: int
    floor: int
    time_ms: int
    pending: int
    discards: int
    failures: int


class HistoryRow(NamedTuple):
    """One event of an instance, with what the fold decided."""

    sequence: int
    partition: int
    offset: int
    time_ms: int
    verdict: Verdict
    version: int
    winner: int | None
    field: str | None
    reason: str
    event: Event


class PendingRow(NamedTuple):
    """A request that waits, the instance it is for, and when it came (epoch milliseconds)."""

    instance: str
    request: Pending
    time_ms: int


class RefusedRow(NamedTuple):
    """A record that took no place in any instance, and why."""

    partition: int
    offset: int
    verdict: str
    reason: str


class ViewReader:
    """Reads a table that a ViewWriter, here or in an earlier process, has filled."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._iids: dict[str, bytes] = {}

    # --- instances ------------------------------------------------------------------------------

    def iid(self, instance: str) -> bytes | None:
        """Return the number that stands for an instance's name."""
        iid = self._iids.get(instance)
        if iid is None:
            try:
                iid = self._table.get(b"n" + instance.encode())
            except UnicodeEncodeError:
                return None  # no event can have such a key
            if iid is None:
                return None
            if len(self._iids) >= _NAMES_MAX:
                self._iids.clear()
            self._iids[instance] = iid
        return iid

    def head(self, instance: str) -> Head | None:
        """Return the instance's head; None when no event of it was folded."""
        iid = self.iid(instance)
        row = None if iid is None else self._table.get(b"i" + iid)
        if iid is None or row is None:
            return None
        sequence, version, floor, _, _, time_ms, _, _, pending, discards, failures, _ = _head(row)
        return Head(iid, sequence, version, floor, time_ms, pending, discards, failures)

    def instances(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all instances that begin with `prefix`, in byte order."""
        start = b"n" + prefix.encode()
        for key, _ in self._table.scan(start, keys.prefix_end(start)):
            name = key[1:].decode()
            if not name.startswith(SYSTEM_PREFIX):
                yield name

    def _name(self, iid: bytes) -> str:
        row = self._table.get(b"i" + iid)
        assert row is not None  # a head is written with the first event
        return row[keys.HEAD.size + _head(row)[11] :].decode()

    # --- values ---------------------------------------------------------------------------------

    def snapshot(self, head: Head, version: int | None = None) -> Snapshot:
        """Return the instance at a version it has, or at its newest."""
        if version is None or version == head.version:
            return Snapshot(self._table, head.iid, head.version, head.floor)
        floor = head.floor
        if floor > version:
            prefix = b"r" + head.iid
            row = self._table.last(prefix, prefix + U64.pack(version + 1))
            floor = 0 if row is None else U64.unpack_from(row[0], 9)[0]
        return Snapshot(self._table, head.iid, version, floor)

    # --- the past -------------------------------------------------------------------------------

    def history(
        self, head: Head, start: int = 0, end: int | None = None, *, reverse: bool = False
    ) -> Iterator[HistoryRow]:
        """Yield the events with start <= sequence < end, oldest first or newest first."""
        prefix = b"h" + head.iid
        end = head.sequence if end is None else min(end, head.sequence)
        rows = self._table.scan(prefix + U64.pack(start), prefix + U64.pack(end), reverse=reverse)
        for key, row in rows:
            yield _history(U64.unpack_from(key, 9)[0], row)

    def event(self, head: Head, sequence: int) -> HistoryRow | None:
        """Return one event of an instance."""
        row = self._table.get(b"h" + head.iid + U64.pack(sequence))
        return None if row is None else _history(sequence, row)

    def _history_row(self, head: Head) -> Callable[[int], bytes]:
        prefix = b"h" + head.iid

        def row_of(sequence: int) -> bytes:
            row = self._table.get(prefix + U64.pack(sequence))
            assert row is not None  # every event of an instance has its row
            return row

        return row_of

    def sequence_of_version(self, head: Head, version: int) -> int | None:
        """Return the sequence of the event that made a version."""
        return sequence_of_version(self._history_row(head), head.sequence, version)

    def sequence_end_at(self, head: Head, place: int, at: int) -> int:
        """Return how many events have a number at or below `at`, at byte `place` of their row.

        Offsets and times rise with the sequence, so this is a binary search.
        """
        row_of = self._history_row(head)
        low, high = 0, head.sequence
        while low < high:
            middle = (low + high) // 2
            if U64.unpack_from(row_of(middle), place)[0] <= at:
                low = middle + 1
            else:
                high = middle
        return low

    def sequence_end_at_offset(self, head: Head, offset: int) -> int:
        """Return how many events of the instance lie at or before an offset of its partition."""
        return self.sequence_end_at(head, 4, offset)

    def sequence_end_at_time(self, head: Head, time_ms: int) -> int:
        """Return how many events of the instance happened at or before a time."""
        return self.sequence_end_at(head, 12, time_ms)

    def version_after(self, head: Head, sequence_end: int) -> int:
        """Return the version after the first `sequence_end` events."""
        if sequence_end == 0:
            return 0
        return int(U64.unpack_from(self._history_row(head)(sequence_end - 1), 22)[0])

    # --- requests and what became of them ---------------------------------------------------------

    def pending(self, head: Head | None = None) -> Iterator[PendingRow]:
        """Yield the requests that wait, of one instance or of all, in log order of each."""
        prefix = b"p" if head is None else b"p" + head.iid
        name, name_of = "", b""
        for key, row in self._table.scan(prefix, keys.prefix_end(prefix)):
            iid = key[1:9]
            if iid != name_of:
                name, name_of = self._name(iid), iid
            request, time_ms = unpack_pending(U64.unpack_from(key, 9)[0], row)
            yield PendingRow(name, request, time_ms)

    def answered(self, head: Head, cause: int) -> int | None:
        """Return the sequence of the event that closed a request."""
        row = self._table.get(b"q" + head.iid + U64.pack(cause))
        return None if row is None else int(U64.unpack(row)[0])

    def outcomes(self, head: Head | None, kind: Kind) -> Iterator[tuple[str, HistoryRow]]:
        """Yield the discards, or the failures, of one instance or of all."""
        prefix = b"d" if head is None else b"d" + head.iid
        for key, row in self._table.scan(prefix, keys.prefix_end(prefix)):
            if row[0] != kind:
                continue
            iid, sequence = key[1:9], U64.unpack_from(key, 9)[0]
            event = self._table.get(b"h" + iid + key[9:])
            assert event is not None  # written in the same batch
            yield self._name(iid), _history(sequence, event)

    def refused(self) -> Iterator[RefusedRow]:
        """Yield the records that took no place: foreign, misplaced, unreadable, quarantined."""
        for key, row in self._table.scan(b"x", b"y"):
            facts = orjson.loads(row)
            yield RefusedRow(
                U32.unpack_from(key, 1)[0],
                U64.unpack_from(key, 5)[0],
                facts["verdict"],
                facts["reason"],
            )

    def progress(self, partition: int) -> Progress:
        """Return how far a partition is folded."""
        return Progress.unpack(self._table.get(b"o" + U32.pack(partition)))


class Snapshot:
    """One instance at one version: each field is read when somebody asks for it."""

    __slots__ = ("_floor", "_iid", "_table", "version")

    def __init__(self, table: Table, iid: bytes, version: int, floor: int) -> None:
        self._table, self._iid, self.version, self._floor = table, iid, version, floor

    def value(self, name: str) -> object:
        """Return a field's Python value, made for this call, or ABSENT."""
        stored = self._stored(name, None)
        return values.decode(stored) if type(stored) is bytes else _python(stored)

    def json(self, name: str) -> Any:
        """Return a field's JSON value, made for this call, or ABSENT."""
        stored = self._stored(name, None)
        return orjson.loads(stored) if type(stored) is bytes else stored

    def shape(self, name: str) -> int:
        """Return what a field is (diff.Shape), without loading a large value."""
        row = self._table.get(b"f" + self._iid + name.encode())
        if row is None:
            return Shape.ABSENT
        _, version, _, shape, _, _ = _field_head(row)
        if version > self.version:
            return shape_of(self.json(name))
        return int(shape) if version > self._floor else Shape.ABSENT

    def changed_at(self, name: str) -> int | None:
        """Return the version at which a present field last changed, as of this version."""
        row = self._table.get(b"f" + self._iid + name.encode())
        if row is None:
            return None
        version = int(_field_head(row)[1])
        if version > self.version:
            found = self._last(_field_head(row)[0])
            if found is None:
                return None
            version = U64.unpack_from(found[0], 13)[0]
        return version if version > self._floor else None

    def names(self) -> Iterator[str]:
        """Yield the names of the present fields, in byte order."""
        for name, row in self._rows():
            fid, version, _, shape, _, _ = _field_head(row)
            if version > self.version:
                found = self._last(fid)
                if found is None or found[1] == b"T":
                    continue
                version, shape = U64.unpack_from(found[0], 13)[0], -1
            if shape != Shape.ABSENT and version > self._floor:
                yield name

    def items(self) -> Iterator[tuple[str, object]]:
        """Yield the present fields and their Python values, in byte order of the names."""
        for name, row in self._rows():
            stored = self._stored(name, row)
            if stored is not ABSENT:
                yield name, values.decode(stored) if type(stored) is bytes else _python(stored)

    def json_items(self) -> Iterator[tuple[str, Any]]:
        """Yield the present fields and their JSON values, in byte order of the names."""
        for name, row in self._rows():
            stored = self._stored(name, row)
            if stored is not ABSENT:
                yield name, orjson.loads(stored) if type(stored) is bytes else stored

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        prefix = b"f" + self._iid
        for key, row in self._table.scan(prefix, keys.prefix_end(prefix)):
            yield key[9:].decode(), row

    def _stored(self, name: str, row: bytes | None) -> Any:
        """Return a field as JSON bytes, as JSON where operations were applied, or ABSENT."""
        if row is None:
            try:
                row = self._table.get(b"f" + self._iid + name.encode())
            except UnicodeEncodeError:
                return ABSENT  # no field can have such a name
            if row is None:
                return ABSENT
        fid, version, _, shape, setter_bytes, big = _field_head(row)
        if version <= self.version:
            if version <= self._floor or shape == Shape.ABSENT:
                return ABSENT
            place = keys.FIELD.size + setter_bytes
            if not big:
                return row[place:]
            return self._replay(fid, keys.BIG.unpack_from(row, place)[0], version)
        found = self._last(fid)
        if found is None:
            return ABSENT
        key, value = found
        version = U64.unpack_from(key, 13)[0]
        if version <= self._floor or value == b"T":
            return ABSENT
        if value[:1] == b"B":
            return value[1:]
        return self._replay(fid, U64.unpack_from(value, 1)[0], version)

    def _last(self, fid: int) -> tuple[bytes, bytes] | None:
        prefix = b"v" + self._iid + U32.pack(fid)
        return self._table.last(prefix, prefix + U64.pack(self.version + 1))

    def _replay(self, fid: int, base_version: int, version: int) -> Any:
        prefix = b"v" + self._iid + U32.pack(fid)
        start, end = prefix + U64.pack(base_version), prefix + U64.pack(version + 1)
        rows = [row for _, row in self._table.scan(start, end)]
        return rows[0][1:] if len(rows) == 1 else replay(rows)


def _python(stored: Any) -> object:
    return ABSENT if stored is ABSENT else values.from_json(stored)


def _history(sequence: int, row: bytes) -> HistoryRow:
    (partition, offset, time_ms, _, verdict, version, winner, _, reason_bytes) = (
        keys.HISTORY.unpack_from(row)
    )
    start = keys.HISTORY.size
    reason = row[start : start + reason_bytes].decode()
    # A conflict over a field says which one before its reason (fold.py).
    field, separator, rest = reason.rpartition("\0")
    return HistoryRow(
        sequence,
        partition,
        offset,
        time_ms,
        Verdict(verdict),
        version,
        None if winner < 0 else winner,
        field if separator else None,
        rest,
        codec.decode_event(row[start + reason_bytes :]),
    )
