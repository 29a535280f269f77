"""Discard-after: whether a request that is about to run, or runs, is still worth it. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from eventstore import Discard
from processors.policy import DiscardPolicy

__all__ = ["Decision", "decide"]


class Decision(NamedTuple):
    """Whether to give a request up, and the figures that the decision rests on."""

    is_stale: bool
    facts: dict[str, Any]


def decide(policy: Discard, *, age_ms: int, newer: int) -> Decision:
    """Decide by a policy: `age_ms` since the log took the request, `newer` ones of its update."""
    if policy.policy == DiscardPolicy.NUM_NEW_UPDATES:
        return Decision(newer >= policy.after, {"newer": newer})
    if policy.policy == DiscardPolicy.SECONDS:
        return Decision(age_ms > policy.after, {"age_ms": age_ms})
    return Decision(False, {})
