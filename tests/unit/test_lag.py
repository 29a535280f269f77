"""What a runner says of how far it is, for the lag of its group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from eventstore.processing import Pending, Processing
from processors.runner.board import Board
from processors.runner.lag import Lag
from processors.runner.lanes import Lane


class View:
    """How far the view is, and where it says that requests stand."""

    def __init__(self) -> None:
        self.position = {0: 9, 1: 19}
        self.offsets: dict[tuple[str, int], int] = {}
        self.asked = 0

    def offset_of(self, instance: str, sequence: int) -> int | None:
        self.asked += 1
        return self.offsets.get((instance, sequence))


class Looked:
    """A lag of two partitions, with what it looks at."""

    def __init__(self, board: Board) -> None:
        self.view, self.board, self.complete = View(), board, frozenset({0, 1})
        self.lag = Lag(board, cast(Processing, self.view), lambda: self.complete)

    def lane(self, instance: str, shard: int, *requests: tuple[int, int | None]) -> Lane:
        """Put a lane on the board: requests are sequences and offsets."""
        lane = self.board.lanes[instance] = Lane(instance, shard)
        for sequence, offset in requests:
            pending = Pending(sequence, "u", "", 0, 0, None)
            lane.add(pending, 0, None, taken_over=offset is None, offset=offset)
        return lane


@pytest.fixture
def looked() -> Iterator[Looked]:
    board = Board("b", concurrency=1, async_max=1, is_pipelined=True, take_turn=lambda lane: None)
    yield Looked(board)
    board.end()


def test_the_first_open_request_of_all_lanes_of_a_shard_counts(looked: Looked) -> None:
    looked.lane("a", 0, (4, 7), (5, 8))
    looked.lane("b", 0, (0, 3), (9, 9))

    assert looked.lag.offsets() == {0: 3, 1: 20}


def test_an_answer_that_is_on_its_way_or_was_refused_does_not_count_yet(looked: Looked) -> None:
    lane = looked.lane("a", 0, (1, 3), (2, 4), (3, 5))
    first, second = list(lane.waiting.values())[:2]
    lane.answered(first)
    lane.answered(second)
    lane.refused.append(lane.in_flight.pop(first.sequence))

    assert looked.lag.offsets() == {0: 3, 1: 20}


def test_nothing_is_told_twice_unless_something_was_folded_or_shards_changed(
    looked: Looked,
) -> None:
    first, again = looked.lag.offsets(), looked.lag.offsets()
    looked.view.position = {0: 10, 1: 19}
    folded = looked.lag.offsets()
    looked.complete = frozenset({0})
    fewer = looked.lag.offsets()
    looked.lag.tell_anew()
    anew = looked.lag.offsets()

    assert (first, again) == ({0: 10, 1: 20}, {})
    assert folded == {0: 11, 1: 20}
    assert fewer == anew == {0: 11}


def test_a_request_that_was_taken_over_is_looked_up_once(looked: Looked) -> None:
    looked.lane("a", 0, (1, None))
    looked.view.offsets["a", 1] = 5

    first = looked.lag.offsets()
    looked.view.position = {0: 10, 1: 19}
    again = looked.lag.offsets()

    assert (first[0], again[0]) == (5, 5)
    assert looked.view.asked == 1


def test_while_the_view_cannot_say_where_a_request_stands_nothing_is_told(looked: Looked) -> None:
    looked.lane("a", 0, (1, None))

    unknown = looked.lag.offsets()
    looked.view.offsets["a", 1] = 5

    assert unknown == {}
    assert looked.lag.offsets() == {0: 5, 1: 20}
