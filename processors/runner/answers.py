"""The events with which a runner answers a request. Sent by answering.py."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Final

import orjson

from eventstore import Diff, Discard, Kind
from eventstore.events import Answer, Event, Guard
from processors.component import Update
from processors.policy import DiscardPolicy
from processors.runner.lanes import Session, Waiting
from processors.runner.workers import HandlerRaised
from processors.text import storable, text_of

__all__ = ["attempt", "discard", "failure", "failure_body", "part"]

#: Of a traceback the end is kept: it has the error.
_TRACEBACK_CHARACTERS_MAX: Final = 20_000
_MESSAGE_CHARACTERS_MAX: Final = 4_000


def part(
    one: Waiting,
    session: Session,
    diff: Diff,
    observed: frozenset[str],
    update: Update,
    number: int,
    *,
    closes: bool,
    outbox: bytes | None = None,
) -> Event:
    """Return a part of an answer, guarded by what it overwrites (and read, if serializable)."""
    fields = diff.overwritten()
    if update.isolation == "serializable":
        fields |= observed
    return Event(
        Kind.DIFF,
        one.name,
        diff.encode(),
        guard=Guard(session.base, tuple(sorted(fields)), session.chain, session.index),
        answer=Answer(one.sequence, number, closes),
        outbox=outbox,
        generation=session.generation,
    )


def discard(
    one: Waiting, generation: int, policy: Discard, facts: Mapping[str, Any], *, running: bool
) -> Event:
    """Return the event that gives a request up, with what was decided upon."""
    body = {
        "reason": DiscardPolicy(policy.policy).name.lower(),
        "policy": policy.policy,
        "after": policy.after,
        "running": running,
        **facts,
    }
    return Event(
        Kind.DISCARD,
        one.name,
        orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS),
        answer=Answer(one.sequence, 0, True),
        generation=generation,
    )


def attempt(one: Waiting, generation: int, why: str, message: str = "") -> Event:
    """Return the event that says that a request is about to run again, and why."""
    body = {"attempt": one.runs + 1, "why": why}
    if message:
        body["message"] = storable(message[:_MESSAGE_CHARACTERS_MAX])
    return Event(
        Kind.ATTEMPT,
        one.name,
        orjson.dumps(body),
        answer=Answer(one.sequence),
        generation=generation,
    )


def failure(one: Waiting, generation: int, body: Mapping[str, Any]) -> Event:
    """Return the event that sets a request aside for good."""
    return Event(
        Kind.FAILURE,
        one.name,
        orjson.dumps(dict(body)),
        answer=Answer(one.sequence, 0, True),
        generation=generation,
    )


def failure_body(
    reason: str, error: BaseException | None, message: str, attempts: int, version: int | None
) -> dict[str, Any]:
    """Return what a failure says: why, with the traceback, how often it ran, on which version."""
    type_name = shown = ""
    if isinstance(error, HandlerRaised):
        type_name, shown, message = error.type_name, error.traceback, message or error.message
    elif error is not None:
        type_name = type(error).__qualname__
        shown = "".join(traceback.format_exception(error))
        message = message or text_of(error)
    return {
        "reason": reason,
        "type": storable(type_name),
        "message": storable(message[:_MESSAGE_CHARACTERS_MAX]),
        "traceback": storable(shown[-_TRACEBACK_CHARACTERS_MAX:]),
        "attempts": attempts,
        "version": version,
    }
