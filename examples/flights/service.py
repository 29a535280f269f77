"""The service of the demo: appends a month of departures as plain diffs, and knows no processor.

    python -m examples.flights.service [--flights 27004] [--seconds 10]

One instance per aircraft. Killed and started again it goes on where it was: each aircraft's state
says how many of its departures are in the log. It says how far it is on stdout, and ends with it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from eventstore import App, Diff, EventStore
from examples.flights.data import Departure, departures
from examples.flights.processes import end_with_parent, say
from examples.flights.story import app_names

__all__ = ["LATE_MIN", "diff_of", "name_of"]

#: From so many minutes on, a departure is called late.
LATE_MIN = 30
#: How often it says how far it is, in departures.
SAY_EVERY = 100


def diff_of(departure: Departure) -> Diff:
    """Return what a flight changes about its aircraft."""
    if departure.delay_min is None:
        return Diff().increment("cancelled").set("cancelled_flight", departure.flight)
    diff = Diff().set("flight", departure.flight).increment("flights")
    diff = diff.increment("delay_min", departure.delay_min)
    if departure.delay_min >= LATE_MIN:
        diff = diff.increment("late").set("late_min", departure.delay_min)
        diff = diff.increment("late_total_min", departure.delay_min)
    if departure.air_time_min is None:  # diverted, and the data do not say where to
        return diff.set("place", None).increment("diverted")
    return diff.set("place", departure.destination).increment(
        "air_time_min", departure.air_time_min
    )


def name_of(departure: Departure) -> str:
    """Return what happened, for people who read the history."""
    if departure.cancelled:
        return "cancelled"
    return "diverted" if departure.diverted else "departed"


def key_of(departure: Departure) -> str:
    """Return what tells a departure from all others: appended again, it takes effect once."""
    return f"{departure.flight} {departure.scheduled:%Y-%m-%d}"


def left(app: App, flights: Sequence[Departure]) -> Iterator[Departure]:
    """Yield the departures that the log does not have yet, in their order."""
    known: Counter[str] = Counter()
    for instance in app.instances():
        state = app.get(instance)
        known[instance] = state.get("flights", 0) + state.get("cancelled", 0)
    for flight in flights:
        if known[flight.instance] > 0:
            known[flight.instance] -= 1
        else:
            yield flight


def serve(app: App, flights: Sequence[Departure], pace_s: float) -> None:
    """Append departures, `pace_s` seconds apart (0: as fast as it goes), and say how far it is."""
    begin_s = time.monotonic()
    for number, flight in enumerate(flights):
        wait_s = begin_s + number * pace_s - time.monotonic()
        if wait_s > 0.02:
            time.sleep(wait_s)
        receipt = app.append(
            flight.instance,
            diff_of(flight),
            name=name_of(flight),
            occurred_at=flight.occurred_at,
            idempotency_key=key_of(flight),
        )
        if number % SAY_EVERY == 0 or number + 1 == len(flights):
            # What is said is durable; nothing else waits for the disk.
            receipt.result()
            left = len(flights) - number - 1
            say(appended=number + 1, left=left, date=f"{flight.scheduled:%d %B}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flights", type=int, help="only so many, the earliest first")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long all of them take")
    options = parser.parse_args(arguments)
    end_with_parent()
    flights = departures()[: options.flights]
    with EventStore() as store:
        app = store.app(app_names().aircraft)
        new = list(left(app, flights))
        say(appended=0, left=len(new), date="")
        serve(app, new, options.seconds / len(flights))
        store.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
