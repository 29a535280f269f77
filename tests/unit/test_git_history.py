"""The git side of examples/git_history.py: what it reads of a repository is what git says.

Goal: the changes of each commit, put one after the other, make the trees that `git ls-tree` has.
Method: one small repository with everything odd that a history can have.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.git_history import GitError, Repository, field_of, path_of
from tests.git_repository import git, make_repository


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository with a history that has everything odd."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    return make_repository(tmp_path / "odd.git")


def test_the_changes_of_all_commits_make_the_trees_that_git_has(folder: Path) -> None:
    repository = Repository(folder)
    tree: dict[str, str] = {}

    seen = []
    for commit in repository.commits():
        for path, blob in commit.changes:
            if blob is None:
                del tree[field_of(path)]
            else:
                tree[field_of(path)] = blob
        assert tree == repository.tree(commit.id), commit.subject
        seen.append(commit.id)

    assert seen == repository.commit_ids()
    assert len(seen) == 8  # the one on the side branch is in its merge


def test_a_commit_has_its_time_author_subject_and_changes(folder: Path) -> None:
    commits = {commit.subject: commit for commit in Repository(folder).commits()}

    merge = commits["commit 4"]
    assert merge.author == "Émile"
    assert merge.committed_at == datetime.fromtimestamp(1_000_000_004, UTC)
    assert {change.path for change in merge.changes} == {b"folder/side.txt", b"latin-\xe9"}
    renamed = {change.path: change.blob for change in commits["commit 2"].changes}
    assert renamed[b"plain.txt"] is None
    assert renamed[b"renamed.txt"] is not None
    assert [change.path for change in commits["commit 5"].changes] == [b"renamed.txt"]
    assert commits["commit 8"].changes == []


def test_a_submodule_is_a_field_with_its_commit(folder: Path) -> None:
    repository = Repository(folder)

    assert repository.tree(repository.head)["module"].startswith("01234567890")


def test_the_history_goes_on_after_a_commit(folder: Path) -> None:
    repository = Repository(folder)
    ids = repository.commit_ids()

    assert [commit.id for commit in repository.commits(after=ids[4])] == ids[5:]
    assert repository.commit_ids(after=ids[4]) == ids[5:]


@pytest.mark.parametrize(
    ("field", "subject"),
    [
        ("latin-%E9", "commit 4"),
        ("folder/side.txt", "commit 4"),
        ("100%25.txt", "commit 1"),
        ("renamed.txt", "commit 5"),
        ("folder", "commit 9"),
    ],
)
def test_the_last_change_of_a_path_is_on_the_first_parent_line(
    folder: Path, field: str, subject: str
) -> None:
    repository = Repository(folder)
    subjects = {commit.id: commit.subject for commit in repository.commits()}
    at = repository.head if subject == "commit 9" else repository.commit_ids()[-2]

    assert subjects[repository.last_change(at, field)] == subject


def test_a_folder_inside_a_work_tree_means_the_whole_repository(
    folder: Path, tmp_path: Path
) -> None:
    git("clone", "-q", "--no-checkout", str(folder), str(tmp_path / "clone"))
    inner = tmp_path / "clone" / "inner"
    inner.mkdir()

    repository = Repository(inner)

    assert repository.name == "clone"
    assert repository.tree(repository.head) == Repository(folder).tree(repository.head)
    assert repository.last_change(repository.head, "renamed.txt")
    assert Repository(folder).name == "odd"


@pytest.mark.parametrize("prepare", [lambda path: None, lambda path: git("init", "-q", str(path))])
def test_a_folder_without_commits_is_an_error_in_git_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    prepare(tmp_path)

    with pytest.raises(GitError, match="fatal: "):
        Repository(tmp_path)


@given(st.binary(min_size=1, max_size=20).filter(lambda path: b"\0" not in path))
def test_every_path_has_a_field_name_of_its_own(path: bytes) -> None:
    field = field_of(path)

    assert path_of(field) == path
    assert field != "*"
    field.encode("utf-8")


def test_usual_paths_are_their_own_field_names() -> None:
    assert field_of("src/café.py".encode()) == "src/café.py"
