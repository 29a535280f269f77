"""Values: what is taken, what is refused and with which words, and what reading never does."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import math
import subprocess
import sys
import types
import zoneinfo
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import orjson
import pydantic
import pytest

from eventstore import values
from eventstore.errors import ConfigError, UnreadableValue, UnsupportedValue
from eventstore.values import classes


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Line:
    item: str
    count: int = 1

    def __post_init__(self) -> None:
        self.item = self.item + "!"  # so that a second __init__ would show

    @functools.cached_property
    def shout(self) -> str:
        return self.item.upper()


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None


class Order(pydantic.BaseModel):
    number: int
    note: str = "none"
    secret: str = ""

    @pydantic.field_validator("secret")
    @classmethod
    def _hash(cls, secret: str) -> str:
        return f"<{secret}>"  # so that a second validation would show


class Point(collections.namedtuple("Point", "x y")):  # a class of its own for `register`
    pass


class Text(str):
    pass


class State(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __len__(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def _registrations() -> Iterator[None]:
    with (
        patch.dict(classes.registered_by_class, clear=True),
        patch.dict(classes.registered_by_name, clear=True),
    ):
        yield


def reads_back(value: Any) -> Any:
    return values.decode(values.encode(value))


# --- the forms on the wire -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        ({"b": 1, "a": [None, True, 1.0, "é"]}, '{"b":1,"a":[null,true,1.0,"é"]}'),
        ({}, "{}"),
        ([], "[]"),
        ((), '{"$tuple":[]}'),
        (set(), '{"$set":[]}'),
        (-0.0, "-0.0"),
        (2**63 - 1, "9223372036854775807"),
        (2**63, '{"$int":"9223372036854775808"}'),
        (-(2**63) - 1, '{"$int":"-9223372036854775809"}'),
        (math.inf, '{"$float":"inf"}'),
        (-math.inf, '{"$float":"-inf"}'),
        (b"\x00\xff", '{"$bytes":"AP8="}'),
        (datetime.date(2026, 1, 2), '{"$date":"2026-01-02"}'),
        (datetime.datetime(2026, 1, 2, 3), '{"$datetime":"2026-01-02T03:00:00"}'),
        (
            datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
            '{"$datetime":"2026-01-02T00:00:00+00:00"}',
        ),
        (datetime.time(3, 4, fold=1), '{"$time":"03:04:00[_fold=1]"}'),
        (datetime.timedelta(microseconds=-1), '{"$timedelta":"-0.000001"}'),
        (datetime.timedelta(days=1, milliseconds=500), '{"$timedelta":"86400.5"}'),
        (Decimal("-1.50E+7"), '{"$decimal":"-1.50E+7"}'),
        ({1: "a"}, '{"$dict":[[1,"a"]]}'),
        ({"$int": "1"}, '{"$dict":[["$int","1"]]}'),
        ({"a$": "$5"}, '{"a$":"$5"}'),
        ({3, 20, 1}, '{"$set":[1,20,3]}'),
        (frozenset({2, 1}), '{"$frozenset":[1,2]}'),  # of ints: the order of its repr is fixed
        ((1, (2,)), '{"$tuple":[1,{"$tuple":[2]}]}'),
        (
            numpy.array([[1, 2]], "<i2"),
            '{"$ndarray":{"dtype":"<i2","shape":[1,2],"data":"AQACAA=="}}',
        ),
    ],
)
def test_each_type_has_one_form(value: Any, raw: str) -> None:
    assert values.encode(value) == raw.encode()
    assert repr(reads_back(value)) == repr(value)


def test_nan_reads_back_as_nan() -> None:
    assert math.isnan(reads_back({"x": math.nan})["x"])


def test_enums_dataclasses_and_models_are_written_with_the_name_of_their_class() -> None:
    value = [Colour.RED, Level.LOW, Line("book"), Order(number=1)]

    written = values.to_json(value)

    assert written == [
        {"$enum": [f"{__name__}:Colour", "RED"]},
        {"$enum": [f"{__name__}:Level", "LOW"]},
        {"$dataclass": [f"{__name__}:Line", {"item": "book!", "count": 1}]},
        {
            "$model": [
                f"{__name__}:Order",
                {"number": 1, "note": "none", "secret": ""},
                {"set": ["number"]},
            ]
        },
    ]


def test_a_zone_reads_back_by_its_name_and_both_passes_of_the_clock_stay_apart() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    first = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    second = first.replace(fold=1)

    texts = [values.to_json(moment)["$datetime"] for moment in (first, second)]

    assert texts == [
        "2026-10-25T02:30:00+02:00[Europe/Berlin]",
        "2026-10-25T02:30:00+01:00[Europe/Berlin][_fold=1]",
    ]
    assert [reads_back(moment).fold for moment in (first, second)] == [0, 1]
    assert reads_back(second).tzinfo is berlin


def test_a_java_zoned_time_says_by_its_offset_which_pass_of_the_clock_it_means() -> None:
    moment = values.decode(b'{"$datetime":"2026-10-25T02:30:00+01:00[Europe/Berlin]"}')

    assert (moment.fold, moment.utcoffset()) == (1, datetime.timedelta(hours=1))


def test_a_decimal_is_written_alike_whatever_the_decimal_context_says() -> None:
    with decimal.localcontext(decimal.Context(capitals=0, prec=2)):
        raw = values.encode(Decimal("1.2345E+9"))

    assert raw == b'{"$decimal":"1.2345E+9"}'


def test_sets_are_written_alike_in_every_process() -> None:
    code = "from eventstore import values; print(values.encode({'a', 'b', 'c', 'd', (1, 'e')}))"

    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path(values.__file__).parents[2])},
            check=True,
            capture_output=True,
        ).stdout
        for seed in range(3)
    }

    assert len(outputs) == 1


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,)])
def test_a_hundred_levels_read_back(wrap: Any) -> None:
    value = 1
    for _ in range(100):
        value = wrap(value)

    assert reads_back(value) == value


def test_every_depth_that_is_written_can_be_read() -> None:
    value: Any = Order(number=1)
    refused = None
    for _ in range(values.DEPTH_MAX):
        value = {value} if isinstance(value, int) else {1: value, "b": b""}
        try:
            raw = values.encode([value])
        except UnsupportedValue as error:
            refused = error
            break
        assert values.decode(raw) == [value]

    assert refused is not None
    assert "nested deeper" in str(refused)


# --- what is refused -----------------------------------------------------------------------------


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def local_enum() -> Any:
    class Here(enum.Enum):
        A = 1

    return Here.A


def line_with_more() -> Line:
    line = Line("book")
    line.more = 1  # type: ignore[attr-defined]
    return line


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1j, "complex"),
        (range(3), "range"),
        (object(), "object"),
        ((item for item in [1]), "generator"),
        (len, "a function"),
        (lambda: None, "a function"),
        (int, "a class"),
        (Path("x"), "Path"),
        (bytearray(b"x"), "use bytes"),
        (memoryview(b"x"), "use bytes"),
        (Text("x"), "come back as str"),
        (collections.Counter("a"), "come back as dict"),
        (collections.OrderedDict(a=1), "come back as dict"),
        (Point(1, 2), "named tuple"),
        (State(), "use dict"),
        (types.MappingProxyType({}), "use dict"),
        (numpy.float64(1), "numpy scalar"),
        (numpy.int64(1), "numpy scalar"),
        (numpy.array([object()]), "dtype object"),
        (numpy.zeros(2, "i4,f4"), "dtype"),
        ("\ud800", "lone surrogate"),
        (circle(), "within itself"),
        (local_enum(), "cannot be found again"),
        (line_with_more(), "'more' that is no field"),
        (Order.model_construct(number=1, note="x").model_copy(update={"number": Text("x")}), "str"),
        (datetime.UTC, "timezone"),
        (
            datetime.time(1, tzinfo=datetime.timezone(datetime.timedelta(microseconds=1))),
            "fractions of a second",
        ),
        (
            datetime.time(1, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "CET")),
            "name of its own",
        ),
    ],
)
def test_what_would_not_read_back_exactly_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(UnsupportedValue, match=reason):
        values.encode(value)


def test_a_coroutine_that_nobody_awaited_is_told_from_other_values() -> None:
    async def answer() -> int:
        return 1

    forgotten = answer()
    with pytest.raises(UnsupportedValue, match="which nobody awaited: `await` it first"):
        values.encode({"answer": forgotten})

    forgotten.close()


def test_ints_are_taken_up_to_a_stated_number_of_digits() -> None:
    assert reads_back(-(10**values.DIGITS_MAX - 1)) == -(10**values.DIGITS_MAX - 1)

    for too_long in (10**values.DIGITS_MAX, -(10**100_000)):
        with pytest.raises(UnsupportedValue, match="more than 4000 digits"):
            values.encode(too_long)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, {"b": 1j}]}, ("f", "a", 1, "b")),
        ({"a": (0, {"b": {7: 1j}})}, ("f", "a", 1, "b", 7)),
        ({"a": {1j}}, ("f", "a", "1j")),
        ({"a": Pair(1j)}, ("f", "a", "left")),
        ({"\ud800": 1}, ("f", "\ud800")),
        ({1: 0, "x": {(): 1j}}, ("f", "x", "()")),
        ({"a": 1, "$b": [1j]}, ("f", "$b", 0)),
        (1j, ("f",)),
    ],
)
def test_the_error_has_the_path(value: Any, path: tuple[str | int, ...]) -> None:
    with pytest.raises(UnsupportedValue) as caught:
        values.encode(value, ("f",))

    assert caught.value.path == path
    assert "Nothing was written" in str(caught.value)


# --- nothing is shared ---------------------------------------------------------------------------


def test_json_shares_nothing_with_what_the_caller_holds() -> None:
    held: dict[str, Any] = {"a": [{"b": [1]}], "c": ({"d": []},)}
    before = values.encode(held)

    written = values.to_json(held)
    held["a"][0]["b"].append(2)
    held["c"][0]["d"].append(3)

    assert orjson.dumps(written) == before


def test_an_array_read_back_can_be_changed_and_shares_nothing() -> None:
    held = numpy.arange(4).reshape(2, 2)
    written = values.to_json(held)

    first, second = values.from_json(written), values.from_json(written)
    first[0, 0] = 9

    assert second.tolist() == held.tolist() == [[0, 1], [2, 3]]


# --- reading runs no code ------------------------------------------------------------------------


def test_reading_never_imports_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_never_loaded.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(UnreadableValue, match=r"shop_never_loaded:Order is not known.*register"):
        values.decode(b'{"a":{"$dataclass":["shop_never_loaded:Order",{}]}}')

    assert "shop_never_loaded" not in sys.modules


def test_reading_does_not_ask_a_module_for_names_that_it_makes_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("shop_lazy")
    asked: list[str] = []
    module.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "shop_lazy", module)

    with pytest.raises(UnreadableValue):
        values.decode(b'{"$enum":["shop_lazy:Order","A"]}')

    assert asked == []


@pytest.mark.parametrize(
    "name",
    ["subprocess:Popen", "builtins:eval", "sys:modules", "os", "os:", "", ":", "os:path.join"],
)
@pytest.mark.parametrize("tag", ["$enum", "$dataclass", "$model", "$user"])
def test_a_name_in_the_log_reaches_no_other_class_or_function(tag: str, name: str) -> None:
    with pytest.raises(UnreadableValue):
        values.decode(orjson.dumps({tag: [name, {"args": "x"}]}))


def test_numpy_is_never_imported() -> None:
    code = (
        "import sys\n"
        "from eventstore import values\n"
        "values.encode([1, {2}])\n"
        'try: values.decode(b\'{"$ndarray":{"dtype":"<i2","shape":[0],"data":""}}\')\n'
        "except TypeError as error: print(error)\n"
        "print('numpy' in sys.modules)\n"
    )

    output = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(values.__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert "import numpy first" in output
    assert output.endswith("False\n")


@pytest.mark.parametrize(
    "raw",
    [
        '{"$int":"1_0"}',
        '{"$int":" 1"}',
        '{"$int":1}',
        '{"$int":"٣"}',
        '{"$float":"1.5"}',
        '{"$float":[]}',
        '{"$bytes":"A"}',
        '{"$bytes":"A?=="}',
        '{"$datetime":"yesterday"}',
        '{"$datetime":"2026-01-01T00:00:00[../../etc/passwd]"}',
        '{"$datetime":"2026-01-01T00:00:00[Mars/Base]"}',
        '{"$timedelta":"1e3"}',
        '{"$timedelta":"99999999999999999999"}',
        '{"$decimal":"one"}',
        '{"$decimal":"1_0"}',
        '{"$uuid":"1"}',
        '{"$tuple":1}',
        '{"$set":[[1]]}',
        '{"$dict":[[1]]}',
        '{"$dict":[[1,2],[1,3]]}',
        '{"$dict":[[[],2]]}',
        '{"$later":1}',
        '{"$ndarray":{"dtype":"O","shape":[1],"data":"AAAAAAAAAAA="}}',
        '{"$ndarray":{"dtype":"<i2","shape":[2],"data":"AAA="}}',
        '{"$ndarray":{"dtype":"<i2","shape":[-1,-1],"data":"AAA="}}',
        '{"$ndarray":{"dtype":"<i2","shape":[99999999999],"data":""}}',
        '{"$enum":"x"}',
        '{"$model":[]}',
        "[" * 300 + '{"$int":"1"}' + "]" * 300,
    ],
)
def test_malformed_tags_are_one_error_and_can_be_kept_as_they_are(raw: str) -> None:
    with pytest.raises(UnreadableValue):
        values.decode(f'{{"a":[{raw}]}}'.encode())

    if not raw.startswith("["):
        assert values.decode(f"[{raw}]".encode(), unresolved="keep") == [orjson.loads(raw)]


def test_what_can_be_read_beside_what_is_kept_is_read() -> None:
    raw = b'{"a":{"$tuple":[{"$int":"7"},{"$enum":["gone:Colour","RED"]}]}}'

    value = values.decode(raw, unresolved="keep")

    assert value == {"a": (7, {"$enum": ["gone:Colour", "RED"]})}


def test_a_full_stack_is_not_taken_for_a_malformed_value() -> None:
    value: Any = 1
    for _ in range(100):
        value = (value,)
    raw = values.encode(value)

    def read_below(calls: int) -> Any:
        return read_below(calls - 1) if calls else values.decode(raw, unresolved="keep")

    with pytest.raises(RecursionError):
        read_below(sys.getrecursionlimit() - 200)


def test_the_error_of_reading_has_the_path() -> None:
    raw = b'{"a":[0,{"b":{"$dict":[[7,{"$enum":["gone:Colour","RED"]}]]}}]}'

    with pytest.raises(UnreadableValue) as caught:
        values.decode(raw)

    assert caught.value.path == ("a", 1, "b", 7)


def test_an_escaped_dollar_is_a_dollar() -> None:
    assert values.decode(b'{"\\u0024int":"7"}') == 7


def test_several_keys_with_a_dollar_are_no_tag() -> None:
    assert values.decode(b'{"$int":"7","$ref":1}') == {"$int": "7", "$ref": 1}


# --- classes that change -------------------------------------------------------------------------


def test_models_and_dataclasses_read_back_without_running_their_checks_again() -> None:
    order, line = Order(number=1, secret="s"), Line("book")

    read = reads_back([order, line])

    assert read == [order, line]
    assert (read[0].secret, read[1].item) == ("<s>", "book!")
    assert read[0].model_fields_set == {"number", "secret"}


def test_a_cached_property_is_no_data() -> None:
    line = Line("book")
    assert line.shout == "BOOK!"

    assert reads_back(line) == line


def test_a_class_that_got_a_field_since_fills_it_in() -> None:
    order = values.decode(orjson.dumps({"$model": [f"{__name__}:Order", {"number": 1}]}))
    line = values.decode(orjson.dumps({"$dataclass": [f"{__name__}:Line", {"item": "book"}]}))

    assert order == Order(number=1)
    assert line == Line("book", 1)


def test_a_class_that_no_longer_fits_is_an_error_that_says_why() -> None:
    with pytest.raises(UnreadableValue, match="number"):
        values.decode(orjson.dumps({"$model": [f"{__name__}:Order", {"size": 1}]}))
    with pytest.raises(UnreadableValue, match="size"):
        values.decode(orjson.dumps({"$dataclass": [f"{__name__}:Line", {"size": 1}]}))


# --- register ------------------------------------------------------------------------------------


def test_a_registered_class_reads_back_nested_and_with_tagged_content() -> None:
    values.register(Point, tag="point", to_json=tuple, from_json=lambda pair: Point(*pair))

    written = values.to_json({"at": [Point(1, b"y")]})

    assert written == {"at": [{"$user": ["point", {"$tuple": [1, {"$bytes": "eQ=="}]}]}]}
    assert values.from_json(written) == {"at": [Point(1, b"y")]}


def test_a_registered_name_stands_for_the_module_and_aliases_read_old_names() -> None:
    values.register(Line, tag="line", aliases=["shop.old:Line"])

    assert values.to_json(Line("a")) == {"$dataclass": ["line", {"item": "a!", "count": 1}]}
    old = {"$dataclass": ["shop.old:Line", {"item": "a!", "count": 1}]}
    assert values.from_json(old) == reads_back(Line("a")) == Line("a")


def test_a_function_of_the_user_that_fails_is_named_with_the_path() -> None:
    def fail(_: Any) -> Any:
        return 1 / 0

    values.register(Point, tag="point", to_json=fail, from_json=fail)

    with pytest.raises(UnsupportedValue, match="to_json raised ZeroDivisionError") as writing:
        values.encode({"a": Point(1, 2)})
    with pytest.raises(UnreadableValue, match="ZeroDivisionError") as reading:
        values.decode(b'{"a":{"$user":["point",1]}}')

    assert writing.value.path == reading.value.path == ("a",)
    assert isinstance(writing.value.__cause__, ZeroDivisionError)


def test_registrations_that_cannot_work_are_refused() -> None:
    values.register(Line, tag="line")

    with pytest.raises(ConfigError, match="belongs to Line"):
        values.register(Order, tag="line")
    with pytest.raises(ConfigError, match="as it is"):
        values.register(dict, tag="d", to_json=list, from_json=dict)
    with pytest.raises(ConfigError, match="both"):
        values.register(Point, tag="point", to_json=tuple)
    with pytest.raises(ConfigError, match="are needed"):
        values.register(Point, tag="point")
    with pytest.raises(UnsupportedValue):
        values.encode(Point(1, 2))


# --- digest --------------------------------------------------------------------------------------


def test_a_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    same = [
        {"a": 1, "b": {2: "x", 1: {"d": 0, "c": 0}}},
        {"b": {1: {"c": 0, "d": 0}, 2: "x"}, "a": 1},
    ]
    others: list[Any] = [True, 1, 1.0, "1", [1], (1,), {1}, {"a": 1}, {1: "a"}, {"1": "a"}]

    assert values.digest(same[0]) == values.digest(same[1])
    assert len({values.digest(other) for other in others}) == len(others)
    assert len(values.digest(1)) == 32


def test_a_digest_sees_every_element_of_a_large_array() -> None:
    zeros = numpy.zeros(5_000)
    changed = zeros.copy()
    changed[2_500] = 1

    assert values.digest(zeros) != values.digest(changed)
    assert values.digest(zeros.reshape(2, -1)) != values.digest(zeros)
