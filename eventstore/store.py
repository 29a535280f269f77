"""EventStore: all apps of one log, opened and closed together. What an app does is in app.py."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from eventstore.app import App
from eventstore.channel import Channel
from eventstore.config import NAME_PATTERN, Config
from eventstore.errors import Closed, ConfigError
from eventstore.follow import FollowProgress
from eventstore.lifetime import abandon_in_child, close_at_exit
from eventstore.log import open_log

if TYPE_CHECKING:
    from eventstore.aio import AsyncEventStore

__all__ = ["EventStore"]


class EventStore:
    """All apps of one log. A context manager; safe to share between threads, not across a fork."""

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        namespace: str | None = None,
        config: Config | None = None,
        progress: Callable[[FollowProgress], None] | None = None,
    ) -> None:
        """Open a log; nothing is created before the first write.

        Args:
            url: a folder or `sqlite:///folder`, `kafka://host:9092[,host:9092]?option=value`,
                or `memory://`; None is `$EVENTSTORE_URL`, else `./.eventstore`.
            namespace: keeps the apps of several systems, or of test and production, apart;
                default `foldlog`.
            config: all other settings; default: `Config.load()`, so file and environment.
            progress: is told now and then how far a long catch-up of a view is.

        Raises:
            ConfigError: the URL or a setting is wrong, or what it names is not a log of ours.
            LogUnavailable: the log is damaged.
        """
        if url is None:
            url = os.environ.get("EVENTSTORE_URL") or "./.eventstore"
        self.config = Config.load() if config is None else config
        if namespace is not None:
            if not isinstance(namespace, str) or not re.fullmatch(NAME_PATTERN, namespace):
                raise ConfigError(f"namespace {namespace!r}: 1 to 120 letters, digits, '-' and '_'")
            self.config = self.config.model_copy(update={"namespace": namespace})
        self._progress = progress
        self.log = open_log(os.fspath(url), self.config)
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        abandon_in_child(self)
        # What is queued becomes durable, and views stay warm, also when nobody closes the store.
        close_at_exit(self)

    @property
    def url(self) -> str:
        """Where the log is, without secrets."""
        return self.log.url

    def app(
        self,
        name: str,
        state_type: type | None = None,
        *,
        validate: Literal["on", "off"] = "on",
    ) -> App:
        """Return an app; it comes into being with its first event.

        Args:
            name: letters, digits, `-` and `_`.
            state_type: a pydantic model, dataclass or TypedDict; what a write sets is then
                checked before it is appended, and `State.data` is one.
            validate: "off" reads and writes without the checks (to mend stored state, say).

        Raises:
            ConfigError: the name has other characters, or the type is of another kind.
            Closed: the store is closed.
        """
        self._refuse_when_closed()
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(
                f"app {name!r}: a name has 1 to 120 letters, digits, '-' and '_', because it"
                " becomes the name of a Kafka topic"
            )
        with self._lock:
            self._refuse_when_closed()  # `close` may have come since: it would miss this one
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = Channel(
                    name, self.log, self.config, self._progress
                )
        others = weakref.WeakMethod(self.app)
        if state_type is None:
            return App(channel, others=others)
        # Validation needs pydantic, which takes longer to import than a small program runs.
        from eventstore.typed import StateType

        return App(channel, StateType.of(state_type), validate=validate == "on", others=others)

    def apps(self) -> list[str]:
        """Return the names of the apps that have events, sorted."""
        self._refuse_when_closed()
        prefix = f"{self.config.namespace}."
        return sorted(topic.removeprefix(prefix) for topic in self.log.topics())

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything appended before the call is durable.

        Raises:
            LogUnavailable: a write failed that nobody asked about, or not all are durable
                within `timeout_s`.
            Closed: the store is closed.
        """
        self._refuse_when_closed()
        self.log.flush(timeout_s)
        for channel in list(self._channels.values()):
            channel.raise_unasked()

    @property
    def aio(self) -> AsyncEventStore:
        """The same store for asyncio: calls that wait are coroutines."""
        # Most programs have no event loop, and should not wait for asyncio to be imported.
        from eventstore.aio import AsyncEventStore

        return AsyncEventStore(self)

    def threads(self, threads_max: int) -> ThreadPoolExecutor:
        """Return the pool in which calls of the async face wait; it ends with the store."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(threads_max, "eventstore-aio")
            return self._threads

    def close(self) -> None:
        """Make everything durable and let go of log and views. Closing again does nothing.

        Raises:
            LogUnavailable: a write failed that nobody asked about; the store is closed anyway.
        """
        if self._closed:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.log.flush(self.config.append_timeout_s)
        finally:
            for channel in self._channels.values():
                channel.close()
            self.log.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False)
        for channel in self._channels.values():
            channel.raise_unasked()

    def abandon(self) -> None:
        """Refuse everything in a child of os.fork(), `close` excepted, which does nothing there."""
        self._closed = True

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Closed(
                "the store is closed, or this is a child of os.fork(): open another one here"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventStore {self.url} namespace={self.config.namespace!r}>"
