"""The public API is what docs/design.md (section 7) says: its names, their parameters, their words.

A name or parameter that goes missing here breaks somebody's program; one that is not documented
is one that nobody can rely on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import eventstore
from eventstore import App, EventStore, Position, Receipt, State
from eventstore.aio import AsyncApp, AsyncEventStore

#: call -> (its parameters in order, `*` before the keyword-only ones; words its text must have)
CALLS: list[tuple[Callable[..., Any], str, list[str]]] = [
    (EventStore.__init__, "url * namespace config progress", ["$EVENTSTORE_URL", "Raises"]),
    (EventStore.app, "name state_type * validate", ["Raises", "comes into being with its first"]),
    (EventStore.apps, "", []),
    (EventStore.flush, "timeout_s", ["durable", "Raises"]),
    (EventStore.close, "", ["durable", "Raises"]),
    (
        App.append,
        "instance diff * name guard expected_version idempotency_key occurred_at actor meta",
        ["unless the buffer is full", "1,024 bytes", "Raises", "nothing was written"],
    ),
    (App.append_many, "items", ["group commit", "order per instance", "Raises"]),
    (
        App.request,
        "instance name props * lane discard not_before retry_of idempotency_key occurred_at"
        " actor meta",
        ["waits until", "Raises"],
    ),
    (
        App.get,
        "instance path * at after fresh default timeout_s",
        ["every write made", "Raises", "ReadTimeout"],
    ),
    (
        App.commit,
        "instance state * isolation name idempotency_key occurred_at actor meta timeout_s",
        ["at most once", "Conflict", "Raises", "winner"],
    ),
    (App.history, "instance * start end reverse", ["Lazily", "Raises"]),
    (App.pending, "instance", ["log order"]),
    (App.discards, "instance", ["discards"]),
    (App.failures, "instance", ["failures"]),
    (App.instances, "prefix", ["Lazily"]),
    (App.exists, "instance", ["Creates nothing"]),
    (App.tail, "* start follow timeout_s", ["Raises"]),
    (App.fork, "instance * to at actor timeout_s", ["Raises", "Conflict"]),
    (App.reset, "instance * actor timeout_s", ["idempotency keys", "Raises"]),
    (Receipt.result, "timeout_s", ["durable", "Raises", "OutcomeUnknown"]),
    (Receipt.verdict, "timeout_s", ["original", "Raises"]),
    (Receipt.entry, "timeout_s", ["Raises"]),
    (Position.parse, "token", ["ConfigError"]),
    (State.update, "fields", []),
    (State.append, "items", []),
    (State.extend, "items", []),
    (State.increment, "numbers", []),
    (State.wipe, "* delete keep", ["Raises"]),
    (State.merge, "other", []),
    (State.subset, "names * ignore_missing", ["Raises"]),
    (State.get_all, "", []),
]


def parameters(call: Callable[..., Any]) -> str:
    """Return the names of a call's parameters, `*` before the first keyword-only one."""
    names: list[str] = []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(parameter.name)
    return " ".join(names)


@pytest.mark.parametrize(
    ("call", "expected", "words"), CALLS, ids=[call.__qualname__ for call, _, _ in CALLS]
)
def test_each_call_has_its_parameters_and_states_its_promise(
    call: Callable[..., Any], expected: str, words: list[str]
) -> None:
    text = inspect.getdoc(call) or ""

    assert parameters(call) == expected
    assert text, "no docstring"
    assert [word for word in words if word not in " ".join(text.split())] == []


@pytest.mark.parametrize("call", [call for call, _, _ in CALLS], ids=lambda c: c.__qualname__)
def test_each_parameter_that_is_explained_exists(call: Callable[..., Any]) -> None:
    text = inspect.getdoc(call) or ""
    if "Args:" not in text:
        return
    section = text.split("Args:")[1].split("\n\n")[0]
    explained = [
        line.strip().split(":")[0]
        for line in section.splitlines()
        if line.startswith("    ") and not line.startswith("     ")
    ]

    assert explained
    assert set(explained) <= set(parameters(call).split())
    assert set(parameters(call).split()) - {"*"} == set(explained), "one is not explained"


@pytest.mark.parametrize("call", [call for call, _, _ in CALLS], ids=lambda c: c.__qualname__)
def test_each_waiting_time_is_in_seconds_and_says_so(call: Callable[..., Any]) -> None:
    names = parameters(call).split()

    assert not [name for name in names if "timeout" in name and not name.endswith("_s")]


def test_every_exported_name_is_there_and_has_a_docstring() -> None:
    undocumented = [
        name for name in eventstore.__all__ if not inspect.getdoc(getattr(eventstore, name))
    ]

    assert undocumented == []
    assert list(eventstore.__all__) == sorted(set(eventstore.__all__))
    assert set(eventstore.__all__) <= set(dir(eventstore))


def test_the_names_of_the_design_are_exported() -> None:
    wanted = {
        "App", "Config", "Diff", "Discard", "Entry", "Event", "EventStore", "Guard", "Kind",
        "Position", "Receipt", "State", "Verdict", "apply", "diff_between", "occurred", "register",
        "EventStoreError", "ConfigError", "InstanceNotFound", "VersionNotFound", "Conflict",
        "EventTooLarge", "UnsupportedValue", "UnknownSchema", "CorruptEvent", "LogUnavailable",
        "LogTruncated", "OutcomeUnknown", "ReadTimeout", "ViewDamaged", "Closed",
    }  # fmt: skip

    assert wanted <= set(eventstore.__all__)


def test_every_error_is_one_of_ours_and_some_are_the_languages_own_too() -> None:
    errors = [
        found
        for name in eventstore.__all__
        if isinstance(found := getattr(eventstore, name), type) and issubclass(found, Exception)
    ]

    assert all(issubclass(error, eventstore.EventStoreError) for error in errors)
    assert issubclass(eventstore.InstanceNotFound, KeyError)
    assert issubclass(eventstore.UnsupportedValue, TypeError)
    assert issubclass(eventstore.ReadTimeout, TimeoutError)
    assert issubclass(eventstore.OutcomeUnknown, eventstore.LogUnavailable)


def test_the_public_calls_of_both_colours_are_documented() -> None:
    undocumented = [
        f"{cls.__name__}.{name}"
        for cls in (EventStore, App, AsyncEventStore, AsyncApp, Receipt, State, Position)
        for name, found in vars(cls).items()
        if not name.startswith("_")
        and (callable(found) or isinstance(found, property))
        and not inspect.getdoc(found)
    ]

    assert undocumented == ["Receipt.delivered", "Receipt.failed"], "the log's side of a receipt"


def test_a_receipt_can_be_awaited() -> None:
    assert "__await__" in vars(Receipt)
