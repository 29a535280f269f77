"""What becomes of an error, Ctrl-C or a closed pipe: one message, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from eventstore.errors import Conflict, EventStoreError, InstanceNotFound, VersionNotFound

__all__ = ["EXIT_CONFLICT", "EXIT_INTERRUPTED", "EXIT_NOT_FOUND", "ExitGroup"]

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


class ExitGroup(click.Group):
    """A command of ours, with its subcommands: errors end it in the same way everywhere."""

    def invoke(self, ctx: click.Context) -> Any:
        with _exits():
            return super().invoke(ctx)
