"""Turns: what a thread does with a lane that it has, request by request.

A request is loaded, refused if it is stale or has had its chances, and run on the state that the
answers before it leave. A turn ends after some updates or some time, so that a busy instance
starves no other.
"""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Final

from eventstore import Closed, LogUnavailable, ReadTimeout
from eventstore.processing import Processing
from eventstore.testing import fault_point
from processors.beginning import begin, begins_alone, has_begun
from processors.component import Component, Update
from processors.results import LiveStates
from processors.runner.answering import Answering
from processors.runner.board import Board
from processors.runner.handlers import Handlers
from processors.runner.lanes import Lane, Session, Waiting
from processors.runner.run import Run, is_interrupt
from processors.runner.staleness import Staleness, policy_of

__all__ = ["Turns"]

_TURN_UPDATES_MAX: Final = 64
_TURN_S_MAX: Final = 0.02
#: A request whose update keeps meeting newer states becomes a failure after so many.
_CONFLICTS_MAX: Final = 30
#: Triggers that led to triggers: more is taken for a circle.
_HOPS_MAX: Final = 16
#: Names of requests that this code does not know, of which it tells.
_UNKNOWN_MAX: Final = 1_000
#: Instances that are remembered to have begun.
_BEGUN_MAX: Final = 100_000


class Turns:
    """See the module's text."""

    def __init__(
        self,
        component: Component,
        processing: Processing,
        board: Board,
        answering: Answering,
        staleness: Staleness,
        live: LiveStates,
        *,
        unknown_wait_s: float,
    ) -> None:
        self._component = component
        self._processing = processing
        self._board = board
        self._answering = answering
        self._staleness = staleness
        self._live = live
        self._begins_alone = begins_alone(component)
        #: Instances that are known to have their first state.
        self._begun: set[str] = set()
        #: How many resets this process has heard of.
        self._resets = 0
        self._unknown_wait_s = unknown_wait_s
        #: Given once it is made: the two need one another.
        self.handlers: Handlers | None = None
        #: Names of requests that this code did not know.
        self.unknown: set[str] = set()
        self._chains = secrets.token_urlsafe(9)
        self._chain_numbers = itertools.count()

    def take(self, lane: Lane, until: int | None = None) -> None:
        """Run what waits in a lane that was taken, for a while, then let go of it.

        `until` is the request of a caller that waits for it: the turn ends with that one.
        """
        is_given_away = None
        try:
            is_given_away = self._board.attempt(lane, lambda: self._steps(lane, until))
        finally:
            if not is_given_away:
                self._board.let_go(lane)

    def _steps(self, lane: Lane, until: int | None) -> bool:
        """Run what waits; True if the lane is somebody else's now."""
        board = self._board
        end_s = time.monotonic() + _TURN_S_MAX
        is_first = True
        for _ in range(_TURN_UPDATES_MAX):
            with board.mutex:
                one = board.next(lane)
                if one is None:
                    break
                if until is not None and self._needs_own_thread(one):
                    break
                lane.run = None
            board.begin_handler()
            if self._step(lane, one, is_first=is_first):
                return True
            is_first = False
            is_last = time.monotonic() > end_s if until is None else one.sequence >= until
            if is_last:
                break
        return False

    def _needs_own_thread(self, one: Waiting) -> bool:
        """Whether it is a plain update with a time limit.

        Beyond that its thread is left alone, which must not be the thread of somebody who waits.
        """
        update = self._component.find(one.name)
        return update is not None and update.timeout_s is not None and not update.is_async

    def _step(self, lane: Lane, one: Waiting, *, is_first: bool) -> bool:
        """Deal with the next request; True if the lane is somebody else's now."""
        fault_point("processor.step")
        if one.event is None and not self._load(lane, one):
            return False
        update = self._component.find(one.name)
        if update is None:
            self._meet_unknown(lane, one)
            return False
        if self._refuse(lane, one, update) or not self._begin(lane, one):
            return False
        session = self._session(lane, one, renew=is_first)
        if session is None:
            return False
        run = Run(
            self._component, self._processing, lane, one, update, session,
            is_stale=lambda: self._staleness.is_running_stale(lane, one),
            has_ended=lambda: self._board.is_stopped,
        )  # fmt: skip
        assert self.handlers is not None
        return self.handlers.run(run)

    def _load(self, lane: Lane, one: Waiting) -> bool:
        """Read a request that was found pending; False when it is not any more."""
        row = self._processing.request(lane.instance, one.sequence)
        entry = None if row is None else self._processing.entry(lane.instance, one.sequence)
        if entry is None:
            with self._board.mutex:
                lane.closed(one.sequence)
            return False
        one.event = entry.event
        return True

    def has_begun(self, lane: Lane) -> bool:
        """Whether an instance has its first state, or needs none; asks the view once."""
        if not self._begins_alone or lane.instance in self._begun:
            return True
        resets = self._resets
        if not has_begun(self._processing, lane.instance):
            return False
        with self._board.mutex:
            if len(self._begun) >= _BEGUN_MAX:
                self._begun.clear()
            # A reset that came while the view was asked must not be forgotten again.
            if self._resets == resets:
                self._begun.add(lane.instance)
        return True

    def was_reset(self, instance: str) -> None:
        """Look again whether an instance has its first state. The board's lock is held."""
        self._resets += 1
        self._begun.discard(instance)

    def _begin(self, lane: Lane, one: Waiting) -> bool:
        """Give an instance that nobody has opened its first state; False if that failed.

        Services may write to an instance, and request its updates, without ever opening it.
        """
        try:
            if self.has_begun(lane):
                return True
            with self._board.held_up():
                begin(self._component, self._processing, self._live, lane.instance)
        except (LogUnavailable, ReadTimeout, Closed):
            raise
        except BaseException as error:  # SystemExit too: it is the component's, not ours
            if is_interrupt(error):
                raise
            self._answering.fail(lane, one, "raised", "init_state failed", error)
            return False
        return True

    # --- requests that do not run -----------------------------------------------------------------

    def _meet_unknown(self, lane: Lane, one: Waiting) -> None:
        """Wait for code that knows a request; fail it when that does not come."""
        with self._board.mutex:
            if len(self.unknown) < _UNKNOWN_MAX:
                self.unknown.add(one.name)
            # Since it came here, each of them: old code may run beside the new all day.
            left_s = one.came_s + self._unknown_wait_s - time.monotonic()
            if left_s > 0:
                self._board.pause(lane, left_s)
                return
        known = ", ".join(self._component.updates) or "none"
        self._answering.fail(
            lane, one, "unknown",
            f"component {self._component.name} has no update {one.name!r}; it has: {known}."
            " Deploy code that knows it and run `processors failures retry`, or discard it",
        )  # fmt: skip

    def _refuse(self, lane: Lane, one: Waiting, update: Update) -> bool:
        """Close, without running it, a request that is stale or has had its chances."""
        event = one.event
        assert event is not None
        hops = 0 if event.request is None else event.request.hops
        policy = policy_of(event)
        decision = None if policy is None else self._staleness.decide(lane, one, policy)
        if policy is not None and decision is not None and decision.is_stale:
            self._answering.discard(lane, one, policy, decision.facts, running=False)
        elif hops > _HOPS_MAX:
            message = f"{hops} triggers led here, one after the other: is it a circle?"
            self._answering.fail(lane, one, "hops", message)
        elif one.rejection is not None:
            self._answering.set_aside_rejected(lane, one)
        elif one.conflicts >= _CONFLICTS_MAX:
            message = f"the state changed under it {one.conflicts} times in a row"
            self._answering.fail(lane, one, "conflict", message)
        else:
            return one.taken_over and self._refuse_taken_over(lane, one, update)
        return True

    def _refuse_taken_over(self, lane: Lane, one: Waiting, update: Update) -> bool:
        """Record an attempt at a request that somebody else may have begun; True if it is over.

        A handler that takes its process down would else take down one owner after the other.
        """
        if self._answering.has_crashed_enough(lane, one, update):
            self._answering.set_aside_crashed(lane, one)
            return True
        if one.suspect:
            one.taken_over = False
            return not self._answering.record_attempt(lane, one, "takeover")
        with self._board.mutex:
            row = lane.maybe_begun(_TURN_UPDATES_MAX) if one.due_ms is None else [one]
        self._answering.record_take_over(lane, row)
        return one.sequence not in lane.waiting and one.sequence not in lane.delayed

    # --- the state to run on ----------------------------------------------------------------------

    def _session(self, lane: Lane, one: Waiting, *, renew: bool) -> Session | None:
        """Return the row of answers to go on with, on a state that is as new as can be.

        None, if the row was broken since the board gave the request out: what is on its way is
        known by the newest row's name, so no other begins before all of it is judged.
        """
        with self._board.mutex:
            session = found = lane.session
            if lane.is_broken or (one.parts and lane.in_flight):
                return None
        if one.parts:
            session = self._session_of_parts(lane, one)
        elif session is None or (renew and not lane.in_flight):
            session = self.new_session(lane.instance)
        elif lane.foreign_version > session.base or (renew and lane.folded_version > session.base):
            self._read_anew(lane, session)
        with self._board.mutex:
            if lane.is_broken or lane.session is not found:
                return None
            lane.session, lane.chain = session, session.chain
        return session

    def _session_of_parts(self, lane: Lane, one: Waiting) -> Session:
        """Begin a row of answers where the first run of a request with checkpoints began.

        So it comes by the same effects.
        """
        self._live.forget(lane.instance)
        session = self.new_session(lane.instance)
        accepted = self._processing.parts(lane.instance, one.sequence)
        if accepted and accepted[0].event.guard is not None:
            session.base = accepted[0].event.guard.base
            session.state = self._processing.state_at(lane.instance, session.base)
        return session

    def _read_anew(self, lane: Lane, session: Session) -> None:
        """Read anew what counts already, with what others wrote, and put the rest on top.

        So an update sees what was written before it was requested: a trigger's, the change.
        """
        with self._board.mutex:
            version = lane.folded_version
            diffs = [ours.diff for ours in lane.in_flight.values() if ours.diff is not None]
        state = self._processing.state_at(lane.instance, version)
        session.base, session.state = version, state.after(*diffs)

    def new_session(self, instance: str) -> Session:
        """Begin a row of answers on the newest state that the view has."""
        state = self._processing.state(instance)
        assert state.version is not None
        # As good as a random name for each, and much cheaper.
        chain = f"{self._chains}-{next(self._chain_numbers):x}"
        return Session(chain, state.version, state.generation, state)
