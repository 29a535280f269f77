"""The writing half of a view: folds batches of records and keeps the rows of keys.py.

One thread at a time calls `apply`. It loads what the fold asks for, keeps hot instances between
batches, and writes everything that a batch changed, with the offset after it, in one atomic batch:
a crash leaves the view between two batches, and reading on at `offset_next` neither skips an event
nor applies one twice (tests/fault).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Final

import orjson

from eventstore import codec
from eventstore.diff import Shape, apply_operation
from eventstore.errors import CorruptEvent, UnknownSchema
from eventstore.events import SYSTEM_PREFIX, Batch, Event, Kind, Record, Verdict
from eventstore.fold import fold
from eventstore.rows import UNKNOWN, Change, FieldRow, Folded, Outcome, Pending
from eventstore.testing import fault_point
from eventstore.view import keys
from eventstore.view.base import Table, WriteBatch
from eventstore.view.instance import Field, Instance
from eventstore.view.keys import U32, U64
from eventstore.view.packing import Progress, pack_pending, record_digest, replay

__all__ = ["INSTANCE_BYTES_MAX", "ViewWriter"]

#: Longest instance name. A record with a longer key is foreign.
INSTANCE_BYTES_MAX: Final = 1_024
#: How much of a refusal's reason is kept: it may quote names of any length.
_REASON_CHARACTERS_MAX: Final = 1_000

#: Kinds of events that are few, and looked for among many others.
_LISTED_KINDS: Final = (Kind.DISCARD, Kind.FAILURE, Kind.ATTEMPT)
#: Instances whose rows stay in memory between batches: about 2 kB each.
_INSTANCES_MAX: Final = 4_096
#: Fields of one instance that stay in memory between batches.
_FIELDS_MAX: Final = 4_096
#: Fields of all instances that stay in memory between batches: up to 1.5 kB each, with their rows.
_FIELDS_IN_ALL_MAX: Final = 65_536
#: Operations on a large value before a new base is written, at least: so many cost a reader less
#: than a millisecond.
_OPERATIONS_MIN: Final = 1_000
#: One more operation is allowed for so many bytes of the base: applying it then costs a reader
#: about what decoding those bytes does, and a base of 10 MB is not rewritten every 1,000 changes.
_BASE_BYTES_PER_OPERATION: Final = 64


class ViewWriter:
    """Folds records into a table. One thread at a time; the store's lock sees to that.

    `partition_of` says where an instance belongs, and `decode` what a record's bytes mean.
    """

    def __init__(
        self,
        table: Table,
        partition_of: Callable[[bytes], int],
        decode: Callable[[bytes], Event] = codec.decode_event,
        *,
        hot_bytes_max: int,
    ) -> None:
        self.table = table
        self._partition_of = partition_of
        self._decode = decode
        self._hot_bytes_max = hot_bytes_max
        self._instances: OrderedDict[str, Instance] = OrderedDict()
        self._dirty: list[Instance] = []
        #: Fields written since the fields in memory were counted.
        self._fields_written = 0
        #: Fields whose large value is in memory, the least recently used first, and their bytes.
        self._hot: OrderedDict[tuple[bytes, str], Field] = OrderedDict()
        self._hot_bytes = 0
        #: What this batch wrote to rows that it may read again before it is written: values on
        #: their own, because those are read by range.
        self._written: dict[bytes, bytes] = {}
        self._written_values: dict[bytes, bytes] = {}
        self._batch: WriteBatch = table.batch()
        row = table.get(keys.NEXT_IID)
        self._iid_next = 0 if row is None else U64.unpack(row)[0]
        self._progress: dict[int, Progress] = {}
        #: Told what was folded, after each batch is written; nothing is kept for it before it is
        #: there. Must be quick, and must not call back.
        self.watch: Callable[[list[Folded]], None] | None = None
        self._folded: list[Folded] = []

    # --- progress -----------------------------------------------------------------------------

    def progress(self, partition: int) -> Progress:
        """Return how far a partition is folded."""
        progress = self._progress.get(partition)
        if progress is None:
            progress = Progress.unpack(self.table.get(b"o" + U32.pack(partition)))
            self._progress[partition] = progress
        return progress

    def begin_at(self, partition: int, offset: int) -> None:
        """Let a partition begin at an offset, because what was before it is lost for good."""
        self._progress[partition] = self.progress(partition)._replace(offset_next=offset)

    # --- applying -----------------------------------------------------------------------------

    def apply(self, partition: int, batch: Batch, quarantined: Collection[int] = ()) -> None:
        """Fold a batch and write it, with the offset after it, in one atomic write.

        Raises:
            UnknownSchema: an event of a newer schema; everything before it was written, and the
                next call stops there again unless it is in `quarantined` by then.
            ViewDamaged: the table failed; this writer must be dropped and made anew, and nothing
                of the batch is visible to the new one.
        """
        progress, stopped = self._fold_all(partition, batch, quarantined)
        self._progress[partition] = progress
        self._batch.put(b"o" + U32.pack(partition), progress.pack())
        fault_point("view.batch.before")
        self._write()
        fault_point("view.batch.after")
        self._evict()
        if self._folded:
            folded, self._folded = self._folded, []
            if self.watch is not None:
                self.watch(folded)
        if stopped is not None:
            place = f"partition {partition} offset {progress.offset_next}"
            raise UnknownSchema(stopped.fingerprint, place)

    def _fold_all(
        self, partition: int, batch: Batch, quarantined: Collection[int]
    ) -> tuple[Progress, UnknownSchema | None]:
        """Fold records up to the first of an unknown schema; return how far it got, and why."""
        progress = self.progress(partition)
        generation, foreign, refused = progress.generation, progress.foreign, progress.refused
        offset_next, stopped = batch.offset_next, None
        last: Record | None = None
        count = 0
        for record in batch.records:
            offset, time_ms, key, value = record
            try:
                # Whether or not this release could read it: else versions would fork by release.
                placed = (
                    self._refuse(partition, offset, "quarantined", "an operator took it out")
                    if offset in quarantined
                    else self._place(partition, offset, key, value)
                )
            except UnknownSchema as error:
                offset_next, stopped = offset, error
                break
            if isinstance(placed, str):
                foreign += placed == "foreign"
                refused += placed != "foreign"
            else:
                instance, event = placed
                instance.generation = generation
                assert value is not None  # or it would have no place
                outcome = self._fold(instance, event, partition, offset, time_ms, value)
                if self.watch is not None and outcome.sequence is not None:
                    self._folded.append(
                        Folded(
                            instance.name, outcome.sequence, outcome.version, outcome.verdict,
                            event, partition, offset, instance.time_ms, time_ms, outcome.closed,
                            outcome.opened, tuple(outcome.fields or ()),
                        )
                    )  # fmt: skip
                fault_point("view.batch.inside")
                if outcome.generation is not None and instance.name.startswith(SYSTEM_PREFIX):
                    generation = outcome.generation
            last = record
            count += 1
        if last is not None:
            progress = progress._replace(
                offset_last=last.offset,
                digest=record_digest(last),
                records=progress.records + count,
                foreign=foreign,
                refused=refused,
                generation=generation,
            )
        epoch = max(batch.epoch, progress.epoch)
        return progress._replace(offset_next=offset_next, epoch=epoch), stopped

    def _place(
        self, partition: int, offset: int, key: bytes | None, value: bytes | None
    ) -> tuple[Instance, Event] | str:
        """Return whose event a record is, or why it is nobody's; such a record takes no place."""
        if value is None or not codec.is_ours(value):
            return self._refuse(partition, offset, "foreign", "not an event of ours")
        if not key or len(key) > INSTANCE_BYTES_MAX:
            return self._refuse(partition, offset, "foreign", "no key, or one that is too long")
        try:
            name = key.decode()
        except UnicodeDecodeError:
            return self._refuse(partition, offset, "foreign", "the key is not UTF-8")
        try:
            event = self._decode(value)
        except CorruptEvent as error:
            return self._refuse(partition, offset, "rejected", str(error))
        instance = self._instances.get(name)
        wanted = self._partition_of(key) if instance is None else instance.partition
        if wanted != partition:
            return self._refuse(
                partition, offset, "rejected",
                f"instance {name!r} belongs to partition {wanted}: its producer needs the"
                " partitioner murmur2 (librdkafka: partitioner=murmur2_random)",
            )  # fmt: skip
        return instance or self._instance(name, partition, key), event

    def _refuse(self, partition: int, offset: int, verdict: str, reason: str) -> str:
        row = orjson.dumps({"verdict": verdict, "reason": reason})
        self._batch.put(b"x" + U32.pack(partition) + U64.pack(offset), row)
        return verdict

    def _instance(self, name: str, partition: int, key: bytes) -> Instance:
        iid = self.table.get(b"n" + key)
        if iid is None:
            iid = U64.pack(self._iid_next)
            self._iid_next += 1
            self._batch.put(b"n" + key, iid)
            self._batch.put(keys.NEXT_IID, U64.pack(self._iid_next))
            instance = Instance(self, name, partition, iid, None)
        else:
            instance = Instance(self, name, partition, iid, self.table.get(b"f" + iid))
        self._instances[name] = instance
        return instance

    def _fold(
        self,
        instance: Instance,
        event: Event,
        partition: int,
        offset: int,
        time_ms: int,
        value: bytes,
    ) -> Outcome:
        times, copied = event.times, event.copied
        if copied is not None:
            time_ms = copied.time_ms
        elif times is not None and times.recorded_at_ms is not None:
            time_ms = times.recorded_at_ms
        time_ms = max(time_ms, instance.time_ms)
        outcome = fold(instance, event, time_ms)
        if outcome.sequence is None:
            return outcome
        instance.time_ms = time_ms
        if not instance.dirty:
            instance.dirty = True
            self._dirty.append(instance)
        verdict = outcome.verdict
        answer = event.answer
        reason = outcome.reason[:_REASON_CHARACTERS_MAX].encode()
        place = b"h" + instance.iid + U64.pack(outcome.sequence)
        row = (
            keys.HISTORY.pack(
                partition,
                offset,
                time_ms,
                event.kind,
                verdict,
                outcome.version,
                -1 if outcome.winner is None else outcome.winner,
                -1 if answer is None else answer.cause,
                len(reason),
            )
            + reason
            + value
        )
        self._batch.put(place, row)
        self._written[place] = row
        if instance.lent:
            if verdict == Verdict.REJECTED:
                for field in instance.lent:
                    field.hot = UNKNOWN  # it may be half changed; the rows still have it whole
            instance.lent.clear()
        self._keep(instance, event, outcome, time_ms)
        return outcome

    def _keep(self, instance: Instance, event: Event, outcome: Outcome, time_ms: int) -> None:
        """Carry an outcome into the rows."""
        (_, sequence, version, _, _, fields, star, floor, fork_parts, key, chain, source,
         opened, advanced, closed, effect, _) = outcome  # fmt: skip
        assert sequence is not None
        batch = self._batch
        if floor is not None:
            instance.floor = floor
            batch.put(b"r" + instance.iid + U64.pack(floor), b"")
        if fields:
            for name, change in fields.items():
                self._keep_field(instance, name, change)
        instance.sequence = sequence + 1
        instance.version = version
        if star is not None:
            instance.star = star
        if fork_parts is not None:
            instance.fork_parts = fork_parts
        if key is not None:
            key_name = event.idempotency_key
            assert key_name is not None
            instance.keys[key_name] = key
            batch.put(instance.key_key(key_name), U64.pack(key.sequence) + key.content)
        if chain is not None:
            assert event.guard is not None
            assert event.guard.chain is not None
            instance.chains[event.guard.chain] = chain
            batch.put(b"c" + instance.iid + event.guard.chain.encode(), keys.CHAIN.pack(*chain))
        if source is not None:
            assert event.source is not None
            instance.sources[event.source.id] = source
            row = U64.pack(source[0]) + U64.pack(source[1])
            batch.put(b"s" + instance.iid + event.source.id.encode(), row)
        if opened is not None:
            instance.load_requests()
            instance.pending_count += 1
            self._keep_request(instance, opened, time_ms)
        if advanced is not None:
            self._keep_request(instance, advanced, time_ms)
        if effect:
            assert event.answer is not None
            assert event.effect is not None
            place = instance.effect_key(event.answer.cause, event.name, *event.effect)
            instance.effects[place] = sequence
            batch.put(place, U64.pack(sequence))
        for cause in closed:
            self._close_request(instance, cause, sequence)
        if outcome.verdict == Verdict.ACCEPTED and event.kind in _LISTED_KINDS:
            if event.kind == Kind.DISCARD:
                instance.discards += 1
            elif event.kind == Kind.FAILURE and closed:
                instance.failures += 1
            batch.put(b"d" + instance.iid + U64.pack(sequence), bytes((event.kind,)))

    def _keep_request(self, instance: Instance, request: Pending, time_ms: int) -> None:
        instance.load_requests()
        instance.add_request(request)
        place = b"p" + instance.iid + U64.pack(request.sequence)
        self._batch.put(place, pack_pending(request, time_ms))

    def _close_request(self, instance: Instance, cause: int, sequence: int) -> None:
        request = instance.load_requests().pop(cause)
        instance.pending_count -= 1
        lane = instance.lanes.get(request.lane)
        if lane is not None:
            lane.pop(cause, None)
            if not lane:
                del instance.lanes[request.lane]
        self._batch.delete(b"p" + instance.iid + U64.pack(cause))
        place = b"q" + instance.iid + U64.pack(cause)
        self._batch.put(place, U64.pack(sequence))
        self._written[place] = U64.pack(sequence)

    # --- values ---------------------------------------------------------------------------------

    def _keep_field(self, instance: Instance, name: str, change: Change) -> None:
        """Write a field's new row: the whole value while it is small, else what was done to it."""
        field = instance.stored(name)
        if field is None:
            field = instance.fields[name] = Field(instance.fields_next)
            instance.fields_next += 1
        instance.dirty_fields.add(name)
        touch, shape, operations, value = change
        row, old = FieldRow(touch, shape), field.row
        place = b"v" + instance.iid + U32.pack(field.fid) + U64.pack(touch.version)
        present = old.shape != Shape.ABSENT and old.touch.version > instance.floor
        was_big = present and field.raw is None
        if shape == Shape.ABSENT:
            self._cool(instance, name, field)
            field.raw, field.row = None, row
            self._batch.put(place, b"T")
            if was_big:
                self._written_values[place] = b"T"
            return
        # A large value that is changed inside keeps its base. Two events that make one version
        # (the parts of a fork) share one row, so the second one writes a base.
        inside = was_big and old.touch.version != touch.version and not _replaces(operations)
        if inside and self._write_operations(field, change, place):
            return
        if value is UNKNOWN:
            value = self._changed(instance, field, operations)
        self._write_base(instance, name, field, row, place, value)

    def _changed(self, instance: Instance, field: Field, operations: list[list[Any]]) -> Any:
        """Return a field's JSON value after operations that the fold did not need it for."""
        if field.raw is not None:
            value = orjson.loads(field.raw)
        else:
            value = self.load(instance, field) if field.hot is UNKNOWN else field.hot
        for operation in operations:
            value = apply_operation(value, operation)
        return value

    def _write_operations(self, field: Field, change: Change, place: bytes) -> bool:
        """Write just what was done to a large value; False when a new base is due instead."""
        touch, shape, operations, value = change
        raw = orjson.dumps(operations)
        count, size_bytes = field.operations + 1, field.operations_bytes + len(raw)
        count_max = max(_OPERATIONS_MIN, field.base_bytes // _BASE_BYTES_PER_OPERATION)
        if size_bytes > field.base_bytes or count > count_max:
            return False
        if value is not UNKNOWN:
            field.hot = value
        elif field.hot is not UNKNOWN:
            for operation in operations:
                field.hot = apply_operation(field.hot, operation)
        field.operations, field.operations_bytes = count, size_bytes
        field.row = FieldRow(touch, shape)
        row = b"O" + U64.pack(field.base_version) + raw
        self._batch.put(place, row)
        self._written_values[place] = row
        return True

    def _write_base(
        self,
        instance: Instance,
        name: str,
        field: Field,
        row: FieldRow,
        place: bytes,
        value: Any,
    ) -> None:
        raw = orjson.dumps(value)
        was_hot = field.hot is not UNKNOWN
        self._cool(instance, name, field)
        field.row = row
        self._batch.put(place, b"B" + raw)
        if len(raw) <= keys.INLINE_BYTES_MAX:
            field.raw = raw
            return
        field.raw = None
        field.base_version, field.base_bytes = row.touch.version, len(raw)
        field.operations = field.operations_bytes = 0
        if was_hot:
            field.hot = value
            self.heated(instance, name, field)
        self._written_values[place] = b"B" + raw

    def load(self, instance: Instance, field: Field) -> Any:
        """Return a large value as JSON: its base, and the operations since."""
        assert field.row.shape != Shape.ABSENT
        prefix = b"v" + instance.iid + U32.pack(field.fid)
        start = prefix + U64.pack(field.base_version)
        end = prefix + U64.pack(field.row.touch.version + 1)
        rows = dict(self.table.scan(start, end))
        written = self._written_values
        rows |= {key: row for key, row in written.items() if start <= key < end}
        return replay([rows[key] for key in sorted(rows)])

    def heated(self, instance: Instance, name: str, field: Field) -> None:
        """Note that a large value is in memory and was just used."""
        place = (instance.iid, name)
        if self._hot.pop(place, None) is None:
            self._hot_bytes += field.base_bytes
        self._hot[place] = field

    def _cool(self, instance: Instance, name: str, field: Field) -> None:
        field.hot = UNKNOWN
        if self._hot.pop((instance.iid, name), None) is not None:
            self._hot_bytes -= field.base_bytes

    # --- the end of a batch ---------------------------------------------------------------------

    def _write(self) -> None:
        batch = self._batch
        for instance in self._dirty:
            batch.put(b"f" + instance.iid, instance.pack())
            self._fields_written += len(instance.dirty_fields)
            for name in instance.dirty_fields:
                field = instance.fields[name]
                assert field is not None
                batch.put(b"f" + instance.iid + name.encode(), field.pack())
            instance.dirty_fields.clear()
            instance.dirty = False
            # These grow with the events and are seldom asked for again; the table has them.
            instance.keys.clear()
            instance.chains.clear()
            instance.effects.clear()
            if len(instance.fields) > _FIELDS_MAX:
                self._forget_fields(instance)
        self._dirty.clear()
        self.table.write(batch)
        self._written.clear()
        self._written_values.clear()
        self._batch = self.table.batch()

    def _forget_fields(self, instance: Instance) -> None:
        for name, field in instance.fields.items():
            if field is not None and field.hot is not UNKNOWN:
                self._cool(instance, name, field)
        instance.fields.clear()

    def read(self, key: bytes) -> bytes | None:
        """Return a row as this batch left it."""
        written = self._written.get(key)
        return self.table.get(key) if written is None else written

    def _evict(self) -> None:
        """Keep what stays in memory between batches within its bounds."""
        while len(self._instances) > _INSTANCES_MAX:
            _, instance = self._instances.popitem(last=False)
            self._forget_fields(instance)
        # Counting costs a step per instance, so it is done once for so many written fields.
        if self._fields_written > _FIELDS_IN_ALL_MAX // 4:
            self._fields_written = 0
            count = sum(len(instance.fields) for instance in self._instances.values())
            while count > _FIELDS_IN_ALL_MAX:
                _, instance = self._instances.popitem(last=False)
                count -= len(instance.fields)
                self._forget_fields(instance)
        while self._hot_bytes > self._hot_bytes_max and len(self._hot) > 1:
            _, field = self._hot.popitem(last=False)
            field.hot = UNKNOWN
            self._hot_bytes -= field.base_bytes


def _replaces(operations: list[list[Any]]) -> bool:
    """Say whether operations put a whole new value in a field, or take it away."""
    return any(
        operation[0] in ("set", "delete") and type(operation[1]) is str for operation in operations
    )
