"""The envelope's fields to Avro binary and back: event.avsc, written down as a table.

Here is what every event pays for, so it is short and knows one spelling of each value. Whatever
else there is (a number in more bytes than it needs, a list in several blocks, bytes that are no
event at all, a value of another type than its field) both directions answer with None, and
fastavro decides in codec.py what it means or how it is refused. tests/property/test_envelope.py
holds the table against fastavro, in bytes, in values, and in what is left to it.

What is not found here: marker and fingerprint, older schemas, errors (codec.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any, Final, NamedTuple

from eventstore.events import (
    Answer,
    Copied,
    EffectKey,
    Event,
    ForkOf,
    Guard,
    Kind,
    Origin,
    RequestPolicy,
    Source,
    Times,
)

__all__ = ["read", "write", "write_plain"]


class _Type(NamedTuple):
    """An Avro type: how a value of it is written, and how one is read.

    Both raise one of `_UNUSUAL` where they leave it to fastavro. Reading starts at an index and
    returns the value with the index behind it. Text and bytes that reach beyond the end are cut
    off there: the index tells, and whoever reads on or compares it with the end notices.
    """

    write: Callable[[Any], bytes]
    read: Callable[[bytes, int], tuple[Any, int]]


_UNUSUAL: Final = (IndexError, KeyError, TypeError, ValueError)

_NULL: Final = b"\0"
_BRANCH: Final = b"\2"  # of a union of null and another type: here comes the other one

#: Seven bits of a number as its last byte, and as one that another follows.
_LAST: Final = tuple(bytes((bits,)) for bits in range(128))
_MORE: Final = tuple(bytes((bits | 128,)) for bits in range(128))


# --- numbers: zigzagged (0, -1, 1, -2 become 0, 1, 2, 3), seven bits a byte, the lowest first ----


def _write_long(number: int) -> bytes:
    if type(number) is not int:
        raise TypeError("not an integer")
    if 0 <= number < 64:
        return _LAST[number << 1]
    if not -(2**63) <= number < 2**63:
        raise ValueError("beyond 64 bits")
    return _write_bits(number << 1 ^ number >> 63)


def _write_int(number: int) -> bytes:
    if not -(2**31) <= number < 2**31:
        raise ValueError("beyond 32 bits")
    return _write_long(number)


def _write_bits(bits: int) -> bytes:
    if bits < 2**14:  # most of those that are not one byte
        return _MORE[bits & 127] + _LAST[bits >> 7] if bits > 127 else _LAST[bits]
    return _MORE[bits & 127] + _write_bits(bits >> 7)


def _read_long(value: bytes, at: int) -> tuple[int, int]:
    byte = value[at]
    at += 1
    if byte < 128:
        return byte >> 1 ^ -(byte & 1), at
    bits = byte & 127
    shift = 7
    while byte > 127:
        byte = value[at]
        at += 1
        bits |= (byte & 127) << shift
        shift += 7
        if bits >> 64:
            raise ValueError("beyond 64 bits")
    return bits >> 1 ^ -(bits & 1), at


def _write_boolean(value: bool) -> bytes:
    if type(value) is not bool:
        raise TypeError("not a boolean")
    return _LAST[value]


def _read_boolean(value: bytes, at: int) -> tuple[bool, int]:
    return (False, True)[value[at]], at + 1


def _write_kind(kind: Kind) -> bytes:
    if type(kind) is not Kind:
        raise TypeError("not a kind")
    return _LAST[kind << 1]


_KINDS_BY_BYTE: Final = {kind << 1: kind for kind in Kind}


def _read_kind(value: bytes, at: int) -> tuple[Kind, int]:
    return _KINDS_BY_BYTE[value[at]], at + 1


# --- text, bytes and lists: their length comes first ---------------------------------------------


def _write_bytes(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError("not bytes")
    return _write_bits(len(value) << 1) + value


def _read_bytes(value: bytes, at: int) -> tuple[bytes, int]:
    count, start = _read_count(value, at)
    end = start + count
    return value[start:end], end


def _write_text(text: str) -> bytes:
    encoded = str.encode(text)  # of str itself: TypeError for what is none
    return _write_bits(len(encoded) << 1) + encoded


def _read_text(value: bytes, at: int) -> tuple[str, int]:
    count, start = _read_count(value, at)
    end = start + count
    return value[start:end].decode(), end


def _write_texts(texts: tuple[str, ...]) -> bytes:
    if type(texts) is not tuple:
        raise TypeError("not a tuple")
    if not texts:
        return _NULL
    return _write_long(len(texts)) + b"".join(map(_write_text, texts)) + _NULL


def _read_texts(value: bytes, at: int) -> tuple[tuple[str, ...], int]:
    count, at = _read_count(value, at)
    texts = []
    for _ in range(count):
        text, at = _read_text(value, at)
        texts.append(text)
    if count:
        if value[at]:
            raise ValueError("a list in several blocks")
        at += 1
    return tuple(texts), at


def _read_count(value: bytes, at: int) -> tuple[int, int]:
    byte = value[at]
    if byte & 129 == 0:  # one byte, and not below 0
        return byte >> 1, at + 1
    count, at = _read_long(value, at)
    if count < 0:
        raise ValueError("a length below 0, or a block that states its size")
    return count, at


# --- what is made of others ----------------------------------------------------------------------


def _nullable(of: _Type) -> _Type:
    write_it, read_it = of

    def write(value: Any) -> bytes:
        return _NULL if value is None else _BRANCH + write_it(value)

    def read(value: bytes, at: int) -> tuple[Any, int]:
        branch = value[at]
        if branch == 0:
            return None, at + 1
        if branch != 2:
            raise ValueError("no branch of the union")
        return read_it(value, at + 1)

    return _Type(write, read)


def _record(cls: Any, *types: _Type) -> _Type:
    """Return the type of a record whose fields a NamedTuple, or a plain tuple, has."""
    writers = [of.write for of in types]
    readers = [of.read for of in types]
    # Straight to the tuple: the constructor of a NamedTuple costs as much as reading its fields.
    make = partial(tuple.__new__, cls)

    def write(part: Any) -> bytes:
        if type(part) is not cls or len(part) != len(writers):
            raise TypeError(f"not {cls.__name__}")
        return b"".join(map(call, writers, part))

    def read(value: bytes, at: int) -> tuple[Any, int]:
        fields = []
        for read_field in readers:
            field, at = read_field(value, at)
            fields.append(field)
        return make(fields), at

    return _Type(write, read)


_LONG: Final = _Type(_write_long, _read_long)
_INT: Final = _Type(_write_int, _read_long)
_BOOLEAN: Final = _Type(_write_boolean, _read_boolean)
_KIND: Final = _Type(_write_kind, _read_kind)
_BYTES: Final = _Type(_write_bytes, _read_bytes)
_TEXT: Final = _Type(_write_text, _read_text)
_TEXTS: Final = _Type(_write_texts, _read_texts)
_LONG_OR_NULL: Final = _nullable(_LONG)
_TEXT_OR_NULL: Final = _nullable(_TEXT)
_BYTES_OR_NULL: Final = _nullable(_BYTES)
_NUMBER: Final = _record(tuple, _LONG, _LONG)


# --- the envelope --------------------------------------------------------------------------------

#: The parts of event.avsc, each of them null or this, in its order; that of their fields is the
#: one of the classes.
_PARTS: Final = (
    _record(Guard, _LONG, _TEXTS, _TEXT_OR_NULL, _LONG),
    _record(Answer, _LONG, _LONG, _BOOLEAN),
    _record(Source, _TEXT, _NUMBER, _nullable(_NUMBER)),
    _record(RequestPolicy, _TEXT, _INT, _LONG, _BOOLEAN, _LONG_OR_NULL, _LONG, _LONG_OR_NULL),
    _record(EffectKey, _LONG, _TEXT),
    _TEXT,  # the idempotency key
    _record(Times, _LONG_OR_NULL, _LONG_OR_NULL),
    _record(Origin, _TEXT_OR_NULL, _TEXT_OR_NULL, _BYTES_OR_NULL),
    _record(ForkOf, _TEXT, _TEXT, _LONG, _LONG, _LONG),
    _record(Copied, _LONG, _LONG),
    _BYTES,  # the outbox
)
_PART_READERS: Final = tuple(of.read for of in _PARTS)

_ENVELOPE: Final = (_KIND, _TEXT, _BYTES, *map(_nullable, _PARTS), _LONG, _TEXT_OR_NULL)
_WRITERS: Final = tuple(of.write for of in _ENVELOPE)

#: What stands behind the body if there is nothing but a body: nulls, and generation 0.
_NO_PARTS: Final = bytes(len(_ENVELOPE) - 3)


def write(event: Event) -> bytes | None:
    """Return an event's envelope, or None to leave it to fastavro."""
    try:
        return b"".join(map(call, _WRITERS, event))
    except _UNUSUAL:
        return None


def write_plain(kind: Kind, name: str, body: bytes) -> bytes | None:
    """Return `write(Event(kind, name, body))`, for less."""
    try:
        return _write_kind(kind) + _write_text(name) + _write_bytes(body) + _NO_PARTS
    except _UNUSUAL:
        return None


def read(value: bytes, start: int) -> Event | None:
    """Return the event whose envelope begins at `start` and ends with `value`.

    Avro can be read in one way only, so fastavro would find the same. None leaves it to fastavro.
    """
    try:
        return _read(value, start)
    except _UNUSUAL:
        return None


def _read(value: bytes, at: int) -> Event | None:
    kind, at = _read_kind(value, at)
    name, at = _read_text(value, at)
    body, at = _read_bytes(value, at)
    if value[at:] == _NO_PARTS:
        return Event(kind, name, body)
    fields: list[Any] = [kind, name, body]
    for read_part in _PART_READERS:
        branch = value[at]
        at += 1
        if branch == 0:
            fields.append(None)
        elif branch == 2:
            part, at = read_part(value, at)
            fields.append(part)
        else:
            return None
    generation, at = _read_long(value, at)
    key_id, at = _TEXT_OR_NULL.read(value, at)
    fields += (generation, key_id)
    return tuple.__new__(Event, fields) if at == len(value) else None
