"""What `drain` promises: nothing is left that the runner could run, whatever came about meanwhile.

Method: something happens in the middle of a look, between what is asked of the relays and what is
asked of the lanes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore import EventStore, State
from processors import Component, Context, Properties
from processors.relay import Relay, RelayStatus
from processors.runner import Runner

#: The most that a test waits for what should come at once.
WAIT_S = 60.0


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    url = "memory://" if request.param == "memory" else str(tmp_path / "log")
    with EventStore(url) as opened:
        yield opened


def test_what_is_sent_between_the_looks_at_relays_and_lanes_is_waited_for(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("chain")
    begun, go, looked_again = threading.Event(), threading.Event(), threading.Event()
    ended: list[str] = []

    @component.update("first")
    def send(state: State, props: Properties, context: Context) -> None:
        begun.set()
        go.wait(WAIT_S)
        context.request("other", "second/receive")
        ended.append("first")

    @component.update("second")
    def receive(state: State, props: Properties) -> None:
        ended.append("second")

    app = store.app("chain")
    runner = Runner(store, component).start()
    assert runner.wait_ready(WAIT_S)
    relays, step, looks = runner.relays, Relay.step, 0

    def look_while_an_update_ends() -> list[RelayStatus]:
        nonlocal looks
        looks += 1
        if looks == 2:
            app.request("one", "first/send").entry()
            assert begun.wait(WAIT_S)
        found = relays()
        if looks == 2:
            go.set()
            runner.processing.wait_closed("one", 0, WAIT_S)
            assert runner._board.wait_idle(time.monotonic() + WAIT_S)
        if looks == 3:
            looked_again.set()
        return found

    def step_late(relay: Relay) -> float:
        if begun.is_set():
            looked_again.wait(WAIT_S)
        return step(relay)

    monkeypatch.setattr(runner, "relays", look_while_an_update_ends)
    monkeypatch.setattr(Relay, "step", step_late)

    drained = runner.drain(WAIT_S)
    ended_by_then = list(ended)
    looked_again.set()
    runner.stop(WAIT_S)

    assert drained
    assert ended_by_then == ["first", "second"]


def test_what_others_write_without_an_end_is_not_waited_for(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("busy")
    component.update("go")(lambda state, props: {"done": True})
    app = store.app("busy")
    runner = Runner(store, component).start()
    app.request("mine", "go/<lambda>")
    catch_up = runner.processing.catch_up

    def catch_up_with_more(timeout_s: float | None = None) -> None:
        app.append("theirs", {"x": 1})
        catch_up(timeout_s)

    monkeypatch.setattr(runner.processing, "catch_up", catch_up_with_more)

    drained = runner.drain(WAIT_S)
    runner.stop(WAIT_S)

    assert drained
    assert app.get("mine", "done")
