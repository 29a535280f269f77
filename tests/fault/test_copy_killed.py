"""Goal: a copy that is killed at any moment, any number of times, is completed by the next run.

Method: a child copies in batches of a few events and dies of SIGKILL at each named point between a
batch and its acknowledgement, or at random ones while another child copies the same app to the same
place. At the end every event is in the target once, with the verdict that it has in the
source, and the target's view is what its log folds to in plain dicts.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventstore import App, Config, Diff, EventStore
from eventstore.events import SYSTEM_PREFIX
from eventstore.history.verify import verify_app
from eventstore.processing import Processing
from tests.fault.sqlite_processes import Child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

EVENTS = 60
CURSOR = f"{SYSTEM_PREFIX}trigger/t"


class CopyChild(Child):
    """A process of copy_child.py."""

    MODULE = "tests.fault.copy_child"

    def go_on(self) -> None:
        """Let it write."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextmanager
def copying(
    source: Path, target: Path, fault: str = "", command: str = "copy"
) -> Iterator[CopyChild]:
    child = CopyChild(command, source, target, fault=fault)
    try:
        yield child
    finally:
        child.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a store with accepted and refused events, of instances of ours too."""
    folder = tmp_path / "source"
    with EventStore(folder, config=Config.load({})) as store:
        app = store.app("app")
        app.append_many([(f"i{number % 5}", Diff().increment("n")) for number in range(EVENTS)])
        app.append("i0", {"n": "too late"}, expected_version=0)
        app.append("i1", Diff().append("n", "no list"))
        app.request("i2", "update", {"n": 1})
        first = next(app.history("i3")).event
        Processing(app).send([(CURSOR, first), (CURSOR, first)])
    return folder


def told(app: App) -> dict[str, list[tuple[object, ...]]]:
    return {
        name: [
            (entry.sequence, entry.verdict, entry.version, entry.time_ms, entry.event.body)
            for entry in app.history(name)
        ]
        for name in [*app.instances(), CURSOR]
    }


def check(source: Path, target: Path) -> None:
    config = Config.load({})
    with EventStore(source, config=config) as ours, EventStore(target, config=config) as theirs:
        assert told(theirs.app("app")) == told(ours.app("app"))
        assert verify_app(theirs, "app").differences == ()


def events(target: Path) -> int:
    """How many records a target's log has."""
    with EventStore(target, config=Config.load({})) as store:
        topic = store.log.topic("foldlog.app", create=False)
        return 0 if topic is None else store.log.offset_end(topic, 0)


@pytest.mark.parametrize(
    ("point", "passage", "written_by_the_killed"),
    [
        ("log.create.inside", 1, range(1)),
        ("copy.send.before", 1, range(1)),
        ("copy.send.after", 1, range(5)),
        ("log.commit.inside", 3, range(EVENTS)),
        ("log.commit.after", 3, range(1, EVENTS)),
        ("copy.send.before", 9, range(1, EVENTS)),
        ("log.acknowledged", 3, range(1, EVENTS)),
    ],
)
def test_a_copy_that_was_killed_at_a_named_point_is_completed_by_the_next_run(
    tmp_path: Path, source: Path, point: str, passage: int, written_by_the_killed: range
) -> None:
    target = tmp_path / "target"

    with copying(source, target, fault=f"{point}:{passage}") as killed:
        killed.end()
    written = events(target)
    with copying(source, target) as again:
        again.end()

    assert (killed.process.returncode, again.process.returncode) == (-9, 0)
    assert written in written_by_the_killed
    assert again.lines == [f"copied {EVENTS + 5 - written}"]
    check(source, target)


def test_copies_that_run_at_once_and_are_killed_at_random_end_as_one_copy(
    tmp_path: Path, source: Path
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")  # shown by pytest when this fails
    choose = random.Random(seed)
    target = tmp_path / "target"

    faults = [f"log.commit.after:{choose.randrange(1, 6)}" for _ in range(2)]
    with (
        copying(source, target, faults[0], "wait") as one,
        copying(source, target, faults[1], "wait") as other,
    ):
        for child in (one, other):
            child.until(lambda lines: lines == ["ready"])
        for child in (one, other):
            child.go_on()
        for child in (one, other):
            child.end()
    with copying(source, target) as last:
        last.end()

    assert last.process.returncode == 0
    check(source, target)
