"""Python values to tagged JSON: one function for each type, and what a refusal advises."""

from __future__ import annotations

import binascii
import dataclasses
import datetime
import enum
import functools
import inspect
import math
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal
from typing import Any, Final

import orjson

from eventstore.values.classes import is_dataclass, is_model, name_of, own_name, registered_by_class
from eventstore.values.limits import (
    ARRAY_KINDS,
    DIGITS_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    Refused,
    refuse_depth,
)

__all__ = ["BUILT_IN", "write"]


def write(value: Any, depth: int) -> Any:
    """Return the JSON of a value, in at most `depth` levels; Refused where it has none."""
    kind = type(value)
    if kind is dict:
        return _dict_to_json(value, depth)
    if kind is list:
        return _items_to_json(value, depth)
    writer = _WRITERS.get(kind)
    if writer is not None:
        return writer(value, depth)
    return _other_to_json(value, kind, depth)


def _dict_to_json(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    if depth <= 0:
        refuse_depth()
    depth -= 1
    result = {}
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str or ("$" in key and key[0] == "$"):
                break
            if not key.isascii():
                _check_text(key)
            # The most usual leaf without a call: this loop is most of the cost of a write.
            if type(item) is str and item.isascii():
                result[key] = item
            else:
                result[key] = write(item, depth)
        else:
            return result
    except Refused as refused:
        refused.stands_below(key)
        raise
    return {"$dict": _pairs_to_json(value, depth)}


def _items_to_json(value: Iterable[Any], depth: int) -> list[Any]:
    if depth <= 0:
        refuse_depth()
    depth -= 1
    result: list[Any] = []
    add = result.append
    try:
        for item in value:
            if type(item) is str and item.isascii():
                add(item)
            else:
                add(write(item, depth))
    except Refused as refused:
        refused.stands_below(len(result))
        raise
    return result


def _pairs_to_json(value: dict[Any, Any], depth: int) -> list[list[Any]]:
    if depth <= 1:
        refuse_depth()
    pairs = []
    for key, item in value.items():
        try:
            pairs.append([write(key, depth - 2), write(item, depth - 2)])
        except Refused as refused:
            refused.stands_below(key if type(key) in (str, int) else repr(key))
            raise
    return pairs


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"text with a lone surrogate (U+{ord(text[error.start]):04X}), which UTF-8 cannot hold"
        ) from None


def _write_str(value: str, depth: int) -> str:
    if not value.isascii():
        _check_text(value)
    return value


def _write_int(value: int, depth: int) -> Any:
    if INTEGER_MIN <= value <= INTEGER_MAX:
        return value
    # Two bounds: the cheap one first, because printing a huge int is quadratic in its length.
    if value.bit_length() <= DIGITS_MAX * 4:
        text = str(value)
        if len(text.lstrip("-")) <= DIGITS_MAX:
            return {"$int": text}
    raise Refused(f"an int of more than {DIGITS_MAX} digits")


def _write_float(value: float, depth: int) -> Any:
    if math.isfinite(value):
        return value
    return {"$float": "nan" if value != value else "inf" if value > 0 else "-inf"}


def _write_plain(value: Any, depth: int) -> Any:
    return value


def _write_bytes(value: bytes, depth: int) -> Any:
    return {"$bytes": _base64(value)}


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _write_datetime(value: datetime.datetime, depth: int) -> Any:
    return {"$datetime": value.isoformat() + _zone_suffix(value)}


def _write_time(value: datetime.time, depth: int) -> Any:
    return {"$time": value.isoformat() + _zone_suffix(value)}


def _zone_suffix(value: datetime.datetime | datetime.time) -> str:
    """Return what the ISO text leaves out, in the brackets of RFC 9557: a zone's name, the fold."""
    zone = value.tzinfo
    suffix = "[_fold=1]" if value.fold else ""
    if zone is None or zone is datetime.UTC:
        return suffix
    if type(zone) is zoneinfo.ZoneInfo:
        try:
            zoneinfo.ZoneInfo(zone.key)
        except (TypeError, ValueError, zoneinfo.ZoneInfoNotFoundError):
            raise Refused(f"a time zone whose name, {zone.key!r}, finds no zone") from None
        return f"[{zone.key}]{suffix}"
    if type(zone) is datetime.timezone:
        if zone.utcoffset(None).microseconds:
            # Python writes such offsets, and reads some of them as UTC.
            raise Refused("a time zone whose offset has fractions of a second")
        if len(zone.__getinitargs__()) == 1:  # type: ignore[attr-defined]
            return suffix
        raise Refused(
            "a fixed offset with a name of its own, which would be lost: use"
            " datetime.timezone(offset) or a zoneinfo.ZoneInfo"
        )
    raise Refused(
        f"a time zone of type {type(zone).__module__}.{type(zone).__qualname__}: use"
        " datetime.timezone or zoneinfo.ZoneInfo"
    )


def _write_date(value: datetime.date, depth: int) -> Any:
    return {"$date": value.isoformat()}


def _write_timedelta(value: datetime.timedelta, depth: int) -> Any:
    microseconds = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    sign = "-" if microseconds < 0 else ""
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return {"$timedelta": f"{sign}{seconds}{fraction}"}


#: Decimal text by str() follows the thread's context (a lower-case "e" on demand); this does not.
_DECIMAL_TEXT: Final = Context(capitals=1)


def _write_decimal(value: Decimal, depth: int) -> Any:
    return {"$decimal": _DECIMAL_TEXT.to_sci_string(value)}


def _write_uuid(value: uuid.UUID, depth: int) -> Any:
    return {"$uuid": str(value)}


def _write_tuple(value: tuple[Any, ...], depth: int) -> Any:
    return {"$tuple": _items_to_json(value, depth - 1)}


def _write_set(value: set[Any], depth: int) -> Any:
    return {"$set": _sorted_items(value, depth)}


def _write_frozenset(value: frozenset[Any], depth: int) -> Any:
    return {"$frozenset": _sorted_items(value, depth)}


def _sorted_items(value: Iterable[Any], depth: int) -> list[Any]:
    # By their bytes, because the items may have no order among themselves, and a set's own order
    # changes from process to process.
    if depth <= 1:
        refuse_depth()
    items = []
    for item in value:
        try:
            items.append(write(item, depth - 2))
        except Refused as refused:
            refused.stands_below(repr(item))
            raise
    return sorted(items, key=orjson.dumps)


_WRITERS: Final[dict[type, Callable[[Any, int], Any]]] = {
    str: _write_str,
    int: _write_int,
    bool: _write_plain,
    type(None): _write_plain,
    float: _write_float,
    bytes: _write_bytes,
    datetime.datetime: _write_datetime,
    datetime.date: _write_date,
    datetime.time: _write_time,
    datetime.timedelta: _write_timedelta,
    Decimal: _write_decimal,
    uuid.UUID: _write_uuid,
    tuple: _write_tuple,
    set: _write_set,
    frozenset: _write_frozenset,
}
BUILT_IN: Final = frozenset({*_WRITERS, dict, list})


def _other_to_json(value: Any, kind: type, depth: int) -> Any:
    """Write what is recognised by more than its exact type: registered types, then families."""
    if depth <= 2:
        refuse_depth()
    registered = registered_by_class.get(kind)
    if registered is not None and registered.to_json is not None:
        try:
            payload = registered.to_json(value)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            raise Refused(f"its registered to_json raised {type(error).__name__}") from error
        return {"$user": [registered.tag, write(payload, depth - 2)]}
    if issubclass(kind, enum.Enum):
        return {"$enum": [name_of(kind), _enum_member(value)]}
    if is_model(kind):
        return {"$model": [name_of(kind), *_model_parts(value, kind, depth - 2)]}
    if is_dataclass(kind):
        return {"$dataclass": [name_of(kind), _dataclass_fields(value, kind, depth - 2)]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return {"$ndarray": _array_parts(value)}
    raise Refused(_why_not(value, kind))


def _enum_member(value: enum.Enum) -> Any:
    # Members of a Flag can be combinations, which have no name of their own.
    return int(value.value) if isinstance(value, enum.Flag) else value.name


def _dataclass_fields(value: Any, kind: Any, depth: int) -> dict[str, Any]:
    if issubclass(kind, _CONTAINERS):
        raise Refused(f"a {own_name(kind)} holds more than its fields: register it")
    names = [field.name for field in dataclasses.fields(kind)]
    for name in getattr(value, "__dict__", {}):
        cached = isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)
        if name not in names and not cached:
            raise Refused(f"it has an attribute {name!r} that is no field and would be lost")
    result = {}
    for name in names:
        try:
            result[name] = write(getattr(value, name), depth - 1)
        except AttributeError:
            raise Refused(f"its field {name!r} was never set") from None
        except Refused as refused:
            refused.stands_below(name)
            raise
    return result


#: A dataclass that also is one of these carries data outside its fields.
_CONTAINERS: Final = (
    str, bytes, bytearray, int, float, complex, list, dict, tuple, set, frozenset, BaseException,
    datetime.date, datetime.time, datetime.timedelta, Decimal,
)  # fmt: skip


def _model_parts(value: Any, kind: Any, depth: int) -> list[Any]:
    """Return the fields and, only when there is something to say, an object with the rest."""
    state = value.__dict__
    missing = [name for name in kind.model_fields if name not in state]
    if missing:
        raise Refused(f"its field {missing[0]!r} was never set (model_construct)")
    # From __dict__, not model_dump: that would take nested models apart. A cached_property also
    # lives there, and is no data.
    fields = _members_to_json({name: state[name] for name in kind.model_fields}, depth)
    rest: dict[str, Any] = {}
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    names_set = value.__pydantic_fields_set__
    if names_set != {*fields, *(extra or ())}:
        rest["set"] = sorted(names_set)
    if extra:
        rest["extra"] = _members_to_json(extra, depth - 1)
    if private:
        rest["private"] = _members_to_json(private, depth - 1)
    return [fields, rest] if rest else [fields]


def _members_to_json(members: Mapping[str, Any], depth: int) -> list[Any] | dict[str, Any]:
    return _dict_to_json(dict(members), depth)


def _array_parts(value: Any) -> dict[str, Any]:
    dtype = value.dtype
    if dtype.kind not in ARRAY_KINDS or dtype.char in "gG":
        raise Refused(
            f"an array of dtype {dtype}: only numbers, booleans, times and fixed-size text are"
            " stored (long doubles differ between machines, objects have no bytes of their own)"
        )
    return {"dtype": dtype.str, "shape": list(value.shape), "data": _base64(value.tobytes())}


def _why_not(value: Any, kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if kind.__module__ == "numpy" and hasattr(value, "item"):
        return f"a numpy scalar ({name}): use .item() for a Python number"
    if issubclass(kind, bytearray | memoryview):
        return f"a {name}: use bytes(...)"
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return f"a named tuple ({name}), which would come back as a tuple: register it"
    for base in (str, int, float, bytes, list, dict, tuple, set, frozenset):
        if issubclass(kind, base):
            return (
                f"a {name}, which would come back as {base.__name__}: use {base.__name__}(...), or"
                " register it"
            )
    if issubclass(kind, datetime.date | datetime.time | datetime.timedelta | Decimal | uuid.UUID):
        return f"a {name}, a subclass that would come back as its base: convert or register it"
    if isinstance(value, Mapping):
        return f"a {name}: use dict(...) for a plain copy, or register it"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return f"a function ({name}): state holds data only"
    if isinstance(value, types.CoroutineType):
        return f"a coroutine ({value.__qualname__}), which nobody awaited: `await` it first"
    if isinstance(value, type):
        return f"a class ({value.__module__}.{value.__qualname__}): state holds data only"
    return f"values of type {name} cannot be read back exactly: convert it, or register the type"
