"""Two processes share the instances of a component: one joins, leaves or dies, and work goes on.

Goal: after a clean stop the other takes over at once; after a crash within 1 s on the embedded
log, and 7 s on Kafka (its session timeout of 6 s, and one more). Method: real processes, on the 16
shards of the embedded log and on 8 partitions; what is asked for at that very moment must be run.
The figures are printed; how fast a busy machine is decides no test.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.processing import Processing
from tests.contract.logs import eventually
from tests.fault.runner_component import component
from tests.fault.runner_processes import RunnerChild, examine, runner_child

WAIT_S = 60.0
INSTANCES = 32


@pytest.fixture(params=["embedded", "kafka"])
def url(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    if request.param == "embedded":
        return str(tmp_path / "log")
    monkeypatch.setenv("EVENTSTORE_NAMESPACE", namespace)
    monkeypatch.setenv("EVENTSTORE_PARTITIONS", "8")
    return str(request.getfixturevalue("kafka_url"))


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


class Work:
    """Asks for an update of each instance, and waits until all are run."""

    def __init__(self, store: EventStore) -> None:
        self._app = store.app(component.name)
        self._processing = Processing(self._app)
        self._numbers = itertools.count()
        self.tokens: list[str] = []

    def is_run_within_s(self) -> float:
        """Return how long it takes until an update of every instance is run."""
        began_s = time.monotonic()
        number = next(self._numbers)
        tokens = [f"t-{number}-{n}" for n in range(INSTANCES)]
        receipts = [
            self._app.request(f"i{n}", "k/note", {"token": token}) for n, token in enumerate(tokens)
        ]
        self.tokens += tokens
        for receipt in receipts:
            self._processing.wait_closed(receipt.instance, receipt.entry().sequence, WAIT_S)
        return time.monotonic() - began_s

    def close(self) -> None:
        self._processing.close()


def share(all_of_them: frozenset[int], *children: RunnerChild) -> Callable[[], bool]:
    """Return whether these processes hold every shard, each one of its own."""

    def is_shared() -> bool:
        held = [child.shards for child in children]
        return (
            all(held)
            and frozenset().union(*held) == all_of_them
            and sum(map(len, held)) == len(all_of_them)
        )

    return is_shared


def test_what_is_asked_for_is_run_though_a_process_joins_leaves_or_dies(
    store: EventStore, url: str
) -> None:
    work = Work(store)
    everything = frozenset(range(Processing(store.app(component.name)).shards()))
    took_s: dict[str, float] = {}
    with runner_child("run", url) as first:
        assert eventually(share(everything, first), WAIT_S)
        work.is_run_within_s()

        with runner_child("run", url) as second:
            began_s = time.monotonic()
            assert eventually(share(everything, first, second), WAIT_S)
            took_s["join, with the start of a process"] = time.monotonic() - began_s
            took_s["work, shared"] = work.is_run_within_s()
            second.process.send_signal(signal.SIGTERM)
            took_s["leave"] = work.is_run_within_s()
            second.end()
            assert second.process.returncode == 0
            assert eventually(share(everything, first), WAIT_S)

        with runner_child("run", url) as third:
            assert eventually(share(everything, first, third), WAIT_S)
            third.kill()
            took_s["kill"] = work.is_run_within_s()
            assert eventually(share(everything, first), WAIT_S)
    work.close()

    print(", ".join(f"{what}: {seconds:.2f} s" for what, seconds in took_s.items()))
    assert examine(store, work.tokens).wrong == []
