"""A channel: one app's log and view, joined. What App says in terms of states, it does in events.

Writing needs the log only. The first read opens the view, folds what the log has since, and keeps
it up from then on (follow.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import orjson

from eventstore import codec
from eventstore.config import Config
from eventstore.errors import (
    Closed,
    ConfigError,
    CorruptEvent,
    EventTooLarge,
    LogTruncated,
    LogUnavailable,
    OutcomeUnknown,
    ReadTimeout,
    UnknownSchema,
    ViewDamaged,
)
from eventstore.events import SYSTEM_PREFIX, Entry, Event, Kind, Position, Verdict
from eventstore.fold import GENERATION_NOTE
from eventstore.follow import Follower, FollowProgress, quarantined, repairs_of
from eventstore.lifetime import abandon_in_child
from eventstore.log.base import Append, Log, NewerRecord, Topic
from eventstore.receipts import Receipt
from eventstore.testing import fault_point
from eventstore.view.opening import OpenView, open_in_memory, open_on_disk
from eventstore.view.reader import HistoryRow
from eventstore.view.writer import INSTANCE_BYTES_MAX

__all__ = ["Channel", "as_entry"]

_T = TypeVar("_T")


class Channel:
    """See the module's text. Every method may be called from any thread."""

    def __init__(
        self,
        name: str,
        log: Log,
        config: Config,
        progress: Callable[[FollowProgress], None] | None,
    ) -> None:
        self.name = name
        self.log = log
        self.config = config
        self._event_bytes_max = config.event_bytes_max
        self._progress = progress
        self._topic_name = f"{config.namespace}.{name}"
        self._topic: Topic | None = None
        self._follower: Follower | None = None
        self._recent = codec.RecentEvents()
        self._opening = threading.Lock()
        #: Held while records are handed to the log, so that `_newest` is the last handed over.
        self._appending = threading.Lock()
        #: partition -> the newest receipt that a read may have to wait for.
        self._newest: dict[int, Receipt] = {}
        self._failed: list[Receipt] = []
        #: The log's stamp as of the newest refresh, and how long it is good for at most.
        self._fresh_stamp: int | None = None
        self._fresh_until_s = 0.0
        self._closed = False
        self._repairs: int | None = None
        abandon_in_child(self)

    # --- writing --------------------------------------------------------------------------------

    def send(self, events: Sequence[tuple[str, Event]], *, system: bool = False) -> list[Receipt]:
        """Hand events to the log, together; either all are handed over or none.

        `system` allows instances whose names are ours.

        Raises:
            UnsupportedValue: a part of an event cannot be encoded.
            As for `send_encoded`.
        """
        encode = self._encoder()
        encoded = [(name, encode(event)) for name, event in events]
        return self.send_encoded(encoded, system=system)

    def send_encoded(
        self, values: Sequence[tuple[str, bytes]], *, system: bool = False
    ) -> list[Receipt]:
        """Hand encoded events to the log, together; either all are handed over or none.

        Raises:
            ConfigError: an instance's name cannot be one.
            EventTooLarge: an event is above `event_bytes_max`.
            LogUnavailable: the buffer stayed full, or an earlier write failed unasked.
            Closed: the store is closed.
        """
        if self._failed or self._closed:
            self.check()
        topic = self._topic or self.topic_to_write()
        fault_point("event.encode.after")
        return self._hand_over(topic, [self._append_of(topic, *value, system) for value in values])

    def send_unless_newer(
        self, instance: str, events: Sequence[Event], offset_next: int
    ) -> list[Receipt]:
        """Hand events of one instance to the log, which takes none if that has newer ones.

        Newer are those from `offset_next` on; the receipts then say NewerRecord. It is for logs
        whose `sees_newer` is set, and for who waits for one of the receipts: all have the same
        outcome, and no later call raises it.

        Raises:
            As for `send`.
        """
        if self._failed or self._closed:
            self.check()
        topic = self._topic or self.topic_to_write()
        encode = self._encoder()
        appends = [
            self._append_of(topic, instance, encode(event), False, asked=True) for event in events
        ]
        fault_point("event.encode.after")
        return self._hand_over(topic, appends, offset_next)

    def _encoder(self) -> Callable[[Event], bytes]:
        """Return what encodes an event, with a view to whether it is folded here."""
        return codec.encode_event if self._follower is None else self._recent.encode

    def _append_of(
        self, topic: Topic, instance: str, value: bytes, system: bool, *, asked: bool = False
    ) -> Append:
        if len(value) > self._event_bytes_max:
            raise EventTooLarge(len(value), self._event_bytes_max)
        key = instance_key(instance, system)
        receipt = Receipt(self, instance, asked=asked)
        return Append(self.log.partition_of(key, topic), key, value, receipt)

    def _hand_over(
        self, topic: Topic, appends: list[Append], offset_next: int | None = None
    ) -> list[Receipt]:
        newest = self._newest
        receipts = []
        with self._appending:
            if offset_next is None:
                self.log.append(topic, appends)
            else:
                self.log.append_unless_newer(topic, appends, offset_next)
            for partition, _, _, receipt in appends:
                newest[partition] = receipt  # type: ignore[assignment]  # made by _append_of
                receipts.append(receipt)
        return receipts  # type: ignore[return-value]

    def sure(self, instance: str, event: Event, timeout_s: float | None) -> Entry:
        """Append an event that counts once, again if its outcome is unknown; return its entry.

        Of a duplicate, the original's.
        """
        timeout_s = self.config.read_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            receipt = self.send([(instance, event)])[0]
            try:
                entry = receipt.entry(max(0.001, deadline - time.monotonic()))
            except OutcomeUnknown:
                if time.monotonic() >= deadline:
                    raise
                continue
            return self.original(receipt, entry)

    def topic_to_write(self) -> Topic:
        """Return the app's topic, made if there is none."""
        if self._topic is None:
            self._topic = self.log.topic(self._topic_name, create=True)
            assert self._topic is not None  # create=True
        return self._topic

    def unasked(self, receipt: Receipt) -> None:
        """Remember a failed write whose receipt nobody has asked yet."""
        # That something newer came is no failure: its writer said what is to happen then, nothing.
        if not isinstance(receipt.error, NewerRecord):
            self._failed.append(receipt)

    def check(self) -> None:
        """Raise what keeps a call from being made: Closed, or an earlier write that failed."""
        self.raise_unasked()
        if self._closed:
            raise Closed(
                f"app {self.name}: the store is closed, or this is a child of os.fork(): open"
                " another one here. Nothing was written"
            )

    def raise_unasked(self) -> None:
        """Raise the error of an earlier write that nobody has asked about; once."""
        if self._failed:
            # Taken in one step: another thread may be here, too, and another write fail.
            found, self._failed = self._failed, []
            failed = [receipt for receipt in found if not receipt.asked]
            if failed:
                error = failed[0].error
                assert error is not None
                more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
                error.add_note(f"of an earlier write to {self.name}/{failed[0].instance}{more}")
                raise error

    # --- reading --------------------------------------------------------------------------------

    def reading(
        self,
        instance: str | None,
        after: Receipt | Position | str | None = None,
        *,
        fresh: bool = False,
        timeout_s: float | None = None,
    ) -> Follower | None:
        """Return the view once it includes what the reader must see; None without any event.

        That is every write handed over here before the call (to the instance's partition, or to
        all), `after`, and with `fresh` everything acknowledged to anyone.

        Raises:
            ConfigError: `after` is a position of another log.
            As for Follower.wait_for.
        """
        if self._failed or self._closed:
            self.check()
        follower = self._follower or self._open()
        if follower is None:
            if after is not None:
                raise ConfigError(f"app {self.name} has no events, so {after} cannot be of it")
            return None
        if follower.is_stopped:
            follower.check(None if instance is None else self.partition(follower, instance))
        if self._newest or after is not None or fresh or follower.behind:
            timeout_s = self.config.read_timeout_s if timeout_s is None else timeout_s
            deadline = time.monotonic() + timeout_s
            if follower.behind:
                follower.recover(deadline - time.monotonic())
            if self._newest:
                self._wait_for_own(follower, instance, deadline)
            if after is not None:
                offsets = self._offsets_of(follower, after, deadline)
                follower.wait_for(offsets, deadline - time.monotonic())
            if fresh:
                self._refresh(follower, instance, deadline)
        return follower

    def _refresh(self, follower: Follower, instance: str | None, deadline: float) -> None:
        """Fold everything acknowledged to anyone; next to nothing where there was no commit."""
        stamp = self.log.stamp(follower.topic)
        is_known = stamp is not None and stamp == self._fresh_stamp
        if is_known and time.monotonic() < self._fresh_until_s and not follower.is_stopped:
            return
        partition = None if instance is None else self.partition(follower, instance)
        follower.catch_up(deadline - time.monotonic(), partition)
        if follower.topic.partitions == 1:
            # A process that could not raise the stamp is not believed for ever.
            self._fresh_until_s = time.monotonic() + self.config.poll_interval_ms / 1_000
            self._fresh_stamp = stamp

    def is_ready(self, instance: str) -> bool:
        """Whether a read of this instance has nothing to wait for."""
        follower = self._follower
        if follower is None or follower.behind:
            return False
        return self._newest.get(self.partition(follower, instance)) is None

    def _wait_for_own(self, follower: Follower, instance: str | None, deadline: float) -> None:
        newest = self._newest
        if instance is not None and follower.topic.partitions > 1:
            partition = self.partition(follower, instance)
            receipt = newest.get(partition)
            newest = {} if receipt is None else {partition: receipt}
        for partition, receipt in list(newest.items()):
            receipt.settle(deadline - time.monotonic())
            if receipt.offset >= 0:
                follower.wait_for({partition: receipt.offset}, deadline - time.monotonic())
            else:
                # It failed; what was handed over before it may be there, at an unknown offset.
                follower.catch_up(deadline - time.monotonic())
            with self._appending:
                if self._newest.get(partition) is receipt:
                    del self._newest[partition]

    def _offsets_of(
        self, follower: Follower, after: Receipt | Position | str, deadline: float
    ) -> Mapping[int, int]:
        if isinstance(after, Receipt):
            after = after.result(max(0.0, deadline - time.monotonic()))
        position = Position.parse(after) if isinstance(after, str) else after
        if position.identity != follower.topic.identity:
            raise ConfigError(
                f"the position {position} is one of another log; that of {self.name} is"
                f" {follower.topic.identity}"
            )
        unknown = [partition for partition in position if partition not in follower.offsets_next]
        if unknown:
            raise ConfigError(f"the position {position} has partition {unknown[0]}, the log not")
        return position

    def _open(self) -> Follower | None:
        with self._opening:
            if self._follower is not None:
                return self._follower
            topic = self.log.topic(self._topic_name, create=False)
            if topic is None:
                return None
            self._topic = self._topic or topic
            follower = Follower(
                self.log,
                topic,
                self._open_view,
                self._recent.decode,
                hot_bytes_max=self.config.view_cache_bytes,
                report=self._progress,
            )
            try:
                follower.start()
            except BaseException:
                follower.close()
                raise
            self._follower = follower
            return follower

    def _open_view(self, topic: Topic) -> OpenView:
        stamp = f"{topic.identity}+{repairs_of(self.log, topic).number}"
        root = self.config.view_path or self.log.view_root
        if root is None:
            return open_in_memory(stamp)
        return open_on_disk(
            root,
            topic.name,
            stamp,
            cache_bytes=self.config.view_cache_bytes,
            idle_s=self.config.view_slot_idle_s,
        )

    def generation(self) -> int:
        """Return how often the log was repaired, as far as this process knows; see fold.py.

        For guards that no state came with. The metadata are asked once, so that a process which
        only appends opens no view: a repair by another process is known after the next read.
        """
        if self._follower is not None:
            return self._follower.repairs
        if self._repairs is None:
            topic = self._topic or self.log.topic(self._topic_name, create=False)
            self._repairs = 0 if topic is None else repairs_of(self.log, topic).number
        return self._repairs

    def steadily(self, read: Callable[[], _T]) -> _T:
        """Return what `read` returns, asked again when the view was opened anew meanwhile.

        A rebuild closes the database under those who read, and the new one has little at first:
        neither may show, as an error or as an instance that is not there.
        """
        while True:
            openings = self._openings
            try:
                answer = read()
            except (LogTruncated, LogUnavailable, ReadTimeout, UnknownSchema, ViewDamaged):
                raise
            except Exception:
                if self._closed or self._openings == openings:
                    raise
            else:
                if self._openings == openings:
                    return answer

    @property
    def _openings(self) -> int:
        return 0 if self._follower is None else self._follower.openings

    def opened(self) -> Follower:
        """Return the view of an app that is known to have events, or at least its topic."""
        follower = self._follower or self._open()
        assert follower is not None
        return follower

    def partition(self, follower: Follower, instance: str) -> int:
        """Return the partition of an instance."""
        if follower.topic.partitions == 1:
            return 0
        return self.log.partition_of(instance.encode(errors="replace"), follower.topic)

    def offsets(self, follower: Follower, instance: str) -> dict[int, int]:
        """Return how far the instance's partition is folded."""
        partition = self.partition(follower, instance)
        return {partition: follower.offsets_next[partition] - 1}

    # --- what receipts ask ------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """The identity of this app's log; part of every position."""
        assert self._topic is not None  # nobody has a receipt before it is known
        return self._topic.identity

    def entry_at(self, receipt: Receipt, timeout_s: float | None) -> Entry:
        """Return the history's entry of a durable event, once it is folded."""
        timeout_s = self.config.read_timeout_s if timeout_s is None else timeout_s
        return self.steadily(lambda: self._entry_at(receipt, timeout_s))

    def _entry_at(self, receipt: Receipt, timeout_s: float) -> Entry:
        follower = self.opened()
        follower.wait_for({receipt.partition: receipt.offset}, timeout_s)
        if follower.behind:
            follower.recover(timeout_s)
        head = follower.reader.head(receipt.instance)
        assert head is not None
        sequence = follower.reader.sequence_end_at_offset(head, receipt.offset) - 1
        row = follower.reader.event(head, sequence)
        assert row is not None
        assert row.offset == receipt.offset
        return as_entry(receipt.instance, row, follower.topic.identity)

    def original(self, receipt: Receipt, entry: Entry) -> Entry:
        """Return the entry of which a duplicate is a copy; any other entry as it is."""
        winner = entry.winner
        if entry.verdict != Verdict.DUPLICATE or winner is None:
            return entry
        return self.steadily(lambda: self._entry_of(receipt.instance, winner))

    def _entry_of(self, instance: str, sequence: int) -> Entry:
        follower = self.opened()
        if follower.behind:
            follower.recover(self.config.read_timeout_s)
        head = follower.reader.head(instance)
        assert head is not None
        row = follower.reader.event(head, sequence)
        assert row is not None
        return as_entry(instance, row, follower.topic.identity)

    # --- an operator's calls ----------------------------------------------------------------------

    def quarantine(self, partition: int, offset: int, reason: str) -> None:
        """Record that every fold skips one record; see App.quarantine."""
        topic = self.log.topic(self._topic_name, create=False)
        if topic is None or not 0 <= partition < topic.partitions:
            raise ConfigError(f"app {self.name} has no partition {partition}")
        self._refuse_readable(topic, partition, offset)
        taken_out = quarantined(self.log, topic)
        offsets = sorted(taken_out.get(partition, frozenset()) | {offset})
        notes = self.log.metadata(topic).get("quarantine_reasons")
        reasons = dict(notes) if isinstance(notes, dict) else {}
        reasons[f"{partition}:{offset}"] = reason
        merged = {str(p): sorted(o) for p, o in taken_out.items()} | {str(partition): offsets}
        self.log.set_metadata(topic, {"quarantined": merged, "quarantine_reasons": reasons})

    def _refuse_readable(self, topic: Topic, partition: int, offset: int) -> None:
        """Refuse to take out what a fold may have counted already: its versions would change."""
        where = f"offset {offset} of partition {partition} of {self.name}"
        try:
            batch = self.log.read(topic, partition, offset, records_max=1, bytes_max=1)
        except LogTruncated as error:
            raise ConfigError(f"{where}: there is no such record; nothing was changed") from error
        record = next((found for found in batch.records if found.offset == offset), None)
        if record is None:
            raise ConfigError(f"{where}: there is no record; nothing was changed")
        try:
            if record.value is not None and codec.is_ours(record.value):
                codec.decode_event(record.value)
        except UnknownSchema:
            return
        except CorruptEvent:
            pass
        raise ConfigError(
            f"{where}: this record can be read, so nothing waits for it, and taking it out would"
            " change versions that were folded already; nothing was changed"
        )

    def rebuild(self) -> None:
        """Set the view aside and fold the whole log anew; see App.rebuild_view."""
        follower = self._follower or self._open()
        if follower is None:
            raise ConfigError(f"app {self.name} has no events, and so no view")
        follower.rebuild("a rebuild was asked for")

    def repair(self) -> None:
        """Accept what a cut log has lost, and open a new generation; see App.repair."""
        with self._opening:
            if self._follower is not None:
                self._follower.close()
                self._follower = None
            topic = self.log.topic(self._topic_name, create=False)
            if topic is None:
                raise ConfigError(f"app {self.name} has no events, and so nothing to repair")
            firsts = {
                str(partition): self.log.offset_first(topic, partition)
                for partition in range(topic.partitions)
            }
            # Every view of this app, here and elsewhere, is of an earlier repair from now on, and
            # is rebuilt by whoever opens it.
            repairs = repairs_of(self.log, topic)
            self.log.set_metadata(
                topic, {"repairs": {"count": repairs.number + 1, "begin": firsts}}
            )
        follower = self._open()
        assert follower is not None
        # The number of the repair, so that a writer without a view knows its generation too.
        body = {"generation": repairs.number + 1, "begin": firsts}
        for partition in range(topic.partitions):
            note = Event(Kind.NOTE, GENERATION_NOTE, orjson.dumps(body))
            key = self._note_key(topic, partition)
            receipt = Receipt(self, key.decode())
            self._hand_over(topic, [Append(partition, key, codec.encode_event(note), receipt)])
            receipt.entry(self.config.read_timeout_s)

    def _note_key(self, topic: Topic, partition: int) -> bytes:
        """Return the first of our system instances that belongs to a partition."""
        number = 0
        while True:
            key = f"{SYSTEM_PREFIX}log/{number}".encode()
            if self.log.partition_of(key, topic) == partition:
                return key
            number += 1

    def abandon(self) -> None:
        """Refuse everything in a forked child: what its view has would never change again."""
        self._closed = True
        self._failed.clear()

    def close(self) -> None:
        """Let go of the view. The log is the store's to close."""
        self._closed = True
        with self._opening:
            if self._follower is not None:
                self._follower.close()
                self._follower = None


def instance_key(instance: object, system: bool) -> bytes:
    """Return an instance's name as a record key; ConfigError when it cannot be one."""
    if not isinstance(instance, str) or not instance:
        raise ConfigError(f"instance {instance!r}: a name is text, and not empty")
    if instance.startswith(SYSTEM_PREFIX) and not system:
        raise ConfigError(f"instance {instance!r}: names that begin with {SYSTEM_PREFIX} are ours")
    try:
        key = instance.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"instance {instance!r} is not valid Unicode text") from None
    if len(key) > INSTANCE_BYTES_MAX:
        raise ConfigError(
            f"instance {instance[:40]!r}...: {len(key)} bytes; at most {INSTANCE_BYTES_MAX}"
        )
    return key


def as_entry(instance: str, row: HistoryRow, identity: str) -> Entry:
    """Return a row of the history as users see it."""
    return Entry(
        instance,
        row.sequence,
        row.event,
        row.verdict,
        row.version,
        Position(identity, {row.partition: row.offset}),
        row.time_ms,
        row.winner,
        row.field,
        row.reason,
    )
