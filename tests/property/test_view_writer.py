"""A view folds the same, however its records come in batches and however often it is reopened.

Goal: nothing that the writer keeps in memory between records or batches decides anything, and no
event that decodes can stop it. Method: hypothesis draws events of all kinds, sensible and absurd,
for a few instances. One view folds them in batches with one writer; another gets a new writer for
each record, so that it knows only what stands in the table; the tables must be equal, row by row.
"""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.codec import encode_event
from eventstore.events import (
    Answer,
    Batch,
    Copied,
    EffectKey,
    Event,
    ForkOf,
    Guard,
    Kind,
    Record,
    RequestPolicy,
    Source,
    Times,
)
from eventstore.view.memory import MemoryTable
from eventstore.view.writer import ViewWriter

small = st.integers(-1, 6)
names = st.sampled_from(["a", "b", "big"])
long_text = "x" * 600
json_values: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 3),
    st.none(),
    st.just("text"),
    st.just(long_text),
    st.just([1, [2], {"k": 3}]),
    st.just({"k": {"n": 1}, "l": [1, 2]}),
    st.just([long_text]),
    st.just({"long": long_text, "n": 1}),
    st.just({"$decimal": "1.5"}),
    st.just({"$int": "no number"}),
)
paths = st.sampled_from([["big", "k"], ["big", "l"], ["big", "n"], ["big", 0], ["a", "k", "n"]])
targets = names | paths
operations = st.one_of(
    st.tuples(st.just("set"), targets, json_values),
    st.tuples(st.just("delete"), targets),
    st.tuples(st.just("append"), targets, json_values),
    st.tuples(st.just("extend"), targets, st.lists(json_values, max_size=2)),
    st.tuples(st.just("insert"), targets, small, json_values),
    st.tuples(st.just("remove"), targets, small),
    st.tuples(st.just("increment"), targets, st.integers(-2, 2)),
    st.tuples(st.just("merge_into"), targets, st.just({"n": 2})),
    st.tuples(st.just("append_text"), targets, st.just("more")),
    st.just(["no operation"]),
)
bodies = st.one_of(
    st.lists(operations, max_size=3).map(orjson.dumps),
    st.sampled_from([b"", b"{", b"[1]", b'{"generation":1}', b'{"generation":"x"}', b"null"]),
)
ids = st.sampled_from(["", "c", "d", "x" * 2_000])


extremes = st.sampled_from([-(2**63), 5, 2**63 - 1])


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


events = st.builds(
    Event,
    st.sampled_from([Kind.DIFF, Kind.DIFF, Kind.DIFF, *Kind]),
    st.sampled_from(["", "update", "generation", "n" * 70_000]),
    bodies,
    maybe(st.builds(Guard, small, st.lists(names | st.just("*")).map(tuple), maybe(ids), small)),
    maybe(st.builds(Answer, small, st.integers(-1, 2), st.booleans())),
    maybe(st.builds(Source, ids, st.tuples(small, small), maybe(st.tuples(small, small)))),
    maybe(
        st.tuples(ids, maybe(extremes)).map(lambda of: RequestPolicy(of[0], not_before_ms=of[1]))
    ),
    maybe(st.builds(EffectKey, small, ids)),
    maybe(ids),
    maybe(st.builds(Times, maybe(small), maybe(extremes))),
    st.none(),
    maybe(st.builds(ForkOf, st.just("app"), st.just("i"), small, small, small)),
    maybe(st.builds(Copied, small, extremes)),
    st.none(),
    st.integers(-1, 1),
    st.none(),
)
records = st.lists(st.tuples(st.sampled_from([b"i", b"j", b"$foldlog/log/0"]), events), max_size=25)


def batch(first: int, some: list[tuple[bytes, Event]]) -> Batch:
    made = [
        Record(first + place, 1_000 + first + place, key, encode_event(event))
        for place, (key, event) in enumerate(some)
    ]
    return Batch(made, first + len(some))


def writer(table: MemoryTable) -> ViewWriter:
    return ViewWriter(table, lambda key: 0, hot_bytes_max=1_000_000)


@settings(deadline=None)
@given(records, st.integers(1, 8))
def test_batches_and_new_writers_make_no_difference(
    some: list[tuple[bytes, Event]], size: int
) -> None:
    together, alone = MemoryTable(), MemoryTable()

    steady = writer(together)
    for first in range(0, len(some), size):
        steady.apply(0, batch(first, some[first : first + size]))
    for first in range(len(some)):
        writer(alone).apply(0, batch(first, some[first : first + 1]))

    assert list(together.scan(b"", b"\xff")) == list(alone.scan(b"", b"\xff"))
