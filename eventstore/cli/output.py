"""How answers are written: JSON for programs, tables for people.

Values are cut in tables and never in JSON. What is stored may hold anything, so that control
characters are shown escaped: a name must not be able to move the cursor.
"""

from __future__ import annotations

import datetime
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

__all__ = [
    "Cell",
    "json_text",
    "local_time",
    "note",
    "plain",
    "utc_time",
    "write_json",
    "write_table",
]

#: Rows that are laid out together; then the heading comes again.
_ROWS_PER_TABLE = 500
_CELL_CHARACTERS_MAX = 300
_WIDTH_WITHOUT_TERMINAL = 120
#: Blanks between two columns.
_GAP = 3
_FLEXIBLE_WIDTH_MIN = 12

_STYLES = {
    "ok": "green", "accepted": "green", "warn": "yellow", "duplicate": "yellow",
    "conflict": "red", "rejected": "red", "foreign": "red", "fail": "bold red",
}  # fmt: skip


class Cell(NamedTuple):
    """A table's column: its heading, and how it behaves when space is short."""

    heading: str
    right: bool = False
    #: Cut when the line is too long; columns that are not keep their width.
    flexible: bool = False


def write_json(value: Any, *, indented: bool = False) -> None:
    """Write one JSON value as a line, or indented."""
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else 0))


def json_text(value: Any) -> str:
    """Return a value as JSON in one line, cut to what a table can show."""
    import orjson

    text = orjson.dumps(value).decode()
    return cut(text)


def cut(text: str) -> str:
    """Return a text's beginning, marked when it is not the whole."""
    if len(text) <= _CELL_CHARACTERS_MAX:
        return text
    return f"{text[:_CELL_CHARACTERS_MAX]}..."


def plain(text: str) -> str:
    """Return a text with everything escaped that could command a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_table(
    columns: Sequence[Cell], rows: Iterable[Sequence[str]], *, empty: str = "none"
) -> None:
    """Write rows as a table, a few hundred at a time; without one, note `empty` on stderr."""
    written = False
    for chunk in _chunks(rows):
        _write_chunk(columns, chunk)
        written = True
    if not written:
        note(empty)


def _chunks(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _ROWS_PER_TABLE)):
        yield chunk


def _write_chunk(columns: Sequence[Cell], rows: Sequence[Sequence[str]]) -> None:
    import io
    import shutil

    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [[plain(cell) for cell in row] for row in rows]
    wanted = [
        max(map(cell_len, [column.heading, *(row[index] for row in shown)]))
        for index, column in enumerate(columns)
    ]
    line_width = shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 24)).columns
    widths = _fit(columns, wanted, line_width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=width,
        )
    for row in shown:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    drawn = io.StringIO()
    console = Console(
        file=drawn,
        force_terminal=sys.stdout.isatty(),
        width=max(line_width, sum(widths) + _GAP * len(widths)),
        highlight=False,
    )
    console.print(table)
    for line in drawn.getvalue().splitlines():
        click.echo(line.rstrip())


def _fit(columns: Sequence[Cell], wanted: Sequence[int], line_width: int) -> list[int]:
    """Return the columns' widths: flexible ones share what the others leave of a line."""
    widths = list(wanted)
    flexible = [index for index, column in enumerate(columns) if column.flexible]
    left = line_width - _GAP * (len(columns) - 1)
    left -= sum(width for index, width in enumerate(wanted) if index not in flexible)
    # The narrow ones first, so that what they do not need goes to the others.
    flexible.sort(key=lambda index: wanted[index])
    for place, index in enumerate(flexible):
        share = max(_FLEXIBLE_WIDTH_MIN, left // (len(flexible) - place))
        widths[index] = min(wanted[index], share)
        left -= widths[index]
    return widths


def note(text: str) -> None:
    """Write a remark beside the answer, for people."""
    click.echo(text, err=True)


def utc_time(time: datetime.datetime | None) -> str | None:
    """Return a time in ISO form, in UTC."""
    if time is None:
        return None
    text = time.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def local_time(time: datetime.datetime | None) -> str:
    """Return a time as the clock on the wall shows it, with its zone."""
    if time is None:
        return ""
    try:
        local = time.astimezone()
    except OverflowError:
        local = time  # at the edge of what a datetime can hold there is no other zone
    return f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03} {local:%Z}"


def present(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that there are: those that are neither None nor empty text."""
    return {name: fact for name, fact in facts.items() if fact is not None and fact != ""}
