"""The fold: the one place where it is decided what an event does to its instance.

`fold(rows, event, time_ms)` is pure: it asks `rows` what the view knows of the instance and
answers with an `Outcome`, the verdict and everything that changes. It has no clock, no I/O and no
memory of its own, so every reader of a log, on any machine and at any time, gets the same answer.

Writers do not ask before they write. They append, and the order of the log decides. The checks, in
this order; the first that refuses is the verdict:

  1. once   what has counted already is a DUPLICATE: a key, a chain index, a source number, an
            answer to a request that is closed, an effect that is recorded. Before the guard, or a
            writer's own second copy would come back to it as a conflict.
  2. order  an event that is not the next of its source, of its request's parts, of its lane or of
            its chain is a CONFLICT. A chain that was refused once is over for good.
  3. guard  if a field that the writer read or overwrote changed after the version that it really
            read, CONFLICT. What its own chain changed in an unbroken row does not count.
  4. fit    if an operation does not fit the value that it meets, REJECTED, all or nothing.

Rows of keys, chains and sources are never forgotten: each rule above is a question about them, and
a forgotten row is a second effect. tests/property/test_fold_world.py takes each rule out in turn
and shows what goes wrong. What the fold does not do: read logs, keep rows, build Python values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import orjson

from eventstore.diff import (
    ABSENT,
    Misfit,
    Shape,
    apply_operation,
    check_depth,
    check_wire,
    shape_of,
)
from eventstore.errors import InvalidDiff
from eventstore.events import Answer, Event, Guard, Kind, RequestPolicy, Source, Verdict
from eventstore.rows import UNKNOWN, ChainRow, Change, KeyRow, Outcome, Pending, Rows, Touch

__all__ = ["FOLD_NUMBER", "GENERATION_NOTE", "ID_CHARACTERS_MAX", "content_digest", "fold"]

#: The number of these rules. An app records it; other rules would be another number.
FOLD_NUMBER: Final = 1

#: Longest name, lane, chain and source of an event.
ID_CHARACTERS_MAX: Final = 1_000

#: Guard, answer, source, request, effect and idempotency key of an event that has none of them.
_PLAIN: Final = (None,) * 6


def fold(rows: Rows, event: Event, time_ms: int) -> Outcome:
    """Decide what `event` does to the instance that `rows` describes.

    `time_ms` is the time of the event in its instance (epoch milliseconds, never falling); it
    only ends up in what is stored and decides nothing.

    The rows are not changed, with one exception that keeps the cost proportional to what is
    touched: a value that `rows.value` lent is changed in place when the verdict is ACCEPTED, and
    spoiled when it is REJECTED.
    """
    copied = event.copied
    if copied is not None and copied.sequence != rows.sequence:
        # A copy that was interrupted and begun again: what is here already takes no place.
        return Outcome(Verdict.DUPLICATE, None, rows.version, "copied already", copied.sequence)
    if event[3:9] == _PLAIN and event.kind == Kind.DIFF:
        return _diff(rows, event)  # most events: none of the questions below is about them
    malformed = _malformed(event)
    if malformed is not None:
        return _refuse(rows, Verdict.REJECTED, malformed, None)
    refused = _once(rows, event) or _order(rows, event) or _guard(rows, event)
    return refused or _EFFECTS[event.kind](rows, event)


def _malformed(event: Event) -> str | None:
    """Return what no writer of ours would send: rows have no room for it.

    Anybody may produce, and one event that no reader can store would stop them all.
    """
    request, guard, answer = event.request, event.guard, event.answer
    source, effect = event.source, event.effect
    chain = None if guard is None else guard.chain
    if chain == "":
        return "a chain without a name"
    if len(event.name) > ID_CHARACTERS_MAX:
        return _too_long("name", event.name)
    if request is not None and len(request.lane) > ID_CHARACTERS_MAX:
        return _too_long("lane", request.lane)
    if chain is not None and len(chain) > ID_CHARACTERS_MAX:
        return _too_long("chain", chain)
    number = 0 if answer is None else answer.cause
    if source is not None:
        if len(source.id) > ID_CHARACTERS_MAX:
            return _too_long("source", source.id)
        number = min(number, *source.number)
    if effect is not None:
        number = min(number, effect.call_index)
    return f"a sequence or an index below 0: {number}" if number < 0 else None


def _too_long(what: str, text: str) -> str:
    return f"its {what} has {len(text)} characters; at most {ID_CHARACTERS_MAX}"


# --- once ----------------------------------------------------------------------------------------


def _once(rows: Rows, event: Event) -> Outcome | None:
    key = event.idempotency_key
    if key is not None and (used := rows.key(key)) is not None:
        if used.content != content_digest(event):
            reason = "its idempotency key was used for another event"
            refused = _refuse(rows, Verdict.REJECTED, reason, used.sequence)
            return refused._replace(chain=_ended(rows, event))
        return _refuse(rows, Verdict.DUPLICATE, "its idempotency key was used", used.sequence)
    guard = event.guard
    if guard is not None and guard.chain is not None:
        chain = rows.chain(guard.chain)
        if chain is not None and guard.chain_index <= chain.chain_index:
            winner = rows.chained(guard.chain, guard.chain_index)
            return _refuse(rows, Verdict.DUPLICATE, "this step of its chain was accepted", winner)
    source = event.source
    if source is not None:
        last = rows.source(source.id)
        if last is not None and source.number <= last:
            winner = rows.sourced(source.id, source.number)
            return _refuse(rows, Verdict.DUPLICATE, "its source number was accepted", winner)
    answer = event.answer
    # A cause of another generation is the number of some other request; _order refuses it.
    if answer is not None and event.generation == rows.generation:
        if rows.pending(answer.cause) is None:
            winner = rows.answered(answer.cause)
            return _refuse(rows, Verdict.DUPLICATE, "its request is not pending", winner)
        if event.effect is not None:
            call_index, digest = event.effect
            recorded = rows.effect(answer.cause, event.name, call_index, digest)
            if recorded is not None:
                return _refuse(rows, Verdict.DUPLICATE, "this effect is recorded", recorded)
    return None


def content_digest(event: Event) -> bytes:
    """Return what tells two events with one idempotency key apart: 8 bytes of what they say."""
    answer = event.answer or Answer(-1)
    said = [event.kind, event.name, answer.cause, answer.part, answer.closes]
    digest = hashlib.blake2b(orjson.dumps(said), digest_size=8)
    digest.update(event.body)
    digest.update(event.outbox or b"")
    return digest.digest()


# --- order ---------------------------------------------------------------------------------------


def _order(rows: Rows, event: Event) -> Outcome | None:
    if event.generation != rows.generation and (
        event.guard is not None or event.answer is not None or event.source is not None
    ):
        # Sequences and versions of a log that was cut mean nothing in what came after.
        return _conflict(
            rows, event, f"written in generation {event.generation}, this is {rows.generation}"
        )
    source = event.source
    if source is not None and source.previous != rows.source(source.id):
        last = rows.source(source.id)
        return _conflict(rows, event, f"its source's last number is {last}, not {source.previous}")
    answer = event.answer
    if answer is not None and event.kind in (Kind.DIFF, Kind.FAILURE):
        refused = _answer_order(rows, event, answer)
        if refused is not None:
            return refused
    guard = event.guard
    if guard is not None and guard.chain is not None:
        chain = rows.chain(guard.chain)
        if chain is not None and chain.ended:
            return _conflict(rows, event, "an earlier step of its chain was refused")
        if guard.chain_index != (0 if chain is None else chain.chain_index + 1):
            return _conflict(rows, event, "the step of its chain before this one is missing")
    return None


def _answer_order(rows: Rows, event: Event, answer: Answer) -> Outcome | None:
    request = rows.pending(answer.cause)
    assert request is not None  # _once asked
    if event.kind == Kind.DIFF and answer.part != request.parts:
        return _conflict(rows, event, f"part {answer.part}, but the next is {request.parts}")
    if answer.closes and request.due_ms is None:
        first = rows.lane_first(request.lane)
        if first != request.sequence:
            return _conflict(rows, event, "its request is not the first of its lane", first)
    return None


# --- guard ---------------------------------------------------------------------------------------


def _guard(rows: Rows, event: Event) -> Outcome | None:
    guard = event.guard
    if guard is None:
        return None
    if guard.base > rows.version:
        # A prediction: nobody has read a version that is yet to come.
        reason = f"version {guard.base} has not been, this is {rows.version}"
        return _conflict(rows, event, reason, None, "*" if "*" in guard.fields else "")
    for name in guard.fields:
        version = _changed_at(rows, guard, name)
        if version > guard.base:
            what = "some field" if name == "*" else f"field {name!r}"
            return _conflict(
                rows,
                event,
                f"{what} changed at version {version}, after version {guard.base} that was read",
                rows.changed(version) if version else None,  # nobody made version 0
                name,
            )
    return None


def _changed_at(rows: Rows, guard: Guard, name: str) -> int:
    """Return the version at which a field last changed, as far as this writer must care."""
    if name == "*":
        touch = rows.star
    else:
        row = rows.field(name)
        if row is None or rows.fork_parts:
            # Nobody can have read the fields of half a fork, nor mind that they go away.
            return rows.floor
        touch = row.touch
    # Index 0 is no exception from its own chain: whoever wrote before it was somebody else.
    if guard.chain_index > 0 and touch.setter == guard.chain:
        return touch.foreign
    return touch.version


# --- refusals ------------------------------------------------------------------------------------


def _refuse(rows: Rows, verdict: Verdict, reason: str, winner: int | None) -> Outcome:
    """Refuse without any trace but the event's place in the history."""
    return Outcome(verdict, rows.sequence, rows.version, reason, winner)


def _conflict(
    rows: Rows, event: Event, reason: str, winner: int | None = None, field: str = ""
) -> Outcome:
    """Refuse, and end the event's chain. Its idempotency key stays free for the retry."""
    return Outcome(
        Verdict.CONFLICT,
        rows.sequence,
        rows.version,
        f"{field}\0{reason}" if field else reason,
        winner,
        chain=_ended(rows, event),
    )


def _rejected(rows: Rows, event: Event, reason: str) -> Outcome:
    """Refuse for good: the chain is over, and the key is used up."""
    return Outcome(
        Verdict.REJECTED,
        rows.sequence,
        rows.version,
        reason,
        key=_key(rows, event),
        chain=_ended(rows, event),
    )


def _ended(rows: Rows, event: Event) -> ChainRow | None:
    if event.guard is None or event.guard.chain is None:
        return None
    # Even a chain that the fold never saw: its first step may still be on its way, and would
    # count alone, out of order.
    chain = rows.chain(event.guard.chain)
    return ChainRow(-1 if chain is None else chain.chain_index, True)


def _key(rows: Rows, event: Event) -> KeyRow | None:
    if event.idempotency_key is None:
        return None
    return KeyRow(rows.sequence, content_digest(event))


def _link(event: Event) -> ChainRow | None:
    guard = event.guard
    return None if guard is None or guard.chain is None else ChainRow(guard.chain_index, False)


def _number(source: Source | None) -> tuple[int, int] | None:
    return None if source is None else source.number


# --- what accepted events do ---------------------------------------------------------------------


def _diff(rows: Rows, event: Event) -> Outcome:
    try:
        operations = orjson.loads(event.body)
        check_depth(event.body, operations)
    except (ValueError, Misfit) as error:
        return _rejected(rows, event, f"its operations cannot be read: {error}")
    # A half-arrived fork is given up by whatever comes instead of its next part.
    given_up = rows.fork_parts > 0
    floor = rows.version + 1 if given_up else rows.floor
    before = floor if given_up else rows.version
    # An answer without operations closes its request and changes nothing: no new version.
    version = before + 1 if operations else before
    chain = event.guard.chain if event.guard is not None else None
    try:
        fields = _changes(rows, operations, version, chain, floor)
    except (Misfit, InvalidDiff) as error:
        return _rejected(rows, event, str(error))
    opened = advanced = None
    closed: tuple[int, ...] = ()
    answer = event.answer
    if answer is not None:
        request = rows.pending(answer.cause)
        assert request is not None  # _once asked
        if answer.closes:
            closed = (answer.cause,)
        else:
            advanced = request._replace(parts=request.parts + 1)
    return Outcome(
        Verdict.ACCEPTED,
        rows.sequence,
        version,
        "",
        None,
        fields,
        _touched(rows.star, version, chain) if version != rows.version else None,
        floor if given_up else None,
        0 if given_up else None,
        None if event.idempotency_key is None else _key(rows, event),
        None if chain is None else _link(event),
        _number(event.source),
        opened,
        advanced,
        closed,
    )


def _touched(old: Touch, version: int, chain: str | None) -> Touch:
    if chain is None:
        return Touch(version, None, version)
    return Touch(version, chain, old.foreign if old.setter == chain else old.version)


def _changes(
    rows: Rows, operations: list[Any], version: int, chain: str | None, floor: int
) -> dict[str, Change]:
    """Return what becomes of each field, or raise Misfit or InvalidDiff: all or nothing."""
    if not isinstance(operations, list):
        raise InvalidDiff("its operations are not a list")
    changes: dict[str, Change] = {}
    for operation in operations:
        check_wire(operation)
        target = operation[1]
        name = target if isinstance(target, str) else target[0]
        change = changes.get(name)
        if change is None:
            row = rows.field(name) if floor == rows.floor else None
            old = Touch(floor, None, floor) if row is None else row.touch
            shape = Shape.ABSENT if row is None else row.shape
            value: Any = ABSENT if shape == Shape.ABSENT else UNKNOWN
            touch = _touched(old, version, chain)
            change = Change(touch, shape, [], value)
        changes[name] = _one(rows, name, change, operation)
    return changes


def _one(rows: Rows, name: str, change: Change, operation: list[Any]) -> Change:
    """Return the change of a field after one more operation on it."""
    touch, shape, operations, value = change
    operations.append(operation)
    code, target = operation[0], operation[1]
    if isinstance(target, str):
        if code == "set":
            return Change(touch, shape_of(operation[2]), operations, operation[2])
        if code == "delete":
            return Change(touch, Shape.ABSENT, operations, ABSENT)
        if value is UNKNOWN and _BLIND.get(code) == shape:
            # Nobody needs to load ten megabytes to know that a list can take one more item.
            return change
    if value is UNKNOWN:
        value = rows.value(name)
        for earlier in operations[:-1]:
            value = apply_operation(value, earlier)
    elif isinstance(value, dict | list) and value is operations[-2][-1]:
        # What was set is changed again: in a copy, or the first operation would change with it.
        value = orjson.loads(orjson.dumps(value))
    value = apply_operation(value, operation)
    return Change(touch, shape_of(value), operations, value)


#: Operations whose fit shows from the kind of the value alone.
_BLIND: Final = {
    "append": Shape.LIST,
    "extend": Shape.LIST,
    "append_text": Shape.TEXT,
    "merge_into": Shape.DICT,
}


def _request(rows: Rows, event: Event) -> Outcome:
    policy = event.request or RequestPolicy()
    # What was due before 1970 is due as it would be in 1970: rows have no negative times.
    due_ms = None if policy.not_before_ms is None else max(0, policy.not_before_ms)
    request = Pending(rows.sequence, event.name, policy.lane, 0, 0, due_ms)
    return _accepted(rows, event, opened=request)


def _effect(rows: Rows, event: Event) -> Outcome:
    if event.answer is None or event.effect is None:
        return _rejected(rows, event, "an effect needs the request and the call that it records")
    return _accepted(rows, event, effect=True)


def _attempt(rows: Rows, event: Event) -> Outcome:
    if event.answer is None:
        return _rejected(rows, event, "an attempt needs its request")
    request = rows.pending(event.answer.cause)
    assert request is not None  # _once asked
    return _accepted(rows, event, advanced=request._replace(attempts=request.attempts + 1))


def _discard(rows: Rows, event: Event) -> Outcome:
    if event.answer is None:
        return _rejected(rows, event, "a discard needs its request")
    return _accepted(rows, event, closed=(event.answer.cause,))


def _failure(rows: Rows, event: Event) -> Outcome:
    if event.answer is None:
        return _rejected(rows, event, "a failure needs its request")
    return _accepted(rows, event, closed=(event.answer.cause,) if event.answer.closes else ())


def _fork(rows: Rows, event: Event) -> Outcome:
    fork = event.fork
    if fork is None:
        return _rejected(rows, event, "a fork needs the place that it comes from")
    if rows.version:
        return _conflict(rows, event, "the instance exists already, and a fork starts a new one")
    guard = event.guard
    if fork.parts > 1 and (guard is None or guard.chain is None or guard.chain_index != fork.part):
        # Parts of two forks to one name would be mixed: the chain tells them apart.
        return _rejected(rows, event, "the parts of a fork need to be the steps of one chain")
    if fork.part != rows.fork_parts:
        return _conflict(rows, event, f"part {fork.part} of a fork, not part {rows.fork_parts}")
    try:
        operations = orjson.loads(event.body)
        check_depth(event.body, operations)
        # All parts make version 1 together; before the last one it cannot be seen.
        fields = _changes(rows, operations, 1, None, rows.floor)
    except (Misfit, InvalidDiff, ValueError) as error:
        return _rejected(rows, event, str(error))
    if fork.part + 1 < fork.parts:
        return _accepted(rows, event, fields=fields, fork_parts=fork.part + 1)
    return _accepted(
        rows, event, version=1, fields=fields, star=Touch(1, None, 1), fork_parts=0
    )  # fmt: skip


def _reset(rows: Rows, event: Event) -> Outcome:
    version = rows.version + 1
    return _accepted(
        rows,
        event,
        version=version,
        floor=version,
        star=Touch(version, None, version),
        fork_parts=0,
        closed=tuple(rows.pendings()),
    )


def _note(rows: Rows, event: Event) -> Outcome:
    if event.name != GENERATION_NOTE:
        return _accepted(rows, event)
    try:
        generation = orjson.loads(event.body)["generation"]
    except (ValueError, KeyError, TypeError):
        generation = None
    if type(generation) is not int or not rows.generation < generation <= GENERATION_MAX:
        reason = f"generation {generation!r} is not above {rows.generation}, up to {GENERATION_MAX}"
        return _rejected(rows, event, reason)
    return _accepted(rows, event, generation=generation)


def _erase(rows: Rows, event: Event) -> Outcome:
    return _rejected(rows, event, "this kind is reserved and does nothing yet")


def _accepted(rows: Rows, event: Event, *, version: int | None = None, **changes: Any) -> Outcome:
    return Outcome(
        Verdict.ACCEPTED,
        rows.sequence,
        rows.version if version is None else version,
        key=_key(rows, event),
        chain=_link(event),
        source=_number(event.source),
        **changes,
    )


#: The last generation that there can be: views have four bytes for it.
GENERATION_MAX: Final = 2**32 - 1

#: The name of the note that opens a new generation after a log was cut (`eventstore repair`).
GENERATION_NOTE: Final = "generation"

_EFFECTS: Final[dict[Kind, Callable[[Rows, Event], Outcome]]] = {
    Kind.DIFF: _diff,
    Kind.REQUEST: _request,
    Kind.EFFECT: _effect,
    Kind.ATTEMPT: _attempt,
    Kind.DISCARD: _discard,
    Kind.FAILURE: _failure,
    Kind.FORK: _fork,
    Kind.RESET: _reset,
    Kind.NOTE: _note,
    Kind.ERASE: _erase,
}
