"""The updates of one instance as its callers have them: queued, seen through, and waited for.

The runner that this process shares runs them, or whoever has the instance's shard. An instance
without a runner of its own borrows one while somebody waits for its updates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

from eventstore import Entry, Event, EventStore, Kind, Receipt
from eventstore.processing import Processing
from processors.component import Component
from processors.context import runs_in
from processors.flow import Flow
from processors.runner import Runner
from processors.runner.loop import refuse_to_block_updates
from processors.stores import in_thread
from processors.submitted import Submitted, UpdateFailed, failure_of

__all__ = ["InstanceUpdates"]


class InstanceUpdates:
    """See the module's text. Safe to use from any thread, until it is released."""

    def __init__(
        self,
        store: EventStore,
        component: Component,
        processing: Processing,
        instance: str,
        *,
        worker: Literal["thread", "process"],
        runs_here: bool,
    ) -> None:
        """Take a share in this process's runner, where `runs_here`, and there is what to run."""
        self._store, self._component = store, component
        self._processing = processing
        self._instance = instance
        self._worker = worker
        self._mutex = threading.Lock()
        #: Those of former definitions of the component. They end by themselves, and what they run
        #: is waited for at the end only: one of their updates may be what calls us.
        self._formers: list[Runner] = []
        self._runner = self._share() if runs_here and component.updates else None

    def release(self) -> None:
        """Give the runner back: what runs is finished, the rest stays pending."""
        with self._mutex:
            runners, self._formers = self._formers, []
            if self._runner is not None:
                runners.append(self._runner)
            self._runner = None
        for runner in runners:
            self._give_back(runner)

    def _share(self) -> Runner:
        runner = Runner.share(self._store, self._component, worker=self._worker)
        runner.run_in(self._instance, self._worker)
        return runner

    def _give_back(self, runner: Runner) -> None:
        runner.release()
        runner.run_in_no_more(self._instance, self._worker)  # it may have run something until here

    def _own_runner(self) -> Runner | None:
        """Return the runner that this instance has a share in, if it has one."""
        with self._mutex:
            if self._runner is not None and self._runner.has_ended:
                # The component was defined anew: it is the new definition's runner from now on.
                former, self._runner = self._runner, self._share()
                self._formers.append(former)
            return self._runner

    @contextmanager
    def _lent_runner(self) -> Iterator[Runner]:
        """Lend a runner: this instance's, or one for the time of a call."""
        runner = self._own_runner()
        if runner is not None:
            yield runner
            return
        runner = self._share()
        try:
            yield runner
        finally:
            self._give_back(runner)

    @asynccontextmanager
    async def _alent_runner(self) -> AsyncIterator[Runner]:
        runner = self._runner
        if runner is not None and runner.has_ended:
            runner = await in_thread(self._store, self._own_runner)
        if runner is not None:
            yield runner
            return
        runner = await in_thread(self._store, self._share)
        try:
            yield runner
        finally:
            await in_thread(self._store, self._give_back, runner)

    def running_here(self) -> dict[int, int]:
        """Return what this process runs of the instance now: sequence -> since when, epoch ms."""
        runner = self._runner
        if runner is None:
            return {}
        running = runner.snapshot().running
        return {one.sequence: one.since_ms for one in running if one.instance == self._instance}

    # --- the updates of one call ----------------------------------------------------------------

    def send(self, flow: Flow, not_before_ms: int | None = None) -> list[Receipt]:
        """Queue a call's updates, which may be discarded; the receipts say when that is durable."""
        runner = self._runner
        if runner is not None and runner.has_ended:
            self._own_runner()
        return self._processing.send(flow.requests(discardable=True, not_before_ms=not_before_ms))

    def complete(self, flow: Flow) -> None:
        """Queue a call's updates, and return when they have taken effect, in their turn.

        Somebody waits for these, so none of them is discarded.

        Raises:
            UpdateFailed: one did not take effect; all are closed.
        """
        requests = flow.requests(discardable=False)
        with self._lent_runner() as runner:
            self._raise_failures(flow, self._answers(runner, flow, requests), runner)

    def _answers(
        self, runner: Runner, flow: Flow, requests: Sequence[tuple[str, Event]]
    ) -> list[Entry]:
        """Ask for the updates of a flow, and return what closed the requests."""
        if len(flow.updates) == 1:
            answer = runner.run_at_once(self._instance, flow.updates[0], requests[0][1])
            if answer is not None:
                return [answer]
        with runner.reserve(self._instance):
            return runner.complete(self._processing.send(requests), None)

    async def acomplete(self, flow: Flow) -> None:
        """Do what `complete` does, without blocking the event loop."""
        async with self._alent_runner() as runner:
            receipts = self._processing.send(flow.requests(discardable=False))
            answers = []
            for update, receipt in zip(flow.updates, receipts, strict=True):
                submitted = Submitted(
                    self._processing, self._instance, update.name, receipt, self.running_here
                )
                await submitted
                assert submitted.answer is not None
                answers.append(submitted.answer)
            self._raise_failures(flow, answers, runner)

    def _raise_failures(self, flow: Flow, answers: Sequence[Entry], runner: Runner) -> None:
        failures = [
            failure
            for update, answer in zip(flow.updates, answers, strict=True)
            if (failure := failure_of(self._component.name, update.name, answer)) is not None
        ]
        if failures:
            first, *others = failures
            for other in others:
                first.add_note(f"and {other}")
            # The exception itself, where the update ran in this process.
            raise first from runner.error_of(self._instance, first.sequence)

    # --- waiting for what is queued -------------------------------------------------------------

    def refuse_inside(self) -> None:
        """Refuse to wait for updates in the code of one that runs: they come after it."""
        if runs_in.get() == (self._processing.identity, self._component.name, self._instance):
            raise RuntimeError(
                f"an update of {self._component.name}__{self._instance} cannot wait for other"
                " updates of the same instance: they run after it. Use run() without"
                " flush_update, or context.request(...). Nothing was run"
            )

    def wait(
        self, wanted: Callable[[str], bool], timeout_s: float | None = None
    ) -> list[UpdateFailed]:
        """Wait for the requests that are pending now; return the errors of those that failed.

        Delayed requests are left out, and those that this code does not know: nobody may come to
        run them.

        Args:
            wanted: which updates to wait for, by their names.
            timeout_s: how long to wait; None waits as long as it takes.

        Raises:
            ReadTimeout: not all were run in time.
        """
        self.refuse_inside()
        refuse_to_block_updates("aflush_update(...), or arun(..., force_refresh=True)")
        self._processing.catch_up(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        answers: dict[int, Entry] = {}
        with self._processing.closings(self._instance) as closings:
            names = {}
            for row in self._processing.pending(self._instance):
                update = self._component.find(row.request.name)
                if update is not None and wanted(update.name) and row.request.due_ms is None:
                    names[row.request.sequence] = row.request.name
            if not names:
                return []
            with self._lent_runner() as runner:
                # The last is closed last, as a rule, and then nobody waits for the others.
                for sequence in sorted(names, reverse=True):
                    if sequence in closings.closed:
                        continue
                    left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                    # By the runner, which can help: at the interpreter's exit no thread is left to.
                    answers[sequence] = runner.closed(self._instance, sequence, left_s)
        for sequence, folded in closings.failures.items():
            if sequence in names:
                answers[sequence] = self._processing.entry_of(folded)
        failures = []
        for sequence, answer in sorted(answers.items()):
            failure = failure_of(self._component.name, names[sequence], answer)
            if failure is not None and answer.event.kind == Kind.FAILURE:
                failures.append(failure)
        return failures
