"""What runs inside a spawned child, and the messages that it and its parent exchange.

The child waits for a task, runs one handler, answers, and waits for the next. It has no store: a
state comes with the task, and what the handler asks of the log is asked of the parent over the
pipe. workers.py has the parent's side.

    parent                        child
    Task               ->
                       <-         Started | Unknown       the component was found, or why not
                       <-         Call                    any number of times, each answered by
    Reply              ->
                       <-         Result | Raised         what the handler returned, or raised

The child ends when its parent does, however that ends, because somebody else will run the request
then. SIGINT and SIGTERM do not end it: they often go to a whole group of processes, and a
graceful stop lets a running handler finish.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Set
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from eventstore import State
from processors.component import Component, Update, find_component
from processors.context import Context, Superseded
from processors.properties import Properties
from processors.results import Handed, LiveStates

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "LEFT_TO_THE_PARENT", "Call", "PipeCalls", "Raised", "Reply", "Result", "Started",
    "Task", "Unknown", "class_name", "encode", "main", "pickled", "serve", "unpickled",
]  # fmt: skip

#: A raised exception with more than this inside travels as text only.
EXCEPTION_BYTES_MAX: Final = 1_000_000


class Task(NamedTuple):
    """One attempt at one request."""

    component: tuple[str, str]  #: the module that defines it, its name
    update: str  #: the request's name
    state: State
    props: bytes  #: the request's body
    request_id: str  #: the idempotency key that the handler is given
    attempt: int
    timeout_s: float | None  #: counted from the start of the handler


class Started(NamedTuple):
    """The component is there, and its handler is called now."""


class Unknown(NamedTuple):
    """The component or its update cannot be found in this process; nothing was run."""

    why: str


class Call(NamedTuple):
    """The handler asks the parent's `Calls`."""

    method: str
    arguments: tuple[Any, ...]


class Reply(NamedTuple):
    """What a call returned; or `refused`, the text of what it raised, pickled where that goes."""

    value: Any
    refused: str | None = None
    error: bytes | None = None


class Result(NamedTuple):
    """What the handler's result changes, in wire form, and what it sends to others."""

    diff: bytes
    outbox: bytes | None
    observed: frozenset[str]  #: fields that it read: the parent's own state does not know


class Raised(NamedTuple):
    """What the handler raised, as facts that need none of its classes to be read."""

    type_name: str
    message: str
    traceback: str
    names: tuple[str, ...]  #: of its class and all base classes, by `class_name`
    error: bytes | None  #: the exception itself, where it survives pickling
    refused: bool  #: it is what a `Call` raised in the parent


class PipeCalls:
    """What stands behind a handler's Context here: the parent's `Calls`, asked over the pipe.

    Safe between threads: a handler may have several.
    """

    def __init__(self, connection: Connection, state: State) -> None:
        self._connection = connection
        #: The state to go on with: the task's, then that of the last checkpoint.
        self.state = state
        self._turn = threading.Lock()
        self._is_over = False
        self._refusals: list[BaseException] = []

    def is_stale(self) -> bool:
        return bool(self._ask("is_stale"))

    def recorded(self, name: str, call_index: int, digest: str) -> bytes | None:
        found: bytes | None = self._ask("recorded", name, call_index, digest)
        return found

    def record(self, name: str, call_index: int, digest: str, result: bytes) -> bytes:
        accepted: bytes = self._ask("record", name, call_index, digest, result)
        return accepted

    def checkpoint(self, diff: bytes, observed: Set[str] = frozenset()) -> State:
        self.state = self._ask("checkpoint", diff, self.state.observed | observed)
        return self.state

    def get(self, instance: str | None, app: str | None) -> State:
        state: State = self._ask("get", instance, app)
        return state

    def _ask(self, method: str, *arguments: Any) -> Any:
        with self._turn:
            # What a handler left running must not talk into the next task's conversation.
            if self._is_over:
                raise RuntimeError("the update has returned already: its context has ended with it")
            self._connection.send_bytes(encode(Call(method, arguments)))
            reply = pickle.loads(self._connection.recv_bytes())
        if reply.refused is None:
            return reply.value
        error = unpickled(reply.error) or RuntimeError(reply.refused)
        # What a read raises is the handler's, as in the runner's own process: there is no such
        # instance, say. What another call raises says something of this run.
        if method != "get" or isinstance(error, Superseded):
            self._refusals.append(error)
        raise error

    def has_raised(self, error: BaseException) -> bool:
        """Whether this very exception came from the parent."""
        return any(error is refusal for refusal in self._refusals)

    def end(self) -> None:
        """Refuse calls from now on, when the one that is under way has its answer."""
        with self._turn:
            self._is_over = True


# --- running -------------------------------------------------------------------------------------


def main(connection: Connection) -> None:
    """Serve the parent at the other end until it hangs up: the whole life of a child."""
    _stand_aside_from_signals()
    threading.Thread(target=_end_with_parent, name="foldlog-parent", daemon=True).start()
    if hasattr(os, "register_at_fork"):
        # A copy of the pipe in a grandchild would keep the parent from noticing our end.
        os.register_at_fork(after_in_child=lambda: _leave_to_grandchild(connection))
    with contextlib.suppress(ConnectionError):  # the parent died, and nobody waits for an answer
        serve(connection)


def serve(connection: Connection) -> None:
    """Run one task after another until the other end is closed."""
    with contextlib.ExitStack() as until_the_end:
        loop: asyncio.Runner | None = None

        def wait_for(awaitable: Any) -> Any:
            # One loop for all tasks, because handlers keep clients that belong to a loop.
            nonlocal loop
            if loop is None:
                import asyncio

                loop = until_the_end.enter_context(asyncio.Runner())
            return loop.run(_result_of(awaitable))

        while True:
            try:
                task = connection.recv_bytes()
            except (EOFError, OSError):
                return
            answer = _answer(connection, pickle.loads(task), wait_for)
            _flush_output()
            connection.send_bytes(encode(answer))


async def _result_of(awaitable: Any) -> Any:
    return await awaitable


def _answer(
    connection: Connection, task: Task, wait_for: Callable[[Any], Any]
) -> Result | Raised | Unknown:
    try:
        component, update = _find(task)
    except BaseException as error:  # the module's code may raise anything
        return Unknown(_why_unknown(task, error))
    connection.send_bytes(encode(Started()))
    calls = PipeCalls(connection, task.state)
    try:
        return _run(component, update, task, calls, wait_for)
    except BaseException as error:  # sys.exit() in a handler fails one request, not the child
        return _facts(error, calls.has_raised(error))
    finally:
        calls.end()


def _find(task: Task) -> tuple[Component, Update]:
    component = find_component(*task.component)
    update = component.find(task.update)
    if update is None:
        raise LookupError(
            f"component {component.name} has no update {task.update!r} in a newly started process:"
            " its code is not what its parent imported, or depends on how it was started"
        )
    return component, update


def _run(
    component: Component,
    update: Update,
    task: Task,
    calls: PipeCalls,
    wait_for: Callable[[Any], Any],
) -> Result:
    # Made anew for each task: only the parent knows which version a live state has become.
    handed = Handed(component, update, LiveStates(1))
    context = Context(
        task.request_id,
        task.attempt,
        calls,
        is_async=update.is_async,
        as_diff=handed.diff_of,
        go_on=handed.go_on,
    )
    arguments = (handed.begin(task.state), Properties.decode(task.props))
    result = update.function(*arguments, *((context,) if update.takes_context else ()))
    if update.is_async:
        result = wait_for(result)
    diff = handed.diff_of(result).encode()
    return Result(diff, context.outbox, calls.state.observed)


def _why_unknown(task: Task, error: BaseException) -> str:
    module, _ = task.component
    if isinstance(error, LookupError) or (
        isinstance(error, ModuleNotFoundError) and error.name == module
    ):
        return str(error)
    return f"importing module {module} raised:\n{''.join(_lines(error))}"


# --- messages ------------------------------------------------------------------------------------


def encode(message: tuple[Any, ...]) -> bytes:
    """Return a message as the other end reads it: it is our own process, so pickle is enough."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def class_name(kind: type) -> str:
    """Return a class's module and name; those of the main module are the same in a child."""
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}.{kind.__qualname__}"


def pickled(error: BaseException) -> bytes | None:
    """Return an exception that can be read again, None where there is no such copy."""
    # Many classes can be pickled but not read: those whose arguments are not their `args`.
    try:
        raw = encode((error,))
        copy = unpickled(raw)
    except Exception:
        return None
    return raw if type(copy) is type(error) and len(raw) <= EXCEPTION_BYTES_MAX else None


def unpickled(raw: bytes | None) -> BaseException | None:
    """Return an exception that another process pickled, None where this one cannot read it."""
    if raw is None:
        return None
    try:
        (error,) = pickle.loads(raw)
    except Exception:
        return None
    return error if isinstance(error, BaseException) else None


def _facts(error: BaseException, refused: bool) -> Raised:
    try:
        message = str(error)
    except Exception as another:
        message = f"its text cannot be made: {type(another).__name__}"
    names = tuple(class_name(kind) for kind in type(error).__mro__)
    return Raised(
        type(error).__name__, message, "".join(_lines(error)), names, pickled(error), refused
    )


def _lines(error: BaseException) -> list[str]:
    return traceback.format_exception(error)


# --- the process ---------------------------------------------------------------------------------


def _end_with_parent() -> None:
    """Wait for the parent's end, and end at once: the request will be run by somebody else."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # a thread of a test, not a spawned process
    watched: list[Any] = [parent.sentinel]
    # The sentinel is a pipe, and a process that the parent forked keeps it open.
    if hasattr(os, "pidfd_open") and parent.pid is not None:
        with contextlib.suppress(OSError):
            watched.append(os.pidfd_open(parent.pid))
    if os.getppid() == parent.pid:
        multiprocessing.connection.wait(watched)
    os._exit(1)


#: Signals that end no child.
LEFT_TO_THE_PARENT: Final = (signal.SIGINT, signal.SIGTERM)


def _stand_aside_from_signals() -> None:
    # With a handler, not SIG_IGN, which programs that a handler starts would inherit, and no
    # `terminate()` would end them any more.
    for number in LEFT_TO_THE_PARENT:
        signal.signal(number, _do_nothing)
    if hasattr(signal, "pthread_sigmask"):
        # The parent held them back, so that they do not end a child that is being started.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_PARENT)


def _do_nothing(number: int, frame: object) -> None:
    pass


def _leave_to_grandchild(connection: Connection) -> None:
    """Make a process that a handler forked an ordinary one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection.close()


def _flush_output() -> None:
    # What a handler printed is seen when it ends, not when the child does, which may be killed.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
