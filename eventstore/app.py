"""App: what people call, in terms of states; channel.py does it in events.

What a caller says becomes events in drafts.py; store.py opens the log and hands out apps.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from eventstore import codec, values
from eventstore.channel import Channel, as_entry
from eventstore.diff import ABSENT, Diff, encode_fields
from eventstore.diff import Path as FieldPath
from eventstore.drafts import Drafts, as_diff, fork_events, origin_of
from eventstore.errors import (
    Closed,
    ConfigError,
    Conflict,
    InstanceNotFound,
    InvalidDiff,
    Rejected,
)
from eventstore.events import (
    Discard,
    Entry,
    Event,
    Guard,
    Kind,
    Position,
    RequestPolicy,
    Times,
    Verdict,
)
from eventstore.follow import Follower
from eventstore.history.at import At, epoch_us, version_at
from eventstore.history.tail import tail_entries
from eventstore.receipts import Receipt
from eventstore.state import State
from eventstore.view.reader import Head, PendingRow, RefusedRow, Snapshot, ViewReader

__all__ = ["App"]


class _Missing:
    def __repr__(self) -> str:
        return "<raise>"


#: "No default was given": absent things raise.
MISSING: Final[Any] = _Missing()


class App:
    """One app of a store: its instances, written through the log and read through the view.

    Writing opens no view. The first read takes a view's database (a "slot": warm from an earlier
    process when one is free), folds what the log has since, and keeps it up from then on.
    """

    def __init__(
        self,
        channel: Channel,
        state_type: Any = None,
        *,
        validate: bool = True,
        others: Callable[[], Callable[[str], App] | None] = lambda: None,
    ) -> None:
        self._channel = channel
        #: The store's `app`, weakly: who keeps apps per store would else keep the store for ever.
        self._others = others
        self._type = state_type
        self._validate = validate and state_type is not None
        self._drafts = Drafts(state_type if self._validate else None, channel.generation)

    @property
    def name(self) -> str:
        """The app's name."""
        return self._channel.name

    def _other(self, name: str) -> App:
        """Return another app of the same store; for Processing."""
        app = self._others()
        if app is None:
            raise Closed(f"app {self.name}: its store is gone")
        return app(name)

    # --- writing --------------------------------------------------------------------------------

    def append(
        self,
        instance: str,
        diff: Diff | Mapping[str, object],
        *,
        name: str = "",
        guard: Guard | State | None = None,
        expected_version: int | None = None,
        idempotency_key: str | None = None,
        occurred_at: datetime.datetime | None = None,
        actor: str | None = None,
        meta: Mapping[str, object] | None = None,
    ) -> Receipt:
        """Append a diff, and return before it is durable; a mapping sets fields.

        A diff without a guard takes effect whenever its operations fit. Never blocks on the disk
        or the network unless the buffer is full. Appends of one thread to one instance keep
        their order.

        Args:
            instance: its name, up to 1,024 bytes; it begins with its first event.
            diff: the operations, or fields to set.
            name: what happened, in your words; shown in the history.
            guard: takes effect only if what `State` observed and the diff overwrites has not
                changed since that state was read (see `commit`), or an explicit Guard.
            expected_version: takes effect only on this version: a guard on all fields.
            idempotency_key: an event with the same key takes effect once, however often it is
                sent; the same key with other content is rejected.
            occurred_at: when it happened, with a time zone, if not now.
            actor: who did it.
            meta: anything else about it, as JSON.

        Raises:
            InvalidDiff, InvalidState, UnsupportedValue, EventTooLarge: nothing was written.
            ConfigError: two kinds of guard, or a name or time that is no such thing.
            LogUnavailable: an earlier write failed that nobody asked about, or the buffer stayed
                full for `append_timeout_s`; nothing was written.
            Closed: the store is closed.
        """
        if (
            guard is None and expected_version is None and idempotency_key is None
            and occurred_at is None and actor is None and meta is None and not self._validate
        ):  # fmt: skip
            body = encode_fields(diff) if type(diff) is dict else as_diff(diff).encode()
            value = codec.encode_plain(Kind.DIFF, name, body)
            return self._channel.send_encoded([(instance, value)])[0]
        event = self._drafts.diff_event(
            diff, name, guard, expected_version, idempotency_key, occurred_at, actor, meta
        )
        return self._channel.send([(instance, event)])[0]

    def append_many(
        self,
        items: Iterable[
            tuple[str, Diff | Mapping[str, object]]
            | tuple[str, Diff | Mapping[str, object], Mapping[str, Any]]
        ],
    ) -> list[Receipt]:
        """Append many diffs in one group commit: `(instance, diff)` or `(instance, diff, options)`.

        `options` are the keyword arguments of `append`. The order per instance is kept. All are
        checked before the first is handed to the log, so a refused one means that none was
        written; the diffs themselves stay independent of one another.

        Raises:
            As for `append`; nothing was written.
        """
        return self._channel.send_encoded([(item[0], self._drafts.encoded(item)) for item in items])

    def request(
        self,
        instance: str,
        name: str,
        props: Mapping[str, object] | None = None,
        *,
        lane: str = "",
        discard: Discard | None = None,
        not_before: datetime.datetime | None = None,
        retry_of: int | None = None,
        idempotency_key: str | None = None,
        occurred_at: datetime.datetime | None = None,
        actor: str | None = None,
        meta: Mapping[str, object] | None = None,
    ) -> Receipt:
        """Append a request: an update that waits until a processor runs it.

        Args:
            instance: whose state the update is about.
            name: the update.
            props: its arguments.
            lane: requests of one lane and instance run one at a time, in log order.
            discard: when it is not worth running any more.
            not_before: run it at this time at the earliest; it then stands outside the order.
            retry_of: the sequence of the failed request that this one repeats.
            idempotency_key: as for `append`.
            occurred_at: as for `append`.
            actor: as for `append`.
            meta: as for `append`.

        Raises:
            As for `append`; nothing was written.
        """
        if not name:
            raise ConfigError("request: give the name of the update that shall run")
        policy, after, running = discard or Discard(0, 0)
        due_ms = None if not_before is None else epoch_us(not_before) // 1_000
        event = Event(
            Kind.REQUEST,
            name,
            values.encode(dict(props or {})),
            request=RequestPolicy(lane, policy, after, running, due_ms, 0, retry_of),
            idempotency_key=idempotency_key,
            times=None if occurred_at is None else Times(epoch_us(occurred_at)),
            origin=origin_of(actor, meta),
        )
        return self._channel.send([(instance, event)])[0]

    def commit(
        self,
        instance: str,
        state: State,
        *,
        isolation: Literal["serializable", "snapshot"] = "serializable",
        name: str = "",
        idempotency_key: str | None = None,
        occurred_at: datetime.datetime | None = None,
        actor: str | None = None,
        meta: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> State:
        """Write the changes made to `state`, if nothing that they depend on changed since.

        Guarded are the fields that were read from the state and those that its changes
        overwrite; appends and increments of fields that nobody read commute, and need no guard.
        So two writers of one instance never lose an update. A commit takes effect at most once,
        also when an acknowledgement is lost and it is sent again.

        A state made by hand is written whole, onto an instance that does not exist yet.

        Args:
            instance: the one that the state is of.
            state: what `get` returned, with changes.
            isolation: "snapshot" guards only what is overwritten.
            name: as for `append`.
            idempotency_key: as for `append`.
            occurred_at: as for `append`.
            actor: as for `append`.
            meta: as for `append`.
            timeout_s: how long to wait for the verdict; default `read_timeout_s`.

        Returns:
            The state right after this commit; unchanged, the newest one.

        Raises:
            Conflict: somebody came first; it names the field, its version and the winner.
            Rejected: an operation does not fit the state as it is now.
            InvalidDiff: the state is one of another instance, or no State; nothing was written.
            LogUnavailable, OutcomeUnknown, ReadTimeout: see errors.py for what was written.
        """
        if not isinstance(state, State):
            raise InvalidDiff(
                f"commit takes a State, with changes, that `get` returned, not {state!r:.80}: for"
                " fields and diffs there is append; nothing was written"
            )
        diff, base, generation = state.diff, state.version, state.generation
        if state.version is None:
            diff = Diff.from_json([["set", field, kept] for field, kept in state.to_json().items()])
            fields: frozenset[str] = frozenset("*")
            base, generation = 0, self._channel.generation()
        else:
            if (state.app, state.instance) != (self.name, instance):
                raise InvalidDiff(
                    f"the state is of {state.app}/{state.instance}, not of {self.name}/{instance};"
                    " nothing was written"
                )
            fields = diff.overwritten()
            if isolation == "serializable":
                fields |= state.observed
        if not len(diff):
            return self.get(instance)  # type: ignore[no-any-return]  # without a path: a State
        if self._validate:
            diff = self._type.check_diff(diff)
        assert base is not None
        event = Event(
            Kind.DIFF,
            name,
            diff.encode(),
            # A chain of one: sent again, it is a duplicate of itself.
            Guard(base, tuple(sorted(fields)), secrets.token_urlsafe(12), 0),
            idempotency_key=idempotency_key,
            times=None if occurred_at is None else Times(epoch_us(occurred_at)),
            origin=origin_of(actor, meta),
            generation=generation,
        )
        entry = self._channel.sure(instance, event, timeout_s)
        return self._committed(instance, entry, base)

    def _committed(self, instance: str, entry: Entry, base: int) -> State:
        if entry.verdict == Verdict.CONFLICT:
            raise Conflict(
                self.name,
                instance,
                reason=entry.reason,
                field=entry.field,
                base=base,
                version=entry.version,
                winner=entry.winner,
            )
        if entry.verdict != Verdict.ACCEPTED:
            raise Rejected(self.name, instance, entry.reason)
        return self._state(instance, entry.version)

    # --- reading --------------------------------------------------------------------------------

    def get(
        self,
        instance: str,
        path: FieldPath | None = None,
        *,
        at: At | None = None,
        after: Receipt | Position | str | None = None,
        fresh: bool = False,
        default: Any = MISSING,
        timeout_s: float | None = None,
    ) -> Any:
        """Return an instance's state, or the value at a path in it.

        The answer includes every write made through this store's app before the call (it waits
        for their acknowledgement and folds them), and what else the view has by then.

        Args:
            instance: its name.
            path: a field, or a tuple `(field, key or index, ...)`; without one, the State.
            at: a version, "HEAD", "HEAD~2", an aware datetime or its ISO text, `occurred(time)`,
                or a position: the state as it was there. Version 0 is empty.
            after: a receipt, a position or its token, of whatever process: wait for it first.
            fresh: include everything acknowledged to anyone before the call.
            default: returned instead of InstanceNotFound.
            timeout_s: how long to wait; default `read_timeout_s`.

        Raises:
            InstanceNotFound: no such instance, or nothing at the path, and no default.
            VersionNotFound: the instance never was at `at`.
            ConfigError: a time without a zone, or a position of another log.
            ReadTimeout: the view did not get there in time.
            LogUnavailable, LogTruncated, UnknownSchema, ViewDamaged: see errors.py.
        """
        return self._channel.steadily(
            lambda: self._get(instance, path, at, after, fresh, default, timeout_s)
        )

    def _get(
        self,
        instance: str,
        path: FieldPath | None,
        at: At | None,
        after: Receipt | Position | str | None,
        fresh: bool,
        default: Any,
        timeout_s: float | None,
    ) -> Any:
        follower = self._channel.reading(instance, after, fresh=fresh, timeout_s=timeout_s)
        if follower is not None:
            # Read before the head: what the head then has is at least what this position says.
            offsets = self._channel.offsets(follower, instance) if path is None else {}
            head = follower.reader.head(instance)
            if head is not None and _exists(head):
                version = None if at is None else self._version(follower, instance, head, at)
                snapshot = follower.reader.snapshot(head, version)
                if path is None:
                    return self._as_state(follower, instance, snapshot, offsets)
                value = _value_at(snapshot, path)
                if value is not ABSENT:
                    return value
                if default is MISSING:
                    raise InstanceNotFound(self.name, instance, path)
        if default is MISSING:
            raise self._not_found(instance, follower)
        return default

    def _not_found(self, instance: str, follower: Follower | None) -> InstanceNotFound:
        """Return the error about an instance that is not there, or whose whole app is not."""
        error = InstanceNotFound(self.name, instance)
        if follower is None:  # as in another folder than the one that was written to
            namespace = self._channel.config.namespace
            error.add_note(
                f"{self._channel.log.url} has no app {self.name!r} in namespace {namespace!r}:"
                " nobody has appended to it there"
            )
        return error

    def _version(self, follower: Follower, instance: str, head: Head, at: At) -> int:
        return version_at(
            follower.reader,
            head,
            at,
            app=self.name,
            instance=instance,
            partition=self._channel.partition(follower, instance),
            identity=follower.topic.identity,
        )

    def _as_state(
        self, follower: Follower, instance: str, snapshot: Snapshot, offsets: Mapping[int, int]
    ) -> State:
        partition = next(iter(offsets))
        return State.at(
            snapshot,
            app=self.name,
            instance=instance,
            version=snapshot.version,
            position=Position(follower.topic.identity, offsets),
            generation=follower.generation(partition),
            build=self._type.build if self._validate else None,
        )

    def _state(self, instance: str, version: int) -> State:
        """Return a state that is known to be there."""
        return self._channel.steadily(lambda: self._state_at(instance, version))

    def _state_at(self, instance: str, version: int) -> State:
        follower = self._channel.opened()
        if follower.behind:
            follower.recover(self._channel.config.read_timeout_s)
        offsets = self._channel.offsets(follower, instance)
        head = follower.reader.head(instance)
        assert head is not None  # its event was folded a moment ago
        return self._as_state(follower, instance, follower.reader.snapshot(head, version), offsets)

    def is_ready(self, instance: str) -> bool:
        """Whether `get` of this instance would answer without waiting for log or view."""
        return self._channel.is_ready(instance)

    def exists(self, instance: str) -> bool:
        """Whether the instance has a state, or a request that waits. Creates nothing."""

        def exists() -> bool:
            follower = self._channel.reading(instance)
            head = None if follower is None else follower.reader.head(instance)
            return head is not None and _exists(head)

        return self._channel.steadily(exists)

    def instances(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the instances that begin with `prefix`, in byte order. Lazily.

        Raises:
            As for `get`; by the call itself, not by the first step.
        """
        follower = self._channel.reading(None)
        return iter(()) if follower is None else _existing(follower.reader, prefix)

    def history(
        self,
        instance: str,
        *,
        start: int = 0,
        end: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Entry]:
        """Yield the instance's events with their verdicts, refused ones too. Lazily.

        Args:
            instance: its name.
            start: the first sequence.
            end: the sequence after the last; default: all that the view has at the call.
            reverse: the newest first.

        Raises:
            InstanceNotFound: no event of such an instance was folded; raised by the call itself.
            ConfigError: a sequence below 0.
            As for `get`.
        """
        if start < 0 or (end is not None and end < 0):
            raise ConfigError(f"history from {start} to {end}: the first sequence is 0")
        follower = self._channel.reading(instance)
        head = None if follower is None else follower.reader.head(instance)
        if follower is None or head is None:
            raise self._not_found(instance, follower)
        rows = follower.reader.history(head, start, end, reverse=reverse)
        identity = follower.topic.identity
        return (as_entry(instance, row, identity) for row in rows)

    def pending(self, instance: str | None = None) -> Iterator[PendingRow]:
        """Yield the requests that wait, of one instance or of all, each instance's in log order."""
        follower = self._channel.reading(instance)
        if follower is None:
            return iter(())
        if instance is None:
            return follower.reader.pending()
        head = follower.reader.head(instance)
        return iter(()) if head is None else follower.reader.pending(head)

    def discards(self, instance: str | None = None) -> Iterator[Entry]:
        """Yield the discards, of one instance or of all: requests given up before they ran."""
        return self._outcomes(instance, Kind.DISCARD)

    def failures(self, instance: str | None = None) -> Iterator[Entry]:
        """Yield the failures, of one instance or of all: requests whose update raised."""
        return self._outcomes(instance, Kind.FAILURE)

    def _outcomes(self, instance: str | None, kind: Kind) -> Iterator[Entry]:
        follower = self._channel.reading(instance)
        if follower is None:
            return iter(())
        head = None if instance is None else follower.reader.head(instance)
        if instance is not None and head is None:
            return iter(())
        identity = follower.topic.identity
        rows = follower.reader.outcomes(head, kind)
        return (as_entry(name, row, identity) for name, row in rows)

    def refused(self) -> Iterator[RefusedRow]:
        """Yield the records that took no place: foreign, misplaced, unreadable, quarantined."""
        follower = self._channel.reading(None)
        return iter(()) if follower is None else follower.reader.refused()

    def tail(
        self,
        *,
        start: Literal["now", "beginning"] | Position | str = "now",
        follow: bool = True,
        timeout_s: float | None = None,
    ) -> Iterator[Entry]:
        """Yield the app's events with their verdicts as the log takes them, partition by partition.

        Args:
            start: "now" (the moment of this call), "beginning", or a position or token: what
                comes after it.
            follow: wait for more at the end; else stop there.
            timeout_s: stop after so long without news.

        An app without events has no tail yet: with `follow` it waits for one.

        Raises:
            ConfigError: `start` is none of these, or a position of another log.
            As for `get`; what can be seen at once by the call itself, not by the first step.
        """
        return tail_entries(self._channel, start, follow=follow, timeout_s=timeout_s)

    # --- whole instances --------------------------------------------------------------------------

    def fork(
        self,
        instance: str,
        *,
        to: str,
        at: At | None = None,
        actor: str | None = None,
        timeout_s: float | None = None,
    ) -> State:
        """Begin the instance `to` with the state of another, now or in the past.

        The new instance starts at version 1 and remembers where it came from (the first entry of
        its history); requests, keys and chains stay behind.

        Raises:
            Conflict: `to` exists already; nothing changed.
            InstanceNotFound, VersionNotFound: there is no such state to begin with.
            As for `append`, where the state is too large for one event: a fork that was cut off
            between its parts has no effect, and can be made again under another name.
        """
        source: State = self.get(instance, at=at)
        entry: Entry | None = None
        for event in fork_events(source, self._channel.config.event_bytes_max, actor):
            entry = self._channel.sure(to, event, timeout_s)
            if entry.verdict != Verdict.ACCEPTED:
                break
        assert entry is not None  # even an empty state makes one body
        try:
            return self._committed(to, entry, 0)
        except Conflict as conflict:
            conflict.advice = "fork to a name that is free"
            raise

    def reset(
        self, instance: str, *, actor: str | None = None, timeout_s: float | None = None
    ) -> State:
        """Clear all fields and close all pending requests as discarded, as one new version.

        The history stays, and so do idempotency keys: what took effect before does not again.

        Raises:
            InstanceNotFound: there is nothing to reset.
            As for `append`.
        """
        if not self.exists(instance):
            raise InstanceNotFound(self.name, instance)
        key = f"reset/{secrets.token_urlsafe(12)}"
        event = Event(Kind.RESET, idempotency_key=key, origin=origin_of(actor, None))
        return self._committed(instance, self._channel.sure(instance, event, timeout_s), 0)

    # --- an operator's calls ----------------------------------------------------------------------

    def quarantine(self, partition: int, offset: int, *, reason: str) -> None:
        """Take the record at one position out for good: every fold skips it from now on.

        For an event of an unknown schema at which a partition waits. It is recorded in the app's
        metadata, where every reader looks, and cannot be taken back.

        Raises:
            ConfigError: the app has no such partition, or the record there can be read.
            LogUnavailable: nothing was recorded.
        """
        self._channel.quarantine(partition, offset, reason)

    def repair(self, *, accept_loss: bool) -> None:
        """Go on with what a cut log still has: rebuild the view and open a new generation.

        The old view is set aside, not deleted. What writers prepared against the lost events
        (guards, chains, answers) is refused from then on.

        Raises:
            ConfigError: `accept_loss` is not True, or the app has no events.
            LogUnavailable: the log cannot be written; the view may be rebuilt already.
        """
        if accept_loss is not True:
            raise ConfigError("repair gives up events that were folded: say accept_loss=True")
        self._channel.repair()

    def rebuild_view(self) -> None:
        """Set the view of this process's slot aside and fold the whole log anew.

        Raises:
            LogUnavailable: the log cannot be read; the new view is as far as it got.
        """
        self._channel.rebuild()

    def __repr__(self) -> str:
        typed = f" of {self._type.name}" if self._type is not None else ""
        return f"<App {self.name!r}{typed}>"


def _existing(reader: ViewReader, prefix: str) -> Iterator[str]:
    for name in reader.instances(prefix):
        head = reader.head(name)
        if head is not None and _exists(head):
            yield name


def _exists(head: Head) -> bool:
    return head.version > 0 or head.pending > 0


def _value_at(snapshot: Snapshot, path: FieldPath) -> Any:
    """Return the Python value at a path, or ABSENT."""
    if isinstance(path, str):
        return snapshot.value(path)
    if not isinstance(path, tuple) or not path or not isinstance(path[0], str):
        raise ConfigError(f"path {path!r}: give a field's name, or a tuple (field, step, ...)")
    value = snapshot.value(path[0])
    for step in path[1:]:
        try:
            value = value[step]  # type: ignore[index]  # what it is shows now
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return value
