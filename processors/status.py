"""The status of an app: who runs its updates, what waits, and how long already.

Put together from three sources: the view of the process that asks, which knows what is pending on
every log and whoever runs it; the notices of the processes of this machine, which know the owners,
what runs, and how fast; and where other machines take part (Kafka) the members of the group, which
know of each owner who it is and which shards it has, and nothing else.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from eventstore import EventStore, LogUnavailable
from eventstore.processing import Member, PendingRow, Processing
from processors.notices import COUNTS, Notice, NoticeBoard, RelayNotice, different_code

__all__ = ["AppStatus", "OwnerElsewhere", "request_state", "status_json", "status_of"]

#: States of a request that waits, as `request_state` has them.
PENDING: Final = "pending"
RUNNING: Final = "running"
DELAYED: Final = "delayed"
UNKNOWN: Final = "unknown"


#: What a member of a group calls itself, unless its user has named it: as `Notice.owner` does.
_PROCESS_AT_HOST: Final = re.compile(r"(\d+)@(.+)")


@dataclass(frozen=True, slots=True)
class OwnerElsewhere:
    """An owner that has no notice here: another machine's, as a rule. All that is known of it.

    `process` is None where its user has given its Kafka client a name; `host` is its address then.
    """

    process: int | None
    host: str
    client: str
    address: str
    shards: tuple[int, ...]

    @classmethod
    def of(cls, member: Member) -> OwnerElsewhere:
        """Return what a member of the group is."""
        named = _PROCESS_AT_HOST.fullmatch(member.client)
        process, host = (int(named[1]), named[2]) if named else (None, member.address)
        return cls(process, host, member.client, member.address, tuple(sorted(member.shards)))

    def as_json(self) -> dict[str, Any]:
        """Return the facts; what a notice would say is null."""
        said = {one.name: None for one in fields(Notice)}
        known = {"process": self.process, "host": self.host, "shards": list(self.shards)}
        return {**said, **known, "client": self.client, "address": self.address}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStatus:
    """What is known of one app's updates at one moment.

    Attributes:
        app: its name.
        shards: how many it has.
        owners: the runners of this machine, and what they say.
        elsewhere: the other owners, of which only the shards are known.
        not_known: why it is not known who owns what elsewhere; None where it is.
        shards_free: those that nobody is known to hold.
        pending: requests that wait, those that run included and delayed ones not.
        delayed: requests that are not due yet.
        running: updates that run now on this machine; None where all that may run is elsewhere.
        unowned: requests that wait in free shards; 0 where it is not known who holds them.
        unknown: of what waits, by name, that no runner's code knows.
        oldest_age_ms: the age of the oldest request that waits, by this machine's clock.
        lag_events: how far the most backward owner's view is behind the log; None without owner.
        rates: updates per second on this machine, by what became of them; None as for `running`.
        relays: how far triggers are, as their owners say.
        different_code: updates that two owners run with different code.
    """

    app: str
    shards: int
    owners: tuple[Notice, ...]
    elsewhere: tuple[OwnerElsewhere, ...]
    not_known: str | None
    shards_free: tuple[int, ...]
    pending: int
    delayed: int
    running: int | None
    unowned: int
    unknown: Mapping[str, int]
    oldest_age_ms: int | None
    lag_events: int | None
    rates: Mapping[str, float] | None
    relays: tuple[RelayNotice, ...]
    different_code: tuple[tuple[str, str, str], ...]

    @property
    def is_partial(self) -> bool:
        """Whether there are owners, or may be, of which it is not known what they run."""
        return bool(self.elsewhere) or self.not_known is not None

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
    # In this order: who has joined has a notice a moment later, and is known by it.
    members, not_known = _members(processing)
    notices = NoticeBoard.of(store, app).read()
    elsewhere = tuple(OwnerElsewhere.of(member) for member in _without_notice(members, notices))
    now_ms = round(clock() * 1_000)
    owned_elsewhere = {shard for owner in elsewhere for shard in owner.shards}
    owned = owned_elsewhere.union(*(notice.shards for notice in notices))
    requests = _count(processing, notices, owned, owned_elsewhere, now_ms)
    # Nothing said is not nothing done.
    is_said = bool(notices) or (not elsewhere and not_known is None)
    return AppStatus(
        app=app,
        shards=processing.shards(),
        owners=tuple(notices),
        elsewhere=elsewhere,
        not_known=not_known,
        shards_free=tuple(sorted(set(range(processing.shards())) - owned)),
        pending=requests.pending,
        delayed=requests.delayed,
        running=sum(notice.running_count for notice in notices) if is_said else None,
        unowned=0 if not_known is not None else requests.unowned,
        unknown=dict(requests.unknown),
        oldest_age_ms=None if requests.oldest_ms is None else max(0, now_ms - requests.oldest_ms),
        lag_events=_lag(processing.position, notices),
        rates=_rates(notices) if is_said else None,
        relays=tuple(relay for notice in notices for relay in notice.relays),
        different_code=tuple(
            (name, one.owner, other.owner) for name, one, other in different_code(notices)
        ),
    )


def _members(processing: Processing) -> tuple[Sequence[Member], str | None]:
    """Return the members of an app's group, none where the log keeps no list; or why not."""
    try:
        return processing.members(processing.name) or (), None
    except LogUnavailable as error:
        return (), str(error)


def _without_notice(members: Sequence[Member], notices: Sequence[Notice]) -> list[Member]:
    """Return the members of which no notice of this machine speaks.

    Where the client has a name of the user's, a notice is of the member that has its shards.
    """
    left = list(members)
    for notice in notices:
        held = frozenset(notice.shards)
        found = [one for one in left if one.client == notice.owner] or [
            one for one in left if one.shards & held and not _PROCESS_AT_HOST.fullmatch(one.client)
        ]
        if found:
            # Containers may all have the same name and process 1: the one with its shards is it.
            left.remove(max(found, key=lambda one: len(one.shards & held)))
    return left


def _rates(notices: Sequence[Notice]) -> dict[str, float]:
    return {
        name: round(sum((notice.rates or {}).get(name, 0.0) for notice in notices), 1)
        for name in COUNTS
    }


@dataclass(slots=True)
class _Requests:
    pending: int = 0
    delayed: int = 0
    unowned: int = 0
    oldest_ms: int | None = None
    unknown: Counter[str] = field(default_factory=Counter)


def _count(
    processing: Processing,
    notices: Sequence[Notice],
    owned: set[int],
    owned_elsewhere: set[int],
    now_ms: int,
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
        # What the code elsewhere knows is not known here.
        if state == UNKNOWN and processing.shard_of(row.instance) not in owned_elsewhere:
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
        "unowned": None if status.not_known is not None else status.unowned,
        "unknown": dict(status.unknown),
        "oldest_age_ms": status.oldest_age_ms,
        "lag_events": status.lag_events,
        "rates": None if status.rates is None else dict(status.rates),
        "faults": status.faults,
        "owners": [
            *({**notice.as_json(), "known": "all"} for notice in status.owners),
            *(
                {**owner.as_json(), "app": status.app, "known": "shards"}
                for owner in status.elsewhere
            ),
        ],
        "owners_not_known": status.not_known,
    }
