"""`make bench`: measure every line of the table, and print it. Writes nothing unless asked to.

    python -m benchmarks.run [--only TEXT] [--rounds 5] [--scale 1] [--json FILE]

The lines of Kafka need a broker: `make bench` starts one. Those of Motion need Motion and a Redis:
peer.py installs them. Measure on a machine that does nothing else; benchmarks/README.md has the
results and the machine they are from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import apsw

from benchmarks.frame import Outcome, Work, measure, table
from benchmarks.peer import PeerMissing, motion
from benchmarks.processing import processor_works
from benchmarks.works import Place, works

__all__ = ["main"]

#: Whose version changes the numbers.
LIBRARIES = ("apsw", "confluent-kafka", "rocksdict", "fastavro", "orjson", "eventsourcing")


def machine(folder: Path) -> str:
    """Return a line about this machine: what the absolute numbers depend on."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{_processor()}, {os.cpu_count()} cores; {platform.system()} {platform.release()};"
        f" fsync {_fsync_us(folder):.0f} us; Python {platform.python_version()}; SQLite"
        f" {apsw.sqlite_lib_version()}; {versions}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _fsync_us(folder: Path, times: int = 100) -> float:
    """Return what the disk takes to make 4 KiB durable."""
    with tempfile.TemporaryFile(dir=folder) as file:
        start_s = time.perf_counter()
        for _ in range(times):
            os.pwrite(file.fileno(), b"\0" * 4096, 0)
            os.fsync(file.fileno())
        return (time.perf_counter() - start_s) / times * 1e6


def _peer(folder: Path) -> str:
    """Return a line about Motion, or why there is none."""
    try:
        with motion(folder) as peer:
            return f"peer: {peer.description}"
    except PeerMissing as error:
        return f"peer: not measured ({error})"


def _needs_peer(work: Work) -> bool:
    return "Motion" in work.title


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when every measured line keeps its "must", 1 when one does not, 2 on a failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="lines whose title has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="0.01: only see that it runs")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="on the disk to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as folder:
        place = Place(Path(folder), os.environ.get("EVENTSTORE_TEST_KAFKA"), options.scale)
        if place.kafka_address is None:
            print("no Kafka broker: its lines are left out (see make bench)", file=sys.stderr)
        selected = [
            work
            for work in chain(works(place), processor_works(place))
            if options.only.lower() in work.title.lower()
        ]
        about = [machine(Path(folder))]
        if any(map(_needs_peer, selected)):
            about.append(_peer(Path(folder)))
            if "not measured" in about[-1]:
                selected = [work for work in selected if not _needs_peer(work)]
        for work in selected:
            print(f"  {work.title} ...", end="", file=sys.stderr, flush=True)
            start_s = time.perf_counter()
            try:
                outcome = measure(work, options.rounds)
            except Exception as error:  # one line that fails must not cost an hour of others
                failures.append(f"{work.title}: {type(error).__name__}: {error}")
                print(f" failed: {error}", file=sys.stderr)
                continue
            outcomes.append(outcome)
            took_s = time.perf_counter() - start_s
            print(f" {outcome.value:.4g} {work.unit} ({took_s:.0f} s)", file=sys.stderr)
    print("", *about, "", sep="\n")
    print(table(outcomes))
    for failure in failures:
        print(f"\nnot measured: {failure}")
    if options.json is not None:
        options.json.write_text(json.dumps([_rounds_of(outcome) for outcome in outcomes], indent=1))
    if failures:
        return 2
    return 1 if any(outcome.verdict == "MISSED" for outcome in outcomes) else 0


def _rounds_of(outcome: Outcome) -> dict[str, object]:
    return {
        "work": outcome.work.title,
        "unit": outcome.work.unit,
        "ours": outcome.ours,
        "against": outcome.against,
        "value": outcome.value,
        "verdict": outcome.verdict,
    }


if __name__ == "__main__":
    sys.exit(main())
