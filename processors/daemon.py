"""Daemon: a process of runners. Starts them, tells what they do, and stops them in good order.

Which update runs when is the runners' business, and which shards a runner has the log's. Here are
the life of the process (signals, deadlines, `--once`), its log lines and its notices. The shell's
side of it is in cli/running.py, the health port in health.py.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal

from eventstore import EventStore, EventStoreError, ReadTimeout
from processors.component import Component
from processors.logs import say
from processors.notices import Notice, NoticeBoard, Publisher, different_code
from processors.runner import Runner, Running

__all__ = [
    "EXIT_CUT_OFF",
    "EXIT_DONE",
    "EXIT_FAILED",
    "EXIT_STOPPED",
    "Daemon",
    "stopped_by_signals",
]

EXIT_DONE: Final = 0
#: `once`: an update has failed.
EXIT_FAILED: Final = 1
#: The deadline of a stop passed while updates were running; they stay pending.
EXIT_CUT_OFF: Final = 5
#: A second signal; as a shell reports a process that SIGINT has ended.
EXIT_STOPPED: Final = 130

#: How often the runners are looked at: the delay of a notice, and of lines that count something.
_TICK_S: Final = 1.0
#: Lines on failures between two looks; of what goes beyond only the number is told.
_FAILURE_LINES_MAX: Final = 20
#: How long one look at the log may take when somebody asks for the health.
_PROBE_S: Final = 2.0
#: A daemon whose own loop stood still for so long is not in good health.
_STANDS_STILL_S: Final = 30.0

#: What the main loop is told: what somebody wants of it, or what a thread of its own has done.
Message = Literal["stop", "stop now", "drained", "failed", "stopped", "cut off"]


class Daemon:
    """The runners of some components on one store. `run` returns when they have stopped."""

    def __init__(
        self,
        store: EventStore,
        components: Sequence[Component],
        *,
        once: bool = False,
        stop_timeout_s: float = 30.0,
        runner_of: Callable[..., Runner] = Runner,
        **options: Any,
    ) -> None:
        """Prepare a runner for each component; `options` are those of Runner.

        Args:
            store: where the components' apps are.
            components: whose updates to run.
            once: stop by itself when nothing is pending that could be run.
            stop_timeout_s: how long running updates may take to end after `stop`.
            runner_of: makes a runner; for tests.
            options: as for Runner.
        """
        self.store = store
        self.components = list(components)
        self._once = once
        self._stop_timeout_s = stop_timeout_s
        # SimpleQueue, because its put may interrupt its own get: signals come at any moment.
        self._messages: SimpleQueue[Message] = SimpleQueue()
        #: (event, app, update) -> how many there were since the last look.
        self._bursts: Counter[tuple[str, str, str]] = Counter()
        self._failures_said = 0
        self._shards: dict[str, frozenset[int]] = {}
        #: Guards `_bursts`, `_failures_said` and `_shards`, which runners' threads change.
        self._mutex = threading.Lock()
        self._looked_s = time.monotonic()
        self._is_stopping = False
        self._started = threading.Event()
        #: The runners that were started so far.
        self._begun: list[Runner] = []
        self._error: BaseException | None = None
        #: Whether threads of this daemon may go on for ever: the process should end without them.
        self.is_cut_off = False
        self._said: set[tuple[str, ...]] = set()
        self.runners: list[Runner] = [
            runner_of(store, component, on_event=self._teller(component.name), **options)
            for component in components
        ]
        self._publishers: list[Publisher] = []

    # --- living -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until `stop`, or until all is drained; return the exit code.

        Raises:
            EventStoreError: the log or a view cannot be used; what was started is stopped.
        """
        # Signals are heard while views fold what they have missed, which can take minutes.
        self._in_thread("start", self._start)
        try:
            return self._live()
        finally:
            self._is_stopping = True
            for runner in self.runners:
                runner.stop_now()  # does nothing to one that has stopped
            for publisher in self._publishers:
                publisher.close()

    def _start(self) -> None:
        """Start the runners, one after the other; with `once`, wait until they are drained."""
        apps = set(self.store.apps())
        for runner in self.runners:
            if self._is_stopping:
                return
            component = runner.component
            say(
                "start",
                app=component.name,
                updates=list(component.updates),
                store=self.store.url,
            )
            self._tell_what_is_missing(component, apps)
            runner.start()
            self._begun.append(runner)
            board = NoticeBoard.of(self.store, component.name)
            self._publishers.append(Publisher(board, component, runner))
        self._started.set()
        if self._once:
            self._drain()

    def _tell_what_is_missing(self, component: Component, apps: Set[str]) -> None:
        """Say where nobody has appended yet: a name or the URL may not be what they have."""
        event = "nothing to run" if self._once else "waiting"
        why = "nobody has appended to it yet"
        triggers = (update.trigger for update in component.triggers)
        watched = {trigger.app for trigger in triggers if trigger and trigger.app}
        # Requests come from another app's changes, too: then there may be some to run at once.
        has_source = self._once and not watched.isdisjoint(apps)
        if component.name not in apps and not has_source:
            say(event, app=component.name, why=why)
        for name in sorted(watched - apps):
            say(event, app=component.name, watched=name, why=why)

    def _live(self) -> int:
        """Wait for messages, and look at the runners meanwhile."""
        while True:
            try:
                message = self._messages.get(timeout=_TICK_S)
            except Empty:
                self._tick()
                continue
            if message in ("stop", "drained"):
                self._begin_to_stop()
            elif message == "stop now":
                say("stopped", logging.WARNING, why="a second signal", running=self._running())
                self.is_cut_off = True
                return EXIT_STOPPED
            elif message == "failed":
                assert self._error is not None
                raise self._error
            else:
                self._tick()
                return self._end(message)

    def _end(self, message: Message) -> int:
        if message == "cut off":
            say(
                "stopped",
                logging.WARNING,
                why=f"updates still ran after {self._stop_timeout_s:g} s; they stay pending",
                running=[_named(runner, one) for runner in self.runners for one in runner.cut_off],
            )
            self.is_cut_off = True
            return EXIT_CUT_OFF
        totals = [runner.snapshot() for runner in self.runners]
        failed = sum(total.failed for total in totals)
        say(
            "stopped",
            applied=sum(total.applied for total in totals),
            discarded=sum(total.discarded for total in totals),
            failed=failed,
            pending=sum(total.waiting for total in totals),
        )
        return EXIT_FAILED if self._once and failed else EXIT_DONE

    def stop(self) -> None:
        """Stop taking updates, let those that run end, and then end; at once when asked again.

        May be called from a signal handler, and from any thread.
        """
        self._messages.put("stop now" if self._is_stopping else "stop")
        self._is_stopping = True

    def _begin_to_stop(self) -> None:
        self._is_stopping = True
        say("stopping", running=self._running(), seconds_max=self._stop_timeout_s)
        self._in_thread("stop", self._stop_runners)

    def _stop_runners(self) -> None:
        """Stop all runners at the same time, so that they share one deadline."""
        if not self._started.is_set():
            # Nothing ends the fold of a view but the end of the process. The runners before that
            # one run already, and it may run something from this moment on.
            self.is_cut_off = True
        runners = [one for one in self.runners if one in self._begun or one.snapshot().running]
        ended: list[bool] = []
        threads = [
            threading.Thread(
                target=lambda one: ended.append(one.stop(self._stop_timeout_s)),
                args=(runner,),
                name=f"processors-stop-{runner.component.name}",
                daemon=True,
            )
            for runner in runners
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._messages.put("stopped" if len(ended) == len(threads) and all(ended) else "cut off")

    def _drain(self) -> None:
        """Wait until no runner has anything to run: one may have made work for another."""
        drained = False
        while not drained and not self._is_stopping:
            before = self._totals()
            for runner in self.runners:
                while not self._is_stopping and not runner.drain(_TICK_S):
                    pass
            drained = self._totals() == before or len(self.runners) == 1
        if not self._is_stopping:
            self._messages.put("drained")

    def _totals(self) -> list[tuple[int, int, int]]:
        totals = [runner.snapshot() for runner in self.runners]
        return [(total.applied, total.discarded, total.failed) for total in totals]

    def _in_thread(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # whatever it is, nobody else would end this daemon
                self._error = error
                self._messages.put("failed")

        threading.Thread(target=guarded, name=f"processors-{name}", daemon=True).start()

    # --- telling ----------------------------------------------------------------------------------

    def _teller(self, app: str) -> Callable[[str, dict[str, Any]], None]:
        def tell(event: str, facts: dict[str, Any]) -> None:
            if event == "shards":
                self._say_shards(app, facts["shards"])
            elif event == "failed" and self._may_say_failed():
                say("failed", logging.ERROR, app=app, **facts)
            else:
                # Of a burst one line, with how many: see _say_bursts.
                with self._mutex:
                    self._bursts[event, app, str(facts.get("update", ""))] += 1

        return tell

    def _may_say_failed(self) -> bool:
        with self._mutex:
            self._failures_said += 1
            return self._failures_said <= _FAILURE_LINES_MAX

    def _say_bursts(self) -> None:
        with self._mutex:
            bursts, self._bursts = self._bursts, Counter()
            self._failures_said = 0
        for (event, app, update), count in bursts.items():
            level = logging.ERROR if event == "failed" else logging.INFO
            more = {"more": count} if event == "failed" else {"count": count}
            say(event, level, app=app, update=update, **more)

    def _tick(self) -> None:
        """Say what is new, and write the notices."""
        for publisher in list(self._publishers):
            try:
                notice = publisher.tick()
            except (OSError, EventStoreError) as error:
                self._say_once("notice", publisher.notice.app, why=str(error))
                continue
            for name in notice.unknown:
                self._say_once("unknown update", notice.app, update=name)
            self._warn_of_different_code(notice)
        self._say_bursts()
        self._looked_s = time.monotonic()

    def _say_shards(self, app: str, shards: Sequence[int]) -> None:
        """Say which shards a runner was given or has given up; called by the log's thread."""
        with self._mutex:
            before, self._shards[app] = self._shards.get(app, frozenset()), frozenset(shards)
        gained, lost = self._shards[app] - before, before - self._shards[app]
        if gained or lost:
            say("shards", app=app, gained=sorted(gained), lost=sorted(lost), now=len(shards))

    def _warn_of_different_code(self, own: Notice) -> None:
        others = [one for one in NoticeBoard.of(self.store, own.app).read() if one.id != own.id]
        for other in others:
            for name, _, _ in different_code((own, other)):
                self._say_once(
                    "different code",
                    own.app,
                    update=name,
                    owner=own.owner,
                    other=other.owner,
                    why="two processes run this update with different code; which of them runs a"
                    " request is a matter of luck until one is stopped",
                )

    def _say_once(self, event: str, app: str, **facts: str) -> None:
        if (event, app, *facts.values()) not in self._said:
            self._said.add((event, app, *facts.values()))
            say(event, logging.WARNING, app=app, **facts)

    def _running(self) -> list[str]:
        return [_named(runner, one) for runner in self.runners for one in runner.snapshot().running]

    # --- being asked ------------------------------------------------------------------------------

    def notices(self) -> list[Notice]:
        """Return what each runner did when it was last looked at."""
        return [publisher.notice for publisher in self._publishers]

    def faults(self) -> list[str]:
        """Return why this daemon is not in good health; nothing while it is.

        A runner that has no shards waits for them in good health, and so does one whose view
        still folds what it has missed.
        """
        found = ["it is stopping"] if self._is_stopping else []
        still_s = time.monotonic() - self._looked_s
        if still_s > _STANDS_STILL_S:
            found.append(f"its main loop has stood still for {still_s:.0f} s")
        if not self._started.is_set():
            return found  # a question to a view that folds what it has missed would wait for it
        for runner in self.runners:
            try:
                runner.processing.catch_up(_PROBE_S)
            except ReadTimeout:
                continue
            except EventStoreError as error:
                found.append(f"{runner.component.name}: {error}")
        return found


def _named(runner: Runner, one: Running) -> str:
    return f"{runner.component.name}/{one.instance} {one.name}"


@contextmanager
def stopped_by_signals(daemon: Daemon) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop a daemon; must be entered in the main thread."""
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    for kind in kinds:
        signal.signal(kind, lambda *_: daemon.stop())
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
