"""Notices: what each running process of this machine says of itself, where the others can read it.

A notice is a small JSON file beside the views of the log, one per runner, and a lock file that its
process holds: when the process dies, however it dies, the OS frees the lock, and whoever reads
next takes the notice away. Nothing is decided by notices: they are for `processors status`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from eventstore.lifetime import abandon_in_child
from eventstore.locks import FileLock
from processors.source import source_of

if TYPE_CHECKING:
    from eventstore import EventStore
    from processors.component import Component, Update
    from processors.runner import Runner

__all__ = [
    "COUNTS",
    "OUTCOMES",
    "Notice",
    "NoticeBoard",
    "Publisher",
    "RelayNotice",
    "UpdateNotice",
    "code_digest",
    "different_code",
    "publish",
]

logger: Final = logging.getLogger("processors.notices")

#: Of what runs, so many updates are named: a notice stays small enough to write once a second.
_RUNNING_MAX: Final = 100
#: Rates are taken over so many seconds, and so they are 0 so long after the last update.
_RATE_S: Final = 10.0
#: How often a notice is looked at by `publish`.
_TICK_S: Final = 1.0
#: How long a process that finds its own lock taken waits for whoever looks at it.
_LOCK_TIMEOUT_S: Final = 5.0

#: What becomes of an update in the end; conflicts, after which it runs again, are counted too.
OUTCOMES: Final = ("applied", "discarded", "failed")
COUNTS: Final = (*OUTCOMES, "conflicts")


@dataclass(frozen=True, slots=True)
class UpdateNotice:
    """An update that runs: of which request of which instance, and since when."""

    instance: str
    name: str
    sequence: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class RelayNotice:
    """How far a trigger is behind the app that it watches: about so many events, for so long.

    The deliveries of what handlers send are one of these, with no trigger's id. `undelivered`
    counts what this process could deliver to nobody; the notes of it are in the log.
    """

    trigger_id: str | None
    watched: str
    state: str
    lag_events: int
    lag_ms: int
    error: str | None
    undelivered: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """What one runner does, as its process last said. Times are epoch milliseconds.

    `offsets` is how far its view is folded, partition -> offset of the last event. `running` has
    the first of `running_count`. `counts` are since its start, `rates` per second, both by what
    became of updates: applied, discarded, failed, conflicts. `updates` is the digest of the code
    of each update, by its name.
    """

    id: str
    app: str
    process: int
    host: str
    since_ms: int
    shards: tuple[int, ...] = ()
    offsets: Mapping[int, int] | None = None
    running: tuple[UpdateNotice, ...] = ()
    running_count: int = 0
    waiting: int = 0
    oldest_ms: int | None = None
    unknown: tuple[str, ...] = ()
    counts: Mapping[str, int] | None = None
    rates: Mapping[str, float] | None = None
    updates: Mapping[str, str] | None = None
    relays: tuple[RelayNotice, ...] = ()
    is_stopping: bool = False

    @classmethod
    def of_json(cls, raw: bytes) -> Self | None:
        """Return a notice as it was written; None for what is none, or of another release."""
        try:
            facts = orjson.loads(raw)
            facts["shards"] = tuple(facts["shards"])
            facts["unknown"] = tuple(facts["unknown"])
            facts["running"] = tuple(UpdateNotice(**one) for one in facts["running"])
            facts["relays"] = tuple(RelayNotice(**one) for one in facts["relays"])
            if facts["offsets"] is not None:
                facts["offsets"] = {int(p): offset for p, offset in facts["offsets"].items()}
            return cls(**facts)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def as_json(self) -> dict[str, Any]:
        """Return the facts as they are written."""
        offsets = self.offsets
        shown = None if offsets is None else {str(p): offset for p, offset in offsets.items()}
        return {**asdict(self), "offsets": shown}

    @property
    def owner(self) -> str:
        """Who this is, in one word: process and host."""
        return f"{self.process}@{self.host}"


class NoticeBoard:
    """The notices on one app. Reading creates nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Use a folder; None is a log that no other process shares."""
        self.folder = folder

    @classmethod
    def of(cls, store: EventStore, app: str) -> NoticeBoard:
        """Return the board of an app of a store."""
        root = store.log.view_root
        return cls(None if root is None else root / "runners" / f"{store.config.namespace}.{app}")

    @classmethod
    def apps(cls, store: EventStore) -> list[str]:
        """Return the apps that have a board, sorted."""
        root = store.log.view_root
        prefix = f"{store.config.namespace}."
        if root is None:
            return []
        with contextlib.suppress(OSError):
            names = os.listdir(root / "runners")
            return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return []

    def read(self) -> list[Notice]:
        """Return the notices of the runners that live, those that are there longest first."""
        return sorted(self._read(), key=lambda notice: (notice.since_ms, notice.id))

    def _read(self) -> Iterator[Notice]:
        if self.folder is None:
            return
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for name in names:
            path = self.folder / name
            if path.suffix != ".json" or _has_died(path):
                continue
            with contextlib.suppress(OSError):
                notice = Notice.of_json(path.read_bytes())
                if notice is not None:
                    yield notice


def _has_died(path: Path) -> bool:
    """Whether the process behind a notice is gone; what it left is removed then."""
    life = FileLock(path.with_suffix(".lock"))
    try:
        if not life.try_acquire():
            return False
    except OSError:
        return False  # another user's, say: shown rather than taken away
    # The notice first: one without its lock would be taken for a dead one's.
    with contextlib.suppress(OSError):
        path.unlink()
    life.release(unlink=True)
    return True


class Publisher:
    """Keeps the notice of one runner up to date. `tick` about once a second, and `close` at last.

    Not for several threads at once.
    """

    def __init__(self, board: NoticeBoard, component: Component, runner: Runner) -> None:
        """Publish what a runner does; nothing where no other process could read it."""
        self._board = board
        self._runner = runner
        identity = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.notice = Notice(
            identity,
            component.name,
            os.getpid(),
            socket.gethostname(),
            time.time_ns() // 1_000_000,
            # Now, before somebody edits the file: what runs is what was loaded.
            updates={name: code_digest(update) for name, update in component.updates.items()},
        )
        #: When, and the counts then; the oldest first.
        self._samples: deque[tuple[float, tuple[int, ...]]] = deque()
        self._written: Notice | None = None
        self._life: FileLock | None = None
        if board.folder is not None:
            self._life = _life(board.folder, identity)

    def tick(self) -> Notice:
        """Look at the runner, and write its notice if something is new.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        self.notice = self._look()
        if self._life is not None and self._life.held and self.notice != self._written:
            path = self._life.path.with_suffix(".json")
            new = path.with_suffix(".new")
            new.write_bytes(orjson.dumps(self.notice.as_json()))
            new.replace(path)
            self._written = self.notice
        return self.notice

    def _look(self) -> Notice:
        status = self._runner.snapshot()
        counts = tuple(int(getattr(status, name)) for name in COUNTS)
        return replace(
            self.notice,
            shards=tuple(sorted(status.shards)),
            offsets=dict(self._runner.processing.position),
            running=tuple(UpdateNotice(*one) for one in status.running[:_RUNNING_MAX]),
            running_count=len(status.running),
            waiting=status.waiting,
            oldest_ms=status.oldest_ms,
            unknown=tuple(status.unknown),
            counts=dict(zip(COUNTS, counts, strict=True)),
            rates=dict(zip(COUNTS, self._rates(counts), strict=True)),
            relays=tuple(_relays(self._runner)),
            is_stopping=status.is_stopping,
        )

    def _rates(self, counts: tuple[int, ...]) -> list[float]:
        now_s = time.monotonic()
        samples = self._samples
        samples.append((now_s, counts))
        while len(samples) > 2 and now_s - samples[1][0] >= _RATE_S:
            samples.popleft()
        begin_s, begin = samples[0]
        elapsed_s = max(1.0, now_s - begin_s)
        return [
            round((end - start) / elapsed_s, 1) for start, end in zip(begin, counts, strict=True)
        ]

    def close(self) -> None:
        """Take the notice away. Closing again does nothing."""
        life, self._life = self._life, None
        if life is None or not life.held:
            return
        for suffix in (".json", ".new"):
            with contextlib.suppress(OSError):
                life.path.with_suffix(suffix).unlink()
        life.release(unlink=True)


def _life(folder: Path, identity: str) -> FileLock | None:
    """Return the lock that shows that this process lives; None where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        life = FileLock(folder / f"{identity}.lock")
        return life if life.acquire(_LOCK_TIMEOUT_S) else None
    except OSError as error:  # no reason to run no updates
        logger.warning("`processors status` cannot show this process: %s", error)
        return None


def _relays(runner: Runner) -> Iterator[RelayNotice]:
    for one in runner.relays():
        # Ages of a trigger that is level change by themselves, and are not news.
        lag_ms = one.lag_ms if one.lag_events else 0
        yield RelayNotice(
            one.trigger_id, one.watched, one.state, one.lag_events, lag_ms, one.error_last,
            one.undelivered,
        )  # fmt: skip


# --- runners of a program that is no daemon -------------------------------------------------------


class _Publishing:
    """The thread that keeps the notices of this process's shared runners up to date."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: runner -> its publisher, made by the thread: digests of code take their time.
        self._publishers: dict[Runner, Publisher | None] = {}
        self._thread: threading.Thread | None = None
        abandon_in_child(self)

    def add(self, runner: Runner) -> None:
        with self._changed:
            self._publishers[runner] = None
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="processors-notices", daemon=True
                )
                self._thread.start()

    def remove(self, runner: Runner) -> None:
        with self._changed:
            publisher = self._publishers.pop(runner, None)
            if publisher is not None:
                publisher.close()
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._publishers:
                # First wait: a program that ends at once has nothing to show.
                self._changed.wait(_TICK_S)
                for runner in list(self._publishers):
                    self._tick(runner)
            self._thread = None

    def _tick(self, runner: Runner) -> None:
        publisher = self._publishers[runner]
        try:
            if publisher is None:
                board = NoticeBoard.of(runner.store, runner.component.name)
                publisher = Publisher(board, runner.component, runner)
                self._publishers[runner] = publisher
            publisher.tick()
        except Exception:  # a notice is never a reason to disturb the program
            logger.debug("no notice of %s", runner.component.name, exc_info=True)

    def abandon(self) -> None:
        """Begin anew in a forked child; the parent's runners are not its own."""
        self._changed = threading.Condition()
        self._publishers = {}
        self._thread = None


_publishing: Final = _Publishing()


def publish(runner: Runner) -> Callable[[], None]:
    """Keep a runner's notice up to date from a thread of this process; return what ends that.

    End it before the runner stops.
    """
    _publishing.add(runner)
    return lambda: _publishing.remove(runner)


# --- one update, one code -------------------------------------------------------------------------


def different_code(notices: Sequence[Notice]) -> Iterator[tuple[str, Notice, Notice]]:
    """Yield each update that two runners run with different code, and the two."""
    for index, one in enumerate(notices):
        for other in notices[index + 1 :]:
            mine, theirs = one.updates or {}, other.updates or {}
            for name in sorted(mine.keys() & theirs.keys()):
                if mine[name] != theirs[name]:
                    yield name, one, other


def code_digest(update: Update) -> str:
    """Return a digest of an update: of its function as it is written, and of its policies.

    Comments and layout do not count; what the function calls does not either.
    """
    policies = (
        update.name, update.key, update.is_async, update.takes_context, update.isolation,
        update.timeout_s, update.worker, tuple(update.discard or ()),
        update.retry.attempts, update.retry.backoff_s, update.retry.backoff_s_max,
        [kind.__name__ for kind in update.retry.retry_on],
        None if update.trigger is None else (
            update.trigger.fields, update.trigger.app, update.trigger.trigger_id,
            update.trigger.own_answers,
        ),
    )  # fmt: skip
    text = f"{policies!r}\n{source_of(update.function)}"
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
