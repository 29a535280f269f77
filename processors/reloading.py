"""`--reload`: runs the daemon as a child, and starts it anew when its source changes.

For the desk. The parent imports nothing of the user's, so that each child begins with the files as
they are; a child that cannot import them ends, and the next change is the next try.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Final

from processors.logs import say

__all__ = ["is_reloaded", "run_reloaded", "stop_with_parent", "tell_files"]

#: Where the child writes which files it has loaded, and how old they were then, one a line.
_FILES_VARIABLE: Final = "FOLDLOG_RELOAD_FILES"
_LOOK_S: Final = 1.0
#: What a child gets beyond its own deadline before it is killed.
_GRACE_S: Final = 5.0


def is_reloaded() -> bool:
    """Whether this process is such a child."""
    return _FILES_VARIABLE in os.environ


def tell_files(files: Iterable[Path]) -> None:
    """Tell the parent what to watch; does nothing in a process that has no such parent."""
    place = os.environ.get(_FILES_VARIABLE)
    if place:
        new = Path(f"{place}.new")
        lines = (f"{_time_ns(file)} {file}\n" for file in files)
        new.write_text("".join(lines), encoding="utf-8")
        new.replace(place)


def stop_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when the parent is gone, however it went: it holds the other end of stdin."""

    def wait() -> None:
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
            while stdin.read(1):
                pass
        stop()

    threading.Thread(target=wait, name="processors-parent", daemon=True).start()


def run_reloaded(arguments: Sequence[str], stop_timeout_s: float) -> int:
    """Run `processors` with these arguments, again after each change; return its exit code.

    SIGTERM and SIGINT are passed on. The child has a process group of its own, so that Ctrl-C
    reaches it once.
    """
    signals: SimpleQueue[int] = SimpleQueue()
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda number, _: signals.put(number))
    with TemporaryDirectory(prefix="processors-") as folder:
        files = Path(folder) / "files"
        while True:
            code = _run_once(arguments, files, signals, stop_timeout_s)
            if code is not None:
                return code


def _run_once(
    arguments: Sequence[str], files: Path, signals: SimpleQueue[int], stop_timeout_s: float
) -> int | None:
    """Run one child; None when its files changed, while it ran or since it ended."""
    files.unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "processors", *arguments],
        stdin=subprocess.PIPE,
        env={**os.environ, _FILES_VARIABLE: str(files)},
        process_group=0 if os.name == "posix" else None,
    )
    try:
        is_ended = False
        while True:
            try:
                child.send_signal(signals.get(timeout=_LOOK_S))
            except Empty:
                pass
            else:
                return _await_end(child, signals, stop_timeout_s)
            if not is_ended and child.poll() is not None:
                if child.returncode == 0 or not files.exists():
                    return child.returncode
                is_ended = True
                say("ended", code=child.returncode, next="waiting for a change of its files")
            changed = _changed(files)
            if changed:
                say("reload", changed=changed)
                return None
    finally:
        _end(child, stop_timeout_s)


def _changed(files: Path) -> list[str]:
    """Return the names of the files that are not as they were when the child loaded them."""
    try:
        lines = files.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # it has not told yet
    told = (line.partition(" ") for line in lines)
    return [Path(name).name for time, _, name in told if _time_ns(Path(name)) != int(time)]


def _time_ns(file: Path) -> int:
    """Return when a file was last changed; 0 of one that is gone."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _await_end(
    child: subprocess.Popen[bytes], signals: SimpleQueue[int], stop_timeout_s: float
) -> int:
    """Pass signals on until the child has ended; a shell's code where a signal ended it."""
    deadline = time.monotonic() + stop_timeout_s + _GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        try:
            child.send_signal(signals.get(timeout=0.05))
        except Empty:
            continue
    if child.poll() is None:
        child.kill()
    code = child.wait()
    return 128 - code if code < 0 else code


def _end(child: subprocess.Popen[bytes], stop_timeout_s: float) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(stop_timeout_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdin is not None:
        child.stdin.close()
