"""Goal: processes on one store lose nothing to one another, and each finds its own view.

Method: real processes commit, increment, append and read one folder at the same time; then the
sums are exact and the view is what the log folds to. The rest is about what a process leaves: a
warm view, a slot that the next one takes, queued writes that reach the log, a child of os.fork().
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventstore import Diff, EventStore
from eventstore.follow import FollowProgress
from eventstore.history.verify import verify_app
from eventstore.view.slots import slot_states
from tests.fault.sqlite_processes import ROOT
from tests.fault.store_processes import check_store, store_child

# --- races ---


def test_two_processes_that_commit_a_thousand_increments_each_lose_none(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        store.app("app").append("i", {"n": 0})

    with (
        store_child("commit", tmp_path, 1_000) as one,
        store_child("commit", tmp_path, 1_000) as two,
    ):
        one.end()
        two.end()

    assert one.lines == two.lines == ["done"]
    with EventStore(tmp_path) as store:
        state = store.app("app").get("i")
        assert (state["n"], state.version) == (2_000, 2_001)
        assert verify_app(store, "app")


def test_increments_from_four_processes_all_count(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [
            stack.enter_context(store_child("increment", tmp_path, 1_000)) for _ in range(4)
        ]
        for child in children:
            child.end()

    with EventStore(tmp_path) as store:
        state = store.app("app").get("i")
        assert (state["n"], state.version) == (4_000, 4_000)
        assert verify_app(store, "app")


def test_a_reader_sees_everything_acknowledged_while_eight_processes_append(
    tmp_path: Path,
) -> None:
    names = "abcdefgh"
    with EventStore(tmp_path) as store, ExitStack() as stack:
        app = store.app("app")
        children = {
            name: stack.enter_context(store_child("write", tmp_path, name, 0, 40, 1))
            for name in names
        }
        while any(child.process.poll() is None for child in children.values()):
            told = [token for child in children.values() for token in child.acknowledged]
            states = [app.get(f"i{number}", fresh=True, default={}) for number in range(3)]
            waiting = {row.request.name for row in app.pending()}
            seen = {token for state in states if state for token in state["seen"]} | {
                token for state in states if state for token in state["committed"]
            }
            assert set(told) <= seen | waiting
        for child in children.values():
            child.end()

        everything = [token for child in children.values() for token in child.acknowledged]
        assert check_store(store, everything) == len(everything) == 40 * len(names)


# --- slots ---


def test_processes_that_read_at_the_same_time_have_slots_of_their_own(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        store.app("app").append("i0", {"n": 0}).result()
        with store_child("follow", tmp_path) as one, store_child("follow", tmp_path) as two:
            for child in (one, two):
                child.until(lambda lines: len(lines) == 1)
            store.app("app").get("i0")

            busy = [slot.number for slot in slot_states(tmp_path / "views", "foldlog.app")]

            one.kill()
            free = [slot.busy for slot in slot_states(tmp_path / "views", "foldlog.app")]

    assert busy == [0, 1, 2]
    assert sorted(free) == [False, True, True]


def test_a_restart_finds_its_view_warm(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        for _ in range(500):
            store.app("app").append("i", Diff().increment("n"))
        store.app("app").get("i")
    told: list[FollowProgress] = []

    with EventStore(tmp_path, progress=told.append) as store:
        assert store.app("app").get("i", "n") == 500

    assert told == [], "records were folded again"
    assert len(slot_states(tmp_path / "views", "foldlog.app")) == 1


def test_a_view_catches_up_with_what_came_while_it_was_closed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Told at the end only, also where it takes longer than the machine should need.
    monkeypatch.setattr("eventstore.follow._REPORT_INTERVAL_S", math.inf)
    with EventStore(tmp_path) as store:
        for _ in range(500):
            store.app("app").append("i", Diff().increment("n"))
        store.app("app").get("i")
    with EventStore(tmp_path) as store:  # opens no view
        for _ in range(7):
            store.app("app").append("i", Diff().increment("n"))
    told: list[FollowProgress] = []

    with EventStore(tmp_path, progress=told.append) as store:
        assert store.app("app").get("i", "n") == 507

    assert [(progress.records, progress.records_total) for progress in told] == [(7, 7)]


def test_two_stores_on_one_folder_in_one_process_see_one_another(tmp_path: Path) -> None:
    with EventStore(tmp_path) as one, EventStore(tmp_path) as two:
        for _ in range(50):
            position = one.app("app").append("i", Diff().increment("n")).result()
            assert two.app("app").get("i", after=position)["n"] % 2 == 1
            two.app("app").append("i", Diff().increment("n")).result()
            assert one.app("app").get("i", fresh=True)["n"] % 2 == 0

        assert one.app("app").get("i")["n"] == 100
        assert verify_app(one, "app")
        assert verify_app(two, "app")


# --- the end of a process ---


def test_a_store_that_nobody_closed_writes_what_was_queued(tmp_path: Path) -> None:
    with store_child("leave", tmp_path, 500) as leaver:
        leaver.end()

    assert (leaver.process.returncode, leaver.lines) == (0, ["acknowledged"])
    with EventStore(tmp_path) as store:
        assert len(store.app("app").get("i")) == 500


FORKS = """
import os, sys
from eventstore import Closed, EventStore

store = EventStore(sys.argv[1])
app = store.app("app")
app.append("i", {"n": 1}).result()
state = app.get("i")
receipt = app.append("i", {"n": 2})
child = os.fork()
if child == 0:
    refused = 0
    for call in (
        lambda: app.append("i", {"n": 3}),
        lambda: app.get("i"),
        lambda: list(app.instances()),
        lambda: store.apps(),
        lambda: store.flush(),
    ):
        try:
            call()
        except Closed as error:
            refused += "os.fork" in str(error)
    print("refused", refused, flush=True)
    sys.exit(0)  # runs what is registered at exit
_, status = os.waitpid(child, 0)
assert status == 0, status
receipt.result()
print("parent", app.get("i")["n"])
store.close()
"""


FORKS_AND_OPENS = """
import os, sys
from eventstore import ConfigError, EventStore

with EventStore(sys.argv[1]) as store:
    store.app("app").append("i", {"n": 1})
    store.app("app").get("i")
if os.fork() == 0:
    with EventStore(sys.argv[1]) as store:
        store.app("app").append("i", {"n": 2}).result()
        try:
            store.app("app").get("i")
        except ConfigError as error:
            print("refused", "spawn" in str(error), flush=True)
    sys.exit(0)
_, status = os.wait()
assert status == 0, status
with EventStore(sys.argv[1]) as store:
    print("parent", store.app("app").get("i")["n"])
"""


def forked(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_store_that_a_forked_child_opens_appends_and_refuses_to_open_a_view(
    tmp_path: Path,
) -> None:
    done = forked(FORKS_AND_OPENS, tmp_path)

    assert done.stdout.split() == ["refused", "True", "parent", "2"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_is_refused_and_does_its_parent_no_harm(tmp_path: Path) -> None:
    done = forked(FORKS, tmp_path)

    assert done.stdout.split() == ["refused", "5", "parent", "2"], done.stderr
    with EventStore(tmp_path) as store:
        assert [entry.sequence for entry in store.app("app").history("i")] == [0, 1]
