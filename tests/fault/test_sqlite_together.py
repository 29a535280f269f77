"""Goal: several processes on one embedded log share it fairly, hear one another, and hand over.

Method: real processes, one of them killed or stopped while it owns shards or holds its turn.
"""

from __future__ import annotations

import itertools
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore.config import Config
from eventstore.errors import LogUnavailable
from eventstore.locks import FileLock
from eventstore.log.base import Topic
from eventstore.log.nudges import Nudges
from eventstore.log.ownership import STANDS_STILL_S
from eventstore.log.sqlite import SqliteLog
from eventstore.log.sqlite_writer import WRITTEN_RECORDS_MAX, Turn
from tests.contract.logs import DEADLINE_S, eventually, queue, write
from tests.fault.sqlite_child import APP
from tests.fault.sqlite_processes import PATIENCE_S, Child, check_log, child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP and FIFOs")

EVERYTHING = frozenset(range(16))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    opened = SqliteLog(tmp_path, Config.load({}))
    yield opened
    opened.close()


@pytest.fixture
def topic(log: SqliteLog) -> Topic:
    created = log.topic(APP, create=True)
    assert created is not None
    return created


def shards(line: str) -> frozenset[int]:
    return frozenset(map(int, line.split()))


def commits_in_turn(*writers: Child) -> list[float]:
    """Return how many commits there were, by what was told, before somebody else had its turn."""
    lines = [line.split() for writer in writers for line in writer.lines]
    told = sorted((int(offset), value[0]) for value, offset in lines)
    turns = itertools.groupby(name for _, name in told)
    # At most 8 records are in a commit of `a`, and one in a commit of `b`.
    return [len(list(turn)) / (8 if name == "a" else 1) for name, turn in turns]


def test_a_process_that_commits_in_a_loop_does_not_starve_another(tmp_path: Path) -> None:
    with (
        child("write", tmp_path, "a", 8) as first,
        child("write", tmp_path, "b", 1) as second,
    ):
        while len(commits_in_turn(first, second)) < 300:
            for writer in (first, second):
                goal = len(writer.lines) + 20
                writer.until(lambda lines, goal=goal: len(lines) > goal)  # type: ignore[misc]
        # Not all: whoever stands still does not wait for its turn.
        nine_in_ten = statistics.quantiles(commits_in_turn(first, second), n=10)[-1]
        first.kill()
        second.kill()

    assert nine_in_ten < 4
    check_log(tmp_path, first.lines + second.lines)


def test_who_waits_for_the_turn_gets_it_before_the_one_who_just_had_it(tmp_path: Path) -> None:
    folder = tmp_path
    busy, patient = Turn(folder), Turn(folder)
    order: list[str] = []
    probe = FileLock(folder / "next.lock")

    def take_patiently() -> None:
        patient.take(30.0)
        order.append("patient")
        patient.give_back()

    def somebody_is_next() -> bool:
        if probe.try_acquire():
            probe.release()
            return False
        return True

    for _ in range(20):
        busy.take(30.0)
        waiting = threading.Thread(target=take_patiently)
        waiting.start()
        assert eventually(somebody_is_next)
        busy.give_back()
        busy.take(30.0)
        order.append("busy")
        busy.give_back()
        waiting.join()

    assert order == ["patient", "busy"] * 20
    busy.close()
    patient.close()


def test_a_waiting_process_is_nudged_rather_than_left_to_look(log: SqliteLog, topic: Topic) -> None:
    slow = Config.load({}, poll_interval_ms=10_000)
    patient = SqliteLog(log.folder, slow)

    with child("write", log.folder, "a", 1) as writer:
        for offset in range(20):
            begun_s = time.monotonic()
            # By itself it looks after 80 s, and at the end of its time.
            assert patient.wait(topic, {0: offset}, 2 * DEADLINE_S)
            assert time.monotonic() - begun_s < DEADLINE_S, "woken by its own look, not by a nudge"
        writer.kill()

    patient.close()


def test_news_arrive_without_nudges_too(
    log: SqliteLog, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.log.nudges.Nudges.ring", lambda self, **_: None)
    written: list[object] = []

    def written_to_while_it_listens(self: Nudges, timeout_s: float) -> bool:
        written.extend(() if written else write(log, topic, (b"k", b"v")))
        return False

    monkeypatch.setattr("eventstore.log.nudges.Nudges.listen", written_to_while_it_listens)

    assert log.wait(topic, {0: 0}, 30.0)
    assert written, "it has listened, and heard nothing"


def test_readers_here_are_woken_by_every_commit_but_that_of_a_writer_who_reads_himself(
    log: SqliteLog, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[bool] = []
    monkeypatch.setattr(
        "eventstore.log.nudges.Nudges.ring", lambda self, *, here=True: woken.append(here)
    )

    write(log, topic, (b"k", b"plain"))
    (attended,) = queue(log, topic, (b"k", b"attended"), unless_newer=1)
    attended.drive(log)
    # In one commit: the one who reads himself says nothing for the other.
    somebody_writes = Turn(log.folder / "locks")
    somebody_writes.take(5.0)
    (attended_too,) = queue(log, topic, (b"k", b"attended"), unless_newer=2)
    (plain,) = queue(log, topic, (b"k", b"plain"))
    somebody_writes.close()
    plain.drive(log)

    assert attended_too.done
    assert woken == [True, False, True]


def test_a_writer_who_reads_himself_wakes_those_here_who_do_not_wait_attended(
    log: SqliteLog, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[bool] = []
    monkeypatch.setattr(
        "eventstore.log.nudges.Nudges.ring", lambda self, *, here=True: woken.append(here)
    )

    def written_to_while_it_listens(self: Nudges, timeout_s: float) -> bool:
        end = log.offset_end(topic, 0)
        queue(log, topic, (b"k", b"v"), unless_newer=end)[0].drive(log)
        return True

    monkeypatch.setattr("eventstore.log.nudges.Nudges.listen", written_to_while_it_listens)

    assert log.wait(topic, {0: 0}, 30.0)
    assert log.wait(topic, {0: 1}, 30.0, attended=True)
    assert woken == [True, False]


def test_a_small_commit_is_read_once_without_the_database_and_as_the_database_has_it(
    log: SqliteLog, topic: Topic, tmp_path: Path
) -> None:
    other = SqliteLog(tmp_path, Config.load({}))
    for count in (1, 2, WRITTEN_RECORDS_MAX, WRITTEN_RECORDS_MAX + 1, 40, 3):
        (_, first), *_ = write(log, topic, *((b"k", b"%d" % n) for n in range(count)))
        write(other, topic, (b"k", b"of another process"))

        at_once = log.read(topic, 0, first, records_max=1_000, bytes_max=1 << 20)
        again = log.read(topic, 0, first, records_max=1_000, bytes_max=1 << 20)

        assert len(again.records) == count + 1
        # What another process wrote is seen in the database only.
        assert len(at_once.records) == count + (count > WRITTEN_RECORDS_MAX)
        assert list(at_once.records) == again.records[: len(at_once.records)]
        assert at_once.offset_next == first + len(at_once.records)
    other.close()


def test_what_was_just_written_to_a_file_that_is_gone_is_read_no_second_time(
    log: SqliteLog, topic: Topic
) -> None:
    write(log, topic, (b"k", b"v"))
    assert log.read(topic, 0, 0, records_max=100, bytes_max=1 << 20).records
    (log.folder / "log.sqlite").rename(log.folder / "elsewhere.sqlite")

    with pytest.raises(LogUnavailable, match="moved, deleted or replaced"):
        log.read(topic, 0, 0, records_max=100, bytes_max=1 << 20)


class OwnTime:
    """What the thread that looks after the shards has waited, as it asked to: its own time.

    A machine that stands still, or has much else to do, adds nothing to it.
    """

    def __init__(self) -> None:
        self.s = 0.0
        self._listen = Nudges.listen

    def listen(self, news: Nudges, timeout_s: float) -> bool:
        nudged = self._listen(news, timeout_s)
        if not nudged and news._folder.name == "owners":
            self.s += timeout_s
        return nudged

    def monotonic(self) -> float:
        return self.s


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> OwnTime:
    own_time = OwnTime()
    monkeypatch.setattr(Nudges, "listen", lambda *arguments: own_time.listen(*arguments))
    monkeypatch.setattr("eventstore.log.ownership.time", own_time)
    return own_time


def test_the_shards_of_a_killed_owner_are_taken_within_a_second(
    own_time: OwnTime, log: SqliteLog, topic: Topic
) -> None:
    with child("own", log.folder, "group") as owner:
        owner.until(lambda lines: bool(lines) and shards(lines[-1]) == EVERYTHING)
        mine = log.own(topic, "group", lambda shards: None)
        assert eventually(lambda: len(mine.shards) == 8)

        owner.kill()
        begun_s = own_time.s
        assert eventually(lambda: mine.shards == EVERYTHING)
        took_s = own_time.s - begun_s

    assert took_s < 1.0


def test_an_owner_that_leaves_hands_over_at_once(log: SqliteLog, topic: Topic) -> None:
    with child("own", log.folder, "group") as owner:
        owner.until(lambda lines: bool(lines) and shards(lines[-1]) == EVERYTHING)
        mine = log.own(topic, "group", lambda shards: None)
        assert eventually(lambda: len(mine.shards) == 8)

        assert owner.process.stdin is not None
        owner.process.stdin.write("\n")
        owner.process.stdin.flush()

        assert eventually(lambda: mine.shards == EVERYTHING)


def test_a_stopped_owner_is_passed_over_and_finds_out_when_it_goes_on(
    own_time: OwnTime, log: SqliteLog, topic: Topic
) -> None:
    with child("own", log.folder, "group") as owner:
        owner.until(lambda lines: bool(lines) and shards(lines[-1]) == EVERYTHING)
        mine = log.own(topic, "group", lambda shards: None)
        assert eventually(lambda: len(mine.shards) == 8)

        owner.process.send_signal(signal.SIGSTOP)
        begun_s = own_time.s
        assert eventually(lambda: mine.shards == EVERYTHING)
        took_s = own_time.s - begun_s
        (life,) = log.folder.rglob(f"{owner.process.pid}-*.member")
        still_s = time.time() - life.stat().st_mtime
        owner.process.send_signal(signal.SIGCONT)

        assert took_s < STANDS_STILL_S + 1.0
        assert still_s > STANDS_STILL_S
        assert eventually(
            lambda: len(mine.shards) == 8 and shards(owner.lines[-1]) == EVERYTHING - mine.shards
        )


def test_three_members_share_fairly(log: SqliteLog, topic: Topic) -> None:
    with child("own", log.folder, "group") as first, child("own", log.folder, "group") as second:
        mine = log.own(topic, "group", lambda shards: None)

        def is_fair() -> bool:
            held = [shards(owner.lines[-1]) for owner in (first, second) if owner.lines]
            held.append(mine.shards)
            return sorted(map(len, held)) == [5, 5, 6] and frozenset().union(*held) == EVERYTHING

        assert eventually(is_fair, PATIENCE_S)


def test_a_turn_that_a_stopped_process_keeps_is_unavailability(tmp_path: Path) -> None:
    hasty = SqliteLog(tmp_path, Config.load({}, append_timeout_s=0.3))
    topic = hasty.topic(APP, create=True)
    assert topic is not None
    write(hasty, topic, (b"k", b"before"))
    turn = SqliteLog(tmp_path, Config.load({}))
    turn._writer.acquire(1.0)

    [told] = queue(hasty, topic, (b"k", b"refused"))
    with pytest.raises(LogUnavailable, match=r"writer\.lock"):
        told.drive(hasty)
    turn._writer.release()
    write(hasty, topic, (b"k", b"after"))

    hasty.close()
    turn.close()
    assert [record.value for record in check_log(tmp_path, [])] == [b"before", b"after"]
