"""The nouns: Event and its parts, Position, Verdict. Frozen, and without any I/O.

An Event is what a writer appends; a place in the log, a time and a verdict come later, from the
log and the fold (`Entry` has them together). Bodies are JSON bytes, exactly as on the
wire: the fold and the view never build Python values from them (`values` does).

The tuples here are NamedTuples and not dataclasses because millions are made per rebuild: a
frozen dataclass of this size costs 4 us to build, a NamedTuple 0.5 us.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from eventstore.errors import ConfigError

__all__ = [
    "EPOCH",
    "SYSTEM_PREFIX",
    "Answer",
    "Batch",
    "Copied",
    "Discard",
    "EffectKey",
    "Entry",
    "Event",
    "ForkOf",
    "Guard",
    "Kind",
    "Origin",
    "Position",
    "Record",
    "RequestPolicy",
    "Source",
    "Times",
    "Verdict",
    "moment",
]

#: 1970-01-01, from which all times on the wire count.
EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

#: Instance names that begin so are ours (trigger cursors, operators' notes): hidden from
#: `instances()`, and refused as a target of `append`.
SYSTEM_PREFIX: Final = "$foldlog/"


class Kind(IntEnum):
    """What an event is. The numbers are those of the enum in event.avsc and never change."""

    DIFF = 0
    REQUEST = 1
    EFFECT = 2
    ATTEMPT = 3
    DISCARD = 4
    FAILURE = 5
    FORK = 6
    RESET = 7
    NOTE = 8
    ERASE = 9  # reserved

    def __str__(self) -> str:
        return self.name.lower()


class Verdict(IntEnum):
    """What the fold decided. The numbers are stored in views."""

    ACCEPTED = 0
    CONFLICT = 1
    DUPLICATE = 2
    REJECTED = 3
    FOREIGN = 4

    def __str__(self) -> str:
        return self.name.lower()


class Guard(NamedTuple):
    """The condition "only if none of `fields` changed after `base`", and the writer's chain.

    `base` is the version that the writer really read, never one that it predicts. `"*"` among
    the fields stands for every field. `chain` is an id of the writer's choice (a random one);
    events of one chain carry `chain_index` 0, 1, 2, ... and count only in an unbroken row.
    """

    base: int
    fields: tuple[str, ...] = ()
    chain: str | None = None
    chain_index: int = 0


class Answer(NamedTuple):
    """What an event has to do with the request at sequence `cause` of its instance.

    Diffs that answer are numbered parts 0, 1, ...; `closes` ends the request.
    """

    cause: int
    part: int = 0
    closes: bool = False


class Source(NamedTuple):
    """A numbered stream of events that must each count once and in order (a trigger, an outbox).

    A number is (sequence, index); `previous` is the number of the event before this one, or None
    for the first.
    """

    id: str
    number: tuple[int, int]
    previous: tuple[int, int] | None = None


class RequestPolicy(NamedTuple):
    """How a request wants to be run.

    `lane` orders it among the pending requests of its instance; `discard_policy` is 0 none,
    1 num_new_updates, 2 seconds, with its bound in `discard_after` (a count, or milliseconds);
    with `not_before_ms` (epoch) set it is delayed and stands outside the lane's order; `hops`
    counts the triggers that led here; `retry_of` is the sequence of a failed request.
    """

    lane: str = ""
    discard_policy: int = 0
    discard_after: int = 0
    discard_running: bool = False
    not_before_ms: int | None = None
    hops: int = 0
    retry_of: int | None = None


class EffectKey(NamedTuple):
    """Which call of a request an effect records: its index under its name, and its arguments."""

    call_index: int
    digest: str


class Times(NamedTuple):
    """Times that the producer states: epoch microseconds and epoch milliseconds."""

    occurred_at_us: int | None = None
    recorded_at_ms: int | None = None


class Origin(NamedTuple):
    """Who wrote an event and why: free text, a parent event, and a JSON object."""

    actor: str | None = None
    parent: str | None = None
    meta: bytes | None = None


class ForkOf(NamedTuple):
    """Where a forked instance comes from. A state too large for one event comes in `parts`."""

    app: str
    instance: str
    version: int
    part: int = 0
    parts: int = 1


class Copied(NamedTuple):
    """The place and time (epoch milliseconds) that a copied event had in its instance."""

    sequence: int
    time_ms: int


class Event(NamedTuple):
    """One immutable record of an app's topic, about one instance.

    `body` is JSON whose meaning depends on `kind`: the operations of a diff or a fork (a list),
    the props of a request, the result of an effect, the reason of a discard or failure, the facts
    of a note. `outbox` (JSON list) holds what a closing event sends to other instances.
    """

    kind: Kind
    name: str = ""
    body: bytes = b""
    guard: Guard | None = None
    answer: Answer | None = None
    source: Source | None = None
    request: RequestPolicy | None = None
    effect: EffectKey | None = None
    idempotency_key: str | None = None
    times: Times | None = None
    origin: Origin | None = None
    fork: ForkOf | None = None
    copied: Copied | None = None
    outbox: bytes | None = None
    generation: int = 0
    key_id: str | None = None


class Record(NamedTuple):
    """One record as read. `key` and `value` are None where a foreign producer left them out."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None


class Batch(NamedTuple):
    """What one read returned: records in offset order, and where to read on.

    `offset_next` can be far behind the last record's offset + 1: offsets may have gaps
    (transaction markers), and a batch may be empty although it moved on.
    """

    records: Sequence[Record]
    offset_next: int
    #: The leader epoch (Kafka) of the newest record; -1 where the log has none.
    epoch: int = -1


class Entry(NamedTuple):
    """An event with its place in its instance's history, and what the fold decided.

    `version` is the instance's version after it. `winner` is the sequence of the event that it
    lost to or repeats; `field` the one over which a conflict arose; `reason` says the rest.
    """

    instance: str
    sequence: int
    event: Event
    verdict: Verdict
    version: int
    position: Position
    time_ms: int
    winner: int | None = None
    field: str | None = None
    reason: str = ""

    @property
    def time(self) -> datetime.datetime:
        """When the log took it (or when it was recorded first, of an imported event), in UTC.

        A number that no datetime can hold is shown as the first or last one that it can.
        """
        return moment(self.time_ms * 1_000)

    @property
    def occurred_at(self) -> datetime.datetime | None:
        """When it happened, as its producer says, in UTC; numbers out of range as for `time`."""
        times = self.event.times
        if times is None or times.occurred_at_us is None:
            return None
        return moment(times.occurred_at_us)


def moment(epoch_us: int) -> datetime.datetime:
    """Return epoch microseconds as a datetime in UTC; numbers out of range as its first or last."""
    try:
        return EPOCH + datetime.timedelta(microseconds=epoch_us)
    except OverflowError:
        # Any producer may state any number, and a history stays readable.
        edge = datetime.datetime.max if epoch_us > 0 else datetime.datetime.min
        return edge.replace(tzinfo=datetime.UTC)


class Discard(NamedTuple):
    """When a request that waits is not worth running any more; made by the two methods below."""

    policy: int
    after: int
    running: bool = False

    @classmethod
    def num_new_updates(cls, count: int, *, running: bool = False) -> Discard:
        """Discard once `count` newer requests of its name and lane have come."""
        if count < 1:
            raise ConfigError(f"discard after {count} new updates: give 1 or more")
        return cls(1, count, running)

    @classmethod
    def seconds(cls, seconds: float, *, running: bool = False) -> Discard:
        """Discard once it has waited for so long; kept in milliseconds."""
        if not seconds > 0:
            raise ConfigError(f"discard after {seconds} s: give more than 0")
        return cls(2, max(1, round(seconds * 1_000)), running)


class Position(Mapping[int, int]):
    """A place in a topic: partition -> offset of the last event it includes.

    It carries the log's identity, so that a position of one log is an error on another.
    `str(position)` is a token (`identity@0:41,3:17`) that another process can wait for;
    `Position.parse` reads it back. Positions compare as sets of events: `a <= b` means that b
    includes all that a includes.
    """

    __slots__ = ("_offsets", "identity")

    def __init__(self, identity: str, offsets: Mapping[int, int]) -> None:
        self.identity = identity
        self._offsets = dict(sorted(offsets.items()))

    @classmethod
    def parse(cls, token: str) -> Position:
        """Read a token back; ConfigError when it is not one."""
        identity, separator, rest = token.rpartition("@")
        try:
            pairs = [part.split(":") for part in rest.split(",") if part]
            offsets = {int(partition): int(offset) for partition, offset in pairs}
        except ValueError:
            separator = ""
        else:
            if any(p < 0 or not -1 <= offset < 2**63 for p, offset in offsets.items()):
                separator = ""  # a log's numbers have 64 bits
        if not separator or not identity:
            raise ConfigError(f"{token!r} is not a position token such as 'id@0:41,3:17'")
        return cls(identity, offsets)

    def __getitem__(self, partition: int) -> int:
        return self._offsets[partition]

    def __iter__(self) -> Iterator[int]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Position):
            return NotImplemented
        return self.identity == other.identity and self._offsets == other._offsets

    def __hash__(self) -> int:
        return hash((self.identity, tuple(self._offsets.items())))

    def __le__(self, other: Position) -> bool:
        return self.identity == other.identity and all(
            offset <= other._offsets.get(partition, -1)
            for partition, offset in self._offsets.items()
        )

    def merge(self, other: Position) -> Position:
        """Return the smallest position that includes both; ConfigError across logs."""
        if other.identity != self.identity:
            raise ConfigError(f"positions of two logs: {self.identity} and {other.identity}")
        merged = dict(self._offsets)
        for partition, offset in other._offsets.items():
            merged[partition] = max(offset, merged.get(partition, -1))
        return Position(self.identity, merged)

    def __str__(self) -> str:
        return f"{self.identity}@" + ",".join(f"{p}:{o}" for p, o in self._offsets.items())

    def __repr__(self) -> str:
        return f"Position({str(self)!r})"
