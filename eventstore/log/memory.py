"""A log in the memory of this process: for tests, and gone with the process.

It keeps every promise of base.py, durability excepted: a record is acknowledged as it is appended.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
import uuid
import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from eventstore.config import Config
from eventstore.errors import Closed, ConfigError, LogTruncated, LogUnavailable
from eventstore.lifetime import abandon_in_child
from eventstore.log.base import Append, Batch, Log, NewerRecord, Ownership, Progress, Record, Topic
from eventstore.log.ownership import SHARDS, fair_share

__all__ = ["MemoryLog"]


class _Stored:
    """One topic: its records by partition."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.partitions: list[list[Record]] = [[] for _ in range(topic.partitions)]
        self.metadata: dict[str, object] = {}

    def has_newer(self, append: Append, offset: int) -> bool:
        """Whether a record of an append's key stands at or after an offset, or should."""
        records = self.partitions[append.partition]
        newer = (records[at].key for at in range(offset, len(records)))
        return offset > len(records) or append.key in newer


class _Storage:
    """What the logs of one name share."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.topics: dict[str, _Stored] = {}
        self.groups: dict[tuple[str, str], _Group] = {}


_named: dict[str, _Storage] = {}


class MemoryLog(Log):
    """A log in memory; `memory://name` is shared by all logs of that name in this process."""

    sees_newer = True

    def __init__(self, url: str, config: Config) -> None:
        """Open `memory://`, `memory://name`, either with `?partitions=8`; ConfigError if not."""
        parts = urllib.parse.urlsplit(url)
        options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        try:
            self._partitions = int(options.pop("partitions", "1"))
        except ValueError:
            self._partitions = 0
        if self._partitions < 1 or options:
            raise ConfigError(f"{url!r}: the only option is partitions, a number from 1 on")
        name = parts.netloc + parts.path
        self.url = url
        self._config = config
        self._storage = _named.setdefault(name, _Storage()) if name else _Storage()
        self._closed = False
        self._abandoned = False
        self._wakes = 0
        self._ownerships: list[_MemoryOwnership] = []
        abandon_in_child(self)

    # --- topics -----------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """Return the names of the topics of this namespace, sorted."""
        self._refuse_when_closed()
        prefix = f"{self._config.namespace}."
        return sorted(name for name in self._storage.topics if name.startswith(prefix))

    def topic(self, name: str, *, create: bool) -> Topic | None:
        """Return the topic; make it first when `create`; None when there is none."""
        self._refuse_when_closed()
        with self._storage.condition:
            stored = self._storage.topics.get(name)
            if stored is None and create:
                stored = _Stored(Topic(name, f"memory-{uuid.uuid4().hex[:16]}", self._partitions))
                self._storage.topics[name] = stored
        return stored.topic if stored else None

    def metadata(self, topic: Topic) -> dict[str, object]:
        """Return the app's own small metadata, a JSON object ({} when nothing was set)."""
        return dict(self._stored(topic).metadata)

    def set_metadata(self, topic: Topic, changes: Mapping[str, object]) -> None:
        """Merge `changes` into the metadata; the last writer of a key wins."""
        stored = self._stored(topic)
        with self._storage.condition:
            stored.metadata = {**stored.metadata, **changes}

    # --- writing ----------------------------------------------------------------------------

    def partition_of(self, key: bytes, topic: Topic) -> int:
        """Return crc32(key) modulo the number of partitions."""
        return zlib.crc32(key) % topic.partitions

    def append(self, topic: Topic, appends: Sequence[Append]) -> None:
        """Store records, and tell each delivery before this returns."""
        self._append(topic, appends, None)

    def append_unless_newer(
        self, topic: Topic, appends: Sequence[Append], offset_next: int
    ) -> None:
        """Store records unless one of their key came first; see `Log.append_unless_newer`."""
        if appends:
            self._append(topic, appends, offset_next)

    def _append(self, topic: Topic, appends: Sequence[Append], offset_next: int | None) -> None:
        stored = self._stored(topic)
        told: list[tuple[Append, int]] = []
        with self._storage.condition:
            is_refused = offset_next is not None and stored.has_newer(appends[0], offset_next)
            now_ms = time.time_ns() // 1_000_000
            for append in () if is_refused else appends:
                records = stored.partitions[append.partition]
                time_ms = max(now_ms, records[-1].time_ms) if records else now_ms
                told.append((append, len(records)))
                records.append(Record(len(records), time_ms, append.key, append.value))
            self._storage.condition.notify_all()
        # Deliveries are told without the lock, as by every log.
        for append, offset in told:
            append.delivery.delivered(append.partition, offset)
        for append in appends if is_refused else ():
            append.delivery.failed(NewerRecord(append.key))

    def drive(self, timeout_s: float | None) -> None:
        """Do nothing: every append was delivered at once."""
        self._refuse_when_closed()

    def flush(self, timeout_s: float | None = None) -> None:
        """Do nothing: every append was delivered at once."""
        self._refuse_when_closed()

    # --- reading ----------------------------------------------------------------------------

    def read(
        self, topic: Topic, partition: int, offset: int, *, records_max: int, bytes_max: int
    ) -> Batch:
        """Return committed records from `offset` on; see `Log.read`."""
        stored = self._stored(topic).partitions[partition]
        if not 0 <= offset <= len(stored):
            raise LogTruncated(f"{topic.name}: offset {offset} is not in 0 to {len(stored)}")
        records: list[Record] = []
        size_bytes = 0
        for place in range(offset, min(offset + records_max, len(stored))):
            record = stored[place]
            records.append(record)
            size_bytes += len(record.key or b"") + len(record.value or b"")
            if size_bytes >= bytes_max:
                break
        return Batch(records, offset + len(records))

    def offset_first(self, topic: Topic, partition: int) -> int:
        """Return 0."""
        self._stored(topic)
        return 0

    def offset_end(self, topic: Topic, partition: int) -> int:
        """Return the number of records."""
        return len(self._stored(topic).partitions[partition])

    def offset_at(self, topic: Topic, partition: int, time_ms: int) -> int:
        """Return the first offset whose record's time is at or after `time_ms`, else the end."""
        records = self._stored(topic).partitions[partition]
        return bisect_left(records, time_ms, key=lambda record: record.time_ms)

    def wait(
        self,
        topic: Topic,
        offsets: Mapping[int, int],
        timeout_s: float,
        *,
        attended: bool = False,
    ) -> bool:
        """Wait until a partition has records at or after its offset; False on timeout."""
        stored = self._stored(topic)
        with self._storage.condition:
            wakes = self._wakes

            def has_news() -> bool:
                return any(
                    len(stored.partitions[partition]) > offset
                    for partition, offset in offsets.items()
                )

            self._storage.condition.wait_for(
                lambda: has_news() or self._wakes != wakes or self._closed, timeout_s
            )
            return has_news()

    def wake(self) -> None:
        """Make every `wait` of this log return now."""
        with self._storage.condition:
            self._wakes += 1
            self._storage.condition.notify_all()

    # --- ownership --------------------------------------------------------------------------

    def shards(self, topic: Topic) -> int:
        """Return the number of partitions; 16 where there is one."""
        return topic.partitions if topic.partitions > 1 else SHARDS

    def shard_of(self, key: bytes, topic: Topic) -> int:
        """Return crc32(key) modulo the number of shards."""
        return zlib.crc32(key) % self.shards(topic)

    def own(
        self,
        topic: Topic,
        group: str,
        changed: Callable[[frozenset[int]], None],
        progress: Progress | None = None,
        is_busy: Callable[[int], bool] | None = None,
    ) -> Ownership:
        """Join `group` and hold a fair share of the topic's shards until closed.

        Nobody is asked for `progress`: no tool looks at groups of this log. Shards are passed on at
        once.
        """
        self._stored(topic)
        with self._storage.condition:
            members = self._storage.groups.setdefault(
                (topic.name, group), _Group(self.shards(topic))
            )
        ownership = _MemoryOwnership(members, changed)
        self._ownerships.append(ownership)
        members.join(ownership)
        return ownership

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Let go; the records of a named log stay. Calling it again does nothing."""
        if self._abandoned:
            return
        for ownership in self._ownerships:
            ownership.close()
        with self._storage.condition:
            self._closed = True
            self._storage.condition.notify_all()

    def abandon(self) -> None:
        """Refuse everything in a forked child."""
        self._abandoned = True

    def _stored(self, topic: Topic) -> _Stored:
        self._refuse_when_closed()
        stored = self._storage.topics.get(topic.name)
        if stored is None or stored.topic.identity != topic.identity:
            raise LogUnavailable(f"{self.url} has no topic {topic.name} of that identity")
        return stored

    def _refuse_when_closed(self) -> None:
        if self._abandoned:
            raise Closed("this log was opened before os.fork() and cannot be used in the child")
        if self._closed:
            raise Closed(f"the log {self.url} is closed")


class _Group:
    """The members of a group, and the thread that shares the shards out after each change."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._members: list[_MemoryOwnership] = []
        #: Held while somebody comes or goes.
        self._changing = threading.Lock()
        #: Held while shards are shared out, calls of `changed` included.
        self._sharing = threading.Lock()

    def join(self, member: _MemoryOwnership) -> None:
        with self._changing:
            self._members = [*self._members, member]
        self._share_later()

    def leave(self, member: _MemoryOwnership) -> None:
        with self._changing:
            self._members = [other for other in self._members if other is not member]
        self._share_later()

    def _share_later(self) -> None:
        threading.Thread(target=self._share, name="eventstore-owners", daemon=True).start()

    def _share(self) -> None:
        with self._sharing:
            members = self._members
            targets: dict[_MemoryOwnership, frozenset[int]] = {}
            for rank, member in enumerate(members):
                share = fair_share(self._shards, rank, len(members))
                targets[member] = frozenset(sorted(member.shards)[:share])
                member.set_shards(targets[member])  # give up first, so that nobody shares
            free = sorted(set(range(self._shards)).difference(*targets.values()))
            for rank, member in enumerate(members):
                share = fair_share(self._shards, rank, len(members))
                missing = share - len(targets[member])
                member.set_shards(targets[member] | frozenset(free[:missing]))
                free = free[missing:]


class _MemoryOwnership(Ownership):
    def __init__(self, group: _Group, changed: Callable[[frozenset[int]], None]) -> None:
        self._group = group
        self._changed = changed
        self._shards: frozenset[int] = frozenset()
        self._closed = False

    @property
    def shards(self) -> frozenset[int]:
        # Whoever shares out may be giving it some at the moment in which it closes.
        return frozenset() if self._closed else self._shards

    def set_shards(self, shards: frozenset[int]) -> None:
        if shards != self._shards and not self._closed:
            self._shards = shards
            self._changed(shards)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._group.leave(self)
