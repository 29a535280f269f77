"""What can be wrong with a folder that a log or its views live in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from eventstore.log.base import Finding

__all__ = ["folder_findings", "nearest"]

#: Below the first, writing is about to fail; below the second, it is time to look.
_FREE_BYTES_MIN: Final = 100_000_000
_FREE_BYTES_WARN: Final = 1_000_000_000


def nearest(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    for path in (folder, *folder.parents):
        if path.exists():
            return path
    return Path("/")


def folder_findings(what: str, folder: Path) -> Iterator[Finding]:
    """Yield whether a folder can be written to, and how much room it has."""
    place = nearest(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            "fail",
            f"{what} {folder}: {place} cannot be written to",
            f"give this user the right to write to {place}, or use another folder",
        )
    elif not folder.exists():
        yield Finding("ok", f"{what} {folder} is not there yet; {place} can be written to")
    else:
        yield Finding("ok", f"{what} {folder} can be written to")
    free = shutil.disk_usage(place).free
    room = f"{free / 1e9:,.1f} GB are free for {what} {folder}"
    if free < _FREE_BYTES_MIN:
        yield Finding("fail", room, "make room: writes fail when the disk is full")
    elif free < _FREE_BYTES_WARN:
        yield Finding("warn", room, "make room before the disk is full")
    else:
        yield Finding("ok", room)
