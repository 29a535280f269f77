"""Instances seen from outside, by name: what their state is, which there are; clear and copy them.

No component has to be loaded for that: an instance `Component__id` is the instance `id` of the app
`Component`. Everything here works on what is stored, without `load_state`. Calls without a store
use the one of the process (`$EVENTSTORE_URL`, else `./.eventstore`); a development environment is
a store with another namespace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eventstore import (
    App,
    ConfigError,
    CopyProgress,
    CopyReport,
    EventStore,
    InstanceNotFound,
    State,
    copy_app,
)
from eventstore.processing import Processing
from processors.beginning import has_run
from processors.stores import give_back, processing_of, take

__all__ = [
    "clear_instance",
    "copy_instances",
    "get_instances",
    "inspect_state",
    "is_cleared",
    "opened",
]

#: Between a component's name, which has none of it, and an instance's id.
_SEPARATOR = "__"


def inspect_state(instance_name: str, store: EventStore | None = None) -> State:
    """Return the stored state of an instance, with everything acknowledged before the call.

    It is a copy: it stays as it is, and can be used after the store is closed.

    Args:
        instance_name: `Component__id`.
        store: default: the process's own.

    Raises:
        ValueError: the name is no such name, or there is no such instance, or it was cleared.
        As for `App.get`.
    """
    with opened(store) as there:
        app, instance_id = _named(there, instance_name)
        try:
            state: State = app.get(instance_id, fresh=True)
        except InstanceNotFound:
            raise ValueError(f"{app.name} has no instance {instance_id!r}") from None
        if is_cleared(processing_of(there, app.name), instance_id):
            raise ValueError(f"instance {instance_id!r} of {app.name} was cleared")
        # What a state has not read yet it would ask the store for, which may be closed by then.
        return copy.copy(state)


def get_instances(component_name: str, store: EventStore | None = None) -> list[str]:
    """Return the ids of a component's instances, sorted; [] for a component that nobody has used.

    An instance is there from its first field or request on, until it is cleared.

    Raises:
        ValueError: this cannot be the name of a component.
        As for `App.get`.
    """
    with opened(store) as there:
        app = _app(there, component_name)
        if app.name not in there.apps():
            return []  # a Processing would create it
        processing = processing_of(there, app.name)
        processing.catch_up()
        return [name for name in app.instances() if not is_cleared(processing, name)]


def clear_instance(instance_name: str, store: EventStore | None = None) -> bool:
    """Take an instance's state away, and its pending updates; False if there was none.

    Its history stays, and says so. A process that has the instance open goes on with the empty
    state: what it computes from the old one conflicts. Whoever opens the instance next begins it
    anew, with `init_state`.

    Raises:
        ValueError: the name is not one such as `Component__id`.
        As for `App.reset`.
    """
    with opened(store) as there:
        app, instance_id = _named(there, instance_name)
        if app.get(instance_id, fresh=True, default=None) is None:
            return False
        if is_cleared(processing_of(there, app.name), instance_id):
            return False
        app.reset(instance_id)
        return True


def copy_instances(
    component_name: str,
    source: EventStore,
    target: EventStore,
    *,
    compare: bool = True,
    progress: Callable[[CopyProgress], None] | None = None,
) -> CopyReport:
    """Copy all instances of a component to another store or namespace, with their histories.

    Pending updates, triggers' cursors and recorded effects come along. It is `copy_app` under the
    name that components give it; see there for what a copy is, and how one that was killed goes on.

    Raises:
        As for `eventstore.copy_app`.
    """
    return copy_app(source, component_name, target, compare=compare, progress=progress)


def is_cleared(processing: Processing, instance: str) -> bool:
    """Whether nothing has happened to an existing instance since it was last cleared."""
    head = processing.head(instance)
    if head is None or head.floor == 0 or head.version > head.floor or head.pending:
        return False
    return not has_run(processing, instance)


@contextmanager
def opened(store: EventStore | None) -> Iterator[EventStore]:
    """Lend a store: the one given, or the process's own."""
    if store is not None:
        yield store
        return
    own = take(None)
    try:
        yield own
    finally:
        give_back(own)


def _named(store: EventStore, instance_name: str) -> tuple[App, str]:
    """Return the app and the id of `Component__id`; ValueError for another name."""
    component, separator, instance_id = (
        instance_name.partition(_SEPARATOR) if isinstance(instance_name, str) else ("", "", "")
    )
    if not (component and separator and instance_id):
        raise ValueError(
            f"instance name {instance_name!r}: give the component's name and the instance's id,"
            " 'Component__id'"
        )
    return _app(store, component), instance_id


def _app(store: EventStore, component_name: str) -> App:
    try:
        return store.app(component_name)
    except ConfigError as error:
        raise ValueError(f"component {component_name!r}: {error}") from None
