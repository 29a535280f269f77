"""Following: keeps one app's view up with its log. With channel.py, where log and view meet.

A daemon thread folds what arrives. A reader that waits for a position does not wait for that
thread: it folds in its own, so that reading one's own write costs no thread switch. One lock sees
to it that one thread folds at a time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from eventstore.codec import decode_event
from eventstore.errors import (
    Closed,
    EventStoreError,
    LogTruncated,
    LogUnavailable,
    ReadTimeout,
    UnknownSchema,
    ViewDamaged,
)
from eventstore.events import Event
from eventstore.interrupts import HeldBack
from eventstore.log.base import Log, Topic
from eventstore.rows import Folded
from eventstore.view.base import TableUnavailable
from eventstore.view.opening import OpenView
from eventstore.view.packing import record_digest
from eventstore.view.reader import ViewReader
from eventstore.view.writer import ViewWriter

__all__ = ["FollowProgress", "Follower", "Repairs", "quarantined", "repairs_of"]

logger: Final = logging.getLogger("eventstore.view")

#: Records folded per batch: a crash repeats at most so many, and one that reads while others
#: catch up waits for at most so many.
_BATCH_RECORDS_MAX: Final = 4_000
_BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
#: How long the thread waits for news before it looks after everything else again.
_WAIT_S: Final = 1.0
#: A copy of the view is published for new slots after so many records.
_PUBLISH_RECORDS: Final = 100_000
#: How often a long catch-up is reported.
_REPORT_INTERVAL_S: Final = 0.5
#: How often `close` wakes a thread that may be about to wait.
_WAKE_INTERVAL_S: Final = 0.01
#: A reader that folds in its own thread is left to it while it does so once in this time, but for
#: no longer than that: two threads that fold by turns wait for each other, and each commit would
#: wake the one that is not needed.
_ATTENDED_S: Final = 0.000_5
_ATTENDED_S_MAX: Final = 0.002
#: How often a reader that waits for a position looks at its deadline, and whether all is closed.
_READER_WAIT_S: Final = 0.25
_NOTHING: Final = contextlib.nullcontext()


class FollowProgress(NamedTuple):
    """How far a catch-up is: records folded of those that were there when it began."""

    app: str
    records: int
    records_total: int
    done: bool = False


class Follower:
    """One app's view, kept up with its log from `start` until `close`.

    `open_view` opens the view's database, a new one if it has to; it is called again when the
    database fails. `decode` is codec.decode_event, or does the same.
    """

    def __init__(
        self,
        log: Log,
        topic: Topic,
        open_view: Callable[[Topic], OpenView],
        decode: Callable[[bytes], Event] = decode_event,
        *,
        hot_bytes_max: int,
        report: Callable[[FollowProgress], None] | None = None,
    ) -> None:
        self._log = log
        self.topic = topic
        self._open_view = open_view
        self._decode = decode
        self._hot_bytes_max = hot_bytes_max
        self._report = report
        #: Held by the one thread that folds. It knows its holder, so that letting go of it after an
        #: interrupt (Ctrl-C) is right wherever that came; it is never taken twice.
        self._lock = threading.RLock()
        #: partition -> why it goes no further.
        self._stopped: dict[int, EventStoreError] = {}
        self._quarantined: dict[int, frozenset[int]] = {}
        self._suspect = False
        #: Why the database cannot be used now; it is opened again by whoever folds next.
        self._fault: ViewDamaged | None = None
        #: partition -> how far readers have seen the view before it was opened anew.
        self._seen: dict[int, int] = {}
        #: How often the view was opened anew: what was read across that must be read again.
        self.openings = 0
        #: Whether the view may have less than that: readers call `recover` first.
        self.behind = False
        self._closing = threading.Event()
        self._published_at = 0
        #: When a reader last folded in its own thread (time.monotonic()).
        self._attended_s = 0.0
        self._watchers: tuple[Callable[[Sequence[Folded]], None], ...] = ()
        self._thread = threading.Thread(
            target=self._run, name=f"eventstore-view-{topic.name}", daemon=True
        )
        self._opened = open_view(topic)
        self._use(self._opened)

    def _use(self, opened: OpenView) -> None:
        self._opened = opened
        self.reader = ViewReader(opened.table)
        self._repairs = repairs_of(self._log, self.topic)
        self._writer = self._new_writer()
        #: partition -> the first offset that is not folded; read without the lock.
        self.offsets_next = {
            partition: self._writer.progress(partition).offset_next
            for partition in range(self.topic.partitions)
        }
        self._quarantined = quarantined(self._log, self.topic)
        self._stopped.clear()
        self._suspect = True
        self._fault = None

    def _new_writer(self) -> ViewWriter:
        writer = ViewWriter(
            self._opened.table,
            lambda key: self._log.partition_of(key, self.topic),
            self._decode,
            hot_bytes_max=self._hot_bytes_max,
        )
        for partition, offset in self._repairs.begin.items():
            if writer.progress(partition).offset_next < offset:
                writer.begin_at(partition, offset)
        writer.watch = self._tell if self._watchers else None
        return writer

    # --- watching -------------------------------------------------------------------------------

    def watch(self, callback: Callable[[Sequence[Folded]], None]) -> Callable[[], None]:
        """Call `callback` with what is folded from now on, batch by batch; return what ends that.

        It is called in whichever thread folds, which holds the lock: it must be quick, must not
        raise, and must not read. Events are told once and in the order of their partition, also
        when the view is opened anew meanwhile.
        """
        with self._lock:
            self._watchers = (*self._watchers, callback)
            self._writer.watch = self._tell

        def unwatch() -> None:
            with self._lock:
                self._watchers = tuple(one for one in self._watchers if one is not callback)
                if not self._watchers:
                    self._writer.watch = None

        return unwatch

    def _tell(self, folded: list[Folded]) -> None:
        if self._seen:
            # Folded a second time, into a view that was opened anew: it was told before.
            seen = self._seen
            folded = [one for one in folded if one.offset >= seen.get(one.partition, 0)]
        for callback in self._watchers:
            try:
                callback(folded)
            except Exception:
                logger.exception("a watcher of %s failed", self.topic.name)

    # --- starting and ending --------------------------------------------------------------------

    def start(self) -> None:
        """Fold everything that the log has now, then go on in a thread.

        A partition that goes no further (an unknown schema, a log that was cut) does not keep
        the others from being read; `check` raises its reason.

        Raises:
            LogUnavailable: the log cannot be reached.
        """
        self._fold_all()
        self._thread.start()

    def _fold_all(self) -> None:
        ends = self._ends()
        total = sum(max(0, end - self.offsets_next[partition]) for partition, end in ends.items())
        begun = dict(self.offsets_next)
        reported = time.monotonic()
        for partition, end in ends.items():
            while self.offsets_next[partition] < end and partition not in self._stopped:
                with self._lock, contextlib.suppress(LogTruncated):  # it stands in _stopped
                    self._advance(partition)
                now = time.monotonic()
                if self._report is not None and now - reported >= _REPORT_INTERVAL_S:
                    reported = now
                    done = sum(self.offsets_next[p] - begun[p] for p in begun)
                    self._report(FollowProgress(self.topic.name, done, total))
        if self._report is not None and total:
            self._report(FollowProgress(self.topic.name, total, total, done=True))

    def _ends(self) -> dict[int, int]:
        with self._lock:
            self._verify()
        return {
            partition: self._log.offset_end(self.topic, partition)
            for partition in range(self.topic.partitions)
        }

    def close(self) -> None:
        """Stop folding and let go of the view; it stays warm for the next process."""
        self._closing.set()
        while self._thread.is_alive() and self._thread is not threading.current_thread():
            # Again and again: a wake just before the thread begins to wait wakes nobody, and a
            # process that reads once and ends would stay for all of _WAIT_S.
            self._log.wake()
            self._thread.join(_WAKE_INTERVAL_S)
        with self._lock:
            self._opened.close()

    # --- waiting --------------------------------------------------------------------------------

    def wait_for(self, offsets: Mapping[int, int], timeout_s: float) -> None:
        """Return when the view includes these offsets, folding what is missing in this thread.

        Raises:
            ReadTimeout: it did not get there within `timeout_s`.
            UnknownSchema, LogTruncated: the partition goes no further; the message says why.
            LogUnavailable: the log cannot be reached.
            ViewDamaged: the view's database failed; the log is not touched by that.
        """
        deadline = time.monotonic() + timeout_s
        for partition, offset in offsets.items():
            while self.offsets_next[partition] <= offset:
                left = deadline - time.monotonic()
                if self._closing.is_set():
                    raise Closed(f"app {self.topic.name}: the store is closed")
                if left <= 0:
                    self.check(partition)
                    raise ReadTimeout(
                        f"the view of {self.topic.name} is at offset"
                        f" {self.offsets_next[partition] - 1} of partition {partition}, not at"
                        f" {offset}, after {timeout_s:.3g} s; read again later"
                    )
                try:
                    if not self._lock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                        continue
                    moved = self.offsets_next[partition] > offset or self._advance(partition)
                finally:
                    try:  # noqa: SIM105  an interrupt may come in any call, suppress() too
                        self._lock.release()
                    except RuntimeError:
                        pass  # not ours
                self.check(partition)
                self._attended_s = time.monotonic()
                if not moved:
                    wanted = {partition: self.offsets_next[partition]}
                    self._log.wait(self.topic, wanted, min(left, _READER_WAIT_S))

    def catch_up(self, timeout_s: float, partition: int | None = None) -> None:
        """Return when the view has everything that was acknowledged to anyone before the call.

        Of all partitions, or of one. Raises as `wait_for`.
        """
        folded = dict(self.offsets_next)
        if partition is not None:
            folded = {partition: folded[partition]}
        ends = {one: self._log.offset_end(self.topic, one) for one in folded}
        if any(ends[partition] < folded[partition] for partition in folded):
            # The log was cut under our feet: what is to be read now may stand at offsets that
            # were folded from other events.
            with self._lock:
                self._verify()
            self.check(partition)
        self.wait_for({partition: end - 1 for partition, end in ends.items()}, timeout_s)

    def check(self, partition: int | None = None) -> None:
        """Raise why a partition, or any, goes no further: what is read of it would be old."""
        for stopped, error in list(self._stopped.items()):
            if partition is not None and partition != stopped:
                continue
            if not self._may_go_on(stopped):
                raise error
            with self._lock:
                self._advance(stopped)

    def recover(self, timeout_s: float) -> None:
        """Return when the view has again what was read from it before it had to be opened anew.

        Raises:
            As for `wait_for`.
        """
        deadline = time.monotonic() + timeout_s
        while self.behind:
            wanted = {partition: end - 1 for partition, end in dict(self._seen).items()}
            self.wait_for(wanted, deadline - time.monotonic())
            # A rebuild may hold the lock: what there is to wait for shows only after it.
            with self._lock:
                if self._fault is not None:
                    self._reopen()
                self.behind = any(self.offsets_next[p] < end for p, end in self._seen.items())

    @property
    def repairs(self) -> int:
        """How often an operator repaired the log: the generation of each of its partitions."""
        return self._repairs.number

    def generation(self, partition: int) -> int:
        """Return the generation of a partition's log (see fold.py)."""
        return self._writer.progress(partition).generation

    @property
    def is_stopped(self) -> bool:
        """Whether some partition goes no further; see `check`."""
        return bool(self._stopped)

    @property
    def stopped(self) -> dict[int, EventStoreError]:
        """The partitions that go no further, and why."""
        return dict(self._stopped)

    # --- folding --------------------------------------------------------------------------------

    def _advance(self, partition: int) -> bool:
        """Fold one batch of a partition; False when there was nothing. The lock is held."""
        if self._closing.is_set():
            raise Closed(f"app {self.topic.name}: the store is closed")
        if self._fault is not None:
            self._reopen()
        if self._suspect:
            self._verify()
        stopped = self._stopped.get(partition)
        if isinstance(stopped, LogTruncated):
            raise stopped
        offset = self._writer.progress(partition).offset_next
        if offset > self.offsets_next[partition]:
            # An interrupt came between the fold and this: what is folded is not folded again.
            self.offsets_next[partition] = offset
            return True
        try:
            batch = self._log.read(
                self.topic,
                partition,
                offset,
                records_max=_BATCH_RECORDS_MAX,
                bytes_max=_BATCH_BYTES_MAX,
            )
            if batch.offset_next == offset:
                return False
            progress = self._writer.progress(partition)
            if batch.epoch > progress.epoch >= 0:
                # Another leader: what it took over may end before what was folded.
                self._verify_partition(partition)
            # What is folded is told once: an interrupt in between would keep it from the watchers.
            with HeldBack() if self._watchers else _NOTHING:
                self._writer.apply(partition, batch, self._quarantined.get(partition, frozenset()))
        except UnknownSchema as error:
            self._stop_at_unknown(partition, error)
            return self.offsets_next[partition] > offset
        except LogTruncated as error:
            if self._reopened_on_other_log():
                return True
            self._stopped[partition] = self._truncation(partition, error)
            raise self._stopped[partition] from None
        except LogUnavailable:
            self._suspect = True
            raise
        except ViewDamaged as error:
            # What is in memory may not be in the table: begin again from what the table has.
            if not self._set_aside(error):
                raise
            return True
        except BaseException:
            # Ctrl-C in a reader's thread, say. A batch was half folded, in memory only.
            self._writer = self._new_writer()
            raise
        self._stopped.pop(partition, None)
        self.offsets_next[partition] = self._writer.progress(partition).offset_next
        self._publish()
        return True

    def _stop_at_unknown(self, partition: int, error: UnknownSchema) -> None:
        """Stop a partition, unless an operator has taken the event out in the meantime."""
        offset = self._writer.progress(partition).offset_next
        self.offsets_next[partition] = offset
        self._quarantined = quarantined(self._log, self.topic)
        if offset in self._quarantined.get(partition, ()):
            self._stopped.pop(partition, None)
        else:
            self._stopped[partition] = error

    def _verify(self) -> None:
        for partition in list(self.offsets_next):
            try:
                self._verify_partition(partition)
            except LogTruncated as error:
                if self._reopened_on_other_log():
                    return  # and still suspect: what was opened is looked at in its turn
                self._stopped[partition] = error
        self._suspect = False

    def _verify_partition(self, partition: int) -> None:
        """See that the log still has, at its place, the last record that was folded.

        Raises:
            LogTruncated: it has not, or its beginning is gone and this view has not seen it.
        """
        progress = self._writer.progress(partition)
        first = self._log.offset_first(self.topic, partition)
        end = self._log.offset_end(self.topic, partition)
        where = f"partition {partition} of {self.topic.name}"
        advice = "`eventstore repair --accept-loss` goes on with what the log still has"
        if first > progress.offset_next:
            raise LogTruncated(
                f"{where} begins at offset {first}, but events from {progress.offset_next} on were"
                f" never folded here; {advice}"
            )
        if end < progress.offset_next:
            raise LogTruncated(
                f"{where} ends at offset {end}, but events up to {progress.offset_next - 1} were"
                f" folded already; {advice}"
            )
        if progress.offset_last < max(first, 0):
            return  # nothing folded yet, or retention has taken it since
        batch = self._log.read(
            self.topic, partition, progress.offset_last, records_max=1, bytes_max=1
        )
        if not batch.records or record_digest(batch.records[0]) != progress.digest:
            raise LogTruncated(
                f"{where} has another record at offset {progress.offset_last} than the one that"
                f" was folded; {advice}"
            )

    def _truncation(self, partition: int, found: LogTruncated) -> LogTruncated:
        """Return what a log has lost as `_verify_partition` says it, whoever has noticed it first.

        A read knows only where the log ends now; not what was folded, and what can be done.
        """
        try:
            self._verify_partition(partition)
        except LogTruncated as error:
            return error
        except LogUnavailable:
            pass  # as it was found, then
        return found

    def _reopened_on_other_log(self) -> bool:
        """Begin anew when the topic was deleted and created again under our feet."""
        topic = self._log.topic(self.topic.name, create=False)
        if topic is None or topic.identity == self.topic.identity:
            return False
        self.topic = topic
        self._reopen()
        self._seen.clear()
        return True

    def rebuild(self, reason: str) -> None:
        """Set the view aside and fold the whole log anew, in this thread.

        Raises:
            LogTruncated: the log was cut, and this view has what it lost; it stays.
            As for `start`; the new view is as far as it got, and the thread goes on.
        """
        with self._lock:
            self._verify()
            for error in self._stopped.values():
                if isinstance(error, LogTruncated):
                    raise error
            self._begin_anew(reason)
        self._fold_all()

    def _set_aside(self, fault: ViewDamaged) -> bool:
        """Begin anew in place of a database that cannot be read; False where that is no cure.

        That is when the machine is at fault (a full disk, say), or when a new one has failed, too:
        then it is opened again by the next who needs it.
        """
        self._remember_seen()
        self._fault = fault
        if isinstance(fault, TableUnavailable) or not any(self.offsets_next.values()):
            self._opened.close()
            return False
        self._begin_anew(str(fault))
        return True

    def _begin_anew(self, reason: str) -> None:
        self._remember_seen()
        # An interrupt leaves a closed database: whoever comes next opens it again.
        self._fault = ViewDamaged(reason)
        self._opened.begin_anew(reason)
        self._use(self._opened)

    def _reopen(self) -> None:
        self._remember_seen()
        self._fault = self._fault or ViewDamaged("the view is being opened again")
        self._opened.close()
        self._use(self._open_view(self.topic))

    def _remember_seen(self) -> None:
        # In this order: who begins to read now waits for the new one, and who has begun, with the
        # number of openings that he knew, looks again (Channel.steadily).
        self.behind = True
        self.openings += 1
        for partition, offset in self.offsets_next.items():
            self._seen[partition] = max(offset, self._seen.get(partition, 0))

    def _publish(self) -> None:
        records = sum(self._writer.progress(p).records for p in self.offsets_next)
        if records - self._published_at >= _PUBLISH_RECORDS:
            self._published_at = records
            try:
                self._opened.publish()
            except ViewDamaged as error:
                # New slots begin with an older copy; whoever waits for this view gets it.
                logger.warning("no copy of the view of %s: %s", self.topic.name, error)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        failing = False
        while not self._closing.is_set():
            try:
                if not self._advance_all():
                    self._wait_for_news()
                failing = False
            except Closed:
                return
            except EventStoreError as error:
                # Readers get the error itself, from `wait_for`; here it is said once.
                if not failing:
                    logger.warning("the view of %s waits: %s", self.topic.name, error)
                failing = True
                self._pause()

    def _advance_all(self) -> bool:
        moved = False
        for partition in list(self.offsets_next):
            if partition in self._stopped and not self._may_go_on(partition):
                continue
            with self._lock:
                moved |= self._advance(partition)
        return moved

    def _may_go_on(self, partition: int) -> bool:
        """Whether to try a stopped partition again.

        An operator can let it go on, and so can the log: a Kafka broker that comes back has, for
        a moment, less to tell than it has.
        """
        stopped = self._stopped.get(partition)
        if stopped is None:
            return True
        if isinstance(stopped, UnknownSchema):
            self._quarantined = quarantined(self._log, self.topic)
            return self.offsets_next[partition] in self._quarantined.get(partition, ())
        with self._lock:
            if repairs_of(self._log, self.topic).number != self._repairs.number:
                self._reopen()
                self._seen.clear()
                return True
            try:
                self._verify_partition(partition)
            except LogTruncated:
                return False
            self._stopped.pop(partition, None)
            return True

    def _wait_for_news(self) -> None:
        wanted = {
            partition: offset
            for partition, offset in self.offsets_next.items()
            if partition not in self._stopped
        }
        if wanted:
            if self._log.wait(self.topic, wanted, _WAIT_S, attended=True):
                self._leave_to_readers()
        else:
            self._pause()

    def _leave_to_readers(self) -> None:
        now_s = time.monotonic()
        end_s = now_s + _ATTENDED_S_MAX
        while now_s < end_s and now_s < (until_s := self._attended_s + _ATTENDED_S):
            self._closing.wait(until_s - now_s)
            now_s = time.monotonic()

    def _pause(self) -> None:
        self._closing.wait(_WAIT_S)


class Repairs(NamedTuple):
    """How often an operator accepted the loss of events, and where each partition begins since."""

    number: int
    begin: dict[int, int]


def repairs_of(log: Log, topic: Topic) -> Repairs:
    """Return the repairs recorded in the app's metadata."""
    found = log.metadata(topic).get("repairs")
    if not isinstance(found, dict):
        return Repairs(0, {})
    return Repairs(int(found["count"]), {int(p): int(o) for p, o in found["begin"].items()})


def quarantined(log: Log, topic: Topic) -> dict[int, frozenset[int]]:
    """Return the offsets that operators took out of each partition, from the app's metadata."""
    found = log.metadata(topic).get("quarantined")
    if not isinstance(found, dict):
        return {}
    return {int(partition): frozenset(offsets) for partition, offsets in found.items()}
