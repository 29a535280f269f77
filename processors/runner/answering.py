"""Answering: what became of a request is appended here, whatever it is.

Answers are on their way when these calls return; their verdicts come back with the news
(engine.py). An attempt at a request is recorded before it runs again, so that is waited for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from typing import Any, Final

import orjson

from eventstore import Diff, Discard, EventTooLarge, Kind, Verdict
from eventstore.events import Event
from eventstore.processing import Folded, Processing
from eventstore.testing import fault_point
from processors.component import Component, Update
from processors.results import LiveStates, has_hooks
from processors.runner import answers
from processors.runner.board import UNAVAILABLE_WAIT_S, Board
from processors.runner.lanes import Lane, Session, Waiting
from processors.runner.run import Run, sure_entries
from processors.runner.staleness import Staleness
from processors.runner.workers import HandlerRaised, WorkerDied
from processors.text import text_of

__all__ = ["Answering"]

logger: Final = logging.getLogger("processors.runner")

#: After so many runs that ended with the process made for them, a request is a failure.
_CRASHES_MAX: Final = 3
#: After so many attempts it is one although it was its owners that ended: what ends them may be
#: in the request after all (a container that runs out of memory ends as a whole).
_TAKE_OVERS_MAX: Final = 10
#: Events of an instance that are searched for the answer that was refused last.
_LOOK_BACK_EVENTS: Final = 1_000
#: Exceptions of handlers kept for whoever waits for their request in this process.
_ERRORS_MAX: Final = 256


class Answering:
    """See the module's text."""

    def __init__(
        self,
        component: Component,
        processing: Processing,
        board: Board,
        staleness: Staleness,
        live: LiveStates,
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._component = component
        self._processing = processing
        self._board = board
        self._staleness = staleness
        self._live = live
        self._tell = tell
        self._has_hooks = has_hooks(component)
        self._errors: OrderedDict[tuple[str, int], BaseException] = OrderedDict()

    def error_of(self, instance: str, sequence: int) -> BaseException | None:
        """Return the exception with which a request failed in this process, if it did."""
        with self._board.mutex:
            return self._errors.get((instance, sequence))

    # --- answers ----------------------------------------------------------------------------------

    def apply(
        self, run: Run, diff: Diff, outbox: bytes | None, observed: Set[str] = frozenset()
    ) -> None:
        """Append what a handler's run changes; `observed` it has read of a copy of the state."""
        lane, one, session = run.lane, run.one, run.session
        if self.give_up(run):
            return
        event = answers.part(
            one, session, diff, session.state.observed | observed, run.update,
            max(run.calls.part, one.parts), closes=True, outbox=outbox,
        )  # fmt: skip
        one.diff = diff
        one.live = run.given if self._has_hooks else None
        one.excused += 1  # unless it counts, and then nobody asks
        try:
            if not self._send(lane, one, event, of=session):
                return  # it runs again, behind those that were refused before it
        except EventTooLarge as error:
            one.excused -= 1  # the update's own fault, each time that it runs
            self.raised(run, error)
            return
        session.index += 1
        # Each handler reads values of its own: one that changes them in place harms nobody.
        session.state = session.state.after(diff)
        if lane.given_up:
            with self._board.mutex:
                lane.given_up.discard(one.name)

    def give_up(self, run: Run) -> bool:
        """Discard a run that became stale while it ran; False when it did not, or may not be."""
        found = self._staleness.given_up(run)
        if found is None:
            return False
        policy, facts = found
        self.discard(run.lane, run.one, policy, facts, running=True)
        return True

    def discard(
        self, lane: Lane, one: Waiting, policy: Discard, facts: dict[str, Any], *, running: bool
    ) -> None:
        """Append that a request is given up, and what that was decided upon."""
        offsets = {str(p): offset for p, offset in self._processing.position.items()}
        facts = {**facts, "offset": offsets}
        generation = self._processing.generation()
        one.diff = one.live = None
        self._send(lane, one, answers.discard(one, generation, policy, facts, running=running))
        told = {"instance": lane.instance, "request": one.sequence, "update": one.name, **facts}
        self._tell("discarded", told)

    def fail(
        self,
        lane: Lane,
        one: Waiting,
        reason: str,
        message: str = "",
        error: BaseException | None = None,
        version: int | None = None,
    ) -> None:
        """Append that a request is set aside for good."""
        body = answers.failure_body(reason, error, message, one.runs, version)
        one.diff = one.live = None
        self._send(lane, one, answers.failure(one, self._processing.generation(), body))
        told = {"instance": lane.instance, "request": one.sequence, "update": one.name}
        self._tell("failed", told | {fact: body[fact] for fact in ("reason", "type", "message")})

    def _send(self, lane: Lane, one: Waiting, event: Event, *, of: Session | None = None) -> bool:
        """Append an answer; it is on its way before that, because its news may come at once.

        False, with nothing written, if it is of a row of answers that was broken meanwhile: it
        could not count, and whatever runs next in the lane would begin another row too early.
        """
        with self._board.mutex:
            if of is not None and lane.session is not of:
                return False
            lane.answered(one)
        fault_point("processor.append.before")
        try:
            receipt = self._processing.send([(lane.instance, event)])[0]
        except BaseException:
            with self._board.mutex:
                lane.take_back([one])
            raise
        one.receipt = receipt
        receipt.when_failed(lambda error: self._append_failed(lane, one, error))
        fault_point("processor.append.after")
        return True

    # --- what did not end well --------------------------------------------------------------------

    def raised(self, run: Run, error: BaseException, reason: str = "raised") -> None:
        """Run a request again that raised, if its policy says so; else set it aside."""
        lane, one, retry = run.lane, run.one, run.update.retry
        is_worth_it = (
            error.is_a(retry.retry_on)
            if isinstance(error, HandlerRaised)
            else isinstance(error, retry.retry_on)
        )
        failed_runs = one.runs - one.excused
        if is_worth_it and failed_runs < retry.attempts:
            message = f"{type(error).__name__}: {text_of(error)}"
            if self.record_attempt(lane, one, reason, message):
                backoff_s = retry.backoff_s * 2.0 ** min(failed_runs - 1, 60)
                with self._board.mutex:
                    self._board.pause(lane, min(backoff_s, retry.backoff_s_max))
            return
        cause = (error.exception or error) if isinstance(error, HandlerRaised) else error
        with self._board.mutex:
            self._errors[lane.instance, one.sequence] = cause
            if len(self._errors) > _ERRORS_MAX:
                self._errors.popitem(last=False)
            lane.given_up.discard(one.name)
        self.fail(lane, one, reason, error=error, version=run.session.state.version)

    def has_crashed_enough(self, lane: Lane, one: Waiting, update: Update) -> bool:
        """Whether a request that was begun so often, and never answered, is to blame for it.

        Owners are killed for many reasons, and what they happened to run is innocent. So the
        second owner that finds a request begun runs it in a process made for it, and from then on
        the end of that process speaks against the request, and the end of the owner hardly does.
        """
        crashes_max = max(_CRASHES_MAX, update.retry.attempts)
        return one.runs >= crashes_max and (
            one.runs >= max(_TAKE_OVERS_MAX, crashes_max) or self._crashes(lane, one) >= crashes_max
        )

    def _crashes(self, lane: Lane, one: Waiting) -> int:
        """Count in the history the runs that ended with the process made for them."""
        attempts = self._processing.attempts(lane.instance, one.sequence)
        return sum(orjson.loads(entry.event.body).get("why") == "crashed" for entry in attempts)

    def was_begun_enough(self, run: Run) -> bool:
        """Whether a request that cannot have a process of its own is to blame all the same."""
        runs = run.one.runs - run.one.excused
        return runs > max(_CRASHES_MAX, run.update.retry.attempts)

    def set_aside_crashed(self, lane: Lane, one: Waiting) -> None:
        """Fail a request that has crashed enough, without running it once more."""
        message = f"it was begun {one.runs} times, and each time its process ended before it"
        self.fail(lane, one, "crashed", message)

    def set_aside_rejected(self, lane: Lane, one: Waiting) -> None:
        """Fail a request whose answer did not fit the state, and say what of it did not."""
        assert one.rejection is not None
        reason = self._rejected_because(lane, one)
        self.fail(lane, one, "rejected", f"{one.rejection}: {reason}" if reason else one.rejection)

    def _rejected_because(self, lane: Lane, one: Waiting) -> str:
        for entry in self._processing.newest(
            lane.instance, after=one.sequence, count_max=_LOOK_BACK_EVENTS
        ):
            answer = entry.event.answer
            is_of_it = answer is not None and answer.cause == one.sequence
            if is_of_it and entry.verdict == Verdict.REJECTED:
                return entry.reason
        return ""

    def died(self, run: Run, error: WorkerDied) -> None:
        """Count a run that took its process down; run it again, or set it aside."""
        lane, one = run.lane, run.one
        crashes_max = max(_CRASHES_MAX, run.update.retry.attempts)
        if one.runs < crashes_max or self._crashes(lane, one) + 1 < crashes_max:
            one.suspect = True
            self.record_attempt(lane, one, "crashed", str(error))
        else:
            self.fail(lane, one, "crashed", str(error))

    def superseded(self, run: Run) -> None:
        """Drop a run whose request somebody else answered, or whose part met a newer state."""
        lane, one = run.lane, run.one
        with self._board.mutex:
            one.conflicts += 1
            one.excused += 1
            self._board.counts.conflicts += 1
            lane.break_row()
            self._board.pause_after_conflict(lane, one.conflicts)
        if self._processing.closed_by(lane.instance, one.sequence) is not None:
            with self._board.mutex:
                lane.closed(one.sequence)

    def record_attempt(self, lane: Lane, one: Waiting, why: str, message: str = "") -> bool:
        """Record that a request runs again; False when it is closed already."""
        self._record(lane, [one], why, message)
        return one.sequence in lane.waiting or one.sequence in lane.delayed

    def record_take_over(self, lane: Lane, ones: Sequence[Waiting]) -> None:
        """Record that requests run that an earlier owner may have begun; drop what is closed."""
        self._record(lane, ones, "takeover", "")
        for one in ones:
            one.taken_over = False

    def _record(self, lane: Lane, ones: Sequence[Waiting], why: str, message: str) -> None:
        generation = self._processing.generation()
        events = [answers.attempt(one, generation, why, message) for one in ones]
        with self._board.held_up():
            entries = sure_entries(self._processing, lane.instance, events)
        self._board.counts.retried += len(entries)
        with self._board.mutex:
            for one, entry in zip(ones, entries, strict=True):
                if entry.verdict != Verdict.ACCEPTED:
                    lane.closed(one.sequence)

    def _append_failed(self, lane: Lane, one: Waiting, error: Exception) -> None:
        """Let a request run again whose answer the log did not take, or may not have taken."""
        board = self._board
        with board.mutex:
            if lane.in_flight.pop(one.sequence, None) is None or board.is_stopped:
                return
            if not lane.is_broken and board.is_news_of_trouble():
                logger.warning(
                    "%s/%s: the answer to request %s was not appended: %s; it runs again",
                    board.name, lane.instance, one.sequence, error,
                )  # fmt: skip
            lane.is_broken = True
            lane.refused.append(one)
            if not lane.in_flight:
                board.mend(lane)
                board.pause(lane, UNAVAILABLE_WAIT_S)
            board.queue(lane)

    # --- verdicts, as the view folds them; the board's lock is held -------------------------------

    def closed(self, lane: Lane, folded: Folded) -> None:
        """Take note of what closed requests of a lane, ours or somebody else's."""
        counts, kind = self._board.counts, folded.event.kind
        for cause in folded.closed:
            ours = lane.in_flight.get(cause)
            lane.closed(cause)
            # One that was refused, and waits for the rest of its row, must not wait again.
            lane.refused = [one for one in lane.refused if one.sequence != cause]
            if ours is None:
                if cause == lane.expected and kind == Kind.DIFF and _is_ours(lane, folded.event):
                    lane.expected_answer = folded
                    counts.applied += 1
                continue
            if not _is_ours(lane, folded.event):
                # Somebody was faster: what we put on top of our own answer will not count either.
                lane.break_row()
            elif kind == Kind.DIFF:
                counts.applied += 1
                if ours.live is not None:
                    self._live.keep(lane.instance, folded.version, ours.live)
            elif kind == Kind.DISCARD:
                counts.discarded += 1
            elif kind == Kind.FAILURE:
                counts.failed += 1
        if kind == Kind.RESET:
            lane.break_row()

    def changed(self, lane: Lane, folded: Folded) -> None:
        """Take note of a version of a lane's instance, whoever made it."""
        lane.folded_version = folded.version
        if folded.event.kind != Kind.DIFF or not _is_ours(lane, folded.event):
            lane.foreign_version = folded.version

    def part_came(self, lane: Lane, folded: Folded) -> None:
        """Take note of a part of an answer, if it is one.

        Whoever had the lane before may still run the request, and make a checkpoint: an answer of
        ours that does not count on from there would be refused each time.
        """
        answer = folded.event.answer
        if folded.event.kind == Kind.DIFF and answer is not None and not answer.closes:
            lane.part_came(answer.cause, answer.part)

    def refused(self, lane: Lane, folded: Folded) -> None:
        """Take note of an answer that did not count, if it is one of ours."""
        event = folded.event
        assert event.answer is not None
        ours = lane.in_flight.get(event.answer.cause)
        expected = lane.waiting.get(event.answer.cause)
        if expected is not None and expected.sequence == lane.expected and _is_ours(lane, event):
            _refused_at_once(expected, folded)
        if ours is None or not event.answer.closes or not _is_ours(lane, event):
            return  # of another runner, or of an earlier row of ours
        del lane.in_flight[event.answer.cause]
        self._live.forget(lane.instance)
        if folded.verdict == Verdict.DUPLICATE:
            # Somebody else closed it while it ran here: run again, it would only be one more.
            lane.break_row()
            return
        lane.refused.append(ours)
        if lane.is_broken:
            return  # only the first was refused on its own account, and the rest fall with it
        lane.is_broken = True
        if folded.verdict == Verdict.REJECTED:
            ours.rejection = _misfit(folded)
        elif folded.verdict == Verdict.CONFLICT:
            ours.conflicts += 1
            self._board.counts.conflicts += 1


def _refused_at_once(one: Waiting, folded: Folded) -> None:
    """Take note of an answer that was written with its request, and did not count."""
    one.runs += 1
    one.excused += 1
    if folded.verdict == Verdict.REJECTED:
        one.rejection = _misfit(folded)


def _misfit(folded: Folded) -> str:
    return f"its answer did not fit the state at version {folded.version}"


def _is_ours(lane: Lane, event: Event) -> bool:
    """Whether an answer is one that this runner has in flight, as far as that shows."""
    if event.kind != Kind.DIFF:
        return True
    chain = None if event.guard is None else event.guard.chain
    return chain is not None and chain == lane.chain
