"""The peer of the processors' lines: Motion, and a Redis of its own. Runs in Motion's environment.

    PYTHON benchmarks/motion_peer.py      PYTHON has Motion; redis-server is on the PATH

peer.py starts it. The first line that it prints says what it is; after that it reads one order per
line, `{"work": "queued", "count": 1000, ...}`, does it, and prints `{"value": ...}`. What is done
is, order by order, what processing.py does with our components. It ends, and its Redis with it,
when its input ends. Only the standard library and Motion: nothing of ours is installed there.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from motion import Component  # type: ignore[import-not-found]

__all__ = ["main"]

#: A Redis that does not answer by then will not.
START_TIMEOUT_S = 10.0

Counts = dict[str, int]

# Without a cache, as ours: a cached result is no call of serve.
counter = Component("Counter", cache_ttl=0)
text = Component("Text", cache_ttl=0)


def begin_counter() -> Counts:
    return {"total": 0}


def add(state: Counts, props: Counts) -> Counts:
    return {"total": state["total"] + props["amount"]}


def look(state: Counts, props: Counts) -> int:
    return state["total"]


def begin_text(size_bytes: int) -> dict[str, str]:
    return {"text": "x" * size_bytes}


def say(state: dict[str, str], props: dict[str, str]) -> dict[str, str]:
    return {"text": state["text"] + props["message"]}


# Called, not written as decorators: Motion has no types, and a decorator without any hides ours.
counter.init_state(begin_counter)
counter.update("add")(add)
counter.serve("look")(look)
counter.serve("look and add")(look)
counter.update("look and add")(add)
text.init_state(begin_text)
text.update("say")(say)


@contextmanager
def opened(component: Any, count: int = 1, **options: Any) -> Iterator[list[Any]]:
    """Lend instances that nobody used before."""
    batch = time.time_ns()
    instances = [component(f"{batch}-{number}", **options) for number in range(count)]
    try:
        yield instances
    finally:
        # Each waits 0.1 s for its worker; a hundred wait together.
        with ThreadPoolExecutor(count) as pool:
            for _ in pool.map(lambda instance: instance.shutdown(), instances):
                pass


def queued(count: int, instances: int, worker: str) -> float:
    """Return how many updates per second are applied, from the first request to the last flush."""
    with opened(counter, instances, update_task_type=worker) as many:
        for instance in many:
            instance.run("add", props={"amount": 0})
            instance.flush_update("add")
        start_s = time.perf_counter()
        for number in range(count):
            many[number % instances].run("add", props={"amount": 1})
        for instance in many:
            instance.flush_update("add")
        took_s = time.perf_counter() - start_s
        assert sum(instance.read_state("total") for instance in many) == count
        return count / took_s


def flush(count: int) -> float:
    """Return how many calls per second that wait for their own update."""
    with opened(counter) as (instance,):
        instance.run("add", props={"amount": 0}, flush_update=True)
        start_s = time.perf_counter()
        for _ in range(count):
            instance.run("add", props={"amount": 1}, flush_update=True)
        took_s = time.perf_counter() - start_s
        assert instance.read_state("total") == count
        return count / took_s


def read(count: int) -> float:
    """Return how many reads of a field per second."""
    with opened(counter) as (instance,):
        instance.read_state("total")
        start_s = time.perf_counter()
        for _ in range(count):
            instance.read_state("total")
        return count / (time.perf_counter() - start_s)


def run(count: int, key: str) -> float:
    """Return the median of the seconds that a call takes."""
    with opened(counter) as (instance,):
        took_s = []
        for _ in range(count):
            start_s = time.perf_counter()
            instance.run(key, props={"amount": 1})
            took_s.append(time.perf_counter() - start_s)
        return statistics.median(took_s)


def append(count: int, size_bytes: int) -> float:
    """Return how many updates per second that append 200 bytes to a large text."""
    with opened(text, init_state_params={"size_bytes": size_bytes}) as (instance,):
        instance.run("say", props={"message": "m" * 200})
        instance.flush_update("say")
        start_s = time.perf_counter()
        for _ in range(count):
            instance.run("say", props={"message": "m" * 200})
        instance.flush_update("say")
        took_s = time.perf_counter() - start_s
        assert len(instance.read_state("text")) == size_bytes + 200 * (count + 1)
        return count / took_s


_WORKS: dict[str, Callable[..., float]] = {
    work.__name__: work for work in (queued, flush, read, run, append)
}


@contextmanager
def redis_server(folder: str) -> Iterator[int]:
    """Run a Redis that keeps nothing on the disk, and lend its port.

    Motion's documentation starts one without an append-only file. The snapshots, which Redis
    makes unless told otherwise, are off as well: they would only slow the peer down.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("redis-server does not start")
            time.sleep(0.02)
        yield port
    finally:
        process.kill()  # it has nothing to save
        process.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def redis_version() -> str:
    """Return the version as `redis-server --version` tells it: "Redis server v=6.2.14 sha=..."."""
    line = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return next(word[2:] for word in line.split() if word.startswith("v="))


def main() -> None:
    if shutil.which("redis-server") is None:
        print(json.dumps({"missing": "redis-server"}), flush=True)
        return
    # In a folder of its own: a .motionrc.yml of the working directory would win over these.
    with tempfile.TemporaryDirectory() as folder, redis_server(folder) as port:
        os.chdir(folder)
        os.environ |= {
            "MOTION_ENV": "prod",
            "MOTION_REDIS_HOST": "127.0.0.1",
            "MOTION_REDIS_PORT": str(port),
        }
        print(
            json.dumps({"motion": version("motion-python"), "redis": redis_version()}), flush=True
        )
        for line in sys.stdin:
            order = json.loads(line)
            work = _WORKS[order.pop("work")]
            print(json.dumps({"value": work(**order)}), flush=True)
        os.chdir("/")
    # At exit, Motion shuts its instances down once more, and prints a traceback for each.
    os._exit(0)


if __name__ == "__main__":
    main()
