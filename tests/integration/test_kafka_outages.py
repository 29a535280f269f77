"""Brokers that die, with and without a successor, fall silent, or answer who cannot hear. Goal:
nothing acknowledged is lost or reordered, and every wait ends when it was promised to end.

Method: each test has brokers of its own, kills or stops them, or forgets the connections to them.
A writer counts what was acknowledged; afterwards everything is read back.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from eventstore.config import Config
from eventstore.errors import LogUnavailable, OutcomeUnknown
from eventstore.log.base import Append, Topic
from eventstore.log.kafka import KafkaLog
from tests.contract.logs import Told, eventually, queue, write
from tests.fault.sqlite_processes import Child
from tests.integration.kafka import Administrator, DeafProxy, made, read_all
from tools.broker.broker import Cluster

pytestmark = pytest.mark.timeout(300)

#: A broker needs 3 s to come back, on a busy machine up to 30.
OUTAGE_S = 60.0


@pytest.fixture
def one_broker(kafka_brokers: type[Cluster]) -> Iterator[Cluster]:
    with kafka_brokers(1) as cluster:
        yield cluster


@pytest.fixture
def three_brokers(kafka_brokers: type[Cluster]) -> Iterator[Cluster]:
    with kafka_brokers(3) as cluster:
        yield cluster


def opened(cluster: Cluster, namespace: str, **settings: object) -> KafkaLog:
    values = {"partitions": 2, "append_timeout_s": OUTAGE_S, "read_timeout_s": OUTAGE_S}
    return KafkaLog(cluster.url, Config.load({}, namespace=namespace, **(values | settings)))


def made_in_peace(cluster: Cluster, namespace: str) -> Topic:
    """Return a topic that was made without a short deadline, which is for a dead broker."""
    log = opened(cluster, namespace)
    topic = made(log, f"{namespace}.app")
    log.close()
    return topic


class Load:
    """A thread that appends numbers to both partitions, and remembers what became of each."""

    def __init__(self, log: KafkaLog, topic: Topic) -> None:
        self.told: list[Told] = []
        self._log, self._topic = log, topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            appends = []
            for _ in range(10):
                told = Told()
                number = len(self.told)
                appends.append(Append(number % 2, b"k", b"%d" % number, told))
                self.told.append(told)
            self._log.append(self._topic, appends)

    @property
    def acknowledged(self) -> int:
        return sum(told.place is not None for told in list(self.told))

    def goes_on(self) -> bool:
        """Wait until something appended from now on was acknowledged."""
        after = len(self.told)
        return eventually(
            lambda: any(told.place is not None for told in self.told[after:]), OUTAGE_S
        )

    def is_given_up(self) -> bool:
        """Wait until something appended from now on has failed."""
        after = len(self.told)
        return eventually(
            lambda: any(told.error is not None for told in self.told[after : after + 1_000]),
            OUTAGE_S,
        )

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._log.flush(OUTAGE_S)


def is_appended(log: KafkaLog, topic: Topic, value: bytes) -> bool:
    """Append a value to "o-1", and say whether it was acknowledged before the log's deadline."""
    (told,) = queue(log, topic, (b"o-1", value))
    return told.wait() and told.error is None


def let_pass(seconds: float) -> None:
    """Let time pass that the behaviour under test is about: nothing else ends it."""
    threading.Event().wait(seconds)


def assert_nothing_lost_or_reordered(log: KafkaLog, topic: Topic, load: Load) -> None:
    for partition in (0, 1):
        records = read_all(log, topic, partition, 2_000)
        by_offset = {record.offset: record.value for record in records}
        for number, told in enumerate(load.told):
            if told.place is not None and told.place[0] == partition:
                assert by_offset[told.place[1]] == b"%d" % number, "an acknowledged event is lost"
        numbers = [int(record.value or b"-1") for record in records]
        assert numbers == sorted(set(numbers)), "events were repeated or reordered"


def test_a_broker_that_is_killed_and_comes_back_loses_and_reorders_nothing(
    one_broker: Cluster, namespace: str
) -> None:
    log = opened(one_broker, namespace)
    topic = made(log, f"{namespace}.app")
    load = Load(log, topic)
    assert load.goes_on()

    one_broker.kill()
    one_broker.restart()

    assert load.goes_on()
    load.end()
    assert all(told.error is None for told in load.told), "the deadline was not reached"
    assert_nothing_lost_or_reordered(log, topic, load)
    log.close()


def test_a_leader_that_is_killed_under_load_loses_and_reorders_nothing(
    three_brokers: Cluster, namespace: str
) -> None:
    log = opened(three_brokers, namespace)
    topic = made(log, f"{namespace}.app")
    administrator = Administrator(three_brokers.url)
    assert administrator.settings(topic.name)["min.insync.replicas"] == "2"
    load = Load(log, topic)
    reader = opened(three_brokers, namespace)
    assert load.goes_on()
    assert reader.wait(topic, {0: 0}, OUTAGE_S)
    epoch = reader.read(topic, 0, 0, records_max=1, bytes_max=1).epoch

    three_brokers.kill(administrator.leader(topic.name, 0))

    assert load.goes_on()
    load.end()
    assert_nothing_lost_or_reordered(log, topic, load)
    last = log.offset_end(topic, 0) - 1
    assert reader.read(topic, 0, last, records_max=1, bytes_max=1).epoch > epoch
    reader.close()
    log.close()


def test_a_broker_that_stays_away_ends_every_wait_at_its_deadline(
    one_broker: Cluster, namespace: str
) -> None:
    topic = made_in_peace(one_broker, namespace)
    log = opened(one_broker, namespace, append_timeout_s=2.0, read_timeout_s=2.0)
    assert eventually(lambda: is_appended(log, topic, b"there"), OUTAGE_S)
    one_broker.kill()
    began = time.monotonic()

    told = queue(log, topic, (b"o-1", b"one"), (b"o-1", b"two"))
    assert all(each.wait() for each in told)

    assert [type(each.error) for each in told] == [OutcomeUnknown, OutcomeUnknown]
    assert "idempotency key" in str(told[0].error)
    ask: list[Callable[[], object]] = [
        lambda: log.offset_end(topic, 0),
        lambda: log.topic(f"{namespace}.other", create=True),
        lambda: log.topics(),
    ]
    for question in ask:
        with pytest.raises(LogUnavailable, match=r"kafka://127\.0\.0\.1:\d+ was asked"):
            question()
    log.close()
    # Five waits of 2 s; that of a client that is not told how long would take a minute.
    assert time.monotonic() - began < 40.0


def test_after_a_deadline_the_next_append_gets_through_when_the_broker_is_back(
    one_broker: Cluster, namespace: str
) -> None:
    topic = made_in_peace(one_broker, namespace)
    # A new producer needs a second until it may send anything.
    log = opened(one_broker, namespace, append_timeout_s=2.0)
    assert eventually(lambda: is_appended(log, topic, b"before"), OUTAGE_S)
    one_broker.kill()
    (lost,) = queue(log, topic, (b"o-1", b"given up"))
    assert lost.wait()
    assert isinstance(lost.error, OutcomeUnknown)
    one_broker.restart()

    assert eventually(lambda: is_appended(log, topic, b"after"), OUTAGE_S)
    values = [r.value for r in read_all(log, topic, log.partition_of(b"o-1", topic))]
    assert values[0] == b"before"
    assert values[-1] == b"after"
    log.close()


def test_an_append_whose_answer_is_lost_is_sent_again_before_its_deadline(
    kafka_brokers: type[Cluster], namespace: str
) -> None:
    with DeafProxy() as proxy, kafka_brokers(1, advertised_port=proxy.port) as cluster:
        proxy.target = cluster.port
        log = opened(cluster, namespace, append_timeout_s=15.0)
        topic = made(log, f"{namespace}.app")
        write(log, topic, (b"o-1", b"before"))

        proxy.forget_connections()
        write(log, topic, (b"o-1", b"after"))
        log.close()

        reader = opened(cluster, namespace)
        values = [r.value for r in read_all(reader, topic, reader.partition_of(b"o-1", topic))]
        assert values == [b"before", b"after"]
        reader.close()


def test_a_broker_that_hangs_for_less_than_the_deadline_fails_loses_and_reorders_nothing(
    one_broker: Cluster, namespace: str
) -> None:
    log = opened(one_broker, namespace, append_timeout_s=21.0)
    topic = made(log, f"{namespace}.app")
    load = Load(log, topic)
    assert load.goes_on()

    one_broker.pause()
    let_pass(9.0)  # requests are sent again after a third of the deadline
    one_broker.resume()

    assert load.goes_on()
    load.end()
    assert all(told.error is None for told in load.told)
    assert_nothing_lost_or_reordered(log, topic, load)
    log.close()


def test_a_broker_that_hangs_past_the_deadline_loses_and_reorders_nothing(
    one_broker: Cluster, namespace: str
) -> None:
    topic = made_in_peace(one_broker, namespace)
    log = opened(one_broker, namespace, append_timeout_s=3.0)
    load = Load(log, topic)
    assert load.goes_on()

    one_broker.pause()
    assert load.is_given_up()
    one_broker.resume()

    assert load.goes_on()
    load.end()
    assert_nothing_lost_or_reordered(log, topic, load)
    log.close()


class Writer(Child):
    """A process of kafka_child.py."""

    MODULE = "tests.integration.kafka_child"


def test_a_process_that_was_stopped_hears_its_answers_before_its_deadlines_count(
    one_broker: Cluster, namespace: str
) -> None:
    timeout_s = 5.0
    log = opened(one_broker, namespace)
    topic = made(log, f"{namespace}.app")
    writer = Writer("append-and-stop", one_broker.url, namespace, timeout_s)
    writer.until(lambda lines: lines == ["ready"])
    one_broker.pause()
    assert writer.process.stdin is not None
    print("go", file=writer.process.stdin, flush=True)
    writer.until(lambda lines: lines == ["ready", "queued"])

    os.waitid(os.P_PID, writer.process.pid, os.WSTOPPED)
    one_broker.resume()
    let_pass(timeout_s * 1.5)
    writer.process.send_signal(signal.SIGCONT)

    writer.end()
    assert writer.lines == ["ready", "queued", "delivered"]
    writer.close()
    values = [r.value for r in read_all(log, topic, log.partition_of(b"o-1", topic))]
    assert values == [b"before", b"after"]
    log.close()
