"""Rows of a view to bytes and back: those that its writer and its readers both take apart.

keys.py draws the bytes; nothing is read or written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from eventstore.diff import apply_operation
from eventstore.events import Record
from eventstore.rows import Pending
from eventstore.view import keys
from eventstore.view.keys import I64, U64

__all__ = [
    "Progress",
    "event_bytes",
    "pack_pending",
    "record_digest",
    "replay",
    "sequence_of_version",
    "unpack_pending",
]


class Progress(NamedTuple):
    """How far a partition is folded, and what came by on the way.

    `digest` is that of the record at `offset_last` (-1: none yet): whoever opens the view reads
    the record again and knows whether the log under it is still the same.
    """

    offset_next: int = 0
    epoch: int = -1
    generation: int = 0
    records: int = 0
    foreign: int = 0
    refused: int = 0
    offset_last: int = -1
    digest: bytes = bytes(keys.DIGEST_BYTES)

    def pack(self) -> bytes:
        return keys.PROGRESS.pack(*self[:7]) + self.digest

    @classmethod
    def unpack(cls, row: bytes | None) -> Progress:
        if row is None:
            return cls()
        return cls._make((*keys.PROGRESS.unpack_from(row), row[keys.PROGRESS.size :]))


def event_bytes(row: bytes) -> bytes:
    """Return the event inside a history row, as it stood in the log."""
    reason_bytes = keys.HISTORY.unpack_from(row)[8]
    return row[keys.HISTORY.size + reason_bytes :]


def sequence_of_version(
    history: Callable[[int], bytes], sequence_end: int, version: int
) -> int | None:
    """Return the first sequence after which the instance had `version`: a binary search."""
    low, high = 0, sequence_end
    while low < high:
        middle = (low + high) // 2
        if U64.unpack_from(history(middle), keys.VERSION_AT)[0] < version:
            low = middle + 1
        else:
            high = middle
    return low if low < sequence_end else None


def replay(rows: Sequence[bytes]) -> Any:
    """Return the JSON value that a base and the operations after it make: rows in version order."""
    assert rows[0][:1] == b"B"
    value = orjson.loads(memoryview(rows[0])[1:])
    for row in rows[1:]:
        for operation in orjson.loads(memoryview(row)[9:]):
            value = apply_operation(value, operation)
    return value


def record_digest(record: Record) -> bytes:
    """Return a digest that tells this record from any other one at its offset."""
    return keys.digest(
        U64.pack(record.offset), I64.pack(record.time_ms), record.key or b"", record.value or b""
    )


def pack_pending(request: Pending, time_ms: int) -> bytes:
    name = request.name.encode()
    due_ms = -1 if request.due_ms is None else request.due_ms
    return (
        keys.PENDING.pack(request.parts, request.attempts, due_ms, time_ms, len(name))
        + name
        + request.lane.encode()
    )


def unpack_pending(sequence: int, row: bytes) -> tuple[Pending, int]:
    """Return the request of a row, and its time in epoch milliseconds."""
    parts, attempts, due_ms, time_ms, name_bytes = keys.PENDING.unpack_from(row)
    start = keys.PENDING.size
    name = row[start : start + name_bytes].decode()
    lane = row[start + name_bytes :].decode()
    due = None if due_ms < 0 else due_ms
    return Pending(sequence, name, lane, parts, attempts, due), time_ms
