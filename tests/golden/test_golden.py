"""Goal: an event of any released version stays readable, and means what it meant.

Method: one folder per released schema, named by its fingerprint, with one file per kind in
hexadecimal. The files never change; what they mean stands here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore.codec import FINGERPRINT, decode_event, encode_event
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

FOLDER = Path(__file__).parent

EVENTS = {
    Kind.DIFF: Event(
        Kind.DIFF,
        "OrderPlaced",
        b'[["set","status","new"],["append",["lines",0,"tags"],{"$decimal":"1.50"}]]',
        guard=Guard(7, ("status", "*", "é"), "c-1", 300),
        answer=Answer(2**40, 1, True),
        idempotency_key="key-1",
        times=Times(-1, 1_767_225_600_000),
        origin=Origin("café", "trace-1", b'{"ip":"::1"}'),
        outbox=b"[]",
    ),
    Kind.REQUEST: Event(
        Kind.REQUEST,
        "summarize",
        b'{"text":"..."}',
        source=Source("trigger-1", (12, 0), (9, 2)),
        request=RequestPolicy("main", 2, 30_000, True, 1_767_225_600_000, 3, 11),
    ),
    Kind.EFFECT: Event(
        Kind.EFFECT, "llm", b'"answer"', answer=Answer(4), effect=EffectKey(2, "00ff")
    ),
    Kind.ATTEMPT: Event(Kind.ATTEMPT, body=b"{}", answer=Answer(4)),
    Kind.DISCARD: Event(Kind.DISCARD, "", b'{"reason":"old"}', answer=Answer(4, 0, True)),
    Kind.FAILURE: Event(Kind.FAILURE, "", b'{"error":"no"}', answer=Answer(4, 0, True)),
    Kind.FORK: Event(Kind.FORK, body=b'{"a":1}', fork=ForkOf("orders", "o-1", 3, 1, 2)),
    Kind.RESET: Event(Kind.RESET, copied=Copied(5, 1_767_225_600_000)),
    Kind.NOTE: Event(Kind.NOTE, "fold", b'{"number":2}', generation=2),
    Kind.ERASE: Event(Kind.ERASE, key_id="k-1", source=Source("s", (0, 0))),
}


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@pytest.mark.parametrize("folder", ["56f5e6ca97e8cda8"])
def test_an_event_of_each_release_reads_as_what_it_meant(folder: str, kind: Kind) -> None:
    raw = bytes.fromhex((FOLDER / folder / f"{kind.name}.hex").read_text())

    assert decode_event(raw) == EVENTS[kind]


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_the_newest_release_is_still_written_as_it_was(kind: Kind) -> None:
    golden = (FOLDER / FINGERPRINT.hex() / f"{kind.name}.hex").read_text()

    assert encode_event(EVENTS[kind]).hex() == "".join(golden.split())
