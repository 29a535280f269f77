"""What Foldlog asks of Kafka: addresses, client options, and the settings of topics.

Nothing here talks to Kafka; kafka.py does.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from eventstore.config import Config
from eventstore.errors import ConfigError

__all__ = [
    "Address",
    "TopicPlan",
    "describe_faults",
    "events_plan",
    "metadata_plan",
    "parse_url",
]

#: What a batch adds to its only event: headers, the key, lengths. The default of `event_bytes_max`
#: and this make exactly Kafka's own default of `max.message.bytes`.
BATCH_OVERHEAD_BYTES_MAX = 48_588

#: Options of librdkafka on which a promise rests, and the promise. They cannot be set.
PROMISED_OPTIONS = {
    "bootstrap.servers": "it is the host part of the URL",
    "metadata.broker.list": "it is the host part of the URL",
    "acks": "an event is acknowledged when all in-sync replicas have it",
    "request.required.acks": "an event is acknowledged when all in-sync replicas have it",
    "enable.idempotence": "retries must neither repeat events nor reorder them",
    "enable.gapless.guarantee": "an event that fails is not followed by later ones of its call",
    "message.timeout.ms": "the setting append_timeout_s says how long an append may take",
    "delivery.timeout.ms": "the setting append_timeout_s says how long an append may take",
    "message.max.bytes": "the setting event_bytes_max says how large an event may be",
    "transactional.id": "Foldlog needs no transactions",
    "partitioner": "the partition of an instance is murmur2, as in Java",
    "isolation.level": "events of aborted transactions never happened",
    "auto.offset.reset": "a lost offset is an error, not a reason to skip events",
    "enable.auto.commit": "the view knows its own offset",
    "enable.partition.eof": "readers need to know the end",
    "group.id": "groups are named after app and component",
    "partition.assignment.strategy": "hand-over must not stop the shards that stay",
}


class Address(NamedTuple):
    """Where the cluster is, and how to talk to it."""

    servers: str  #: host:port[,host:port]
    options: Mapping[str, str]  #: of librdkafka; the values may be secrets

    @property
    def url(self) -> str:
        """The URL without options, for messages."""
        return f"kafka://{self.servers}"

    def __repr__(self) -> str:
        return f"Address({self.url})"

    def without_secrets(self, text: str) -> str:
        """Return `text`, as said by the client, without any value of an option in it."""
        for value in sorted(self.options.values(), key=len, reverse=True):
            if len(value) > 3:
                text = text.replace(value, "***")
        return text


def parse_url(url: str, config: Config) -> Address:
    """Read `kafka://host:port[,host:port]?option=value`; an option of the URL beats the config's.

    Raises:
        ConfigError: the URL is not of that form, or an option would break a promise. The message
            has no value of an option.
    """
    parts = urlsplit(url)
    servers = parts.netloc
    if parts.scheme != "kafka" or not servers or parts.path.strip("/") or parts.fragment:
        raise ConfigError("a Kafka URL is kafka://host:port[,host:port]?option=value")
    if "@" in servers:
        raise ConfigError(
            "a Kafka URL has no user and password before the host: set sasl.username and"
            " sasl.password, best as $EVENTSTORE_KAFKA_SASL_PASSWORD"
        )
    options = {name: value.get_secret_value() for name, value in config.kafka.items()}
    try:
        options |= dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        if parts.query:
            raise ConfigError("the options of a Kafka URL are ?name=value&name=value") from None
    for name in options:
        if name in PROMISED_OPTIONS:
            raise ConfigError(f"the Kafka option {name} cannot be set: {PROMISED_OPTIONS[name]}")
    return Address(unquote(servers), options)


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as Foldlog creates it."""

    name: str
    partitions: int
    replication: int
    settings: Mapping[str, str] = field(default_factory=dict)

    def command(self, servers: str) -> str:
        """Return the shell command that creates the topic with Kafka's own tool."""
        words = ["kafka-topics.sh", "--bootstrap-server", servers, "--create"]
        words += ["--topic", self.name, "--partitions", str(self.partitions)]
        words += ["--replication-factor", str(self.replication)]
        for name, value in self.settings.items():
            words += ["--config", f"{name}={value}"]
        return shlex.join(words)


def _promised_settings(replication: int, event_bytes_max: int) -> dict[str, str]:
    return {
        # One replica may be missing; an acknowledged event is then still on all the others.
        "min.insync.replicas": str(max(1, replication - 1)),
        # A replica that was behind must not become the truth.
        "unclean.leader.election.enable": "false",
        # The times of a partition never fall, whatever the clocks of its producers say.
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(event_bytes_max + BATCH_OVERHEAD_BYTES_MAX),
    }


def events_plan(name: str, brokers: int, config: Config) -> TopicPlan:
    """Return the topic of an app: every event is kept for good, because state is a fold over it."""
    replication = config.replication or min(3, brokers)
    settings = {
        "cleanup.policy": "delete",  # compaction would keep only the last diff of an instance
        "retention.ms": "-1",
        "retention.bytes": "-1",
    } | _promised_settings(replication, config.event_bytes_max)
    return TopicPlan(name, config.partitions, replication, settings)


def metadata_plan(name: str, brokers: int, config: Config) -> TopicPlan:
    """Return the topic with the metadata of all apps of a namespace: the last value of each key."""
    replication = config.replication or min(3, brokers)
    settings = {"cleanup.policy": "compact"} | _promised_settings(
        replication, config.event_bytes_max
    )
    return TopicPlan(name, 1, replication, settings)


#: What goes wrong when a setting of an app's topic is not as planned.
_CONSEQUENCES = {
    "cleanup.policy": "events would be removed",
    "retention.ms": "events would be deleted by age",
    "retention.bytes": "events would be deleted by size",
    "min.insync.replicas": "an acknowledged event could be lost with one broker",
    "unclean.leader.election.enable": "a replica that is behind could become the truth",
    "message.timestamp.type": "times would be those of the producers' clocks",
    "max.message.bytes": "an event of event_bytes_max would be refused",
}

#: Settings of which more than planned does no harm.
_AT_LEAST = frozenset({"min.insync.replicas", "max.message.bytes"})


def describe_faults(found: Mapping[str, str | None], plan: TopicPlan) -> str | None:
    """Say which settings of an existing topic break a promise and why; None when none does.

    The text ends with the command that mends them.
    """
    wrong = {
        name: wanted
        for name, wanted in plan.settings.items()
        if not _is_kept(name, found.get(name), wanted)
    }
    if not wrong:
        return None
    faults = "; ".join(
        f"{name} is {found.get(name)} and must be {wanted}"
        f"{' or more' if name in _AT_LEAST else ''}: {_CONSEQUENCES[name]}"
        for name, wanted in wrong.items()
    )
    changes = ",".join(f"{name}={wanted}" for name, wanted in wrong.items())
    return (
        f"topic {plan.name}: {faults}. Nothing was written. To mend it: kafka-configs.sh"
        f" --bootstrap-server ... --alter --entity-type topics --entity-name {plan.name}"
        f" --add-config {changes}"
    )


def _is_kept(name: str, found: str | None, wanted: str) -> bool:
    if name in _AT_LEAST:
        return found is not None and int(found) >= int(wanted)
    return found == wanted
