"""Policies of updates: when one that waits is given up, and when one that failed is tried again.

Here are their words and their checks. Deciding by them is the runner's work (runner/discards.py);
the numbers of a discard policy are those of the wire (`eventstore.Discard`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from eventstore import Discard

__all__ = ["DiscardPolicy", "Retry", "discard_of"]


class DiscardPolicy(IntEnum):
    """When an update that waits is not worth running any more.

    It is decided when the update is about to run, and a discard is an event of the history with
    its reason. With `discard_running=True` a running update that became stale is given up too.
    """

    #: Never.
    NONE = 0
    #: Once `discard_after` newer requests of the same update have come.
    NUM_NEW_UPDATES = 1
    #: Once it has waited `discard_after` seconds (fractions count, to the millisecond); a delayed
    #: one since it was due.
    SECONDS = 2


def discard_of(
    policy: DiscardPolicy, after: float | None, running: bool, function_name: str
) -> Discard | None:
    """Return the discard policy of a function, None where it has none.

    Raises:
        ValueError, TypeError: the three contradict one another; the message names the function.
    """
    if not isinstance(policy, DiscardPolicy):
        raise TypeError(
            f"update {function_name}: discard_policy={policy!r}; give DiscardPolicy.NONE,"
            " NUM_NEW_UPDATES or SECONDS"
        )
    if policy == DiscardPolicy.NONE:
        if after is not None or running:
            raise ValueError(
                f"update {function_name}: discard_after and discard_running need a discard_policy,"
                " DiscardPolicy.SECONDS or NUM_NEW_UPDATES"
            )
        return None
    if after is None:
        raise ValueError(
            f"update {function_name}: discard_policy {policy.name} needs discard_after=, a number"
            f" of {'seconds' if policy == DiscardPolicy.SECONDS else 'newer updates'}"
        )
    if isinstance(after, bool) or not isinstance(after, int | float):
        raise TypeError(f"update {function_name}: discard_after={after!r} is not a number")
    if not 0 < after < math.inf:
        raise ValueError(f"update {function_name}: discard_after={after}; give more than 0")
    if policy == DiscardPolicy.SECONDS:
        return Discard.seconds(after, running=running)
    if after != int(after):
        raise ValueError(
            f"update {function_name}: discard_after={after}; NUM_NEW_UPDATES counts whole updates"
        )
    return Discard.num_new_updates(int(after), running=running)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often an update that raised is run again before it is set aside as a failure.

    A run that a crash cut off counts as an attempt too, whatever it would have raised. Conflicts
    are not failures, and do not count here.

    Attributes:
        attempts: runs in all; 1 is no retry.
        backoff_s: the pause before the second run; each further one is twice as long.
        backoff_s_max: no pause is longer.
        retry_on: the exceptions that are worth another run; others fail at once.
    """

    attempts: int = 1
    backoff_s: float = 0.1
    backoff_s_max: float = 30.0
    retry_on: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise TypeError(f"Retry: attempts={self.attempts!r} is not a whole number")
        if self.attempts < 1:
            raise ValueError(f"Retry: attempts={self.attempts}; give 1 (no retry) or more")
        if not 0 <= self.backoff_s <= self.backoff_s_max < math.inf:
            raise ValueError(
                f"Retry: backoff_s={self.backoff_s}, backoff_s_max={self.backoff_s_max}; give"
                " 0 <= backoff_s <= backoff_s_max"
            )
        if not isinstance(self.retry_on, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, Exception) for kind in self.retry_on
        ):
            raise TypeError(f"Retry: retry_on={self.retry_on!r} is not a tuple of exceptions")
