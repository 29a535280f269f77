"""What is refused: the limits of stored values, and how a refusal finds its path."""

from __future__ import annotations

from typing import Final, NoReturn

__all__ = [
    "ARRAY_KINDS",
    "DEPTH_MAX",
    "DIGITS_MAX",
    "INTEGER_MAX",
    "INTEGER_MIN",
    "READ_DEPTH_MAX",
    "Path",
    "Refused",
    "refuse_depth",
]

#: Levels of JSON objects and lists in one value. A list or dict is one level, a tuple or set two,
#: a dict that needs a tag three: 100 nested tuples fit. orjson writes at most 254 levels, and the
#: rest is for what stands around a value: operations, and the outbox around those.
DEPTH_MAX: Final = 230
#: Reading goes as deep as any JSON of ours can get: a tag at the deepest level adds to it, and
#: operations may put a value into another.
READ_DEPTH_MAX: Final = 254
#: Digits of one int. Python itself refuses to print or parse more than 4,300 unless told otherwise.
DIGITS_MAX: Final = 4_000
#: Plain JSON numbers without a fraction: what a 64-bit signed integer of any language holds.
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1

#: Kinds of numpy's dtypes that are nothing but their bytes: bool, int, uint, float, complex,
#: timedelta, datetime, bytes, text.
ARRAY_KINDS: Final = frozenset("biufcmMSU")

#: Leads to a value, outermost first; for error messages.
Path = tuple[str | int, ...]


class Refused(Exception):
    """A value that is not taken; each level on the way out puts its step before `path`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: Path = ()

    def stands_below(self, step: str | int) -> None:
        """Put a step before the path."""
        self.path = (step, *self.path)


def refuse_depth() -> NoReturn:
    """Refuse a value that is nested too deep, or forever."""
    raise Refused(f"nested deeper than {DEPTH_MAX} levels of JSON, or within itself")
