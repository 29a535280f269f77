"""What README.md shows is run here, so that it stays true: the Python, then the shell's lines."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventstore.cli import eventstore

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE_LINES = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
#: Without `make`, which has tests of its own, and what ends with Ctrl-C only.
COMMANDS = [
    line for line in CONSOLE_LINES if not line.startswith("make ") and "--follow" not in line
]


def test_the_readme_has_snippets() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_of_the_readme_runs(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)

    exec(compile(snippet, "README.md", "exec"), {})  # its own assertions are the test


def test_the_commands_of_the_readme_show_what_its_snippets_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), {})

    answers = {command: _answer(command) for command in COMMANDS}

    assert len(answers) >= 4
    assert all(answers.values())  # each shows something
    state = json.loads(answers["eventstore get orders o-1"])["state"]
    assert state == {"items": ["book"], "status": "paid", "total": 12}
    assert json.loads(answers["eventstore get orders o-1 status --at HEAD~1"]) == "new"


def _answer(command: str) -> str:
    """Run a line of the console in this process, and return what it writes to stdout."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "eventstore"
    result = CliRunner().invoke(eventstore, arguments)
    assert result.exit_code == 0, (command, result.output)
    return result.stdout


def test_the_files_to_read_first_are_there() -> None:
    root = Path(__file__).parents[1]
    named = re.findall(r"^\d\. `([^`]+)`", README, re.MULTILINE)

    assert len(named) == 5
    assert all((root / name).is_file() for name in named)
