"""Migrating states: a function from the old state to the new one, over all instances.

A migration is a diff event per instance like any other change, so it is seen in the history, can
be compared and undone by hand, and other processes need not stop for it.
"""

from __future__ import annotations

import inspect
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from eventstore import (
    Conflict,
    Diff,
    Event,
    EventStore,
    Guard,
    InstanceNotFound,
    Kind,
    OutcomeUnknown,
    Rejected,
    State,
    Verdict,
    diff_between,
)
from eventstore.events import SYSTEM_PREFIX, Source
from eventstore.processing import Processing
from processors.component import Component
from processors.instances import get_instances, is_cleared, opened
from processors.results import loaded_of, saved_of
from processors.stores import processing_of

__all__ = ["MigrationResult", "StateMigrator"]

#: How often an instance that others keep changing is tried.
_ATTEMPTS_MAX: Final = 50
_NAME_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """What became of one instance.

    `diff` is what was changed, or would be by a dry run; None when nothing was decided, because
    of `exception`, or because the instance was `skipped`, which says why.
    """

    instance_id: str
    exception: Exception | None = None
    diff: Diff | None = None
    skipped: str = ""


class StateMigrator:
    """Applies a function to the states of a component's instances."""

    def __init__(
        self,
        component: Component,
        migrate_func: Callable[[dict[str, Any]], dict[str, Any]],
        store: EventStore | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Prepare a migration; `migrate` runs it.

        Args:
            component: whose instances.
            migrate_func: gets a state as a dict of its own (made by `load_state` where the
                component has one) and returns the whole new state: a field that it leaves out is
                deleted. It may run more than once for an instance, and in several threads.
            store: default: the process's own.
            name: of this migration. With one, an instance is migrated once, however often and in
                however many processes it is run: one that was cut off is simply run again.
                Without, every run migrates every instance.

        Raises:
            TypeError: this is no component, no plain function, or no name.
            ValueError: the function does not take exactly one parameter.
        """
        if not isinstance(component, Component):
            raise TypeError(f"StateMigrator: {component!r:.80} is not a Component")
        if not callable(migrate_func) or inspect.iscoroutinefunction(migrate_func):
            raise TypeError(f"StateMigrator: {migrate_func!r:.80} is not a plain function")
        parameters = inspect.signature(migrate_func).parameters
        if len(parameters) != 1:
            raise ValueError(
                "StateMigrator: migrate_func takes one parameter, the state, not"
                f" ({', '.join(parameters)})"
            )
        if name is not None and (
            not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS_MAX
        ):
            raise TypeError(
                f"StateMigrator: name={name!r:.80} is not a text of 1 to {_NAME_CHARACTERS_MAX}"
                " characters"
            )
        self.component = component
        self.name = name
        self._function = migrate_func
        self._store = store

    def migrate(
        self, instance_ids: Sequence[str] = (), num_workers: int = 4, dry_run: bool = False
    ) -> list[MigrationResult]:
        """Migrate these instances, or all that there are at the call; return what became of each.

        An instance whose function raises, or whose change does not take effect, is told of in its
        result and keeps no other from being migrated. A change takes effect only on the very
        state that it was made of: where somebody writes meanwhile, the function runs again on the
        newer state.

        Updates that run meanwhile are run again where they overwrite what was migrated, but one
        that only appends to a field which is moved away brings it back: stop the daemons for such
        a migration.

        Args:
            instance_ids: ids, or names such as `Component__id`; default: all instances.
            num_workers: threads.
            dry_run: find out what would change, and write nothing.

        Raises:
            TypeError, ValueError: the arguments are none of that; nothing was written.
            As for `App.get`, where the instances cannot be listed.
        """
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
            raise ValueError(f"migrate: num_workers={num_workers!r}; give 1 or more")
        given = [self._id(name) for name in _texts(instance_ids)]
        with opened(self._store) as store:
            app = self.component.name
            ids = list(dict.fromkeys(given)) or get_instances(app, store)
            if app not in store.apps():  # and a Processing would create it
                return [MigrationResult(one, InstanceNotFound(app, one)) for one in ids]
            processing = processing_of(store, app)
            processing.catch_up()
            run = _Run(self.component, self._function, processing, self.name, dry_run)
            return _in_threads(run.result, ids, num_workers, app)

    def _id(self, name: str) -> str:
        return name.removeprefix(f"{self.component.name}__")


def _texts(instance_ids: Sequence[str]) -> list[str]:
    if isinstance(instance_ids, str) or not all(isinstance(name, str) for name in instance_ids):
        raise TypeError(f"migrate: instance_ids={instance_ids!r:.80}; give a list of ids")
    for name in instance_ids:
        if not name or name.startswith(SYSTEM_PREFIX):
            raise ValueError(f"migrate: {name!r} is not the id of an instance")
    return list(instance_ids)


class _Run:
    """One run of a migration."""

    def __init__(
        self,
        component: Component,
        function: Callable[[dict[str, Any]], dict[str, Any]],
        processing: Processing,
        name: str | None,
        dry_run: bool,
    ) -> None:
        self._component = component
        self._function = function
        self._processing = processing
        self._name = name
        self._dry_run = dry_run
        # The diff is the only event of a numbered source, so the fold lets one of them count, and
        # remembers it for ever. A conflict leaves the number free, as a retry needs it.
        self._source = Source(f"migrate/{name or secrets.token_urlsafe(12)}", (0, 0))

    def result(self, instance: str) -> MigrationResult:
        """Migrate one instance, and return what became of it."""
        try:
            return self._migrate(instance)
        except Exception as error:
            return MigrationResult(instance, error)

    def _migrate(self, instance: str) -> MigrationResult:
        processing = self._processing
        sent: MigrationResult | None = None
        for _ in range(_ATTEMPTS_MAX):
            if processing.source(instance, self._source.id) is not None:
                # Sent by us, and its acknowledgement was lost; or by an earlier run.
                return sent or MigrationResult(instance, skipped="migrated already")
            state = processing.state(instance)
            if not state.version or is_cleared(processing, instance):
                return MigrationResult(instance, skipped="it has no state")
            diff = self._diff(instance, state)
            result = MigrationResult(instance, None, diff)
            if self._dry_run or (not len(diff) and self._name is None):
                return result
            try:
                entry = processing.send([(instance, self._event(state, diff))])[0].entry()
            except OutcomeUnknown:
                sent = result
                processing.catch_up()
                continue
            if entry.verdict == Verdict.ACCEPTED:
                return result
            if entry.verdict == Verdict.REJECTED:
                raise Rejected(processing.name, instance, entry.reason)
        raise Conflict(
            processing.name,
            instance,
            reason=f"it changed {_ATTEMPTS_MAX} times while the migration looked at it",
            advice="migrate it again when there is less to do",
        )

    def _diff(self, instance: str, state: State) -> Diff:
        """Return what turns the stored state into the migrated one."""
        component = self._component
        assert state.version is not None
        # Values of its own: the function may change what it gets in place.
        given = loaded_of(component, self._processing.state_at(instance, state.version))
        migrated = self._function(given)
        if not isinstance(migrated, dict):
            raise TypeError(
                f"migrate_func returned {migrated!r:.80} ({type(migrated).__name__}) instead of a"
                " dict, the whole new state; nothing was written"
            )
        return diff_between(dict(state), saved_of(component, migrated))

    def _event(self, state: State, diff: Diff) -> Event:
        assert state.version is not None
        return Event(
            Kind.DIFF,
            "migrate" if self._name is None else f"migrate/{self._name}",
            diff.encode(),
            Guard(state.version, ("*",)),
            source=self._source,
            generation=state.generation,
        )


def _in_threads(
    migrate: Callable[[str], MigrationResult], ids: list[str], num_workers: int, component: str
) -> list[MigrationResult]:
    """Return the results in the order of the ids; Ctrl-C leaves out those not begun."""
    threads = ThreadPoolExecutor(num_workers, "migrate")
    try:
        results: list[Future[MigrationResult]] = [threads.submit(migrate, one) for one in ids]
        with _progress(component, len(ids)) as advance:
            for _ in as_completed(results):
                advance()
        return [result.result() for result in results]
    finally:
        threads.shutdown(cancel_futures=True)


@contextmanager
def _progress(component: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar while a person watches."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"migrating {component}", total=total)
        yield lambda: bar.advance(task)
