"""What the instances of a component in one process have of the runner that they share.

Which definition of the component it runs by, and where it runs the updates of each of them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eventstore import EventStore
from eventstore.processing import Processing
from processors import Component, ComponentInstance, Runner
from tests.fault import worker_handlers

WAIT_S = 60.0
#: Less than a runner that ends waits for what it runs.
CALL_S_MAX = 20.0


@pytest.fixture
def store(namespace: str) -> Iterator[EventStore]:
    with EventStore("memory://", namespace=namespace) as opened:
        yield opened


def test_a_call_does_not_wait_for_an_update_of_the_former_definition(store: EventStore) -> None:
    began, may_end = threading.Event(), threading.Event()

    def defined(value: int) -> Component:
        component = Component("Redefined")

        @component.update("slow")
        def slow(state: Any, props: Any) -> Any:
            began.set()
            assert may_end.wait(WAIT_S)
            return {"slow": value}

        @component.update("quick")
        def quick(state: Any, props: Any) -> Any:
            return {"quick": value}

        return component

    with defined(1)("mine", store=store) as former:
        former.run("slow")
        assert began.wait(WAIT_S)
        with defined(2)("mine", store=store):
            caller = threading.Thread(target=former.run, args=("quick",), daemon=True)
            caller.start()
            caller.join(CALL_S_MAX)
            has_returned = not caller.is_alive()
            may_end.set()
            former.flush_update("quick", WAIT_S)

            assert has_returned
            assert former.read_state("quick") == 2


def test_a_former_definition_begins_nothing_more_once_a_new_one_is_there(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_stop, stop = threading.Event(), Runner.stop
    ran: list[str] = []

    def defined(tag: str) -> Component:
        component = Component("Redefined")
        component.update("go", name="go")(lambda state, props: ran.append(tag))
        return component

    def stop_late(runner: Runner, deadline_s: float = WAIT_S) -> bool:
        assert may_stop.wait(WAIT_S)
        return stop(runner, deadline_s)

    with defined("former")("mine", store=store):
        monkeypatch.setattr(Runner, "stop", stop_late)
        with defined("new")("other", store=store):
            requests = [store.app("Redefined").request(f"i{n}", "go/go") for n in range(100)]
            answers = Processing(store.app("Redefined"))
            sequences = [(one.instance, one.entry().sequence) for one in requests]
            may_stop.set()
            for instance, sequence in sequences:
                answers.wait_closed(instance, sequence, WAIT_S)

    assert ran == ["new"] * 100


def test_what_an_instance_waits_for_is_run_when_those_of_a_new_definition_are_closed(
    store: EventStore,
) -> None:
    may_end = threading.Event()

    def defined(value: int) -> Component:
        component = Component("Redefined")

        @component.update("hold")
        def hold(state: Any, props: Any) -> Any:
            assert may_end.wait(WAIT_S)
            return {"held": value}

        @component.update("note")
        def note(state: Any, props: Any) -> Any:
            return {"value": value}

        return component

    with defined(1)("mine", store=store) as former:
        held = former.submit("hold")
        queued = former.submit("note")
        with defined(2)("other", store=store):
            may_end.set()
            held.wait(WAIT_S)

        (outcome,) = queued.wait(WAIT_S)
        former.run("note", flush_update=True)

        assert outcome.state == "applied"
        assert former.read_state("value") == 2


def test_a_new_definition_runs_updates_where_instances_of_the_former_asked_for(
    store: EventStore,
) -> None:
    def defined() -> Component:
        component = Component("Placed")

        @component.update("note")
        def note(state: Any, props: Any) -> Any:
            return {"pid": os.getpid()}

        return component

    app = store.app("Placed")
    with (
        defined()("mine", store=store, update_task_type="process"),
        defined()("other", store=store),
    ):
        request = app.request("mine", "note").entry()

        answer = Processing(app).wait_closed("mine", request.sequence, WAIT_S)

        # As no other process finds what is defined in a function, this says where it was to run.
        assert b"NotImportable" in answer.event.body


def test_a_new_definition_makes_live_states_in_its_own_way(store: EventStore) -> None:
    def defined(tag: str) -> Component:
        component = Component("Loaded")

        @component.load_state
        def load(saved: dict[str, Any]) -> dict[str, Any]:
            return {**saved, "tag": tag}

        @component.save_state
        def save(state: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in state.items() if name != "tag"}

        @component.serve("look")
        def look(state: Any, props: Any) -> str:
            return str(state["tag"])

        @component.update("note")
        def note(state: Any, props: Any) -> dict[str, Any]:
            return {"seen": state["tag"]}

        return component

    def seen_by(instance: ComponentInstance) -> tuple[Any, Any]:
        instance.run("note", flush_update=True)
        return instance.run("look", ignore_cache=True), instance.read_state("seen")

    with defined("former")("mine", store=store) as former:
        assert seen_by(former) == ("former", "former")
        with defined("new")("mine", store=store) as instance:
            assert seen_by(instance) == ("new", "new")


def test_who_has_closed_an_instance_has_no_say_where_its_updates_run(store: EventStore) -> None:
    component = worker_handlers.component

    def ran_here(instance: ComponentInstance) -> bool:
        store.app(component.name).request("shared", "do/count", {"by": 1}).result()
        instance.flush_update("do", WAIT_S)
        return bool(instance.read_state("pid") == os.getpid())

    with component("shared", store=store) as first:
        assert ran_here(first)
        with component("shared", store=store, update_task_type="process"):
            with component("shared", store=store):
                assert not ran_here(first)
            assert not ran_here(first)
        assert ran_here(first)


def test_an_async_update_that_closes_an_instance_lets_what_runs_there_finish(
    store: EventStore,
) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()
    inner, outer = Component("Inner"), Component("Outer")

    @inner.update("go")
    async def held(state: Any, props: Any) -> dict[str, Any]:
        began.set()
        await may_end.wait()
        return {"value": 1}

    @outer.update("go")
    async def closing(state: Any, props: Any) -> dict[str, Any]:
        with inner("theirs", store=store) as other:
            (request,) = other.submit("go").updates
            await began.wait()
        may_end.set()
        return {"request": request.sequence}

    with outer("mine", store=store) as instance:
        instance.run("go", flush_update=True)
        answers = Processing(store.app("Inner"))
        answers.wait_closed("theirs", instance.read_state("request"), WAIT_S)

        assert store.app("Inner").get("theirs")["value"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_that_was_opening_an_instance(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("Forked")
    component.update("go")(lambda state, props: {"value": 1})
    is_opening, may_open = threading.Event(), threading.Event()
    start = Runner.start

    def start_late(runner: Runner) -> Runner:
        is_opening.set()
        assert may_open.wait(WAIT_S)
        return start(runner)

    def use(url: str) -> None:
        with EventStore(url) as opened, component("mine", store=opened) as instance:
            instance.run("go", flush_update=True)

    monkeypatch.setattr(Runner, "start", start_late)
    opening = threading.Thread(target=component, args=("mine",), kwargs={"store": store})
    opening.start()
    assert is_opening.wait(WAIT_S)
    child = os.fork()
    if child == 0:  # pragma: no cover
        may_open.set()
        user = threading.Thread(target=use, args=("memory://",), daemon=True)
        user.start()
        user.join(CALL_S_MAX)
        os._exit(user.is_alive())
    may_open.set()
    _, status = os.waitpid(child, 0)
    opening.join(WAIT_S)

    assert status == 0
