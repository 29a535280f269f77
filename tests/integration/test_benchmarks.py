"""The benchmarks run: every line of the table gives a number, at a hundredth of its size.

They say nothing about speed here, which a busy machine cannot show; this keeps them from rotting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import processing, run
from benchmarks.frame import Outcome, Sides, Work, measure, table
from benchmarks.peer import PeerMissing
from benchmarks.processing import processor_works
from benchmarks.works import Place, works

#: Each slice collects the garbage of the whole process, which may have run all other tests.
pytestmark = pytest.mark.timeout(300)

NOWHERE = Place(Path(), kafka_address="nowhere")
TITLES = [work.title for work in works(NOWHERE)]
PROCESSOR_TITLES = [work.title for work in processor_works(NOWHERE)]


@pytest.mark.parametrize("title", [title for title in TITLES if not title.startswith("Kafka")])
def test_every_line_of_the_table_can_be_measured(title: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kafka_address=None, scale=0.01)
    (work,) = (work for work in works(place) if work.title == title)

    outcome = measure(work, rounds=1)

    assert outcome.value > 0


@pytest.mark.parametrize("title", [title for title in TITLES if title.startswith("Kafka")])
def test_every_line_of_kafka_can_be_measured(title: str, tmp_path: Path, kafka_url: str) -> None:
    place = Place(tmp_path, kafka_url.removeprefix("kafka://"), scale=0.01)
    (work,) = (work for work in works(place) if work.title == title)

    outcome = measure(work, rounds=1)

    assert outcome.value > 0


class PeerOfTests:
    """Measures nothing: no test installs Motion, so only our side of its lines is done."""

    description = "nobody"

    def measure(self, work: str, **amounts: int | str) -> float:
        return 1.0


@contextmanager
def peer_of_tests(folder: Path) -> Iterator[PeerOfTests]:
    yield PeerOfTests()


@pytest.mark.parametrize("title", PROCESSOR_TITLES)
def test_every_line_of_processors_can_be_measured(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "motion", peer_of_tests)
    place = Place(tmp_path, kafka_address=None, scale=0.01)
    (work,) = (work for work in processor_works(place) if work.title == title)

    outcome = measure(work, rounds=1)

    assert outcome.value > 0


def test_without_a_peer_its_lines_are_left_out_and_the_table_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def missing(folder: Path) -> Iterator[PeerOfTests]:
        raise PeerMissing("no Redis here")
        yield

    monkeypatch.setattr(run, "motion", missing)
    options = ["--scale", "0.01", "--rounds", "1", "--only", "read_state"]

    code = run.main([*options, "--folder", str(tmp_path / "bench")])

    printed = capsys.readouterr().out
    assert code in (0, 1)
    assert "peer: not measured (no Redis here)" in printed
    assert "| read_state |" in printed
    assert "read_state / Motion" not in printed


def test_the_program_prints_a_table_and_writes_the_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENTSTORE_TEST_KAFKA", raising=False)
    file = tmp_path / "rounds.json"
    options = ["--scale", "0.01", "--rounds", "3", "--only", "eventsourcing"]

    code = run.main([*options, "--folder", str(tmp_path / "bench"), "--json", str(file)])

    rounds = json.loads(file.read_text())
    assert code in (0, 1)
    assert "| append_many of 100 / PyPI eventsourcing " in capsys.readouterr().out
    assert [len(line["ours"]) for line in rounds] == [3, 3]
    assert not list((tmp_path / "bench").iterdir())


def work_of(ours: list[float], against: list[float], *, must: float, goal: float) -> Work:
    """Return a work whose rounds give these numbers."""
    ours_left, against_left = iter(ours), iter(against)

    @contextmanager
    def prepare() -> Iterator[Sides]:
        yield Sides(lambda: next(ours_left), (lambda: next(against_left)) if against else None)

    return Work("a work", "x", "≥", must, goal, prepare)


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine is ten times slower in the second round, for both sides.
    work = work_of([100.0, 10.0, 110.0], [200.0, 20.0, 200.0], must=0.4, goal=0.9)

    outcome = measure(work, rounds=3)

    assert outcome.values == [0.5, 0.5, 0.55]
    assert outcome.value == 0.5
    assert outcome.verdict == "must"


@pytest.mark.parametrize(
    ("must", "goal", "verdict"), [(1, 2, "goal"), (1, 3, "must"), (3, 4, "MISSED")]
)
def test_the_verdict_names_the_bound_that_was_kept(must: float, goal: float, verdict: str) -> None:
    outcome = measure(work_of([2.0], [], must=must, goal=goal), rounds=1)

    assert outcome.verdict == verdict
    assert f"| {verdict} " in table([outcome])


def test_at_most_is_kept_from_below() -> None:
    work = work_of([2.0], [], must=3, goal=1)._replace(bound="≤")

    assert Outcome(work, [2.0], []).verdict == "must"
    assert Outcome(work, [1.0], []).verdict == "goal"
    assert Outcome(work, [4.0], []).verdict == "MISSED"
