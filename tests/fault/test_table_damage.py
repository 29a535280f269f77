"""A damaged, foreign or busy database is named, and never taken for an empty one.

Method: damage a small real database in each way that an accident could, and open it.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from eventstore.errors import Closed, ViewDamaged
from eventstore.view.base import TableLocked, TableUnavailable
from eventstore.view.rocks import RocksTable

ROWS = 20_000


def make_database(path: Path) -> None:
    table = RocksTable(path)
    for layer in range(3):
        batch = table.batch()
        for number in range(ROWS):
            batch.put(struct.pack(">QI", number, layer), os.urandom(20))
        table.write(batch)
        table.flush()
    table.close()


def files(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern))


def cut_a_table_file(path: Path) -> None:
    file = files(path, "*.sst")[1]
    os.truncate(file, file.stat().st_size // 2)


def empty_a_table_file(path: Path) -> None:
    os.truncate(files(path, "*.sst")[1], 0)


def delete_a_table_file(path: Path) -> None:
    files(path, "*.sst")[1].unlink()


def delete_the_manifest(path: Path) -> None:
    files(path, "MANIFEST-*")[0].unlink()


def delete_current(path: Path) -> None:
    (path / "CURRENT").unlink()


def delete_current_and_the_log(path: Path) -> None:
    (path / "CURRENT").unlink()
    for file in files(path, "*.log"):
        file.unlink()


def overwrite_current(path: Path) -> None:
    (path / "CURRENT").write_bytes(os.urandom(100))


def overwrite_the_manifest(path: Path) -> None:
    file = files(path, "MANIFEST-*")[0]
    file.write_bytes(os.urandom(file.stat().st_size))


def put_a_foreign_folder_there(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "photographs.txt").write_text("dear diary")


def put_a_file_there(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("dear diary")


@pytest.mark.parametrize(
    "damage",
    [
        cut_a_table_file,
        empty_a_table_file,
        delete_a_table_file,
        delete_the_manifest,
        delete_current,
        delete_current_and_the_log,
        overwrite_current,
        overwrite_the_manifest,
        put_a_foreign_folder_there,
        put_a_file_there,
    ],
)
def test_a_damaged_database_is_not_opened_and_the_error_names_it(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "table"
    make_database(path)
    damage(path)

    with pytest.raises(ViewDamaged, match=str(path)) as caught:
        RocksTable(path)

    assert not isinstance(caught.value, TableUnavailable)
    assert len(str(caught.value)) > len(f"view database {path}: ")


def test_a_damaged_block_is_an_error_and_not_the_end_of_a_scan(tmp_path: Path) -> None:
    path = tmp_path / "table"
    make_database(path)
    file = files(path, "*.sst")[1]
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\xff" * 4_000)
    table = RocksTable(path)
    end = b"\xff" * 12

    with pytest.raises(ViewDamaged, match="checksum"):
        list(table.scan(b"", end))
    with pytest.raises(ViewDamaged, match="checksum"):
        list(table.scan(b"", end, reverse=True))
    keys = [struct.pack(">QI", number, 1) for number in range(ROWS)]
    with pytest.raises(ViewDamaged, match="checksum"):
        [table.get(key) for key in keys]
    with pytest.raises(ViewDamaged, match="checksum"):
        [table.first(key, end) for key in keys]
    with pytest.raises(ViewDamaged, match="checksum"):
        [table.last(b"", key) for key in keys]
    table.close()


def test_a_database_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.mkdir()
    for name in ("LOCK", "LOG", "IDENTITY", "MANIFEST-000001"):
        (path / name).touch()

    table = RocksTable(path)

    assert table.first(b"", b"\xff") is None
    table.close()


def hold_open(path: Path, channel: Connection) -> None:
    table = RocksTable(path)
    channel.send("open")
    channel.recv()
    table.close()


def test_a_database_open_in_another_process_is_locked_and_not_damaged(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    channel, channel_of_holder = context.Pipe()
    holder = context.Process(target=hold_open, args=(tmp_path / "table", channel_of_holder))
    holder.start()
    try:
        assert channel.poll(30)

        with pytest.raises(TableLocked, match="open elsewhere"):
            RocksTable(tmp_path / "table")
    finally:
        channel.send("close")
        holder.join(30)

    assert holder.exitcode == 0


def test_a_database_open_twice_in_one_process_is_locked(tmp_path: Path) -> None:
    table = RocksTable(tmp_path / "table")

    with pytest.raises(TableLocked, match="open elsewhere"):
        RocksTable(tmp_path / "table")

    table.close()


def test_closing_lets_go_of_the_database_although_a_scan_is_unfinished(tmp_path: Path) -> None:
    make_database(tmp_path / "table")
    table = RocksTable(tmp_path / "table")
    scan = table.scan(b"", b"\xff")
    next(scan)

    table.close()

    again = RocksTable(tmp_path / "table")
    with pytest.raises(Closed):
        next(scan)
    again.close()


def test_too_few_file_descriptors_are_not_taken_for_damage(tmp_path: Path) -> None:
    make_database(tmp_path / "table")
    limit, limit_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor_next = os.dup(0)
    os.close(descriptor_next)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor_next + 2, limit_hard))
    try:
        with pytest.raises(TableUnavailable, match=os.strerror(errno.EMFILE)):
            RocksTable(tmp_path / "table")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit_hard))

    RocksTable(tmp_path / "table").close()


FORKS = """
import os, sys
from pathlib import Path
from eventstore.errors import Closed
from eventstore.view.rocks import RocksTable

table = RocksTable(Path(sys.argv[1]))
batch = table.batch(); batch.put(b"a", b"1"); batch.put(b"b", b"2"); table.write(batch)
scan = table.scan(b"", b"z"); next(scan)
child = os.fork()
if child == 0:
    for read in (lambda: table.get(b"a"), lambda: next(scan), lambda: list(table.scan(b"", b"z"))):
        try:
            read()
        except Closed:
            continue
        sys.exit("a forked child could read")
    table.close()
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert next(scan) == (b"b", b"2")
del scan
table.close()
table = RocksTable(Path(sys.argv[1]))
assert table.get(b"a") == b"1"
"""


def test_a_forked_child_cannot_use_the_table_and_ends_without_harm(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path / "table")],
        check=True,
        timeout=30,
    )


def test_the_write_ahead_log_stays_empty(tmp_path: Path) -> None:
    table = RocksTable(tmp_path / "table")
    batch = table.batch()
    batch.put(b"a", b"1" * 100_000)

    table.write(batch)

    assert [file.stat().st_size for file in files(tmp_path / "table", "*.log")] == [0]
    table.close()
