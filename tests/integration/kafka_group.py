"""The group of an app's runners, as others see it."""

from __future__ import annotations

from confluent_kafka import Consumer, TopicPartition

from tests.contract.logs import DEADLINE_S


class Group:
    """The offsets of the runners' group, as somebody reads and writes them who is not in it.

    By a consumer: librdkafka 2.16 kills the process of an AdminClient that asks for them while the
    coordinator of the group is loading (rd_kafka_handle_OffsetFetch of a client without a group).
    """

    def __init__(self, url: str, namespace: str) -> None:
        options = {"bootstrap.servers": url.removeprefix("kafka://")}
        self._topic = f"{namespace}.cart"
        self._consumer = Consumer({**options, "group.id": f"{namespace}.cart.cart"})

    def read(self) -> dict[int, int]:
        places = [TopicPartition(self._topic, partition) for partition in (0, 1)]
        found = self._consumer.committed(places, DEADLINE_S)
        return {place.partition: place.offset for place in found if place.offset >= 0}

    def write(self, offsets: dict[int, int]) -> None:
        """Write offsets while nobody is in the group."""
        places = [TopicPartition(self._topic, *item) for item in offsets.items()]
        self._consumer.commit(offsets=places, asynchronous=False)

    def close(self) -> None:
        self._consumer.close()
