"""The logs that the contract suite asks: each test runs once per backend."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventstore.config import Config
from eventstore.log import open_log
from eventstore.log.base import Log, Topic

LOGS = ["memory", "memory-4", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.fixture(params=LOGS)
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty log; opening it twice gives two handles on one log."""
    name = uuid.uuid4().hex
    if request.param == "kafka":
        return str(request.getfixturevalue("kafka_url"))
    if request.param == "sqlite":
        return str(tmp_path / "log")
    return f"memory://{name}?partitions={4 if request.param == 'memory-4' else 1}"


@pytest.fixture
def log_config(namespace: str) -> Config:
    return Config.load({}, namespace=namespace, partitions=4)


@pytest.fixture
def open_log_again(log_url: str, log_config: Config) -> Iterator[Callable[[], Log]]:
    """Opens the log once more at each call; all are closed at the end."""
    with ExitStack() as stack:

        def open_again() -> Log:
            opened = open_log(log_url, log_config)
            stack.callback(opened.close)
            return opened

        yield open_again


@pytest.fixture
def log(open_log_again: Callable[[], Log]) -> Log:
    return open_log_again()


@pytest.fixture
def topic(log: Log, namespace: str) -> Topic:
    created = log.topic(f"{namespace}.app", create=True)
    assert created is not None
    return created
