"""What a processor needs of an app beyond what its users do: requests, their answers, news.

`Processing` is App's other face, for code that runs updates: it appends raw events, reads what
stands between a request and its answer (parts, effects, what closed it), watches what is folded,
and shares the work with other processes. It decides nothing: the fold does, when the events come
by. Which update runs when, and what a failure means, is the business of the `processors` package.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from eventstore.app import App
from eventstore.channel import Channel, as_entry, instance_key
from eventstore.errors import ConfigError, InstanceNotFound, ReadTimeout
from eventstore.events import Entry, Event, Kind, Position, Verdict
from eventstore.follow import Follower
from eventstore.log.base import Member, NewerRecord, Ownership, Progress
from eventstore.receipts import Receipt
from eventstore.rows import Folded, Pending
from eventstore.state import State
from eventstore.view.reader import Head, PendingRow, ViewReader

__all__ = [
    "Folded", "Member", "NewerRecord", "Ownership", "Pending", "PendingRow", "Processing",
    "instance_fault",
]  # fmt: skip


def instance_fault(instance: object) -> str | None:
    """Return why users may not write to an instance of this name; None where they may."""
    try:
        instance_key(instance, system=False)
    except ConfigError as error:
        return str(error)
    return None


class Closings:
    """Requests of one instance that were closed since this was made, and the failures of them."""

    def __init__(self, instance: str) -> None:
        self.closed: set[int] = set()
        self.failures: dict[int, Folded] = {}
        self._instance = instance

    def note(self, folded: Sequence[Folded]) -> None:
        """Take note of what the view has folded."""
        for one in folded:
            if one.closed and one.instance == self._instance:
                self.closed.update(one.closed)
                if one.event.kind == Kind.FAILURE:
                    self.failures.update(dict.fromkeys(one.closed, one))


class Processing:
    """One app as a processor sees it. Safe to use from any thread.

    Its first use creates the app's topic and opens the view: who processes an app waits for it.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.name = app.name
        self._channel: Channel = app._channel
        self._is_open = False
        self._mutex = threading.Lock()
        #: (instance, cause) -> those who wait for it to be closed.
        self._waiting: dict[tuple[str, int], list[Callable[[], None]]] = {}
        self._unwatch: Callable[[], None] | None = None

    # --- news -----------------------------------------------------------------------------------

    def _follower(self) -> Follower:
        if not self._is_open:
            self._channel.topic_to_write()
            self._is_open = True
        return self._channel.opened()

    def watch(self, callback: Callable[[Sequence[Folded]], None]) -> Callable[[], None]:
        """Call `callback` with all that is folded from now on; return what ends that.

        It is called in whichever thread folds, under the view's lock, batch by batch, each event
        once and in the order of its partition: it must be quick, and must not read.
        """
        return self._follower().watch(callback)

    def catch_up(self, timeout_s: float | None = None) -> None:
        """Return when the view has everything that was acknowledged to anyone before the call.

        Raises:
            As for App.get.
        """
        self._follower()
        self._channel.reading(None, fresh=True, timeout_s=timeout_s)

    def see_own(self, instance: str) -> None:
        """Return when the view has what this process has appended to an instance's partition.

        Raises:
            As for App.get.
        """
        self._channel.reading(instance)

    @property
    def identity(self) -> str:
        """The identity of the log; part of every position."""
        return self._channel.topic_to_write().identity

    @property
    def position(self) -> Position:
        """How far the view is folded."""
        follower = self._follower()
        return Position(
            follower.topic.identity, {p: end - 1 for p, end in follower.offsets_next.items()}
        )

    # --- sharing the work -------------------------------------------------------------------------

    def shards(self) -> int:
        """Return how many shards the app has."""
        return self._channel.log.shards(self._channel.topic_to_write())

    def shard_of(self, instance: str) -> int:
        """Return the shard of an instance."""
        return self._channel.log.shard_of(instance.encode(), self._channel.topic_to_write())

    def own(
        self,
        group: str,
        changed: Callable[[frozenset[int]], None],
        progress: Progress | None = None,
        is_busy: Callable[[int], bool] | None = None,
    ) -> Ownership:
        """Join `group` and hold a fair share of the shards until closed; see `Log.own`."""
        topic = self._channel.topic_to_write()
        return self._channel.log.own(topic, group, changed, progress, is_busy)

    def members(self, group: str) -> Sequence[Member] | None:
        """Return who holds the shards for a group, on all hosts; see `Log.members`."""
        return self._channel.log.members(self._channel.topic_to_write(), group)

    # --- writing ----------------------------------------------------------------------------------

    def send(self, events: Sequence[tuple[str, Event]]) -> list[Receipt]:
        """Append raw events together, system instances included; see `App.append_many`."""
        return self._channel.send(events, system=True)

    @property
    def sees_newer(self) -> bool:
        """Whether the log takes what `send_unless_newer` gives it."""
        return self._channel.log.sees_newer

    def send_unless_newer(
        self, instance: str, events: Sequence[Event], offset_next: int
    ) -> list[Receipt]:
        """Append events in one commit, unless something of the instance came since `offset_next`.

        Nothing is written then, and the receipts say NewerRecord.
        """
        return self._channel.send_unless_newer(instance, events, offset_next)

    def offset_next(self, instance: str) -> int:
        """Return the first offset of an instance's partition that the view has not folded."""
        follower = self._follower()
        return follower.offsets_next[self._channel.partition(follower, instance)]

    def generation(self) -> int:
        """Return how often the log was repaired: part of everything that answers."""
        return self._channel.generation()

    # --- reading ----------------------------------------------------------------------------------

    def _head(self, instance: str) -> tuple[ViewReader, Head | None]:
        follower = self._follower()
        if follower.behind:
            follower.recover(self._channel.config.read_timeout_s)
        return follower.reader, follower.reader.head(instance)

    def state(self, instance: str) -> State:
        """Return the newest state that the view has; version 0, without fields, if none is written.

        Unlike `App.get` it waits for nothing.

        Raises:
            InstanceNotFound: no event of this instance was folded at all.
        """
        return self._channel.steadily(lambda: self._state(instance, None))

    def state_in(self, app: str, instance: str) -> State:
        """Return the newest state acknowledged to anyone, of this app or another of the store.

        It waits for it as `App.get` with `fresh` does.

        Raises:
            As for App.get.
        """
        its = self.app if app == self.name else self.app._other(app)
        state: State = its.get(instance, fresh=True)
        return state

    def state_at(self, instance: str, version: int) -> State:
        """Return the state at a version that the instance is known to have had."""
        return self._channel.steadily(lambda: self._state(instance, version))

    def _state(self, instance: str, version: int | None) -> State:
        follower = self._follower()
        if follower.behind:
            follower.recover(self._channel.config.read_timeout_s)
        partition = self._channel.partition(follower, instance)
        offset = follower.offsets_next[partition] - 1
        head = follower.reader.head(instance)
        if head is None:
            raise InstanceNotFound(self.name, instance)
        snapshot = follower.reader.snapshot(head, version)
        return State.at(
            snapshot,
            app=self.name,
            instance=instance,
            version=snapshot.version,
            position=Position(follower.topic.identity, {partition: offset}),
            generation=follower.generation(partition),
        )

    def pending(self, instance: str | None = None) -> Iterator[PendingRow]:
        """Yield the requests that wait, of one instance or of all, as the view has them now."""
        if instance is None:
            return self._follower().reader.pending()
        reader, head = self._head(instance)
        return iter(()) if head is None else reader.pending(head)

    def request(self, instance: str, sequence: int) -> PendingRow | None:
        """Return one request, if it still waits."""

        def read() -> PendingRow | None:
            reader, head = self._head(instance)
            return None if head is None else reader.request(head, sequence)

        return self._channel.steadily(read)

    def entry(self, instance: str, sequence: int) -> Entry | None:
        """Return one event of an instance, once it is folded."""

        def read() -> Entry | None:
            reader, head = self._head(instance)
            row = None if head is None else reader.event(head, sequence)
            return None if row is None else as_entry(instance, row, self.identity)

        return self._channel.steadily(read)

    def newest(
        self, instance: str, *, after: int = -1, count_max: int | None = None
    ) -> Iterator[Entry]:
        """Yield an instance's folded events, the newest first.

        Args:
            instance: of the app.
            after: the sequence of the event before the last one that is of interest.
            count_max: at most so many are looked at; None for all.
        """
        head = self.head(instance)
        newest = -1 if head is None else head.sequence - 1
        oldest = after + 1 if count_max is None else max(after, newest - count_max) + 1
        for sequence in range(newest, oldest - 1, -1):
            entry = self.entry(instance, sequence)
            if entry is not None:
                yield entry

    def attempts(self, instance: str, sequence: int, before: int | None = None) -> list[Entry]:
        """Return the accepted attempt events of a request, those before a sequence if one is given.

        A first run has none, unless somebody else may have begun the request before.
        """

        def read() -> list[Entry]:
            reader, head = self._head(instance)
            if head is None:
                return []
            end = head.sequence if before is None else before
            rows = reader.attempts(head, sequence + 1, end)
            found = (as_entry(instance, row, self.identity) for row in rows)
            return [
                entry
                for entry in found
                if entry.event.answer is not None and entry.event.answer.cause == sequence
            ]

        return self._channel.steadily(read)

    def offset_of(self, instance: str, sequence: int) -> int | None:
        """Return where an event stands in its partition; None where the view cannot say it now.

        Unlike the other questions it never waits for a view that is being opened anew.
        """
        follower = self._follower()
        head = None if follower.behind else follower.reader.head(instance)
        return None if head is None else follower.reader.offset(head, sequence)

    def entry_of(self, folded: Folded) -> Entry:
        """Return an accepted event that was just folded as the history has it."""
        return Entry(
            folded.instance,
            folded.sequence,
            folded.event,
            folded.verdict,
            folded.version,
            Position(self.identity, {folded.partition: folded.offset}),
            folded.time_ms,
        )

    def closed_by(self, instance: str, cause: int) -> Entry | None:
        """Return what closed a request; None while it is open."""

        def read() -> Entry | None:
            reader, head = self._head(instance)
            sequence = None if head is None else reader.answered(head, cause)
            row = None if head is None or sequence is None else reader.event(head, sequence)
            return None if row is None else as_entry(instance, row, self.identity)

        return self._channel.steadily(read)

    def effect(
        self, instance: str, cause: int, name: str, call_index: int, digest: str
    ) -> Entry | None:
        """Return the recorded effect of one call of a request."""

        def read() -> Entry | None:
            reader, head = self._head(instance)
            row = None if head is None else reader.effect(head, cause, name, call_index, digest)
            return None if row is None else as_entry(instance, row, self.identity)

        return self._channel.steadily(read)

    def parts(self, instance: str, cause: int) -> list[Entry]:
        """Return the accepted parts of a request, in order."""

        def read() -> list[Entry]:
            reader, head = self._head(instance)
            request = None if head is None else reader.request(head, cause)
            found: list[Entry] = []
            if head is None or request is None:
                return found
            for row in reader.history(head, cause + 1):
                if len(found) == request.request.parts:
                    break
                answer = row.event.answer
                if (
                    answer is not None
                    and answer.cause == cause
                    and row.event.kind == Kind.DIFF
                    and row.verdict == Verdict.ACCEPTED
                ):
                    found.append(as_entry(instance, row, self.identity))
            return found

        return self._channel.steadily(read)

    def source(self, instance: str, source_id: str) -> tuple[int, int] | None:
        """Return the last number that an instance accepted from a source."""

        def read() -> tuple[int, int] | None:
            reader, head = self._head(instance)
            return None if head is None else reader.source(head, source_id)

        return self._channel.steadily(read)

    def head(self, instance: str) -> Head | None:
        """Return what is known of an instance without reading its fields."""
        return self._channel.steadily(lambda: self._head(instance)[1])

    @contextlib.contextmanager
    def closings(self, instance: str) -> Iterator[Closings]:
        """Take note, until the end of the block, of what closes requests of an instance."""
        closings = Closings(instance)
        unwatch = self.watch(closings.note)
        try:
            yield closings
        finally:
            unwatch()

    # --- waiting for an answer --------------------------------------------------------------------

    def when_closed(
        self, instance: str, cause: int, callback: Callable[[], None]
    ) -> Callable[[], object]:
        """Call `callback` once, when a request is closed; return what gives that up.

        It is called at once where the request is closed already; else in the thread that folds,
        so it must be quick and must not read.
        """
        self._watch_closings()
        place = (instance, cause)
        with self._mutex:
            self._waiting.setdefault(place, []).append(callback)

        def take_back() -> bool:
            """Whether the callback still waited; nobody else calls it from now on."""
            with self._mutex:
                callbacks = self._waiting.get(place, [])
                if callback not in callbacks:
                    return False
                callbacks.remove(callback)
                if not callbacks:
                    del self._waiting[place]
                return True

        # What is seen to be closed here may be told by whoever folds at this very moment.
        if self.closed_by(instance, cause) is not None and take_back():
            callback()
        return take_back

    def _watch_closings(self) -> None:
        if self._unwatch is not None:
            return
        # Not under our lock: whoever folds has the view's, and may be waiting for ours.
        unwatch = self.watch(self._closings)
        with self._mutex:
            if self._unwatch is None:
                self._unwatch = unwatch
                return
        unwatch()  # another thread was here, too

    def _closings(self, folded: Sequence[Folded]) -> None:
        if not self._waiting:
            return
        for one in folded:
            for cause in one.closed:
                with self._mutex:
                    callbacks = self._waiting.pop((one.instance, cause), [])
                for callback in callbacks:
                    callback()

    def wait_closed(self, instance: str, cause: int, timeout_s: float | None = None) -> Entry:
        """Return what closed a request, once something has.

        Raises:
            ReadTimeout: it is still open after `timeout_s` (None waits for ever).
        """
        closed = threading.Event()
        give_up = self.when_closed(instance, cause, closed.set)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            if not closed.wait(timeout_s):
                raise ReadTimeout(
                    f"request {cause} of {self.name}/{instance} is still open after {timeout_s} s:"
                    " it stays pending; see `processors status` for who should run it"
                )
        finally:
            give_up()
        while (entry := self.closed_by(instance, cause)) is None:
            # The view is being opened anew; it has it again in a moment.
            if deadline is not None and time.monotonic() > deadline:
                raise ReadTimeout(f"the view of {self.name} is being rebuilt; read again later")
            self.catch_up()
        return entry

    def close(self) -> None:
        """Stop watching. The app is the store's to close."""
        with self._mutex:
            unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            # Not under our lock: whoever folds has the view's, and may be waiting for ours.
            unwatch()
