"""What README.md shows is run here, so that it stays true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_snippets() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_of_the_readme_runs(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)

    exec(compile(snippet, "README.md", "exec"), {})  # its own assertions are the test


def test_the_files_to_read_first_are_there() -> None:
    root = Path(__file__).parents[1]
    named = re.findall(r"^\d\. `([^`]+)`", README, re.MULTILINE)

    assert len(named) == 5
    assert all((root / name).is_file() for name in named)
