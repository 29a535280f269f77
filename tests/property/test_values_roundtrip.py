"""Goal: what is written reads back the same, whatever is nested in what.

Method: hypothesis draws nested mixtures of everything that values takes; "the same" is stricter
than ==, because to Python True == 1 == 1.0, -0.0 == 0.0, and a Decimal forgets its exponent.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import struct
import uuid
import zoneinfo
from collections.abc import Hashable
from decimal import Decimal
from typing import Any

import numpy
import orjson
import pydantic
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from eventstore import values
from eventstore.errors import UnreadableValue
from eventstore.values.reading import READERS


class Colour(enum.Enum):
    RED = "red"
    BLUE = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Word(enum.StrEnum):
    YES = "y"


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    name: str
    number: int


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    first: Any
    second: Any = None
    _hidden: Any = pydantic.PrivateAttr(default=None)


def make_model(first: Any, rest: dict[str, Any], hidden: Any) -> Model:
    model = Model(first=first, **rest)
    model._hidden = hidden
    return model


def same(a: Any, b: Any) -> bool:
    """Say whether two values are equal, of the same types all the way down, in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, enum.Enum):
        return a is b
    match a:
        case list() | tuple():
            return len(a) == len(b) and all(map(same, a, b))
        case dict():
            return same(list(a.items()), list(b.items()))
        case set() | frozenset():
            return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
        case float():
            return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
        case Decimal():
            return bool(a.as_tuple() == b.as_tuple())
        case datetime.datetime() | datetime.time():
            same_clock = a.replace(tzinfo=None) == b.replace(tzinfo=None)
            return bool(same_clock and a.fold == b.fold and same(a.tzinfo, b.tzinfo))
        case zoneinfo.ZoneInfo():
            return bool(a.key == b.key)
        case numpy.ndarray():
            same_bytes = a.tobytes() == b.tobytes()
            return bool(same_bytes and a.dtype == b.dtype and a.shape == b.shape)
        case pydantic.BaseModel():
            return same(a.__getstate__(), b.__getstate__())
        case Pair() | Key():
            return all(
                same(getattr(a, field.name), getattr(b, field.name))
                for field in dataclasses.fields(a)
            )
    return bool(a == b)


#: The machine is shared, so no example has a time limit of its own.
unhurried = settings(deadline=None)

texts = st.text(st.characters(exclude_categories=["Cs"]))
zones = st.one_of(
    st.none(),
    st.timezones(),
    st.builds(
        datetime.timezone,
        # Offsets with fractions of a second are refused.
        st.integers(-23 * 3_600, 23 * 3_600).map(lambda seconds: datetime.timedelta(0, seconds)),
    ),
)
folds = st.sampled_from([0, 1])
datetimes = st.builds(
    lambda value, fold: value.replace(fold=fold), st.datetimes(timezones=zones), folds
)
times = st.builds(lambda value, fold: value.replace(fold=fold), st.times(timezones=zones), folds)
decimals = st.one_of(
    st.decimals(),
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})(E[+-][1-9][0-9]{0,3})?", fullmatch=True).map(Decimal),
)
enums = st.sampled_from([*Colour, *Level, *Word, Right(0), Right.READ, Right.READ | Right.WRITE])

_leaves: st.SearchStrategy[Hashable] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    texts,
    texts.map("$".__add__),
    st.binary(),
    datetimes,
    st.dates(),
    times,
    st.timedeltas(),
    decimals.filter(lambda value: not value.is_snan()),  # a signalling NaN has no hash
    st.uuids(),
    enums,
    st.builds(Key, texts, st.integers()),
)


@st.composite
def leaf(draw: st.DrawFn) -> Hashable:  # short in a failure's report
    return draw(_leaves)


hashables = st.recursive(
    leaf(), lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3)
)
dtypes = st.sampled_from(["?", "<i8", ">u2", "<f4", "<c16", "<U3", "S2", "<M8[us]", "<m8[s]"])
shapes = numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=3)


signalling = st.just(Decimal("sNaN7"))


@st.composite
def leaf_or_array(draw: st.DrawFn) -> Any:
    return draw(st.one_of(hashables, numpy_strategies.arrays(dtypes, shapes), signalling))


anything = st.recursive(
    leaf_or_array(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts | texts.map("$".__add__), inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.builds(Pair, inner, inner),
        st.builds(make_model, inner, st.dictionaries(st.sampled_from("ab$"), inner), inner),
    ),
    max_leaves=20,
)


@unhurried
@given(anything)
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    raw = values.encode(value)

    assert same(values.decode(raw), value)


@unhurried
@given(anything)
def test_writing_twice_gives_the_same_bytes_and_digest(value: Any) -> None:
    raw = values.encode(value)

    copy = values.decode(raw)

    assert values.encode(copy) == raw
    assert values.digest(copy) == values.digest(value)


@unhurried
@given(anything)
def test_reading_leaves_the_parsed_json_as_it_was(value: Any) -> None:
    parsed = orjson.loads(values.encode(value))

    values.from_json(parsed)

    assert parsed == orjson.loads(values.encode(value))


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(texts, inner, max_size=3),
        st.builds(lambda tag, item: {tag: item}, st.sampled_from(sorted(READERS)), inner),
        st.builds(
            lambda tag, *parts: {tag: list(parts)},
            st.sampled_from(["$enum", "$model", "$dataclass", "$user", "$dict"]),
            st.sampled_from([f"{__name__}:{cls.__name__}" for cls in (Colour, Right, Pair, Model)]),
            inner,
        ),
    ),
    max_leaves=15,
).map(orjson.dumps)


@unhurried
@given(json_texts)
def test_any_json_of_a_producer_is_read_or_refused_with_one_error(raw: bytes) -> None:
    try:
        value = values.decode(raw)
    except UnreadableValue:
        value = values.decode(raw, unresolved="keep")

    assert same(value, value)


@unhurried
@given(st.uuids())
def test_same_tells_apart_what_python_calls_equal(unique: uuid.UUID) -> None:
    assert not same([True], [1])
    assert not same({"a": 1}, {"a": 1.0})
    assert not same(0.0, -0.0)
    assert not same(Decimal("1.0"), Decimal("1.00"))
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert same((unique, math.nan), (unique, math.nan))
