"""Slow threads: `pytest --slow-threads 20` runs each test 20 times, each time with other slow ones.

A race between two threads is lost once in many thousand runs, because the few lines in which it can
be lost take microseconds. Here some threads of the process, chosen at random, stand still again and
again as they call our functions and return from them, while the others go on at full speed.

A failure names its seed, and `--slow-seed SEED` slows the same threads again. Only the process of
the tests is slowed, not the programs that they start.
"""

from __future__ import annotations

import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import pytest

__all__ = ["SlowThreads"]

ROOT: Final = Path(__file__).resolve().parents[1]
#: The code at which threads stand still.
_SLOWED: Final = tuple(f"{ROOT / name}{os.sep}" for name in ("eventstore", "processors", "tests"))
#: How long the threads of one test stand still in all, and one at a time.
_PAUSES_S_MAX: Final = 1.5
_PAUSE_S_MAX: Final = 0.5


class SlowThreads:
    """A plugin of pytest; see the module's text."""

    def __init__(self, rounds: int, seed: str | None) -> None:
        self._rounds = rounds
        self._seed_given = seed
        self._is_slowed: dict[CodeType, bool] = {}
        self._begin("before the first test")

    def _begin(self, seed: str) -> None:
        """Choose anew which threads are slow, how slow, and from when on."""
        chance = random.Random(seed)
        self._seed = seed
        self._threads_share = chance.choice((0.15, 0.3, 0.6))
        self._calls_share = chance.choice((0.02, 0.08, 0.3))
        self._pause_s = chance.choice((0.004, 0.02, 0.08))
        self._calls_skipped = chance.choice((0, 0, 300, 1_500, 5_000))
        self._left_s = _PAUSES_S_MAX
        self._chance = chance
        self._slow: dict[int, bool] = {}
        sys.setswitchinterval(chance.choice((1e-5, 5e-3)))

    def _is_slow(self) -> bool:
        thread = threading.get_ident()
        known = self._slow.get(thread)
        if known is None:
            # By its name, which says what it does: numbers differ from run to run.
            kind = re.sub(r"[0-9a-f]{8,}|\d+", "#", threading.current_thread().name)
            known = random.Random(f"{self._seed}/{kind}").random() < self._threads_share
            self._slow[thread] = known
        return known

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        """Stand still, perhaps. Called at each call and return, as `sys.setprofile` has it."""
        code = frame.f_code
        is_slowed = self._is_slowed.get(code)
        if is_slowed is None:
            is_slowed = code.co_filename.startswith(_SLOWED)
            self._is_slowed[code] = is_slowed
        if not is_slowed or self._left_s <= 0:
            return
        if self._calls_skipped > 0:
            self._calls_skipped -= 1
        elif self._is_slow() and self._chance.random() < self._calls_share:
            pause_s = min(self._chance.expovariate(1 / self._pause_s), _PAUSE_S_MAX)
            self._left_s -= pause_s
            time.sleep(pause_s)

    # --- what pytest calls ------------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Let each test run in so many rounds."""
        metafunc.fixturenames.append("slow_threads_round")
        metafunc.parametrize("slow_threads_round", range(self._rounds))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Slow down a test, with its fixtures."""
        self._begin(self._seed_given or os.urandom(4).hex())
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """Name the seed of a failure."""
        report: pytest.TestReport = yield  # type: ignore[assignment]
        if report.failed:
            report.sections.append(("slow threads", f"--slow-seed {self._seed}"))
        return report  # type: ignore[return-value]
