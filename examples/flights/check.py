"""The check of the demo: what the log says became of every departure, beside what must have.

Nothing here asks those who did the work. Counts are made from the events of the log, in their
order; states are compared with a plain loop over the rows of the file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from eventstore import App, Entry, EventStore, Kind, Verdict, values
from examples.flights.data import Departure
from examples.flights.service import LATE_MIN, key_of
from examples.flights.story import AppNames
from examples.flights.updates import summary_of

__all__ = ["Audit", "Tally", "audit"]

#: The updates, and the app where each one's requests are.
UPDATES: Final = ("summary", "alert", "count")
#: What became of a request, by the event that closed it.
OUTCOMES: Final = {Kind.DIFF: "applied", Kind.DISCARD: "discarded", Kind.FAILURE: "failed"}


class Tally(NamedTuple):
    """What became of the requests of one update."""

    watched: int  #: departures that must have led to a request
    requests: int
    applied: int
    discarded: int
    failed: int
    pending: int


class Audit(NamedTuple):
    """The tallies by update, and each thing that is not as it must be in one line of text."""

    tallies: dict[str, Tally]
    differences: list[str]


class _Ledger:
    """What the events of both apps say, in the order of the log."""

    def __init__(self) -> None:
        #: Departures: the key of each that counts, by its place.
        self.departures: dict[tuple[str, int], str] = {}
        self.late: set[tuple[str, int]] = set()
        self.cancelled: set[tuple[str, int]] = set()
        #: How many requests each departure has, by update and place.
        self.requests: Counter[tuple[str, tuple[str, int]]] = Counter()
        #: Requests that wait: the update and the departure of each.
        self._open: dict[tuple[str, str, int], tuple[str, tuple[str, int]]] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        #: Alerts that were applied, by aircraft, in order.
        self.alerts: dict[str, list[int]] = {}

    def take(self, app: str, entry: Entry) -> None:
        event, place = entry.event, (entry.instance, entry.sequence)
        if entry.verdict != Verdict.ACCEPTED or entry.instance.startswith("$"):
            return
        if event.kind == Kind.REQUEST:
            props: dict[str, Any] = values.decode(event.body)
            departure = (props["instance"], props["sequence"])
            self.requests[event.name, departure] += 1
            self._open[app, *place] = event.name, departure
        elif event.answer is not None and event.answer.closes:
            update, departure = self._open.pop((app, entry.instance, event.answer.cause))
            outcome = OUTCOMES[event.kind]
            self.outcomes[update, outcome] += 1
            if (update, outcome) == ("alert", "applied"):
                self.alerts.setdefault(entry.instance, []).append(departure[1])
        elif event.kind == Kind.DIFF and event.answer is None:
            self.departures[place] = event.idempotency_key or ""
            if b'"late_min"' in event.body:
                self.late.add(place)
            if b'"cancelled"' in event.body:
                self.cancelled.add(place)

    def pending(self, update: str) -> int:
        return sum(name == update for name, _ in self._open.values())


def audit(store: EventStore, names: AppNames, flights: Sequence[Departure]) -> Audit:
    """Count what the log has, and compare it and the states with what must be."""
    ledger = _Ledger()
    for app in names:
        for entry in store.app(app).tail(start="beginning", follow=False):
            ledger.take(app, entry)
    tallies = {update: _tally(ledger, update) for update in UPDATES}
    differences = [
        *_of_departures(ledger, flights),
        *(text for update in UPDATES for text in _of_requests(ledger, update, tallies[update])),
        *_of_aircraft(store.app(names.aircraft), ledger, flights),
        *_of_airlines(store.app(names.airlines), flights),
    ]
    return Audit(tallies, differences)


def _watched(ledger: _Ledger, update: str) -> set[tuple[str, int]]:
    if update == "summary":
        return ledger.late | ledger.cancelled
    return ledger.late if update == "alert" else ledger.cancelled


def _tally(ledger: _Ledger, update: str) -> Tally:
    applied, discarded, failed = (ledger.outcomes[update, name] for name in OUTCOMES.values())
    requests = sum(n for (name, _), n in ledger.requests.items() if name == update)
    watched = len(_watched(ledger, update))
    return Tally(watched, requests, applied, discarded, failed, ledger.pending(update))


def _of_departures(ledger: _Ledger, flights: Sequence[Departure]) -> Iterator[str]:
    found, wanted = Counter(ledger.departures.values()), Counter(map(key_of, flights))
    if found != wanted:
        yield (
            f"departures: {(wanted - found).total():,} are missing in the log,"
            f" {(found - wanted).total():,} are too many"
        )


def _of_requests(ledger: _Ledger, update: str, tally: Tally) -> Iterator[str]:
    watched = _watched(ledger, update)
    found = {place: n for (name, place), n in ledger.requests.items() if name == update}
    without = len(watched - found.keys())
    twice = sum(n > 1 for n in found.values())
    if without or twice or found.keys() - watched:
        yield (
            f"{update}: {without:,} departures without a request, {twice:,} with two or more,"
            f" {len(found.keys() - watched):,} requests for none"
        )
    if tally.requests != tally.applied + tally.discarded + tally.failed + tally.pending:
        yield f"{update}: requests are not applied + discarded + failed + pending: {tally}"
    if tally.failed or tally.pending:
        yield f"{update}: {tally.failed:,} failed and {tally.pending:,} pending at the end"


def _of_aircraft(app: App, ledger: _Ledger, flights: Sequence[Departure]) -> Iterator[str]:
    wanted: dict[str, Counter[str]] = defaultdict(Counter)
    for flight in flights:
        if flight.delay_min is None:
            wanted[flight.instance]["cancelled"] += 1
        elif flight.delay_min >= LATE_MIN:
            wanted[flight.instance].update(late=1, late_total_min=flight.delay_min)
    for instance in sorted({*wanted, *app.instances()}):
        state = app.get(instance, default={})
        summary = summary_of(wanted[instance]) if wanted[instance] else None
        if state.get("summary") != summary:
            yield f"{instance}: its summary is {state.get('summary')}, by the file {summary}"
        if state.get("alerts", []) != ledger.alerts.get(instance, []):
            yield f"{instance}: its alerts are {state.get('alerts')}, by the log others"


def _of_airlines(app: App, flights: Sequence[Departure]) -> Iterator[str]:
    wanted = Counter(flight.carrier for flight in flights if flight.cancelled)
    found = {instance: app.get(instance, "cancelled") for instance in app.instances()}
    if found != dict(wanted):
        yield f"cancelled flights by airline are {found}, not {dict(wanted)}"
