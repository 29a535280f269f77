"""Goal: a full disk loses nothing acknowledged, and once there is room all goes on by itself.

Under the log: appends are refused whole. Under the view: appends go on, reads say what is wrong.
Method: small tmpfs file systems in a mount namespace of a child; skipped where that is not allowed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault.sqlite_processes import ROOT

BEGIN = """
import os, sys, time
from pathlib import Path
from eventstore import Config, Diff, EventStore, LogUnavailable, OutcomeUnknown, ViewDamaged
from eventstore.history.verify import verify_app

disk, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
ballast = disk / "ballast"
blob = os.urandom(15_000).hex()  # 30 kB, which no compression makes less than 15
"""

LOG = """
ballast.write_bytes(bytes(2_000_000))
store = EventStore(disk / "log", config=Config.load({}, view_path=elsewhere / "views"))
app = store.app("app")
acknowledged, refused = [], []
for number in range(10_000):
    receipts = app.append_many(
        [("i", {f"f{number}-{part}": blob}, {"idempotency_key": f"{number}-{part}"})
         for part in range(3)]
    )
    outcomes = []
    for receipt in receipts:
        try:
            outcomes.append(receipt.result())
        except LogUnavailable as error:
            assert not isinstance(error, OutcomeUnknown), error
            assert "disk is full" in str(error), error
    assert len(outcomes) in (0, 3), "half a call was written"
    (acknowledged if outcomes else refused).append(number)
    if len(refused) == 3:
        break
assert dict(app.get("i")).keys() == {f"f{n}-{p}" for n in acknowledged for p in range(3)}
ballast.unlink()
for number in refused:
    app.append("i", {f"f{number}-0": blob}, idempotency_key=f"{number}-0").result()
expected = {f"f{n}-{p}" for n in acknowledged for p in range(3)} | {f"f{n}-0" for n in refused}
assert dict(app.get("i")).keys() == expected
assert verify_app(store, "app")
store.close()
with EventStore(disk / "log", config=Config.load({}, view_path=elsewhere / "others")) as store:
    assert dict(store.app("app").get("i")).keys() == expected
print("acknowledged", len(acknowledged))
"""

VIEW = """
ballast.write_bytes(bytes(20_000_000))
store = EventStore(elsewhere / "log", config=Config.load({}, view_path=disk / "views"))
app = store.app("app")
number, failures = 0, []
while not failures:
    assert number < 10_000, "the disk was never full"
    position = app.append(f"i{number % 50}", {"blob": blob, "number": number}).result()
    number += 1
    try:
        assert app.get(f"i{(number - 1) % 50}", "number", after=position) == number - 1
    except ViewDamaged as error:
        failures.append(str(error))
assert "No space left" in failures[0], failures
try:  # not even a new database has room
    with (disk / "more").open("wb", buffering=0) as more:
        while True:
            more.write(bytes(4096))
except OSError:
    pass
for _ in range(100):  # appends go on
    app.append(f"i{number % 50}", {"blob": blob, "number": number}).result()
    number += 1
for _ in range(3):  # reads say what is wrong, or answer from what RocksDB holds in memory
    try:
        assert app.get(f"i{(number - 1) % 50}", "number", fresh=True) == number - 1
    except ViewDamaged as error:
        assert "No space left" in str(error), error
(disk / "more").unlink()
ballast.unlink()
deadline = time.monotonic() + 60
def read(instance):  # RocksDB may tell of an earlier failure once more, after there is room
    while True:
        try:
            return app.get(instance, "number", fresh=True)
        except ViewDamaged:
            assert time.monotonic() < deadline, "the view did not recover"
assert read(f"i{(number - 1) % 50}") == number - 1
app.append("i0", {"number": "after"})
assert read("i0") == "after"
assert verify_app(store, "app")
assert not list((disk / "views").rglob("*.damaged-*")), "a full disk is no damage"
store.close()
print("recovered", number)
"""


def run_on_small_disk(program: str, disk: Path, elsewhere: Path, size_bytes: int) -> str:
    """Run a program with a small file system at `disk`; return what it printed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare command, so no small file system")
    namespace = [unshare, "-rm", "sh", "-c"]
    mount = f'mount -t tmpfs -o size={size_bytes} none "$0"'
    trial = subprocess.run([*namespace, mount, disk], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        pytest.skip(f"no small file system: {trial.stderr.strip()}")
    command = (sys.executable, "-c", BEGIN + program, disk, elsewhere)
    done = subprocess.run(
        [*namespace, f'{mount} && exec "$@"', disk, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for the small file system, and one beside it."""
    for name in ("disk", "elsewhere"):
        (tmp_path / name).mkdir()
    return tmp_path / "disk", tmp_path / "elsewhere"


def test_a_full_disk_under_the_log_refuses_whole_appends_until_there_is_room(
    folders: tuple[Path, Path],
) -> None:
    printed = run_on_small_disk(LOG, *folders, 6_000_000)

    assert int(printed.split()[1]) > 10


def test_a_full_disk_under_the_view_stops_reads_only_and_only_while_it_is_full(
    folders: tuple[Path, Path],
) -> None:
    printed = run_on_small_disk(VIEW, *folders, 48_000_000)

    assert int(printed.split()[1]) > 200
