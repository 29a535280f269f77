"""Answers and moments that come and go too quickly to be had from a real cluster at will."""

from __future__ import annotations

import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import pytest
from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import NewTopic, OffsetSpec

from eventstore.config import Config
from eventstore.errors import ConfigError, LogUnavailable, OutcomeUnknown
from eventstore.log import kafka_client
from eventstore.log.base import Append
from eventstore.log.kafka_client import Cluster, Described
from eventstore.log.kafka_settings import TopicPlan, parse_url
from eventstore.log.kafka_writer import KafkaWriter
from tests.contract.logs import DEADLINE_S, Told, eventually
from tests.lines import before_line

#: What Kafka 4.3 says, word for word. A broker that misses its heartbeats for some seconds is
#: fenced until the next one.
FENCED = (
    "Unable to replicate the partition 1 time(s): All brokers are currently fenced, or have all"
    " their log directories cordoned."
)
TOO_FEW = (
    "Unable to replicate the partition 3 time(s): The target replication factor of 3 cannot be"
    " reached because only 1 broker(s) are registered."
)


#: What librdkafka says of a partition that nobody leads, and of one that is not there.
NO_LEADERS = "Failed to query partition leaders: No leaders found"


class ScriptedAdmin:
    """Refuses with what it was given, in turn, and then answers."""

    def __init__(self, *refusals: str) -> None:
        self._refusals = list(refusals)

    def create_topics(
        self, topics: Sequence[NewTopic], request_timeout: float
    ) -> dict[str, Future[None]]:
        answer: Future[None] = Future()
        if self._refusals:
            error = KafkaError(KafkaError.INVALID_REPLICATION_FACTOR, self._refusals.pop(0))
            answer.set_exception(KafkaException(error))
        else:
            answer.set_result(None)
        return {topics[0].topic: answer}

    def list_offsets(
        self,
        places: Mapping[TopicPartition, OffsetSpec],
        isolation_level: IsolationLevel,
        request_timeout: float,
    ) -> dict[TopicPartition, Future[Any]]:
        answer: Future[Any] = Future()
        if self._refusals:
            error = KafkaError(KafkaError._NOENT, self._refusals.pop(0))
            answer.set_exception(KafkaException(error))
        else:
            answer.set_result(TopicPartition("app", 0, 7))
        return dict.fromkeys(places, answer)

    def list_topics(self, timeout: float) -> None:
        pass


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(parse_url("kafka://127.0.0.1:1", Config.load({})), timeout_s=DEADLINE_S)
    monkeypatch.setattr(cluster, "describe", lambda name: Described("id", 1, 1, is_led=True))
    return cluster


def test_a_topic_is_made_as_soon_as_the_brokers_are_heard_of_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "admin", ScriptedAdmin(FENCED, FENCED))

    assert cluster.create(TopicPlan("app", 1, 1)).topic_id == "id"


def test_too_few_brokers_are_said_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "admin", ScriptedAdmin(TOO_FEW))

    with pytest.raises(ConfigError, match="only 1 broker"):
        cluster.create(TopicPlan("app", 1, 3))


def test_an_end_is_known_as_soon_as_the_partition_has_a_leader_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "admin", ScriptedAdmin(NO_LEADERS, NO_LEADERS))

    assert cluster.offset_end("app", 0) == 7


@pytest.mark.parametrize("found", [None, Described("id", 1, 1, is_led=True)])
def test_that_a_partition_is_not_there_is_said_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, found: Described | None
) -> None:
    monkeypatch.setattr(cluster, "admin", ScriptedAdmin(NO_LEADERS))
    monkeypatch.setattr(cluster, "describe", lambda name: found)

    with pytest.raises(LogUnavailable, match="No leaders found"):
        cluster.offset_end("app", 1)


def test_that_a_cluster_does_not_answer_is_said_once_while_it_is_asked_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_client, "TRY_S", 0.0)
    monkeypatch.setattr(cluster, "admin", ScriptedAdmin(NO_LEADERS, NO_LEADERS, NO_LEADERS))

    cluster.offset_end("app", 0)

    (warning,) = caplog.messages
    assert warning.startswith("kafka://127.0.0.1:1 was asked an offset of app/0, and has not")
    assert "Leader not available; tried for 30 s more" in warning


# --- the end of a producer ----------------------------------------------------------------------


def test_a_producer_that_was_given_up_is_freed_with_its_threads_and_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Producer]] = []

    class Remembered(Producer):
        def __init__(self, options: dict[str, Any]) -> None:
            super().__init__(options)
            made.append(weakref.ref(self))

    monkeypatch.setattr("eventstore.log.kafka_writer.Producer", Remembered)
    config = Config.load({}, append_timeout_s=0.1)
    writer = KafkaWriter(parse_url("kafka://127.0.0.1:1", config), config)
    told = [Told() for _ in range(10)]
    writer.append("app", [Append(0, b"k", b"v", each) for each in told])

    assert all(each.wait() for each in told)

    assert {type(each.error) for each in told} == {OutcomeUnknown}
    (producer,) = made
    assert eventually(lambda: producer() is None)
    writer.close()


# --- acknowledgements ---------------------------------------------------------------------------


class Acknowledgement(NamedTuple):
    """A message as a producer hands it back."""

    at_partition: int
    at_offset: int

    def partition(self) -> int:
        return self.at_partition

    def offset(self) -> int:
        return self.at_offset


class PromptProducer:
    """Acknowledges what it has whenever it is polled."""

    def __init__(self) -> None:
        self._queued: deque[tuple[Callable[[None, Acknowledgement], None], int]] = deque()
        self._offset = 0
        self.polls = 0

    def __len__(self) -> int:
        return len(self._queued)

    def produce(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        partition: int,
        told: Callable[[None, Acknowledgement], None],
    ) -> None:
        self._queued.append((told, partition))

    def poll(self, timeout: float) -> int:
        self.polls += 1
        count = 0
        while self._queued:
            told, partition = self._queued.popleft()
            told(None, Acknowledgement(partition, self._offset))
            self._offset += 1
            count += 1
        return count

    def purge(self) -> None:
        self._queued.clear()


def test_a_look_at_the_deadlines_in_the_middle_of_an_append_sees_nothing_overdue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producers: list[PromptProducer] = []

    def make(options: dict[str, object]) -> PromptProducer:
        producers.append(PromptProducer())
        return producers[-1]

    monkeypatch.setattr("eventstore.log.kafka_writer.Producer", make)
    monkeypatch.setattr("eventstore.log.kafka_writer._POLL_S", 0.0)  # it looks after each poll
    timeout_s = 0.1
    config = Config.load({}, append_timeout_s=timeout_s)
    writer = KafkaWriter(parse_url("kafka://127.0.0.1:1", config), config)
    began = time.monotonic()
    first = Told()
    writer.append("app", [Append(0, b"k", b"v", first)])
    assert eventually(lambda: first.done and time.monotonic() > began + 2 * timeout_s)
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        polls = producers[-1].polls
        assert eventually(lambda: producers[-1].polls > polls + 1)

    number = 0
    while looks == number:  # until it has no such line
        number += 1
        told = Told()
        # A topic of its own: no earlier look has seen it.
        with before_line(number, KafkaWriter._queue, look):
            writer.append(f"app-{number}", [Append(0, b"k", b"v", told)])
        assert told.wait()
        assert told.error is None

    assert looks > 10
    assert len(producers) == 1
    writer.close()


class InterruptedProducer(PromptProducer):
    """Hears Ctrl-C once, just before it has the first record."""

    def __init__(self) -> None:
        super().__init__()
        self._is_new = True

    def produce(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        partition: int,
        told: Callable[[None, Acknowledgement], None],
    ) -> None:
        if self._is_new:
            self._is_new = False
            signal.raise_signal(signal.SIGINT)
        super().produce(topic, value, key, partition, told)


@pytest.fixture
def pythons_own_handler() -> Iterator[None]:
    """A shell that runs the tests in the background lets them ignore the signal."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("pythons_own_handler")
def test_after_an_interrupt_every_delivery_is_told_of_its_own_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer = InterruptedProducer()
    monkeypatch.setattr("eventstore.log.kafka_writer.Producer", lambda options: producer)
    config = Config.load({})
    writer = KafkaWriter(parse_url("kafka://127.0.0.1:1", config), config)
    told = [Told() for _ in range(3)]

    with pytest.raises(KeyboardInterrupt):
        writer.append("app", [Append(0, b"k", b"v", each) for each in told[:2]])
    writer.append("app", [Append(0, b"k", b"v", told[2])])

    assert eventually(lambda: all(each.done for each in told))
    assert [each.place for each in told] == [(0, 0), (0, 1), (0, 2)]
    writer.close()
