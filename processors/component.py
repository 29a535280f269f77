"""Component: what a reactive component declares. Its functions, their keys, their policies.

A component is an app of the store, and an instance of it one instance of that app. Nothing runs
here: `component("id")` opens an instance (instance.py), the runner runs the updates.

    counter = Component("Counter")

    @counter.init_state
    def begin() -> dict[str, int]:
        return {"count": 0}

    @counter.serve("add")
    def add(state, props):
        return state["count"] + props["by"]

    @counter.update("add")
    def keep(state, props):
        return {"count": props.serve_result}
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from eventstore import Discard, values
from processors.graph import GraphFormat, graph_data, graph_of
from processors.policy import DiscardPolicy, Retry, discard_of
from processors.properties import Params
from processors.source import source_of

if TYPE_CHECKING:
    from processors.instance import ComponentInstance

__all__ = ["APP_NAME", "Changed", "Component", "Serve", "Update", "changed", "find_component"]

_F = TypeVar("_F", bound=Callable[..., Any])

Isolation = Literal["snapshot", "serializable"]
Worker = Literal["thread", "process"]

#: What an app may be called: a component's name is that of its app, and so of a Kafka topic.
APP_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,120}")

#: What helps where a cell that declares a function is run a second time.
_ANEW: Final = "run the cell that makes the component again, too"


@dataclass(frozen=True, slots=True)
class Changed:
    """What a trigger watches; made by `changed`."""

    fields: tuple[str, ...]
    app: str | None
    key: Callable[[Any], str | Iterable[str] | None] | None
    trigger_id: str | None
    start: Literal["now", "beginning"]
    own_answers: bool


def changed(
    *fields: str,
    app: str | None = None,
    key: Callable[[Any], str | Iterable[str] | None] | None = None,
    trigger_id: str | None = None,
    start: Literal["now", "beginning"] = "now",
    own_answers: bool = False,
) -> Changed:
    """Return a trigger for `@update(on=...)`: one request per accepted diff that changes a field.

    Args:
        fields: their names; `"*"` is any field.
        app: the app that is watched; default: the component's own.
        key: which instance or instances of the component a change is for (None: not for any);
            default: the one of the same name.
        trigger_id: under which the trigger remembers how far it has looked. Give one, and keep it
            when the function is renamed: another id starts anew. Default: component.function.
        start: the first diff that it sees: "now" is the first after the trigger was first started.
        own_answers: whether what the component's own updates change counts too.

    Raises:
        ValueError, TypeError: these arguments name nothing that could be watched.
    """
    if not fields:
        raise ValueError('changed(): name the fields to watch, or "*" for any')
    for name in fields:
        if not isinstance(name, str) or not name:
            raise TypeError(f"changed(): {name!r} is not the name of a field")
    if key is not None and not callable(key):
        raise TypeError(f"changed(): key={key!r} is not a function of a change")
    if start not in ("now", "beginning"):
        raise ValueError(f'changed(): start={start!r}; give "now" or "beginning"')
    for argument, text in (("app", app), ("trigger_id", trigger_id)):
        if text is not None and (not isinstance(text, str) or not text):
            raise TypeError(f"changed(): {argument}={text!r} is not a name")
    if app is not None and not APP_NAME.fullmatch(app):
        raise ValueError(
            f"changed(): app={app!r}: no app can have this name; give 1 to 120 letters, digits,"
            " '-' and '_'"
        )
    return Changed(tuple(dict.fromkeys(fields)), app, key, trigger_id, start, own_answers)


@dataclass(frozen=True, slots=True)
class Serve:
    """The function that answers a flow."""

    key: str
    function: Callable[..., Any]
    is_async: bool  #: a coroutine function or an async generator function
    is_generator: bool  #: a generator function or an async generator function
    version: str  #: changes with the function's source; "" where no results are kept


@dataclass(frozen=True, slots=True)
class Update:
    """One update: under its request name, what runs it and how.

    `key` is the flow's, None for a trigger; `function_name` is the part of `name` after it.
    """

    name: str
    key: str | None
    function_name: str
    function: Callable[..., Any]
    is_async: bool
    takes_context: bool
    discard: Discard | None = None
    isolation: Isolation = "snapshot"
    retry: Retry = field(default_factory=Retry)
    timeout_s: float | None = None
    trigger: Changed | None = None
    worker: Worker | None = None


class Component:
    """A reactive component: serve functions that answer, updates that keep the state fresh."""

    #: Opens an instance. instance.py, which is above this room, puts its own here.
    opener: Callable[..., ComponentInstance] | None = None

    def __init__(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        cache_ttl: float = 24 * 60 * 60,
        *,
        cache_depends_on_state: bool = False,
    ) -> None:
        """Declare a component; decorate its functions next.

        Args:
            name: letters, digits, `-` and `_`, but not two `_` in a row; the name of its app.
            params: fixed values that handlers read as `component.params[...]`.
            cache_ttl: how long a result of serve is kept, in seconds; 0 keeps none.
            cache_depends_on_state: a kept result no longer counts once a state field that serve
                had read has changed.

        Raises:
            ValueError, TypeError: an argument is none of that.
        """
        if not isinstance(name, str) or not APP_NAME.fullmatch(name) or "__" in name:
            raise ValueError(
                f"component {name!r}: a name has 1 to 120 letters, digits, '-' and '_', without"
                " '__', which separates it from the instance's id"
            )
        if cache_ttl is None or not 0 <= cache_ttl < math.inf:
            raise ValueError(
                f"component {name}: cache_ttl={cache_ttl}; give seconds, or 0 for no cache"
            )
        if params is not None and not isinstance(params, Mapping):
            raise TypeError(f"component {name}: params={params!r:.80} is not a dict")
        self.name = name
        self.params = Params({} if params is None else params)
        self.cache_ttl = cache_ttl
        self.cache_depends_on_state = cache_depends_on_state
        self.serves: dict[str, Serve] = {}
        #: By request name, in the order of their definition.
        self.updates: dict[str, Update] = {}
        self.init_function: Callable[..., Any] | None = None
        self.save_function: Callable[[Any], Any] | None = None
        self.load_function: Callable[[Any], Any] | None = None
        #: Of definitions of one name, the last one counts.
        self._number = next(_numbers)
        #: Where it is defined, so that another process can find it (`find_component`).
        self.module = _module(sys._getframe(1).f_globals.get("__name__", "__main__"))
        _components[self.module, name] = self

    # --- declaring ------------------------------------------------------------------------------

    def init_state(self, function: _F) -> _F:
        """Declare what a new instance begins with: `function(**init_state_params)`, a dict.

        It may be async, and runs once in the life of an instance, whichever process is first.

        Raises:
            ValueError: there is one already, it yields, or a parameter of it cannot be named.
        """
        self._refuse_second("init_state", self.init_function, function)
        if _is_generator(function):
            raise ValueError(f"init_state {_name(function)}: it yields; return a dict")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind == parameter.POSITIONAL_ONLY:
                raise ValueError(
                    f"init_state {_name(function)}: its parameter {parameter.name!r} is given by"
                    " name, from init_state_params; take away the '/' after it"
                )
        self.init_function = function
        return function

    def save_state(self, function: _F) -> _F:
        """Declare what is stored of a state: `function(state)`, a dict (or any storable value).

        For states with values that only live in memory, such as a database cursor.

        Raises:
            ValueError: there is one already, or it is no plain function of one argument.
        """
        self._refuse_second("save_state", self.save_function, function)
        _refuse_no_hook("save_state", "state", function)
        self.save_function = function
        return function

    def load_state(self, function: _F) -> _F:
        """Declare how a state is made of what was stored: `function(saved)`, a dict.

        What it makes is kept in the process, and given to any thread that serves or updates, also
        to two at a time: a connection of SQLite needs `check_same_thread=False`.

        Raises:
            ValueError: there is one already, or it is no plain function of one argument.
        """
        self._refuse_second("load_state", self.load_function, function)
        _refuse_no_hook("load_state", "saved", function)
        self.load_function = function
        return function

    def serve(self, keys: str | Sequence[str]) -> Callable[[_F], _F]:
        """Declare the function that answers these flows: `function(state, props)`.

        It may be a plain, a generator, an async or an async generator function. It reads the
        state as it is, never waits for updates, and changes nothing that is stored.

        Raises:
            ValueError: the function has other parameters, or a key has a serve already.
            TypeError: this is no key, or no function.
        """
        names = self._keys("serve", keys)

        def declare(function: _F) -> _F:
            self._check_function("serve", function)
            if _parameters(function) != ("state", "props"):
                raise ValueError(
                    f"serve {_name(function)}: it must have the parameters (state, props), not"
                    f" ({', '.join(_parameters(function))})"
                )
            for key in names:
                if key in self.serves:
                    raise ValueError(
                        f"serve {_name(function)}: component {self.name} answers {key!r} with"
                        f" {_name(self.serves[key].function)} already; a key has one serve (to"
                        f" change it in a notebook: {_ANEW})"
                    )
            version = values.digest(source_of(function)) if self.cache_ttl > 0 else ""
            for key in names:
                self.serves[key] = Serve(
                    key, function, _is_async(function), _is_generator(function), version
                )
            return function

        return declare

    def update(
        self,
        keys: str | Sequence[str] | None = None,
        discard_policy: DiscardPolicy = DiscardPolicy.NONE,
        discard_after: float | None = None,
        *,
        discard_running: bool = False,
        on: Changed | None = None,
        isolation: Isolation = "snapshot",
        retry: Retry | None = None,
        timeout_s: float | None = None,
        worker: Worker | None = None,
        name: str | None = None,
    ) -> Callable[[_F], _F]:
        """Declare an update of these flows, or of changed fields: `function(state, props)`.

        It may be async, may take `context` as a third parameter, and returns a dict of fields to
        set, a Diff or a State; `{}` and None change nothing. All updates of an instance run one
        at a time, in the order in which they were requested.

        Args:
            keys: one flow or several.
            discard_policy: when it is not worth running any more; see DiscardPolicy.
            discard_after: the policy's bound: seconds, or a number of newer updates.
            discard_running: give up a running one too, when it became stale.
            on: run it when fields change: `on=changed("purchases")`. With `keys` too, the
                function is an update of these flows and of the changes.
            isolation: what must not have changed while it ran, or it runs again: "snapshot", what
                it overwrites; "serializable", also what it read.
            retry: how often it runs when it raises; default: once.
            timeout_s: a run that takes longer has failed.
            worker: where a sync function runs: in a "thread", or in a "process" of its own;
                default: as the instance or the daemon says.
            name: the name in requests and in the history; default: the function's. Requests that
                wait are found by it, so keep it when the function is renamed.

        Raises:
            ValueError: the function has other parameters, its name is taken, or the policy
                contradicts itself.
            TypeError: an argument is of another kind.
        """
        names = [] if keys is None and on is not None else self._keys("update", keys)

        def declare(function: _F) -> _F:
            self._check_function("update", function)
            function_name = _name(function) if name is None else name
            parameters = _parameters(function)
            if parameters not in (("state", "props"), ("state", "props", "context")):
                raise ValueError(
                    f"update {_name(function)}: it must have the parameters (state, props) or"
                    f" (state, props, context), not ({', '.join(parameters)})"
                )
            if _is_generator(function):
                raise ValueError(
                    f"update {_name(function)}: it is a generator, and nobody reads what an update"
                    " yields; return a dict, a Diff or a State"
                )
            self._check_options(function, function_name, isolation, retry, timeout_s, worker, on)
            update = Update(
                function_name,
                None,
                function_name,
                function,
                _is_async(function),
                len(parameters) == 3,
                discard_of(discard_policy, discard_after, discard_running, _name(function)),
                isolation,
                Retry() if retry is None else retry,
                timeout_s,
                None,
                worker,
            )
            found = [replace(update, name=f"{key}/{function_name}", key=key) for key in names]
            if on is not None:
                identity = on.trigger_id or f"{self.name}.{function_name}"
                found.append(replace(update, trigger=replace(on, trigger_id=identity)))
            self._add(found)
            return function

        return declare

    def _add(self, found: Sequence[Update]) -> None:
        """Take updates in, all or none."""
        for update in found:
            other = self.updates.get(update.name)
            if other is not None:
                raise ValueError(
                    f"update {update.function_name}: component {self.name} has an update"
                    f" {update.name!r} already; give this one another function name, or name="
                    f" (or, to change it in a notebook: {_ANEW})"
                )
            if update.trigger is not None:
                identity = update.trigger.trigger_id
                for one in self.triggers:
                    if one.trigger is not None and one.trigger.trigger_id == identity:
                        raise ValueError(
                            f"update {update.function_name}: the trigger id {identity!r} is that"
                            f" of {one.function_name} already; give each trigger its own"
                        )
        self.updates.update({update.name: update for update in found})

    def _keys(self, what: str, keys: object) -> list[str]:
        """Return the keys of a decorator, each once."""
        if callable(keys):
            raise TypeError(
                f"{what} {_name(keys)}: name its flow: @{self.name}.{what}('key')"
                + (" or @component.update(on=changed('field'))" if what == "update" else "")
            )
        names = [keys] if isinstance(keys, str) else keys
        if not isinstance(names, list | tuple) or not all(isinstance(key, str) for key in names):
            raise TypeError(f"{what}: keys={keys!r}; give a text or a list of texts")
        if not names:
            raise ValueError(f"{what}: no key; give the names of the flows")
        for key in names:
            if not key or "::" in key:
                raise ValueError(f"{what}: key {key!r}; a key is not empty and has no '::'")
        return list(dict.fromkeys(names))

    def _check_function(self, what: str, function: object) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"{what}: {function!r:.80} is not a function")

    def _check_options(
        self,
        function: Callable[..., Any],
        function_name: object,
        isolation: object,
        retry: object,
        timeout_s: object,
        worker: object,
        on: object,
    ) -> None:
        what = f"update {_name(function)}"
        if not isinstance(function_name, str) or not function_name or "/" in function_name:
            raise ValueError(f"{what}: name={function_name!r}; give a text without '/'")
        if isolation not in get_args(Isolation):
            raise ValueError(f'{what}: isolation={isolation!r}; give "snapshot" or "serializable"')
        if worker is not None and worker not in get_args(Worker):
            raise ValueError(f'{what}: worker={worker!r}; give "thread" or "process"')
        if worker == "process" and _is_async(function):
            raise ValueError(f'{what}: worker="process" is for sync functions, and it is async')
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"{what}: retry={retry!r}; give Retry(attempts=...)")
        if on is not None and not isinstance(on, Changed):
            raise TypeError(f"{what}: on={on!r:.80}; give changed('field', ...)")
        if timeout_s is not None and (
            isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float)
        ):
            raise TypeError(f"{what}: timeout_s={timeout_s!r} is not a number of seconds")
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ValueError(f"{what}: timeout_s={timeout_s}; give more than 0")

    def _refuse_second(self, what: str, first: object, function: object) -> None:
        self._check_function(what, function)
        if first is not None:
            raise ValueError(
                f"{what} {_name(function)}: component {self.name} has {_name(first)} already"
                f" (to change it in a notebook: {_ANEW})"
            )

    # --- asking ---------------------------------------------------------------------------------

    @property
    def keys(self) -> list[str]:
        """The flows, in the order of their definition: those with a serve first."""
        updated = (update.key for update in self.updates.values() if update.key is not None)
        return list(dict.fromkeys((*self.serves, *updated)))

    def updates_of(self, key: str) -> list[Update]:
        """Return the updates of a flow, in the order of their definition."""
        return [update for update in self.updates.values() if update.key == key]

    @property
    def triggers(self) -> list[Update]:
        """The updates that run when fields change."""
        return [update for update in self.updates.values() if update.trigger is not None]

    def find(self, request_name: str) -> Update | None:
        """Return the update of a request: by its whole name, else by a unique function name."""
        update = self.updates.get(request_name)
        if update is not None:
            return update
        found = [one for one in self.updates.values() if one.function_name == request_name]
        return found[0] if len(found) == 1 else None

    def graph(self, format: GraphFormat = "data") -> Any:
        """Return what leads to what: as data, or as "mermaid" or "graphviz" source to be drawn.

        Raises:
            ValueError: there is no such format.
        """
        return graph_of(self, format)

    def get_graph(self, x_offset_step: int = 600) -> dict[str, Any]:
        """Return the graph as data with places; columns stand `x_offset_step` apart."""
        return graph_data(self, x_offset_step)

    # --- opening --------------------------------------------------------------------------------

    def __call__(self, *args: Any, **options: Any) -> ComponentInstance:
        """Open an instance; see ComponentInstance for the arguments."""
        opener = Component.opener
        if opener is None:
            raise RuntimeError("import Component from processors, which knows how to open one")
        return opener(self, *args, **options)

    def is_newer_than(self, other: Component) -> bool:
        """Whether this one was defined later in this process."""
        return self._number > other._number

    def __repr__(self) -> str:
        return f"<Component {self.name}: {', '.join(self.keys) or 'no flows yet'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Functions stay where they are: another process imports the module that defines them.
        return find_component, (self.module, self.name)


_numbers = itertools.count()

#: What this process has defined, for `find_component`.
_components: weakref.WeakValueDictionary[tuple[str, str], Component] = weakref.WeakValueDictionary()


def find_component(module: str, name: str) -> Component:
    """Return a component by where it is defined, importing that module if need be.

    Raises:
        LookupError: the module, once imported, has not defined it.
        ImportError: there is no such module.
    """
    if (module, name) not in _components and module != "__main__":
        importlib.import_module(module)
    component = _components.get((module, name))
    if component is None:
        raise LookupError(
            f"module {module} does not define the component {name}: define it at the top level of"
            " the module, so that other processes find it"
        )
    return component


def _module(name: str) -> str:
    # A spawned child runs the main module under another name.
    return "__main__" if name == "__mp_main__" else name


def _name(function: object) -> str:
    found = getattr(function, "__name__", None)
    return found if isinstance(found, str) else type(function).__name__


#: What stands before a parameter that cannot be given by its place.
_MARKS: Final[dict[Any, str]] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
    inspect.Parameter.KEYWORD_ONLY: "*, ",
}


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    found = inspect.signature(function).parameters.values()
    return tuple(_MARKS.get(parameter.kind, "") + parameter.name for parameter in found)


def _refuse_no_hook(what: str, argument: str, function: Callable[..., Any]) -> None:
    if _is_async(function) or _is_generator(function):
        raise ValueError(f"{what} {_name(function)}: it must be a plain function, which returns")
    try:
        inspect.signature(function).bind(None)
    except ValueError:
        return  # of a builtin, which may not say what it takes
    except TypeError:
        raise ValueError(
            f"{what} {_name(function)}: it is called with one argument, ({argument}), and takes"
            f" ({', '.join(_parameters(function))})"
        ) from None


def _is_async(function: Callable[..., Any]) -> bool:
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, getattr(function, "__call__", None))  # noqa: B004  # its own code
    )


def _is_generator(function: Callable[..., Any]) -> bool:
    return any(
        inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, getattr(function, "__call__", None))  # noqa: B004  # its own code
    )
