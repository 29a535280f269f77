"""Many appends, one commit: the queue in front of a log that must fsync, and who empties it.

There is no writer thread to hand a record to: the thread that needs its record first leads, and
commits everything that is queued; those that come meanwhile wait, and one of them leads next. So
a lone writer pays no thread switch, and 32 writers share each fsync. What nobody waits for is
committed by a lazy thread in the background. How to write is the `Writer`'s business (sqlite.py).
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from eventstore.errors import Closed, LogUnavailable, OutcomeUnknown
from eventstore.lifetime import close_at_exit
from eventstore.log.base import Append
from eventstore.testing import fault_point

__all__ = ["GroupCommit", "Job", "Writer"]

#: How long an append that nobody waits for may lie before the background thread commits it.
LINGER_S = 0.001
#: After so long without an append the background thread sleeps until the next one.
IDLE_S = 0.05
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


class Writer(Protocol):
    """The one who writes, one thread at a time: acquire, write any number of times, release."""

    def acquire(self, timeout_s: float) -> None:
        """Get the right to write; LogUnavailable when another process kept it for too long."""

    def write(self, jobs: Sequence[Job]) -> Sequence[int]:
        """Store all jobs durably in one transaction; return the first offset of each.

        Raises:
            OutcomeUnknown: they may or may not be stored.
            LogUnavailable: nothing was stored.
        """

    def release(self) -> None:
        """Give the right to write back; housekeeping is done here, after the writers were told."""


class _Group:
    """Jobs that will be committed together, and the threads that wait for that."""

    __slots__ = ("finished", "jobs", "waiters")

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.waiters: list[_thread.LockType] = []
        self.finished = False


class GroupCommit:
    """A bounded queue of appends whose users commit it themselves.

    Invariants, under `_mutex`: at most one thread leads (`_leading`); a job is in `_open` until a
    leader takes it, and its deliveries are told before the leader ends; `_buffered_bytes` counts
    what was queued and not yet told.
    """

    def __init__(self, writer: Writer, *, buffer_bytes_max: int, append_timeout_s: float) -> None:
        self._writer = writer
        self._buffer_bytes_max = buffer_bytes_max
        self._append_timeout_s = append_timeout_s
        self._mutex = threading.Lock()
        self._open = _Group()
        self._committing: _Group | None = None
        self._leading = False
        self._buffered_bytes = 0
        self._queued_count = 0
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

    def append(self, target: int, appends: Sequence[Append]) -> None:
        """Queue records; see `Log.append`. Who finds the buffer full helps to empty it."""
        size_bytes = RECORD_OVERHEAD_BYTES * len(appends)
        for one in appends:
            size_bytes += len(one.key) + len(one.value)
        now_s = time.monotonic()
        deadline_s = now_s + self._append_timeout_s
        job = Job(target, appends, size_bytes, now_s)
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
        with self._mutex:
            if self._closed:
                raise Closed("the log is closed; nothing was written")
            # One job larger than the whole buffer passes when the buffer is empty.
            if self._buffered_bytes and (
                self._buffered_bytes + job.size_bytes > self._buffer_bytes_max
            ):
                return False
            self._open.jobs.append(job)
            self._of_thread.group = self._open
            self._buffered_bytes += job.size_bytes
            self._queued_count += 1
            if not self._background_awake:
                self._wake_background()
            return True

    def drive(self, timeout_s: float | None) -> None:
        """Commit what is queued, or wait until this thread's latest append was settled.

        May return before that: callers loop until their own delivery was told.
        """
        self._refuse_in_child()
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._mutex:
                if not self._leading:
                    if not self._open.jobs:
                        return
                    self._leading = True
                    break
                group: _Group = getattr(self._of_thread, "group", self._open)
                if group.finished:
                    group = self._committing or self._open
                waiter = _thread.allocate_lock()
                waiter.acquire()
                group.waiters.append(waiter)
            left_s = -1.0 if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            # A waiter that leaves early may be the one that the next leader is waited for from:
            # the background thread leads then, after its linger.
            if not waiter.acquire(timeout=left_s) or group.finished:
                return
        self._lead()

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
        """Commit all open jobs, tell their writers, hand on. `_leading` was set by the caller."""
        assert self._leading, "only the thread that set _leading may lead"
        try:
            # The right to write first, then the queue: who comes while we wait is in the group.
            oldest_s = self._open.jobs[0].queued_at_s
            waited_s = time.monotonic() - oldest_s
            try:
                self._writer.acquire(max(0.0, self._append_timeout_s - waited_s))
            except LogUnavailable as error:
                self._fail_overdue(error)
                return
            try:
                with self._mutex:
                    group = self._committing = self._open
                    self._open = _Group()
                self._commit(group)
            finally:
                self._writer.release()
        finally:
            with self._mutex:
                self._leading = False
                # One of those who wait leads next; where there is nothing to commit, nobody
                # would wake the rest.
                count = 1 if self._open.jobs else len(self._open.waiters)
                woken = self._open.waiters[:count]
                del self._open.waiters[:count]
            for waiter in woken:
                waiter.release()

    def _commit(self, group: _Group) -> None:
        chunks = list(_chunks(group.jobs))
        try:
            while chunks:
                self._commit_chunk(chunks.pop(0))
        finally:
            for chunk in chunks:  # an interrupt (Ctrl-C) came: these were not tried
                self._settle(chunk, LogUnavailable("the commit was interrupted"))
            self._finish(group)

    def _commit_chunk(self, jobs: Sequence[Job]) -> None:
        try:
            offsets = self._writer.write(jobs)
        except LogUnavailable as error:
            self._settle(jobs, error)
        except BaseException as error:
            self._settle(jobs, OutcomeUnknown(f"the commit was interrupted: {error!r}"))
            raise
        else:
            self._settle(jobs, offsets)

    def _settle(self, jobs: Sequence[Job], outcome: Sequence[int] | LogUnavailable) -> None:
        """Tell every delivery of these jobs, and count them as done."""
        try:
            _tell(jobs, outcome)
        finally:
            fault_point("log.acknowledged")
            with self._mutex:
                self._settled_count += len(jobs)
                self._buffered_bytes -= sum(job.size_bytes for job in jobs)

    def _finish(self, group: _Group) -> None:
        with self._mutex:
            group.finished = True
            self._committing = None
            waiters, group.waiters = group.waiters, []
        for waiter in waiters:
            waiter.release()

    def _fail_overdue(self, error: LogUnavailable) -> None:
        """Fail the jobs that waited for the whole append timeout; the younger ones stay."""
        overdue_before_s = time.monotonic() - self._append_timeout_s
        with self._mutex:
            jobs = self._open.jobs
            count = sum(job.queued_at_s <= overdue_before_s for job in jobs)
            # Whoever waits for the group looks again: some of its jobs are settled.
            waiters, self._open.waiters = self._open.waiters, []
            overdue, self._open.jobs = jobs[:count], jobs[count:]
        self._settle(overdue, error)
        for waiter in waiters:
            waiter.release()

    # --- background -------------------------------------------------------------------------

    def _wake_background(self) -> None:
        """Have somebody commit what nobody waits for. Called with the mutex held."""
        self._background_awake = True
        if self._background is None:
            self._background = threading.Thread(
                target=self._run_background, name="eventstore-commit", daemon=True
            )
            self._background.start()
        self._bell.release()

    def _run_background(self) -> None:
        """Commit each group that lay for a linger while nobody led; sleep while nothing comes.

        Awake, it looks once per linger, so that an append costs it no wake-up of its own.
        """
        while True:
            self._bell.acquire()
            seen: _Group | None = None
            seen_count, idle_s = -1, 0.0
            while idle_s < IDLE_S:
                time.sleep(LINGER_S)
                with self._mutex:
                    group = self._open
                    lead = bool(group.jobs) and group is seen and not self._leading
                    if lead:
                        self._leading = True
                    seen = group if group.jobs else None
                    idle_s = idle_s + LINGER_S if self._queued_count == seen_count else 0.0
                    seen_count = self._queued_count
                    if seen is not None or self._leading:
                        idle_s = 0.0
                    if self._closed and seen is None:
                        return
                    if idle_s >= IDLE_S:
                        self._background_awake = False
                if lead:
                    self._lead()


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Split jobs into rows that fit one transaction each; a job is never split."""
    chunk: list[Job] = []
    size_bytes = 0
    for job in jobs:
        if chunk and size_bytes + job.size_bytes > COMMIT_BYTES_MAX:
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(job)
        size_bytes += job.size_bytes
    if chunk:
        yield chunk


def _tell(jobs: Sequence[Job], outcome: Sequence[int] | LogUnavailable) -> None:
    """Tell every delivery, in order; what one of them raises (or Ctrl-C) is raised at the end."""
    told: Iterator[tuple[Append, int]]
    if isinstance(outcome, LogUnavailable):
        told = iter([(append, -1) for job in jobs for append in job.appends])
    else:
        told = iter(
            [
                (append, offset)
                for job, offset_first in zip(jobs, outcome, strict=True)
                for offset, append in enumerate(job.appends, offset_first)
            ]
        )
    failure: BaseException | None = None
    while True:
        try:
            for append, offset in told:
                if offset < 0:
                    assert isinstance(outcome, LogUnavailable)
                    append.delivery.failed(outcome)
                else:
                    append.delivery.delivered(append.partition, offset)
            break
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure
