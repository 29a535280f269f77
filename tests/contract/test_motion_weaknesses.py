"""Weaknesses that were seen in Motion, and that no other test here happens to ask about.

docs/motion.md lists all of them, each with the test that shows that it does not exist here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventstore import Diff, Entry, Event, EventStore, Kind, State
from eventstore.events import RequestPolicy
from eventstore.processing import Processing
from processors import Component, DiscardPolicy, Properties, Runner

#: The most that a test waits for what should come at once.
WAIT_S = 60.0


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    url = "memory://" if request.param == "memory" else str(tmp_path / "log")
    with EventStore(url) as opened:
        yield opened


@pytest.fixture
def listing() -> Component:
    component = Component("Listing")

    @component.update("note")
    def note(state: State, props: Properties) -> Diff:
        return Diff().append("log", props["n"])

    return component


class Trap:
    """Something that acts when it is unpickled."""

    def __init__(self, spring: Path) -> None:
        self.spring = spring

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.spring,)


@pytest.mark.parametrize("kind", ["a pickle", "no JSON", "an unknown class", "no object"])
def test_what_cannot_be_read_is_neither_executed_nor_in_the_way(
    store: EventStore, listing: Component, tmp_path: Path, kind: str
) -> None:
    bodies = {
        "a pickle": pickle.dumps(Trap(tmp_path / "sprung")),
        "no JSON": b"{'n': __import__('os').abort()}",
        "an unknown class": b'{"n":{"$object":["os.abort",{}]}}',
        "no object": b"[1,2]",
    }
    request = Event(Kind.REQUEST, "note/note", bodies[kind], request=RequestPolicy())
    with listing("i", store=store) as instance:
        Processing(store.app("Listing")).send([("i", request)])
        instance.run("note", {"n": 1}, flush_update=True)

        newest, oldest = instance.requests()
        assert instance.read_state("log") == [1]
        assert newest.state == "applied"
        assert oldest.state == "failed"
    assert not (tmp_path / "sprung").exists()


def test_a_write_waits_for_no_update_that_runs(store: EventStore) -> None:
    component = Component("Slow")
    begun, go = threading.Event(), threading.Event()

    @component.update("think")
    def think(state: State, props: Properties) -> dict[str, Any]:
        begun.set()
        go.wait(WAIT_S)
        return {"thought": True}

    with component("i", store=store) as instance:
        instance.run("think")
        assert begun.wait(WAIT_S)
        instance.write_state({"written": True})
        written = instance.read_state("written")
        go.set()
        instance.flush_update("think")

        assert written is True
        assert (instance.read_state("written"), instance.read_state("thought")) == (True, True)


def test_a_flush_returns_although_a_policy_gives_up_what_is_queued(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("Newest")
    begun, go = threading.Event(), threading.Event()
    closed = Runner.closed

    def go_on_and_wait(*args: Any) -> Entry:
        go.set()  # the flush knows what was pending when it began
        return closed(*args)

    @component.update("k", discard_policy=DiscardPolicy.NUM_NEW_UPDATES, discard_after=1)
    def newest(state: State, props: Properties) -> Diff:
        begun.set()
        go.wait(WAIT_S)
        return Diff().append("log", props["n"])

    monkeypatch.setattr(Runner, "closed", go_on_and_wait)
    with component("i", store=store) as instance:
        instance.run("k", {"n": 0})
        assert begun.wait(WAIT_S)
        for n in range(1, 10):
            instance.run("k", {"n": n})
        instance.flush_update("k", timeout_s=WAIT_S)

        assert instance.read_state("log") == [0, 9]


def test_a_large_state_is_not_written_anew_for_a_small_change(store: EventStore) -> None:
    component = Component("Large")

    @component.init_state
    def begin() -> dict[str, Any]:
        return {"chat": ["x" * 1_000] * 900}

    @component.update("say")
    def say(state: State, props: Properties) -> Diff:
        return Diff().append("chat", props["line"])

    with component("i", store=store) as instance:
        instance.run("say", {"line": "hello"}, flush_update=True)

        *_, answer = store.app("Large").history("i")
        assert len(answer.event.body) < 100
        assert orjson.loads(answer.event.body) == [["append", "chat", "hello"]]
        assert instance.read_state("chat")[-1] == "hello"


UNGUARDED = """
from processors import Component

component = Component("Unguarded")

@component.update("k")
def update(state, props):
    return {"n": 1}

with component("i", update_task_type="process") as instance:
    instance.run("k", flush_update=True)
"""


def test_a_script_without_a_guard_is_told_so_and_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED, encoding="utf-8")
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    here.pop("EVENTSTORE_URL", None)

    ended = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, check=False, cwd=tmp_path, env=here,
        text=True, timeout=60,
    )  # fmt: skip

    assert ended.returncode == 1
    assert 'under `if __name__ == "__main__":`' in ended.stderr
    assert "UpdateFailed" in ended.stderr
