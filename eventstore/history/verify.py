"""Verifying: a log folded again, from its beginning, into plain dicts, beside what a view says.

The rules are the one pure `fold`. Everything else that stands between a log and a state (batches,
keys, histories of fields, caches, RocksDB) is left out here, and a dict takes its place; so a fault
in any of that shows as a difference. It needs memory for all states and verdicts of the app.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from eventstore import codec
from eventstore.diff import ABSENT, apply_operation
from eventstore.errors import CorruptEvent, UnknownSchema
from eventstore.events import SYSTEM_PREFIX, Event, Record, Verdict
from eventstore.fold import fold
from eventstore.follow import quarantined, repairs_of
from eventstore.log.base import Log, Topic
from eventstore.rows import ChainRow, FieldRow, KeyRow, Outcome, Pending, Touch
from eventstore.view.reader import Head, HistoryRow, ViewReader
from eventstore.view.writer import INSTANCE_BYTES_MAX

if TYPE_CHECKING:
    from eventstore.store import EventStore

__all__ = ["FoldedEvent", "FoldedInstance", "FoldedLog", "Verified", "fold_log", "verify_app"]

_BATCH_RECORDS_MAX: Final = 1_000
_BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
#: Differences that are told; more of them say nothing new.
_DIFFERENCES_MAX: Final = 100


class Verified(NamedTuple):
    """What `verify_app` compared, and each difference in one line of text (none: all is well)."""

    app: str
    records: int
    instances: int
    events: int
    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.differences


class FoldedEvent(NamedTuple):
    """One event's place in its instance, and what the fold decided."""

    partition: int
    offset: int
    time_ms: int
    verdict: Verdict
    version: int
    winner: int | None


class FoldedLog(NamedTuple):
    """A log folded up to `ends`: its instances, and the places of records that took no place."""

    instances: dict[str, FoldedInstance]
    refused: set[tuple[int, int]]
    ends: dict[int, int]
    records: int


def verify_app(store: EventStore, name: str, *, timeout_s: float | None = None) -> Verified:
    """Fold an app's whole log anew and compare the view with it; others may write meanwhile.

    Compared are, of every instance: state, version, the history's verdicts, versions, winners,
    times and offsets, and the pending requests. The log is read up to its end at the call.

    Args:
        store: an open store.
        name: the app; one without events has no differences.
        timeout_s: how long the view may take to get to that end; default `read_timeout_s`.

    Raises:
        LogUnavailable, LogTruncated, UnknownSchema, ReadTimeout, ViewDamaged: as for `App.get`.
    """
    channel = store.app(name)._channel
    follower = channel.reading(None, fresh=True, timeout_s=timeout_s)
    if follower is None:
        return Verified(name, 0, 0, 0, ())
    folded = fold_log(store.log, follower.topic)
    last = {partition: end - 1 for partition, end in folded.ends.items()}
    follower.wait_for(last, store.config.read_timeout_s if timeout_s is None else timeout_s)
    differences: list[str] = []
    for difference in _differences(folded, follower.reader):
        differences.append(difference)
        if len(differences) == _DIFFERENCES_MAX:
            break
    events = sum(instance.sequence for instance in folded.instances.values())
    return Verified(name, folded.records, len(folded.instances), events, tuple(differences))


def fold_log(log: Log, topic: Topic) -> FoldedLog:
    """Fold every record that a topic has now, in memory.

    Raises:
        UnknownSchema: an event of a newer schema that is not quarantined.
        LogUnavailable: the log cannot be reached.
    """
    folded = FoldedLog({}, set(), {}, 0)
    begin, taken_out = repairs_of(log, topic).begin, quarantined(log, topic)
    count = 0
    for partition in range(topic.partitions):
        end = folded.ends[partition] = log.offset_end(topic, partition)
        start = max(begin.get(partition, 0), log.offset_first(topic, partition))
        generation = 0
        for record in _records(log, topic, partition, start, end):
            count += 1
            skipped = record.offset in taken_out.get(partition, ())
            event = _event(log, topic, partition, record, quarantined=skipped)
            if event is None:
                folded.refused.add((partition, record.offset))
                continue
            assert record.key is not None  # or it would be no event
            instance = folded.instances.setdefault(record.key.decode(), FoldedInstance())
            instance.generation = generation
            outcome = instance.take(event, partition, record)
            if outcome.generation is not None and record.key.startswith(SYSTEM_PREFIX.encode()):
                generation = outcome.generation
    return folded._replace(records=count)


def _records(log: Log, topic: Topic, partition: int, start: int, end: int) -> Iterator[Record]:
    while start < end:
        batch = log.read(
            topic, partition, start, records_max=_BATCH_RECORDS_MAX, bytes_max=_BATCH_BYTES_MAX
        )
        if batch.offset_next == start:
            return
        yield from (record for record in batch.records if record.offset < end)
        start = batch.offset_next


def _event(
    log: Log, topic: Topic, partition: int, record: Record, *, quarantined: bool
) -> Event | None:
    """Return the event of a record; None for one that takes no place in any instance."""
    key, value = record.key, record.value
    if value is None or not codec.is_ours(value) or not key or len(key) > INSTANCE_BYTES_MAX:
        return None
    try:
        key.decode()
        event = codec.decode_event(value)
    except (UnicodeDecodeError, CorruptEvent):
        return None
    except UnknownSchema:
        if quarantined:
            return None
        raise
    return event if log.partition_of(key, topic) == partition else None


# --- comparing -----------------------------------------------------------------------------------


def _differences(folded: FoldedLog, reader: ViewReader) -> Iterator[str]:
    for name, instance in folded.instances.items():
        head = reader.head(name)
        if head is None:
            yield f"{name}: the view does not have it"
        else:
            yield from _of_instance(name, instance, head, reader)
    # Records that came while we folded may have made instances that we do not know, and refusals.
    for name in reader.instances():
        if name not in folded.instances:
            head = reader.head(name)
            first = None if head is None else reader.event(head, 0)
            if first is None or first.offset < folded.ends[first.partition]:
                yield f"{name}: only the view has it"
    refused = {(row.partition, row.offset) for row in reader.refused()}
    refused = {(part, offset) for part, offset in refused if offset < folded.ends[part]}
    for partition, offset in sorted(refused ^ folded.refused):
        yield f"partition {partition} offset {offset}: refused by the view or the log's fold alone"


def _of_instance(
    name: str, instance: FoldedInstance, head: Head, reader: ViewReader
) -> Iterator[str]:
    if head.sequence < instance.sequence:
        yield f"{name}: the view has {head.sequence} events, the log {instance.sequence}"
        return
    rows = reader.history(head, 0, instance.sequence)
    for sequence, (row, event) in enumerate(zip(rows, instance.events, strict=True)):
        if _folded(row) != event or row.sequence != sequence:
            yield f"{name} event {sequence}: the view says {_folded(row)}, the log {event}"
            return
    state = dict(reader.snapshot(head, instance.version).json_items())
    for field in sorted(state.keys() | instance.values.keys()):
        ours, theirs = instance.values.get(field, ABSENT), state.get(field, ABSENT)
        # As JSON, because to Python 1, 1.0 and True are one value.
        if ours is ABSENT or theirs is ABSENT or orjson.dumps(ours) != orjson.dumps(theirs):
            yield f"{name}[{field!r}]: the view says {theirs!r:.80}, the log {ours!r:.80}"
    if head.sequence == instance.sequence:
        waiting = [row.request for row in reader.pending(head)]
        if waiting != list(instance.requests.values()):
            yield f"{name}: the view has {len(waiting)} pending requests, or others than the log"
        if head.version != instance.version:
            yield f"{name}: the view has version {head.version}, the log {instance.version}"


def _folded(row: HistoryRow) -> FoldedEvent:
    return FoldedEvent(row.partition, row.offset, row.time_ms, row.verdict, row.version, row.winner)


# --- folding -------------------------------------------------------------------------------------


class FoldedInstance:
    """One instance in dicts: its JSON values, the verdicts on its events, and `fold.Rows`."""

    def __init__(self) -> None:
        self.sequence = self.version = self.floor = self.fork_parts = self.generation = 0
        self.star = Touch(0, None, 0)
        self.values: dict[str, Any] = {}
        self.events: list[FoldedEvent] = []
        self.requests: dict[int, Pending] = {}
        self._time_ms = 0
        self._fields: dict[str, FieldRow] = {}
        self._keys: dict[str, KeyRow] = {}
        self._chains: dict[str, ChainRow] = {}
        self._chained: dict[tuple[str, int], int] = {}
        self._sources: dict[str, tuple[int, int]] = {}
        self._sourced: dict[tuple[str, tuple[int, int]], int] = {}
        self._effects: dict[tuple[int, str, int, str], int] = {}
        self._answered: dict[int, int] = {}
        self._changed: dict[int, int] = {}

    def take(self, event: Event, partition: int, record: Record) -> Outcome:
        """Fold one event and write down what the fold decided."""
        time_ms = record.time_ms
        if event.copied is not None:
            time_ms = event.copied.time_ms
        elif event.times is not None and event.times.recorded_at_ms is not None:
            time_ms = event.times.recorded_at_ms
        time_ms = max(self._time_ms, time_ms)
        outcome = fold(self, event, time_ms)
        if outcome.sequence is not None:
            assert outcome.sequence == self.sequence
            self._time_ms = time_ms
            self.events.append(
                FoldedEvent(
                    partition,
                    record.offset,
                    self._time_ms,
                    outcome.verdict,
                    outcome.version,
                    outcome.winner,
                )
            )
            self._keep_state(outcome)
            self._keep_rows(event, outcome)
            self._keep_requests(event, outcome)
            self.sequence += 1
        return outcome

    def _keep_state(self, outcome: Outcome) -> None:
        if outcome.floor is not None:
            self.floor = outcome.floor
            self.values.clear()
            self._fields.clear()
        for name, change in (outcome.fields or {}).items():
            self._fields[name] = FieldRow(change.touch, change.shape)
            value = self.values.pop(name, ABSENT)
            for operation in change.operations:
                value = apply_operation(value, operation)
            if value is not ABSENT:
                self.values[name] = value
        if outcome.version != self.version:
            self.version = outcome.version
            self._changed[outcome.version] = self.sequence
        if outcome.star is not None:
            self.star = outcome.star
        if outcome.fork_parts is not None:
            self.fork_parts = outcome.fork_parts

    def _keep_rows(self, event: Event, outcome: Outcome) -> None:
        if outcome.key is not None and event.idempotency_key is not None:
            self._keys[event.idempotency_key] = outcome.key
        guard = event.guard
        if outcome.chain is not None and guard is not None and guard.chain is not None:
            self._chains[guard.chain] = outcome.chain
            if outcome.verdict == Verdict.ACCEPTED:
                self._chained[guard.chain, guard.chain_index] = self.sequence
        if outcome.source is not None and event.source is not None:
            self._sources[event.source.id] = outcome.source
            self._sourced[event.source.id, outcome.source] = self.sequence

    def _keep_requests(self, event: Event, outcome: Outcome) -> None:
        for request in (outcome.opened, outcome.advanced):
            if request is not None:
                self.requests[request.sequence] = request
        for cause in outcome.closed:
            del self.requests[cause]
            self._answered[cause] = self.sequence
        if outcome.effect and event.answer is not None and event.effect is not None:
            self._effects[event.answer.cause, event.name, *event.effect] = self.sequence

    # --- fold.Rows: what the fold asks --------------------------------------------------------

    def field(self, name: str) -> FieldRow | None:
        return self._fields.get(name)

    def value(self, name: str) -> Any:
        return orjson.loads(orjson.dumps(self.values[name]))  # the fold may change what it is lent

    def key(self, idempotency_key: str) -> KeyRow | None:
        return self._keys.get(idempotency_key)

    def chain(self, chain: str) -> ChainRow | None:
        return self._chains.get(chain)

    def source(self, source: str) -> tuple[int, int] | None:
        return self._sources.get(source)

    def pending(self, sequence: int) -> Pending | None:
        return self.requests.get(sequence)

    def pendings(self) -> Iterable[int]:
        return list(self.requests)

    def lane_first(self, lane: str) -> int | None:
        in_lane = (
            request.sequence
            for request in self.requests.values()
            if request.lane == lane and request.due_ms is None
        )
        return next(in_lane, None)

    def effect(self, cause: int, name: str, call_index: int, digest: str) -> int | None:
        return self._effects.get((cause, name, call_index, digest))

    def answered(self, cause: int) -> int | None:
        return self._answered.get(cause)

    def chained(self, chain: str, chain_index: int) -> int | None:
        return self._chained.get((chain, chain_index))

    def sourced(self, source: str, number: tuple[int, int]) -> int | None:
        return self._sourced.get((source, number))

    def changed(self, version: int) -> int | None:
        return self._changed.get(version)
