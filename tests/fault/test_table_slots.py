"""Slots between processes: never shared, free at once after a kill, whole after a kill inside.

Method: real processes, killed with SIGKILL at fault points; races over many rounds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from eventstore.view.memory import MemoryTable
from eventstore.view.rocks import RocksTable
from eventstore.view.slots import Slot, publish, set_aside, take_slot

IDLE_S = 3_600.0
SPAWN = multiprocessing.get_context("spawn")


def take(root: Path) -> Slot:
    return take_slot(root, "orders", idle_s=IDLE_S)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hold_a_slot(root: Path, channel: Connection) -> None:
    slot = take(root)
    RocksTable(slot.path).close()
    channel.send(slot.number)
    with suppress(EOFError):
        channel.recv()


class TableOfManyFiles(MemoryTable):
    """One whose checkpoints take a while to copy, and show when a file is missing."""

    FILES = 30

    def checkpoint(self, path: Path) -> None:
        path.mkdir()
        for number in range(self.FILES):
            (path / f"{number}.sst").touch()


def take_and_release_often(root: Path, rounds: int, channel: Connection) -> None:
    channel.recv()
    seeded = 0
    for number in range(rounds):
        with take(root) as slot:
            if slot.path.exists():
                seeded += 1
                assert len(list(slot.path.iterdir())) == TableOfManyFiles.FILES
            else:
                TableOfManyFiles().checkpoint(slot.path)
            # Fails when somebody else is in here.
            os.close(os.open(slot.path / "in-use", os.O_CREAT | os.O_EXCL))
            publish(slot, TableOfManyFiles())
            (slot.path / "in-use").unlink()
            if number % 10 == 0:
                set_aside(slot.path, "to have it seeded again")
            elif number % 3 == 0:
                shutil.rmtree(slot.path)
    channel.send(seeded)


def run(program: str, root: Path, fault: str) -> int:
    """Run `program` with its fault point armed; return its exit code (negative: the signal)."""
    result = subprocess.run(
        [sys.executable, "-c", f"{IMPORTS}{program}", str(root)],
        env=os.environ | {"EVENTSTORE_FAULT": fault},
        timeout=60,
        check=False,
    )
    return result.returncode


IMPORTS = """
import sys
from pathlib import Path
from eventstore.view.slots import publish, set_aside, take_slot
root = Path(sys.argv[1])
"""
TAKES = "take_slot(root, 'orders', idle_s=3600.0)"
SETS_ASIDE = "set_aside(take_slot(root, 'orders', idle_s=3600.0).path, 'damaged')"


def test_two_processes_get_different_slots_and_a_killed_ones_is_free_at_once(
    tmp_path: Path,
) -> None:
    pairs = [SPAWN.Pipe() for _ in range(2)]
    holders = [SPAWN.Process(target=hold_a_slot, args=(tmp_path, theirs)) for _, theirs in pairs]
    try:
        numbers = []
        for holder, (ours, theirs) in zip(holders, pairs, strict=True):
            holder.start()
            theirs.close()
            assert ours.poll(30)
            numbers.append(ours.recv())
        assert numbers == [0, 1]

        holders[0].kill()
        holders[0].join(30)

        with take(tmp_path) as slot:
            assert slot.number == 0
            RocksTable(slot.path).close()
    finally:
        for holder, (ours, _) in zip(holders, pairs, strict=True):
            ours.close()
            holder.join(30)


def test_processes_that_race_never_share_a_slot(tmp_path: Path) -> None:
    pairs = [SPAWN.Pipe() for _ in range(8)]
    racers = [
        SPAWN.Process(target=take_and_release_often, args=(tmp_path, 15, theirs))
        for _, theirs in pairs
    ]
    for racer, (_, theirs) in zip(racers, pairs, strict=True):
        racer.start()
        theirs.close()

    for ours, _ in pairs:
        ours.send("go")

    for racer, (ours, _) in zip(racers, pairs, strict=True):
        assert ours.poll(60)
        assert ours.recv() > 0
        racer.join(30)
        assert racer.exitcode == 0
    slots = [name for name in names(tmp_path / "orders") if name.endswith(".lock")]
    assert len(slots) <= 8, "more slots than processes were made"
    left = [name for name in names(tmp_path / "orders") if name.startswith("checkpoint")]
    assert len(left) <= 1


@pytest.mark.parametrize("files_copied", [1, 3])
def test_a_slot_whose_owner_was_killed_while_seeding_is_seeded_again(
    tmp_path: Path, files_copied: int
) -> None:
    with take(tmp_path) as owner:
        table = RocksTable(owner.path)
        batch = table.batch()
        batch.put(b"a", b"1")
        table.write(batch)
        publish(owner, table)

        exit_code = run(TAKES, tmp_path, f"slot.seed.inside:{files_copied}")

        assert exit_code == -signal.SIGKILL
        folder = tmp_path / "orders"
        assert "slot-01.seed" in names(folder)
        assert "slot-01" not in names(folder)
        with take(tmp_path) as slot:
            assert slot.number == 1
            assert "slot-01.seed" not in names(folder)
            seeded = RocksTable(slot.path)
            assert seeded.get(b"a") == b"1"
            seeded.close()
        table.close()


def test_a_slot_whose_owner_was_killed_while_setting_aside_is_a_new_one(tmp_path: Path) -> None:
    with take(tmp_path) as slot:
        slot.path.mkdir()
        (slot.path / "content").write_text("damaged")

    exit_code = run(SETS_ASIDE, tmp_path, "slot.aside.inside")

    assert exit_code == -signal.SIGKILL
    with take(tmp_path) as slot:
        assert slot.number == 0
        assert not slot.path.exists()
        aside = slot.path.with_name("slot-00.damaged-1")
        assert (aside / "content").read_text() == "damaged"


FORKS = """
import os, socket
slot = take_slot(root, 'orders', idle_s=3600.0)
parent_end, child_end = socket.socketpair()
child = os.fork()
if child == 0:
    parent_end.close()
    child_end.send(b"running")
    child_end.recv(1)  # lives until its parent closes the other end
    os._exit(0)
child_end.close()
parent_end.recv(7)
slot.release()
again = take_slot(root, 'orders', idle_s=3600.0)
assert (slot.number, again.number) == (0, 0), "the child holds the slot"
parent_end.close()
os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_hold_its_parents_slot(tmp_path: Path) -> None:
    assert run(FORKS, tmp_path, "none") == 0
