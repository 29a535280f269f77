"""Replay a git repository's history as the history of one instance, and check it against git.

    python -m examples.git_history REPO [--app git] [--url URL] [--verify 200]

The fields of the instance are the paths, their values the blob ids; each commit of the
first-parent history is one diff event, with the commit's own time. So any version of the instance
is the tree of a commit, and who last changed a field is who last changed a file. `--verify N`
asks git for the same: the trees of N random commits, and the last change of some of their paths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from eventstore import App, Diff, Entry, EventStore, EventStoreError, InstanceNotFound, Verdict

__all__ = [
    "Change",
    "Commit",
    "GitError",
    "Repository",
    "field_of",
    "path_of",
    "replay",
    "verify",
]

#: Bytes of an event that are left for everything but its operations.
MARGIN_BYTES = 4_000
#: Longest author or subject that is kept, in characters: nobody bounds them in git.
TEXT_MAX = 200
#: Paths of each checked commit whose last change is asked for too.
PATHS_PER_COMMIT = 3


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


# --- into the store ------------------------------------------------------------------------------


class Step(NamedTuple):
    """What an event of ours says about its commit: which, and whether it is the last of it."""

    commit: str
    part: int
    parts: int

    @property
    def is_last(self) -> bool:
        return self.part + 1 == self.parts


def step_of(entry: Entry) -> Step | None:
    """Return the step that an entry of the history is; None for what somebody else wrote."""
    origin = entry.event.origin
    if entry.verdict != Verdict.ACCEPTED or origin is None or origin.meta is None:
        return None
    meta = json.loads(origin.meta)
    try:
        return Step(meta["commit"], meta["part"], meta["parts"])
    except KeyError:
        return None


def diffs_of(commit: Commit, bytes_max: int) -> list[Diff]:
    """Return a commit's changes as one diff, or as several where one event could not hold them."""
    diffs, diff, size_bytes = [], Diff(), 0
    for path, blob in commit.changes:
        field = field_of(path)
        change_bytes = len(json.dumps(field, ensure_ascii=False).encode()) + len(blob or "") + 20
        if size_bytes + change_bytes > bytes_max:
            diffs.append(diff)
            diff, size_bytes = Diff(), 0
        diff = diff.delete(field) if blob is None else diff.set(field, blob)
        size_bytes += change_bytes
    return [*diffs, diff]


def last_commit(app: App, instance: str) -> str | None:
    """Return the last commit that an instance has whole; None for a new instance."""
    try:
        entries = app.history(instance, reverse=True)
    except InstanceNotFound:
        return None
    steps = filter(None, map(step_of, entries))
    return next((step.commit for step in steps if step.is_last), None)


def replay(
    store: EventStore, app: App, repository: Repository, instance: str, console: Console
) -> int:
    """Append what the instance does not have yet; return the number of commits.

    It may be stopped and started again at any time, and later, when the repository has grown: it
    goes on after the last commit that is there, and events that are there already, which carry
    the commit as their idempotency key, take effect once.

    Raises:
        GitError: the instance holds a history that is not an earlier part of this one.
    """
    after = last_commit(app, instance)
    try:
        count = len(repository.commit_ids(after))
    except ValueError:
        raise GitError(
            f"{app.name}/{instance} ends with commit {after}, which is not in the first-parent"
            " history of HEAD: give another --instance or --app"
        ) from None
    bytes_max = store.config.event_bytes_max - MARGIN_BYTES
    commits, quiet = repository.commits(after), not console.is_terminal
    for commit in track(
        commits, "replaying", count, console=console, transient=True, disable=quiet
    ):
        diffs = diffs_of(commit, bytes_max)
        for part, diff in enumerate(diffs):
            app.append(
                instance,
                diff,
                name="commit",
                idempotency_key=f"{commit.id}/{part}",
                occurred_at=commit.committed_at,
                actor=commit.author[:TEXT_MAX],
                meta={
                    "commit": commit.id,
                    "subject": commit.subject[:TEXT_MAX],
                    "part": part,
                    "parts": len(diffs),
                },
            )
    store.flush()
    return count


def verify(
    app: App, repository: Repository, instance: str, count: int, seed: int, console: Console
) -> list[str]:
    """Compare `count` random commits with git; return the differences, a line each.

    Compared are the whole tree of the commit (`git ls-tree`) with the state at its version, and
    for some of its paths the commit that last changed them (`git log -1`) with the history.
    """
    chance, quiet = random.Random(seed), not console.is_terminal
    versions = {
        step.commit: entry.version
        for entry in app.history(instance)
        if (step := step_of(entry)) is not None and step.is_last
    }
    commit_ids = repository.commit_ids()
    differences = []
    if list(versions) != commit_ids:
        differences.append(f"{len(versions)} commits in the store, {len(commit_ids)} in git")
    chosen = chance.sample(sorted(versions), min(count, len(versions)))
    paths: dict[str, list[str]] = {}
    for commit_id in track(chosen, "checking", console=console, transient=True, disable=quiet):
        tree = repository.tree(commit_id)
        state = dict(app.get(instance, at=versions[commit_id]))
        if state != tree:
            wrong = sorted(name for name, _ in state.items() ^ tree.items())
            differences.append(f"tree of {commit_id}: {len(wrong)} paths, {wrong[0]!r} first")
        paths[commit_id] = chance.sample(sorted(tree), min(PATHS_PER_COMMIT, len(tree)))
    for commit_id, changed in last_changes(app, instance, paths).items():
        for field, ours in changed.items():
            theirs = repository.last_change(commit_id, field)
            if ours != theirs:
                differences.append(f"{field!r} at {commit_id} changed in {theirs}, here {ours}")
    return differences


def last_changes(
    app: App, instance: str, paths: dict[str, list[str]]
) -> dict[str, dict[str, str | None]]:
    """Return which commit last changed these fields, as of these commits: one pass."""
    wanted = {field for fields in paths.values() for field in fields}
    last: dict[str, str] = {}
    found = {}
    for entry in app.history(instance):
        step = step_of(entry)
        if step is None:
            continue
        diff = Diff.from_json(json.loads(entry.event.body))
        last |= dict.fromkeys(wanted & diff.fields, step.commit)
        if step.is_last and step.commit in paths:
            found[step.commit] = {field: last.get(field) for field in paths[step.commit]}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", type=Path, metavar="REPO", help="a local git repository")
    parser.add_argument("--app", default="git")
    parser.add_argument("--instance", help="default: the repository's name")
    parser.add_argument("--url", help="a folder, or kafka://host:9092; default ./.eventstore")
    parser.add_argument("--verify", type=int, default=0, metavar="N", help="check N commits")
    parser.add_argument("--seed", type=int, help="of the random choice; default: another each time")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    try:
        repository = Repository(options.repository)
        instance = options.instance or repository.name
        with EventStore(options.url) as store:
            app = store.app(options.app)
            start_s = time.perf_counter()
            count = replay(store, app, repository, instance, console)
            took_s = time.perf_counter() - start_s
            console.print(f"{count:,} commits of {escape(instance)} replayed in {took_s:.1f} s")
            state = app.get(instance)
            console.print(
                f"{escape(app.name)}/{escape(instance)}: version {state.version:,},"
                f" {len(state):,} paths at {repository.head}"
            )
            if not options.verify:
                return 0
            start_s = time.perf_counter()
            differences = verify(app, repository, instance, options.verify, seed, console)
            took_s = time.perf_counter() - start_s
    except (EventStoreError, GitError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for difference in differences:
        console.print(escape(difference))
    console.print(
        f"{options.verify:,} random commits compared with git in {took_s:.1f} s (seed {seed}):"
        f" {len(differences)} differences"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
