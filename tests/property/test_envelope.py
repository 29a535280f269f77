"""The short way of the envelope and fastavro never differ, whatever stands in the bytes.

Goal: an event costs little, and no reader of the schema can tell which of the two was at work.
Method: hypothesis draws events, and damages their bytes one byte at a time; fastavro, with nothing
but the schema file, writes and reads the same.
"""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import fastavro
from hypothesis import event as observed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventstore import envelope
from eventstore.codec import RecentEvents, decode_event, encode_event
from eventstore.errors import CorruptEvent, UnsupportedValue
from eventstore.events import Event, Kind
from tests.unit.test_codec import HEADER, PARSED, events, fastavro_body, to_record

unhurried = settings(deadline=None)

#: The bytes that mean something to Avro: nulls, branches, signs, ends and continuations of numbers.
telling_bytes = st.sampled_from(bytes.fromhex("00 01 02 03 04 7f 80 81 ff")) | st.integers(0, 255)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw the body of an event with one to three bytes replaced, put in or left out."""
    body = bytearray(fastavro_body(draw(events)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body) - 1))
        instead = draw(st.lists(telling_bytes, max_size=2))
        body[place : place + draw(st.integers(0, 1))] = bytes(instead)
        body = body or bytearray(1)
    return bytes(body)


def read_by_fastavro(body: bytes) -> Any:
    """Return the record in the bytes, or None if they are not exactly one."""
    file = io.BytesIO(body)
    try:
        record = fastavro.schemaless_reader(file, PARSED, None)
    except Exception:
        return None
    return record if file.tell() == len(body) else None


@unhurried
@given(events)
def test_every_event_takes_the_short_way_both_ways(event: Event) -> None:
    body = envelope.write(event)

    assert body == fastavro_body(event)
    assert repr(envelope.read(body, 0)) == repr(event)


@unhurried
@given(st.lists(events, min_size=1, max_size=5))
def test_who_has_written_events_reads_them_as_everybody_does(written: list[Event]) -> None:
    recent = RecentEvents()

    values = [recent.encode(event) for event in written]

    assert [repr(recent.decode(value)) for value in values] == [
        repr(decode_event(value)) for value in values
    ]


def test_events_that_were_written_long_ago_take_no_memory() -> None:
    recent = RecentEvents()
    body_bytes = 500

    tracemalloc.start()
    for number in range(50_000):
        recent.encode(Event(Kind.DIFF, f"{number}", bytes(body_bytes)))
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept_bytes < 16 * 1024 * 1024, "of 50 MB"


@unhurried
@given(events)
def test_a_plain_event_is_written_the_same_with_and_without_making_one(event: Event) -> None:
    plain = Event(*event[:3])

    assert envelope.write_plain(*event[:3]) == envelope.write(plain) == fastavro_body(plain)


#: An event without parts, up to its generation.
BARE = bytes(14)


@settings(deadline=None, max_examples=1_000)
@given(damaged())
@example(BARE + b"\xff" * 9 + b"\x01\x00")  # the widest number
@example(BARE + b"\xff" * 9 + b"\x03\x00")  # a bit more
@example(BARE + b"\xff" * 10 + b"\x01\x00")  # a byte more
@example(BARE + b"\x80" * 11 + b"\x00\x00")  # bytes that add nothing
@example(BARE + b"\x00\x01\x00")  # branch -1
@example(bytes(3) + b"\x02\x00\x01\x00" + bytes(14))  # a list of -1 texts
def test_damaged_bytes_are_the_same_event_to_both_or_to_neither(body: bytes) -> None:
    event = envelope.read(body, 0)
    record = read_by_fastavro(body)

    observed(f"short way: {event is not None}, fastavro: {record is not None}")
    if event is not None:
        assert repr(to_record(event)) == repr(record)
    if record is None:
        try:
            decoded = decode_event(HEADER + body)
        except CorruptEvent:
            return
        raise AssertionError(f"fastavro refuses what is read as {decoded}")


@settings(deadline=None, max_examples=1_000)
@given(damaged())
def test_only_other_spellings_are_left_to_fastavro(body: bytes) -> None:
    if envelope.read(body, 0) is not None or read_by_fastavro(body) is None:
        return

    event = decode_event(HEADER + body)

    try:
        spelled_as_usual = encode_event(event)
    except UnsupportedValue:  # a number that the schema calls an int, beyond 32 bits
        return
    assert spelled_as_usual != HEADER + body
