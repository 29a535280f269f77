"""The codec: Avro as the specification has it, read by others, and strict in what it reads.

Method of the comparisons: hypothesis draws events, and fastavro (and for some the `avro` package)
write and read the same bytes with the same schema file.
"""

from __future__ import annotations

import io
import json
from importlib.resources import files
from typing import Any

import avro.io
import avro.schema
import fastavro
import fastavro.schema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import codec
from eventstore.codec import FINGERPRINT, decode_event, encode_event, is_ours
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

SCHEMA: dict[str, Any] = json.loads(files("eventstore").joinpath("event.avsc").read_text())
PARSED = fastavro.parse_schema(SCHEMA)
HEADER = b"\xc3\x01" + FINGERPRINT

unhurried = settings(deadline=None)
longs = st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 100)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
blobs = st.binary(max_size=200)
numbers = st.tuples(longs, longs)


def nullable(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


plain_events = st.tuples(st.sampled_from(Kind), texts, blobs).map(lambda parts: Event(*parts))
full_events = st.builds(
    Event,
    st.sampled_from(Kind),
    texts,
    blobs,
    nullable(
        st.builds(Guard, longs, st.lists(texts, max_size=3).map(tuple), nullable(texts), longs)
    ),
    nullable(st.builds(Answer, longs, longs, st.booleans())),
    nullable(st.builds(Source, texts, numbers, nullable(numbers))),
    nullable(
        st.builds(
            RequestPolicy,
            texts,
            st.integers(-(2**31), 2**31 - 1),
            longs,
            st.booleans(),
            nullable(longs),
            longs,
            nullable(longs),
        )
    ),
    nullable(st.builds(EffectKey, longs, texts)),
    nullable(texts),
    nullable(st.builds(Times, nullable(longs), nullable(longs))),
    nullable(st.builds(Origin, nullable(texts), nullable(texts), nullable(blobs))),
    nullable(st.builds(ForkOf, texts, texts, longs, longs, longs)),
    nullable(st.builds(Copied, longs, longs)),
    nullable(blobs),
    longs,
    nullable(texts),
)
events = plain_events | full_events


def to_record(value: Any) -> Any:
    """Turn an event into what Avro libraries take: dicts, lists, and the name of the kind."""
    if isinstance(value, Kind):
        return value.name
    if isinstance(value, Source):
        pairs = [pair and {"sequence": pair[0], "index": pair[1]} for pair in value[1:]]
        return {"id": value.id, "number": pairs[0], "previous": pairs[1]}
    if hasattr(value, "_asdict"):
        return {name: to_record(part) for name, part in value._asdict().items()}
    return list(value) if isinstance(value, tuple) else value


def fastavro_body(event: Event) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, PARSED, to_record(event), disable_tuple_notation=True)
    return file.getvalue()


# --- against other implementations ---------------------------------------------------------------


@unhurried
@given(events)
def test_events_read_back_the_same(event: Event) -> None:
    read = decode_event(encode_event(event))

    assert read == event
    assert repr(read) == repr(event)


@unhurried
@given(events)
def test_fastavro_writes_the_same_bytes_and_reads_ours(event: Event) -> None:
    raw = encode_event(event)

    assert raw == HEADER + fastavro_body(event)
    assert fastavro.schemaless_reader(io.BytesIO(raw[10:]), PARSED, None) == to_record(event)


@unhurried
@given(events)
def test_the_avro_package_reads_ours(event: Event) -> None:
    raw = encode_event(event)

    reader = avro.io.DatumReader(avro.schema.parse(json.dumps(SCHEMA)))
    read = reader.read(avro.io.BinaryDecoder(io.BytesIO(raw[10:])))

    assert read == to_record(event)


def test_lists_in_several_blocks_are_read_with_and_without_stated_sizes() -> None:
    event = Event(Kind.DIFF, guard=Guard(1, ("a", "b", "c")))
    raw = encode_event(event)
    one_block = bytes.fromhex("06 0261 0262 0263 00")
    assert raw.count(one_block) == 1

    for blocks in ("02 0261 04 0262 0263 00", "03 08 0261 0262 02 0263 00"):
        assert decode_event(raw.replace(one_block, bytes.fromhex(blocks))) == event


# --- the fingerprint and the schema --------------------------------------------------------------


def canonical(schema: Any, namespace: str = "") -> str:
    """Write a schema in the specification's Parsing Canonical Form (the rules that apply here)."""
    if isinstance(schema, str):
        primitive = schema in ("null", "boolean", "int", "long", "string", "bytes")
        return json.dumps(schema if primitive else f"{namespace}.{schema}")
    if isinstance(schema, list):
        return f"[{','.join(canonical(branch, namespace) for branch in schema)}]"
    if schema["type"] == "array":
        return f'{{"type":"array","items":{canonical(schema["items"], namespace)}}}'
    namespace = schema.get("namespace", namespace)
    head = f'{{"name":"{namespace}.{schema["name"]}","type":"{schema["type"]}"'
    if schema["type"] == "enum":
        return f'{head},"symbols":{json.dumps(schema["symbols"], separators=(",", ":"))}}}'
    fields = ",".join(
        f'{{"name":"{field["name"]}","type":{canonical(field["type"], namespace)}}}'
        for field in schema["fields"]
    )
    return f'{head},"fields":[{fields}]}}'


def crc_64_avro(data: bytes) -> int:
    """Compute the specification's 64-bit Rabin fingerprint, by its table."""
    empty = 0xC15D213AA4D7A795
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (empty & -(byte & 1))
        table.append(byte)
    fingerprint = empty
    for byte in data:
        fingerprint = (fingerprint >> 8) ^ table[(fingerprint ^ byte) & 0xFF]
    return fingerprint


def test_the_fingerprint_is_the_specifications() -> None:
    assert crc_64_avro(b'"int"') == 0x7275D51A3F395C8F  # the specification's own example

    form = canonical(SCHEMA)

    assert form == fastavro.schema.to_parsing_canonical_form(SCHEMA)
    assert crc_64_avro(form.encode()).to_bytes(8, "little") == FINGERPRINT


def test_every_released_schema_is_there_under_its_fingerprint() -> None:
    for fingerprint, name in codec._RELEASED.items():
        schema = json.loads(files("eventstore").joinpath(name).read_text())

        assert crc_64_avro(canonical(schema).encode()).to_bytes(8, "little") == fingerprint


def test_every_record_field_and_enum_of_the_schema_is_documented() -> None:
    def named(schema: Any) -> list[Any]:
        if isinstance(schema, list):
            return [found for branch in schema for found in named(branch)]
        if not isinstance(schema, dict):
            return []
        fields = schema.get("fields", [])
        return [schema, *fields, *(found for field in fields for found in named(field["type"]))]

    parts = [part for part in named(SCHEMA) if part["type"] != "array"]
    undocumented = [part["name"] for part in parts if not part.get("doc")]

    assert undocumented == []
    assert len(parts) > 50


def test_the_schema_and_the_nouns_have_the_same_fields_in_the_same_order() -> None:
    def check(schema: dict[str, Any], cls: Any) -> None:
        assert [field["name"] for field in schema["fields"]] == list(cls._fields)

    check(SCHEMA, Event)
    assert SCHEMA["fields"][0]["type"]["symbols"] == [kind.name for kind in Kind]
    classes = [Answer, Copied, EffectKey, ForkOf, Guard, Origin, RequestPolicy, Source, Times]
    by_name: dict[str, Any] = {cls.__name__: cls for cls in classes}
    for field in SCHEMA["fields"]:
        for branch in field["type"] if isinstance(field["type"], list) else []:
            if isinstance(branch, dict):
                check(branch, by_name[branch["name"]])


def test_an_older_schema_reads_with_the_defaults_of_what_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = SCHEMA | {"fields": SCHEMA["fields"][:-2]}
    event = Event(Kind.NOTE, "n", b"{}", answer=Answer(1))
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(older), to_record(event))

    monkeypatch.setitem(codec._SCHEMAS, b"an older", fastavro.parse_schema(older))

    assert decode_event(HEADER[:2] + b"an older" + file.getvalue()) == event


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, b"", b"\xc3", b"{}", b"\x00\x00\x00\x00\x01abc"])
def test_what_is_foreign_is_not_ours(value: bytes | None) -> None:
    assert not is_ours(value)


def test_an_unknown_fingerprint_is_named_and_never_skipped() -> None:
    raw = encode_event(Event(Kind.DIFF, "", b"[]"))

    with pytest.raises(UnknownSchema, match="0011223344556677"):
        decode_event(raw[:2] + bytes.fromhex("0011223344556677") + raw[10:])


@unhurried
@given(events, st.data())
def test_a_truncated_or_extended_event_is_corrupt(event: Event, data: st.DataObject) -> None:
    raw = encode_event(event)
    cut = data.draw(st.integers(2, len(raw) - 1))

    with pytest.raises(CorruptEvent):
        decode_event(raw[:cut])
    with pytest.raises(CorruptEvent):
        decode_event(raw + data.draw(st.binary(min_size=1, max_size=20)))


@unhurried
@given(st.binary(max_size=60) | blobs.map(lambda blob: blob + bytes(13)))
def test_any_bytes_are_an_event_or_corrupt(body: bytes) -> None:
    try:
        event = decode_event(HEADER + body)
    except CorruptEvent:
        return

    assert decode_event(encode_event(event)) == event


REST = bytes(13)


@pytest.mark.parametrize(
    "body",
    [
        b"\x14\x00\x00" + REST,  # kind 10
        b"\x00\x01\x00" + REST,  # a length of -1
        b"\x00\x00\x7f" + REST,  # a length of -64
        b"\x00\x00\x00" + b"\x04" + REST,  # union branch 2 of 2
        b"\x00\x02\xff\x00" + REST,  # a name that is not UTF-8
        b"\x00\x00\x00" + REST + b"\x00",  # a byte behind the event
        b"\x00\x00\x00" + REST[1:],  # a byte too few
        b"",
    ],
)
def test_bytes_that_are_no_event_are_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptEvent):
        decode_event(HEADER + body)


def test_long_and_lengthened_numbers_are_read() -> None:
    widest = Event(Kind.DIFF, generation=-(2**63))
    lengthened = HEADER + b"\x80\x00" + b"\x80\x80\x00" + b"\x80\x00" + bytes(13)

    assert decode_event(encode_event(widest)) == widest
    assert decode_event(lengthened) == Event(Kind.DIFF)


@pytest.mark.parametrize(
    "event",
    [
        Event(Kind.DIFF, b"x"),  # type: ignore[arg-type]
        Event(Kind.DIFF, "", "x"),  # type: ignore[arg-type]
        Event(Kind.DIFF, "\ud800"),
        Event(Kind.DIFF, guard=Guard(2**63)),
        Event(Kind.DIFF, guard=Guard(1, ["a"])),  # type: ignore[arg-type]
        Event(Kind.DIFF, guard=Guard(1, ("a", "\ud800"))),
        Event(Kind.DIFF, guard=Answer(1)),  # type: ignore[arg-type]
        Event(Kind.DIFF, request=RequestPolicy("", 2**31)),
        Event(Kind.DIFF, source=Source("s", (1, 2**64))),
        Event(Kind.DIFF, source=Source("s", (1, 2, 3))),  # type: ignore[arg-type]
        Event(Kind.DIFF, generation=1.5),  # type: ignore[arg-type]
    ],
)
def test_what_would_not_read_back_the_same_is_refused(event: Event) -> None:
    with pytest.raises(UnsupportedValue):
        encode_event(event)


# --- size ----------------------------------------------------------------------------------------


def test_a_small_diff_costs_at_most_70_bytes() -> None:
    assert len(encode_event(Event(Kind.DIFF, "", b'[["set","status","new"]]'))) == 50
    assert len(encode_event(Event(Kind.DIFF, "OrderPlaced", b'[["set","status","new"]]'))) == 61
