"""What the Kafka tests share: logs that are closed, administrators, foreign producers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from eventstore.log.base import Log, Record, Topic
from tests.contract.logs import DEADLINE_S, eventually


def made(log: Log, name: str) -> Topic:
    """Return the topic, made if need be."""
    topic = log.topic(name, create=True)
    assert topic is not None
    return topic


def read_all(log: Log, topic: Topic, partition: int, records_max: int = 500) -> list[Record]:
    """Return every committed record of a partition."""
    records: list[Record] = []
    offset, end = log.offset_first(topic, partition), log.offset_end(topic, partition)
    while offset < end:
        batch = log.read(topic, partition, offset, records_max=records_max, bytes_max=1 << 20)
        assert batch.offset_next > offset
        records += batch.records
        offset = batch.offset_next
    return records


class Administrator:
    """Somebody who changes topics behind our back, and returns when the broker knows of it.

    Its controller answers earlier; one broker is asked, so a cluster may have others that lag.
    """

    def __init__(self, url: str) -> None:
        self.address = url.removeprefix("kafka://")
        self._admin = AdminClient({"bootstrap.servers": self.address})

    def create(self, name: str, partitions: int, **settings: str) -> None:
        config = {name.replace("_", "."): value for name, value in settings.items()}
        new = NewTopic(name, partitions, 1, config=config)
        self._admin.create_topics([new])[name].result(DEADLINE_S)
        self._until_partitions(name, partitions)

    def delete(self, name: str) -> None:
        self._admin.delete_topics([name], operation_timeout=DEADLINE_S)[name].result(DEADLINE_S)
        self._until_partitions(name, 0)

    def add_partitions(self, name: str, total: int) -> None:
        self._admin.create_partitions([NewPartitions(name, total)])[name].result(DEADLINE_S)
        self._until_partitions(name, total)

    def _until_partitions(self, name: str, count: int) -> None:
        assert eventually(lambda: self._partitions().get(name, 0) == count)

    def _partitions(self) -> dict[str, int]:
        found = self._admin.list_topics(timeout=DEADLINE_S).topics
        return {name: len(topic.partitions) for name, topic in found.items()}

    def alter(self, name: str, setting: str, value: str) -> None:
        entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
        self._admin.incremental_alter_configs([resource])[resource].result(DEADLINE_S)

    def delete_records(self, name: str, partition: int, before: int) -> None:
        place = TopicPartition(name, partition, before)
        self._admin.delete_records([place])[place].result(DEADLINE_S)

    def settings(self, name: str) -> Mapping[str, str]:
        """Return the settings of a topic, as soon as the broker that is asked has heard of it."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        found: dict[str, str] = {}

        def is_answered() -> bool:
            try:
                answer = self._admin.describe_configs([resource])[resource].result(DEADLINE_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                return False
            found.update((setting, entry.value) for setting, entry in answer.items())
            return True

        assert eventually(is_answered)
        return found

    def topics(self, namespace: str) -> dict[str, int]:
        """Return the number of partitions of each topic of a namespace."""
        prefix = f"{namespace}."
        found = self._partitions()
        return {name: count for name, count in found.items() if name.startswith(prefix)}

    def leader(self, name: str, partition: int) -> int:
        """Return the number of the broker that leads a partition, as soon as one does."""
        leaders: list[int] = []

        def is_led() -> bool:
            topic = self._admin.list_topics(name, timeout=DEADLINE_S).topics[name]
            found = topic.partitions.get(partition)
            leaders.append(-1 if found is None else found.leader)
            return leaders[-1] >= 0

        assert eventually(is_led)
        return leaders[-1]


def is_refused(url: str, topic: Topic, partition: int, value: bytes) -> bool:
    """Say whether the broker refuses a record of somebody else (key `foreign`) as too large."""
    told: list[KafkaError | None] = []

    def hear(error: KafkaError | None, message: Message) -> None:
        told.append(error)

    producer = Producer({"bootstrap.servers": url.removeprefix("kafka://")})
    producer.produce(topic.name, value, b"foreign", partition, on_delivery=hear)
    producer.flush(DEADLINE_S)
    (error,) = told
    return error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE


class ForeignTransaction:
    """A producer without our code that writes inside a transaction."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "transactional.id": uuid.uuid4().hex,
        }
        self._producer = Producer(options)
        self._producer.init_transactions(DEADLINE_S)

    def write(self, topic: Topic, *values: bytes) -> None:
        self._producer.begin_transaction()
        for value in values:
            self._producer.produce(topic.name, value, b"foreign", 0)
        self._producer.flush(DEADLINE_S)

    def commit(self) -> None:
        self._producer.commit_transaction(DEADLINE_S)

    def abort(self) -> None:
        self._producer.abort_transaction(DEADLINE_S)


class DeafProxy:
    """A way to a broker that can forget its connections, as a firewall does: without a word.

    Clients keep them, and write into them, and nobody answers. New connections work.
    """

    def __init__(self) -> None:
        #: Port of the broker, to be set before the first connection is made.
        self.target = 0
        self.port = 0
        self._era = 0  # connections of an earlier one are forgotten
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def __enter__(self) -> DeafProxy:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def forget_connections(self) -> None:
        """Let nothing more through the connections that there are."""
        self._era += 1

    async def _run(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        # Again and again: some may be about to be made just now. Only then the server: it would
        # lose a connection that is just being made to it, and nobody would close that one.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        server.close()

    async def _connected(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self._writers.append(to_client)
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the broker is gone, and clients that are not closed yet look for it
            to_client.close()
            with contextlib.suppress(ConnectionError):
                await to_client.wait_closed()
            return
        self._writers.append(to_broker)
        await asyncio.gather(self._pump(from_client, to_broker), self._pump(from_broker, to_client))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        era = self._era
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if era == self._era:
                    sink.write(data)
                    await sink.drain()
        sink.close()
