"""Lanes: what waits of an instance, and what is judged before anything else is begun."""

from __future__ import annotations

from eventstore.processing import Pending
from processors.runner.lanes import Lane, Waiting


def answered(lane: Lane, sequence: int) -> Waiting:
    """Put a request into a lane whose answer is on its way."""
    request = Pending(sequence, "k/update", "", 0, 0, None)
    one = lane.add(request, 0, None, taken_over=False)
    assert one is not None
    lane.answered(one)
    return one


def test_a_row_that_others_end_is_broken_until_what_was_refused_in_it_waits_again() -> None:
    lane = Lane("i", 0)
    first, second = answered(lane, 0), answered(lane, 1)
    lane.refused.append(lane.in_flight.pop(first.sequence))
    lane.closed(second.sequence)  # by somebody else

    lane.break_row()

    assert lane.is_broken
    assert not lane.in_flight
    assert lane.refused == [first]


def delayed(lane: Lane, sequence: int, due_ms: int) -> Waiting:
    one = lane.add(Pending(sequence, "k/update", "", 0, 0, due_ms), 0, None, taken_over=False)
    assert one is not None
    return one


def test_of_delayed_requests_the_one_that_is_overdue_most_comes_first() -> None:
    lane = Lane("i", 0)
    late, soon, sooner = delayed(lane, 0, 300), delayed(lane, 1, 200), delayed(lane, 2, 100)

    order = []
    for now_ms in (99, 100, 200, 299, 300):
        one = lane.next(now_ms)
        order.append((one, lane.due_ms()))
        if one is not None:
            lane.answered(one)

    assert order == [(None, 100), (sooner, 100), (soon, 200), (None, 300), (late, 300)]
    assert (lane.next(1_000), lane.due_ms()) == (None, None)


def test_a_delayed_request_that_was_refused_is_due_again_and_open_in_its_old_place() -> None:
    lane = Lane("i", 0)
    first, second = delayed(lane, 0, 100), delayed(lane, 1, 100)
    lane.answered(first)

    lane.take_back([first])

    assert lane.next(100) is first
    assert (lane.oldest(), lane.first_open()) == (first, first)
    lane.closed(first.sequence)
    assert (lane.next(100), lane.first_open()) == (second, second)


def test_delayed_requests_that_are_not_due_let_a_lane_rest() -> None:
    lane = Lane("i", 0)
    one = delayed(lane, 0, 100)

    assert lane.is_at_rest
    assert not lane.is_empty
    lane.answered(one)
    assert not lane.is_at_rest
