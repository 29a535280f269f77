"""What instances of one process share: stores by their URL, apps in them, threads to wait in."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from eventstore import EventStore
from eventstore.lifetime import ProcessLock, abandon_in_child
from eventstore.processing import Processing

__all__ = ["give_back", "in_thread", "processing_of", "take"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Threads in which the async calls of a store wait for log and view; more calls queue.
_THREADS_MAX: Final = 64


class _Stores:
    """The stores that nobody handed in: one per URL, closed when its last user gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: (URL, namespace) -> the store, and how many instances use it.
        self._open: dict[tuple[str, str], tuple[EventStore, int]] = {}
        abandon_in_child(self)

    def take(self, url: str | os.PathLike[str] | None) -> EventStore:
        text = os.fspath(url or os.environ.get("EVENTSTORE_URL") or "./.eventstore")
        place = _place(text)
        with self._lock:
            store, users = self._open.get(place, (None, 0))
            if store is None:
                store = EventStore(text)  # as it was written: it refuses what is no path
            self._open[place] = store, users + 1
        return store

    def give_back(self, store: EventStore) -> None:
        with self._lock:
            place = next((at for at, (one, _) in self._open.items() if one is store), None)
            if place is None:
                return
            users = self._open[place][1]
            # What a memory log has is gone when it is closed, and nobody wants that of a program
            # that opens one instance after the other.
            if users > 1 or place[0].startswith("memory:"):
                self._open[place] = store, max(0, users - 1)
                return
            del self._open[place]
        store.close()

    def abandon(self) -> None:
        """Open anew in a forked child; the parent's stores refuse there."""
        self._lock = threading.Lock()
        self._open = {}


def _place(text: str) -> tuple[str, str]:
    if "://" not in text:
        text = str(Path(text).absolute())  # the same one after a chdir
    return text, os.environ.get("EVENTSTORE_NAMESPACE", "")


_stores = _Stores()
_processings: weakref.WeakKeyDictionary[EventStore, dict[str, Processing]]
_processings = weakref.WeakKeyDictionary()
_looking = ProcessLock()


def take(url: str | os.PathLike[str] | None) -> EventStore:
    """Return the process's store at a URL (None: `$EVENTSTORE_URL`, else `./.eventstore`).

    Raises:
        As for EventStore.
    """
    return _stores.take(url)


def give_back(store: EventStore) -> None:
    """Say that one user of a store is done with it; the last one closes it."""
    _stores.give_back(store)


def processing_of(store: EventStore, app: str) -> Processing:
    """Return the one Processing of an app that everybody in this process waits with."""
    with _looking:
        found = _processings.setdefault(store, {})
        if app not in found:
            found[app] = Processing(store.app(app))
        return found[app]


async def in_thread(
    store: EventStore, function: Callable[_P, _T], *args: _P.args, **options: _P.kwargs
) -> _T:
    """Call a function that may wait for log and view in one of a store's threads."""
    call = functools.partial(function, *args, **options)
    return await asyncio.get_running_loop().run_in_executor(store.threads(_THREADS_MAX), call)
