"""What a relay writes down: where it began, how far it is, and what it could not deliver.

All of it stands in one system instance of the component's app per trigger, so that whoever runs
the relay next, on whatever machine, goes on from there:

    start    written once, before the first request: what the trigger does not look at
    cursor   per partition of the watched app, the first offset that is not done; written only
             after everything before it has counted, so that an old one costs time and nothing else
    notes    what could not be delivered, one event each
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

import orjson

from eventstore import (
    Diff,
    Event,
    Guard,
    InstanceNotFound,
    Kind,
    OutcomeUnknown,
    Position,
    Verdict,
)
from eventstore.events import SYSTEM_PREFIX
from eventstore.processing import Folded, Processing
from eventstore.testing import fault_point
from processors.relay_feed import Epoch, epoch_of, newest_entries

__all__ = ["UNDELIVERED", "Cursor", "Record", "Start", "source_id", "system_instance"]

#: The name of the note on something that could not be delivered.
UNDELIVERED: Final = "relay/undelivered"
#: Longest id of a source: the fold takes so many characters.
_SOURCE_BYTES_MAX: Final = 1_000
#: Longest id of a trigger in the name of its instance, which has 1,024 bytes with what is before.
_TRIGGER_BYTES_MAX: Final = 900
#: Entries of one partition that are looked at to find those of the start's last millisecond.
_TIES_MAX: Final = 512


def system_instance(trigger_id: str | None) -> str:
    """Return where a trigger writes down how far it is; None: the component's outboxes."""
    if trigger_id is None:
        return f"{SYSTEM_PREFIX}outbox"
    return f"{SYSTEM_PREFIX}trigger/{_shortened(trigger_id, _TRIGGER_BYTES_MAX)}"


def source_id(trigger_id: str | None, app: str, instance: str) -> str:
    """Return the source of what comes from one instance of a watched app."""
    if trigger_id is None:
        return _shortened(f"outbox/{app}/{instance}", _SOURCE_BYTES_MAX)
    # Without any slash of its own, or two ids and apps could make one text.
    return _shortened(f"trigger/{quote(trigger_id, safe='')}/{app}/{instance}", _SOURCE_BYTES_MAX)


def _shortened(text: str, bytes_max: int) -> str:
    raw = text.encode()
    if len(raw) <= bytes_max:
        return text
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return raw[: bytes_max - 40].decode(errors="ignore") + "#" + digest


class Start(NamedTuple):
    """Where a trigger begins. What came before it fires nothing.

    On the log where it was written `offsets_next` say so. On a copy of that log they mean
    nothing, and what a copy keeps does: an event is from before if its time is before `time_ms`,
    the newest time then, or is that time and its place is among `ties`.
    """

    app: str
    epoch: Epoch | None
    offsets_next: dict[int, int]
    time_ms: int | None
    ties: frozenset[tuple[str, int]]

    def has_before(self, folded: Folded) -> bool:
        """Whether an event of a copied log is from before the start."""
        if self.time_ms is None or folded.time_ms > self.time_ms:
            return False
        place = (folded.instance, folded.sequence)
        return folded.time_ms < self.time_ms or place in self.ties

    def as_json(self) -> dict[str, Any]:
        return {
            "app": self.app,
            "epoch": None if self.epoch is None else list(self.epoch),
            "offsets": {str(p): offset for p, offset in self.offsets_next.items()},
            "time_ms": self.time_ms,
            "ties": sorted(map(list, self.ties)),
        }

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Start:
        epoch, ties = found["epoch"], found["ties"]
        return cls(
            found["app"],
            None if epoch is None else Epoch(*epoch),
            {int(p): offset for p, offset in found["offsets"].items()},
            found["time_ms"],
            frozenset((instance, sequence) for instance, sequence in ties),
        )


class Cursor(NamedTuple):
    """How far a relay is: all before these offsets of this log is done."""

    epoch: Epoch
    offsets_next: dict[int, int]


def start_of(app: str, watched: Processing | None, epoch: Epoch | None) -> Start:
    """Return a start at the end that an app has now; at its beginning while there is no app."""
    if watched is None or epoch is None:
        return Start(app, None, {}, None, frozenset())
    watched.catch_up()
    position = watched.position
    offsets_next = {partition: offset + 1 for partition, offset in position.items()}
    time_ms, ties = _newest(watched, position)
    return Start(app, epoch, offsets_next, time_ms, ties)


def _newest(
    watched: Processing, position: Position
) -> tuple[int | None, frozenset[tuple[str, int]]]:
    """Return the newest time up to a position, and the places of the events of that time."""
    count = 16
    while True:
        entries = newest_entries(watched, position, count)
        if not entries:
            if any(offset >= count for offset in position.values()) and count < _TIES_MAX:
                count *= 2
                continue
            return None, frozenset()
        time_ms = max(entry.time_ms for entry in entries)
        tied = [entry for entry in entries if entry.time_ms == time_ms]
        if len(tied) < len(entries) or count >= _TIES_MAX or len(entries) < count:
            return time_ms, frozenset((one.instance, one.sequence) for one in tied[-_TIES_MAX:])
        count *= 2


class Record:
    """One relay's system instance. For one thread at a time."""

    def __init__(self, processing: Processing, instance: str) -> None:
        self._processing = processing
        self._instance = instance

    def start(self) -> Start | None:
        """Return where the relay begins; None before it was decided."""
        found = self._read("start")
        return None if found is None else Start.of_json(found)

    def cursor(self) -> Cursor | None:
        """Return how far the relay is; None before the first cursor."""
        found = self._read("cursor")
        if found is None:
            return None
        offsets = {int(partition): offset for partition, offset in found["offsets"].items()}
        return Cursor(Epoch(*found["epoch"]), offsets)

    def _read(self, field: str) -> Any:
        try:
            return self._processing.state(self._instance).get(field)
        except InstanceNotFound:
            return None

    def decided_start(
        self, app: str, watched: Processing | None, begins: Literal["now", "beginning"]
    ) -> Start:
        """Return where the relay begins; it is decided now, and written down, where it was not.

        Args:
            app: the watched app's name.
            watched: the watched app; None while there is none.
            begins: at the end that the app has now, or at its beginning.

        Raises:
            EventStoreError: it is not known whether it was written; call again.
        """
        start = self.start()
        if start is not None:
            return start
        epoch = None if watched is None else epoch_of(watched)
        if begins == "beginning":
            return self.decide(Start(app, epoch, {}, None, frozenset()))
        return self.decide(start_of(app, watched, epoch))

    def decide(self, start: Start) -> Start:
        """Write a start down, unless there is one; return the one that counts.

        Raises:
            EventStoreError: it is not known whether it was written; call again.
        """
        fault_point("relay.start.before")
        event = self._set("start", start.as_json())._replace(guard=Guard(0, ("*",)))
        verdict = self._processing.send([(self._instance, event)])[0].verdict()
        fault_point("relay.start.after")
        if verdict == Verdict.ACCEPTED:
            return start
        decided = self.start()
        if decided is None:
            raise OutcomeUnknown(f"the start of {self._instance} was refused ({verdict})")
        return decided

    def move(self, cursor: Cursor) -> None:
        """Write a cursor down; return when it is durable."""
        fault_point("relay.cursor.before")
        found = {
            "epoch": list(cursor.epoch),
            "offsets": {str(p): offset for p, offset in cursor.offsets_next.items()},
        }
        self._processing.send([(self._instance, self._set("cursor", found))])[0].result()
        fault_point("relay.cursor.after")

    def note(self, about: tuple[str, int], target: str, reason: str) -> None:
        """Write down that something could not be delivered; return when it is durable."""
        instance, sequence = about
        body = {"instance": instance, "sequence": sequence, "target": target, "reason": reason}
        # A key, so that a relay that begins again writes it only once.
        key = f"{UNDELIVERED}/{hashlib.blake2b(orjson.dumps([*about, target])).hexdigest()[:32]}"
        event = Event(Kind.NOTE, UNDELIVERED, orjson.dumps(body), idempotency_key=key)
        self._processing.send([(self._instance, event)])[0].result()

    def _set(self, field: str, value: Any) -> Event:
        body = Diff({field: value}).encode()
        return Event(Kind.DIFF, f"relay/{field}", body, generation=self._processing.generation())
