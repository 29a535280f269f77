"""What time it is by the log: its newest record's time, and what has passed here since.

Ages of requests are differences of the log's own times, so no wall clock of this machine is ever
compared with a broker's, which may be minutes off and may go backwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LogClock"]


class LogClock:
    """Told the times of records as they are folded; says what time it would give one now."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: The log's time minus ours, in milliseconds: the largest seen, since a record that took
        #: long to get here only makes it smaller.
        self._ahead_ms: float | None = None

    def seen(self, time_ms: int) -> None:
        """Take note of a record that the log has just given this time."""
        ahead_ms = time_ms - self._monotonic() * 1_000
        if self._ahead_ms is None or ahead_ms > self._ahead_ms:
            self._ahead_ms = ahead_ms

    @property
    def is_set(self) -> bool:
        """Whether it was told any time yet."""
        return self._ahead_ms is not None

    def now_ms(self) -> int:
        """Return the log's time now, in epoch milliseconds; 0 before it was told any."""
        if self._ahead_ms is None:
            return 0
        return int(self._monotonic() * 1_000 + self._ahead_ms)
