"""The event loop on which async updates and timers of this process run: one, in a daemon thread."""

from __future__ import annotations

import asyncio
import os
import threading

__all__ = ["shared_loop"]

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
    loop.run_forever()


def _forget() -> None:
    """A forked child has no thread that runs the loop: it begins one of its own."""
    global _loop, _mutex
    _loop, _mutex = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
