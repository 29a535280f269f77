"""What the arguments of the command line mean: paths, values, operations, moments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from eventstore.history.at import At
    from eventstore.state import State

__all__ = ["ABSENT", "diff_of", "find", "parse_at", "parse_json", "parse_path"]

#: Nothing stands at a path.
ABSENT = object()

#: Tags of values whose classes only a producer has: they are taken as they are.
_CLASS_TAGS = ("$user", "$enum", "$model", "$dataclass")


def parse_at(text: str | None) -> At | None:
    """Return what `--at` means: a version, HEAD~n, a time, `occurred:TIME`, a position token."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal():
        return int(text)
    if text.startswith("occurred:"):
        from eventstore.history.at import occurred

        return occurred(text.removeprefix("occurred:"))
    return text


def parse_json(text: str, what: str) -> Any:
    """Return JSON, exactly: numbers beyond 64 bits become tagged ones, nothing is rounded.

    Raises:
        click.UsageError: it is not JSON.
    """
    import orjson

    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = "; text needs quotes of its own: 'field=\"text\"'" if _is_bare(text) else ""
        raise click.UsageError(f"{what}: {_short(text)} is not JSON ({error}){hint}") from None
    if re.search(r"\d{19}", text):
        # orjson reads such a number as a float.
        import json

        return json.loads(text, parse_int=_parse_int)
    return parsed


def _parse_int(digits: str) -> int | dict[str, str]:
    number = int(digits) if len(digits) < 30 else None
    if number is not None and -(2**63) <= number < 2**63:
        return number
    return {"$int": digits}


def _is_bare(text: str) -> bool:
    return bool(text) and text[0] not in '"[{-0123456789'


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def parse_path(text: str) -> tuple[str | int, ...]:
    """Return the path of `field`, `field.key.3.x` (numbers are indexes) or `["field","key",3]`.

    Raises:
        click.UsageError: it is none of these.
    """
    if text.startswith("["):
        steps = parse_json(text, "path")
        if not steps or not isinstance(steps[0], str):
            raise click.UsageError(f"path {text}: the first step is the name of a field")
        if any(isinstance(step, bool) or not isinstance(step, str | int) for step in steps):
            raise click.UsageError(f"path {text}: a step is a key (text) or an index (a number)")
        return tuple(steps)
    field, *rest = text.split(".")
    if not field or not all(rest):
        raise click.UsageError(
            f'path {text!r}: write field.key.3, or ["field","key",3] where names are odd'
        )
    return (field, *(int(s) if s.isascii() and s.isdecimal() else s for s in rest))


def find(state: State, text: str) -> Any:
    """Return the JSON at a path in a state, or ABSENT.

    A field that has the whole text as its name (`src/main.py`) is meant before a path is.
    """
    whole = state.to_json(text)
    if whole:
        return whole[text]
    field, *steps = parse_path(text)
    assert isinstance(field, str)
    value = state.to_json(field).get(field, ABSENT)
    for step in steps:
        value = _step(value, step)
    return value


def _step(value: Any, step: str | int) -> Any:
    """Go one step into tagged JSON, as one would go into the Python value that it stands for."""
    if isinstance(value, dict) and len(value) == 1:
        (tag,) = value
        if tag == "$tuple":
            value = value[tag]
        elif tag == "$dict":
            for key, item in value[tag]:
                if key in (step, str(step)) and not isinstance(key, bool):
                    return item
            return ABSENT
        elif tag in ("$model", "$dataclass"):
            value = value[tag][1]
    if isinstance(value, list) and isinstance(step, int):
        return value[step] if step < len(value) else ABSENT
    if isinstance(value, dict):
        return value.get(str(step), ABSENT)
    return ABSENT


def diff_of(operations: Sequence[Sequence[Any]]) -> Any:
    """Return the Diff of operations in wire form, with their values checked.

    Raises:
        InvalidDiff: an operation is none.
        UnreadableValue: a tagged value that nobody could read back.
    """
    from eventstore import values
    from eventstore.diff import Diff

    diff = Diff.from_json(operations)
    for operation in operations:
        values.from_json(_without_classes(operation[2:]))
    return diff


def _without_classes(value: Any) -> Any:
    """Return JSON without the values that only a producer with the right classes can check."""
    if isinstance(value, Mapping):
        if len(value) == 1 and next(iter(value)) in _CLASS_TAGS:
            return None
        return {key: _without_classes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_classes(item) for item in value]
    return value
