"""Exactly once in effect, in storms of kills: `make soak N=10`.

Goal: 10,000 requests over 200 instances are applied once each, in order, though daemons are killed
and stopped at random, and on Kafka the broker too. Method: the storm of tests/fault/runner_chaos.py
in its full size, on both logs, in each round with another seed, which is printed. All rounds of a
soak together have at least 50 kills on each log. And the same storm finds what is doubled or lost
when the rule *once* or the durability of requests is switched off (tests/fault/test_runner_chaos.py
shows that without a storm).
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fault.runner_chaos import KAFKA_HAND_OVER_S, Order, Storm, kafka_environment
from tests.fault.runner_child import EARLY_VARIABLE
from tests.soak.counts import CHAOS, ChaosCounts
from tools.broker.broker import Cluster

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

ROUNDS = int(os.environ.get("EVENTSTORE_TEST_SOAK_ROUNDS", "1"))
KILLS = max(10, math.ceil(50 / ROUNDS))


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_storm_on_the_embedded_log(number: int, tmp_path: Path) -> None:
    order = Order(requests=10_000, kills=KILLS, zombies=3, service_kills=2)

    rage(
        "embedded", number, Storm(str(tmp_path / "log"), order, random.Random(), tmp_path / "said")
    )


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_storm_on_kafka(
    number: int,
    kafka_brokers: type[Cluster],
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, setting in kafka_environment(namespace).items():
        monkeypatch.setenv(name, setting)
    order = Order(
        requests=10_000,
        kills=KILLS,
        zombies=2,
        service_kills=2,
        broker_kills=2,
        hand_over_s=KAFKA_HAND_OVER_S,
    )

    with kafka_brokers(1) as broker:
        storm = Storm(broker.url, order, random.Random(), tmp_path / "said", broker)
        rage("kafka", number, storm)


#: What is lost is waited for in vain.
BROKEN = Order(requests=1_600, kills=4, zombies=3, service_kills=2, patience_s=5.0)
#: Whether a zombie wakes with an answer of its own is luck: in one storm of seven none did.
BROKEN_STORMS = 10


def test_without_the_rule_that_an_answer_counts_once_a_storm_doubles_requests(
    tmp_path: Path,
) -> None:
    order = replace(BROKEN, module="tests.fault.runner_without_once")

    for number in range(BROKEN_STORMS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = Storm(str(folder / "log"), order, random.Random(), folder / "said").run()
        if found.twice:
            break

    print(f"\nwithout *once*, storm {number + 1}: {len(found.twice)} twice", flush=True)
    assert found.twice
    assert found.wrong


def test_with_requests_acknowledged_before_they_are_durable_a_storm_loses_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EARLY_VARIABLE, "1")
    order = replace(BROKEN, requests=100, kills=0, zombies=0)

    found = Storm(str(tmp_path / "log"), order, random.Random(), tmp_path / "said").run()

    print(f"\nacknowledged too early: {len(found.lost)} lost", flush=True)
    assert found.lost
    assert found.wrong


def rage(log: str, number: int, storm: Storm) -> None:
    seed = random.randrange(2**32)
    storm.chance.seed(seed)
    print(f"\nround {number} of {ROUNDS}, {log}, seed {seed}", flush=True)

    found = storm.run()

    counts = CHAOS.setdefault(log, ChaosCounts())
    counts.storms += 1
    counts.requests += found.requests
    counts.kills += storm.kills + storm.broker_kills
    counts.broker_kills += storm.broker_kills
    counts.zombies += storm.zombies
    counts.lost += len(found.lost)
    counts.twice += len(found.twice)
    counts.disordered += len(found.disordered)
    print(f"chaos: {log}: {storm}: {found}", flush=True)
    assert found.wrong == [], f"seed {seed}; the daemons' lines are in {storm.said}"
    assert found.requests == found.applied == storm.order.requests
