"""How far the work is, as tools see it: the offsets that a group of runners commits.

Goal: `kafka-consumer-groups --describe` shows a true lag, and nothing else depends on it. Method:
runners on a real broker; what an administrator reads of the group, and what he writes into it.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eventstore import EventStore
from eventstore.config import Config
from eventstore.log import kafka_owner
from eventstore.log.kafka import KafkaLog
from processors.component import Component
from processors.runner import Runner
from tests.contract.logs import eventually
from tests.integration.kafka import made
from tests.integration.kafka_group import Group
from tools.broker.broker import Cluster

WAIT_S = 60.0


class Work:
    """An app of two partitions whose updates wait for a gate when they are told to."""

    def __init__(self, url: str, namespace: str) -> None:
        self.gate = threading.Event()
        self.component = Component("cart")
        self.component.update("add")(self._keep)
        config = Config.load({}, namespace=namespace, partitions=2)
        self.store = EventStore(url, config=config)
        self.app = self.store.app("cart")
        self.topic = f"{namespace}.cart"
        self.group = Group(url, namespace)

    def _keep(self, state: Any, props: Any) -> dict[str, int]:
        if props.get("waits"):
            assert self.gate.wait(WAIT_S)
        return {"n": state.get("n", 0) + 1}

    def request(self, instance: str, count: int = 1, **options: Any) -> list[tuple[int, int]]:
        """Request so many updates; return partition and offset of each."""
        props = {"waits": True} if options.pop("waits", False) else {}
        receipts = [self.app.request(instance, "add/_keep", props, **options) for _ in range(count)]
        return [next(iter(receipt.result(WAIT_S).items())) for receipt in receipts]

    def started(self) -> Runner:
        runner = Runner(self.store, self.component).start()
        assert runner.wait_ready(WAIT_S)
        return runner

    @property
    def committed(self) -> dict[int, int]:
        return self.group.read()

    @property
    def ends(self) -> dict[int, int]:
        topic = self.store.log.topic(self.topic, create=False)
        assert topic is not None
        return {partition: self.store.log.offset_end(topic, partition) for partition in (0, 1)}

    def close(self) -> None:
        self.gate.set()
        self.store.close()
        self.group.close()


@pytest.fixture
def work(kafka_url: str, namespace: str) -> Iterator[Work]:
    work = Work(kafka_url, namespace)
    yield work
    work.close()


def test_what_is_committed_is_the_first_unanswered_request_and_the_end_when_there_is_none(
    work: Work,
) -> None:
    runner = work.started()
    work.request("u-1", 3)
    [(partition, unanswered)] = work.request("u-1", waits=True)
    work.request("u-1", 3)

    assert eventually(lambda: work.committed.get(partition) == unanswered, WAIT_S)
    assert work.ends[partition] > unanswered, "there is a lag"
    work.gate.set()

    assert eventually(lambda: work.committed == work.ends, WAIT_S), "the lag is 0"
    runner.stop()


def test_requests_that_were_there_before_the_runner_count(work: Work) -> None:
    [(partition, unanswered)] = work.request("u-1", waits=True)
    work.request("u-1", 3)

    runner = work.started()

    assert eventually(lambda: work.committed.get(partition) == unanswered, WAIT_S)
    work.gate.set()
    assert eventually(lambda: work.committed == work.ends, WAIT_S)
    runner.stop()


def test_a_request_that_is_due_later_holds_the_offset_back(work: Work) -> None:
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    runner = work.started()
    work.request("u-1")
    [(partition, delayed)] = work.request("u-1", not_before=tomorrow)
    work.request("u-1", 2)
    assert runner.drain(WAIT_S)

    runner.stop()

    assert work.committed[partition] == delayed


def test_events_that_ask_for_nothing_are_no_lag_either(work: Work) -> None:
    runner = work.started()

    work.app.append("u-1", {"n": 1}).result(WAIT_S)

    assert eventually(lambda: work.committed == work.ends, WAIT_S)
    assert sum(work.ends.values()) > 0
    runner.stop()


def test_a_clean_stop_commits_the_last_answers_before_it_leaves(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_owner, "_COMMIT_INTERVAL_S", 3_600.0)
    runner = work.started()
    work.request("u-1", 3)
    work.request("u-2", 3)
    assert runner.drain(WAIT_S)

    runner.stop()

    assert work.committed == work.ends


def test_two_runners_each_show_their_own_partitions(
    work: Work, kafka_url: str, namespace: str
) -> None:
    runner = work.started()
    other = Work(kafka_url, namespace)
    beside = other.started()
    assert eventually(lambda: len(runner.snapshot().shards) == 1, WAIT_S)

    for number in range(8):
        work.request(f"u-{number}")

    assert all(work.ends.values()), "both partitions have events"
    assert eventually(lambda: work.committed == work.ends, WAIT_S)
    beside.stop()
    other.close()
    runner.stop()


def test_what_is_committed_decides_nothing(work: Work) -> None:
    work.request("u-1", 3)
    work.group.write({0: 1_000, 1: 1_000})

    runner = work.started()

    assert runner.drain(WAIT_S)
    assert work.app.get("u-1", fresh=True) == {"n": 3}
    assert eventually(lambda: work.committed == work.ends, WAIT_S), "and it is put right"
    runner.stop()


def test_a_broker_that_falls_silent_holds_nobody_up_who_leaves(
    kafka_brokers: type[Cluster], namespace: str
) -> None:
    offsets = {0: 1, 1: 1}
    with (
        kafka_brokers(1) as cluster,
        contextlib.closing(KafkaLog(cluster.url, Config.load({}, namespace=namespace))) as log,
    ):
        topic = made(log, f"{namespace}.cart")
        ownership = log.own(topic, "cart", lambda shards: None, lambda: dict(offsets))
        assert eventually(lambda: len(ownership.shards) == topic.partitions, WAIT_S)

        cluster.pause()
        offsets |= {0: 2, 1: 2}
        leaving = threading.Thread(target=ownership.close, daemon=True)
        leaving.start()
        leaving.join(WAIT_S)

        assert not leaving.is_alive(), "a commit that is never answered is not waited for"
        assert ownership.shards == frozenset()
        cluster.resume()
