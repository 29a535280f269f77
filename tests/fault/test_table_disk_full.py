"""A full disk stops the table and breaks nothing: with room again, it is opened and goes on.

Method: a small tmpfs in a mount namespace of a child process; skipped where that is not allowed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SIZE_BYTES = 48 * 1024 * 1024

PROGRAM = """
import os, struct, sys
from pathlib import Path
from eventstore.view.base import TableUnavailable
from eventstore.view.rocks import RocksTable

folder = Path(sys.argv[1])
filler = folder / "filler"
filler.write_bytes(bytes(int(sys.argv[2])))

def write(table, number):
    batch = table.batch()
    for index in range(100):
        batch.put(struct.pack(">II", number, index), os.urandom(2_000))
    table.write(batch)

def numbers(table):
    rows = [struct.unpack(">II", key) for key, _ in table.scan(b"", b"\\xff")]
    count = rows[-1][0] + 1
    assert rows == [(number, index) for number in range(count) for index in range(100)]
    return count

table = RocksTable(folder / "table")
number = 0
try:
    while number < 1_000:
        write(table, number)
        number += 1
except TableUnavailable as error:
    assert "No space left on device" in str(error), error
    assert str(folder / "table") in str(error), error
else:
    sys.exit("the disk was never full")

assert numbers(table) == number, "a failed batch shows, or an earlier one does not"
for refused in (lambda: write(table, number), table.flush, lambda: table.checkpoint(folder / "c")):
    try:
        refused()
    except TableUnavailable:
        continue
    sys.exit("a full disk went unnoticed")
table.close()

try:
    RocksTable(folder / "table").close()
except TableUnavailable:
    pass

filler.unlink()
table = RocksTable(folder / "table")
kept = numbers(table)
assert kept <= number
for again in range(kept, kept + 20):
    write(table, again)
table.flush()
assert numbers(table) == kept + 20
table.close()
print("went on")
"""


def in_mount_namespace(*command: str) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", *command]


def test_a_table_on_a_full_disk_goes_on_after_it_was_opened_again(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size={SIZE_BYTES} none "$0"'
    if shutil.which("unshare") is None:
        pytest.skip("no unshare command, so no small file system")
    trial = subprocess.run(
        in_mount_namespace("sh", "-c", mount, str(tmp_path)), capture_output=True, text=True
    )
    if trial.returncode != 0:
        pytest.skip(f"no small file system: {trial.stderr.strip()}")

    result = subprocess.run(
        in_mount_namespace(
            *("sh", "-c", f'{mount} && exec "$@"', str(tmp_path)),
            *(sys.executable, "-c", PROGRAM, str(tmp_path), str(SIZE_BYTES // 2)),
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (result.returncode, result.stdout) == (0, "went on\n"), result.stderr
