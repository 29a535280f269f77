"""Importing: events from lines of JSON, many at a time, and again from where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import click

from eventstore.cli.arguments import diff_of, parse_json
from eventstore.cli.output import note, write_json
from eventstore.cli.session import Session, app_argument, pass_session, shared_options
from eventstore.cli.writing import EVENT_OPTIONS, check_event_options
from eventstore.errors import EventStoreError

if TYPE_CHECKING:
    from eventstore.app import App
    from eventstore.events import Position
    from eventstore.receipts import Receipt

__all__ = ["COMMANDS"]

#: Read at once. What one read returns is made durable together: much of a file, and of a pipe
#: what has arrived, so that a line of a slow producer does not wait for its next one.
_READ_BYTES: Final = 256 * 1024

_KEYS: Final = frozenset({"instance", "set", "ops", *EVENT_OPTIONS})


@click.command(
    "import",
    epilog="""\b
A line is {"instance": ..., "set": {field: value, ...}} or {"instance": ..., "ops": [[...], ...]}
with, as needed, name, idempotency_key, expected_version, occurred_at, actor and meta.

\b
Example:
  gzip -dc events.ndjson.gz | eventstore import orders -
""",
)
@app_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@shared_options
@pass_session
def import_lines(session: Session, app: str, file: str) -> None:
    """Append one event for each line of a file.

    Stops at the first line that cannot be written; the lines before it are written then. Where
    each line has an idempotency_key, the whole file can be imported again: no line counts twice.
    """
    with session.app(app) as opened, _open(file) as source, _progress(source) as shown:
        importer = _Importer(opened)
        try:
            for lines in _batches(source):
                importer.add(lines)
                shown.update(importer.written, source.tell() if source.seekable() else None)
        except click.ClickException as error:
            raise click.ClickException(f"{error.message}; {importer.so_far}") from None
        except EventStoreError as error:
            error.add_note(importer.so_far)
            raise
        except KeyboardInterrupt:
            note(f"stopped; {importer.so_far}")
            raise
    if session.tables:
        place = "" if importer.position is None else f"; position {importer.position}"
        click.echo(f"{importer.written:,} events written to {app}{place}")
    else:
        position = None if importer.position is None else str(importer.position)
        write_json({"app": app, "written": importer.written, "position": position})


class _Importer:
    """Appends lines, and knows how many of them are durable."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._line = 0
        self.written = 0
        self.position: Position | None = None

    def add(self, lines: list[bytes]) -> None:
        """Append lines, and return when they are durable; a bad one ends it before itself."""
        receipts: list[Receipt] = []
        try:
            for line in lines:
                self._line += 1
                if line.strip():
                    receipts.append(self._append(line))
        finally:
            # Also behind a bad line: what was handed over is written, and is counted.
            for receipt in receipts:
                position = receipt.result()
                self.written += 1
                self.position = position if self.position is None else self.position.merge(position)

    def _append(self, line: bytes) -> Receipt:
        try:
            instance, operations, options = _parse(line)
            return self._app.append(instance, diff_of(operations), **options)
        except click.UsageError as error:
            raise click.ClickException(f"line {self._line}: {error.message}") from None
        except EventStoreError as error:
            error.add_note(f"line {self._line}")
            raise

    @property
    def so_far(self) -> str:
        """How far the import came, as far as it is known."""
        return f"{self.written:,} events were written before"


def _parse(line: bytes) -> tuple[str, list[Any], dict[str, Any]]:
    try:
        facts = parse_json(line.decode(), "the line")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"not UTF-8: {error}") from None
    if not isinstance(facts, dict):
        raise click.UsageError("not a JSON object")
    unknown = sorted(facts.keys() - _KEYS)
    if unknown:
        raise click.UsageError(
            f"unknown keys: {', '.join(unknown)}; there are {', '.join(sorted(_KEYS))}"
        )
    instance = facts.pop("instance", None)
    if not isinstance(instance, str):
        raise click.UsageError("it needs an instance, which is text")
    fields, operations = facts.pop("set", {}), facts.pop("ops", [])
    if not isinstance(fields, dict) or not isinstance(operations, list):
        raise click.UsageError("set is a JSON object of fields, ops a list of operations")
    operations = [*(["set", name, value] for name, value in fields.items()), *operations]
    if not operations:
        raise click.UsageError("it has neither set nor ops, so nothing would be written")
    return instance, operations, check_event_options(facts)


@contextmanager
def _open(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
    else:
        with Path(file).open("rb") as source:
            yield source


def _batches(source: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield the whole lines of what each read returns."""
    read = getattr(source, "read1", source.read)
    rest = b""
    while chunk := read(_READ_BYTES):
        *lines, last = chunk.split(b"\n")
        if lines:
            lines[0] = rest + lines[0]
            rest = last
            yield lines
        else:
            rest += last
    if rest:
        yield [rest]


class _Shown(Protocol):
    def update(self, written: int, read_bytes: int | None) -> None: ...


class _Silent:
    def update(self, written: int, read_bytes: int | None) -> None:
        """Show nothing."""


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def update(self, written: int, read_bytes: int | None) -> None:
        """Show how many events are written, and where the file's size is known, how far it is."""
        self._bar.update(self._task, completed=read_bytes, written=written)


@contextmanager
def _progress(source: IO[bytes]) -> Iterator[_Shown]:
    """Show progress while a person watches."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            rate = task.fields["written"] / max(task.elapsed or 0.0, 0.001)
            return Text(f"{task.fields['written']:,} events, {rate:,.0f} a second")

    import os

    total = os.fstat(source.fileno()).st_size if source.seekable() else None
    columns: list[Any] = [TextColumn("importing"), BarColumn(), Rate()]
    if total is not None:
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task("import", total=total, written=0))


COMMANDS: Final = (import_lines,)
