"""Tagged JSON to Python values: one function for each tag.

A reader raises ValueError for a payload that is malformed; `_tagged` makes a refusal of that.
"""

from __future__ import annotations

import binascii
import dataclasses
import datetime
import enum
import math
import re
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from eventstore.values.classes import (
    class_named,
    is_dataclass,
    is_enum,
    is_model,
    registered_by_name,
)
from eventstore.values.limits import ARRAY_KINDS, DIGITS_MAX, Refused, refuse_depth

__all__ = ["READERS", "read"]


def read(value: Any, depth: int, keep: bool) -> Any:
    """Return the Python value of JSON that has at most `depth` levels; Refused where there is none.

    With `keep`, what cannot be built here stays as it is.
    """
    kind = type(value)
    if kind is not dict and kind is not list:
        return value
    if depth <= 0:
        refuse_depth()
    if kind is list:
        return _items_from_json(value, depth - 1, keep)
    if len(value) == 1:
        (tag,) = value
        if tag[:1] == "$":
            try:
                return _tagged(tag, value[tag], depth - 1, keep)
            except Refused:
                if keep:
                    return value
                raise
    return _dict_from_json(value, depth - 1, keep)


def _dict_from_json(value: dict[str, Any], depth: int, keep: bool) -> dict[str, Any]:
    result = value
    key = ""
    try:
        for key, item in value.items():
            if type(item) is dict or type(item) is list:
                changed = read(item, depth, keep)
                if changed is not item:
                    if result is value:
                        result = value.copy()
                    result[key] = changed
    except Refused as refused:
        refused.stands_below(key)
        raise
    return result


def _items_from_json(value: list[Any], depth: int, keep: bool) -> list[Any]:
    result = value
    index = 0
    try:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                changed = read(item, depth, keep)
                if changed is not item:
                    if result is value:
                        result = value.copy()
                    result[index] = changed
    except Refused as refused:
        refused.stands_below(index)
        raise
    return result


def _tagged(tag: str, payload: Any, depth: int, keep: bool) -> Any:
    reader = READERS.get(tag)
    if reader is None:
        raise Refused(
            f"the tag {tag} is not known to this release; a producer writes an object with keys"
            ' that begin with "$" as {"$dict": [[key, value], ...]}'
        )
    try:
        return reader(payload, depth, keep)
    except (Refused, RecursionError, MemoryError):
        raise  # the last two say something about this process, not about the value
    except Exception as error:
        # Also whatever a registered function or a class's own checks raise.
        raise Refused(f"{tag} is malformed: {type(error).__name__}: {error}") from error


def _text(payload: Any) -> str:
    if type(payload) is not str:
        raise ValueError("text expected")
    return payload


def _read_int(payload: Any, depth: int, keep: bool) -> int:
    text = _text(payload)
    if len(text) > DIGITS_MAX + 1 or not _INTEGER.fullmatch(text):
        raise ValueError(f"decimal digits expected, at most {DIGITS_MAX}")
    return int(text)


_INTEGER: Final = re.compile(r"-?[0-9]+")
_FLOATS: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _read_float(payload: Any, depth: int, keep: bool) -> float:
    return _FLOATS[payload]


def _read_bytes(payload: Any, depth: int, keep: bool) -> bytes:
    return binascii.a2b_base64(_text(payload), strict_mode=True)


def _read_datetime(payload: Any, depth: int, keep: bool) -> datetime.datetime:
    text, zone, fold = _split_suffix(_text(payload))
    stated = datetime.datetime.fromisoformat(text)
    if zone is None:
        return stated.replace(fold=fold or 0)
    # What is kept is the wall clock and the zone, as in Python. Where the clock passes twice,
    # producers without the fold tag (Java's ZonedDateTime) say by the offset which time they mean.
    value = stated.replace(tzinfo=zone, fold=fold or 0)
    if fold is None and value.utcoffset() != stated.utcoffset():
        second = value.replace(fold=1)
        if second.utcoffset() == stated.utcoffset():
            return second
    return value


def _read_time(payload: Any, depth: int, keep: bool) -> datetime.time:
    text, zone, fold = _split_suffix(_text(payload))
    value = datetime.time.fromisoformat(text)
    return value.replace(tzinfo=zone or value.tzinfo, fold=fold or 0)


_SUFFIX: Final = re.compile(r"([^\[\]]+)(?:\[([A-Za-z0-9_+/-]+)\])?(?:\[_fold=([01])\])?")


def _split_suffix(text: str) -> tuple[str, zoneinfo.ZoneInfo | None, int | None]:
    match = _SUFFIX.fullmatch(text)
    if match is None:
        raise ValueError("ISO 8601 text expected, with [Zone/Name] and [_fold=1] where needed")
    plain, key, fold = match.groups()
    zone = None if key is None else zoneinfo.ZoneInfo(key)
    return plain, zone, None if fold is None else int(fold)


def _read_date(payload: Any, depth: int, keep: bool) -> datetime.date:
    return datetime.date.fromisoformat(_text(payload))


_SECONDS: Final = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]{1,6}))?")


def _read_timedelta(payload: Any, depth: int, keep: bool) -> datetime.timedelta:
    match = _SECONDS.fullmatch(_text(payload))
    if match is None:
        raise ValueError("seconds expected, with at most six decimals")
    sign, seconds, fraction = match.groups()
    value = datetime.timedelta(0, int(seconds), int((fraction or "").ljust(6, "0")))
    return -value if sign else value


_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:E[+-]?[0-9]+)?|Infinity|s?NaN[0-9]*)")


def _read_decimal(payload: Any, depth: int, keep: bool) -> Decimal:
    # Checked here because Decimal() itself turns bad text into NaN when a context says so.
    if not _DECIMAL.fullmatch(_text(payload)):
        raise ValueError("a decimal number expected")
    return Decimal(payload)


def _read_uuid(payload: Any, depth: int, keep: bool) -> uuid.UUID:
    return uuid.UUID(_text(payload))


def _list(payload: Any) -> list[Any]:
    if type(payload) is not list:
        raise ValueError("a list expected")
    return payload


def _items(payload: Any, depth: int, keep: bool) -> list[Any]:
    if depth <= 0:
        refuse_depth()
    return _items_from_json(_list(payload), depth - 1, keep)


def _read_tuple(payload: Any, depth: int, keep: bool) -> tuple[Any, ...]:
    return tuple(_items(payload, depth, keep))


def _read_set(payload: Any, depth: int, keep: bool) -> set[Any]:
    return set(_items(payload, depth, keep))


def _read_frozenset(payload: Any, depth: int, keep: bool) -> frozenset[Any]:
    return frozenset(_items(payload, depth, keep))


def _read_dict(payload: Any, depth: int, keep: bool) -> dict[Any, Any]:
    if depth <= 1:
        refuse_depth()
    result = {}
    for pair in _list(payload):
        key, item = _list(pair)
        key = read(key, depth - 2, keep)
        try:
            result[key] = read(item, depth - 2, keep)
        except Refused as refused:
            refused.stands_below(key if type(key) in (str, int) else repr(key))
            raise
    if len(result) != len(payload):
        raise ValueError("a key stands there twice")
    return result


def _read_enum(payload: Any, depth: int, keep: bool) -> enum.Enum:
    name, member = _list(payload)
    cls: Any = class_named(name, is_enum)
    return cls(member) if issubclass(cls, enum.Flag) else cls[member]  # type: ignore[no-any-return]


def _fields(payload: Any, depth: int, keep: bool) -> dict[Any, Any]:
    fields = read(payload, depth, keep)
    if type(fields) is not dict:
        raise ValueError("an object expected")
    return fields


def _read_dataclass(payload: Any, depth: int, keep: bool) -> Any:
    name, payload_fields = _list(payload)
    cls: Any = class_named(name, is_dataclass)
    stored = _fields(payload_fields, depth - 1, keep)
    declared = dataclasses.fields(cls)
    if stored.keys() != {field.name for field in declared}:
        # The class has changed since: its own constructor fills in defaults, or says what is wrong.
        return cls(**stored)
    # As it was written, and not through __init__: a __post_init__ that computes or checks would
    # see values that it has already changed.
    instance = object.__new__(cls)
    for field in declared:
        object.__setattr__(instance, field.name, stored[field.name])
    return instance


def _read_model(payload: Any, depth: int, keep: bool) -> Any:
    name, payload_fields, *more = _list(payload)
    cls: Any = class_named(name, is_model)
    stored = _fields(payload_fields, depth - 1, keep)
    rest = more[0] if more else {}
    extra = _fields(rest.get("extra", {}), depth - 2, keep)
    private = _fields(rest.get("private", {}), depth - 2, keep)
    closed = cls.model_config.get("extra") != "allow"
    undeclared = private.keys() - cls.__private_attributes__.keys()
    if stored.keys() != cls.model_fields.keys() or (extra and closed) or undeclared:
        # The class has changed since: validation fills in defaults, or says what is wrong.
        return cls.model_validate(stored | extra, by_name=True, by_alias=False)
    # Exactly what was written, without validation: validators need not be idempotent (one that
    # hashes a password is not), and the value was valid when it was written.
    instance = cls.__new__(cls)
    object.__setattr__(instance, "__dict__", stored)
    object.__setattr__(instance, "__pydantic_extra__", None if closed else extra)
    object.__setattr__(instance, "__pydantic_fields_set__", set(rest.get("set", (*stored, *extra))))
    object.__setattr__(instance, "__pydantic_private__", _private_of(cls, private))
    return instance


def _private_of(cls: Any, stored: dict[str, Any]) -> dict[str, Any] | None:
    """Return a model's private attributes; ones that the class got since have their defaults."""
    declared = cls.__private_attributes__
    if not declared:
        return None
    added = {name: declared[name].get_default() for name in declared if name not in stored}
    undefined = sys.modules["pydantic_core"].PydanticUndefined
    return stored | {name: value for name, value in added.items() if value is not undefined}


def _read_user(payload: Any, depth: int, keep: bool) -> Any:
    tag, content = _list(payload)
    registered = registered_by_name.get(tag)
    if registered is None or registered.from_json is None:
        raise Refused(f"no class is registered for {tag!r}: see values.register")
    return registered.from_json(read(content, depth - 1, keep))


def _read_array(payload: Any, depth: int, keep: bool) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise Refused("an array, and numpy is not loaded in this process: import numpy first")
    dtype = numpy.dtype(_text(payload["dtype"]))
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"dtype {dtype}")
    raw = binascii.a2b_base64(_text(payload["data"]), strict_mode=True)
    shape = tuple(payload["shape"])
    fits = all(type(length) is int and length >= 0 for length in shape)
    if not fits or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes are no {dtype} array of shape {shape}")
    # From a bytearray, because an array over bytes could not be changed by its reader.
    return numpy.ndarray(shape, dtype, bytearray(raw)) if raw else numpy.empty(shape, dtype)


READERS: Final[dict[str, Callable[[Any, int, bool], Any]]] = {
    "$int": _read_int,
    "$float": _read_float,
    "$bytes": _read_bytes,
    "$datetime": _read_datetime,
    "$date": _read_date,
    "$time": _read_time,
    "$timedelta": _read_timedelta,
    "$decimal": _read_decimal,
    "$uuid": _read_uuid,
    "$tuple": _read_tuple,
    "$set": _read_set,
    "$frozenset": _read_frozenset,
    "$dict": _read_dict,
    "$enum": _read_enum,
    "$dataclass": _read_dataclass,
    "$model": _read_model,
    "$user": _read_user,
    "$ndarray": _read_array,
}
