"""What the fold asks and what it answers: the rows of one instance, and what becomes of them.

A view, a test's plain dicts and a verifier all keep these rows in their own way; the fold
(fold.py) knows them only through the protocol `Rows`. No rule is found here, and no storage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol

from eventstore.events import Event, Verdict

__all__ = [
    "UNKNOWN",
    "ChainRow",
    "Change",
    "FieldRow",
    "Folded",
    "KeyRow",
    "Outcome",
    "Pending",
    "Rows",
    "Touch",
]

#: A value that nobody had to load to fold an event; see Change.
UNKNOWN: Final = object()


class Touch(NamedTuple):
    """When a field (or any field: `*`) last changed.

    `version` is that change; `setter` the chain that made it, if any; `foreign` the version of
    the last change before that chain's own row of changes. A guard of the same chain is measured
    against `foreign`, because nobody came in between its own steps.
    """

    version: int
    setter: str | None
    foreign: int


class FieldRow(NamedTuple):
    """What the view knows of one field, as far as the fold asks. `shape` 0: deleted."""

    touch: Touch
    shape: int


class KeyRow(NamedTuple):
    """An idempotency key that was used: by the event at `sequence`, with this content."""

    sequence: int
    content: bytes


class ChainRow(NamedTuple):
    """The last accepted index of a chain (-1: none), and whether the chain is over."""

    chain_index: int
    ended: bool


class Pending(NamedTuple):
    """A request that waits: its lane, the parts and attempts it has, and whether it is delayed."""

    sequence: int
    name: str
    lane: str
    parts: int
    attempts: int
    due_ms: int | None


class Rows(Protocol):
    """What the fold may ask about one instance, as of just before the event."""

    sequence: int
    version: int
    #: Version of the last reset; fields last changed at or below it are gone.
    floor: int
    star: Touch
    #: Parts of a fork that have arrived while the rest is awaited.
    fork_parts: int
    generation: int

    def field(self, name: str) -> FieldRow | None:
        """The field's row; None when it was never set, or not since the last reset."""

    def value(self, name: str) -> Any:
        """A present field's JSON value, lent: after a refusal the lender must not use it again."""

    def key(self, idempotency_key: str) -> KeyRow | None: ...

    def chain(self, chain: str) -> ChainRow | None: ...

    def source(self, source: str) -> tuple[int, int] | None: ...

    def pending(self, sequence: int) -> Pending | None: ...

    def pendings(self) -> Iterable[int]:
        """The sequences of all pending requests."""

    def lane_first(self, lane: str) -> int | None:
        """The first request of a lane that is pending and not delayed."""

    def effect(self, cause: int, name: str, call_index: int, digest: str) -> int | None:
        """The sequence of a recorded effect."""

    def answered(self, cause: int) -> int | None:
        """The sequence of the event that closed a request, None while it is open or unknown."""

    def chained(self, chain: str, chain_index: int) -> int | None:
        """The sequence of an accepted event of a chain."""

    def sourced(self, source: str, number: tuple[int, int]) -> int | None:
        """The sequence of the accepted event with this source number."""

    def changed(self, version: int) -> int | None:
        """The sequence of the event that made a version."""


class Change(NamedTuple):
    """What becomes of one field.

    `value` is the new JSON value, ABSENT for a deletion, or UNKNOWN where an append to a value
    that nobody loaded did not need it: then `operations` is all there is to keep.
    """

    touch: Touch
    shape: int
    operations: list[list[Any]]
    value: Any


class Outcome(NamedTuple):
    """The fold's answer: the verdict, and everything that changes with it.

    `sequence` is the event's place in its instance (None: it takes no place at all), `version`
    the instance's version after it, `winner` the sequence of the event that it lost to or
    repeats. What is None or empty did not change.
    """

    verdict: Verdict
    sequence: int | None
    version: int
    reason: str = ""
    winner: int | None = None
    fields: dict[str, Change] | None = None
    star: Touch | None = None
    floor: int | None = None
    fork_parts: int | None = None
    key: KeyRow | None = None
    chain: ChainRow | None = None
    source: tuple[int, int] | None = None
    opened: Pending | None = None
    advanced: Pending | None = None
    closed: tuple[int, ...] = ()
    effect: bool = False
    generation: int | None = None


class Folded(NamedTuple):
    """One event that a view has just folded, for those who watch: what it was and what it did.

    `version` is the instance's after it; `closed` are the requests that it closed, `opened` the
    one that it opened; `fields` are the fields that it changed. `time_ms` is its time in its
    instance, `appended_ms` the log's own.
    """

    instance: str
    sequence: int
    version: int
    verdict: Verdict
    event: Event
    partition: int
    offset: int
    time_ms: int
    appended_ms: int
    closed: tuple[int, ...] = ()
    opened: Pending | None = None
    fields: tuple[str, ...] = ()
