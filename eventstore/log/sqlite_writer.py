"""The writing half of the embedded log: one connection, its turn among the processes, one commit,
and what that has just written, for the one who reads it next.

group_commit.py calls `SqliteWriter` with all that is queued; the tables are in sqlite_file.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from eventstore.config import Config
from eventstore.errors import LogUnavailable, OutcomeUnknown
from eventstore.events import Batch, Record
from eventstore.locks import FileLock
from eventstore.log.base import Append
from eventstore.log.group_commit import Job
from eventstore.log.sqlite_file import SqliteFile
from eventstore.log.stamp import Stamp
from eventstore.log.waiting import Waiting
from eventstore.testing import fault_point

__all__ = ["WRITTEN_BYTES_MAX", "WRITTEN_RECORDS_MAX", "SqliteWriter", "Turn"]

logger: Final = logging.getLogger(__name__)

#: Rows per INSERT. Each step of a statement gives up the interpreter's lock, and a busy thread
#: then keeps it for 5 ms: so a batch is few statements. Fixed sizes, so that each is prepared once.
#: Two are a request and its answer.
_ROWS_PER_INSERT = (128, 16, 2, 1)
#: Frames (4 KiB) that the WAL takes before they are copied into the database. An fsync of a WAL
#: that still grows costs twice that of one that is written again from its beginning (measured).
_CHECKPOINT_FRAMES = 1_000
#: From here on a checkpoint also waits for readers, so that the WAL can start from its beginning.
_CHECKPOINT_FRAMES_MAX = 4 * _CHECKPOINT_FRAMES
_CHECKPOINT_WAIT_S = 0.2
#: A process that has written so many frames will write more: it lets the WAL grow at once to what
#: it takes before a checkpoint. That takes as long as 50 commits into a WAL that grows each time.
_GROW_AT_FRAMES = 64
_FRAME_BYTES = 4_096 + 24
#: What a commit wrote to a topic is kept, if it is no more, until it is read or the next one comes.
WRITTEN_RECORDS_MAX = 16
WRITTEN_BYTES_MAX = 65_536
#: Records that are looked through for a newer one of an instance. Who is so far behind is told that
#: there is one: nobody else can write meanwhile.
_NEWER_RECORDS_MAX = 1_000


class SqliteWriter:
    """The one write connection of this process, and its turn among the processes."""

    def __init__(
        self, folder: Path, file: SqliteFile, waiting: Waiting, stamp: Stamp, config: Config
    ) -> None:
        self.connection: apsw.Connection | None = None
        self._stamp = stamp
        self._file = file
        self._waiting = waiting
        self._turn = Turn(folder / "locks")
        self._locks = folder / "locks"
        self._timeout_s = config.append_timeout_s
        self._inode = (0, 0)
        self._wal_frames = 0
        self._checkpoint_at_frames = _CHECKPOINT_FRAMES
        self._has_grown = False
        #: Topic -> what the latest commit wrote there, until it is read once.
        self._written: dict[int, Batch] = {}

    def acquire(self, timeout_s: float) -> None:
        """Wait for this process's turn to write."""
        self._turn.take(timeout_s)

    def write(self, jobs: Sequence[Job]) -> Sequence[int]:
        """Store all jobs in one transaction; see `group_commit.Writer`."""
        fault_point("log.commit.before")
        connection = self._connected()
        try:
            with self._file.translated("written"):
                connection.execute("BEGIN IMMEDIATE")
                offsets_first, tables = _insert(connection, jobs)
                fault_point("log.commit.inside")
        except BaseException:
            self._disconnect()  # rolls back
            raise
        try:
            connection.execute("COMMIT")
        except (apsw.FullError, apsw.BusyError) as error:
            # The commit record itself did not fit, so nothing of the transaction is valid.
            self._disconnect()
            raise self._file.error(error, "written") from error
        except apsw.Error as error:
            self._disconnect()
            raise OutcomeUnknown(
                f"{self._file.path}: {error} while committing; the events may or may not be in the"
                " log: retry with the same idempotency key"
            ) from error
        fault_point("log.commit.after")
        self._written = {
            topic_id: table.batch() for topic_id, table in tables.items() if table.is_small
        }
        self._stamp.raise_()
        self._waiting.ring(attended=all(job.is_attended for job in jobs))
        return offsets_first

    def take_written(self, topic_id: int, offset: int) -> Batch | None:
        """Return what the latest commit wrote to a topic if it begins at `offset`, once.

        Whoever folds what he has just written has it without asking the database, which would
        read the pages again that this commit changed. Once, so that whoever looks a second time,
        to see whether the log still has it, sees the log.
        """
        of_commit = self._written
        written = of_commit.get(topic_id)
        if written is None or written.records[0].offset != offset:
            return None
        return of_commit.pop(topic_id, None)

    def release(self) -> None:
        """Copy the WAL into the database when it is due, and let others write."""
        try:
            # Without the turn somebody else writes now, and this is not the time.
            due = self._turn.held and self._wal_frames >= self._checkpoint_at_frames
            if due and self.connection is not None:
                self._checkpoint(self.connection)
            elif self._turn.held and not self._has_grown and self._wal_frames >= _GROW_AT_FRAMES:
                self._has_grown = True
                self._grow()
        finally:
            self._turn.give_back()

    @contextmanager
    def alone(self) -> Iterator[apsw.Connection]:
        """Lend a connection of its own for a rare write, with the turn taken; creates the file."""
        turn = Turn(self._locks)
        try:
            turn.take(self._timeout_s)
            self._file.create()
            connection = self._file.connect()
            try:
                with self._file.translated("written"):
                    yield connection
            finally:
                connection.close(True)
        finally:
            turn.close()

    def close(self) -> None:
        """Leave a database that is complete without its WAL, if nobody reads, and let go."""
        if self.connection is not None:
            try:
                self._turn.take(self._timeout_s)
                self.connection.set_busy_timeout(0)
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except (apsw.Error, LogUnavailable):
                pass  # somebody reads or writes: the WAL stays, and is as good
            self._disconnect()
        self._turn.close()

    def _connected(self) -> apsw.Connection:
        if self.connection is None:
            connection = self._file.connect()
            connection.set_wal_hook(self._note_wal_frames)
            self._inode = self._file.inode()
            self.connection = connection
        # Appending to a file that was deleted would be acknowledged, fsynced, and gone.
        elif self._inode != self._file.inode():
            self._disconnect()
            raise self._file.replaced()
        return self.connection

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close(True)
            self.connection = None

    def _note_wal_frames(self, connection: apsw.Connection, database: str, frames: int) -> int:
        if frames < self._wal_frames:  # it started again from the beginning
            self._checkpoint_at_frames = _CHECKPOINT_FRAMES
            # Another process that ended may have cut it to nothing.
            self._has_grown = False
        self._wal_frames = frames
        return apsw.SQLITE_OK

    def _grow(self) -> None:
        """Make the WAL as large as it gets, by a transaction that spills into it and is undone.

        SQLite takes no notice of what was never committed: it is written over by the next commits,
        whose fsync then has no change of the file's size to make durable, too.
        """
        missing = _CHECKPOINT_FRAMES * _FRAME_BYTES - self._file.wal_bytes()
        connection = self.connection
        if connection is None or missing <= 0:
            return
        try:
            cache_size = connection.pragma("cache_size")
            connection.execute("BEGIN IMMEDIATE")
            connection.pragma("cache_size", 10)
            connection.execute(
                "CREATE TABLE growth (bytes BLOB); INSERT INTO growth VALUES (zeroblob(?))",
                (missing,),
            )
            fault_point("log.growth.inside")
            connection.execute("ROLLBACK")
            connection.pragma("cache_size", cache_size)
        except BaseException as error:
            # A transaction that stayed open would keep every process from writing.
            self._disconnect()
            if not isinstance(error, apsw.Error):
                raise  # Ctrl-C
            # A disk that is nearly full, say: then each commit pays for its own.
            logger.debug("%s: the WAL did not grow: %s", self._file.path, error)

    def _checkpoint(self, connection: apsw.Connection) -> None:
        """Copy the WAL into the database. A passive checkpoint does not wait for readers."""
        try:
            if self._wal_frames < _CHECKPOINT_FRAMES_MAX:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            else:
                connection.set_busy_timeout(int(_CHECKPOINT_WAIT_S * 1000))
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.BusyError:
            pass  # a reader is in the WAL; the next checkpoint finds it gone
        except apsw.Error as error:
            # Every event is safe in the WAL; only its size is not bounded meanwhile.
            logger.warning("%s: checkpoint failed: %s", self._file.path, error)
        finally:
            connection.set_busy_timeout(int(self._timeout_s * 1000))
            self._checkpoint_at_frames = self._wal_frames + _CHECKPOINT_FRAMES


def _insert(
    connection: apsw.Connection, jobs: Sequence[Job]
) -> tuple[list[int], dict[int, _Table]]:
    """Insert the records of all jobs; return the offset of the first of each, and the tables."""
    now_ms = time.time_ns() // 1_000_000
    offsets_first: list[int] = []
    tables: dict[int, _Table] = {}
    for job in jobs:
        table = tables.get(job.target)
        if table is None:
            table = tables[job.target] = _Table(connection, job.target, now_ms)
        if job.offset_next is not None and table.has_newer(
            connection, job.appends[0].key, job.offset_next
        ):
            offsets_first.append(-1)
            continue
        offsets_first.append(table.offset_next)
        table.add(job.appends)
    for table in tables.values():
        table.insert(connection)
    return offsets_first, tables


class _Table:
    """The rows that one transaction adds to one topic."""

    def __init__(self, connection: apsw.Connection, topic_id: int, now_ms: int) -> None:
        last = connection.execute(
            # A row of another program may have a time that is no number.
            f"SELECT offset, CAST(time_ms AS INTEGER) FROM records_{topic_id}"
            " ORDER BY offset DESC LIMIT 1"
        ).fetchone()
        self._name = f"records_{topic_id}"
        self.offset_next = 0 if last is None else int(last[0]) + 1
        # The clock may be set back; the log's time may not.
        self._time_ms = now_ms if last is None else max(now_ms, int(last[1]))
        self._values: list[Any] = []

    def has_newer(self, connection: apsw.Connection, key: bytes, offset: int) -> bool:
        """Whether a record of a key stands at or after an offset, or may stand there."""
        if offset == self.offset_next:
            return False
        if not 0 <= self.offset_next - offset <= _NEWER_RECORDS_MAX or key in self._values[2::4]:
            return True
        query = f"SELECT 1 FROM {self._name} WHERE offset>=? AND key=? LIMIT 1"
        return connection.execute(query, (offset, key)).fetchone() is not None

    def add(self, appends: Sequence[Append]) -> None:
        offset, time_ms, values = self.offset_next, self._time_ms, self._values
        for _, key, value, _ in appends:
            values += (offset, time_ms, key, value)
            offset += 1
        self.offset_next = offset

    @property
    def is_small(self) -> bool:
        """Whether what was added may be kept in memory until it is read; nothing is not kept."""
        values = self._values
        return 0 < len(values) <= 4 * WRITTEN_RECORDS_MAX and (
            sum(map(len, values[3::4])) <= WRITTEN_BYTES_MAX
        )

    def batch(self) -> Batch:
        """Return what was added, as a reader gets it."""
        values = self._values
        records = [Record(*values[at : at + 4]) for at in range(0, len(values), 4)]
        return Batch(records, self.offset_next)

    def insert(self, connection: apsw.Connection) -> None:
        values, start = self._values, 0
        for rows in _ROWS_PER_INSERT:
            width = 4 * rows
            while len(values) - start >= width:
                connection.execute(
                    f"INSERT INTO {self._name} VALUES {_PLACES[rows]}",
                    values[start : start + width],
                )
                start += width


_PLACES = {rows: ",".join(["(?,?,?,?)"] * rows) for rows in _ROWS_PER_INSERT}


class Turn:
    """The processes' fair queue for the right to write, in two locks.

    SQLite's own lock is taken by whoever asks at the right moment, and a process that commits in
    a loop asks first every time. Here the next in line holds `next` while it waits for `writer`,
    so the one that just wrote cannot pass it.
    """

    def __init__(self, folder: Path) -> None:
        self._next = FileLock(folder / "next.lock", keep_open=True)
        self._writer = FileLock(folder / "writer.lock", keep_open=True)

    @property
    def held(self) -> bool:
        """Whether this process may write."""
        return self._writer.held

    def take(self, timeout_s: float) -> None:
        """Wait for the turn; LogUnavailable after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        try:
            if self._next.acquire(timeout_s) and self._writer.acquire(
                max(0.0, deadline_s - time.monotonic())
            ):
                return
        except OSError as error:
            raise LogUnavailable(f"{self._writer.path} cannot be locked: {error}") from error
        finally:
            self._next.release()
        raise LogUnavailable(
            f"another process has held {self._writer.path} for {timeout_s:g} s (is it stopped?);"
            " nothing was written"
        )

    def give_back(self) -> None:
        """Let the next one write. Harmless without the turn, and after a `take` cut short."""
        self._next.release()
        self._writer.release()

    def close(self) -> None:
        self._next.close()
        self._writer.close()
