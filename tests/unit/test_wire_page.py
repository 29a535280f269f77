"""docs/wire.md is true: its tables are the code's, and its vectors are what codec.py makes."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  (values reads arrays only where it is loaded)
import orjson
import pytest
from confluent_kafka import murmur2

from eventstore import codec, values
from eventstore.codec import decode_event, encode_event
from eventstore.config import Config
from eventstore.diff import ABSENT, STEPS_MAX, apply_operation, check_wire
from eventstore.events import SYSTEM_PREFIX, Event, Guard, Kind, Origin, RequestPolicy, Times
from eventstore.values.reading import READERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
SCHEMA: dict[str, Any] = json.loads(files("eventstore").joinpath("event.avsc").read_text())


def section(title: str) -> str:
    start = PAGE.index(f"\n## {title}\n")
    end = PAGE.find("\n## ", start + 1)
    return PAGE[start:] if end < 0 else PAGE[start:end]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without their headings."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    heads = {i for i, line in enumerate(lines) if set(line) <= set("|-")}
    body = [line for i, line in enumerate(lines) if not {i, i + 1} & heads]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def type_name(schema: Any) -> str:
    if isinstance(schema, list):
        return f"{type_name(schema[1])} or null"
    if isinstance(schema, str):
        return schema
    if schema["type"] == "array":
        return f"list of {type_name(schema['items'])}"
    return f"{schema['type']} {schema['name']}"


def field_rows(schema: Any, prefix: str = "") -> list[list[str]]:
    """Return name, type and doc of every field of a schema, those of inner records below it."""
    found: list[list[str]] = []
    for field in schema["fields"]:
        name = prefix + field["name"]
        found.append([f"`{name}`", type_name(field["type"]), field["doc"]])
        inner = field["type"][1] if isinstance(field["type"], list) else field["type"]
        if isinstance(inner, dict) and inner["type"] == "record":
            found += field_rows(inner, f"{name}.")
    return found


def test_the_table_of_the_envelope_is_the_schema() -> None:
    assert rows(section("The envelope")) == field_rows(SCHEMA)


def test_the_kinds_stand_there_in_their_order() -> None:
    assert ", ".join(kind.name for kind in Kind) in " ".join(section("The envelope").split())


def test_the_released_schemas_stand_there() -> None:
    released = {fingerprint.hex(): file for fingerprint, file in codec._RELEASED.items()}

    table = [[cell.strip("`") for cell in row] for row in rows(section("Framing"))]

    assert dict(table) == released


def test_the_partitions_are_those_of_murmur2() -> None:
    table = [row for row in rows(section("Topic, key, partition")) if len(row) == 3]

    assert len(table) == 3
    for key, number, partition in table:
        raw = key.strip("`").encode()
        assert murmur2(raw, 2**31 - 1) == (int(number) & 0x7FFFFFFF) % (2**31 - 1)
        assert murmur2(raw, 8) == (int(number) & 0x7FFFFFFF) % 8 == int(partition)


def test_limits_and_names_are_those_of_the_code() -> None:
    assert f"namespace is `{Config.load({}).namespace}`" in PAGE
    assert f"`{SYSTEM_PREFIX}`" in PAGE
    assert f"at most {values.DEPTH_MAX} levels" in PAGE
    assert f"at most {values.DIGITS_MAX:,} digits" in PAGE
    assert f"{STEPS_MAX} parts at most" in PAGE


@pytest.mark.parametrize(
    ("operation", "before", "after"), rows(section("The body of a diff: operations"))
)
def test_each_operation_does_what_the_table_says(operation: str, before: str, after: str) -> None:
    def value(cell: str) -> Any:
        return ABSENT if cell == "absent" else json.loads(cell.strip("`"))

    wire = json.loads(operation.strip("`"))
    check_wire(wire)

    assert apply_operation(value(before), wire) == value(after)


SHOWN = [row[1].strip("`") for row in rows(section("Values"))]


@pytest.mark.parametrize("shown", SHOWN)
def test_each_tagged_value_is_what_is_read_and_written(shown: str) -> None:
    raw = shown.encode()

    if re.match(r'\{"\$(enum|dataclass|model|user)"', shown):  # classes that the page makes up
        assert values.decode(raw, unresolved="keep") == orjson.loads(raw)
    else:
        assert values.encode(values.decode(raw)) == raw


def test_every_tag_is_in_the_table() -> None:
    tags = {next(iter(json.loads(shown))) for shown in SHOWN}

    assert tags == set(READERS)


VECTORS = re.findall(r"\n### (.+?)\n+```hex\n(.+?)```\n+```json\n(.+?)```", PAGE, re.S)


def to_event(shown: dict[str, Any]) -> Event:
    """Build the event of a vector's JSON."""
    parts: dict[str, Any] = dict(shown, kind=Kind[shown["kind"]], body=shown["body"].encode())
    classes = {"guard": Guard, "request": RequestPolicy, "times": Times, "origin": Origin}
    for name, cls in classes.items():
        if name in parts:
            inner = {k: tuple(v) if isinstance(v, list) else v for k, v in parts[name].items()}
            parts[name] = cls(**inner)
    return Event(**parts)


@pytest.mark.parametrize(("title", "hexadecimal", "shown"), VECTORS)
def test_each_vector_is_what_the_codec_reads_and_writes(
    title: str, hexadecimal: str, shown: str
) -> None:
    raw = bytes.fromhex(hexadecimal)
    event = to_event(json.loads(shown))

    assert decode_event(raw) == event, title
    assert encode_event(event) == raw, title


def test_the_event_in_one_minute_is_the_first_vector() -> None:
    drawing = section("In one minute").split("```text\n")[1].split("```")[0]
    columns = [re.match(r"[0-9a-f ]+?(?=  )", line) for line in drawing.splitlines()]

    raw = bytes.fromhex("".join(column[0] for column in columns if column))

    assert len(VECTORS) == 4
    assert raw == bytes.fromhex(VECTORS[0][1])
