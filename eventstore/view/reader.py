"""The reading half of a view: states now and then, histories, what is pending.

Any number of threads may read beside the one writer. A snapshot is (instance, version): rows of a
version never change again, so it stays the same however far the writer goes on, without a lock
and without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import orjson

from eventstore import codec, values
from eventstore.diff import ABSENT, Shape, shape_of
from eventstore.events import SYSTEM_PREFIX, Event, Kind, Verdict
from eventstore.rows import Pending
from eventstore.view import keys
from eventstore.view.base import Table
from eventstore.view.keys import U32, U64
from eventstore.view.packing import Progress, replay, sequence_of_version, unpack_pending

__all__ = ["Head", "HistoryRow", "PendingRow", "RefusedRow", "Snapshot", "ViewReader"]

#: Names whose numbers are kept: they never change, and a look-up costs a microsecond each.
_NAMES_MAX: Final = 100_000

_field_head = keys.FIELD.unpack_from
_head = keys.HEAD.unpack_from


#: Instances with more fields are not kept in memory whole.
_WHOLE_FIELDS_MAX: Final = 64
#: What a row in memory costs besides its bytes, about.
_ROW_BYTES: Final = 150
#: Stands for a value that is not in its field's row.
_LARGE: Final = b"<large>"


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

    def __init__(self, table: Table, cache_bytes: int = 8 * 1024 * 1024) -> None:
        """Read `table`, keeping the rows of small instances in at most `cache_bytes`."""
        self._table = table
        self._iids: dict[str, bytes] = {}
        #: iid -> the version at which these are its fields.
        self._whole: dict[bytes, tuple[int, dict[str, Any]]] = {}
        self._whole_bytes = 0
        self._cache_bytes = cache_bytes

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
        row = None if iid is None else self._table.get(b"f" + iid)
        if iid is None or row is None:
            return None
        sequence, version, floor, _, _, time_ms, _, _, pending, discards, failures, _ = _head(row)
        return Head(iid, sequence, version, floor, time_ms, pending, discards, failures)

    def instances(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all instances that begin with `prefix`, in byte order."""
        try:
            start = b"n" + prefix.encode()
        except UnicodeEncodeError:
            return  # no name can begin so
        for key, _ in self._table.scan(start, keys.prefix_end(start)):
            name = key[1:].decode()
            if not name.startswith(SYSTEM_PREFIX):
                yield name

    def _name(self, iid: bytes) -> str:
        row = self._table.get(b"f" + iid)
        assert row is not None  # a head is written with the first event
        return row[keys.HEAD.size + _head(row)[11] :].decode()

    # --- values ---------------------------------------------------------------------------------

    def snapshot(self, head: Head, version: int | None = None) -> Snapshot:
        """Return the instance at a version it has, or at its newest."""
        if version is None or version == head.version:
            whole = self._whole.get(head.iid)
            if whole is not None and whole[0] == head.version:
                return Snapshot(self._table, head.iid, head.version, head.floor, whole[1])
            return Snapshot(self._table, head.iid, head.version, head.floor, None, self._keep)
        floor = head.floor
        if floor > version:
            prefix = b"r" + head.iid
            row = self._table.last(prefix, prefix + U64.pack(version + 1))
            floor = 0 if row is None else U64.unpack_from(row[0], keys.AFTER_IID)[0]
        return Snapshot(self._table, head.iid, version, floor)

    def _keep(self, iid: bytes, version: int, fields: dict[str, Any]) -> None:
        """Keep what a reader has just read of an instance, for the next one."""
        if len(fields) > _WHOLE_FIELDS_MAX:
            return
        size = sum(len(name) + len(raw) + _ROW_BYTES for name, raw in fields.items())
        if self._whole_bytes + size > self._cache_bytes:
            # All at once: what is hot comes back at the next read, and nobody has to keep order.
            self._whole.clear()
            self._whole_bytes = 0
        self._whole[iid] = (version, fields)
        self._whole_bytes += size

    # --- the past -------------------------------------------------------------------------------

    def history(
        self, head: Head, start: int = 0, end: int | None = None, *, reverse: bool = False
    ) -> Iterator[HistoryRow]:
        """Yield the events with start <= sequence < end, oldest first or newest first."""
        prefix = b"h" + head.iid
        end = head.sequence if end is None else min(end, head.sequence)
        rows = self._table.scan(prefix + U64.pack(start), prefix + U64.pack(end), reverse=reverse)
        for key, row in rows:
            yield _history(U64.unpack_from(key, keys.AFTER_IID)[0], row)

    def event(self, head: Head, sequence: int) -> HistoryRow | None:
        """Return one event of an instance."""
        row = self._table.get(b"h" + head.iid + U64.pack(sequence))
        return None if row is None else _history(sequence, row)

    def offset(self, head: Head, sequence: int) -> int | None:
        """Return where an event of an instance stands in its partition."""
        row = self._table.get(b"h" + head.iid + U64.pack(sequence))
        return None if row is None else int(U64.unpack_from(row, keys.OFFSET_AT)[0])

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

    def _sequence_end_at(self, head: Head, place: int, at: int) -> int:
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
        return self._sequence_end_at(head, keys.OFFSET_AT, offset)

    def sequence_end_at_time(self, head: Head, time_ms: int) -> int:
        """Return how many events of the instance happened at or before a time."""
        return self._sequence_end_at(head, keys.TIME_AT, time_ms)

    def version_after(self, head: Head, sequence_end: int) -> int:
        """Return the version after the first `sequence_end` events."""
        if sequence_end == 0:
            return 0
        row = self._history_row(head)(sequence_end - 1)
        return int(U64.unpack_from(row, keys.VERSION_AT)[0])

    # --- requests and what became of them ---------------------------------------------------------

    def pending(self, head: Head | None = None) -> Iterator[PendingRow]:
        """Yield the requests that wait, of one instance or of all, in log order of each."""
        prefix = b"p" if head is None else b"p" + head.iid
        name, name_of = "", b""
        for key, row in self._table.scan(prefix, keys.prefix_end(prefix)):
            iid = key[1 : keys.AFTER_IID]
            if iid != name_of:
                name, name_of = self._name(iid), iid
            request, time_ms = unpack_pending(U64.unpack_from(key, keys.AFTER_IID)[0], row)
            yield PendingRow(name, request, time_ms)

    def request(self, head: Head, sequence: int) -> PendingRow | None:
        """Return one request, if it still waits."""
        row = self._table.get(b"p" + head.iid + U64.pack(sequence))
        if row is None:
            return None
        request, time_ms = unpack_pending(sequence, row)
        return PendingRow(self._name(head.iid), request, time_ms)

    def effect(
        self, head: Head, cause: int, name: str, call_index: int, digest: str
    ) -> HistoryRow | None:
        """Return the recorded effect of one call of a request."""
        row = self._table.get(keys.effect_key(head.iid, cause, name, call_index, digest))
        return None if row is None else self.event(head, U64.unpack(row)[0])

    def source(self, head: Head, source: str) -> tuple[int, int] | None:
        """Return the last accepted number of a source."""
        row = self._table.get(b"s" + head.iid + source.encode())
        return None if row is None else (U64.unpack_from(row)[0], U64.unpack_from(row, 8)[0])

    def answered(self, head: Head, cause: int) -> int | None:
        """Return the sequence of the event that closed a request."""
        row = self._table.get(b"q" + head.iid + U64.pack(cause))
        return None if row is None else int(U64.unpack(row)[0])

    def outcomes(self, head: Head | None, kind: Kind) -> Iterator[tuple[str, HistoryRow]]:
        """Yield the discards, the failures, or the attempts, of one instance or of all."""
        prefix = b"d" if head is None else b"d" + head.iid
        return self._outcomes(prefix, keys.prefix_end(prefix), kind)

    def attempts(self, head: Head, start: int, end: int) -> Iterator[HistoryRow]:
        """Yield an instance's attempts from one sequence up to another, not included."""
        first, behind = (b"d" + head.iid + U64.pack(sequence) for sequence in (start, end))
        return (row for _, row in self._outcomes(first, behind, Kind.ATTEMPT))

    def _outcomes(
        self, first: bytes, behind: bytes, kind: Kind
    ) -> Iterator[tuple[str, HistoryRow]]:
        for key, row in self._table.scan(first, behind):
            if row[0] != kind:
                continue
            iid, sequence = key[1 : keys.AFTER_IID], U64.unpack_from(key, keys.AFTER_IID)[0]
            event = self._table.get(b"h" + iid + U64.pack(sequence))
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

    __slots__ = ("_fields", "_floor", "_iid", "_keep", "_table", "version")

    def __init__(
        self,
        table: Table,
        iid: bytes,
        version: int,
        floor: int,
        fields: dict[str, Any] | None = None,
        keep: Callable[[bytes, int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._table, self._iid, self.version, self._floor = table, iid, version, floor
        #: All present fields, once somebody asked for all: JSON bytes, or _LARGE.
        self._fields = fields
        self._keep = keep

    def value(self, name: str) -> object:
        """Return a field's Python value, made for this call, or ABSENT."""
        stored = self._stored(name)
        return values.decode(stored) if type(stored) is bytes else _python(stored)

    def json(self, name: str) -> Any:
        """Return a field's JSON value, made for this call, or ABSENT."""
        stored = self._stored(name)
        return orjson.loads(stored) if type(stored) is bytes else stored

    def shape(self, name: str) -> int:
        """Return what a field is (diff.Shape), without loading a large value."""
        row = self._row(name)
        if row is None:
            return Shape.ABSENT
        _, version, _, shape, _, _ = _field_head(row)
        if version > self.version:
            return shape_of(self.json(name))
        return int(shape) if version > self._floor else Shape.ABSENT

    def changed_at(self, name: str) -> int | None:
        """Return the version at which a present field last changed, as of this version."""
        row = self._row(name)
        if row is None:
            return None
        fid, version, _, _, _, _ = _field_head(row)
        if version > self.version:
            found = self._last(fid)
            if found is None:
                return None
            version = U64.unpack_from(found[0], keys.AFTER_FID)[0]
        return int(version) if version > self._floor else None

    def names(self) -> Iterable[str]:
        """Return the names of the present fields, in byte order."""
        return self._all()

    def items(self) -> Iterator[tuple[str, object]]:
        """Yield the present fields and their Python values, in byte order of the names."""
        for name in self._all():
            yield name, self.value(name)

    def json_items(self) -> Iterator[tuple[str, Any]]:
        """Yield the present fields and their JSON values, in byte order of the names."""
        for name in self._all():
            yield name, self.json(name)

    def _all(self) -> dict[str, Any]:
        """Return the present fields, read once: small ones as JSON bytes, others as _LARGE."""
        if self._fields is None:
            fields = {}
            prefix = b"f" + self._iid
            for key, row in self._table.scan(prefix, keys.prefix_end(prefix)):
                # The head has no field's name behind the prefix.
                stored = ABSENT if key == prefix else self._small(row)
                if stored is not ABSENT:
                    fields[key[keys.AFTER_IID :].decode()] = stored
            self._fields = fields
            if self._keep is not None:
                self._keep(self._iid, self.version, fields)
        return self._fields

    def _stored(self, name: str) -> Any:
        """Return a field as JSON bytes, as JSON where operations were applied, or ABSENT."""
        if self._fields is not None:
            stored = self._fields.get(name, ABSENT)
            if stored is not _LARGE:
                return stored
        row = self._row(name)
        if row is None:
            return ABSENT
        stored = self._small(row)
        return self._large(row) if stored is _LARGE else stored

    def _row(self, name: str) -> bytes | None:
        """Return a field's row; None for a name that no field can have."""
        try:
            # Without a name this would be the key of the head.
            return self._table.get(b"f" + self._iid + name.encode()) if name else None
        except UnicodeEncodeError:
            return None

    def _small(self, row: bytes) -> Any:
        """Return the value that stands in a field row, _LARGE when it stands elsewhere."""
        _, version, _, shape, setter_bytes, big = _field_head(row)
        if version > self.version:
            # It changed since: what it was is in its history.
            found = self._last(_field_head(row)[0])
            if found is None or found[1] == b"T":
                return ABSENT
            if U64.unpack_from(found[0], keys.AFTER_FID)[0] <= self._floor:
                return ABSENT
            value = found[1]
            small = value[:1] == b"B" and len(value) <= keys.INLINE_BYTES_MAX
            return value[1:] if small else _LARGE
        if version <= self._floor or shape == Shape.ABSENT:
            return ABSENT
        return _LARGE if big else row[keys.FIELD.size + setter_bytes :]

    def _large(self, row: bytes) -> Any:
        """Return a value from its base and the operations since."""
        fid, version, _, _, setter_bytes, _ = _field_head(row)
        if version <= self.version:
            base_version = keys.BIG.unpack_from(row, keys.FIELD.size + setter_bytes)[0]
            return self._replay(fid, base_version, version)
        found = self._last(fid)
        assert found is not None  # _small found it
        key, value = found
        if value[:1] == b"B":
            return value[1:]
        return self._replay(
            fid, U64.unpack_from(value, 1)[0], U64.unpack_from(key, keys.AFTER_FID)[0]
        )

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
