"""Discard-after: whether a request that is about to run, or runs, is still worth it. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from eventstore import Discard

__all__ = ["NUM_NEW_UPDATES", "SECONDS", "Verdict", "decide"]

NUM_NEW_UPDATES: Final = 1
SECONDS: Final = 2


class Verdict(NamedTuple):
    """Whether to give a request up, and the figures that the decision rests on."""

    is_stale: bool
    facts: dict[str, Any]


def decide(policy: Discard, *, age_ms: int, newer: int) -> Verdict:
    """Decide by a policy: `age_ms` since the log took the request, `newer` ones of its update."""
    if policy.policy == NUM_NEW_UPDATES:
        return Verdict(newer >= policy.after, {"newer": newer})
    if policy.policy == SECONDS:
        return Verdict(age_ms > policy.after, {"age_ms": age_ms})
    return Verdict(False, {})
