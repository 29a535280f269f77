"""One instance in plain dicts: everything that the fold may ask, and everything that it decided.

The simplest thing that can stand where a view stands: no bytes, no keys, no cache, a whole copy of
the state for each version. Property tests fold into it and compare what logs and views say with
it. `take(event)` asks the fold and writes its answer down; `state()`, `at(version)` and `history`
read it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import orjson

from eventstore.diff import ABSENT, apply_operation
from eventstore.events import EffectKey, Event, Verdict
from eventstore.fold import fold as the_fold
from eventstore.rows import (
    UNKNOWN,
    ChainRow,
    Change,
    FieldRow,
    KeyRow,
    Outcome,
    Pending,
    Rows,
    Touch,
)

__all__ = ["DictRows", "Entry", "Fold"]

#: The type of `eventstore.fold.fold`, so that a test can give another one.
Fold = Callable[[Rows, Event, int], Outcome]


class Entry(NamedTuple):
    """One event of the history, with what the fold made of it."""

    sequence: int
    event: Event
    outcome: Outcome
    time_ms: int


def copy_json(value: Any) -> Any:
    """Return an equal JSON value that shares nothing."""
    return orjson.loads(orjson.dumps(value)) if isinstance(value, list | dict) else value


class DictRows:
    """The rows of one instance, as the protocol `Rows` wants them, and their history."""

    def __init__(self, fold: Fold = the_fold, *, generation: int = 0) -> None:
        self._fold = fold
        self.sequence = 0
        self.version = 0
        self.floor = 0
        self.star = Touch(0, None, 0)
        self.fork_parts = 0
        self.generation = generation
        #: Every event that has a place in the instance, in order; an entry's index is its sequence.
        self.history: list[Entry] = []
        self.fields: dict[str, FieldRow] = {}
        self.waiting: dict[int, Pending] = {}
        self.keys: dict[str, KeyRow] = {}
        self.chains: dict[str, ChainRow] = {}
        self.sources: dict[str, tuple[int, int]] = {}
        #: (cause, name, key) -> sequence of the effect.
        self.effects: dict[tuple[int, str, EffectKey], int] = {}
        self._values: dict[str, Any] = {}
        self._states: dict[int, dict[str, Any]] = {0: {}}
        self._answered: dict[int, int] = {}
        self._chained: dict[tuple[str, int], int] = {}
        self._sourced: dict[tuple[str, tuple[int, int]], int] = {}
        self._changed: dict[int, int] = {}

    # --- reading ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the fields' JSON values now; treat them as read-only."""
        return self._states[self.version]

    def at(self, version: int) -> dict[str, Any]:
        """Return the fields' JSON values as of a version; KeyError where there was none."""
        return self._states[version]

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts of the history, in order."""
        return [entry.outcome.verdict for entry in self.history]

    # --- folding ----------------------------------------------------------------------------------

    def take(self, event: Event, time_ms: int = 0) -> Outcome:
        """Fold one event, write down what came of it, and return that."""
        outcome = self._fold(self, event, time_ms)
        self.apply(event, outcome, time_ms)
        return outcome

    def apply(self, event: Event, outcome: Outcome, time_ms: int = 0) -> None:
        """Write down the outcome of the event that comes next."""
        if outcome.sequence is None:
            return
        assert outcome.sequence == self.sequence == len(self.history)
        self.history.append(Entry(outcome.sequence, event, outcome, time_ms))
        self.sequence += 1
        self._apply_rows(event, outcome)
        self._apply_requests(event, outcome)
        self._apply_fields(outcome)

    def _apply_rows(self, event: Event, outcome: Outcome) -> None:
        sequence = self.sequence - 1
        if outcome.key is not None:
            assert event.idempotency_key is not None
            self.keys[event.idempotency_key] = outcome.key
        if outcome.chain is not None:
            assert event.guard is not None
            assert event.guard.chain is not None
            self.chains[event.guard.chain] = outcome.chain
            if outcome.verdict == Verdict.ACCEPTED:
                self._chained[event.guard.chain, event.guard.chain_index] = sequence
        if outcome.source is not None:
            assert event.source is not None
            self.sources[event.source.id] = outcome.source
            self._sourced[event.source.id, outcome.source] = sequence
        if outcome.generation is not None:
            self.generation = outcome.generation

    def _apply_requests(self, event: Event, outcome: Outcome) -> None:
        sequence = self.sequence - 1
        if outcome.opened is not None:
            self.waiting[outcome.opened.sequence] = outcome.opened
        if outcome.advanced is not None:
            self.waiting[outcome.advanced.sequence] = outcome.advanced
        for cause in outcome.closed:
            del self.waiting[cause]
            self._answered[cause] = sequence
        if outcome.effect:
            assert event.answer is not None
            assert event.effect is not None
            self.effects[event.answer.cause, event.name, event.effect] = sequence

    def _apply_fields(self, outcome: Outcome) -> None:
        if outcome.floor is not None:
            self.floor = outcome.floor
            self.fields, self._values = {}, {}
            self._states[outcome.floor] = {}
        for name, change in (outcome.fields or {}).items():
            self._apply_change(name, change)
        if outcome.star is not None:
            self.star = outcome.star
        if outcome.fork_parts is not None:
            self.fork_parts = outcome.fork_parts
        if outcome.version != self.version:
            self.version = outcome.version
            self._changed[outcome.version] = self.sequence - 1
            self._states[outcome.version] = dict(self._values)

    def _apply_change(self, name: str, change: Change) -> None:
        """Work the operations out again, so that they and the fold's own value prove each other."""
        value = copy_json(self._values.get(name, ABSENT))
        for operation in change.operations:
            value = apply_operation(value, operation)
        if change.value is not UNKNOWN and change.value is not ABSENT:
            assert value is not ABSENT
            assert orjson.dumps(value) == orjson.dumps(change.value)
        if change.value is ABSENT:
            assert value is ABSENT
        self.fields[name] = FieldRow(change.touch, change.shape)
        if value is ABSENT:
            self._values.pop(name, None)
        else:
            self._values[name] = value

    # --- what the fold asks -----------------------------------------------------------------------

    def field(self, name: str) -> FieldRow | None:
        return self.fields.get(name)

    def value(self, name: str) -> Any:
        return copy_json(self._values[name])

    def key(self, idempotency_key: str) -> KeyRow | None:
        return self.keys.get(idempotency_key)

    def chain(self, chain: str) -> ChainRow | None:
        return self.chains.get(chain)

    def source(self, source: str) -> tuple[int, int] | None:
        return self.sources.get(source)

    def pending(self, sequence: int) -> Pending | None:
        return self.waiting.get(sequence)

    def pendings(self) -> Iterable[int]:
        return tuple(self.waiting)

    def lane_first(self, lane: str) -> int | None:
        for request in self.waiting.values():
            if request.lane == lane and request.due_ms is None:
                return request.sequence
        return None

    def effect(self, cause: int, name: str, call_index: int, digest: str) -> int | None:
        return self.effects.get((cause, name, EffectKey(call_index, digest)))

    def answered(self, cause: int) -> int | None:
        return self._answered.get(cause)

    def chained(self, chain: str, chain_index: int) -> int | None:
        return self._chained.get((chain, chain_index))

    def sourced(self, source: str, number: tuple[int, int]) -> int | None:
        return self._sourced.get((source, number))

    def changed(self, version: int) -> int | None:
        return self._changed.get(version)
