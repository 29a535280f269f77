"""A process that uses a store until it is killed; its parent reads its lines.

python -m tests.fault.store_child write URL NAME START END THREADS   acknowledged: token position
python -m tests.fault.store_child follow URL                         the versions of "i0"
python -m tests.fault.store_child commit URL COUNT                   "done" after so many commits
python -m tests.fault.store_child increment URL COUNT                "done" after so many diffs
python -m tests.fault.store_child leave URL COUNT                    appends and ends, unclosed

Each command writes to the app "app". A token is the name of one write, `NAME-THREAD-NUMBER`, and
tells what was written: the instance, and whether it was an append, a commit or a request.
`write` begins at number START, so that a second run can repeat what the first was not told.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Literal

from eventstore import App, Conflict, Diff, EventStore, Rejected, State
from eventstore import follow as follow_module
from eventstore.view.base import WriteBatch
from eventstore.view.rocks import RocksTable

INSTANCES = 3

KINDS: tuple[Literal["append", "commit", "request"], ...] = (
    "append",
    "commit",
    "append",
    "request",
)


def main() -> None:
    command, url, *arguments = sys.argv[1:]
    published = os.environ.get("FOLDLOG_TEST_PUBLISH_RECORDS")
    if published:  # so that few events are enough to publish a checkpoint
        vars(follow_module)["_PUBLISH_RECORDS"] = int(published)
    if os.environ.get("FOLDLOG_TEST_FLUSH"):
        flush_every_batch()
    store = EventStore(url)
    COMMANDS[command](store.app("app"), arguments)
    if command != "leave":
        store.close()


def flush_every_batch() -> None:
    """Put each batch of a view on disk at once: a kill then leaves exactly what was written."""
    write = RocksTable.write

    def write_and_flush(table: RocksTable, batch: WriteBatch) -> None:
        write(table, batch)
        table.flush()

    RocksTable.write = write_and_flush  # type: ignore[method-assign,assignment]


def number_of(token: str) -> int:
    return int(token.rpartition("-")[2])


def instance_of(token: str) -> str:
    return f"i{number_of(token) // len(KINDS) % INSTANCES}"


def kind_of(token: str) -> str:
    return KINDS[number_of(token) % len(KINDS)]


def write_one(app: App, token: str) -> str:
    """Write what a token stands for, once however often it is called; return its position.

    Every append puts its token into `seen`, every commit into `committed`; both count.
    """
    instance = instance_of(token)
    if kind_of(token) == "request":
        return str(app.request(instance, token, idempotency_key=token).result())
    if kind_of(token) == "append":
        diff = Diff().merge_into("seen", {token: 1}).increment("count")
        return str(app.append(instance, diff, idempotency_key=token).result())
    while True:
        state: State = app.get(instance, fresh=True)
        changed = state.update(count=state["count"] + 1, commits=state["commits"] + 1)
        try:
            committed = app.commit(instance, changed.append(committed=token), idempotency_key=token)
        except Conflict:
            continue
        except Rejected:
            # The key was used up by a run that was killed before it was told.
            committed = app.get(instance)
            assert token in committed["committed"]
        return str(committed.position)


def make_instances(app: App) -> None:
    for number in range(INSTANCES):
        app.append(
            f"i{number}",
            {"count": 0, "commits": 0, "seen": {}, "committed": []},
            idempotency_key="make",
        ).result()


def write(app: App, arguments: list[str]) -> None:
    name, start, end, threads = arguments
    mutex = threading.Lock()
    make_instances(app)

    def write_some(thread: int) -> None:
        for number in range(int(start), int(end)):
            token = f"{name}-{thread}-{number}"
            position = write_one(app, token)
            with mutex:
                print(token, position, flush=True)

    others = [
        threading.Thread(target=write_some, args=(thread,)) for thread in range(1, int(threads))
    ]
    for other in others:
        other.start()
    write_some(0)
    for other in others:
        other.join()


def follow(app: App, arguments: list[str]) -> None:
    for entry in app.tail(start="beginning"):
        if entry.instance == "i0":
            print(entry.version, flush=True)


def commit(app: App, arguments: list[str]) -> None:
    for _ in range(int(arguments[0])):
        while True:
            state: State = app.get("i")
            try:
                app.commit("i", state.update(n=state["n"] + 1))
                break
            except Conflict:
                continue
    print("done", flush=True)


def increment(app: App, arguments: list[str]) -> None:
    for _ in range(int(arguments[0])):
        app.append("i", Diff().increment("n"))
    print("done", flush=True)


def leave(app: App, arguments: list[str]) -> None:
    for number in range(int(arguments[0])):
        receipt = app.append("i", {f"f{number}": number})
        if number == 0:
            receipt.result()
            print("acknowledged", flush=True)


COMMANDS = {
    "write": write,
    "follow": follow,
    "commit": commit,
    "increment": increment,
    "leave": leave,
}

if __name__ == "__main__":
    main()
