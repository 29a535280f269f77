"""Real daemons as child processes: their components are files of the test's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.contract.logs import eventually

__all__ = ["COMPONENT", "DaemonProcess", "wait_for"]

ROOT = Path(__file__).parents[2]
#: A new process imports the package and opens a view; other tests may use both cores meanwhile.
DEADLINE_S = 60.0

#: A component whose slow update runs until the file `go` is there, and says that it has begun.
COMPONENT = """
import asyncio
import os
from pathlib import Path
from processors import Component

cart = Component("cart")

@cart.update("add")
def keep(state, props):
    if props.get("bad"):
        raise ValueError(f"cannot keep {props['n']}")
    return {"count": state.get("count", 0) + 1, "by": CODE}

@cart.update("slow")
async def wait(state, props):
    Path("begun").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return {"waited": True}

@cart.update("stuck")
def block(state, props):
    Path("begun").touch()
    while not Path("go").exists():
        __import__("time").sleep(0.01)

CODE = "first"
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    assert eventually(lambda: bool(condition()), DEADLINE_S), f"waited in vain until {what}"


class DaemonProcess:
    """`processors run ... --log-format json`; its log lines are collected as they come."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder = folder
        environment = {**os.environ, "EVENTSTORE_URL": str(folder / "store")}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "processors", "run", *arguments, "--log-format", "json"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.lines: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.other_lines.append(line)

    def said(self, event: str, **facts: object) -> list[Mapping[str, Any]]:
        """The lines of an event that have these facts."""
        return [
            line for line in self.lines if line["event"] == event and facts.items() <= line.items()
        ]

    def until_said(self, event: str, **facts: object) -> Mapping[str, Any]:
        """The first such line; waited for until nobody can say more, a child of it included."""
        eventually(
            lambda: bool(self.said(event, **facts)) or not self._reader.is_alive(), DEADLINE_S
        )
        assert self.said(event, **facts), (event, self.lines, self.other_lines)
        return self.said(event, **facts)[0]

    def signal(self, kind: signal.Signals) -> None:
        self.process.send_signal(kind)

    def end(self) -> int:
        """Wait for its end, and for the last of its lines; return its exit code."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        assert self.process.stderr is not None
        self.process.stderr.close()
