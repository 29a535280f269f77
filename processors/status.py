"""The status of an app: who runs its updates, what waits, and how long already.

Put together from two sources: the view of the process that asks, which knows what is pending on
every log and whoever runs it; and the notices of the processes of this machine, which know the
owners, what runs, and how fast.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eventstore import EventStore
from eventstore.processing import PendingRow, Processing
from processors.notices import COUNTS, Notice, NoticeBoard, RelayNotice, different_code

__all__ = ["AppStatus", "request_state", "status_json", "status_of"]

#: States of a request that waits, as `request_state` has them.
PENDING: Final = "pending"
RUNNING: Final = "running"
DELAYED: Final = "delayed"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStatus:
    """What is known of one app's updates at one moment.

    Attributes:
        app: its name.
        shards: how many it has.
        owners: the runners of this machine, and what they say.
        shards_free: those that no runner of this machine holds.
        pending: requests that wait, those that run included and delayed ones not.
        delayed: requests that are not due yet.
        running: updates that run now.
        unowned: requests that wait in free shards; 0 where other hosts may hold them.
        is_shared: whether processes of other hosts, which are not shown, may hold shards too.
        unknown: of what waits, by name, that no runner's code knows.
        oldest_age_ms: the age of the oldest request that waits, by this machine's clock.
        lag_events: how far the most backward owner's view is behind the log; None without owner.
        rates: updates per second, by what became of them.
        relays: how far triggers are, as their owners say.
        different_code: updates that two owners run with different code.
    """

    app: str
    shards: int
    owners: tuple[Notice, ...]
    shards_free: tuple[int, ...]
    pending: int
    delayed: int
    running: int
    unowned: int
    is_shared: bool
    unknown: Mapping[str, int]
    oldest_age_ms: int | None
    lag_events: int | None
    rates: Mapping[str, float]
    relays: tuple[RelayNotice, ...]
    different_code: tuple[tuple[str, str, str], ...]

    @property
    def faults(self) -> list[str]:
        """What should not stay as it is, in words; what a probe fails for."""
        found = []
        if self.unowned:
            found.append(f"{self.unowned:,} request(s) wait, and nobody here runs them")
        for name, count in self.unknown.items():
            found.append(f"{count:,} request(s) for {name!r} wait, and no code here knows it")
        for name, one, other in self.different_code:
            found.append(f"{one} and {other} run {name!r} with different code")
        found.extend(
            f"trigger {relay.trigger_id or 'outbox'} fails: {relay.error}"
            for relay in self.relays
            if relay.error
        )
        return found


def status_of(store: EventStore, app: str, *, clock: Callable[[], float] = time.time) -> AppStatus:
    """Return the status of an app that exists, with everything that is acknowledged by now.

    Raises:
        LogUnavailable, ReadTimeout, ViewDamaged: see errors.py.
    """
    processing = Processing(store.app(app))
    processing.catch_up()
    notices = NoticeBoard.of(store, app).read()
    now_ms = round(clock() * 1_000)
    owned = {shard for notice in notices for shard in notice.shards}
    # The embedded log is this machine's alone.
    is_shared = store.url.startswith("kafka:")
    requests = _count(processing, notices, owned, now_ms)
    return AppStatus(
        app=app,
        shards=processing.shards(),
        owners=tuple(notices),
        shards_free=tuple(sorted(set(range(processing.shards())) - owned)),
        pending=requests.pending,
        delayed=requests.delayed,
        running=sum(notice.running_count for notice in notices),
        unowned=0 if is_shared else requests.unowned,
        is_shared=is_shared,
        unknown=dict(requests.unknown),
        oldest_age_ms=None if requests.oldest_ms is None else max(0, now_ms - requests.oldest_ms),
        lag_events=_lag(processing.position, notices),
        rates={
            name: round(sum((notice.rates or {}).get(name, 0.0) for notice in notices), 1)
            for name in COUNTS
        },
        relays=tuple(relay for notice in notices for relay in notice.relays),
        different_code=tuple(
            (name, one.owner, other.owner) for name, one, other in different_code(notices)
        ),
    )


@dataclass(slots=True)
class _Requests:
    pending: int = 0
    delayed: int = 0
    unowned: int = 0
    oldest_ms: int | None = None
    unknown: Counter[str] = field(default_factory=Counter)


def _count(
    processing: Processing, notices: Sequence[Notice], owned: set[int], now_ms: int
) -> _Requests:
    found = _Requests()
    state_of = request_state(notices, now_ms)
    for row in processing.pending():
        state = state_of(row)
        if state == DELAYED:
            found.delayed += 1
            continue
        found.pending += 1
        if found.oldest_ms is None or row.time_ms < found.oldest_ms:
            found.oldest_ms = row.time_ms
        if state == UNKNOWN:
            found.unknown[row.request.name] += 1
        if len(owned) < processing.shards() and processing.shard_of(row.instance) not in owned:
            found.unowned += 1
    return found


def request_state(notices: Sequence[Notice], now_ms: int) -> Callable[[PendingRow], str]:
    """Return what tells of a request that waits: pending, running, delayed, or unknown.

    Unknown is one for which none of these runners has the code; without runners none is.
    """
    running = {(one.instance, one.sequence) for notice in notices for one in notice.running}
    names = _known_names(notices)

    def state_of(row: PendingRow) -> str:
        request = row.request
        if request.due_ms is not None and request.due_ms > now_ms:
            return DELAYED
        if (row.instance, request.sequence) in running:
            return RUNNING
        if names is not None and request.name not in names:
            return UNKNOWN
        return PENDING

    return state_of


def _known_names(notices: Iterable[Notice]) -> set[str] | None:
    """Return the request names that some runner knows; None when there is no runner."""
    found: Counter[str] = Counter()
    is_any = False
    for notice in notices:
        is_any = True
        names = list(notice.updates or ())
        # A request may leave the flow's key out, where one function only has that name.
        short = Counter(name.rpartition("/")[2] for name in names)
        found.update({*names, *(name for name, count in short.items() if count == 1)})
    return set(found) if is_any else None


def _lag(position: Mapping[int, int], notices: Sequence[Notice]) -> int | None:
    lags = [
        sum(max(0, end - notice.offsets.get(partition, -1)) for partition, end in position.items())
        for notice in notices
        if notice.offsets is not None
    ]
    return max(lags, default=None)


def status_json(status: AppStatus) -> dict[str, Any]:
    """Return a status as JSON."""
    return {
        "app": status.app,
        "shards": status.shards,
        "shards_free": list(status.shards_free),
        "pending": status.pending,
        "delayed": status.delayed,
        "running": status.running,
        "unowned": None if status.is_shared else status.unowned,
        "unknown": dict(status.unknown),
        "oldest_age_ms": status.oldest_age_ms,
        "lag_events": status.lag_events,
        "rates": dict(status.rates),
        "faults": status.faults,
        "owners": [notice.as_json() for notice in status.owners],
    }
