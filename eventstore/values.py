"""Python values to JSON and back, exactly: what JSON cannot say is a tagged object.

Plain JSON stays plain. Everything else is an object with exactly one key, which begins with "$":
`{"$decimal": "1.50"}`. A dict that would look like that (a key beginning with "$") or that has
keys other than str is itself tagged (`$dict`), so nothing is ever read back as something else.
docs/wire.md has the whole table for other languages.

One rule decides what is taken: a value either reads back equal, of the same types all the way
down, or it is refused with UnsupportedValue. Hence exact types only: a subclass of str, int, list
or dict would come back as its base.

Reading never imports a module, and never runs code of a class that was not registered and is not
loaded already. What is not found here: operations (diff.py) and the declared types of a state
(typed.py).
"""

from __future__ import annotations

import binascii
import dataclasses
import datetime
import enum
import functools
import hashlib
import inspect
import math
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeVar

import orjson

from eventstore.errors import ConfigError, UnreadableValue, UnsupportedValue

__all__ = [
    "DEPTH_MAX",
    "DIGITS_MAX",
    "INTEGER_MAX",
    "INTEGER_MIN",
    "Path",
    "Unresolved",
    "decode",
    "digest",
    "encode",
    "from_json",
    "register",
    "to_json",
]

#: Levels of JSON objects and lists in one value. A list or dict is one level, a tuple or set two,
#: a dict that needs a tag three: 100 nested tuples fit. orjson writes at most 254 levels, and the
#: rest is for what stands around a value: operations, and the outbox around those.
DEPTH_MAX: Final = 230
#: Reading goes as deep as any JSON of ours can get: a tag at the deepest level adds to it, and
#: operations may put a value into another.
_READ_DEPTH_MAX: Final = 254
#: Digits of one int. Python itself refuses to print or parse more than 4,300 unless told otherwise.
DIGITS_MAX: Final = 4_000
#: Plain JSON numbers without a fraction: what a 64-bit signed integer of any language holds.
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1

#: Leads to a value, outermost first; for error messages.
Path = tuple[str | int, ...]
#: What to do with a tagged value that cannot be built here: fail, or leave its JSON in place.
Unresolved = Literal["refuse", "keep"]

_T = TypeVar("_T")


def encode(value: object, path: Path = ()) -> bytes:
    """Return `value` as JSON bytes; equal values (with equal key order) give equal bytes.

    Args:
        value: anything in the table of docs/wire.md, nested at will.
        path: where the value stands, for the message of an error.

    Raises:
        UnsupportedValue: something in it could not be read back exactly; the error has its path.
    """
    return orjson.dumps(to_json(value, path))


def to_json(value: object, path: Path = ()) -> Any:
    """Return `value` as a structure for a JSON writer, which shares no list or dict with it.

    Raises:
        UnsupportedValue: as for `encode`.
    """
    try:
        return _to_json(value, DEPTH_MAX)
    except _Refused as refused:
        raise UnsupportedValue(path + refused.path, refused.reason) from refused.__cause__


def decode(raw: bytes, *, unresolved: Unresolved = "refuse") -> Any:
    """Return fresh Python values from JSON bytes.

    Args:
        raw: what `encode` returned, or JSON of any other producer.
        unresolved: "keep" leaves tagged JSON in place of what cannot be built in this process
            (a class that is not loaded, a tag of a newer release), for tools that only show it.

    Raises:
        UnreadableValue: a tagged value cannot be built here; the error says what would help.
        ValueError: the bytes are not JSON.
    """
    value = orjson.loads(raw)
    # Text that begins with "$" comes here in vain, and rarely. A "$" may also stand escaped, and
    # there is one way to write that.
    if b'"$' in raw or b'"\\u0024' in raw:
        return from_json(value, unresolved=unresolved)
    return value


def from_json(json_value: object, *, unresolved: Unresolved = "refuse") -> Any:
    """Return the Python value of parsed JSON.

    The argument is not changed, but what needed no change in it is shared with the result.

    Raises:
        UnreadableValue: as for `decode`.
    """
    try:
        return _from_json(json_value, _READ_DEPTH_MAX, unresolved == "keep")
    except _Refused as refused:
        raise UnreadableValue(refused.path, refused.reason) from refused.__cause__


def digest(value: object) -> str:
    """Return 32 hexadecimal digits that are the same for equal values, whatever their key order.

    True, 1 and 1.0 differ; arrays count with their whole content.

    Raises:
        UnsupportedValue: as for `encode`.
    """
    raw = orjson.dumps(to_json(value), option=orjson.OPT_SORT_KEYS)
    if b'"$dict"' in raw:
        raw = orjson.dumps(_with_sorted_pairs(orjson.loads(raw)), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def register(
    cls: type[_T],
    *,
    tag: str,
    to_json: Callable[[_T], object] | None = None,
    from_json: Callable[[Any], _T] | None = None,
    aliases: Iterable[str] = (),
) -> None:
    """Make values of exactly this class storable, under a name of your own instead of the module's.

    Args:
        cls: the class; values of its subclasses are not taken.
        tag: the name in the log; it must never change its meaning.
        to_json: returns something storable, which may hold tagged types itself. Without it, an
            Enum, dataclass or pydantic model keeps its usual form and only the name is yours, so
            that the class may move between modules.
        from_json: gets that back, and returns an equal value.
        aliases: further names to read: earlier tags, or "module:QualName" from before.

    Raises:
        ConfigError: the tag belongs to another class, the class is stored as it is anyway, or
            just one function was given. Nothing was registered.
    """
    if (to_json is None) != (from_json is None):
        raise ConfigError(f"register({cls.__qualname__}): give both to_json and from_json, or none")
    if cls in _BUILT_IN:
        raise ConfigError(f"register: {cls.__qualname__} is stored as it is")
    if to_json is None and not (
        issubclass(cls, enum.Enum) or dataclasses.is_dataclass(cls) or _is_model(cls)
    ):
        raise ConfigError(f"register({cls.__qualname__}): to_json and from_json are needed")
    names = (tag, *aliases)
    for name in names:
        known = _registered_by_name.get(name)
        # A module that was reloaded, or a notebook cell that ran again, brings the class anew.
        if known is not None and _own_name(known.cls) != _own_name(cls):
            raise ConfigError(f"register: the tag {name!r} belongs to {known.cls.__qualname__}")
    entry = _Registered(cls, tag, to_json, from_json)
    _registered_by_class[cls] = entry
    for name in names:
        _registered_by_name[name] = entry


# --- what is registered, and which class a name means --------------------------------------------


class _Registered(NamedTuple):
    cls: type
    tag: str
    to_json: Callable[[Any], object] | None
    from_json: Callable[[Any], Any] | None


_registered_by_class: dict[type, _Registered] = {}
_registered_by_name: dict[str, _Registered] = {}


def _own_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _name_of(cls: type) -> str:
    """Return the name under which a class is written; refuse one that could not be found again."""
    registered = _registered_by_class.get(cls)
    if registered is not None:
        return registered.tag
    name = _own_name(cls)
    if _loaded_class(name) is not cls:
        raise _Refused(
            f"the class {cls.__module__}.{cls.__qualname__} cannot be found again by its name:"
            " define it at the top of a module, or register it with values.register"
        )
    return name


def _class_named(name: object, is_kind: Callable[[type], bool]) -> type:
    """Return the class that a name in the log means, without importing anything."""
    if type(name) is not str:
        raise _Refused("the name of its class is not text")
    registered = _registered_by_name.get(name)
    cls = _loaded_class(name) if registered is None else registered.cls
    if cls is None:
        raise _Refused(
            f"the class {name} is not known to this process: import its module first, or register"
            " the class that stands for it with values.register"
        )
    if not is_kind(cls):
        raise _Refused(f"{name} is not a class of the kind that was written")
    return cls


def _loaded_class(name: str) -> type | None:
    module_name, separator, qualified = name.partition(":")
    module = sys.modules.get(module_name) if separator else None
    if not isinstance(module, types.ModuleType):
        return None
    # Straight from the namespaces: a module's __getattr__ may import, and a lazy module loads
    # itself when an attribute is asked for in the usual way.
    namespace: Mapping[str, object] = object.__getattribute__(module, "__dict__")
    found: object = None
    for step in qualified.split("."):
        found = namespace.get(step)
        if not isinstance(found, type):
            return None
        namespace = type.__getattribute__(found, "__dict__")
    return found if isinstance(found, type) else None


def _is_model(cls: type) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def _is_dataclass(cls: type) -> bool:
    return dataclasses.is_dataclass(cls)


def _is_enum(cls: type) -> bool:
    return issubclass(cls, enum.Enum)


# --- writing -----------------------------------------------------------------------------------


class _Refused(Exception):
    """A value that is not taken; each level on the way out puts its step before `path`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: Path = ()

    def stands_below(self, step: str | int) -> None:
        self.path = (step, *self.path)


def _to_json(value: Any, depth: int) -> Any:
    """Return the JSON of a value; `depth` is how many levels it may still have."""
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
        _refuse_depth()
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
                result[key] = _to_json(item, depth)
        else:
            return result
    except _Refused as refused:
        refused.stands_below(key)
        raise
    return {"$dict": _pairs_to_json(value, depth)}


def _items_to_json(value: Iterable[Any], depth: int) -> list[Any]:
    if depth <= 0:
        _refuse_depth()
    depth -= 1
    result: list[Any] = []
    add = result.append
    try:
        for item in value:
            if type(item) is str and item.isascii():
                add(item)
            else:
                add(_to_json(item, depth))
    except _Refused as refused:
        refused.stands_below(len(result))
        raise
    return result


def _pairs_to_json(value: dict[Any, Any], depth: int) -> list[list[Any]]:
    if depth <= 1:
        _refuse_depth()
    pairs = []
    for key, item in value.items():
        try:
            pairs.append([_to_json(key, depth - 2), _to_json(item, depth - 2)])
        except _Refused as refused:
            refused.stands_below(key if type(key) in (str, int) else repr(key))
            raise
    return pairs


def _refuse_depth() -> NoReturn:
    raise _Refused(f"nested deeper than {DEPTH_MAX} levels of JSON, or within itself")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Refused(
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
    raise _Refused(f"an int of more than {DIGITS_MAX} digits")


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
            raise _Refused(f"a time zone whose name, {zone.key!r}, finds no zone") from None
        return f"[{zone.key}]{suffix}"
    if type(zone) is datetime.timezone:
        if zone.utcoffset(None).microseconds:
            # Python writes such offsets, and reads some of them as UTC.
            raise _Refused("a time zone whose offset has fractions of a second")
        if len(zone.__getinitargs__()) == 1:  # type: ignore[attr-defined]
            return suffix
        raise _Refused(
            "a fixed offset with a name of its own, which would be lost: use"
            " datetime.timezone(offset) or a zoneinfo.ZoneInfo"
        )
    raise _Refused(
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
        _refuse_depth()
    items = []
    for item in value:
        try:
            items.append(_to_json(item, depth - 2))
        except _Refused as refused:
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
_BUILT_IN: Final = frozenset({*_WRITERS, dict, list})


def _other_to_json(value: Any, kind: type, depth: int) -> Any:
    """Write what is recognised by more than its exact type: registered types, then families."""
    if depth <= 2:
        _refuse_depth()
    registered = _registered_by_class.get(kind)
    if registered is not None and registered.to_json is not None:
        try:
            payload = registered.to_json(value)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            raise _Refused(f"its registered to_json raised {type(error).__name__}") from error
        return {"$user": [registered.tag, _to_json(payload, depth - 2)]}
    if issubclass(kind, enum.Enum):
        return {"$enum": [_name_of(kind), _enum_member(value)]}
    if _is_model(kind):
        return {"$model": [_name_of(kind), *_model_parts(value, kind, depth - 2)]}
    if _is_dataclass(kind):
        return {"$dataclass": [_name_of(kind), _dataclass_fields(value, kind, depth - 2)]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return {"$ndarray": _array_parts(value)}
    raise _Refused(_why_not(value, kind))


def _enum_member(value: enum.Enum) -> Any:
    # Members of a Flag can be combinations, which have no name of their own.
    return int(value.value) if isinstance(value, enum.Flag) else value.name


def _dataclass_fields(value: Any, kind: Any, depth: int) -> dict[str, Any]:
    if issubclass(kind, _CONTAINERS):
        raise _Refused(f"a {_own_name(kind)} holds more than its fields: register it")
    names = [field.name for field in dataclasses.fields(kind)]
    for name in getattr(value, "__dict__", {}):
        cached = isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)
        if name not in names and not cached:
            raise _Refused(f"it has an attribute {name!r} that is no field and would be lost")
    result = {}
    for name in names:
        try:
            result[name] = _to_json(getattr(value, name), depth - 1)
        except AttributeError:
            raise _Refused(f"its field {name!r} was never set") from None
        except _Refused as refused:
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
        raise _Refused(f"its field {missing[0]!r} was never set (model_construct)")
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


#: Kinds of numpy's dtypes that are nothing but their bytes: bool, int, uint, float, complex,
#: timedelta, datetime, bytes, text.
_ARRAY_KINDS: Final = frozenset("biufcmMSU")


def _array_parts(value: Any) -> dict[str, Any]:
    dtype = value.dtype
    if dtype.kind not in _ARRAY_KINDS or dtype.char in "gG":
        raise _Refused(
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
    if isinstance(value, type):
        return f"a class ({value.__module__}.{value.__qualname__}): state holds data only"
    return f"values of type {name} cannot be read back exactly: convert it, or register the type"


# --- reading -----------------------------------------------------------------------------------


def _from_json(value: Any, depth: int, keep: bool) -> Any:
    kind = type(value)
    if kind is not dict and kind is not list:
        return value
    if depth <= 0:
        _refuse_depth()
    if kind is list:
        return _items_from_json(value, depth - 1, keep)
    if len(value) == 1:
        (tag,) = value
        if tag[:1] == "$":
            try:
                return _tagged(tag, value[tag], depth - 1, keep)
            except _Refused:
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
                changed = _from_json(item, depth, keep)
                if changed is not item:
                    if result is value:
                        result = value.copy()
                    result[key] = changed
    except _Refused as refused:
        refused.stands_below(key)
        raise
    return result


def _items_from_json(value: list[Any], depth: int, keep: bool) -> list[Any]:
    result = value
    index = 0
    try:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                changed = _from_json(item, depth, keep)
                if changed is not item:
                    if result is value:
                        result = value.copy()
                    result[index] = changed
    except _Refused as refused:
        refused.stands_below(index)
        raise
    return result


def _tagged(tag: str, payload: Any, depth: int, keep: bool) -> Any:
    reader = _READERS.get(tag)
    if reader is None:
        raise _Refused(
            f"the tag {tag} is not known to this release; a producer writes an object with keys"
            ' that begin with "$" as {"$dict": [[key, value], ...]}'
        )
    try:
        return reader(payload, depth, keep)
    except (_Refused, RecursionError, MemoryError):
        raise  # the last two say something about this process, not about the value
    except Exception as error:
        # Also whatever a registered function or a class's own checks raise.
        raise _Refused(f"{tag} is malformed: {type(error).__name__}: {error}") from error


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
        _refuse_depth()
    return _items_from_json(_list(payload), depth - 1, keep)


def _read_tuple(payload: Any, depth: int, keep: bool) -> tuple[Any, ...]:
    return tuple(_items(payload, depth, keep))


def _read_set(payload: Any, depth: int, keep: bool) -> set[Any]:
    return set(_items(payload, depth, keep))


def _read_frozenset(payload: Any, depth: int, keep: bool) -> frozenset[Any]:
    return frozenset(_items(payload, depth, keep))


def _read_dict(payload: Any, depth: int, keep: bool) -> dict[Any, Any]:
    if depth <= 1:
        _refuse_depth()
    result = {}
    for pair in _list(payload):
        key, item = _list(pair)
        key = _from_json(key, depth - 2, keep)
        try:
            result[key] = _from_json(item, depth - 2, keep)
        except _Refused as refused:
            refused.stands_below(key if type(key) in (str, int) else repr(key))
            raise
    if len(result) != len(payload):
        raise ValueError("a key stands there twice")
    return result


def _read_enum(payload: Any, depth: int, keep: bool) -> enum.Enum:
    name, member = _list(payload)
    cls: Any = _class_named(name, _is_enum)
    return cls(member) if issubclass(cls, enum.Flag) else cls[member]  # type: ignore[no-any-return]


def _fields(payload: Any, depth: int, keep: bool) -> dict[Any, Any]:
    fields = _from_json(payload, depth, keep)
    if type(fields) is not dict:
        raise ValueError("an object expected")
    return fields


def _read_dataclass(payload: Any, depth: int, keep: bool) -> Any:
    name, payload_fields = _list(payload)
    cls: Any = _class_named(name, _is_dataclass)
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
    cls: Any = _class_named(name, _is_model)
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
    registered = _registered_by_name.get(tag)
    if registered is None or registered.from_json is None:
        raise _Refused(f"no class is registered for {tag!r}: see values.register")
    return registered.from_json(_from_json(content, depth - 1, keep))


def _read_array(payload: Any, depth: int, keep: bool) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise _Refused("an array, and numpy is not loaded in this process: import numpy first")
    dtype = numpy.dtype(_text(payload["dtype"]))
    if dtype.kind not in _ARRAY_KINDS:
        raise ValueError(f"dtype {dtype}")
    raw = binascii.a2b_base64(_text(payload["data"]), strict_mode=True)
    shape = tuple(payload["shape"])
    fits = all(type(length) is int and length >= 0 for length in shape)
    if not fits or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes are no {dtype} array of shape {shape}")
    # From a bytearray, because an array over bytes could not be changed by its reader.
    return numpy.ndarray(shape, dtype, bytearray(raw)) if raw else numpy.empty(shape, dtype)


_READERS: Final[dict[str, Callable[[Any, int, bool], Any]]] = {
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


def _with_sorted_pairs(json_value: Any) -> Any:
    """Return JSON whose `$dict` pairs stand in the order of their keys' bytes."""
    if type(json_value) is list:
        return [_with_sorted_pairs(item) for item in json_value]
    if type(json_value) is not dict:
        return json_value
    result = {key: _with_sorted_pairs(item) for key, item in json_value.items()}
    if result.keys() == {"$dict"}:
        result["$dict"].sort(key=lambda pair: orjson.dumps(pair[0], option=orjson.OPT_SORT_KEYS))
    return result
