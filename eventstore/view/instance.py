"""One instance in a view's memory: its rows, as the fold asks for them and as they are stored.

Rows are loaded when the fold asks, and packed again when the writer (writer.py) writes a batch
down. What a batch changes, and where a large value comes from, is the writer's business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import orjson

from eventstore import codec
from eventstore.diff import Shape
from eventstore.events import Event, Verdict
from eventstore.rows import UNKNOWN, ChainRow, FieldRow, KeyRow, Pending, Touch
from eventstore.view import keys
from eventstore.view.base import Table
from eventstore.view.keys import U64
from eventstore.view.packing import event_bytes, sequence_of_version, unpack_pending

__all__ = ["Field", "Instance"]


#: How many events back the original of a duplicate is looked for. A producer that repeats old
#: events would otherwise make each of them cost the whole history; it is told no original then.
_SEARCH_EVENTS_MAX: Final = 10_000
#: Sources of one instance whose last found original is remembered.
_FOUND_MAX: Final = 1_000


class _Keeper(Protocol):
    """What an instance needs of the writer that keeps it."""

    table: Table

    def read(self, key: bytes) -> bytes | None:
        """Return a row as the batch in the making leaves it."""

    def load(self, instance: Instance, field: Field) -> Any:
        """Return a large value as JSON."""

    def heated(self, instance: Instance, name: str, field: Field) -> None:
        """Note that a large value is in memory and was just used."""


class Field:
    """A field's row, as the fold sees it (`row`) and as it is stored."""

    __slots__ = ("base_bytes", "base_version", "fid", "hot", "operations", "operations_bytes",
                 "raw", "row")  # fmt: skip

    def __init__(self, fid: int) -> None:
        self.fid = fid
        self.row = FieldRow(Touch(0, None, 0), Shape.ABSENT)
        #: The whole value, when it is small.
        self.raw: bytes | None = None
        # A large value: where its base is, and what came since.
        self.base_version = self.base_bytes = self.operations = self.operations_bytes = 0
        #: A large value as JSON, while it is changed inside.
        self.hot: Any = UNKNOWN

    def pack(self) -> bytes:
        touch, shape = self.row
        setter = b"" if touch.setter is None else touch.setter.encode()
        big = self.raw is None and shape != Shape.ABSENT
        head = keys.FIELD.pack(self.fid, touch.version, touch.foreign, shape, len(setter), big)
        if not big:
            return head + setter + (self.raw or b"")
        return (
            head
            + setter
            + keys.BIG.pack(
                self.base_version, self.base_bytes, self.operations, self.operations_bytes
            )
        )

    @classmethod
    def unpack(cls, row: bytes) -> Field:
        fid, version, foreign, shape, setter_bytes, big = keys.FIELD.unpack_from(row)
        field = cls(fid)
        start = keys.FIELD.size
        end = start + setter_bytes
        setter = row[start:end].decode() if setter_bytes else None
        field.row = FieldRow(Touch(version, setter, foreign), shape)
        if big:
            (
                field.base_version,
                field.base_bytes,
                field.operations,
                field.operations_bytes,
            ) = keys.BIG.unpack_from(row, end)
        elif shape != Shape.ABSENT:
            field.raw = row[end:]
        return field


class Instance:
    """The rows of one instance: what the fold asks (`fold.Rows`), loaded when it asks."""

    __slots__ = (
        "chains",
        "dirty",
        "dirty_fields",
        "discards",
        "effects",
        "failures",
        "fields",
        "fields_next",
        "floor",
        "fork_parts",
        "found",
        "generation",
        "iid",
        "keeper",
        "keys",
        "lanes",
        "lent",
        "name",
        "partition",
        "pending_count",
        "requests",
        "sequence",
        "sources",
        "star",
        "time_ms",
        "version",
    )  # fmt: skip

    def __init__(
        self, keeper: _Keeper, name: str, partition: int, iid: bytes, head: bytes | None
    ) -> None:
        self.keeper, self.name, self.partition, self.iid = keeper, name, partition, iid
        self.generation = 0
        self.fields: dict[str, Field | None] = {}
        self.keys: dict[str, KeyRow | None] = {}
        self.chains: dict[str, ChainRow | None] = {}
        self.sources: dict[str, tuple[int, int] | None] = {}
        #: source -> a number of it that came again, and the sequence of its original.
        self.found: dict[str, tuple[tuple[int, int], int]] = {}
        self.effects: dict[bytes, int | None] = {}
        self.requests: dict[int, Pending] | None = None
        #: lane -> its pending requests in order, the delayed ones left out.
        self.lanes: dict[str, OrderedDict[int, None]] = {}
        self.lent: list[Field] = []
        self.dirty_fields: set[str] = set()
        self.dirty = False
        if head is None:
            self.sequence = self.version = self.floor = self.time_ms = 0
            self.fields_next = self.fork_parts = 0
            self.pending_count = self.discards = self.failures = 0
            self.star = Touch(0, None, 0)
            return
        (
            self.sequence, self.version, self.floor, star, foreign, self.time_ms,
            self.fields_next, self.fork_parts, self.pending_count, self.discards, self.failures,
            setter_bytes,
        ) = keys.HEAD.unpack_from(head)  # fmt: skip
        setter = head[keys.HEAD.size : keys.HEAD.size + setter_bytes].decode() or None
        self.star = Touch(star, setter, foreign)

    def pack(self) -> bytes:
        star, setter, foreign = self.star
        setter_raw = b"" if setter is None else setter.encode()
        return (
            keys.HEAD.pack(
                self.sequence, self.version, self.floor, star, foreign, self.time_ms,
                self.fields_next, self.fork_parts, self.pending_count, self.discards,
                self.failures, len(setter_raw),
            )
            + setter_raw
            + self.name.encode()
        )  # fmt: skip

    # --- fold.Rows: what the fold asks ---------------------------------------------------------

    def stored(self, name: str) -> Field | None:
        """Return the field's row whatever resets came since: its number never changes."""
        try:
            return self.fields[name]
        except KeyError:
            # Without a name (a stranger's guard) this would be the key of the head.
            row = self.keeper.table.get(b"f" + self.iid + name.encode()) if name else None
            field = self.fields[name] = None if row is None else Field.unpack(row)
            return field

    def field(self, name: str) -> FieldRow | None:
        field = self.stored(name)
        if field is None or field.row.touch.version <= self.floor:
            return None
        return field.row

    def value(self, name: str) -> Any:
        field = self.fields[name]
        assert field is not None  # the fold asks for present fields only
        if field.raw is not None:
            return orjson.loads(field.raw)
        if field.hot is UNKNOWN:
            field.hot = self.keeper.load(self, field)
        self.lent.append(field)
        self.keeper.heated(self, name, field)
        return field.hot

    def key(self, idempotency_key: str) -> KeyRow | None:
        if idempotency_key not in self.keys:
            row = self.keeper.table.get(self.key_key(idempotency_key))
            self.keys[idempotency_key] = (
                None if row is None else KeyRow(U64.unpack_from(row)[0], row[8:])
            )
        return self.keys[idempotency_key]

    def key_key(self, idempotency_key: str) -> bytes:
        return b"k" + self.iid + keys.digest(idempotency_key.encode())

    def chain(self, chain: str) -> ChainRow | None:
        if chain not in self.chains:
            row = self.keeper.table.get(b"c" + self.iid + chain.encode())
            self.chains[chain] = None if row is None else ChainRow(*keys.CHAIN.unpack(row))
        return self.chains[chain]

    def source(self, source: str) -> tuple[int, int] | None:
        if source not in self.sources:
            row = self.keeper.table.get(b"s" + self.iid + source.encode())
            number = None
            if row is not None:
                number = (U64.unpack_from(row)[0], U64.unpack_from(row, 8)[0])
            self.sources[source] = number
        return self.sources[source]

    def load_requests(self) -> dict[int, Pending]:
        """Return all pending requests, in order; read once and kept up to date from then on."""
        if self.requests is not None:
            return self.requests
        self.requests = {}
        if self.pending_count:
            prefix = b"p" + self.iid
            for key, row in self.keeper.table.scan(prefix, keys.prefix_end(prefix)):
                self.add_request(unpack_pending(U64.unpack_from(key, keys.AFTER_IID)[0], row)[0])
        return self.requests

    def add_request(self, request: Pending) -> None:
        assert self.requests is not None
        self.requests[request.sequence] = request
        if request.due_ms is None:
            self.lanes.setdefault(request.lane, OrderedDict())[request.sequence] = None

    def pending(self, sequence: int) -> Pending | None:
        return self.load_requests().get(sequence)

    def pendings(self) -> Iterable[int]:
        return list(self.load_requests())

    def lane_first(self, lane: str) -> int | None:
        self.load_requests()
        return next(iter(self.lanes.get(lane, ())), None)

    def effect_key(self, cause: int, name: str, call_index: int, digest: str) -> bytes:
        return keys.effect_key(self.iid, cause, name, call_index, digest)

    def effect(self, cause: int, name: str, call_index: int, digest: str) -> int | None:
        key = self.effect_key(cause, name, call_index, digest)
        if key not in self.effects:
            row = self.keeper.read(key)
            self.effects[key] = None if row is None else U64.unpack(row)[0]
        return self.effects[key]

    def answered(self, cause: int) -> int | None:
        row = self.keeper.read(b"q" + self.iid + U64.pack(cause))
        return None if row is None else U64.unpack(row)[0]

    # The next three look for the winner of a refused event in the history: rare, and worth a scan
    # that costs nothing to those who are not refused.

    def chained(self, chain: str, chain_index: int) -> int | None:
        return self._original(
            chain,
            lambda event: (
                event.guard is not None
                and (event.guard.chain, event.guard.chain_index) == (chain, chain_index)
            ),
            range(self.sequence - 1, self._oldest - 1, -1),
        )

    def sourced(self, source: str, number: tuple[int, int]) -> int | None:
        found_number, found = self.found.get(source, ((0, 0), -1))
        if found < self._oldest or number < found_number:
            places = range(self.sequence - 1, self._oldest - 1, -1)
        else:
            # Who repeats one number repeats those after it, too: they stand behind its original.
            # Without this each of them would cost the whole search.
            places = range(found, self.sequence)
        sequence = self._original(
            source,
            lambda event: (
                event.source is not None
                and (event.source.id, event.source.number) == (source, number)
            ),
            places,
        )
        if sequence is not None:
            if len(self.found) >= _FOUND_MAX:
                self.found.clear()
            self.found[source] = (number, sequence)
        return sequence

    @property
    def _oldest(self) -> int:
        return max(0, self.sequence - _SEARCH_EVENTS_MAX)

    def _original(
        self, text: str, wanted: Callable[[Event], bool], places: Iterable[int]
    ) -> int | None:
        """Return the first of these places with an accepted event that is wanted; it has `text`."""
        raw = text.encode()
        for sequence in places:
            row = self.history(sequence)
            if (
                row[keys.VERDICT_AT] == Verdict.ACCEPTED
                and raw in row  # decoding it costs twenty times as much
                and wanted(codec.decode_event(event_bytes(row)))
            ):
                return sequence
        return None

    def history(self, sequence: int) -> bytes:
        row = self.keeper.read(b"h" + self.iid + U64.pack(sequence))
        assert row is not None  # every event of an instance has its row
        return row

    def changed(self, version: int) -> int | None:
        return sequence_of_version(self.history, self.sequence, version)
