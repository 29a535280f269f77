"""The writing half of the Kafka log: one idempotent producer, its deadlines and its end.

What librdkafka gives, and what is added here:

- With idempotence, retries neither repeat records nor reorder a partition, and the broker refuses
  a batch whose predecessor it does not have.
- A batch that the broker refuses for good would leave a gap before the batches behind it. With
  `enable.gapless.guarantee` that is a fatal error of the producer instead.
- A record that waits longer than `message.timeout.ms` would be dropped, and a later one of its
  partition could still get through. So librdkafka waits without limit here, and the deadline is
  ours. It counts the time in which this process could hear an answer, not that in which it was
  stopped, or its machine slept.
- A request whose answer is lost (by a broker that hangs, or a firewall that forgot the connection)
  would be waited for until after that deadline. So it is sent again early enough; a broker that
  has its records already only says so.
- So a producer ends as a whole: when one record fails or is overdue, all that it has fail, and
  the next append gets a new producer. No record is ever handed to two producers.

Whether a record that was given up had been sent cannot be known: it is OutcomeUnknown.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakMethod

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventstore.config import Config
from eventstore.errors import Closed, EventTooLarge, LogUnavailable, OutcomeUnknown
from eventstore.interrupts import HeldBack
from eventstore.log.base import Append, Delivery
from eventstore.log.kafka_client import SILENCE_MS_MAX, build, client_options, reason
from eventstore.log.kafka_settings import BATCH_OVERHEAD_BYTES_MAX, Address
from eventstore.testing import fault_point

__all__ = ["KafkaWriter"]

logger = logging.getLogger(__name__)

#: How long the thread that hands out deliveries sleeps at most, so that it sees deadlines and the
#: end. Deliveries themselves wake it at once.
_POLL_S = 0.1

#: What passes between two looks at the deadlines counts for at most so long: where it was longer,
#: this process did not run, and what the brokers answered meanwhile is still to be read.
_LOOK_S_MAX = 1.0

#: A request is given up, to be sent again, after this part of the deadline of an append, and a
#: broker waits so long for its replicas; a little later its connection is given up.
_TRIES = 3
_TRY_MS_MIN = 1_000
_CONNECTION_MARGIN_MS = 1_000

#: How long the reports on what a producer gave up are waited for; they take milliseconds.
_REPORTS_S_MAX = 2.0

#: How long a writer that met a full buffer waits for much room before it makes do with a little.
_ROOM_S = 0.05

#: Memory that a small record costs beside its bytes while it is on its way: librdkafka's and
#: Python's objects. So `buffer_bytes_max` bounds small records as well as large ones.
_RECORD_OVERHEAD_BYTES = 512

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


class _Row:
    """The records of one partition that are on their way, in their order.

    Deliveries are told in this order, so a record needs no object of its own on its way: with two
    small ones each, Python's garbage collector took half of the time of an append.
    """

    __slots__ = ("deliveries", "ends", "mark", "marked_at", "queued", "told")

    def __init__(self, ends: dict[int, int]) -> None:
        self.deliveries: deque[Delivery] = deque()
        self.ends = ends  # of the topic: partition -> offset behind what was acknowledged
        # Two counts, because what is queued less the length of `deliveries` is wrong in the middle
        # of an append: a new row looked overdue. Both only grow; `told` may be ahead for a moment.
        self.queued = 0  # changed under the writer's lock
        self.told = 0  # changed by the delivering thread
        self.mark = 0  # records up to here were queued at `marked_at`, of the writer's clock
        self.marked_at = 0.0

    def is_overdue(self, now: float, timeout_s: float) -> bool:
        """Say whether a record waits for more than `timeout_s`; to be asked now and then."""
        if self.told >= self.mark:
            self.mark, self.marked_at = self.queued, now
            return False
        return now - self.marked_at > timeout_s


class _Rows(dict[int, _Row]):
    """The rows of one topic, made as they are needed, and who is told of its deliveries."""

    def __init__(self, generation: _Generation, ends: dict[int, int]) -> None:
        super().__init__()
        self.ends = ends
        self.told = partial(generation.told, self)

    def __missing__(self, partition: int) -> _Row:
        row = self[partition] = _Row(self.ends)
        return row


class _Generation:
    """One producer, all that it was given, and its end.

    `told` and `fail` run in the delivering thread only (or after it ended).
    """

    def __init__(self, options: Mapping[str, Any], address: Address, event_bytes_max: int) -> None:
        self._address = address
        self._event_bytes_max = event_bytes_max
        self.topics: dict[str, _Rows] = {}
        self.fault: str | None = None  # why it must end
        self._complaint = ""  # the client's last, about a connection, say
        self._complained_at = 0.0
        self._is_dead = False
        on_error = WeakMethod(self._on_error)  # else producer and generation keep each other

        def heard(error: KafkaError) -> None:
            if (listener := on_error()) is not None:
                listener(error)

        self.producer = build(Producer, {**options, "error_cb": heard}, address)

    def told(self, rows: _Rows, error: KafkaError | None, message: Message) -> None:
        """Tell one writer what became of its record. Runs once per record: every step counts."""
        if self._is_dead:
            return  # its writer was told that nobody knows
        fault_point("log.acknowledged")
        partition: int = message.partition()  # type: ignore[assignment]
        row = rows[partition]
        try:
            if error is not None:
                self.fault = self.fault or reason(error, self._address)
                row.deliveries.popleft().failed(self.translated(error, len(message)))
                return
            offset: int = message.offset()  # type: ignore[assignment]
            row.ends[partition] = offset + 1
            row.deliveries.popleft().delivered(partition, offset)
        finally:
            row.told += 1  # only now: who waits in `flush` may rely on what the delivery did

    def rows(self) -> list[_Row]:
        return [row for rows in list(self.topics.values()) for row in list(rows.values())]

    def fail(self, why: str) -> None:
        """Fail everything that is on its way; whatever the brokers still say is not heard."""
        self._is_dead = True
        self.producer.purge()
        for row in self.rows():
            while row.deliveries:
                try:
                    row.deliveries.popleft().failed(self._unknown(why))
                except Exception:  # the others must hear of it too
                    logger.exception("a delivery raised")
                finally:
                    row.told += 1
        self._let_go()

    def _let_go(self) -> None:
        """Let the producer be freed: it has threads and connections, and an outage makes many.

        Each record keeps its `told`, and that keeps the producer, until its report was taken.
        """
        deadline = time.monotonic() + _REPORTS_S_MAX
        while len(self.producer) and time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):  # its own end, which is decided already
                self.producer.poll(_POLL_S)
        for rows in self.topics.values():
            del rows.told  # it keeps its rows and this generation

    def translated(self, error: KafkaError, size_bytes: int) -> Exception:
        if error.code() in _TOO_LARGE:
            return EventTooLarge(size_bytes, self._event_bytes_max)
        said = reason(error, self._address)
        if error.code() in _NOT_WRITTEN:
            return LogUnavailable(f"{self._address.url}: not written: {said}")
        return self._unknown(said)

    def _unknown(self, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{self._address.url}: {why}: the event may or may not be in the log; retry with the"
            " same idempotency key"
        )

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.fault = self.fault or reason(error, self._address)
        else:
            self._complaint = reason(error, self._address)
            self._complained_at = time.monotonic()

    def complaint(self, within_s: float) -> str:
        """Return what the client complained of last, to be said behind a reason; "" if nothing."""
        is_of_now = self._complaint and time.monotonic() - self._complained_at < within_s
        return f" ({self._complaint})" if is_of_now else ""


class KafkaWriter:
    """Appends records of any topic. Thread-safe; deliveries come from one thread of its own."""

    def __init__(self, address: Address, config: Config) -> None:
        self._address = address
        self._event_bytes_max = config.event_bytes_max
        self._timeout_s = config.append_timeout_s
        self._records_max = config.buffer_bytes_max // _RECORD_OVERHEAD_BYTES
        try_ms = int(config.append_timeout_s * 1_000 / _TRIES)
        try_ms = min(max(try_ms, _TRY_MS_MIN), SILENCE_MS_MAX)
        self._options: dict[str, Any] = {
            # A batch is what arrived while the one before was sent: a lonely record waits for
            # nothing, and a busy writer still gets large batches.
            "linger.ms": 0,
            "request.timeout.ms": try_ms,
            **client_options(address, silence_ms=try_ms + _CONNECTION_MARGIN_MS),
            "acks": "all",
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "message.timeout.ms": 0,
            "message.max.bytes": config.event_bytes_max + BATCH_OVERHEAD_BYTES_MAX,
            "queue.buffering.max.kbytes": max(1, config.buffer_bytes_max // 1024),
            "queue.buffering.max.messages": self._records_max,
        }
        self._lock = threading.Lock()
        self._generation: _Generation | None = None
        self._has_generation = threading.Event()
        self._ends: dict[str, dict[int, int]] = defaultdict(dict)
        self._delivered = threading.Condition()
        self._rounds = 0  # how often deliveries were handed out
        self._waiting = 0
        self._seen = threading.local()
        self._closed = False
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
        deadline = 0.0
        queued, generation = self._queue(topic, appends, 0, None)
        while queued < len(appends):
            deadline = deadline or time.monotonic() + self._timeout_s
            self._wait_for_room(generation)
            before = queued
            # While nothing of the call is queued, any producer will do.
            mine = generation if queued else None
            queued, generation = self._queue(topic, appends, queued, mine)
            if queued > before:
                deadline = 0.0
            elif time.monotonic() > deadline:
                why = f"the buffer stayed full for {self._timeout_s:g} s"
                if queued == 0:
                    raise LogUnavailable(f"{self._address.url}: {why}; nothing was queued")
                self._refuse(appends[queued:], why)
                return

    def _queue(
        self, topic: str, appends: Sequence[Append], start: int, mine: _Generation | None
    ) -> tuple[int, _Generation]:
        """Queue from `start` on; return how far it got: less where the buffer is full.

        `mine` has the earlier records of the call. When it is gone, so are they, and nothing may
        follow them: the rest fails.
        """
        index = start
        # Ctrl-C waits: between a delivery in its row and its record with the client, it would give
        # every later record of the row the delivery of the one before.
        with self._lock, HeldBack():
            if mine is not None and (self._closed or self._generation is not mine):
                self._refuse(appends[start:], "earlier events of the same call failed")
                return len(appends), mine
            generation = self._current()
            if generation.fault is not None:
                return start, generation  # about to end; the next one will do
            rows = generation.topics.get(topic)
            if rows is None:
                rows = generation.topics[topic] = _Rows(generation, self._ends[topic])
            produce, told = generation.producer.produce, rows.told
            try:
                for index in range(start, len(appends)):
                    partition, key, value, delivery = appends[index]
                    row = rows[partition]
                    # Before it is handed over: its delivery may come at once.
                    row.deliveries.append(delivery)
                    produce(topic, value, key, partition, told)
                    row.queued += 1
            except BufferError:
                row.deliveries.pop()
                return index, generation
            except KafkaException as error:
                # The rest of the call fails with it: nothing may follow a record that failed.
                row.deliveries.pop()
                if error.args[0].fatal() or error.args[0].code() == KafkaError._FATAL:
                    generation.fault = generation.fault or reason(error, self._address)
                    return index, generation
                delivery.failed(generation.translated(error.args[0], len(value)))
                self._refuse(appends[index + 1 :], "an earlier event of the same call failed")
            return len(appends), generation

    def _refuse(self, appends: Sequence[Append], why: str) -> None:
        for append in appends:
            append.delivery.failed(LogUnavailable(f"{self._address.url}: not sent: {why}"))

    def _current(self) -> _Generation:
        if self._closed:
            raise Closed(f"the log {self._address.url} is closed")
        if self._generation is None:
            self._generation = _Generation(self._options, self._address, self._event_bytes_max)
            self._has_generation.set()
            if not self._thread.is_alive():
                self._thread.start()
        return self._generation

    def ends(self, topic: str) -> Mapping[int, int]:
        """Return, live, the offsets behind what was acknowledged to this process."""
        with self._lock:
            return self._ends[topic]

    # --- waiting ----------------------------------------------------------------------------

    def drive(self, timeout_s: float | None) -> None:
        """Wait until something was delivered since this thread last came here."""
        if getattr(self._seen, "rounds", -1) == self._rounds:
            rounds = self._rounds
            self._wait_until(lambda: self._rounds != rounds or self._closed, timeout_s)
        self._seen.rounds = self._rounds

    def flush(self, timeout_s: float | None) -> None:
        """Wait for every record queued before the call."""
        with self._lock:
            rows = self._generation.rows() if self._generation is not None else []
            marks = [(row, row.queued) for row in rows]
        if not self._wait_until(lambda: all(row.told >= mark for row, mark in marks), timeout_s):
            left = sum(max(0, mark - row.told) for row, mark in marks)
            raise LogUnavailable(
                f"{self._address.url}: {left} events were not acknowledged within"
                f" {timeout_s:g} s; they stay queued"
            )

    def _wait_for_room(self, generation: _Generation) -> None:
        """Wait until half of the buffer is free, so that it is filled in long strides."""
        half = self._records_max // 2
        self._wait_until(
            lambda: generation.fault is None and len(generation.producer) < half, _ROOM_S
        )

    def _wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        with self._delivered:
            self._waiting += 1
            try:
                return self._delivered.wait_for(condition, timeout_s)
            finally:
                self._waiting -= 1

    # --- delivering -------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand out what the brokers answer, and watch over deadlines, until closed."""
        looked_at = time.monotonic()
        waited_s = 0.0  # the clock of deadlines: it stands still while this process does
        while not self._closed:
            generation = self._generation
            if generation is None:
                self._has_generation.wait(_POLL_S)
                continue
            self._poll(generation)
            now = time.monotonic()
            if generation.fault is not None:
                self._end(generation, generation.fault)
            elif now - looked_at > _POLL_S:
                waited_s += min(now - looked_at, _LOOK_S_MAX)
                looked_at = now
                # Each is asked, so that each sets its mark.
                overdue = [row.is_overdue(waited_s, self._timeout_s) for row in generation.rows()]
                if any(overdue):
                    complaint = generation.complaint(self._timeout_s)
                    why = f"no acknowledgement within {self._timeout_s:g} s{complaint}"
                    self._end(generation, why)

    def _poll(self, generation: _Generation) -> None:
        try:
            served = generation.producer.poll(_POLL_S)
        except KafkaException as error:  # the producer's own end
            generation.fault = generation.fault or reason(error, self._address)
            served = 1
        except Exception:  # of somebody's `delivered` or `failed`: the other records go on
            logger.exception("a delivery raised")
            served = 1
        if served:
            self._announce()

    def _announce(self) -> None:
        # Once per round, not per record: a writer that is woken for each record competes with the
        # deliveries that it waits for.
        self._rounds += 1
        if self._waiting:
            with self._delivered:
                self._delivered.notify_all()

    def _end(self, generation: _Generation, why: str) -> None:
        """Give a producer up, with all that it has; the next append makes a new one."""
        with self._lock:
            self._generation = None
            self._has_generation.clear()
        generation.fail(why)
        self._announce()

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for acknowledgements until the deadline, then fail what is left."""
        with contextlib.suppress(LogUnavailable):
            self.flush(self._timeout_s)
        with self._lock:
            self._closed = True
        with self._delivered:
            self._delivered.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        if self._generation is not None:
            self._end(self._generation, "the log was closed")

    def clients(self) -> list[object]:
        """Return what must not be touched, nor freed, in a forked child."""
        return [self._generation]
