"""Ctrl-C, held back where half of something must not be all that is done.

Python raises KeyboardInterrupt in the main thread between any two of its steps. A program that ends
by it needs nothing of this; a shell, a notebook or a test goes on, and what was taken and not given
back, or found out and not told, would be so for as long as the process lives.

Held back is what Python does by itself. A handler of the program's own (asyncio has one) is left
alone: it decides what a Ctrl-C means. Somebody who presses it a second time means it, whatever it
cuts off. (tests/unit/test_held_back.py, tests/fault/test_interrupts.py,
tests/fault/test_at_once_interrupted.py)
"""

from __future__ import annotations

import importlib
import os
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["HeldBack", "LetThrough"]

#: The functions behind those of `signal`, which make enums of the numbers, and exceptions on the
#: way: ten times as long, and an update that is run at once needs six of them.
signal: Any = importlib.import_module("_signal")


class HeldBack:
    """While its block runs in the main thread, Ctrl-C waits for the end of it."""

    __slots__ = ("_came", "_holds")

    def __init__(self) -> None:
        self._came = self._holds = False

    def __enter__(self) -> Self:
        global _holder
        is_main = threading.get_ident() == threading.main_thread().ident
        # Within another such block it is not Python's own handler any more.
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # What comes before this is raised, and nothing has begun; what comes after it waits.
            signal.signal(signal.SIGINT, self.note)
            self._holds = True
            _holder = self
        return self

    def __exit__(self, *raised: object) -> None:
        global _holder
        if self._holds:
            _holder = None
            if signal.getsignal(signal.SIGINT) == self.note:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.raise_what_came()

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take note of a Ctrl-C; raise it, and hold back no more, if it is not the first."""
        global _holder
        if self._came:
            # Here: what is raised may be what keeps `__exit__` from it.
            _holder = None
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.raise_what_came()
        self._came = True

    def raise_what_came(self) -> None:
        """Raise what was held back, once."""
        if self._came:
            self._came = False
            raise KeyboardInterrupt


#: The block that holds back now: of the main thread, there is no other.
_holder: HeldBack | None = None


def _let_go_in_child() -> None:
    """Hold back no more in a forked child: the thread whose block it is may not be there."""
    global _holder
    if _holder is not None:
        _holder = None
        signal.signal(signal.SIGINT, signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class LetThrough:
    """Within a block that holds it back, code of others may be interrupted all the same."""

    __slots__ = ("_holder",)

    def __enter__(self) -> Self:
        global _holder
        is_here = _holder is not None and threading.get_ident() == threading.main_thread().ident
        self._holder = _holder if is_here else None
        if self._holder is not None:
            # That code may have such blocks of its own, and ends them before we go on.
            _holder = None
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                self._holder.raise_what_came()
            except KeyboardInterrupt:
                self.__exit__()
                raise
        return self

    def __exit__(self, *raised: object) -> None:
        global _holder
        if self._holder is not None:
            _holder = self._holder
            # Unless that code has set a handler, which is the program's own.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._holder.note)
