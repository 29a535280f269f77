"""`eventstore doctor`: what usually goes wrong, looked at in one go, with what to do about it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from eventstore.cli.operating import views_of
from eventstore.cli.output import plain, present, write_json
from eventstore.cli.session import Session, shared_options

if TYPE_CHECKING:
    from eventstore.errors import EventStoreError
    from eventstore.log.base import Finding, Topic
    from eventstore.store import EventStore
    from eventstore.view.reader import RefusedRow

__all__ = ["COMMANDS"]

#: How long the log may take for one answer. Short, because somebody waits and wants to know.
_DEADLINE_S: Final = 5.0
#: Records refused that are shown; there may be millions of them.
_REFUSED_SHOWN_MAX: Final = 3
_REFUSED_COUNTED_MAX: Final = 10_000

_PACKAGES: Final = ("foldlog", "apsw", "confluent-kafka", "rocksdict", "fastavro", "pydantic")
#: Variables that are ours and no settings; `EVENTSTORE_KAFKA_...` are the Kafka client's.
_VARIABLES: Final = ("EVENTSTORE_URL", "EVENTSTORE_CONFIG", "EVENTSTORE_FAULT")
_VARIABLES_PREFIXES: Final = ("EVENTSTORE_KAFKA_", "EVENTSTORE_TEST_")

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--quick", is_flag=True, help="Open no view: do not look for refused events.")
@shared_options
@click.pass_context
def doctor(context: click.Context, /, quick: bool) -> None:
    """Check what usually goes wrong, and say what to do.

    Exits with 1 when something fails. Creates nothing, but a view that is behind catches up.
    """
    session = context.ensure_object(Session)
    failed = False
    for finding in _findings(session, quick=quick):
        failed |= finding.level == "fail"
        _write(session, finding)
    if failed:
        context.exit(1)


def _write(session: Session, finding: Finding) -> None:
    if not session.tables:
        write_json(present(finding._asdict()))
        return
    level = click.style(f"{finding.level:<4}", fg=_STYLES[finding.level], bold=True)
    click.echo(f"{level}  {plain(finding.text)}")
    if finding.advice:
        click.echo(f"      -> {plain(finding.advice)}")


def _findings(session: Session, *, quick: bool) -> Iterator[Finding]:
    from eventstore.errors import EventStoreError

    yield from _versions()
    yield from _environment()
    try:
        with _open(session) as store:
            yield from _log(store)
            yield from _apps(store, quick=quick)
    except EventStoreError as error:
        yield _failure(error)


@contextmanager
def _open(session: Session) -> Iterator[EventStore]:
    from eventstore.config import Config
    from eventstore.store import EventStore

    config = Config.load(read_timeout_s=_DEADLINE_S, append_timeout_s=_DEADLINE_S)
    with EventStore(session.url, namespace=session.namespace, config=config) as store:
        yield store


def _failure(error: EventStoreError, where: str = "") -> Finding:
    from eventstore.errors import ConfigError, LogTruncated, LogUnavailable, UnknownSchema
    from eventstore.log.base import Finding

    advice = "see the message"
    if isinstance(error, UnknownSchema):
        advice = "upgrade this reader; `eventstore quarantine` gives the event up for good"
    elif isinstance(error, LogTruncated):
        advice = "restore the log from a backup; `eventstore repair --accept-loss` does without"
    elif isinstance(error, LogUnavailable):
        advice = "see that what the URL names is running, and can be reached from this machine"
    elif isinstance(error, ConfigError):
        advice = "change --url, $EVENTSTORE_URL or the setting that the message names"
    return Finding("fail", f"{where}{error}", advice)


def _versions() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    from eventstore.log.base import Finding

    yield Finding("ok", f"Python {platform.python_version()} on {platform.platform()}")
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding("fail", f"{package} is not installed", "pip install foldlog")
    yield Finding("ok", ", ".join(found))


def _environment() -> Iterator[Finding]:
    """Find misspelt settings: a store cannot refuse variables that others may have named so."""
    import difflib

    from eventstore.config import Config
    from eventstore.log.base import Finding

    settings = [f"EVENTSTORE_{name.upper()}" for name in Config.model_fields]
    for name in sorted(os.environ):
        if not name.startswith("EVENTSTORE_") or name.startswith(_VARIABLES_PREFIXES):
            continue
        if name not in settings and name not in _VARIABLES:
            near = difflib.get_close_matches(name, settings, n=1)
            meant = f"perhaps {near[0]} is meant" if near else "the settings are in config.py"
            yield Finding("warn", f"${name} is no setting, and is not looked at", meant)


def _log(store: EventStore) -> Iterator[Finding]:
    from eventstore.errors import EventStoreError
    from eventstore.log.base import Finding
    from eventstore.log.folders import folder_findings

    try:
        names = store.apps()
    except EventStoreError as error:
        yield _failure(error)
    else:
        apps = f"{len(names)} app(s)" if names else "no apps yet"
        yield Finding("ok", f"the log {store.url} can be read; it has {apps}")
        yield from store.log.diagnose()
    root = store.config.view_path or store.log.view_root
    if root is not None:
        yield from folder_findings("views", root)
    elif not store.url.startswith("memory:"):
        yield Finding(
            "warn",
            "views are kept in memory: each process folds the whole log again",
            "name a folder of this machine in the setting view_path ($EVENTSTORE_VIEW_PATH)",
        )


def _apps(store: EventStore, *, quick: bool) -> Iterator[Finding]:
    from eventstore.errors import EventStoreError

    try:
        names = store.apps()
    except EventStoreError:
        return  # said already
    for name in names:
        try:
            topic = store.log.topic(f"{store.config.namespace}.{name}", create=False)
            if topic is not None:
                yield from _app(store, name, topic, quick=quick)
        except EventStoreError as error:
            yield _failure(error, f"{name}: ")


def _app(store: EventStore, name: str, topic: Topic, *, quick: bool) -> Iterator[Finding]:
    from eventstore.follow import quarantined, repairs_of
    from eventstore.log.base import Finding

    views = views_of(store, topic)
    busy = sum(view["busy"] is True for view in views)
    slots = sum(view["set_aside"] is None for view in views)
    size = sum(view["bytes"] for view in views)
    yield Finding("ok", f"{name}: {busy} of {slots} view(s) in use, {size / 1e6:,.1f} MB")
    for view in views:
        if view["set_aside"] is not None:
            yield Finding(
                "warn",
                f"{name}: the view {view['path']} was set aside: {view['set_aside']}",
                "look why (a disk that fails, say), then delete it: nothing in it is needed",
            )
    repairs = repairs_of(store.log, topic).number
    if repairs:
        yield Finding("warn", f"{name}: events were given up {repairs} time(s) by `repair`")
    taken_out = sum(map(len, quarantined(store.log, topic).values()))
    if taken_out:
        yield Finding("warn", f"{name}: {taken_out} event(s) are in quarantine, and skipped")
    if not quick:
        yield from _refused(name, store.app(name).refused())


def _refused(name: str, rows: Iterable[RefusedRow]) -> Iterator[Finding]:
    from itertools import islice

    from eventstore.log.base import Finding

    refused = list(islice(rows, _REFUSED_COUNTED_MAX))
    if not refused:
        yield Finding("ok", f"{name}: every record is an event of ours")
        return
    some = "; ".join(
        f"partition {row.partition} offset {row.offset}: {row.reason}"
        for row in refused[:_REFUSED_SHOWN_MAX]
    )
    count = f"{len(refused):,}{' or more' if len(refused) == _REFUSED_COUNTED_MAX else ''}"
    yield Finding(
        "warn",
        f"{name}: {count} record(s) are no events of ours, and had no effect: {some}",
        f"find out who else writes to the topic of {name}",
    )


COMMANDS: Final = (doctor,)
