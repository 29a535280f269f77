"""Starting, reading and ending the processes of sqlite_child.py, and checking what they left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import apsw

from eventstore.config import Config
from eventstore.log.base import Record
from eventstore.log.sqlite import SqliteLog
from tests.contract.logs import eventually, read_all
from tests.fault.sqlite_child import APP

ROOT = Path(__file__).parents[2]
#: Nothing that a process says or does takes so long, beside whatever else the machine does.
PATIENCE_S = 120.0


class Child:
    """A process whose lines are collected as they come."""

    #: The program that it runs.
    MODULE = "tests.fault.sqlite_child"

    def __init__(
        self,
        command: str,
        folder: Path | str,
        *arguments: object,
        fault: str = "",
        stderr: IO[str] | None = None,
    ) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "EVENTSTORE_FAULT"}
        if fault:
            environment["EVENTSTORE_FAULT"] = fault
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                self.MODULE,
                command,
                str(folder),
                *map(str, arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # a line that the kill cut short was not said
                self.lines.append(line.rstrip("\n"))

    def until(self, condition: Callable[[list[str]], bool]) -> None:
        """Wait until its lines fulfil a condition, or until nobody can say more."""
        assert eventually(lambda: condition(self.lines) or not self._reader.is_alive(), PATIENCE_S)
        assert condition(self.lines), f"{self.process.args!r} ended or said only {self.lines[-3:]}"

    def until_said_or_ended(self, count: int) -> None:
        """Wait until it has said so many lines, or all that it had to say."""
        assert eventually(
            lambda: len(self.lines) >= count or not self._reader.is_alive(), PATIENCE_S
        )

    def end(self) -> None:
        """Wait for its own end, and for the last of its lines."""
        self.process.wait(PATIENCE_S)
        self._reader.join()

    def kill(self) -> None:
        """End it at once, as a power cut would, and take its last lines."""
        self.process.kill()
        self.end()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def child(command: str, folder: Path, *arguments: object, fault: str = "") -> Iterator[Child]:
    started = Child(command, folder, *arguments, fault=fault)
    try:
        yield started
    finally:
        started.close()


def check_log(folder: Path, acknowledged: list[str]) -> list[Record]:
    """Open the log as after a crash and check it; return its records.

    Every acknowledged value is at its offset, offsets have no gap, no value is there twice, times
    do not fall, and SQLite finds nothing wrong.
    """
    log = SqliteLog(folder, Config.load({}))
    topic = log.topic(APP, create=False)
    assert topic is not None
    records = read_all(log, topic)
    log.close()
    assert [record.offset for record in records] == list(range(len(records)))
    assert len({record.value for record in records}) == len(records)
    times_ms = [record.time_ms for record in records]
    assert times_ms == sorted(times_ms)
    for line in acknowledged:
        value, offset = line.split()
        assert records[int(offset)].value == value.encode(), f"{line} was acknowledged and is lost"
    connection = apsw.Connection(str(folder / "log.sqlite"))
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()
    return records
