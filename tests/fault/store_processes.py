"""Starting and ending the processes of store_child.py, and checking what they left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eventstore import App, EventStore, Verdict
from eventstore.history.verify import verify_app
from tests.fault.sqlite_processes import Child
from tests.fault.store_child import instance_of, kind_of

__all__ = ["StoreChild", "check_store", "store_child"]


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


def check_store(store: EventStore, acknowledged: Iterable[str]) -> int:
    """Check an app after processes of `write` were killed; return how many writes took effect.

    Every acknowledged token took effect, none did twice, the state says the same as the history,
    and the view is what the log folds to.
    """
    app = store.app("app")
    verified = verify_app(store, "app")
    assert not verified.differences, verified.differences
    effects: Counter[str] = Counter()
    for instance in app.instances():
        effects += _effects(app, instance)
    twice = [token for token, count in effects.items() if count > 1]
    assert not twice, f"took effect twice: {twice}"
    lost = [token for token in acknowledged if token not in effects]
    assert not lost, f"acknowledged and lost: {lost}"
    return len(effects)


def _effects(app: App, instance: str) -> Counter[str]:
    """Return how often each token took effect in an instance, by its history."""
    effects: Counter[str] = Counter()
    for entry in app.history(instance):
        key = entry.event.idempotency_key
        if key is not None and key != "make" and entry.verdict == Verdict.ACCEPTED:
            assert instance_of(key) == instance
            effects[key] += 1
    of_kind: dict[str, list[str]] = {"append": [], "commit": [], "request": []}
    for token in sorted(effects):
        of_kind[kind_of(token)].append(token)
    state = app.get(instance)
    assert sorted(state["seen"]) == of_kind["append"]
    assert sorted(state["committed"]) == of_kind["commit"]
    assert state["commits"] == len(of_kind["commit"])
    assert state["count"] == len(of_kind["append"]) + len(of_kind["commit"])
    assert sorted(row.request.name for row in app.pending(instance)) == of_kind["request"]
    return effects
