"""Who awaits what became of a request, and is gone before it is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from eventstore import EventStore
from eventstore.processing import Processing
from processors.submitted import Submitted


def test_one_whose_loop_is_closed_while_it_is_told_does_not_hinder_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting: list[Callable[[], None]] = []

    def when_closed(*place: Any) -> Callable[[], object]:
        waiting.append(place[-1])
        return lambda: None

    async def wait(submitted: Submitted) -> object:
        return await submitted

    loop = asyncio.new_event_loop()
    with EventStore("memory://") as store:
        processing = Processing(store.app("a"))
        sequence = store.app("a").request("i", "k/update").entry().sequence
        monkeypatch.setattr(processing, "when_closed", when_closed)
        task = loop.create_task(wait(Submitted(processing, "i", "k/update", sequence, dict)))
        loop.run_until_complete(asyncio.sleep(0))
        (tell,) = waiting
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

        monkeypatch.setattr(loop, "is_closed", lambda: False)  # asked just before
        tell()
