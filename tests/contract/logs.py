"""What tests of logs need: a delivery that can be waited for, and one-line appends and reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from eventstore.log.base import Append, Log, Record, Topic

#: No wait of a test takes so long unless something is broken.
DEADLINE_S = 30.0


class Told:
    """A delivery that remembers what it was told."""

    def __init__(self) -> None:
        self.place: tuple[int, int] | None = None
        self.error: Exception | None = None
        self.count = 0
        self._event = threading.Event()

    def delivered(self, partition: int, offset: int) -> None:
        self.place = (partition, offset)
        self.count += 1
        self._event.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self.count += 1
        self._event.set()

    @property
    def done(self) -> bool:
        return self._event.is_set()

    def wait(self) -> bool:
        """Wait without driving the log."""
        return self._event.wait(DEADLINE_S)

    def drive(self, log: Log) -> tuple[int, int]:
        """Drive the log until this was told; return partition and offset, or raise the error."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.done:
            assert time.monotonic() < deadline_s, "the log told nothing"
            log.drive(1.0)
        if self.error is not None:
            raise self.error
        assert self.place is not None
        return self.place


def queue(
    log: Log, topic: Topic, *pairs: tuple[bytes, bytes], unless_newer: int | None = None
) -> list[Told]:
    """Append pairs of key and value in one call; return their deliveries.

    With `unless_newer`, only if the log has nothing of their key from that offset on.
    """
    told = [Told() for _ in pairs]
    appends = [
        Append(log.partition_of(key, topic), key, value, delivery)
        for (key, value), delivery in zip(pairs, told, strict=True)
    ]
    if unless_newer is None:
        log.append(topic, appends)
    else:
        log.append_unless_newer(topic, appends, unless_newer)
    return told


def write(log: Log, topic: Topic, *pairs: tuple[bytes, bytes]) -> list[tuple[int, int]]:
    """Append pairs of key and value durably; return partition and offset of each."""
    return [delivery.drive(log) for delivery in queue(log, topic, *pairs)]


def read_all(log: Log, topic: Topic, partition: int = 0, offset: int = 0) -> list[Record]:
    """Read a partition to its end, in small batches."""
    records: list[Record] = []
    end = log.offset_end(topic, partition)
    while offset < end:
        batch = log.read(topic, partition, offset, records_max=7, bytes_max=10_000)
        assert batch.offset_next > offset, "a batch below the end must move on"
        records += batch.records
        offset = batch.offset_next
    return records


def eventually(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> bool:
    """Look until the condition holds; for what has no event to wait on."""
    pause = threading.Event()
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        pause.wait(0.005)
    return True
