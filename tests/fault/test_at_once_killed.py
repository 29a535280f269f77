"""A process is killed while it runs updates at once: what it was told is there, and once.

Goal: each call that returned has taken effect exactly once, in its order; of those that did not
return, the last of each thread may have taken effect, once. Method: children run updates that leave
tokens in one instance's log, and say each token when its call has returned; they are killed at
named points, and at random, alone and while others run the same instance. Then the tokens are
compared with what was said, and the view with the log.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventstore import EventStore, Kind, Verdict
from eventstore.history.verify import verify_app
from tests.fault.at_once_child import INSTANCE, component
from tests.fault.sqlite_processes import Child

WAIT_S = 60.0

#: Calls of a child that is to be killed before it is through.
FOREVER = 1_000_000
#: Calls that returned in one, at the least, before it is killed at a random moment.
CALLS_MIN = 5
#: Calls of a child that goes on where another ended.
FOLLOWING = 5


class AtOnceChild(Child):
    """A process of at_once_child.py."""

    MODULE = "tests.fault.at_once_child"


@contextmanager
def child(
    folder: Path, name: str, *, threads: int = 1, calls: int = FOREVER, fault: str = ""
) -> Iterator[AtOnceChild]:
    started = AtOnceChild("run", folder, name, threads, calls, fault=fault)
    try:
        yield started
    finally:
        started.close()


def check(folder: Path, said: Iterable[str], unsaid_max: int) -> list[str]:
    """Run what is left, and compare what is there with what was said; return what was not.

    Every token that was said is there, none is there twice, those of a thread are in order, and no
    more others than `unsaid_max`.
    """
    with EventStore(folder) as store:
        app = store.app(component.name)
        with component(INSTANCE, store=store) as instance:
            instance.flush_update("k")
        state = app.get(INSTANCE, fresh=True)
        tokens: list[str] = list(state["log"])
        requests = [entry for entry in app.history(INSTANCE) if entry.event.kind == Kind.REQUEST]
        assert state["count"] == len(tokens) == len(requests)
        assert {entry.verdict for entry in requests} <= {Verdict.ACCEPTED}
        assert not list(app.pending())
        assert not list(app.failures())
        assert not verify_app(store, component.name).differences
    assert [token for token, count in Counter(tokens).items() if count > 1] == []
    unsaid = sorted(set(tokens) - set(said))
    assert [token for token in said if token not in set(tokens)] == []
    assert len(unsaid) <= unsaid_max, unsaid
    for thread in {token.rpartition("-")[0] for token in tokens}:
        numbers = [number_of(token) for token in tokens if token.rpartition("-")[0] == thread]
        assert numbers == list(range(len(numbers))), thread
    return unsaid


def number_of(token: str) -> int:
    return int(token.rpartition("-")[2])


@pytest.mark.parametrize(
    ("point", "is_applied"),
    [
        ("processor.handler.before:6", False),
        ("processor.handler.after:6", False),
        ("event.encode.after:9", False),
        ("processor.append.before:6", False),
        ("log.commit.before:9", False),
        ("log.commit.inside:9", False),
        ("log.commit.after:9", True),
        ("log.acknowledged:9", True),
        ("processor.append.after:6", True),
        ("view.batch.inside:9", True),
    ],
)
def test_a_call_that_returned_has_taken_effect_once_though_its_process_dies(
    tmp_path: Path, point: str, is_applied: bool
) -> None:
    with child(tmp_path, "killed", fault=point) as killed:
        killed.end()
        assert killed.process.returncode == -signal.SIGKILL
    unsaid = check(tmp_path, killed.lines, unsaid_max=1)
    with child(tmp_path, "following", calls=FOLLOWING) as following:
        following.end()

    assert killed.lines
    # Of what a commit has just told the caller may have heard, when another thread has led it.
    assert len(unsaid) in ({0, 1} if point == "log.acknowledged:9" else {is_applied})
    assert following.process.returncode == 0
    check(tmp_path, [*killed.lines, *following.lines], unsaid_max=len(unsaid))


def test_a_process_that_dies_while_the_log_s_file_grows_has_lost_no_call(tmp_path: Path) -> None:
    with child(tmp_path, "killed", fault="log.growth.inside") as killed:
        killed.end()
        assert killed.process.returncode == -signal.SIGKILL

    assert len(killed.lines) > 10
    check(tmp_path, killed.lines, unsaid_max=1)


@pytest.mark.parametrize(
    "point",
    [
        "processor.handler.after:20",
        "processor.append.before:20",
        "log.commit.inside:30",
        "log.commit.after:30",
        "log.acknowledged:30",
    ],
)
def test_of_two_processes_that_run_one_instance_one_dies_and_the_other_goes_on_until_it_dies_too(
    tmp_path: Path, point: str
) -> None:
    with child(tmp_path, "a", fault=point) as first, child(tmp_path, "b", fault=point) as second:
        for one in (first, second):
            one.end()
            assert one.process.returncode == -signal.SIGKILL

    assert len(first.lines) + len(second.lines) > 20
    check(tmp_path, [*first.lines, *second.lines], unsaid_max=2)


def test_kills_at_random_moments_lose_no_call_and_repeat_none(tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")  # shown by pytest when this fails
    choose = random.Random(seed)
    said: list[str] = []

    for generation in range(4):  # each goes on with what the killed ones left
        with (
            child(tmp_path, f"a{generation}", threads=2) as first,
            child(tmp_path, f"b{generation}") as second,
        ):
            count = choose.randrange(CALLS_MIN, 60)
            first.until(lambda lines, count=count: len(lines) >= count)  # type: ignore[misc]
            for one in choose.sample([first, second], 2):
                one.kill()
                said += one.lines

    assert len(said) >= 4 * CALLS_MIN
    check(tmp_path, said, unsaid_max=4 * 3)


def test_threads_of_several_processes_that_run_one_instance_each_count_once(
    tmp_path: Path,
) -> None:
    threads, calls = 4, 25

    with (
        child(tmp_path, "a", threads=threads, calls=calls) as first,
        child(tmp_path, "b", threads=threads, calls=calls) as second,
    ):
        for one in (first, second):
            one.end()
            assert one.process.returncode == 0
    said: Sequence[str] = [*first.lines, *second.lines]

    assert len(said) == 2 * threads * calls
    assert check(tmp_path, said, unsaid_max=0) == []
