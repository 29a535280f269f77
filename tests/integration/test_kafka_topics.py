"""Topics on a real broker: how they are made, checked, told apart, and read around."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from confluent_kafka import TopicPartition

from eventstore.config import Config
from eventstore.errors import (
    Closed,
    ConfigError,
    EventTooLarge,
    LogTruncated,
    LogUnavailable,
    OutcomeUnknown,
)
from eventstore.log.base import Append, Topic
from eventstore.log.kafka import KafkaLog
from tests.contract.logs import DEADLINE_S, Told, eventually, queue, write
from tests.integration.kafka import Administrator, ForeignTransaction, is_refused, made, read_all

OpenLog = Callable[..., KafkaLog]


@pytest.fixture
def open_log(kafka_url: str, namespace: str) -> Iterator[OpenLog]:
    with ExitStack() as stack:

        def open_(url: str = kafka_url, **settings: object) -> KafkaLog:
            values = {"namespace": namespace, "partitions": 2} | settings
            log = KafkaLog(url, Config.load({}, **values))
            stack.callback(log.close)
            return log

        yield open_


@pytest.fixture
def log(open_log: OpenLog) -> KafkaLog:
    return open_log()


@pytest.fixture
def administrator(kafka_url: str) -> Administrator:
    return Administrator(kafka_url)


# --- how topics are made and checked ------------------------------------------------------------


def test_a_topic_is_made_with_the_settings_that_the_promises_need(
    log: KafkaLog, namespace: str, administrator: Administrator
) -> None:
    topic = made(log, f"{namespace}.app")

    settings = administrator.settings(topic.name)
    assert {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "min.insync.replicas": "1",
        "unclean.leader.election.enable": "false",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": "1048588",
    }.items() <= settings.items()
    assert topic.partitions == 2
    assert administrator.topics(namespace) == {topic.name: 2, f"{namespace}._foldlog": 1}
    assert administrator.settings(f"{namespace}._foldlog")["cleanup.policy"] == "compact"
    assert log.topics() == [topic.name]


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("retention_ms", "604800000", "events would be deleted by age"),
        ("cleanup_policy", "compact", "events would be removed"),
        ("message_timestamp_type", "CreateTime", "producers' clocks"),
        ("max_message_bytes", "5000", "an event of event_bytes_max would be refused"),
    ],
)
def test_an_existing_topic_that_would_break_a_promise_is_refused_with_the_reason(
    log: KafkaLog,
    namespace: str,
    administrator: Administrator,
    setting: str,
    value: str,
    why: str,
) -> None:
    good = {"retention_ms": "-1", "message_timestamp_type": "LogAppendTime"}
    administrator.create(f"{namespace}.app", 1, **(good | {setting: value}))

    with pytest.raises(ConfigError, match=rf"{setting.replace('_', '.')} is .*{why}"):
        log.topic(f"{namespace}.app", create=True)

    assert administrator.topics(namespace) == {f"{namespace}.app": 1}, "nothing was written"


def test_without_leave_to_create_topics_the_error_has_the_command(
    open_log: OpenLog, namespace: str, administrator: Administrator
) -> None:
    log = open_log(create_topics=False)

    with pytest.raises(ConfigError) as refused:
        log.topic(f"{namespace}.app", create=True)

    assert f"--topic {namespace}.app --partitions 2 --replication-factor 1" in str(refused.value)
    assert "--config retention.ms=-1" in str(refused.value)
    assert administrator.topics(namespace) == {}


def test_reading_makes_no_topic(
    log: KafkaLog, namespace: str, administrator: Administrator
) -> None:
    administrator.create(f"{namespace}.foreign", 3, retention_ms="-1")

    assert log.topic(f"{namespace}.absent", create=False) is None
    foreign = log.topic(f"{namespace}.foreign", create=False)
    assert foreign is not None
    assert foreign.partitions == 3
    assert log.metadata(foreign) == {}
    assert read_all(log, foreign, 0) == []

    assert administrator.topics(namespace) == {f"{namespace}.foreign": 3}


def test_the_partitions_of_an_app_stay_when_the_topic_gets_more(
    log: KafkaLog, open_log: OpenLog, namespace: str, administrator: Administrator
) -> None:
    before = made(log, f"{namespace}.app")
    place = log.partition_of(b"o-1", before)

    administrator.add_partitions(before.name, 7)

    after = made(open_log(), before.name)
    assert after == before
    assert log.partition_of(b"o-1", after) == place


def test_the_partition_of_an_instance_is_the_one_that_java_chooses(
    log: KafkaLog, namespace: str
) -> None:
    topic = made(log, f"{namespace}.app")._replace(partitions=1000)

    # murmur2 of Kafka's own UtilsTest: "21" -> -973932308, "foobar" -> -790332482
    assert log.partition_of(b"21", topic) == (-973932308 & 0x7FFFFFFF) % 1000
    assert log.partition_of(b"foobar", topic) == (-790332482 & 0x7FFFFFFF) % 1000


def test_a_topic_made_again_is_another_log(
    log: KafkaLog, open_log: OpenLog, namespace: str, administrator: Administrator
) -> None:
    old = made(log, f"{namespace}.app")
    log.set_metadata(old, {"rules": 3})
    write(log, old, (b"o-1", b"before"))

    administrator.delete(old.name)
    new = made(open_log(), old.name)

    assert new.identity != old.identity
    assert log.metadata(new) == {}
    with pytest.raises(LogTruncated, match="deleted and created again"):
        open_log().read(old, 0, 0, records_max=1, bytes_max=1)


# --- reading ------------------------------------------------------------------------------------


def test_aborted_transactions_are_not_seen_and_their_gaps_are_crossed(
    log: KafkaLog, namespace: str, kafka_url: str
) -> None:
    topic = made(log, f"{namespace}.app")
    key = next(key for key in (b"%d" % i for i in range(99)) if not log.partition_of(key, topic))
    foreign = ForeignTransaction(kafka_url)

    write(log, topic, (key, b"first"))
    foreign.write(topic, b"never", b"happened")
    assert log.offset_end(topic, 0) == 1, "an open transaction is not there yet"
    foreign.abort()
    foreign.write(topic, b"did happen")
    foreign.commit()
    write(log, topic, (key, b"last"))
    foreign.write(topic, b"at the very end")
    foreign.abort()

    assert [r.value for r in read_all(log, topic, 0)] == [b"first", b"did happen", b"last"]
    assert eventually(lambda: log.offset_end(topic, 0) == 9)
    # Nothing but a gap behind the last record: a reader gets over it.
    last = log.read(topic, 0, 7, records_max=10, bytes_max=1000)
    assert (list(last.records), last.offset_next) == ([], 9)


def test_what_is_read_does_not_depend_on_where_reading_began_before(
    log: KafkaLog, namespace: str
) -> None:
    topic = made(log, f"{namespace}.app")
    write(log, topic, *((b"%d" % i, b"value %d" % i) for i in range(3_000)))
    expected = [read_all(log, topic, partition) for partition in (0, 1)]
    dice = random.Random(4181)

    for _ in range(120):
        partition = dice.randrange(2)
        offset = dice.randrange(len(expected[partition]))
        count = dice.choice([1, 3, 400, 2_000])
        if dice.random() < 0.3:
            log.wait(topic, {partition: offset}, 1.0)
        batch = log.read(topic, partition, offset, records_max=count, bytes_max=1 << 20)

        assert batch.records
        assert list(batch.records) == expected[partition][offset : offset + len(batch.records)]
        assert batch.offset_next == offset + len(batch.records)


def stop_fetching(log: KafkaLog, topic: Topic) -> tuple[int, int]:
    """Let the client that waits for news fetch one record and no more; return where it stands."""
    ((partition, first),) = write(log, topic, (b"o-1", b"first"))
    assert log.wait(topic, {partition: first}, DEADLINE_S)
    log.read(topic, partition, first, records_max=100, bytes_max=1 << 20)
    tail = log._streams[topic.name]._tail
    assert tail is not None
    tail._consumer.pause([TopicPartition(topic.name, partition)])
    return partition, first + 1


def test_a_client_that_fetches_no_more_is_given_up(
    log: KafkaLog, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.log.kafka_reader._STUCK_S", 0.5)
    topic = made(log, f"{namespace}.app")
    partition, second = stop_fetching(log, topic)
    write(log, topic, (b"o-1", b"second"))

    batch = log.read(topic, partition, second, records_max=100, bytes_max=1 << 20)

    assert [record.value for record in batch.records] == [b"second"]


def test_who_waits_hears_of_what_the_client_was_not_sent(
    open_log: OpenLog, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other_log = open_log(), open_log()
    monkeypatch.setattr("eventstore.log.kafka._LOOK_S", 0.2)
    monkeypatch.setattr("eventstore.log.kafka_reader._STUCK_S", 0.5)
    topic = made(log, f"{namespace}.app")
    partition, second = stop_fetching(log, topic)
    write(other_log, topic, (b"o-1", b"second"))

    heard = eventually(lambda: log.wait(topic, {partition: second}, 0.1))
    batch = log.read(topic, partition, second, records_max=100, bytes_max=1 << 20)

    assert heard
    assert [record.value for record in batch.records] == [b"second"]


def test_what_one_thread_asked_for_is_read_though_the_older_answer_of_another_comes_late(
    open_log: OpenLog, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other_log = open_log(), open_log()
    monkeypatch.setattr("eventstore.log.kafka_reader._STUCK_S", 0.5)
    topic = made(log, f"{namespace}.app")
    partition, second = stop_fetching(log, topic)
    ask_end = log.cluster.offset_end
    is_answered, may_go_on = threading.Event(), threading.Event()

    def answered_late(name: str, partition: int) -> int:
        end = ask_end(name, partition)
        is_answered.set()
        assert may_go_on.wait(DEADLINE_S)
        return end

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(log.cluster, "offset_end", answered_late)
        older = pool.submit(log.offset_end, topic, partition)
        assert is_answered.wait(DEADLINE_S)
        monkeypatch.setattr(log.cluster, "offset_end", ask_end)
        write(other_log, topic, (b"o-1", b"second"))
        newer = log.offset_end(topic, partition)
        may_go_on.set()
        ends = (older.result(DEADLINE_S), newer)
    batch = log.read(topic, partition, second, records_max=100, bytes_max=1 << 20)

    assert ends == (second, second + 1)
    assert [record.value for record in batch.records] == [b"second"]


def test_what_was_read_once_is_read_again_where_a_reader_stands_that_was_not_sent_it_yet(
    open_log: OpenLog, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other_log = open_log(), open_log()
    monkeypatch.setattr("eventstore.log.kafka_reader._STUCK_S", 0.5)
    topic = made(log, f"{namespace}.app")
    ((partition, first),) = write(log, topic, (b"o-1", b"first"))
    second = first + 1
    log.read(topic, partition, first, records_max=100, bytes_max=1 << 20)
    write(other_log, topic, (b"o-1", b"second"))
    stream = log._streams[topic.name]
    assert stream._scan is not None
    assert stream._scan.wait({partition: second}, DEADLINE_S, lambda: False), "fetched ahead"

    once = log.read(topic, partition, second, records_max=100, bytes_max=1 << 20)
    log.wait(topic, {partition: second}, 0.0)
    assert stream._tail is not None
    stream._tail._consumer.pause([TopicPartition(topic.name, partition)])
    again = log.read(topic, partition, second, records_max=100, bytes_max=1 << 20)

    assert [record.value for record in once.records] == [b"second"]
    assert list(again.records) == list(once.records)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_a_reader_that_meets_the_close_of_its_log_is_told_so(
    log: KafkaLog, namespace: str, monkeypatch: pytest.MonkeyPatch, waits: bool, is_first: bool
) -> None:
    topic = made(log, f"{namespace}.app")
    ((partition, offset),) = write(log, topic, (b"o-1", b"value"))

    def ask() -> object:
        if waits:
            return log.wait(topic, {partition: offset + 1}, 0.05)
        return log.read(topic, partition, offset, records_max=1, bytes_max=1)

    if not is_first:
        ask()
    find = log._stream
    is_about_to, may_go_on = threading.Event(), threading.Event()

    def stand_still(topic: Topic) -> object:
        found = find(topic)
        is_about_to.set()
        assert may_go_on.wait(DEADLINE_S)
        return found

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(log, "_stream", stand_still)
        asked = pool.submit(ask)
        assert is_about_to.wait(DEADLINE_S)
        log.close()
        may_go_on.set()
        error = asked.exception(DEADLINE_S)

    assert isinstance(error, Closed)
    assert str(error) == f"the log {log.url} is closed"


def test_who_waits_for_a_topic_is_let_go_when_its_name_has_another(
    log: KafkaLog, namespace: str
) -> None:
    topic = made(log, f"{namespace}.app")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(log.wait, topic, {0: 0}, DEADLINE_S)
        assert eventually(lambda: topic.name in log._streams)
        with pytest.raises(LogTruncated):
            log.offset_end(topic._replace(identity="another"), 0)
        has_news = waiting.result(DEADLINE_S)

    assert not has_news


def test_a_deleted_beginning_is_truncation(
    log: KafkaLog, namespace: str, administrator: Administrator
) -> None:
    topic = made(log, f"{namespace}.app")
    write(log, topic, *((b"o-1", b"%d" % i) for i in range(10)))
    partition = log.partition_of(b"o-1", topic)
    administrator.delete_records(topic.name, partition, 5)

    assert log.offset_first(topic, partition) == 5
    with pytest.raises(LogTruncated):
        log.read(topic, partition, 2, records_max=10, bytes_max=1000)
    assert log.read(topic, partition, 5, records_max=1, bytes_max=1).records[0].value == b"5"


# --- writing ------------------------------------------------------------------------------------


def test_an_event_above_the_limit_is_refused_before_anything_of_its_call_is_queued(
    open_log: OpenLog, namespace: str
) -> None:
    log = open_log(event_bytes_max=2_000)
    topic = made(log, f"{namespace}.app")

    with pytest.raises(EventTooLarge):
        queue(log, topic, (b"o-1", b"small"), (b"o-1", b"x" * 2_001))

    write(log, topic, (b"o-1", b"y" * 2_000))
    (record,) = read_all(log, topic, log.partition_of(b"o-1", topic))
    assert record.value == b"y" * 2_000


def test_after_an_event_that_the_broker_refuses_nothing_of_its_call_follows_and_appends_go_on(
    log: KafkaLog, namespace: str, administrator: Administrator, kafka_url: str
) -> None:
    topic = made(log, f"{namespace}.app")
    partition = log.partition_of(b"o-1", topic)
    write(log, topic, (b"o-1", b"zero"))
    administrator.alter(topic.name, "max.message.bytes", "5000")
    # The broker takes the new limit to heart a moment after it was told.
    assert eventually(lambda: is_refused(kafka_url, topic, partition, b"x" * 6_000))

    # The first fills a batch, so the second travels in one that the broker would take.
    first, second = queue(log, topic, (b"o-1", b"x" * 1_000_000), (b"o-1", b"behind it"))
    assert first.wait()
    assert second.wait()

    assert isinstance(first.error, EventTooLarge | OutcomeUnknown)
    assert isinstance(second.error, LogUnavailable)
    write(log, topic, (b"o-1", b"later"))
    values = [r.value for r in read_all(log, topic, partition) if r.key == b"o-1"]
    assert values == [b"zero", b"later"]


def test_a_full_buffer_makes_an_append_wait_and_loses_nothing(
    open_log: OpenLog, namespace: str
) -> None:
    log = open_log(buffer_bytes_max=1_000_000, partitions=1)
    topic = made(log, f"{namespace}.app")

    told = queue(log, topic, *((b"o-1", b"%06d" % i) for i in range(20_000)))
    log.flush(DEADLINE_S)

    assert all(each.done and each.error is None for each in told)
    assert [r.value for r in read_all(log, topic, 0, 2_000)] == [b"%06d" % i for i in range(20_000)]


# --- secrets, forks -----------------------------------------------------------------------------


def test_secrets_appear_in_no_message(open_log: OpenLog, kafka_url: str) -> None:
    secret = "hunter2-of-many"
    log = open_log(
        f"{kafka_url}?sasl.username=me&sasl.password={secret}", kafka={"ssl.key.password": secret}
    )

    with pytest.raises(ConfigError) as wrong_value:
        open_log(f"{kafka_url}?security.protocol={secret}")
    with pytest.raises(ConfigError) as promised:
        open_log(f"{kafka_url}?acks={secret}")
    with pytest.raises(ConfigError) as in_front:
        open_log(f"kafka://me:{secret}@localhost:9092")

    said = [log.url, repr(log), repr(log._config), repr(log._address)]
    said += [repr(error.value) + str(error.value) for error in (wrong_value, promised, in_front)]
    assert not [text for text in said if secret in text]
    assert "security.protocol" in str(wrong_value.value)
    assert "all in-sync replicas" in str(promised.value)


def test_a_forked_child_is_refused_and_the_parent_goes_on(log: KafkaLog, namespace: str) -> None:
    topic = made(log, f"{namespace}.app")
    write(log, topic, (b"o-1", b"before"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is unwise
        child = os.fork()
    if child == 0:
        try:
            log.append(topic, [])
        except Closed:
            os._exit(7)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    write(log, topic, (b"o-1", b"after"))


def test_deliveries_that_raise_do_not_stop_the_others(
    log: KafkaLog, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(Told):
        def delivered(self, partition: int, offset: int) -> None:
            super().delivered(partition, offset)
            raise ValueError("of the writer's own")

    topic = made(log, f"{namespace}.app")
    faulty = Raises()
    log.append(topic, [Append(0, b"o-1", b"x", faulty)])
    assert faulty.wait()

    write(log, topic, (b"o-1", b"y"))

    assert "of the writer's own" in caplog.text
