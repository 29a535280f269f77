"""Where the views of one app live on disk, and which process has which: slots.

A process that reads an app takes a slot: a folder for its database, and a file lock that the OS
frees at once when the process dies, however it dies. It takes the lowest free one that has a
database, so that a restart finds its view warm; otherwise it makes one, from the newest checkpoint
that another slot's owner has published. In the folder of an app there are

    slot-00                the database of slot 0; it appears whole, by a rename
    slot-00.lock           held by the owner; its time says when the slot was last used
    slot-00.seed           a database on its way from a checkpoint
    slot-00.checkpoint     a checkpoint on its way to being published
    slot-00.gone           on its way to being deleted
    slot-00.damaged-3      set aside, with the reason in slot-00.damaged-3.txt
    checkpoint-000012      published; never changed, and the highest number is the newest

Whatever begins with `slot-NN.` is changed only by the holder of that lock (a set-aside database
may also be deleted by others), so the next holder can tidy up after a process that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from pathlib import Path
from typing import Final, NamedTuple

from eventstore.locks import FileLock
from eventstore.testing import fault_point
from eventstore.view.base import Table, TableUnavailable

__all__ = [
    "Slot",
    "SlotState",
    "publish",
    "set_aside",
    "slot_states",
    "take_slot",
    "were_set_aside",
]

#: Processes that can have one app open at the same time. A bound, so that a fault of ours ends in
#: an error and not in a full disk.
_SLOTS_MAX: Final = 1_000
#: Databases that are kept after they were set aside, per app: enough to see a pattern. They are
#: for people to look at; nothing in them is needed.
_DAMAGED_MAX: Final = 3
#: How often seeding starts again because its checkpoint was replaced by a newer one meanwhile.
_SEED_ATTEMPTS_MAX: Final = 10

_SLOT: Final = re.compile(r"slot-(\d+)")
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
_DAMAGED: Final = re.compile(r"slot-\d+\.damaged-(\d+)")


class Slot:
    """The right to use one database folder, until `release` or the end of the process.

    The folder may be missing: it is made by whoever opens the table. In a child of os.fork() the
    slot is not held, and stays the parent's.
    """

    def __init__(self, path: Path, number: int, lock: FileLock) -> None:
        self.path = path
        self.number = number
        self._lock = lock

    @property
    def held(self) -> bool:
        return self._lock.held

    def release(self) -> None:
        """Let another process have the slot; close the table first. Again does nothing."""
        if self._lock.held:
            with contextlib.suppress(OSError):
                self._lock.beat()
        self._lock.close()

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class SlotState(NamedTuple):
    """What `slot_states` finds. `used_s` is the time of the last sign of use, in epoch seconds."""

    number: int
    path: Path
    busy: bool
    used_s: float


def take_slot(root: Path, app: str, *, idle_s: float, seed: bool = True) -> Slot:
    """Take a free slot of the app, a warm one if there is one, and tidy up.

    A slot that has no database yet starts from the newest published checkpoint, unless `seed` is
    false. Free slots and checkpoints that nobody used for `idle_s` seconds are deleted, except
    the one that is taken.

    Raises:
        TableUnavailable: the folder cannot be read or written; no slot is held.
    """
    folder = root / app
    try:
        folder.mkdir(parents=True, exist_ok=True)
        slot = _take_warm(folder) or _take_cold(folder)
        try:
            _delete_leftovers(folder, slot.path.name)
            if seed and not slot.path.exists():
                _seed(folder, slot.path)
            _delete_idle(folder, slot, idle_s)
        except BaseException:
            slot.release()
            raise
    except OSError as error:
        raise TableUnavailable(f"view folder {folder}: {error}") from error
    return slot


def publish(slot: Slot, table: Table) -> Path:
    """Publish a checkpoint of the slot's table for new slots to start from; delete older ones.

    On disk it shares the table's files for as long as the table keeps them.

    Raises:
        TableUnavailable: the folder cannot be written; what was published before stays.
        ViewDamaged: the table cannot be read; what was published before stays.
    """
    assert slot.held, "only the owner of a slot publishes from it"
    folder = slot.path.parent
    made = _beside(slot.path, "checkpoint")
    try:
        _delete_tree(made)
        table.checkpoint(made)
        published = _rename_to_next_checkpoint(folder, made)
        for _, older in _numbered(folder, _CHECKPOINT)[:-1]:
            _discard(older, _beside(slot.path, "gone"))
    except OSError as error:
        raise TableUnavailable(f"view folder {folder}: {error}") from error
    return published


def set_aside(path: Path, reason: str) -> Path:
    """Move the database at a slot's `path` out of the way, and return where it is now.

    Nothing in it is deleted; of the databases of one app that were set aside the newest 3 are
    kept. The app's checkpoints are deleted: what made this database unusable (a fault of the
    disk, another log, an old layout) may be in them too, and they cost only time. The caller
    holds the slot and has closed the table; a new one can be made at `path`.

    Raises:
        TableUnavailable: the folder cannot be written.
    """
    folder = path.parent
    try:
        number = max((number for number, _ in _numbered(folder, _DAMAGED)), default=0) + 1
        aside = _beside(path, f"damaged-{number}")
        # From here on the slot is an empty one, whatever happens to this process.
        path.rename(aside)
        fault_point("slot.aside.inside")
        _beside(aside, "txt").write_text(f"{reason}\n", encoding="utf-8")
        for _, checkpoint in _numbered(folder, _CHECKPOINT):
            _discard(checkpoint, _beside(path, "gone"))
        for _, older in _numbered(folder, _DAMAGED)[:-_DAMAGED_MAX]:
            _discard(older, _beside(path, "gone"))
            _beside(older, "txt").unlink(missing_ok=True)
    except OSError as error:
        raise TableUnavailable(f"view folder {folder}: {error}") from error
    return aside


def slot_states(root: Path, app: str) -> list[SlotState]:
    """Return the slots of the app that have a database, by number; takes none of them."""
    states = []
    for number, path in _numbered(root / app, _SLOT):
        lock = FileLock(_beside(path, "lock"))
        free = lock.try_acquire()
        lock.close()
        states.append(SlotState(number, path, not free, _used_s(path)))
    return states


def were_set_aside(root: Path, app: str) -> list[tuple[Path, str]]:
    """Return the databases of the app that were set aside, oldest first, each with its reason."""
    found = []
    for _, path in _numbered(root / app, _DAMAGED):
        reason = ""
        with contextlib.suppress(OSError):
            reason = _beside(path, "txt").read_text(encoding="utf-8").strip()
        found.append((path, reason))
    return found


def _take_warm(folder: Path) -> Slot | None:
    for number, path in _numbered(folder, _SLOT):
        slot = _try_take(number, path)
        if slot is not None:
            if path.exists():
                return slot
            slot.release()  # deleted as idle, or set aside, between our look and our lock
    return None


def _take_cold(folder: Path) -> Slot:
    for number in range(_SLOTS_MAX):
        slot = _try_take(number, folder / f"slot-{number:02}")
        if slot is not None:
            return slot
    raise TableUnavailable(f"view folder {folder}: all {_SLOTS_MAX} slots are in use")


def _try_take(number: int, path: Path) -> Slot | None:
    lock = FileLock(_beside(path, "lock"))
    if not lock.try_acquire():
        lock.close()
        return None
    lock.beat()
    return Slot(path, number, lock)


def _seed(folder: Path, path: Path) -> None:
    """Make the database of a slot from the newest checkpoint, if there is one.

    The copy gets its name when it is whole: killed before, the slot has no database, and the next
    holder starts again.
    """
    copy = _beside(path, "seed")
    for _ in range(_SEED_ATTEMPTS_MAX):
        checkpoints = _numbered(folder, _CHECKPOINT)
        if not checkpoints:
            return
        _, checkpoint = checkpoints[-1]
        if _copy(checkpoint, copy):
            copy.rename(path)
            return
        _delete_tree(copy)


def _copy(checkpoint: Path, copy: Path) -> bool:
    """Copy all files of a checkpoint; False when it was replaced meanwhile."""
    try:
        before = _identity(checkpoint)
        copy.mkdir()
        for file in sorted(checkpoint.iterdir()):
            _copy_file(file, copy / file.name)
            fault_point("slot.seed.inside")
        # A checkpoint loses its name before its first file: it has the name still, so the list of
        # files was the whole list.
        return _identity(checkpoint) == before
    except FileNotFoundError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns  # numbers of inodes are used again, and so are names


def _copy_file(source: Path, target: Path) -> None:
    # Table files never change after they are written. The others are small, and one of them, the
    # manifest, is written to by whoever opens the database.
    if source.suffix == ".sst":
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _rename_to_next_checkpoint(folder: Path, made: Path) -> Path:
    while True:
        number = max((number for number, _ in _numbered(folder, _CHECKPOINT)), default=0) + 1
        target = folder / f"checkpoint-{number:06}"
        try:
            made.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue  # another owner published at this moment
        return target


def _delete_idle(folder: Path, own: Slot, idle_s: float) -> None:
    used_before_s = time.time() - idle_s
    for number, path in _numbered(folder, _SLOT):
        # Looking before locking, or a process that comes now would find a warm slot busy.
        if number == own.number or _used_s(path) >= used_before_s:
            continue
        lock = FileLock(_beside(path, "lock"))
        if lock.try_acquire():
            if _used_s(path) < used_before_s:
                _delete_leftovers(folder, path.name)
                _discard(path, _beside(path, "gone"))
                lock.release(unlink=True)
            lock.close()
    for _, checkpoint in _numbered(folder, _CHECKPOINT):
        with contextlib.suppress(FileNotFoundError):
            if checkpoint.stat().st_mtime < used_before_s:
                _discard(checkpoint, _beside(own.path, "gone"))


def _used_s(path: Path) -> float:
    """Return when the slot was last taken, released or written to; now when it is gone."""
    times_s = []
    for sign in (path, _beside(path, "lock")):
        with contextlib.suppress(FileNotFoundError):
            times_s.append(sign.stat().st_mtime)
    return max(times_s, default=time.time())


def _delete_leftovers(folder: Path, name: str) -> None:
    for suffix in ("seed", "checkpoint", "gone"):
        _delete_tree(folder / f"{name}.{suffix}")


def _discard(path: Path, gone: Path) -> None:
    """Delete a tree that others know by its name: first the name, so that none sees half of it."""
    try:
        path.rename(gone)
    except FileNotFoundError:
        return  # somebody else was first
    _delete_tree(gone)


def _delete_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """Return the entries whose whole name fits, by their number."""
    try:
        matches = [pattern.fullmatch(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    return sorted((int(match[1]), folder / match[0]) for match in matches if match)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
