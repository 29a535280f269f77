"""A process that runs an update at once, again and again, until it is killed.

python -m tests.fault.at_once_child run URL NAME THREADS CALLS    each token, once its run returned

Each thread runs updates of instance `i` that leave the token NAME-THREAD-NUMBER in its log. Every
update counts as quick, and the first one waits for the shards, on the slowest of machines.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

from eventstore import Diff, EventStore, State
from processors import Component
from processors.runner import engine, handlers

INSTANCE = "i"

component = Component("tokens")


@component.init_state
def begin() -> dict[str, Any]:
    return {"log": [], "count": 0}


@component.update("k")
def note(state: State, props: Mapping[str, Any]) -> Diff:
    # What it overwrites is what it has read: a token that another run did not see is not counted.
    return Diff().append("log", props["token"]).set("count", state["count"] + 1)


def run(url: str, name: str, threads: str, calls: str) -> None:
    handlers._QUICK_S_MAX = 60.0  # type: ignore[misc]
    engine._SHARE_WAIT_S = 60.0  # type: ignore[misc]
    with EventStore(url) as store, component(INSTANCE, store=store) as instance:

        def run_some(thread: int) -> None:
            for number in range(int(calls)):
                token = f"{name}-{thread}-{number}"
                instance.run("k", {"token": token}, flush_update=True)
                sys.stdout.write(f"{token}\n")  # one write: threads do not mix their lines
                sys.stdout.flush()

        others = [
            threading.Thread(target=run_some, args=(thread,)) for thread in range(1, int(threads))
        ]
        for other in others:
            other.start()
        run_some(0)
        for other in others:
            other.join()


if __name__ == "__main__":
    run(*sys.argv[2:])
