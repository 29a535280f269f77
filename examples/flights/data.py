"""The 27,004 departures from New York in January 2013, as typed rows (see DATA.md)."""

from __future__ import annotations

import csv
import gzip
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

__all__ = ["COLUMNS", "FILE", "NEW_YORK", "Departure", "departures"]

FILE = Path(__file__).with_name("january.csv.gz")

COLUMNS = (
    "scheduled",
    "delay_min",
    "carrier",
    "number",
    "aircraft",
    "origin",
    "destination",
    "air_time_min",
)

#: New York's time in January. A fixed offset is exact for the whole month, and does not need a
#: time zone database, which small machines and containers often lack.
NEW_YORK = timezone(timedelta(hours=-5), "EST")


class Departure(NamedTuple):
    """One scheduled flight; `None` is what the source does not know."""

    scheduled: datetime  #: in New York's time
    delay_min: int | None  #: of the departure, negative when early; None when it was cancelled
    carrier: str  #: as in "UA"
    number: str  #: of the flight, unique per carrier and day
    aircraft: str | None  #: its tail number
    origin: str  #: EWR, JFK or LGA
    destination: str
    air_time_min: int | None  #: None when cancelled, or diverted to another airport

    @property
    def cancelled(self) -> bool:
        return self.delay_min is None

    @property
    def diverted(self) -> bool:
        return not self.cancelled and self.air_time_min is None

    @property
    def occurred_at(self) -> datetime:
        """When it left; for a cancelled flight, when it should have left."""
        return self.scheduled + timedelta(minutes=self.delay_min or 0)

    @property
    def flight(self) -> str:
        return f"{self.carrier} {self.number}"

    @property
    def instance(self) -> str:
        """The aircraft; flights cancelled before one was assigned share one name per carrier."""
        return self.aircraft or f"unassigned-{self.carrier}"


def departures() -> list[Departure]:
    """Return all rows in the order in which they happened."""
    with gzip.open(FILE, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        assert tuple(next(rows)) == COLUMNS
        found = [_departure(*row) for row in rows]
    return sorted(found, key=lambda departure: departure.occurred_at)


def _departure(
    scheduled: str,
    delay: str,
    carrier: str,
    number: str,
    aircraft: str,
    origin: str,
    destination: str,
    air_time: str,
) -> Departure:
    return Departure(
        datetime.fromisoformat(scheduled).replace(tzinfo=NEW_YORK),
        int(delay) if delay else None,
        carrier,
        number,
        aircraft or None,
        origin,
        destination,
        int(air_time) if air_time else None,
    )
