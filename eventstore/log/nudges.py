"""News between processes of one machine, without a server: a byte in each listener's FIFO.

A nudge says "look again", never what happened, and may be lost: who listens also looks by itself
from time to time. On Windows, and where FIFOs cannot be made, there is only the looking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import threading
import time
import uuid
from pathlib import Path

from eventstore.lifetime import abandon_in_child

__all__ = ["Nudges"]

#: A folder's modification time moves in steps of the kernel's tick (1 to 10 ms): a listing made
#: so soon after a change may miss another change of the same tick, and is made again next time.
_LISTING_SETTLES_NS = 50_000_000


class Nudges:
    """One folder of FIFOs: each listening process has one, and `ring` writes a byte to each.

    A process that only rings pays one stat() per ring and one write() per listener.
    """

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is created by the first listener."""
        self._folder = folder
        self._mutex = threading.Lock()
        self._listener: _Listener | None = None
        self._bells: dict[str, int] = {}
        self._listed_mtime_ns = -1
        self._listing_settled = False
        self._closed = False
        abandon_in_child(self)

    def ring(self, *, here: bool = True) -> None:
        """Nudge every other process that listens now, and this one too unless `here` is False."""
        with self._mutex:
            if self._closed:
                return
            if here and self._listener is not None:
                self._listener.nudge()
            try:
                mtime_ns = os.stat(self._folder).st_mtime_ns
            except OSError:
                return  # nobody has listened yet
            if mtime_ns != self._listed_mtime_ns or not self._listing_settled:
                self._list(mtime_ns)
            for name, bell in list(self._bells.items()):
                self._ring_one(name, bell)

    def ring_here(self) -> None:
        """Nudge `listen` of this process only."""
        with self._mutex:
            if self._listener is not None:
                self._listener.nudge()

    def open(self) -> None:
        """Make nudges from now on visible to `listen`. Call it before looking, then listen."""
        with self._mutex:
            if self._listener is None and not self._closed:
                self._listener = _Listener(self._folder)
                self._list(-1)  # also clears away what killed listeners left

    def listen(self, timeout_s: float) -> bool:
        """Wait for a nudge since the last call; False on timeout. One thread at a time."""
        listener = self._listener
        return listener is not None and listener.wait(timeout_s)

    def close(self) -> None:
        """Stop listening and ringing. No thread may be in `listen`."""
        with self._mutex:
            self._closed = True
            for bell in self._bells.values():
                os.close(bell)
            self._bells.clear()
            if self._listener is not None:
                self._listener.close(unlink=True)
                self._listener = None

    def abandon(self) -> None:
        """Close the descriptors in a forked child; the parent's FIFO stays."""
        self._closed = True
        for bell in self._bells.values():
            os.close(bell)
        self._bells.clear()
        if self._listener is not None:
            self._listener.close(unlink=False)
            self._listener = None

    def _list(self, mtime_ns: int) -> None:
        """Open the FIFOs of the listeners that came, forget those that went."""
        if sys.platform == "win32":
            return
        own = self._listener.name if self._listener else None
        # Before the listing: this thread may stand still after it, and what changes meanwhile, in
        # the same tick still, is not in it.
        settled = time.time_ns() - mtime_ns > _LISTING_SETTLES_NS
        try:
            names = {name for name in os.listdir(self._folder) if name.endswith(".fifo")} - {own}
        except OSError:
            return
        for name in names - self._bells.keys():
            try:
                self._bells[name] = os.open(self._folder / name, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a FIFO that nobody reads: its process died
                    with contextlib.suppress(OSError):
                        os.unlink(self._folder / name)
        for name in self._bells.keys() - names:
            os.close(self._bells.pop(name))
        self._listed_mtime_ns = mtime_ns
        self._listing_settled = settled

    def _ring_one(self, name: str, bell: int) -> None:
        try:
            os.write(bell, b"!")
        except BlockingIOError:
            pass  # full of nudges that its reader has not taken yet: one more says nothing new
        except OSError:
            os.close(self._bells.pop(name))
            with contextlib.suppress(OSError):
                os.unlink(self._folder / name)


class _Listener:
    """The reading end of one process: a FIFO, or a pipe within the process where that fails."""

    def __init__(self, folder: Path) -> None:
        self.name: str | None = None
        self._path: Path | None = None
        self._event = threading.Event()
        self._reader = self._writer = -1
        if sys.platform == "win32":
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            path = folder / f"{name}.new"
            os.mkfifo(path)
            # Open before the name is known: a ringer that finds no reader deletes the FIFO. Open
            # for writing too: there is always a writer then, and so never an end of file.
            self._reader = self._writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
            self._path = folder / f"{name}.fifo"
            self.name = self._path.name
            path.rename(self._path)
        except OSError:
            if self._reader < 0:
                self._reader, self._writer = os.pipe()
                os.set_blocking(self._reader, False)
                os.set_blocking(self._writer, False)

    def nudge(self) -> None:
        if self._writer < 0:
            self._event.set()
            return
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def wait(self, timeout_s: float) -> bool:
        if self._reader < 0:
            nudged = self._event.wait(timeout_s)
            self._event.clear()
            return nudged
        # Not select(): it cannot take descriptors above 1023.
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 65_536)
        return True

    def close(self, *, unlink: bool) -> None:
        if unlink and self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        for descriptor in {self._reader, self._writer} - {-1}:
            os.close(descriptor)
        self._reader = self._writer = -1
