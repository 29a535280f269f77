"""Ctrl-C in the middle of a run leaves an instance that works, wherever it comes.

Goal: no interrupt leaves an instance's lane taken, or this thread in an update that has ended.
Method: that of test_interrupts.py: SIGINT comes at the first place of a run where Python can raise
KeyboardInterrupt, then at the second, and so on. After each, another thread and this one run an
update; at the end what was told is compared with the state.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import eventstore
import processors
from eventstore import Diff, EventStore, LogUnavailable, State
from eventstore.history.verify import verify_app
from eventstore.interrupts import HeldBack
from eventstore.processing import Processing
from processors import Component, Context, beginning
from processors.results import LiveStates
from processors.runner import at_once, handlers
from tests.fault.interrupt import DEADLINE_S, PLACES_MAX, Interrupt

pytestmark = pytest.mark.timeout(300)  # some hundred interrupts, each with two runs after it

#: Where the code is that is interrupted.
PACKAGES = tuple(str(Path(str(package.__file__)).parent) for package in (eventstore, processors))


def note(state: State, props: Mapping[str, Any]) -> Diff:
    return Diff().append("log", props["token"])


def note_in_context(state: State, props: Mapping[str, Any], context: Context) -> Diff:
    return note(state, props)


#: The second has more places than there is time for: each third of them is tried.
@pytest.mark.parametrize(
    ("update", "stride"), [(note, 1), (note_in_context, 3)], ids=["at once", "as usual"]
)
def test_an_instance_goes_on_after_an_interrupt_at_any_place_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: Callable[..., Diff], stride: int
) -> None:
    monkeypatch.setattr(handlers, "_QUICK_S_MAX", DEADLINE_S)
    monkeypatch.setattr(at_once, "_USUAL_RUNS_MAX", 0)
    component = Component("tokens")
    told: list[str] = []

    @component.init_state
    def begin() -> dict[str, Any]:
        return {"log": []}

    component.update("k")(update)

    with (
        EventStore(tmp_path) as store,
        component("i", store=store) as instance,
        ThreadPoolExecutor(1) as other_thread,
    ):

        def run(token: str) -> None:
            instance.run("k", {"token": token}, flush_update=True)
            told.append(token)

        run("first")
        for place in range(1, PLACES_MAX, stride):
            interrupt = Interrupt(place, within=PACKAGES)
            interrupt.during(lambda place=place: run(f"interrupted-{place}"))  # type: ignore[misc]
            if not interrupt.came_at:
                break
            # What the interrupt has cut off is told once, if nobody could be told at the time.
            with contextlib.suppress(LogUnavailable):
                store.flush(DEADLINE_S)
            there = other_thread.submit(run, f"there-{place}")
            assert there.exception(DEADLINE_S) is None, interrupt.came_at
            run(f"here-{place}")

        log = instance.read_state("log")
        assert [token for token in log if not token.startswith("interrupted")] == [
            token for token in told if not token.startswith("interrupted")
        ]
        assert len(set(log)) == len(log)
        assert set(told) <= set(log)
        assert not verify_app(store, "tokens").differences
    assert 100 < place < PLACES_MAX - stride


def test_ctrl_c_interrupts_a_first_state_that_is_made_where_it_is_held_back_else() -> None:
    component = Component("begins")
    steps = []

    @component.init_state
    def begin() -> dict[str, Any]:
        signal.raise_signal(signal.SIGINT)
        steps.append("not interrupted")
        return {}

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            EventStore("memory://") as store,
            contextlib.suppress(KeyboardInterrupt),
            HeldBack(),
        ):
            live = LiveStates.share(store, component)
            beginning.begin(component, Processing(store.app("begins")), live, "i")
    finally:
        signal.signal(signal.SIGINT, handler)

    assert not steps
