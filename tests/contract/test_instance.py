"""An instance of a component, as a program works with it: run, gen, their async twins, and state.

Goal: a program written for Motion finds its semantics here, and none of the defects that were
observed there. Method: each promise is asked on a log in memory and on the embedded log.
"""

from __future__ import annotations

import asyncio
import datetime
import gc
import logging
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eventstore import (
    Config,
    ConfigError,
    Diff,
    Entry,
    EventStore,
    Kind,
    ReadTimeout,
    Rejected,
    UnsupportedValue,
    testing,
)
from processors import Component, ComponentInstance, DiscardPolicy, Retry, UpdateFailed
from processors.beginning import begins_alone, has_begun
from processors.runner import Runner
from processors.stores import give_back, processing_of, take
from tests.contract import logs
from tests.fault import worker_handlers

ROOT = Path(__file__).parents[2]

#: Longer than any wait here takes, unless something is broken.
DEADLINE_S = 60.0


@pytest.fixture(params=["memory", "sqlite"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[Callable[[], EventStore]]:
    """Open the log once more at each call, as another process would; all are closed at the end."""
    url = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "log")
    with ExitStack() as stack:

        def open_again() -> EventStore:
            config = Config.load({}, namespace=namespace)
            return stack.enter_context(EventStore(url, config=config))

        yield open_again


@pytest.fixture
def store(open_store: Callable[[], EventStore]) -> EventStore:
    return open_store()


@pytest.fixture
def counter() -> Component:
    component = Component("Counter")

    @component.init_state
    def begin(start: int = 0) -> dict[str, Any]:
        return {"count": start, "log": []}

    @component.serve("add")
    def add(state: Any, props: Any) -> Any:
        return state["count"] + props["by"]

    @component.update("add")
    def keep(state: Any, props: Any) -> dict[str, Any]:
        return {"count": props.serve_result}

    @component.update(["note", "slow note"])
    def note(state: Any, props: Any) -> dict[str, Any]:
        if "gate" in props:
            gates[props["gate"]].wait(DEADLINE_S)
        return {"log": [*state["log"], props["what"]]}

    return component


#: What updates wait for, by a name that can be in props.
gates: dict[str, threading.Event] = {}


@pytest.fixture
def gate() -> Iterator[str]:
    name = uuid.uuid4().hex
    gates[name] = threading.Event()
    yield name
    gates.pop(name).set()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells: the work of a runner, or of another store's view."""
    assert logs.eventually(condition, DEADLINE_S)


# --- opening -------------------------------------------------------------------------------------


def test_arguments_may_stand_where_motion_has_them(counter: Component, store: EventStore) -> None:
    arguments = ("mine", {"start": 2}, "WARNING", "thread", True, 60, ".motionrc.yml", False)

    with counter(*arguments, store=store) as instance:
        assert instance.disable_update_task
        assert instance.read_state("count") == 2
        assert logging.getLogger("processors").level == logging.WARNING
    logging.getLogger("processors").setLevel(logging.NOTSET)


def test_an_instance_has_its_name_and_is_a_context_manager(
    counter: Component, store: EventStore
) -> None:
    with counter("mine", store=store) as instance:
        assert instance.running
        assert (instance.instance_id, instance.instance_name) == ("mine", "Counter__mine")

    assert not instance.running


def test_without_an_id_it_gets_a_readable_one_of_its_own(
    counter: Component, store: EventStore
) -> None:
    with counter(store=store) as one, counter(store=store) as other:
        assert one.instance_id != other.instance_id
        assert [part.isalpha() for part in one.instance_id.split("-")] == [True] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"instance_id": "a__b"},
        {"update_task_type": "fork"},
        {"disable_update_task": True, "flush_on_exit": True},
        {"url": "memory://other"},
    ],
)
def test_arguments_that_contradict_are_refused_before_anything_is_opened(
    counter: Component, store: EventStore, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="component Counter"):
        counter(store=store, **options)

    assert store.apps() == []


def test_init_state_takes_its_params_once_in_the_life_of_an_instance(
    counter: Component, open_store: Callable[[], EventStore]
) -> None:
    with counter("mine", {"start": 3}, store=open_store()) as instance:
        assert instance.read_state("count") == 3
    with counter("mine", {"start": 9}, store=open_store()) as instance:
        assert instance.read_state("count") == 3
        assert instance.get_version() == 1


def test_processes_that_open_an_instance_at_once_begin_it_once(
    counter: Component, open_store: Callable[[], EventStore]
) -> None:
    stores = [open_store() for _ in range(4)]
    together = threading.Barrier(4)
    versions = []

    def open_it(number: int) -> None:
        together.wait(DEADLINE_S)
        with counter("mine", {"start": number}, store=stores[number]) as instance:
            versions.append((instance.get_version(), instance.read_state("count")))

    threads = [threading.Thread(target=open_it, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert len(versions) == 4
    assert set(versions) == {versions[0]}
    assert versions[0][0] == 1


def test_init_state_keeps_what_a_service_has_appended_before(
    counter: Component, store: EventStore
) -> None:
    store.app("Counter").append("mine", {"count": 40, "more": "x"}).result()

    with counter("mine", store=store) as instance:
        assert instance.read_state("count") == 40
        assert instance.read_state("log") == []
        assert instance.read_state("more") == "x"


def test_init_state_may_be_async_also_below_a_running_loop(store: EventStore) -> None:
    component = Component("Async")

    @component.init_state
    async def begin(value: int) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"value": value}

    async def open_it() -> ComponentInstance:
        return component("inside", {"value": 2}, store=store)

    with component("outside", {"value": 1}, store=store) as outside, asyncio.run(open_it()) as one:
        assert (outside.read_state("value"), one.read_state("value")) == (1, 2)


def test_init_state_that_returns_no_dict_is_an_error_and_leaves_nothing(store: EventStore) -> None:
    component = Component("Wrong")
    answers: list[Any] = [[1], {"fine": 1}]

    @component.init_state
    def begin() -> Any:
        return answers.pop(0)

    with pytest.raises(TypeError, match=r"init_state of component Wrong returned \[1\]"):
        component("mine", store=store)

    with component("mine", store=store) as instance:
        assert instance.read_state("fine") == 1


@pytest.mark.parametrize("params", [{}, {"name": "Ann", "age": 3}])
def test_params_that_init_state_does_not_have_are_named_and_leave_nothing(
    store: EventStore, params: dict[str, Any]
) -> None:
    component = Component("Needy")
    component.init_state(lambda name: {"name": name})

    with pytest.raises(TypeError, match=r"init_state of component Needy: .*Nothing was written"):
        component("mine", params, store=store)

    assert not store.app("Needy").exists("mine")


def test_init_state_that_returns_nothing_has_run_all_the_same(store: EventStore) -> None:
    component = Component("Empty")
    calls = []

    @component.init_state
    def begin() -> dict[str, int]:
        calls.append(1)
        return {}

    for _ in range(2):
        with component("mine", store=store) as instance:
            assert instance.get_version() == 0

    assert len(calls) == 1


def test_a_reset_instance_begins_anew_and_a_fork_goes_on(
    counter: Component, store: EventStore
) -> None:
    with counter("mine", {"start": 1}, store=store):
        pass
    app = store.app("Counter")
    app.append("mine", Diff().delete("log")).result()
    app.fork("mine", to="forked")
    app.reset("mine")

    with counter("mine", {"start": 7}, store=store) as mine, counter("forked", store=store) as fork:
        assert mine.read_state("count") == 7
        assert fork.read_state("count") == 1
        assert fork.read_state("log", "absent") == "absent"


def test_it_is_known_whether_an_instance_has_begun_and_can_begin_alone(
    counter: Component, store: EventStore
) -> None:
    store.app("Counter").append("appended", {"count": 1}).result()
    processing = processing_of(store, "Counter")
    needy = Component("Needy")
    needy.init_state(lambda name: {"name": name})
    with counter("opened", store=store):
        store.app("Counter").fork("opened", to="forked")

        names = ("opened", "forked", "appended", "absent")
        assert [has_begun(processing, name) for name in names] == [True, True, False, False]
        assert begins_alone(counter)
        assert not begins_alone(needy)


def test_a_component_without_init_state_begins_empty(store: EventStore) -> None:
    component = Component("Bare")
    component.serve("look")(lambda state, props: dict(state))

    with component("mine", store=store) as instance:
        assert instance.run("look") == {}
        assert instance.read_state("x", 5) == 5
        assert instance.get_version() == 0


# --- run -----------------------------------------------------------------------------------------


def test_run_answers_and_its_update_takes_effect(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        assert instance.run("add", {"by": 2}) == 2
        instance.flush_update("add")

        assert instance.read_state("count") == 2
        assert instance.flows_run == {"add"}


def test_a_request_is_in_the_log_when_run_returns(
    counter: Component, open_store: Callable[[], EventStore], gate: str
) -> None:
    with counter("mine", store=open_store()) as instance:
        assert instance.run("note", {"what": 1, "gate": gate}) is None

        other = open_store().app("Counter")
        other.get("mine", fresh=True)
        assert [row.request.name for row in other.pending("mine")] == ["note/note"]
        gates[gate].set()
        instance.flush_update("note")


def test_a_flow_that_does_not_exist_runs_nothing(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        for call in (instance.run, instance.gen, instance.agen, instance.submit):
            with pytest.raises(KeyError, match="Counter has no flow 'ad'; there are: add, note"):
                call("ad")
        with pytest.raises(KeyError, match="no flow 'ad'"):
            asyncio.run(instance.arun("ad"))
        with pytest.raises(KeyError, match="no flow 'ad'"):
            instance.flush_update("ad")

        assert instance.get_version() == 1
        assert instance.requests() == []


def test_serve_may_add_props_and_the_updates_see_them_on_a_cached_answer_too(
    store: EventStore,
) -> None:
    component = Component("Chatty")

    @component.serve("ask")
    def ask(state: Any, props: Any) -> str:
        props["found"] = "fact"
        return "answer"

    @component.update("ask")
    def learn(state: Any, props: Any) -> Any:
        return Diff().append("facts", f"{props['found']}/{props.serve_result}")

    with component("mine", store=store) as instance:
        for _ in range(2):
            assert instance.run("ask", {"q": 1}, flush_update=True) == "answer"

        assert instance.read_state("facts") == ["fact/answer"] * 2


def test_each_update_of_a_flow_is_requested_in_the_order_of_definition(store: EventStore) -> None:
    component = Component("Many")
    ran = []
    component.update("go", name="b")(lambda state, props: ran.append("b"))
    component.update("go", name="a")(lambda state, props: ran.append("a"))
    component.update("go", name="c")(lambda state, props: ran.append("c"))

    with component("mine", store=store) as instance:
        instance.run("go", flush_update=True)

    assert ran == ["b", "a", "c"]


def test_updates_of_all_flows_run_in_the_order_of_their_requests(
    counter: Component, open_store: Callable[[], EventStore], gate: str
) -> None:
    with (
        counter("mine", store=open_store()) as one,
        counter("mine", store=open_store()) as other,
    ):
        one.run("note", {"what": -1, "gate": gate})
        for number in range(12):
            instance = (one, other)[number % 2]
            instance.run(("note", "slow note")[number % 3 == 0], {"what": number})
        gates[gate].set()
        one.run("note", {"what": 99}, flush_update=True)

        assert one.read_state("log") == [-1, *range(12), 99]


def test_a_flush_does_not_overtake_what_is_queued(
    counter: Component, store: EventStore, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Runner.complete

    def go_on_and_wait(*args: Any) -> list[Entry]:
        gates[gate].set()  # what is to be flushed is queued by now
        return complete(*args)

    monkeypatch.setattr(Runner, "complete", go_on_and_wait)
    with counter("mine", store=store) as instance:
        instance.run("slow note", {"what": "first", "gate": gate})
        instance.run("note", {"what": "flushed"}, flush_update=True)

        assert instance.read_state("log") == ["first", "flushed"]


def test_a_serve_that_raises_queues_no_update(store: EventStore) -> None:
    component = Component("Broken")

    @component.serve("go")
    def go(state: Any, props: Any) -> None:
        raise LookupError("nothing there")

    component.update("go", name="never")(lambda state, props: {"ran": True})
    with component("mine", store=store) as instance:
        with pytest.raises(LookupError, match="nothing there"):
            instance.run("go")

        assert instance.requests() == []


def test_a_result_that_cannot_be_queued_is_not_lost(store: EventStore) -> None:
    component = Component("Lost")
    component.serve("go")(lambda state, props: threading.Lock())
    component.update("go", name="never")(lambda state, props: {"ran": True})

    with component("mine", store=store) as instance:
        with pytest.raises(UnsupportedValue) as raised:
            instance.run("go")

        assert str(raised.value).startswith("['props.serve_result']: values of type _thread.lock ")
        assert isinstance(raised.value.serve_result, type(threading.Lock()))  # type: ignore[attr-defined]
        assert instance.requests() == []


def test_flush_raises_what_the_update_raised_and_runs_the_others(store: EventStore) -> None:
    component = Component("Half")
    component.serve("go")(lambda state, props: "answer")

    @component.update("go")
    def breaks(state: Any, props: Any) -> None:
        raise ValueError(f"no {props['what']}")

    component.update("go", name="fine")(lambda state, props: {"fine": True})
    with component("mine", store=store) as instance:
        with pytest.raises(
            UpdateFailed, match=r"go/breaks .*raised: ValueError: no bread"
        ) as raised:
            instance.run("go", {"what": "bread"}, flush_update=True)

        failure = raised.value
        assert isinstance(failure, RuntimeError)
        assert (failure.request, failure.reason, failure.attempts) == ("go/breaks", "raised", 1)
        assert 'raise ValueError(f"no {props' in failure.traceback
        assert failure.serve_result == "answer"
        assert isinstance(failure.__cause__, ValueError)
        printed = "".join(traceback.format_exception(failure))
        assert printed.count('raise ValueError(f"no {props') == 1
        assert "update go/breaks of Half/mine did not take effect" in printed
        assert instance.read_state("fine") is True


@pytest.mark.parametrize("returned", [7, "text", [1], True])
def test_an_update_that_returns_no_change_fails_and_writes_nothing(
    store: EventStore, returned: Any
) -> None:
    component = Component("Wrong")
    component.update("go", name="go")(lambda state, props: returned)

    with component("mine", store=store) as instance:
        with pytest.raises(UpdateFailed, match="update go/go of component Wrong returned"):
            instance.run("go", flush_update=True)

        assert instance.get_version() == 0


@pytest.mark.parametrize("returned", [None, {}, Diff()])
def test_an_update_without_a_change_is_answered_and_makes_no_version(
    store: EventStore, returned: Any
) -> None:
    component = Component("Still")
    component.update("go", name="go")(lambda state, props: returned)

    with component("mine", store=store) as instance:
        assert instance.submit("go").wait(DEADLINE_S)[0].state == "applied"
        assert instance.get_version() == 0


def test_an_update_may_return_a_diff_or_a_state(counter: Component, store: EventStore) -> None:
    counter.update("diff", name="d")(lambda state, props: Diff().increment("count", 5))
    counter.update("state", name="s")(lambda state, props: state.append(log="x").update(new=1))

    with counter("mine", store=store) as instance:
        instance.run("diff", flush_update=True)
        instance.run("state", flush_update=True)

        assert instance.read_state("count") == 5
        assert instance.read_state("log") == ["x"]
        assert instance.read_state("new") == 1


def test_a_change_in_place_of_an_update_that_fails_is_never_stored(store: EventStore) -> None:
    component = Component("Dirty")
    component.init_state(lambda: {"log": []})

    @component.update("go")
    def go(state: Any, props: Any) -> dict[str, Any]:
        state["log"].append(props["what"])
        if props["what"] == "bad":
            raise ValueError("after the change")
        return {"log": state["log"]}

    with component("mine", store=store) as instance:
        with pytest.raises(UpdateFailed):
            instance.run("go", {"what": "bad"}, flush_update=True)
        instance.run("go", {"what": "good"}, flush_update=True)

        assert instance.read_state("log") == ["good"]


def test_a_serve_that_changes_what_it_read_changes_nothing_and_is_told(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    component = Component(f"Rude-{uuid.uuid4().hex}", {}, 0)
    component.init_state(lambda: {"log": []})

    @component.serve("go")
    def go(state: Any, props: Any) -> int:
        state["log"].append(1)
        return len(state["log"])

    with caplog.at_level(logging.WARNING), component("mine", store=store) as instance:
        assert [instance.run("go"), instance.run("go")] == [1, 1]
        instance.write_state({"other": 1})

        assert instance.read_state("log") == []
    assert [record.message for record in caplog.records if "in place" in record.message] == [
        f"serve go of component {component.name} changed state['log'] in place, in a copy:"
        " nothing was stored. An update can change the state; serve cannot"
    ]


def test_a_serve_that_assigns_to_the_state_is_taught(store: EventStore) -> None:
    component = Component("Assigns")

    @component.serve("go")
    def go(state: Any, props: Any) -> None:
        state["x"] = 1

    with (
        component("mine", store=store) as instance,
        pytest.raises(TypeError, match="a state is not changed in place"),
    ):
        instance.run("go")


def test_a_missing_field_names_the_instance(counter: Component, store: EventStore) -> None:
    counter.serve("miss")(lambda state, props: state["absent"])

    with (
        counter("mine", store=store) as instance,
        pytest.raises(KeyError, match="'absent' is not in the state of Counter/mine"),
    ):
        instance.run("miss")


# --- the cache -----------------------------------------------------------------------------------


class Counted:
    """A component with one flow that counts its calls."""

    def __init__(self, **options: Any) -> None:
        self.component = Component("Counted", **options)
        self.calls = 0
        self.answer: Any = "answer"
        self.component.init_state(lambda: {"a": 1, "b": 1})

        @self.component.serve("ask")
        def ask(state: Any, props: Any) -> Any:
            self.calls += 1
            state.get("a")
            return self.answer


def test_the_same_props_are_answered_from_the_cache_whatever_their_order(
    store: EventStore,
) -> None:
    counted = Counted()

    with counted.component("mine", store=store) as instance:
        instance.run("ask", {"a": 1, "b": {"x": 1, "y": 2}})
        instance.run("ask", {"b": {"y": 2, "x": 1}, "a": 1})
        assert counted.calls == 1
        instance.run("ask", {"a": 1.0, "b": {"x": 1, "y": 2}})
        assert counted.calls == 2


def test_none_is_an_answer_that_the_cache_keeps(store: EventStore) -> None:
    counted = Counted()
    counted.answer = None

    with counted.component("mine", store=store) as instance:
        assert [instance.run("ask"), instance.run("ask")] == [None, None]

    assert counted.calls == 1


def test_large_arrays_that_print_alike_are_told_apart(store: EventStore) -> None:
    numpy = pytest.importorskip("numpy")
    counted = Counted()
    one, other = numpy.zeros(5_000), numpy.zeros(5_000)
    other[2_500] = 1

    with counted.component("mine", store=store) as instance:
        instance.run("ask", {"x": one})
        instance.run("ask", {"x": other})
        instance.run("ask", {"x": one.copy()})

    assert counted.calls == 2


def test_each_instance_has_answers_of_its_own(store: EventStore) -> None:
    counted = Counted()

    with counted.component("a", store=store) as a, counted.component("b", store=store) as b:
        a.run("ask")
        b.run("ask")

    assert counted.calls == 2


def test_the_cache_is_passed_over_when_asked_and_filled_all_the_same(store: EventStore) -> None:
    counted = Counted()

    with counted.component("mine", store=store) as instance:
        instance.run("ask")
        counted.answer = "newer"
        assert instance.run("ask") == "answer"
        assert instance.run("ask", ignore_cache=True) == "newer"
        counted.answer = "newest"
        assert instance.run("ask") == "newer"
        assert instance.run("ask", force_refresh=True) == "newest"
        assert instance.run("ask") == "newest"

    assert counted.calls == 3


def test_without_a_cache_time_nothing_is_kept(store: EventStore) -> None:
    counted = Counted(cache_ttl=0)

    with counted.component("mine", store=store) as instance:
        instance.run("ask")
        instance.run("ask")

    assert counted.calls == 2


def test_an_answer_is_kept_for_its_time(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(cache_ttl=60)
    now = time.time()

    with counted.component("mine", store=store) as instance:
        monkeypatch.setattr("processors.serve_cache.time.time", lambda: now)
        instance.run("ask")
        monkeypatch.setattr("processors.serve_cache.time.time", lambda: now + 55)
        instance.run("ask")
        assert counted.calls == 1
        monkeypatch.setattr("processors.serve_cache.time.time", lambda: now + 65)
        instance.run("ask")
        assert counted.calls == 2


def test_a_change_of_the_state_leaves_the_cache_alone_unless_asked(store: EventStore) -> None:
    counted = Counted()

    with counted.component("mine", store=store) as instance:
        instance.run("ask")
        instance.write_state({"a": 2})
        instance.run("ask")

    assert counted.calls == 1


def test_an_answer_can_depend_on_the_fields_that_it_was_made_of(store: EventStore) -> None:
    counted = Counted(cache_depends_on_state=True)

    with counted.component("mine", store=store) as instance:
        instance.run("ask")
        instance.write_state({"b": 2})
        instance.run("ask")
        assert counted.calls == 1, "it never read b"
        instance.write_state({"a": 2})
        instance.run("ask")
        instance.run("ask")
        assert counted.calls == 2


def test_a_reset_instance_has_no_answers_of_its_former_life(store: EventStore) -> None:
    counted = Counted()

    with counted.component("mine", store=store) as instance:
        instance.run("ask")
        store.app("Counted").reset("mine")
        instance.run("ask")

    assert counted.calls == 2


def test_an_answer_that_cannot_be_stored_is_given_and_told_once(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    component = Component(f"Live-{uuid.uuid4().hex}")
    component.serve("go")(lambda state, props: threading.Lock())

    with caplog.at_level(logging.WARNING), component("mine", store=store) as instance:
        one, other = instance.run("go"), instance.run("go")

    assert one is not other
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_the_processes_of_a_machine_share_the_cache(tmp_path: Path, namespace: str) -> None:
    counted = Counted()
    config = Config.load({}, namespace=namespace)

    for _ in range(2):
        with (
            EventStore(tmp_path / "log", config=config) as store,
            counted.component("mine", store=store) as instance,
        ):
            assert instance.run("ask", {"x": [1, {"y": None}]}) == "answer"

    assert counted.calls == 1


def test_a_serve_that_was_written_anew_does_not_answer_with_what_the_former_one_said(
    store: EventStore,
) -> None:
    answers = []

    for source in ("return 'Hello'", "return  'Hello'  # the same", "return 'Good day'"):
        component = Component("Greeter", cache_ttl=600)
        names: dict[str, Any] = {}
        exec(f"def greet(state, props):\n    {source}", names)
        component.serve("greet")(names["greet"])
        with component("mine", store=store) as instance:
            answers.append(instance.run("greet"))

    assert answers == ["Hello", "Hello", "Good day"]


# --- generators ----------------------------------------------------------------------------------


@pytest.fixture
def streamer() -> Component:
    component = Component("Streamer")

    @component.serve("count")
    def count(state: Any, props: Any) -> Iterator[int]:
        for number in range(props["to"]):
            started.append(number)
            yield number

    @component.serve("acount")
    async def acount(state: Any, props: Any) -> AsyncIterator[int]:
        for number in range(props["to"]):
            started.append(number)
            await asyncio.sleep(0)
            yield number

    component.update(["count", "acount"], name="keep")(
        lambda state, props: Diff().append("kept", props.serve_result)
    )
    return component


started: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_started() -> None:
    started.clear()


def test_items_come_one_by_one_and_the_update_after_the_last(
    streamer: Component, store: EventStore
) -> None:
    with streamer("mine", store=store) as instance:
        items = instance.gen("count", {"to": 3}, flush_update=True)

        assert next(items) == 0
        assert started == [0]
        assert instance.requests() == []
        assert list(items) == [1, 2]
        assert instance.read_state("kept") == [[0, 1, 2]]


def test_who_stops_early_still_has_the_update(streamer: Component, store: EventStore) -> None:
    with streamer("mine", store=store) as instance:
        for number in instance.gen("count", {"to": 9}):
            if number == 1:
                break
        gc.collect()  # where a loop's generator is not let go of at once
        instance.flush_update("count")

        assert instance.read_state("kept") == [[0, 1]]
        assert started == [0, 1]
        assert instance.run("count", {"to": 9}) == 0
        assert len(started) == 2 + 9, "a part is not kept as the answer"


def test_a_generator_is_replayed_from_the_cache_item_by_item(
    streamer: Component, store: EventStore
) -> None:
    with streamer("mine", store=store) as instance:
        assert list(instance.gen("count", {"to": 3})) == [0, 1, 2]
        again = instance.gen("count", {"to": 3})
        assert next(again) == 0
        assert list(again) == [1, 2]
        assert len(started) == 3
        instance.flush_update("count")
        assert instance.read_state("kept") == [[0, 1, 2]] * 2


def test_run_gives_the_first_item_and_none_of_an_empty_generator(
    streamer: Component, store: EventStore
) -> None:
    with streamer("mine", store=store) as instance:
        assert instance.run("count", {"to": 3}) == 0
        assert instance.run("count", {"to": 0}) is None
        instance.flush_update("count")

        assert instance.read_state("kept") == [[0, 1, 2], []]


def test_gen_of_a_plain_serve_has_one_item_after_its_update(
    counter: Component, store: EventStore
) -> None:
    with counter("mine", store=store) as instance:
        assert list(instance.gen("add", {"by": 2}, flush_update=True)) == [2]
        assert list(instance.gen("note", {"what": 1})) == [None]
        assert instance.read_state("count") == 2


# --- asyncio -------------------------------------------------------------------------------------


def test_an_async_serve_needs_arun_and_says_so(streamer: Component, store: EventStore) -> None:
    with streamer("mine", store=store) as instance:
        for call in (instance.run, instance.gen, instance.submit):
            with pytest.raises(TypeError, match=r"is async: await instance\.arun"):
                call("acount", {"to": 1})

        assert started == []


def test_agen_streams_both_kinds_and_arun_takes_the_first(
    streamer: Component, store: EventStore
) -> None:
    async def program(instance: ComponentInstance) -> list[Any]:
        return [
            [item async for item in instance.agen("acount", {"to": 2})],
            [item async for item in instance.agen("count", {"to": 3}, flush_update=True)],
            await instance.arun("acount", {"to": 4}),
            await instance.arun("count", {"to": 4}),
            [item async for item in instance.agen("acount", {"to": 2})],
        ]

    with streamer("mine", store=store) as instance:
        assert asyncio.run(program(instance)) == [[0, 1], [0, 1, 2], 0, 0, [0, 1]]


def test_an_async_iterator_closed_early_queues_the_update_too(
    streamer: Component, store: EventStore
) -> None:
    async def program(instance: ComponentInstance) -> None:
        items: Any = instance.agen("acount", {"to": 9})
        assert await anext(items) == 0
        await items.aclose()
        await instance.aflush_update("acount", DEADLINE_S)

    with streamer("mine", store=store) as instance:
        asyncio.run(program(instance))

        assert instance.read_state("kept") == [[0]]


def test_calls_that_flush_at_once_end_in_the_order_of_the_calls(store: EventStore) -> None:
    component = Component("Waits")

    @component.update("go")
    async def go(state: Any, props: Any) -> Any:
        await asyncio.sleep(0.01)
        return Diff().append("log", props["n"])

    async def program(instance: ComponentInstance) -> None:
        calls = (instance.arun("go", {"n": number}, flush_update=True) for number in range(8))
        await asyncio.wait_for(asyncio.gather(*calls), DEADLINE_S)

    with component("mine", store=store) as instance:
        asyncio.run(program(instance))

        assert instance.read_state("log") == list(range(8)), "in the order of the calls"


def test_the_loop_goes_on_while_a_call_waits_for_its_update(
    counter: Component, store: EventStore, gate: str
) -> None:
    async def program(instance: ComponentInstance) -> None:
        call = asyncio.create_task(
            instance.arun("note", {"what": 1, "gate": gate}, flush_update=True)
        )
        while "note/note" not in {one.name for one in await asyncio.to_thread(instance.requests)}:
            await asyncio.sleep(0)
        assert not call.done()
        gates[gate].set()  # only a loop that goes on comes here
        await asyncio.wait_for(call, DEADLINE_S)

    with counter("mine", store=store) as instance:
        asyncio.run(program(instance))

        assert instance.read_state("log") == [1]


def test_arun_raises_what_the_update_raised(store: EventStore) -> None:
    component = Component("Fails")
    component.serve("go")(lambda state, props: "answer")

    @component.update("go")
    async def breaks(state: Any, props: Any) -> None:
        raise ValueError("no")

    with component("mine", store=store) as instance:
        with pytest.raises(UpdateFailed, match="ValueError: no") as raised:
            asyncio.run(instance.arun("go", flush_update=True))

        assert raised.value.serve_result == "answer"


def test_asubmit_can_be_awaited(counter: Component, store: EventStore) -> None:
    async def program(instance: ComponentInstance) -> tuple[Any, list[str]]:
        submission = await instance.asubmit("add", {"by": 3})
        return submission.serve_result, [outcome.state for outcome in await submission]

    with counter("mine", store=store) as instance:
        assert asyncio.run(program(instance)) == (3, ["applied"])


@pytest.mark.parametrize("way", ["run", "flush_update", "force_refresh"])
def test_an_update_that_would_wait_for_its_own_instance_fails_and_does_not_hang(
    store: EventStore, way: str
) -> None:
    component = Component("Self")
    component.serve("ask")(lambda state, props: "answer")

    @component.update("ask")
    def again(state: Any, props: Any) -> None:
        if props["depth"] == 0:
            if way == "flush_update":
                instance.flush_update("ask")
            else:
                options: dict[str, Any] = {"flush_update" if way == "run" else way: True}
                instance.run("ask", {"depth": 1}, **options)

    with (
        component("mine", store=store) as instance,
        pytest.raises(UpdateFailed, match="cannot wait for other updates"),
    ):
        instance.run("ask", {"depth": 0}, flush_update=True)


@pytest.mark.parametrize("way", ["run", "flush_update", "force_refresh", "wait"])
def test_an_async_update_that_would_block_its_loop_fails_and_does_not_hang(
    store: EventStore, way: str
) -> None:
    component = Component("Loop")
    component.serve("ask")(lambda state, props: "answer")

    @component.update("ask")
    async def again(state: Any, props: Any) -> None:
        if "inner" in props:
            return
        other.submit("ask", {"inner": True})
        if way == "run":
            other.run("ask", {"inner": True}, flush_update=True)
        elif way == "flush_update":
            other.flush_update("ask")
        elif way == "force_refresh":
            other.run("ask", {"inner": True}, force_refresh=True)
        else:
            other.submit("ask", {"inner": True}).wait(DEADLINE_S)

    with (
        component("other", store=store) as other,
        component("mine", store=store) as instance,
        pytest.raises(UpdateFailed, match="neither would ever end: await"),
    ):
        instance.run("ask", flush_update=True)


# --- state ---------------------------------------------------------------------------------------


def test_what_is_written_is_there_for_every_process(
    counter: Component, open_store: Callable[[], EventStore]
) -> None:
    with (
        counter("mine", store=open_store()) as one,
        counter("mine", store=open_store()) as other,
    ):
        one.write_state({"count": 5})
        assert other.read_state("count") == 5
        other.write_state(Diff().increment("count", 2))
        assert (one.get_version(), other.get_version()) == (3, 3)
        assert one.run("add", {"by": 0}) == 7


def test_an_opened_instance_knows_its_version_at_once(
    counter: Component, open_store: Callable[[], EventStore]
) -> None:
    with counter("mine", store=open_store()) as instance:
        instance.write_state({"count": 1})
    with counter("mine", store=open_store()) as instance:
        assert instance.get_version() == 2


@pytest.mark.parametrize("written", [[], 0, "", None, [("a", 1)], "text"])
def test_what_is_no_dict_cannot_be_written(
    counter: Component, store: EventStore, written: Any
) -> None:
    with counter("mine", store=store) as instance:
        with pytest.raises(TypeError, match="write_state takes a dict"):
            instance.write_state(written)

        assert instance.get_version() == 1


def test_an_empty_dict_writes_nothing(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        instance.write_state({})

        assert instance.get_version() == 1


def test_a_write_that_does_not_fit_is_told(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance, pytest.raises(Rejected):
        instance.write_state(Diff().append("count", 1))


def test_a_value_that_was_read_is_the_readers_own(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        instance.read_state("log").append("mine")

        assert instance.read_state("log") == []


def test_a_value_that_cannot_be_stored_poisons_nothing(store: EventStore) -> None:
    component = Component("Poison")
    component.update("go", name="go")(lambda state, props: {"lock": threading.Lock()})

    with component("mine", store=store) as instance:
        with pytest.raises(UpdateFailed, match="lock"):
            instance.run("go", flush_update=True)
        instance.write_state({"fine": 1})

        assert instance.read_state("fine") == 1


def test_an_update_sees_what_was_written_while_it_ran(
    counter: Component, store: EventStore, gate: str
) -> None:
    with counter("mine", store=store) as instance:
        submission = instance.submit("note", {"what": "update", "gate": gate})
        eventually(lambda: submission.updates[0].state == "running")
        instance.write_state({"log": ["written"]})
        gates[gate].set()
        submission.wait(DEADLINE_S)

        assert instance.read_state("log") == ["written", "update"]


# --- values that only live in memory -------------------------------------------------------------


@pytest.fixture
def database() -> Iterator[Component]:
    component = Component("Database")
    connections: list[sqlite3.Connection] = []

    def connected() -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute("create table users (name text)")
        connections.append(connection)
        return connection

    @component.init_state
    def begin() -> dict[str, Any]:
        return {"connection": connected(), "fits": 0}

    @component.save_state
    def save(state: Any) -> dict[str, int]:
        return {"fits": state["fits"]}

    @component.load_state
    def load(saved: Any) -> dict[str, Any]:
        return {"connection": connected(), "fits": saved["fits"]}

    @component.serve("users")
    def users(state: Any, props: Any) -> Any:
        return state["connection"].execute("select count(*) from users").fetchone()[0]

    @component.update("add")
    def add(state: Any, props: Any) -> dict[str, int]:
        state["connection"].execute("insert into users values (?)", (props["name"],))
        return {"fits": state["fits"] + 1}

    yield component
    for connection in connections:
        connection.close()


def test_a_value_that_cannot_be_stored_stays_usable_in_the_process_that_made_it(
    database: Component, store: EventStore
) -> None:
    with database("mine", store=store) as instance:
        instance.run("add", {"name": "ann"}, flush_update=True)
        instance.run("add", {"name": "bob"}, flush_update=True)
        assert instance.run("users", ignore_cache=True) == 2
        instance.write_state({"fits": 10})
        assert instance.run("users", ignore_cache=True) == 2
        assert instance.read_state("fits") == 10
        assert isinstance(instance.read_state("connection"), sqlite3.Connection)
        assert dict(store.app("Database").get("mine")) == {"fits": 10}


def test_what_another_process_wrote_is_loaded_anew(
    database: Component, open_store: Callable[[], EventStore]
) -> None:
    with (
        database("mine", store=open_store()) as one,
        database("mine", store=open_store()) as other,
    ):
        one.run("add", {"name": "ann"}, flush_update=True)
        other.write_state({"fits": 7})

        assert one.read_state("fits") == 7
        assert one.run("users", ignore_cache=True) == 0, "a connection of load_state's own"


def test_a_live_state_is_not_changed_in_place(database: Component, store: EventStore) -> None:
    @database.update("assign")
    def assign(state: Any, props: Any) -> None:
        state["fits"] = 3

    with database("mine", store=store) as instance:
        with pytest.raises(UpdateFailed, match="a state is not changed in place"):
            instance.run("assign", flush_update=True)

        assert instance.read_state("fits") == 0


# --- disabled instances --------------------------------------------------------------------------


def test_a_disabled_instance_refuses_to_queue_before_serve_runs(store: EventStore) -> None:
    counted = Counted()
    counted.component.update("ask", name="keep")(lambda state, props: {"a": 5})

    with counted.component("mine", disable_update_task=True, store=store) as instance:
        with pytest.raises(RuntimeError, match=r"disable_update_task=True.*Nothing was run"):
            instance.run("ask")

        assert counted.calls == 0
        assert instance.requests() == []


def test_a_disabled_instance_serves_writes_and_flushes(
    counter: Component, store: EventStore
) -> None:
    counter.serve("look")(lambda state, props: state["count"])

    with counter("mine", disable_update_task=True, store=store) as instance:
        instance.write_state({"count": 4})
        assert instance.run("look") == 4
        assert instance.run("add", {"by": 1}, flush_update=True) == 5
        assert instance.read_state("count") == 5


def test_what_a_disabled_instance_submits_waits_for_somebody_who_runs_it(
    counter: Component, open_store: Callable[[], EventStore]
) -> None:
    with counter("mine", disable_update_task=True, store=open_store()) as instance:
        submission = instance.submit("add", {"by": 1})
        assert submission.serve_result == 1
        assert submission.updates[0].state == "pending"
        with pytest.raises(ReadTimeout):
            submission.wait(0.05)

        with counter("other", store=open_store()):
            assert submission.wait(DEADLINE_S)[0].state == "applied"
        assert instance.read_state("count") == 1


def test_force_refresh_of_a_disabled_instance_does_not_hang(
    counter: Component, store: EventStore
) -> None:
    counter.serve("look")(lambda state, props: state["count"])

    with counter("mine", disable_update_task=True, store=store) as instance:
        instance.submit("add", {"by": 6})
        assert instance.run("look", force_refresh=True) == 6
        instance.submit("add", {"by": 7})
        instance.flush_update("add", DEADLINE_S)
        assert instance.read_state("count") == 13


# --- what became of a request --------------------------------------------------------------------


def test_a_request_says_what_became_of_it(counter: Component, store: EventStore, gate: str) -> None:
    counter.update("boom", name="boom")(lambda state, props: state["missing"])

    with counter("mine", store=store) as instance:
        # Once this process has run one, nobody else can have begun those that come later.
        instance.run("note", {"what": 0}, flush_update=True)
        running = instance.submit("note", {"what": 1, "gate": gate}).updates[0]
        waiting = instance.submit("boom").updates[0]
        eventually(lambda: running.state == "running")
        assert waiting.state == "pending"
        assert waiting.outcome.is_open
        runs = running.outcome
        assert runs.requested_at is not None
        assert runs.began_at is not None
        assert runs.requested_at <= runs.began_at
        assert waiting.outcome.began_at is None
        gates[gate].set()

        assert running.wait(DEADLINE_S).state == "applied"
        failed = waiting.wait(DEADLINE_S)
        assert (failed.state, failed.reason, failed.attempts) == ("failed", "raised", 1)
        assert "'missing' is not in the state of Counter/mine" in failed.traceback
        assert failed.requested_at is not None
        assert failed.closed_at is not None
        assert failed.requested_at <= failed.closed_at
        assert running.outcome.version == 3


def test_requests_are_listed_newest_first(counter: Component, store: EventStore, gate: str) -> None:
    with counter("mine", store=store) as instance:
        for number in range(3):
            instance.run("note", {"what": number})
        instance.flush_update("note")
        instance.run("note", {"what": 3, "gate": gate})
        instance.run("add", {"by": 1})
        found = instance.requests(limit=2)

        assert [one.name for one in found] == ["add/keep", "note/note", "note/note", "note/note"]
        assert [one.outcome.is_open for one in found] == [True, True, False, False]
        gates[gate].set()
        instance.flush_update("add")
        assert {one.state for one in instance.requests()} == {"applied"}


def test_a_discarded_request_says_why(store: EventStore, gate: str) -> None:
    component = Component("Discards")

    @component.update("go", DiscardPolicy.NUM_NEW_UPDATES, 1)
    def go(state: Any, props: Any) -> Any:
        gates[gate].wait(DEADLINE_S)
        return Diff().append("log", props["n"])

    with component("mine", store=store) as instance:
        first = instance.submit("go", {"n": 0})
        eventually(lambda: first.updates[0].state == "running")
        submissions = [first, *(instance.submit("go", {"n": number}) for number in (1, 2, 3))]
        assert [one.updates[0].state for one in submissions[1:]] == ["pending"] * 3
        instance.get_version()  # a read has what was requested before it, and so has the runner
        gates[gate].set()
        outcomes = [submission.wait(DEADLINE_S)[0] for submission in submissions]

        states = [outcome.state for outcome in outcomes]
        assert states == ["applied", "discarded", "discarded", "applied"]
        assert outcomes[1].reason == "num_new_updates"
        assert outcomes[1].message in (
            "1 newer had come, where discard_after is 1",
            "2 newer had come, where discard_after is 1",
        )
        assert [outcome.attempts for outcome in outcomes] == [1, 0, 0, 1]
        assert instance.read_state("log") == [0, 3]


def test_a_request_that_may_still_be_discarded_does_not_count_as_running(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("Undecided")
    is_next, may_go_on = threading.Event(), threading.Event()

    @component.update("go", DiscardPolicy.NUM_NEW_UPDATES, 1)
    def go(state: Any, props: Any) -> Any:
        return Diff().append("log", props["n"])

    def stand_still(point: str) -> None:
        if point == "processor.step":
            is_next.set()
            assert may_go_on.wait(DEADLINE_S)

    monkeypatch.setattr(testing, "on_fault_point", stand_still)
    with component("mine", store=store) as instance:
        first = instance.submit("go", {"n": 0})
        assert is_next.wait(DEADLINE_S)
        before = first.updates[0].state
        second = instance.submit("go", {"n": 1})
        instance.get_version()  # a read has what was requested before it, and so has the runner
        may_go_on.set()
        outcomes = [submission.wait(DEADLINE_S)[0].state for submission in (first, second)]

    assert before == "pending"
    assert outcomes == ["discarded", "applied"]


def test_a_running_update_that_is_given_up_says_so(store: EventStore) -> None:
    component = Component("Overtaken")

    @component.update("go", DiscardPolicy.NUM_NEW_UPDATES, 1, discard_running=True)
    def go(state: Any, props: Any, context: Any) -> None:
        if props["n"] == 0:
            eventually(context.is_stale)

    with component("mine", store=store) as instance:
        first = instance.submit("go", {"n": 0})
        eventually(lambda: first.updates[0].state == "running")
        instance.submit("go", {"n": 1})
        (outcome,) = first.wait(DEADLINE_S)

    assert (outcome.state, outcome.attempts) == ("discarded", 1)
    assert outcome.message == "1 newer had come, where discard_after is 1, while it ran"


def test_an_update_that_waited_too_long_says_how_long(store: EventStore) -> None:
    component = Component("Late")

    @component.update("go", DiscardPolicy.SECONDS, 0.001)
    def go(state: Any, props: Any) -> None:
        raise AssertionError("it is too late")

    with component("mine", store=store, disable_update_task=True) as instance:
        waits = instance.submit("go")
        requested_at = waits.updates[0].outcome.requested_at
        assert requested_at is not None
        late = requested_at + datetime.timedelta(milliseconds=2)
        eventually(lambda: store.app("Late").append("other", {"a": 1}).entry().time >= late)
        with component("mine", store=store):
            (outcome,) = waits.wait(DEADLINE_S)

    assert (outcome.state, outcome.reason, outcome.attempts) == ("discarded", "seconds", 0)
    assert re.fullmatch(r"it was [\d.]+ s old, where discard_after is 0.001 s", outcome.message)


def test_a_first_run_is_one_attempt_though_somebody_else_might_have_begun_it(
    counter: Component, store: EventStore
) -> None:
    counter("mine", store=store).shutdown()
    store.app(counter.name).request("mine", "add/keep", {"by": 1}).result()

    with counter("mine", store=store) as instance:
        instance.flush_update("add")

        assert [one.outcome.attempts for one in instance.requests()] == [1]


def test_each_attempt_of_a_retried_update_is_counted(store: EventStore) -> None:
    component = Component("Retried")

    @component.update("go", retry=Retry(attempts=3, backoff_s=0.001))
    def go(state: Any, props: Any, context: Any) -> dict[str, int]:
        if context.attempt < 3:
            raise OSError("not now")
        return {"attempt": context.attempt}

    with component("mine", store=store) as instance:
        (outcome,) = instance.submit("go").wait(DEADLINE_S)

        assert (outcome.state, outcome.attempts) == ("applied", 3)


def test_a_flush_is_not_discarded_whatever_the_policy(store: EventStore) -> None:
    component = Component("Keeps")
    component.update("go", DiscardPolicy.SECONDS, 0.001, name="go")(
        lambda state, props: Diff().increment("count")
    )

    with component("mine", store=store) as instance:
        for _ in range(3):
            instance.run("go", flush_update=True)

        assert instance.read_state("count") == 3


def test_a_delayed_update_runs_when_it_is_due(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        instance.submit("note", {"what": "in an hour"}, delay_s=3_600)
        due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.2)
        (outcome,) = instance.submit("note", {"what": "later"}, delay_s=0.2).wait(DEADLINE_S)

        assert instance.read_state("log") == ["later"]
        assert outcome.closed_at is not None
        # Delays and the log's times are whole milliseconds.
        assert outcome.closed_at >= due - datetime.timedelta(milliseconds=2)


def test_a_flush_does_not_wait_for_what_is_delayed(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        later = instance.submit("note", {"what": "in an hour"}, delay_s=3_600)
        instance.run("note", {"what": "now"})
        instance.flush_update("note", DEADLINE_S)

        assert instance.read_state("log") == ["now"]
        assert later.updates[0].state == "pending"


@pytest.mark.parametrize(
    "when",
    [
        {"delay_s": -1},
        {"delay_s": float("nan")},
        {"delay_s": 1, "not_before": datetime.datetime.now(datetime.UTC)},
        {"not_before": datetime.datetime(2030, 1, 1)},
    ],
)
def test_a_delay_that_means_nothing_is_refused_before_anything_runs(
    counter: Component, store: EventStore, when: dict[str, Any]
) -> None:
    with counter("mine", store=store) as instance:
        with pytest.raises(ValueError, match="submit: "):
            instance.submit("add", {"by": 1}, **when)

        assert instance.requests() == []


def test_a_failure_that_nobody_waits_for_is_an_error_in_the_log(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    component = Component("Unheard")

    @component.update("go")
    def broken(state: Any, props: Any) -> None:
        raise ValueError("no net")

    with caplog.at_level(logging.WARNING), component("mine", store=store) as instance:
        instance.run("go")
        eventually(lambda: [one.state for one in instance.requests()] == ["failed"])

    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.message.startswith("update go/broken of Unheard/mine failed: ValueError: no net")


def test_a_flush_reports_the_failures_that_it_waited_for(
    counter: Component, store: EventStore, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.update("boom", name="boom")(lambda state, props: state["missing"])
    closed = Runner.closed

    def go_on_and_wait(*args: Any) -> Entry:
        gates[gate].set()  # the flush knows what was pending when it began
        return closed(*args)

    monkeypatch.setattr(Runner, "closed", go_on_and_wait)
    with counter("mine", store=store) as instance:
        instance.run("note", {"what": 1, "gate": gate})
        instance.run("boom")

        with pytest.raises(UpdateFailed, match="boom/boom"):
            instance.flush_update("boom")


def test_a_flush_waits_for_an_update_that_another_process_runs(
    counter: Component,
    open_store: Callable[[], EventStore],
    gate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = Runner.closed

    def go_on_and_wait(*args: Any) -> Entry:
        gates[gate].set()  # the flush knows what was pending when it began
        return closed(*args)

    monkeypatch.setattr(Runner, "closed", go_on_and_wait)
    with (
        counter("mine", store=open_store()) as one,
        counter("mine", store=open_store()) as other,
    ):
        one.run("note", {"what": 1, "gate": gate})
        other.flush_update("note", DEADLINE_S)

        assert other.read_state("log") == [1]


def test_a_service_can_ask_for_an_update_by_name(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        app = store.app("Counter")
        app.request("mine", "keep", {"_serve_result": 8}).result()
        instance.flush_update("add")
        app.request("mine", "note/note", {"what": "hello"}).result()
        instance.flush_update("note")

        assert instance.read_state("count") == 8
        assert instance.read_state("log") == ["hello"]


def test_a_component_that_is_defined_anew_runs_by_its_new_definition(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    def defined(value: int) -> Component:
        component = Component("Redefined")

        @component.update("go")
        def go(state: Any, props: Any) -> Any:
            return {"value": value}

        return component

    def value_of(instance: ComponentInstance) -> Any:
        instance.run("go")
        instance.flush_update("go")
        return instance.read_state("value")

    with defined(1)("mine", store=store) as former:
        assert value_of(former) == 1
        with defined(2)("mine", store=store) as instance:
            assert value_of(instance) == 2
            assert value_of(former) == 2
            former.run("go", flush_update=True)
            assert former.read_state("value") == 2
            assert "Redefined was defined anew" in caplog.text
        assert value_of(former) == 2


def test_each_instance_has_its_updates_run_where_it_asked_for(store: EventStore) -> None:
    component = worker_handlers.component

    with (
        component("one", store=store) as one,
        component("other", store=store, update_task_type="process") as other,
    ):
        app = store.app(component.name)
        app.request("one", "do/count", {"by": 1}).result()
        app.request("other", "do/count", {"by": 1}).result()
        one.flush_update("do")
        other.flush_update("do")

        assert one.read_state("pid") == os.getpid()
        assert other.read_state("pid") != os.getpid()


# --- the end -------------------------------------------------------------------------------------


def test_shutting_down_twice_is_harmless(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        instance.shutdown()
        instance.close()
    instance.shutdown(wait_for_logging_threads=True)

    assert not instance.running


def test_a_call_that_outlives_its_instance_stops_the_updates_of_no_other(
    counter: Component, store: EventStore, gate: str
) -> None:
    async def program(instance: ComponentInstance) -> None:
        props = {"what": 1, "gate": gate}
        call = asyncio.create_task(instance.arun("note", props, flush_update=True))
        while "running" not in {one.state for one in await asyncio.to_thread(instance.requests)}:
            await asyncio.sleep(0)
        instance.shutdown()
        gates[gate].set()
        await asyncio.wait_for(call, DEADLINE_S)

    with counter("other", store=store) as other:
        asyncio.run(program(counter("mine", store=store)))

        other.run("note", {"what": 2})

        eventually(lambda: other.read_state("log") == [2])


def test_an_instance_that_is_shut_down_says_so(counter: Component, store: EventStore) -> None:
    instance = counter("mine", store=store)
    instance.shutdown()

    for call in (
        lambda: instance.run("add", {"by": 1}),
        lambda: instance.read_state("count"),
        lambda: instance.write_state({"count": 1}),
        lambda: instance.get_version(),
        lambda: instance.flush_update("add"),
        lambda: instance.requests(),
        lambda: instance.gen("add"),
    ):
        with pytest.raises(RuntimeError, match="Counter__mine is shut down"):
            call()


def test_flush_on_exit_waits_for_what_was_run(counter: Component, store: EventStore) -> None:
    with counter("mine", flush_on_exit=True, store=store) as instance:
        for number in range(5):
            instance.run("note", {"what": number})

    assert store.app("Counter").get("mine", "log") == list(range(5))


PROGRAM = """
import sys
from processors import Component, Diff

component = Component("Program")

@component.update("note")
def note(state, props):
    return Diff().append("log", props["n"])

@component.update("anote")
async def anote(state, props):
    return Diff().append("log", props["n"])

instance = component("mine", flush_on_exit="flush" in sys.argv, url=sys.argv[1])
for number in range(20):
    instance.run(("note", "anote")[number % 2 if "async" in sys.argv else 0], {"n": number})
if "shut" in sys.argv:
    instance.shutdown()
"""


@pytest.mark.parametrize("words", [[], ["flush"], ["flush", "async"], ["shut"]])
def test_a_program_may_end_without_shutting_down(tmp_path: Path, words: list[str]) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "log"), *words]

    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    with EventStore(tmp_path / "log") as store:
        app = store.app("Program")
        done = app.get("mine", "log", default=[])
        assert done == list(range(len(done))), "in order"
        assert len(done) + len(list(app.pending("mine"))) == 20, "and none is lost"
        if "flush" in words:
            assert len(done) == 20


def test_what_is_left_pending_is_run_by_the_next_who_opens_the_component(
    counter: Component, open_store: Callable[[], EventStore]
) -> None:
    with counter("mine", disable_update_task=True, store=open_store()) as instance:
        for number in range(5):
            instance.submit("note", {"what": number})
    app = open_store().app("Counter")

    with counter("quite another", store=open_store()):
        eventually(lambda: len(app.get("mine", "log", fresh=True)) == 5)

    assert app.get("mine", "log", fresh=True) == list(range(5))


def test_an_instance_that_nobody_holds_is_let_go(counter: Component, store: EventStore) -> None:
    def open_and_shut() -> weakref.ref[ComponentInstance]:
        with counter("mine", store=store) as instance:
            return weakref.ref(instance)

    gone = open_and_shut()
    gc.collect()

    assert gone() is None


def test_instances_have_no_threads_of_their_own(counter: Component, store: EventStore) -> None:
    with ExitStack() as stack:
        stack.enter_context(counter("first", store=store)).run("add", {"by": 1}, flush_update=True)
        before = threading.active_count()
        for number in range(50):
            instance = stack.enter_context(counter(f"i-{number}", store=store))
            instance.run("add", {"by": 1}, flush_update=True)

        bound = 16 + 2  # those of the runner for updates, and for what it does itself
        assert threading.active_count() - before <= bound


def test_nothing_but_the_instance_is_in_the_history(counter: Component, store: EventStore) -> None:
    with counter("mine", store=store) as instance:
        instance.run("add", {"by": 1}, flush_update=True)
        instance.run("add", {"by": 1}, flush_update=True)

    kinds = [(entry.event.kind, entry.event.name) for entry in store.app("Counter").history("mine")]
    assert kinds[:2] == [(Kind.DIFF, "init_state"), (Kind.REQUEST, "add/keep")]
    assert kinds[-2:] == [(Kind.REQUEST, "add/keep"), (Kind.DIFF, "add/keep")]


# --- the stores that instances share -------------------------------------------------------------


def test_instances_of_one_url_share_a_store_and_the_last_one_closes_it(
    counter: Component, tmp_path: Path
) -> None:
    url = tmp_path / "log"
    with counter("a", url=url), counter("b", url=url):
        shared = take(url)
        assert shared.apps() == ["Counter"]
        give_back(shared)
        assert shared.apps() == ["Counter"], "two others use it"

    with pytest.raises(Exception, match="closed"):
        shared.apps()


def test_the_default_store_is_that_of_the_environment(
    counter: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTSTORE_URL", str(tmp_path / "elsewhere"))

    with counter("mine"):
        pass

    with EventStore(tmp_path / "elsewhere") as store:
        assert list(store.app("Counter").instances()) == ["mine"]


@pytest.mark.parametrize("url", ["kafka:/broker:9092", "broker:9092"])
@pytest.mark.parametrize("given", ["argument", "environment"])
def test_a_url_that_lacks_its_slashes_is_refused_and_makes_no_folder(
    counter: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if given == "environment":
        monkeypatch.setenv("EVENTSTORE_URL", url)

    with pytest.raises(ConfigError, match=f"'{url}' could be a"):
        counter("mine", url=url if given == "argument" else None)

    assert list(tmp_path.iterdir()) == []


def test_what_a_memory_log_has_outlives_its_instances(counter: Component) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with counter("mine", url=url) as instance:
        instance.run("add", {"by": 3}, flush_update=True)

    with counter("mine", url=url) as instance:
        assert instance.read_state("count") == 3
