"""Declaring a component: every mistake is told where it is made, and names the function."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from eventstore import Discard
from processors.component import Component, changed, find_component
from processors.policy import DiscardPolicy, Retry
from processors.properties import SERVE_RESULT, Params, Properties


@pytest.fixture
def component() -> Component:
    return Component("Recommender", {"depth": 3})


def plain(state: Any, props: Any) -> dict[str, int]:
    return {"plain": 1}


def generating(state: Any, props: Any) -> Iterator[int]:
    yield 1


async def waiting(state: Any, props: Any) -> dict[str, int]:
    return {"waiting": 1}


async def streaming(state: Any, props: Any) -> AsyncIterator[int]:
    yield 1


def with_context(state: Any, props: Any, context: Any) -> dict[str, int]:
    return {"context": 1}


# --- the component itself ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a__b", "a.b", "é", "x" * 121, None])
def test_a_name_that_no_app_can_have_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="a name has 1 to 120 letters"):
        Component(name)


@pytest.mark.parametrize("cache_ttl", [-1, None, float("inf")])
def test_a_cache_time_that_is_no_time_is_refused(cache_ttl: Any) -> None:
    with pytest.raises(ValueError, match="cache_ttl"):
        Component("C", {}, cache_ttl)


def test_the_third_argument_is_the_cache_time_and_zero_means_no_cache() -> None:
    assert Component("C").cache_ttl == 24 * 60 * 60
    assert Component("C", {}, 0).cache_ttl == 0


def test_params_are_fixed_and_say_what_there_is(component: Component) -> None:
    assert component.params["depth"] == 3
    assert component.params.get("width", 1) == 1
    with pytest.raises(KeyError, match=r"'width' is not among the component's params.*depth"):
        component.params["width"]
    with pytest.raises(TypeError, match="the params of a component are fixed"):
        component.params["depth"] = 4
    with pytest.raises(TypeError, match="the params of a component are fixed"):
        component.params.update(depth=4)
    assert component.params == {"depth": 3}


def test_params_do_not_follow_the_dict_that_they_came_from() -> None:
    given = {"depth": 3}
    component = Component("C", given)

    given["depth"] = 4

    assert component.params["depth"] == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_params_and_props_can_be_copied(copied: Callable[[Any], Any]) -> None:
    props = Properties({"a": [1]})
    props.served(None)

    assert copied(Params({"a": 1})) == {"a": 1}
    assert copied(props) == {"a": [1]}
    assert copied(props).was_served
    assert not copied(Properties()).was_served


# --- serve ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "is_async", "is_generator"),
    [
        (plain, False, False),
        (generating, False, True),
        (waiting, True, False),
        (streaming, True, True),
    ],
)
def test_serve_takes_every_kind_of_function(
    component: Component, function: Any, is_async: bool, is_generator: bool
) -> None:
    returned = component.serve(["a", "b"])(function)

    assert returned is function
    assert list(component.serves) == ["a", "b"]
    assert component.serves["b"].is_async == is_async
    assert component.serves["b"].is_generator == is_generator


def test_a_key_has_one_serve(component: Component) -> None:
    component.serve("a")(plain)

    with pytest.raises(
        ValueError, match=r"serve waiting: .* answers 'a' with plain already; .* in a notebook"
    ):
        component.serve(["b", "a"])(waiting)

    assert list(component.serves) == ["a"], "a refused decoration declares nothing"


@pytest.mark.parametrize(
    "function",
    [
        lambda state: None,
        lambda props, state: None,
        lambda state, properties: None,
        lambda state, props, context: None,
        lambda state, props, **more: None,
        lambda *, state, props: None,
    ],
)
def test_serve_has_exactly_the_parameters_state_and_props(
    component: Component, function: Any
) -> None:
    with pytest.raises(ValueError, match=r"serve <lambda>: .* parameters \(state, props\)"):
        component.serve("a")(function)


@pytest.mark.parametrize("what", ["serve", "update"])
@pytest.mark.parametrize("keys", ["", "a::b", [], ["a", ""]])
def test_a_key_that_cannot_be_one_is_refused(component: Component, what: str, keys: Any) -> None:
    with pytest.raises(ValueError, match=r"key"):
        getattr(component, what)(keys)


@pytest.mark.parametrize("what", ["serve", "update"])
@pytest.mark.parametrize("keys", [7, [7], {"a": 1}])
def test_keys_are_texts(component: Component, what: str, keys: Any) -> None:
    with pytest.raises(TypeError, match=rf"{what}: keys="):
        getattr(component, what)(keys)


@pytest.mark.parametrize("what", ["serve", "update"])
def test_a_decorator_without_its_key_says_what_is_missing(component: Component, what: str) -> None:
    with pytest.raises(TypeError, match=rf"{what} plain: name its flow: @Recommender\.{what}"):
        getattr(component, what)(plain)


@pytest.mark.parametrize("what", ["serve", "update"])
def test_only_functions_can_be_declared(component: Component, what: str) -> None:
    with pytest.raises(TypeError, match="is not a function"):
        getattr(component, what)("a")(7)


# --- update --------------------------------------------------------------------------------------


def test_an_update_is_known_by_key_and_function(component: Component) -> None:
    component.update(["a", "b"])(plain)
    component.update("a")(with_context)
    component.update("b", name="renamed")(waiting)

    assert list(component.updates) == ["a/plain", "b/plain", "a/with_context", "b/renamed"]
    assert [update.name for update in component.updates_of("a")] == ["a/plain", "a/with_context"]
    assert component.updates["a/with_context"].takes_context
    assert not component.updates["a/plain"].takes_context
    assert component.updates["b/renamed"].is_async
    assert component.updates["b/renamed"].function_name == "renamed"


def test_two_functions_of_one_name_on_one_key_are_refused_not_replaced(
    component: Component,
) -> None:
    component.update("a")(plain)

    with pytest.raises(ValueError, match=r"has an update 'a/plain' already; .* in a notebook"):
        component.update(["b", "a"])(plain)

    assert list(component.updates) == ["a/plain"]


def test_a_function_may_have_two_policies_on_two_keys(component: Component) -> None:
    component.update("a", DiscardPolicy.SECONDS, 2)(plain)
    component.update("b", DiscardPolicy.NUM_NEW_UPDATES, 5)(plain)
    component.update("c")(plain)

    found = [component.updates[f"{key}/plain"].discard for key in "abc"]

    assert found == [Discard(2, 2_000), Discard(1, 5), None]


def test_functions_need_not_stand_at_the_top_level_of_a_module(component: Component) -> None:
    def inner(state: Any, props: Any) -> dict[str, int]:
        return {}

    component.update("a")(inner)
    component.update("b", name="half")(functools.partial(inner))

    assert list(component.updates) == ["a/inner", "b/half"]


def test_an_object_that_can_be_called_is_a_function(component: Component) -> None:
    class Model:
        async def __call__(self, state: Any, props: Any) -> dict[str, int]:
            return {}

    component.update("a")(Model())

    assert component.updates["a/Model"].is_async


@pytest.mark.parametrize(
    "function",
    [
        lambda state: None,
        lambda state, props, extra: None,
        lambda state, props, context, more: None,
        lambda state, props, *, context: None,
    ],
)
def test_an_update_has_state_and_props_and_perhaps_context(
    component: Component, function: Any
) -> None:
    with pytest.raises(ValueError, match=r"update <lambda>: .*\(state, props\) or \(state, props"):
        component.update("a")(function)


@pytest.mark.parametrize("function", [generating, streaming])
def test_an_update_that_yields_is_refused(component: Component, function: Any) -> None:
    with pytest.raises(ValueError, match="it is a generator"):
        component.update("a")(function)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"isolation": "none"}, ValueError, "snapshot"),
        ({"worker": "fork"}, ValueError, "thread"),
        ({"timeout_s": 0}, ValueError, "more than 0"),
        ({"timeout_s": "1"}, TypeError, "number of seconds"),
        ({"retry": 3}, TypeError, r"Retry\(attempts"),
        ({"on": "purchases"}, TypeError, r"changed\('field'"),
        ({"name": "a/b"}, ValueError, "without '/'"),
        ({"name": ""}, ValueError, "without '/'"),
        ({"discard_policy": DiscardPolicy.SECONDS}, ValueError, "discard_after"),
    ],
)
def test_a_wrong_option_names_the_function(
    component: Component, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        component.update("a", **options)(plain)

    assert "update plain" in str(raised.value)
    assert component.updates == {}


def test_an_async_update_cannot_run_in_a_process(component: Component) -> None:
    with pytest.raises(ValueError, match="for sync functions"):
        component.update("a", worker="process")(waiting)


def test_options_are_kept_with_the_update(component: Component) -> None:
    retry = Retry(attempts=3)

    component.update("a", isolation="serializable", retry=retry, timeout_s=2, worker="process")(
        plain
    )

    update = component.updates["a/plain"]
    assert (update.isolation, update.retry, update.timeout_s) == ("serializable", retry, 2)
    assert (update.worker, update.trigger, update.key) == ("process", None, "a")


# --- triggers ------------------------------------------------------------------------------------


def test_a_trigger_is_known_by_its_function(component: Component) -> None:
    component.update(on=changed("purchases", "wishes"))(plain)

    update = component.updates["plain"]
    assert update.key is None
    assert update.trigger is not None
    assert update.trigger.fields == ("purchases", "wishes")
    assert update.trigger.trigger_id == "Recommender.plain"
    assert component.triggers == [update]
    assert component.keys == []


def test_one_function_can_be_an_update_of_flows_and_of_changes(component: Component) -> None:
    component.update("a", on=changed("x", trigger_id="mine"))(plain)

    assert list(component.updates) == ["a/plain", "plain"]
    assert component.updates["a/plain"].trigger is None
    assert [update.name for update in component.updates_of("a")] == ["a/plain"]


def test_a_trigger_cannot_watch_an_app_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"app='a b': no app can have this name"):
        changed("paid", app="a b")


def test_two_triggers_cannot_share_an_id(component: Component) -> None:
    component.update(on=changed("x", trigger_id="mine"))(plain)

    with pytest.raises(ValueError, match="trigger id 'mine' is that of plain already"):
        component.update(on=changed("y", trigger_id="mine"))(waiting)

    assert list(component.updates) == ["plain"]


def test_an_update_needs_a_key_or_a_change(component: Component) -> None:
    with pytest.raises(TypeError, match="keys=None"):
        component.update()


@pytest.mark.parametrize(
    ("fields", "options", "error"),
    [
        ((), {}, ValueError),
        ((7,), {}, TypeError),
        (("",), {}, TypeError),
        (("x",), {"key": "u-1"}, TypeError),
        (("x",), {"start": "yesterday"}, ValueError),
        (("x",), {"app": ""}, TypeError),
        (("x",), {"trigger_id": 7}, TypeError),
    ],
)
def test_a_change_that_nobody_could_watch_is_refused(
    fields: Any, options: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"changed\(\)"):
        changed(*fields, **options)


# --- finding -------------------------------------------------------------------------------------


def test_an_update_is_found_by_its_name_or_by_a_function_name_that_is_unique(
    component: Component,
) -> None:
    component.update(["a", "b"])(plain)
    component.update("a")(waiting)

    assert component.find("a/plain") is component.updates["a/plain"]
    assert component.find("waiting") is component.updates["a/waiting"]
    assert component.find("plain") is None, "there are two"
    assert component.find("other") is None


def test_the_name_of_a_trigger_goes_before_the_function_of_a_flow(component: Component) -> None:
    component.update("a", on=changed("x"))(plain)

    assert component.find("plain") is component.updates["plain"]


at_the_top = Component("AtTheTop")


def test_a_component_travels_to_another_process_by_where_it_is_defined() -> None:
    found = pickle.loads(pickle.dumps(at_the_top))

    assert found is at_the_top
    assert find_component(__name__, "AtTheTop") is at_the_top


def test_a_component_that_its_module_does_not_define_is_named() -> None:
    with pytest.raises(LookupError, match="does not define the component Nowhere"):
        find_component(__name__, "Nowhere")


@pytest.mark.parametrize("what", ["init_state", "save_state", "load_state"])
def test_a_component_has_one_of_each_hook(component: Component, what: str) -> None:
    def first(saved: dict[str, Any]) -> dict[str, Any]:
        return saved

    getattr(component, what)(first)

    with pytest.raises(ValueError, match=rf"{what} waiting: .* has first already .* in a notebook"):
        getattr(component, what)(waiting)


@pytest.mark.parametrize(
    ("what", "function", "why"),
    [
        ("save_state", plain, r"called with one argument, \(state\), and takes \(state, props\)"),
        ("load_state", lambda: {}, r"called with one argument, \(saved\), and takes \(\)"),
        ("load_state", lambda *, saved: saved, "called with one argument"),
        ("save_state", waiting, "must be a plain function"),
        ("load_state", streaming, "must be a plain function"),
        ("init_state", streaming, "it yields; return a dict"),
        ("init_state", lambda user, /: {}, "its parameter 'user' is given by name"),
    ],
)
def test_a_hook_that_cannot_be_called_is_refused(
    component: Component, what: str, function: Any, why: str
) -> None:
    with pytest.raises(ValueError, match=rf"{what} \S+: .*{why}"):
        getattr(component, what)(function)


def test_a_hook_may_be_a_builtin_that_does_not_say_what_it_takes(component: Component) -> None:
    component.load_state(vars)

    assert component.load_function is vars


def test_a_hook_may_have_further_parameters_with_defaults(component: Component) -> None:
    def load(saved: dict[str, Any], path: str = "model.bin") -> dict[str, Any]:
        return saved

    component.load_state(load)
    component.init_state(lambda *args, **params: params)

    assert component.load_function is load


# --- props ---------------------------------------------------------------------------------------


def test_props_go_through_a_request_and_back_with_the_result_of_serve() -> None:
    props = Properties({"user": "u-1", "pair": (1, 2)})
    props.served([1, {"a": b"x"}])

    found = Properties.decode(props.encode())

    assert found == {"user": "u-1", "pair": (1, 2)}
    assert found.serve_result == [1, {"a": b"x"}]


def test_a_flow_without_serve_sends_no_result() -> None:
    found = Properties.decode(Properties({"a": 1}).encode())

    assert not found.was_served
    assert found.serve_result is None


def test_a_missing_prop_says_what_there_is() -> None:
    with pytest.raises(KeyError, match="'by' is not among the props; there are: to"):
        Properties({"to": 1})["by"]


def test_the_name_of_the_result_is_kept() -> None:
    with pytest.raises(ValueError, match=SERVE_RESULT):
        Properties({SERVE_RESULT: 1})
    props = Properties()
    props[SERVE_RESULT] = 1
    with pytest.raises(ValueError, match=SERVE_RESULT):
        props.encode()


@pytest.mark.parametrize("props", [7, "text", [1], {1: 2}])
def test_props_are_a_dict_of_names(props: Any) -> None:
    with pytest.raises(TypeError, match="props"):
        Properties(props)
