"""Logs: what happened. `open_log` finds the backend for a URL; base.py has what each promises."""

from __future__ import annotations

import re
import urllib.parse

from eventstore.config import Config
from eventstore.errors import ConfigError
from eventstore.log.base import Log

__all__ = ["open_log"]

#: What a URL looks like that lacks a slash: as a path, it would be a new and empty log.
_SCHEME_AND_NO_SLASHES = re.compile(r"(kafka|sqlite|memory):")
#: What a Kafka address looks like whose scheme was forgotten.
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d{2,5}(,[\w.-]+:\d{2,5})*")


def open_log(url: str, config: Config) -> Log:
    """Open the log that `url` names.

    - `memory://` is a new empty log of this process; `memory://name` is one that every
      `open_log` of this process with that name shares, until the process ends;
      `?partitions=8` gives its topics more than one partition.
    - `kafka://host:9092[,host:9092]?option=value` is a Kafka cluster.
    - `sqlite:///absolute/path`, or any path without a scheme, is a folder of this machine.

    Raises:
        ConfigError: the URL has an unknown scheme or option, or what it names is not a log; or
            it has no `://` and is the name of a host and its port, or begins with a scheme.
        LogUnavailable: the log is there, but cannot be reached or is damaged.
    """
    scheme, separator, rest = url.partition("://")
    # Each backend is imported when it is asked for: the Kafka client alone takes 50 ms.
    if not separator or scheme == "sqlite":
        from eventstore.log.sqlite import SqliteLog

        folder = urllib.parse.unquote(rest) if separator else url
        if not folder:
            raise ConfigError(f"{url!r} names no folder; write sqlite:///absolute/path or a path")
        if not separator and _HOST_AND_PORT.fullmatch(url):
            raise ConfigError(
                f"{url!r} could be a broker or a folder: write kafka://{url}, or ./{url}"
            )
        if not separator and (found := _SCHEME_AND_NO_SLASHES.match(url)):
            raise ConfigError(
                f"{url!r} could be a URL or a folder: write {found[1]}://..., or ./{url}"
            )
        return SqliteLog(folder, config)
    if scheme == "memory":
        from eventstore.log.memory import MemoryLog

        return MemoryLog(url, config)
    if scheme == "kafka":
        from eventstore.log.kafka import KafkaLog

        return KafkaLog(url, config)
    raise ConfigError(f"{url!r}: unknown scheme {scheme!r}; use a path, sqlite, kafka or memory")
