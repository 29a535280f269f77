"""Tailing: an app's events in the order in which the log takes them, with their verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from eventstore.channel import Channel, as_entry
from eventstore.errors import ConfigError
from eventstore.events import Entry, Position, Record
from eventstore.follow import Follower

__all__ = ["tail_entries"]

_BATCH_RECORDS_MAX: Final = 500
_BATCH_BYTES_MAX: Final = 1024 * 1024
#: How long one wait for news lasts before the deadline is looked at again.
_WAIT_S: Final = 0.5
#: How often one looks for an app that has no events: there is no topic yet to wait for.
_LOOK_INTERVAL_S: Final = 0.05


def tail_entries(
    channel: Channel,
    start: Literal["now", "beginning"] | Position | str,
    *,
    follow: bool,
    timeout_s: float | None,
) -> Iterator[Entry]:
    """Return entries from a start on, which is looked up now; see App.tail."""
    follower = channel.reading(None)
    if follower is not None:
        offsets = _offsets(channel, follower, start)
        return _entries(channel, follower, offsets, follow=follow, timeout_s=timeout_s)
    if start not in ("now", "beginning"):
        raise ConfigError(f"app {channel.name} has no events, so start={start} is no place in it")
    return _from_first(channel, timeout_s) if follow else iter(())


def _from_first(channel: Channel, timeout_s: float | None) -> Iterator[Entry]:
    follower = _first_event(channel, timeout_s)
    if follower is not None:
        # Whatever came first came after the call.
        offsets = _offsets(channel, follower, "beginning")
        yield from _entries(channel, follower, offsets, follow=True, timeout_s=timeout_s)


def _entries(
    channel: Channel,
    follower: Follower,
    offsets: dict[int, int],
    *,
    follow: bool,
    timeout_s: float | None,
) -> Iterator[Entry]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        found = False
        for partition in offsets:
            batch = channel.log.read(
                follower.topic,
                partition,
                offsets[partition],
                records_max=_BATCH_RECORDS_MAX,
                bytes_max=_BATCH_BYTES_MAX,
            )
            offsets[partition] = batch.offset_next
            if not batch.records:
                continue
            found = True
            for entry in _folded(channel, follower, partition, batch.records):
                if entry is not None:
                    yield entry
        if found:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
        elif not follow or (deadline is not None and time.monotonic() >= deadline):
            return
        else:
            left = _WAIT_S if deadline is None else min(_WAIT_S, deadline - time.monotonic())
            channel.log.wait(follower.topic, offsets, max(0.0, left))


def _folded(
    channel: Channel, follower: Follower, partition: int, records: Sequence[Record]
) -> list[Entry | None]:
    """Return the entries of records once the view has them all, all from one opening of it."""

    def look_up() -> list[Entry | None]:
        # Again and again: a view that was opened anew meanwhile has little at first, and an event
        # that it does not have yet must not be taken for one that has no place.
        follower.wait_for({partition: records[-1].offset}, channel.config.read_timeout_s)
        return [_entry(follower, partition, record.offset, record.key) for record in records]

    return channel.steadily(look_up)


def _first_event(channel: Channel, timeout_s: float | None) -> Follower | None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        follower = channel.reading(None)
        if follower is not None or (deadline is not None and time.monotonic() >= deadline):
            return follower
        time.sleep(_LOOK_INTERVAL_S)


def _offsets(
    channel: Channel, follower: Follower, start: Literal["now", "beginning"] | Position | str
) -> dict[int, int]:
    topic = follower.topic
    partitions = range(topic.partitions)
    if start == "now":
        return {partition: channel.log.offset_end(topic, partition) for partition in partitions}
    firsts = {partition: channel.log.offset_first(topic, partition) for partition in partitions}
    if start == "beginning":
        return firsts
    try:
        position = Position.parse(start) if isinstance(start, str) else start
    except ConfigError as error:
        raise ConfigError(f"start={start!r} is not now, beginning or a position: {error}") from None
    if position.identity != topic.identity:
        raise ConfigError(f"the position {position} is one of another log than {topic.identity}")
    return {p: max(first, position.get(p, -1) + 1) for p, first in firsts.items()}


def _entry(follower: Follower, partition: int, offset: int, key: bytes | None) -> Entry | None:
    """Return the entry of a record; None for one that took no place in any instance."""
    instance = "" if key is None else key.decode(errors="replace")
    head = follower.reader.head(instance)
    if head is None:
        return None
    sequence = follower.reader.sequence_end_at_offset(head, offset) - 1
    row = follower.reader.event(head, sequence) if sequence >= 0 else None
    if row is None or (row.partition, row.offset) != (partition, offset):
        return None
    return as_entry(instance, row, follower.topic.identity)
