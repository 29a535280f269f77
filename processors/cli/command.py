"""The command itself, and its subcommands."""

from __future__ import annotations

import click

from eventstore.cli.exits import ExitGroup
from eventstore.cli.session import shared_options
from processors.cli import answering, running, showing

__all__ = ["main", "processors"]


@click.group(
    cls=ExitGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Answers are tables on a terminal. Into a pipe, or with --json, they are JSON, one object a line.
Times are local in tables and UTC in JSON.

\b
Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found, 5 stopped before all updates had ended.

\b
Completion of commands, options and app names, for bash (or zsh, fish):
  eval "$(_PROCESSORS_COMPLETE=bash_source processors)"
""",
)
@click.version_option(package_name="foldlog", prog_name="processors")
@shared_options
def processors() -> None:
    """Run the updates of components, and see what became of them.

    The store is a folder of this machine (default ./.eventstore) or a Kafka cluster; the command
    eventstore shows what is in it.
    """


for _room in (running, showing, answering):
    for _command in _room.COMMANDS:
        processors.add_command(_command)


def main() -> None:
    """Run the command with the process's arguments, and exit."""
    processors(prog_name="processors")
