"""Writing a whole state down as operations, in pieces that fit an event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from eventstore.diff import Shape, shape_of
from eventstore.errors import EventTooLarge

__all__ = ["fork_bodies"]


def fork_bodies(items: Iterable[tuple[str, Any]], bytes_max: int) -> Iterator[bytes]:
    """Yield the bodies of the events that make a state: operations, at most `bytes_max` each.

    Args:
        items: the fields and their JSON values.
        bytes_max: what one body may have; a value that is larger is begun empty and filled.

    Raises:
        EventTooLarge: a value that cannot be taken apart (an array, say) is larger.
    """
    operations: list[bytes] = []
    size = 2
    for name, value in items:
        for operation in _operations((name,), value, bytes_max):
            raw = orjson.dumps(operation)
            if operations and size + len(raw) + 1 > bytes_max:
                yield b"[" + b",".join(operations) + b"]"
                operations, size = [], 2
            operations.append(raw)
            size += len(raw) + 1
    yield b"[" + b",".join(operations) + b"]"


def _operations(path: tuple[str | int, ...], value: Any, bytes_max: int) -> Iterator[list[Any]]:
    target: Any = path[0] if len(path) == 1 else list(path)
    whole = ["set", target, value]
    size = len(orjson.dumps(whole))
    if size <= bytes_max - 2:
        yield whole
        return
    shape = shape_of(value)
    room = bytes_max - len(orjson.dumps(target)) - 100
    if room < 100 or shape not in (Shape.TEXT, Shape.LIST, Shape.DICT):
        raise EventTooLarge(size, bytes_max)
    if shape == Shape.TEXT:
        # A character takes at most 6 bytes of JSON.
        step = room // 6
        yield ["set", target, value[:step]]
        for start in range(step, len(value), step):
            yield ["append_text", target, value[start : start + step]]
    elif shape == Shape.LIST:
        yield ["set", target, []]
        yield from _list(path, target, value, room, bytes_max)
    else:
        yield ["set", target, {}]
        yield from _dict(path, target, value, room, bytes_max)


def _list(
    path: tuple[str | int, ...], target: Any, items: list[Any], room: int, bytes_max: int
) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    size = 0
    for index, item in enumerate(items):
        item_bytes = len(orjson.dumps(item)) + 1
        if chunk and size + item_bytes > room:
            yield ["extend", target, chunk]
            chunk, size = [], 0
        if item_bytes > room:
            yield ["append", target, None]
            yield from _operations((*path, index), item, bytes_max)
        else:
            chunk.append(item)
            size += item_bytes
    if chunk:
        yield ["extend", target, chunk]


def _dict(
    path: tuple[str | int, ...], target: Any, entries: dict[str, Any], room: int, bytes_max: int
) -> Iterator[list[Any]]:
    chunk: dict[str, Any] = {}
    size = 0
    for key, value in entries.items():
        entry_bytes = len(orjson.dumps({key: value}))
        if chunk and size + entry_bytes > room:
            yield ["merge_into", target, chunk]
            chunk, size = {}, 0
        if entry_bytes > room:
            yield from _operations((*path, key), value, bytes_max)
        else:
            chunk[key] = value
            size += entry_bytes
    if chunk:
        yield ["merge_into", target, chunk]
