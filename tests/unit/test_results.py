"""What the result of an update changes, with and without `load_state` and `save_state`."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from eventstore import Diff, InvalidDiff, State, UnsupportedValue
from processors.component import Component, Update
from processors.results import LiveStates, changes_of, diff_of, handler_state


def state_of(version: int = 3, **fields: Any) -> State:
    """Return a state as a store would read it."""
    state = State(fields)
    state.app, state.instance, state.version = "Shop", "s-1", version
    return state


@pytest.fixture
def component() -> Component:
    return Component("Shop")


@pytest.fixture
def live_component() -> Component:
    """A component whose lock lives in memory only, and whose total is stored as text."""
    component = Component("Shop")

    @component.save_state
    def save(state: Any) -> dict[str, str]:
        return {"total": str(state["total"]), "log": state["log"]}

    @component.load_state
    def load(saved: Any) -> dict[str, Any]:
        return {"total": int(saved["total"]), "log": saved["log"], "lock": threading.Lock()}

    return component


def update_of(component: Component) -> Update:
    if not component.updates:
        component.update("buy", name="pay")(lambda state, props: None)
    return component.updates["buy/pay"]


def diff(
    component: Component, state: State, result: object, live: LiveStates | None = None
) -> Diff:
    given = handler_state(component, state, live or LiveStates())
    return diff_of(component, update_of(component), state, given, result)


# --- plain states --------------------------------------------------------------------------------


def test_a_dict_sets_its_fields(component: Component) -> None:
    found = diff(component, state_of(a=1), {"a": 2, "b": None})

    assert found == Diff({"a": 2, "b": None})


def test_a_diff_is_taken_as_it_is(component: Component) -> None:
    wanted = Diff().increment("total", 5).append("log", "x")

    assert diff(component, state_of(), wanted) == wanted


def test_a_state_made_from_the_one_that_was_given_is_what_was_done_to_it(
    component: Component,
) -> None:
    state = state_of(total=1)

    assert diff(component, state, state.increment(total=2).update(a=1)) == (
        Diff().increment("total", 2).set("a", 1)
    )
    assert len(diff(component, state, state)) == 0


def test_what_accepted_parts_have_changed_is_not_changed_again(component: Component) -> None:
    state = state_of(total=1).increment(total=10)

    assert diff(component, state, state.update(done=True)) == Diff({"done": True})


@pytest.mark.parametrize("result", [None, {}, Diff()])
def test_nothing_is_no_change(component: Component, result: object) -> None:
    assert len(diff(component, state_of(a=1), result)) == 0


@pytest.mark.parametrize("result", [State({"a": 1}), state_of(4, a=1)])
def test_another_state_is_refused(component: Component, result: State) -> None:
    with pytest.raises(TypeError, match=r"buy/pay .*not made from the one it got"):
        diff(component, state_of(a=1), result)


@pytest.mark.parametrize("result", [1, "a", [("a", 1)], True, b""])
def test_what_is_no_change_names_the_function_and_what_it_returned(
    component: Component, result: object
) -> None:
    with pytest.raises(TypeError, match=r"update buy/pay of component Shop returned ") as raised:
        diff(component, state_of(), result)

    assert type(result).__name__ in str(raised.value)


def test_a_value_that_cannot_be_stored_names_its_path_and_the_function(
    component: Component,
) -> None:
    with pytest.raises(UnsupportedValue, match=r"\['a'\]\[0\]") as raised:
        diff(component, state_of(), {"a": [threading.Lock()]})

    assert raised.value.__notes__ == [
        "of what update buy/pay of component Shop returned; nothing was written"
    ]


def test_a_name_that_no_field_has_is_refused(component: Component) -> None:
    with pytest.raises(InvalidDiff):
        diff(component, state_of(), {"": 1})


# --- states with hooks ---------------------------------------------------------------------------


def test_a_live_state_is_what_load_state_made(live_component: Component) -> None:
    given = handler_state(live_component, state_of(total="7", log=[]), LiveStates())

    assert given["total"] == 7
    assert given["lock"].acquire(blocking=False)
    assert (given.component_name, given.instance_id) == ("Shop", "s-1")
    with pytest.raises(KeyError, match="'x' is not in the state of Shop/s-1; it has: lock, log"):
        given["x"]


@pytest.mark.parametrize("change", ["given['total'] = 1", "del given['total']", "given.clear()"])
def test_a_live_state_is_not_changed_in_place(live_component: Component, change: str) -> None:
    given = handler_state(live_component, state_of(total="7", log=[]), LiveStates())

    with pytest.raises(TypeError, match="a state is not changed in place"):
        exec(change, {"given": given})


def test_what_is_stored_goes_through_save_state(live_component: Component) -> None:
    assert diff(live_component, state_of(total="7", log=[]), {"total": 8}) == Diff({"total": "8"})
    assert diff(live_component, state_of(total="7", log=[]), Diff().increment("total", 3)) == Diff(
        {"total": "10"}
    )


def test_a_value_that_lives_in_memory_can_be_returned(live_component: Component) -> None:
    live = LiveStates()
    state = state_of(total="7", log=[])
    given = live.given(live_component, state)
    newer = threading.Lock()

    found = diff_of(live_component, update_of(live_component), state, given, {"lock": newer})
    live.keep("s-1", 3, given)

    assert len(found) == 0, "nothing that is stored has changed"
    assert live.given(live_component, state)["lock"] is newer


def test_a_live_state_is_kept_until_somebody_else_has_written(live_component: Component) -> None:
    live = LiveStates()
    state = state_of(total="7", log=[])
    given = live.given(live_component, state)
    assert live.given(live_component, state)["lock"] is given["lock"]

    diff_of(live_component, update_of(live_component), state, given, {"total": 8})
    live.keep("s-1", 4, given)

    assert live.given(live_component, state_of(4, total="8", log=[]))["lock"] is given["lock"]
    assert live.given(live_component, state_of(5, total="9", log=[]))["lock"] is not given["lock"]


def test_a_change_in_place_is_not_kept_for_the_next_handler(live_component: Component) -> None:
    live = LiveStates()
    state = state_of(total="7", log=[])

    live.given(live_component, state)["log"].append("by accident")

    assert live.given(live_component, state)["log"] == []


def test_a_change_in_place_that_is_returned_is_a_change(live_component: Component) -> None:
    state = state_of(total="7", log=[])
    given = handler_state(live_component, state, LiveStates())
    given["log"].append("x")

    found = diff_of(live_component, update_of(live_component), state, given, {"log": given["log"]})

    assert found == Diff().append("log", "x") or found == Diff({"log": ["x"]})


def test_live_states_are_bounded(live_component: Component) -> None:
    live = LiveStates(instances_max=2)
    states = {}
    for name in ("a", "b", "c"):
        states[name] = state_of(total="1", log=[])
        states[name].instance = name
    locks = {name: live.given(live_component, state)["lock"] for name, state in states.items()}

    assert live.given(live_component, states["c"])["lock"] is locks["c"]
    assert live.given(live_component, states["a"])["lock"] is not locks["a"]


def test_load_state_that_returns_no_dict_is_named() -> None:
    component = Component("Shop")
    component.load_state(lambda saved: [1])

    with pytest.raises(TypeError, match=r"load_state of component Shop returned \[1\] \(list\)"):
        handler_state(component, state_of(), LiveStates())


def test_save_state_may_return_any_storable_value() -> None:
    component = Component("Shop")
    component.save_state(lambda state: f"{state['total']}!")
    component.load_state(lambda saved: {"total": int((saved or "0!")[:-1])})
    state = state_of()
    given = handler_state(component, state, LiveStates())

    found = changes_of(component, state, given, {"total": 5})

    after = state_of(4, **dict(State().apply(found)))
    assert handler_state(component, after, LiveStates()) == {"total": 5}
