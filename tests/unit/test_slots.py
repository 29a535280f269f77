"""Slots, within one process: who gets which, what a new one starts from, what is deleted when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eventstore import testing
from eventstore.view.base import TableUnavailable
from eventstore.view.memory import MemoryTable
from eventstore.view.rocks import RocksTable
from eventstore.view.slots import Slot, publish, set_aside, slot_states, take_slot

IDLE_S = 3_600.0


@pytest.fixture
def take(tmp_path: Path) -> Callable[[], Slot]:
    return lambda: take_slot(tmp_path, "orders", idle_s=IDLE_S)


def fill(slot: Slot, text: str = "warm") -> None:
    slot.path.mkdir()
    (slot.path / "content").write_text(text)


def make_old(path: Path, age_s: float) -> None:
    then_s = time.time() - age_s
    os.utime(path, (then_s, then_s))


def names(folder: Path, start: str = "") -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(start))


def table_with(value: bytes) -> MemoryTable:
    table = MemoryTable()
    batch = table.batch()
    batch.put(b"key", value)
    table.write(batch)
    return table


def test_those_who_come_together_get_slots_of_their_own(take: Callable[[], Slot]) -> None:
    slots = [take(), take(), take()]

    assert [slot.number for slot in slots] == [0, 1, 2]
    assert [slot.path.name for slot in slots] == ["slot-00", "slot-01", "slot-02"]
    for slot in slots:
        slot.release()


def test_apps_have_slots_of_their_own(tmp_path: Path) -> None:
    with (
        take_slot(tmp_path, "orders", idle_s=IDLE_S) as orders,
        take_slot(tmp_path, "users", idle_s=IDLE_S) as users,
    ):
        assert (orders.number, users.number) == (0, 0)
        assert orders.path != users.path


def test_a_released_slot_is_taken_again_with_what_is_in_it(take: Callable[[], Slot]) -> None:
    with take() as slot:
        fill(slot)

    with take() as again:
        assert (again.path / "content").read_text() == "warm"


def test_a_warm_slot_is_taken_before_a_lower_one_that_has_no_database(
    take: Callable[[], Slot],
) -> None:
    first, second, third = take(), take(), take()
    fill(second)
    fill(third)
    for slot in (first, second, third):
        slot.release()

    taken = [take(), take(), take()]

    assert [slot.number for slot in taken] == [1, 2, 0]
    for slot in taken:
        slot.release()


def test_releasing_again_does_not_take_the_slot_from_its_next_owner(
    take: Callable[[], Slot],
) -> None:
    slot = take()
    slot.release()
    owner = take()

    slot.release()

    with take() as other:
        assert (owner.number, other.number) == (0, 1)
    owner.release()


def test_a_new_slot_starts_from_the_newest_checkpoint(take: Callable[[], Slot]) -> None:
    with take() as owner:
        fill(owner)
        publish(owner, table_with(b"old"))
        publish(owner, table_with(b"new"))

        with take() as slot:
            assert MemoryTable(slot.path).get(b"key") == b"new"
        assert names(owner.path.parent, "checkpoint") == ["checkpoint-000002"]


def test_seeding_starts_again_when_its_checkpoint_is_replaced_meanwhile(
    take: Callable[[], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    with take() as owner:
        fill(owner)
        publish(owner, table_with(b"old"))

        def publish_once(point: str) -> None:
            monkeypatch.undo()
            publish(owner, table_with(b"new"))

        monkeypatch.setattr(testing, "on_fault_point", publish_once)
        with take() as slot:
            assert MemoryTable(slot.path).get(b"key") == b"new"


def test_a_new_slot_is_empty_when_nobody_published_or_nobody_wants_it(tmp_path: Path) -> None:
    with take_slot(tmp_path, "orders", idle_s=IDLE_S) as owner:
        assert not owner.path.exists()
        fill(owner)
        publish(owner, table_with(b"1"))

        with take_slot(tmp_path, "orders", idle_s=IDLE_S, seed=False) as slot:
            assert not slot.path.exists()


def test_a_seeded_table_and_its_origin_go_separate_ways(take: Callable[[], Slot]) -> None:
    """Goal: table files are shared by links; what either writes later must not reach the other."""
    with take() as owner:
        origin = RocksTable(owner.path)
        batch = origin.batch()
        batch.put(b"shared", os.urandom(100_000))
        origin.write(batch)
        publish(owner, origin)
        with take() as slot:
            seeded = RocksTable(slot.path)
            for table in (origin, seeded):
                batch = table.batch()
                batch.put(b"own", str(table.path).encode())
                batch.delete(b"shared") if table is origin else None
                table.write(batch)
                table.close()

            origin, seeded = RocksTable(owner.path), RocksTable(slot.path)

            assert origin.get(b"shared") is None
            assert seeded.get(b"shared") is not None
            assert origin.get(b"own") == str(owner.path).encode()
            assert seeded.get(b"own") == str(slot.path).encode()
            links = {file.stat().st_nlink for file in slot.path.glob("*.sst")}
            assert max(links) > 1, "the shared rows were copied"
            origin.close()
            seeded.close()


def test_a_slot_that_nobody_used_for_long_is_deleted(take: Callable[[], Slot]) -> None:
    slots = [take(), take(), take()]
    for slot in slots:
        fill(slot)
        slot.release()
    folder = slots[0].path.parent
    for name in ("slot-01", "slot-01.lock", "slot-02"):
        make_old(folder / name, IDLE_S + 60)

    with take():
        assert names(folder, "slot") == ["slot-00", "slot-00.lock", "slot-02", "slot-02.lock"]


def test_a_slot_in_use_is_never_deleted_however_long_it_lies_still(
    take: Callable[[], Slot],
) -> None:
    first, owner = take(), take()
    fill(owner)
    first.release()
    for path in (owner.path, owner.path.with_name("slot-01.lock")):
        make_old(path, IDLE_S + 60)

    with take():
        assert (owner.path / "content").read_text() == "warm"
        assert names(owner.path.parent, "slot-01") == ["slot-01", "slot-01.lock"]
    owner.release()


def test_the_slot_that_is_taken_is_kept_however_old_it_is(take: Callable[[], Slot]) -> None:
    with take() as slot:
        fill(slot)
    for name in ("slot-00", "slot-00.lock"):
        make_old(slot.path.with_name(name), IDLE_S + 60)

    with take() as again:
        assert (again.path / "content").read_text() == "warm"


def test_a_checkpoint_that_nobody_replaced_for_long_is_deleted(take: Callable[[], Slot]) -> None:
    with take() as owner:
        fill(owner)
        published = publish(owner, table_with(b"1"))
    make_old(published, IDLE_S + 60)

    with take():
        assert names(owner.path.parent, "checkpoint") == []


def test_what_a_killed_owner_left_half_done_is_deleted_by_the_next(
    take: Callable[[], Slot],
) -> None:
    with take() as slot:
        fill(slot)
        folder = slot.path.parent
    for suffix in ("seed", "checkpoint", "gone"):
        (folder / f"slot-00.{suffix}").mkdir()
        (folder / f"slot-00.{suffix}" / "half").touch()

    with take():
        assert names(folder) == ["slot-00", "slot-00.lock"]


def test_a_database_that_is_set_aside_is_kept_with_the_reason(take: Callable[[], Slot]) -> None:
    with take() as slot:
        fill(slot, "damaged")

        aside = set_aside(slot.path, "checksum mismatch in 000012.sst")

        assert not slot.path.exists()
        assert aside.name == "slot-00.damaged-1"
        assert (aside / "content").read_text() == "damaged"
        reason = aside.with_name("slot-00.damaged-1.txt")
        assert reason.read_text() == "checksum mismatch in 000012.sst\n"


def test_a_file_in_the_place_of_a_database_is_set_aside_too(take: Callable[[], Slot]) -> None:
    with take() as slot:
        slot.path.write_text("not a database")

        aside = set_aside(slot.path, "a file")

        assert aside.read_text() == "not a database"


def test_only_the_newest_three_that_were_set_aside_are_kept(take: Callable[[], Slot]) -> None:
    first, second = take(), take()
    for slot in (first, second, first, first, second):
        fill(slot)
        set_aside(slot.path, "why")

    assert [name for name in names(first.path.parent) if "damaged" in name] == [
        "slot-00.damaged-3",
        "slot-00.damaged-3.txt",
        "slot-00.damaged-4",
        "slot-00.damaged-4.txt",
        "slot-01.damaged-5",
        "slot-01.damaged-5.txt",
    ]
    first.release()
    second.release()


def test_no_slot_starts_from_a_checkpoint_older_than_a_database_that_was_set_aside(
    take: Callable[[], Slot],
) -> None:
    with take() as owner:
        fill(owner)
        publish(owner, table_with(b"of another log"))

        set_aside(owner.path, "another log")

        with take() as slot:
            assert not slot.path.exists()


def test_the_states_of_slots_tell_which_are_in_use(
    take: Callable[[], Slot], tmp_path: Path
) -> None:
    before_s = time.time() - 1
    first, second = take(), take()
    fill(first)
    fill(second)
    first.release()

    states = slot_states(tmp_path, "orders")

    assert [(state.number, state.busy) for state in states] == [(0, False), (1, True)]
    assert all(before_s < state.used_s < time.time() + 1 for state in states)
    assert slot_states(tmp_path, "never-opened") == []
    second.release()


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "orders").write_text("a file")

    with pytest.raises(TableUnavailable, match=str(tmp_path / "orders")):
        take_slot(tmp_path, "orders", idle_s=IDLE_S)
