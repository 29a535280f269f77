"""Updates that run at once: for a caller who waits, request and answer are written in one commit.

The usual way makes a request durable, runs its update, and makes the answer durable: two commits,
one after the other, of which each takes longer than a quick update. Here the update runs first, on
the newest state, in the caller's thread and the instance's turn; then both records are handed to
the log together, to be stored only if nothing of the instance came since that state was read. So
the request stands where it was expected, it is the first of its lane, and the state is the one that
was read: the same two records, with the same meaning, as in the usual way.

Nothing is promised before they are durable, so a process that ends earlier leaves no trace of the
call, and its caller was told nothing. That is why it is for updates that are done in less time than
the request would take to be written (`Handlers.is_quick`): whoever runs for seconds, or records
effects, has its request on the disk first.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from eventstore import Closed, Diff, EventTooLarge
from eventstore.events import Event
from eventstore.interrupts import LetThrough
from eventstore.processing import Folded, NewerRecord, Processing
from eventstore.testing import fault_point
from processors.component import Component, Update
from processors.results import has_hooks
from processors.runner import answers
from processors.runner.answering import Answering
from processors.runner.board import Board
from processors.runner.handlers import Handlers
from processors.runner.lanes import Lane, Waiting
from processors.runner.run import Run
from processors.runner.turns import Turns

__all__ = ["AtOnce", "Done"]

#: An update whose records were refused so many times in a row is tried at once again after at most
#: this many runs in the usual way.
_USUAL_RUNS_MAX: Final = 63


class Done(NamedTuple):
    """A request that is in the log: its sequence, and what closed it if that was done at once."""

    sequence: int
    closed: Folded | None


class AtOnce:
    """See the module's text."""

    def __init__(
        self,
        component: Component,
        processing: Processing,
        board: Board,
        turns: Turns,
        handlers: Handlers,
        answering: Answering,
    ) -> None:
        self._component = component
        self._processing = processing
        self._board = board
        self._turns = turns
        self._handlers = handlers
        self._answering = answering
        self._has_hooks = has_hooks(component)
        #: update -> how often it was refused in a row, and how often it runs as usual from now on.
        self._refusals: dict[str, int] = {}
        self._usual_runs: dict[str, int] = {}

    def is_for(self, update: Update, instance: str) -> bool:
        """Whether an update can be run so: a quick plain one, which needs no request yet."""
        return (
            not update.is_async
            and not update.takes_context
            and update.timeout_s is None
            and not self._has_hooks
            and self._handlers.is_quick(update)
            and not self._handlers.is_for_process(update, instance)
            and self._processing.sees_newer
        )

    def _runs_as_usual(self, update: Update) -> bool:
        """Whether an update is to run as usual this time, because it was refused of late."""
        left = self._usual_runs.get(update.name, 0)
        if left:
            self._usual_runs[update.name] = left - 1
        return left > 0

    def _was_refused(self, update: Update) -> None:
        """Let an update run as usual for a while: others keep writing to its instances.

        Or it does so itself, by a store that it knows: it would run twice each time.
        """
        refusals = self._refusals.get(update.name, 0) + 1
        self._refusals[update.name] = refusals
        self._usual_runs[update.name] = min(2 ** min(refusals, 30) - 1, _USUAL_RUNS_MAX)

    def run(self, lane: Lane, update: Update, request: Event, offset_next: int) -> Done | None:
        """Run an update in a lane that was taken and is at rest; None with nothing written.

        `offset_next` is the first offset of the partition of which the lane may not know.

        Raises:
            As for `Receipt.entry`.
        """
        if self._runs_as_usual(update):
            return None
        head = self._processing.head(lane.instance)
        if head is None or not self._turns.has_begun(lane):
            return None
        session = self._turns.new_session(lane.instance)
        lane.session, lane.chain = None, session.chain
        one = Waiting(
            head.sequence, request.name, head.time_ms, None, 0, 0, ordinal=1, event=request
        )
        run = Run(
            self._component, self._processing, lane, one, update, session,
            is_stale=lambda: False, has_ended=lambda: self._board.is_stopped,
        )  # fmt: skip
        one.runs = 1
        with self._board.mutex:
            lane.expected = one.sequence
        diff, error = self._handlers.diff_of(run, *self._handlers.call(run))
        fault_point("processor.handler.after")
        if isinstance(error, Closed):
            return None  # the view was opened anew under it: as usual, then
        try:
            if diff is not None:
                done = self._answered(run, diff, offset_next)
            else:
                assert error is not None
                done = self._raised(run, error, offset_next)
        except NewerRecord:
            self._was_refused(update)
            return None  # it runs again when its turn has come
        self._refusals.pop(update.name, None)
        return done

    def _answered(self, run: Run, diff: Diff, offset_next: int) -> Done:
        """Append a request with its answer."""
        one, session = run.one, run.session
        answer = answers.part(
            one, session, diff, session.state.observed, run.update, 0, closes=True
        )
        fault_point("processor.append.before")
        try:
            receipts = self._processing.send_unless_newer(
                run.lane.instance, [run.event, answer], offset_next
            )
        except EventTooLarge as error:
            return self._raised(run, error, offset_next)
        with LetThrough():
            receipts[1].result()
        fault_point("processor.append.after")
        self._processing.see_own(run.lane.instance)
        with self._board.mutex:
            closed = run.lane.expected_answer
        return Done(one.sequence, closed)

    def _raised(self, run: Run, error: BaseException, offset_next: int) -> Done:
        """Append a request whose update has raised, and then what that means for it."""
        lane = run.lane
        receipts = self._processing.send_unless_newer(lane.instance, [run.event], offset_next)
        with LetThrough():
            sequence = receipts[0].entry().sequence
        with self._board.mutex:
            one = lane.waiting.get(sequence)
        if one is not None:  # the shard is still ours
            one.runs = run.one.runs
            run.one = one
            # As in a turn: where the log cannot be used now, the request runs again.
            self._board.attempt(lane, lambda: self._answering.raised(run, error))
        return Done(sequence, None)
