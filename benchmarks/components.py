"""The components of the processors' lines: what a user would write for the work of each.

A daemon imports them from here; what the peer has instead is in motion_peer.py.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.child import say
from eventstore import Diff
from processors import Component, State

__all__ = ["begin_counter", "clock", "counter", "look", "text"]

# Without a cache: a cached result is no call of serve.
counter = Component("Counter", cache_ttl=0)
text = Component("Text", cache_ttl=0)
clock = Component("Clock", cache_ttl=0)


@counter.init_state
def begin_counter() -> dict[str, int]:
    return {"total": 0}


@counter.update("add")
def add(state: State, props: Any) -> dict[str, int]:
    return {"total": state["total"] + props["amount"]}


@counter.serve("look")
@counter.serve("look and add")
def look(state: Any, props: Any) -> Any:
    return state["total"]


@counter.update("look and add")
def add_after_look(state: State, props: Any) -> dict[str, int]:
    return {"total": state["total"] + props["amount"]}


@text.update("say")
def append(state: State, props: Any) -> Diff:
    return Diff().append_text("text", props["message"])


@clock.update("tick")
def tell_when(state: State, props: Any) -> dict[str, int]:
    """Print the moment at which it began; the monotonic clock is that of the whole machine."""
    at_ns = time.monotonic_ns()
    say({"at_ns": at_ns})
    return {"at_ns": at_ns}
