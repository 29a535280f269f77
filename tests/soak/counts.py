"""What the rounds of a soak have counted so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fault.store_processes import Findings

__all__ = ["CHAOS", "COUNTS", "ChaosCounts", "Counts"]


@dataclass
class Counts:
    """Sums over all rounds of this process; `wrong` has each fault in words."""

    rounds: int = 0
    acknowledged: int = 0
    kills: int = 0
    restarts: int = 0
    lost: int = 0
    twice: int = 0
    differences: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, found: Findings) -> None:
        self.lost += len(found.lost)
        self.twice += len(found.twice)
        self.wrong += [f"lost: {token}" for token in found.lost]
        self.wrong += [f"twice: {token}" for token in found.twice]
        self.add_differences(found.differences)

    def add_differences(self, differences: Iterable[str]) -> None:
        before = len(self.wrong)
        self.wrong += differences
        self.differences += len(self.wrong) - before

    def __str__(self) -> str:
        return (
            f"{self.acknowledged:,} events acknowledged, {self.kills} kills, {self.restarts}"
            f" restarts: {self.lost} lost, {self.twice} twice, {self.differences} differences"
        )


@dataclass
class ChaosCounts:
    """Sums over the storms of one log (test_processing.py)."""

    storms: int = 0
    requests: int = 0
    kills: int = 0
    broker_kills: int = 0
    zombies: int = 0
    lost: int = 0
    twice: int = 0
    disordered: int = 0

    def __str__(self) -> str:
        brokers = f" ({self.broker_kills} of the broker)" if self.broker_kills else ""
        return (
            f"{self.requests:,} requests, {self.kills} kills{brokers}, {self.zombies} zombies:"
            f" {self.lost} lost, {self.twice} twice, {self.disordered} out of order"
        )


COUNTS = Counts()
#: By the name of the log.
CHAOS: dict[str, ChaosCounts] = {}
