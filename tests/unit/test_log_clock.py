"""LogClock: the log's time, from the times of its records and what has passed here since."""

from __future__ import annotations

import pytest

from processors.clock import LogClock


class Monotonic:
    """This machine's time, which passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


@pytest.fixture
def clock(monotonic: Monotonic) -> LogClock:
    return LogClock(monotonic)


def test_it_does_not_know_the_time_before_it_is_told_any(clock: LogClock) -> None:
    assert not clock.is_set
    assert clock.now_ms() == 0


def test_time_passes_between_records_as_it_does_here(clock: LogClock, monotonic: Monotonic) -> None:
    clock.seen(50_000)

    monotonic.now_s += 1.5

    assert clock.is_set
    assert clock.now_ms() == 51_500


def test_a_record_that_took_long_to_get_here_does_not_set_it_back(
    clock: LogClock, monotonic: Monotonic
) -> None:
    clock.seen(50_000)
    monotonic.now_s += 10

    clock.seen(50_001)

    assert clock.now_ms() == 60_000


def test_a_record_from_ahead_of_it_sets_it_forward(clock: LogClock, monotonic: Monotonic) -> None:
    clock.seen(50_000)
    monotonic.now_s += 1

    clock.seen(55_000)

    assert clock.now_ms() == 55_000
