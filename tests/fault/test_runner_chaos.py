"""Daemons are killed, stopped and continued under load: nothing is lost, doubled or reordered.

Goal: exactly once in effect. Method: the storm of runner_chaos.py, a small one here; `make soak`
has the big ones. The same check must fail when what the promise rests on is taken away: the fold's
rule that an answer counts once, or the durability of what was acknowledged.
"""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from eventstore import EventStore, Kind
from tests.contract.logs import eventually
from tests.fault.runner_chaos import KAFKA_HAND_OVER_S, Order, Storm, kafka_environment
from tests.fault.runner_child import EARLY_VARIABLE
from tests.fault.runner_component import component
from tests.fault.runner_processes import daemon_child, examined, runner_child
from tests.fault.sqlite_processes import PATIENCE_S
from tools.broker.broker import Cluster

pytestmark = pytest.mark.timeout(600)

SMALL = Order(requests=1_600, kills=4, zombies=1, service_kills=1)


def storm_in(folder: Path, order: Order) -> Storm:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return Storm(str(folder / "log"), order, random.Random(seed), folder / "said")


def test_a_storm_loses_doubles_and_reorders_no_request(tmp_path: Path) -> None:
    storm = storm_in(tmp_path, SMALL)

    found = storm.run()

    print(f"chaos: {storm}: {found}")
    assert found.wrong == []
    assert found.requests == found.applied == SMALL.requests
    assert storm.tracebacks == 0


def test_a_storm_on_kafka_loses_doubles_and_reorders_no_request(
    kafka_brokers: type[Cluster], namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in kafka_environment(namespace).items():
        monkeypatch.setenv(name, setting)
    order = replace(SMALL, broker_kills=1, hand_over_s=KAFKA_HAND_OVER_S)
    with kafka_brokers(1) as broker:
        storm = storm_in(tmp_path, order)
        storm.url, storm.broker = broker.url, broker

        found = storm.run()

    print(f"chaos: {storm}: {found}")
    assert found.wrong == []
    assert found.requests == found.applied == order.requests


# --- the check, where the promise is broken -------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "twice"),
    [("tests.fault.runner_component", []), ("tests.fault.runner_without_once", ["held"])],
)
def test_what_a_zombie_answers_after_its_successor_is_twice_without_the_rule_once(
    tmp_path: Path, module: str, twice: list[str]
) -> None:
    url = tmp_path / "log"
    with EventStore(url) as store:
        app = store.app(component.name)

        def answers() -> int:
            app.get("i", fresh=True)
            return sum(entry.event.kind == Kind.DIFF for entry in app.history("i"))

        app.request("i", "k/note", {"token": "held"}).result()
        with runner_child("hold", url, module) as zombie:
            zombie.until(lambda lines: "holds" in lines)
            zombie.process.send_signal(signal.SIGSTOP)
            with daemon_child(url, module=module):
                assert eventually(lambda: answers() == 1, PATIENCE_S)
                zombie.process.send_signal(signal.SIGCONT)
                assert zombie.process.stdin is not None
                zombie.process.stdin.write("go on\n")
                zombie.process.stdin.flush()
                assert eventually(lambda: answers() == 2, PATIENCE_S)

    found = examined(url, ["held"], module)
    assert (found.twice, found.lost) == (twice, [])


@pytest.mark.parametrize("early", [False, True])
def test_of_requests_acknowledged_before_they_are_durable_a_kill_loses_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    url = tmp_path / "log"
    if early:
        monkeypatch.setenv(EARLY_VARIABLE, "1")
    with runner_child("ask", url, "north", 0) as service:
        assert service.process.stdin is not None
        service.process.stdin.write("5\n")
        service.process.stdin.flush()
        service.until(lambda lines: len(lines) == 5)
        service.kill()
    with daemon_child(url, "--once") as daemon:
        daemon.end()

    found = examined(url, service.lines)
    assert found.lost == (service.lines if early else [])
