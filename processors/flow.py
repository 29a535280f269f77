"""What a call of a flow gives: serve's answer, from the cache or anew, and what updates are asked.

A Flow is made per call and goes through `prepare`, `call`, `served` and `requests`, in this order.
What may wait for log and view is in `prepare` and `served`, so that an async call (call.py) can do
it in a thread; user code runs in `call`, wherever that is called.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from eventstore import Event, Kind, State, UnsupportedValue, values
from eventstore.events import RequestPolicy
from eventstore.processing import Processing
from processors.component import Component, Update
from processors.properties import Properties
from processors.results import LiveStates, handler_state
from processors.serve_cache import Cached, ServeCache

__all__ = ["Flow", "Place"]

logger = logging.getLogger("processors.flow")

#: Calls of a flow that are looked at for changes in place: who makes one makes it at once.
_LOOKS_MAX: Final = 20
#: Items of a container that is looked at; larger ones would make serve slow.
_ITEMS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where the flows of one instance run: what they share."""

    component: Component
    instance: str
    processing: Processing
    live: LiveStates
    cache: ServeCache


class Flow:
    """What one call of a flow gives; see the module's text."""

    def __init__(self, place: Place, key: str, props: Mapping[str, Any] | None) -> None:
        """Look the flow up; nothing runs.

        Raises:
            KeyError: the component has no such flow.
            TypeError, ValueError: the props cannot be some.
        """
        component = place.component
        self.key = key
        self.serve = component.serves.get(key)
        self.updates: list[Update] = component.updates_of(key)
        if self.serve is None and not self.updates:
            raise KeyError(
                f"component {component.name} has no flow {key!r}; there are:"
                f" {', '.join(component.keys) or '-'}"
            )
        self.props = Properties(props)
        #: Whether the result comes from the cache.
        self.is_cached = False
        self._place = place
        self._cache_key: bytes | None = None
        self._state: State | None = None
        self._body: bytes | None = None

    @property
    def result(self) -> Any:
        """What `run` returns: what serve did; of a generator the first item, None if it has none.

        That is Motion's rule; `gen` has all items.
        """
        if self.serve is None or not self.serve.is_generator:
            return self.props.serve_result
        return next(iter(self.props.serve_result), None)

    # --- serving --------------------------------------------------------------------------------

    def prepare(self, state: State, *, look_up: bool) -> None:
        """Take the state on which serve runs, or the result that the cache has.

        Of a result from the cache, the props are those that serve left behind.

        Args:
            state: the newest state.
            look_up: whether a result of the cache will do.
        """
        self._state = state
        if self._place.component.cache_ttl <= 0:
            return
        self._cache_key = self._key(state)
        if self._cache_key is None or not look_up:
            return
        cached = self._place.cache.get(self._cache_key)
        if cached is None or not _is_current(cached.marks, state):
            return
        try:
            self.props = Properties.decode(cached.body)
        except (TypeError, ValueError):
            return  # of a class that this process does not know: serve makes a new one
        self._body = cached.body
        self.is_cached = True

    def call(self) -> Any:
        """Run the serve function and return what it returns: a value, or something to go on with.

        Raises:
            Whatever serve, or `load_state`, raises.
        """
        assert self.serve is not None
        assert self._state is not None
        place = self._place
        return self.serve.function(
            handler_state(place.component, self._state, place.live), self.props
        )

    def served(self, result: Any) -> None:
        """Keep what serve answered, here and in the cache."""
        self.props.served(result)
        self._tell_of_changes_in_place()
        try:
            self._body = self.props.encode()
        except (UnsupportedValue, ValueError) as error:
            if not self.updates and self._cache_key is not None:
                self._once("uncached", logging.WARNING, "is not kept in the cache: %s", error)
            return
        if self._cache_key is not None:
            place = self._place
            cached = Cached(self._body, self._marks())
            place.cache.put(self._cache_key, cached, place.component.cache_ttl)

    def stopped(self, items: list[Any]) -> None:
        """Keep the items of a generator that its consumer left early: enough for the updates."""
        self.props.served(items)
        self._body = None

    # --- the cache ------------------------------------------------------------------------------

    def _key(self, state: State) -> bytes | None:
        """Return what the call is kept under; None for props that cannot be told apart."""
        assert self.serve is not None
        place = self._place
        processing = place.processing
        try:
            props = values.digest(dict(self.props))
        except UnsupportedValue as error:
            self._once("props", logging.WARNING, "is not kept in the cache: its props, %s", error)
            return None
        head = processing.head(place.instance)
        # A log that was made anew or repaired, and an instance that was reset, begin without.
        life = [processing.identity, state.generation, 0 if head is None else head.floor]
        names = [processing.name, place.instance, self.key, props]
        kinds = [self.serve.version, place.component.cache_depends_on_state]
        return values.digest([*life, *names, *kinds]).encode()

    def _marks(self) -> bytes:
        """Return what must be as it is for the result to count; nothing by default."""
        component, state = self._place.component, self._state
        assert state is not None
        if not component.cache_depends_on_state:
            return b"{}"
        return orjson.dumps({name: state.changed_at(name) for name in sorted(state.observed)})

    # --- changes in place -----------------------------------------------------------------------

    def _tell_of_changes_in_place(self) -> None:
        """Warn of a serve that changed what it read: it read copies, and nothing was stored."""
        place, state = self._place, self._state
        assert state is not None
        looked = (place.component.name, self.key, "looks")
        if _counts.get(looked, 0) >= _LOOKS_MAX:
            return
        _counts[looked] = _counts.get(looked, 0) + 1
        for name in state.observed - {"*"}:
            value = state.peek(name)
            if not isinstance(value, dict | list | set) or len(value) > _ITEMS_MAX:
                continue
            try:
                now = values.to_json(value)
            except UnsupportedValue:
                now = None
            if state.to_json(name).get(name) != now:
                self._once(
                    "in place",
                    logging.WARNING,
                    "changed state[%r] in place, in a copy: nothing was stored. An update can"
                    " change the state; serve cannot",
                    name,
                )
                return

    def _once(self, what: str, level: int, text: str, *arguments: object) -> None:
        """Log about this flow, once per process and matter."""
        name = self._place.component.name
        matter = (name, self.key, what)
        if matter not in _counts:
            _counts[matter] = 1
            logger.log(level, "serve %s of component %s " + text, self.key, name, *arguments)

    # --- updates --------------------------------------------------------------------------------

    def requests(
        self, *, discardable: bool, not_before_ms: int | None = None
    ) -> list[tuple[str, Event]]:
        """Return a request for each update of the flow, in the order of their definition.

        Args:
            discardable: whether their discard policies hold; not for those that somebody waits
                for.
            not_before_ms: epoch milliseconds, before which they do not run.

        Raises:
            UnsupportedValue, ValueError: the props, or what serve returned, cannot be stored.
        """
        body = self.props.encode() if self._body is None else self._body
        requests = []
        for update in self.updates:
            policy, after, running = (discardable and update.discard) or (0, 0, False)
            wanted = RequestPolicy("", policy, after, running, not_before_ms)
            event = Event(Kind.REQUEST, update.name, body, request=wanted)
            requests.append((self._place.instance, event))
        return requests


def _is_current(marks: bytes, state: State) -> bool:
    """Whether what a kept result was made of is as it was."""
    if marks == b"{}":
        return True
    found = orjson.loads(marks)
    return all(state.changed_at(name) == version for name, version in found.items())


#: (component, key, matter) -> how often.
_counts: dict[tuple[str, str, str], int] = {}
