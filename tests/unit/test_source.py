"""What a function is, as text, of whatever can be called."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from processors.source import source_of


def _answer(model: Any, state: Any, props: Any) -> Any:
    return model


def _other_answer(model: str, state: Any, props: Any) -> str:
    return model + "!"


class _Answers:
    def __call__(self, state: Any, props: Any) -> str:
        return "Hello"


class _OtherAnswers:
    def __call__(self, state: Any, props: Any) -> str:
        return "Good day"


_OtherAnswers.__qualname__ = _Answers.__qualname__


@pytest.mark.parametrize(
    ("former", "newer"),
    [
        (_Answers(), _OtherAnswers()),
        (functools.partial(_answer, "one"), functools.partial(_answer, "two")),
        (functools.partial(_answer, "one"), functools.partial(_other_answer, "one")),
    ],
    ids=["object", "argument of a partial", "function of a partial"],
)
def test_what_was_written_anew_is_another_source(former: Any, newer: Any) -> None:
    assert source_of(former) != source_of(newer)


@pytest.mark.parametrize(
    "made",
    [_Answers, lambda: functools.partial(_answer, "one"), lambda: functools.partial(_answer, [1j])],
    ids=["object", "partial", "partial with what cannot be stored"],
)
def test_what_is_made_of_the_same_is_the_same_source(made: Any) -> None:
    assert source_of(made()) == source_of(made())


def test_a_function_whose_file_has_changed_since_has_a_source(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    names: dict[str, Any] = {}
    exec(compile("def answer(state, props):\n    return 1\n", file, "exec"), names)

    file.write_text('def half(state, props):\n    """What is being\n', encoding="utf-8")

    assert source_of(names["answer"])
