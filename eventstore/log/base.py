"""What every log promises: the contract of memory.py, sqlite.py and kafka.py.

A log holds topics, one per app. A topic has a fixed number of partitions; a partition is a row of
records with rising offsets (gaps are allowed), each with a time in epoch milliseconds that the
log gave it. Records are bytes to the log: what they mean is the codec's and the fold's business.

tests/contract/test_log.py asks every line of this of each backend, in the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from eventstore.errors import EventStoreError
from eventstore.events import Batch, Record

__all__ = [
    "HAND_OVER_S_MAX", "Append", "Batch", "Delivery", "Finding", "Log", "Member", "NewerRecord",
    "Ownership", "Progress", "Record", "Topic",
]  # fmt: skip


class NewerRecord(EventStoreError):
    """Nothing was written: a record came first that these were to have been written before."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key!r} has a newer record; nothing was written"


class Topic(NamedTuple):
    """What is fixed about an app's topic.

    `identity` changes when the topic is deleted and created again, or another file or cluster
    stands in its place. `partitions` is what the app was created with: never live metadata.
    """

    name: str
    identity: str
    partitions: int


class Delivery(Protocol):
    """Who is told what became of one appended record, once, from any thread; must not block."""

    def delivered(self, partition: int, offset: int) -> None: ...

    def failed(self, error: Exception) -> None: ...


class Append(NamedTuple):
    """One record to append: instance name as key, partition, bytes, and who is told."""

    partition: int
    key: bytes
    value: bytes
    delivery: Delivery


class Finding(NamedTuple):
    """One thing that an operator should know of a log, and what to do about it."""

    level: Literal["ok", "warn", "fail"]
    text: str
    advice: str = ""


class Member(NamedTuple):
    """A member of a group of owners, on whichever host, as the log knows it.

    `client` is what it calls itself: `process@host`, or what its user has called it. `address` is
    from where it talks to the log.
    """

    client: str
    address: str
    shards: frozenset[int]


#: How long a shard is kept, at most, from the member that is to have it, because work in it runs.
HAND_OVER_S_MAX: Final = 30.0

#: Returns how far the work of some shards is, shard -> offset: that of its first request which is
#: not answered, or the end of what was looked at; nothing where that is as it was told before.
Progress = Callable[[], Mapping[int, int]]


class Ownership(ABC):
    """The shards of a topic that this process holds on behalf of a group, from now until close.

    At most one live process holds a shard, except for short moments (a stopped process that is
    continued, a network that was cut): ownership only saves work, correctness never needs it.
    `changed` (given to `Log.own`) is called with the new set after each change, from a thread of
    the log's; a shard that leaves the set may be held by somebody else when that call returns.
    The membership is locked meanwhile: `changed` may call `close` itself, but must not wait for
    another thread that does.
    """

    @property
    @abstractmethod
    def shards(self) -> frozenset[int]:
        """The shards held now."""

    @abstractmethod
    def close(self) -> None:
        """Give all shards back, so that another process can have them at once."""


class Log(ABC):
    """A log that is open. Every method may be called from any thread."""

    #: Where the log is, without secrets: for messages.
    url: str
    #: The folder for views of this log; None keeps them in memory.
    view_root: Path | None = None
    #: Whether `append_unless_newer` can be used.
    sees_newer: bool = False

    # --- topics -----------------------------------------------------------------------------

    @abstractmethod
    def topics(self) -> list[str]:
        """Return the names of the topics of this namespace, sorted."""

    @abstractmethod
    def topic(self, name: str, *, create: bool) -> Topic | None:
        """Return the topic; make it first when `create`; None when there is none and not `create`.

        Raises:
            ConfigError: the topic exists with settings that break a promise, or may not be
                created (the message has the command that creates it); nothing was written.
            LogUnavailable: the log cannot be reached.
        """

    @abstractmethod
    def metadata(self, topic: Topic) -> dict[str, object]:
        """Return the app's own small metadata, a JSON object ({} when nothing was set)."""

    @abstractmethod
    def set_metadata(self, topic: Topic, changes: Mapping[str, object]) -> None:
        """Merge `changes` into the metadata, durably; the last writer of a key wins."""

    # --- writing ----------------------------------------------------------------------------

    @abstractmethod
    def partition_of(self, key: bytes, topic: Topic) -> int:
        """Return the partition of an instance: murmur2 as in Java, or 0 where there is one."""

    @abstractmethod
    def append(self, topic: Topic, appends: Sequence[Append]) -> None:
        """Queue records; each delivery is told once its record is durable, or that it is not.

        Records of one call, and of calls one after the other, keep their order within a
        partition, and a record that fails is not followed by a later one of its call in the same
        partition. Blocks only while the buffer is full. The records of one call are stored
        together (one group commit) where the log can do so.

        A delivery's error is LogUnavailable or EventTooLarge (not written), or OutcomeUnknown.

        Raises:
            Closed: the log is closed, or this is a child of os.fork(); nothing was queued.
            EventTooLarge: a value is above what the log can take; nothing was queued.
            LogUnavailable: the buffer stayed full for the whole deadline; nothing was queued.
        """

    def append_unless_newer(
        self, topic: Topic, appends: Sequence[Append], offset_next: int
    ) -> None:
        """Queue records of one instance that count on nothing of it at or after `offset_next`.

        As `append`, and they are stored together; but if their partition has a record with their
        key from there on when they are about to be written, none of them is, and the deliveries
        fail with NewerRecord. That may be said, too, of a writer that is far behind (1,000
        records), and it is of one that is ahead of the log. Only a log whose `sees_newer` is set
        can see to that.

        The caller is to drive the log at once, and then to read what it wrote. For nobody else in
        this process need be woken for these records: neither to commit them (where the caller
        does not drive, that takes up to a second) nor to read them, if he waits `attended`.

        Raises:
            NotImplementedError: this log cannot; nothing was queued.
            As for `append`.
        """
        raise NotImplementedError(f"{self.url} cannot see newer records")

    @abstractmethod
    def drive(self, timeout_s: float | None) -> None:
        """Help queued records along, or wait until something was delivered (at most `timeout_s`).

        It may return before the caller's own record was told: a caller that needs it now calls
        this in a loop. The embedded log commits in the caller's own thread then, which saves two
        thread switches.

        Raises:
            Closed: this is a child of os.fork(), or the log is closed; a closed log, which has
                told all deliveries, may also just return.
        """

    @abstractmethod
    def flush(self, timeout_s: float | None = None) -> None:
        """Return when every record queued before the call was delivered or failed.

        Raises:
            LogUnavailable: not all were, within `timeout_s`; they stay queued.
        """

    # --- reading ----------------------------------------------------------------------------

    @abstractmethod
    def read(
        self, topic: Topic, partition: int, offset: int, *, records_max: int, bytes_max: int
    ) -> Batch:
        """Return committed records from `offset` on, without waiting for new ones.

        At least one record is returned where there is one, however large. An empty batch whose
        `offset_next` equals `offset` means: nothing is there now.

        Raises:
            LogTruncated: `offset` lies before the first record or behind the end.
            LogUnavailable: the log cannot be reached.
        """

    @abstractmethod
    def offset_first(self, topic: Topic, partition: int) -> int:
        """Return the offset of the first record that the log still has (0 unless cut)."""

    @abstractmethod
    def offset_end(self, topic: Topic, partition: int) -> int:
        """Return the offset after the last committed record: one asks the log, not a cache."""

    def stamp(self, topic: Topic) -> int | None:
        """Return a number that is another one after each acknowledged append, of any process.

        It costs less than a microsecond; None where there is no such thing. Two equal stamps mean
        that nothing was acknowledged in between, except by a process that could not say so.
        """
        return None

    @abstractmethod
    def offset_at(self, topic: Topic, partition: int, time_ms: int) -> int:
        """Return the first offset whose record's time is at or after `time_ms`, else the end."""

    @abstractmethod
    def wait(
        self,
        topic: Topic,
        offsets: Mapping[int, int],
        timeout_s: float,
        *,
        attended: bool = False,
    ) -> bool:
        """Wait until a partition has records at or after its offset; False on timeout.

        Woken by appends of any process; but with `attended` it need not be by those of this one's
        `append_unless_newer`, which whoever appended them reads. May return True too early, never
        too late by more than the poll interval of the backend.

        Raises:
            Closed: the log is closed, before the call or during it; or False is returned.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make every `wait` of this process return now (used to close)."""

    # --- ownership ---------------------------------------------------------------------------

    @abstractmethod
    def shards(self, topic: Topic) -> int:
        """Return how many shards the topic has: partitions on Kafka, 16 on the embedded log."""

    @abstractmethod
    def shard_of(self, key: bytes, topic: Topic) -> int:
        """Return the shard of an instance."""

    @abstractmethod
    def own(
        self,
        topic: Topic,
        group: str,
        changed: Callable[[frozenset[int]], None],
        progress: Progress | None = None,
        is_busy: Callable[[int], bool] | None = None,
    ) -> Ownership:
        """Join `group` and hold a fair share of the topic's shards until closed.

        Where tools show how far a group is (Kafka: its committed offsets, and so its lag), the log
        asks for `progress` about once a second, and a last time by `close`, and shows it there, as
        well as it can. It is for people: nothing reads it back to decide anything.

        A shard that another member is to have is told of as lost at once, so that nothing more is
        begun in it, and passed on when `is_busy` says no, or after HAND_OVER_S_MAX: what runs would
        else run twice at the same time. (In the log in memory it is passed on at once.)
        """

    def members(self, topic: Topic, group: str) -> Sequence[Member] | None:
        """Return who holds the topic's shards for a group, on all hosts.

        None where the log keeps no list: then all of them are on this host.

        Raises:
            LogUnavailable: the log cannot say it, or may not tell us; the message says why.
        """
        return None

    # --- an operator's look --------------------------------------------------------------------

    def diagnose(self) -> Iterable[Finding]:
        """Yield what is well and what is not: versions, settings, room. Changes nothing.

        What cannot be asked is a finding too; nothing is raised.
        """
        return ()

    # --- the end -----------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Flush, then let go of everything; deliveries still open fail with LogUnavailable."""
