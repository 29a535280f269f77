"""A process that relays and answers until it is killed, or one that is a service which appends.

python -m tests.fault.relay_child relay URL            "level" whenever nothing is left to do
python -m tests.fault.relay_child serve URL NAME COUNT  appends; "done" at the end

Two components in a row: services append to the app `orders`; `alerts` has an update for each
change of an order's status, per customer; `digest` has one for each change of an alert's count.
Every answer of `alerts` also sends a diff to the app `ledger`, in its outbox.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import orjson

from eventstore import Diff, EventStore, Kind, OutcomeUnknown, State
from eventstore.events import Answer, Event
from eventstore.processing import PendingRow, Processing
from processors.component import Component, changed
from processors.relay_change import Change
from processors.relays import Relays

CUSTOMERS = 5
ORDERS = 40

alerts = Component("alerts")
digest = Component("digest")


def customer_of(order: str) -> str:
    return f"c-{int(order.rpartition('-')[2]) % CUSTOMERS}"


def to_customer(change: Change) -> str:
    return customer_of(change.instance)


def to_all(change: Change) -> str:
    return "all"


@alerts.update(
    on=changed("status", app="orders", key=to_customer, trigger_id="a", start="beginning")
)
def alert(state: State, props: Mapping[str, Any]) -> None:
    """Answered by Answerer, which stands in for a runner."""


@digest.update(on=changed("count", app="alerts", key=to_all, trigger_id="d", start="beginning"))
def summarise(state: State, props: Mapping[str, Any]) -> None:
    """Answered by Answerer."""


def answer_of(app: str, request: Event) -> tuple[Diff, bytes | None]:
    props = orjson.loads(request.body)
    place = f"{props['instance']}:{props['sequence']}"
    diff = Diff().increment("count").merge_into("seen", {place: 1})
    if app == "digest":
        return diff, None
    message = {"app": "ledger", "instance": "all", "kind": "diff", "body": [["increment", "n", 1]]}
    return diff, orjson.dumps([message])


class Answerer:
    """Answers every request of an app, in order: what a runner does, without its care for time."""

    def __init__(self, processing: Processing) -> None:
        self._processing = processing
        self._news = threading.Event()
        self._news.set()
        processing.watch(lambda folded: self._news.set())
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            rows = list(self._processing.pending())
            events = [event for row in rows if (event := self._answer(row)) is not None]
            for receipt in self._processing.send(events) if events else ():
                try:
                    receipt.entry()
                except OutcomeUnknown:
                    self._news.set()

    def _answer(self, row: PendingRow) -> tuple[str, Event] | None:
        entry = self._processing.entry(row.instance, row.request.sequence)
        if entry is None:
            return None
        diff, outbox = answer_of(self._processing.name, entry.event)
        answer = Answer(row.request.sequence, 0, True)
        event = Event(Kind.DIFF, row.request.name, diff.encode(), answer=answer, outbox=outbox)
        return row.instance, event


def relay(store: EventStore, arguments: list[str]) -> None:
    running = []
    for component in (alerts, digest):
        processing = Processing(store.app(component.name))
        relays = Relays(store, component, processing)
        relays.shards_changed(frozenset(range(processing.shards())))
        Answerer(processing)
        running.append((processing, relays))
    print("running", flush=True)
    pause = threading.Event()
    while not pause.wait(0.05):
        if all(is_level(*one) for one in running):
            print("level", flush=True)


def is_level(processing: Processing, relays: Relays) -> bool:
    return (
        all(one.state == "level" and not one.lag_events for one in relays.status())
        and next(processing.pending(), None) is None
    )


def serve(store: EventStore, arguments: list[str]) -> None:
    name, count = arguments
    orders = store.app("orders")
    for number in range(int(count)):
        written = orders.append(
            f"o-{number % ORDERS}",
            {"status": f"{name}-{number}"},
            idempotency_key=f"{name}-{number}",
        )
        if number % 4 == 0:
            written.result()  # so that there are many group commits, and not for too long
    store.flush()
    print("done", flush=True)


COMMANDS = {"relay": relay, "serve": serve}

if __name__ == "__main__":
    command, url, *arguments = sys.argv[1:]
    with EventStore(url) as store:
        COMMANDS[command](store, arguments)
