"""A process that runs the component of runner_component.py until it is killed.

python -m tests.fault.runner_child run URL           runs; "shards 0 1 2" after each change of them
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from eventstore import EventStore
from processors.runner import Runner
from tests.fault.runner_component import component


def run(store: EventStore) -> None:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    runner = Runner(store, component, on_event=tell).start()
    while not stopped.wait(0.05):
        pass
    runner.stop()


def tell(event: str, facts: dict[str, Any]) -> None:
    if event == "shards":
        print("shards", *facts["shards"], flush=True)


COMMANDS = {"run": run}

if __name__ == "__main__":
    command, url = sys.argv[1:]
    with EventStore(url) as opened:
        COMMANDS[command](opened)
