"""Ownership of shards on Kafka: a consumer group that hands out partitions and reads nothing.

The group's committed offsets say how far the work is, so that every tool that knows Kafka shows a
lag. They are written here and read nowhere: who owns what is the group's business, what is pending
the fold's, and offsets that are late, lost, or somebody's invention change nothing
(tests/integration/test_kafka_progress.py).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place

from eventstore.log.base import HAND_OVER_S_MAX, Ownership, Progress, Topic
from eventstore.log.kafka_client import build, client_options
from eventstore.log.kafka_settings import Address

__all__ = ["GroupOwnership"]

logger = logging.getLogger(__name__)

#: How long one poll lasts at most, and so a clean leave begins at the latest after it.
_POLL_S = 0.05

#: A rebalance is noticed with a heartbeat: this is most of the time of a clean hand-over.
_HEARTBEAT_MS = 500

#: Brokers refuse less by default (`group.min.session.timeout.ms`); the time after which the shards
#: of a killed process are given to others.
_SESSION_TIMEOUT_MS = 6_000

#: How often the offsets are committed, at most, and only when they have changed.
_COMMIT_INTERVAL_S = 1.0

#: How long `close` waits for the answer to the last commit. A broker takes milliseconds; one that
#: needs longer than this will not hear either that the group is left.
_LAST_COMMIT_S = 5.0


class GroupOwnership(Ownership):
    """A member of the group, with a thread of its own, from now until `close`."""

    def __init__(
        self,
        address: Address,
        topic: Topic,
        group: str,
        changed: Callable[[frozenset[int]], None],
        progress: Progress | None,
        is_busy: Callable[[int], bool] | None,
    ) -> None:
        self._topic = topic
        self._changed = changed
        self._progress = progress
        self._is_busy = is_busy or (lambda shard: False)
        self._shards: frozenset[int] = frozenset()
        #: shard -> the offset that tools should see, and the one that was committed; of shards that
        #: are held. All of it is the thread's.
        self._wanted: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._commit_at_s = 0.0
        self._commits_open = 0
        self._closing = threading.Event()
        self._left = threading.Event()
        options: dict[str, Any] = {
            **client_options(address),
            "group.id": group,
            # By this name tools, and `processors status` on other hosts, say who holds what.
            "client.id": address.options.get("client.id", f"{os.getpid()}@{socket.gethostname()}"),
            "on_commit": self._was_committed,
            "partition.assignment.strategy": "cooperative-sticky",
            "heartbeat.interval.ms": _HEARTBEAT_MS,
            "session.timeout.ms": _SESSION_TIMEOUT_MS,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Partitions are paused before anything is fetched; where they stand is of no meaning.
            "auto.offset.reset": "latest",
        }
        consumer: Consumer = build(Consumer, options, address)
        #: For `clients`; the thread has its own reference, and frees the client with it.
        self._consumer: Consumer | None = consumer
        self._thread = threading.Thread(
            target=self._run, args=(consumer,), name=f"owner-{group}", daemon=True
        )
        self._thread.start()

    @property
    def shards(self) -> frozenset[int]:
        """The shards held now."""
        return self._shards

    def close(self) -> None:
        """Leave the group, so that another member has the shards at once."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._left.wait()

    def _run(self, consumer: Consumer) -> None:
        try:
            self._live(consumer)
            self._leave(consumer)
        finally:
            self._consumer = None
            try:
                self._set(frozenset())
            finally:
                self._left.set()

    def _live(self, consumer: Consumer) -> None:
        consumer.subscribe(
            [self._topic.name],
            on_assign=self._gained,
            on_revoke=self._gave_back,
            on_lost=self._lost,
        )
        while not self._closing.is_set():
            # Only rebalances come here, and errors that the client deals with: nothing is read.
            self._poll(consumer)
            if not self._commits_open and time.monotonic() >= self._commit_at_s:
                self._commit(consumer)

    def _poll(self, consumer: Consumer) -> None:
        try:
            consumer.poll(_POLL_S)
        except Exception:  # of `changed`, which is not ours; the membership goes on
            logger.exception(
                "the owner of %s failed to take a change of its shards", self._topic.name
            )

    def _leave(self, consumer: Consumer) -> None:
        """Commit a last time, and leave the group, so that others have the shards at once.

        A client would not leave before each commit is answered, and that can be never where a
        broker has fallen silent (librdkafka 2.16). Such a client is left to be freed, which takes
        it some seconds, and the group misses it after the session timeout, as it would anyway.
        (tests/integration/test_kafka_progress.py)
        """
        self._commit(consumer)
        deadline = time.monotonic() + _LAST_COMMIT_S
        while self._commits_open:
            if time.monotonic() > deadline:
                return
            self._poll(consumer)
        try:
            consumer.close()
        except Exception:
            logger.exception("the owner of %s failed as it gave its shards back", self._topic.name)

    def _gained(self, consumer: Consumer, places: Sequence[Place]) -> None:
        # From the end, so that not even the client asks for the committed offsets.
        consumer.incremental_assign(
            [Place(place.topic, place.partition, OFFSET_END) for place in places]
        )
        if places:
            # Else this consumer would download everything that the view reads, a second time.
            consumer.pause(list(places))
        self._set(self._shards | self._partitions(places))

    def _gave_back(self, consumer: Consumer, places: Sequence[Place]) -> None:
        # First stop working on them: the group may give them away as soon as this returns.
        leaving = self._partitions(places)
        self._set(self._shards - leaving)
        deadline = time.monotonic() + HAND_OVER_S_MAX
        while any(map(self._is_busy, leaving)) and time.monotonic() < deadline:
            if self._closing.wait(_POLL_S):
                break  # who closes has waited already
        self._lost(consumer, places)

    def _lost(self, consumer: Consumer, places: Sequence[Place]) -> None:
        self._set(self._shards - self._partitions(places))
        for place in places:
            self._wanted.pop(place.partition, None)
            self._committed.pop(place.partition, None)
        try:
            consumer.incremental_unassign(list(places))
        except KafkaException:  # lost ones are unassigned already
            logger.debug("shards were gone before they were given back", exc_info=True)

    def _partitions(self, places: Sequence[Place]) -> frozenset[int]:
        # The app has the partitions that it was created with, whatever was added to the topic.
        return frozenset(
            place.partition for place in places if place.partition < self._topic.partitions
        )

    def _set(self, shards: frozenset[int]) -> None:
        if shards != self._shards:
            self._shards = shards
            self._changed(shards)

    def _commit(self, consumer: Consumer) -> None:
        """Commit how far the work is, where that has changed; neither waits nor fails.

        What is not taken (in the middle of a rebalance, say) is tried again a moment later.
        """
        self._commit_at_s = time.monotonic() + _COMMIT_INTERVAL_S
        try:
            if self._progress is not None:
                told = self._progress()
                self._wanted.update((shard, told[shard]) for shard in told if shard in self._shards)
            new = {
                shard: offset
                for shard, offset in self._wanted.items()
                if self._committed.get(shard) != offset
            }
            if new:
                places = [Place(self._topic.name, *item) for item in new.items()]
                consumer.commit(offsets=places, asynchronous=True)
                self._commits_open += 1
                self._committed |= new
        except Exception:  # a closed view, say: a lag that is not shown is no reason to stop
            logger.debug("no progress of %s is shown", self._topic.name, exc_info=True)

    def _was_committed(self, error: KafkaError | None, places: Sequence[Place]) -> None:
        """Take note of an answer; called by `poll`."""
        self._commits_open -= 1
        for place in places:
            if error is not None or place.error is not None:
                said = error or place.error
                logger.debug("%s/%s was not committed: %s", place.topic, place.partition, said)
                self._committed.pop(place.partition, None)

    def clients(self) -> list[object]:
        """Return what must not be touched, nor freed, in a forked child."""
        return [self._consumer] if self._consumer is not None else []
