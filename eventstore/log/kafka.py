"""The log on Kafka: one topic per app, many machines.

    append -> kafka_writer.py   one idempotent producer, acknowledged by all in-sync replicas
    read   -> kafka_reader.py   consumers without a group, committed records only
    own    -> kafka_owner.py    a consumer group that hands out partitions and reads nothing

Here are the topics: how they are made, checked and told apart, and where an app's own metadata
is kept: in the compacted topic `<namespace>._foldlog`, one record per app and name.
kafka_settings.py states what we ask of Kafka, kafka_client.py asks the questions.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import murmur2

from eventstore.config import NAME_PATTERN, Config
from eventstore.errors import Closed, ConfigError, LogTruncated
from eventstore.events import Batch
from eventstore.lifetime import abandon_in_child, close_at_exit
from eventstore.log.base import Append, Finding, Log, Member, Ownership, Progress, Topic
from eventstore.log.kafka_checks import diagnose
from eventstore.log.kafka_client import Cluster, Described, answered_end
from eventstore.log.kafka_owner import GroupOwnership
from eventstore.log.kafka_reader import Reader
from eventstore.log.kafka_settings import describe_faults, events_plan, metadata_plan, parse_url
from eventstore.log.kafka_writer import KafkaWriter

__all__ = ["KafkaLog"]

#: The topic of metadata is `<namespace>.` and this; no app can be called so.
METADATA_NAME = "_foldlog"

#: How long a broker may hold the answer to the reader that waits for news.
_TAIL_LINGER_MS = 100
#: The same for the reader that jumps: a jump waits for the answer before it.
_SCAN_LINGER_MS = 10

#: A read of fewer records is a look at one place, not the beginning of a scan.
_SCAN_RECORDS_MIN = 5

#: A scan that did not go on for so long is over.
_SCAN_IDLE_S = 1.0

#: How often a topic that is read is asked whether it is still the same topic.
_IDENTITY_CHECK_S = 5.0

#: How often the cluster is asked whether it has news that the reader who waits was not sent.
_LOOK_S = 10.0

#: What is read at once of the topic of metadata.
_METADATA_RECORDS_MAX = 1_000
_METADATA_BYTES_MAX = 4 * 1024 * 1024


def _group_name(topic: Topic, group: str) -> str:
    """Return what Kafka knows a group of owners as."""
    return f"{topic.name}.{group}"


def _user_cache() -> Path:
    """Return our folder among the user's caches: what is in it can be made again from the log."""
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "foldlog"


class KafkaLog(Log):
    """A log on a Kafka cluster. Reading creates nothing; the first write of an app its topic."""

    def __init__(self, url: str, config: Config) -> None:
        """Get ready; the cluster is first asked by the first call that needs it.

        Args:
            url: `kafka://host:port[,host:port]?option=value`, options being librdkafka's.
            config: `namespace`, `partitions`, `replication`, deadlines and limits.

        Raises:
            ConfigError: the URL or an option is wrong; the message has no secret.
        """
        self._address = parse_url(url, config)
        self.url = self._address.url
        self.view_root = _user_cache() / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._config = config
        self._cluster = Cluster(self._address, config.read_timeout_s)
        self._writer = KafkaWriter(self._address, config)
        self._mutex = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._owners: list[GroupOwnership] = []
        self._metadata = _Metadata(self)
        self._checked: set[str] = set()  # identities of topics whose settings were checked
        self._wakes = 0
        self._closed = False
        self._abandoned = False
        abandon_in_child(self)
        close_at_exit(self)

    def __repr__(self) -> str:
        return f"KafkaLog({self.url})"

    # --- topics -----------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """Return the names of the topics of this namespace, sorted."""
        self._refuse_when_closed()
        prefix = f"{self._config.namespace}."
        return sorted(
            name
            for name in self._cluster.topics()
            if name.startswith(prefix)
            and name != prefix + METADATA_NAME
            and re.fullmatch(NAME_PATTERN, name.removeprefix(prefix))
        )

    def topic(self, name: str, *, create: bool) -> Topic | None:
        """Return the topic; make it first when `create`; see `Log.topic`."""
        self._refuse_when_closed()
        if name == self.metadata_topic:
            raise ConfigError(f"{name} is the topic of the namespace's own metadata")
        found = self._cluster.describe(name)
        if found is None:
            if not create:
                return None
            found = self._created(name)
        identity = self._identity(found)
        if create and identity not in self._checked:
            self._check_settings(name, found)
        partitions = self._metadata.partitions(name, identity)
        if partitions is None:
            # Made by somebody else's tool. Readers go by what there is until a writer settles it.
            partitions = found.partitions
            if create:
                self._metadata.set(name, identity, {_Metadata.PARTITIONS: partitions})
        if create:
            self._checked.add(identity)
        return Topic(name, identity, partitions)

    def metadata(self, topic: Topic) -> dict[str, object]:
        """Return the app's own small metadata, a JSON object ({} when nothing was set)."""
        self._refuse_when_closed()
        return self._metadata.of(topic)

    def set_metadata(self, topic: Topic, changes: Mapping[str, object]) -> None:
        """Merge `changes` into the metadata, durably; the last writer of a key wins."""
        self._refuse_when_closed()
        self._metadata.set(topic.name, topic.identity, changes)

    @property
    def metadata_topic(self) -> str:
        return f"{self._config.namespace}.{METADATA_NAME}"

    def _identity(self, found: Described) -> str:
        return f"{self._cluster.cluster_id()}/{found.topic_id}"

    def _created(self, name: str) -> Described:
        plan = events_plan(name, self._cluster.brokers(), self._config)
        if not self._config.create_topics:
            raise ConfigError(
                f"topic {name} does not exist, and create_topics is off. To create it:"
                f" {plan.command(self._address.servers)}"
            )
        return self._cluster.create(plan)

    def _check_settings(self, name: str, found: Described) -> None:
        """Refuse a topic with settings by which acknowledged events could be lost."""
        plan = events_plan(name, found.replication, self._config)
        if self._config.replication is not None:
            # An existing topic is measured by its own replicas, not by the wish for a new one.
            measured = self._config.model_copy(update={"replication": found.replication})
            plan = events_plan(name, found.replication, measured)
        faults = describe_faults(self._cluster.settings(name), plan)
        if faults is not None:
            raise ConfigError(faults)

    def create_metadata_topic(self) -> None:
        """Make the topic of metadata where there is none."""
        if self._cluster.describe(self.metadata_topic) is not None:
            return
        plan = metadata_plan(self.metadata_topic, self._cluster.brokers(), self._config)
        if not self._config.create_topics:
            raise ConfigError(
                f"topic {plan.name} does not exist, and create_topics is off. To create it:"
                f" {plan.command(self._address.servers)}"
            )
        self._cluster.create(plan)

    # --- writing ----------------------------------------------------------------------------

    def partition_of(self, key: bytes, topic: Topic) -> int:
        """Return the partition of an instance: murmur2, as Java's producer chooses it."""
        return murmur2(key, topic.partitions)

    def append(self, topic: Topic, appends: Sequence[Append]) -> None:
        """Queue records; see `Log.append`."""
        self._refuse_when_closed()
        self._writer.append(topic.name, appends)

    def drive(self, timeout_s: float | None) -> None:
        """Wait until something was delivered: the brokers need no help."""
        self._refuse_when_closed()
        self._writer.drive(timeout_s)

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when every record queued before the call was delivered or failed."""
        self._refuse_when_closed()
        self._writer.flush(timeout_s)

    # --- reading ----------------------------------------------------------------------------

    def read(
        self, topic: Topic, partition: int, offset: int, *, records_max: int, bytes_max: int
    ) -> Batch:
        """Return committed records from `offset` on; see `Log.read`.

        Where `wait` stands already, "nothing there" is said without asking the cluster: it is true
        for all that this process can know of, which is what it wrote or read itself and every end
        that `offset_end` returned. What others wrote since arrives by `wait`, or by `offset_end`.
        """
        while True:
            self._refuse_when_closed()
            # Closed it is, too, when another thread has asked for another topic of this name.
            with contextlib.suppress(Closed):
                return self._stream(topic).read(partition, offset, records_max, bytes_max)

    def offset_first(self, topic: Topic, partition: int) -> int:
        """Return the offset of the first record that the log still has (0 unless cut)."""
        self._refuse_when_closed()
        self._stream(topic).check_identity()
        return self._cluster.offset_first(topic.name, partition)

    def offset_end(self, topic: Topic, partition: int) -> int:
        """Return the last stable offset: behind the last committed record, and no open transaction.

        The leader of the partition is asked.
        """
        self._refuse_when_closed()
        stream = self._stream(topic)
        stream.check_identity()
        return stream.ask_end(partition)

    def offset_at(self, topic: Topic, partition: int, time_ms: int) -> int:
        """Return the first offset whose record's time is at or after `time_ms`, else the end."""
        self._refuse_when_closed()
        self._stream(topic).check_identity()
        found = self._cluster.offset_at(topic.name, partition, max(0, time_ms))
        return found if found is not None else self.offset_end(topic, partition)

    def wait(
        self,
        topic: Topic,
        offsets: Mapping[int, int],
        timeout_s: float,
        *,
        attended: bool = False,
    ) -> bool:
        """Wait until there is something at or after an offset; see `Log.wait`."""
        self._refuse_when_closed()
        wakes = self._wakes
        try:
            return self._stream(topic).wait(offsets, timeout_s, lambda: self._wakes != wakes)
        except Closed:
            self._refuse_when_closed()
            return False  # the name has another topic by now: whoever reads will hear of it

    def wake(self) -> None:
        """Make every `wait` of this process return now (within 25 ms)."""
        self._wakes += 1

    def _stream(self, topic: Topic) -> _Stream:
        with self._mutex:
            self._refuse_when_closed()
            stream = self._streams.get(topic.name)
            if stream is None or stream.identity != topic.identity:
                if stream is not None:
                    stream.close()
                stream = self._streams[topic.name] = _Stream(self, topic.name, topic.identity)
            return stream

    def reader(self, name: str, linger_ms: int) -> Reader:
        """Return a new reader of a topic."""
        return Reader(self._address, name, f"{self._config.namespace}.readers", linger_ms)

    def describe_identity(self, name: str) -> str | None:
        """Return the identity that a topic has now, None when there is none."""
        found = self._cluster.describe(name)
        return self._identity(found) if found is not None else None

    # --- ownership --------------------------------------------------------------------------

    def shards(self, topic: Topic) -> int:
        """Return the number of partitions."""
        return topic.partitions

    def shard_of(self, key: bytes, topic: Topic) -> int:
        """Return the partition of the instance."""
        return self.partition_of(key, topic)

    def own(
        self,
        topic: Topic,
        group: str,
        changed: Callable[[frozenset[int]], None],
        progress: Progress | None = None,
        is_busy: Callable[[int], bool] | None = None,
    ) -> Ownership:
        """Join `group` and hold a fair share of the topic's partitions until closed."""
        with self._mutex:
            self._refuse_when_closed()
            name = _group_name(topic, group)
            owner = GroupOwnership(self._address, topic, name, changed, progress, is_busy)
            self._owners.append(owner)
        return owner

    def members(self, topic: Topic, group: str) -> list[Member]:
        """Return who holds the topic's partitions for a group, on all hosts; see `Log.members`."""
        self._refuse_when_closed()
        return self._cluster.members(_group_name(topic, group), topic)

    # --- an operator's look --------------------------------------------------------------------

    def diagnose(self) -> Iterator[Finding]:
        """Yield what is well and what is not; see `Log.diagnose`."""
        return diagnose(self._cluster, self.topics, self._config)

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Flush, then let go of everything. Calling it again does nothing."""
        if self._abandoned:
            return
        with self._mutex:
            if self._closed:
                return
            self._closed = True
        self.wake()
        for owner in self._owners:
            owner.close()
        self._writer.close()
        for stream in self._streams.values():
            stream.close()
        self._metadata.close()

    def abandon(self) -> None:
        """Refuse everything in a forked child, and never free a client there.

        Freeing a client joins its threads, and a forked child has none: it would hang. So each
        gets a reference that nobody gives back.
        """
        self._abandoned = True
        clients: list[object] = [self._cluster.admin, *self._writer.clients()]
        clients += [client for owner in self._owners for client in owner.clients()]
        clients += [client for stream in self._streams.values() for client in stream.clients()]
        clients += self._metadata.clients()
        for client in clients:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))

    def _refuse_when_closed(self) -> None:
        if self._abandoned:
            raise Closed(
                f"the log {self.url} was opened before os.fork(): its connections belong to the"
                " parent. Open the store in the child, or start workers with `spawn`"
            )
        if self._closed:
            raise Closed(f"the log {self.url} is closed")

    # --- for the rooms inside ---------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        return self._cluster

    @property
    def read_timeout_s(self) -> float:
        return self._config.read_timeout_s

    @property
    def append_timeout_s(self) -> float:
        return self._config.append_timeout_s

    @property
    def writer(self) -> KafkaWriter:
        return self._writer


class _Stream:
    """Both readers of one topic, each made when it is first needed."""

    def __init__(self, log: KafkaLog, name: str, identity: str | None) -> None:
        self.identity = identity
        self._log = log
        self._name = name
        self._mutex = threading.Lock()
        self._closed = False
        self._tail: Reader | None = None
        self._scan: Reader | None = None
        self._scanning = threading.Lock()
        self._scanned_at = 0.0
        self._checked_at = -_IDENTITY_CHECK_S
        self._ends: dict[int, int] = {}
        self._asked_ends: dict[int, Future[Any]] = {}
        self._looked_at = time.monotonic()
        self._written = log.writer.ends(name)

    def read(self, partition: int, offset: int, records_max: int, bytes_max: int) -> Batch:
        self.check_identity()
        tail = self._tail
        if tail is not None:
            # Everything that this process can know of: what it wrote, and ends that it asked for or
            # read up to. News of others come by `wait`; asking here would cost a request per empty
            # read.
            end = max(self._written.get(partition, 0), self._ends.get(partition, 0))
            batch = self._read(tail, partition, offset, records_max, bytes_max, end)
            if batch is not None:
                return batch
        with self._scanning:
            return self._read_by_scan(partition, offset, records_max, bytes_max)

    def _read_by_scan(self, partition: int, offset: int, records_max: int, bytes_max: int) -> Batch:
        with self._mutex:
            self._refuse_when_closed()
            if self._scan is None:
                self._scan = self._log.reader(self._name, _SCAN_LINGER_MS)
            scan = self._scan
        self._scanned_at = time.monotonic()
        while True:
            if not scan.covers(partition, offset):
                end = self.ask_end(partition)
                if not 0 <= offset <= end:
                    raise LogTruncated(
                        f"{self._name}/{partition}: offset {offset} is behind the end, {end}"
                    )
                if offset == end:
                    return Batch((), offset)
                scan.release_idle(_SCAN_IDLE_S)
                scan.place({partition: offset})
            batch = self._read(scan, partition, offset, records_max, bytes_max, None)
            if batch is not None:
                break
        with self._mutex:  # it was fetched ahead, maybe, and lies behind the end that was asked for
            self._ends[partition] = max(batch.offset_next, self._ends.get(partition, 0))
        # What nobody goes on with must not be fetched: it would fill the queue that all partitions
        # share. At the end it would ask the brokers for news that nobody awaits.
        is_jump = records_max < _SCAN_RECORDS_MIN
        is_end = not batch.records and batch.offset_next == offset
        if is_jump or is_end:
            scan.release(partition)
        return batch

    def _read(
        self,
        reader: Reader,
        partition: int,
        offset: int,
        records_max: int,
        bytes_max: int,
        end: int | None,
    ) -> Batch | None:
        return reader.read(
            partition,
            offset,
            records_max=records_max,
            bytes_max=bytes_max,
            timeout_s=self._log.read_timeout_s,
            end=end,
            ask_end=lambda: self.ask_end(partition),
        )

    def ask_end(self, partition: int) -> int:
        """Ask the cluster for the end; what lies below it is returned by every later `read`."""
        known = self._ends.get(partition, 0)
        end = self._log.cluster.offset_end(self._name, partition)
        with self._mutex:
            # Of two threads that ask, the one with the older answer may come here last. But less
            # than what was known before it was asked for is no older answer: the log was cut.
            known = self._ends.get(partition, 0) if end >= known else 0
            self._ends[partition] = max(end, known)
        return end

    def wait(
        self, offsets: Mapping[int, int], timeout_s: float, is_woken: Callable[[], bool]
    ) -> bool:
        with self._mutex:
            self._refuse_when_closed()
            if self._tail is None:
                self._tail = self._log.reader(self._name, _TAIL_LINGER_MS)
            tail = self._tail
        scan = self._scan
        if scan is not None and time.monotonic() - self._scanned_at > _SCAN_IDLE_S:
            with self._scanning:
                scan.release_idle(_SCAN_IDLE_S)
            self._scanned_at = float("inf")
        return self._has_unsent(offsets) or tail.wait(offsets, timeout_s, is_woken)

    def _has_unsent(self, offsets: Mapping[int, int]) -> bool:
        """Look now and then, waiting for nothing, whether the cluster has news that did not come.

        A client can stop fetching when a broker comes back (confluentinc/librdkafka issue 5153).
        `read` takes another one then, but only where it knows of a record: from here.
        """
        with self._mutex:
            now = time.monotonic()
            if not self._asked_ends:
                if offsets and now - self._looked_at >= _LOOK_S:
                    self._looked_at = now
                    self._asked_ends = self._log.cluster.ask_ends(self._name, offsets)
                return False
            if not all(answer.done() for answer in self._asked_ends.values()):
                return False
            ends = {one: answered_end(answer) for one, answer in self._asked_ends.items()}
            self._asked_ends = {}
            unsent = {
                partition: end
                for partition, end in ends.items()
                if end is not None and offsets.get(partition, end) < end
            }
            for partition, end in unsent.items():
                self._ends[partition] = max(end, self._ends.get(partition, 0))
        return bool(unsent)

    def check_identity(self) -> None:
        """Ask now and then whether this is still the topic that it was.

        A topic that was deleted and created again has offsets of the same numbers for other
        events. Its leader epochs and its end usually give it away; this does always.
        """
        now = time.monotonic()
        if self.identity is None or now - self._checked_at < _IDENTITY_CHECK_S:
            return
        found = self._log.describe_identity(self._name)
        if found != self.identity:
            became = "deleted" if found is None else "deleted and created again"
            raise LogTruncated(
                f"{self._log.url}: topic {self._name} (id {self.identity}) was {became}"
            )
        self._checked_at = now

    def close(self) -> None:
        with self._mutex:
            self._closed = True  # from here on no reader is made that nobody would close
        for reader in (self._tail, self._scan):
            if reader is not None:
                reader.close()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Closed(f"the readers of topic {self._name} of {self._log.url} are closed")

    def clients(self) -> list[object]:
        readers = [reader for reader in (self._tail, self._scan) if reader is not None]
        return [client for reader in readers for client in reader.clients()]


class _Metadata:
    """What is known about the apps of a namespace, read from the topic of metadata.

    A record's key is the topic's name, NUL, and the name of the value; its value is JSON with the
    identity of the topic, so that a topic that is created again begins with nothing.
    """

    #: The number of partitions an app was created with. The topic may get more; the app may not,
    #: because its instances would move.
    PARTITIONS = "kafka.partitions"

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._identity: str | None = None
        self._offset_next = 0
        self._values: dict[tuple[str, str, str], object] = {}  # topic, identity, name

    def partitions(self, name: str, identity: str) -> int | None:
        value = self._read(name, identity).get(self.PARTITIONS)
        return value if isinstance(value, int) else None

    def of(self, topic: Topic) -> dict[str, object]:
        values = self._read(topic.name, topic.identity)
        values.pop(self.PARTITIONS, None)
        return values

    def set(self, name: str, identity: str, changes: Mapping[str, object]) -> None:
        self._log.create_metadata_topic()
        told = _Told(len(changes))
        self._log.writer.append(
            self._log.metadata_topic,
            [
                Append(
                    0,
                    f"{name}\0{key}".encode(),
                    orjson.dumps({"identity": identity, "value": value}),
                    told,
                )
                for key, value in changes.items()
            ],
        )
        told.wait()

    def _read(self, name: str, identity: str) -> dict[str, object]:
        with self._lock:
            self._refresh()
            return {
                key: value
                for (topic, of, key), value in self._values.items()
                if topic == name and of == identity
            }

    def _refresh(self) -> None:
        """Read what was written since; another topic of this name starts from its beginning."""
        identity = self._log.describe_identity(self._log.metadata_topic)
        if identity != self._identity:
            self._values.clear()
            self._offset_next, self._identity = 0, identity
            if self._stream is not None:
                self._stream.close()
            self._stream = None
        if identity is None:
            return
        if self._stream is None:
            self._stream = _Stream(self._log, self._log.metadata_topic, None)
        while True:
            batch = self._stream.read(
                0, self._offset_next, _METADATA_RECORDS_MAX, _METADATA_BYTES_MAX
            )
            for record in batch.records:
                self._take(record.key, record.value)
            if batch.offset_next == self._offset_next:
                return
            self._offset_next = batch.offset_next

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        if key is None or value is None:
            return
        try:
            topic, _, name = key.decode().partition("\0")
            content = orjson.loads(value)
            self._values[topic, content["identity"], name] = content["value"]
        except (UnicodeDecodeError, orjson.JSONDecodeError, KeyError, TypeError):
            return  # not ours; what we need of it, we do not have

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def clients(self) -> list[object]:
        return self._stream.clients() if self._stream is not None else []


class _Told:
    """Waits for the deliveries of one call."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._error: Exception | None = None
        self._done = threading.Event()
        if count == 0:
            self._done.set()

    def delivered(self, partition: int, offset: int) -> None:
        self._count_down()

    def failed(self, error: Exception) -> None:
        self._error = error
        self._count_down()

    def _count_down(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()

    def wait(self) -> None:
        self._done.wait()  # the writer's deadline ends it
        if self._error is not None:
            raise self._error
