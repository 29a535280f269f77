"""Every error that is raised on purpose and reaches a caller, as a tree. Nothing else lives here.

EventStoreError
├── ConfigError          a setting is wrong or does not fit the log      (nothing written)
├── InstanceNotFound     no such instance, and no default was given      (a KeyError)
├── VersionNotFound      the instance has no such version, time or offset (a LookupError)
├── Conflict             somebody came first                             (written, without effect)
├── Rejected             the operations do not fit the state             (written, without effect)
├── InvalidDiff          operations that could never fit                 (not written; a ValueError)
├── InvalidState         a value does not fit the declared state type    (not written; a ValueError)
├── UnsupportedValue     a value that cannot round-trip                  (not written; a TypeError)
├── UnreadableValue      a stored value that this process cannot build   (a TypeError)
├── EventTooLarge        above `event_bytes_max`                         (not written; a ValueError)
├── UnknownSchema        an event of a newer schema; the partition waits
├── CorruptEvent         our header, but an unreadable body
├── LogUnavailable       the log cannot be reached or written            (nothing written)
│   └── OutcomeUnknown   the write may or may not be in the log
├── LogTruncated         the log lost events that were already folded
├── ReadTimeout          the view did not get there in time; a TimeoutError
├── ViewDamaged          the view cannot be read, or its disk is full; it can be rebuilt
└── Closed               used after close(), or after os.fork()
"""

from __future__ import annotations

__all__ = [
    "Closed",
    "ConfigError",
    "Conflict",
    "CorruptEvent",
    "EventStoreError",
    "EventTooLarge",
    "InstanceNotFound",
    "InvalidDiff",
    "InvalidState",
    "LogTruncated",
    "LogUnavailable",
    "OutcomeUnknown",
    "ReadTimeout",
    "Rejected",
    "UnknownSchema",
    "UnreadableValue",
    "UnsupportedValue",
    "VersionNotFound",
    "ViewDamaged",
]


class EventStoreError(Exception):
    """The base of every error that Foldlog raises on purpose."""


class ConfigError(EventStoreError):
    """A setting is wrong, or the log has settings that break a promise. Nothing was written."""


class InstanceNotFound(EventStoreError, KeyError):
    """The app has no such instance (or the instance no such field), and no default was given."""

    def __init__(self, app: str, instance: str, path: object = None) -> None:
        super().__init__(app, instance, path)
        self.app, self.instance, self.path = app, instance, path

    def __str__(self) -> str:
        if self.path is None:
            return f"app {self.app!r} has no instance {self.instance!r}"
        return f"instance {self.instance!r} of app {self.app!r} has nothing at {self.path!r}"


class VersionNotFound(EventStoreError, LookupError):
    """The instance exists, but not at the version, time or position that was asked for."""

    def __init__(self, app: str, instance: str, at: object, reason: str) -> None:
        super().__init__(app, instance, at, reason)
        self.app, self.instance, self.at, self.reason = app, instance, at, reason

    def __str__(self) -> str:
        return f"instance {self.instance!r} of app {self.app!r}, at={self.at!r}: {self.reason}"


class Conflict(EventStoreError):
    """Another writer came first. The diff is in the log, without effect: read, decide, retry.

    `field` is what changed since `base`, the version that this writer had read (None when the
    order, not a field, was the reason); `winner` is the sequence of the event that came first;
    `advice` is the message's last words.
    """

    def __init__(
        self,
        app: str,
        instance: str,
        *,
        reason: str,
        field: str | None = None,
        base: int | None = None,
        version: int | None = None,
        winner: int | None = None,
        advice: str = "read the instance again, decide again, retry",
    ) -> None:
        super().__init__(app, instance)
        self.app, self.instance, self.reason, self.field = app, instance, reason, field
        self.base, self.version, self.winner = base, version, winner
        self.advice = advice

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_conflict, (self.app, self.instance, self.__dict__.copy())

    def __str__(self) -> str:
        return (
            f"{self.app}/{self.instance}: {self.reason}. The diff is in the log but had no effect:"
            f" {self.advice}"
        )


def _rebuild_conflict(app: str, instance: str, facts: dict[str, object]) -> Conflict:
    error = Conflict(app, instance, reason="")
    error.__dict__.update(facts)
    return error


class Rejected(EventStoreError):
    """An operation does not fit the value it met. The diff is in the log, without effect."""

    def __init__(self, app: str, instance: str, reason: str) -> None:
        super().__init__(app, instance, reason)
        self.app, self.instance, self.reason = app, instance, reason

    def __str__(self) -> str:
        return f"{self.app}/{self.instance}: {self.reason}. The diff had no effect"


class InvalidDiff(EventStoreError, ValueError):
    """These operations could fit no state at all. Nothing was written."""


class InvalidState(EventStoreError, ValueError):
    """A value does not fit the declared state type; the message names the path. Not written."""


class UnsupportedValue(EventStoreError, TypeError):
    """A value that cannot be stored and read back exactly. Nothing was written.

    `path` leads to it, outermost first: `("order", "lines", 3, "price")`.
    """

    def __init__(self, path: tuple[str | int, ...], reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        where = "".join(f"[{step!r}]" for step in self.path) or "the value itself"
        return f"{where}: {self.reason}. Nothing was written"


class UnreadableValue(EventStoreError, TypeError):
    """A stored value cannot be built in this process. The log is fine, and nothing was changed.

    Usually its class is not loaded or not registered here; `path` leads to the value.
    """

    def __init__(self, path: tuple[str | int, ...], reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        where = "".join(f"[{step!r}]" for step in self.path) or "the value itself"
        return f"{where}: {self.reason}"


class EventTooLarge(EventStoreError, ValueError):
    """One event would be larger than `event_bytes_max`. Nothing was written."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def __str__(self) -> str:
        return (
            f"the event has {self.size_bytes:,} bytes, the limit event_bytes_max is"
            f" {self.limit_bytes:,}. Nothing was written: write several smaller diffs, or keep the"
            " large value elsewhere and its reference here"
        )


class UnknownSchema(EventStoreError):
    """An event was written with a schema that this release does not know.

    Its partition stops there, because skipping an event would fork the versions: upgrade the
    reader, or take the event out for good with `eventstore quarantine`.
    """

    def __init__(self, fingerprint: str, where: str = "") -> None:
        super().__init__(fingerprint, where)
        self.fingerprint, self.where = fingerprint, where

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return (
            f"event{place} has the unknown schema fingerprint {self.fingerprint}: upgrade this"
            " reader, or take the event out for good with `eventstore quarantine`"
        )


class CorruptEvent(EventStoreError):
    """The bytes carry a schema that is known, but cannot be read with it."""


class LogUnavailable(EventStoreError):
    """The log cannot be reached or written. What was appended since is not in it."""


class OutcomeUnknown(LogUnavailable):
    """The write may or may not be in the log: retry it with the same idempotency key."""


class LogTruncated(EventStoreError):
    """The log no longer has events that were folded already. Nothing was deleted here.

    `eventstore repair --accept-loss` goes on with what the log still has.
    """


class ReadTimeout(EventStoreError, TimeoutError):
    """The view did not reach the wanted position in time. Reading again later is safe."""


class ViewDamaged(EventStoreError):
    """The view's database cannot be read or written. It holds nothing that the log has not.

    It is rebuilt by itself where that helps. Where the message names the machine (a full disk, no
    permission) its rows are fine: mend that, and read again.
    """


class Closed(EventStoreError):
    """The store, app or log was used after close(), or in a child of os.fork()."""
