"""Waiting for news on one machine: many threads of a process may wait, and one listens for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from eventstore.log.nudges import Nudges

__all__ = ["Waiting"]

#: How much less often a waiting reader looks by itself while nudges arrive.
_POLL_BACKOFF = 8


class Waiting:
    """The threads of this process that wait for news; one of them listens for all."""

    def __init__(self, news: Nudges) -> None:
        self._news = news
        self._condition = threading.Condition()
        self._listening = False
        self._generation = 0
        self._wakes = 0
        #: How many wait for all news; an interrupt may leave one too many, which costs wake-ups.
        self._for_all = 0
        self._closed = False
        #: Whether the latest news came with a nudge: looking by oneself can then be rare.
        self._nudges_arrive = True

    def wait(
        self,
        has_news: Callable[[], bool],
        timeout_s: float,
        poll_interval_s: float,
        *,
        attended: bool = False,
    ) -> bool:
        """Return True as soon as `has_news()` is true, False after `timeout_s` or a `wake()`.

        Who is `attended` hears of news that others here attend to when he looks by himself.
        """
        if attended:
            return self._wait(has_news, timeout_s, poll_interval_s)
        # Before the first look: a writer that does not see this has committed what is seen there.
        with self._condition:
            self._for_all += 1
        try:
            return self._wait(has_news, timeout_s, poll_interval_s)
        finally:
            with self._condition:
                self._for_all -= 1

    def ring(self, *, attended: bool) -> None:
        """Nudge other processes, and those who wait here; not if all of it is `attended`."""
        self._news.ring(here=not attended or self._for_all > 0)

    def _wait(self, has_news: Callable[[], bool], timeout_s: float, poll_interval_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        self._news.open()
        wakes = self._wakes
        nudged = True
        while True:
            generation = self._generation
            if has_news():
                self._nudges_arrive = nudged
                return True
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self._wakes != wakes or self._closed:
                return False
            poll_s = poll_interval_s * (_POLL_BACKOFF if self._nudges_arrive else 1)
            nudged = self._sleep(generation, min(left_s, poll_s))

    def wake(self) -> None:
        """Make every `wait` return now."""
        with self._condition:
            self._wakes += 1
            self._generation += 1
            self._condition.notify_all()
        self._news.ring_here()

    def close(self) -> None:
        """Make every `wait`, from now on too, return at once; returns when nobody listens."""
        with self._condition:
            self._closed = True
        self.wake()
        with self._condition:
            self._condition.wait_for(lambda: not self._listening)

    def _sleep(self, generation: int, timeout_s: float) -> bool:
        """Sleep until a nudge; False when none came. The first thread here listens for all."""
        with self._condition:
            if self._generation != generation:
                return True
            if self._listening:
                self._condition.wait(timeout_s)
                return self._generation != generation
            self._listening = True
        nudged = False
        try:
            nudged = self._news.listen(timeout_s)
        finally:
            with self._condition:
                self._listening = False
                self._generation += nudged
                # Also on timeout: one of those who wait must listen from now on.
                self._condition.notify_all()
        return nudged
