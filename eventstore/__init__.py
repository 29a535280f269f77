"""Foldlog: the log is the truth, state is a fold over it, and anything can be replayed.

    from eventstore import Diff, EventStore

    with EventStore() as store:                     # ./.eventstore, or kafka://host:9092
        orders = store.app("orders")
        orders.append("o-1", {"status": "new", "items": []})
        orders.append("o-1", Diff().append("items", "book").increment("total", 12))
        state = orders.get("o-1")

README.md has the promises, docs/ the details. What is exported here is the public API.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from eventstore.errors import __all__ as _ERRORS

# A name is imported when somebody first asks for it: pydantic and the rest take 150 ms, and
# `eventstore --help` or a program that only catches our errors needs none of them.
if TYPE_CHECKING:
    from eventstore.app import App
    from eventstore.config import Config
    from eventstore.diff import Diff, apply, diff_between
    from eventstore.errors import (
        Closed,
        ConfigError,
        Conflict,
        CorruptEvent,
        EventStoreError,
        EventTooLarge,
        InstanceNotFound,
        InvalidDiff,
        InvalidState,
        LogTruncated,
        LogUnavailable,
        OutcomeUnknown,
        ReadTimeout,
        Rejected,
        UnknownSchema,
        UnreadableValue,
        UnsupportedValue,
        VersionNotFound,
        ViewDamaged,
    )
    from eventstore.events import Discard, Entry, Event, Guard, Kind, Position, Verdict
    from eventstore.history.at import occurred
    from eventstore.history.copy import CopyProgress, CopyReport, copy_app
    from eventstore.receipts import Receipt
    from eventstore.state import State
    from eventstore.store import EventStore
    from eventstore.values import register

__all__ = [
    "App",
    "Closed",
    "Config",
    "ConfigError",
    "Conflict",
    "CopyProgress",
    "CopyReport",
    "CorruptEvent",
    "Diff",
    "Discard",
    "Entry",
    "Event",
    "EventStore",
    "EventStoreError",
    "EventTooLarge",
    "Guard",
    "InstanceNotFound",
    "InvalidDiff",
    "InvalidState",
    "Kind",
    "LogTruncated",
    "LogUnavailable",
    "OutcomeUnknown",
    "Position",
    "ReadTimeout",
    "Receipt",
    "Rejected",
    "State",
    "UnknownSchema",
    "UnreadableValue",
    "UnsupportedValue",
    "Verdict",
    "VersionNotFound",
    "ViewDamaged",
    "apply",
    "copy_app",
    "diff_between",
    "occurred",
    "register",
]

#: name -> the module that has it.
_HOMES: Final = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(
        ("Discard", "Entry", "Event", "Guard", "Kind", "Position", "Verdict"), "events"
    ),
    **dict.fromkeys(("CopyProgress", "CopyReport", "copy_app"), "history.copy"),
    "App": "app",
    "Config": "config",
    "Diff": "diff",
    "EventStore": "store",
    "Receipt": "receipts",
    "State": "state",
    "apply": "diff",
    "diff_between": "diff",
    "occurred": "history.at",
    "register": "values",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # so that it is asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
