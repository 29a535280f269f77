"""What the rounds of a soak have counted so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fault.store_processes import Findings

__all__ = ["COUNTS", "Counts"]


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


COUNTS = Counts()
