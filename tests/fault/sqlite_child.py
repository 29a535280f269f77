"""A process that works on an embedded log until it is killed; its parent reads its lines.

python -m tests.fault.sqlite_child write FOLDER NAME THREADS    acknowledged: name number offset
python -m tests.fault.sqlite_child wait FOLDER OFFSET           the offset, when it is there
python -m tests.fault.sqlite_child own FOLDER GROUP             shards, after each change
python -m tests.fault.sqlite_child leave FOLDER COUNT           appends and ends without closing
"""

from __future__ import annotations

import sys
import threading

from eventstore.config import Config
from eventstore.log import open_log
from eventstore.log.base import Log, Topic
from tests.contract.logs import queue, write

APP = "foldlog.app"


def main() -> None:
    command, folder, *arguments = sys.argv[1:]
    log = open_log(folder, Config.load({}))
    topic = log.topic(APP, create=True)
    assert topic is not None
    COMMANDS[command](log, topic, arguments)


def write_forever(log: Log, topic: Topic, arguments: list[str]) -> None:
    name, threads = arguments
    mutex = threading.Lock()

    def write_some(thread: int) -> None:
        number = 0
        while True:
            value = f"{name}-{thread}-{number}"
            [(_, offset)] = write(log, topic, (name.encode(), value.encode()))
            with mutex:
                print(value, offset, flush=True)
            number += 1

    for thread in range(1, int(threads)):
        threading.Thread(target=write_some, args=(thread,), daemon=True).start()
    write_some(0)


def wait(log: Log, topic: Topic, arguments: list[str]) -> None:
    print("ready", flush=True)
    for offset in range(int(arguments[0]), sys.maxsize):
        while not log.wait(topic, {0: offset}, 60.0):
            pass
        print(offset, flush=True)


def own(log: Log, topic: Topic, arguments: list[str]) -> None:
    def changed(shards: frozenset[int]) -> None:
        print(*sorted(shards), flush=True)

    ownership = log.own(topic, arguments[0], changed)
    sys.stdin.readline()
    ownership.close()
    log.close()


def leave(log: Log, topic: Topic, arguments: list[str]) -> None:
    for number in range(int(arguments[0])):
        queue(log, topic, (b"k", b"%d" % number))


COMMANDS = {"write": write_forever, "wait": wait, "own": own, "leave": leave}

if __name__ == "__main__":
    main()
