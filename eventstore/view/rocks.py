"""A Table in RocksDB. The only room that knows rocksdict; what rows mean is not known here.

The database is disposable, so it has no write-ahead log: a crash leaves the rows of an older
flush, which is a prefix of the batches, and the log has the rest (tests/fault/test_table_kill.py).

Traps of rocksdict 0.3.29 that this file exists for, each with a test:

- `items()` ends early and in silence at a damaged block: only the low-level iterator has a
  status to ask, and its `next` on an end that was reached already is a segmentation fault;
- errors are bare `Exception`s with RocksDB's text: `_translate` is the one place that reads it;
- a database is let go of only when its last iterator is gone;
- `WriteOptions.disable_wal` is a property, although its type stub says that it is a method;
- a forked child that ends normally hangs in the destructor, or crashes in an exit handler: both
  wait for threads that the child does not have;
- so does a database that is opened in such a child, when it is closed or its buffer is full.
"""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn, cast

import rocksdict
from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBufferManager,
    WriteOptions,
)

from eventstore.errors import Closed, ConfigError, EventStoreError, ViewDamaged
from eventstore.lifetime import abandon_in_child
from eventstore.view.base import Table, TableLocked, TableUnavailable, WriteBatch

__all__ = ["RocksTable", "WriteBuffers"]

#: Rows not yet on disk, per table. A crash loses at most these, twice or three times over: about a
#: second of rebuilding. Smaller files would cost more merging.
_WRITE_BUFFER_BYTES: Final = 16 * 1024 * 1024
_WRITE_BUFFERS_MAX: Final = 3
#: Unit of reading and compression. 4 KiB saves 10 % of a random read, and costs 15 % more disk.
_BLOCK_BYTES: Final = 16 * 1024
#: Filters and indexes are cut into parts of this size, and share the cache with the rows. Whole
#: filters (600 KB per file) pushed one another out of a 32 MB cache: a get cost 58 us, not 2.
_METADATA_BLOCK_BYTES: Final = 8 * 1024
#: 1 % of the lookups of a missing key read a block in vain.
_BLOOM_BITS_PER_KEY: Final = 10
#: Files are about 64 MB, so this serves 8 GB without re-opening; macOS allows 256 in a process.
_OPEN_FILES_MAX: Final = 128
#: A file is merged early when half of so many rows in a row are deletions: reading the first
#: pending request steps over each answered one until then (60 ns each).
_DELETION_WINDOW_ROWS: Final = 2_000

#: RocksDB's own words for ENOSPC, whatever the locale of the process is.
_NO_SPACE: Final = "No space left on device"
#: Faults of the machine and not of the database: to set it aside and rebuild would not help.
_MACHINE_ERRORS: Final = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
)
#: A database without its file CURRENT is a new one, which RocksDB fills; unless there are files of
#: another kind. (It would fill a folder of photographs, too.)
_NAMES_OF_A_NEW_DATABASE: Final = ("LOCK", "LOG", "IDENTITY", "MANIFEST-", "OPTIONS-", "rocksdict-")


class WriteBuffers:
    """A bound on the memory for rows not yet on disk, over all tables that are given it."""

    def __init__(self, size_bytes: int = 64 * 1024 * 1024) -> None:
        # Not stalling: a table that is above the bound writes its rows out early, and goes on.
        self._manager = WriteBufferManager(size_bytes, False)

    def limit(self, options: Options) -> None:
        """Make a table with these options count towards the bound."""
        options.set_write_buffer_manager(self._manager)


class _Threads:
    """What is known of the threads that RocksDB starts once in a process, for all databases."""

    def __init__(self) -> None:
        self._are_started = self._are_lost = False

    def refuse_without(self) -> None:
        """Note that they are needed.

        Raises:
            ConfigError: this process was forked after they were started, so it has none.
        """
        if self._are_lost:
            raise ConfigError(
                "no view can be opened here: this process was forked after its parent had opened"
                " one, and the threads of RocksDB do not survive that, so it would hang. Start"
                ' processes with multiprocessing.get_context("spawn") or "forkserver", or fork'
                " before anything is read. A process that only appends needs no view"
            )
        self._are_started = True

    def after_fork_in_child(self) -> None:
        self._are_lost = self._are_lost or self._are_started


_threads: Final = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.after_fork_in_child)


class RocksTable(Table):
    """A Table in a RocksDB database of its own. One object and one process have it open.

    Reads and writes hold the GIL; `flush`, `checkpoint` and `close` let other threads run. A read
    costs 1 to 3 us when its block is in memory, `first` and `last` 3 to 9.
    """

    def __init__(
        self,
        path: Path,
        *,
        cache_bytes: int = 32 * 1024 * 1024,
        write_buffers: WriteBuffers | None = None,
    ) -> None:
        """Open the database at `path`, or make it.

        `cache_bytes` bounds the blocks, filters and indexes that stay in memory; rows that are
        not on disk yet take up to 48 MB more, or what `write_buffers` allows.

        Raises:
            ConfigError: this is a forked child of a process that had one open.
            TableLocked: it is open elsewhere.
            TableUnavailable: the machine does not let us; the rows are as they were.
            ViewDamaged: there is something else at `path`, or a database that cannot be read.
                Nothing was changed.
        """
        self.path = path
        _threads.refuse_without()
        self._write_options = WriteOptions()
        # The stub declares a method; calling it raises TypeError.
        self._write_options.disable_wal = True  # type: ignore[method-assign,assignment]
        #: Iterators of scans that somebody may still use.
        self._cursors: weakref.WeakSet[_Cursor] = weakref.WeakSet()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_foreign_folder(path)
            self._database = Rdict(str(path), _options(cache_bytes, write_buffers))
        except Exception as error:
            self._fail(error)
        abandon_in_child(self)

    def get(self, key: bytes) -> bytes | None:
        try:
            return cast("bytes | None", self._database.get(key))
        except Exception as error:
            self._fail(error)

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # The iterator sees the table of its creation: it is made here, not at the first row.
        try:
            cursor = _Cursor(*self._iterator_before(end))
            if reverse:
                cursor.iterator.seek_to_last()
            else:
                cursor.iterator.seek(start)
        except Exception as error:
            self._fail(error)
        self._cursors.add(cursor)
        return self._backwards(cursor, start) if reverse else self._forwards(cursor)

    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        # A new iterator for each call: keeping one saves 0.7 us, but it would not see what was
        # written since, and would keep deleted files.
        try:
            iterator, _options = self._iterator_before(end)
            iterator.seek(start)
            if iterator.valid():
                return iterator.key(), iterator.value()
            iterator.status()
            return None
        except Exception as error:
            self._fail(error)

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        try:
            iterator, _options = self._iterator_before(end)
            iterator.seek_to_last()
            if iterator.valid():
                key = iterator.key()
                return (key, iterator.value()) if key >= start else None
            iterator.status()
            return None
        except Exception as error:
            self._fail(error)

    def batch(self) -> WriteBatch:
        return rocksdict.WriteBatch(raw_mode=True)

    def write(self, batch: WriteBatch) -> None:
        assert isinstance(batch, rocksdict.WriteBatch), "the batch is of another kind of table"
        try:
            self._database.write(batch, self._write_options)
        except Exception as error:
            self._fail(error)

    def flush(self) -> None:
        try:
            self._database.flush()
        except Exception as error:
            self._fail(error)

    def checkpoint(self, path: Path) -> None:
        """Write a copy made of hard links, so on the same file system a matter of milliseconds."""
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database.flush()  # without a write-ahead log the copy has only what is in files
            Checkpoint(self._database).create_checkpoint(str(path))
        except Exception as error:
            self._fail(error)

    def size_bytes(self) -> int:
        try:
            return sum(
                self._database.property_int_value(name) or 0
                for name in ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables")
            )
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        # The database is let go of with the last thing that refers to it: the iterators first.
        for cursor in list(self._cursors):
            cursor.drop()
        database, self._database = self._database, cast(Rdict, _Gone())
        try:
            database.close()  # flushes; when that fails, dropping the object closes it all the same
        except DbClosedError:
            return
        except Exception as error:
            # What cannot be flushed now is folded from the log again by the next to open it.
            if not isinstance(_translate(error, self.path), ViewDamaged):
                raise

    def abandon(self) -> None:
        """Never touch the database in a forked child: not even when the child ends."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
        self._database = cast(Rdict, _Gone())
        for cursor in list(self._cursors):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(cursor.iterator))
            cursor.drop()
        _end_without_exit_handlers()

    def _iterator_before(self, end: bytes) -> tuple[RdictIter, ReadOptions]:
        """Return an iterator and its options, which must live as long as it does.

        The iterator points at the bound inside them: without them it ends wherever the next user
        of that memory lets it (tests/contract/test_table.py shows it).
        """
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        return self._database.iter(options), options

    def _forwards(self, cursor: _Cursor) -> Iterator[tuple[bytes, bytes]]:
        # No local variable holds the iterator while this waits for its reader: close() could not
        # take it away.
        try:
            while cursor.iterator.valid():
                yield cursor.iterator.key(), cursor.iterator.value()
                cursor.iterator.next()
            cursor.iterator.status()
        except Exception as error:
            self._fail(error)

    def _backwards(self, cursor: _Cursor, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        # rocksdict's lower bound does not work, so the keys are compared.
        try:
            while cursor.iterator.valid():
                key = cursor.iterator.key()
                if key < start:
                    return
                yield key, cursor.iterator.value()
                cursor.iterator.prev()
            cursor.iterator.status()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        translated = _translate(error, self.path)
        if translated is error:
            raise error
        raise translated from error


def _end_without_exit_handlers() -> None:
    """Let this forked child end, with its own exit code, before RocksDB's exit handler runs.

    That handler joins RocksDB's threads, which the child does not have, and crashes. What Python
    has registered and buffered is done by then. Where there is no on_exit (not Linux with glibc)
    such a child must end by os._exit, as those of multiprocessing do.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)
        libc.__cxa_atexit(libc.fflush, None, None)  # the last one registered runs first


class _Cursor:
    """The iterator of one scan, which close() can take away from it."""

    __slots__ = ("__weakref__", "_options", "iterator")

    def __init__(self, iterator: RdictIter, options: ReadOptions) -> None:
        self.iterator = iterator
        self._options = options

    def drop(self) -> None:
        self.iterator = cast(RdictIter, _Gone())


class _Gone:
    """Stands where a database or iterator was."""

    def __getattr__(self, name: str) -> NoReturn:
        raise DbClosedError(name)


def _options(cache_bytes: int, write_buffers: WriteBuffers | None) -> Options:
    blocks = BlockBasedOptions()
    # The default cache is cut into 64 shards, and one large value or filter can empty a shard.
    blocks.set_block_cache(Cache.new_hyper_clock_cache(cache_bytes, 0))
    blocks.set_block_size(_BLOCK_BYTES)
    blocks.set_format_version(5)
    blocks.set_bloom_filter(_BLOOM_BITS_PER_KEY, False)
    blocks.set_index_type(BlockBasedIndexType.two_level_index_search())
    blocks.set_partition_filters(True)
    blocks.set_metadata_block_size(_METADATA_BLOCK_BYTES)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_top_level_index_and_filter(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_bottommost_compression_type(DBCompressionType.zstd())
    options.set_atomic_flush(True)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(_WRITE_BUFFERS_MAX)
    if write_buffers is not None:
        write_buffers.limit(options)
    options.set_max_background_jobs(2)
    options.set_max_open_files(_OPEN_FILES_MAX)
    options.add_compact_on_deletion_collector_factory(
        _DELETION_WINDOW_ROWS, _DELETION_WINDOW_ROWS // 2, 0.5
    )
    # RocksDB's own diary: useful after an accident, and not without bound.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1024 * 1024)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _refuse_foreign_folder(path: Path) -> None:
    """Raise ViewDamaged when RocksDB would build a new database among other people's files."""
    if not path.is_dir() or (path / "CURRENT").exists():
        return
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith(_NAMES_OF_A_NEW_DATABASE):
            raise ViewDamaged(
                f"view database {path}: its file CURRENT is missing, but {entry.name} is there"
            )


def _translate(error: Exception, path: Path) -> Exception:
    """Return the error that the contract has for what rocksdict raised; mistakes of ours as is."""
    text = str(error)
    if isinstance(error, DbClosedError):
        return Closed(f"view database {path} is closed, or this is a child of os.fork()")
    if isinstance(error, EventStoreError) or (
        type(error) is not Exception and not isinstance(error, OSError)
    ):
        return error
    if "lock hold by current process" in text or "While lock file" in text:
        return TableLocked(f"view database {path} is open elsewhere: {text}")
    machine_errors = [_NO_SPACE, *map(os.strerror, _MACHINE_ERRORS)]
    if any(words in text for words in machine_errors):
        return TableUnavailable(f"view database {path}: {text}")
    return ViewDamaged(f"view database {path}: {text}")
