"""State: an immutable mapping that remembers what was read from it and what was changed.

The same class serves the store, components and state machines. A State that came from a store
reads each field when somebody asks for it; a State made by hand holds its values. Changing one
returns another and adds operations to its diff; nothing is copied that was not touched.

What is observed is recorded for the whole family of states that came from one read: the writer
who read `a` to decide about `b` depends on `a`, whichever of the states it read it from. Reading
a key, asking `in`, and comparing observe a field; iterating, `len` and `dict(state)` observe all
(`"*"`). `repr`, `peek` and the debugger do not observe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NoReturn, Protocol

import orjson

from eventstore import values
from eventstore.diff import ABSENT, Diff, Misfit, Path, Shape, apply_operation, shape_of
from eventstore.errors import InvalidDiff, UnsupportedValue
from eventstore.events import Position

__all__ = ["Source", "State"]


class Source(Protocol):
    """Where a state's fields come from: one instance at one version, forever the same."""

    def value(self, name: str) -> object:
        """The field's Python value, or ABSENT."""

    def json(self, name: str) -> Any:
        """The field's JSON value, made for this call, or ABSENT."""

    def shape(self, name: str) -> int:
        """What the field is (diff.Shape), without loading it."""

    def names(self) -> Iterable[str]:
        """The names of the present fields."""

    def changed_at(self, name: str) -> int | None:
        """The version at which the field last changed; None where that is not known."""


class _Encoded:
    """The source of a state made by hand, or carried over from another process."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self._fields = fields

    def value(self, name: str) -> object:
        raw = self._fields.get(name)
        return ABSENT if raw is None else values.decode(raw)

    def json(self, name: str) -> Any:
        raw = self._fields.get(name)
        return ABSENT if raw is None else orjson.loads(raw)

    def shape(self, name: str) -> int:
        return shape_of(self.json(name))

    def names(self) -> Iterable[str]:
        return self._fields

    def changed_at(self, name: str) -> int | None:
        return None


#: Operations on a whole field that leave it what it is, where they fit.
_KEEP_SHAPE: Final = frozenset({"append", "extend", "append_text", "increment", "merge_into"})


class _After:
    """A source with diffs put on top: of each field, the operations since it was last set whole."""

    __slots__ = ("_base", "_operations")

    def __init__(self, source: Source, diffs: Sequence[Diff]) -> None:
        self._base: Source = source
        self._operations: dict[str, list[list[Any]]]
        operations: dict[str, list[list[Any]]] = {}
        if isinstance(source, _After):
            self._base = source._base
            operations = {name: list(earlier) for name, earlier in source._operations.items()}
        for operation in chain.from_iterable(diff.to_json() for diff in diffs):
            target = operation[1]
            name = target if isinstance(target, str) else target[0]
            if name == target and operation[0] in ("set", "delete"):
                operations[name] = [operation]
            else:
                operations.setdefault(name, []).append(operation)
        self._operations = operations

    def value(self, name: str) -> object:
        if name not in self._operations:
            return self._base.value(name)
        value = self.json(name)
        return value if value is ABSENT else values.from_json(value)

    def json(self, name: str) -> Any:
        operations = self._operations.get(name)
        if operations is None:
            return self._base.json(name)
        code, target = operations[0][:2]
        is_whole = target == name and code in ("set", "delete")
        value = ABSENT if is_whole else self._base.json(name)
        for operation in operations:
            value = apply_operation(value, operation)
        return value

    def shape(self, name: str) -> int:
        operations = self._operations.get(name, ())
        if all(operation[0] in _KEEP_SHAPE and operation[1] == name for operation in operations):
            shape = self._base.shape(name)  # without loading a large value
            if shape != Shape.ABSENT or not operations:
                return shape
        return shape_of(self.json(name))

    def changed_at(self, name: str) -> int | None:
        return None if name in self._operations else self._base.changed_at(name)

    def names(self) -> Iterable[str]:
        changed = self._operations
        names = [name for name in self._base.names() if name not in changed]
        return names + [name for name in changed if self.json(name) is not ABSENT]


#: What an operation must find, if the field is there at all.
_WANTED: Final = {"append": Shape.LIST, "extend": Shape.LIST, "increment": Shape.NUMBER}


class State(Mapping[str, Any]):
    """The fields of one instance at one version, with the changes made to them here.

    `app`, `instance`, `version` and `position` tell where it was read (None when it was made by
    hand); `version` is the version that was read, however many changes were made since.

    Values read from a state are Python values made for it: changing one in place changes nothing
    that is stored, and no other reader's value.
    """

    __slots__ = (
        "_build", "_diff", "_keys", "_memo", "_observed", "_shared", "_source",
        "app", "generation", "instance", "position", "version",
    )  # fmt: skip

    def __init__(self, initial_values: Mapping[str, Any] | None = None) -> None:
        """Make a state by hand; it keeps copies of the values.

        Raises:
            UnsupportedValue: a value that no store could keep, or a name that is not text.
        """
        fields = {} if initial_values is None else dict(initial_values)
        for name in fields:
            if not isinstance(name, str):
                raise UnsupportedValue((repr(name),), "the name of a field must be text")
        self._source: Source = _Encoded(
            {name: values.encode(value, (name,)) for name, value in fields.items()}
        )
        self._diff = _NO_DIFF
        #: Values as the source has them, read once for the whole family of states.
        self._shared: dict[str, Any] = {}
        #: Values as this state has them.
        self._memo: dict[str, Any] = {}
        self._observed: set[str] = set()
        self._keys: frozenset[str] | None = None
        self._build: Callable[[Mapping[str, object]], object] | None = None
        self.app: str | None = None
        self.instance: str | None = None
        self.version: int | None = None
        self.position: Position | None = None
        self.generation = 0

    @classmethod
    def at(
        cls,
        source: Source,
        *,
        app: str,
        instance: str,
        version: int,
        position: Position,
        generation: int = 0,
        build: Callable[[Mapping[str, object]], object] | None = None,
    ) -> State:
        """Return the state of an instance as a store read it."""
        state = cls.__new__(cls)
        state._source = source
        state._diff = _NO_DIFF
        state._shared = {}
        state._memo = {}
        state._observed = set()
        state._keys = None
        state._build = build
        state.app, state.instance, state.version = app, instance, version
        state.position, state.generation = position, generation
        return state

    def _with(self, diff: Diff) -> State:
        """Return this state after more operations; fields that they do not touch are shared."""
        state = State.__new__(State)
        state._source = self._source
        state._shared = self._shared
        state._diff = self._diff.then(diff) if len(diff) else self._diff
        touched = diff.fields
        state._memo = {name: value for name, value in self._memo.items() if name not in touched}
        state._observed = self._observed
        state._keys = None if self._keys is None else self._keys | touched
        state._build = self._build
        state.app, state.instance, state.version = self.app, self.instance, self.version
        state.position, state.generation = self.position, self.generation
        return state

    # --- reading --------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        self._observed.add(name)
        value = self._peek(name)
        if value is ABSENT:
            where = "this state" if self.app is None else f"the state of {self.app}/{self.instance}"
            raise KeyError(
                f"{name!r} is not in {where}; it has: {', '.join(sorted(self._names())) or '-'}"
            )
        return value

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise TypeError(
            f"a state is not changed in place: state.update({name}=...) returns a changed one, and"
            " a component's update returns the fields to set, {'" + str(name) + "': ...}"
        )

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(
            f"a state is not changed in place: state.wipe(delete=[{name!r}]) returns one without it"
        )

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or `default`; either way the field is observed."""
        self._observed.add(name)
        value = self._peek(name)
        return default if value is ABSENT else value

    def peek(self, name: str, default: Any = None) -> Any:
        """Return a field's value without observing it: for hooks, loggers and tracers."""
        value = self._peek(name)
        return default if value is ABSENT else value

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        self._observed.add(name)
        return self._has(name)

    def __iter__(self) -> Iterator[str]:
        self._observed.add("*")
        return iter(self._names())

    def __len__(self) -> int:
        self._observed.add("*")
        return len(self._names())

    def keys(self) -> list[str]:  # type: ignore[override]  # Burr's programs index it
        """Return the names of all fields."""
        return list(self)

    def get_all(self) -> dict[str, Any]:
        """Return all fields as a new dict."""
        return dict(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # compared by value, so it has none

    def _names(self) -> list[str]:
        if self._diff is _NO_DIFF and self._keys is None:
            return list(self._source.names())
        touched = self._diff.fields
        names = [
            name
            for name in self._source.names()
            if name not in touched or self._peek(name) is not ABSENT
        ]
        if touched:
            known = set(names)
            names += [
                name
                for name in self._diff.fields_in_order()
                if name not in known and self._peek(name) is not ABSENT
            ]
        return names if self._keys is None else [name for name in names if name in self._keys]

    def _peek(self, name: str) -> Any:
        value = self._memo.get(name, _UNREAD)
        return self._read(name) if value is _UNREAD else value

    def _read(self, name: str) -> Any:
        if self._keys is not None and name not in self._keys:
            return ABSENT
        operations = () if self._diff is _NO_DIFF else self._diff.on(name)
        if operations:
            value = self._json(name, operations)
            if value is not ABSENT:
                value = values.from_json(value)
        elif name in self._shared:
            value = self._shared[name]
        else:
            value = self._shared[name] = self._source.value(name)
        self._memo[name] = value
        return value

    def _has(self, name: str) -> bool:
        """Whether a field is there; a large one is not loaded for that."""
        if name in self._memo or self._keys is not None or self._diff.on(name):
            return self._peek(name) is not ABSENT
        return self._source.shape(name) != Shape.ABSENT

    def _json(self, name: str, operations: Iterable[list[Any]]) -> Any:
        value = self._source.json(name)
        try:
            for operation in operations:
                value = apply_operation(value, operation)
        except Misfit as misfit:
            raise InvalidDiff(str(misfit)) from None
        return value

    def to_json(self, *names: str) -> dict[str, Any]:
        """Return the fields, all or the named ones, as the tagged JSON that is stored.

        For tools that show or copy a state: no Python value is built, so that classes need not
        be loaded, and nothing is observed. Names of absent fields are left out.
        """
        shown = {}
        for name in names or self._names():
            if self._keys is None or name in self._keys:
                value = self._json(name, self._diff.on(name))
                if value is not ABSENT:
                    shown[name] = value
        return shown

    # --- changing -------------------------------------------------------------------------------

    def update(self, **fields: Any) -> State:
        """Set fields."""
        return self._with(Diff(fields))

    def append(self, **items: Any) -> State:
        """Add one item to the list in each field; an absent list is created."""
        return self._each("append", Diff.append, items)

    def extend(self, **items: Sequence[Any]) -> State:
        """Add items to the list in each field; an absent list is created."""
        return self._each("extend", Diff.extend, items)

    def increment(self, **numbers: Any) -> State:
        """Add to the number in each field; an absent one counts as 0."""
        return self._each("increment", Diff.increment, numbers)

    def _each(
        self, code: str, method: Callable[[Diff, Path, Any], Diff], fields: Mapping[str, Any]
    ) -> State:
        diff = Diff()
        for name, argument in fields.items():
            if self._diff.on(name):
                value = self._peek(name)
                shape = Shape.ABSENT if value is ABSENT else shape_of(values.to_json(value))
            else:
                shape = self._source.shape(name)
            if shape not in (Shape.ABSENT, _WANTED[code]):
                raise InvalidDiff(
                    f"{code} {name!r}: it is {Shape.NAMES[shape]}, not {Shape.NAMES[_WANTED[code]]}"
                )
            diff = method(diff, name, argument)
        return self._with(diff)

    def wipe(
        self, *, delete: Iterable[str] | None = None, keep: Iterable[str] | None = None
    ) -> State:
        """Delete the fields `delete`, or all but `keep`; without either, all.

        Raises:
            ValueError: both were given.
        """
        if delete is not None and keep is not None:
            raise ValueError("wipe: give delete= or keep=, not both")
        if delete is None:
            kept = set(keep or ())
            delete = [name for name in self if name not in kept]
        diff = Diff()
        for name in delete:
            diff = diff.delete(name)
        return self._with(diff)

    def merge(self, other: Mapping[str, Any]) -> State:
        """Set all fields that `other` has."""
        return self._with(Diff(dict(other)))

    def after(self, *diffs: Diff) -> State:
        """Return the state that this one becomes when diffs that are known to fit count.

        It is a state as if it had been read so: nothing is read from it yet, and `diff` is empty.
        Whoever is given one in a row of them sees nothing of what another did to a value in place.
        """
        state = State.__new__(State)
        state._source = _After(self._source, diffs)
        state._diff, state._keys = self._diff, self._keys
        state._shared, state._memo, state._observed = {}, {}, set()
        state._build = self._build
        state.app, state.instance, state.version = self.app, self.instance, self.version
        state.position, state.generation = self.position, self.generation
        return state

    def apply(self, diff: Diff) -> State:
        """Return this state after a diff.

        Raises:
            InvalidDiff: an operation does not fit the state.
        """
        state = self._with(diff)
        for name in diff.fields:
            state._peek(name)
        return state

    def subset(self, *names: str, ignore_missing: bool = True) -> State:
        """Return the state with only these fields; its changes are still those of the instance.

        Raises:
            KeyError: a field is missing and `ignore_missing` is False.
        """
        if not ignore_missing:
            missing = [name for name in names if name not in self]
            if missing:
                raise KeyError(f"not in this state: {', '.join(map(repr, missing))}")
        state = self._with(_NO_DIFF)
        state._memo = {name: value for name, value in self._memo.items() if name in names}
        state._keys = frozenset(names) if self._keys is None else self._keys & frozenset(names)
        return state

    def changed_at(self, name: str) -> int | None:
        """Return the version at which a field had last changed when the state was read.

        `"*"` stands for all fields. None where the field was not there, or in a state made by
        hand. Nothing is observed or loaded.
        """
        return self.version if name == "*" else self._source.changed_at(name)

    # --- what components call it ----------------------------------------------------------------

    @property
    def component_name(self) -> str | None:
        """The component that it is of: its app."""
        return self.app

    @property
    def instance_id(self) -> str | None:
        """The instance that it is of."""
        return self.instance

    # --- what a writer needs --------------------------------------------------------------------

    @property
    def diff(self) -> Diff:
        """The changes made since the state was read."""
        return self._diff

    @property
    def observed(self) -> frozenset[str]:
        """The fields that were read from this state or its family; `"*"` stands for all."""
        return frozenset(self._observed)

    @property
    def data(self) -> Any:
        """The state as an instance of the app's `state_type`; it observes every field.

        Raises:
            InvalidState: the stored state does not fit the type; the message names the path.
            TypeError: the app was opened without a state type, or with validate="off".
        """
        if self._build is None:
            raise TypeError(
                "this state has no type: open the app with store.app(name, state_type=...)"
            )
        return self._build(dict(self))

    def __repr__(self) -> str:
        shown = []
        for name in self._names():
            text = repr(self._peek(name))
            shown.append(f"{name}={text if len(text) <= 60 else text[:57] + '...'}")
        place = f"{self.app}/{self.instance} v{self.version}" if self.app is not None else "by hand"
        changes = f", {len(self._diff)} changes" if len(self._diff) else ""
        return f"<State {place}{changes}: {', '.join(shown)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process has no store to read from, so it takes along all that the
        # store has, as it is stored. What was observed and changed is what a commit there needs.
        fields = {name: orjson.dumps(self._source.json(name)) for name in self._source.names()}
        facts = (self.app, self.instance, self.version, self.position, self.generation)
        changes = (self._diff.to_json(), frozenset(self._observed), self._keys)
        return _rebuild, (fields, facts, changes)


def _rebuild(fields: dict[str, bytes], facts: tuple[Any, ...], changes: tuple[Any, ...]) -> State:
    operations, observed, keys = changes
    state = State()
    state._source = _Encoded(fields)
    state._diff = Diff.from_json(operations)
    state._observed, state._keys = set(observed), keys
    state.app, state.instance, state.version, state.position, state.generation = facts
    return state


_NO_DIFF: Final = Diff()
#: "Not read yet", in the memo of a state.
_UNREAD: Final[Any] = object()
