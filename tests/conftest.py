"""For all tests: a real Kafka broker where there is one, a count of what used it, and fair play.

A machine that stands still for a moment, or a shell that starts tests in the background, is no
fault of what is tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that tests import tools.broker, whichever way pytest is called

from tests.slow_threads import SlowThreads  # noqa: E402
from tools.broker import broker  # noqa: E402

#: Fixtures that need a broker: a test that asks for one of them gets the mark `kafka`.
KAFKA_FIXTURES = frozenset({"kafka_url", "kafka_brokers"})

_counts = pytest.StashKey[dict[str, int]]()

# How long an example takes says nothing on a machine that others use, too.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def kafka_url() -> str:
    """The URL of a real broker, shared by all tests: use a namespace of your own on it.

    `make test` starts one; by hand: `python tools/broker/broker.py exec -- pytest ...`.
    """
    address = os.environ.get(broker.ADDRESS_VARIABLE)
    if not address:
        _no_broker(broker.available() or f"${broker.ADDRESS_VARIABLE} is not set (see `make test`)")
    return f"kafka://{address}"


@pytest.fixture(scope="session")
def kafka_brokers() -> type[broker.Cluster]:
    """The class of brokers that a test starts, kills and stops by itself."""
    reason = broker.available()
    if reason is not None:
        _no_broker(reason)
    return broker.Cluster


def _no_broker(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"no Kafka broker: {reason}", pytrace=False)
    pytest.skip(f"no Kafka broker: {reason}")


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses, so that tests share one broker."""
    return f"t{uuid.uuid4().hex[:16]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if KAFKA_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


# --- the last line: `kafka: N run, M skipped` ---


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("slow threads", "races (tests/slow_threads.py)")
    group.addoption("--slow-threads", type=int, metavar="ROUNDS", help="slow some threads down")
    group.addoption("--slow-seed", metavar="SEED", help="slow down those of a failure again")


def pytest_configure(config: pytest.Config) -> None:
    if rounds := config.getoption("--slow-threads"):
        config.pluginmanager.register(SlowThreads(rounds, config.getoption("--slow-seed")))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As a shell has it for what it runs in the background, and the programs that tests start
        # would have it from us: those could not be interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        # Views of a Kafka log live in the user's cache folder; those of tests do not stay there.
        caches = tempfile.mkdtemp(prefix="foldlog-tests-")
        os.environ["XDG_CACHE_HOME"] = caches
        config.add_cleanup(lambda: shutil.rmtree(caches, ignore_errors=True))
    config.stash[_counts] = {"run": 0, "skipped": 0}
    if not hasattr(config, "workerinput"):  # under xdist the controller gets every report
        config.pluginmanager.register(_KafkaCount(config.stash[_counts]))


class _KafkaCount:
    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "kafka" not in report.keywords:
            return
        expected_failure = hasattr(report, "wasxfail")
        if report.skipped and not expected_failure:
            self._counts["skipped"] += 1
        elif report.when == "call" or (report.when == "setup" and report.failed):
            self._counts["run"] += 1


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        counts = config.stash[_counts]
        reporter.write_line(f"kafka: {counts['run']} run, {counts['skipped']} skipped")
