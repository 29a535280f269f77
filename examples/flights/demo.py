"""27,004 flights become state that can be read, rewound and checked: what `make demo` runs.

    python -m examples.flights.demo [--url kafka://localhost:9092]

One instance per aircraft. Each run makes an app of its own (`flights`, `flights-2`, ...).
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from eventstore import App, Conflict, Diff, EventStore, EventStoreError, occurred
from eventstore.history.verify import verify_app
from examples.flights.data import NEW_YORK, Departure, departures

__all__ = ["diff_of", "produce"]

#: The aircraft that flew most, and so has the longest history.
AIRCRAFT = "N730MQ"
EARLIER = datetime(2013, 1, 15, 12, 0, tzinfo=NEW_YORK)


def diff_of(departure: Departure) -> Diff:
    """Return what a flight changes about its aircraft."""
    if departure.delay_min is None:
        return Diff().increment("cancelled")
    diff = Diff().set("flight", departure.flight).increment("flights")
    diff = diff.increment("delay_min", departure.delay_min)
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


def produce(store: EventStore, app: App, flights: Sequence[Departure], console: Console) -> None:
    """Append an event per flight, without waiting for each, and then wait for all."""
    quiet = not console.is_terminal
    for flight in track(flights, "appending", console=console, transient=True, disable=quiet):
        app.append(
            flight.instance,
            diff_of(flight),
            name=name_of(flight),
            occurred_at=flight.occurred_at,
        )
    store.flush()


def show_states(app: App, console: Console) -> None:
    now = app.get(AIRCRAFT)
    earlier = app.get(AIRCRAFT, at=occurred(EARLIER))
    table = Table("field", f"now (version {now.version})", title=f"Aircraft {AIRCRAFT}")
    table.add_column(f"on {EARLIER:%d January, %H:%M} (version {earlier.version})")
    for field in now:
        table.add_row(field, _text(now[field]), _text(earlier.get(field)))
    console.print(table, "")


def show_conflict(app: App, console: Console) -> None:
    """Let two people decide on the same state; the second one is told."""
    first, second = app.get(AIRCRAFT), app.get(AIRCRAFT)
    app.commit(AIRCRAFT, first.update(next_check="2 February"), name="planned", actor="Ada")
    try:
        app.commit(AIRCRAFT, second.update(next_check="9 March"), name="planned", actor="Bob")
    except Conflict as conflict:
        console.print(f"[bold]A stale write is refused:[/] {escape(str(conflict))}\n")


def show_history(app: App, console: Console) -> None:
    table = Table("event", "occurred", "what", "verdict", "version", title="Its last events")
    for entry in itertools.islice(app.history(AIRCRAFT, reverse=True), 5):
        when = entry.occurred_at or entry.time
        table.add_row(
            str(entry.sequence),
            f"{when.astimezone(NEW_YORK):%d %b %Y %H:%M}",
            entry.event.name,
            entry.verdict.name.lower(),
            str(entry.version),
        )
    console.print(table, "")


def show_fork(app: App, console: Console) -> None:
    fork = f"{AIRCRAFT}-what-if"
    app.fork(AIRCRAFT, at=occurred(EARLIER), to=fork)
    app.append(fork, Diff().set("place", "hangar").increment("cancelled"), name="grounded")
    grounded, real = app.get(fork, "flights"), app.get(AIRCRAFT, "flights")
    console.print(
        f"[bold]A fork[/] of {EARLIER:%d January}, grounded since: {grounded} flights in {fork},"
        f" still {real} in {AIRCRAFT}.\n"
    )


def check(store: EventStore, app: App, console: Console) -> int:
    """Fold the log again, into plain dicts, and compare: return the number of differences."""
    verified = verify_app(store, app.name)
    for difference in verified.differences:
        console.print(escape(difference))
    console.print(
        f"[bold]Checked:[/] {verified.events:,} events of {verified.instances:,} instances, folded"
        " once more from the log into plain dicts, and every state, version and verdict compared"
        f" with the view: {len(verified.differences)} differences."
    )
    return len(verified.differences)


def _text(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _unused_name(store: EventStore) -> str:
    taken = set(store.apps())
    names = itertools.chain(["flights"], (f"flights-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def run(store: EventStore, url: str | None, console: Console) -> int:
    """Run the demo; return the number of differences between view and fold."""
    flights = departures()
    app = store.app(_unused_name(store))
    start_s = time.perf_counter()
    produce(store, app, flights, console)
    took_s = time.perf_counter() - start_s
    console.print(
        f"[bold]{len(flights):,} events[/] appended to {escape(store.url)}, app {app.name}, and"
        f" durable: {took_s:.1f} s, {len(flights) / took_s:,.0f} per second.\n"
    )
    show_states(app, console)
    show_conflict(app, console)
    show_history(app, console)
    show_fork(app, console)
    wrong = check(store, app, console)
    option = "" if url is None else f" --url {shlex.quote(url)}"
    console.print("\n[bold]Next:[/]")
    for command in (
        f"history {app.name} {AIRCRAFT} --states",
        f"get {app.name} {AIRCRAFT} --at HEAD~10",
        f"instances {app.name}",
        "doctor",
    ):
        console.print(f"  .venv/bin/eventstore {command}{option}", highlight=False, soft_wrap=True)
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a folder, or kafka://host:9092; default ./.eventstore")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with EventStore(options.url) as store:
            return 1 if run(store, options.url, console) else 0
    except EventStoreError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
