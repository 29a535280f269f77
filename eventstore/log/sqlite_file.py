"""The embedded log's database file: its tables, and how to open it without harming anybody's.

A file that is not ours, or is damaged, is named and left as it is. What the records are for, who
commits and who waits is in sqlite.py.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from eventstore.errors import ConfigError, LogUnavailable
from eventstore.testing import fault_point

__all__ = [
    "SqliteFile",
    "filesystem_of",
    "is_network_filesystem",
    "refuse_network_filesystem",
]

# Tables of `log.sqlite`; INTEGER PRIMARY KEY is SQLite's row number, so that an offset costs no
# index of its own, and appending always goes to the last page.
#
#   file           identity TEXT (16 hex digits, random)
#   topics         id INTEGER PRIMARY KEY, name TEXT UNIQUE, identity TEXT (8 hex, random),
#                  metadata TEXT (a JSON object)
#   records_<id>   offset INTEGER PRIMARY KEY (0, 1, 2, ... without gaps), time_ms INTEGER (never
#                  falls), key BLOB, value BLOB
#
# PRAGMA application_id says that the file is ours, PRAGMA user_version which layout this is.

#: "fold" in ASCII.
APPLICATION_ID = 0x666F6C64
LAYOUT = 1

#: Older releases can corrupt a database in WAL mode when a commit and a checkpoint race.
#: Source: SQLite 3.51.3 release notes, the WAL-reset bug.
SQLITE_VERSION_MIN = (3, 51, 3)

#: The WAL starts again from its beginning after a checkpoint; what it grew beyond this is cut.
WAL_BYTES_KEPT = 16 * 1024 * 1024

#: File systems whose locks, or whose shared memory, do not hold between processes or machines.
_NETWORK_FILESYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ocfs2",
        "gfs2",
        "davfs",
        "virtiofs",
        "vboxsf",
        "prl_fs",
        "sshfs",
        "ncpfs",
        "coda",
    ]
)


class SqliteFile:
    """Opens connections to one `log.sqlite`, each of them checked first.

    The file is never opened other than by SQLite: closing a descriptor of ours would drop the
    locks that SQLite holds in this process, and another process could then delete a WAL that is
    in use. So what the file is, is asked through SQLite too.
    """

    def __init__(self, path: Path, *, durability: str, busy_timeout_s: float) -> None:
        if _version(apsw.sqlite_lib_version()) < SQLITE_VERSION_MIN:
            raise ConfigError(
                f"SQLite {apsw.sqlite_lib_version()} can corrupt a write-ahead log: install an apsw"
                f" with SQLite {'.'.join(map(str, SQLITE_VERSION_MIN))} or newer"
            )
        self.path = path
        self._synchronous = {"full": "FULL", "process": "NORMAL"}[durability]
        self._busy_timeout_ms = max(1, int(busy_timeout_s * 1000))

    def exists(self) -> bool:
        """Whether there is a file with something in it; `connect_if_made` tells if it is a log."""
        try:
            return os.stat(self.path).st_size > 0
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be reached: {error}") from error

    def inode(self) -> tuple[int, int]:
        """Return what tells this file from another that takes its place; (0, 0) when missing."""
        try:
            status = os.stat(self.path)
        except OSError:
            return 0, 0
        return status.st_dev, status.st_ino

    def wal_bytes(self) -> int:
        """Return how large the write-ahead log is."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    def replaced(self) -> LogUnavailable:
        """Return the error for a file that is no longer the one that was opened."""
        return LogUnavailable(
            f"{self.path} was moved, deleted or replaced while this process had it open; nothing"
            " was written: open the log again"
        )

    def connect(self) -> apsw.Connection:
        """Open the log that is there.

        Raises:
            ConfigError: the file is not ours, or of a newer layout; it was not changed.
            LogUnavailable: it is damaged, or cannot be opened; it was not changed.
        """
        connection = self.connect_if_made()
        if connection is None:
            raise LogUnavailable(f"{self.path} has no log in it (any more)")
        return connection

    def connect_if_made(self) -> apsw.Connection | None:
        """Open the log; None when there is no file, or one in which no log was made yet.

        Another process may be making the log this moment: the file is there before its tables.

        Raises:
            ConfigError, LogUnavailable: as `connect`.
        """
        if not self.exists():
            return None
        connection, is_made = self._open()
        if not is_made:
            connection.close()
            return None
        return connection

    def create(self) -> None:
        """Make the log unless it is there. Call it with the writer's lock held.

        Raises:
            ConfigError, LogUnavailable: as `connect`.
        """
        if not self.exists():
            self._create_file()
            return
        connection, is_made = self._open()
        try:
            if not is_made:
                with self.translated("created"):
                    self._create_tables(connection)
        finally:
            connection.close()

    def _create_file(self) -> None:
        """Make the file under another name first.

        So nobody sees half of it: not a process that looks at the wrong moment, and not those who
        come after one that was killed here (tests/fault/test_store_kill.py).
        """
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            for suffix in ("", "-journal", "-wal", "-shm"):
                new.with_name(new.name + suffix).unlink(missing_ok=True)
            with self.translated("created"):
                connection = apsw.Connection(str(new))
                try:
                    self._set_durability(connection)
                    self._create_tables(connection)
                finally:
                    connection.close()
            fault_point("log.create.inside")
            os.replace(new, self.path)
        except OSError as error:
            raise LogUnavailable(f"{self.path} could not be created: {error}") from error
        _sync_folder(self.path.parent)
        _sync_folder(self.path.parent.parent)

    @contextmanager
    def translated(self, done: str) -> Iterator[None]:
        """Turn SQLite's errors into ours, for work that leaves nothing behind when it fails."""
        try:
            yield
        except apsw.Error as error:
            raise self.error(error, done) from error

    def error(self, error: apsw.Error, done: str) -> ConfigError | LogUnavailable:
        """Return our error for SQLite's; `done` is the participle of what was tried."""
        what = f"{self.path} could not be {done}"
        if isinstance(error, apsw.NotADBError):
            return ConfigError(f"{self.path} is not an SQLite database; it was left as it is")
        if isinstance(error, apsw.CorruptError):
            return LogUnavailable(
                f"{what}: the file is damaged ({error}). It was left as it is: restore it from a"
                " backup, or move it away to start an empty log"
            )
        if isinstance(error, apsw.FullError):
            return LogUnavailable(f"{what}: the disk is full. Nothing was written")
        if isinstance(error, apsw.BusyError):
            return LogUnavailable(
                f"{what}: another program has kept it locked for"
                f" {self._busy_timeout_ms / 1000:g} s. Nothing was written"
            )
        return LogUnavailable(f"{what}: {type(error).__name__}: {error}")

    def _open(self) -> tuple[apsw.Connection, bool]:
        """Open the file that is there; say whether a log was made in it yet."""
        with self.translated("opened"):
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            with self.translated("opened"):
                connection.set_busy_timeout(self._busy_timeout_ms)
                is_made = self._is_made(connection)
                self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection, is_made

    def _is_made(self, connection: apsw.Connection) -> bool:
        """Say whether the file is a log of ours, or still empty; ConfigError when it is neither."""
        application_id = connection.pragma("application_id")
        layout = connection.pragma("user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if application_id == 0 and layout == 0 and tables == 0:
            return False
        if application_id != APPLICATION_ID:
            raise ConfigError(
                f"{self.path} is a database of another application (application_id"
                f" {application_id:#x}); it was left as it is"
            )
        if layout != LAYOUT:
            raise ConfigError(
                f"{self.path} has layout {layout}, this release knows layout {LAYOUT}: upgrade"
                " this program; the file was left as it is"
            )
        return True

    def _set_up(self, connection: apsw.Connection) -> None:
        self._set_durability(connection)
        connection.execute("PRAGMA mmap_size=0")
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES_KEPT}")
        # Checkpoints are made by the writer, under its lock, at moments of its choice (sqlite.py).
        connection.wal_autocheckpoint(0)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    def _set_durability(self, connection: apsw.Connection) -> None:
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        if sys.platform == "darwin":  # a plain fsync() there stops at the drive's own cache
            connection.execute("PRAGMA fullfsync=1")
            connection.execute("PRAGMA checkpoint_fullfsync=1")

    def _create_tables(self, connection: apsw.Connection) -> None:
        with connection:
            connection.execute("CREATE TABLE file (identity TEXT NOT NULL)")
            connection.execute(
                "CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
                " identity TEXT NOT NULL, metadata TEXT NOT NULL)"
            )
            connection.execute("INSERT INTO file VALUES (?)", (uuid.uuid4().hex[:16],))
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={LAYOUT}")
        connection.execute("PRAGMA journal_mode=WAL")


def refuse_network_filesystem(folder: Path) -> None:
    """Raise ConfigError when `folder` lies on a network or FUSE file system (Linux only)."""
    kind = filesystem_of(folder)
    if is_network_filesystem(kind):
        raise ConfigError(
            f"{folder} is on a network or FUSE file system ({kind}), where file locks do not hold"
            " and a log can be corrupted: use a local disk, or Kafka for several machines"
            " (allow_network_filesystem=True takes the risk)"
        )


def is_network_filesystem(kind: str) -> bool:
    """Whether file locks may not hold on a file system of this type."""
    return kind in _NETWORK_FILESYSTEMS or kind.startswith("fuse")


def filesystem_of(folder: Path) -> str:
    """Return the type of the file system that the nearest existing parent lies on, or ""."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    path = folder.resolve()
    best, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        # Blanks in a mount point are written as octal escapes.
        point = left.split(" ")[4].encode().decode("unicode_escape")
        # The last of equal mount points is the one on top.
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system lets one open a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
