"""What tests of workers need: tasks for worker_handlers.py, and a parent's side of their calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Set
from typing import Any

import orjson

from eventstore import Diff, State, values
from processors.runner.workers import Done, Task
from tests.contract.logs import DEADLINE_S

HANDLERS = ("tests.fault.worker_handlers", "Handlers")


def state_of(fields: Mapping[str, Any], version: int = 1) -> State:
    """Return a state as one that was read, at a version of the instance `i`."""
    state = State(fields)
    state.app, state.instance, state.version = "Handlers", "i", version
    return state


def task(
    update: str,
    props: Mapping[str, Any] | None = None,
    *,
    fields: Mapping[str, Any] | None = None,
    component: tuple[str, str] = HANDLERS,
    timeout_s: float | None = None,
) -> Task:
    body = values.encode(dict(props or {}))
    return Task(component, f"do/{update}", state_of(fields or {}), body, "request-1", 2, timeout_s)


def fields_of(answer: Done | Diff) -> dict[str, Any]:
    """Return the fields that an answer sets on an instance without any."""
    return dict(State().apply(answer if isinstance(answer, Diff) else answer.diff))


class Parent:
    """The `Calls` of a test: remembers what it was asked, and may act when it is asked."""

    def __init__(
        self,
        *,
        fields: Mapping[str, Any] | None = None,
        on_record: Callable[[Any], None] | None = None,
        on_stale: Callable[[], bool] | None = None,
        refusal: BaseException | None = None,
    ) -> None:
        self.effects: dict[tuple[str, int, str], bytes] = {}
        self.parts: list[Diff] = []
        self.reads: list[tuple[str | None, str | None]] = []
        self.has_recorded = threading.Event()
        self.last_result: Any = None
        self._fields = dict(fields or {})
        self._on_record = on_record
        self._on_stale = on_stale
        self._refusal = refusal

    def is_stale(self) -> bool:
        return self._on_stale() if self._on_stale is not None else False

    def recorded(self, name: str, call_index: int, digest: str) -> bytes | None:
        return self.effects.get((name, call_index, digest))

    def record(self, name: str, call_index: int, digest: str, result: bytes) -> bytes:
        accepted = self.effects.setdefault((name, call_index, digest), result)
        self.last_result = values.decode(accepted)
        if self._on_record is not None:
            self._on_record(self.last_result)
        self.has_recorded.set()
        return accepted

    def checkpoint(self, diff: bytes, observed: Set[str] = frozenset()) -> State:
        if self._refusal is not None:
            raise self._refusal
        self.parts.append(Diff.from_json(orjson.loads(diff)))
        after = State(self._fields).apply(self.parts[-1])
        return state_of(dict(after), version=2)

    def get(self, instance: str | None, app: str | None) -> State:
        self.reads.append((instance, app))
        if self._refusal is not None:
            raise self._refusal
        return state_of(self._fields, version=3)

    def wait(self) -> Any:
        """Wait until an effect is recorded; return its result."""
        assert self.has_recorded.wait(DEADLINE_S)
        return self.last_result
