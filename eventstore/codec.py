"""Events to bytes and back: Avro single-object encoding of the envelope in event.avsc.

    C3 01   fingerprint of the schema (8 bytes, little-endian CRC-64-AVRO)   body (Avro binary)

The reader here is our own and takes just what the Avro specification allows. Libraries differ in
what else they let through (fastavro takes a union branch or an enum symbol with a negative index,
counted from the end; numbers beyond 64 bits wrap around or not), and the verdict about a record
has to be the same in every process that folds it. The tests compare both directions with fastavro
and with the `avro` package. It also costs less: 0.5 us for a plain diff, each way.

What is not found here: the meaning of bodies, which are bytes to the codec (diff.py, values.py).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

import orjson

from eventstore.errors import CorruptEvent, UnknownSchema, UnsupportedValue
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

__all__ = ["FINGERPRINT", "decode_event", "encode_event", "is_ours"]

#: The first two bytes of Avro's single-object encoding, version 1.
_MARKER: Final = b"\xc3\x01"
_HEADER_BYTES: Final = 10

#: Fingerprint of the schema that events are written with, as it stands in the bytes. It is stated
#: and not computed, because a released one never changes; tests/unit/test_codec.py computes it.
FINGERPRINT: Final = bytes.fromhex("56f5e6ca97e8cda8")

#: Every schema that was ever released: fingerprint -> file in this package. None is ever removed.
_RELEASED: Final = {FINGERPRINT: "event.avsc"}

_HEADER: Final = _MARKER + FINGERPRINT


def is_ours(value: bytes | None) -> bool:
    """Say whether a record's value claims to be an event; a value that does not is foreign."""
    return value is not None and value[:2] == _MARKER


def encode_event(event: Event) -> bytes:
    """Return the bytes of an event, the same for equal events.

    Raises:
        UnsupportedValue: a part has another type than its field of Event states, a number is
            beyond 64 bits (`discard_policy`: 32), or text has a lone surrogate; the path names it.
    """
    kind, name, body = event[:3]
    if type(name) is str and name.isascii() and type(body) is bytes and event[3:] == _PLAIN_PARTS:
        head = _HEADS.get(kind)
        if head is not None:
            return b"%b%b%b%b%b%b" % (
                head, _length(len(name)), name.encode(), _length(len(body)), body, _PLAIN_SUFFIX
            )  # fmt: skip
    out = bytearray(_HEADER)
    _write_event(out, event)
    return bytes(out)


def decode_event(value: bytes) -> Event:
    """Return the event of a record for which `is_ours` holds.

    Raises:
        UnknownSchema: the fingerprint is of no released schema.
        CorruptEvent: the schema is known, and the rest is not exactly one event of it.
    """
    if value.startswith(_HEADER) and value.endswith(_PLAIN_SUFFIX):
        event = _read_plain(value)
        if event is not None:
            return event
    if not is_ours(value) or len(value) < _HEADER_BYTES:
        raise CorruptEvent(f"{len(value)} bytes that begin with {value[:2].hex()!r} are no event")
    read = _READERS.get(value[2:_HEADER_BYTES])
    if read is None:
        raise UnknownSchema(value[2:_HEADER_BYTES].hex())
    try:
        event, end = read(value, _HEADER_BYTES)
    except IndexError:
        raise CorruptEvent(f"the event's {len(value)} bytes end too early") from None
    except UnicodeDecodeError as error:
        raise CorruptEvent(f"the event has text that is not UTF-8: {error.reason}") from None
    if end != len(value):
        raise CorruptEvent(f"{len(value) - end} bytes stand behind the event")
    return event  # type: ignore[no-any-return]


# --- the usual event, which has a kind, a name and a body and nothing else -----------------------

#: What follows kind, name and body then: eleven nulls, generation 0 and one more null, each one
#: byte 0. A byte for each part keeps the schema flat, and costs 13 bytes per event.
_PLAIN_PARTS: Final = tuple(Event(Kind.DIFF)[3:])
_PLAIN_SUFFIX: Final = bytes(len(_PLAIN_PARTS))
_HEADS: Final = {kind: _HEADER + bytes([kind << 1]) for kind in Kind}


def _length(count: int) -> bytes:
    return _SHORT_LENGTHS[count] if count < 64 else _long_bytes(count)


def _read_plain(value: bytes) -> Event | None:
    """Return the event if its bytes are plain; None leaves them to the full reader.

    Avro can be read in one way only, so if kind, name and body end just where the suffix of
    nulls begins, then the full reader would find the same.
    """
    end = len(value) - len(_PLAIN_SUFFIX)
    try:
        kind = _KINDS_BY_BYTE[value[_HEADER_BYTES]]
        name, at = _read_string(value, _HEADER_BYTES + 1)
        body, at = _read_bytes(value, at)
    except (IndexError, KeyError, UnicodeDecodeError, CorruptEvent):
        return None
    return Event(kind, name, body) if at == end else None


_KINDS_BY_BYTE: Final = {kind << 1: kind for kind in Kind}


# --- Avro binary: numbers, text, and what holds them ---------------------------------------------

_Writer = Callable[[bytearray, Any], None]
#: Takes the bytes and where to begin; returns the value and where it ends. An IndexError means
#: that the bytes end too early.
_Reader = Callable[[bytes, int], tuple[Any, int]]


def _long_bytes(number: int) -> bytes:
    """Return a number zigzagged (0, -1, 1, -2, ...), seven bits a byte, the lowest first."""
    rest = (number << 1) ^ (number >> 63)
    if rest < 128:
        return _ONE_BYTE[rest]
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_ONE_BYTE: Final = [bytes([byte]) for byte in range(128)]
_SHORT_LENGTHS: Final = [bytes([length << 1]) for length in range(64)]


def _read_long(raw: bytes, at: int) -> tuple[int, int]:
    byte = raw[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    number = byte & 127
    for shift in range(7, 70, 7):
        at += 1
        byte = raw[at]
        number |= (byte & 127) << shift
        if byte < 128:
            if number >> 64:
                break
            return (number >> 1) ^ -(number & 1), at + 1
    raise CorruptEvent("the event has a number beyond 64 bits")


def _read_int(raw: bytes, at: int) -> tuple[int, int]:
    number, at = _read_long(raw, at)
    if not -(2**31) <= number < 2**31:
        raise CorruptEvent("the event has a number beyond 32 bits where those are the bound")
    return number, at


def _write_number(bits: int) -> _Writer:
    def write(out: bytearray, value: Any) -> None:
        if type(value) is not int:
            _refuse(value, "an int")
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise UnsupportedValue((), f"a number beyond {bits} bits")
        out += _long_bytes(value)

    return write


def _write_boolean(out: bytearray, value: Any) -> None:
    if type(value) is not bool:
        _refuse(value, "a bool")
    out.append(value)


def _read_boolean(raw: bytes, at: int) -> tuple[bool, int]:
    if raw[at] > 1:
        raise CorruptEvent(f"the event has a boolean that is {raw[at]}")
    return raw[at] == 1, at + 1


def _write_bytes(out: bytearray, value: Any) -> None:
    if type(value) is not bytes:
        _refuse(value, "bytes")
    out += _length(len(value))
    out += value


def _read_bytes(raw: bytes, at: int) -> tuple[bytes, int]:
    length = raw[at] >> 1
    if raw[at] < 128 and not raw[at] & 1:
        at += 1
    else:
        length, at = _read_long(raw, at)
    end = at + length
    if length < 0 or end > len(raw):
        raise CorruptEvent(f"the event has a length of {length} with {len(raw) - at} bytes left")
    return raw[at:end], end


def _write_string(out: bytearray, value: Any) -> None:
    if type(value) is not str:
        _refuse(value, "a str")
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise UnsupportedValue((), "text with a lone surrogate") from None
    out += _length(len(raw))
    out += raw


def _read_string(raw: bytes, at: int) -> tuple[str, int]:
    text, at = _read_bytes(raw, at)
    return text.decode(), at


def _refuse(value: object, wanted: str) -> None:
    raise UnsupportedValue((), f"{wanted} expected, not {type(value).__name__}")


def _write_kind(out: bytearray, value: Any) -> None:
    if type(value) is not Kind:
        _refuse(value, "a Kind")
    out.append(value << 1)


def _read_kind(raw: bytes, at: int) -> tuple[Kind, int]:
    index, at = _read_long(raw, at)
    if not 0 <= index < len(Kind):
        raise CorruptEvent(f"the event has the unknown kind {index}")
    return Kind(index), at


def _write_list(write_item: _Writer) -> _Writer:
    def write(out: bytearray, value: Any) -> None:
        if type(value) is not tuple:
            _refuse(value, "a tuple")
        if value:
            out += _long_bytes(len(value))
            for item in value:
                write_item(out, item)
        out.append(0)

    return write


def _read_list(read_item: _Reader) -> _Reader:
    def read(raw: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        items: list[Any] = []
        while True:
            count, at = _read_long(raw, at)
            if count == 0:
                return tuple(items), at
            if count < 0:  # a block that states its size too, for readers that skip it
                size, start = _read_long(raw, at)
                count, at = -count, start
                end = start + size
            else:
                end = None
            # An item takes a byte at least, so a false count ends with the bytes, not the memory.
            for _ in range(count):
                item, at = read_item(raw, at)
                items.append(item)
            if end is not None and at != end:
                raise CorruptEvent("the event has a list block of another size than it states")

    return read


def _write_nullable(write_value: _Writer) -> _Writer:
    def write(out: bytearray, value: Any) -> None:
        if value is None:
            out.append(0)
        else:
            out.append(2)
            write_value(out, value)

    return write


def _read_nullable(read_value: _Reader) -> _Reader:
    def read(raw: bytes, at: int) -> tuple[Any, int]:
        branch, at = _read_long(raw, at)
        if branch == 0:
            return None, at
        if branch == 1:
            return read_value(raw, at)
        raise CorruptEvent(f"the event has a union with the unknown branch {branch}")

    return read


def _write_record(cls: Any, names: list[str], writers: list[_Writer]) -> _Writer:
    def write(out: bytearray, value: Any) -> None:
        if type(value) is not cls or len(value) != len(writers):
            _refuse(value, f"a {cls.__name__} of {len(writers)}")
        for index, write_field in enumerate(writers):
            try:
                write_field(out, value[index])
            except UnsupportedValue as error:
                raise UnsupportedValue((names[index], *error.path), error.reason) from None

    return write


def _read_record(cls: Any, names: list[str], readers: list[_Reader]) -> _Reader:
    in_order = cls is tuple or list(cls._fields) == names
    make = cls if cls is tuple else cls._make

    def read(raw: bytes, at: int) -> tuple[Any, int]:
        values = []
        for read_field in readers:
            value, at = read_field(raw, at)
            values.append(value)
        if in_order:
            return make(values), at
        # An older schema: what it does not have takes the default of the class.
        return cls(**{k: v for k, v in zip(names, values, strict=True) if k in cls._fields}), at

    return read


# --- from the schema's text to functions ---------------------------------------------------------

#: Which class stands for which record. A source's number is a plain pair.
_CLASSES: Final[dict[str, type]] = {
    cls.__name__: cls
    for cls in (
        Answer, Copied, EffectKey, Event, ForkOf, Guard, Origin, RequestPolicy, Source, Times
    )
} | {"Number": tuple}  # fmt: skip

_PRIMITIVES: Final[dict[str, tuple[_Writer, _Reader]]] = {
    "long": (_write_number(64), _read_long),
    "int": (_write_number(32), _read_int),
    "boolean": (_write_boolean, _read_boolean),
    "bytes": (_write_bytes, _read_bytes),
    "string": (_write_string, _read_string),
}


def _compile(schema: Any, named: dict[str, tuple[_Writer, _Reader]]) -> tuple[_Writer, _Reader]:
    """Return the writer and the reader of a schema; `named` collects the types that it names.

    Takes the part of Avro that the envelope is made of: the primitives above, records, lists,
    the one enum, and unions of null and one more.
    """
    if isinstance(schema, str):
        return named[schema]
    if isinstance(schema, list):
        null, other = schema
        assert null == "null", "unions in the envelope are nullable types, null first"
        write, read = _compile(other, named)
        return _write_nullable(write), _read_nullable(read)
    if schema["type"] == "array":
        write, read = _compile(schema["items"], named)
        return _write_list(write), _read_list(read)
    if schema["type"] == "enum":
        assert schema["symbols"] == [kind.name for kind in Kind][: len(schema["symbols"])]
        return _write_kind, _read_kind
    assert schema["type"] == "record", f"the envelope has no {schema['type']}"
    cls = _CLASSES[schema["name"]]
    names = [field["name"] for field in schema["fields"]]
    compiled = [_compile(field["type"], named) for field in schema["fields"]]
    codec = (
        _write_record(cls, names, [write for write, _ in compiled]),
        _read_record(cls, names, [read for _, read in compiled]),
    )
    named[schema["name"]] = codec
    return codec


def _compile_file(name: str) -> tuple[_Writer, _Reader]:
    text = files("eventstore").joinpath(name).read_bytes()
    return _compile(orjson.loads(text), dict(_PRIMITIVES))


_READERS: Final = {fingerprint: _compile_file(file)[1] for fingerprint, file in _RELEASED.items()}
_write_event: Final = _compile_file(_RELEASED[FINGERPRINT])[0]
