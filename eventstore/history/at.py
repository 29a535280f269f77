"""The `at` of a read: which version of an instance a number, text, time or position means."""

from __future__ import annotations

import datetime
import re
from typing import Final, NamedTuple

from eventstore.errors import ConfigError, VersionNotFound
from eventstore.events import EPOCH, Position
from eventstore.view.reader import Head, ViewReader

__all__ = ["At", "Occurred", "epoch_us", "occurred", "version_at"]


class Occurred(NamedTuple):
    """A time of the producer's (`occurred_at`), in epoch microseconds; made by `occurred`."""

    time_us: int


#: What a read accepts as `at`.
At = int | str | datetime.datetime | Occurred | Position

_HEAD: Final = re.compile(r"HEAD(?:~(\d+))?")


def occurred(time: datetime.datetime | str) -> Occurred:
    """Ask for the state as of what had occurred at a time, by the producer's `occurred_at`.

    It is the newest state that includes nothing which occurred later: the state before the first
    event, in log order, with a later `occurred_at`. Events without one do not count. The cost
    grows with the length of the history, because such times are in no order.

    Raises:
        ConfigError: the time has no time zone, or is not a time.
    """
    return Occurred(epoch_us(time))


def epoch_us(time: datetime.datetime | str) -> int:
    """Return an aware time as epoch microseconds; ConfigError for any other."""
    if isinstance(time, str):
        try:
            time = datetime.datetime.fromisoformat(time)
        except ValueError as error:
            raise ConfigError(f"{time!r} is not a time in ISO form: {error}") from None
    if time.tzinfo is None or time.utcoffset() is None:
        raise ConfigError(
            f"{time.isoformat()} has no time zone, and could be a different moment elsewhere: give"
            " datetime.now(datetime.UTC), or an ISO time that ends in Z or +01:00"
        )
    return (time - EPOCH) // datetime.timedelta(microseconds=1)


def version_at(
    reader: ViewReader,
    head: Head,
    at: At,
    *,
    app: str,
    instance: str,
    partition: int,
    identity: str,
) -> int:
    """Return the version of an instance that `at` means; 0 is the empty state before the first.

    - an int is a version; `"HEAD"` the newest, `"HEAD~2"` two versions before it;
    - an aware datetime, or an ISO text of one: everything that the log had taken until then;
    - `occurred(time)`: see there;
    - a Position, or its token: everything up to it.

    Raises:
        VersionNotFound: the instance has no such version.
        ConfigError: `at` is none of these, has no time zone, or is a position of another log.
    """
    if isinstance(at, bool):
        raise ConfigError(f"at={at!r} is neither a version, a time nor a position")
    if isinstance(at, int):
        if 0 <= at <= head.version:
            return at
        raise VersionNotFound(app, instance, at, f"it has versions 0 to {head.version}")
    if isinstance(at, str):
        found = _HEAD.fullmatch(at)
        if found is not None:
            version = head.version - int(found[1] or 0)
            if version < 0:
                raise VersionNotFound(app, instance, at, f"HEAD is version {head.version}")
            return version
        at = Position.parse(at) if "@" in at else _time(at)
    if isinstance(at, Position):
        if at.identity != identity:
            raise ConfigError(
                f"the position {at} is one of another log; the log of {app} is {identity}"
            )
        if partition not in at:
            raise VersionNotFound(
                app, instance, str(at), f"the position says nothing of its partition {partition}"
            )
        return reader.version_after(head, reader.sequence_end_at_offset(head, at[partition]))
    if isinstance(at, datetime.datetime):
        # Log times have milliseconds: a time within one includes what it brought.
        return reader.version_after(head, reader.sequence_end_at_time(head, epoch_us(at) // 1_000))
    if isinstance(at, Occurred):
        return _version_occurred(reader, head, at.time_us)
    raise ConfigError(f"at={at!r} is neither a version, a time nor a position")


def _time(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"at={text!r} is neither a version's number, HEAD, HEAD~2, a time in ISO form nor a"
            " position token"
        ) from None


def _version_occurred(reader: ViewReader, head: Head, time_us: int) -> int:
    version = 0
    for row in reader.history(head):
        times = row.event.times
        occurred_at_us = None if times is None else times.occurred_at_us
        if occurred_at_us is not None and occurred_at_us > time_us:
            return version
        version = row.version
    return version
