"""The reading half of the Kafka log: consumers without a group, and what they fetched ahead.

A topic has up to two readers. The *tail* stands where `wait` was asked to stand, so that news
arrive without being asked for; the *scan* serves reads at any other offset. Both fetch ahead;
`read` takes from what was fetched when it continues there.

A consumer is polled by the thread that needs its records: a thread of our own in between would
cost a switch per batch. When several threads need records, one polls and the others are told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message
from confluent_kafka import TopicPartition as Place

from eventstore.errors import Closed, EventStoreError, LogTruncated, LogUnavailable
from eventstore.events import Batch, Record
from eventstore.log.kafka_client import build, client_options, is_unknown_topic, reason
from eventstore.log.kafka_settings import Address

__all__ = ["Reader"]

#: How long one poll lasts at most: the delay of `wake` and of a change of position.
POLL_S = 0.025

#: A client from which nothing comes for so long, though the cluster has it, is given up.
_STUCK_S = 5.0

#: Records taken from the client at once.
_FETCH_RECORDS_MAX = 2_000

#: What a reader holds for readers that do not come; then the largest partition is let go of.
_BUFFER_BYTES_MAX = 32 * 1024 * 1024

#: What the client itself fetches ahead.
_PREFETCH_KIB_MAX = 16 * 1024


class _Cursor:
    """Where one partition is read: what was fetched, and the offset behind all of that."""

    __slots__ = ("bytes", "epochs", "error", "frontier", "read_at", "records", "sizes", "start")

    def __init__(self, offset: int) -> None:
        self.start = offset  # every committed record from here to the frontier is in `records`
        self.frontier = offset
        self.records: list[Record] = []
        self.sizes: list[int] = []
        self.bytes = 0
        self.epochs: list[tuple[int, int]] = []  # (offset, leader epoch from there on)
        self.error: EventStoreError | None = None
        self.read_at = time.monotonic()

    def covers(self, offset: int) -> bool:
        return self.start <= offset <= self.frontier

    def take(self, offset: int, records_max: int, bytes_max: int) -> Batch:
        """Return records from `offset` on and forget them, and what lies before them."""
        first = 0
        if self.start < offset:
            while first < len(self.records) and self.records[first].offset < offset:
                first += 1
        end, size_bytes = first, 0
        if first == 0 and len(self.records) <= records_max and self.bytes <= bytes_max:
            end = len(self.records)
        else:
            while end < len(self.records) and end - first < records_max:
                size_bytes += self.sizes[end]
                if size_bytes > bytes_max and end > first:
                    break
                end += 1
        records = self.records[first:end]
        self.bytes -= sum(self.sizes[:end])
        del self.records[:end], self.sizes[:end]
        self.start = self.records[0].offset if self.records else self.frontier
        return Batch(records, max(offset, self.start), self._epoch(records))

    def _epoch(self, records: Sequence[Record]) -> int:
        if not records:
            return -1
        last = records[-1].offset
        while len(self.epochs) > 1 and self.epochs[1][0] <= last:
            del self.epochs[0]
        return self.epochs[0][1]


class Reader:
    """One consumer of one topic. Thread-safe."""

    def __init__(self, address: Address, topic: str, group: str, linger_ms: int) -> None:
        """Prepare a consumer; nothing is fetched before a position is asked for.

        Args:
            address: the cluster.
            topic: the topic's full name.
            group: the client insists on a group's name; the group is never joined.
            linger_ms: how long a broker may wait for news before it answers. Long where news are
                awaited; short where positions change, as a change waits for the answer.
        """
        self._address = address
        self._topic = topic
        options: dict[str, Any] = {
            "queued.max.messages.kbytes": _PREFETCH_KIB_MAX,
            **client_options(address),
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": linger_ms,
            "fetch.error.backoff.ms": 50,
            # How long fetching rests when enough is fetched; the default of 1 s starves a scan.
            "fetch.queue.backoff.ms": 5,
        }
        self._options = options
        self._consumer = build(Consumer, options, address)
        self._built_at = time.monotonic()
        self._given_up: list[Consumer] = []
        self._state = threading.Condition()
        self._cursors: dict[int, _Cursor] = {}
        self._is_polling = False
        self._placing = 0
        self._closed = False
        self._last_error = "no answer"

    # --- reading ----------------------------------------------------------------------------

    def covers(self, partition: int, offset: int) -> bool:
        """Say whether a read there continues what was fetched."""
        with self._state:
            cursor = self._cursors.get(partition)
            return cursor is not None and cursor.covers(offset)

    def read(
        self,
        partition: int,
        offset: int,
        *,
        records_max: int,
        bytes_max: int,
        end: int | None,
        ask_end: Callable[[], int],
        timeout_s: float,
    ) -> Batch | None:
        """Return records from `offset` on; None where the reader does not stand there (any more).

        Waits only for records below the end: they are there, and on their way.

        Args:
            partition: of the topic.
            offset: where to begin.
            records_max: at most so many, and at least one where there is one.
            bytes_max: about so many.
            end: an end that is known already; None asks for it before "nothing there" is said.
            ask_end: asks the cluster for the end.
            timeout_s: how long records below the end may take.

        Raises:
            LogTruncated: the offset is before the first record or behind the end.
            LogUnavailable: records below the end did not come in time.
        """
        began = time.monotonic()
        deadline, patience_s = began + timeout_s, _STUCK_S
        if self._wants_more(partition, records_max, bytes_max):
            self._advance(0.0)
        while True:
            with self._state:
                cursor = self._cursors.get(partition)
                if cursor is None or not cursor.covers(offset):
                    return None
                cursor.read_at = time.monotonic()
                batch = cursor.take(offset, records_max, bytes_max)
                if batch.records or batch.offset_next > offset:
                    return batch
                if cursor.error is not None:
                    self._forget(partition)
                    raise cursor.error
            if end is None:
                end = self._checked_end(partition, offset, ask_end())
            if offset >= end:
                return batch
            if time.monotonic() > deadline:
                raise LogUnavailable(
                    f"{self._address.url}: {self._topic}/{partition} was not read within"
                    f" {timeout_s:g} s: {self._last_error}"
                )
            if time.monotonic() > max(began, self._built_at) + patience_s:
                self._build_anew()
                patience_s *= 2  # the cluster may be away, and no client could help
            if not self._advance(POLL_S):
                # An event may be acknowledged and yet lie behind a transaction that is still open.
                end = self._checked_end(partition, offset, ask_end())

    def _checked_end(self, partition: int, offset: int, end: int) -> int:
        if end < offset:
            raise LogTruncated(
                f"{self._topic}/{partition}: offset {offset} is behind the end, {end}"
            )
        return end

    def _wants_more(self, partition: int, records_max: int, bytes_max: int) -> bool:
        with self._state:
            cursor = self._cursors.get(partition)
            return cursor is None or (
                len(cursor.records) < records_max and cursor.bytes < bytes_max
            )

    def wait(
        self, offsets: Mapping[int, int], timeout_s: float, is_woken: Callable[[], bool]
    ) -> bool:
        """Wait until a partition has something at or after its offset; False on timeout or wake."""
        deadline = time.monotonic() + timeout_s
        self._stand_at(offsets)
        while not self._has_news(offsets):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or is_woken():
                return False
            self._advance(min(POLL_S, left_s))
        return True

    def _stand_at(self, offsets: Mapping[int, int]) -> None:
        with self._state:
            elsewhere = {
                partition: offset
                for partition, offset in offsets.items()
                if (cursor := self._cursors.get(partition)) is None or cursor.frontier < offset
            }
        if elsewhere:
            self.place(elsewhere)

    def _has_news(self, offsets: Mapping[int, int]) -> bool:
        with self._state:
            self._refuse_when_closed()
            for partition, offset in offsets.items():
                cursor = self._cursors.get(partition)
                if cursor is None or cursor.error is not None or cursor.frontier > offset:
                    return True
        return False

    # --- positions --------------------------------------------------------------------------

    def place(self, offsets: Mapping[int, int]) -> None:
        """Go on at these offsets, and forget what was fetched of these partitions."""
        places = [Place(self._topic, partition, offset) for partition, offset in offsets.items()]
        with self._alone():
            self._refuse_when_closed()
            for partition in offsets:
                self._forget(partition)
            self._consumer.incremental_assign(places)
            for partition, offset in offsets.items():
                self._cursors[partition] = _Cursor(offset)

    def release(self, partition: int) -> None:
        """Fetch nothing more of a partition."""
        with self._alone():
            self._forget(partition)

    def release_idle(self, idle_s: float) -> None:
        """Fetch nothing more of partitions that were not read for so long."""
        before = time.monotonic() - idle_s
        with self._alone():
            for partition, cursor in list(self._cursors.items()):
                if cursor.read_at < before:
                    self._forget(partition)

    def _build_anew(self) -> None:
        """Take another client, which goes on where this one stood.

        One was seen that fetched nothing for minutes after a broker had come back, though the
        broker had told it of the records (as in confluentinc/librdkafka issue 5153). What else such
        a client does not do is not known, so nobody waits until it is closed.
        """
        with self._alone():
            self._refuse_when_closed()
            stuck, self._consumer = self._consumer, build(Consumer, self._options, self._address)
            self._given_up.append(stuck)
            self._built_at = time.monotonic()
            self._consumer.incremental_assign(
                [
                    Place(self._topic, partition, cursor.frontier)
                    for partition, cursor in self._cursors.items()
                ]
            )
        closing = threading.Thread(
            target=self._close_given_up, args=(stuck,), name="kafka-given-up", daemon=True
        )
        closing.start()

    def _close_given_up(self, stuck: Consumer) -> None:
        try:
            stuck.close()
        finally:
            with self._state:
                self._given_up.remove(stuck)

    def _forget(self, partition: int) -> None:
        """Drop a partition; nobody polls now, or the caller is the one who did."""
        if self._cursors.pop(partition, None) is not None:
            self._consumer.incremental_unassign([Place(self._topic, partition)])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While entered, no thread polls the consumer; the state is locked."""
        with self._state:
            self._placing += 1
            try:
                while self._is_polling:
                    self._state.wait()
                yield
            finally:
                self._placing -= 1
                self._state.notify_all()

    # --- polling ----------------------------------------------------------------------------

    def _advance(self, timeout_s: float) -> bool:
        """Poll the client once, or wait for the thread that does; False when nothing came."""
        with self._state:
            self._refuse_when_closed()
            if self._is_polling or self._placing:
                return self._state.wait(timeout_s)
            self._is_polling = True
        messages: list[Message] = []
        try:
            messages = self._poll(timeout_s)
        finally:
            with self._state:
                self._is_polling = False
                self._absorb(messages)
                self._state.notify_all()
        return bool(messages)

    def _poll(self, timeout_s: float) -> list[Message]:
        # Not consume(many, timeout): it would wait for many.
        messages: list[Message] = []
        if timeout_s > 0:
            message = self._consumer.poll(timeout_s)
            if message is None:
                return messages
            messages.append(message)
        messages += self._consumer.consume(_FETCH_RECORDS_MAX, 0)
        return messages

    def _absorb(self, messages: Sequence[Message]) -> None:
        """File messages under their partitions; the state is locked."""
        cursor: _Cursor | None = None
        partition = -1
        epoch = -2
        for message in messages:
            error = message.error()
            if error is not None:
                self._absorb_error(message, error)
                partition = -1
                continue
            if message.partition() != partition:
                partition = message.partition()  # type: ignore[assignment]
                cursor = self._cursors.get(partition)
                epoch = cursor.epochs[-1][1] if cursor is not None and cursor.epochs else -2
            offset: int = message.offset()  # type: ignore[assignment]
            if cursor is None or offset < cursor.frontier:
                continue  # of a position that was left
            if message.leader_epoch() != epoch:
                epoch_new = message.leader_epoch()
                if epoch_new is not None and epoch_new < epoch:
                    cursor.error = LogTruncated(
                        f"{self._topic}/{partition}: the leader epoch fell from {epoch} to"
                        f" {epoch_new}: this is not the log that was read before"
                    )
                    cursor = None
                    continue
                epoch = -1 if epoch_new is None else epoch_new
                cursor.epochs.append((offset, epoch))
            record = Record(offset, message.timestamp()[1], message.key(), message.value())
            size_bytes = len(message) + 64
            cursor.records.append(record)
            cursor.sizes.append(size_bytes)
            cursor.bytes += size_bytes
            cursor.frontier = offset + 1
        while sum(each.bytes for each in self._cursors.values()) > _BUFFER_BYTES_MAX:
            self._forget(max(self._cursors, key=lambda each: self._cursors[each].bytes))

    def _absorb_error(self, message: Message, error: KafkaError) -> None:
        code = error.code()
        self._last_error = reason(error, self._address)
        partition = message.partition()
        cursor = self._cursors.get(partition) if message.topic() == self._topic else None  # type: ignore[arg-type]
        if cursor is None:
            return  # about a connection: the client goes on trying, our deadlines decide
        where = f"{self._topic}/{partition}"
        if code == KafkaError._PARTITION_EOF:
            offset: int = message.offset()  # type: ignore[assignment]
            cursor.frontier = max(cursor.frontier, offset)
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION):
            cursor.error = LogTruncated(
                f"{where}: the log no longer has offset {cursor.frontier}: {self._last_error}"
            )
        elif is_unknown_topic(code) or code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            cursor.error = LogUnavailable(f"{where} cannot be read: {self._last_error}")

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        with self._alone():
            if not self._closed:
                self._closed = True
                self._cursors.clear()
                self._consumer.close()

    def clients(self) -> list[object]:
        """Return what must not be touched, nor freed, in a forked child."""
        return [self._consumer, *self._given_up]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Closed(f"the log {self._address.url} is closed")
