"""What README.md shows is run here, so that it stays true: the Python, then the shell's lines."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventstore.cli import eventstore

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
#: Programs and lines of the shell, in their order.
BLOCKS = re.findall(r"```(python|console)\n(.*?)```", README, re.DOTALL)
#: What the README says to save each program as.
FILES = re.findall(r"[Ss]ave \S+(?: \S+)? as `(\w+\.py)`", README)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)
    return tmp_path


def test_who_follows_the_readme_sees_what_it_says(folder: Path) -> None:
    answers = {}
    files = iter(FILES)
    for kind, text in BLOCKS:
        if kind == "python":
            file = folder / next(files)
            file.write_text(text, encoding="utf-8")
            answers[file.name] = _run([sys.executable, file])  # its own assertions are a test
        else:
            answers |= {command: _answer(command) for command in _commands(text)}

    assert next(files, None) is None
    state = json.loads(answers["eventstore get orders o-1"])["state"]
    assert state == {"items": ["book"], "status": "paid", "total": 12}
    assert json.loads(answers["eventstore get orders o-1 status --at HEAD~1"]) == "new"
    assert answers["shop.py"] == "Hello Ann, order o-1 is paid\n"
    assert json.loads(answers["eventstore get orders o-1 summary"]) == "1 of book"
    assert json.loads(answers["processors status"])["pending"] == 0
    assert answers["processors failures"] == ""
    assert "summarize" in answers["processors graph shop:orders"]
    assert len(answers) == 2 + 9


def test_a_program_of_the_readme_can_be_run_again(folder: Path) -> None:
    programs = [text for kind, text in BLOCKS if kind == "python"]
    for name, text in zip(FILES, programs, strict=True):
        (folder / name).write_text(text, encoding="utf-8")

    _run([sys.executable, folder / "orders.py"])
    greetings = [_run([sys.executable, folder / "shop.py"]) for _ in range(2)]

    assert greetings == ["Hello Ann, order o-1 is paid\n"] * 2


def _commands(block: str) -> list[str]:
    """Return the lines but `make`, which has tests of its own, and what only Ctrl-C ends."""
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    return [line for line in lines if not line.startswith("make ") and "--follow" not in line]


def _answer(command: str) -> str:
    """Run a line of the console, and return what it writes to stdout."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "eventstore":
        result = CliRunner().invoke(eventstore, arguments)
        assert result.exit_code == 0, (command, result.output)
        return result.stdout
    assert program == "processors"
    return _run([sys.executable, "-m", "processors", *arguments])


def _run(command: list[str | Path]) -> str:
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, check=False, env=here, text=True)
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    return result.stdout


def test_the_files_to_read_first_are_there() -> None:
    root = Path(__file__).parents[1]
    named = re.findall(r"^\d\. `([^`]+)`", README, re.MULTILINE)

    assert len(named) == 5
    assert all((root / name).is_file() for name in named)
