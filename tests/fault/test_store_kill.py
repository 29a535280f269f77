"""Goal: a process killed at any moment loses nothing acknowledged, and nothing takes effect twice.

Method: a child writes through a store and prints what was acknowledged; it dies of SIGKILL at each
named point between an event and its view, and at random moments while threads and processes write
and read. Another child then sends again, under the same keys, everything that the first one was to
write. At the end, histories, states and requests must tell of each write once, and the view must
be what the log folds to in plain dicts.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.history.verify import verify_app
from eventstore.view.slots import slot_states
from tests.fault.store_child import INSTANCES
from tests.fault.store_processes import StoreChild, check_store, store_child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

#: Writes of one run, of every kind and to every instance.
WRITES = 16
#: Writes that a process was told of, at the least, before it is killed at a random moment.
WRITES_MIN = 20


@pytest.mark.parametrize(
    ("point", "passage", "unsaid"),
    [
        ("log.create.inside", 1, {0}),
        ("event.encode.before", 12, {0}),
        ("event.encode.after", 12, {0}),
        ("log.commit.before", 12, {0}),
        ("log.commit.inside", 12, {0}),
        ("log.commit.after", 12, {1}),
        # A writer may have heard of it, and said so, when another thread has led its commit.
        ("log.acknowledged", 12, {0, 1}),
        # The view's own thread folds too, so it may be at these points during a write or between.
        ("view.batch.before", 1, {0, 1}),
        ("view.batch.before", 3, {0, 1}),
        ("view.batch.inside", 7, {0, 1}),
        ("view.batch.after", 3, {0, 1}),
    ],
)
def test_a_kill_at_a_named_point_loses_nothing_and_repeats_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    passage: int,
    unsaid: set[int],
) -> None:
    if point.startswith("view."):  # else the kill takes all that RocksDB has in memory, too
        monkeypatch.setenv("FOLDLOG_TEST_FLUSH", "1")
    with store_child("write", tmp_path, "a", 0, WRITES, 1, fault=f"{point}:{passage}") as killed:
        killed.end()

    with EventStore(tmp_path) as store:
        written = check_store(store, killed.acknowledged)
    assert not list(slots(tmp_path).glob("*.damaged-*")), "a view that was killed is no damaged one"
    with store_child("write", tmp_path, "a", 0, WRITES, 1) as again:
        again.end()
    with EventStore(tmp_path) as store:
        total = check_store(store, [*killed.acknowledged, *again.acknowledged])

    assert (killed.process.returncode, again.process.returncode) == (-9, 0)
    assert written - len(killed.acknowledged) in unsaid
    assert total == len(again.acknowledged) == WRITES


@pytest.mark.parametrize("round_number", range(2))
def test_kills_at_random_moments_under_load_lose_nothing_and_repeat_nothing(
    tmp_path: Path, round_number: int
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")  # shown by pytest when this fails
    choose = random.Random(seed)
    acknowledged: list[str] = []

    with store_child("follow", tmp_path) as follower:
        for generation in range(2):
            acknowledged += kill_writers(tmp_path, generation, choose)
            with EventStore(tmp_path) as store:
                check_store(store, acknowledged)
        follower.until(lambda lines: len(lines) > 3)
    with EventStore(tmp_path) as store:
        total = check_store(store, acknowledged)

    assert total >= len(acknowledged) >= 2 * WRITES_MIN


def kill_writers(folder: Path, generation: int, choose: random.Random) -> list[str]:
    """Kill two processes of four threads while they write; return what they were told."""
    acknowledged = []
    with (
        store_child("write", folder, f"a{generation}", 0, 100_000, 3) as first,
        store_child("write", folder, f"b{generation}", 0, 100_000, 1) as second,
    ):
        count = choose.randrange(WRITES_MIN, 200)
        first.until(lambda lines: len(lines) >= count)
        for writer in choose.sample([first, second], 2):
            writer.kill()
            acknowledged += writer.acknowledged
    return acknowledged


# --- slots ---


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreChild]:
    """A process that reads and holds the only slot; a copy of a view is published."""
    monkeypatch.setenv("FOLDLOG_TEST_PUBLISH_RECORDS", "5")
    with store_child("follow", tmp_path) as follower:
        with store_child("write", tmp_path, "a", 0, WRITES, 1) as writer:
            writer.end()
        follower.until(lambda lines: bool(lines) and bool(checkpoints(tmp_path)))
        for slot in slot_states(tmp_path / "views", "foldlog.app"):
            if not slot.busy:
                shutil.rmtree(slot.path)  # the writer's
        yield follower


def slots(folder: Path) -> Path:
    return folder / "views" / "foldlog.app"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(slots(folder).glob("checkpoint-*"))


def test_a_reader_that_is_killed_while_its_slot_is_seeded_leaves_a_slot_for_the_next(
    tmp_path: Path, published: StoreChild
) -> None:
    with store_child("follow", tmp_path, fault="slot.seed.inside:2") as killed:
        killed.end()

    left = sorted(path.name for path in slots(tmp_path).glob("slot-*.seed"))
    with EventStore(tmp_path) as store:
        check_store(store, [f"a-0-{number}" for number in range(WRITES)])

    assert killed.process.returncode == -9
    assert len(left) == 1
    assert not list(slots(tmp_path).glob("slot-*.seed"))


def test_a_reader_that_is_killed_while_its_view_is_set_aside_leaves_a_new_slot(
    tmp_path: Path,
) -> None:
    with store_child("write", tmp_path, "a", 0, WRITES, 1) as writer:
        writer.end()
    (slots(tmp_path) / "slot-00" / "CURRENT").write_bytes(b"garbage")

    with store_child("follow", tmp_path, fault="slot.aside.inside") as killed:
        killed.end()
    with EventStore(tmp_path) as store:
        check_store(store, writer.acknowledged)

    assert (killed.process.returncode, killed.lines) == (-9, [])
    assert len(writer.acknowledged) == WRITES
    assert (slots(tmp_path) / "slot-00.damaged-1").is_dir()


def test_a_follower_sees_what_is_written_while_writers_are_killed(tmp_path: Path) -> None:
    with store_child("follow", tmp_path) as follower:
        for generation in range(3):
            seen = len(follower.lines)
            with store_child("write", tmp_path, f"a{generation}", 0, 100_000, 2) as writer:
                writer.until(lambda lines: len(lines) > 4 * INSTANCES)
                follower.until(lambda lines, seen=seen: len(lines) > seen)  # type: ignore[misc]
                writer.kill()

        follower.kill()
    with EventStore(tmp_path) as store:
        assert verify_app(store, "app")
