"""Goal: brokers and processes that die cost a store on Kafka nothing acknowledged,
and nothing takes effect twice.

Method: threads write through a store, each write under its key until it is acknowledged, while the
broker (or the leader among three) is killed with SIGKILL; or a child is killed and what it was to
write is sent again. Then histories, states, requests and view are checked as for the embedded log.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventstore import Config, EventStore, LogUnavailable, ReadTimeout
from tests.contract.logs import eventually
from tests.fault.store_child import make_instances, write_one
from tests.fault.store_processes import check_store, store_child
from tests.integration.kafka import Administrator
from tools.broker.broker import Cluster

#: A broker needs 3 s to come back, on a busy machine up to 30; and what waited then goes on.
OUTAGE_S = 60.0
PATIENCE_S = 2 * OUTAGE_S


@contextmanager
def opened(url: str, namespace: str, views: Path) -> Iterator[EventStore]:
    config = Config.load(
        {},
        namespace=namespace,
        view_path=views,
        partitions=2,
        append_timeout_s=OUTAGE_S,
        read_timeout_s=OUTAGE_S,
    )
    with EventStore(url, config=config) as store:
        yield store


class Load:
    """Threads that write through a store until `end`; each write is sent until it is certain."""

    def __init__(self, store: EventStore, threads: int) -> None:
        self._app = store.app("app")
        make_instances(self._app)
        self._stop = threading.Event()
        self.acknowledged: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(f"load-{number}",))
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str) -> None:
        numbers = itertools.count()
        while not self._stop.is_set():
            token = f"{name}-{next(numbers)}"
            while not self._is_written(token):
                pass  # it may be there or not: again, with the same key, even if this is the end
            self.acknowledged.append(token)

    def _is_written(self, token: str) -> bool:
        try:
            write_one(self._app, token)
        except (LogUnavailable, ReadTimeout):
            return False
        return True

    def goes_on(self, writes: int = 30) -> bool:
        """Wait until so many more writes were acknowledged."""
        goal = len(self.acknowledged) + writes
        return eventually(lambda: len(self.acknowledged) >= goal, PATIENCE_S)

    def end(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.acknowledged


@pytest.mark.timeout(600)
def test_a_broker_that_is_killed_under_load_loses_and_repeats_nothing(
    kafka_brokers: type[Cluster], namespace: str, tmp_path: Path
) -> None:
    with kafka_brokers(1) as broker, opened(broker.url, namespace, tmp_path / "a") as store:
        load = Load(store, 3)
        assert load.goes_on()
        for _ in range(2):
            broker.kill()
            broker.restart()
            assert load.goes_on(), "writes did not go on after the broker came back"
        acknowledged = load.end()

        assert check_store(store, acknowledged) == len(acknowledged)
        with opened(broker.url, namespace, tmp_path / "b") as another:
            assert check_store(another, acknowledged) == len(acknowledged)


@pytest.mark.timeout(600)
def test_a_leader_that_is_killed_under_load_loses_and_repeats_nothing(
    kafka_brokers: type[Cluster], namespace: str, tmp_path: Path
) -> None:
    with kafka_brokers(3) as brokers, opened(brokers.url, namespace, tmp_path / "a") as store:
        load = Load(store, 3)
        assert load.goes_on()

        leader = Administrator(brokers.url).leader(f"{namespace}.app", 0)
        brokers.kill(leader)
        assert load.goes_on(), "writes did not go on with another leader"
        brokers.restart(leader)
        assert load.goes_on()
        acknowledged = load.end()

        assert check_store(store, acknowledged) == len(acknowledged)
        with opened(brokers.url, namespace, tmp_path / "b") as another:
            assert check_store(another, acknowledged) == len(acknowledged)


@pytest.mark.parametrize(
    ("point", "passage"),
    [
        ("event.encode.after", 12),
        ("log.acknowledged", 12),
        ("view.batch.before", 3),
        ("view.batch.inside", 7),
        ("view.batch.after", 3),
    ],
)
def test_a_process_that_is_killed_at_a_named_point_loses_and_repeats_nothing_on_kafka(
    kafka_url: str,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    passage: int,
) -> None:
    monkeypatch.setenv("EVENTSTORE_NAMESPACE", namespace)
    monkeypatch.setenv("EVENTSTORE_VIEW_PATH", str(tmp_path / "views"))
    with store_child("write", kafka_url, "a", 0, 16, 1, fault=f"{point}:{passage}") as killed:
        killed.end()
    with store_child("write", kafka_url, "a", 0, 16, 1) as again:
        again.end()

    with EventStore(kafka_url) as store:
        assert check_store(store, [*killed.acknowledged, *again.acknowledged]) == 16
    assert (killed.process.returncode, again.process.returncode) == (-9, 0)
    assert len(again.acknowledged) == 16
