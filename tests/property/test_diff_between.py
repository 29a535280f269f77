"""diff_between(old, new) turns old into new, exactly, and says no more than it must.

Goal: no pair of states, of any values that can be stored, for which the diff is wrong, wasteful or
not writable. Method: hypothesis makes a state and another one by small edits of it (two states made
apart have nothing in common, and comparing them shows little), and everything is compared with
its types: True, 1 and 1.0 are three values.
"""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from eventstore import values
from eventstore.diff import Diff, apply, diff_between
from eventstore.events import Event, Kind, Verdict
from tests.property.dict_rows import DictRows

KEYS = st.sampled_from(["a", "b", "c", "$tag", "", "ключ"])
FIELDS = st.sampled_from(["a", "b", "c", "$tag", "поле"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.integers(2**63 - 2, 2**64 + 2),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf]),
    st.text("ab\x00é", max_size=5),
    st.decimals(allow_nan=False, places=2),
    st.sampled_from([Decimal("1.0"), Decimal("1.00"), Decimal("NaN")]),
    st.binary(max_size=3),
    st.dates(),
    st.just(datetime.timedelta(1)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(st.integers(0, 3), inner, max_size=2),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(st.integers(0, 5), max_size=3),
    ),
    max_leaves=12,
)
STATES = st.dictionaries(FIELDS, VALUES, max_size=4)


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """Return the value with a few changes somewhere inside."""
    if draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    if type(value) is dict:
        result = dict(value)
        for key in draw(st.lists(st.sampled_from(list(value)), max_size=2)) if value else ():
            if draw(st.booleans()):
                result.pop(key, None)
            else:
                result[key] = draw(edited(value[key]))
        if draw(st.booleans()):
            result[draw(FIELDS)] = draw(VALUES)
        return result
    if type(value) is list:
        start = draw(st.integers(0, len(value)))
        end = draw(st.integers(start, len(value)))
        middle = [draw(edited(item)) for item in value[start:end]]
        return [*value[:start], *middle, *draw(st.lists(VALUES, max_size=2)), *value[end:]]
    if type(value) is str:
        return value + draw(st.text("ab", max_size=3))
    return value


@st.composite
def state_pairs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    old = draw(STATES)
    new = draw(edited(old))
    return (old, new) if type(new) is dict and _is_state(new) else (old, draw(STATES))


def _is_state(value: dict[Any, Any]) -> bool:
    return all(type(name) is str and name for name in value)


def same(left: Any, right: Any) -> bool:
    """Compare values with their types, all the way down; NaN equals NaN, -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        # By encoded keys, because 1 and True are one key for Python.
        one = {values.encode(key): item for key, item in left.items()}
        two = {values.encode(key): item for key, item in right.items()}
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float | Decimal):
        return str(left) == str(right)
    return bool(left == right)


@given(state_pairs())
def test_a_state_and_the_difference_to_another_make_the_other(
    states: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    old, new = states

    assert same(apply(old, diff_between(old, new)), new)


@given(state_pairs())
def test_the_difference_does_the_same_in_the_fold(
    states: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    old, new = states
    rows = DictRows()
    rows.take(Event(Kind.DIFF, body=Diff(old).encode()))

    outcome = rows.take(Event(Kind.DIFF, body=diff_between(old, new).encode()))

    assert outcome.verdict == Verdict.ACCEPTED, outcome.reason
    found = {name: values.from_json(value) for name, value in rows.state().items()}
    assert same(found, new)


@given(STATES)
def test_a_state_does_not_differ_from_its_copy(state: dict[str, Any]) -> None:
    copy = {name: values.from_json(values.to_json(value)) for name, value in state.items()}

    assert len(diff_between(state, copy)) == 0


@given(state_pairs())
def test_the_difference_is_never_larger_than_setting_what_changed(
    states: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    old, new = states
    whole = Diff(
        {name: value for name, value in new.items() if name not in old or value is not old[name]}
    )
    for name in old.keys() - new.keys():
        whole = whole.delete(name)

    assert len(diff_between(old, new).encode()) <= len(whole.encode())


@given(st.lists(VALUES, min_size=1, max_size=5), VALUES)
def test_an_item_added_at_the_end_is_one_append(items: list[Any], item: Any) -> None:
    diff = diff_between({"list": items}, {"list": [*items, item]})

    assert [operation.code for operation in diff] in (["append"], ["set"])
    assert len(diff.encode()) <= len(Diff().append("list", item).encode())


@given(st.integers(0, 199), st.sampled_from(["title", "price"]), st.integers(0, 10**6))
def test_one_changed_leaf_of_a_big_document_is_a_small_diff(
    line: int, key: str, value: int
) -> None:
    old = {"order": {"lines": [{"title": f"book {n}", "price": n} for n in range(200)]}}
    new = orjson.loads(orjson.dumps(old))
    new["order"]["lines"][line][key] = value

    assert len(diff_between(old, new).encode()) < 100
