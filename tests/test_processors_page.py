"""docs/processors.md is run: each of its programs as a script of its own, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "processors.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("section", PROGRAMS)
def test_a_program_of_the_page_runs(section: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAMS[section], encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "EVENTSTORE_URL"}

    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr


def test_the_page_has_its_programs() -> None:
    assert len(PROGRAMS) == 4
