"""Policies: what may be said, and what is refused where it is said."""

from __future__ import annotations

from typing import Any

import pytest

from eventstore import Discard
from processors.policy import DiscardPolicy, Retry, discard_of


def test_seconds_are_kept_in_milliseconds() -> None:
    assert discard_of(DiscardPolicy.SECONDS, 1.5, False, "f") == Discard(2, 1_500, False)
    assert discard_of(DiscardPolicy.SECONDS, 0.0001, True, "f") == Discard(2, 1, True)


def test_new_updates_are_counted() -> None:
    assert discard_of(DiscardPolicy.NUM_NEW_UPDATES, 3, True, "f") == Discard(1, 3, True)


def test_without_a_policy_nothing_is_discarded() -> None:
    assert discard_of(DiscardPolicy.NONE, None, False, "f") is None


@pytest.mark.parametrize(
    ("policy", "after", "running", "words"),
    [
        (DiscardPolicy.NONE, 3, False, "need a discard_policy"),
        (DiscardPolicy.NONE, None, True, "need a discard_policy"),
        (DiscardPolicy.SECONDS, None, False, "SECONDS needs discard_after=, a number of seconds"),
        (DiscardPolicy.NUM_NEW_UPDATES, None, False, "a number of newer updates"),
        (DiscardPolicy.SECONDS, 0, False, "more than 0"),
        (DiscardPolicy.SECONDS, -1, False, "more than 0"),
        (DiscardPolicy.SECONDS, float("nan"), False, "more than 0"),
        (DiscardPolicy.SECONDS, float("inf"), False, "more than 0"),
        (DiscardPolicy.NUM_NEW_UPDATES, 1.5, False, "counts whole updates"),
    ],
)
def test_a_contradiction_is_told_with_the_function(
    policy: DiscardPolicy, after: float | None, running: bool, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        discard_of(policy, after, running, "refresh")

    assert "refresh" in str(raised.value)


@pytest.mark.parametrize(
    ("policy", "after"),
    [("SECONDS", 3), (2, 3), (DiscardPolicy.SECONDS, "3"), (DiscardPolicy.SECONDS, True)],
)
def test_what_is_no_policy_or_number_is_a_type_error(policy: Any, after: Any) -> None:
    with pytest.raises(TypeError, match="refresh"):
        discard_of(policy, after, False, "refresh")


def test_by_default_an_update_runs_once() -> None:
    assert Retry().attempts == 1


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"backoff_s": -1.0},
        {"backoff_s": 60.0},
        {"backoff_s": float("nan")},
        {"backoff_s_max": float("inf")},
    ],
)
def test_a_retry_that_cannot_be_kept_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Retry"):
        Retry(**options)


@pytest.mark.parametrize(
    "options",
    [{"attempts": 1.5}, {"attempts": True}, {"retry_on": ValueError}, {"retry_on": (int,)}],
)
def test_a_retry_of_other_kinds_is_a_type_error(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Retry"):
        Retry(**options)
