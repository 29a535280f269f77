"""Running handlers: in this thread, on the event loop, or in a spawned process.

What comes of a run goes to answering.py. A run that takes the lane away from its thread (an async
one, or a plain one that ran longer than it may) ends with the lane given back, or another turn.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from eventstore import Closed, Diff
from eventstore.interrupts import LetThrough
from eventstore.testing import fault_point
from processors.component import Component, Update
from processors.context import Superseded, runs_in
from processors.results import LiveStates
from processors.runner.answering import Answering
from processors.runner.board import Board
from processors.runner.lanes import Lane
from processors.runner.run import Run, is_interrupt
from processors.runner.staleness import Staleness
from processors.runner.workers import (
    HandlerRaised,
    NotImportable,
    Task,
    WorkerDied,
    Workers,
)

__all__ = ["Handlers"]

#: How long an async update that was cancelled by its time limit may take to end. Longer, it counts
#: as one that does not end, and its lane goes on without it.
_CANCELLED_S_MAX: Final = 5.0
#: An update that takes less is quicker than a commit.
_QUICK_S_MAX: Final = 0.001


class Handlers:
    """See the module's text."""

    def __init__(
        self,
        component: Component,
        board: Board,
        answering: Answering,
        staleness: Staleness,
        live: LiveStates,
        *,
        processes_max: int,
        worker: Literal["thread", "process"],
        take_turn: Callable[[Lane], None],
    ) -> None:
        self._component = component
        self._board = board
        self._answering = answering
        self._staleness = staleness
        self._live = live
        self._worker = worker
        #: instance -> where its plain updates run, as all of those say who have it open; `worker`
        #: says it of the others. Changed under the board's lock.
        self._workers_of: dict[str, tuple[Literal["thread", "process"], ...]] = {}
        self._take_turn = take_turn
        self._processes_max: Final = max(1, min(processes_max, os.cpu_count() or 1))
        #: How long each plain update took when it ran last.
        self._took_s: dict[str, float] = {}
        self._workers: Workers | None = None
        self._workers_mutex = threading.Lock()

    def close(self) -> None:
        """End the spawned processes."""
        with self._workers_mutex:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def run(self, run: Run) -> bool:
        """Run a handler and answer; True if the lane is somebody else's now."""
        run.one.runs += 1
        is_asked_for = self.is_for_process(run.update, run.lane.instance)
        if run.one.suspect or is_asked_for:
            return self._run_in_worker(run, is_asked_for=is_asked_for)
        return self._begin_async(run) if run.update.is_async else self._run_here(run)

    def _begin(self, run: Run) -> None:
        """Say that a run begins: nothing can keep it from it any more."""
        run.began_ms = self._board.clock.now_ms()
        run.lane.run = run

    def run_in(self, instance: str, worker: Literal["thread", "process"]) -> None:
        """Let the plain updates of an instance run there, unless they say it themselves.

        It counts until `run_in_no_more`. Where several speak for one instance, "process" wins.
        """
        with self._board.mutex:
            self._workers_of[instance] = (*self._workers_of.get(instance, ()), worker)

    def run_in_no_more(self, instance: str, worker: Literal["thread", "process"]) -> None:
        """Take back what was said by `run_in`."""
        with self._board.mutex:
            left = list(self._workers_of[instance])
            left.remove(worker)
            if left:
                self._workers_of[instance] = tuple(left)
            else:
                del self._workers_of[instance]

    def run_as(self, former: Handlers) -> None:
        """Let the plain updates of all instances run where they do by the handlers before these."""
        with former._board.mutex:
            workers_of = dict(former._workers_of)
        with self._board.mutex:
            self._workers_of = workers_of

    def is_for_process(self, update: Update, instance: str) -> bool:
        """Whether an update of an instance runs in a spawned process."""
        if update.is_async:
            return False
        said = self._workers_of.get(instance, (self._worker,))
        return "process" in said if update.worker is None else update.worker == "process"

    def _conclude(
        self, run: Run, result: object, error: BaseException | None, reason: str = "raised"
    ) -> None:
        """Answer for a handler that returned or raised."""
        diff, error = self.diff_of(run, result, error)
        fault_point("processor.handler.after")
        if isinstance(error, Superseded | Closed):
            # Closed: the view that its state is of was opened anew; it reads the next one then.
            self._answering.superseded(run)
        elif diff is None:
            assert error is not None
            self._answering.raised(run, error, reason)
        else:
            self._answering.apply(run, diff, run.outbox)

    def diff_of(
        self, run: Run, result: object, error: BaseException | None
    ) -> tuple[Diff | None, BaseException | None]:
        """Return what a handler's result changes, or why it raised or its result is none."""
        run.calls.end()
        if error is not None:
            return None, error
        try:
            return run.diff_of(result), None
        except BaseException as refused:  # of save_state, say
            if is_interrupt(refused):
                raise
            return None, refused

    # --- in this thread ---------------------------------------------------------------------------

    def _run_here(self, run: Run) -> bool:
        """Run a plain update in this thread; True if it took so long that it lost its lane."""
        timeout_s = run.update.timeout_s
        run.thread = threading.get_ident()
        self._begin(run)
        cancel_timer = None
        if timeout_s is not None:
            why = f"it ran longer than timeout_s={timeout_s}; its thread was left alone"
            cancel_timer = self._time_out(run, timeout_s, why)
        result, error = self.call(run)
        if cancel_timer is not None:
            cancel_timer()
            if self._is_over(run):
                return True
        self._conclude(run, result, error)
        return False

    def call(self, run: Run) -> tuple[object, BaseException | None]:
        """Call a plain update, and return what it returned or raised."""
        fault_point("processor.handler.before")
        result, error = None, None
        token = runs_in.set(run.place)
        began_s = time.perf_counter()
        try:
            with LetThrough():
                result = run.update.function(*run.arguments(self._live))
        except BaseException as raised:  # SystemExit too: it is the handler's, not ours
            if is_interrupt(raised):
                raise
            error = raised
        finally:
            runs_in.reset(token)
        self._took_s[run.update.name] = time.perf_counter() - began_s
        return result, error

    def is_quick(self, update: Update) -> bool:
        """Whether an update took its caller's thread, when it ran last, for next to no time."""
        return self._took_s.get(update.name, _QUICK_S_MAX) < _QUICK_S_MAX

    def _is_over(self, run: Run) -> bool:
        """Note that a run is over; True if it was before."""
        with self._board.mutex:
            was_over, run.is_over = run.is_over, True
            return was_over

    def _time_out(self, run: Run, after_s: float, why: str) -> Callable[[], object]:
        """Fail an update that takes too long and cannot be stopped; return what calls that off."""
        loop = self._board.timers
        handles: list[asyncio.TimerHandle] = []

        def fail() -> None:
            if not self._is_over(run):
                self._board.aside(lambda: self._abandon(run, why))

        def stop_timer() -> None:
            for handle in handles:
                handle.cancel()

        loop.call_soon_threadsafe(lambda: handles.append(loop.call_later(after_s, fail)))
        return lambda: loop.call_soon_threadsafe(stop_timer)

    def _abandon(self, run: Run, why: str) -> None:
        error = TimeoutError(why)
        with self._board.mutex:
            # The handler may still make checkpoints: not in the row in which we go on.
            run.lane.break_row()
        self._board.write_off(run.thread)
        try:
            self._board.attempt(run.lane, lambda: self._answering.raised(run, error, "timeout"))
        finally:
            self._board.let_go(run.lane)

    # --- in a spawned process ---------------------------------------------------------------------

    def _run_in_worker(self, run: Run, *, is_asked_for: bool) -> bool:
        """Run an update in a spawned process; what cannot be found there runs here if it must."""
        with self._workers_mutex:
            if self._workers is None:
                self._workers = Workers(self._processes_max)
            workers = self._workers
        task = Task(
            (self._component.module, self._component.name),
            run.one.name,
            run.session.state,
            run.event.body,
            run.idempotency_key,
            run.one.runs,
            run.update.timeout_s,
        )
        answering = self._answering
        self._begin(run)
        try:
            with self._board.held_up():
                done = workers.run(task, run.calls)
        except NotImportable as error:
            if not is_asked_for:
                # A suspect whose component no child can find, and which may end this process.
                if answering.was_begun_enough(run):
                    answering.set_aside_crashed(run.lane, run.one)
                    return False
                return self._begin_async(run) if run.update.is_async else self._run_here(run)
            answering.raised(run, error)
        except WorkerDied as error:
            answering.died(run, error)
        except TimeoutError as error:
            answering.raised(run, error, "timeout")
        except Superseded:
            answering.superseded(run)
        except HandlerRaised as error:
            answering.raised(run, error)
        else:
            answering.apply(run, done.diff, done.outbox, done.observed)
        return False

    # --- on the event loop ------------------------------------------------------------------------

    def _begin_async(self, run: Run) -> bool:
        """Hand an update to the event loop, which has the lane until it is done."""
        if not self._board.take_slot(run.lane):
            run.one.runs -= 1  # it has not begun
            return True
        self._begin(run)
        fault_point("processor.handler.before")
        try:
            arguments = run.arguments(self._live)
        except BaseException as error:
            self._board.free_slot()
            self._answering.raised(run, error)
            return False
        self._board.loop.call_soon_threadsafe(self._start_task, run, arguments)
        return True

    def _start_task(self, run: Run, arguments: tuple[Any, ...]) -> None:
        """Start an async update. On the loop."""
        loop = self._board.loop
        task = loop.create_task(_timed(run, arguments))

        def cancel() -> None:
            run.was_cancelled = True
            loop.call_soon_threadsafe(task.cancel)

        run.cancel = cancel
        timers: list[Callable[[], object]] = []
        if (watch := self._staleness.watch(run)) is not None:
            timers.append(watch.cancel)
        if (timeout_s := run.update.timeout_s) is not None:
            why = f"it ran longer than timeout_s={timeout_s}, and did not end when it was cancelled"
            timers.append(self._time_out(run, timeout_s + _CANCELLED_S_MAX, why))
        task.add_done_callback(lambda done: self._ended(run, done, timers))

    def _ended(
        self, run: Run, task: asyncio.Task[Any], timers: Sequence[Callable[[], object]]
    ) -> None:
        """Take the lane back from an async update, if it was not taken before. On the loop."""
        for end_timer in timers:
            end_timer()
        self._board.free_slot()
        if not task.cancelled():
            task.exception()  # whoever cares has it from the task; asyncio need not tell
        if self._is_over(run):
            return
        if not self._board.submit(lambda: self._after_async(run, task)):
            self._board.let_go(run.lane)  # the runner has ended, and the request stays pending

    def _after_async(self, run: Run, task: asyncio.Task[Any]) -> None:
        """Answer for an async update that ended, and go on with its lane."""
        try:
            self._board.attempt(run.lane, lambda: self._conclude_async(run, task))
        finally:
            self._take_turn(run.lane)

    def _conclude_async(self, run: Run, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            if not (run.was_cancelled and self._answering.give_up(run)):
                error = asyncio.CancelledError("the update was cancelled, or cancelled itself")
                self._answering.raised(run, error)
            return
        raised = task.exception()
        is_late = run.update.timeout_s is not None and isinstance(raised, TimeoutError)
        result = None if raised is not None else task.result()
        self._conclude(run, result, raised, "timeout" if is_late else "raised")


async def _timed(run: Run, arguments: tuple[Any, ...]) -> Any:
    runs_in.set(run.place)  # in the context of this task alone
    if run.update.timeout_s is None:
        return await run.update.function(*arguments)
    try:
        async with asyncio.timeout(run.update.timeout_s) as limit:
            return await run.update.function(*arguments)
    except TimeoutError as error:
        if limit.expired() and not error.args:
            raise TimeoutError(f"it ran longer than timeout_s={run.update.timeout_s}") from error
        raise
