"""Context: what a handler may ask for beyond state and props, as its third parameter.

    @component.update("question")
    def answer(state, props, context):
        text = context.effect("llm", ask_model, state["prompt"], props["question"])
        return {"answer": text}

An effect is recorded before its result is used, so a run after a crash takes it from the log. What
is sent with `append` and `request` rides in the closing event: it happens once, and only if that
counts. Here is what handlers see; `Calls` is what stands behind it, in the runner's own process
(runner/run.py) or at the other end of a pipe (runner/worker_child.py).
"""

from __future__ import annotations

import asyncio
import datetime
import heapq
import inspect
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Set
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, Protocol

import orjson

from eventstore import Diff, Discard, State, UnsupportedValue, values
from processors.component import APP_NAME

__all__ = ["Calls", "Context", "Superseded", "runs_in"]

#: In the code of an update that runs here: the identity of the log, the app and the instance.
runs_in: ContextVar[tuple[str, str, str] | None] = ContextVar("runs_in", default=None)


class Superseded(BaseException):
    """Somebody else's answer came first: this run is over, and its handler must not go on.

    Not an Exception, so that a handler that catches those does not go on either.
    """


class Calls(Protocol):
    """What stands behind a Context. Every call may wait for the log; none runs on an event loop."""

    def is_stale(self) -> bool:
        """Whether the request's discard policy would give it up by now."""

    def recorded(self, name: str, call_index: int, digest: str) -> bytes | None:
        """Return the recorded result of an effect, as JSON, if there is one."""

    def record(self, name: str, call_index: int, digest: str, result: bytes) -> bytes:
        """Record the result of an effect; return what the fold accepted, which may be another's.

        Raises:
            Superseded: the request is closed.
        """

    def checkpoint(self, diff: bytes, observed: Set[str] = frozenset()) -> State:
        """Record an accepted part, or find it recorded; return the state to go on with.

        `observed` are fields that the handler has read, where it has a copy of the state.

        Raises:
            Superseded: the request is closed, or the part met a newer state.
        """

    def get(self, instance: str | None, app: str | None) -> State:
        """Return the newest committed state of another instance; None: of the request's own name.

        Raises:
            InstanceNotFound: there is none.
            ValueError: it is the request's own instance, or can be none.
            Superseded: this runner has ended.
        """


class Context:
    """One run of one request. Made by the runner, and of no use after the handler returned.

    In an async update, `effect`, `checkpoint` and `get` are awaited; in a plain one they wait.

    Attributes:
        idempotency_key: names the request: the same for each of its runs, on every log that it is
            copied to. Hand it to services that know such keys.
        attempt: 1 for the first run.
    """

    def __init__(
        self,
        idempotency_key: str,
        attempt: int,
        calls: Calls,
        *,
        is_async: bool,
        as_diff: Callable[[object], Diff],
        go_on: Callable[[State], Any],
    ) -> None:
        """Make one; see the class for the first two.

        `as_diff` turns what an update may return into a diff, and `go_on` the state after a
        checkpoint into what the handler works on.
        """
        self.idempotency_key = idempotency_key
        self.attempt = attempt
        self._calls = calls
        self._is_async = is_async
        self._as_diff, self._go_on = as_diff, go_on
        self._counted: Counter[tuple[str, str]] = Counter()
        #: Numbers of effects whose calls were not recorded: the next equal calls get them.
        self._given_back: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._mutex = threading.Lock()
        self._outbox: list[bytes] = []

    def is_stale(self) -> bool:
        """Whether newer requests, or the time, have made this run not worth finishing.

        Always False for an update without `discard_running=True`, which counts however late it
        is, and for one that may not be given up because the one before it was. A long plain
        update asks now and then, and returns.
        """
        return self._calls.is_stale()

    def effect(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        key: object = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function once per request and arguments, however often the request runs.

        The result is in the log before it is returned. A later run with equal arguments, after a
        crash or a conflict, gets it from there; other arguments are another effect. If the
        function raises, nothing is recorded.

        Args:
            name: what is called, in your words.
            function: makes the call; a coroutine function is awaited (in async updates).
            *args: its arguments.
            key: stands for the arguments where they cannot be stored.
            **kwargs: its named arguments.

        Raises:
            UnsupportedValue: the arguments cannot be stored and there is no `key`, or the result
                cannot; the latter call was made and is not recorded.
        """
        try:
            digest = values.digest([list(args), kwargs] if key is None else ["key", key])
        except UnsupportedValue as error:
            error.add_note(f"effect {name!r}: give key= to stand for arguments of this kind")
            raise
        if inspect.iscoroutinefunction(function) and not self._is_async:
            raise TypeError(
                f"effect {name!r}: an async function needs an async update (`async def` and"
                " `await context.effect(...)`)"
            )
        call_index = self._number(name, digest)
        if self._is_async:
            return _called(
                "effect", self._effect_async(name, call_index, digest, function, args, kwargs)
            )
        recorded = self._calls.recorded(name, call_index, digest)
        if recorded is None:
            try:
                result = _stored(name, function(*args, **kwargs))
            except BaseException:
                self._give_back(name, digest, call_index)
                raise
            recorded = self._calls.record(name, call_index, digest, result)
        return values.decode(recorded)

    def _number(self, name: str, digest: str) -> int:
        """Return which of a run's equal calls this is."""
        with self._mutex:
            given_back = self._given_back[name, digest]
            if given_back:
                return heapq.heappop(given_back)
            self._counted[name, digest] += 1
            return self._counted[name, digest] - 1

    def _give_back(self, name: str, digest: str, call_index: int) -> None:
        """Let the next equal call have the number of one that was not recorded.

        A handler that catches what a call raised, and calls again, else records under a number
        that its next run comes to only after it has made the call once more.
        """
        with self._mutex:
            heapq.heappush(self._given_back[name, digest], call_index)

    async def _effect_async(
        self,
        name: str,
        call_index: int,
        digest: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        recorded = await asyncio.to_thread(self._calls.recorded, name, call_index, digest)
        if recorded is None:
            try:
                if inspect.iscoroutinefunction(function):
                    value = await function(*args, **kwargs)
                else:
                    value = await asyncio.to_thread(function, *args, **kwargs)
                    if inspect.isawaitable(value):
                        value = await value
                result = _stored(name, value)
            except BaseException:
                self._give_back(name, digest, call_index)
                raise
            # Somebody cancels this run, and the call was made: it is recorded all the same.
            recording = asyncio.ensure_future(
                asyncio.to_thread(self._calls.record, name, call_index, digest, result)
            )
            recorded = await asyncio.shield(recording)
        return values.decode(recorded)

    def checkpoint(self, state: State | Diff | Mapping[str, Any]) -> Any:
        """Make the changes so far count now, and return the state to go on with.

        It is of the kind that the handler was called with. A later run of the same request passes
        its checkpoints again: each then only returns the state that it made, and what comes after
        it goes on from there.

        With `isolation="serializable"` what was read before a checkpoint is guarded up to there.
        What must still be so at the end is read from the state that the checkpoint returns.
        """
        diff = self._as_diff(state).encode()
        if self._is_async:
            return _called("checkpoint", asyncio.to_thread(self._checkpoint, diff))
        return self._checkpoint(diff)

    def _checkpoint(self, diff: bytes) -> Any:
        return self._go_on(self._calls.checkpoint(diff))

    def get(self, instance: str | None = None, *, app: str | None = None) -> Any:
        """Read the newest committed state of another instance: a State, as it is stored.

        It has all that was acknowledged to anyone before the call, and nothing of what is on its
        way, such as what this run has sent. A plain read: it guards nothing, with
        `isolation="serializable"` neither, and a later run may find something newer.

        Args:
            instance: its name; default: that of this update's instance, for an app beside it.
            app: the app that it is of; default: the component's own.

        Raises:
            InstanceNotFound: there is none. One that only waits for its first update is at version
                0, without fields, as for `App.get`.
            ValueError: it is this update's own instance, which is given as `state`; or there can
                be no such instance or app.
        """
        _refuse_no_app(app)
        if self._is_async:
            return _called("get", asyncio.to_thread(self._calls.get, instance, app))
        return self._calls.get(instance, app)

    def append(
        self,
        instance: str,
        diff: Diff | Mapping[str, object],
        *,
        app: str | None = None,
        name: str = "",
    ) -> None:
        """Append a diff to another instance, of this app or another, if this request is applied.

        It rides in the closing event and is delivered from there exactly once, some milliseconds
        later, in the order of these calls per receiving instance.
        """
        operations = diff if isinstance(diff, Diff) else Diff(diff)
        self._send(instance, app, "diff", name, operations.encode())

    def request(
        self,
        instance: str,
        name: str,
        props: Mapping[str, object] | None = None,
        *,
        app: str | None = None,
        discard: Discard | None = None,
        not_before: datetime.datetime | None = None,
    ) -> None:
        """Request an update of another instance, of this app or another, if this one is applied.

        Delivered as `append` is; `app` is the component's name where it is not this one.
        """
        if not name:
            raise ValueError("context.request: give the name of the update that shall run")
        if not_before is not None and not_before.tzinfo is None:
            raise ValueError("context.request: not_before needs a time zone")
        more: dict[str, Any] = {}
        if discard is not None:
            more["discard"] = [discard.policy, discard.after, discard.running]
        if not_before is not None:
            more["not_before_ms"] = round(not_before.timestamp() * 1_000)
        self._send(instance, app, "request", name, values.encode(dict(props or {})), **more)

    def _send(
        self, instance: str, app: str | None, kind: str, name: str, body: bytes, **more: Any
    ) -> None:
        """Encode a message now: what cannot be sent is the handler's error, where it is made."""
        message = {"instance": instance, "kind": kind, "name": name, "body": orjson.Fragment(body)}
        if not isinstance(instance, str) or not instance:
            raise ValueError(f"context: {instance!r:.80} is no instance, which is text")
        if not isinstance(name, str):
            raise ValueError(f"context: {name!r:.80} is no name, which is text")
        _refuse_no_app(app)
        if app is not None:
            message["app"] = app
        try:
            self._outbox.append(orjson.dumps({**message, **more}))
        except TypeError as error:
            raise ValueError(f"context: a message to {instance!r:.80}: {error}") from error

    @property
    def outbox(self) -> bytes | None:
        """What was sent, as it rides in the closing event: a JSON list; None when nothing."""
        return b"[" + b",".join(self._outbox) + b"]" if self._outbox else None


def _called(name: str, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    """Give a coroutine the name of the call: Python warns by it when nobody awaits it."""
    assert isinstance(coroutine, CoroutineType)  # of an `async def`
    coroutine.__qualname__ = f"context.{name}"
    return coroutine


def _refuse_no_app(app: object) -> None:
    """Raise ValueError for what can be no app's name; None stands for the component's own."""
    if app is None:
        return
    if not isinstance(app, str) or not app:
        raise ValueError(f"context: {app!r:.80} is no app, which is text")
    if not APP_NAME.fullmatch(app):
        raise ValueError(
            f"context: {app!r:.200} is no app's name: 1 to 120 letters, digits, '-' and '_'"
        )


def _stored(name: str, result: object) -> bytes:
    """Return what an effect is recorded as.

    Raises:
        UnsupportedValue: it cannot be stored; the note says of which effect, which was made.
    """
    try:
        return values.encode(result)
    except UnsupportedValue as error:
        error.add_note(
            f"effect {name!r}: the call was made, and is not recorded, because what it returned"
            " cannot be stored: have the function return plain data"
        )
        raise
