"""The command itself: its subcommands, and what becomes of an error, Ctrl-C or a closed pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from eventstore.cli import copying, doctor, importing, operating, reading, writing
from eventstore.cli.session import shared_options
from eventstore.errors import Conflict, EventStoreError, InstanceNotFound, VersionNotFound

__all__ = ["eventstore", "main"]

EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
#: As a shell reports a process that was ended by SIGINT, or by SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


class _Failure(click.ClickException):
    """An error of the store, as one message; click prints it and exits with the code."""

    def __init__(self, error: EventStoreError) -> None:
        notes = getattr(error, "__notes__", [])
        super().__init__(" ".join([str(error), *(f"({note})" for note in notes)]))


class _NotFound(_Failure):
    exit_code = EXIT_NOT_FOUND


class _Conflict(_Failure):
    exit_code = EXIT_CONFLICT


@contextmanager
def _exits() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except (InstanceNotFound, VersionNotFound) as error:
        raise _NotFound(error) from error
    except Conflict as error:
        raise _Conflict(error) from error
    except EventStoreError as error:
        raise _Failure(error) from error
    except TimeoutError as error:  # what a receipt says while its event is still on its way
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # Who read our output has seen enough. The interpreter flushes once more as it ends, and
        # may complain. Source: Python's documentation of `signal`, "Note on SIGPIPE".
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(EXIT_PIPE_CLOSED) from None
    except OSError as error:  # our output's disk is full, a file cannot be read
        raise click.ClickException(str(error)) from error


class _Command(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        with _exits():
            return super().invoke(ctx)


@click.group(
    cls=_Command,
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
