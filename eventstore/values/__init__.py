"""Python values to JSON and back, exactly: what JSON cannot say is a tagged object.

Plain JSON stays plain. Everything else is an object with exactly one key, which begins with "$":
`{"$decimal": "1.50"}`. A dict that would look like that (a key beginning with "$") or that has
keys other than str is itself tagged (`$dict`), so nothing is ever read back as something else.
docs/wire.md has the whole table for other languages.

One rule decides what is taken: a value either reads back equal, of the same types all the way
down, or it is refused with UnsupportedValue. Hence exact types only: a subclass of str, int, list
or dict would come back as its base.

Reading never imports a module, and never runs code of a class that was not registered and is not
loaded already. Here is what the other rooms call; writing.py and reading.py have the types and
tags. What is not found here: operations (diff.py) and the declared types of a state (typed.py).
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import orjson

from eventstore.errors import ConfigError, UnreadableValue, UnsupportedValue
from eventstore.values.classes import (
    Registered,
    is_model,
    own_name,
    registered_by_class,
    registered_by_name,
)
from eventstore.values.limits import (
    DEPTH_MAX,
    DIGITS_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    READ_DEPTH_MAX,
    Path,
    Refused,
)
from eventstore.values.reading import read
from eventstore.values.writing import BUILT_IN, write

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
        return write(value, DEPTH_MAX)
    except Refused as refused:
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
        return read(json_value, READ_DEPTH_MAX, unresolved == "keep")
    except Refused as refused:
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
    if cls in BUILT_IN:
        raise ConfigError(f"register: {cls.__qualname__} is stored as it is")
    if to_json is None and not (
        issubclass(cls, enum.Enum) or dataclasses.is_dataclass(cls) or is_model(cls)
    ):
        raise ConfigError(f"register({cls.__qualname__}): to_json and from_json are needed")
    names = (tag, *aliases)
    for name in names:
        known = registered_by_name.get(name)
        # A module that was reloaded, or a notebook cell that ran again, brings the class anew.
        if known is not None and own_name(known.cls) != own_name(cls):
            raise ConfigError(f"register: the tag {name!r} belongs to {known.cls.__qualname__}")
    entry = Registered(cls, tag, to_json, from_json)
    registered_by_class[cls] = entry
    for name in names:
        registered_by_name[name] = entry


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
