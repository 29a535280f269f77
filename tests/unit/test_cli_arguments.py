"""What the arguments of the command line mean, and how values look in a table."""

from __future__ import annotations

import datetime
from typing import Any

import click
import pytest

from eventstore import Event, Kind, Position, Verdict, occurred
from eventstore.cli.arguments import ABSENT, find, parse_at, parse_json, parse_path
from eventstore.cli.entries import summary
from eventstore.cli.output import plain, utc_time
from eventstore.events import Entry
from eventstore.state import State


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("field", ("field",)),
        ("field.key.3.x", ("field", "key", 3, "x")),
        ("3.3", ("3", 3)),
        ('["a.b","3",3]', ("a.b", "3", 3)),
        ('["only"]', ("only",)),
        ("größe.²", ("größe", "²")),
    ],
)
def test_a_path_is_dotted_or_json(text: str, path: tuple[str | int, ...]) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "[]", "[1]", '["a",true]', "[", '["a",[]]']
)
def test_what_is_no_path_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse_path(text)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("list.1", 2),
        ("list.9", ABSENT),
        ("list.x", ABSENT),
        ("tuple.0", 1),
        ("object.3", "three"),
        ("numbers.7", "seven"),
        ("numbers.8", ABSENT),
        ("a.b", "whole name first"),
        ("missing", ABSENT),
        ("missing.x", ABSENT),
        ("text.0", ABSENT),
    ],
)
def test_a_path_is_followed_as_in_the_python_value(path: str, found: object) -> None:
    state = State(
        {
            "list": [1, 2], "tuple": (1, 2), "object": {"3": "three"}, "numbers": {7: "seven"},
            "a.b": "whole name first", "a": {"b": "path second"}, "text": "abc",
        }
    )  # fmt: skip

    assert find(state, path) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", {"$int": "9223372036854775808"}),
        ("[" + "9" * 40 + ",1]", [{"$int": "9" * 40}, 1]),
        ("0.1234567890123456789", 0.12345678901234568),
        ('"12345678901234567890"', "12345678901234567890"),
    ],
)
def test_numbers_are_read_exactly(text: str, value: object) -> None:
    assert parse_json(text, "x") == value


@pytest.mark.parametrize("text", ["NaN", "Infinity", "text", "{", "", '"\\ud800"', "01"])
def test_what_is_not_json_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not JSON"):
        parse_json(text, "x")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (None, None),
        ("12", 12),
        ("HEAD~2", "HEAD~2"),
        ("id@0:1", "id@0:1"),
        ("occurred:2020-01-01T00:00:00Z", occurred("2020-01-01T00:00:00Z")),
    ],
)
def test_a_moment_is_told_by_its_form(text: str | None, at: object) -> None:
    assert parse_at(text) == at


def test_text_that_could_command_a_terminal_is_escaped() -> None:
    assert plain("grün \x1b[2J\u202e\n") == "grün \\x1b[2J\\u202e\\n"


def test_times_in_json_are_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))

    assert utc_time(datetime.datetime(2026, 1, 1, 1, tzinfo=zone)) == "2025-12-31T23:00:00.000Z"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"body": b'[["set","a",1],["append",["b","c"],2]]'}, "a = 1, b.c.append(2)"),
        ({"body": b'[["set","a",1]]', "name": "paid"}, "paid a = 1"),
        ({"body": b'{"n":1}', "kind": Kind.REQUEST, "name": "run"}, 'run {"n":1}'),
        ({"kind": Kind.RESET}, ""),
        ({"body": b"[" + b" " * 200_000 + b"]"}, "200,002 bytes"),
    ],
)
def test_an_event_is_shown_in_one_line(facts: dict[str, Any], text: str) -> None:
    event = Event(**{"kind": Kind.DIFF, **facts})

    shown = summary(Entry("i", 0, event, Verdict.ACCEPTED, 1, Position("id", {0: 0}), 0))

    assert shown == text
