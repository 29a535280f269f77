"""The first state of an instance: `init_state` runs, and takes effect once in the life of it.

Its diff is the first and only event of a numbered source (eventstore.events.Source) of that
instance, so of any number of processes that open an instance at once, one counts, and the log
remembers it however many events follow. A reset clears the state, and so begins a new life.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from eventstore import (
    Diff,
    Event,
    Guard,
    InstanceNotFound,
    Kind,
    OutcomeUnknown,
    Rejected,
    State,
    Verdict,
)
from eventstore.events import Source
from eventstore.interrupts import LetThrough
from eventstore.processing import Processing
from processors.component import Component
from processors.results import LiveStates, has_hooks, saved_of

__all__ = ["begin", "begins_alone", "has_begun", "has_run", "state_of"]

#: The name of the diff in the history.
_NAME: Final = "init_state"


def begin(
    component: Component,
    processing: Processing,
    live: LiveStates,
    instance: str,
    params: Mapping[str, Any] | None = None,
) -> None:
    """Give an instance the state that `init_state(**params)` returns, if it has not begun yet.

    What others appended before is kept: only fields that are absent are set. A fork has begun
    where it comes from.

    Raises:
        TypeError: `init_state` has other parameters, or returned no dict; nothing was written.
        Whatever `init_state` raises; nothing was written.
        As for App.append.
    """
    if component.init_function is None:
        return
    fields: dict[str, Any] | None = None
    while True:
        processing.catch_up()
        if has_begun(processing, instance):
            return
        if fields is None:
            fields = _made(component, params)
        saved = saved_of(component, fields)
        state = state_of(processing, instance)
        event = _first(state, saved, _source(processing, instance))
        try:
            entry = processing.send([(instance, event)])[0].entry()
        except OutcomeUnknown:
            continue  # the source tells whether it is there
        if entry.verdict == Verdict.ACCEPTED:
            if has_hooks(component) and state.version == 0:
                live.begin(instance, entry.version, fields)
            return
        if entry.verdict == Verdict.REJECTED:
            raise Rejected(processing.name, instance, entry.reason)
        # Somebody else was first, or wrote one of the fields meanwhile: look again.


def begins_alone(component: Component) -> bool:
    """Whether an instance that nobody has opened can begin: `init_state` needs no params."""
    function = component.init_function
    if function is None:
        return False
    parameters = inspect.signature(function).parameters.values()
    return all(
        parameter.default is not parameter.empty
        or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )


def has_begun(processing: Processing, instance: str) -> bool:
    """Whether `init_state` has taken effect, as far as the view knows; a fork need not begin."""
    if has_run(processing, instance):
        return True
    first = processing.entry(instance, 0)
    return first is not None and first.event.kind == Kind.FORK


def has_run(processing: Processing, instance: str) -> bool:
    """Whether `init_state` has run in an instance's present life, as far as the view knows."""
    return processing.source(instance, _source(processing, instance).id) is not None


def _source(processing: Processing, instance: str) -> Source:
    """Return the source of an instance's beginning; a reset ends a life, and so has its number."""
    head = processing.head(instance)
    return Source(f"init/{0 if head is None else head.floor}", (0, 0))


def state_of(processing: Processing, instance: str) -> State:
    """Return the newest state that the view has, without fields where nothing was written yet."""
    try:
        return processing.state(instance)
    except InstanceNotFound:
        state = State()
        state.app, state.instance, state.version = processing.name, instance, 0
        state.generation = processing.generation()
        return state


def _first(state: State, saved: Mapping[str, Any], source: Source) -> Event:
    absent = {name: value for name, value in saved.items() if state.changed_at(name) is None}
    assert state.version is not None
    return Event(
        Kind.DIFF,
        _NAME,
        Diff(absent).encode(),
        Guard(state.version, tuple(sorted(absent))) if absent else None,
        source=source,
        generation=state.generation,
    )


def _made(component: Component, params: Mapping[str, Any] | None) -> dict[str, Any]:
    function = component.init_function
    assert function is not None
    try:
        inspect.signature(function).bind(**(params or {}))
    except TypeError as error:
        given = ", ".join(params or {}) or "none"
        raise TypeError(
            f"init_state of component {component.name}: {error}; init_state_params has: {given}."
            " Nothing was written"
        ) from None
    with LetThrough():
        made = function(**(params or {}))
        if inspect.isawaitable(made):
            made = _run(made)
    if not isinstance(made, dict):
        raise TypeError(
            f"init_state of component {component.name} returned {made!r:.80}"
            f" ({type(made).__name__}) instead of a dict; nothing was written"
        )
    return made


def _run(awaitable: Any) -> Any:
    """Run an async `init_state` to its end, also when this thread has a running loop."""

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1, "init-state") as threads:
        return threads.submit(asyncio.run, wait()).result()
