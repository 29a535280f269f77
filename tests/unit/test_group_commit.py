"""The queue in front of a log, with a writer that does what the test says."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from eventstore.errors import Closed, LogUnavailable, OutcomeUnknown
from eventstore.log.base import Append
from eventstore.log.group_commit import COMMIT_BYTES_MAX, GroupCommit, Job
from tests.contract.logs import DEADLINE_S, Told, eventually


class ScriptedWriter:
    """Stores jobs in a list; `on_write` may fail or wait first."""

    def __init__(self) -> None:
        self.commits: list[list[bytes]] = []
        self.threads: list[str] = []
        self.on_write: Callable[[], None] = lambda: None
        self.busy = False
        self._writing = threading.Lock()

    def acquire(self, timeout_s: float) -> None:
        assert self._writing.acquire(blocking=False), "two threads lead at once"
        if self.busy:
            self._writing.release()
            raise LogUnavailable("another process writes")

    def write(self, jobs: Sequence[Job]) -> Sequence[int]:
        self.threads.append(threading.current_thread().name)
        self.on_write()
        start = sum(map(len, self.commits))
        firsts = []
        values: list[bytes] = []
        for job in jobs:
            firsts.append(start + len(values))
            values += [append.value for append in job.appends]
        self.commits.append(values)
        return firsts

    def release(self) -> None:
        if self._writing.locked():
            self._writing.release()


def make(
    writer: ScriptedWriter, buffer_bytes_max: int = 10_000, append_timeout_s: float = DEADLINE_S
) -> GroupCommit:
    return GroupCommit(writer, buffer_bytes_max=buffer_bytes_max, append_timeout_s=append_timeout_s)


def put(queue: GroupCommit, *values: bytes, offset_next: int | None = None) -> list[Told]:
    told = [Told() for _ in values]
    pairs = zip(values, told, strict=True)
    queue.append(1, [Append(0, b"k", value, delivery) for value, delivery in pairs], offset_next)
    return told


def test_the_thread_that_waits_commits_by_itself() -> None:
    writer = ScriptedWriter()
    queue = make(writer)
    queue._background_awake = True  # it would come if this thread stood still for a moment

    [told] = put(queue, b"a")
    queue.drive(None)

    assert told.place == (0, 0)
    assert writer.threads == [threading.current_thread().name]
    queue.close()


def test_what_came_during_a_commit_is_committed_together() -> None:
    writer = ScriptedWriter()
    queue = make(writer)
    inside, go_on = threading.Event(), threading.Event()

    def wait_in_first() -> None:
        if not writer.commits:
            inside.set()
            go_on.wait(DEADLINE_S)

    writer.on_write = wait_in_first

    def append_and_drive(value: bytes) -> Told:
        [told] = put(queue, value)
        while not told.done:
            queue.drive(DEADLINE_S)
        return told

    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(append_and_drive, b"first")
        assert inside.wait(DEADLINE_S)
        others = [pool.submit(append_and_drive, b"%d" % number) for number in range(8)]
        assert eventually(lambda: queue._queued_count == 9)
        go_on.set()
        told = [future.result(DEADLINE_S) for future in [first, *others]]

    assert [len(commit) for commit in writer.commits] == [1, 8]
    assert sorted(delivery.place or (0, -1) for delivery in told) == [(0, n) for n in range(9)]
    queue.close()


def test_what_nobody_waits_for_is_committed_in_the_background() -> None:
    writer = ScriptedWriter()
    queue = make(writer)

    [told] = put(queue, b"a")

    assert told.wait()
    assert writer.threads == ["eventstore-commit"]
    queue.close()


def test_the_background_wakes_again_after_it_slept() -> None:
    writer = ScriptedWriter()
    queue = make(writer)
    [first] = put(queue, b"a")
    assert first.wait()
    assert eventually(lambda: not queue._background_awake)

    [second] = put(queue, b"b")

    assert second.wait()
    queue.close()


def test_the_background_leaves_an_attended_append_to_its_writer_and_comes_if_it_does_not() -> None:
    writer = ScriptedWriter()
    queue = make(writer)

    [told] = put(queue, b"a", offset_next=0)
    assert not queue._background_awake
    assert told.wait()  # as if its writer was interrupted before it could commit

    assert writer.threads == ["eventstore-commit"]
    queue.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a signal to a thread")
def test_who_waits_behind_one_that_is_interrupted_waits_for_no_sleeper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventstore.log.group_commit.ASLEEP_S", 2 * DEADLINE_S)
    inside, go_on = threading.Event(), threading.Event()
    writer = ScriptedWriter()

    def until_it_may() -> None:
        inside.set()
        go_on.wait(DEADLINE_S)

    writer.on_write = until_it_may
    queue = make(writer)

    def append_and_drive(value: bytes) -> Told:
        [told] = put(queue, value, offset_next=0)
        while not told.done:
            queue.drive(None)
        return told

    main_thread = threading.get_ident()

    def wait_behind_main_and_interrupt_it() -> Future[Told]:
        assert eventually(lambda: len(queue._open.waiters) == 1)
        behind = pool.submit(append_and_drive, b"behind")
        assert eventually(lambda: len(queue._open.waiters) == 2)
        signal.pthread_kill(main_thread, signal.SIGINT)
        return behind

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(3) as pool:
            pool.submit(append_and_drive, b"first")
            assert inside.wait(DEADLINE_S)
            interrupting = pool.submit(wait_behind_main_and_interrupt_it)
            with pytest.raises(KeyboardInterrupt):
                append_and_drive(b"interrupted")
            go_on.set()

            assert interrupting.result(DEADLINE_S).result(DEADLINE_S).place == (0, 2)
    finally:
        signal.signal(signal.SIGINT, handler)
    queue.close()


def test_a_failed_commit_fails_its_records_and_no_others() -> None:
    writer = ScriptedWriter()
    queue = make(writer)

    def fail() -> None:
        raise LogUnavailable("the disk is full")

    writer.on_write = fail
    failed = put(queue, b"a", b"b")
    queue.drive(None)
    writer.on_write = lambda: None
    [after] = put(queue, b"c")
    queue.drive(None)

    assert [str(told.error) for told in failed] == ["the disk is full"] * 2
    assert after.place == (0, 0)
    queue.close()


def test_an_interrupted_commit_has_an_unknown_outcome_and_the_interrupt_goes_on() -> None:
    writer = ScriptedWriter()
    queue = make(writer)

    def interrupt() -> None:
        raise KeyboardInterrupt

    queue._background_awake = True  # keep the background thread out of it
    writer.on_write = interrupt
    [told] = put(queue, b"a")
    with pytest.raises(KeyboardInterrupt):
        queue.drive(None)
    writer.on_write = lambda: None

    assert isinstance(told.error, OutcomeUnknown)
    [after] = put(queue, b"b")
    queue.drive(None)
    assert after.place == (0, 0)
    queue.close()


def test_a_delivery_that_raises_does_not_keep_others_from_being_told() -> None:
    writer = ScriptedWriter()
    queue = make(writer)

    class Raises(Told):
        def delivered(self, partition: int, offset: int) -> None:
            raise RuntimeError("a fault of the caller's")

    queue._background_awake = True
    [bad, good] = [Raises(), Told()]
    queue.append(1, [Append(0, b"k", b"v", bad), Append(0, b"k", b"v", good)])
    with pytest.raises(RuntimeError):
        queue.drive(None)

    assert good.place == (0, 1)
    queue.close()


def test_a_full_buffer_is_emptied_by_the_one_who_finds_it_full() -> None:
    writer = ScriptedWriter()
    queue = make(writer, buffer_bytes_max=1_000)
    queue._background_awake = True

    told = [put(queue, b"x" * 500)[0] for _ in range(5)]

    assert [delivery.done for delivery in told] == [True] * 4 + [False]
    queue.close()
    assert told[-1].place == (0, 4)


def test_a_buffer_that_stays_full_refuses() -> None:
    writer = ScriptedWriter()
    queue = make(writer, buffer_bytes_max=1_000, append_timeout_s=0.05)
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(DEADLINE_S)

    writer.on_write = wait
    [first] = put(queue, b"x" * 900)
    assert inside.wait(DEADLINE_S)

    with pytest.raises(LogUnavailable, match="buffer_bytes_max=1,000"):
        put(queue, b"x" * 900)

    go_on.set()
    assert first.wait()
    assert sum(map(len, writer.commits)) == 1
    queue.close()


def test_one_call_larger_than_the_buffer_passes() -> None:
    queue = make(ScriptedWriter(), buffer_bytes_max=1_000)

    [told] = put(queue, b"x" * 5_000)
    queue.flush(DEADLINE_S)

    assert told.place == (0, 0)
    queue.close()


def test_a_large_queue_is_committed_in_several_transactions() -> None:
    writer = ScriptedWriter()
    queue = make(writer, buffer_bytes_max=100 * COMMIT_BYTES_MAX)
    queue._background_awake = True
    value = b"x" * (COMMIT_BYTES_MAX // 2)

    for _ in range(5):
        put(queue, value)
    queue.flush(DEADLINE_S)

    assert [len(commit) for commit in writer.commits] == [1] * 5
    queue.close()


def test_records_that_wait_too_long_for_the_turn_fail_unwritten() -> None:
    writer = ScriptedWriter()
    queue = make(writer, append_timeout_s=0.05)
    writer.busy = True

    [told] = put(queue, b"a")

    assert told.wait()
    assert isinstance(told.error, LogUnavailable)
    assert writer.commits == []
    writer.busy = False
    queue.close()


def test_close_commits_what_is_queued_and_refuses_more() -> None:
    writer = ScriptedWriter()
    queue = make(writer)
    told = put(queue, b"a", b"b")

    queue.close()

    assert all(delivery.place for delivery in told)
    with pytest.raises(Closed):
        put(queue, b"c")


def test_flush_waits_no_longer_than_it_was_told() -> None:
    writer = ScriptedWriter()
    queue = make(writer)
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(DEADLINE_S)

    writer.on_write = wait
    put(queue, b"a")
    assert inside.wait(DEADLINE_S)

    with pytest.raises(LogUnavailable, match="within 0"):
        queue.flush(0.02)

    go_on.set()
    queue.close()


def test_all_who_flush_return_when_nothing_is_left() -> None:
    writer = ScriptedWriter()
    queue = make(writer)
    told, go_on = threading.Event(), threading.Event()
    release = writer.release

    def slow_release() -> None:  # a checkpoint, say: everything is told, and somebody leads still
        told.set()
        go_on.wait(DEADLINE_S)
        release()

    writer.release = slow_release  # type: ignore[method-assign]
    put(queue, b"a")
    assert told.wait(DEADLINE_S)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(queue.drive, None) for _ in range(3)]
        assert eventually(lambda: len(queue._open.waiters) == 3)
        go_on.set()

        for future in waiting:
            future.result(DEADLINE_S)

    queue.close()
