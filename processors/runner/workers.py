"""Workers: spawned child processes that run handlers for a runner. The parent's side.

Two kinds of updates run in a child: those that keep a core busy, when asked, because threads share
one; and *suspects*, whose earlier owner died while they ran, so that a handler that ends its
process ends a child and not one daemon after another. What runs in the child is in
worker_child.py; which update runs where is decided in handlers.py.

Children are spawned, never forked: a fork copies locks that are held and databases that are open.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import multiprocessing.util
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Final, NamedTuple

import orjson

from eventstore import Closed, Diff
from eventstore.interrupts import LetThrough
from eventstore.lifetime import abandon_in_child
from processors.context import Calls, Superseded
from processors.runner.worker_child import (
    LEFT_TO_THE_PARENT,
    Call,
    Raised,
    Reply,
    Result,
    Started,
    Task,
    Unknown,
    class_name,
    encode,
    main,
    pickled,
    unpickled,
)

__all__ = ["Done", "HandlerRaised", "NotImportable", "Task", "WorkerDied", "Workers"]

#: A child that had no task for so long ends; the next one that is needed takes some 0.3 s.
IDLE_S_MAX: Final = 30.0
#: How long a child may import what the handler needs. A script that never returns from its import
#: would hold up its lane for ever.
START_S_MAX: Final = 120.0
#: How long a child that was told to end may take for its atexit functions.
END_S_MAX: Final = 5.0

_SPAWN: Final = multiprocessing.get_context("spawn")


class Done(NamedTuple):
    """What a handler's result changes, what it sends to others, and which fields it read."""

    diff: Diff
    outbox: bytes | None
    observed: frozenset[str]


class HandlerRaised(Exception):
    """The handler raised. Nothing was written but the effects and parts recorded before.

    `names` are those of its exception's class and all base classes; `exception` is the exception
    itself where it survives the way between processes, else None.
    """

    def __init__(
        self,
        type_name: str,
        message: str,
        traceback: str,
        names: tuple[str, ...],
        exception: BaseException | None,
    ) -> None:
        super().__init__(type_name, message, traceback, names, exception)
        self.type_name, self.message, self.traceback = type_name, message, traceback
        self.names, self.exception = names, exception

    def is_a(self, kinds: tuple[type[BaseException], ...]) -> bool:
        """Whether `except kinds:` would have caught it, judged by the names of its classes."""
        return any(class_name(kind) in self.names for kind in kinds)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class WorkerDied(Exception):
    """The child ended while it ran the handler: it is not known how far the handler came.

    `exit_code` is negative for a signal (-9: SIGKILL), None when it is not known.
    """

    def __init__(self, task: str, exit_code: int | None) -> None:
        super().__init__(task, exit_code)
        self.task, self.exit_code = task, exit_code

    @property
    def signal_name(self) -> str | None:
        """The signal that killed it, such as SIGKILL; None when it was none."""
        if self.exit_code is None or self.exit_code >= 0:
            return None
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.exit_code).name
        return f"signal {-self.exit_code}"

    def __str__(self) -> str:
        if self.signal_name == "SIGKILL":
            end = "was killed by SIGKILL: perhaps it needed more memory than there is"
        elif self.signal_name is not None:
            end = f"was killed by {self.signal_name}"
        elif self.exit_code is None:
            end = "ended"
        else:
            end = f"ended with exit code {self.exit_code}: something in it called os._exit"
        return f"the process that ran {self.task} {end}"


class NotImportable(Exception):
    """The component or its update cannot be found in a spawned child. The handler was not run."""

    def __init__(self, task: str, why: str) -> None:
        super().__init__(task, why)
        self.task, self.why = task, why

    def __str__(self) -> str:
        return (
            f"{self.task} cannot run in a process of its own: {self.why.rstrip()}\n"
            "A spawned process imports the module that defines the component. Define it at the top"
            " level of a module that can be imported; a script does its work under"
            ' `if __name__ == "__main__":`, and what was typed into an interpreter or a notebook'
            " has no module"
        )


class _Gone(Exception):
    """The child does not answer any more."""


class _Child:
    """A spawned process and our end of its pipe; one thread talks with it, any may kill it."""

    def __init__(self) -> None:
        #: When the keeper ends it, in seconds of time.monotonic().
        self.due_s = math.inf
        #: Whether the keeper killed it, because its task took too long.
        self.is_late = False
        self.is_running = False
        #: Whether it has answered a task, so that its end says nothing about the next one.
        self.has_worked = False
        self._life = threading.Lock()
        self._is_killed = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Any = None

    def start(self) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        with theirs, self._life, _signals_held_back():
            if self._is_killed:
                raise _Gone
            # Not a daemonic process: those may not have processes of their own.
            process = _SPAWN.Process(target=main, args=(theirs,), name="foldlog-worker")
            process.daemon = False
            process.start()
            self._process = process

    def send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            raise _Gone from None

    def receive(self) -> Any:
        try:
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise _Gone from None
        return pickle.loads(message)

    def kill(self) -> None:
        """End it at once; harmless when it has ended."""
        with self._life:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    def hang_up(self) -> None:
        """Close the pipe: an idle child ends of itself then."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()

    def end(self) -> int | None:
        """Hang up and wait for its end, which is hastened if need be; return the exit code."""
        self.hang_up()
        process = self._process
        if process is None:
            return None
        until_s, pause_s = time.monotonic() + END_S_MAX, 0.01
        # join() waits for a pipe to close, which a process that a handler forked keeps open.
        while process.exitcode is None and time.monotonic() < until_s:
            process.join(pause_s)
            pause_s *= 2
        if process.exitcode is None:
            process.kill()
            process.join()
        with self._life:  # a process that is closed cannot be killed
            self._process = None
            exit_code = process.exitcode
            if exit_code is not None:
                process.close()
        return exit_code


class _Outcome(NamedTuple):
    """A child's last word on a task, and what `calls` raised in this process meanwhile."""

    answer: Result | Raised | Unknown
    refusal: BaseException | None


class Workers:
    """At most `count_max` child processes, started when they are needed and used again.

    Calls may come from any thread. All children end with this process, however it ends.
    """

    def __init__(self, count_max: int) -> None:
        if count_max < 1:
            raise ValueError(f"count_max={count_max}; give at least 1")
        self.count_max = count_max
        self._children: set[_Child] = set()
        #: The last used is the first taken, so that those that are not needed stay idle and end.
        self._idle: list[_Child] = []
        #: When the keeper looks next; None while there is no keeper.
        self._keeper_wakes_s: float | None = None
        self._is_closed = False
        self._make_locks()
        abandon_in_child(self)
        _open_workers.add(self)

    def _make_locks(self) -> None:
        self._mutex = threading.Lock()
        #: Told when a child became free or ended.
        self._freed = threading.Condition(self._mutex)
        #: Told when the keeper is to look sooner than it meant to.
        self._sooner = threading.Condition(self._mutex)

    def run(self, task: Task, calls: Calls) -> Done:
        """Run a handler in a child, serving its calls in this thread; wait for what it returns.

        While all children are busy, this waits for one. What `calls` raises is raised in the
        handler, and raised here when the handler lets it through.

        Raises:
            HandlerRaised: the handler raised, or returned what no update may return.
            TimeoutError: it ran for more than `task.timeout_s`; its child was killed.
            WorkerDied: its child ended while it ran.
            NotImportable: the child cannot find it; it was not run.
            Closed: the workers were closed; how far the handler came is not known.
        """
        message = encode(task)
        while True:
            child = self._take()
            try:
                with LetThrough():
                    outcome = self._converse(child, task, message, calls)
            except _Gone:
                error = self._lost(child, task)
                if error is not None:
                    raise error from None
            except BaseException:  # interrupted in mid-sentence: it cannot be used again
                child.kill()
                self._drop(child)
                raise
            else:
                self._give_back(child)
                return _done(task, outcome)

    def close(self) -> None:
        """End all children, those that run a handler at once; their `run` raises Closed.

        Returns when they have ended, or after some seconds when a thread in `run` still waits for
        its `calls`. Closing twice is harmless.
        """
        with self._mutex:
            self._is_closed = True
            idle, self._idle = self._idle, []
            busy = self._children.difference(idle)
            self._freed.notify_all()
        for child in busy:
            child.kill()
        for child in idle:
            child.hang_up()
        for child in idle:
            self._drop(child)
        until_s = time.monotonic() + END_S_MAX
        with self._mutex:
            while self._children and time.monotonic() < until_s:
                self._freed.wait(until_s - time.monotonic())

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def abandon(self) -> None:
        """Let go in a forked process: the children are its parent's."""
        self._is_closed = True
        for child in self._children:
            child.hang_up()
        self._children, self._idle = set(), []
        self._make_locks()

    # --- one run --------------------------------------------------------------------------------

    def _converse(self, child: _Child, task: Task, message: bytes, calls: Calls) -> _Outcome:
        if not child.has_worked:
            child.start()
        self._end_after(child, START_S_MAX)
        child.send(message)
        answer = child.receive()
        refusal: BaseException | None = None
        if isinstance(answer, Started):
            with self._mutex:
                # Not if it is being ended because it took so long to come to this.
                child.is_running = not child.is_late
                self._is_due_after(child, math.inf if task.timeout_s is None else task.timeout_s)
            while isinstance(answer := child.receive(), Call):
                reply, error = _served(calls, answer)
                refusal = error or refusal
                child.send(encode(reply))
        child.is_running, child.has_worked = False, True
        return _Outcome(answer, refusal)

    def _lost(self, child: _Child, task: Task) -> Exception | None:
        """Return what the end of a child means for its task; None: nothing, ask another child."""
        exit_code = self._drop(child)
        what = f"update {task.update!r} of component {task.component[1]}"
        if self._is_closed:
            return Closed(f"the workers were closed while {what} ran or waited to run")
        if child.is_late and child.is_running:
            return TimeoutError(
                f"{what} ran for more than {task.timeout_s:g} s; the process that ran it was killed"
            )
        if child.is_running:
            return WorkerDied(what, exit_code)
        if child.is_late:
            return NotImportable(what, f"a new process did not get to it in {START_S_MAX:g} s.")
        if child.has_worked:
            return None  # it ended while it was idle
        if exit_code is None or exit_code < 0:
            return WorkerDied(what, exit_code)
        return NotImportable(
            what,
            f"a new process ended with exit code {exit_code} while it imported the main module or"
            f" {task.component[0]}; what it said about that is on stderr.",
        )

    # --- children -------------------------------------------------------------------------------

    def _take(self) -> _Child:
        """Return a child for this thread alone: an idle one, else one that is to be started."""
        with self._mutex:
            while True:
                if self._is_closed:
                    raise Closed("the workers are closed")
                if self._idle:
                    child = self._idle.pop()
                    # Its time as an idle one ends here: the keeper may look before it is told more.
                    child.due_s = math.inf
                    return child
                if len(self._children) < self.count_max:
                    child = _Child()
                    self._children.add(child)
                    return child
                self._freed.wait()

    def _give_back(self, child: _Child) -> None:
        with self._mutex:
            # It may have answered at the very moment at which it was killed.
            is_usable = not child.is_late and not self._is_closed
            if is_usable:
                # In one step: whoever takes it next has a time of his own for it.
                self._idle.append(child)
                self._is_due_after(child, IDLE_S_MAX)
                self._freed.notify()
        if not is_usable:
            child.kill()
            self._drop(child)

    def _drop(self, child: _Child) -> int | None:
        """Wait for the end of a child that ends, and make room for another."""
        exit_code = child.end()
        with self._mutex:
            self._children.discard(child)
            self._freed.notify_all()
            if not self._children:
                self._sooner.notify()
        return exit_code

    # --- the keeper -----------------------------------------------------------------------------

    def _end_after(self, child: _Child, seconds: float) -> None:
        """Have the keeper end a child when it is still busy with the same, or idle, by then."""
        with self._mutex:
            self._is_due_after(child, seconds)

    def _is_due_after(self, child: _Child, seconds: float) -> None:
        """As `_end_after`, with the mutex held."""
        child.due_s = time.monotonic() + seconds
        if self._keeper_wakes_s is None:
            self._keeper_wakes_s = child.due_s
            threading.Thread(target=self._keep, name="foldlog-workers", daemon=True).start()
        elif child.due_s < self._keeper_wakes_s:
            self._sooner.notify()

    def _keep(self) -> None:
        """End the children that are due, as long as there are any."""
        with self._mutex:
            while self._children:
                now_s = time.monotonic()
                for child in [child for child in self._children if child.due_s <= now_s]:
                    child.due_s = math.inf
                    self._end_due(child)
                self._keeper_wakes_s = min(child.due_s for child in self._children)
                idle_s = self._keeper_wakes_s - time.monotonic()
                self._sooner.wait(None if idle_s == math.inf else max(idle_s, 0.0))
            self._keeper_wakes_s = None

    def _end_due(self, child: _Child) -> None:
        if child in self._idle:
            self._idle.remove(child)
            # It may take its time, and the keeper has others to look after.
            threading.Thread(target=self._drop, args=(child,), daemon=True).start()
        else:
            child.is_late = True
            child.kill()


def _served(calls: Calls, call: Call) -> tuple[Reply, BaseException | None]:
    """Return a call's answer, and what it raised in this process."""
    try:
        return Reply(getattr(calls, call.method)(*call.arguments)), None
    except (Exception, Superseded) as error:
        return Reply(None, f"{type(error).__name__}: {error}", pickled(error)), error


def _done(task: Task, outcome: _Outcome) -> Done:
    answer = outcome.answer
    if isinstance(answer, Unknown):
        what = f"update {task.update!r} of component {task.component[1]}"
        raise NotImportable(what, answer.why)
    if isinstance(answer, Raised):
        if answer.refused and outcome.refusal is not None:
            raise outcome.refusal
        raise HandlerRaised(
            answer.type_name,
            answer.message,
            answer.traceback,
            answer.names,
            unpickled(answer.error),
        )
    return Done(Diff.from_json(orjson.loads(answer.diff)), answer.outbox, answer.observed)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let a process that is started here begin with SIGINT and SIGTERM held back.

    Until it says how it takes them, one to the whole group would end it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Started with the first child otherwise, and then it lets the signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_open_workers: weakref.WeakSet[Workers] = weakref.WeakSet()


def _close_all() -> None:
    for workers in list(_open_workers):
        workers.close()


# multiprocessing waits at the end for all children, and ours end when they are told to. What is
# registered last is called first, so multiprocessing.util must have been imported before.
atexit.register(_close_all)
