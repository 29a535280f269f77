"""The flights of the example: what DATA.md says of the file holds of the file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pytest

from examples.flights.data import FILE, NEW_YORK, Departure, departures


@pytest.fixture(scope="module")
def flights() -> Sequence[Departure]:
    return departures()


def test_the_file_is_small_and_has_every_departure(flights: Sequence[Departure]) -> None:
    assert FILE.stat().st_size < 1_000_000
    assert len(flights) == 27_004
    assert sum(flight.cancelled for flight in flights) == 521
    assert sum(flight.diverted for flight in flights) == 85
    assert sum(flight.air_time_min or 0 for flight in flights) == 4_070_239


def test_every_flight_belongs_to_one_instance(flights: Sequence[Departure]) -> None:
    aircraft = {flight.aircraft for flight in flights} - {None}
    unassigned = [flight for flight in flights if flight.aircraft is None]

    assert len(aircraft) == 3_148
    assert len({flight.instance for flight in flights}) == 3_152
    assert len(unassigned) == 155
    assert all(flight.cancelled for flight in unassigned)


def test_departures_come_in_the_order_in_which_they_happened(
    flights: Sequence[Departure],
) -> None:
    times = [flight.occurred_at for flight in flights]

    assert times == sorted(times)
    assert times[0] > datetime(2013, 1, 1, tzinfo=NEW_YORK)


def test_a_late_flight_leaves_on_the_next_day() -> None:
    scheduled = datetime(2013, 1, 31, 22, 50, tzinfo=NEW_YORK)
    flight = Departure(scheduled, 124, "B6", "608", "N281JB", "JFK", "PWM", 41)

    assert flight.occurred_at == datetime(2013, 2, 1, 0, 54, tzinfo=NEW_YORK)


def test_a_cancelled_flight_occurs_when_it_was_scheduled() -> None:
    scheduled = datetime(2013, 1, 2, 6, 0, tzinfo=NEW_YORK)
    flight = Departure(scheduled, None, "UA", "1", None, "EWR", "ORD", None)

    assert flight.cancelled
    assert not flight.diverted
    assert flight.occurred_at == scheduled
    assert flight.instance == "unassigned-UA"
