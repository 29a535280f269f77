"""How an event of a history looks: as JSON, and in one row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventstore.cli.output import Cell, cut, json_text, local_time, plain, present, utc_time

if TYPE_CHECKING:
    from eventstore.events import Entry, Event

__all__ = ["ENTRY_COLUMNS", "entry_json", "entry_row", "summary"]

#: Bodies above this are not read just to show their beginning.
_BODY_BYTES_MAX = 100_000

ENTRY_COLUMNS = (
    Cell("seq", right=True),
    Cell("version", right=True),
    Cell("verdict"),
    Cell("kind"),
    Cell("what", flexible=True),
    Cell("time"),
)


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON: its place, verdict, and all that its event says."""
    import orjson

    event = entry.event
    shown: dict[str, Any] = {
        "instance": entry.instance,
        "sequence": entry.sequence,
        "version": entry.version,
        "verdict": str(entry.verdict),
        "kind": str(event.kind),
        "time": utc_time(entry.time),
        "position": str(entry.position),
    }
    shown |= present(
        {
            "name": event.name,
            "reason": entry.reason,
            "field": entry.field,
            "winner": entry.winner,
            "occurred_at": utc_time(entry.occurred_at),
            "idempotency_key": event.idempotency_key,
            "generation": event.generation or None,
        }
    )
    if event.origin is not None:
        shown |= present({"actor": event.origin.actor, "parent": event.origin.parent})
        if event.origin.meta is not None:
            shown["meta"] = orjson.Fragment(event.origin.meta)
    for name in ("guard", "answer", "source", "request", "effect", "fork", "copied"):
        part = getattr(event, name)
        if part is not None:
            shown[name] = part._asdict()
    if event.body:
        shown[_BODIES.get(str(event.kind), "body")] = orjson.Fragment(event.body)
    if event.outbox is not None:
        shown["outbox"] = orjson.Fragment(event.outbox)
    return shown


#: What the body of an event is, by its kind.
_BODIES = {"diff": "operations", "fork": "operations", "request": "props", "effect": "result"}


def entry_row(entry: Entry) -> list[str]:
    """Return an entry as the cells of ENTRY_COLUMNS."""
    return [
        str(entry.sequence),
        str(entry.version),
        str(entry.verdict),
        str(entry.event.kind),
        summary(entry),
        local_time(entry.time),
    ]


def summary(entry: Entry) -> str:
    """Return in one line what an event says, and why it was refused if it was."""
    parts = [entry.event.name, _content(entry.event)]
    if entry.reason:
        parts.append(f"({entry.reason})")
    return plain(cut(" ".join(part for part in parts if part)))


def _content(event: Event) -> str:
    import orjson

    if event.fork is not None:
        return f"from {event.fork.app}/{event.fork.instance} at version {event.fork.version}"
    if not event.body:
        return ""
    if len(event.body) > _BODY_BYTES_MAX:
        return f"{len(event.body):,} bytes"
    body = orjson.loads(event.body)
    if str(event.kind) == "diff":
        return ", ".join(_operation(*operation) for operation in body)
    return json_text(body)


def _operation(code: str, target: Any, *arguments: Any) -> str:
    place = target if isinstance(target, str) else ".".join(map(str, target))
    shown = ", ".join(map(json_text, arguments))
    return f"{place} = {shown}" if code == "set" else f"{place}.{code}({shown})"
