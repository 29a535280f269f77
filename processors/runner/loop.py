"""The event loops of this process, for async updates and for timers, each in a daemon thread."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Final

__all__ = ["UPDATES_LOOP", "is_updates_loop", "refuse_to_block_updates", "shared_loop"]

logger: Final = logging.getLogger("processors.runner")

#: The loop on which all async updates of this process run.
UPDATES_LOOP: Final = "updates"

_mutex = threading.Lock()
_loops: dict[str, asyncio.AbstractEventLoop] = {}


def shared_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return the process's loop of this name, started if need be."""
    with _mutex:
        loop = _loops.get(name)
        if loop is None:
            loop = _loops[name] = asyncio.new_event_loop()
            threading.Thread(
                target=_run, args=(loop,), name=f"processors-{name}", daemon=True
            ).start()
        return loop


def is_updates_loop() -> bool:
    """Whether this is the code of an async update: it holds up all others of this process."""
    try:
        return asyncio.get_running_loop() is _loops.get(UPDATES_LOOP)
    except RuntimeError:
        return False


def refuse_to_block_updates(instead: str) -> None:
    """Refuse a call that waits for updates where it would keep them from running.

    Raises:
        RuntimeError: this is the code of an async update; `instead` is what it should await.
    """
    if is_updates_loop():
        raise RuntimeError(
            "this waits for updates on the event loop on which the async updates of this process"
            f" run, so neither would ever end: await {instead}. Nothing was run"
        )


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio lets these through to whoever runs the loop. Here they are an update's, which
            # fails with it, and the other updates and all timers of the process go on.
            # (tests/fault/test_attacks.py)
            logger.warning("an async update raised %s on the loop", type(error).__name__)


def _forget() -> None:
    """A forked child has no thread that runs a loop: it begins its own."""
    global _mutex
    _mutex = threading.Lock()
    _loops.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
