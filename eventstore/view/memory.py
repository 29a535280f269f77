"""A Table in memory: for `memory://`, and the simple twin that rocks.py is compared with.

It is written to be obviously right. A scan copies the rows of its range, so it costs the range
even when only one row of it is used: ask `first` and `last` for one row.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Final

from eventstore.errors import Closed
from eventstore.view.base import Table, WriteBatch

__all__ = ["MemoryTable"]

#: The file of a checkpoint: for each row the lengths of key and value, then both.
_CHECKPOINT_FILE: Final = "rows"
_LENGTHS: Final = struct.Struct(">II")


class _Batch:
    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> None:
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        self.changes[key] = None


class MemoryTable(Table):
    """A Table that is gone with its process. `checkpoint` is a folder that the next can open."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        self._rows: dict[bytes, bytes] = {}
        #: Every key of `_rows` in order, apart from those of `_keys_new`.
        self._keys: list[bytes] = []
        #: Keys that came since the last look in order: sorting a batch of them into the list
        #: costs one pass, one by one they would cost a pass each.
        self._keys_new: list[bytes] = []
        self._size_bytes = 0
        self._closed = False
        self._lock = Lock()
        if checkpoint is not None:
            self._load((checkpoint / _CHECKPOINT_FILE).read_bytes())

    def get(self, key: bytes) -> bytes | None:
        if self._closed:
            raise _closed()
        return self._rows.get(key)

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            keys = self._sorted_keys()
            found = keys[bisect_left(keys, start) : bisect_left(keys, end)]
            if reverse:
                found.reverse()
            rows = [(key, self._rows[key]) for key in found]
        return self._unless_closed(rows)

    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        with self._lock:
            keys = self._sorted_keys()
            index = bisect_left(keys, start)
            if index == len(keys) or keys[index] >= end:
                return None
            return keys[index], self._rows[keys[index]]

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        with self._lock:
            keys = self._sorted_keys()
            index = bisect_left(keys, end) - 1
            if index < 0 or keys[index] < start:
                return None
            return keys[index], self._rows[keys[index]]

    def batch(self) -> WriteBatch:
        return _Batch()

    def write(self, batch: WriteBatch) -> None:
        assert isinstance(batch, _Batch), "the batch was made by another kind of table"
        with self._lock:
            self._check_open()
            for key, value in batch.changes.items():
                if value is None:
                    self._delete(key)
                else:
                    self._put(key, value)
            batch.changes.clear()

    def flush(self) -> None:
        self._check_open()

    def checkpoint(self, path: Path) -> None:
        with self._lock:
            self._check_open()
            path.mkdir(parents=True)
            with open(path / _CHECKPOINT_FILE, "wb") as file:
                for key, value in self._rows.items():
                    file.write(_LENGTHS.pack(len(key), len(value)) + key + value)

    def size_bytes(self) -> int:
        self._check_open()
        return self._size_bytes

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._rows, self._keys, self._keys_new = {}, [], []

    def _put(self, key: bytes, value: bytes) -> None:
        old = self._rows.get(key)
        if old is None:
            self._keys_new.append(key)
            self._size_bytes += len(key) + len(value)
        else:
            self._size_bytes += len(value) - len(old)
        self._rows[key] = value

    def _delete(self, key: bytes) -> None:
        old = self._rows.pop(key, None)
        if old is not None:
            self._size_bytes -= len(key) + len(old)
            keys = self._sorted_keys_with(key)
            del keys[bisect_left(keys, key)]

    def _sorted_keys(self) -> list[bytes]:
        self._check_open()
        return self._sorted_keys_with()

    def _sorted_keys_with(self, *deleted: bytes) -> list[bytes]:
        if self._keys_new:
            self._keys += self._keys_new
            self._keys_new = []
            self._keys.sort()  # two runs, mostly: the sort merges them in one pass
        assert len(self._keys) == len(self._rows) + len(deleted)
        return self._keys

    def _unless_closed(self, rows: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for row in rows:
            self._check_open()
            yield row

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    def _load(self, content: bytes) -> None:
        place = 0
        while place < len(content):
            key_length, value_length = _LENGTHS.unpack_from(content, place)
            middle = place + _LENGTHS.size + key_length
            self._put(
                content[middle - key_length : middle], content[middle : middle + value_length]
            )
            place = middle + value_length


def _closed() -> Closed:
    return Closed("this view's table is closed")
