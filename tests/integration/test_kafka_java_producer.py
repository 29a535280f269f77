"""The wire format is enough: a Java program without our code writes what we read."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from eventstore.codec import decode_event
from eventstore.config import Config
from eventstore.log.kafka import KafkaLog
from tests.integration.kafka import made, read_all
from tools.broker import broker

PRODUCER = Path(__file__).parents[2] / "examples" / "producer-java" / "Producer.java"


def test_a_thousand_events_of_a_java_producer_are_read_where_they_belong(
    kafka_url: str, namespace: str
) -> None:
    if broker.available() is not None:
        pytest.skip(f"no Java with Kafka's jars: {broker.available()}")
    log = KafkaLog(kafka_url, Config.load({}, namespace=namespace, partitions=4))
    topic = made(log, f"{namespace}.app")

    address = kafka_url.removeprefix("kafka://")
    done = subprocess.run(
        ["java", "-cp", f"{broker.jars()}/*", str(PRODUCER), address, topic.name, "1000"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )

    assert done.stdout == "1000 of 1000 events were acknowledged\n", done.stderr
    counted: Counter[bytes] = Counter()
    for partition in range(topic.partitions):
        for record in read_all(log, topic, partition):
            assert record.key is not None
            assert record.value is not None
            event = decode_event(record.value)
            assert log.partition_of(record.key, topic) == partition
            assert (event.kind.name, event.name) == ("DIFF", "Counted")
            assert event.idempotency_key is not None
            number = int(event.idempotency_key.removeprefix("java-"))
            assert record.key == b"java-%d" % (number % 10)
            counted[record.key] += 1
    assert counted == {b"java-%d" % instance: 100 for instance in range(10)}
    log.close()
