"""Receipts: what a writer holds while its event is on the way, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Protocol

from eventstore.errors import ReadTimeout
from eventstore.events import Entry, Position, Verdict

if TYPE_CHECKING:
    import asyncio

    from eventstore.log.base import Log

__all__ = ["Receipt"]


class _App(Protocol):
    """What a receipt needs of the app that it came from."""

    name: str
    log: Log

    @property
    def identity(self) -> str: ...

    def unasked(self, receipt: Receipt) -> None:
        """A write failed, and nobody has asked about it yet."""

    def entry_at(self, receipt: Receipt, timeout_s: float | None) -> Entry: ...

    def original(self, receipt: Receipt, entry: Entry) -> Entry: ...


class Receipt:
    """One event on its way into the log.

    `result()`, or `await receipt` on any event loop, returns when the event is durable (written
    and synced, or acknowledged by all in-sync replicas). `verdict()` waits until the view has
    folded it. If the write fails and nobody asks this receipt, the app's next call, `flush()` or
    `close()` raises the error instead.
    """

    __slots__ = (
        "_app", "_asked", "_callback", "_error", "_offset", "_partition", "_waiters", "instance",
    )  # fmt: skip

    def __init__(self, app: _App, instance: str, *, asked: bool = False) -> None:
        """Make a receipt; one that is `asked` has somebody who hears of a failure already."""
        self._app = app
        self.instance = instance
        self._partition = self._offset = -1
        self._error: Exception | None = None
        self._asked = asked
        self._callback: Callable[[Exception], None] | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] | None = None

    # --- told by the log ------------------------------------------------------------------------

    def delivered(self, partition: int, offset: int) -> None:
        self._partition = partition
        self._offset = offset  # last: whoever sees it may read the partition
        if self._waiters is not None:
            self._tell()

    def failed(self, error: Exception) -> None:
        self._error = error
        if not self._asked:
            self._app.unasked(self)
        if self._callback is not None:
            self._call_back()
        if self._waiters is not None:
            self._tell()

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters or [], []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:
                continue  # that loop was closed, and nobody waits there any more

    def when_failed(self, callback: Callable[[Exception], None]) -> None:
        """Call `callback` with the error, once, if the write fails; it then counts as asked.

        It is called in the log's thread, or at once where the write has failed already.
        """
        self._asked = True
        self._callback = callback
        if self._error is not None:
            self._call_back()

    def _call_back(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None and self._error is not None:
            callback(self._error)

    # --- asked by people ------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._offset >= 0 or self._error is not None

    def result(self, timeout_s: float | None = None) -> Position:
        """Return the event's position once it is durable.

        Args:
            timeout_s: how long to wait; None waits as long as the log does
                (`append_timeout_s`).

        Raises:
            LogUnavailable: it is not in the log; nothing was written.
            OutcomeUnknown: it may or may not be in the log; retry with the same idempotency key.
            ReadTimeout: `timeout_s` passed; the event is still on its way, and ask again.
        """
        self._asked = True
        if not self.done:
            try:
                self.settle(timeout_s)
            except BaseException:
                self._give_up_asking()
                raise
        return self._settled()

    def settle(self, timeout_s: float | None) -> None:
        """Return when the outcome is known; ReadTimeout after `timeout_s`. Asks nothing."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.done:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise ReadTimeout(
                    f"the event for {self._app.name}/{self.instance} is not acknowledged after"
                    f" {timeout_s} s; it is still on its way"
                )
            self._app.log.drive(left)

    def _settled(self) -> Position:
        if self._error is not None:
            raise self._error
        return Position(self._app.identity, {self._partition: self._offset})

    def __await__(self) -> Generator[object, None, Position]:
        """Wait on the running event loop; see `result`."""
        self._asked = True
        if not self.done:
            import asyncio  # loaded already, by whoever runs the loop; 40 ms to all others

            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append((loop, future))
            # Told between the question and the entry in the list: nobody would wake us.
            if self.done and not future.done():
                future.set_result(None)
            try:
                yield from future.__await__()
            except BaseException:
                self._give_up_asking()
                raise
        return self._settled()

    def _give_up_asking(self) -> None:
        """Whoever asked leaves without an answer: a failure is the next call's to raise again."""
        self._asked = False
        if self._error is not None:
            self._app.unasked(self)

    def entry(self, timeout_s: float | None = None) -> Entry:
        """Return the event with its place and verdict, once the view has folded it.

        Raises:
            ReadTimeout: the log or the view did not get there within `timeout_s` (default: the
                app's `read_timeout_s`).
            LogUnavailable: as for `result`.
        """
        self.result(timeout_s)
        return self._app.entry_at(self, timeout_s)

    def verdict(self, timeout_s: float | None = None) -> Verdict:
        """Return what the fold decided; of a duplicate, what it decided about the original.

        Raises:
            ReadTimeout: as for `entry`.
            LogUnavailable: as for `result`.
        """
        entry = self.entry(timeout_s)
        if entry.verdict == Verdict.DUPLICATE:
            entry = self._app.original(self, entry)
        return entry.verdict

    @property
    def asked(self) -> bool:
        """Whether somebody has asked what became of the write."""
        return self._asked

    @property
    def error(self) -> Exception | None:
        """Why the write failed, if it did."""
        return self._error

    @property
    def partition(self) -> int:
        """The partition, -1 while the outcome is not known."""
        return self._partition

    @property
    def offset(self) -> int:
        """The offset, -1 while the outcome is not known."""
        return self._offset

    def __repr__(self) -> str:
        if self._error is not None:
            state = f"failed: {self._error}"
        elif self._offset >= 0:
            state = f"partition {self._partition}, offset {self._offset}"
        else:
            state = "on its way"
        return f"<Receipt {self._app.name}/{self.instance}: {state}>"


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
