"""What tests of Foldlog, and of programs built on it, need: fault points that stop a process.

Public, because users want to see their own program survive too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

__all__ = ["fault_point"]

#: Called with the name of each point that is passed; None costs nothing. Tests may set it.
on_fault_point: Callable[[str], None] | None = None


def fault_point(name: str) -> None:
    """Mark a moment at which a process may die. Does nothing unless a test asked for it.

    `EVENTSTORE_FAULT="log.commit.inside:3"` in the environment makes the third passage of that
    point kill the process with SIGKILL, as a power cut or the OOM killer would.
    """
    if on_fault_point is not None:
        on_fault_point(name)


def _killer(order: str) -> Callable[[str], None]:
    target, _, count = order.partition(":")
    passages_left = int(count or 1)

    def kill_when_due(name: str) -> None:
        nonlocal passages_left
        if name == target:
            passages_left -= 1
            if passages_left == 0:
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    return kill_when_due


if "EVENTSTORE_FAULT" in os.environ:
    on_fault_point = _killer(os.environ["EVENTSTORE_FAULT"])
