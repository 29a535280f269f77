"""Drafts: what a caller of App says, checked, as the events that say it.

Nothing is sent from here, and nothing is read but the generation that a guard is made in, and the
state that a fork begins with.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from eventstore import codec, values
from eventstore.diff import Diff, encode_fields
from eventstore.errors import ConfigError, InvalidDiff
from eventstore.events import Event, ForkOf, Guard, Kind, Origin, Times
from eventstore.history.at import epoch_us
from eventstore.history.fork import fork_bodies
from eventstore.state import State
from eventstore.view.reader import Snapshot

__all__ = ["Drafts", "as_diff", "fork_events", "origin_of"]

#: Bytes left in a fork's event for everything around its operations.
_FORK_MARGIN_BYTES: Final = 1_000


class Drafts:
    """Makes the events of one app's diffs, checked where the app has a state type."""

    def __init__(self, state_type: Any, generation: Callable[[], int]) -> None:
        """Check diffs against `state_type`, if it is not None; `generation` is the app's now."""
        self._type = state_type
        self._generation = generation

    def encoded(self, item: tuple[Any, ...]) -> bytes:
        """Return the event of one item of `append_many`, encoded."""
        if len(item) == 2 and type(item[1]) is dict and self._type is None:
            return codec.encode_plain(Kind.DIFF, "", encode_fields(item[1]))
        if len(item) == 2:
            item = (*item, {})
        options = item[2]
        defaults: dict[str, Any] = {
            "name": "", "guard": None, "expected_version": None, "idempotency_key": None,
            "occurred_at": None, "actor": None, "meta": None,
        }  # fmt: skip
        unknown = options.keys() - defaults.keys()
        if unknown:
            raise ConfigError(f"append_many: unknown options {', '.join(sorted(unknown))}")
        return codec.encode_event(self.diff_event(item[1], **{**defaults, **options}))

    def diff_event(
        self,
        diff: Diff | Mapping[str, object],
        name: str,
        guard: Guard | State | None,
        expected_version: int | None,
        idempotency_key: str | None,
        occurred_at: datetime.datetime | None,
        actor: str | None,
        meta: Mapping[str, object] | None,
    ) -> Event:
        """Return the event of a diff; the arguments and errors are those of `App.append`."""
        generation: int | None = None
        if type(diff) is dict and self._type is None and not isinstance(guard, State):
            body = encode_fields(diff)
        else:
            operations = as_diff(diff)
            if self._type is not None:
                operations = self._type.check_diff(operations)
            body = operations.encode()
            if isinstance(guard, State):
                generation = guard.generation
                fields = guard.observed | operations.overwritten()
                guard = Guard(guard.version or 0, tuple(sorted(fields)))
        if expected_version is not None:
            if guard is not None:
                raise ConfigError("append: give guard= or expected_version=, not both")
            guard = Guard(expected_version, ("*",))
        if guard is not None and generation is None:
            generation = self._generation()
        return Event(
            Kind.DIFF,
            name,
            body,
            guard,
            idempotency_key=idempotency_key,
            times=None if occurred_at is None else Times(epoch_us(occurred_at)),
            origin=origin_of(actor, meta),
            generation=generation or 0,
        )


def as_diff(fields: object) -> Diff:
    """Return a diff, or one that sets the fields of a mapping.

    Raises:
        InvalidDiff: it is neither.
    """
    if isinstance(fields, Diff):
        return fields
    if isinstance(fields, State):
        raise InvalidDiff(
            "append takes a diff or fields, not a State: app.commit(instance, state) writes"
            " its changes with the guard that they need"
        )
    if not isinstance(fields, Mapping):
        raise InvalidDiff(f"append: {fields!r} is neither a Diff nor a mapping of fields")
    return Diff(fields)


def fork_events(source: State, bytes_max: int, actor: str | None) -> list[Event]:
    """Return the events that begin another instance with the state that `source` has in the view.

    Raises:
        EventTooLarge: a value cannot be taken apart so far that its parts fit `bytes_max`.
    """
    snapshot, version = source._source, source.version
    assert isinstance(snapshot, Snapshot)
    assert source.app is not None
    assert source.instance is not None
    assert version is not None
    bodies = list(fork_bodies(snapshot.json_items(), bytes_max - _FORK_MARGIN_BYTES))
    fork_id = secrets.token_urlsafe(12)
    return [
        Event(
            Kind.FORK,
            body=body,
            # One chain: the parts of two forks to one name cannot be mixed.
            guard=Guard(0, (), fork_id, part),
            generation=source.generation,
            fork=ForkOf(source.app, source.instance, version, part, len(bodies)),
            origin=origin_of(actor, None),
        )
        for part, body in enumerate(bodies)
    ]


def origin_of(actor: str | None, meta: Mapping[str, object] | None) -> Origin | None:
    """Return who and what an event comes from, where anything is said of it."""
    if actor is None and meta is None:
        return None
    return Origin(actor, None, None if meta is None else values.encode(dict(meta)))
