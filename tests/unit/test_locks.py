"""Locks between processes: who may hold one, and when the system gives it back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eventstore.locks import FileLock

HOLD = """
import sys
from pathlib import Path
from eventstore.locks import FileLock

lock = FileLock(Path(sys.argv[1]))
print(lock.try_acquire(), flush=True)
sys.stdin.read()
"""

DEADLINE_S = 30.0


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=DEADLINE_S)


def test_one_object_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")

    taken = [first.try_acquire(), second.try_acquire()]
    first.release()

    assert taken == [True, False]
    assert second.try_acquire()


def test_a_process_keeps_others_out_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock(path)
    process = holder(path)

    held = lock.try_acquire()
    end(process)

    assert not held
    assert lock.try_acquire()


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path / "a.lock")

    process.send_signal(signal.SIGKILL)
    end(process)

    assert FileLock(tmp_path / "a.lock").try_acquire()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    assert lock.try_acquire()
    read_end, write_end = os.pipe()
    told, tell = os.pipe()

    child = os.fork()
    if child == 0:  # pragma: no cover
        os.close(write_end)
        os.write(tell, b".")  # the fork is over, and with it what is done for the child
        os.read(read_end, 1)  # until the parent has looked
        os._exit(0)
    os.close(read_end)
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    lock.close()
    free = FileLock(tmp_path / "a.lock").try_acquire()
    os.close(write_end)
    os.waitpid(child, 0)

    assert free


def test_a_lock_whose_file_was_deleted_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    first, second = FileLock(path), FileLock(path, keep_open=True)
    assert first.try_acquire()
    assert not second.try_acquire()  # has the first file open now

    first.release(unlink=True)
    third = FileLock(path)
    assert third.try_acquire()

    assert not second.try_acquire()


def test_waiting_for_a_lock_ends_when_it_is_released(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert first.try_acquire()
    waiting = threading.Thread(target=lambda: second.acquire(DEADLINE_S))

    waiting.start()
    first.release()
    waiting.join()

    assert second.held


def test_waiting_for_a_lock_ends_with_its_timeout(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert first.try_acquire()

    assert not second.acquire(0.01)


def test_a_beat_changes_the_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock(path)
    missing = FileLock.heartbeat(path)
    assert lock.try_acquire()
    os.utime(path, ns=(1, 1))
    before = FileLock.heartbeat(path)

    lock.beat()

    assert missing is None
    assert FileLock.heartbeat(path) != before


def test_others_read_the_note_of_the_holder(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    assert lock.try_acquire()
    lock.write_note("a longer note of before")

    lock.write_note("member-1")

    assert FileLock.read_note(lock.path) == "member-1"
    assert FileLock.read_note(tmp_path / "none.lock") == ""
