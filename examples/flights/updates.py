"""What the departures set going: the components that a daemon of the demo runs.

    processors run examples.flights.updates:aircraft examples.flights.updates:airlines

A service appends departures to the app `aircraft` (service.py) and knows nothing of this file.
The triggers here turn what it appends into requests, one for each change that they watch:

    aircraft   summary   an instance per aircraft; slow, and given up when there is newer news
               alert     the same instances, same order; not worth sending when it comes too late
    airlines   count     an instance per airline, triggered by the other app; every one counts
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from eventstore import Diff, State
from examples.flights.story import app_names
from processors import Component, DiscardPolicy, changed
from processors.relay_change import Change

__all__ = ["ALERT_S_MAX", "SUMMARY_S", "aircraft", "airlines", "summary_of"]

#: How long a summary takes. Slow: with 40 of them at a time (demo.py), a daemon cannot make one for
#: each change that the service appends in the demo.
SUMMARY_S: Final = 0.1
#: An alert that waited for longer does not help anybody any more.
ALERT_S_MAX: Final = 1.0

aircraft = Component(app_names().aircraft)
airlines = Component(app_names().airlines)


def summary_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what there is to say of an aircraft's late and cancelled departures so far."""
    late, cancelled = fields.get("late", 0), fields.get("cancelled", 0)
    hours = fields.get("late_total_min", 0) / 60
    departures = "departure" if late == 1 else "departures"
    text = f"{late} late {departures} ({hours:.1f} hours in all), {cancelled} cancelled"
    return {"of": late + cancelled, "text": text}


@aircraft.update(
    on=changed("late", "cancelled", trigger_id="summary", start="beginning"),
    discard_policy=DiscardPolicy.NUM_NEW_UPDATES,
    discard_after=1,
)
def summary(state: State, props: Mapping[str, Any]) -> dict[str, Any]:
    """Sum an aircraft's troubles up, from its state as it is when this begins.

    The last request of an aircraft has no newer one, so it is never given up: however many of
    those before it were, the last summary knows everything.
    """
    found = summary_of(state)
    time.sleep(SUMMARY_S)
    return {"summary": found}


@aircraft.update(
    on=changed("late_min", trigger_id="alert", start="beginning"),
    discard_policy=DiscardPolicy.SECONDS,
    discard_after=ALERT_S_MAX,
)
def alert(state: State, props: Mapping[str, Any]) -> Diff:
    """Tell of a departure that was late: by its place among the aircraft's events."""
    return Diff().append("alerts", props["sequence"])


def airline_of(change: Change) -> str:
    """Return whose flight it was that had been cancelled."""
    flight: str = change.state["cancelled_flight"]
    return flight.partition(" ")[0]


@airlines.update(
    on=changed(
        "cancelled_flight",
        app=aircraft.name,
        key=airline_of,
        trigger_id="cancelled",
        start="beginning",
    ),
)
def count(state: State, props: Mapping[str, Any]) -> Diff:
    """Count an airline's cancelled flights. Nothing is given up here, so none may be missing."""
    return Diff().increment("cancelled")
