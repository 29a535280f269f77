"""What we compare with: the same work on the bare libraries, by short loops without any promise.

Each baseline stores the same columns, indexes and bytes as our log does, as fast as its library
goes when nothing else is asked of it: no codec, no fold, no receipts, no other processes. A method
does its work once and returns the seconds it took, without its set-up.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import apsw
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

__all__ = ["EventSourcing", "RawKafka", "RawSqlite", "Row"]

_INSERT = "INSERT INTO records VALUES (?,?,?,?)"


class Row(NamedTuple):
    """Key and value of one record, as our log stores them."""

    key: bytes
    value: bytes


class RawSqlite:
    """apsw with WAL and synchronous=FULL on a table of our log's columns; one file per object."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"raw-{uuid.uuid4().hex[:8]}.sqlite"
        self._connection = self._connect()
        self._connection.execute(
            "CREATE TABLE records (offset INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL,"
            " key BLOB, value BLOB)"
        )
        self._offset_next = 0

    def append_one_by_one(self, rows: Sequence[Row]) -> float:
        """One row per commit."""
        execute, offset = self._connection.execute, self._offset_next
        start_s = time.perf_counter()
        for row in rows:
            execute(_INSERT, (offset, time.time_ns() // 1_000_000, row.key, row.value))
            offset += 1
        took_s = time.perf_counter() - start_s
        self._offset_next = offset
        return took_s

    def append_in_batches(self, rows: Sequence[Row], batch_rows: int = 100) -> float:
        """One transaction per batch."""
        start_s = time.perf_counter()
        for first in range(0, len(rows), batch_rows):
            self._commit(self._connection, rows[first : first + batch_rows])
        return time.perf_counter() - start_s

    def append_from_threads(self, rows: Sequence[Row], threads: int = 32) -> float:
        """Each thread hands over a row and waits until it is durable; one writer commits them.

        The writer takes what is queued while it committed, as any group commit does; that is the
        whole of it. Each thread waits on a lock of its own, the cheapest way to be woken.
        """
        handed: queue.SimpleQueue[tuple[Row, threading.Lock] | None] = queue.SimpleQueue()

        def write() -> None:
            connection = self._connect()
            while (first := handed.get()) is not None:
                taken = [first]
                while not handed.empty():
                    following = handed.get()
                    if following is None:
                        handed.put(None)  # end with the next round
                        break
                    taken.append(following)
                self._commit(connection, [row for row, _ in taken])
                for _, durable in taken:
                    durable.release()
            connection.close()

        def append(share: Sequence[Row]) -> None:
            durable = threading.Lock()
            durable.acquire()
            begin.wait()
            for row in share:
                handed.put((row, durable))
                durable.acquire()

        begin = threading.Barrier(threads + 1)
        writer = threading.Thread(target=write)
        callers = [
            threading.Thread(target=append, args=(rows[number::threads],))
            for number in range(threads)
        ]
        for thread in (writer, *callers):
            thread.start()
        begin.wait()
        start_s = time.perf_counter()
        for caller in callers:
            caller.join()
        took_s = time.perf_counter() - start_s
        handed.put(None)
        writer.join()
        return took_s

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._path))
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        return connection

    def _commit(self, connection: apsw.Connection, rows: Sequence[Row]) -> None:
        offset, now_ms = self._offset_next, time.time_ns() // 1_000_000
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            _INSERT, [(offset + i, now_ms, row.key, row.value) for i, row in enumerate(rows)]
        )
        connection.execute("COMMIT")
        self._offset_next = offset + len(rows)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class RawKafka:
    """A topic of its own and `Producer.produce` with a callback, idempotent, acks=all."""

    def __init__(self, address: str, *, partitions: int = 8, linger_ms: float = 5.0) -> None:
        self._address = address
        self._topic = f"raw-{uuid.uuid4().hex[:8]}"
        self._partitions = partitions
        self._producer = Producer(
            {
                "bootstrap.servers": address,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": linger_ms,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        admin = AdminClient({"bootstrap.servers": address})
        topic = NewTopic(self._topic, num_partitions=partitions, replication_factor=1)
        for created in admin.create_topics([topic]).values():
            created.result(30)

    def append_pipelined(self, rows: Sequence[Row]) -> float:
        """Produce every row without waiting, then wait for all acknowledgements."""
        producer, topic, partitions = self._producer, self._topic, self._partitions
        offsets: list[int | None] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            offsets.append(message.offset())

        start_s = time.perf_counter()
        for number, row in enumerate(rows):
            producer.produce(
                topic,
                row.value,
                row.key,
                partition=number % partitions,
                on_delivery=delivered,
            )
            producer.poll(0)
        producer.flush()
        took_s = time.perf_counter() - start_s
        assert len(offsets) == len(rows)
        return took_s

    def close(self) -> None:
        AdminClient({"bootstrap.servers": self._address}).delete_topics([self._topic])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Counter(Aggregate):
    """The aggregate for the PyPI library: a small diff per event, as ours."""

    @event("Started")
    def __init__(self) -> None:
        self.total = 0
        self.status = "new"

    @event("Changed")
    def change(self, amount: int, status: str) -> None:
        self.total += amount
        self.status = status


class EventSourcing:
    """PyPI `eventsourcing` on SQLite, as its documentation sets it up."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"eventsourcing-{uuid.uuid4().hex[:8]}.sqlite"
        self._application: Application[Any] = Application(
            env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
        )

    def append_in_batches(self, events: int, batch_events: int = 100) -> float:
        """Save an aggregate after each `batch_events` events: one transaction per batch."""
        counter = _Counter()
        self._application.save(counter)
        start_s = time.perf_counter()
        for first in range(0, events, batch_events):
            for number in range(first, min(first + batch_events, events)):
                counter.change(number, "open")
            self._application.save(counter)
        return time.perf_counter() - start_s

    def prepare(self, events: int) -> Any:
        """Store an aggregate of that many events and return its id."""
        counter = _Counter()
        for number in range(events - 1):
            counter.change(number, "open")
        self._application.save(counter)
        return counter.id

    def load(self, aggregate_id: Any, times: int = 1) -> float:
        """Load an aggregate by replaying its events."""
        start_s = time.perf_counter()
        for _ in range(times):
            self._application.repository.get(aggregate_id)
        return time.perf_counter() - start_s

    def close(self) -> None:
        self._application.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
