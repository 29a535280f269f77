"""What another thread does in the middle of a function, shown line by line and in one thread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["before_line"]


@contextmanager
def before_line(number: int, of: Callable[..., object], run: Callable[[], None]) -> Iterator[None]:
    """Call `run` before this thread runs the so-manieth line of a function, as often as it does.

    The lines of functions inside it count, too.
    """
    name, left = of.__qualname__, number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        within = frame.f_code.co_qualname
        if within != name and not within.startswith(f"{name}.<locals>."):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                run()
        return trace

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(earlier)
