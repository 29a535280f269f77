"""What every subcommand shares: which store is meant, how answers look, and opening the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from eventstore.app import App
    from eventstore.follow import FollowProgress
    from eventstore.log.base import Topic
    from eventstore.store import EventStore

__all__ = [
    "Session",
    "app_argument",
    "complete_app",
    "pass_session",
    "shared_options",
    "topic_of",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: A catch-up that takes longer is shown; the store reports it twice a second.
_PROGRESS_AFTER_S = 1.0


class Session:
    """The options of this call, gathered from before and behind the subcommand's name."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.namespace: str | None = None
        self.as_json: bool | None = None

    @property
    def tables(self) -> bool:
        """Whether a person reads the answer."""
        return sys.stdout.isatty() if self.as_json is None else not self.as_json

    @contextmanager
    def store(self) -> Iterator[EventStore]:
        """Open the store that is meant, and close it at the end."""
        from eventstore.store import EventStore

        progress = _CatchUp() if sys.stderr.isatty() else None
        with EventStore(self.url, namespace=self.namespace, progress=progress) as store:
            yield store

    @contextmanager
    def app(self, name: str) -> Iterator[App]:
        """Open an app of the store; where an instance is not found, say so if its app is not."""
        from eventstore.errors import InstanceNotFound

        with self.store() as store:
            try:
                yield store.app(name)
            except InstanceNotFound:
                topic_of(store, name)
                raise

    @contextmanager
    def existing_app(self, name: str) -> Iterator[App]:
        """Open an app that has events; exit with 3 when there is none, rather than show nothing."""
        with self.store() as store:
            topic_of(store, name)
            yield store.app(name)


class NoSuchApp(click.ClickException):
    """An app without events: to a reader it is as good as a misspelt one."""

    exit_code = 3


def topic_of(store: EventStore, app: str) -> Topic:
    """Return the topic of an app that has events. Creates nothing.

    Raises:
        NoSuchApp: it has none.
    """
    store.app(app)  # a name that cannot be one is an error of its own
    topic = store.log.topic(f"{store.config.namespace}.{app}", create=False)
    if topic is None:
        known = ", ".join(store.apps()[:10]) or "none"
        raise NoSuchApp(f"{store.url} has no app {app!r}; it has: {known}")
    return topic


class _CatchUp:
    """Shows how far the catch-up of a view is, in one line of the terminal."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._shown = False

    def __call__(self, progress: FollowProgress) -> None:
        elapsed_s = time.monotonic() - self._begun_s
        if progress.done:
            if self._shown:
                click.echo("\r\033[K", nl=False, err=True)
            self._shown = False
        elif elapsed_s >= _PROGRESS_AFTER_S:
            self._shown = True
            app = progress.app.rpartition(".")[2]  # without the namespace
            click.echo(
                f"\r\033[Kfolding {app}: {progress.records:,} of"
                f" {progress.records_total:,} events"
                f" ({progress.records / max(1, progress.records_total):.0%},"
                f" {progress.records / elapsed_s:,.0f} a second)",
                nl=False,
                err=True,
            )


pass_session = click.make_pass_decorator(Session, ensure=True)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None and option.name is not None:
        setattr(context.ensure_object(Session), option.name, value)


def shared_options(function: _Function) -> _Function:
    """Add --url, --namespace and --json/--table; they may stand anywhere on the command line."""
    for option in (
        click.option(
            "--json/--table",
            "as_json",
            default=None,
            expose_value=False,
            callback=_remember,
            help="How to answer; default: tables on a terminal, JSON otherwise.",
        ),
        click.option(
            "--namespace",
            metavar="NAME",
            expose_value=False,
            callback=_remember,
            help="Namespace of the apps; default $EVENTSTORE_NAMESPACE or foldlog.",
        ),
        click.option(
            "--url",
            metavar="URL",
            expose_value=False,
            callback=_remember,
            help="A folder, or kafka://HOST:PORT; default $EVENTSTORE_URL or ./.eventstore.",
        ),
    ):
        function = option(function)
    return function


def complete_app(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of apps that begin so, for a shell."""
    """Return the names of apps that begin so, for a shell."""
    from click.shell_completion import CompletionItem

    from eventstore.config import Config
    from eventstore.errors import EventStoreError
    from eventstore.store import EventStore

    session = context.ensure_object(Session)
    try:
        # A broker that does not answer must not hold up somebody who types.
        config = Config.load(read_timeout_s=1.0)
        with EventStore(session.url, namespace=session.namespace, config=config) as store:
            return [CompletionItem(name) for name in store.apps() if name.startswith(incomplete)]
    except EventStoreError:
        return []


def app_argument(function: _Function) -> _Function:
    """Add the argument APP, whose names a shell can complete."""
    return click.argument("app", shell_complete=complete_app)(function)
