"""Replay a git repository's history as the history of one instance, and check it against git.

    python -m examples.git_history REPO [--app git] [--url URL] [--verify 200]

The fields of the instance are the paths, their values the blob ids; each commit of the
first-parent history is one diff event, with the commit's own time. So any version of the instance
is the tree of a commit, and who last changed a field is who last changed a file. `--verify N`
asks git for the same: the trees of N random commits, and the last change of some of their paths.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

__all__ = ["Change", "Commit", "GitError", "Repository", "field_of", "path_of"]


class GitError(Exception):
    """Git is missing, or could not do what it was asked; the message is git's own."""


class Change(NamedTuple):
    """What a commit did to one path; `blob` is None where it was deleted.

    A submodule has the id of its commit in place of a blob's. A change of mode alone is a change
    too, with the blob that was there before.
    """

    path: bytes
    blob: str | None


class Commit(NamedTuple):
    """One commit of the first-parent history, with its changes against its first parent."""

    id: str
    committed_at: datetime | None  #: None where git has a time that no calendar has
    author: str
    subject: str
    changes: list[Change]


def field_of(path: bytes) -> str:
    """Return a path as a field's name: bytes that are not UTF-8, and `%` itself, as `%XX`.

    Git's paths are any bytes but NUL, field names are text; `path_of` gives the bytes back. The
    name `*` is escaped too, because a guard on `*` means every field.
    """
    if path == b"*":
        return "%2A"
    text = path.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def path_of(field: str) -> bytes:
    """Return the path that `field_of` made this name from."""
    return re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), field.encode())


class Repository:
    """A local git repository, bare or not, read through the `git` command."""

    #: Settings of a user's own that would change what `git log` prints, and paths taken as they
    #: are: a file may be called `*.c` or `:/`.
    _SETTINGS = (
        "-c",
        "log.showSignature=false",
        "-c",
        "diff.relative=false",
        "--literal-pathspecs",
    )

    def __init__(self, folder: Path) -> None:
        """Open the repository that `folder` is or is inside of.

        Raises:
            GitError: it is none, or it has no commit.
        """
        # From here on git is told the repository's own folder: paths then begin at its top,
        # wherever inside of it `folder` is.
        self._where: tuple[str | Path, ...] = ("-C", folder)
        self._git_dir = Path(self._line("rev-parse", "--absolute-git-dir"))
        self._where = (f"--git-dir={self._git_dir}",)
        self.head = self._line("rev-parse", "--verify", "HEAD^{commit}")

    @property
    def name(self) -> str:
        """The folder's name, without the `.git` of a bare or of an inner one."""
        folder = self._git_dir.parent if self._git_dir.name == ".git" else self._git_dir
        return folder.name.removesuffix(".git") or "repository"

    def commit_ids(self, after: str | None = None) -> list[str]:
        """Return the first-parent history, oldest first, optionally only what follows `after`."""
        found = self._line("rev-list", "--first-parent", "--reverse", self.head).split()
        return found if after is None else found[found.index(after) + 1 :]

    def commits(self, after: str | None = None) -> Iterator[Commit]:
        """Yield the first-parent history, oldest first, optionally only what follows `after`."""
        wanted = self.head if after is None else f"{after}..{self.head}"
        log = [
            "log",
            "--first-parent",
            "--reverse",
            "--diff-merges=first-parent",
            "--root",
            "--raw",
        ]
        log += ["--no-renames", "--no-abbrev", "--no-ext-diff", "--ignore-submodules=none", "-z"]
        log += ["--encoding=UTF-8", "--format=commit %H %ct %an%n%s", wanted, "--"]
        commit: Commit | None = None
        tokens = self._split(*log)
        for padded in tokens:
            token = padded.removeprefix(b"\n")
            if token.startswith(b"commit "):
                if commit is not None:
                    yield commit
                commit = _commit(token.decode("utf-8", "replace"))
            elif token.startswith(b":"):
                # :old mode, new mode, old id, new id, status; then the path
                _, _, _, blob, status = token.decode("ascii").split(" ")
                assert commit is not None
                path = next(tokens)
                commit.changes.append(Change(path, None if status == "D" else blob))
            else:
                assert not token, token
        if commit is not None:
            yield commit

    def tree(self, commit_id: str) -> dict[str, str]:
        """Return all files of a commit: field name -> blob id."""
        tree = {}
        for entry in self._split("ls-tree", "-r", "-z", "--full-tree", commit_id):
            facts, separator, path = entry.partition(b"\t")
            if separator:
                tree[field_of(path)] = facts.split(b" ")[2].decode("ascii")
        return tree

    def last_change(self, commit_id: str, field: str) -> str:
        """Return the commit, at or before `commit_id`, that last changed a path."""
        log = ("log", "-1", "--first-parent", "--no-patch", "--format=%H")
        return self._line(*log, commit_id, "--", path_of(field))

    def _line(self, *arguments: str | bytes) -> str:
        return os.fsdecode(b"".join(self._output(*arguments))).removesuffix("\n")

    def _split(self, *arguments: str | bytes) -> Iterator[bytes]:
        """Yield what NULs separate, as it comes: a long history is never in memory at once."""
        rest = b""
        for chunk in self._output(*arguments):
            *tokens, rest = (rest + chunk).split(b"\0")
            yield from tokens
        if rest:
            yield rest

    def _output(self, *arguments: str | bytes) -> Iterator[bytes]:
        command = ["git", *self._where, *self._SETTINGS, *arguments]
        with tempfile.TemporaryFile() as messages:  # a pipe that nobody reads could fill up
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages
                )
            except OSError as error:
                raise GitError(f"git cannot be started: {error.strerror}") from error
            with process:
                assert process.stdout is not None
                while chunk := process.stdout.read(1 << 16):
                    yield chunk
            if process.returncode != 0:
                messages.seek(0)
                text = messages.read().decode("utf-8", "replace").strip()
                raise GitError(text or f"git ended with exit code {process.returncode}")


def _commit(header: str) -> Commit:
    first, _, subject = header.partition("\n")
    _, commit_id, seconds, author = first.split(" ", 3)
    try:
        committed_at = datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        committed_at = None
    return Commit(commit_id, committed_at, author, subject, [])
