"""Locks between processes of one machine: one file each, freed by the OS when the holder dies.

Who may hold what, and what a lock protects, is decided elsewhere (sqlite.py, ownership.py, the
view's slots).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from eventstore.lifetime import abandon_in_child

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLock"]

#: Waiting is polling, because a blocking flock() cannot be given a deadline. Short first: the
#: usual holder is in one fsync, 0.1 to 5 ms.
_POLL_FIRST_S = 0.000_05
_POLL_LAST_S = 0.001


class FileLock:
    """An exclusive lock on a path, between processes and also between objects of one process.

    The file is created when missing, and stays unless `release(unlink=True)`. The lock is
    advisory: it binds those who use this class. Not to be shared by threads without a lock.

    The lock belongs to the open descriptor, and a forked child has that too: a killed owner
    would hold its lock until its children end. So the descriptor is closed in children.
    """

    def __init__(self, path: Path, *, keep_open: bool = False) -> None:
        """Prepare a lock; `keep_open` keeps the descriptor over a release, for a busy lock."""
        self.path = path
        self.held = False
        self._keep_open = keep_open
        self._descriptor: int | None = None
        #: What file the descriptor is of. It stays that file whatever happens to its path.
        self._opened: os.stat_result | None = None
        abandon_in_child(self)

    def try_acquire(self) -> bool:
        """Take the lock if it is free now; its folder must exist.

        Raises:
            OSError: the file can be neither opened nor created.
        """
        assert not self.held, f"{self.path} is held by this object already"
        while True:
            try:
                if self._descriptor is None:
                    self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
                    self._opened = os.fstat(self._descriptor)
                if not _lock(self._descriptor):
                    if not self._keep_open:
                        self._close_descriptor()
                    return False
                # Somebody may have unlinked the file between our open and our lock, and a third
                # may hold the lock of a new file by now: only the file that the path names counts.
                if self._is_at_path():
                    self.held = True
                    return True
            except BaseException:
                # Ctrl-C just after the lock was taken: nobody would know that it is ours.
                self._close_descriptor()
                raise
            self._close_descriptor()

    def acquire(self, timeout_s: float) -> bool:
        """Take the lock, waiting for at most `timeout_s`; False when it was not to be had."""
        deadline_s = time.monotonic() + timeout_s
        pause_s = _POLL_FIRST_S
        while not self.try_acquire():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, _POLL_LAST_S)
        return True

    def release(self, *, unlink: bool = False) -> None:
        """Let others have the lock; `unlink` removes the file first. Harmless when not held."""
        if not self.held:
            return
        if unlink:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        if self._keep_open and not unlink:
            assert self._descriptor is not None
            _unlock(self._descriptor)
        else:
            self._close_descriptor()
        self.held = False  # last: a release that Ctrl-C has stopped can be made again

    def close(self) -> None:
        """Release the lock and the descriptor."""
        self.release()
        self._close_descriptor()

    def beat(self) -> None:
        """Show that the holder runs: its `heartbeat` changes, which others can see."""
        assert self.held
        assert self._descriptor is not None
        os.utime(self._descriptor if os.utime in os.supports_fd else self.path)

    def write_note(self, note: str) -> None:
        """Leave a short line in the file, for those who find it locked."""
        assert self.held
        assert self._descriptor is not None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, note.encode())

    @staticmethod
    def read_note(path: Path) -> str:
        """Return the line that the holder left; empty when there is none."""
        try:
            return path.read_text(encoding="utf-8")
        except OSError:
            return ""

    @staticmethod
    def heartbeat(path: Path) -> int | None:
        """Return a number that `beat` changes; None when there is no such file."""
        try:
            return os.stat(path).st_mtime_ns
        except OSError:
            return None

    def abandon(self) -> None:
        """Close the descriptor in a forked child; the parent keeps the lock."""
        self.held = False
        # Closing, never unlocking: an unlock would reach the parent's lock, which is the same.
        self._close_descriptor()

    def _is_at_path(self) -> bool:
        """Whether the path still names the file that the descriptor is of."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return self._opened is not None and os.path.samestat(self._opened, there)

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self._close_descriptor()


if sys.platform == "win32":
    #: Windows refuses to read a locked byte, so the lock is on one far behind the note.
    _LOCKED_BYTE = 1 << 30

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
