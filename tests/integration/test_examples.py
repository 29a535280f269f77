"""The examples run as their users run them, on the embedded log and on Kafka, and check themselves.

Goal: neither example says "0 differences" unless view, log and source agree. Method: run them; then
put something else into the store, and see it found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore import Diff, EventStore
from examples import git_history
from examples.flights import demo, processes
from examples.flights.data import departures
from tests.git_repository import git, make_repository

pytestmark = pytest.mark.timeout(300)  # three runs of six processes each, beside other tests


@pytest.fixture(params=["embedded", "kafka"])
def url(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Where the examples write: their own folder, or their own namespace of the broker."""
    monkeypatch.setenv("EVENTSTORE_NAMESPACE", namespace)
    monkeypatch.setenv("EVENTSTORE_VIEW_PATH", str(tmp_path / "views"))
    if request.param == "embedded":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("kafka_url"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    return make_repository(tmp_path / "odd.git")


#: A part of January that a daemon is through with in a moment.
SHORT = ("--flights", "1500", "--seconds", "1")


def rows(shown: str) -> list[list[str]]:
    """Return the table of updates: name, watched, requests, applied, ..., pending."""
    lines = [line.split("│")[1:-1] for line in shown.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [line for line in cells if len(line) == 7]


def test_the_demo_ends_with_every_departure_dealt_with_once(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flights = departures()[:1500]
    late = sum((flight.delay_min or 0) >= 30 for flight in flights)
    cancelled = sum(flight.cancelled for flight in flights)

    code = demo.main(["--url", url, *SHORT])

    printed = capsys.readouterr().out
    shown = " ".join(printed.split())  # however the lines were broken
    assert code == 0, printed
    assert "Killed daemon" in shown
    assert shown.count(" 0 differences") == 2
    found = {row[0]: row[1:] for row in rows(printed)}
    assert found["summary"][:2] == [str(late + cancelled)] * 2
    assert found["alert"][:2] == [str(late)] * 2
    assert found["count"] == [str(cancelled)] * 3 + ["0"] * 3
    assert [row[-2:] for row in found.values()] == [["0", "0"]] * 3


def test_the_demo_started_again_only_checks_and_fresh_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    codes = [demo.main(["--url", url, *SHORT])]
    first = rows(capsys.readouterr().out)

    codes += [demo.main(["--url", url, *SHORT])]
    again = capsys.readouterr().out
    codes += [demo.main(["--url", url, "--fresh", *SHORT])]
    fresh = capsys.readouterr().out

    assert codes == [0, 0, 0]
    assert rows(again) == first
    assert "Killed daemon" not in again
    assert "apps aircraft-2 and airlines-2" in " ".join(fresh.split())
    assert [row[:3] for row in rows(fresh)] == [row[:3] for row in first]


def test_the_demo_fails_when_the_log_says_something_else_than_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    with EventStore(url) as store:  # a cancelled flight that is not in the file
        store.app("aircraft").append("N730MQ", {"cancelled": 1, "cancelled_flight": "MQ 1"})

    code = demo.main(["--url", url, *SHORT])

    shown = " ".join(capsys.readouterr().out.split())
    assert code == 1
    assert "departures: 1 are missing in the log, 1 are too many" in shown
    assert "N730MQ: its summary is" in shown
    assert "cancelled flights by airline" in shown


def test_a_process_of_the_demo_that_ends_before_it_has_work_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "LOG_S_MAX", 3_600.0)

    with (
        processes.Child(["examples.flights.no_such_module"], {}) as child,
        pytest.raises(processes.ChildFailed, match="No module named"),
    ):
        child.wait_logged("shards")


def test_a_git_history_is_replayed_and_agrees_with_git(
    url: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = git_history.main([str(repository), "--url", url, "--verify", "100"])

    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "8 commits of odd replayed" in shown
    assert ": 0 differences" in shown
    with EventStore(url) as store:
        state = store.app("git").get("odd")
        assert set(state) == {
            "100%25.txt", "café", "folder", "latin-%E9", "line\nbreak", "module", "renamed.txt"
        }  # fmt: skip


def test_a_replay_goes_on_where_it_ended(
    url: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = git("-C", str(repository), "rev-parse", "main").decode().strip()
    git("-C", str(repository), "update-ref", "refs/heads/main", "main~3")

    codes = [git_history.main([str(repository), "--url", url])]
    git("-C", str(repository), "update-ref", "refs/heads/main", last)
    codes += [git_history.main([str(repository), "--url", url, "--verify", "9"])] * 2

    shown = capsys.readouterr().out
    assert codes == [0, 0, 0], shown
    assert "5 commits of odd replayed" in shown
    assert "3 commits of odd replayed" in shown


def test_a_commit_too_large_for_one_event_comes_in_parts(
    url: str,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTSTORE_EVENT_BYTES_MAX", str(git_history.MARGIN_BYTES + 200))

    code = git_history.main([str(repository), "--url", url, "--verify", "9"])

    shown = capsys.readouterr().out
    assert code == 0, shown
    with EventStore(url) as store:
        assert len(list(store.app("git").history("odd"))) > 8


def test_another_history_is_not_put_on_top(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    git_history.main([str(repository), "--url", url])
    git("-C", str(repository), "update-ref", "refs/heads/main", "side")

    code = git_history.main([str(repository), "--url", url])

    assert code == 1
    assert "is not in the first-parent history" in capsys.readouterr().err


def test_a_tree_that_differs_from_git_s_is_found(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    with EventStore(url) as store:  # before the replay, so that every later version has it
        store.app("git").append("odd", {"extra.txt": "0" * 40})

    code = git_history.main([str(repository), "--url", url, "--verify", "9"])

    shown = capsys.readouterr().out
    assert code == 1
    assert shown.count("1 paths, 'extra.txt' first") == 8


def test_a_change_under_a_wrong_commit_is_found(
    tmp_path: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(git_history, "PATHS_PER_COMMIT", 100)
    url = str(tmp_path / "store")
    first, second, *_ = git_history.Repository(repository).commits()
    with EventStore(url) as store:
        # What the second commit did, said to be the first's: all trees after it are right.
        for commit, changes in ((first, first), (first, second), (second, None)):
            (diff,) = [Diff()] if changes is None else git_history.diffs_of(changes, 10_000)
            meta = {"commit": commit.id, "part": 0, "parts": 1}
            store.app("git").append("odd", diff, meta=meta)

    code = git_history.main([str(repository), "--url", url, "--verify", "9"])

    shown = capsys.readouterr().out
    assert code == 1
    assert "'renamed.txt' at" in shown
