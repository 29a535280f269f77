"""Ctrl-C in the middle of a call leaves a store that works, wherever it comes.

Goal: no interrupt leaves a lock taken, a writer waiting for ever, or an event folded twice.
Method: Python raises KeyboardInterrupt when a call begins or has returned and when a loop turns
round. A tracer counts these places in one call of ours and signals at the first, in the next round
at the second, and so on until the call gets through. After each, this thread and another one write
and read; at the end the view is compared with the log.
"""

from __future__ import annotations

import contextlib
import dis
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import eventstore
from eventstore import EventStore
from eventstore.app import App
from eventstore.errors import LogUnavailable
from eventstore.history.verify import verify_app

DEADLINE_S = 10.0
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

    def __init__(self, place: int) -> None:
        self._left = place
        self._last: dict[int, tuple[CodeType, int]] = {}
        self.came_at = ""

    def during(self, call: Callable[[], object]) -> None:
        earlier = sys.gettrace()
        # A shell that runs the tests in the background lets them ignore the signal.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.settrace(self._enter)
        try:
            call()
        except KeyboardInterrupt:
            assert self.came_at, "an interrupt that is not ours"
        finally:
            sys.settrace(earlier)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            signal.signal(signal.SIGINT, handler)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if _is_entered_without_call(frame):
            self._count(frame)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        earlier, at = self._last.get(id(frame), (code, -1))
        self._last[id(frame)] = (code, frame.f_lasti)
        if event == "opcode" and earlier is code and at >= 0 and code.co_code[at] in _INTERRUPTIBLE:
            self._count(frame)
        return self._step

    def _count(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left == 0:
            code = frame.f_code
            self.came_at = f"{code.co_filename}:{frame.f_lineno} ({code.co_name})"
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)


def _is_entered_without_call(frame: FrameType) -> bool:
    """Whether a function of ours was begun by a property, an operator or a `with`.

    One that was begun by a call needs no place of its own: it is that of the call.
    """
    caller = frame.f_back
    if caller is None or not caller.f_code.co_filename.startswith(_PACKAGE):
        return False
    return caller.f_code.co_code[caller.f_lasti] not in _INTERRUPTIBLE


def append(store: EventStore, app: App) -> None:
    app.append("i", {"interrupted": True}).result(DEADLINE_S)


def read(store: EventStore, app: App) -> None:
    app.append("i", {"unread": True})
    app.get("i", timeout_s=DEADLINE_S)


def commit(store: EventStore, app: App) -> None:
    app.commit("i", app.get("i").update(committed=True), timeout_s=DEADLINE_S)


def flush(store: EventStore, app: App) -> None:
    app.append("i", {"unflushed": True})
    store.flush(DEADLINE_S)


@pytest.mark.parametrize("call", [append, read, commit, flush])
def test_a_store_goes_on_after_an_interrupt_at_any_place(
    call: Callable[[EventStore, App], None], tmp_path: Path
) -> None:
    threads_before = threading.active_count()  # other tests may have left some
    with EventStore(tmp_path) as store, ThreadPoolExecutor(1) as other_thread:
        app = store.app("orders")
        app.append("i", {"place": 0}).result()
        app.get("i")

        for place in range(1, PLACES_MAX):
            interrupt = Interrupt(place)
            interrupt.during(lambda: call(store, app))
            if not interrupt.came_at:
                break
            assert _works(store, app, place, other_thread), interrupt.came_at

        assert place > 50, "the call has more places than this"
        assert place < PLACES_MAX - 1
        assert not verify_app(store, "orders").differences
        assert {entry.verdict.name for entry in app.history("i")} == {"ACCEPTED"}
        assert threading.active_count() - threads_before < 9


def _works(store: EventStore, app: App, place: int, other_thread: ThreadPoolExecutor) -> bool:
    # What the interrupt has cut off is told once, if nobody could be told at the time.
    with contextlib.suppress(LogUnavailable):
        store.flush(DEADLINE_S)
    app.append("i", {"place": place}).result(DEADLINE_S)
    there = other_thread.submit(lambda: app.append("i", {"other": place}).result(DEADLINE_S))
    there.result(DEADLINE_S)
    state = app.get("i", timeout_s=DEADLINE_S)
    return bool(state["place"] == place and state["other"] == place)
