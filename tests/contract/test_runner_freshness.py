"""What an update sees: everything that was written before it was requested, whoever wrote it.

Goal: a trigger's update sees the change that it was requested for, although the answers of updates
before it are still on their way. Method: hold an update, write and request meanwhile, let it go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventstore import Diff, EventStore, Kind, State
from processors import Component, changed
from processors.runner import Runner

#: The most that a test waits for what should come at once.
WAIT_S = 60.0


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    url = "memory://" if request.param == "memory" else str(tmp_path / "log")
    with EventStore(url) as opened:
        yield opened


@pytest.fixture
def run(store: EventStore) -> Iterator[Callable[[Component], Runner]]:
    """Start runners, and stop them at the end."""
    runners: list[Runner] = []

    def start(component: Component) -> Runner:
        runner = Runner(store, component).start()
        runners.append(runner)
        assert runner.wait_ready(WAIT_S)
        return runner

    yield start
    for runner in runners:
        runner.stop(WAIT_S)


@pytest.mark.parametrize("held_s", [0.0, 0.1], ids=["in the same turn", "in a later turn"])
def test_an_update_sees_what_was_written_before_it_was_requested(
    store: EventStore, run: Callable[[Component], Runner], held_s: float
) -> None:
    component = Component("fresh")
    begun, go = threading.Event(), threading.Event()

    @component.update("k")
    def hold(state: State, props: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        go.wait(WAIT_S)
        return {"held": True}

    @component.update("k")
    def look(state: State, props: dict[str, Any]) -> dict[str, Any]:
        return {"seen": [*state.get("seen", []), len(state["inputs"])]}

    app = store.app("fresh")
    app.append("i", Diff().append("inputs", 0))
    runner = run(component)
    receipts = [app.request("i", "k/hold")]
    assert begun.wait(WAIT_S)

    for n in range(1, 4):
        app.append("i", Diff().append("inputs", n))
        receipts.append(app.request("i", "k/look"))
    receipts[-1].entry()  # all of them are folded
    threading.Timer(held_s, go.set).start()
    runner.complete(receipts, WAIT_S)

    assert app.get("i", "seen") == [4, 4, 4]
    assert app.get("i", "held") is True


@pytest.mark.parametrize("number", range(6))  # it is a race, so it is run more than once
def test_a_trigger_sees_what_is_appended_after_an_instance_was_opened(
    store: EventStore, number: int
) -> None:
    component = Component(f"opened-{number}")
    seen = threading.Event()

    @component.update(on=changed("items"))
    def count(state: State, props: dict[str, Any]) -> None:
        seen.set()

    with component("i", store=store) as instance:
        instance.write_state(Diff().append("items", "book"))

        assert seen.wait(WAIT_S)


def test_a_trigger_sees_what_is_appended_before_anybody_has_its_shard(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("early")
    appended, seen = threading.Event(), threading.Event()
    take_over = Runner._take_over

    def take_over_late(runner: Runner, gained: frozenset[int]) -> None:
        appended.wait(WAIT_S)
        take_over(runner, gained)

    @component.update(on=changed("items"))
    def count(state: State, props: dict[str, Any]) -> None:
        seen.set()

    monkeypatch.setattr(Runner, "_take_over", take_over_late)
    with component("i", store=store) as instance:
        instance.write_state(Diff().append("items", "book"))
        appended.set()

        assert seen.wait(WAIT_S)


def test_an_update_whose_view_is_rebuilt_under_it_runs_again_on_the_new_one(
    store: EventStore, run: Callable[[Component], Runner]
) -> None:
    component = Component("rebuilt")
    begun, go = threading.Event(), threading.Event()

    @component.update("k")
    def double(state: State, props: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        go.wait(WAIT_S)
        return {"n": state["n"] * 2}

    app = store.app("rebuilt")
    app.append("i", {"n": 21})
    runner = run(component)
    receipt = app.request("i", "k/double")
    assert begun.wait(WAIT_S)
    app.rebuild_view()
    go.set()
    (closed,) = runner.complete([receipt], WAIT_S)

    assert closed.event.kind == Kind.DIFF
    assert app.get("i", "n") == 42
