"""What became of a request: Submitted, which can be asked and waited for, and UpdateFailed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from eventstore import Entry, Kind, Receipt
from eventstore.events import moment
from eventstore.processing import Processing
from processors.runner.loop import refuse_to_block_updates

__all__ = ["Outcome", "Submission", "Submitted", "UpdateFailed", "failure_of"]

RequestState = Literal["pending", "running", "applied", "discarded", "failed"]


class UpdateFailed(RuntimeError):
    """An update that somebody waited for did not take effect. Its request is closed.

    `app` is the component's name, `request` the request's, `reason` one word (raised, timeout,
    crashed, conflict, rejected, unknown, hops, unreadable, or discarded), `attempts` how often it
    ran, `traceback` that of the last attempt, as text; where the exception itself is at hand it is
    the cause of this one. `serve_result` is what serve had returned, for a run that answered before
    the update failed.
    """

    def __init__(
        self,
        instance: str,
        request: str,
        reason: str,
        message: str = "",
        attempts: int = 1,
        traceback: str = "",
        sequence: int = -1,
        app: str = "",
    ) -> None:
        super().__init__(instance, request, reason, message, attempts, traceback, sequence, app)
        self.app = app
        self.instance, self.request, self.reason = instance, request, reason
        self.message, self.attempts, self.traceback = message, attempts, traceback
        self.sequence = sequence
        self.serve_result: Any = None

    def __str__(self) -> str:
        times = "" if self.attempts == 1 else f" after {self.attempts} attempts"
        place = f"{self.app}/{self.instance}" if self.app else self.instance
        text = f"update {self.request} of {place} did not take effect{times}: {self.reason}"
        if self.message:
            text += f": {self.message}"
        # Where the exception itself is the cause, Python shows its traceback above ours.
        shows_traceback = self.traceback and self.__cause__ is None
        return f"{text}\n{self.traceback.rstrip()}" if shows_traceback else text


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a request at one moment.

    Attributes:
        state: pending (it waits, or runs in another process), running (in this one), applied,
            discarded or failed.
        requested_at: when the log took it.
        began_at: when the run that goes on began; None where none does.
        closed_at: when its answer was taken; None while it is open.
        version: the instance's version after the answer; None while it is open.
        attempts: runs that began and are known of.
        reason: why it was discarded, or how it failed: one word, "" otherwise.
        message: more of that, in words: of a discard, the figures that decided.
        traceback: of the last attempt of a failed one, as text.
    """

    state: RequestState
    requested_at: datetime.datetime | None = None
    began_at: datetime.datetime | None = None
    closed_at: datetime.datetime | None = None
    version: int | None = None
    attempts: int = 0
    reason: str = ""
    message: str = ""
    traceback: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it has no answer yet."""
        return self.closed_at is None


class Submitted:
    """One request, from its place in the log on. Can be awaited, on any event loop."""

    def __init__(
        self,
        processing: Processing,
        instance: str,
        name: str,
        place: Receipt | int,
        running: Callable[[], Mapping[int, int]],
    ) -> None:
        """Watch one request.

        Args:
            processing: the app's.
            instance: which the request is for.
            name: the request's.
            place: its receipt, or its sequence.
            running: which of the instance's requests this process runs now, and since when (epoch
                milliseconds).
        """
        self.instance = instance
        self.name = name
        self._processing = processing
        self._receipt = None if isinstance(place, int) else place
        self._sequence = place if isinstance(place, int) else None
        self._running = running
        self._closed: Outcome | None = None
        #: The event that closed it, once it was seen.
        self.answer: Entry | None = None

    @property
    def sequence(self) -> int:
        """The request's place in the history of its instance; waits until the view has it."""
        if self._sequence is None:
            assert self._receipt is not None
            self._sequence = self._receipt.entry().sequence
        return self._sequence

    @property
    def outcome(self) -> Outcome:
        """What is known of it now."""
        if self._closed is None:
            found = self._look()
            if found.is_open:
                return found
            self._closed = found
        return self._closed

    @property
    def state(self) -> RequestState:
        """Whether it is pending, running, applied, discarded or failed."""
        return self.outcome.state

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Return what became of it, once it has an answer; a failure is returned, not raised.

        Somebody must run it: an instance that is open here or elsewhere, or a daemon.

        Raises:
            ReadTimeout: it is still open after `timeout_s`.
            RuntimeError: this is the code of an async update, which should await it instead.
        """
        refuse_to_block_updates("the submission")
        self._processing.wait_closed(self.instance, self.sequence, timeout_s)
        return self.outcome

    def __await__(self) -> Generator[Any, None, Outcome]:
        return self._wait().__await__()

    async def _wait(self) -> Outcome:
        if self._sequence is None:
            assert self._receipt is not None
            await self._receipt
            await asyncio.to_thread(lambda: self.sequence)
        loop = asyncio.get_running_loop()
        closed: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not closed.done():
                closed.set_result(None)

        def tell() -> None:
            # Closed in this moment, perhaps: then nobody waits there, and others are told after us.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        give_up = self._processing.when_closed(self.instance, self.sequence, tell)
        try:
            await closed
        finally:
            give_up()
        return await asyncio.to_thread(lambda: self.outcome)

    def _look(self) -> Outcome:
        processing, sequence = self._processing, self.sequence
        request = processing.entry(self.instance, sequence)
        requested_at = None if request is None else request.time
        waits = processing.request(self.instance, sequence)
        if waits is None:
            answer = processing.closed_by(self.instance, sequence)
            if answer is not None:
                self.answer = answer
                return self._answered(requested_at, answer)
        announced = self._announced(None)
        since_ms = self._running().get(sequence)
        if since_ms is not None:
            began_at = moment(since_ms * 1_000)
            return Outcome("running", requested_at, began_at, attempts=max(1, announced))
        return Outcome("pending", requested_at, attempts=max(0, announced - 1))

    def _answered(self, requested_at: datetime.datetime | None, answer: Entry) -> Outcome:
        times = (requested_at, None, answer.time, answer.version)
        event = answer.event
        if event.kind == Kind.FAILURE:
            failure = _failure(_facts(event.body))
            return Outcome(
                "failed",
                *times,
                failure.attempts,
                failure.reason,
                failure.message,
                failure.traceback,
            )
        if event.kind == Kind.DIFF:
            return Outcome("applied", *times, max(1, self._announced(answer)))
        announced = self._announced(answer)
        if event.kind == Kind.RESET:
            return Outcome("discarded", *times, announced, "reset")
        facts = _facts(event.body)
        began = max(1, announced) if facts.get("running") else max(0, announced - 1)
        return Outcome("discarded", *times, began, str(facts.get("reason", "")), _figures(facts))

    def _announced(self, answer: Entry | None) -> int:
        """Return the number of the newest run that an attempt event announced; 0 if none did."""
        before = None if answer is None else answer.sequence
        attempts = self._processing.attempts(self.instance, self.sequence, before)
        number = _facts(attempts[-1].event.body).get("attempt") if attempts else 0
        return number if isinstance(number, int) else 0

    def __repr__(self) -> str:
        return f"<Submitted {self.name} of {self.instance}>"


@dataclass(frozen=True, slots=True)
class Submission:
    """What `submit` returns: what serve answered, and the requests for the flow's updates."""

    serve_result: Any
    updates: tuple[Submitted, ...]

    def wait(self, timeout_s: float | None = None) -> list[Outcome]:
        """Return what became of each update, once all have an answer; `timeout_s` is for each.

        Raises:
            ReadTimeout: one is still open.
            RuntimeError: this is the code of an async update, which should await it instead.
        """
        return [update.wait(timeout_s) for update in self.updates]

    def __await__(self) -> Generator[Any, None, list[Outcome]]:
        return self._wait().__await__()

    async def _wait(self) -> list[Outcome]:
        return [await update for update in self.updates]

    def __iter__(self) -> Iterator[Submitted]:
        return iter(self.updates)

    def __len__(self) -> int:
        return len(self.updates)


def failure_of(app: str, request_name: str, answer: Entry) -> UpdateFailed | None:
    """Return the error of a request that was answered with anything but a diff."""
    event, instance = answer.event, answer.instance
    cause = -1 if event.answer is None else event.answer.cause
    if event.kind == Kind.FAILURE:
        found = _failure(_facts(event.body))
        return UpdateFailed(
            instance,
            request_name,
            found.reason,
            found.message,
            found.attempts,
            found.traceback,
            cause,
            app,
        )
    if event.kind == Kind.DIFF:
        return None
    facts = {"reason": "reset"} if event.kind == Kind.RESET else _facts(event.body)
    why = ": ".join(part for part in (str(facts.get("reason", "")), _figures(facts)) if part)
    return UpdateFailed(instance, request_name, "discarded", why, sequence=cause, app=app)


def _figures(facts: dict[str, Any]) -> str:
    """Return in words what a discard was decided upon; "" where no policy decided."""
    newer, age_ms, after = facts.get("newer"), facts.get("age_ms"), facts.get("after")
    running = ", while it ran" if facts.get("running") else ""
    if isinstance(newer, int):
        return f"{newer} newer had come, where discard_after is {after}{running}"
    if isinstance(age_ms, int) and isinstance(after, int):
        limit_s = after / 1_000
        return f"it was {age_ms / 1_000:g} s old, where discard_after is {limit_s:g} s{running}"
    return ""


def _facts(body: bytes) -> dict[str, Any]:
    """Return the facts of an answer; whoever wrote it, a history stays readable."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class _Failure(NamedTuple):
    attempts: int
    reason: str
    message: str
    traceback: str


def _failure(facts: dict[str, Any]) -> _Failure:
    attempts = facts.get("attempts")
    kind, message = str(facts.get("type") or ""), str(facts.get("message") or "")
    return _Failure(
        attempts if isinstance(attempts, int) else 1,
        str(facts.get("reason") or "failed"),
        ": ".join(part for part in (kind, message) if part),
        str(facts.get("traceback") or ""),
    )
