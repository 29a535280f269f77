"""The serve cache: results of serve, kept for a while and shared by the processes of a machine.

One SQLite file beside the views. It holds nothing that serve could not compute again, so losing it
costs time only: writes are not synced, a damaged file is replaced, and a file that cannot be used
at all means that nothing is cached. What counts as the same call is decided by the caller
(flow.py), who makes the key; here are keys, times and bytes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from eventstore import EventStore
from eventstore.lifetime import ProcessLock, abandon_in_child

__all__ = ["Cached", "ServeCache"]

logger = logging.getLogger("processors.serve_cache")

_T = TypeVar("_T")

#: Of the file; a file of another layout is replaced.
_LAYOUT: Final = 1
#: A process that waits longer for another one's write goes on without the cache.
_BUSY_MS: Final = 50
#: Results between two looks for what has expired.
_PUTS_PER_TRIM: Final = 256
#: A result above this is computed again rather than kept.
_RESULT_BYTES_MAX: Final = 16_000_000

_CREATE: Final = """
create table if not exists results (
    key blob primary key not null,
    expires real not null,  -- epoch seconds
    marks blob not null,
    body blob not null,
    digest blob not null
);
create index if not exists results_by_expiry on results (expires);
"""


class Cached(NamedTuple):
    """A result as it was put: its bytes, and what must be as it was for it to count."""

    body: bytes
    marks: bytes


class ServeCache:
    """Results by key. Safe between threads; after os.fork() the child opens its own."""

    def __init__(self, path: Path | None, bytes_max: int = 256_000_000) -> None:
        """Use the file at `path`, made when the first result comes; None is memory.

        Args:
            path: the file; its folder is made too.
            bytes_max: when the file is larger, the results that expire next are let go.
        """
        self._path = path
        self._bytes_max = bytes_max
        self._connection: apsw.Connection | None = None
        self._lock = threading.Lock()
        self._puts = 0
        self._is_useless = False
        abandon_in_child(self)

    @classmethod
    def of(cls, store: EventStore) -> ServeCache:
        """Return the one cache of a store in this process."""
        with _sharing:
            cache = _caches.get(store)
            if cache is None:
                root = store.log.view_root and (store.config.view_path or store.log.view_root)
                cache = _caches[store] = cls(root / "serve_cache" if root else None)
            return cache

    def get(self, key: bytes) -> Cached | None:
        """Return a result that was put and has not expired; None in every other case."""

        def read(connection: apsw.Connection) -> Cached | None:
            row: Any = connection.execute(
                "select marks, body, digest from results where key = ? and expires > ?",
                (key, time.time()),
            ).fetchone()
            # Writes are not synced, so a power cut can leave pages of two times. And anybody can
            # write to the file, values of any type too.
            if row is None or not all(isinstance(value, bytes) for value in row):
                return None
            if row[2] != _digest(key, row[0], row[1]):
                return None
            return Cached(row[1], row[0])

        return self._attempt(read)

    def put(self, key: bytes, cached: Cached, ttl_s: float) -> None:
        """Keep a result for `ttl_s` seconds, or not at all if that cannot be done quickly."""
        body, marks = cached
        if len(body) > _RESULT_BYTES_MAX:
            return

        def write(connection: apsw.Connection) -> None:
            connection.execute(
                "insert or replace into results values (?, ?, ?, ?, ?)",
                (key, time.time() + ttl_s, marks, body, _digest(key, marks, body)),
            )
            self._puts += 1
            if self._puts % _PUTS_PER_TRIM == 0:
                self._trim(connection)

        self._attempt(write)

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def abandon(self) -> None:
        """Leave the parent's connection alone in a forked child."""
        if self._connection is not None:
            _abandoned.append(self._connection)
        self._connection = None
        self._lock = threading.Lock()

    def _attempt(self, act: Callable[[apsw.Connection], _T]) -> _T | None:
        """Do something with the file; None when it cannot be done now or at all."""
        with self._lock:
            if self._is_useless:
                return None
            try:
                try:
                    return act(self._opened())
                except (apsw.CorruptError, apsw.NotADBError) as error:
                    logger.warning("the serve cache %s is replaced: %s", self._path, error)
                    self._replace()
                    return act(self._opened())
            except (apsw.BusyError, apsw.LockedError):
                return None
            except (apsw.Error, OSError) as error:
                self._is_useless = True
                logger.warning("nothing is cached: the serve cache %s: %s", self._path, error)
                return None

    def _opened(self) -> apsw.Connection:
        if self._connection is None:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = apsw.Connection(":memory:" if self._path is None else str(self._path))
            try:
                connection.set_busy_timeout(_BUSY_MS)
                connection.execute("pragma journal_mode = wal")
                connection.execute("pragma synchronous = off")
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: apsw.Connection) -> None:
        layout: Any = connection.pragma("user_version")
        if layout not in (0, _LAYOUT):
            raise apsw.NotADBError(f"layout {layout} instead of {_LAYOUT}")
        if layout == 0:
            with connection:
                connection.execute(_CREATE)
                connection.execute(f"pragma user_version = {_LAYOUT}")

    def _replace(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._path is not None:
            # Who has the old file open goes on with it, and finds the new one when it opens next.
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _trim(self, connection: apsw.Connection) -> None:
        connection.execute("delete from results where expires <= ?", (time.time(),))
        pages: Any = connection.pragma("page_count")
        free: Any = connection.pragma("freelist_count")
        size: Any = connection.pragma("page_size")
        if (pages - free) * size > self._bytes_max:
            connection.execute(
                "delete from results where rowid in (select rowid from results order by expires"
                " limit (select 1 + count(*) / 4 from results))"
            )


def _digest(*parts: bytes) -> bytes:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


_sharing = ProcessLock()
_caches: weakref.WeakKeyDictionary[EventStore, ServeCache] = weakref.WeakKeyDictionary()
#: Connections of the parent, which a forked child must not even close.
_abandoned: list[apsw.Connection] = []
