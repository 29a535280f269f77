"""A Kafka log as an operator looks at it: the client, the brokers, the settings of topics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import confluent_kafka

from eventstore.config import Config
from eventstore.errors import EventStoreError
from eventstore.log.base import Finding
from eventstore.log.kafka_client import Cluster
from eventstore.log.kafka_settings import describe_faults, events_plan

__all__ = ["diagnose"]


def diagnose(
    cluster: Cluster, topics: Callable[[], Sequence[str]], config: Config
) -> Iterator[Finding]:
    """Yield what is well and what is not with a cluster and the apps' topics. Changes nothing."""
    yield Finding("ok", f"librdkafka {confluent_kafka.libversion()[0]}")
    try:
        brokers = cluster.brokers()
        if brokers < 3:
            yield Finding(
                "warn",
                f"the cluster has {brokers} broker(s): losing one stops writing or loses events",
                "run 3 brokers or more where events matter",
            )
        else:
            yield Finding("ok", f"the cluster has {brokers} brokers")
        for name in topics():
            yield from _topic(cluster, name, config)
    except EventStoreError as error:
        yield Finding("fail", str(error), "see that the brokers run and can be reached from here")


def _topic(cluster: Cluster, name: str, config: Config) -> Iterator[Finding]:
    found = cluster.describe(name)
    if found is None:
        return  # deleted between two questions
    if not found.is_led:
        yield Finding(
            "fail",
            f"topic {name}: a partition has no leader",
            "start the brokers that are missing; reading and writing wait for them",
        )
    if found.replication < 2:
        yield Finding(
            "warn",
            f"topic {name} has one replica: a broker that is lost takes its events along",
            "raise its replicas with kafka-reassign-partitions.sh",
        )
    measured = config.model_copy(update={"replication": found.replication})
    faults = describe_faults(cluster.settings(name), events_plan(name, found.replication, measured))
    if faults is None:
        yield Finding("ok", f"topic {name}: {found.partitions} partitions, settings as promised")
    else:
        yield Finding("fail", faults, "run the command above")
