"""The daemon's log: one line per event, for people or, as JSON, for programs.

Written on stderr. What the event store and libraries log as a warning or worse comes in the same
form; a daemon that has nothing to do writes nothing.
"""

from __future__ import annotations

import datetime
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TextIO

import orjson

__all__ = ["LogFormat", "ranges", "say", "written_logs"]

LogFormat = Literal["text", "json"]

logger: Final = logging.getLogger("processors")


def say(event: str, level: int = logging.INFO, /, **facts: Any) -> None:
    """Write one line: what happened, and the facts about it, in the order given."""
    logger.log(level, "%s", event, extra={"facts": facts})


@contextmanager
def written_logs(form: LogFormat, stream: TextIO | None = None) -> Iterator[None]:
    """Write what is logged to a stream (default: stderr), until the end of the block."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root, level = logging.getLogger(), logger.level
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        root.removeHandler(handler)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        shown = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if not hasattr(record, "facts"):
            shown["logger"] = record.name
        if record.exc_info:
            shown["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(shown, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        words = [
            f"{_time(record).astimezone():%H:%M:%S}",
            "" if record.levelno == logging.INFO else f"{record.levelname.lower()}:",
            record.getMessage() if hasattr(record, "facts") else
            f"{record.name}: {record.getMessage()}",
            *(f"{name}={_word(value)}" for name, value in facts.items()),
        ]  # fmt: skip
        line = " ".join(word for word in words if word)
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def ranges(numbers: Sequence[int]) -> str:
    """Return rising numbers with each row of neighbours as one word: 0-7,12."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and rows[-1][-1] == number - 1:
            rows[-1][1:] = [number]
        else:
            rows.append([number])
    return ",".join("-".join(map(str, row)) for row in rows)


def _word(value: Any) -> str:
    """Return a fact so that it can be told where it ends, and commands no terminal."""
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return ranges(value) or "none"
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    if text and text.isprintable() and not set(text) & set(" =\"'"):
        return text
    return orjson.dumps(text).decode()
