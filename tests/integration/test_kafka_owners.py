"""Owners on other hosts, as `processors status` shows them.

Method: a daemon in a process of its own that says of itself that it is on another host, and has its
views, and so its notices, elsewhere. Here only its group tells of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer

from eventstore import EventStore
from eventstore.log import kafka_client
from processors.cli import processors
from processors.component import Component
from processors.notices import NoticeBoard, Publisher
from processors.runner import Runner
from processors.status import AppStatus, status_of
from tests.contract.logs import eventually

WAIT_S = 60.0
PARTITIONS = 8

DAEMON = """
import socket
socket.gethostname = lambda: "elsewhere"
from processors.cli import processors
processors()
"""

COMPONENT = """
from processors import Component

cart = Component("cart")

@cart.update("add")
def keep(state, props):
    return {"n": state.get("n", 0) + 1}
"""


class Place:
    """An app on Kafka, whose daemons elsewhere have a folder of their own."""

    def __init__(self, url: str, namespace: str, folder: Path) -> None:
        self.url, self._namespace, self._folder = url, namespace, folder
        self._module = f"shop_{uuid.uuid4().hex}"
        (folder / f"{self._module}.py").write_text(COMPONENT)
        self.store = EventStore(url, namespace=namespace)
        self.store.app("cart").append("u-1", {"n": 0}).result(WAIT_S)

    @contextlib.contextmanager
    def daemon_elsewhere(self) -> Iterator[int]:
        """A daemon on another host; its process."""
        root = Path(__file__).parents[2]
        environment = {
            **os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(self._folder / "cache"),
        }  # fmt: skip
        daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, "run", f"{self._module}:cart", *self._options],
            cwd=self._folder, env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with daemon:
            try:
                yield daemon.pid
            finally:
                daemon.kill()

    @contextlib.contextmanager
    def runner_here(self) -> Iterator[Publisher]:
        """A runner of this process, with its notice up."""
        component = Component("cart")
        component.update("add")(lambda state, props: None)
        runner = Runner(self.store, component).start()
        publisher = Publisher(NoticeBoard.of(self.store, "cart"), component, runner)
        try:
            assert runner.wait_ready(WAIT_S)
            publisher.tick()
            yield publisher
        finally:
            publisher.close()
            runner.stop()

    def until(self, *shards: int) -> AppStatus:
        """Wait until the owners elsewhere are those with so many shards each; return the status."""
        found: list[AppStatus] = []

        def is_so() -> bool:
            found.append(status_of(self.store, "cart"))
            return [len(owner.shards) for owner in found[-1].elsewhere] == list(shards)

        assert eventually(is_so, WAIT_S), found[-1]
        return found[-1]

    def status(self) -> dict[str, Any]:
        result = CliRunner().invoke(processors, ("status", "cart", *self._options))
        assert result.exit_code == 0, result.output
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def table(self) -> list[str]:
        arguments = ("status", "cart", "--table", *self._options)
        return CliRunner().invoke(processors, arguments).stdout.splitlines()

    @property
    def _options(self) -> tuple[str, ...]:
        return ("--url", self.url, "--namespace", self._namespace)


@pytest.fixture
def place(
    kafka_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.setenv("COLUMNS", "200")
    place = Place(kafka_url, namespace, tmp_path)
    yield place
    place.store.close()


def test_an_owner_on_another_host_is_shown_with_its_shards_and_nothing_else(place: Place) -> None:
    with place.daemon_elsewhere() as process:
        place.until(PARTITIONS)

        status, table = place.status(), place.table()

    (owner,) = status["owners"]
    assert (owner["known"], owner["process"], owner["host"]) == ("shards", process, "elsewhere")
    assert (owner["shards"], status["shards_free"]) == (list(range(PARTITIONS)), [])
    assert [owner[name] for name in ("since_ms", "running", "counts", "rates")] == [None] * 4
    assert (status["running"], status["rates"], status["faults"]) == (None, None, [])
    assert status["owners_not_known"] is None
    (row,) = [line.split() for line in table if "elsewhere" in line]
    assert row == ["cart", str(process), "elsewhere", "unknown", "0-7", "unknown"]
    (row,) = [line.split() for line in table if "8 of 8" in line]
    assert row.count("unknown") == 4, "what runs, and three rates"


def test_an_owner_on_this_host_is_shown_once_and_with_all_that_it_says(place: Place) -> None:
    with place.runner_here() as publisher, place.daemon_elsewhere() as process:
        place.until(PARTITIONS // 2)
        publisher.tick()

        status, table = place.status(), place.table()

    here, elsewhere = status["owners"]
    assert (here["known"], here["process"]) == ("all", os.getpid())
    assert (elsewhere["known"], elsewhere["process"]) == ("shards", process)
    assert sorted(here["shards"] + elsewhere["shards"]) == list(range(PARTITIONS))
    assert status["running"] == 0
    (row,) = [line for line in table if "8 of 8" in line]
    assert "0 here" in row, "what runs elsewhere is not counted"


def test_a_client_with_a_name_of_its_users_is_known_by_its_address(
    kafka_url: str, namespace: str, tmp_path: Path
) -> None:
    place = Place(f"{kafka_url}?client.id=shop", namespace, tmp_path)
    with place.runner_here() as publisher, place.daemon_elsewhere():
        place.until(PARTITIONS // 2)
        publisher.tick()

        here, elsewhere = place.status()["owners"]
    place.store.close()

    assert (here["known"], here["process"]) == ("all", os.getpid())
    assert (elsewhere["process"], elsewhere["client"]) == (None, "shop")
    assert elsewhere["host"] == elsewhere["address"] == "127.0.0.1"


def test_a_group_that_is_just_sharing_its_shards_out_is_said_to_do_so(
    place: Place, kafka_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_client, "MEMBERS_TIMEOUT_S", 0.5)
    options = {
        "bootstrap.servers": kafka_url.removeprefix("kafka://"),
        "group.id": f"{namespace}.cart.cart",
    }
    # One that does not give back what it is asked for, because it does not look.
    holder, joiner = Consumer(options), Consumer(options)
    given: list[object] = []
    holder.subscribe(
        [f"{namespace}.cart"],
        on_assign=lambda consumer, places: given.append(places),
        on_revoke=lambda consumer, places: None,
    )
    assert eventually(lambda: bool(holder.poll(0.1) or given), WAIT_S)

    joiner.subscribe([f"{namespace}.cart"])

    def is_said() -> bool:
        joiner.poll(0.0)
        why = status_of(place.store, "cart").not_known
        return why is not None and "it is just sharing its partitions out" in why

    assert eventually(is_said, WAIT_S)
    status = status_of(place.store, "cart")
    assert (status.unowned, status.faults) == (0, [])
    holder.close()
    joiner.close()
