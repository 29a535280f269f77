r"""The rows of a view, drawn once: what each key and value looks like in bytes.

One table per app and slot. Integers are unsigned and big-endian, so that byte order is number
order and a range scan reads versions and sequences in order. `iid` and `fid` are the numbers that
stand for an instance's and a field's name (8 and 4 bytes). Text is UTF-8 and always comes last in
a key, so that it needs no end mark and may hold any character.

    row         key                                   value
    meta        "M"                                   JSON: layout, fold number, log identity
    progress    "o" partition(4)                      PROGRESS + digest of the last record (16)
    next iid    "N"                                   iid(8)
    name        "n" instance                          iid(8)
    head        "f" iid                               HEAD + setter of "*" + instance
    field       "f" iid field                         FIELD + setter + value (or BIG)
    value       "v" iid fid version(8)                "B" JSON | "T" | "O" base(8) operations
    reset       "r" iid version(8)                    nothing
    history     "h" iid sequence(8)                   HISTORY + reason + event as in the log
    request     "p" iid sequence(8)                   PENDING + name + lane
    answered    "q" iid sequence(8) of the request    sequence(8) of what closed it
    outcome     "d" iid sequence(8)                   kind(1): discards, failures and attempts
    effect      "e" iid request(8) digest(16)         sequence(8)
    key         "k" iid digest(16)                    sequence(8) content(8)
    chain       "c" iid chain                         index(8, signed) ended(1)
    source      "s" iid source                        number(8 + 8)
    refused     "x" partition(4) offset(8)            JSON: verdict and reason

"refused" are the records that take no place in any instance: foreign and misplaced ones.

A head stands right before its fields, so that reading an instance touches one block of the disk.
A value that fits INLINE_BYTES_MAX stands in its field row and every change of it writes a base
("B"). A larger one has a base and the operations since ("O"), which point back at their base: the
value at any version is one seek and a short scan.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

__all__ = [
    "AFTER_FID",
    "AFTER_IID",
    "BIG",
    "CHAIN",
    "DIGEST_BYTES",
    "FIELD",
    "HEAD",
    "HISTORY",
    "I64",
    "INLINE_BYTES_MAX",
    "LAYOUT",
    "META",
    "NEXT_IID",
    "OFFSET_AT",
    "PENDING",
    "PROGRESS",
    "TIME_AT",
    "U32",
    "U64",
    "VERDICT_AT",
    "VERSION_AT",
    "digest",
    "effect_key",
    "prefix_end",
]

#: Raised whenever a row changes its form; a view of another layout is rebuilt.
LAYOUT: Final = 2

META: Final = b"M"
NEXT_IID: Final = b"N"

#: Values up to here are kept whole in their field row and rewritten whole.
INLINE_BYTES_MAX: Final = 512

#: Enough that no two effects, keys or records of one log ever share a digest.
DIGEST_BYTES: Final = 16

U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
I64: Final = struct.Struct(">q")

#: Where the rest of a key begins, behind its letter and the iid, or both numbers.
AFTER_IID: Final = 1 + 8
AFTER_FID: Final = AFTER_IID + 4

#: offset_next, leader epoch, generation, records, foreign, refused, offset of the last record
PROGRESS: Final = struct.Struct(">QqIQQQq")
#: sequence, version, floor, "*" version, "*" foreign, time_ms, next fid, fork parts, pending,
#: discards, failures, length of the setter
HEAD: Final = struct.Struct(">QQQQQQIIIIIH")
#: fid, version, foreign, shape, length of the setter, 1 when the value is large
FIELD: Final = struct.Struct(">IQQBHB")
#: base version, base bytes, operations since, their bytes
BIG: Final = struct.Struct(">QQIQ")
#: partition, offset, time_ms, kind, verdict, version after, winner, cause (-1: none), reason length
HISTORY: Final = struct.Struct(">IQQBBQqqH")
#: Where those stand in a history row that are looked for in many rows and asked for alone.
OFFSET_AT: Final = 4
TIME_AT: Final = 12
VERDICT_AT: Final = 21
VERSION_AT: Final = 22
#: parts, attempts, due_ms (-1: not delayed), time_ms, length of the name
PENDING: Final = struct.Struct(">IIqQH")
CHAIN: Final = struct.Struct(">q?")


def digest(*parts: bytes) -> bytes:
    """Return DIGEST_BYTES that stand for `parts`; lengths keep one from running into the next."""
    hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        hashed.update(U64.pack(len(part)))
        hashed.update(part)
    return hashed.digest()


def effect_key(iid: bytes, cause: int, name: str, call_index: int, arguments: str) -> bytes:
    """Return the key of the effect of one call of a request."""
    return (
        b"e"
        + iid
        + U64.pack(cause)
        + digest(name.encode(), U64.pack(call_index), arguments.encode())
    )


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all keys that begin with `prefix` (which is not all FF)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,))
