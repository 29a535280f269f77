"""The examples run as their users run them, on the embedded log and on Kafka, and check themselves.

Goal: neither example says "0 differences" unless view, log and source agree. Method: run them; then
put something else into the store, and see it found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore import Diff, EventStore
from eventstore.history.verify import Verified
from examples import git_history
from examples.flights import demo
from tests.git_repository import git, make_repository


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


def test_the_demo_runs_twice_and_finds_no_difference(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [demo.main(["--url", url]), demo.main(["--url", url])]

    shown = " ".join(capsys.readouterr().out.split())  # however the lines were broken
    assert codes == [0, 0]
    assert shown.count("27,004 events appended") == 2
    # 27,004 flights, two commits, and a fork with one more event.
    assert shown.count("27,008 events of 3,153 instances") == 2
    assert shown.count(": 0 differences") == 2
    assert shown.count("A stale write is refused") == 2
    assert "history flights-2 N730MQ" in shown


def test_the_demo_fails_when_the_view_differs_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    differs = Verified("flights", 1, 1, 1, ("N730MQ: its state differs",))
    monkeypatch.setattr(demo, "verify_app", lambda store, name: differs)

    code = demo.main(["--url", str(tmp_path / "store")])

    assert code == 1
    assert "N730MQ: its state differs" in capsys.readouterr().out


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
