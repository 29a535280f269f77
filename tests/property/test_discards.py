"""Which of the requests that wait are given up, for random arrivals.

Goal: the arithmetic of discard-after, and that something always gets through. Method: a lane, the
log's clock and the decision stand beside a model of a few lines, under a fake clock; one worker
takes what is next, as the runner does. Times are eighths of a second, which floats have exactly.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from eventstore import Discard
from eventstore.processing import Pending
from processors.clock import LogClock
from processors.policy import DiscardPolicy
from processors.runner.discards import decide
from processors.runner.lanes import Lane

#: The broker's clock is not ours: ages must not depend on it.
LOG_AHEAD_MS = 1_700_000_000_000
TICK_MS = 125

ticks = st.integers(0, 40)
policies = st.one_of(
    st.builds(Discard, st.just(DiscardPolicy.NUM_NEW_UPDATES), st.integers(1, 5), st.booleans()),
    st.builds(
        Discard,
        st.just(DiscardPolicy.SECONDS),
        ticks.map(lambda n: (n + 1) * TICK_MS),
        st.booleans(),
    ),
)


class Done(NamedTuple):
    """What a worker did: requests by number, in order, and when it began those that it ran."""

    ran: list[int]
    discarded: list[int]
    begun_ms: list[int]


def work(arrivals_ms: list[int], run_ms: int, policy: Discard) -> Done:
    """Let one worker deal with requests that arrive at these times, until none is left."""
    lane, done = Lane("i", 0), Done([], [], [])
    now_ms, arrived = 0, 0
    clock = LogClock(lambda: now_ms / 1_000)
    while len(done.ran) + len(done.discarded) < len(arrivals_ms):
        while arrived < len(arrivals_ms) and arrivals_ms[arrived] <= now_ms:
            time_ms = arrivals_ms[arrived] + LOG_AHEAD_MS
            clock.seen(time_ms)
            request = Pending(arrived, "k/note", "", 0, 0, None)
            assert lane.add(request, time_ms, None, taken_over=False) is not None
            arrived += 1
        one = lane.next(clock.now_ms())
        if one is None:
            now_ms = arrivals_ms[arrived]
            continue
        age_ms = clock.now_ms() - one.time_ms
        if decide(policy, age_ms=age_ms, newer=lane.newer(one)).is_stale:
            done.discarded.append(one.sequence)
        else:
            done.ran.append(one.sequence)
            done.begun_ms.append(now_ms)
            now_ms += run_ms
        lane.closed(one.sequence)
    return done


def model(arrivals_ms: list[int], run_ms: int, policy: Discard) -> list[int]:
    """Return which requests run: of those that have come, the first that is fresh enough."""
    ran, free_ms, number = [], 0, 0
    while number < len(arrivals_ms):
        free_ms = max(free_ms, arrivals_ms[number])
        come = [time_ms for time_ms in arrivals_ms if time_ms <= free_ms]
        if policy.policy == DiscardPolicy.NUM_NEW_UPDATES:
            number = max(number, len(come) - policy.after)
        else:
            old = sum(free_ms - time_ms > policy.after for time_ms in come)
            number = max(number, old)
        if number < len(come):
            ran.append(number)
            free_ms, number = free_ms + run_ms, number + 1
    return ran


@given(st.lists(ticks, max_size=40), ticks, policies)
def test_what_runs_is_what_a_model_of_ten_lines_says(
    gaps: list[int], run: int, policy: Discard
) -> None:
    arrivals_ms = [TICK_MS * total for total in itertools.accumulate(gaps)]

    done = work(arrivals_ms, run * TICK_MS, policy)

    assert done.ran == model(arrivals_ms, run * TICK_MS, policy)
    assert sorted(done.ran + done.discarded) == list(range(len(arrivals_ms)))
    assert done.ran == sorted(done.ran)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(10, 60), policies)
def test_steady_arrivals_faster_than_the_update_let_one_through_per_run_time(
    gap: int, more: int, count: int, policy: Discard
) -> None:
    gap_ms, run_ms = gap * TICK_MS, (gap + more) * TICK_MS
    arrivals_ms = [number * gap_ms for number in range(count)]

    done = work(arrivals_ms, run_ms, policy)

    # It never waits longer than for the next one to come, as long as they come.
    steady = [begun_ms for begun_ms in done.begun_ms if begun_ms <= arrivals_ms[-1]]
    assert all(later - earlier <= run_ms + gap_ms for earlier, later in itertools.pairwise(steady))
    assert steady[0] == 0
    assert arrivals_ms[-1] - steady[-1] <= run_ms + gap_ms


@given(ticks, ticks, st.integers(-1_000, 1_000))
def test_the_age_of_a_request_does_not_depend_on_whose_clock_is_right(
    came: int, passed: int, ahead_s: int
) -> None:
    now_ms = came * TICK_MS
    clock = LogClock(lambda: now_ms / 1_000)
    time_ms = now_ms + LOG_AHEAD_MS + ahead_s * 1_000
    clock.seen(time_ms)

    now_ms += passed * TICK_MS

    assert clock.now_ms() - time_ms == passed * TICK_MS
