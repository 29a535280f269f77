"""An independent check of a view: the log from its beginning, folded into plain dicts.

The rules are the public pure function `eventstore.fold.fold`; everything else that stands between
a log and a state (batches, keys, histories of fields, caches, RocksDB) is left out, and a dict
takes its place. What a view says must be the same. It knows as many kinds of rows as the demo's
events use: fields, and the chains of guarded commits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from eventstore.codec import decode_event, is_ours
from eventstore.diff import ABSENT, apply_operation
from eventstore.events import Event
from eventstore.fold import ChainRow, FieldRow, KeyRow, Outcome, Pending, Touch, fold
from eventstore.log.base import Log, Record, Topic

__all__ = ["fold_log"]


def fold_log(log: Log, topic: Topic) -> dict[str, dict[str, Any]]:
    """Return the state of every instance that has one, worked out from the log alone."""
    instances: dict[str, _Instance] = {}
    for record in _records(log, topic):
        if record.key is None or record.value is None or not is_ours(record.value):
            continue
        instance = instances.setdefault(record.key.decode(), _Instance())
        event = decode_event(record.value)
        instance.write_down(event, fold(instance, event, record.time_ms))
    return {name: instance.values for name, instance in instances.items() if instance.version}


def _records(log: Log, topic: Topic) -> Iterator[Record]:
    for partition in range(topic.partitions):
        offset = log.offset_first(topic, partition)
        while offset < log.offset_end(topic, partition):
            batch = log.read(topic, partition, offset, records_max=1_000, bytes_max=1_000_000)
            yield from batch.records
            offset = batch.offset_next


class _Instance:
    """The rows of one instance, as `eventstore.fold.Rows` asks for them."""

    def __init__(self) -> None:
        self.sequence = self.version = self.floor = self.fork_parts = self.generation = 0
        self.star = Touch(0, None, 0)
        self.values: dict[str, Any] = {}
        self._fields: dict[str, FieldRow] = {}
        self._keys: dict[str, KeyRow] = {}
        self._chains: dict[str, ChainRow] = {}
        self._chained: dict[tuple[str, int], int] = {}
        self._changed: dict[int, int] = {}

    def write_down(self, event: Event, outcome: Outcome) -> None:
        """Take over what the fold decided."""
        for name, change in (outcome.fields or {}).items():
            self._fields[name] = FieldRow(change.touch, change.shape)
            value = self.values.pop(name, ABSENT)
            for operation in change.operations:
                value = apply_operation(value, operation)
            if value is not ABSENT:
                self.values[name] = value
        if outcome.key is not None and event.idempotency_key is not None:
            self._keys[event.idempotency_key] = outcome.key
        if outcome.chain is not None and event.guard is not None and event.guard.chain is not None:
            self._chains[event.guard.chain] = outcome.chain
            self._chained[event.guard.chain, event.guard.chain_index] = self.sequence
        if outcome.version != self.version:
            self.version = outcome.version
            self._changed[outcome.version] = self.sequence
        self.star = outcome.star or self.star
        self.sequence += 1

    def field(self, name: str) -> FieldRow | None:
        return self._fields.get(name)

    def value(self, name: str) -> Any:
        return json.loads(json.dumps(self.values[name]))  # lent: the fold may change it in place

    def key(self, idempotency_key: str) -> KeyRow | None:
        return self._keys.get(idempotency_key)

    def chain(self, chain: str) -> ChainRow | None:
        return self._chains.get(chain)

    def chained(self, chain: str, chain_index: int) -> int | None:
        return self._chained.get((chain, chain_index))

    def changed(self, version: int) -> int | None:
        return self._changed.get(version)

    # The demo has no requests, so nothing is pending, answered, or numbered by a source.

    def pending(self, sequence: int) -> Pending | None:
        return None

    def pendings(self) -> tuple[int, ...]:
        return ()

    def lane_first(self, lane: str) -> int | None:
        return None

    def answered(self, cause: int) -> int | None:
        return None

    def effect(self, cause: int, name: str, call_index: int, digest: str) -> int | None:
        return None

    def source(self, source: str) -> tuple[int, int] | None:
        return None

    def sourced(self, source: str, number: tuple[int, int]) -> int | None:
        return None
