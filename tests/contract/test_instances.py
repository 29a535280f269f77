"""inspect_state, get_instances, clear_instance, copy_instances: what they promise on each log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eventstore import Config, ConfigError, Diff, Event, EventStore, Kind, Verdict
from eventstore.events import SYSTEM_PREFIX, Answer, Guard
from eventstore.processing import Processing
from processors.beginning import begin
from processors.instance import Component
from processors.instances import clear_instance, copy_instances, get_instances, inspect_state
from processors.results import LiveStates

LOGS = ["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)]

OpenStore = Callable[..., EventStore]


@pytest.fixture(params=LOGS)
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[OpenStore]:
    """Opens the log once more at each call, as another process would."""
    views = None
    if request.param == "kafka":
        url, views = str(request.getfixturevalue("kafka_url")), tmp_path / "views"
    else:
        url = str(tmp_path / "log") if request.param == "sqlite" else f"memory://{namespace}"
    with ExitStack() as stack:

        def open_one(namespace: str = namespace) -> EventStore:
            config = Config.load({}, namespace=namespace, partitions=2, view_path=views)
            return stack.enter_context(EventStore(url, config=config))

        yield open_one


@pytest.fixture
def store(open_store: OpenStore) -> EventStore:
    return open_store()


@pytest.fixture
def counter(store: EventStore) -> Component:
    """A component with the instances "a" and "b", which count from 10."""
    counter = Component("Counter")

    @counter.init_state
    def start() -> dict[str, int]:
        return {"count": 10}

    open_instance(counter, store, "b")
    open_instance(counter, store, "a")
    return counter


def open_instance(component: Component, store: EventStore, instance: str) -> None:
    """What opening an instance of the component does to its state."""
    processing = Processing(store.app(component.name))
    begin(component, processing, LiveStates.share(store, component), instance)


# --- inspecting ----------------------------------------------------------------------------------


def test_a_state_is_inspected_as_it_is_stored(store: EventStore, counter: Component) -> None:
    @counter.load_state
    def load(saved: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("inspecting loads nothing")

    state = inspect_state("Counter__a", store)

    assert dict(state) == {"count": 10}
    assert (state.instance_id, state.component_name, state.version) == ("a", "Counter", 1)


def test_an_inspected_state_has_what_any_process_was_told_is_written(
    open_store: OpenStore, store: EventStore, counter: Component
) -> None:
    inspect_state("Counter__a", store)
    open_store().app("Counter").append("a", {"count": 11}).result()

    state = inspect_state("Counter__a", store)

    assert state["count"] == 11


def test_an_inspected_state_stays_readable_when_its_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTSTORE_URL", str(tmp_path))
    with EventStore(tmp_path) as store:
        store.app("Counter").append("a", {"count": 1, "big": "x" * 5_000})

    state = inspect_state("Counter__a")
    with EventStore(tmp_path) as store:
        store.app("Counter").append("a", {"count": 2})

    assert (state["count"], len(state["big"])) == (1, 5_000)


@pytest.mark.parametrize("name", ["Counter", "Counter__", "__a", "", "a b__a", "Counter_a", None])
@pytest.mark.parametrize("function", [inspect_state, clear_instance])
def test_a_name_that_is_none_is_a_value_error(
    store: EventStore, function: Callable[..., object], name: Any
) -> None:
    with pytest.raises(ValueError, match=r"name|component 'a b'"):
        function(name, store)

    assert store.apps() == []


def test_what_is_not_there_is_a_value_error_and_is_not_created(store: EventStore) -> None:
    with pytest.raises(ValueError, match="Counter has no instance 'a'"):
        inspect_state("Counter__a", store)
    cleared = clear_instance("Counter__a", store)
    found = get_instances("Counter", store)

    assert (cleared, found, store.apps()) == (False, [], [])


# --- listing -------------------------------------------------------------------------------------


def test_instances_are_listed_by_their_ids(store: EventStore, counter: Component) -> None:
    store.app("Counter").request("waits", "key/update")
    Processing(store.app("Counter")).send([(f"{SYSTEM_PREFIX}x", Event(Kind.DIFF, "", b"[]"))])

    assert get_instances("Counter", store) == ["a", "b", "waits"]


def test_another_process_s_instances_are_listed_at_once(
    open_store: OpenStore, store: EventStore, counter: Component
) -> None:
    get_instances("Counter", store)
    open_store().app("Counter").append("c", {"count": 1}).result()

    assert get_instances("Counter", store) == ["a", "b", "c"]


def test_a_development_environment_is_a_namespace(
    open_store: OpenStore, store: EventStore, counter: Component, namespace: str
) -> None:
    dev = open_store(f"{namespace}-dev")
    nothing_yet = get_instances("Counter", dev)

    copy_instances("Counter", store, dev)
    dev.app("Counter").append("a", {"count": 99}).result()
    clear_instance("Counter__b", dev)

    assert nothing_yet == []
    assert inspect_state("Counter__a", dev)["count"] == 99
    assert inspect_state("Counter__a", store)["count"] == 10
    assert get_instances("Counter", store) == ["a", "b"]


# --- clearing ------------------------------------------------------------------------------------


def test_a_cleared_instance_is_gone_but_for_its_history(
    store: EventStore, counter: Component
) -> None:
    store.app("Counter").request("a", "key/update")

    cleared, again = clear_instance("Counter__a", store), clear_instance("Counter__a", store)

    assert (cleared, again) == (True, False)
    assert get_instances("Counter", store) == ["b"]
    with pytest.raises(ValueError, match="was cleared"):
        inspect_state("Counter__a", store)
    assert list(store.app("Counter").pending("a")) == []
    assert store.app("Counter").get("a", at=1)["count"] == 10
    kinds = [entry.event.kind for entry in store.app("Counter").history("a")]
    assert kinds == [Kind.DIFF, Kind.REQUEST, Kind.RESET]


def test_a_living_process_cannot_bring_a_cleared_state_back(
    open_store: OpenStore, store: EventStore, counter: Component
) -> None:
    app = store.app("Counter")
    held = app.get("a")
    asked = app.request("a", "key/update").entry()

    clear_instance("Counter__a", open_store())
    chain = Guard(held.version or 0, ("count",), "attempt", 0)
    answer = Answer(asked.sequence, 0, True)
    late = Event(Kind.DIFF, "key/update", b'[["set","count",11]]', chain, answer)
    answered = Processing(app).send([("a", late)])[0]
    written = app.append("a", held.update(count=held["count"] + 1).diff, guard=held)

    assert answered.entry().verdict == Verdict.DUPLICATE
    assert written.verdict() == Verdict.CONFLICT
    assert dict(app.get("a", fresh=True)) == {}
    assert get_instances("Counter", store) == ["b"]


def test_a_cleared_instance_begins_anew_with_init_state(
    store: EventStore, counter: Component
) -> None:
    app = store.app("Counter")
    app.append("a", Diff().increment("count", 5))

    clear_instance("Counter__a", store)
    open_instance(counter, store, "a")
    open_instance(counter, store, "a")

    assert inspect_state("Counter__a", store)["count"] == 10
    assert get_instances("Counter", store) == ["a", "b"]
    assert clear_instance("Counter__a", store) is True


def test_an_instance_that_begins_anew_with_nothing_is_there_again(store: EventStore) -> None:
    component = Component("Empty")
    store.app("Empty").append("a", {"n": 1})

    @component.init_state
    def start() -> dict[str, int]:
        return {}

    clear_instance("Empty__a", store)
    open_instance(component, store, "a")

    assert get_instances("Empty", store) == ["a"]
    assert dict(inspect_state("Empty__a", store)) == {}


def test_of_many_who_clear_at_once_none_fails(
    open_store: OpenStore, store: EventStore, counter: Component
) -> None:
    stores = [store, open_store()]
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(clear_instance("Counter__a", one)))
        for one in stores * 2
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(answers) == 4
    assert any(answers)
    assert get_instances("Counter", store) == ["b"]


@pytest.mark.parametrize("hooks", [False, True])
def test_an_open_instance_goes_on_from_nothing_when_another_process_cleared_it(
    open_store: OpenStore, store: EventStore, hooks: bool
) -> None:
    component = Component("Basket")

    @component.init_state
    def start() -> dict[str, Any]:
        return {"items": ["book"], "owner": "ann"}

    @component.serve("show")
    def show(state: Any, props: Any) -> Any:
        return sorted(state)

    @component.update("add")
    def add(state: Any, props: Any) -> Any:
        return {"items": [*state.get("items", []), props["item"]]}

    if hooks:
        component.load_state(lambda saved: dict(saved))
        component.save_state(lambda state: dict(state))
    with component("a", store=store) as living:
        living.run("add", props={"item": "pen"}, flush_update=True)
        before = living.run("show")

        clear_instance("Basket__a", open_store())
        # On Kafka a read has what this process has seen: here, all that was acknowledged.
        store.app("Basket").get("a", fresh=True, default=None)
        shown = living.run("show")
        living.run("add", props={"item": "cup"}, flush_update=True)

    assert before == ["items", "owner"]
    assert shown == []
    # It begins anew before its next update, and what it had before the clearing is gone.
    assert dict(inspect_state("Basket__a", store)) == {"items": ["book", "cup"], "owner": "ann"}


# --- copying -------------------------------------------------------------------------------------


def test_a_component_s_instances_are_copied_with_what_waits(
    store: EventStore, counter: Component
) -> None:
    store.app("Counter").request("a", "key/update", {"by": 1})

    with EventStore("memory://") as target:
        report = copy_instances("Counter", store, target)

        assert report.compared
        assert get_instances("Counter", target) == ["a", "b"]
        assert inspect_state("Counter__b", target)["count"] == 10
        (waiting,) = target.app("Counter").pending("a")
        assert waiting.request.name == "key/update"
        # It has begun, as far as its source of beginnings is concerned.
        open_instance(counter, target, "a")
        assert target.app("Counter").get("a").version == 1


def test_a_component_is_not_copied_onto_itself(
    open_store: OpenStore, store: EventStore, counter: Component
) -> None:
    with pytest.raises(ConfigError, match="is the source itself"):
        copy_instances("Counter", store, open_store())
