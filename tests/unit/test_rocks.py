"""What only the RocksDB table promises: bounds on memory, and rows that outlive their process."""

from __future__ import annotations

import os
import time
from pathlib import Path

from eventstore.view.rocks import RocksTable, WriteBuffers


def write(table: RocksTable, key: bytes, value: bytes) -> None:
    batch = table.batch()
    batch.put(key, value)
    table.write(batch)


def test_rows_that_were_never_flushed_are_there_after_a_close(tmp_path: Path) -> None:
    table = RocksTable(tmp_path / "table")
    write(table, b"a", b"1")

    table.close()

    again = RocksTable(tmp_path / "table")
    assert again.get(b"a") == b"1"
    again.close()


def test_tables_that_share_write_buffers_write_out_early_to_stay_below_the_bound(
    tmp_path: Path,
) -> None:
    buffers = WriteBuffers(size_bytes=1_000_000)
    one, other = (RocksTable(tmp_path / name, write_buffers=buffers) for name in ("one", "other"))
    for number in range(50):
        write(one, b"%d" % number, os.urandom(20_000))
    for number in range(50):
        write(other, b"%d" % number, os.urandom(20_000))

    deadline_s = time.monotonic() + 60
    while not list(tmp_path.glob("*/*.sst")):
        assert time.monotonic() < deadline_s, "2 MB wait in memory that may hold 1 MB"
        other.get(b"0")  # writing more would fill the table's own buffer

    assert one.get(b"49") is not None
    one.close()
    other.close()
