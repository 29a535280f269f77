"""A counter of commits that the processes of one machine share: eight bytes in a mapped file.

A reader that wants all that was acknowledged compares one number instead of asking the database.
The writer raises it after its commit and before it acknowledges, while it has the turn to write.
Nothing depends on the file: without it, or when it is deleted under our feet, readers ask.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final

from eventstore.lifetime import abandon_in_child

__all__ = ["Stamp"]

_COUNT: Final = struct.Struct("=Q")


class Stamp:
    """The shared counter of one log's folder. Reading is for any thread, raising for the writer."""

    def __init__(self, path: Path) -> None:
        """Use `path`, which the first writer creates; its folder exists by then."""
        self._path = path
        self._map: mmap.mmap | None = None
        self._is_abandoned = False
        abandon_in_child(self)

    def read(self) -> int | None:
        """Return the counter, None where there is none."""
        mapped = self._map or self._opened(create=False)
        return None if mapped is None else int(_COUNT.unpack_from(mapped)[0])

    def raise_(self) -> None:
        """Count one more commit."""
        mapped = self._map or self._opened(create=True)
        if mapped is not None:
            count = _COUNT.unpack_from(mapped)[0]
            _COUNT.pack_into(mapped, 0, (count + 1) % 2**64)

    def close(self) -> None:
        """Let go of the file."""
        mapped, self._map = self._map, None
        if mapped is not None:
            mapped.close()

    def abandon(self) -> None:
        """Read and raise nothing in a forked child."""
        self._is_abandoned = True
        self._map = None

    def _opened(self, *, create: bool) -> mmap.mmap | None:
        if self._is_abandoned:
            return None
        try:
            flags = os.O_RDWR | (os.O_CREAT if create else 0)
            descriptor = os.open(self._path, flags, 0o666)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size < _COUNT.size:
                if not create:
                    return None  # its creator is about to give it its size
                os.ftruncate(descriptor, _COUNT.size)
            self._map = mmap.mmap(descriptor, _COUNT.size)
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)
        return self._map
