"""What a view's database promises: an ordered map of bytes with atomic batches.

Two implementations, one contract suite (tests/contract/test_table.py): memory.py for `memory://`
and tests, rocks.py for everything else. Neither knows what the rows mean: keys.py does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

__all__ = ["Table", "WriteBatch"]


class WriteBatch(Protocol):
    """Puts and deletes that take effect together, in the order in which they were made."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...


class Table(ABC):
    """An ordered map from bytes to bytes. Readers may run beside the one writer."""

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""

    @abstractmethod
    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the values in the order of the keys, None where there is none."""

    @abstractmethod
    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows with start <= key < end, in key order or backwards.

        What it yields is one consistent state of the table, that of the call, for as long as it
        is used; writes beside it do not show. Close or exhaust it soon: it pins old rows.
        """

    @abstractmethod
    def batch(self) -> WriteBatch:
        """Return an empty batch."""

    @abstractmethod
    def write(self, batch: WriteBatch) -> None:
        """Apply the whole batch or nothing of it.

        After a crash the table holds a prefix of the batches that were written: never a part of
        one, never a later one without an earlier one.

        Raises:
            ViewDamaged: the database failed (a full disk, say); nothing of the batch is visible.
        """

    @abstractmethod
    def flush(self) -> None:
        """Make what was written survive a crash of this process."""

    @abstractmethod
    def checkpoint(self, path: Path) -> None:
        """Write a consistent copy, that another process can open, to a folder made by this call."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Return about how much disk (or memory) the rows take."""

    @abstractmethod
    def close(self) -> None:
        """Flush and let go. Calling it again does nothing."""
