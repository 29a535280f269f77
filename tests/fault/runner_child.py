"""A process that runs updates of runner_component.py, or asks for them, until it is killed.

python -m tests.fault.runner_child run URL             "shards 0 1 2" after each change of them
python -m tests.fault.runner_child hold URL MODULE     the same, but it says "holds" before it
                                                       appends, and waits for a line then
python -m tests.fault.runner_child ask URL NAME FIRST  acknowledged: tokens NAME-FIRST, ...
python -m tests.fault.runner_child watch URL MODULE    how many requests there are, and are closed
python -m tests.fault.runner_child examine URL MODULE  reads tokens until "end"; what is wrong

`ask` reads numbers from stdin, and asks for the updates up to that number, not included; the
update and the instance follow from the number. A second run that begins at the first number that
was not acknowledged continues in the same order, and repeats nothing.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from eventstore import App, EventStore, LogUnavailable, OutcomeUnknown, Receipt, testing
from eventstore.processing import Folded, Processing
from processors.runner import Runner
from tests.fault.runner_component import component
from tests.fault.runner_processes import examine

INSTANCES = 200

#: Most updates are plain ones; of the others there are some of each kind.
KINDS = ("k/note", "k/note", "k/wait", "k/note", "k/call", "k/note", "k/wait", "k/steps")

#: Requests that are on their way at the same time.
AT_ONCE = 50

#: In the environment: requests are acknowledged when they are handed over, and never written.
EARLY_VARIABLE = "FOLDLOG_TEST_ACKNOWLEDGE_EARLY"


def run(store: EventStore, arguments: list[str]) -> None:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    runner = Runner(store, component, on_event=tell).start()
    while not stopped.wait(0.05):
        pass
    runner.stop()


def hold(store: EventStore, arguments: list[str]) -> None:
    importlib.import_module(arguments[0])  # it may change the fold of this process

    def wait(point: str) -> None:
        if point == "processor.append.before":
            print("holds", flush=True)
            sys.stdin.readline()

    testing.on_fault_point = wait
    run(store, [])


def tell(event: str, facts: dict[str, Any]) -> None:
    if event == "shards":
        print("shards", *facts["shards"], flush=True)


def ask(store: EventStore, arguments: list[str]) -> None:
    name, first = arguments
    if os.environ.get(EARLY_VARIABLE):
        acknowledge_early()
    app = store.app(component.name)
    number = int(first)
    for line in sys.stdin:
        while number < int(line):
            following = min(int(line), number + AT_ONCE)
            ask_some(app, [f"{name}-{n}" for n in range(number, following)])
            number = following


def ask_some(app: App, tokens: list[str]) -> None:
    """Ask for some updates at once; say each token once its request is durable."""
    receipts = [send(app, token) for token in tokens]
    for token, receipt in zip(tokens, receipts, strict=True):
        while True:
            try:
                receipt.result()
                break
            except (LogUnavailable, OutcomeUnknown):
                receipt = send(app, token)  # the same key: once, however often it gets there
        print(token, flush=True)


def send(app: App, token: str) -> Receipt:
    number = int(token.rpartition("-")[2])
    turn = number // INSTANCES
    props = {"token": token, "pause_s": number % 7 / 1_000}
    name = KINDS[(number + turn) % len(KINDS)]
    while True:
        try:
            return app.request(f"i{number % INSTANCES}", name, props, idempotency_key=token)
        except LogUnavailable:
            continue  # an earlier one failed, as its receipt says, too


def acknowledge_early() -> None:
    """Break the log: it says that it has what it is only about to write."""

    def hold_up(point: str) -> None:
        if point == "log.commit.before":
            threading.Event().wait()  # the fault itself: the kill comes first

    def settle_at_once(receipt: Receipt, timeout_s: float | None) -> None:
        return

    Receipt.settle = settle_at_once  # type: ignore[method-assign,assignment]
    testing.on_fault_point = hold_up


def watch(store: EventStore, arguments: list[str]) -> None:
    importlib.import_module(arguments[0])  # it may change the fold of this process
    opened = closed = 0

    def count(folded: Sequence[Folded]) -> None:
        nonlocal opened, closed
        opened += sum(one.opened is not None for one in folded)
        closed += sum(len(one.closed) for one in folded)
        print(opened, closed, flush=True)

    Processing(store.app(component.name)).watch(count)
    print(opened, closed, flush=True)
    sys.stdin.read()


def examine_all(store: EventStore, arguments: list[str]) -> None:
    importlib.import_module(arguments[0])
    lines = itertools.takewhile(lambda line: line != "end\n", sys.stdin)
    print(json.dumps(examine(store, [line.strip() for line in lines])), flush=True)


COMMANDS = {"run": run, "hold": hold, "ask": ask, "watch": watch, "examine": examine_all}

if __name__ == "__main__":
    command, url, *rest = sys.argv[1:]
    with EventStore(url) as opened:
        COMMANDS[command](opened, rest)
