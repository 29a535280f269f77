"""The reader of the demo: reads states all the time, each as fresh as can be, and times it.

    python -m examples.flights.reader

It says what it finds on stdout every half second. Told to `verify`, it says how its reads were in
all, compares its view, from which all of them came, with the log folded anew, and ends.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from eventstore import App, EventStore
from eventstore.history.verify import verify_app
from examples.flights.processes import end_with_parent, say
from examples.flights.story import app_names
from examples.flights.updates import summary_of

__all__ = ["quantile"]

#: How often it says what it finds.
SAY_S: Final = 0.5
#: How long it rests between two reads: it shares two cores with a service and a daemon.
REST_S: Final = 0.002


def quantile(numbers: Sequence[float], share: float) -> float:
    """Return the number below which this share of them is; 0 of none."""
    return sorted(numbers)[int(len(numbers) * share)] if numbers else 0.0


class Reads:
    """What was read: how long each took, and whether its summary was up to date."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._instances: list[str] = []
        self.seconds: list[float] = []
        self._is_right: list[bool] = []

    def read(self) -> None:
        """Read the state of some aircraft, with all that was acknowledged to anyone before."""
        instance = random.choice(self._instances)
        begin_s = time.perf_counter()
        state = self._app.get(instance, fresh=True)
        self.seconds.append(time.perf_counter() - begin_s)
        if (wanted := summary_of(state))["of"]:
            self._is_right.append(state.get("summary") == wanted)

    def facts(self) -> dict[str, Any]:
        """Return what was found; the share of summaries up to date since the last call."""
        self._instances = list(self._app.instances())
        right, self._is_right = self._is_right, []
        return {
            "aircraft": len(self._instances),
            "waiting": sum(1 for _ in self._app.pending()),
            "up_to_date": sum(right) / len(right) if right else 1.0,
            "reads": len(self.seconds),
            "p50_ms": quantile(self.seconds, 0.50) * 1_000,
            "p99_ms": quantile(self.seconds, 0.99) * 1_000,
        }

    @property
    def can_read(self) -> bool:
        return bool(self._instances)


def main() -> int:
    told = threading.Event()
    end_with_parent(lambda line: told.set())
    with EventStore() as store:
        reads = Reads(store.app(app_names().aircraft))
        say_s = time.monotonic()
        while not told.wait(REST_S):
            if reads.can_read:
                reads.read()
            if time.monotonic() >= say_s:
                say(**reads.facts())
                say_s = time.monotonic() + SAY_S
        say(**reads.facts())
        found = [verify_app(store, name) for name in app_names()]
        say(
            events=sum(one.events for one in found),
            instances=sum(one.instances for one in found),
            differences=[difference for one in found for difference in one.differences],
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
