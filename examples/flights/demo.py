"""A month of flights, kept up to date by a daemon that is killed half-way: what `make demo` runs.

    python -m examples.flights.demo [--url kafka://localhost:9092] [--fresh]

Three kinds of processes share one log: a service that appends departures (service.py), daemons
that run the updates (`processors run`, updates.py), and a reader (reader.py). Here they are
started, killed and waited for, and in the end everything is checked against the log (check.py).
Cut off at any moment and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eventstore import App, EventStore, EventStoreError, occurred
from examples.flights.check import Audit, audit
from examples.flights.data import NEW_YORK, Departure, departures
from examples.flights.processes import Child, ChildFailed
from examples.flights.service import LATE_MIN
from examples.flights.story import (
    STORY_VARIABLE,
    AppNames,
    app_names,
    newest_story,
    unused_story,
)
from examples.flights.updates import ALERT_S_MAX

__all__ = ["main"]

EARLIER: Final = datetime(2013, 1, 15, 12, 0, tzinfo=NEW_YORK)
UPDATES: Final = ("examples.flights.updates:aircraft", "examples.flights.updates:airlines")
#: How often somebody who watches is told how far it is, in days of January.
TELL_DAYS: Final = 7


class Demo:
    """One run of the demo: its processes, and what they are told to do."""

    def __init__(
        self,
        flights: Sequence[Departure],
        names: AppNames,
        environment: Mapping[str, str],
        console: Console,
    ) -> None:
        self._flights = flights
        self._names = names
        self._environment = environment
        self._console = console
        self._stack = ExitStack()

    def run(self, seconds: float, check: Callable[[], int]) -> int:
        """Let the service append what is left, kill the daemon half-way, and drain the rest.

        Then `check` while the reader verifies its view; return the differences that both found.
        """
        with self._stack:
            reader = self._start("examples.flights.reader")
            daemon = self._daemon()
            self._when_it_has_work(daemon)
            service = self._start(
                "examples.flights.service",
                "--flights", str(len(self._flights)), "--seconds", str(seconds),
            )  # fmt: skip
            daemon = self._serve(service, daemon, reader)
            self._drain(daemon)
            reader.tell("verify")
            wrong = check()
            return wrong + self._verified(reader)

    def _start(self, *arguments: str) -> Child:
        return self._stack.enter_context(Child(arguments, self._environment))

    def _daemon(self, *options: str) -> Child:
        return self._start("processors", "run", *UPDATES, "--concurrency", "40", *options)

    def _when_it_has_work(self, daemon: Child) -> float:
        """Wait until a daemon was given its share of the aircraft; return when (monotonic)."""
        return daemon.wait_logged(f"shards app={self._names.aircraft}")

    def _serve(self, service: Child, daemon: Child, reader: Child) -> Child:
        """Follow the service to its end; return the daemon that runs then."""
        said = service.said()
        left = next(said)["left"]
        before = len(self._flights) - left
        if before:
            self._tell(f"{before:,} departures are in the log already, from an earlier run.")
        killed_s, told_day = None, 0
        for facts in said:
            if killed_s is None and facts["appended"] >= left / 2:
                daemon.kill()
                killed_s = time.monotonic()
                first, daemon = daemon, self._daemon()
                self._tell(
                    f"[bold red]Killed[/] daemon {first.pid} (SIGKILL), in the middle of what it"
                    f" did. Daemon {daemon.pid} takes over; the service goes on meanwhile."
                )
            day = int(facts["date"][:2])
            if (day % TELL_DAYS == 0 and day != told_day) or not facts["left"]:
                told_day = day
                self._tell_day(before, facts, reader.newest())
        self._tell(f"[bold]The service is done.[/] It appended {left:,}, and all are durable.")
        shards_s = self._when_it_has_work(daemon)
        if killed_s is not None:
            self._tell(
                f"The second daemon had the first one's work {shards_s - killed_s:.1f} s after the"
                " kill, the start of Python included."
            )
        return daemon

    def _tell_day(self, before: int, facts: Mapping[str, Any], read: Mapping[str, Any]) -> None:
        line = f"{facts['date']}: {before + facts['appended']:6,} departures appended"
        if read:
            line += (
                f"; {read['waiting']:5,} updates wait; {read['up_to_date']:4.0%} of the summaries"
                " that are read are up to date"
            )
        self._tell(line)

    def _drain(self, daemon: Child) -> None:
        daemon.stop()
        self._tell("The daemon was asked to stop (SIGTERM): what ran has ended, the rest waits.")
        begin_s = time.monotonic()
        self._daemon("--once").wait()
        self._tell(
            f"`processors run --once` ran what still waited, and ended:"
            f" {time.monotonic() - begin_s:.1f} s."
        )

    def _verified(self, reader: Child) -> int:
        """Tell how the reader's reads were, and whether its view is right."""
        *_, reads, found = reader.said()
        self._tell(
            f"[bold]{reads['reads']:,} reads[/] meanwhile, each with everything acknowledged"
            f" before it: p50 {reads['p50_ms']:.2f} ms, p99 {reads['p99_ms']:.2f} ms."
        )
        for difference in found["differences"]:
            self._tell(escape(difference))
        self._tell(
            f"[bold]The reader's view[/] beside the log, folded anew: {found['events']:,} events of"
            f" {found['instances']:,} instances, {len(found['differences'])} differences."
        )
        return len(found["differences"])

    def _tell(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def show_audit(found: Audit, flights: int, console: Console) -> None:
    table = Table("update", title="What became of it, counted from the log")
    for title in ("watched", "requests", "applied", "discarded", "failed", "pending"):
        table.add_column(title, justify="right")
    for update, tally in found.tallies.items():
        table.add_row(update, *(f"{number:,}" for number in tally))
    console.print(table)
    for difference in found.differences:
        console.print(escape(difference), soft_wrap=True)
    console.print(
        f"[bold]Checked:[/] whether {flights:,} departures are in the log, once each; whether"
        " every one that an update watches has exactly one request, and each request one end"
        " (requests = applied + discarded + failed + pending); whether summaries, alerts and counts"
        f" are those of a plain loop over the file: {len(found.differences)} differences. A"
        f" summary is discarded for a newer one and an alert after {ALERT_S_MAX:g} s, so how many"
        " are is a matter of time, and differs from run to run.",
        highlight=False,
        soft_wrap=True,
    )


def show_states(app: App, aircraft: str, console: Console) -> None:
    now = app.get(aircraft)
    earlier = app.get(aircraft, at=occurred(EARLIER))
    table = Table("field", f"now (version {now.version})", title=f"Aircraft {aircraft}")
    table.add_column(f"on {EARLIER:%d January, %H:%M} (version {earlier.version})")
    for field in now:
        table.add_row(field, _text(now[field]), _text(earlier.get(field)))
    console.print("", table, "")


def _text(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} of them" if value else ""
    if isinstance(value, dict):
        value = value["text"]
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def show_next(names: AppNames, aircraft: str, url: str | None, console: Console) -> None:
    option = "" if url is None else f" --url {shlex.quote(url)}"
    console.print("\n[bold]Next:[/]")
    for command in (
        f"eventstore history {names.aircraft} {aircraft} --states",
        f"eventstore get {names.aircraft} {aircraft} --at HEAD~10",
        f"processors discards {names.aircraft}",
        f"processors status {names.aircraft} {names.airlines}",
    ):
        console.print(f"  .venv/bin/{command}{option}", highlight=False, soft_wrap=True)
    console.print(
        f"  {command_of(url, '--fresh')}    (the same story again, in apps of its own)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def command_of(url: str | None, *options: str) -> str:
    """Return the command that runs the demo on the same log."""
    arguments = shlex.join([*(() if url is None else ("--url", url)), *options])
    return f"make demo ARGS={shlex.quote(arguments)}" if arguments else "make demo"


def busiest(flights: Sequence[Departure]) -> str:
    """Return the aircraft that flew most, and so has the longest history."""
    counts = Counter(flight.instance for flight in flights if not flight.cancelled)
    return counts.most_common(1)[0][0]


def story_of(url: str | None, *, fresh: bool) -> int:
    """Return the story to go on with, or a new one."""
    with EventStore(url) as store:
        return unused_story(store.apps()) if fresh else newest_story(store.apps())


def run(options: argparse.Namespace, console: Console) -> int:
    """Run the demo; return how much was not as it must be."""
    flights = departures()[: options.flights]
    story = story_of(options.url, fresh=options.fresh)
    names, aircraft = app_names(story), busiest(flights)
    environment = {STORY_VARIABLE: str(story)}
    if options.url is not None:
        environment["EVENTSTORE_URL"] = options.url
    console.print(
        f"[bold]{len(flights):,} real departures[/] from New York, January 2013; apps"
        f" {names.aircraft} and {names.airlines}. A service appends each as a plain diff. A daemon,"
        f" triggered by them, keeps up a slow summary of each aircraft's late ({LATE_MIN} minutes"
        " or more) and cancelled departures, alerts of the late ones, and counts the cancelled"
        " ones of each airline. A reader reads aircraft all the time.\n",
        highlight=False,
        soft_wrap=True,
    )

    def check() -> int:
        with EventStore(options.url) as store:
            found = audit(store, names, flights)
            show_states(store.app(names.aircraft), aircraft, console)
        show_audit(found, len(flights), console)
        return len(found.differences)

    wrong = Demo(flights, names, environment, console).run(options.seconds, check)
    show_next(names, aircraft, options.url, console)
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a folder, or kafka://host:9092; default ./.eventstore")
    parser.add_argument("--fresh", action="store_true", help="begin anew, in apps of its own")
    parser.add_argument("--flights", type=int, help="only so many, the earliest first")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the month takes")
    options = parser.parse_args(arguments)
    if options.flights is not None and options.flights < 1:
        parser.error(f"--flights {options.flights}: at least one")
    console = Console()
    try:
        return 1 if run(options, console) else 0
    except (EventStoreError, ChildFailed) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(
            f"\nCut off. `{command_of(options.url)}` goes on from here.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
