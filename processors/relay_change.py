"""What a trigger sees of a change, and which events are changes that it watches. No I/O, no log.

Which events fire is decided here, in one place:

- accepted diffs, by the fields that their operations touch (setting an equal value touches);
- forks, as changes of the fields that they begin with (of any field, where they come in parts);
- resets, as a change of every field;
- and nothing else: requests and notes never fire. Refused events and the instances that are ours
  do not come here: a feed leaves them out before anything is asked of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from eventstore import Entry, Kind, State, Verdict, values
from eventstore.events import SYSTEM_PREFIX
from eventstore.processing import Folded
from processors.component import Component, Update

__all__ = [
    "Change",
    "as_change",
    "is_system",
    "own_names",
    "props_of",
    "touched_fields",
    "watched_fields",
]

#: Stands for every field, in what is watched and in what is touched.
ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Change:
    """One accepted change of a watched instance, as `key=` of a trigger is given it.

    `fields` are the watched fields that it touched; `name` and `actor` are the writer's words.
    """

    app: str
    instance: str
    sequence: int
    version: int
    name: str
    fields: tuple[str, ...]
    actor: str | None
    time: datetime.datetime
    _read: Callable[[], State] = field(repr=False, compare=False)

    @property
    def state(self) -> State:
        """The state of the watched instance as this change left it; read when it is asked for."""
        return self._read()


def is_system(folded: Folded) -> bool:
    """Whether an event is about an instance of the system: a cursor, a note."""
    return folded.instance.startswith(SYSTEM_PREFIX)


def touched_fields(entry: Entry) -> tuple[str, ...]:
    """Return the fields that the operations of an accepted diff or fork name."""
    if entry.verdict != Verdict.ACCEPTED or entry.event.kind not in (Kind.DIFF, Kind.FORK):
        return ()
    operations: list[list[Any]] = orjson.loads(entry.event.body)
    targets = (operation[1] for operation in operations)
    return tuple(
        dict.fromkeys(target if isinstance(target, str) else target[0] for target in targets)
    )


def as_change(folded: Folded) -> Folded:
    """Return an accepted event with the fields that it changed as far as triggers care, or none.

    Before its last part nobody can see a fork, and with it all of its fields come at once.
    """
    kind, fork = folded.event.kind, folded.event.fork
    if kind == Kind.RESET:
        return folded._replace(fields=(ANY,))
    if kind == Kind.FORK and fork is not None and fork.parts > 1:
        return folded._replace(fields=(ANY,) if fork.part + 1 == fork.parts else ())
    return folded


def watched_fields(change: Folded, watched: Collection[str]) -> tuple[str, ...]:
    """Return which of the watched fields were changed; none where it is no change of them."""
    touched = change.fields
    if not touched or ANY in watched:
        return touched
    if ANY in touched:
        return tuple(watched)
    return tuple(name for name in touched if name in watched)


def own_names(component: Component, update: Update) -> frozenset[str]:
    """Return the names of the requests that an update's function answers, whoever made them."""
    same = [one for one in component.updates.values() if one.function is update.function]
    return frozenset(name for one in same for name in (one.name, one.function_name))


def props_of(change: Change) -> bytes:
    """Return the body of the request that a change makes."""
    return values.encode(
        {
            "app": change.app,
            "instance": change.instance,
            "sequence": change.sequence,
            "version": change.version,
            "name": change.name,
            "fields": list(change.fields),
        }
    )
