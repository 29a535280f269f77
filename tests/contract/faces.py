"""One set of tests for both colours of the API: the async face, in the words of the sync one.

A test calls `app.get(...)` and iterates over `app.history(...)`; on the async face each call runs
on an event loop that belongs to the store, and each step of an iterator too.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from eventstore import EventStore, Position, Receipt
from eventstore.aio import AsyncApp, AsyncEventStore

__all__ = ["AsyncFace", "Face", "SyncFace"]

#: No call of a test waits so long unless something is broken.
DEADLINE_S = 30.0


class SyncFace:
    """The store as it is."""

    def __init__(self, store: EventStore) -> None:
        self.store = store

    def app(self, name: str) -> Any:
        return self.store.app(name)

    def result(self, receipt: Receipt) -> Position:
        return receipt.result(DEADLINE_S)

    def apps(self) -> list[str]:
        return self.store.apps()

    def flush(self) -> None:
        self.store.flush(DEADLINE_S)

    def close(self) -> None:
        self.store.close()

    def end(self) -> None:
        """Close what is still open; a failure that a test left there is not its subject."""
        self.store.close()


class AsyncFace:
    """`store.aio`, with every coroutine run to its end."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.aio: AsyncEventStore = store.aio
        self._runner = asyncio.Runner()

    def app(self, name: str) -> Any:
        return _AwaitedApp(self.aio.app(name), self._runner)

    def result(self, receipt: Receipt) -> Position:
        async def wait() -> Position:
            return await asyncio.wait_for(receipt, DEADLINE_S)

        return self._runner.run(wait())

    def apps(self) -> list[str]:
        return self._runner.run(self.aio.apps())

    def flush(self) -> None:
        self._runner.run(self.aio.flush(DEADLINE_S))

    def close(self) -> None:
        self._runner.run(self.aio.close())

    def end(self) -> None:
        self.store.close()
        self._runner.close()


Face = SyncFace | AsyncFace


class _AwaitedApp:
    def __init__(self, app: AsyncApp, runner: asyncio.Runner) -> None:
        self._app = app
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._app, name)
        return self._awaited(found) if callable(found) else found

    def _awaited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            answer = function(*args, **options)
            if isinstance(answer, AsyncIterator):
                return self._items(answer)
            assert inspect.iscoroutine(answer), f"{function} neither waits nor iterates"
            return self._runner.run(answer)

        return call

    def _items(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                item = self._runner.run(_next(items))
            except _End:
                return
            yield item


class _End(Exception):
    """StopAsyncIteration cannot leave a coroutine."""


async def _next(items: AsyncIterator[Any]) -> Any:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise _End from None
