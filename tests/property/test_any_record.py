"""Whatever stands in a log, no record stops a reader, and all readers say the same.

Goal: a producer that is careless or means harm can spoil its own instance, not a view.
Method: random records, from events with absurd numbers, names, operations and JSON to bytes that
are cut or changed, are folded three times: in one batch, one record at a time by a writer that is
made anew for each, and into plain dicts by the verifier. All rows must be equal; then everything
that can be read is read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import orjson
import pytest

from eventstore import codec
from eventstore.channel import as_entry
from eventstore.errors import CorruptEvent, UnreadableValue
from eventstore.events import (
    SYSTEM_PREFIX,
    Answer,
    Batch,
    Copied,
    EffectKey,
    Event,
    ForkOf,
    Guard,
    Kind,
    Origin,
    Record,
    RequestPolicy,
    Source,
    Times,
)
from eventstore.fold import GENERATION_NOTE
from eventstore.history.verify import FoldedInstance
from eventstore.view.memory import MemoryTable
from eventstore.view.reader import ViewReader
from eventstore.view.writer import ViewWriter

_T = TypeVar("_T")

SEEDS: Final = 300
RECORDS: Final = 60

_NUMBERS: Final = (
    -(2**63), -2, -1, 0, 0, 0, 1, 1, 2, 3, 5, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1,
)  # fmt: skip
_TEXTS: Final = (
    "",
    "*",
    "a",
    "a",
    "b",
    "b",
    "c",
    "a\0b",
    "\0",
    "ä",
    "x" * 999,
    "é" * 1_001,
    "$int",
)
_VALUES: Final = (
    "1", "2", '"t"', "[]", "{}", "[1]", '{"k":1}', "0.1", "-0.0", "1e308", "1e400", "NaN", "true",
    "null", "9223372036854775807", "18446744073709551615", "18446744073709551616",
    "-9223372036854775809", '{"$int":"abc"}', '{"$int":5}', '{"$int":"99999999999999999999"}',
    '{"$decimal":"1E+9999"}', '{"$decimal":"sNaN"}', '{"$float":"inf"}', '{"$float":"x"}',
    '{"$datetime":"x"}', '{"$nobody":1}', '{"$a":1,"b":2}', '{"a":1,"a":2}', '"\\ud800"',
    '"\\u0000"', '{"":1}', "[" * 180 + "]" * 180, "[" * 240 + "]" * 240, "[" * 2_000 + "]" * 2_000,
    '"' + "z" * 600 + '"', "[" + ",".join(['"item"'] * 200) + "]", '{"$int":"' + "9" * 4_000 + '"}',
)  # fmt: skip
_CODES: Final = (
    "set", "set", "set", "delete", "append", "extend", "insert", "remove", "increment",
    "increment", "merge_into", "append_text", "nothing",
)  # fmt: skip
_KEYS: Final = (
    b"i", b"i", b"i", b"i", b"i", b"j", f"{SYSTEM_PREFIX}log/0".encode(), b"\0", None, b"",
    b"\xff", b"q" * 1_024, b"q" * 1_025,
)  # fmt: skip


class Producer:
    """Writes records that no honest producer would, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def records(self, count: int) -> list[Record]:
        times = (7, 10**12, 5, 0, -1)
        return [
            Record(offset, self._one_of(times), self._one_of(_KEYS), self._value())
            for offset in range(count)
        ]

    def _value(self) -> bytes | None:
        value = codec.encode_event(self._event())
        if self._now_and_then(0.03):
            place = self._random.randrange(10, len(value))
            return value[:place] + bytes((self._random.randrange(256),)) + value[place + 1 :]
        if self._now_and_then(0.03):
            return self._one_of((b"", None, b"\xc3", b"garbage", value[: len(value) // 2 + 5]))
        return value

    def _event(self) -> Event:
        kind = self._one_of((Kind.DIFF,) * 8 + tuple(Kind))
        event = Event(kind, self._one_of(("", "n", GENERATION_NOTE, self._text())), self._body())
        if kind == Kind.DIFF and self._now_and_then(0.4):
            return event
        number, few, text, maybe = self._number, self._few, self._text, self._now_and_then
        parts: dict[str, Any] = {
            "guard": Guard(few(), (text(), text()), self._one_of((None, "c", text())), few()),
            "answer": Answer(few(), few(), maybe(0.5)),
            "source": Source("s", (few(), few()), self._one_of((None, (few(), few())))),
            "request": RequestPolicy(
                text(), 0, number(), maybe(0.5), self._one_of((None, number())), number(), number()
            ),
            "effect": EffectKey(few(), text()),
            "idempotency_key": text(),
            "times": Times(number(), self._one_of((None, number()))),
            "origin": Origin(text(), text(), b"x"),
            "fork": ForkOf(text(), text(), number(), few(), few()),
            "copied": Copied(self._random.randrange(30), number()),
            "outbox": b"x",
            "generation": few(),
        }
        own = {Kind.REQUEST: "request", Kind.EFFECT: "effect", Kind.FORK: "fork"}.get(kind)
        return event._replace(
            **{name: part for name, part in parts.items() if name == own or maybe(0.15)}
        )

    def _body(self) -> bytes:
        if self._now_and_then(0.05):
            generation = self._one_of((*_NUMBERS, True, 1.5, "x", None))
            return orjson.dumps({"generation": generation})
        if self._now_and_then(0.03):
            return self._one_of((b"", b"\xff", b"null", b"[1]", b"[[]]", b'[[["set"],"a",1]]'))
        return f"[{','.join(self._operation() for _ in range(self._random.randrange(4)))}]".encode()

    def _operation(self) -> str:
        arguments = [self._target()]
        code = self._one_of(_CODES)
        if code in ("insert", "remove"):
            arguments.append(self._one_of(("0", "0", "1", "9223372036854775808", "-1", "true")))
        if code not in ("delete", "remove"):
            arguments.append(self._one_of(_VALUES))
        return f'["{code}",{",".join(arguments)}]'

    def _target(self) -> str:
        field = self._one_of(("a", "b", "c"))
        if self._now_and_then(0.7):
            return orjson.dumps(self._text() if self._now_and_then(0.05) else field).decode()
        steps = [self._one_of(("k", "k", 0, 0, 1, -1, True, "$int", None)) for _ in range(2)]
        return orjson.dumps([field, *steps[: self._random.randrange(1, 3)]]).decode()

    def _one_of(self, choices: Sequence[_T]) -> _T:
        return self._random.choice(choices)

    def _now_and_then(self, share: float) -> bool:
        return self._random.random() < share

    def _number(self) -> int:
        return self._random.choice(_NUMBERS)

    def _few(self) -> int:
        return self._number() if self._now_and_then(0.2) else self._random.randrange(4)

    def _text(self) -> str:
        return self._random.choice(_TEXTS)


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, SEEDS, 50)])
def test_no_record_stops_a_reader_or_sets_two_apart(seeds: range) -> None:
    for seed in seeds:
        records = Producer(seed).records(RECORDS)

        at_once, one_by_one = MemoryTable(), MemoryTable()
        _writer(at_once).apply(0, Batch(records, RECORDS), frozenset())
        for record in records:
            _writer(one_by_one).apply(0, Batch([record], record.offset + 1), frozenset())

        assert _rows(at_once) == _rows(one_by_one), f"seed {seed}"
        _compare(ViewReader(at_once), _folded(records), f"seed {seed}")


def _writer(table: MemoryTable) -> ViewWriter:
    return ViewWriter(table, lambda key: 0, hot_bytes_max=1_000_000)


def _rows(table: MemoryTable) -> dict[bytes, bytes]:
    return dict(table.scan(b"", b"\xff"))


def _folded(records: Sequence[Record]) -> dict[str, FoldedInstance]:
    instances: dict[str, FoldedInstance] = {}
    generation = 0
    for record in records:
        try:
            assert record.key
            assert len(record.key) <= 1_024
            assert record.value is not None
            name, event = record.key.decode(), codec.decode_event(record.value)
        except (AssertionError, UnicodeDecodeError, CorruptEvent):
            continue
        instance = instances.setdefault(name, FoldedInstance())
        instance.generation = generation
        outcome = instance.take(event, 0, record)
        if outcome.generation is not None and name.startswith(SYSTEM_PREFIX):
            generation = outcome.generation
    return {name: instance for name, instance in instances.items() if instance.sequence}


def _compare(reader: ViewReader, instances: dict[str, FoldedInstance], where: str) -> None:
    for name, instance in instances.items():
        head = reader.head(name)
        assert head is not None, where
        assert (head.sequence, head.version) == (instance.sequence, instance.version), where
        for row, event in zip(reader.history(head), instance.events, strict=True):
            entry = as_entry(name, row, "identity")
            assert (row.time_ms, row.verdict, row.version, row.winner) == event[2:], where
            assert entry.time
            assert entry.occurred_at is None or entry.occurred_at.year
        state = dict(reader.snapshot(head).json_items())
        assert orjson.dumps(state, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
            instance.values, option=orjson.OPT_SORT_KEYS
        ), where
        pending = [row.request for row in reader.pending(head)]
        assert pending == list(instance.requests.values()), where
        for version in range(head.version + 1):
            _read_everything(reader, name, version)
    assert all(row.reason for row in reader.refused())


def _read_everything(reader: ViewReader, name: str, version: int) -> None:
    head = reader.head(name)
    assert head is not None
    snapshot = reader.snapshot(head, version)
    for field in snapshot.names():
        assert snapshot.shape(field)
        try:
            snapshot.value(field)
        except UnreadableValue as error:
            assert str(error)  # noqa: PT017  most values are readable
