"""The last lines of a soak: its counts; and exit code 1 unless all is well."""

from __future__ import annotations

import pytest

from tests.soak.counts import CHAOS, COUNTS


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if COUNTS.wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None:
        return
    for log, counts in CHAOS.items():
        reporter.write_line(f"chaos: {log}, {counts.storms} storms, {counts}")
    if COUNTS.rounds:
        for line in COUNTS.wrong[:20]:
            reporter.write_line(line)
        reporter.write_line(f"soak: {COUNTS.rounds} rounds, {COUNTS}")
