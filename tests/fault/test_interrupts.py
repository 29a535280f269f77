"""Ctrl-C in the middle of a call leaves a store that works, wherever it comes.

Goal: no interrupt leaves a lock taken, a writer waiting for ever, or an event folded twice.
Method: a signal at the first place of a call of ours at which Python raises KeyboardInterrupt, in
the next round at the second, and so on until the call gets through. After each, this thread and
another one write and read; at the end the view is compared with the log.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.app import App
from eventstore.errors import LogUnavailable
from eventstore.history.verify import verify_app
from tests.fault.interrupt import DEADLINE_S, PLACES_MAX, Interrupt

pytestmark = pytest.mark.timeout(300)  # hundreds of interrupts, each with calls after it


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
