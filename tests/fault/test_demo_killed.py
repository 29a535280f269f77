"""The demo, with all of its processes killed at random moments, ends with the same counts.

Goal: a person who cuts `make demo` off, however rudely, starts it again and sees nothing lost and
nothing twice. Method: its process group gets SIGKILL after a random time, some times over; the
last run is left alone, and checks itself. What it prints is beside what the file says.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.flights.data import departures
from tests.fault.sqlite_processes import ROOT

FLIGHTS = 1_500
#: Starting takes about one second of it, and the whole demo about five.
KILL_AFTER_S = (0.5, 5.0)


def start(url: Path) -> subprocess.Popen[str]:
    """Start the demo at the head of a process group of its own."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "examples.flights.demo",
            "--url", str(url), "--flights", str(FLIGHTS), "--seconds", "1",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )  # fmt: skip


def kill_after(process: subprocess.Popen[str], delay_s: float) -> None:
    """Kill the demo and all that it started, unless it has ended by then."""
    try:
        process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.timeout(300)  # four starts of six processes, on a machine that does other things too
def test_all_processes_killed_at_random_and_the_demo_ends_with_the_same_counts(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1_000_000)
    moments = random.Random(seed)
    flights = departures()[:FLIGHTS]
    late = sum((flight.delay_min or 0) >= 30 for flight in flights)
    cancelled = sum(flight.cancelled for flight in flights)

    for _ in range(3):
        kill_after(start(tmp_path / "store"), moments.uniform(*KILL_AFTER_S))
    last = start(tmp_path / "store")
    printed, _ = last.communicate()

    assert last.returncode == 0, f"seed {seed}\n{printed}"
    shown = " ".join(printed.split())
    assert shown.count(" 0 differences") == 2, f"seed {seed}\n{printed}"
    assert f"│ summary │ {late + cancelled} │ {late + cancelled} │" in shown
    assert f"│ alert │ {late} │ {late} │" in shown
    assert f"│ count │ {cancelled} │ {cancelled} │ {cancelled} │ 0 │ 0 │ 0 │" in shown
