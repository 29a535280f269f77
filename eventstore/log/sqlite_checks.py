"""The embedded log as an operator looks at it: versions, folder, file system, sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from eventstore.config import Config
from eventstore.log.base import Finding
from eventstore.log.folders import folder_findings, nearest
from eventstore.log.sqlite_file import filesystem_of, is_network_filesystem

__all__ = ["diagnose"]

#: A WAL that a checkpoint could not start anew for long: some reader stays in a transaction.
_WAL_BYTES_WARN: Final = 256 * 1024 * 1024
_MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs"})


def diagnose(folder: Path, file: Path, config: Config) -> Iterator[Finding]:
    """Yield what is well and what is not with the log in a folder. Changes nothing."""
    yield Finding("ok", f"SQLite {apsw.sqlite_lib_version()}")
    yield from folder_findings("the log", folder)
    yield _filesystem(folder)
    if config.durability != "full":
        yield Finding(
            "warn",
            f"durability is {config.durability!r}: a power cut can lose acknowledged events",
            'set durability = "full" unless that is what you want',
        )
    if file.exists():
        yield from _file(file)


def _filesystem(folder: Path) -> Finding:
    kind = filesystem_of(folder)
    if is_network_filesystem(kind):
        return Finding(
            "warn",
            f"the log is on a network or FUSE file system ({kind}), where locks may not hold",
            "use a local disk, or Kafka for several machines",
        )
    if kind in _MEMORY_FILESYSTEMS:
        return Finding(
            "warn",
            f"the log is on {kind}, which is memory: a restart of the machine loses it",
            "use a folder on a disk",
        )
    return Finding("ok", f"the file system is {kind or 'unknown'}, under {nearest(folder)}")


def _file(file: Path) -> Iterator[Finding]:
    if not os.access(file, os.R_OK | os.W_OK):
        yield Finding(
            "fail",
            f"{file} cannot be read and written by this user",
            f"change its owner or its rights; it belongs to user {file.stat().st_uid}",
        )
    wal = file.with_name(f"{file.name}-wal")
    wal_bytes = wal.stat().st_size if wal.exists() else 0
    sizes = f"{file} has {file.stat().st_size / 1e6:,.1f} MB, its WAL {wal_bytes / 1e6:,.1f} MB"
    if wal_bytes > _WAL_BYTES_WARN:
        yield Finding(
            "warn", sizes, "some process reads without end: look for one that hangs, and end it"
        )
    else:
        yield Finding("ok", sizes)
