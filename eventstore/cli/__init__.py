"""The `eventstore` command: reading and writing apps, and an operator's calls, from a shell.

`command.py` puts it together; each of reading, writing, importing, copying, operating and
doctor has its subcommands. What arguments mean is in arguments.py, how answers look in output.py
and entries.py.

At import nothing here loads more than click, so that `--help` and completion are quick: the store
is imported when a command opens it, rich when there is a table to draw.
"""

from __future__ import annotations

from eventstore.cli.command import eventstore, main

__all__ = ["eventstore", "main"]
