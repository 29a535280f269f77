"""Daemons are killed, stopped and continued under load: nothing is lost, doubled or reordered.

Goal: exactly once in effect. Method: the storm of runner_chaos.py, a small one here; `make soak`
has the big ones. The same check must fail when what the promise rests on is taken away: the fold's
rule that an answer counts once, or the durability of what was acknowledged.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fault.runner_chaos import KAFKA_HAND_OVER_S, Order, Storm, kafka_environment
from tests.fault.runner_child import EARLY_VARIABLE
from tools.broker.broker import Cluster

pytestmark = pytest.mark.timeout(600)

SMALL = Order(requests=1_600, kills=4, zombies=1, service_kills=1)
#: What is lost is waited for in vain.
BROKEN = replace(SMALL, patience_s=5.0)


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


def test_without_the_rule_that_an_answer_counts_once_the_same_storm_doubles_requests(
    tmp_path: Path,
) -> None:
    storm = storm_in(tmp_path, replace(BROKEN, zombies=2, module="tests.fault.runner_without_once"))

    found = storm.run()

    assert found.twice
    assert found.wrong != []


def test_with_requests_acknowledged_before_they_are_durable_the_same_storm_loses_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EARLY_VARIABLE, "1")
    storm = storm_in(tmp_path, replace(BROKEN, zombies=0, service_kills=3))

    found = storm.run()

    assert found.lost
