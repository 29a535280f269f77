"""How things are measured: rounds in turns, medians, ratios, verdicts. What is measured: works.py.

The two sides of a comparison run in turns, so that a machine that is slow for a while is slow for
both: round after round, and where a side is quick, slice after slice within a round. A ratio is
taken within each round, and the median of the rounds counts.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

__all__ = ["Outcome", "Sides", "Work", "measure", "table"]


class Sides(NamedTuple):
    """One round of a work: ours, and what it is compared with; each returns one number.

    Two sides return rates (per second) or both times, so that their quotient has a meaning; ours
    alone returns an amount in the work's unit.
    """

    ours: Callable[[], float]
    against: Callable[[], float] | None = None


class Work(NamedTuple):
    """One line of the table: what is done, and the bounds that it must and should keep."""

    title: str
    unit: str
    bound: Literal["≥", "≤"]
    must: float
    goal: float
    #: Sets up and takes down; what it yields is called once per round.
    prepare: Callable[[], AbstractContextManager[Sides]]
    #: Fewer rounds for what takes a minute each and hardly varies.
    rounds_max: int = 5
    #: How many times the sides take turns within a round.
    slices: int = 1


class Outcome(NamedTuple):
    """What the rounds of one work gave, round by round."""

    work: Work
    ours: list[float]
    against: list[float]

    @property
    def values(self) -> list[float]:
        """What the bounds are about: the quotients of each round, or ours alone."""
        if not self.against:
            return self.ours
        return [ours / against for ours, against in zip(self.ours, self.against, strict=True)]

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """`goal`, `must`, or `MISSED`."""
        for name, limit in (("goal", self.work.goal), ("must", self.work.must)):
            kept = self.value >= limit if self.work.bound == "≥" else self.value <= limit
            if kept:
                return name
        return "MISSED"


def measure(work: Work, rounds: int) -> Outcome:
    """Run a work's sides in turns; the side that begins alternates, for what the first warms up."""
    ours: list[float] = []
    against: list[float] = []
    # Slices do equal amounts of work: their rates have a harmonic mean, their times a plain one.
    mean = statistics.harmonic_mean if work.bound == "≥" else statistics.fmean
    with work.prepare() as sides:
        for round_number in range(min(rounds, work.rounds_max)):
            ours_slices: list[float] = []
            against_slices: list[float] = []
            for slice_number in range(work.slices):
                begins_ours = (round_number + slice_number) % 2 == 0
                turns = [(sides.ours, ours_slices)]
                if sides.against is not None:
                    turns.append((sides.against, against_slices))
                for side, numbers in turns if begins_ours else reversed(turns):
                    gc.collect()  # garbage of the other side is not this side's work
                    numbers.append(side())
            ours.append(mean(ours_slices))
            if against_slices:
                against.append(mean(against_slices))
    return Outcome(work, ours, against)


_HEADINGS = ("work", "ours", "against", "value", "spread", "must", "goal", "verdict")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown, aligned to be read as it is."""
    rows = [_HEADINGS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(cells)} |".rstrip())
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    work, values = outcome.work, outcome.values
    against = shown(statistics.median(outcome.against)) if outcome.against else ""
    return (
        work.title,
        shown(statistics.median(outcome.ours)),
        against,
        f"{shown(outcome.value)} {work.unit}",
        f"{shown(min(values))} - {shown(max(values))}",
        f"{work.bound} {shown(work.must)}",
        f"{work.bound} {shown(work.goal)}",
        outcome.verdict,
    )


def shown(number: float) -> str:
    """Return a number with about three digits."""
    if number >= 1_000:
        return f"{number:,.0f}"
    return f"{number:.3g}"
