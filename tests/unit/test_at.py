"""The `at` of a read: which version a number, a text, a time or a position means."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from eventstore import ConfigError, Event, Kind, Position, VersionNotFound, occurred
from eventstore.codec import encode_event
from eventstore.diff import Diff
from eventstore.events import Batch, Record, Times
from eventstore.history.at import Occurred, epoch_us, version_at
from eventstore.view.memory import MemoryTable
from eventstore.view.reader import ViewReader
from eventstore.view.writer import ViewWriter

#: (time_ms, offset, guarded so that it is refused, occurred_at_us)
EVENTS = [
    (1_000, 3, False, None),
    (1_000, 5, True, 10),
    (2_000, 6, False, 20),
    (1_500, 9, False, 15),  # a clock that went back: its time in the instance is 2,000
    (3_000, 12, False, None),
]


@pytest.fixture
def reader() -> Iterator[ViewReader]:
    table = MemoryTable()
    writer = ViewWriter(table, lambda key: 0, hot_bytes_max=1_000_000)
    records = []
    for number, (time_ms, offset, refused, occurred_us) in enumerate(EVENTS):
        diff = Diff().append("n", 1) if refused else Diff({"n": number})
        times = None if occurred_us is None else Times(occurred_us)
        event = Event(Kind.DIFF, body=diff.encode(), times=times)
        records.append(Record(offset, time_ms, b"o-1", encode_event(event)))
    writer.apply(0, Batch(records, 20))
    yield ViewReader(table)
    table.close()


def version(reader: ViewReader, at: Any) -> int:
    head = reader.head("o-1")
    assert head is not None
    return version_at(reader, head, at, app="orders", instance="o-1", partition=0, identity="log")


def utc(time_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_ms / 1_000, datetime.UTC)


def test_numbers_and_heads_count_versions_that_took_effect(reader: ViewReader) -> None:
    assert [version(reader, at) for at in (0, 1, 4)] == [0, 1, 4]
    assert [version(reader, at) for at in ("HEAD", "HEAD~0", "HEAD~1", "HEAD~4")] == [4, 4, 3, 0]


@pytest.mark.parametrize("at", [5, -1, "HEAD~5"])
def test_a_version_outside_the_history_is_not_found(reader: ViewReader, at: object) -> None:
    with pytest.raises(VersionNotFound, match="4"):
        version(reader, at)


@pytest.mark.parametrize(
    ("time_ms", "wanted"),
    [(0, 0), (999, 0), (1_000, 1), (1_999, 1), (2_000, 3), (2_999, 3), (3_000, 4), (9_999, 4)],
)
def test_a_time_includes_everything_that_the_log_had_by_then(
    reader: ViewReader, time_ms: int, wanted: int
) -> None:
    assert version(reader, utc(time_ms)) == wanted
    assert version(reader, utc(time_ms).isoformat()) == wanted


def test_a_time_within_a_millisecond_includes_what_that_brought(reader: ViewReader) -> None:
    assert version(reader, utc(1_000) + datetime.timedelta(microseconds=999)) == 1
    assert version(reader, utc(999) + datetime.timedelta(microseconds=999)) == 0


def test_a_time_is_the_same_moment_in_every_zone(reader: ViewReader) -> None:
    east = datetime.timezone(datetime.timedelta(hours=9))

    assert version(reader, utc(2_000).astimezone(east)) == 3


@pytest.mark.parametrize(
    ("offset", "wanted"), [(2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (8, 2), (9, 3), (99, 4)]
)
def test_a_position_includes_everything_up_to_it_also_where_offsets_have_gaps(
    reader: ViewReader, offset: int, wanted: int
) -> None:
    assert version(reader, Position("log", {0: offset})) == wanted
    assert version(reader, f"log@0:{offset}") == wanted


def test_a_position_must_be_of_this_log_and_this_partition(reader: ViewReader) -> None:
    with pytest.raises(ConfigError, match="another log"):
        version(reader, Position("other", {0: 3}))
    with pytest.raises(VersionNotFound, match="partition 0"):
        version(reader, Position("log", {1: 3}))


@pytest.mark.parametrize(("time_us", "wanted"), [(9, 1), (10, 1), (14, 1), (15, 1), (20, 4)])
def test_occurred_is_the_state_before_the_first_event_that_occurred_later(
    reader: ViewReader, time_us: int, wanted: int
) -> None:
    assert version(reader, Occurred(time_us)) == wanted


def test_occurred_takes_aware_times_and_their_iso_form() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)

    assert occurred(moment) == occurred("2026-01-02T03:04:05.000006Z") == Occurred(epoch_us(moment))
    assert epoch_us(moment) == 1_767_323_045_000_006
    with pytest.raises(ConfigError, match="no time zone"):
        occurred(moment.replace(tzinfo=None))
    with pytest.raises(ConfigError, match="not a time"):
        occurred("noon")


@pytest.mark.parametrize("at", [True, 1.5, None, (), "head", "HEAD~-1", "12:00", "1", "a@b"])
def test_anything_else_is_refused_with_what_it_could_have_been(
    reader: ViewReader, at: object
) -> None:
    with pytest.raises(ConfigError, match=r"position"):
        version(reader, at)


def test_the_time_of_the_events_is_that_of_the_log_and_never_falls(reader: ViewReader) -> None:
    head = reader.head("o-1")
    assert head is not None

    rows = list(reader.history(head))

    assert [row.time_ms for row in rows] == [1_000, 1_000, 2_000, 2_000, 3_000]
    assert orjson.loads(rows[0].event.body) == [["set", "n", 0]]


@pytest.mark.parametrize("offsets", ["0:9223372036854775808", "-1:3", "0:-2"])
def test_a_token_with_numbers_that_no_log_has_is_refused(offsets: str) -> None:
    with pytest.raises(ConfigError, match="is not a position token"):
        Position.parse(f"identity@{offsets}")
