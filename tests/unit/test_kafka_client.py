"""Answers of a cluster that come and go too quickly to be had from a real one at will."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic

from eventstore.config import Config
from eventstore.errors import ConfigError
from eventstore.log.kafka_client import Cluster, Described
from eventstore.log.kafka_settings import TopicPlan, parse_url

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


class ScriptedAdmin:
    """Answers the creation of topics with what it was given, in turn, and then with success."""

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

    def list_topics(self, timeout: float) -> None:
        pass


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(parse_url("kafka://127.0.0.1:1", Config.load({})), timeout_s=5.0)
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
