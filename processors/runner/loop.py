"""The event loop on which async updates and timers of this process run: one, in a daemon thread."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Final

__all__ = ["shared_loop"]

logger: Final = logging.getLogger("processors.runner")

_mutex = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def shared_loop() -> asyncio.AbstractEventLoop:
    """Return the process's loop for updates, started if need be."""
    global _loop
    with _mutex:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(
                target=_run, args=(_loop,), name="processors-loop", daemon=True
            ).start()
        return _loop


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
    """A forked child has no thread that runs the loop: it begins one of its own."""
    global _loop, _mutex
    _loop, _mutex = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
