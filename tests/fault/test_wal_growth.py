"""Goal: the write-ahead log of an embedded log grows at once, and nobody notices but the clock.

Method: a log is written until its file has grown; then, and after a kill or an interrupt in the
midst of it, the log has the records that it had, and others can write.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from eventstore import testing
from eventstore.config import Config
from eventstore.log import sqlite_writer
from eventstore.log.base import Topic
from eventstore.log.sqlite import SqliteLog
from tests.contract.logs import eventually, read_all, write
from tests.fault.interrupt import PLACES_MAX, Interrupt
from tests.fault.sqlite_child import APP
from tests.fault.sqlite_processes import check_log, child

#: Nearly what the file takes before a checkpoint: frames of a page and its header.
GROWN_BYTES = 990 * (4_096 + 24)
#: More commits than it takes to grow, and far fewer than fill the file.
COMMITS = 80


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Callable[[], SqliteLog]]:
    """Opens the log, as another process would at each call; all are closed at the end."""
    opened: list[SqliteLog] = []

    def open_again() -> SqliteLog:
        opened.append(SqliteLog(tmp_path, Config.load({}, append_timeout_s=5)))
        return opened[-1]

    yield open_again
    for log in opened:
        log.close()


def topic_of(log: SqliteLog) -> Topic:
    topic = log.topic(APP, create=True)
    assert topic is not None
    return topic


def commit(log: SqliteLog, *numbers: int) -> None:
    """Write one record in a commit of its own, for each number."""
    for number in numbers:
        write(log, topic_of(log), (b"k", b"%d" % number))


def wal_bytes(folder: Path) -> int:
    return (folder / "log.sqlite-wal").stat().st_size


def tables(folder: Path) -> set[str]:
    connection = apsw.Connection(str(folder / "log.sqlite"))
    names = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_schema")}
    connection.close()
    return names


@pytest.fixture
def at_fault_point(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], None]], None]:
    """Do something each time that a point is passed."""

    def act_at(point: str, act: Callable[[], None]) -> None:
        def passed(name: str) -> None:
            if name == point:
                act()

        monkeypatch.setattr(testing, "on_fault_point", passed)

    return act_at


def test_after_some_commits_the_file_has_its_full_size_and_the_log_what_it_had(
    tmp_path: Path, open_log: Callable[[], SqliteLog]
) -> None:
    log = open_log()
    commit(log, 0)
    assert wal_bytes(tmp_path) < GROWN_BYTES / 10

    commit(log, *range(1, COMMITS))

    assert wal_bytes(tmp_path) >= GROWN_BYTES
    values = [record.value for record in read_all(open_log(), topic_of(log))]
    assert values == [b"%d" % number for number in range(COMMITS)]
    assert "growth" not in tables(tmp_path)


def test_a_log_that_has_grown_is_written_on_in_the_same_file(
    tmp_path: Path, open_log: Callable[[], SqliteLog]
) -> None:
    log = open_log()
    commit(log, *range(COMMITS))
    grown_bytes = wal_bytes(tmp_path)

    commit(log, *range(COMMITS, 3 * COMMITS))
    commit(open_log(), *range(3 * COMMITS, 4 * COMMITS))

    assert wal_bytes(tmp_path) == grown_bytes
    assert len(check_log(tmp_path, [])) == 4 * COMMITS


def test_a_log_that_somebody_has_cut_grows_again(
    tmp_path: Path, open_log: Callable[[], SqliteLog]
) -> None:
    log = open_log()
    commit(log, *range(COMMITS))
    other = open_log()
    commit(other, COMMITS)
    # As a program does that writes something and ends, if nobody reads at that moment.
    other.close()
    assert wal_bytes(tmp_path) == 0

    commit(log, *range(COMMITS + 1, 2 * COMMITS + 1))

    assert wal_bytes(tmp_path) >= GROWN_BYTES
    assert len(check_log(tmp_path, [])) == 2 * COMMITS + 1


def test_a_kill_in_the_midst_of_growing_loses_nothing(tmp_path: Path) -> None:
    with child("write", tmp_path, "a", 1, fault="log.growth.inside") as writer:
        writer.end()
    left_bytes = wal_bytes(tmp_path)

    records = check_log(tmp_path, writer.lines)

    assert writer.process.returncode == -signal.SIGKILL
    # It grows after its writer was told, who may have said so when another thread led the commit.
    assert len(records) - len(writer.lines) in (0, 1)
    assert left_bytes > GROWN_BYTES / 2
    assert "growth" not in tables(tmp_path)
    with child("write", tmp_path, "b", 1) as following:
        following.until(lambda lines: len(lines) >= COMMITS)
        following.kill()
    check_log(tmp_path, [*writer.lines, *following.lines])


def test_a_failure_in_the_midst_of_growing_is_nobody_s_failure(
    tmp_path: Path,
    open_log: Callable[[], SqliteLog],
    at_fault_point: Callable[[str, Callable[[], None]], None],
) -> None:
    failures: list[str] = []

    def fail() -> None:
        failures.append("full")
        raise apsw.FullError("no room")

    at_fault_point("log.growth.inside", fail)
    log = open_log()

    commit(log, *range(COMMITS))
    commit(open_log(), COMMITS)

    # Each process tries once, after the writers were told.
    assert eventually(lambda: failures == ["full", "full"])
    assert len(check_log(tmp_path, [])) == COMMITS + 1


def test_an_interrupt_in_the_midst_of_growing_keeps_nobody_from_writing(
    open_log: Callable[[], SqliteLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "_GROW_AT_FRAMES", sqlite_writer._CHECKPOINT_FRAMES)
    log, other = open_log(), open_log()
    commit(log, 0)
    commit(other, 1)
    writer, written = log._writer, 2

    for place in range(1, PLACES_MAX):
        interrupt = Interrupt(place)
        # A writer is told before the turn is given back, when another thread has led its commit.
        assert eventually(lambda: not writer._turn.held)
        writer._connected()
        writer.acquire(1.0)
        try:
            interrupt.during(writer._grow)
        finally:
            writer.release()
        if not interrupt.came_at:
            break
        for one in (other, log):
            commit(one, written)
            written += 1
        # It has grown now: begin again with a file that has not.
        with writer.alone() as connection:
            other._writer._disconnect()
            writer._disconnect()
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    assert 5 < place < PLACES_MAX - 1
    assert len(read_all(log, topic_of(log))) == written
