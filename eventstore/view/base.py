"""What a view's database promises: an ordered map of bytes with atomic batches.

Two implementations, one contract suite (tests/contract/test_table.py): memory.py for `memory://`
and tests, rocks.py for everything else. Neither knows what the rows mean: keys.py does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from eventstore.errors import ViewDamaged

__all__ = ["Table", "TableLocked", "TableUnavailable", "WriteBatch"]


class TableUnavailable(ViewDamaged):
    """The machine said no: a full disk, too many open files, no permission. The rows are fine.

    Nothing needs to be set aside: once there is room, close the table, open it again and go on
    from the progress that is found in it.
    """


class TableLocked(TableUnavailable):
    """Another table object, here or in another process, has this database open."""


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
    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows with start <= key < end, in key order or backwards.

        What it yields is one consistent state of the table, that of the call, for as long as it
        is used; writes beside it do not show. Drop or exhaust it soon: it pins old rows.

        Raises:
            Closed: the table was closed while rows were left.
            ViewDamaged: rows cannot be read; it never ends early as if there were no more.
        """

    @abstractmethod
    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Return the lowest row with start <= key < end as it is now, or None."""

    @abstractmethod
    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Return the highest row with start <= key < end as it is now, or None.

        One seek, whatever the number of rows: this is how the state at a version is read.
        """

    @abstractmethod
    def batch(self) -> WriteBatch:
        """Return an empty batch. It is used up by `write`."""

    @abstractmethod
    def write(self, batch: WriteBatch) -> None:
        """Apply the whole batch or nothing of it.

        After a crash the table holds a prefix of the batches that were written: never a part of
        one, never a later one without an earlier one.

        Raises:
            TableUnavailable: the disk is full, say; nothing of the batch is visible. Batches
                written earlier can be read, but what was not flushed is gone after a re-open.
            ViewDamaged: the database is broken; nothing of the batch is visible.
        """

    @abstractmethod
    def flush(self) -> None:
        """Make what was written survive a crash of this process."""

    @abstractmethod
    def checkpoint(self, path: Path) -> None:
        """Write a consistent copy, that another process can open, to a folder made by this call.

        Raises:
            FileExistsError: `path` is there already; nothing was written.
            ViewDamaged: the copy failed; delete what there is of it.
        """

    @abstractmethod
    def size_bytes(self) -> int:
        """Return about how much disk (or memory) the rows take."""

    @abstractmethod
    def close(self) -> None:
        """Flush and let go; every later call raises Closed. Calling it again does nothing.

        Rows that can not be flushed (a full disk) are given up without an error: the log has them.
        """
