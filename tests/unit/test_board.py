"""How long a lane rests after a turn that did not end well."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from processors.runner.board import Board
from processors.runner.lanes import Lane


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board("b", concurrency=1, async_max=1, is_pipelined=True, take_turn=lambda lane: None)
    yield board
    board.end()


def fail() -> None:
    raise ZeroDivisionError("a fault of the runner's own")


#: The time stands still, in which a lane rests.
NOW_S = 1_000.0


@pytest.fixture(autouse=True)
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processors.runner.board.time", Mock(monotonic=lambda: NOW_S))


def rests_s(board: Board, lane: Lane, turns: int) -> list[float]:
    """Let some turns fail; return how long the lane rests after each."""
    rests = []
    for _ in range(turns):
        lane.not_before_s = 0.0
        board.attempt(lane, fail)
        rests.append(lane.not_before_s - NOW_S)
    return rests


def test_a_lane_whose_turns_end_by_a_fault_rests_longer_each_time(board: Board) -> None:
    rests = rests_s(board, Lane("i", 0), 9)

    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_turn_that_ends_well_is_forgiven_what_came_before(board: Board) -> None:
    lane = Lane("i", 0)
    rests_s(board, lane, 5)

    done = board.attempt(lane, lambda: "done")

    assert done == "done"
    assert rests_s(board, lane, 1) == [0.5]
