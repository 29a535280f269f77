"""Who runs what on the embedded log: 16 shards of a topic, shared by the live members of a group.

Each member (an `own` call of some process) holds a lock file of its own, which shows that it
lives, and touches it once a second, which shows that it runs. Each shard is a lock file too. A
member takes free shards up to its fair share, and gives up what it has above it, once nothing runs
in it. Nobody is in charge: members may disagree about who lives for a moment, the locks never do.

A stopped process (SIGSTOP, a suspended container) keeps its locks. When its heartbeat stood still
for `STANDS_STILL_S`, others take its shards under the next generation's lock file, and it finds
out when it goes on. Ownership only saves work, so the moment in between does no harm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from eventstore.lifetime import abandon_in_child
from eventstore.locks import FileLock
from eventstore.log.base import HAND_OVER_S_MAX, Ownership
from eventstore.log.nudges import Nudges

__all__ = ["SHARDS", "ShardOwners", "fair_share"]

logger = logging.getLogger(__name__)

#: Shards of every topic of the embedded log: what at most 16 processes can share.
SHARDS = 16
#: How often a member looks for the death of others: the bound of a hand-over after a crash.
TICK_S = 0.25
#: How often a member shows that it runs.
BEAT_S = 1.0
#: A member whose heartbeat stood still for so long is passed over.
STANDS_STILL_S = 3.0


def fair_share(shards: int, rank: int, members: int) -> int:
    """Return how many of the shards the member of that rank (0 is first) may hold."""
    return shards // members + (rank < shards % members)


class ShardOwners:
    """All memberships of one open log, and the one thread that keeps them."""

    def __init__(self, folder: Path) -> None:
        """Use the log's folder."""
        self._folder = folder / "locks"
        self._news = Nudges(folder / "news" / "owners")
        self._mutex = threading.Lock()
        self._members: list[_Member] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def join(
        self,
        topic: str,
        group: str,
        changed: Callable[[frozenset[int]], None],
        is_busy: Callable[[int], bool] | None,
    ) -> Ownership:
        """Become a member of `group`; shards come from the thread, a moment later."""
        # The prefix keeps a group called ".." inside its folder.
        folder = self._folder / topic / f"group-{urllib.parse.quote(group, safe='')}"
        folder.mkdir(parents=True, exist_ok=True)
        self._news.open()
        member = _Member(folder, changed, is_busy, self._news.ring, self._forget)
        with self._mutex:
            self._members.append(member)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="eventstore-owners", daemon=True
                )
                self._thread.start()
        self._news.ring()
        return member

    def close(self) -> None:
        """Give everything back and stop the thread."""
        self._closed = True
        for member in list(self._members):
            member.close()
        self._news.ring_here()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._news.close()

    def _forget(self, member: _Member) -> None:
        with self._mutex:
            if member in self._members:
                self._members.remove(member)

    def _run(self) -> None:
        while not self._closed:
            for member in list(self._members):
                member.tick()
            self._news.listen(TICK_S if self._members else BEAT_S)


class _Member(Ownership):
    """One membership: its own lock, the shards it holds, what it knows of the others."""

    def __init__(
        self,
        folder: Path,
        changed: Callable[[frozenset[int]], None],
        is_busy: Callable[[int], bool] | None,
        ring: Callable[[], None],
        forget: Callable[[_Member], None],
    ) -> None:
        self._folder = folder
        self._changed = changed
        self._is_busy = is_busy or (lambda shard: False)
        self._ring = ring
        self._forget = forget
        self._id = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._life = FileLock(folder / f"{self._id}.member")
        # A neighbour that looks whether we live holds the lock for a moment.
        while not self._life.acquire(1.0):
            pass
        # Held through a tick, calls of `changed` included; reentrant, so that `changed` may close.
        self._mutex = threading.RLock()
        self._held: dict[int, FileLock] = {}
        #: Shards that are held only until nothing runs in them, and until when at most.
        self._leaving: dict[int, float] = {}
        self._shards: frozenset[int] = frozenset()
        #: Heartbeat of each other member, and when we first saw this value (time.monotonic()).
        self._beats: dict[str, tuple[int | None, float]] = {}
        self._beat_at_s = self._ticked_at_s = time.monotonic()
        self._closed = False
        abandon_in_child(self)

    @property
    def shards(self) -> frozenset[int]:
        return self._shards

    def close(self) -> None:
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._shards = frozenset()
            self._release(list(self._held))
            self._life.release(unlink=True)
        self._forget(self)
        self._ring()

    def abandon(self) -> None:
        self._closed = True
        self._shards = frozenset()

    def tick(self) -> None:
        """Look at the others; give up and take shards until the share is fair."""
        with self._mutex:
            if self._closed:
                return
            try:
                self._tick(time.monotonic())
            except OSError as error:  # a full disk, say: what is held stays held
                logger.warning("%s: cannot share shards: %s", self._folder, error)

    def _tick(self, now_s: float) -> None:
        if now_s - self._beat_at_s >= BEAT_S:
            self._life.beat()
            self._beat_at_s = now_s
        names = os.listdir(self._folder)
        generations = _generations(names)
        running = self._running_members(names, now_s)
        share = fair_share(SHARDS, running.index(self._id), len(running))
        passed_over = [
            shard
            for shard, lock in self._held.items()
            if lock.path.name != _lock_name(shard, generations.get(shard, 0))
        ]
        kept = sorted(self._owned() - set(passed_over))
        if passed_over or kept[share:]:
            self._leaving |= dict.fromkeys(kept[share:], now_s + HAND_OVER_S_MAX)
            self._announce(frozenset(kept[:share]))
        at_rest = [
            shard
            for shard, until_s in self._leaving.items()
            if now_s > until_s or not self._is_busy(shard)
        ]
        if passed_over or at_rest:
            self._release(passed_over + at_rest)
            self._ring()
        if not self._closed and len(self._owned()) < share:
            # Each starts at another shard, so that members that start together seldom collide.
            start = running.index(self._id) * SHARDS // len(running)
            order = [(start + step) % SHARDS for step in range(SHARDS)]
            self._take(order, generations, share, frozenset(running))
            if self._owned() != self._shards:
                self._announce(self._owned())

    def _owned(self) -> frozenset[int]:
        return frozenset(self._held.keys() - self._leaving.keys())

    def _announce(self, shards: frozenset[int]) -> None:
        self._shards = shards
        try:
            self._changed(shards)
        except Exception:
            logger.exception("%s: the callback for changed shards failed", self._folder)

    def _release(self, shards: Iterable[int]) -> None:
        for shard in shards:
            self._leaving.pop(shard, None)
            lock = self._held.pop(shard, None)
            if lock is not None:
                lock.release()

    def _take(
        self,
        order: Iterable[int],
        generations: dict[int, int],
        share: int,
        running: frozenset[str],
    ) -> None:
        for shard in order:
            if len(self._owned()) >= share:
                return
            if shard not in self._held:
                lock = self._lock_of(shard, generations.get(shard, 0), running)
                if lock is not None:
                    lock.write_note(self._id)
                    self._held[shard] = lock

    def _lock_of(self, shard: int, generation: int, running: frozenset[str]) -> FileLock | None:
        """Return the shard's lock, held, or None when a member that runs has it."""
        lock = FileLock(self._folder / _lock_name(shard, generation))
        if not lock.try_acquire():
            holder = FileLock.read_note(lock.path)
            # An empty note: its holder came this moment. An unknown holder: it came after our
            # listing. Only one whose standing still we have watched is passed over.
            if holder in running or holder not in self._beats:
                return None
            generation += 1
            lock = FileLock(self._folder / _lock_name(shard, generation))
            if not lock.try_acquire():
                return None
        # The listing is old by now: only the newest generation's lock counts.
        if (self._folder / _lock_name(shard, generation + 1)).exists():
            lock.release()
            return None
        if generation:
            outlived = FileLock(self._folder / _lock_name(shard, generation - 1))
            if outlived.path.exists() and outlived.try_acquire():
                outlived.release(unlink=True)
        return lock

    def _running_members(self, names: Iterable[str], now_s: float) -> list[str]:
        """Return the ids of the members that live and run, sorted, this one among them."""
        # If we stood still ourselves, what we know of the others' hearts is worth nothing.
        stood_still = now_s - self._ticked_at_s > STANDS_STILL_S / 2
        self._ticked_at_s = now_s
        if stood_still:
            self._beats.clear()
        beats: dict[str, tuple[int | None, float]] = {}
        running = [self._id]
        for name in names:
            member_id, dot, suffix = name.rpartition(".")
            if suffix != "member" or not dot or member_id == self._id:
                continue
            probe = FileLock(self._folder / name)
            if probe.try_acquire():
                probe.release(unlink=True)  # it died
                continue
            beat = FileLock.heartbeat(probe.path)
            known = self._beats.get(member_id)
            beats[member_id] = known if known and known[0] == beat else (beat, now_s)
            if now_s - beats[member_id][1] <= STANDS_STILL_S:
                running.append(member_id)
        self._beats = beats
        return sorted(running)


def _lock_name(shard: int, generation: int) -> str:
    return f"{shard:02}.{generation}.shard"


def _generations(names: Iterable[str]) -> dict[int, int]:
    """Return the newest generation of each shard's lock file."""
    newest: dict[int, int] = {}
    for name in names:
        if name.endswith(".shard"):
            with contextlib.suppress(ValueError):
                shard, generation, _ = name.split(".")
                newest[int(shard)] = max(int(generation), newest.get(int(shard), 0))
    return newest
