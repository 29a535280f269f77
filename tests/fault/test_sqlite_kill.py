"""Goal: a process killed at any moment leaves a log that opens and has every acknowledged event.

Method: a child appends and prints what was acknowledged; it dies of SIGKILL at each named point of
a commit, and at random moments while several threads and processes write. Then the log is read.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.fault.sqlite_processes import check_log, child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

#: Writes that a process was told of, at the least, before it is killed at a random moment.
WRITES_MIN = 20


@pytest.mark.parametrize("passage", [1, 2, 7])
@pytest.mark.parametrize(
    ("point", "is_written"),
    [
        ("log.commit.before", False),
        ("log.commit.inside", False),
        ("log.commit.after", True),
        ("log.acknowledged", True),
    ],
)
def test_a_kill_inside_a_commit_loses_nothing_acknowledged(
    tmp_path: Path, point: str, is_written: bool, passage: int
) -> None:
    with child("write", tmp_path, "a", 1, fault=f"{point}:{passage}") as writer:
        writer.end()
        acknowledged = writer.lines

    records = check_log(tmp_path, acknowledged)

    assert writer.process.returncode == -9
    assert len(records) == passage - 1 + is_written
    # Who was told may have said so, when another thread than its own has led the commit.
    said_max = passage if point == "log.acknowledged" else passage - 1
    assert passage - 1 <= len(acknowledged) <= said_max


@pytest.mark.parametrize("round_number", range(3))
def test_kills_at_random_moments_lose_nothing_acknowledged(
    tmp_path: Path, round_number: int
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")  # shown by pytest when this fails
    choose = random.Random(seed)
    acknowledged: list[str] = []

    for generation in range(3):  # each goes on with what the killed ones left
        with (
            child("write", tmp_path, f"a{generation}", 4) as first,
            child("write", tmp_path, f"b{generation}", 1) as second,
        ):
            count = choose.randrange(WRITES_MIN, 400)
            first.until(lambda lines, count=count: len(lines) >= count)  # type: ignore[misc]
            for writer in choose.sample([first, second], 2):
                writer.kill()
                acknowledged += writer.lines

        check_log(tmp_path, acknowledged)

    assert len(acknowledged) >= 3 * WRITES_MIN


def test_a_writer_that_is_killed_does_not_stop_the_others(tmp_path: Path) -> None:
    with child("write", tmp_path, "b", 2) as other:
        other.until(lambda lines: len(lines) > 5)
        with child("write", tmp_path, "a", 1, fault="log.commit.inside:5") as writer:
            writer.end()
        count = len(other.lines)
        other.until(lambda lines: len(lines) > count + 20)
        other.kill()

        check_log(tmp_path, [*other.lines, *writer.lines])


def test_a_store_that_nobody_closed_is_flushed_when_the_interpreter_ends(tmp_path: Path) -> None:
    with child("leave", tmp_path, 500) as writer:
        writer.end()

    assert writer.process.returncode == 0
    assert len(check_log(tmp_path, [])) == 500
