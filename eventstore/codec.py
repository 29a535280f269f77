"""Events to bytes and back: Avro single-object encoding of the envelope in event.avsc.

    C3 01   fingerprint of the schema (8 bytes, little-endian CRC-64-AVRO)   body (Avro binary)

envelope.py writes and reads the body, at a fifth of fastavro's cost and less. What it leaves
alone, and every older schema, is fastavro's: it says what is an event, and what is refused.

What is not found here: the meaning of bodies, which are bytes to the codec (diff.py, values/).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

import fastavro
import orjson

from eventstore import envelope
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
from eventstore.testing import fault_point

__all__ = ["FINGERPRINT", "decode_event", "encode_event", "encode_plain", "is_ours"]

#: The first two bytes of Avro's single-object encoding, version 1.
_MARKER: Final = b"\xc3\x01"
_HEADER_BYTES: Final = 10

#: Fingerprint of the schema that events are written with, as it stands in the bytes. It is stated
#: and not computed, because a released one never changes; tests/unit/test_codec.py computes it.
FINGERPRINT: Final = bytes.fromhex("56f5e6ca97e8cda8")

#: Every schema that was ever released: fingerprint -> file in this package. None is ever removed.
_RELEASED: Final = {FINGERPRINT: "event.avsc"}

_HEADER: Final = _MARKER + FINGERPRINT

#: What RecentEvents keeps: at most so many events, and none that is larger.
_RECENT_EVENTS_MAX: Final = 8_192
_RECENT_BYTES_MAX: Final = 1_024


def is_ours(value: bytes | None) -> bool:
    """Say whether a record's value claims to be an event; a value that does not is foreign."""
    return value is not None and value[:2] == _MARKER


def encode_event(event: Event) -> bytes:
    """Return the bytes of an event, the same for equal events.

    Raises:
        UnsupportedValue: a part has another type than its field of Event states, a number is
            beyond 64 bits, or text has a lone surrogate; the path names it where it is known.
    """
    fault_point("event.encode.before")
    written = envelope.write(event)
    return _write_by_fastavro(event) if written is None else _HEADER + written


def _write_by_fastavro(event: Event) -> bytes:
    out = io.BytesIO()
    out.write(_HEADER)
    try:
        fastavro.schemaless_writer(
            out, _NEWEST, _to_record(event), strict=True, disable_tuple_notation=True
        )
    except (TypeError, ValueError, AttributeError, OverflowError, UnicodeError) as error:
        raise UnsupportedValue((), f"no part of an event: {error}") from error
    value = out.getvalue()
    # fastavro wraps numbers that are too large, and takes some types for others.
    read = decode_event(value)
    if read != event:
        raise UnsupportedValue(
            tuple(name for name in Event._fields if getattr(read, name) != getattr(event, name)),
            "a number beyond its bounds, or a value of another type than its field",
        )
    return value


def encode_plain(kind: Kind, name: str, body: bytes) -> bytes:
    """Return the bytes of `Event(kind, name, body)`, without making one.

    Raises:
        UnsupportedValue: as for `encode_event`.
    """
    fault_point("event.encode.before")
    written = envelope.write_plain(kind, name, body)
    return _write_by_fastavro(Event(kind, name, body)) if written is None else _HEADER + written


class RecentEvents:
    """Events that this process has just encoded: its own view need not decode them again.

    They are found by their bytes. Decoding gives an equal event (tests/property/test_envelope.py),
    so a view is the same with and without this. It is bounded: what is too large or too long ago
    is decoded like everybody else's.
    """

    def __init__(self) -> None:
        self._events: dict[bytes, Event] = {}

    def encode(self, event: Event) -> bytes:
        """Return what `encode_event` does, and remember it."""
        value = encode_event(event)
        if len(value) <= _RECENT_BYTES_MAX:
            if len(self._events) >= _RECENT_EVENTS_MAX:
                self._events.clear()
            self._events[value] = event
        return value

    def decode(self, value: bytes) -> Event:
        """Return what `decode_event` does."""
        return self._events.get(value) or decode_event(value)


def decode_event(value: bytes) -> Event:
    """Return the event of a record for which `is_ours` holds.

    Raises:
        UnknownSchema: the fingerprint is of no released schema.
        CorruptEvent: the schema is known, and the rest is not exactly one event of it.
    """
    if value.startswith(_HEADER):
        read = envelope.read(value, _HEADER_BYTES)
        if read is not None:
            return read
    if not is_ours(value) or len(value) < _HEADER_BYTES:
        raise CorruptEvent(f"{len(value)} bytes that begin with {value[:2].hex()!r} are no event")
    schema = _SCHEMAS.get(value[2:_HEADER_BYTES])
    if schema is None:
        raise UnknownSchema(value[2:_HEADER_BYTES].hex())
    body = io.BytesIO(value)
    body.seek(_HEADER_BYTES)
    try:
        # Resolving a schema against itself would double the cost.
        older = () if schema is _NEWEST else (_NEWEST,)
        event = _from_record(fastavro.schemaless_reader(body, schema, *older))
    except _UNREADABLE as error:
        # Without fastavro's own words: they hold addresses of this process's memory, and every
        # view says the same of a record.
        raise CorruptEvent(f"the event's body cannot be read: {type(error).__name__}") from error
    if body.tell() != len(value):
        raise CorruptEvent(f"{len(value) - body.tell()} bytes stand behind the event")
    return event


#: What fastavro raises on bytes that are no event of the schema (found by feeding it any bytes).
_UNREADABLE: Final = (
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


# --- between Event and the records of the schema -------------------------------------------------


def _to_record(event: Event) -> dict[str, Any]:
    """Return the record of an event; the parts that most events lack are not even looked into."""
    record: dict[str, Any] = dict(zip(Event._fields, event, strict=True))
    record["kind"] = event.kind.name
    for name in _PARTS:
        if record[name] is not None:
            record[name] = record[name]._asdict()
    if event.source is not None:
        number, previous = event.source.number, event.source.previous
        record["source"]["number"] = _number(number)
        record["source"]["previous"] = None if previous is None else _number(previous)
    return record


def _number(number: tuple[int, int]) -> dict[str, int]:
    sequence, index = number
    return {"sequence": sequence, "index": index}


def _from_record(record: Any) -> Event:
    record["kind"] = Kind[record["kind"]]
    for name, part in record.items():
        if type(part) is dict:
            record[name] = _PARTS[name](part)
    return Event(*record.values())


def _guard(record: dict[str, Any]) -> Guard:
    return Guard(record["base"], tuple(record["fields"]), record["chain"], record["chain_index"])


def _source(record: dict[str, Any]) -> Source:
    number, previous = record["number"], record["previous"]
    return Source(
        record["id"], tuple(number.values()), None if previous is None else tuple(previous.values())
    )


def _of(cls: type) -> Callable[[dict[str, Any]], Any]:
    return lambda record: cls(*record.values())


#: The schema has the fields of each class in its order; tests/unit/test_codec.py sees to that.
_PARTS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "guard": _guard,
    "answer": _of(Answer),
    "source": _source,
    "request": _of(RequestPolicy),
    "effect": _of(EffectKey),
    "times": _of(Times),
    "origin": _of(Origin),
    "fork": _of(ForkOf),
    "copied": _of(Copied),
}


def _schema(name: str) -> Any:
    return fastavro.parse_schema(orjson.loads(files("eventstore").joinpath(name).read_bytes()))


_SCHEMAS: Final = {fingerprint: _schema(file) for fingerprint, file in _RELEASED.items()}
_NEWEST: Final = _SCHEMAS[FINGERPRINT]
