"""Opening a view: a slot, its database, and the checks that it belongs to this log.

A view holds nothing that the log has not. So one that cannot be read, has another layout, or was
made from another log is set aside under a new name, with one warning, and a new one is begun.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import orjson

from eventstore.errors import ViewDamaged
from eventstore.fold import FOLD_NUMBER
from eventstore.view import keys
from eventstore.view.base import Table, TableUnavailable
from eventstore.view.memory import MemoryTable
from eventstore.view.rocks import RocksTable
from eventstore.view.slots import Slot, publish, set_aside, take_slot

__all__ = ["OpenView", "open_in_memory", "open_on_disk"]

logger: Final = logging.getLogger("eventstore.view")


class OpenView:
    """A table that is open and belongs to a log, and the slot that it lives in (none in memory)."""

    def __init__(self, slot: Slot | None, log_stamp: str, cache_bytes: int) -> None:
        self._slot = slot
        self._meta = _meta(log_stamp)
        self._cache_bytes = cache_bytes
        self.table: Table = self._open()

    def _open(self) -> Table:
        if self._slot is None:
            return self._begin(MemoryTable())
        fault = None
        try:
            table: Table = RocksTable(self._slot.path, cache_bytes=self._cache_bytes)
        except TableUnavailable:
            raise  # a full disk, say: the rows are fine
        except ViewDamaged as error:
            fault = str(error)
        else:
            try:
                meta = table.get(keys.META)
                if meta == self._meta:
                    return table
                if meta is None and table.first(b"", b"\xff") is None:
                    return self._begin(table)
            except TableUnavailable:
                table.close()
                raise
            except ViewDamaged as error:
                fault = str(error)
            else:
                fault = _difference(meta, self._meta)
            table.close()
        self._set_aside(fault)
        return self._begin(RocksTable(self._slot.path, cache_bytes=self._cache_bytes))

    def _begin(self, table: Table) -> Table:
        batch = table.batch()
        batch.put(keys.META, self._meta)
        table.write(batch)
        return table

    def _set_aside(self, reason: str) -> None:
        assert self._slot is not None
        if self._slot.path.exists():
            kept = set_aside(self._slot.path, reason)
            logger.warning(
                "the view %s is rebuilt from the log: %s (the old one is kept as %s)",
                self._slot.path.parent.name,
                reason,
                kept.name,
            )

    def begin_anew(self, reason: str) -> None:
        """Set the database aside and open a new one in its place."""
        self.table.close()
        if self._slot is not None:
            self._set_aside(reason)
        self.table = self._open()

    def publish(self) -> None:
        """Let new slots start from a copy of this view."""
        if self._slot is not None:
            publish(self._slot, self.table)

    def close(self) -> None:
        """Close the table and let another process have the slot. Again does nothing."""
        self.table.close()
        if self._slot is not None:
            self._slot.release()


def open_in_memory(log_stamp: str) -> OpenView:
    """Open an empty view that ends with this process."""
    return OpenView(None, log_stamp, 0)


def open_on_disk(
    root: Path, app: str, log_stamp: str, *, cache_bytes: int, idle_s: float
) -> OpenView:
    """Take a slot and open its database, or a new one where that does not belong to this log.

    Args:
        root: the folder of all views of the log.
        app: the app's topic.
        log_stamp: the log's identity, and how often it was repaired: a view of another stamp
            was folded from other events.
        cache_bytes: memory for RocksDB's blocks.
        idle_s: slots that nobody used for so long are deleted.

    Raises:
        TableUnavailable: the folder cannot be read or written; nothing was changed.
        ViewDamaged: not even a new database can be opened.
    """
    slot = take_slot(root, app, idle_s=idle_s)
    try:
        return OpenView(slot, log_stamp, cache_bytes)
    except BaseException:
        slot.release()
        raise


def _meta(log_stamp: str) -> bytes:
    return orjson.dumps({"layout": keys.LAYOUT, "fold": FOLD_NUMBER, "log": log_stamp})


def _difference(found: bytes | None, wanted: bytes) -> str:
    if found is None:
        return "it is no view of ours"
    try:
        old, new = orjson.loads(found), orjson.loads(wanted)
        names = {"layout": "row layout", "fold": "fold rules", "log": "log identity"}
        return "; ".join(
            f"its {names[key]} is {old[key]}, not {new[key]}"
            for key in names
            if old[key] != new[key]
        )
    except (ValueError, KeyError, TypeError):
        return "its meta row cannot be read"
