"""Many appends, one commit: the queue in front of a log that must fsync, and who empties it.

There is no writer thread to hand a record to: the thread that needs its record first leads, and
commits everything that is queued; those that come meanwhile wait, and one of them leads next. So
a lone writer pays no thread switch, and 32 writers share each fsync. What nobody waits for is
committed by a lazy thread in the background. How to write is the `Writer`'s business
(sqlite_writer.py).

Ctrl-C may come between any two steps of the thread that leads. So what must be undone is written
down before it is done, and the cleanup can be begun again: it is called twice, and one of the two
calls runs to its end (tests/fault/test_interrupts.py tries every place).
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from eventstore.errors import Closed, EventStoreError, LogUnavailable, OutcomeUnknown
from eventstore.lifetime import close_at_exit
from eventstore.log.base import Append, NewerRecord
from eventstore.testing import fault_point

__all__ = ["GroupCommit", "Job", "Writer"]

logger = logging.getLogger(__name__)

#: How often the background thread looks for appends that nobody waits for. It commits them if it
#: has seen them before, or if nothing more was appended for a moment.
LINGER_S = 0.001
QUIET_S = 0.000_2
#: After so long without an append the background thread sleeps until the next one.
IDLE_S = 0.05
#: How often the thread that sleeps looks all the same: a writer that meant to commit at once may
#: have been interrupted before it did.
ASLEEP_S = 1.0
#: What one transaction may hold; more is committed in several, so that a reader does not wait for
#: 64 MiB and the write-ahead log stays bounded.
COMMIT_BYTES_MAX = 4 * 1024 * 1024
#: What a record costs in memory beside its bytes; so that a queue of tiny records is bounded too.
RECORD_OVERHEAD_BYTES = 200


class Job(NamedTuple):
    """The records of one `append`: stored together, in this order, or not at all."""

    target: int
    appends: Sequence[Append]
    size_bytes: int
    #: time.monotonic() when it was queued.
    queued_at_s: float
    #: If set, it is not stored where a record of its key stands from this offset on.
    offset_next: int | None = None

    @property
    def is_attended(self) -> bool:
        """Whether its writer commits it now, and then folds what it wrote (`Log`)."""
        return self.offset_next is not None


class Writer(Protocol):
    """The one who writes, one thread at a time: acquire, write any number of times, release."""

    def acquire(self, timeout_s: float) -> None:
        """Get the right to write; LogUnavailable when another process kept it for too long."""

    def write(self, jobs: Sequence[Job]) -> Sequence[int]:
        """Store all jobs durably in one transaction; return the first offset of each.

        It is -1 for a job that is not stored, because a record came first (`Job.offset_next`).

        Raises:
            OutcomeUnknown: they may or may not be stored.
            LogUnavailable: nothing was stored.
        """

    def release(self) -> None:
        """Give the right to write back; housekeeping is done here, after the writers were told.

        Harmless without that right, and after an `acquire` that was interrupted.
        """


class _Group:
    """Jobs that will be committed together, and the threads that wait for that."""

    __slots__ = ("finished", "jobs", "outcome", "settled_count", "tried_count", "waiters")

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.waiters: list[_thread.LockType] = []
        self.finished = False
        #: How many of the jobs were told what became of them, and how many will be with `outcome`.
        self.settled_count = self.tried_count = 0
        #: The first offsets of the jobs that were tried; None while that is not known.
        self.outcome: Sequence[int] | LogUnavailable | None = None


class GroupCommit:
    """A bounded queue of appends whose users commit it themselves.

    Invariants, under `_mutex`: at most one thread leads (`_leader`, its ident); a job is in `_open`
    until a leader takes it, and its deliveries are told before the leader ends; `_buffered_bytes`
    counts what was queued and not yet told.
    """

    def __init__(self, writer: Writer, *, buffer_bytes_max: int, append_timeout_s: float) -> None:
        self._writer = writer
        self._buffer_bytes_max = buffer_bytes_max
        self._append_timeout_s = append_timeout_s
        self._mutex = threading.Lock()
        self._open = _Group()
        self._committing: _Group | None = None
        self._leader: int | None = None
        self._buffered_bytes = 0
        self._queued_count = 0
        self._unattended_count = 0
        self._settled_count = 0
        self._closed = False
        self._abandoned = False
        #: The group of each thread's latest append: what `drive` waits for.
        self._of_thread = threading.local()
        self._background: threading.Thread | None = None
        self._background_awake = False
        self._bell = threading.Semaphore(0)
        # The queue, which its thread keeps alive, and not only the log, which may be garbage by
        # then: nobody has to keep a reference to what he appended to.
        close_at_exit(self)

    # --- queue ------------------------------------------------------------------------------

    def append(
        self, target: int, appends: Sequence[Append], offset_next: int | None = None
    ) -> None:
        """Queue records; see `Log.append`. Who finds the buffer full helps to empty it."""
        size_bytes = RECORD_OVERHEAD_BYTES * len(appends)
        for one in appends:
            size_bytes += len(one.key) + len(one.value)
        now_s = time.monotonic()
        deadline_s = now_s + self._append_timeout_s
        job = Job(target, appends, size_bytes, now_s, offset_next)
        while not self._queue(job):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise LogUnavailable(
                    f"the append buffer (buffer_bytes_max={self._buffer_bytes_max:,}) stayed full"
                    f" for {self._append_timeout_s:g} s; nothing was written"
                )
            self.drive(left_s)
            job = job._replace(queued_at_s=time.monotonic())

    def _queue(self, job: Job) -> bool:
        self._refuse_in_child()
        is_attended = job.is_attended
        with self._mutex:
            if self._closed:
                raise Closed("the log is closed; nothing was written")
            # One job larger than the whole buffer passes when the buffer is empty.
            if self._buffered_bytes and (
                self._buffered_bytes + job.size_bytes > self._buffer_bytes_max
            ):
                return False
            if is_attended:
                self._start_background()
            elif not self._background_awake:
                self._wake_background()
            self._of_thread.group = self._open
            # No calls (a property is one): an interrupt comes in calls, and these belong together.
            self._buffered_bytes += job.size_bytes
            self._queued_count += 1
            self._unattended_count += not is_attended
            self._open.jobs += (job,)
            return True

    def drive(self, timeout_s: float | None) -> None:
        """Commit what is queued, or wait until this thread's latest append was settled.

        May return before that: callers loop until their own delivery was told.
        """
        self._refuse_in_child()
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            try:
                if self._takes_the_lead(deadline_s):
                    self._lead()
            finally:
                self._end_lead()
        except BaseException:
            self._fall_back()
            raise
        finally:
            self._end_lead()

    def _fall_back(self) -> None:
        """Have the background lead: this thread, which goes, may be the one that was to be next."""
        with self._mutex:
            if self._open.jobs and not self._background_awake:
                self._wake_background()

    def _takes_the_lead(self, deadline_s: float | None) -> bool:
        """Wait for this thread's group; True as soon as this thread has to commit it."""
        while True:
            with self._mutex:
                if self._leader is None:
                    if not self._open.jobs:
                        return False
                    self._leader = _thread.get_ident()
                    return True
                group: _Group = getattr(self._of_thread, "group", self._open)
                if group.finished:
                    group = self._committing or self._open
                if group.finished:
                    group = self._open
                waiter = _thread.allocate_lock()
                waiter.acquire()
                group.waiters.append(waiter)
            left_s = -1.0 if deadline_s is None else deadline_s - time.monotonic()
            if deadline_s is not None:
                left_s = min(max(0.0, left_s), threading.TIMEOUT_MAX)
            # A waiter that leaves early may be the one that the next leader is waited for from:
            # the background thread leads then, after its linger.
            if not waiter.acquire(timeout=left_s) or group.finished:
                return False

    def flush(self, timeout_s: float | None) -> None:
        """Return when all that was queued before is settled; see `Log.flush`."""
        self._refuse_in_child()
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._mutex:
            goal = self._queued_count
        while self._settled_count < goal:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise LogUnavailable(f"not everything was written within {timeout_s:g} s")
            self.drive(left_s)

    def close(self) -> None:
        """Refuse new appends, settle what is queued, stop the background thread."""
        if self._abandoned:
            return
        with self._mutex:
            self._closed = True
        # Each job's own deadline ends this: the leader fails what could not be written in time.
        self.flush(None)
        if self._background is not None:
            self._bell.release()
            self._background.join()
            self._background = None

    def abandon(self) -> None:
        """Refuse everything from now on, in a child of os.fork()."""
        self._abandoned = True

    def _refuse_in_child(self) -> None:
        if self._abandoned:
            raise Closed(
                "this log was opened before os.fork() and cannot be used in the child: open it"
                " again here, or start workers with multiprocessing's 'spawn' method"
            )

    # --- leading ----------------------------------------------------------------------------

    def _lead(self) -> None:
        """Commit all open jobs and tell their writers. `_end_lead` comes next, whatever happens."""
        assert self._leader == _thread.get_ident(), "only the thread that took the lead may lead"
        # The right to write first, then the queue: who comes while we wait is in the group.
        oldest_s = self._open.jobs[0].queued_at_s
        waited_s = time.monotonic() - oldest_s
        try:
            self._writer.acquire(max(0.0, self._append_timeout_s - waited_s))
        except LogUnavailable as error:
            self._fail_overdue(error)
            return
        successor = _Group()
        with self._mutex:
            self._committing = self._open
            self._open = successor
        self._commit(self._committing)

    def _commit(self, group: _Group) -> None:
        while group.settled_count < len(group.jobs):
            jobs = _chunk(group.jobs, group.settled_count)
            group.tried_count = group.settled_count + len(jobs)
            try:
                group.outcome = self._writer.write(jobs)
            except LogUnavailable as error:
                group.outcome = error
            except EventStoreError as error:
                group.outcome = LogUnavailable(str(error))
            except BaseException as error:
                group.outcome = OutcomeUnknown(f"the commit was interrupted: {error!r}")
                raise
            self._settle(group)

    def _settle(self, group: _Group) -> None:
        """Tell every delivery of the jobs that were tried, and count them as done."""
        jobs = group.jobs[group.settled_count : group.tried_count]
        count, size_bytes = len(jobs), sum(job.size_bytes for job in jobs)
        outcome = group.outcome
        assert outcome is not None
        try:
            _tell(jobs, outcome)
        finally:
            fault_point("log.acknowledged")
            with self._mutex:
                # No calls in here: they belong together, and an interrupt comes in calls only.
                group.settled_count = group.tried_count
                group.outcome = None
                self._buffered_bytes -= size_bytes
                self._settled_count += count

    def _fail_overdue(self, error: LogUnavailable) -> None:
        """Fail the jobs that waited for the whole append timeout; the younger ones stay."""
        overdue_before_s = time.monotonic() - self._append_timeout_s
        overdue = _Group()
        overdue.outcome = error
        with self._mutex:
            group = self._open
            count = sum(job.queued_at_s <= overdue_before_s for job in group.jobs)
            overdue.tried_count = count
            overdue.jobs, younger = group.jobs[:count], group.jobs[count:]
            # Whoever waits for the group looks again: some of its jobs are settled.
            overdue.waiters, group.waiters = group.waiters, []
            self._committing, group.jobs = overdue, younger
        self._settle(overdue)

    def _end_lead(self) -> None:
        """Settle what is left of the lead of this thread, if it leads, and hand on.

        May be called again at any time, and goes on where an interrupt has stopped it.
        """
        if self._leader != _thread.get_ident():
            return
        try:
            group = self._committing
            if group is not None:
                self._finish(group)
        finally:
            self._writer.release()
        with self._mutex:
            self._committing = None
            # One of those who wait leads next; where there is nothing to commit, nobody
            # would wake the rest.
            waiters = self._open.waiters
            _wake(waiters, 1 if self._open.jobs else len(waiters))
            self._leader = None

    def _finish(self, group: _Group) -> None:
        """Settle what an interrupt has left of a group, and wake those who wait for it."""
        if group.settled_count < group.tried_count:
            if group.outcome is None:
                group.outcome = OutcomeUnknown("the commit was interrupted")
            self._settle(group)
        if group.settled_count < len(group.jobs):  # these were not tried
            group.outcome = LogUnavailable("the commit was interrupted; nothing was written")
            group.tried_count = len(group.jobs)
            self._settle(group)
        with self._mutex:
            group.finished = True
        _wake(group.waiters, len(group.waiters))

    # --- background -------------------------------------------------------------------------

    def _start_background(self) -> None:
        """See that there is a thread to fall back on. Called with the mutex held."""
        if self._background is None or not self._background.is_alive():
            self._background = threading.Thread(
                target=self._run_background, name="eventstore-commit", daemon=True
            )
            self._background.start()

    def _wake_background(self) -> None:
        """Have somebody commit what nobody waits for. Called with the mutex held."""
        self._start_background()
        self._bell.release()
        self._background_awake = True  # last: an interrupt before it costs one idle round

    def _run_background(self) -> None:
        """Commit each group that lay for a linger while nobody led; sleep while nothing comes.

        Awake, it looks once per linger, so that an append costs it no wake-up of its own. Asleep,
        it looks now and then after one whose writer meant to lead, and was interrupted.
        """
        while True:
            rung = self._bell.acquire(timeout=ASLEEP_S)
            if not rung and not self._open.jobs:
                continue
            seen: _Group | None = None
            seen_count, idle_s = -1, 0.0
            while idle_s < IDLE_S:
                time.sleep(LINGER_S)
                with self._mutex:
                    group = self._open
                    lead = bool(group.jobs) and self._leader is None
                    if lead and group is not seen:
                        lead = time.monotonic() - group.jobs[-1].queued_at_s > QUIET_S
                    if lead:
                        self._leader = _thread.get_ident()
                    seen = group if group.jobs else None
                    idle_s = idle_s + LINGER_S if self._unattended_count == seen_count else 0.0
                    seen_count = self._unattended_count
                    if seen is not None:
                        idle_s = 0.0
                    if self._closed and seen is None:
                        return
                    if idle_s >= IDLE_S:
                        self._background_awake = False
                if lead:
                    self._lead_in_background()

    def _lead_in_background(self) -> None:
        try:
            self._lead()
        except Exception:
            # Its writers were told; those of tomorrow still need this thread.
            logger.exception("a commit in the background failed")
        finally:
            self._end_lead()


def _chunk(jobs: Sequence[Job], start: int) -> Sequence[Job]:
    """Return the jobs from `start` on that fit one transaction; a job is never split."""
    size_bytes = 0
    for end in range(start, len(jobs)):
        size_bytes += jobs[end].size_bytes
        if size_bytes > COMMIT_BYTES_MAX and end > start:
            return jobs[start:end]
    return jobs[start:]


def _wake(waiters: list[_thread.LockType], count: int) -> None:
    """Wake the first waiters, and forget them only then: nobody is forgotten asleep."""
    for waiter in waiters[:count]:
        # Woken before an interrupt came: the lock is free already.
        with contextlib.suppress(RuntimeError):
            waiter.release()
    del waiters[:count]


def _tell(jobs: Sequence[Job], outcome: Sequence[int] | LogUnavailable) -> None:
    """Tell every delivery, in order; what one of them raises (or Ctrl-C) is raised at the end.

    After an interrupt the one that may have missed it is told again.
    """
    told: list[tuple[Append, int]]
    if isinstance(outcome, LogUnavailable):
        told = [(append, -1) for job in jobs for append in job.appends]
    else:
        told = [
            (append, offset if offset_first >= 0 else -1)
            for job, offset_first in zip(jobs, outcome, strict=True)
            for offset, append in enumerate(job.appends, offset_first)
        ]
    failure: BaseException | None = None
    start = 0
    while start < len(told):
        try:
            for append, offset in told[start:]:
                if offset >= 0:
                    append.delivery.delivered(append.partition, offset)
                elif isinstance(outcome, LogUnavailable):
                    append.delivery.failed(outcome)
                else:
                    append.delivery.failed(NewerRecord(append.key))
                start += 1
        except Exception as error:
            failure = error
            start += 1
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure
