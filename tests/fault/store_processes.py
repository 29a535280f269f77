"""Starting and ending the processes of store_child.py, and checking what they left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eventstore import App, EventStore, Verdict
from eventstore.history.verify import verify_app
from tests.fault.sqlite_processes import Child
from tests.fault.store_child import instance_of, kind_of

__all__ = ["Findings", "StoreChild", "check_store", "examine_store", "store_child"]


class StoreChild(Child):
    """A process of store_child.py; its lines are what was acknowledged."""

    MODULE = "tests.fault.store_child"

    @property
    def acknowledged(self) -> list[str]:
        """The tokens that it was told are durable."""
        return [line.split()[0] for line in self.lines]


@contextmanager
def store_child(
    command: str, url: Path | str, *arguments: object, fault: str = ""
) -> Iterator[StoreChild]:
    started = StoreChild(command, url, *arguments, fault=fault)
    try:
        yield started
    finally:
        started.close()


class Findings(NamedTuple):
    """What `examine_store` found: writes that took effect, and everything that is wrong."""

    effects: int
    lost: list[str]
    twice: list[str]
    differences: list[str]


def check_store(store: EventStore, acknowledged: Iterable[str]) -> int:
    """Check an app after processes of `write` were killed; return how many writes took effect.

    Every acknowledged token took effect, none did twice, the state says the same as the history,
    and the view is what the log folds to.
    """
    found = examine_store(store, acknowledged)
    assert found == Findings(found.effects, [], [], [])
    return found.effects


def examine_store(store: EventStore, acknowledged: Iterable[str]) -> Findings:
    """As `check_store`, but return what is wrong instead of failing."""
    app = store.app("app")
    differences = list(verify_app(store, "app").differences)
    effects: Counter[str] = Counter()
    for instance in app.instances():
        of_instance = _effects(app, instance)
        differences += _differences(app, instance, of_instance)
        effects += of_instance
    lost = [token for token in acknowledged if token not in effects]
    twice = [token for token, count in effects.items() if count > 1]
    return Findings(len(effects), lost, twice, differences)


def _effects(app: App, instance: str) -> Counter[str]:
    """Return how often each token took effect in an instance, by its history."""
    return Counter(
        entry.event.idempotency_key
        for entry in app.history(instance)
        if entry.verdict == Verdict.ACCEPTED and entry.event.idempotency_key not in (None, "make")
    )


def _differences(app: App, instance: str, effects: Counter[str]) -> Iterator[str]:
    """Yield what the instance's state and requests say otherwise than its history."""
    of_kind: dict[str, list[str]] = {"append": [], "commit": [], "request": []}
    for token in sorted(effects):
        of_kind[kind_of(token)].append(token)
        if instance_of(token) != instance:
            yield f"{token} took effect in {instance}"
    state = app.get(instance)
    counted = len(of_kind["append"]) + len(of_kind["commit"])
    for what, found, wanted in (
        ("appends", sorted(state["seen"]), of_kind["append"]),
        ("commits", sorted(state["committed"]), of_kind["commit"]),
        ("number of commits", state["commits"], len(of_kind["commit"])),
        ("count", state["count"], counted),
        (
            "requests",
            sorted(row.request.name for row in app.pending(instance)),
            of_kind["request"],
        ),
    ):
        if found != wanted:
            yield f"{instance}: its {what} are {found}, by its history {wanted}"
