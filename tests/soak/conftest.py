"""The last lines of a soak: its counts, and exit code 1 unless all is well."""

from __future__ import annotations

import pytest

from tests.soak.counts import COUNTS


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if COUNTS.wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS.rounds:
        for line in COUNTS.wrong[:20]:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"soak: {COUNTS.rounds} rounds, {COUNTS}")
