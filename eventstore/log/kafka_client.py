"""Questions to a Kafka cluster, each with a deadline, and what its errors mean here.

The other rooms of the Kafka log (kafka_writer, kafka_reader, kafka_owner) build their clients
from `client_options` and translate with `reason`; nothing of the client is seen above kafka.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupState,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from eventstore.errors import ConfigError, LogUnavailable
from eventstore.log.base import Member, Topic
from eventstore.log.kafka_settings import Address, TopicPlan

__all__ = [
    "SILENCE_MS_MAX", "Cluster", "Described", "answered_end", "build", "client_options",
    "is_unknown_topic", "reason",
]  # fmt: skip

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

#: librdkafka's own log. Silent unless the program configures logging, because every lost
#: connection is several lines, and what matters of it is in our errors.
client_log = logging.getLogger("eventstore.kafka")
client_log.addHandler(logging.NullHandler())
# That an option is experimental, or meant for the other kind of client, is for us to know.
client_log.addFilter(lambda record: "CONFWARN" not in record.getMessage())

#: Between two tries of a question that the cluster could not answer yet.
RETRY_PAUSE_S = 0.1

#: How long one try of a question may take. A client asks the broker that it takes for the
#: controller, and goes on asking it when that broker is gone, until it looks at the cluster again.
TRY_S = 3.0

#: How long the members of a group are asked for: a group that shares its partitions out anew does
#: not say them, and who asks only wants to look.
MEMBERS_TIMEOUT_S = 5.0

#: A connection on which a request stays unanswered for so long is given up, and a new one is tried:
#: some firewalls drop connections without a word.
SILENCE_MS_MAX = 10_000

#: Answers that mean "not yet": a leader is being chosen, or a broker has not heard of it.
_NOT_YET = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.NOT_CONTROLLER,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_CACHE,
        KafkaError._WAIT_COORD,
        KafkaError._RESOLVE,
    }
)

_UNKNOWN_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)


def client_options(address: Address, silence_ms: int = SILENCE_MS_MAX) -> dict[str, Any]:
    """Return the options that all our clients share; the user's come after our own defaults."""
    return {
        "socket.timeout.ms": silence_ms,
        # A broker that comes back is used again within a second, not within ten.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.ms": 50,
        "retry.backoff.max.ms": 500,
        "socket.nagle.disable": True,
        "socket.connection.setup.timeout.ms": 5_000,
        "client.id": "foldlog",
        **address.options,
        "bootstrap.servers": address.servers,
        "logger": client_log,
    }


def build(make: Callable[[dict[str, Any]], Answer], options: dict[str, Any], to: Address) -> Answer:
    """Make a client.

    Raises:
        ConfigError: librdkafka knows no such option, or not this value; no value is repeated.
    """
    try:
        return make(options)
    except (KafkaException, ValueError, TypeError) as error:
        text = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise ConfigError(f"{to.url}: {to.without_secrets(text)}") from None


def reason(error: KafkaError | KafkaException, address: Address) -> str:
    """Return what the client said, without secrets."""
    inner = error.args[0] if isinstance(error, KafkaException) else error
    said = inner.str() if isinstance(inner, KafkaError) else str(inner)
    return address.without_secrets(said)


class Described(NamedTuple):
    """An existing topic."""

    topic_id: str
    partitions: int
    replication: int
    is_led: bool  #: every partition has a leader


class Cluster:
    """Asks and changes topics. Every call ends within `timeout_s`, and may come from any thread."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.admin = build(AdminClient, client_options(address), address)
        self._cluster_id: str | None = None

    def cluster_id(self) -> str:
        """Return the id that the cluster got when it was formatted."""
        if self._cluster_id is None:
            self._cluster_id = self._ask("its id", lambda left_s: self.admin.cluster_id(left_s))
        return self._cluster_id

    def topics(self) -> dict[str, int]:
        """Return the number of partitions of every topic."""
        found = self._ask("its topics", lambda left_s: self.admin.list_topics(timeout=left_s))
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    def brokers(self) -> int:
        """Return how many brokers there are now."""
        found = self._ask("its brokers", lambda left_s: self.admin.list_topics(timeout=left_s))
        return len(found.brokers)

    def describe(self, name: str) -> Described | None:
        """Return the topic, None when there is none."""

        def ask(left_s: float) -> Described | None:
            names = TopicCollection([name])
            future = self.admin.describe_topics(names, request_timeout=left_s)[name]
            try:
                found = future.result(left_s)
            except KafkaException as error:
                if error.args[0].code() in _UNKNOWN_TOPIC:
                    return None
                raise
            replicas = [len(partition.replicas) for partition in found.partitions]
            led = all(
                partition.leader is not None and partition.leader.id >= 0
                for partition in found.partitions
            )
            return Described(str(found.topic_id), len(replicas), min(replicas, default=0), led)

        return self._ask(f"topic {name}", ask)

    def settings(self, name: str) -> dict[str, str | None]:
        """Return the settings of a topic that is there."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)

        def ask(left_s: float) -> dict[str, str | None]:
            future = self.admin.describe_configs([resource], request_timeout=left_s)[resource]
            try:
                found = future.result(left_s)
            except KafkaException as error:
                if error.args[0].code() in _UNKNOWN_TOPIC:
                    # A broker that has not heard of a new topic yet: another one described it.
                    raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE)) from error
                raise
            return {setting: entry.value for setting, entry in found.items()}

        return self._ask(f"the settings of topic {name}", ask)

    def create(self, plan: TopicPlan) -> Described:
        """Create the topic, unless another process did meanwhile; return it once it has leaders.

        Raises:
            ConfigError: the cluster refuses, such as for a lack of rights or brokers.
        """
        topic = NewTopic(plan.name, plan.partitions, plan.replication, config=dict(plan.settings))

        def ask(left_s: float) -> None:
            future: Future[None] = self.admin.create_topics([topic], request_timeout=left_s)[
                plan.name
            ]
            try:
                future.result(left_s)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.TOPIC_ALREADY_EXISTS:
                    return
                if code in _NOT_YET or _is_fenced(error.args[0]):
                    raise
                raise ConfigError(
                    f"topic {plan.name} cannot be created: {reason(error, self._address)}. As an"
                    f" administrator: {plan.command(self._address.servers)}"
                ) from error

        self._ask(f"for topic {plan.name}", ask)

        def led(left_s: float) -> Described:
            found = self.describe(plan.name)
            if found is None or not found.is_led:
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
            return found

        return self._ask(f"topic {plan.name}", led)

    def offset_first(self, name: str, partition: int) -> int:
        """Return the offset of the first record that is kept."""
        return self._offset(name, partition, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def offset_end(self, name: str, partition: int) -> int:
        """Return the last stable offset."""
        return self._offset(name, partition, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def ask_ends(self, name: str, partitions: Iterable[int]) -> dict[int, Future[Any]]:
        """Ask for the ends of partitions once, and wait for nothing; see `answered_end`."""
        return {
            place.partition: future
            for place, future in self.admin.list_offsets(
                {Place(name, partition): OffsetSpec.latest() for partition in partitions},  # type: ignore[no-untyped-call]
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=TRY_S,
            ).items()
        }

    def offset_at(self, name: str, partition: int, time_ms: int) -> int | None:
        """Return the offset of the first record of that time or later; None when there is none."""
        found = self._offset(name, partition, OffsetSpec.for_timestamp(time_ms))
        return found if found >= 0 else None

    def members(self, group: str, topic: Topic) -> list[Member]:
        """Return the members of a consumer group, and what each has of the topic.

        Raises:
            LogUnavailable: the cluster may not tell us, or does not: the group is just sharing its
                partitions out, or the broker that keeps it is away.
        """

        def ask(left_s: float) -> list[Member]:
            future = self.admin.describe_consumer_groups([group], request_timeout=left_s)[group]
            try:
                found = future.result(left_s)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return []  # nobody was ever in it
                raise
            if found.members and found.state != ConsumerGroupState.STABLE:
                # It has members without partitions then, which are not without for long.
                raise KafkaException(
                    KafkaError(
                        KafkaError.REBALANCE_IN_PROGRESS,
                        "it is just sharing its partitions out",
                        retriable=True,
                    )
                )
            return [
                Member(
                    member.client_id,
                    member.host.removeprefix("/"),
                    frozenset(
                        place.partition
                        for place in member.assignment.topic_partitions
                        if place.topic == topic.name and place.partition < topic.partitions
                    ),
                )
                for member in found.members
            ]

        return self._ask(f"the members of group {group}", ask, MEMBERS_TIMEOUT_S)

    def _offset(self, name: str, partition: int, spec: OffsetSpec) -> int:
        place = Place(name, partition)

        def ask(left_s: float) -> int:
            future = self.admin.list_offsets(
                {place: spec},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=left_s,
            )[place]
            try:
                offset = int(future.result(left_s).offset)
            except KafkaException as error:
                if error.args[0].code() == KafkaError._NOENT and self._has(name, partition):
                    # "No leaders found", as of a topic that is not there. But it is: its leader
                    # missed its heartbeats, and leads again soon.
                    raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE)) from error
                raise
            if offset == OFFSET_INVALID:
                # What the client says, without an error, of a broker that died meanwhile. Taken for
                # an end it would mean that the log was cut (tests/fault/test_store_kafka.py).
                raise TimeoutError
            return offset

        return self._ask(f"an offset of {name}/{partition}", ask)

    def _has(self, name: str, partition: int) -> bool:
        found = self.describe(name)
        return found is not None and partition < found.partitions

    def _ask(
        self,
        what: str,
        question: Callable[[float], Answer],
        timeout_s: float = float("inf"),
    ) -> Answer:
        """Ask until there is an answer; `question` gets the seconds that are left.

        That it takes long is said once, so that nobody looks at a silent terminal.

        Raises:
            LogUnavailable: no answer in time, or one that will not change by waiting.
        """
        timeout_s = min(timeout_s, self._timeout_s)
        begun_s = time.monotonic()
        deadline = begun_s + timeout_s
        is_said = False
        while True:
            left_s = min(TRY_S, max(0.1, deadline - time.monotonic()))
            try:
                return question(left_s)
            except KafkaException as error:
                said: KafkaError = error.args[0]
                cause: Exception = error
                text = reason(said, self._address)
                if not (said.code() in _NOT_YET or _is_fenced(said) or said.retriable()):
                    raise LogUnavailable(
                        f"{self._address.url} was asked {what} and said: {text}"
                    ) from error
            except (FutureTimeoutError, TimeoutError) as error:
                cause, text = error, "no answer"
            if time.monotonic() + RETRY_PAUSE_S > deadline:
                raise LogUnavailable(
                    f"{self._address.url} was asked {what} for {timeout_s:g} s: {text}."
                    " See that a broker runs there, and can be reached from here"
                ) from cause
            if not is_said and time.monotonic() - begun_s > TRY_S:
                is_said = True
                logger.warning(
                    "%s was asked %s, and has not answered yet: %s; tried for %.0f s more",
                    self._address.url, what, text, deadline - time.monotonic(),
                )  # fmt: skip
            time.sleep(RETRY_PAUSE_S)
            with contextlib.suppress(KafkaException):
                self.admin.list_topics(timeout=min(TRY_S, max(0.1, deadline - time.monotonic())))


def _is_fenced(said: KafkaError) -> bool:
    """Say whether a cluster has too few brokers only for now: some missed their heartbeats.

    The code is the same when it has too few at all.
    """
    return said.code() == KafkaError.INVALID_REPLICATION_FACTOR and "fenced" in said.str()


def answered_end(answer: Future[Any]) -> int | None:
    """Return the end that was asked for with `ask_ends`; None when there was no answer."""
    if not answer.done() or answer.cancelled() or answer.exception() is not None:
        return None
    offset = int(answer.result().offset)
    return None if offset == OFFSET_INVALID else offset


def is_unknown_topic(code: int) -> bool:
    """Say whether an error means that there is no such topic or partition."""
    return code in _UNKNOWN_TOPIC
