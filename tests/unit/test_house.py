"""The house: what must hold of every file, whatever it is about."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

#: Places on one machine, and addresses of package indexes: neither belongs in what others clone.
PRIVATE = re.compile(
    r"/(?:home|root|Users)/[A-Za-z]" + r"|/wor" + r"k/|--(?:extra-)?index-url\b|--find-links\b"
    r"|https?://(?:[^/\s]*@|pypi\.|files\.pythonhosted|[^/\s]*artifactory|[^/\s]*nexus)"
)


def tracked() -> list[Path]:
    """Return the files of the repository; this test is about a checkout, not an unpacked sdist."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False, text=True
    )
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def pins(file: str) -> dict[str, str]:
    """Return the requirements of a file and of those it includes, name -> version."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            name, separator, pinned = line.partition("==")
            assert separator, f"{file}: {line!r} is not pinned"
            assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", pinned), f"{file}: {line!r}"
            found[canonicalize_name(name)] = pinned
    return found


def test_no_tracked_file_names_a_machine_s_paths_or_a_package_index() -> None:
    faults = []
    for path in set(tracked()) - {Path(__file__)}:  # which has examples of them
        text = path.read_bytes().decode("utf-8", errors="replace")
        faults += [f"{path.name}: {found[0]}" for found in PRIVATE.finditer(text)]

    assert faults == []


#: A file of ours as a page, a docstring or a comment names it: from the top of the repository.
OUR_FILE = re.compile(
    r"(?<![\w/.-])(?:benchmarks|docs|eventstore|examples|processors|tests|tools)"
    r"/[\w/-]+\.(?:avsc|java|md|py|sh)\b"
)
#: One as its neighbours name it.
OUR_ROOM = re.compile(r"(?<![\w/.-])\w+\.(?:avsc|py)\b")


def test_every_file_that_a_text_of_ours_names_is_there() -> None:
    missing = []
    for path in tracked():
        if path.suffix in (".avsc", ".md", ".py", ".sh", ".toml", ".yml"):
            named = OUR_FILE.findall(path.read_text(encoding="utf-8"))
            missing += [f"{path.name}: {name}" for name in named if not (ROOT / name).exists()]

    assert missing == []


def test_every_room_that_another_room_s_first_words_name_is_there() -> None:
    rooms = {
        path: ast.get_docstring(ast.parse(path.read_bytes())) or ""
        for package in ("eventstore", "processors")
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    there = {path.name for path in rooms} | {"event.avsc"}

    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, words in rooms.items()
        for name in OUR_ROOM.findall(words)
        if name not in there
    ]

    assert missing == []


@pytest.mark.parametrize("text", ["see /home/me/x", "--index-url x", "https://a:b@host/simple"])
def test_a_private_path_or_address_would_be_found(text: str) -> None:
    assert PRIVATE.search(text)


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "requirements").glob("*.txt")))
def test_requirement_files_are_pinned(file: str) -> None:
    assert pins(file)


def test_what_a_pinned_package_needs_is_pinned_too() -> None:
    pinned = pins("dev.txt")

    needed = {
        canonicalize_name(requirement.name)
        for name in pinned
        for requirement in map(Requirement, requires(name) or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }

    assert needed <= set(pinned)


def test_every_dependency_of_the_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=!~\[ ]", dependency)[0] for dependency in project["dependencies"]}

    assert names <= set(pins("runtime.txt"))
    assert project["version"] == version("foldlog")


def test_every_module_says_what_is_found_in_it() -> None:
    silent = [
        path
        for package in ("eventstore", "processors", "examples", "benchmarks", "tools")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stat().st_size and ast.get_docstring(ast.parse(path.read_bytes())) is None
    ]

    assert silent == []


def test_make_lists_every_target_that_it_has() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))

    listing = subprocess.run(
        ["make", "-s", "-C", str(ROOT)], capture_output=True, check=True, text=True
    ).stdout

    assert set(re.findall(r"make ([a-z]+) ", listing)) == targets
