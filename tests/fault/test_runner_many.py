"""Many updates at once, and more than can be run: what one process gets done."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eventstore import Discard, EventStore, Kind, State, Verdict
from processors.component import Component
from processors.policy import DiscardPolicy
from processors.runner import Runner

WAIT_S = 60.0

INSTANCES = 1_000


def test_a_thousand_instances_wait_for_the_world_outside_at_the_same_time(tmp_path: Path) -> None:
    component = Component("many")
    waiting = 0
    all_wait = asyncio.Event()

    @component.update("k")
    async def wait(state: State, props: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal waiting
        waiting += 1
        if waiting == INSTANCES:
            all_wait.set()
        await all_wait.wait()  # for ever, if one of them has to wait for another's end
        return {"done": True}

    with EventStore(tmp_path) as store:
        app = store.app("many")
        runner = Runner(store, component).start()
        assert runner.wait_ready(WAIT_S)
        began_s = time.monotonic()
        receipts = [app.request(f"i{number}", "k/wait") for number in range(INSTANCES)]
        closed = runner.complete(receipts, WAIT_S)
        took_s = time.monotonic() - began_s
        runner.stop(WAIT_S)

    print(f"1,000 updates that wait for one another: {took_s:.2f} s")
    assert {entry.event.kind for entry in closed} == {Kind.DIFF}


@pytest.mark.parametrize("running", [False, True])
def test_arrivals_faster_than_the_update_let_at_least_every_other_run_through(
    tmp_path: Path, running: bool
) -> None:
    component = Component("steady")
    rounds = 12
    begun = 0
    was_given_up = False

    with EventStore(tmp_path) as store:
        app = store.app("steady")
        policy = Discard.num_new_updates(1, running=running)

        @component.update("k", DiscardPolicy.NUM_NEW_UPDATES, 1, discard_running=running)
        async def slow(state: State, props: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal begun, was_given_up
            begun += 1
            is_next = was_given_up
            was_given_up = True
            if begun <= rounds:  # two more come while this one runs, whichever it is
                for _ in range(2):
                    await app.request("i", "k/slow", discard=policy)
                if running and not is_next:
                    await asyncio.Event().wait()  # it is given up, however long that takes
                await asyncio.sleep(0.05)  # in which it must not be given up
            was_given_up = False
            return {"begun": begun}

        app.request("i", "k/slow", discard=policy).result()
        runner = Runner(store, component).start()
        assert runner.drain(WAIT_S)
        runner.stop(WAIT_S)
        given_up = [
            json.loads(entry.event.body)["running"]
            if entry.event.kind == Kind.DISCARD
            else None
            for entry in app.history("i")
            if entry.verdict == Verdict.ACCEPTED and entry.event.answer is not None
            and entry.event.kind in (Kind.DIFF, Kind.DISCARD)
        ]  # fmt: skip

    ended = [what for what in given_up if what is not False]  # those that were begun
    assert (True, True) not in itertools.pairwise(ended)
    assert (True in ended) == running
    assert ended.count(None) >= begun / 2
