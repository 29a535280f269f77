"""Nudges: a byte in the FIFO of each process that listens."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from eventstore.log.nudges import Nudges

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")

DEADLINE_S = 30.0


def test_a_ring_is_heard_by_every_listener(tmp_path: Path) -> None:
    ringer, *listeners = [Nudges(tmp_path) for _ in range(3)]
    for listener in listeners:
        listener.open()

    ringer.ring()

    assert all(listener.listen(DEADLINE_S) for listener in listeners)
    assert not any(listener.listen(0) for listener in listeners)
    for nudges in [ringer, *listeners]:
        nudges.close()


def test_a_listener_that_comes_later_is_found(tmp_path: Path) -> None:
    ringer, listener = Nudges(tmp_path), Nudges(tmp_path)
    ringer.ring()
    listener.open()

    ringer.ring()

    assert listener.listen(DEADLINE_S)
    ringer.close()
    listener.close()


def test_a_listener_that_comes_right_after_a_listing_is_found_by_the_next_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ringer, listener = Nudges(tmp_path), Nudges(tmp_path)
    listdir, now_ns = os.listdir, time.time_ns()
    monkeypatch.setattr("eventstore.log.nudges.time.time_ns", lambda: now_ns)
    os.utime(tmp_path, ns=(now_ns, now_ns))

    def list_and_stand_still(folder: Path) -> list[str]:
        nonlocal now_ns
        names = listdir(folder)
        if listener._listener is None:
            tick_ns = now_ns
            listener.open()
            os.utime(tmp_path, ns=(tick_ns, tick_ns))  # in the same tick as the change before
            now_ns += 1_000_000_000
        return names

    monkeypatch.setattr("eventstore.log.nudges.os.listdir", list_and_stand_still)
    ringer.ring()
    heard_first = listener.listen(0)
    ringer.ring()

    assert not heard_first
    assert listener.listen(0)
    ringer.close()
    listener.close()


def test_a_ring_before_the_listener_listens_is_not_lost(tmp_path: Path) -> None:
    nudges = Nudges(tmp_path)
    nudges.open()

    nudges.ring()

    assert nudges.listen(0)
    nudges.close()


def test_who_only_rings_leaves_nothing_behind(tmp_path: Path) -> None:
    ringer = Nudges(tmp_path / "news")

    ringer.ring()

    assert not (tmp_path / "news").exists()
    ringer.close()


def test_the_fifo_of_a_dead_listener_is_cleared_away(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1-dead.fifo")
    ringer = Nudges(tmp_path)

    ringer.ring()

    assert list(tmp_path.iterdir()) == []
    ringer.close()


def test_a_listener_that_does_not_take_its_nudges_stops_nobody(tmp_path: Path) -> None:
    ringer, listener = Nudges(tmp_path), Nudges(tmp_path)
    listener.open()

    for _ in range(100_000):
        ringer.ring()

    assert listener.listen(DEADLINE_S)
    ringer.close()
    listener.close()


def test_a_closed_listener_leaves_no_fifo(tmp_path: Path) -> None:
    listener = Nudges(tmp_path)
    listener.open()

    listener.close()

    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_listens_is_woken(tmp_path: Path) -> None:
    nudges = Nudges(tmp_path)
    nudges.open()
    heard: list[bool] = []
    thread = threading.Thread(target=lambda: heard.append(nudges.listen(DEADLINE_S)))

    thread.start()
    nudges.ring_here()
    thread.join()

    assert heard == [True]
    nudges.close()
