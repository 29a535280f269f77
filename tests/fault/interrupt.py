"""Ctrl-C at a chosen place of a call: the first, in the next round the second, and so on.

Python raises KeyboardInterrupt when a call begins or has returned and when a loop turns round. From
3.12 on `sys.monitoring` shows these places; its older brother `sys.settrace`, which is all that
3.11 has, misses most of them in 3.13.
"""

from __future__ import annotations

import dis
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import eventstore

__all__ = ["DEADLINE_S", "PLACES_MAX", "Interrupt"]

#: How long one call after an interrupt may take.
DEADLINE_S = 30.0

#: Far above what one call has.
PLACES_MAX = 5_000

_PACKAGE = str(Path(eventstore.__file__).parent)
_INTERRUPTIBLE = {
    dis.opmap[name]
    for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME")
    if name in dis.opmap
}


class Interrupt:
    """Sends this process SIGINT at the `place`-th interruptible place of a call."""

    def __init__(self, place: int, *, within: tuple[str, ...] = (_PACKAGE,)) -> None:
        """Choose a place among those of the code in these folders, in this thread."""
        self._left = place
        self._within = within
        self._thread = threading.get_ident()
        self._last: dict[int, tuple[CodeType, int]] = {}
        self.came_at = ""

    def during(self, call: Callable[[], object]) -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        gc.disable()  # in what it frees, Python would only print what is raised
        try:
            with _each_step(self):
                call()
        except KeyboardInterrupt:
            assert self.came_at, "an interrupt that is not ours"
        finally:
            gc.enable()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def is_within(self, code: CodeType) -> bool:
        return code.co_filename.startswith(self._within)

    def enter(self, frame: FrameType) -> None:
        """Take note that a function of ours begins, or goes on after a `yield`."""
        if threading.get_ident() != self._thread:
            return
        self._last.pop(id(frame), None)
        if self._is_entered_without_call(frame):
            self._count(frame)

    def step(self, frame: FrameType) -> None:
        """Take note that an instruction of ours is about to run."""
        if threading.get_ident() != self._thread:
            return
        code = frame.f_code
        earlier, at = self._last.get(id(frame), (code, -1))
        self._last[id(frame)] = (code, frame.f_lasti)
        if earlier is code and at >= 0 and code.co_code[at] in _INTERRUPTIBLE:
            self._count(frame)

    def _is_entered_without_call(self, frame: FrameType) -> bool:
        """Whether a function of ours was begun by a property, an operator or a `with`.

        One that was begun by a call needs no place of its own: it is that of the call.
        """
        caller = frame.f_back
        if caller is None or not self.is_within(caller.f_code):
            return False
        return caller.f_code.co_code[caller.f_lasti] not in _INTERRUPTIBLE

    def _count(self, frame: FrameType) -> None:
        if self.came_at:
            return
        self._left -= 1
        if self._left == 0:
            code = frame.f_code
            self.came_at = f"{code.co_filename}:{frame.f_lineno} ({code.co_name})"
            signal.raise_signal(signal.SIGINT)


if sys.version_info >= (3, 12):

    @contextmanager
    def _each_step(interrupt: Interrupt) -> Iterator[None]:
        """Show an interrupt each step of Python within the block."""
        monitoring, events = sys.monitoring, sys.monitoring.events
        tool = monitoring.OPTIMIZER_ID

        def enter(code: CodeType, offset: int) -> object:
            if not interrupt.is_within(code):
                return monitoring.DISABLE
            interrupt.enter(sys._getframe(1))
            return None

        def step(code: CodeType, offset: int) -> object:
            if not interrupt.is_within(code):
                return monitoring.DISABLE
            interrupt.step(sys._getframe(1))
            return None

        monitoring.use_tool_id(tool, "interrupt")
        try:
            for begin in (events.PY_START, events.PY_RESUME):
                monitoring.register_callback(tool, begin, enter)
            monitoring.register_callback(tool, events.INSTRUCTION, step)
            monitoring.set_events(tool, events.PY_START | events.PY_RESUME | events.INSTRUCTION)
            yield
        finally:
            monitoring.set_events(tool, events.NO_EVENTS)
            monitoring.restart_events()
            monitoring.free_tool_id(tool)

else:

    @contextmanager
    def _each_step(interrupt: Interrupt) -> Iterator[None]:
        """Show an interrupt each step of Python within the block."""

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "call":
                if not interrupt.is_within(frame.f_code):
                    return None
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
                interrupt.enter(frame)
            elif event == "opcode":
                interrupt.step(frame)
            return trace

        earlier = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(earlier)
