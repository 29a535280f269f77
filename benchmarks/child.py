"""The other process of the works that need one: `python -m benchmarks.child WHAT URL APP ...`.

It prints one line of JSON per result, and lives until its input ends, so that it never outlives
the benchmark.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from eventstore import EventStore

__all__ = ["main"]

#: How long the process is left alone while its CPU time is measured.
IDLE_S = 3.0
#: The same of a daemon, and before that the time in which it starts.
IDLE_DAEMON_S = (3.0, 5.0)


def follow(url: str, app_name: str) -> None:
    """Print, for each event, the moment at which its value could be read here."""
    with EventStore(url) as store:
        app = store.app(app_name)
        state = app.get("clock")
        say({"ready": state["number"]})
        for entry in app.tail(start=state.position):
            number = app.get(entry.instance, "number")
            say({"number": number, "at_ns": time.monotonic_ns()})


def idle(url: str, app_name: str) -> None:
    """Print the CPU seconds per second of a process that waits for news."""
    with EventStore(url) as store:
        threading.Thread(target=_measure_idle, args=(IDLE_S / 3, IDLE_S), daemon=True).start()
        for _ in store.app(app_name).tail():
            pass


def rebuild(url: str, app_name: str, instance: str) -> None:
    """Print the CPU seconds that this process needs to fold the whole log into a new view."""
    with EventStore(url) as store:
        cpu_s = time.process_time()
        store.app(app_name).get(instance, fresh=True)
        say({"cpu_s": time.process_time() - cpu_s})


def first_get(url: str, app_name: str, instance: str) -> None:
    """Print a field; the parent measures from the start of the process."""
    with EventStore(url) as store:
        say({"value": store.app(app_name).get(instance, "total")})


def cold_get(url: str, app_name: str, instance: str) -> None:
    """Print how long the first get of a large field takes."""
    with EventStore(url) as store:
        start_s = time.perf_counter()
        value = store.app(app_name).get(instance, "messages")
        say({"took_s": time.perf_counter() - start_s, "items": len(value)})


def memory(url: str, app_name: str, instances: str, gets: str) -> None:
    """Print the peak memory after a rebuild and many gets of random instances."""
    chance = random.Random(1)
    with EventStore(url) as store:
        app = store.app(app_name)
        app.get(instance_name(0), fresh=True)
        for _ in range(int(gets)):
            app.get(instance_name(chance.randrange(int(instances))), "total")
        say({"peak_bytes": _peak_bytes()})


def daemon(url: str, target: str) -> None:
    """Run the daemon of a component; what its handlers `say` is read by the parent."""
    logging.disable(logging.INFO)  # its warnings are told, not that it starts
    from processors.cli import processors  # the other works do not pay for importing it

    processors(["run", target, "--url", url], prog_name="processors")


def idle_daemon(url: str, target: str) -> None:
    """The same, and print the CPU seconds per second that it takes while nothing happens."""
    settle_s, idle_s = IDLE_DAEMON_S
    threading.Thread(target=_measure_idle, args=(settle_s, idle_s), daemon=True).start()
    daemon(url, target)


def _measure_idle(settle_s: float, idle_s: float) -> None:
    time.sleep(settle_s)  # after the start, RocksDB and the log still tidy up
    start_s, cpu_s = time.perf_counter(), time.process_time()
    time.sleep(idle_s)
    say({"share": (time.process_time() - cpu_s) / (time.perf_counter() - start_s)})


def _peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        factor = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def instance_name(number: int) -> str:
    """Return the name of an instance in the works that have many."""
    return f"order-{number:06d}"


def say(facts: Mapping[str, object]) -> None:
    # In one piece: handlers say something from several threads.
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


_WHAT: dict[str, Callable[..., None]] = {
    work.__name__: work
    for work in (follow, idle, rebuild, first_get, cold_get, memory, daemon, idle_daemon)
}


def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    what, *arguments = sys.argv[1:]
    _WHAT[what](*arguments)


if __name__ == "__main__":
    main()
