"""What every Table promises, asked of each in the same words."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventstore.errors import Closed
from eventstore.view.base import Table
from eventstore.view.memory import MemoryTable
from eventstore.view.rocks import RocksTable


@pytest.fixture(params=["memory", "rocks"])
def open_copy(request: pytest.FixtureRequest) -> Callable[[Path], Table]:
    """How to open a checkpoint."""
    return MemoryTable if request.param == "memory" else RocksTable


@pytest.fixture
def table(open_copy: Callable[[Path], Table], tmp_path: Path) -> Iterator[Table]:
    made = MemoryTable() if open_copy is MemoryTable else RocksTable(tmp_path / "table")
    yield made
    made.close()


def put(table: Table, **rows: str) -> None:
    batch = table.batch()
    for key, value in rows.items():
        batch.put(key.encode(), value.encode())
    table.write(batch)


def delete(table: Table, *keys: str) -> None:
    batch = table.batch()
    for key in keys:
        batch.delete(key.encode())
    table.write(batch)


def keys_of(rows: Iterator[tuple[bytes, bytes]]) -> str:
    return " ".join(key.decode() for key, _ in rows)


def test_a_row_that_was_written_is_read_back_and_a_missing_one_is_none(table: Table) -> None:
    put(table, a="1")

    assert table.get(b"a") == b"1"
    assert table.get(b"b") is None


def test_keys_and_values_are_any_bytes_also_none_at_all(table: Table) -> None:
    batch = table.batch()
    rows = [(b"", b""), (b"\0", b"\xff\xfe"), (b"\0\0", b"\0"), (b"\xff" * 300, b"v" * 5_000_000)]
    for key, value in rows:
        batch.put(key, value)

    table.write(batch)

    assert [(key, table.get(key)) for key, _ in rows] == rows
    assert list(table.scan(b"", b"\xff" * 301)) == rows


def test_the_last_word_of_a_batch_about_a_key_counts(table: Table) -> None:
    batch = table.batch()
    batch.put(b"a", b"1")
    batch.delete(b"a")
    batch.delete(b"b")
    batch.put(b"b", b"1")
    batch.put(b"b", b"2")

    table.write(batch)

    assert list(table.scan(b"", b"z")) == [(b"b", b"2")]


def test_a_batch_has_no_effect_before_it_is_written(table: Table) -> None:
    batch = table.batch()
    batch.put(b"a", b"1")

    assert table.get(b"a") is None
    assert table.first(b"", b"z") is None


def test_a_deleted_row_is_gone_for_every_way_of_reading(table: Table) -> None:
    put(table, a="1", b="2", c="3")
    table.flush()

    delete(table, "b", "never-there")

    assert table.get(b"b") is None
    assert keys_of(table.scan(b"", b"z")) == "a c"
    assert table.first(b"b", b"z") == (b"c", b"3")
    assert table.last(b"", b"c") == (b"a", b"1")


def test_a_scan_has_its_start_and_not_its_end(table: Table) -> None:
    put(table, a="1", b="2", b1="3", c="4", d="5")

    assert keys_of(table.scan(b"b", b"d")) == "b b1 c"
    assert keys_of(table.scan(b"b", b"d", reverse=True)) == "c b1 b"
    assert keys_of(table.scan(b"b0", b"c0", reverse=True)) == "c b1"
    assert keys_of(table.scan(b"x", b"z")) == ""
    assert keys_of(table.scan(b"x", b"z", reverse=True)) == ""
    assert keys_of(table.scan(b"c", b"c")) == ""
    assert keys_of(table.scan(b"d", b"b")) == ""
    assert keys_of(table.scan(b"d", b"b", reverse=True)) == ""


def test_first_and_last_are_the_ends_of_the_range(table: Table) -> None:
    put(table, a="1", b="2", d="4")

    assert table.first(b"b", b"d") == (b"b", b"2")
    assert table.first(b"c", b"z") == (b"d", b"4")
    assert table.first(b"c", b"d") is None
    assert table.first(b"d", b"b") is None
    assert table.last(b"a", b"d") == (b"b", b"2")
    assert table.last(b"a", b"d\0") == (b"d", b"4")
    assert table.last(b"c", b"d") is None
    assert table.last(b"e", b"z") is None
    assert table.last(b"d", b"b") is None


def test_first_and_last_see_every_write_before_them(table: Table) -> None:
    put(table, a="1", m="1")
    assert table.last(b"a", b"z") == (b"m", b"1")

    put(table, n="1", A="1", m="2")

    assert table.first(b"A", b"z") == (b"A", b"1")
    assert table.last(b"a", b"n") == (b"m", b"2")
    assert table.last(b"a", b"z") == (b"n", b"1")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_shows_the_table_as_it_was_when_it_was_called(table: Table, reverse: bool) -> None:
    put(table, a="1", b="2", c="3", d="4")
    scan = table.scan(b"a", b"z", reverse=reverse)

    put(table, a="new", bb="new", e="new")
    delete(table, "c")
    table.flush()

    expected = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"d", b"4")]
    assert list(scan) == (expected[::-1] if reverse else expected)


def test_a_reader_never_sees_a_part_of_a_batch(table: Table) -> None:
    """Goal: atomic batches. Method: every batch sets two rows alike while a reader compares."""
    put(table, a="0", z="0")
    written_last = threading.Event()
    torn: list[list[tuple[bytes, bytes]]] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        while not written_last.is_set():
            rows = list(table.scan(b"a", b"zz"))
            reads += 1
            if len({value for _, value in rows}) != 1 or len(rows) != 2:
                torn.append(rows)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        number = 0
        while number < 3_000 or reads < 100:
            number += 1
            put(table, a=str(number), z=str(number))
    finally:
        written_last.set()
        reader.join()

    assert torn == []


def test_random_batches_give_the_rows_of_a_dict(table: Table) -> None:
    """Goal: an ordered map. Method: random batches on table and dict, compared after each."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    model: dict[bytes, bytes] = {}
    for _ in range(60):
        batch = table.batch()
        for _ in range(chance.randrange(40)):
            key = chance.randbytes(chance.randrange(3))
            if chance.random() < 0.4:
                batch.delete(key)
                model.pop(key, None)
            else:
                value = chance.randbytes(4)
                batch.put(key, value)
                model[key] = value
        table.write(batch)
        if chance.random() < 0.1:
            table.flush()

        start, end = chance.randbytes(2), chance.randbytes(chance.randrange(3))
        rows = sorted(row for row in model.items() if start <= row[0] < end)
        assert list(table.scan(start, end)) == rows
        assert list(table.scan(start, end, reverse=True)) == rows[::-1]
        assert table.first(start, end) == (rows[0] if rows else None)
        assert table.last(start, end) == (rows[-1] if rows else None)


def test_a_checkpoint_is_a_copy_that_can_be_opened_beside_the_table(
    table: Table, open_copy: Callable[[Path], Table], tmp_path: Path
) -> None:
    put(table, a="1", b="2")

    table.checkpoint(tmp_path / "folder" / "copy")
    put(table, a="later", c="later")

    copy = open_copy(tmp_path / "folder" / "copy")
    assert list(copy.scan(b"", b"z")) == [(b"a", b"1"), (b"b", b"2")]
    put(copy, a="of the copy")
    assert table.get(b"a") == b"later"
    copy.close()


def test_a_checkpoint_never_writes_into_a_folder_that_is_there(
    table: Table, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()

    with pytest.raises(FileExistsError):
        table.checkpoint(tmp_path / "copy")

    assert list((tmp_path / "copy").iterdir()) == []


def test_the_size_grows_with_the_rows(table: Table) -> None:
    before = table.size_bytes()

    batch = table.batch()
    for number in range(100):
        batch.put(str(number).encode(), os.urandom(10_000))
    table.write(batch)
    table.flush()

    assert 1_000_000 < table.size_bytes() - before < 1_500_000


def test_a_closed_table_says_so_and_closing_again_does_nothing(table: Table) -> None:
    put(table, a="1")

    batch = table.batch()
    table.close()
    table.close()

    with pytest.raises(Closed):
        table.get(b"a")
    with pytest.raises(Closed):
        table.first(b"", b"z")
    with pytest.raises(Closed):
        table.last(b"", b"z")
    with pytest.raises(Closed):
        list(table.scan(b"", b"z"))
    with pytest.raises(Closed):
        table.write(batch)
    with pytest.raises(Closed):
        table.flush()
    with pytest.raises(Closed):
        table.size_bytes()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_that_was_begun_fails_when_the_table_closes(table: Table, reverse: bool) -> None:
    put(table, a="1", b="2", c="3")
    scan = table.scan(b"", b"z", reverse=reverse)
    next(scan)

    table.close()

    with pytest.raises(Closed):
        next(scan)


def test_a_scan_can_be_left_unfinished(table: Table) -> None:
    put(table, a="1", b="2")

    scan = table.scan(b"", b"z")
    assert next(scan) == (b"a", b"1")
    del scan

    put(table, a="3")
    assert table.get(b"a") == b"3"


def test_a_scan_ends_at_its_end_whatever_is_read_meanwhile(table: Table) -> None:
    put(table, **{f"{letter}{number}": "" for letter in "abc" for number in range(9)})

    seen = {}
    for letter in "abc":
        # Bounds made for the call, and freed after it, while others are made in their place.
        scans = [table.scan(bytes((i,)), bytes((i + 1,))) for i in b"abc"]
        for other in "cab":
            assert table.last(other.encode(), other.encode() + b"\xff") == (
                f"{other}8".encode(),
                b"",
            )
        seen[letter] = [len(list(scan)) for scan in scans]

    assert seen == {"a": [9, 9, 9], "b": [9, 9, 9], "c": [9, 9, 9]}
