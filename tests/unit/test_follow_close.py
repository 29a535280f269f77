"""Closing a view ends at once, wherever its thread is at that moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

from eventstore import Config
from eventstore.follow import Follower
from eventstore.log.base import Topic
from eventstore.log.memory import MemoryLog
from eventstore.view.opening import open_in_memory


def test_a_thread_that_begins_to_wait_after_it_was_woken_is_woken_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog("memory://", Config.load({}))
    topic = log.topic("foldlog.a", create=True)
    assert topic is not None
    about_to_wait, woken = threading.Event(), threading.Event()
    wait, wake = log.wait, log.wake

    def late_wait(
        topic: Topic, offsets: Mapping[int, int], timeout_s: float, *, attended: bool
    ) -> bool:
        about_to_wait.set()
        woken.wait(30)
        return wait(topic, offsets, 90)

    def noticed_wake() -> None:
        wake()
        woken.set()

    monkeypatch.setattr(log, "wait", late_wait)
    monkeypatch.setattr(log, "wake", noticed_wake)
    follower = Follower(
        log, topic, lambda topic: open_in_memory(topic.identity), hot_bytes_max=1_000_000
    )
    follower.start()
    assert about_to_wait.wait(30)

    begun_s = time.monotonic()
    follower.close()

    assert time.monotonic() - begun_s < 30
