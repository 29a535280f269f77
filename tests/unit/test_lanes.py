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
