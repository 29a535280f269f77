"""The writing half of the Kafka log: one idempotent producer, its deadlines and its end.

What librdkafka gives, and what is added here:

- With idempotence, retries neither repeat records nor reorder a partition; the broker refuses a
  batch whose predecessor it does not have.
- A batch that the broker refuses for good would leave a gap before the batches behind it. With
  `enable.gapless.guarantee` that is a fatal error of the producer instead.
- A record that waits longer than `message.timeout.ms` would be dropped, and a later one of its
  partition could still get through. So librdkafka waits without limit here, and the deadline is
  ours: when the oldest record is overdue, or the producer is dead, all its records fail together
  and the next append gets a new producer. No record is ever handed to two producers.

Whether a record that failed in that way had been sent cannot be known: it is OutcomeUnknown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventstore.config import Config
from eventstore.errors import Closed, EventTooLarge, LogUnavailable, OutcomeUnknown
from eventstore.log.base import Append, Delivery
from eventstore.log.kafka_client import build, client_options, reason
from eventstore.log.kafka_settings import BATCH_OVERHEAD_BYTES_MAX, Address
from eventstore.testing import fault_point

__all__ = ["KafkaWriter"]

log = logging.getLogger(__name__)

#: How long the thread that hands out deliveries sleeps at most, so that it sees deadlines and the
#: end. Deliveries themselves wake it at once.
_POLL_S = 0.1

#: How long a writer that met a full buffer waits before it tries again without being woken.
_ROOM_S = 0.01

#: Memory that a small record costs beside its bytes while it is on its way: librdkafka's and
#: Python's objects. So `buffer_bytes_max` bounds small records as well as large ones.
_RECORD_OVERHEAD_BYTES = 512

#: How long a producer that is given up may take to return its records; it has them in memory.
_PURGE_S = 10.0

#: Answers of a broker (or of the client, before sending) by which nothing was written.
_NOT_WRITTEN = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


class _Cohort:
    """Records queued between two moments: deadlines and flush() look at cohorts, not records."""

    __slots__ = ("closed_at", "done", "opened_at", "queued")

    def __init__(self, now: float) -> None:
        self.opened_at = now
        self.closed_at: float | None = None
        self.queued = 0  # changed under the writer's lock
        self.done = 0  # changed by the delivering thread only

    @property
    def is_done(self) -> bool:
        return self.done >= self.queued


class KafkaWriter:
    """Appends records of any topic. Thread-safe; deliveries come from one thread of its own."""

    def __init__(self, address: Address, config: Config) -> None:
        self._address = address
        self._event_bytes_max = config.event_bytes_max
        self._timeout_s = config.append_timeout_s
        self._options: dict[str, Any] = {
            # 1 ms gathers a batch from a busy writer and costs a lonely one little.
            "linger.ms": 1,
            **client_options(address),
            "acks": "all",
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "message.timeout.ms": 0,
            "message.max.bytes": config.event_bytes_max + BATCH_OVERHEAD_BYTES_MAX,
            "queue.buffering.max.kbytes": max(1, config.buffer_bytes_max // 1024),
            "queue.buffering.max.messages": config.buffer_bytes_max // _RECORD_OVERHEAD_BYTES,
        }
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._fatal: str | None = None  # why the producer is dead, set by the delivering thread
        self._given_up = ""  # why the records that fail now are given up
        self._cohorts: deque[_Cohort] = deque([_Cohort(time.monotonic())])
        self._cohort = self._cohorts[0]
        self._ends: dict[str, dict[int, int]] = {}
        self._delivered = threading.Condition()
        self._delivered_count = 0
        self._waiting = 0
        self._seen = threading.local()
        self._closed = False
        self._has_producer = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="kafka-deliveries", daemon=True)

    # --- appending --------------------------------------------------------------------------

    def append(self, topic: str, appends: Sequence[Append]) -> None:
        """Queue records; see `Log.append`.

        Raises:
            EventTooLarge: a value is above `event_bytes_max`; nothing was queued.
        """
        for append in appends:
            if len(append.value) > self._event_bytes_max:
                raise EventTooLarge(len(append.value), self._event_bytes_max)
        queued = self._queue(topic, appends, 0, None)
        if queued < len(appends):
            self._queue_slowly(topic, appends, queued)

    def _queue(
        self, topic: str, appends: Sequence[Append], start: int, after: Producer | None
    ) -> int:
        """Queue from `start` on; return where the buffer was full, or the end.

        `after` is the producer that has the earlier records of the call. When it is gone, so are
        they, and nothing may follow them: the rest fails.
        """
        index = start
        with self._lock:
            if after is not None and (self._closed or self._producer is not after):
                self._refuse(appends[start:], "earlier events of the same call failed")
                return len(appends)
            producer = self._current_producer()
            cohort, told, produce = self._cohort, self._told, producer.produce
            ends = self._ends.setdefault(topic, {})
            try:
                for index in range(start, len(appends)):
                    partition, key, value, delivery = appends[index]
                    produce(topic, value, key, partition, partial(told, cohort, ends, delivery))
                index = len(appends)
            except BufferError:
                pass
            except KafkaException as error:
                # The rest of the call fails with it: nothing may follow a record that failed.
                appends[index].delivery.failed(self._translated(error.args[0], len(value)))
                self._refuse(appends[index + 1 :], "an earlier event of the same call failed")
                cohort.queued += index - start
                return len(appends)
            cohort.queued += index - start
        return index

    def _queue_slowly(self, topic: str, appends: Sequence[Append], queued: int) -> None:
        """Queue the rest of a call as the buffer gets room."""
        deadline = time.monotonic() + self._timeout_s
        producer = self._producer
        while queued < len(appends):
            # Not longer: the buffer may have got its room before we began to wait.
            self._wait_for_delivery(_ROOM_S)
            before = queued
            # While nothing of the call is queued, any producer will do.
            queued = self._queue(topic, appends, queued, producer if queued else None)
            if queued > before:
                producer = self._producer
                deadline = time.monotonic() + self._timeout_s
            elif time.monotonic() > deadline:
                why = f"the buffer stayed full for {self._timeout_s:g} s"
                if queued == 0:
                    raise LogUnavailable(f"{self._address.url}: {why}; nothing was queued")
                self._refuse(appends[queued:], why)
                return

    def _refuse(self, appends: Sequence[Append], why: str) -> None:
        for append in appends:
            append.delivery.failed(LogUnavailable(f"{self._address.url}: not sent: {why}"))

    def _current_producer(self) -> Producer:
        if self._closed:
            raise Closed(f"the log {self._address.url} is closed")
        if self._producer is None:
            options = self._options | {"error_cb": self._on_error}
            self._producer = build(Producer, options, self._address)
            self._has_producer.set()
            if not self._thread.is_alive():
                self._thread.start()
        return self._producer

    def ends(self, topic: str) -> Mapping[int, int]:
        """Return, live, the offsets behind what was acknowledged to this process."""
        with self._lock:
            return self._ends.setdefault(topic, {})

    # --- waiting ----------------------------------------------------------------------------

    def drive(self, timeout_s: float | None) -> None:
        """Wait until something was delivered since this thread last came here."""
        seen = getattr(self._seen, "count", -1)
        if seen == self._delivered_count:
            self._wait_for_delivery(timeout_s)
        self._seen.count = self._delivered_count

    def _wait_for_delivery(self, timeout_s: float | None) -> bool:
        with self._delivered:
            count = self._delivered_count
            self._waiting += 1
            try:
                return self._delivered.wait_for(
                    lambda: self._delivered_count != count or self._closed, timeout_s
                )
            finally:
                self._waiting -= 1

    def flush(self, timeout_s: float | None) -> None:
        """Wait for every record queued before the call."""
        with self._lock:
            self._rotate()
            cohorts = [cohort for cohort in self._cohorts if cohort.closed_at is not None]
        with self._delivered:
            self._waiting += 1
            try:
                done = self._delivered.wait_for(
                    lambda: all(cohort.is_done for cohort in cohorts), timeout_s
                )
            finally:
                self._waiting -= 1
        if not done:
            open_records = sum(cohort.queued - cohort.done for cohort in cohorts)
            raise LogUnavailable(
                f"{self._address.url}: {open_records} events were not acknowledged within"
                f" {timeout_s:g} s; they stay queued"
            )

    def _rotate(self) -> None:
        """Open a new cohort; the lock is held."""
        now = time.monotonic()
        self._cohort.closed_at = now
        self._cohort = _Cohort(now)
        self._cohorts.append(self._cohort)

    # --- delivering -------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand out what the brokers answer, and watch over deadlines, until closed."""
        while not self._closed:
            producer = self._producer
            if producer is None:
                self._has_producer.wait(_POLL_S)
                continue
            self._poll(producer, _POLL_S)
            if self._fatal is not None:
                self._give_up(self._fatal)
            elif self._is_overdue():
                self._give_up(f"no acknowledgement within {self._timeout_s:g} s")

    def _poll(self, producer: Producer, timeout_s: float) -> None:
        try:
            producer.poll(timeout_s)
        except Exception:  # of somebody's `delivered` or `failed`: the other records go on
            log.exception("a delivery raised")

    def _told(
        self,
        cohort: _Cohort,
        ends: dict[int, int],
        delivery: Delivery,
        error: Any,
        message: Message,
    ) -> None:
        """Tell one writer what became of its record. Runs once per record: every name counts."""
        fault_point("log.acknowledged")
        cohort.done += 1
        try:
            if error is None:
                partition: int = message.partition()  # type: ignore[assignment]
                offset: int = message.offset()  # type: ignore[assignment]
                ends[partition] = offset + 1
                delivery.delivered(partition, offset)
            else:
                delivery.failed(self._translated(error, len(message)))
        finally:
            self._delivered_count += 1
            if self._waiting:
                with self._delivered:
                    self._delivered.notify_all()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = reason(error, self._address)

    def _is_overdue(self) -> bool:
        now = time.monotonic()
        with self._lock:
            if self._cohort.queued and now - self._cohort.opened_at > self._timeout_s / 20:
                self._rotate()
            while len(self._cohorts) > 1 and self._cohorts[0].is_done:
                self._cohorts.popleft()
            closed_at = self._cohorts[0].closed_at
        return closed_at is not None and now - closed_at > self._timeout_s

    def _give_up(self, why: str) -> None:
        """Fail everything that is on its way; the next append makes a new producer."""
        with self._lock:
            producer, self._producer, self._fatal = self._producer, None, None
            self._has_producer.clear()
            self._rotate()
            cohorts = [cohort for cohort in self._cohorts if cohort.closed_at is not None]
            self._given_up = why
        if producer is None:
            return
        producer.purge()
        deadline = time.monotonic() + _PURGE_S
        while not all(cohort.is_done for cohort in cohorts) and time.monotonic() < deadline:
            self._poll(producer, _POLL_S)

    def _translated(self, error: KafkaError, size_bytes: int) -> Exception:
        if error.code() in _TOO_LARGE:
            return EventTooLarge(size_bytes, self._event_bytes_max)
        said = reason(error, self._address)
        if error.code() in _NOT_WRITTEN:
            return LogUnavailable(f"{self._address.url}: not written: {said}")
        given_up = error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
        why = self._given_up if given_up else said
        return OutcomeUnknown(
            f"{self._address.url}: {why}: the event may or may not be in the log; retry with the"
            " same idempotency key"
        )

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for acknowledgements until the deadline, then fail what is left."""
        with self._lock:
            if self._closed:
                return
        if self._thread.is_alive():
            try:
                self.flush(self._timeout_s)
            except LogUnavailable:
                self._given_up = "the log was closed"
        with self._lock:
            self._closed = True
        with self._delivered:
            self._delivered.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._give_up("the log was closed")

    def clients(self) -> list[object]:
        """Return what must not be touched, nor freed, in a forked child."""
        return [self._producer]
