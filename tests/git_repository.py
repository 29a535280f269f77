"""A small git repository with everything odd that a history can have, for tests of git_history."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["git", "make_repository"]

#: A history for `git fast-import`; {} is where a commit's author, time and message come.
STREAM = rb"""blob
mark :1
data 3
one
blob
mark :2
data 3
two
commit refs/heads/main
mark :11
{1}
M 100644 :1 plain.txt
M 100644 :1 folder/inner.txt
M 100644 :1 "line\nbreak"
M 100644 :1 "latin-\351"
M 100644 :1 100%.txt
M 100644 :1 "*"
M 100644 :1 "caf\303\251"
commit refs/heads/main
mark :12
{2}
R plain.txt renamed.txt
commit refs/heads/side
mark :13
{3}
from :11
M 100644 :2 folder/side.txt
M 100644 :2 "latin-\351"
commit refs/heads/main
mark :14
{4}
from :12
merge :13
M 100644 :2 folder/side.txt
M 100644 :2 "latin-\351"
commit refs/heads/main
mark :15
{5}
M 100755 :1 renamed.txt
commit refs/heads/main
mark :16
{6}
M 160000 0123456789012345678901234567890123456789 module
commit refs/heads/main
mark :17
{7}
D folder/inner.txt
D "*"
commit refs/heads/main
mark :18
{8}
commit refs/heads/main
mark :19
{9}
D folder
M 100644 :2 folder
"""


def make_repository(folder: Path) -> Path:
    """Make a bare repository: 8 commits on the first-parent line of `main`, one more beside it."""
    stream = STREAM
    for number in range(1, 10):
        message = b"commit %d" % number
        facts = b"committer \xc3\x89mile <e@example.org> %d +0100\n" % (1_000_000_000 + number)
        facts += b"data %d\n%s" % (len(message), message)
        stream = stream.replace(b"{%d}" % number, facts)
    git("init", "-q", "--bare", "-b", "main", str(folder))
    git("-C", str(folder), "fast-import", "--quiet", input=stream)
    return folder


def git(*arguments: str, input: bytes = b"") -> bytes:
    """Run git and return what it prints; CalledProcessError when it fails."""
    done = subprocess.run(["git", *arguments], input=input, capture_output=True, check=True)
    return done.stdout
