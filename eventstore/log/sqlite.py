"""The embedded log: one SQLite file per machine, many processes, no server.

A folder holds the database `log.sqlite` (sqlite_file.py has its tables), locks between processes
(`locks/`) and the FIFOs by which they tell one another of news (`news/`). One partition, 16
shards. The order of things in `append`:

    append -> queue -> a waiting thread leads (group_commit.py)
           -> turn among processes -> one transaction, fsync (sqlite_writer.py)
           -> nudge the readers (nudges.py) -> tell the writers
"""

from __future__ import annotations

import ctypes
import json
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from eventstore.config import Config
from eventstore.errors import Closed, ConfigError, LogTruncated, LogUnavailable
from eventstore.lifetime import abandon_in_child, close_at_exit
from eventstore.log.base import Append, Batch, Finding, Log, Ownership, Progress, Record, Topic
from eventstore.log.group_commit import GroupCommit
from eventstore.log.nudges import Nudges
from eventstore.log.ownership import SHARDS, ShardOwners
from eventstore.log.sqlite_checks import diagnose
from eventstore.log.sqlite_file import SqliteFile, refuse_network_filesystem
from eventstore.log.sqlite_writer import WRITTEN_BYTES_MAX, WRITTEN_RECORDS_MAX, SqliteWriter
from eventstore.log.stamp import Stamp
from eventstore.log.waiting import Waiting

__all__ = ["SqliteLog"]


class _Known(NamedTuple):
    """A topic and its row in `topics`."""

    id: int
    topic: Topic


class SqliteLog(Log):
    """A log in a folder of this machine. Reading creates nothing, the first topic the file."""

    sees_newer = True

    def __init__(self, folder: str | Path, config: Config) -> None:
        """Open the log in `folder`, or get ready to create it.

        Raises:
            ConfigError: the folder is a file, lies on a network file system, or `log.sqlite` in it
                is not ours; nothing was changed.
            LogUnavailable: `log.sqlite` is damaged; nothing was changed.
        """
        self.folder = Path(folder).absolute()
        self.url = str(self.folder)
        self.view_root = self.folder / "views"
        self._config = config
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file; the embedded log needs a folder")
        if not config.allow_network_filesystem:
            refuse_network_filesystem(self.folder)
        self._file = SqliteFile(
            self.folder / "log.sqlite",
            durability=config.durability,
            busy_timeout_s=config.append_timeout_s,
        )
        self._mutex = threading.Lock()
        self._closed = False
        self._abandoned = False
        self._known: dict[str, _Known] = {}
        self._readers: deque[apsw.Connection] = deque()
        self._inode: tuple[int, int] | None = None
        self._news = Nudges(self.folder / "news")
        self._waiting = Waiting(self._news)
        self._stamp = Stamp(self.folder / "news" / "commits")
        self._writer = SqliteWriter(self.folder, self._file, self._waiting, self._stamp, config)
        self._queue = GroupCommit(
            self._writer,
            buffer_bytes_max=config.buffer_bytes_max,
            append_timeout_s=config.append_timeout_s,
        )
        self._owners: ShardOwners | None = None
        self._is_made()
        abandon_in_child(self)
        close_at_exit(self)

    # --- topics -----------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """Return the names of the topics of this namespace, sorted."""
        self._refuse_when_closed()
        if not self._is_made():
            return []
        with self._reading() as connection:
            names = [
                str(row[0]) for row in connection.execute("SELECT name FROM topics").fetchall()
            ]
        return sorted(name for name in names if name.startswith(f"{self._config.namespace}."))

    def topic(self, name: str, *, create: bool) -> Topic | None:
        """Return the topic; make it first when `create`; None when there is none."""
        self._refuse_when_closed()
        known = self._find(name)
        if known is None and create:
            self._create(name)
            known = self._find(name)
        return known.topic if known else None

    def metadata(self, topic: Topic) -> dict[str, object]:
        """Return the app's own small metadata, a JSON object ({} when nothing was set)."""
        self._refuse_when_closed()
        known = self._resolve(topic)
        with self._reading() as connection:
            row = connection.execute("SELECT metadata FROM topics WHERE id=?", (known.id,)).get
        metadata: dict[str, object] = json.loads(str(row))
        return metadata

    def set_metadata(self, topic: Topic, changes: Mapping[str, object]) -> None:
        """Merge `changes` into the metadata, durably; the last writer of a key wins."""
        self._refuse_when_closed()
        known = self._resolve(topic)
        with self._writer.alone() as connection, connection:
            row = connection.execute("SELECT metadata FROM topics WHERE id=?", (known.id,)).get
            merged = json.dumps({**json.loads(str(row)), **changes})
            connection.execute("UPDATE topics SET metadata=? WHERE id=?", (merged, known.id))

    def _create(self, name: str) -> None:
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            (self.folder / "news").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be created: {error}") from error
        with self._writer.alone() as connection, connection:
            connection.execute(
                "INSERT INTO topics (name, identity, metadata) VALUES (?, ?, '{}')"
                " ON CONFLICT DO NOTHING",
                (name, uuid.uuid4().hex[:8]),
            )
            topic_id = connection.execute("SELECT id FROM topics WHERE name=?", (name,)).get
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS records_{topic_id} (offset INTEGER PRIMARY KEY,"
                " time_ms INTEGER NOT NULL, key BLOB, value BLOB)"
            )

    def _find(self, name: str) -> _Known | None:
        known = self._known.get(name)
        if known is not None or not self._is_made():
            return known
        with self._reading() as connection:
            row = connection.execute(
                "SELECT topics.id, file.identity || '-' || topics.identity FROM topics, file"
                " WHERE name=?",
                (name,),
            ).fetchone()
        if row is None:
            return None
        known = _Known(int(row[0]), Topic(name, str(row[1]), partitions=1))
        self._known[name] = known
        return known

    def _is_made(self) -> bool:
        """Whether there is a log; what is there but is not ours, or is damaged, raises."""
        if not self._readers:
            connection = self._file.connect_if_made()
            if connection is None:
                return False
            self._inode = self._inode or self._file.inode()
            self._readers.append(connection)
        return True

    def _resolve(self, topic: Topic) -> _Known:
        known = self._known.get(topic.name) or self._find(topic.name)
        if known is None or known.topic.identity != topic.identity:
            raise LogUnavailable(
                f"{self.url} no longer has the topic {topic.name} with identity {topic.identity}:"
                " another file took its place"
            )
        return known

    # --- writing ----------------------------------------------------------------------------

    def partition_of(self, key: bytes, topic: Topic) -> int:
        """Return 0: the embedded log has one partition."""
        return 0

    def append(self, topic: Topic, appends: Sequence[Append]) -> None:
        """Queue records; see `Log.append`. The records of one call become one transaction."""
        if appends:
            self._queue.append(self._resolve(topic).id, appends)

    def append_unless_newer(
        self, topic: Topic, appends: Sequence[Append], offset_next: int
    ) -> None:
        """Queue records unless one of their key came first; see `Log.append_unless_newer`."""
        if appends:
            self._queue.append(self._resolve(topic).id, appends, offset_next)

    def drive(self, timeout_s: float | None) -> None:
        """Commit what is queued in this thread, or wait for the thread that does."""
        self._queue.drive(timeout_s)

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when every record queued before the call was delivered or failed."""
        self._queue.flush(timeout_s)

    # --- reading ----------------------------------------------------------------------------

    def read(
        self, topic: Topic, partition: int, offset: int, *, records_max: int, bytes_max: int
    ) -> Batch:
        """Return committed records from `offset` on; see `Log.read`."""
        table = self._table(topic, partition)
        # It is given whole, so only to those who take that much.
        if records_max >= WRITTEN_RECORDS_MAX and bytes_max >= WRITTEN_BYTES_MAX:
            written = self._writer.take_written(self._resolve(topic).id, offset)
            if written is not None:
                return written
        with self._reading() as connection:
            cursor = connection.execute(
                f"SELECT offset, time_ms, key, value FROM {table} WHERE offset>=?"
                " ORDER BY offset LIMIT ?",
                (offset, records_max),
            )
            records: list[Record] = []
            size_bytes = 0
            # No cursor stays open: a reader that pauses inside one keeps the WAL from resetting.
            try:
                for row in cursor:
                    if not (type(row[2]) is type(row[3]) is bytes and type(row[1]) is int):
                        row = _of_any_types(row)
                    records.append(_record_of(Record, row))
                    size_bytes += len(row[2] or b"") + len(row[3] or b"")
                    if size_bytes >= bytes_max:
                        break
            finally:
                cursor.close(True)
        if not records:
            end = self.offset_end(topic, partition)
            if not 0 <= offset <= end:
                raise LogTruncated(f"{topic.name}: offset {offset} is behind the end, {end}")
            return Batch((), offset)
        if records[0].offset != offset:
            raise LogTruncated(
                f"{topic.name}: offset {offset} is gone, the log begins at {records[0].offset}"
            )
        return Batch(records, records[-1].offset + 1)

    def offset_first(self, topic: Topic, partition: int) -> int:
        """Return the offset of the first record that the log still has (0 unless cut)."""
        table = self._table(topic, partition)
        with self._reading() as connection:
            first = connection.execute(f"SELECT min(offset) FROM {table}").get
        return int(first) if first is not None else 0

    def offset_end(self, topic: Topic, partition: int) -> int:
        """Return the offset after the last committed record."""
        table = self._table(topic, partition)
        with self._reading() as connection:
            last = connection.execute(f"SELECT max(offset) FROM {table}").get
        return int(last) + 1 if last is not None else 0

    def stamp(self, topic: Topic) -> int | None:
        """Return the number of commits that the processes of this machine have counted."""
        return None if self._closed else self._stamp.read()

    def offset_at(self, topic: Topic, partition: int, time_ms: int) -> int:
        """Return the first offset whose record's time is at or after `time_ms`, else the end."""
        table = self._table(topic, partition)
        low, high = self.offset_first(topic, partition), self.offset_end(topic, partition)
        with self._reading() as connection:
            # Times never fall along the offsets, so a binary search needs no index.
            while low < high:
                middle = (low + high) // 2
                time_there_ms = connection.execute(
                    f"SELECT time_ms FROM {table} WHERE offset=?", (middle,)
                ).get
                if time_there_ms is not None and time_there_ms >= time_ms:
                    high = middle
                else:
                    low = middle + 1
        return low

    def wait(
        self,
        topic: Topic,
        offsets: Mapping[int, int],
        timeout_s: float,
        *,
        attended: bool = False,
    ) -> bool:
        """Wait until there are records at or after the offset; woken by every process's commits."""
        known = self._resolve(topic)
        offset = offsets.get(0)
        if offset is None:
            raise ConfigError(f"{topic.name} has partition 0 only, not {list(offsets)}")

        def has_news() -> bool:
            return not self._closed and self.offset_end(known.topic, 0) > offset

        poll_interval_s = self._config.poll_interval_ms / 1000
        return self._waiting.wait(has_news, timeout_s, poll_interval_s, attended=attended)

    def wake(self) -> None:
        """Make every `wait` of this process return now."""
        self._waiting.wake()

    def _table(self, topic: Topic, partition: int) -> str:
        self._refuse_when_closed()
        if partition != 0:
            raise ConfigError(f"{topic.name} has partition 0 only, not {partition}")
        return f"records_{self._resolve(topic).id}"

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """Lend a connection of the pool; one that failed is not lent again."""
        self._refuse_when_closed()
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._file.connect()
            self._inode = self._inode or self._file.inode()
        try:
            # Whoever reads on in a file that was deleted never hears of what others write.
            if self._inode != self._file.inode():
                raise self._file.replaced()
            with self._file.translated("read"):
                yield connection
        except BaseException:
            connection.close(True)
            raise
        if self._closed:
            connection.close()
        else:
            self._readers.append(connection)

    # --- ownership --------------------------------------------------------------------------

    def shards(self, topic: Topic) -> int:
        """Return 16."""
        return SHARDS

    def shard_of(self, key: bytes, topic: Topic) -> int:
        """Return crc32(key) modulo 16."""
        return zlib.crc32(key) % SHARDS

    def own(
        self,
        topic: Topic,
        group: str,
        changed: Callable[[frozenset[int]], None],
        progress: Progress | None = None,
        is_busy: Callable[[int], bool] | None = None,
    ) -> Ownership:
        """Join `group` and hold a fair share of the topic's shards until closed.

        Nobody is asked for `progress`: no tool looks at groups of this log.
        """
        self._resolve(topic)
        with self._mutex:
            self._refuse_when_closed()
            if self._owners is None:
                self._owners = ShardOwners(self.folder)
            return self._owners.join(topic.name, group, changed, is_busy)

    # --- an operator's look --------------------------------------------------------------------

    def diagnose(self) -> Iterator[Finding]:
        """Yield what is well and what is not; see `Log.diagnose`."""
        return diagnose(self.folder, self._file.path, self._config)

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Flush, then let go of everything. Calling it again does nothing."""
        with self._mutex:
            if self._closed or self._abandoned:
                return
            self._closed = True
        if self._owners is not None:
            self._owners.close()
        self._queue.close()
        self._waiting.close()
        self._news.close()
        self._writer.close()
        self._stamp.close()
        while self._readers:
            self._readers.pop().close()

    def abandon(self) -> None:
        """Refuse everything in a forked child, and never touch the parent's connections.

        SQLite says not to carry a connection over a fork, and closing one is using it: so they
        are leaked here on purpose, by a reference that nobody gives back.
        """
        self._abandoned = True
        self._queue.abandon()
        for connection in [*self._readers, self._writer.connection]:
            if connection is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))

    def _refuse_when_closed(self) -> None:
        if self._abandoned:
            self._queue.drive(0)  # raises, with the advice
        if self._closed:
            raise Closed(f"the log {self.url} is closed")


#: Makes a Record of a row without a call of Python code: a third of the time.
_record_of = tuple.__new__


def _of_any_types(row: tuple[Any, ...]) -> tuple[int, int, bytes | None, bytes | None]:
    """Return a row that another program inserted, as the record that it comes nearest to.

    A column of SQLite takes values of every type. Such a row is foreign, and stops nobody.
    """
    offset, time_ms, key, value = row
    return (
        offset,
        time_ms if type(time_ms) is int else 0,
        key if type(key) is bytes else None,
        value if type(value) is bytes else None,
    )
