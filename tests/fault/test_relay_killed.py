"""Relays that are killed, stopped and continued: one request per watched change all the same.

Goal: exactly once, in order, through two triggers in a row and an outbox. Method: two service
processes append 10,000 diffs; meanwhile processes that relay and answer are killed at named points
and at random moments, or stopped while another goes on and then continued beside it. In the end
the requests are counted one by one, and the states compared with what the services wrote. The
seed of the random moments is in each message.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from eventstore import App, EventStore, Kind, Verdict
from tests.contract.logs import eventually
from tests.fault.relay_child import customer_of
from tests.fault.sqlite_processes import PATIENCE_S, Child

pytestmark = pytest.mark.timeout(300)  # a dozen processes, one after the other

DIFFS = 10_000

#: Where a process dies: each point of a relay, early in its life and later.
POINTS = (
    "relay.start.before",
    "relay.start.after",
    "relay.request.before:2",
    "relay.request.after",
    "relay.request.after:9",
    "relay.cursor.before",
    "relay.cursor.after:2",
)


class RelayChild(Child):
    MODULE = "tests.fault.relay_child"


@contextmanager
def relay_child(
    command: str, url: Path, *arguments: object, fault: str = ""
) -> Iterator[RelayChild]:
    started = RelayChild(command, url, *arguments, fault=fault)
    try:
        yield started
    finally:
        started.close()


def test_every_change_makes_one_request_though_relays_are_killed_again_and_again(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    url = tmp_path / "log"
    with (
        relay_child("serve", url, "north", DIFFS // 2) as north,
        relay_child("serve", url, "south", DIFFS // 2) as south,
    ):
        for point in POINTS:
            with relay_child("relay", url, fault=point) as killed:
                killed.end()
                assert killed.process.returncode == -signal.SIGKILL, (seed, point)
        for _ in range(3):
            with relay_child("relay", url) as killed:
                killed.until(lambda lines: "running" in lines)
                threading.Event().wait(chance.uniform(0, 0.5))  # any moment will do
                killed.kill()
        with relay_child("relay", url) as zombie, relay_child("relay", url) as successor:
            zombie.until(lambda lines: "running" in lines)
            os.kill(zombie.process.pid, signal.SIGSTOP)
            successor.until(lambda lines: "running" in lines)
            os.kill(zombie.process.pid, signal.SIGCONT)
            for service in (north, south):
                service.end()
            with EventStore(url) as store:
                assert eventually(lambda: is_done(store), PATIENCE_S), (seed, found_in(store))

    with EventStore(url) as store:
        found = found_in(store)
    assert found == Counter(alerts=DIFFS, digest=DIFFS, ledger=DIFFS), seed


def is_done(store: EventStore) -> bool:
    digest: int = store.app("digest").get("all", "count", default=0)
    ledger: int = store.app("ledger").get("all", "n", default=0)
    return digest >= DIFFS and ledger >= DIFFS


def found_in(store: EventStore) -> Counter[str]:
    """Count what the states say, after a check that says the same of the requests one by one."""
    orders, alerts, digest = (store.app(name) for name in ("orders", "alerts", "digest"))
    wanted = {
        (customer_of(entry.instance), f"{entry.instance}:{entry.sequence}")
        for entry in orders.tail(start="beginning", follow=False)
    }
    made = requests(alerts)
    assert len(made) == len(set(made)), "a change of an order made two requests"
    assert set(made) <= wanted
    assert_in_order(made)
    made_then = requests(digest)
    assert len(made_then) == len(set(made_then)), "a change of an alert made two requests"
    assert_in_order(made_then)
    counted: Counter[str] = Counter()
    for instance in alerts.instances():
        state = alerts.get(instance)
        assert state["count"] == len(state["seen"])
        counted["alerts"] += state["count"]
    counted["digest"] = digest.get("all", "count", default=0)
    counted["ledger"] = store.app("ledger").get("all", "n", default=0)
    return counted


def requests(app: App) -> list[tuple[str, str]]:
    """Return the accepted requests of an app, in log order: for whom, and of which change."""
    found = []
    for entry in app.tail(start="beginning", follow=False):
        if entry.event.kind == Kind.REQUEST and entry.verdict == Verdict.ACCEPTED:
            props = orjson.loads(entry.event.body)
            found.append((entry.instance, f"{props['instance']}:{props['sequence']}"))
    return found


def assert_in_order(made: list[tuple[str, str]]) -> None:
    last: dict[tuple[str, str], int] = {}
    for target, change in made:
        watched, _, sequence = change.rpartition(":")
        assert int(sequence) > last.get((target, watched), -1), (target, change)
        last[target, watched] = int(sequence)


@pytest.mark.parametrize("point", ["relay.request.before", "relay.request.after"])
def test_a_relay_killed_between_request_and_cursor_neither_loses_nor_repeats_one(
    tmp_path: Path, point: str
) -> None:
    with EventStore(tmp_path) as store:
        with relay_child("relay", tmp_path, fault=point) as killed:
            killed.until(lambda lines: "running" in lines)
            store.app("orders").append("o-1", {"status": "new"}).result()
            killed.end()

        with relay_child("relay", tmp_path):
            assert eventually(
                lambda: store.app("digest").get("all", "count", default=0, fresh=True) == 1,
                PATIENCE_S,
            )

        assert [entry.verdict for entry in store.app("alerts").history("c-1")][:1] == [
            Verdict.ACCEPTED
        ]
        assert len(requests(store.app("alerts"))) == 1
        assert len(requests(store.app("digest"))) == 1
