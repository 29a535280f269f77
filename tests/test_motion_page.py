"""What docs/motion.md says is checked here: its program runs, its names exist, its tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import processors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "motion.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)

#: All that `from motion import *` gives, with every extra installed.
NAMES = [
    "Application", "Component", "ComponentInstance", "DiscardPolicy", "MDataFrame", "MTable",
    "RedisParams", "StateMigrator", "UpdateEventGroup", "clear_instance", "copy_db",
    "get_instances", "inspect_state",
]  # fmt: skip


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_program_of_the_page_runs(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)

    exec(compile(snippet, "docs/motion.md", "exec"), {"__name__": "__main__"})  # it asserts


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_on_the_page_and_is_there_unless_it_says_so(name: str) -> None:
    rows = [line for line in PAGE.splitlines() if re.match(rf"\| [^|]*`{name}`[^|]*\|", line)]

    assert len(rows) == 1
    assert hasattr(processors, name) != ("not offered" in rows[0])


def test_every_test_that_the_page_names_is_there() -> None:
    missing = [
        f"{file}::{name}"
        for file, name in NAMED_TESTS
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]

    assert len(NAMED_TESTS) > 30
    assert missing == []
