"""What is measured: every line of the table, with its bounds. How it is measured: frame.py.

The usual write is a small diff of two fields, given as a mapping, to one of 1,000 instances. What
the raw side stores is, byte for byte, what our log stores for it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.child import instance_name
from benchmarks.frame import Sides, Work
from benchmarks.raw import EventSourcing, RawKafka, RawSqlite, Row
from eventstore import App, Config, Diff, EventStore
from eventstore.codec import encode_event
from eventstore.events import Event, Kind

__all__ = ["Place", "works"]

#: The defaults, whatever the environment says.
CONFIG = Config.load({})
INSTANCES = 1_000
MESSAGE = "m" * 200


class Place(NamedTuple):
    """Where to measure, and how much: `scale` 1 is the whole, less is for trying it out."""

    folder: Path
    kafka_address: str | None
    scale: float = 1.0

    def count(self, number: int, *, at_least: int = 100) -> int:
        """Return how many to do of what is done `number` times at full scale."""
        return max(at_least, int(number * self.scale))

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """Lend a new folder of the disk that is measured."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def store(self, durability: str = "full") -> Iterator[EventStore]:
        """Lend a store on a new embedded log."""
        config = CONFIG.model_copy(update={"durability": durability})
        with self.new_folder() as folder, EventStore(folder, config=config) as store:
            yield store

    @contextmanager
    def kafka_store(self) -> Iterator[EventStore]:
        """Lend a store on the broker, in a namespace of its own, with its view in a new folder."""
        with self.new_folder() as folder:
            config = Config.load({}, namespace=f"bench-{folder.name}", view_path=folder)
            with EventStore(f"kafka://{self.kafka_address}", config=config) as store:
                yield store


def fields_of(number: int) -> dict[str, object]:
    """Return the small diff of most works."""
    return {"status": "open", "total": number}


def row_of(number: int) -> Row:
    """Return the record that our log has for the small diff."""
    event = Event(Kind.DIFF, "", Diff(fields_of(number)).encode())
    return Row(instance_name(number % INSTANCES).encode(), encode_event(event))


def rate(count: int, work: Callable[[], object]) -> float:
    """Return how many per second, of work that does `count` of them."""
    start_s = time.perf_counter()
    work()
    return count / (time.perf_counter() - start_s)


# --- writing -------------------------------------------------------------------------------------


def append_one_by_one(app: App, first: int, count: int) -> None:
    for number in range(first, first + count):
        app.append(instance_name(number % INSTANCES), fields_of(number)).result()


def append_pipelined(store: EventStore, app: App, count: int) -> None:
    receipts = [
        app.append(instance_name(number % INSTANCES), fields_of(number)) for number in range(count)
    ]
    store.flush()
    assert all(receipt.done for receipt in receipts)


def append_batches(app: App, count: int, batch: int = 100) -> None:
    for first in range(0, count, batch):
        receipts = app.append_many(
            (instance_name(number % INSTANCES), fields_of(number))
            for number in range(first, first + batch)
        )
        receipts[-1].result()


def append_from_threads(app: App, count: int, threads: int = 32) -> float:
    """Return the rate of `threads` threads that each wait for each of their appends."""
    begin = threading.Barrier(threads + 1)
    share = count // threads

    def append(thread: int) -> None:
        begin.wait()
        append_one_by_one(app, thread * share, share)

    callers = [threading.Thread(target=append, args=(thread,)) for thread in range(threads)]
    for caller in callers:
        caller.start()
    begin.wait()
    start_s = time.perf_counter()
    for caller in callers:
        caller.join()
    return share * threads / (time.perf_counter() - start_s)


@contextmanager
def one_at_a_time(place: Place) -> Iterator[Sides]:
    count = place.count(500)
    rows = [row_of(number) for number in range(count)]
    with place.store() as store, place.new_folder() as folder, RawSqlite(folder) as raw:
        app = store.app("one")
        append_one_by_one(app, 0, 10)
        yield Sides(
            lambda: rate(count, lambda: append_one_by_one(app, 0, count)),
            lambda: count / raw.append_one_by_one(rows),
        )


@contextmanager
def from_threads(place: Place) -> Iterator[Sides]:
    count = place.count(1_600, at_least=320)
    rows = [row_of(number) for number in range(count)]
    with place.store() as store, place.new_folder() as folder, RawSqlite(folder) as raw:
        app = store.app("threads")
        append_one_by_one(app, 0, 10)
        yield Sides(
            lambda: append_from_threads(app, count),
            lambda: count / raw.append_from_threads(rows),
        )


@contextmanager
def pipelined(place: Place) -> Iterator[Sides]:
    count = place.count(5_000)
    rows = [row_of(number) for number in range(count)]
    with place.store() as store, place.new_folder() as folder, RawSqlite(folder) as raw:
        app = store.app("pipelined")
        append_one_by_one(app, 0, 10)
        yield Sides(
            lambda: rate(count, lambda: append_pipelined(store, app, count)),
            lambda: count / raw.append_in_batches(rows),
        )


@contextmanager
def batches(place: Place) -> Iterator[Sides]:
    count = place.count(5_000)
    rows = [row_of(number) for number in range(count)]
    with place.store() as store, place.new_folder() as folder, RawSqlite(folder) as raw:
        app = store.app("batches")
        append_one_by_one(app, 0, 10)
        yield Sides(
            lambda: rate(count, lambda: append_batches(app, count)),
            lambda: count / raw.append_in_batches(rows),
        )


@contextmanager
def batches_against_eventsourcing(place: Place) -> Iterator[Sides]:
    count = place.count(2_000)
    with place.store() as store, place.new_folder() as folder, EventSourcing(folder) as theirs:
        app = store.app("batches")
        append_one_by_one(app, 0, 10)
        yield Sides(
            lambda: rate(count, lambda: append_batches(app, count)),
            lambda: count / theirs.append_in_batches(count),
        )


@contextmanager
def kafka_pipelined(place: Place) -> Iterator[Sides]:
    assert place.kafka_address is not None
    count = place.count(20_000)
    rows = [row_of(number) for number in range(count)]
    with place.kafka_store() as store, RawKafka(place.kafka_address) as raw:
        app = store.app("pipelined")
        append_one_by_one(app, 0, 10)
        raw.append_pipelined(rows[:100])
        yield Sides(
            lambda: rate(count, lambda: append_pipelined(store, app, count)),
            lambda: count / raw.append_pipelined(rows),
        )


# --- two processes -------------------------------------------------------------------------------


@contextmanager
def child(*arguments: object, **environment: object) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run child.py beside us; the function lent returns its next line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.child", *map(str, arguments)],
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def line() -> dict[str, Any]:
        assert process.stdout is not None
        text = process.stdout.readline()
        if not text:
            raise RuntimeError(f"child {arguments[0]} ended with code {process.wait()}")
        facts: dict[str, Any] = json.loads(text)
        return facts

    with process:
        try:
            yield line
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def to_other_process(
    place: Place, store: Callable[[Place], AbstractContextManager[EventStore]]
) -> Iterator[Sides]:
    """Append, and wait until the other process could read it through its view; p50 in ms."""
    count = place.count(300, at_least=20)
    with place.new_folder() as views, store(place) as ours:
        app = ours.app("clock")
        app.append("clock", {"number": 0}).result()
        environment = {
            "EVENTSTORE_NAMESPACE": ours.config.namespace,
            "EVENTSTORE_VIEW_PATH": views,
        }
        with child("follow", ours.url, "clock", **environment) as line:
            line()
            number = 0

            def one() -> float:
                nonlocal number
                number += 1
                start_ns = time.monotonic_ns()
                app.append("clock", {"number": number}).result()
                while (facts := line())["number"] < number:
                    pass
                at_ns: int = facts["at_ns"]
                return (at_ns - start_ns) / 1e6

            # Until it is in its tail, it sees what comes late: the first is not measured.
            one()
            yield Sides(lambda: statistics.median(one() for _ in range(count)))


@contextmanager
def idle_cpu(place: Place) -> Iterator[Sides]:
    with place.store() as store:
        store.app("idle").append("clock", {"number": 0}).result()

        def share() -> float:
            with child("idle", store.url, "idle") as line:
                return 100 * float(line()["share"])

        yield Sides(share)


# --- reading -------------------------------------------------------------------------------------


@contextmanager
def rebuild(place: Place) -> Iterator[Sides]:
    count = place.count(100_000, at_least=1_000)
    with place.store() as store:
        append_batches(store.app("rebuild"), count, 1_000)

        def events_per_cpu_second() -> float:
            with (
                place.new_folder() as views,
                child(
                    "rebuild", store.url, "rebuild", instance_name(0), EVENTSTORE_VIEW_PATH=views
                ) as line,
            ):
                return count / float(line()["cpu_s"])

        yield Sides(events_per_cpu_second)


def microseconds(times: int, call: Callable[[], object]) -> float:
    """Return what one call costs."""
    start_s = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start_s) / times * 1e6


FIVE_FIELDS: dict[str, object] = {
    "status": "open",
    "customer": "c-4711",
    "items": ["book", "pen"],
    "total": 12,
    "paid": False,
}


@contextmanager
def get_field(place: Place) -> Iterator[Sides]:
    with place.store() as store:
        app = store.app("get")
        app.append("o-1", FIVE_FIELDS)
        app.get("o-1")
        yield Sides(lambda: microseconds(place.count(20_000), lambda: app.get("o-1", "total")))


@contextmanager
def get_state(place: Place) -> Iterator[Sides]:
    with place.store() as store:
        app = store.app("get")
        app.append("o-1", FIVE_FIELDS)
        app.get("o-1")
        yield Sides(lambda: microseconds(place.count(20_000), lambda: app.get("o-1").get_all()))


@contextmanager
def get_random(place: Place, whole: bool) -> Iterator[Sides]:
    """Read random instances of 100,000: one field, or the whole state of five fields."""
    instances = place.count(100_000, at_least=1_000)
    chance = random.Random(1)
    with place.store() as store:
        app = store.app("many")
        for first in range(0, instances, 1_000):
            app.append_many((instance_name(first + n), FIVE_FIELDS) for n in range(1_000))
        app.get(instance_name(0))

        def names() -> Iterator[str]:
            return iter([instance_name(chance.randrange(instances)) for _ in range(count)])

        count = place.count(20_000)

        def run() -> float:
            upcoming = names()
            if whole:
                return microseconds(count, lambda: app.get(next(upcoming)).get_all())
            return microseconds(count, lambda: app.get(next(upcoming), "total"))

        yield Sides(run)


def fill(app: App, instance: str, versions: int) -> None:
    """Give an instance that many versions of a small state."""
    for first in range(0, versions, 1_000):
        count = min(1_000, versions - first)
        app.append_many((instance, fields_of(first + number)) for number in range(count))
    assert app.get(instance).version == versions


@contextmanager
def random_version(place: Place, versions: int) -> Iterator[Sides]:
    versions = place.count(versions, at_least=200)
    chance = random.Random(1)
    with place.store() as store:
        app = store.app("versions")
        fill(app, "o-1", versions)

        def read() -> object:
            return app.get("o-1", at=chance.randint(1, versions)).get_all()

        yield Sides(lambda: microseconds(place.count(2_000), read))


@contextmanager
def flat_in_versions(place: Place) -> Iterator[Sides]:
    """The state at a random version of a long history, against one of a short one."""
    with random_version(place, 200_000) as long, random_version(place, 200) as short:
        yield Sides(long.ours, short.ours)


@contextmanager
def state_against_eventsourcing(place: Place) -> Iterator[Sides]:
    chance = random.Random(1)
    with place.store() as store, place.new_folder() as folder, EventSourcing(folder) as theirs:
        app = store.app("versions")
        fill(app, "o-1", 1_000)
        aggregate_id = theirs.prepare(1_000)
        times = place.count(20, at_least=2)

        def read() -> object:
            return app.get("o-1", at=chance.randint(1, 1_000)).get_all()

        yield Sides(
            lambda: 1e6 / microseconds(place.count(5_000), read),
            lambda: times / theirs.load(aggregate_id, times),
        )


# --- sizes ---------------------------------------------------------------------------------------


def log_bytes(folder: Path) -> int:
    """Return what the embedded log takes on the disk, without views and locks."""
    return sum(path.stat().st_size for path in folder.glob("log.sqlite*"))


def tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def log_growth(place: Place) -> Iterator[Sides]:
    count = place.count(50_000, at_least=10_000)

    def bytes_per_diff() -> float:
        with place.new_folder() as folder:
            with EventStore(folder, config=CONFIG) as store:
                append_batches(store.app("growth"), count)
            return log_bytes(folder) / count

    yield Sides(bytes_per_diff)


def begin_chat(app: App, place: Place) -> int:
    """Make a chat of 10 MB out of messages of 200 bytes; return how many."""
    messages = place.count(50_000, at_least=1_000)
    for _ in range(messages // 1_000):
        app.append("chat", Diff().extend("messages", [MESSAGE] * 1_000))
    return messages // 1_000 * 1_000


@contextmanager
def chat_growth(place: Place) -> Iterator[Sides]:
    count = place.count(2_000, at_least=1_000)

    def bytes_per_append() -> float:
        with place.new_folder() as folder:
            with EventStore(folder, config=CONFIG) as store:
                app = store.app("chat")
                begin_chat(app, place)
                store.flush()
            before = log_bytes(folder)
            with EventStore(folder, config=CONFIG) as store:
                app = store.app("chat")
                for _ in range(count):
                    app.append("chat", Diff().append("messages", MESSAGE))
            return (log_bytes(folder) - before) / count

    yield Sides(bytes_per_append)


@contextmanager
def view_size(place: Place) -> Iterator[Sides]:
    count = place.count(100_000, at_least=10_000)

    def view_against_log() -> float:
        with place.new_folder() as folder, place.new_folder() as views:
            with EventStore(folder, config=Config.load({}, view_path=views)) as store:
                append_batches(store.app("size"), count)
                store.app("size").get(instance_name(0), fresh=True)
            return tree_bytes(views) / log_bytes(folder)

    yield Sides(view_against_log)


@contextmanager
def cold_chat(place: Place) -> Iterator[Sides]:
    with place.new_folder() as folder:
        with EventStore(folder, config=CONFIG) as store:
            app = store.app("chat")
            messages = begin_chat(app, place)
            for _ in range(100):
                app.append("chat", Diff().append("messages", MESSAGE))
            app.get("chat", "messages")

        def milliseconds() -> float:
            with child("cold_get", folder, "chat", "chat") as line:
                facts = line()
            assert facts["items"] == messages + 100
            return 1_000 * float(facts["took_s"])

        yield Sides(milliseconds)


@contextmanager
def many_fields(place: Place) -> Iterator[Sides]:
    """One diff on a large instance, appended and folded, against one on a small instance."""
    fields, count = place.count(100_000, at_least=1_000), place.count(2_000)
    chance = random.Random(1)
    with place.store() as store:
        app = store.app("fields")
        for name, size in (("large", fields), ("small", 10)):
            for first in range(0, size, 1_000):
                names = range(first, min(first + 1_000, size))
                app.append(name, {f"field-{number:06d}": number for number in names})
            app.get(name, "field-000000")

        def run(name: str, size: int) -> float:
            targets = [f"field-{chance.randrange(size):06d}" for _ in range(count)]
            start_s = time.perf_counter()
            for target in targets:
                app.append(name, {target: 1})
            app.get(name, target)
            return (time.perf_counter() - start_s) / count * 1e6

        yield Sides(partial(run, "large", fields), partial(run, "small", 10))


# --- whole processes -----------------------------------------------------------------------------


@contextmanager
def help_text(place: Place) -> Iterator[Sides]:
    command = [str(Path(sys.executable).with_name("eventstore")), "--help"]

    def milliseconds() -> float:
        start_s = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return 1_000 * (time.perf_counter() - start_s)

    yield Sides(milliseconds)


@contextmanager
def first_get(place: Place) -> Iterator[Sides]:
    with place.new_folder() as folder:
        with EventStore(folder, config=CONFIG) as store:
            append_batches(store.app("first"), place.count(10_000))
            store.app("first").get(instance_name(0))

        def milliseconds() -> float:
            start_s = time.perf_counter()
            with child("first_get", folder, "first", instance_name(7)) as line:
                line()
                return 1_000 * (time.perf_counter() - start_s)

        milliseconds()  # the slot is warm from a process of the same kind
        yield Sides(milliseconds)


@contextmanager
def peak_memory(place: Place) -> Iterator[Sides]:
    events = place.count(1_000_000, at_least=1_000)
    instances = place.count(100_000, at_least=100)
    with place.store() as store:
        app = store.app("memory")
        for first in range(0, events, 1_000):
            app.append_many(
                (instance_name(number % instances), fields_of(number))
                for number in range(first, first + 1_000)
            )
        store.flush()

        def megabytes() -> float:
            with (
                place.new_folder() as views,
                child(
                    "memory", store.url, "memory", instances, instances, EVENTSTORE_VIEW_PATH=views
                ) as line,
            ):
                return float(line()["peak_bytes"]) / 1e6

        yield Sides(megabytes)


def works(place: Place) -> Iterator[Work]:
    """Yield the lines of the table, in its order; those of Kafka only where a broker is."""

    def work(
        title: str,
        unit: str,
        bound: Literal["≥", "≤"],
        must: float,
        goal: float,
        prepare: Callable[[Place], AbstractContextManager[Sides]],
        rounds_max: int = 5,
        slices: int = 1,
    ) -> Work:
        return Work(title, unit, bound, must, goal, partial(prepare, place), rounds_max, slices)

    # fmt: off
    yield work("durable append, one at a time / raw apsw, one row per commit", "x", "≥", 0.6, 0.9,
               one_at_a_time, slices=10)
    yield work("32 threads appending, each waiting / a queue and its writer", "x", "≥", 0.6, 0.9,
               from_threads, slices=10)
    yield work("one thread, not waiting, then flush / raw batches of 100", "x", "≥", 0.2, 0.4,
               pipelined, slices=10)
    yield work("append_many of 100 / raw batches of 100", "x", "≥", 0.25, 0.45, batches, slices=10)
    yield work("append_many of 100 / PyPI eventsourcing", "x", "≥", 1.5, 2,
               batches_against_eventsourcing, slices=10)
    if place.kafka_address is not None:
        yield work("Kafka: pipelined append with receipts / bare produce", "x", "≥", 0.25, 0.5,
                   kafka_pipelined, slices=10)
        yield work("Kafka: append to readable in another process, p50", "ms", "≤", 10, 3,
                   partial(to_other_process, store=Place.kafka_store))
    yield work("embedded: append to readable in another process, p50", "ms", "≤", 10, 3,
               partial(to_other_process, store=Place.store))
    yield work("embedded: CPU of a process that waits", "%", "≤", 1, 1, idle_cpu)
    yield work("rebuild of a view, 1,000 instances: events per CPU second", "", "≥",
               40_000, 100_000, rebuild)
    yield work("get one field, warm", "us", "≤", 6, 3, get_field)
    yield work("get a whole state of 5 fields, warm", "us", "≤", 20, 8, get_state)
    yield work("get one field, random of 100,000 instances", "us", "≤", 40, 20,
               partial(get_random, whole=False))
    yield work("get a whole state of 5 fields, random of 100,000", "us", "≤", 40, 20,
               partial(get_random, whole=True))
    yield work("state at a random version of 200", "us", "≤", 150, 50,
               partial(random_version, versions=200))
    yield work("state at a random version of 200,000", "us", "≤", 150, 50,
               partial(random_version, versions=200_000))
    yield work("the same: of 200,000 / of 200 (flat)", "x", "≤", 2, 1.5,
               flat_in_versions, slices=10)
    yield work("state at a version / eventsourcing loading 1,000 events", "x", "≥", 50, 50,
               state_against_eventsourcing)
    yield work("log growth per small diff", "B", "≤", 130, 90, log_growth)
    yield work("log growth per 200-byte append to a chat of 10 MB", "B", "≤", 340, 290, chat_growth)
    yield work("view bytes / log bytes, small diffs", "x", "≤", 3, 3, view_size)
    yield work("cold get of that chat", "ms", "≤", 400, 150, cold_chat)
    yield work("one diff on 100,000 fields / on 10 fields", "x", "≤", 2, 1.1,
               many_fields, slices=10)
    yield work("eventstore --help", "ms", "≤", 200, 120, help_text)
    yield work("first get of a process with a warm slot", "ms", "≤", 400, 250, first_get)
    yield work("peak memory: 1,000,000 events rebuilt, 100,000 gets", "MB", "≤", 400, 250,
               peak_memory, rounds_max=1)
    # fmt: on
