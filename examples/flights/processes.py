"""The demo's processes: how they are started, talk (a JSON object a line), and end."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import orjson

__all__ = ["Child", "ChildFailed", "end_with_parent", "say"]

#: How long a child that was told to end may take.
END_S_MAX: Final = 30.0
#: How long a child may be silent when something is waited for.
LOG_S_MAX: Final = 60.0


class ChildFailed(Exception):
    """A process of the demo ended with an error; its own words are on stderr."""


def say(**facts: Any) -> None:
    """Tell the parent process something."""
    sys.stdout.buffer.write(orjson.dumps(facts) + b"\n")
    sys.stdout.buffer.flush()


def end_with_parent(heard: Callable[[str], None] = lambda line: None) -> None:
    """End this process when its parent does, however that ends; pass on what the parent says."""

    def listen() -> None:
        for line in sys.stdin:
            heard(line.strip())
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()


class Child:
    """A process of the demo. A context manager that leaves none behind."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `python -m` with these arguments; what it writes on stderr is kept."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        self.name = arguments[0]
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._newest: dict[str, Any] = {}
        #: What it wrote on stderr, and when (time.monotonic()).
        self._logged: list[tuple[float, str]] = []
        self._logs_no_more = False
        self._has_logged = threading.Condition()
        self._threads = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # a line that a kill cut short was not said
                self._said.put(orjson.loads(line))
        self._said.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._has_logged:
                self._logged.append((time.monotonic(), line.rstrip("\n")))
                self._has_logged.notify_all()
        with self._has_logged:
            self._logs_no_more = True
            self._has_logged.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> Iterator[dict[str, Any]]:
        """Yield what it says, until it ends.

        Raises:
            ChildFailed: it ended with an error.
        """
        while (facts := self._said.get()) is not None:
            yield facts
        self.wait()

    def newest(self) -> dict[str, Any]:
        """Return the last thing that it has said so far; empty before the first. Does not wait."""
        with contextlib.suppress(queue.Empty):
            while (facts := self._said.get_nowait()) is not None:
                self._newest = facts
        return self._newest

    def wait_logged(self, event: str) -> float:
        """Wait until it has logged an event; return when it first did (time.monotonic()).

        Raises:
            ChildFailed: it ended before.
        """
        with self._has_logged:
            while (at_s := self._logged_s(event)) is None:
                if self._logs_no_more or not self._has_logged.wait(LOG_S_MAX):
                    raise ChildFailed(self._last_words(f"has not logged {event!r}"))
            return at_s

    def _logged_s(self, event: str) -> float | None:
        return next((at_s for at_s, line in self._logged if f" {event} " in line), None)

    def _last_words(self, what: str) -> str:
        return "\n".join([f"{self.name} {what}", *(line for _, line in self._logged[-20:])])

    def tell(self, line: str) -> None:
        """Say something to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until it has ended.

        Raises:
            ChildFailed: it ended with an error.
        """
        code = self._process.wait()
        if code:
            for thread in self._threads:
                thread.join()
            raise ChildFailed(self._last_words(f"ended with {code}"))

    def kill(self) -> None:
        """End it as a crash would: it has no chance to tidy up."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end in good order, and wait until it has.

        Raises:
            ChildFailed: it ended with an error.
        """
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S_MAX if error is None else 2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
