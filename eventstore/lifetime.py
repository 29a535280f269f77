"""What becomes of open resources in a child of os.fork(), and at the end of the interpreter.

Threads, locks and database connections do not survive a fork: the child's copies are let go of
without being used, and the child's calls are refused. At exit, what is still open is closed, so
that queued appends reach the disk.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import weakref
from typing import Protocol

__all__ = ["ProcessLock", "abandon_in_child", "close_at_exit"]


class _Abandons(Protocol):
    def abandon(self) -> None:
        """Let go in a forked child, without locks, waiting, or a word to the parent's files."""


class _Closes(Protocol):
    def close(self) -> None: ...


_opened = itertools.count()
_abandoned_in_child: weakref.WeakSet[_Abandons] = weakref.WeakSet()
#: In the order of their opening.
_closed_at_exit: weakref.WeakValueDictionary[int, _Closes] = weakref.WeakValueDictionary()


def abandon_in_child(resource: _Abandons) -> None:
    """Call `resource.abandon()` in every child that this process forks from now on."""
    _abandoned_in_child.add(resource)


def close_at_exit(resource: _Closes) -> None:
    """Call `resource.close()` when the interpreter ends; closing twice must be harmless.

    The last one opened is closed first, because it may use the earlier ones.
    """
    _closed_at_exit[next(_opened)] = resource


class ProcessLock:
    """A lock around what all of a process shares; `with lock:` holds it.

    It is free in a forked child, where the thread that held it in the parent does not go on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        abandon_in_child(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()

    def abandon(self) -> None:
        """Begin with a lock that nobody holds."""
        self._lock = threading.Lock()


def _after_fork_in_child() -> None:
    _closed_at_exit.clear()
    for resource in list(_abandoned_in_child):
        resource.abandon()


def _at_exit() -> None:
    for number in sorted(_closed_at_exit, reverse=True):
        resource = _closed_at_exit.get(number)
        if resource is not None:
            resource.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
