"""Whether what runs is still worth it: asked by handlers, by timers, and before each append.

A running update is given up only where its policy says `discard_running`, and never twice in a row
for one instance and update, so that something always gets through.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson

from eventstore import Discard, Kind, Verdict
from eventstore.events import Event
from eventstore.processing import Processing
from processors.policy import DiscardPolicy
from processors.runner.board import Board
from processors.runner.discards import Decision, decide
from processors.runner.lanes import Lane, Waiting
from processors.runner.run import Run

__all__ = ["Staleness", "policy_of"]

#: Events of an instance that are searched for what became of the last update that ran.
_LOOK_BACK_EVENTS: Final = 200


def policy_of(event: Event) -> Discard | None:
    """Return a request's discard policy, None where it has none."""
    request = event.request
    if request is None or not request.discard_policy:
        return None
    return Discard(request.discard_policy, request.discard_after, request.discard_running)


def _waits_since_ms(one: Waiting) -> int:
    """Return from when on a request counts as old: a delayed one is not late before it is due."""
    return one.time_ms if one.due_ms is None else max(one.time_ms, one.due_ms)


class Staleness:
    """See the module's text."""

    def __init__(self, board: Board, processing: Processing) -> None:
        self._board = board
        self._processing = processing

    def decide(self, lane: Lane, one: Waiting, policy: Discard) -> Decision:
        """Decide by a policy, as of now."""
        with self._board.mutex:
            age_ms, newer = self._board.clock.now_ms() - _waits_since_ms(one), lane.newer(one)
        return decide(policy, age_ms=age_ms, newer=newer)

    def is_running_stale(self, lane: Lane, one: Waiting) -> bool:
        """Whether what runs would be given up by now, and may be."""
        assert one.event is not None
        policy = policy_of(one.event)
        if policy is None or not policy.running:
            return False
        return self.decide(lane, one, policy).is_stale and self._may_give_up(lane, one.name)

    def given_up(self, run: Run) -> tuple[Discard, dict[str, Any]] | None:
        """Note that a run is given up because it became stale; None when it may not be."""
        policy = policy_of(run.event)
        if policy is None or not self.is_running_stale(run.lane, run.one):
            return None
        with self._board.mutex:
            run.lane.given_up.add(run.one.name)
        return policy, self.decide(run.lane, run.one, policy).facts

    def _may_give_up(self, lane: Lane, name: str) -> bool:
        if name not in lane.asked:
            given_up = self._gave_up_last(lane.instance, name)
            with self._board.mutex:
                lane.asked.add(name)
                if given_up:
                    lane.given_up.add(name)
        return name not in lane.given_up

    def _gave_up_last(self, instance: str, name: str) -> bool:
        """Ask the history what became of the last update of this name that ran."""
        for entry in self._processing.newest(instance, count_max=_LOOK_BACK_EVENTS):
            if entry.verdict != Verdict.ACCEPTED or entry.event.name != name:
                continue
            answer = entry.event.answer
            if entry.event.kind == Kind.DISCARD:
                if orjson.loads(entry.event.body).get("running"):
                    return True
            elif answer is not None and answer.closes:
                return False
        return False

    def newer_came(self, run: Run, name: str) -> None:
        """Look at an async update that a newer request may have made stale. The lock is held."""
        if run.cancel is None or run.one.name != name or run.was_cancelled:
            return
        policy = policy_of(run.event)
        if policy is not None and policy.running and policy.policy == DiscardPolicy.NUM_NEW_UPDATES:
            self._board.aside(lambda: self._cancel_if_stale(run))

    def watch(self, run: Run) -> asyncio.TimerHandle | None:
        """Look at an async update again when it may have become stale. On the loop."""
        policy = policy_of(run.event)
        if policy is None or not policy.running:
            return None
        left_ms = 0  # newer ones may have come while it was handed over
        if policy.policy == DiscardPolicy.SECONDS:
            left_ms = _waits_since_ms(run.one) + policy.after - self._board.clock.now_ms() + 1
        return self._board.loop.call_later(
            max(0, left_ms) / 1_000,
            lambda: self._board.aside(lambda: self._cancel_if_stale(run)),
        )

    def _cancel_if_stale(self, run: Run) -> None:
        if not run.was_cancelled and self.is_running_stale(run.lane, run.one):
            cancel = run.cancel
            if cancel is not None:
                cancel()
