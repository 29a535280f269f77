"""State types: what is checked before a write, what is stored, and what is built from it."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import socket
import typing
from typing import Any

import pydantic
import pytest
import typing_extensions

from eventstore.diff import Diff
from eventstore.errors import ConfigError, InvalidState, UnsupportedValue
from eventstore.typed import StateType


class Status(enum.Enum):
    NEW = "new"
    PAID = "paid"


class Line(pydantic.BaseModel):
    item: str
    price: decimal.Decimal = pydantic.Field(default=decimal.Decimal("0.00"), gt=-1, alias="Preis")


@dataclasses.dataclass(frozen=True)
class Address:
    street: str
    number: int = 1


class Node(pydantic.BaseModel):
    name: str
    below: list[Node] = []


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    known: int = 0


class Order(pydantic.BaseModel):
    status: Status = Status.NEW
    lines: list[Line] = []
    address: Address | None = None
    total: decimal.Decimal = decimal.Decimal(0)
    count: int = pydantic.Field(default=0, ge=0)
    weight: float = 0.0
    note: str = ""
    tags: set[str] = set()
    stock: dict[str, int] = {}
    rooms: dict[str, list[Line]] = {}
    tree: Node | None = None
    loose: Loose = Loose()
    anything: Any = None
    either: int | str = 0
    pair: tuple[int, str] = (0, "")
    when: datetime.datetime | None = None

    @pydantic.field_validator("note")
    @classmethod
    def _polite(cls, note: str) -> str:
        if "damn" in note:
            raise ValueError("be polite")
        return note.strip()


class Basket(typing.TypedDict):
    owner: str
    lines: typing.NotRequired[list[Line]]
    inner: typing.NotRequired[dict[str, Inner | None]]


class Inner(typing.TypedDict, total=False):
    number: typing.Required[int]
    text: str


@dataclasses.dataclass
class Parcel:
    address: Address
    weights: list[float] = dataclasses.field(default_factory=list)


ORDER = StateType.of(Order)


def stored(diff: Diff, state_type: StateType = ORDER) -> list[Any]:
    return state_type.check_diff(diff).to_json()


# --- what is stored ------------------------------------------------------------------------------


def test_models_dataclasses_and_enums_are_stored_as_plain_data() -> None:
    diff = Diff(
        {
            "lines": [Line(item="book", Preis=decimal.Decimal("9.50")), {"item": "pen"}],
            "address": Address("Elm", 3),
            "status": Status.PAID,
            "tree": Node(name="a", below=[Node(name="b")]),
        }
    )

    assert stored(diff) == [
        [
            "set",
            "lines",
            [
                {"item": "book", "price": {"$decimal": "9.50"}},
                {"item": "pen", "price": {"$decimal": "0.00"}},
            ],
        ],
        ["set", "address", {"street": "Elm", "number": 3}],
        ["set", "status", "paid"],
        ["set", "tree", {"name": "a", "below": [{"name": "b", "below": []}]}],
    ]


def test_what_is_stored_has_the_declared_types() -> None:
    diff = Diff({"count": "12", "total": 5, "tags": ["a"], "status": "paid", "note": " hi "})

    assert [operation[2] for operation in stored(diff)] == [
        12,
        {"$decimal": "5"},
        {"$set": ["a"]},
        "paid",
        "hi",
    ]


def test_build_makes_the_instance_again() -> None:
    order = Order(
        status=Status.PAID,
        lines=[Line(item="book")],
        address=Address("Elm"),
        tree=Node(name="a", below=[Node(name="b")]),
        rooms={"a": [Line(item="x")]},
        loose=Loose(known=1, more=2),  # type: ignore[call-arg]
        pair=(1, "b"),
        when=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )
    fields = {name: ORDER.check_field(name, getattr(order, name)) for name in Order.model_fields}

    assert fields["address"] == {"street": "Elm", "number": 1}
    assert fields["loose"] == {"known": 1, "more": 2}
    assert ORDER.build(fields) == order


def test_special_containers_are_stored_as_their_plain_kin_and_built_again() -> None:
    class Pair(typing.NamedTuple):
        a: int
        b: str

    class Special(pydantic.BaseModel):
        queue: collections.deque[int]
        named: Pair
        ordered: collections.OrderedDict[str, int]

    special = Special(
        queue=collections.deque([1]), named=Pair(1, "x"), ordered=collections.OrderedDict(a=1)
    )
    state_type = StateType.of(Special)

    fields = {name: state_type.check_field(name, value) for name, value in special}

    assert fields == {"queue": [1], "named": [1, "x"], "ordered": {"a": 1}}
    assert state_type.build(fields) == special


# --- what is refused before it is written --------------------------------------------------------


@pytest.mark.parametrize(
    ("diff", "message"),
    [
        (Diff({"count": "many"}), r"^Order: \['count'\]: .*integer.*Not written$"),
        (Diff({"count": -1}), r"\['count'\]: .*greater than or equal to 0"),
        (Diff({"colour": "red"}), r"\['colour'\]: no such field; there are status, lines"),
        (Diff({"lines": [{"item": 1}]}), r"\['lines'\]\[0\]\['item'\]: .*string"),
        (Diff({"lines": [{"item": "a", "colour": 1}]}), r"\['lines'\]\[0\]\['colour'\]: no such"),
        (Diff({"address": {"street": "a", "town": 1}}), r"\['town'\]: no such"),
        (Diff({"note": "damn"}), r"\['note'\]: .*be polite"),
        (Diff({"status": "lost"}), r"\['status'\]"),
        (Diff().append("lines", {"item": 1}), r"\['lines'\]\['append'\]\['item'\]"),
        (Diff().extend("lines", [Line(item="a"), 7]), r"\['lines'\]\['extend'\]\[1\]"),
        (Diff().insert("lines", 0, "x"), r"\['lines'\]\['insert'\]"),
        (Diff().append("count", 1), "append needs a list, and its type is int"),
        (Diff().append("tags", "a"), "append needs a list, and its type is set"),
        (Diff().append("pair", 1), "append needs a list, and its type is tuple"),
        (Diff().remove("stock", 0), "remove needs a list, and its type is dict"),
        (Diff().increment("note"), "increment needs a number, and its type is str"),
        (Diff().increment("count", 1.5), "increment by a float, and its type is int"),
        (Diff().increment("total", 1.5), "increment by a float, and its type is decimal"),
        (Diff().append_text("count", "1"), "append_text needs text, and its type is int"),
        (Diff().merge_into("stock", {"a": "x"}), r"\['stock'\]\['a'\]: .*integer"),
        (Diff().merge_into("address", {"town": "x"}), r"\['address'\]\['town'\]: no such field"),
        (Diff().merge_into("lines", {"a": 1}), "merge_into needs an object, and its type is list"),
        (Diff().set(("lines", 0, "price"), "dear"), r"\['lines'\]\[0\]\['price'\]: .*decimal"),
        (Diff().set(("lines", 0, "colour"), 1), r"\['lines'\]\[0\]\['colour'\]: no such field"),
        (Diff().set(("lines", "a"), 1), "needs an object, and the type there is list"),
        (Diff().set(("stock", 0), 1), "needs a list, and the type there is dict"),
        (Diff().set(("note", 0), 1), "needs a list, and the type there is str"),
        (Diff().delete(("address", "town")), "no such field; there are street, number"),
        (Diff().delete("colour"), "no such field"),
        (Diff().append(("rooms", "a"), 7), r"\['rooms'\]\['a'\]\['append'\]"),
        (
            Diff().append(("tree", "below", 0, "below"), {"name": 1}),
            r"\['below'\]\['append'\]\['name'\]",
        ),
        (Diff({"loose": {"known": "x"}}), r"\['loose'\]\['known'\]"),
        (Diff({"rooms": {"a": [{"item": "x", "q": 1}]}}), r"\['rooms'\]\['a'\]\[0\]\['q'\]: no"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(diff: Diff, message: str) -> None:
    with pytest.raises(InvalidState, match=message):
        stored(diff)


@pytest.mark.parametrize(
    ("diff", "written"),
    [
        (Diff().append("lines", Line(item="a")), ["append", "lines", {"item": "a"}]),
        (Diff().insert("lines", 2, {"item": "a"}), ["insert", "lines", 2, {"item": "a"}]),
        (Diff().extend("lines", [{"item": "a"}]), ["extend", "lines", [{"item": "a"}]]),
        (Diff().remove("lines", 1), ["remove", "lines", 1]),
        (Diff().increment("count", -3), ["increment", "count", -3]),
        (Diff().increment("weight", 2), ["increment", "weight", 2]),
        (Diff().increment("either", 2), ["increment", "either", 2]),
        (Diff().increment(("stock", "a")), ["increment", ["stock", "a"], 1]),
        (Diff().append_text("note", "!"), ["append_text", "note", "!"]),
        (Diff().merge_into("stock", {"a": "7"}), ["merge_into", "stock", {"a": 7}]),
        (Diff().merge_into("address", {"number": 2}), ["merge_into", "address", {"number": 2}]),
        (Diff().set(("loose", "extra"), [1]), ["set", ["loose", "extra"], [1]]),
        (Diff().set(("anything", "a", 0), 1), ["set", ["anything", "a", 0], 1]),
        (Diff().delete(("lines", 0)), ["delete", ["lines", 0]]),
        (Diff().delete("note"), ["delete", "note"]),
    ],
)
def test_operations_that_fit_are_stored(diff: Diff, written: list[Any]) -> None:
    (operation,) = stored(diff)

    for line in [operation[-1]] if isinstance(operation[-1], dict) else []:
        line.pop("price", None)
    if operation[0] == "extend":
        operation[2][0].pop("price")
    assert operation == written


def test_a_value_that_would_be_built_as_another_is_refused() -> None:
    class Cat(pydantic.BaseModel):
        name: str

    class Dog(pydantic.BaseModel):
        name: str

    class Shop(pydantic.BaseModel):
        pet: Cat | Dog
        things: list[Any] = []
        shouted: str = ""

        @pydantic.field_validator("shouted")
        @classmethod
        def _shout(cls, text: str) -> str:
            return text + "!"

    state_type = StateType.of(Shop)

    assert state_type.check_field("pet", Cat(name="a")) == {"name": "a"}
    with pytest.raises(InvalidState, match=r"would read back as .*discriminator"):
        state_type.check_field("pet", Dog(name="a"))
    with pytest.raises(InvalidState, match="would read back as"):
        state_type.check_field("things", [Status.NEW])
    with pytest.raises(InvalidState, match="would read back as"):
        state_type.check_field("shouted", "a")


def test_what_the_log_cannot_hold_is_refused_although_the_type_takes_it() -> None:
    class Odd(pydantic.BaseModel):
        number: complex

    with pytest.raises(UnsupportedValue, match=r"\['number'\].*complex"):
        StateType.of(Odd).check_field("number", 1j)


def test_a_validator_that_looks_at_other_fields_is_left_to_build() -> None:
    class Span(pydantic.BaseModel):
        start: int
        end: int

        @pydantic.field_validator("end")
        @classmethod
        def _after_start(cls, end: int, info: pydantic.ValidationInfo) -> int:
            if end < info.data["start"]:
                raise ValueError("ends before it starts")
            return end

    state_type = StateType.of(Span)

    assert state_type.check_field("end", 1) == 1
    with pytest.raises(InvalidState, match="ends before it starts"):
        state_type.build({"start": 2, "end": 1})


# --- what is built -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": "x"}, r"does not fit Order: \['count'\].*validate=\"off\""),
        ({"colour": 1}, r"\['colour'\]: no such field"),
        ({"lines": [{"item": "a", "colour": 1}]}, r"\['lines'\]\[0\]\['colour'\]: no such"),
        ({"lines": [{"item": "a", "price": "x"}]}, r"\['lines'\]\[0\]\['price'\]"),
        ({"lines": [{"item": 1}], "count": "x"}, r"\['item'\].*; \['count'\]"),
    ],
)
def test_stored_state_that_no_longer_fits_is_an_error_with_the_paths(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidState, match=message):
        ORDER.build(fields)


def test_extra_fields_follow_what_the_class_says() -> None:
    class Ignoring(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="ignore")

        known: int = 0

    loose, ignoring = StateType.of(Loose), StateType.of(Ignoring)

    assert stored(Diff({"more": 1}), loose) == [["set", "more", 1]]
    assert loose.build({"known": 1, "more": 2}) == Loose(known=1, more=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidState, match="no such field"):
        stored(Diff({"more": 1}), ignoring)
    assert ignoring.build({"known": 1, "more": 2}) == Ignoring(known=1)


def test_a_dataclass_is_a_state_type() -> None:
    parcel = StateType.of(Parcel)

    assert stored(Diff({"address": Address("Elm")}), parcel) == [
        ["set", "address", {"street": "Elm", "number": 1}]
    ]
    assert stored(Diff().append("weights", 2), parcel) == [["append", "weights", 2.0]]
    assert parcel.build({"address": {"street": "Elm"}}) == Parcel(Address("Elm"))
    with pytest.raises(InvalidState, match="no such field"):
        stored(Diff({"colour": 1}), parcel)
    with pytest.raises(InvalidState, match=r"\['colour'\]"):
        parcel.build({"address": {"street": "Elm"}, "colour": 1})


def test_a_typed_dict_is_a_state_type_from_either_module() -> None:
    class Modern(typing_extensions.TypedDict, total=False):
        owner: typing_extensions.Required[str]
        inner: dict[str, int]

    basket, modern = StateType.of(Basket), StateType.of(Modern)

    assert stored(Diff({"inner": {"a": {"number": "1"}, "b": None}}), basket) == [
        ["set", "inner", {"a": {"number": 1}, "b": None}]
    ]
    assert basket.build({"owner": "o", "lines": [{"item": "a"}]}) == {
        "owner": "o",
        "lines": [Line(item="a")],
    }
    for state_type in (basket, modern):
        with pytest.raises(InvalidState, match=r"\['owner'\]: Field required"):
            state_type.build({})
        with pytest.raises(InvalidState, match="no such field"):
            stored(Diff({"colour": 1}), state_type)
    with pytest.raises(InvalidState, match=r"\['inner'\]\['a'\]\['number'\]"):
        stored(Diff({"inner": {"a": {}}}), basket)


@pytest.mark.parametrize("kind", [int, dict, "Order", list[int], pydantic.RootModel[int]])
def test_what_has_no_fields_is_no_state_type(kind: Any) -> None:
    with pytest.raises(ConfigError, match="state_type"):
        StateType.of(kind)


def test_a_field_that_pydantic_cannot_check_is_named_when_the_app_is_opened() -> None:
    @dataclasses.dataclass
    class Odd:
        socket: socket.socket

    with pytest.raises(ConfigError, match=r"Odd.*socket"):
        StateType.of(Odd)


def test_a_strict_model_stays_strict() -> None:
    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=True)

        count: int = 0
        line: Line | None = None

    strict = StateType.of(Strict)

    with pytest.raises(InvalidState, match=r"\['count'\]"):
        strict.check_field("count", "1")
    assert strict.build({"count": 1}) == Strict(count=1)
