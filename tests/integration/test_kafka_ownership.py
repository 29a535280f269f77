"""Ownership on a real broker: members join, leave and die, and every partition has one owner."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore.config import Config
from eventstore.log.base import Topic
from eventstore.log.kafka import KafkaLog
from tests.contract.logs import eventually
from tests.integration.kafka import made

#: The session timeout of 6 s, and a second for the others to hear of it; and a busy machine.
CRASH_HAND_OVER_S = 7.0
SLACK_S = 8.0

#: A member in a process of its own: says what it holds, until it is killed.
MEMBER = """
import sys
from eventstore.config import Config
from eventstore.log.kafka import KafkaLog

url, namespace = sys.argv[1:]
log = KafkaLog(url, Config.load({}, namespace=namespace))
topic = log.topic(f"{namespace}.app", create=False)
log.own(topic, "runners", lambda shards: print(len(shards), flush=True))
sys.stdin.read()
"""


class Member:
    def __init__(self, log: KafkaLog, topic: Topic) -> None:
        self.history: list[frozenset[int]] = []
        self.ownership = log.own(topic, "runners", self.history.append)

    @property
    def shards(self) -> frozenset[int]:
        return self.ownership.shards


@pytest.fixture
def log(kafka_url: str, namespace: str) -> Iterator[KafkaLog]:
    log = KafkaLog(kafka_url, Config.load({}, namespace=namespace, partitions=6))
    yield log
    log.close()


@pytest.fixture
def long_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that stands still is a member for five minutes."""
    monkeypatch.setattr("eventstore.log.kafka_owner._SESSION_TIMEOUT_MS", 300_000)


@pytest.mark.usefixtures("long_sessions")
def test_a_member_that_joins_gets_half_without_stopping_the_other_half(
    log: KafkaLog, namespace: str
) -> None:
    topic = made(log, f"{namespace}.app")
    first = Member(log, topic)
    assert eventually(lambda: len(first.shards) == 6)

    second = Member(log, topic)

    assert eventually(lambda: len(second.shards) == 3)
    assert first.shards | second.shards == frozenset(range(6))
    assert not first.shards & second.shards
    kept = first.shards
    assert all(kept <= shards for shards in first.history), "what stays was never taken away"


@pytest.mark.usefixtures("long_sessions")
def test_a_member_that_leaves_gives_everything_back_long_before_its_session_ends(
    log: KafkaLog, namespace: str
) -> None:
    topic = made(log, f"{namespace}.app")
    first, second = Member(log, topic), Member(log, topic)
    assert eventually(lambda: len(first.shards) == len(second.shards) == 3)

    first.ownership.close()

    assert first.shards == frozenset()
    assert eventually(lambda: len(second.shards) == 6)


def test_the_shards_of_a_killed_process_go_to_the_others_in_time(
    log: KafkaLog, namespace: str, kafka_url: str
) -> None:
    topic = made(log, f"{namespace}.app")
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, kafka_url, namespace],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "6\n"
        survivor = Member(log, topic)
        assert eventually(lambda: len(survivor.shards) == 3)
        began = time.monotonic()

        process.kill()

        assert eventually(lambda: len(survivor.shards) == 6)
        assert time.monotonic() - began < CRASH_HAND_OVER_S + SLACK_S
