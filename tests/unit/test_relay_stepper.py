"""The thread that steps relays: it ends when it is told to, wherever it is at that moment."""

from __future__ import annotations

import threading

import pytest

from processors.relays import _Stepper
from tests.contract.logs import DEADLINE_S


def test_one_that_is_stopped_as_it_begins_a_step_sleeps_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("processors.relays.HEARTBEAT_S", 3 * DEADLINE_S)
    stepper = _Stepper("shop")

    class News(threading.Event):
        """Somebody stops the thread right before it forgets what was rung for."""

        def clear(self) -> None:
            stepper.stop()
            super().clear()

    before, stepper._news = stepper._news, News()
    before.set()
    stepper._news.set()
    stepper.thread.join(DEADLINE_S)

    assert not stepper.thread.is_alive()
