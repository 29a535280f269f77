"""What a view promises: every version at a cost that fits what is touched, and nothing forgotten.

Costs are counted in operations on the table and in bytes written, never in time. The tables are
both kinds; the events come straight from batches of records, as a log hands them over.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventstore import (
    ConfigError,
    Diff,
    Event,
    EventStore,
    Guard,
    Kind,
    LogTruncated,
    UnknownSchema,
    Verdict,
)
from eventstore.codec import encode_event
from eventstore.events import Answer, Batch, ForkOf, Record, Source
from eventstore.log.base import Append
from eventstore.view.base import Table, WriteBatch
from eventstore.view.memory import MemoryTable
from eventstore.view.reader import HistoryRow, ViewReader
from eventstore.view.rocks import RocksTable
from eventstore.view.writer import ViewWriter
from tests.contract.logs import Told
from tests.property.dict_rows import DictRows

#: `-m soak` runs the full sizes of the promise, `make test` a tenth.
SIZES = [pytest.param(10), pytest.param(1, marks=pytest.mark.soak)]


class CountingTable(Table):
    """Passes everything on, and counts rows read, and rows and bytes written."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.reads = self.rows_written = self.bytes_written = 0

    def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return self._table.get(key)

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for row in self._table.scan(start, end, reverse=reverse):
            self.reads += 1
            yield row

    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        self.reads += 1
        return self._table.first(start, end)

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        self.reads += 1
        return self._table.last(start, end)

    def batch(self) -> WriteBatch:
        return _CountingBatch(self, self._table.batch())

    def write(self, batch: WriteBatch) -> None:
        assert isinstance(batch, _CountingBatch)
        self._table.write(batch.batch)

    def flush(self) -> None:
        self._table.flush()

    def checkpoint(self, path: Path) -> None:
        self._table.checkpoint(path)

    def size_bytes(self) -> int:
        return self._table.size_bytes()

    def close(self) -> None:
        self._table.close()


class _CountingBatch:
    def __init__(self, table: CountingTable, batch: WriteBatch) -> None:
        self._table, self.batch = table, batch

    def put(self, key: bytes, value: bytes) -> None:
        self._table.rows_written += 1
        self._table.bytes_written += len(key) + len(value)
        self.batch.put(key, value)

    def delete(self, key: bytes) -> None:
        self._table.rows_written += 1
        self.batch.delete(key)


class View:
    """A writer and a reader of one table, and the offset that comes next."""

    def __init__(self, table: Table) -> None:
        self.table = CountingTable(table)
        self.offset = 0
        self.reopen()

    def reopen(self) -> None:
        """Know nothing but what stands in the table."""
        self.writer = ViewWriter(
            self.table, lambda key: 1 if key == b"elsewhere" else 0, hot_bytes_max=1_000_000
        )
        self.reader = ViewReader(self.table)

    def take(self, *events: Event | bytes, key: bytes | None = b"o-1") -> None:
        records = []
        for event in events:
            value = event if isinstance(event, bytes) else encode_event(event)
            records.append(Record(self.offset, 1_000 + self.offset, key, value))
            self.offset += 1
        self.writer.apply(0, Batch(records, self.offset))

    def set(self, *diffs: Diff, key: bytes = b"o-1") -> None:
        self.take(*[Event(Kind.DIFF, body=diff.encode()) for diff in diffs], key=key)

    def state(self, version: int | None = None, key: str = "o-1") -> dict[str, Any]:
        head = self.reader.head(key)
        assert head is not None
        return dict(self.reader.snapshot(head, version).json_items())

    def rows(self, key: str = "o-1") -> list[HistoryRow]:
        head = self.reader.head(key)
        assert head is not None
        return list(self.reader.history(head))

    def refused(self) -> list[tuple[int, str]]:
        return [(row.offset, row.verdict) for row in self.reader.refused()]

    def reset_counts(self) -> None:
        self.table.reads = self.table.rows_written = self.table.bytes_written = 0


@pytest.fixture(params=["memory", "rocks"])
def view(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[View]:
    table: Table = MemoryTable() if request.param == "memory" else RocksTable(tmp_path / "view")
    yield View(table)
    table.close()


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tenth", SIZES)
def test_a_change_costs_the_same_on_ten_fields_and_on_a_hundred_thousand(
    view: View, tenth: int
) -> None:
    count = 100_000 // tenth
    view.set(*[Diff({f"f{n}": n for n in range(at, at + 1_000)}) for at in range(0, count, 1_000)])
    view.set(Diff({f"f{n}": n for n in range(10)}), key=b"small")
    costs = []
    for key in (b"small", b"o-1"):
        view.reopen()
        view.reset_counts()
        view.set(Diff({"f7": "changed"}), key=key)
        costs.append((view.table.reads, view.table.rows_written))

    assert costs[0] == costs[1]
    assert costs[0][0] <= 10
    assert costs[0][1] <= 8


def test_reading_one_field_of_many_reads_a_few_rows(view: View) -> None:
    view.set(Diff({f"f{n}": n for n in range(5_000)}))
    view.set(*[Diff().increment("f7", 1) for _ in range(500)])
    head = view.reader.head("o-1")
    assert head is not None
    view.reset_counts()

    assert view.reader.snapshot(head).json("f7") == 507
    assert view.reader.snapshot(head, 100).json("f7") == 7 + 99
    assert view.table.reads <= 4


@pytest.mark.parametrize("tenth", SIZES)
def test_an_append_to_a_big_chat_writes_about_what_was_appended(view: View, tenth: int) -> None:
    message = "x" * 180
    view.set(Diff({"chat": [message] * (55_000 // tenth)}))
    view.reset_counts()

    view.set(*[Diff().append("chat", message) for _ in range(100)])

    # The event stands in the history, the operation in the value's row, each with its key.
    assert view.table.bytes_written / 100 < 3 * 200
    view.reopen()
    view.reset_counts()
    view.set(Diff().append("chat", message))
    assert view.table.bytes_written < 1_000
    assert view.table.reads < 10
    assert len(view.state()["chat"]) == 55_000 // tenth + 101


@pytest.mark.parametrize("tenth", SIZES)
def test_increments_inside_a_big_object_rewrite_it_only_now_and_then(
    view: View, tenth: int
) -> None:
    count = 300_000 // tenth
    size_bytes = 10_000_000 // tenth
    view.set(Diff({"big": {"n": 0, "text": "x" * size_bytes}}))
    view.reset_counts()

    step = Event(Kind.DIFF, body=Diff().increment(("big", "n"), 1).encode())
    for _ in range(0, count, 1_000):
        view.take(*[step] * 1_000)

    assert view.state()["big"]["n"] == count
    assert view.state(count // 2)["big"]["n"] == count // 2 - 1
    per_change = view.table.bytes_written / count
    assert per_change < 400, "a new base is worth the changes since the one before"


def test_a_warm_view_reads_nothing_of_an_instance_it_has_just_folded(view: View) -> None:
    view.set(Diff({"a": 1, "big": "x" * 5_000}))
    view.reset_counts()

    view.set(*[Diff().increment("a", 1).append_text("big", "y") for _ in range(100)])

    assert view.table.reads <= 2


# --- the past ------------------------------------------------------------------------------------


def random_event(chance: random.Random, rows: DictRows) -> Event:
    name = chance.choice(["a", "big", "big", "list"])
    kind = chance.random()
    if kind < 0.03:
        return Event(Kind.RESET)
    if kind < 0.06:
        body = orjson.dumps([["set", "big", "f" * 600], ["set", "a", 1]])
        return Event(Kind.FORK, body=body, fork=ForkOf("app", "other", 3))
    if kind < 0.15:
        return Event(Kind.DIFF, body=Diff().delete(name).encode())
    if kind < 0.3:
        value: object = chance.choice([1, "small", "x" * chance.randrange(400, 900), ["y" * 700]])
        return Event(Kind.DIFF, body=Diff({name: value}).encode())
    if kind < 0.4:
        big = {"n": 0, "text": "x" * chance.randrange(10, 2_000)}
        return Event(Kind.DIFF, body=Diff({name: big}).encode())
    diff = chance.choice(
        [
            Diff().increment((name, "n"), 1),
            Diff().append_text((name, "text"), "z" * 50),
            Diff().append("list", "y" * 300),
            Diff().append_text(name, "z" * 100),
            Diff().merge_into(name, {"more": "m" * 100}),
            Diff().increment((name, "n"), 1).append("list", 1),
        ]
    )
    guard = Guard(max(0, rows.version - chance.randrange(3)), (name,))
    return Event(Kind.DIFF, body=diff.encode(), guard=guard if chance.random() < 0.2 else None)


@pytest.mark.parametrize("seed", range(6))
def test_every_version_of_a_random_history_equals_a_naive_replay(view: View, seed: int) -> None:
    chance = random.Random(seed)
    model = DictRows()
    for _ in range(40):
        events = []
        for _ in range(chance.randrange(1, 12)):
            events.append(random_event(chance, model))
            model.take(events[-1])
        view.take(*events)
        if chance.random() < 0.2:
            view.reopen()

    assert [row.verdict for row in view.rows()] == model.verdicts
    assert [row.winner for row in view.rows()] == [e.outcome.winner for e in model.history]
    for version in range(model.version + 1):
        assert view.state(version) == model.at(version), f"seed {seed}, version {version}"
        head = view.reader.head("o-1")
        assert head is not None
        snapshot = view.reader.snapshot(head, version)
        assert sorted(snapshot.names()) == sorted(model.at(version))
        assert all(snapshot.json(name) == model.at(version)[name] for name in model.at(version))


# --- what is never forgotten ---------------------------------------------------------------------


def test_keys_chains_and_sources_are_remembered_however_much_comes_after(view: View) -> None:
    body = Diff().increment("n", 1).encode()
    firsts = [
        Event(Kind.DIFF, body=body, idempotency_key="key"),
        Event(Kind.DIFF, body=body, guard=Guard(0, (), "chain", 0)),
        Event(Kind.DIFF, body=body, source=Source("source", (3, 0))),
    ]
    view.take(*firsts)
    for _ in range(5):
        view.take(
            *[
                Event(Kind.DIFF, body=body, idempotency_key=f"k{view.offset + number}")
                for number in range(500)
            ]
        )
    view.reopen()

    view.take(*firsts)

    last = view.rows()[-3:]
    assert [row.verdict for row in last] == [Verdict.DUPLICATE] * 3
    assert [row.winner for row in last] == [0, 1, 2]
    assert view.state() == {"n": 2_503}


def test_a_refused_event_names_the_one_that_won(view: View) -> None:
    view.set(Diff({"a": 1}), Diff({"b": 1}), Diff({"a": 2}), Diff({"b": 2}))
    view.take(
        Event(Kind.DIFF, body=b"[]", guard=Guard(1, ("a",))),
        Event(Kind.REQUEST, "update", b"{}"),
        Event(Kind.DIFF, body=b"[]", answer=Answer(5, 0, True)),
        Event(Kind.DIFF, body=b"[]", answer=Answer(5, 0, True)),
    )

    rows = view.rows()[-4:]

    assert [(row.verdict, row.winner, row.field) for row in rows] == [
        (Verdict.CONFLICT, 2, "a"),
        (Verdict.ACCEPTED, None, None),
        (Verdict.ACCEPTED, None, None),
        (Verdict.DUPLICATE, 6, None),
    ]


# --- records that are not events -----------------------------------------------------------------


def test_what_is_no_event_of_ours_takes_no_place_and_is_listed(view: View) -> None:
    event = Event(Kind.DIFF, body=Diff({"n": 1}).encode())
    view.take(b"garbage")
    view.take(b"")
    view.take(event, key=None)
    view.take(event, key=b"")
    view.take(event, key=b"\xff")
    view.take(event, key=b"x" * 1_025)
    view.take(event, key=b"elsewhere")
    view.take(encode_event(event)[:-3])
    view.take(event)

    assert view.refused() == [
        *[(offset, "foreign") for offset in range(6)],
        (6, "rejected"),
        (7, "rejected"),
    ]
    assert [row.sequence for row in view.rows()] == [0]
    assert list(view.reader.instances()) == ["o-1"]
    progress = view.reader.progress(0)
    assert (progress.records, progress.foreign, progress.refused) == (9, 6, 2)


def test_an_unknown_schema_stops_the_partition_until_it_is_quarantined(view: View) -> None:
    unknown = b"\xc3\x01" + b"\x07" * 8 + b"body"
    good = encode_event(Event(Kind.DIFF, body=Diff().increment("n", 1).encode()))
    values = [good, unknown, good]
    batch = Batch([Record(n, 1_000, b"o-1", value) for n, value in enumerate(values)], 3)

    for _ in range(2):
        with pytest.raises(UnknownSchema, match="offset 1"):
            view.writer.apply(0, batch)
        assert view.state() == {"n": 1}, "what came before it counts, once"
        batch = Batch(batch.records[-2:], 3)
        view.reopen()

    view.writer.apply(0, batch, quarantined={1})
    assert view.state() == {"n": 2}
    assert view.refused() == [(1, "quarantined")]


def test_a_store_waits_at_an_unknown_schema_and_goes_on_after_a_quarantine(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        app = store.app("orders")
        app.append("o-1", {"n": 1}).result()
        topic = store.log.topic("foldlog.orders", create=False)
        assert topic is not None
        told = Told()
        store.log.append(topic, [Append(0, b"o-1", b"\xc3\x01" + b"\x07" * 8, told)])
        _, offset = told.drive(store.log)
        app.append("o-1", {"n": 2})

        with pytest.raises(UnknownSchema, match=f"offset {offset}"):
            app.get("o-1")
        app.quarantine(0, offset, reason="written by mistake")

        assert app.get("o-1", "n", fresh=True) == 2
        assert [row.verdict for row in app.refused()] == ["quarantined"]


def test_a_record_that_can_be_read_cannot_be_quarantined(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        app = store.app("orders")
        app.append("o-1", {"n": 1}).result()

        with pytest.raises(ConfigError, match="can be read"):
            app.quarantine(0, 0, reason="a mistake")
        with pytest.raises(ConfigError, match=r"no .*record"):
            app.quarantine(0, 7, reason="a mistake")

        app.rebuild_view()
        assert app.get("o-1", "n") == 1


def test_a_partition_that_waits_does_not_keep_the_others_from_being_read() -> None:
    name = f"memory://{uuid.uuid4()}?partitions=4"
    with EventStore(name) as store:
        app = store.app("orders")
        names = [f"o-{number}" for number in range(20)]
        app.append_many([(instance, {"n": 1}) for instance in names])
        topic = store.log.topic("foldlog.orders", create=False)
        assert topic is not None
        stuck = store.log.partition_of(b"o-0", topic)
        told = Told()
        store.log.append(topic, [Append(stuck, b"o-0", b"\xc3\x01" + b"\x07" * 8, told)])
        told.drive(store.log)

        with EventStore(name) as other:
            read = other.app("orders")
            for instance in names:
                if store.log.partition_of(instance.encode(), topic) == stuck:
                    with pytest.raises(UnknownSchema):
                        read.get(instance)
                else:
                    assert read.get(instance, "n", fresh=True) == 1
            with pytest.raises(UnknownSchema):
                list(read.instances())


def test_a_log_that_is_whole_again_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with EventStore("memory://") as store:
        app = store.app("orders")
        app.append("o-1", {"n": 1})
        assert app.get("o-1", "n") == 1

        with monkeypatch.context() as outage:
            outage.setattr(store.log, "offset_end", lambda *_: 0)  # as a broker that comes back
            with pytest.raises(LogTruncated):
                app.get("o-1", "n", fresh=True)

        assert app.get("o-1", "n", fresh=True) == 1


# --- reopened ------------------------------------------------------------------------------------


def test_a_store_that_is_opened_again_has_the_same_view(tmp_path: Path) -> None:
    def look(app: Any) -> list[object]:
        return [
            dict(app.get("o-1")),
            dict(app.get("o-1", at=1)),
            list(app.history("o-1")),
            list(app.pending()),
            list(app.instances()),
        ]

    with EventStore(tmp_path) as store:
        app = store.app("orders")
        app.append("o-1", {"big": "x" * 2_000, "a": 1})
        app.append("o-1", Diff().append_text("big", "y").delete("a"))
        app.append("o-1", {"a": 9}, expected_version=0)
        app.request("o-2", "update")
        before = look(app)
    with EventStore(tmp_path) as store:
        app = store.app("orders")
        after = look(app)
        app.rebuild_view()
        rebuilt = look(app)

    assert before == after == rebuilt


def test_a_guard_of_this_generation_counts_after_a_repair() -> None:
    with EventStore("memory://") as store:
        app = store.app("orders")
        app.append("o-1", {"n": 1})
        stale = app.get("o-1").update(n=5)
        app.repair(accept_loss=True)

        assert app.append("o-1", {"n": 2}, expected_version=1).verdict() == Verdict.ACCEPTED
        assert app.append("o-1", {"n": 3}, guard=Guard(2, ("n",))).verdict() == Verdict.ACCEPTED
        assert dict(app.fork("o-1", to="o-2")) == {"n": 3}
        assert app.append("o-1", {"n": 4}, guard=stale).verdict() == Verdict.CONFLICT
