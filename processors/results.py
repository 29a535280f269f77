"""What a handler is given of the state, and what its result changes. No threads, no log.

A component without `save_state` and `load_state` works on State itself: each value that a handler
reads was made for it, so a change in place stays without effect until it is returned. With one of
the two, a handler gets a LiveState: the dict that `load_state` made of what is stored, kept in this
process as long as nobody else wrote, so that values that only live in memory stay usable.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from eventstore import Diff, EventStore, State, UnsupportedValue, diff_between, values
from eventstore.lifetime import ProcessLock

if TYPE_CHECKING:
    from processors.component import Component, Update

__all__ = [
    "SAVED",
    "Handed",
    "LiveState",
    "LiveStates",
    "diff_of",
    "handler_state",
    "has_hooks",
    "loaded_of",
    "saved_of",
]

#: The field that holds what `save_state` returned when that is no dict.
SAVED: Final = "_saved"

#: Live states that a process keeps per component; of others only what is stored is there.
_INSTANCES_MAX: Final = 1_000


class LiveState(dict[str, Any]):
    """The state of an instance as `load_state` made it, for one run of a handler.

    Values that can be stored are copies; others (a cursor, a model) are the very objects that
    this process keeps. It is read like a dict, and changed by what an update returns.
    """

    __slots__ = ("after", "component_name", "instance_id", "version")

    def __init__(
        self, fields: Mapping[str, Any], component_name: str, instance_id: str, version: int
    ) -> None:
        super().__init__(fields)
        self.component_name = component_name
        self.instance_id = instance_id
        self.version = version
        #: What the process keeps once the update's diff has taken effect.
        self.after: dict[str, Any] = dict(fields)

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(
            f"{name!r} is not in the state of {self.component_name}/{self.instance_id}; it has:"
            f" {', '.join(sorted(self)) or '-'}"
        )

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise TypeError(
            "a state is not changed in place: an update returns the fields to set,"
            " `return {'name': value}`, and serve changes nothing"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


def has_hooks(component: Component) -> bool:
    """Whether handlers of the component work on a LiveState."""
    return component.load_function is not None or component.save_function is not None


def handler_state(component: Component, state: State, live: LiveStates) -> Any:
    """Return what serve and update functions get as `state`.

    Raises:
        TypeError: `load_state` did not return a dict; whatever else it raises.
    """
    return live.given(component, state) if has_hooks(component) else state


def diff_of(component: Component, update: Update, state: State, given: Any, result: object) -> Diff:
    """Return what the result of an update changes; an empty diff when nothing.

    Args:
        component: the update's.
        update: what has run.
        state: the state that it ran on, with the changes of its accepted parts.
        given: what it got: `handler_state(component, state, live)`.
        result: what it returned.

    Raises:
        TypeError: it returned something that is no change; the message names the function.
        UnsupportedValue, InvalidDiff: a value cannot be stored, or operations fit no state.
    """
    try:
        if type(result) is dict:  # of all results the usual one
            return changes_of(component, state, given, result)
        if result is None or result is given:
            return Diff()
        if isinstance(result, Diff):
            return _applied(component, state, given, result)
        if isinstance(result, State):
            made = _made_to(state, result, _named(component, update))
            return _applied(component, state, given, made)
        if isinstance(result, Mapping):
            return changes_of(component, state, given, result)
    except Exception as error:
        error.add_note(f"of what {_named(component, update)} returned; nothing was written")
        raise
    raise TypeError(
        f"{_named(component, update)} returned {_shown(result)}; an update returns a dict of fields"
        " to set, a Diff or a State, or None for no change. Nothing was written"
    )


def _named(component: Component, update: Update) -> str:
    return f"update {update.name} of component {component.name}"


def changes_of(component: Component, state: State, given: Any, fields: Mapping[str, Any]) -> Diff:
    """Return the diff that sets `fields`, in the form in which the component stores its state."""
    if not has_hooks(component):
        return Diff(fields)
    if not fields:
        return Diff()
    assert isinstance(given, LiveState)
    given.after = {**given, **fields}
    return diff_between(dict(state), saved_of(component, given.after))


def saved_of(component: Component, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are stored of a state, by way of `save_state` if there is one.

    Raises:
        Whatever `save_state` raises.
    """
    if component.save_function is None:
        return dict(fields)
    saved = component.save_function(dict(fields))
    return saved if type(saved) is dict else {SAVED: saved}


def loaded_of(component: Component, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the live fields of a stored state, by way of `load_state` if there is one.

    Raises:
        TypeError: `load_state` did not return a dict; whatever else it raises.
    """
    stored = dict(state)
    if component.load_function is None:
        return stored
    loaded = component.load_function(stored[SAVED] if stored.keys() == {SAVED} else stored)
    if not isinstance(loaded, dict):
        raise TypeError(
            f"load_state of component {component.name} returned {_shown(loaded)} instead of a dict"
        )
    return loaded


def _applied(component: Component, state: State, given: Any, diff: Diff) -> Diff:
    """Return a diff as it is stored; that of a component with hooks goes through them."""
    if not has_hooks(component) or not len(diff):
        return diff
    after = State({name: given[name] for name in diff.fields if name in given}).apply(diff)
    assert isinstance(given, LiveState)
    given.after = {name: value for name, value in given.items() if name not in diff.fields}
    given.after.update(after)
    return diff_between(dict(state), saved_of(component, given.after))


def _made_to(state: State, result: State, what: str) -> Diff:
    """Return the changes that a handler made to the state that it got."""
    place = (state.app, state.instance, state.version)
    if (result.app, result.instance, result.version) != place:
        raise TypeError(
            f"{what} returned a State that was not made from the one it got: return"
            " state.update(...) of its parameter, or a dict"
        )
    return Diff.from_json(result.diff.to_json()[len(state.diff) :])


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


class LiveStates:
    """The live states of one component in this process, by instance. Safe between threads.

    One is used only at the version for which it was made or kept: when somebody else has written
    since, it is made anew of what is stored.
    """

    def __init__(self, instances_max: int = _INSTANCES_MAX) -> None:
        self._kept: OrderedDict[str, tuple[int, dict[str, Any]]] = OrderedDict()
        self._instances_max = instances_max
        self._lock = threading.Lock()

    @classmethod
    def share(cls, store: EventStore, component: Component) -> LiveStates:
        """Return those that everybody in this process shares for a store and a component.

        A component that was defined anew has its own: it may load its states in another way.
        """
        with _sharing:
            of_store = _shared.setdefault(store, weakref.WeakKeyDictionary())
            return of_store.setdefault(component, cls())

    def given(self, component: Component, state: State) -> LiveState:
        """Return an instance's live state for one run of a handler.

        Raises:
            As for `loaded_of`.
        """
        assert state.instance is not None
        assert state.version is not None
        with self._lock:
            version, fields = self._kept.get(state.instance, (-1, None))
        if fields is None or version != state.version or len(state.diff):
            fields = loaded_of(component, state)
            if not len(state.diff):
                self._put(state.instance, state.version, fields)
        copies = {name: _copied(value) for name, value in fields.items()}
        return LiveState(copies, component.name, state.instance, state.version)

    def keep(self, instance: str, version: int, live: LiveState) -> None:
        """Keep what an update left behind, now that its diff made `version` of the instance."""
        self._put(instance, version, live.after)

    def begin(self, instance: str, version: int, fields: Mapping[str, Any]) -> None:
        """Keep the live fields that `init_state` made."""
        self._put(instance, version, dict(fields))

    def forget(self, instance: str) -> None:
        """Let go of an instance's live state; the next handler gets one of what is stored."""
        with self._lock:
            self._kept.pop(instance, None)

    def _put(self, instance: str, version: int, fields: dict[str, Any]) -> None:
        with self._lock:
            self._kept[instance] = (version, fields)
            self._kept.move_to_end(instance)
            if len(self._kept) > self._instances_max:
                self._kept.popitem(last=False)


class Handed:
    """What one run of a handler is given of the state, and what its results change."""

    __slots__ = ("_component", "_diff", "_live", "_state", "_update", "given")

    def __init__(self, component: Component, update: Update, live: LiveStates) -> None:
        self._component, self._update, self._live = component, update, live
        #: What the handler works on: a State, or with hooks a LiveState.
        self.given: Any = None
        self._state: State | None = None
        self._diff: Diff | None = None

    def begin(self, state: State) -> Any:
        """Return what the handler gets of a state.

        Raises:
            As for `handler_state`.
        """
        self._state = state
        self.given = handler_state(self._component, state, self._live)
        return self.given

    def diff_of(self, result: object) -> Diff:
        """Return what a result changes; see the function of this name for errors."""
        assert self._state is not None
        self._diff = diff = diff_of(self._component, self._update, self._state, self.given, result)
        return diff

    def go_on(self, state: State) -> Any:
        """Return what the handler gets of the state that its checkpoint has led to.

        Raises:
            As for `handler_state`.
        """
        # An earlier run may have made that checkpoint, or others have written since: then what
        # lives in memory is made anew of what is stored.
        if has_hooks(self._component) and self._is_ours(state):
            assert state.instance is not None
            assert state.version is not None
            self._live.keep(state.instance, state.version, self.given)
        return self.begin(state)

    def _is_ours(self, state: State) -> bool:
        assert self._state is not None
        assert self._diff is not None
        return self._state.after(self._diff).to_json() == state.to_json()


_sharing = ProcessLock()
_shared: weakref.WeakKeyDictionary[EventStore, weakref.WeakKeyDictionary[Component, LiveStates]] = (
    weakref.WeakKeyDictionary()
)


def _copied(value: Any) -> Any:
    """Return a copy of a value that can be stored; any other value itself."""
    try:
        return values.decode(values.encode(value))
    except UnsupportedValue:
        return value
