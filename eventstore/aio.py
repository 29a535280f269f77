"""The same store for asyncio: a thin layer over store.py and app.py, with no logic of its own.

Calls that may wait run in a thread of this store's pool; `get` and `exists` answer at once, on the
loop, when nothing has to be waited for. Receipts are awaitable on any loop as they are.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from eventstore.errors import Closed
from eventstore.events import Entry
from eventstore.receipts import Receipt
from eventstore.state import State
from eventstore.view.reader import PendingRow, RefusedRow

if TYPE_CHECKING:
    from eventstore.app import App
    from eventstore.store import EventStore

__all__ = ["AsyncApp", "AsyncEventStore"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Calls that may wait at the same time; more of them queue.
_THREADS_MAX = 64
#: Items fetched per hop to a thread by the iterators.
_CHUNK_ITEMS = 100


class AsyncEventStore:
    """All apps of one log, for asyncio. It shares everything with the store that it came from."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self._threads = store.threads(_THREADS_MAX)

    def app(self, name: str, state_type: type | None = None, **options: Any) -> AsyncApp:
        """Return an app; see `EventStore.app`."""
        return AsyncApp(self.store.app(name, state_type, **options), self._threads)

    async def apps(self) -> list[str]:
        """Return the names of the apps that have events; see `EventStore.apps`."""
        return await _in_thread(self._threads, self.store.apps)

    async def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything appended before is durable; see `EventStore.flush`."""
        await _in_thread(self._threads, self.store.flush, timeout_s)

    async def close(self) -> None:
        """Close the store; see `EventStore.close`."""
        # Not in the store's own threads: closing ends them.
        await asyncio.to_thread(self.store.close)

    def __repr__(self) -> str:
        return f"<AsyncEventStore of {self.store!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncApp:
    """One app, for asyncio: every call of `App` under its own name, with the same arguments."""

    def __init__(self, app: App, threads: ThreadPoolExecutor) -> None:
        self._app = app
        self._threads = threads

    @property
    def name(self) -> str:
        """The app's name."""
        return self._app.name

    def __repr__(self) -> str:
        return f"<AsyncApp of {self._app!r}>"

    async def append(self, *args: Any, **options: Any) -> Receipt:
        """Append a diff; `await` the receipt for its durability. See `App.append`."""
        return await self._call(self._app.append, *args, **options)

    async def append_many(self, *args: Any, **options: Any) -> list[Receipt]:
        """Append many diffs in one group commit; see `App.append_many`."""
        return await self._call(self._app.append_many, *args, **options)

    async def request(self, *args: Any, **options: Any) -> Receipt:
        """Append a request; see `App.request`."""
        return await self._call(self._app.request, *args, **options)

    async def commit(self, *args: Any, **options: Any) -> State:
        """Write a state's changes under guard; see `App.commit`."""
        return await self._call(self._app.commit, *args, **options)

    async def get(self, instance: str, *args: Any, **options: Any) -> Any:
        """Return a state, or a value in it; see `App.get`."""
        if not options.keys() & {"after", "fresh"} and self._app.is_ready(instance):
            return self._app.get(instance, *args, **options)
        return await self._call(self._app.get, instance, *args, **options)

    async def exists(self, instance: str) -> bool:
        """Whether the instance has a state; see `App.exists`."""
        if self._app.is_ready(instance):
            return self._app.exists(instance)
        return await self._call(self._app.exists, instance)

    async def fork(self, *args: Any, **options: Any) -> State:
        """Begin an instance with the state of another; see `App.fork`."""
        return await self._call(self._app.fork, *args, **options)

    async def reset(self, *args: Any, **options: Any) -> State:
        """Clear an instance; see `App.reset`."""
        return await self._call(self._app.reset, *args, **options)

    async def quarantine(self, *args: Any, **options: Any) -> None:
        """Take one record out for good; see `App.quarantine`."""
        await self._call(self._app.quarantine, *args, **options)

    async def repair(self, **options: Any) -> None:
        """Go on with what a cut log still has; see `App.repair`."""
        await self._call(self._app.repair, **options)

    async def rebuild_view(self) -> None:
        """Fold the whole log anew; see `App.rebuild_view`."""
        await self._call(self._app.rebuild_view)

    def history(self, *args: Any, **options: Any) -> AsyncIterator[Entry]:
        """Yield an instance's events with their verdicts; see `App.history`."""
        return self._iterate(lambda: self._app.history(*args, **options))

    def instances(self, *args: Any, **options: Any) -> AsyncIterator[str]:
        """Yield the names of the instances; see `App.instances`."""
        return self._iterate(lambda: self._app.instances(*args, **options))

    def pending(self, *args: Any, **options: Any) -> AsyncIterator[PendingRow]:
        """Yield the requests that wait; see `App.pending`."""
        return self._iterate(lambda: self._app.pending(*args, **options))

    def discards(self, *args: Any, **options: Any) -> AsyncIterator[Entry]:
        """Yield the discards; see `App.discards`."""
        return self._iterate(lambda: self._app.discards(*args, **options))

    def failures(self, *args: Any, **options: Any) -> AsyncIterator[Entry]:
        """Yield the failures; see `App.failures`."""
        return self._iterate(lambda: self._app.failures(*args, **options))

    def refused(self) -> AsyncIterator[RefusedRow]:
        """Yield the records that took no place; see `App.refused`."""
        return self._iterate(self._app.refused)

    def tail(self, **options: Any) -> AsyncIterator[Entry]:
        """Yield the app's events as the log takes them; see `App.tail`."""
        return self._iterate(lambda: self._app.tail(**options), chunk=1)

    async def _call(self, function: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        return await _in_thread(self._threads, function, *args, **options)

    async def _iterate(
        self, start: Callable[[], Iterator[_T]], chunk: int = _CHUNK_ITEMS
    ) -> AsyncIterator[_T]:
        items = await self._call(start)
        while True:
            some = await self._call(_take, items, chunk)
            for item in some:
                yield item
            if len(some) < chunk:
                return


def _take(items: Iterator[_T], count: int) -> list[_T]:
    return [item for _, item in zip(range(count), items, strict=False)]


async def _in_thread(
    threads: ThreadPoolExecutor,
    function: Callable[_P, _T],
    *args: _P.args,
    **options: _P.kwargs,
) -> _T:
    call = functools.partial(function, *args, **options)
    try:
        answer = asyncio.get_running_loop().run_in_executor(threads, call)
    except RuntimeError:
        raise Closed("the store is closed") from None  # its threads are gone
    return await answer
