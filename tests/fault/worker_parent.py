"""A process that runs one handler in a child until it is told, or killed; its lines are read.

python -m tests.fault.worker_parent run     "running PID" from inside the handler; on a line on
                                            stdin the handler may return, and "done PID" follows
python -m tests.fault.worker_parent wait    the same, with a handler that never returns
python -m tests.fault.worker_parent fork    as wait, beside a forked process that has its files
python -m tests.fault.worker_parent leave   runs a handler and ends without closing
"""

from __future__ import annotations

import os
import signal
import sys

from processors.runner.workers import Workers
from tests.fault.worker_tasks import Parent, fields_of, task


def run() -> None:
    # As a daemon that stops gracefully: running handlers may finish.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    calls = Parent(
        on_record=_say,
        on_stale=lambda: bool(sys.stdin.readline()),
    )
    with Workers(1) as workers:
        done = workers.run(task("ask_once"), calls)
    print("done", fields_of(done)["pid"], flush=True)


def wait() -> None:
    with Workers(1) as workers:
        workers.run(task("wait_for_ever"), Parent(on_record=_say))


def fork() -> None:
    with Workers(1) as workers:
        workers.run(task("wait_for_ever"), Parent(on_record=_fork_and_say))


def _say(pid: int) -> None:
    print("running", pid, flush=True)


def _fork_and_say(pid: int) -> None:
    # Now that the child is there, so that this process has a copy of the pipes to it.
    if os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    _say(pid)


def leave() -> None:
    Workers(2).run(task("nothing"), Parent())
    print("left", flush=True)


if __name__ == "__main__":
    {"run": run, "wait": wait, "fork": fork, "leave": leave}[sys.argv[1]]()
