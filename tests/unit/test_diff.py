"""Diffs: what each operation does, what does not fit, and what is refused before it is written."""

from __future__ import annotations

import decimal
import math
import sys
from decimal import Decimal
from typing import Any

import orjson
import pytest

from eventstore.diff import (
    ABSENT,
    DEPTH_MAX,
    Diff,
    Misfit,
    Shape,
    add_numbers,
    apply,
    apply_operation,
    check_depth,
    diff_between,
    encode_fields,
    shape_of,
)
from eventstore.errors import InvalidDiff, UnsupportedValue

# --- what operations do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "diff", "after"),
    [
        ({"a": 1}, Diff().set("a", 2), {"a": 2}),
        ({}, Diff().set("a", None), {"a": None}),
        ({"a": 1, "b": 2}, Diff().delete("a"), {"b": 2}),
        ({"b": 2}, Diff().delete("a"), {"b": 2}),
        ({"a": [1]}, Diff().append("a", [2]), {"a": [1, [2]]}),
        ({"a": [1]}, Diff().extend("a", [2, 3]), {"a": [1, 2, 3]}),
        ({"a": [1]}, Diff().extend("a", (2,)), {"a": [1, 2]}),
        ({"a": [1, 3]}, Diff().insert("a", 1, 2), {"a": [1, 2, 3]}),
        ({"a": [1]}, Diff().insert("a", 1, 2), {"a": [1, 2]}),
        ({"a": [1, 2]}, Diff().remove("a", 0), {"a": [2]}),
        ({"a": 1}, Diff().increment("a"), {"a": 2}),
        ({"a": 1}, Diff().increment("a", -3), {"a": -2}),
        ({"a": {"x": 1, "y": 1}}, Diff().merge_into("a", {"y": 2}), {"a": {"x": 1, "y": 2}}),
        ({"a": "ab"}, Diff().append_text("a", "c"), {"a": "abc"}),
    ],
)
def test_an_operation_changes_its_field(
    before: dict[str, object], diff: Diff, after: dict[str, object]
) -> None:
    assert apply(before, diff) == after


@pytest.mark.parametrize(
    ("diff", "after"),
    [
        (Diff().set(("a", "x"), 9), {"x": 9, "l": [1, {"k": 2}], "t": "t"}),
        (Diff().set(("a", "l", 0), 9), {"x": 1, "l": [9, {"k": 2}], "t": "t"}),
        (Diff().set(("a", "l", 1, "k"), 9), {"x": 1, "l": [1, {"k": 9}], "t": "t"}),
        (Diff().set(("a", "new"), 9), {"x": 1, "l": [1, {"k": 2}], "t": "t", "new": 9}),
        (Diff().delete(("a", "x")), {"l": [1, {"k": 2}], "t": "t"}),
        (Diff().delete(("a", "none")), {"x": 1, "l": [1, {"k": 2}], "t": "t"}),
        (Diff().delete(("a", "l", 0)), {"x": 1, "l": [{"k": 2}], "t": "t"}),
        (Diff().append(("a", "l"), 3), {"x": 1, "l": [1, {"k": 2}, 3], "t": "t"}),
        (Diff().extend(("a", "l"), [3]), {"x": 1, "l": [1, {"k": 2}, 3], "t": "t"}),
        (Diff().insert(("a", "l"), 0, 3), {"x": 1, "l": [3, 1, {"k": 2}], "t": "t"}),
        (Diff().remove(("a", "l"), 1), {"x": 1, "l": [1], "t": "t"}),
        (Diff().increment(("a", "l", 1, "k"), 5), {"x": 1, "l": [1, {"k": 7}], "t": "t"}),
        (
            Diff().merge_into(("a", "l", 1), {"j": 1}),
            {"x": 1, "l": [1, {"k": 2, "j": 1}], "t": "t"},
        ),
        (Diff().append_text(("a", "t"), "!"), {"x": 1, "l": [1, {"k": 2}], "t": "t!"}),
    ],
)
def test_an_operation_changes_what_is_at_the_end_of_its_path(diff: Diff, after: object) -> None:
    before = {"a": {"x": 1, "l": [1, {"k": 2}], "t": "t"}, "b": 0}

    assert apply(before, diff) == {"a": after, "b": 0}


@pytest.mark.parametrize("path", ["a", ("box", "a")])
@pytest.mark.parametrize(
    ("code", "argument", "made"),
    [
        ("append", 1, [1]),
        ("extend", [1, 2], [1, 2]),
        ("increment", 5, 5),
        ("merge_into", {"k": 1}, {"k": 1}),
        ("append_text", "t", "t"),
    ],
)
def test_an_operation_that_adds_creates_what_is_absent(
    path: str | tuple[str, ...], code: str, argument: object, made: object
) -> None:
    diff = getattr(Diff(), code)(path, argument)

    after = apply({"box": {}}, diff)

    assert after == ({"box": {}, "a": made} if path == "a" else {"box": {"a": made}})


def test_a_diff_leaves_what_it_was_applied_to_as_it_was() -> None:
    before = {"a": [1], "b": {"x": 1}}

    after = apply(before, Diff().append("a", 2).set(("b", "x"), 2))

    assert after == {"a": [1, 2], "b": {"x": 2}}
    assert before == {"a": [1], "b": {"x": 1}}


def test_fields_that_a_diff_does_not_touch_are_the_same_objects() -> None:
    before = {"a": [1], "b": [2]}

    assert apply(before, Diff().append("a", 2))["b"] is before["b"]


def test_later_operations_of_a_diff_see_what_earlier_ones_made() -> None:
    diff = Diff().set("a", []).append("a", {}).set(("a", 0, "k"), 1).increment(("a", 0, "k"))

    assert apply({}, diff) == {"a": [{"k": 2}]}
    assert diff.to_json()[0] == ["set", "a", []]


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "diff", "reason"),
    [
        ({"a": 1}, Diff().append("a", 1), "append 'a': it is a number, not a list"),
        ({"a": {}}, Diff().extend("a", [1]), "extend 'a': it is an object, not a list"),
        ({}, Diff().insert("a", 0, 1), "insert 'a': it is nothing, not a list"),
        ({}, Diff().remove("a", 0), "remove 'a': it is nothing, not a list"),
        ({"a": [1]}, Diff().insert("a", 2, 1), "insert 'a': index 2, the list has 1 items"),
        ({"a": [1]}, Diff().remove("a", 1), "remove 'a': index 1, the list has 1 items"),
        ({"a": "1"}, Diff().increment("a"), "increment 'a': it is text, not a number"),
        ({"a": None}, Diff().increment("a"), "increment 'a': it is null, not a number"),
        ({"a": True}, Diff().increment("a"), "increment 'a': it is a boolean, not a number"),
        ({"a": [1]}, Diff().merge_into("a", {}), "merge_into 'a': it is a list, not an object"),
        ({"a": b"x"}, Diff().append_text("a", "t"), "append_text 'a': it is a tagged value"),
        ({"a": (1,)}, Diff().append("a", 2), "append 'a': it is a tagged value, not a list"),
        ({}, Diff().set(("a", "k"), 1), "'a' is nothing, not an object"),
        ({"a": [1]}, Diff().set(("a", "k"), 1), "'a'.* is a list, not an object"),
        ({"a": {}}, Diff().set(("a", 0), 1), "is an object, not a list"),
        ({"a": {}}, Diff().set(("a", "b", "c"), 1), r"\('a', 'b'\) is nothing, not an object"),
        ({"a": [1]}, Diff().set(("a", 1), 1), r"\('a', 1\): the list has 1 items"),
        ({"a": [1]}, Diff().delete(("a", 1)), r"\('a', 1\): the list has 1 items"),
        ({"a": [[1]]}, Diff().set(("a", 3, 0), 1), "the list has 1 items"),
        ({"a": 1.5}, Diff().increment("a", Decimal(1)), "a float and a Decimal"),
        ({"a": 10**400}, Diff().increment("a", 0.5), "too large for a float"),
    ],
)
def test_an_operation_that_does_not_fit_is_refused_with_its_reason(
    before: dict[str, object], diff: Diff, reason: str
) -> None:
    with pytest.raises(InvalidDiff, match=reason):
        apply(before, diff)


@pytest.mark.parametrize(
    "operation",
    [
        ["append", ["a", "x"], 1],
        ["remove", ["a", "l"], 5],
        ["insert", ["a", "l"], 5, 1],
        ["set", ["a", "l", 5], 1],
        ["merge_into", ["a", "l"], {"k": 1}],
        ["increment", ["a", "t"], 1],
    ],
)
def test_a_refused_operation_changes_nothing_inside_the_value_that_it_was_lent(
    operation: list[Any],
) -> None:
    value = {"x": 1, "l": [1, 2], "t": "t"}
    before = orjson.dumps(value)

    with pytest.raises(Misfit):
        apply_operation(value, operation)

    assert orjson.dumps(value) == before


def test_a_diff_that_fails_at_its_end_changes_nothing() -> None:
    before = {"a": [1], "b": 1}

    with pytest.raises(InvalidDiff):
        apply(before, Diff().append("a", 2).append("b", 1))

    assert before == {"a": [1], "b": 1}


def test_a_value_does_not_share_what_its_operation_holds() -> None:
    operation = ["append", "a", {"k": []}]
    value = apply_operation([], operation)

    value[0]["k"].append(1)

    assert operation == ["append", "a", {"k": []}]


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "by", "total"),
    [
        (2**63 - 1, 1, 2**63),
        (2**64 - 1, 1, 2**64),
        (2**64, -1, 2**64 - 1),
        (-(2**63), -1, -(2**63) - 1),
        (10**300, 10**300, 2 * 10**300),
        (10**1000, -(10**1000), 0),
        (1, 0.5, 1.5),
        (0.1, 0.2, 0.1 + 0.2),
        (Decimal("0.10"), Decimal("0.20"), Decimal("0.30")),
        (Decimal("1.5"), 2, Decimal("3.5")),
        (2, Decimal("1.50"), Decimal("3.50")),
        (10**30, Decimal("0.5"), Decimal("1" + "0" * 30 + ".5")),
        (math.inf, 1, math.inf),
        (1.7e308, 1.7e308, math.inf),
    ],
)
def test_numbers_add_up_exactly_and_keep_their_type(number: Any, by: Any, total: Any) -> None:
    after = apply({"n": number}, Diff().increment("n", by))["n"]

    assert (type(after), str(after)) == (type(total), str(total))


@pytest.mark.parametrize(("number", "by"), [(math.nan, 1), (math.inf, -math.inf)])
def test_a_sum_that_is_no_number_is_nan(number: float, by: float) -> None:
    after = apply({"n": number}, Diff().increment("n", by))["n"]

    assert isinstance(after, float)
    assert math.isnan(after)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"$decimal": "abc"}, 1),
        ({"$decimal": "sNaN"}, 1),
        ({"$decimal": "Infinity"}, {"$decimal": "-Infinity"}),
        ({"$decimal": "9E+9999"}, {"$decimal": "9E+9999"}),
        ({"$decimal": 1}, 1),
        ({"$int": "1.5"}, 1),
        ({"$int": "1e5"}, 1),
        ({"$int": "--5"}, 1),
        ({"$int": ""}, 1),
        ({"$int": "9" * 4_001}, 1),
        ({"$float": "much"}, 1),
    ],
)
def test_what_is_tagged_as_a_number_and_is_none_does_not_fit(left: Any, right: Any) -> None:
    with pytest.raises(Misfit, match="increment: "):
        add_numbers(left, right)


def test_a_sum_does_not_grow_without_bound() -> None:
    with pytest.raises(Misfit, match="a sum of more than"):
        add_numbers({"$int": "9" * 4_000}, {"$int": "9" * 4_000})


def test_sums_do_not_depend_on_the_decimal_context_of_the_thread() -> None:
    with decimal.localcontext() as context:
        context.prec, context.capitals, context.rounding = 2, 0, decimal.ROUND_UP
        for signal in context.traps:
            context.traps[signal] = False

        assert add_numbers({"$decimal": "1E+10"}, {"$decimal": "1E+10"}) == {"$decimal": "2E+10"}
        assert add_numbers({"$decimal": "123.456"}, 1) == {"$decimal": "124.456"}
        with pytest.raises(Misfit):
            add_numbers({"$decimal": "abc"}, 1)


def test_sums_do_not_depend_on_how_many_digits_the_process_lets_int_read() -> None:
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)
        total = add_numbers({"$int": "1" + "0" * 1_000}, 1)
    finally:
        sys.set_int_max_str_digits(limit)

    assert total == {"$int": "1" + "0" * 999 + "1"}


# --- what is refused before it is written --------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("", "*", None, 1, ["a"], (), ("",), ("*", "a"), (1,)),
        *(("a", step) for step in (-1, True, 1.5, None, "$int", "\ud800")),
        *("\ud800", ("a", *["b"] * 64)),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path: Any) -> None:
    with pytest.raises(InvalidDiff, match="path "):
        Diff().delete(path)


def test_a_path_of_64_steps_is_taken() -> None:
    assert len(Diff().delete(("a",) + ("b",) * 63)) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: Diff().extend("a", "text"),
        lambda: Diff().extend("a", b"bytes"),
        lambda: Diff().extend("a", {"k": 1}),  # type: ignore[arg-type]
        lambda: Diff().insert("a", -1, 0),
        lambda: Diff().insert("a", True, 0),
        lambda: Diff().insert("a", "0", 0),  # type: ignore[arg-type]
        lambda: Diff().remove("a", -1),
        lambda: Diff().increment("a", "1"),
        lambda: Diff().increment("a", True),
        lambda: Diff().increment("a", None),
        lambda: Diff().merge_into("a", [("k", 1)]),  # type: ignore[arg-type]
        lambda: Diff().merge_into("a", {1: 2}),  # type: ignore[dict-item]
        lambda: Diff().merge_into("a", {"$int": "1"}),
        lambda: Diff().append_text("a", 1),  # type: ignore[arg-type]
        lambda: Diff({"": 1}),
        lambda: Diff({"*": 1}),
        lambda: Diff({1: 1}),  # type: ignore[dict-item]
    ],
)
def test_an_argument_that_fits_no_state_is_refused(build: Any) -> None:
    with pytest.raises(InvalidDiff):
        build()


def test_a_value_that_cannot_be_stored_is_refused_with_its_path() -> None:
    with pytest.raises(UnsupportedValue) as caught:
        Diff().set(("order", "lines"), [1, {"price": object()}])

    assert caught.value.path == ("order", "lines", 1, "price")


@pytest.mark.parametrize(
    "operation",
    [
        None,
        "set",
        [],
        ["set"],
        ["set", "a"],
        ["set", "a", 1, 2],
        ["explode", "a"],
        [1, "a", 2],
        ["set", ["a"], 1],
        ["set", [], 1],
        ["set", None, 1],
        ["set", "*", 1],
        ["delete", "a", 1],
        ["append", "a"],
        ["extend", "a", "text"],
        ["insert", "a", -1, 1],
        ["insert", "a", "0", 1],
        ["remove", "a", 1.0],
        ["remove", "a", {"$int": "5"}],
        ["increment", "a", "1"],
        ["merge_into", "a", []],
        ["merge_into", "a", {"$decimal": "1"}],
        ["merge_into", "a", {"$a": 1, "b": 2}],
        ["append_text", "a", None],
    ],
)
def test_an_operation_in_wire_form_that_is_none_is_refused(operation: Any) -> None:
    with pytest.raises(InvalidDiff):
        Diff.from_json([operation])


@pytest.mark.parametrize(
    "diff",
    [
        Diff().set("a", 1).append("a", 1),
        Diff().delete("a").remove("a", 0),
        Diff().set("a", []).set(("a", 0), 1),
        Diff().set("a", {"x": "t"}).increment(("a", "x")),
        Diff().append("b", 1).set("a", "t").append_text("a", "u").increment("a"),
    ],
)
def test_operations_that_contradict_what_the_same_diff_sets_are_refused(diff: Diff) -> None:
    with pytest.raises(InvalidDiff, match="nothing was written"):
        diff.encode()


def test_operations_on_what_the_diff_does_not_set_are_left_to_the_fold() -> None:
    diff = Diff().append("a", 1).increment("a").set("b", 1)

    assert orjson.loads(diff.encode()) == diff.to_json()


def test_encoding_a_diff_does_not_run_its_operations_into_each_other() -> None:
    diff = Diff().set("a", []).append("a", 1)

    assert orjson.loads(diff.encode()) == [["set", "a", []], ["append", "a", 1]]
    assert orjson.loads(diff.encode()) == [["set", "a", []], ["append", "a", 1]]


def test_a_diff_that_would_nest_a_field_too_deep_is_refused() -> None:
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    diff = Diff().set(("a",) + ("b",) * 60, value)

    with pytest.raises(InvalidDiff, match=f"deeper than {DEPTH_MAX}"):
        diff.encode()


def test_many_shallow_values_are_not_deep() -> None:
    operations = [["set", f"f{number}", [[]]] for number in range(500)]

    check_depth(orjson.dumps(operations), operations)


# --- what a diff says of itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("diff", "overwritten"),
    [
        (Diff().set("a", 1), {"a"}),
        (Diff().delete("a"), {"a"}),
        (Diff().insert("a", 0, 1), {"a"}),
        (Diff().remove("a", 0), {"a"}),
        (Diff().append("a", 1), set()),
        (Diff().extend("a", [1]), set()),
        (Diff().increment("a"), set()),
        (Diff().append_text("a", "t"), set()),
        (Diff().merge_into("a", {"k": 1}), set()),
        (Diff().set(("a", "k"), 1), set()),
        (Diff().delete(("a", "k")), {"a"}),
        (Diff().insert(("a", "k"), 0, 1), {"a"}),
        (Diff().remove(("a", "k"), 0), {"a"}),
        (Diff().append(("a", "k"), 1), set()),
        (Diff().append(("a", 0), 1), {"a"}),
        (Diff().increment(("a", 0, "k")), {"a"}),
        (Diff().increment("a").set("b", 1), {"b"}),
    ],
)
def test_a_diff_knows_which_fields_it_overwrites(diff: Diff, overwritten: set[str]) -> None:
    assert diff.overwritten() == overwritten


def test_a_diff_knows_its_fields() -> None:
    diff = Diff().increment("a").set(("b", "k"), 1).delete("a")

    assert diff.fields == {"a", "b"}
    assert len(diff) == 3


def test_two_branches_of_a_diff_do_not_see_each_other() -> None:
    trunk = Diff().set("a", 1)
    left = trunk.set("b", 2)
    right = trunk.set("c", 3)
    longer = left.set("d", 4)

    assert trunk == Diff({"a": 1})
    assert left == Diff({"a": 1, "b": 2})
    assert right == Diff({"a": 1, "c": 3})
    assert longer == Diff({"a": 1, "b": 2, "d": 4})


def test_a_diff_followed_by_another_is_both() -> None:
    first, second = Diff().set("a", 1), Diff().increment("a")

    assert first.then(second) == Diff().set("a", 1).increment("a")
    assert len(first) == len(second) == 1


def test_a_diff_does_not_change_with_what_it_was_given() -> None:
    items = [1]
    diff = Diff().set("a", items).extend("a", items)

    items.append(2)

    assert diff.to_json() == [["set", "a", [1]], ["extend", "a", [1]]]


def test_what_a_diff_gives_away_does_not_change_it() -> None:
    diff = Diff().set("a", [1])

    diff.to_json()[0][2].append(2)

    assert diff.to_json() == [["set", "a", [1]]]


def test_a_diff_reads_as_operations_and_as_the_calls_that_made_it() -> None:
    diff = Diff().set(("a", 0), Decimal("1.5")).delete("b")

    assert [tuple(operation) for operation in diff] == [
        ("set", ("a", 0), (Decimal("1.5"),)),
        ("delete", ("b",), ()),
    ]
    assert repr(diff) == "Diff().set(('a', 0), Decimal('1.5')).delete('b')"
    assert eval(repr(diff), {"Diff": Diff, "Decimal": Decimal}) == diff


def test_equal_diffs_have_one_hash_and_1_is_not_true() -> None:
    assert hash(Diff({"a": 1})) == hash(Diff().set("a", 1))
    assert Diff({"a": 1}) != Diff({"a": True})
    assert Diff({"a": 1}) != [["set", "a", 1]]


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (ABSENT, Shape.ABSENT),
        (None, Shape.NULL),
        (False, Shape.BOOL),
        (0, Shape.NUMBER),
        (0.0, Shape.NUMBER),
        ({"$int": "1"}, Shape.NUMBER),
        ({"$decimal": "1"}, Shape.NUMBER),
        ({"$float": "nan"}, Shape.NUMBER),
        ("", Shape.TEXT),
        ([], Shape.LIST),
        ({}, Shape.DICT),
        ({"a": 1}, Shape.DICT),
        ({"$bytes": ""}, Shape.OTHER),
    ],
)
def test_every_json_value_has_a_shape(value: object, shape: int) -> None:
    assert shape_of(value) == shape


# --- comparing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "diff"),
    [
        ({"a": 1}, {"a": 1}, Diff()),
        ({"a": 1}, {}, Diff().delete("a")),
        ({}, {"a": 1}, Diff().set("a", 1)),
        ({"a": 1}, {"a": True}, Diff().set("a", True)),
        ({"a": 1}, {"a": 1.0}, Diff().set("a", 1.0)),
        ({"a": 0.0}, {"a": -0.0}, Diff().set("a", -0.0)),
        ({"a": 1}, {"a": 2}, Diff().set("a", 2)),
        ({"a": [1] * 9}, {"a": [1] * 9 + [2]}, Diff().append("a", 2)),
        ({"a": [1] * 9}, {"a": [1] * 9 + [2, 3]}, Diff().extend("a", [2, 3])),
        ({"a": list(range(99))}, {"a": list(range(1, 99))}, Diff().remove("a", 0)),
        ({"a": [*range(99)]}, {"a": [*range(9), 0, *range(9, 99)]}, Diff().insert("a", 9, 0)),
        ({"a": "hello" * 9}, {"a": "hello" * 9 + " you"}, Diff().append_text("a", " you")),
        ({"a": "a"}, {"a": "ab"}, Diff().set("a", "ab")),
        ({"a": "text"}, {"a": "other"}, Diff().set("a", "other")),
        ({"a": {"k": [1] * 20}}, {"a": {"k": [1] * 21}}, Diff().append(("a", "k"), 1)),
        ({"a": (1, 2)}, {"a": (1, 3)}, Diff().set("a", (1, 3))),
        ({"a": []}, {"a": {}}, Diff().set("a", {})),
    ],
)
def test_two_states_differ_by_the_smallest_diff_in_sight(
    old: dict[str, object], new: dict[str, object], diff: Diff
) -> None:
    assert diff_between(old, new) == diff


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"a": 1, "b": "text", "c": None, "d": True},
        {"a": [1], "b": 1.5},
        {"a": 2**63, "b": -(2**63)},
        {"a": Decimal(1)},
        {"\N{SNOWMAN}": "\N{SNOWMAN}"},
    ],
)
def test_fields_encode_like_their_diff(fields: dict[str, object]) -> None:
    assert encode_fields(fields) == Diff(fields).encode()


@pytest.mark.parametrize("fields", [{"": 1}, {"*": 1}, {1: 1}, {"\ud800": 1}])
def test_fields_are_refused_like_their_diff(fields: dict[Any, object]) -> None:
    with pytest.raises(InvalidDiff):
        encode_fields(fields)


def test_a_value_that_cannot_be_encoded_is_named_by_its_field() -> None:
    with pytest.raises(UnsupportedValue, match="b"):
        encode_fields({"a": 1, "b": "\ud800"})
