"""The command itself, and its subcommands."""

from __future__ import annotations

import click

from eventstore.cli import copying, doctor, importing, operating, reading, writing
from eventstore.cli.exits import ExitGroup
from eventstore.cli.session import shared_options

__all__ = ["eventstore", "main"]


@click.group(
    cls=ExitGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Answers are tables on a terminal. Into a pipe, or with --json, they are JSON: one object, or
one object a line where there can be many. Times are local in tables and UTC in JSON.

\b
Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found, 4 conflict (somebody came first).

\b
Completion of commands, options and app names, for bash (or zsh, fish):
  eval "$(_EVENTSTORE_COMPLETE=bash_source eventstore)"
""",
)
@click.version_option(package_name="foldlog", prog_name="eventstore")
@shared_options
def eventstore() -> None:
    """Read and write the apps of an event store: what is true now, and how it came to be.

    The store is a folder of this machine (default ./.eventstore) or a Kafka cluster. Reading
    never creates anything.
    """


for _room in (reading, writing, importing, copying, operating, doctor):
    for _command in _room.COMMANDS:
        eventstore.add_command(_command)


def main() -> None:
    """Run the command with the process's arguments, and exit."""
    eventstore(prog_name="eventstore")
