"""What is measured of processors: their lines, beside Motion where it has the same work.

Both sides do what their documentation tells a user to write: components.py has ours, motion_peer.py
has theirs. Ours is durable when it counts as done (every request, every answer); theirs is in the
memory of a Redis that keeps nothing on the disk.
"""

from __future__ import annotations

import queue
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

from benchmarks.components import clock, counter, look, text
from benchmarks.frame import Sides, Work
from benchmarks.peer import motion
from benchmarks.works import CONFIG, MESSAGE, Place, child, microseconds
from eventstore import App, Diff, EventStore
from eventstore.processing import Processing
from processors import Component, ComponentInstance, State

__all__ = ["processor_works"]

#: The longest wait for what takes milliseconds, before a line is given up.
WAIT_TIMEOUT_S = 60.0
TEXT_BYTES = 10_000_000


@contextmanager
def opened(store: EventStore, component: Component, count: int = 1) -> Iterator[list[Any]]:
    """Lend open instances, whose updates run in this process."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(component(f"number-{number}", store=store))
            for number in range(count)
        ]


# --- beside Motion -------------------------------------------------------------------------------


def update_queued(app: App, instances: list[ComponentInstance], count: int) -> float:
    """Return how many updates per second are applied, from the first request to the last flush.

    They are asked for as a service does it, without waiting for the disk each time: Motion's `run`
    does not wait for a disk either.
    """
    before = sum(instance.read_state("total") for instance in instances)
    names = [instance.instance_id for instance in instances]
    start_s = time.perf_counter()
    for number in range(count):
        app.request(names[number % len(names)], "add/add", {"amount": 1})
    for instance in instances:
        instance.flush_update("add")
    took_s = time.perf_counter() - start_s
    assert sum(instance.read_state("total") for instance in instances) == before + count
    return count / took_s


@contextmanager
def queued(place: Place, instances: int, worker: str) -> Iterator[Sides]:
    count, count_theirs = place.count(5_000), place.count(1_000)
    with (
        place.store() as store,
        opened(store, counter, instances) as many,
        motion(place.folder) as peer,
    ):
        app = store.app(counter.name)
        update_queued(app, many, instances)
        yield Sides(
            lambda: update_queued(app, many, count),
            lambda: peer.measure("queued", count=count_theirs, instances=instances, worker=worker),
        )


@contextmanager
def flush(place: Place, durability: str) -> Iterator[Sides]:
    count = place.count(500)
    with (
        place.store(durability) as store,
        opened(store, counter) as (one,),
        motion(place.folder) as peer,
    ):

        def add() -> None:
            one.run("add", props={"amount": 1}, flush_update=True)

        add()
        yield Sides(
            lambda: 1e6 / microseconds(count, add), lambda: peer.measure("flush", count=count)
        )


@contextmanager
def read_state(place: Place) -> Iterator[Sides]:
    count = place.count(20_000)
    with place.store() as store, opened(store, counter) as (one,):
        one.run("add", props={"amount": 1}, flush_update=True)
        yield Sides(lambda: microseconds(count, lambda: one.read_state("total")))


@contextmanager
def read_state_against_motion(place: Place) -> Iterator[Sides]:
    count = place.count(5_000)
    with read_state(place) as sides, motion(place.folder) as peer:
        yield Sides(lambda: 1e6 / sides.ours(), lambda: peer.measure("read", count=count))


@contextmanager
def append_to_text(place: Place) -> Iterator[Sides]:
    """Append to a text of 10 MB: ours by a Diff, which Motion has not; theirs by `+`."""
    count, count_theirs = place.count(2_000), place.count(20, at_least=2)
    size_bytes = place.count(TEXT_BYTES)
    with place.store() as store, opened(store, text) as (one,), motion(place.folder) as peer:
        for _ in range(20):
            store.app(text.name).append(
                "number-0", Diff().append_text("text", "x" * (size_bytes // 20))
            )

        def append() -> float:
            start_s = time.perf_counter()
            for _ in range(count):
                app.request("number-0", "say/append", {"message": MESSAGE})
            one.flush_update("say")
            return count / (time.perf_counter() - start_s)

        app = store.app(text.name)
        one.run("say", props={"message": MESSAGE}, flush_update=True)
        yield Sides(
            append, lambda: peer.measure("append", count=count_theirs, size_bytes=size_bytes)
        )
        assert len(one.read_state("text")) >= size_bytes


# --- alone ---------------------------------------------------------------------------------------


@contextmanager
def run_over_serve(place: Place) -> Iterator[Sides]:
    """What `run` takes beyond its serve function, with one update that is durably queued.

    The update of each call is over before the next call.
    """
    count = place.count(500, at_least=20)
    with place.store() as store, opened(store, counter) as (one,):
        state, props = {"total": 0}, {"amount": 1}

        def run() -> float:
            start_s = time.perf_counter()
            one.run("look and add", props=props)
            took_s = time.perf_counter() - start_s
            one.flush_update("look and add")
            return took_s

        def serve() -> float:
            start_s = time.perf_counter()
            look(state, props)
            return time.perf_counter() - start_s

        def over_serve_ms() -> float:
            # Medians of both: one pause among the serves must not make more of them than of runs.
            runs_s = statistics.median(run() for _ in range(count))
            return (runs_s - statistics.median(serve() for _ in range(1_000))) * 1e3

        run()
        yield Sides(over_serve_ms)


@contextmanager
def start_in_process(place: Place) -> Iterator[Sides]:
    """From a request to the first line of its handler, in ms; the instance is at rest before."""
    count = place.count(300, at_least=20)
    started: queue.SimpleQueue[int] = queue.SimpleQueue()
    local = Component("Local", cache_ttl=0)

    @local.update("tick")
    def tell_when(state: State, props: Any) -> dict[str, int]:
        at_ns = time.monotonic_ns()
        started.put(at_ns)
        return {"at_ns": at_ns}

    with place.store() as store, opened(store, local) as (one,):

        def tick() -> float:
            start_ns = time.monotonic_ns()
            one.run("tick")
            at_ns = started.get(timeout=WAIT_TIMEOUT_S)
            one.flush_update("tick")
            return (at_ns - start_ns) / 1e6

        tick()
        yield Sides(lambda: statistics.median(tick() for _ in range(count)))


#: What a daemon is told to run.
CLOCK = "benchmarks.components:clock"
TICK = "tick/tell_when"


@contextmanager
def start_in_daemon(place: Place) -> Iterator[Sides]:
    """The same, where a daemon runs the update and this process only asks for it."""
    count = place.count(300, at_least=20)
    with place.store() as store:
        app = store.app(clock.name)
        processing = Processing(app)
        app.request("number-0", TICK)
        with child("daemon", store.url, CLOCK) as line:

            def tick() -> float:
                start_ns = time.monotonic_ns()
                receipt = app.request("number-0", TICK)
                at_ns: int = line()["at_ns"]
                sequence = receipt.entry().sequence
                processing.wait_closed("number-0", sequence, WAIT_TIMEOUT_S)
                return (at_ns - start_ns) / 1e6

            line()  # what was asked for before it came
            tick()
            yield Sides(lambda: statistics.median(tick() for _ in range(count)))


@contextmanager
def idle_daemon(place: Place) -> Iterator[Sides]:
    """The CPU of a daemon that waits, and has seen no news since it began.

    That is the dearer of two kinds: once it was told of news, it looks less often by itself.
    """
    with place.store() as store:
        store.app(clock.name).append("number-0", {"at_ns": 0}).result()

        def share() -> float:
            with child("idle_daemon", store.url, CLOCK) as line:
                return 100 * float(line()["share"])

        yield Sides(share)


@contextmanager
def many_pending(place: Place) -> Iterator[Sides]:
    """From the start of a daemon's process to the first handler, in seconds.

    The requests came while no daemon ran, so its view has none of them: it folds all first.
    """
    count = place.count(100_000, at_least=1_000)
    with place.new_folder() as folder:
        with EventStore(folder, config=CONFIG) as store:
            app = store.app(clock.name)
            for number in range(count):
                app.request(f"number-{number % 1_000}", TICK)
            store.flush()

        def start() -> float:
            with place.new_folder() as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                start_ns = time.monotonic_ns()
                with child("daemon", str(copy), CLOCK) as line:
                    at_ns: int = line()["at_ns"]
                return (at_ns - start_ns) / 1e9

        yield Sides(start)


def processor_works(place: Place) -> Iterator[Work]:
    """Yield the lines of processors, in the table's order."""

    def work(
        title: str,
        unit: str,
        bound: Literal["≥", "≤"],
        must: float,
        goal: float,
        prepare: Callable[[Place], AbstractContextManager[Sides]],
    ) -> Work:
        return Work(title, unit, bound, must, goal, partial(prepare, place))

    # fmt: off
    yield work("queued trivial updates, one instance / Motion", "x", "≥", 8, 15,
               partial(queued, instances=1, worker="thread"))
    yield work("queued trivial updates, 100 instances / Motion", "x", "≥", 8, 15,
               partial(queued, instances=100, worker="thread"))
    yield work("the same / Motion with a worker process for each", "x", "≥", 8, 15,
               partial(queued, instances=100, worker="process"))
    yield work("run(flush_update=True) / Motion", "x", "≥", 1.5, 3,
               partial(flush, durability="full"))
    yield work("the same, safe from a kill but not from a power cut / Motion", "x", "≥", 1.5, 3,
               partial(flush, durability="process"))
    yield work("read_state", "us", "≤", 20, 8, read_state)
    yield work("read_state / Motion", "x", "≥", 7, 7, read_state_against_motion)
    yield work("updates that append 200 bytes to 10 MB / Motion", "x", "≥", 50, 200,
               append_to_text)
    yield work("run with one update queued, over its serve function, p50", "ms", "≤", 1.2, 0.6,
               run_over_serve)
    yield work("request to start of its handler, same process, p50", "ms", "≤", 5, 1,
               start_in_process)
    yield work("request to start of its handler, daemon, p50", "ms", "≤", 15, 5, start_in_daemon)
    yield work("idle daemon: CPU", "%", "≤", 1, 0.3, idle_daemon)
    yield work("daemon's start to its first handler, 100,000 pending", "s", "≤", 3, 1,
               many_pending)
    # fmt: on
