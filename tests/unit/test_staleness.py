"""From when on a request counts as old."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from eventstore import Discard
from processors.clock import LogClock
from processors.runner.board import Board
from processors.runner.lanes import Lane, Waiting
from processors.runner.staleness import Staleness

NOW_MS = 100_000
POLICY = Discard.seconds(5)


@pytest.fixture
def staleness() -> Iterator[Staleness]:
    board = Board("b", concurrency=1, async_max=1, is_pipelined=True, take_turn=lambda lane: None)
    board.clock = LogClock(lambda: 0.0)
    board.clock.seen(NOW_MS)
    yield Staleness(board, Mock())
    board.end()


def came(time_ms: int, due_ms: int | None) -> Waiting:
    return Waiting(0, "k/update", time_ms, due_ms, 0, 0, ordinal=1)


@pytest.mark.parametrize(
    ("time_ms", "due_ms", "age_ms"),
    [
        (NOW_MS - 60_000, NOW_MS, 0),
        (NOW_MS - 60_000, NOW_MS - 5_001, 5_001),
        (NOW_MS - 5_001, NOW_MS - 60_000, 5_001),  # due before it was asked for
        (NOW_MS - 5_001, None, 5_001),
        (NOW_MS - 5_000, None, 5_000),
    ],
)
def test_a_delayed_request_is_as_old_as_it_is_overdue(
    staleness: Staleness, time_ms: int, due_ms: int | None, age_ms: int
) -> None:
    decision = staleness.decide(Lane("i", 0), came(time_ms, due_ms), POLICY)

    assert decision.facts == {"age_ms": age_ms}
    assert decision.is_stale == (age_ms > 5_000)
