"""Everything that could go wrong, again and again: `make soak N=20`.

Goal: what the fault tests show for one moment holds for many. Method: each round has a seed,
printed, which chooses what is written, who is killed at which point or moment, which view is
damaged, and which random worlds the fold has to get through. What is found is counted over all
rounds, and printed at the very end (conftest.py).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventstore import Diff, EventStore
from eventstore.history.verify import verify_app
from tests.fault import test_store_damage as damages
from tests.fault import test_store_disk_full as disks
from tests.fault.store_processes import StoreChild, examine_store, store_child
from tests.fault.test_store_kafka import Load, opened
from tests.integration.kafka import Administrator
from tests.property.world import run as run_world
from tests.soak.counts import COUNTS
from tools.broker.broker import Cluster

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

ROUNDS = int(os.environ.get("EVENTSTORE_TEST_SOAK_ROUNDS", "1"))
#: Brokers take seconds to start and to come back: one in so many rounds has one to kill.
KAFKA_ROUNDS = 5
WORLDS_PER_ROUND = 60
#: Worlds that `make test` runs in any case; here they are run once more, to make up the 3,000.
WORLDS_FAST = 600
WRITES = 120
COMMITS = 300

POINTS = (
    ("log.commit.before", 60),
    ("log.commit.inside", 60),
    ("log.commit.after", 60),
    ("log.acknowledged", 60),
    ("event.encode.after", 60),
    ("view.batch.before", 30),
    ("view.batch.inside", 60),
    ("view.batch.after", 30),
)


def test_the_worlds_of_the_fast_profile() -> None:
    for seed in range(WORLDS_FAST):
        COUNTS.add_differences(f"world {seed}: {text}" for text in run_world(seed).wrong)


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_round(number: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = random.randrange(2**32)
    begun = time.monotonic()
    print(f"\nround {number} of {ROUNDS}, seed {seed} ", end="", flush=True)
    choose = random.Random(seed)
    parts: list[Callable[[random.Random, Path], None]] = [storm, races, damage, worlds]
    for part in parts:
        folder = tmp_path / part.__name__
        folder.mkdir()
        part(choose, folder)
        print(f"{part.__name__} ", end="", flush=True)
    full_disks(tmp_path)
    if number % KAFKA_ROUNDS == 1:
        brokers(request, choose, tmp_path)
    COUNTS.rounds += 1
    print(f"{time.monotonic() - begun:.0f} s; {COUNTS}", flush=True)
    assert not COUNTS.wrong, "\n".join([f"seed {seed}", *COUNTS.wrong])


def storm(choose: random.Random, folder: Path) -> None:
    """Processes write the same tokens over and over, and are killed, until all are written."""
    acknowledged: list[str] = []
    threads = {"a": 3, "b": 1}
    with store_child("follow", folder) as follower:
        for _ in range(3):
            with ExitStack() as stack:
                writers = []
                for name, count in threads.items():
                    point, passages = choose.choice(POINTS)
                    fault = (
                        f"{point}:{choose.randrange(1, passages)}" if choose.random() < 0.5 else ""
                    )
                    child = store_child("write", folder, name, 0, WRITES, count, fault=fault)
                    writers.append(stack.enter_context(child))
                kill_in_time(choose, writers)
                acknowledged += [token for writer in writers for token in writer.acknowledged]
            examine(folder, acknowledged)
        follower.kill()
        COUNTS.kills += 1
    with ExitStack() as stack:
        writers = [
            stack.enter_context(store_child("write", folder, name, 0, WRITES, count))
            for name, count in threads.items()
        ]
        for writer in writers:
            writer.end()
        acknowledged += [token for writer in writers for token in writer.acknowledged]
    COUNTS.restarts += len(writers)
    COUNTS.acknowledged += len(set(acknowledged))
    examine(folder, acknowledged, WRITES * sum(threads.values()))


def kill_in_time(choose: random.Random, writers: list[StoreChild]) -> None:
    """Kill each writer once it was told a random number of times, unless it dies before."""
    for writer in choose.sample(writers, len(writers)):
        goal = choose.randrange(1, WRITES)
        writer.until_said_or_ended(goal)
        if choose.random() < 0.3:  # a stopped process holds its locks for a while
            writer.process.send_signal(signal.SIGSTOP)
        writer.kill()
        COUNTS.kills += writer.process.returncode == -signal.SIGKILL
        COUNTS.restarts += 1


def examine(folder: Path, acknowledged: list[str], total: int | None = None) -> None:
    with EventStore(folder) as store:
        found = examine_store(store, acknowledged)
    COUNTS.add(found)
    if total is not None and found.effects != total:
        COUNTS.add_differences([f"{found.effects} writes took effect, not {total}"])


def races(choose: random.Random, folder: Path) -> None:
    """Two processes commit and two increment one field of one instance: the sum is exact."""
    with EventStore(folder) as store:
        store.app("app").append("i", {"n": 0})
    with ExitStack() as stack:
        children = [
            stack.enter_context(store_child(command, folder, COMMITS))
            for command in ("commit", "commit", "increment", "increment")
        ]
        for child in children:
            child.end()
    COUNTS.acknowledged += 4 * COMMITS
    with EventStore(folder) as store:
        total = store.app("app").get("i", "n")
        COUNTS.add_differences(verify_app(store, "app").differences)
    if total != 4 * COMMITS:
        COUNTS.add_differences([f"{4 * COMMITS} increments make {total}"])


def damage(choose: random.Random, folder: Path) -> None:
    """A view is damaged in some way, and rebuilt."""
    damages.fill(folder)
    ways: list[Callable[[Path], None]] = [
        damages.cut_a_table_file,
        damages.overwrite_current,
        damages.overwrite_the_manifest,
        damages.put_a_foreign_folder_there,
        damages.write_another_layout,
    ]
    choose.choice(ways)(damages.slot(folder))
    with EventStore(folder) as store:
        store.app("app").append("i0", Diff().increment("n")).result()
        COUNTS.add_differences(verify_app(store, "app").differences)
    COUNTS.acknowledged += damages.EVENTS + 1
    COUNTS.restarts += 1


def worlds(choose: random.Random, folder: Path) -> None:
    """The fold in random worlds that nobody has run before."""
    for _ in range(WORLDS_PER_ROUND):
        seed = choose.randrange(10_000, 2**32)
        COUNTS.add_differences(f"world {seed}: {text}" for text in run_world(seed).wrong)


def full_disks(folder: Path) -> None:
    """Full disks under log and view."""
    for name, program, size_bytes in (
        ("log", disks.LOG, 6_000_000),
        ("view", disks.VIEW, 48_000_000),
    ):
        for place in ("disk", "elsewhere"):
            (folder / name / place).mkdir(parents=True)
        try:
            printed = disks.run_on_small_disk(
                program, folder / name / "disk", folder / name / "elsewhere", size_bytes
            )
        except pytest.skip.Exception as reason:
            print(f"(full disk left out: {reason}) ", end="")
            return
        COUNTS.acknowledged += int(printed.split()[1])
    print("full_disks ", end="", flush=True)


def brokers(request: pytest.FixtureRequest, choose: random.Random, folder: Path) -> None:
    """A broker, or the leader of three, is killed under load."""
    try:
        cluster_of: type[Cluster] = request.getfixturevalue("kafka_brokers")
    except pytest.skip.Exception as reason:
        print(f"(brokers left out: {reason}) ", end="")
        return
    namespace = f"soak{choose.randrange(10**9)}"
    for nodes in (1, 3):
        with (
            cluster_of(nodes) as cluster,
            opened(cluster.url, namespace, folder / f"views{nodes}") as store,
        ):
            load = Load(store, 3)
            for _ in range(2):
                assert load.goes_on(choose.randrange(20, 200)), "writes do not go on"
                leader = Administrator(cluster.url).leader(f"{namespace}.app", 0)
                cluster.kill(leader)
                if nodes > 1:
                    assert load.goes_on(), "writes do not go on with another leader"
                cluster.restart(leader)
                COUNTS.kills += 1
                COUNTS.restarts += 1
            assert load.goes_on()
            acknowledged = load.end()
            COUNTS.acknowledged += len(acknowledged)
            COUNTS.add(examine_store(store, acknowledged))
    print("brokers ", end="", flush=True)
