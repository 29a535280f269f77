"""Which apps a run of the demo is about: one that was cut off is gone on with, under its names."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["STORY_VARIABLE", "AppNames", "app_names", "newest_story", "unused_story"]

#: The environment variable that tells the demo's processes which story theirs is.
STORY_VARIABLE: Final = "FLIGHTS_STORY"


class AppNames(NamedTuple):
    """The apps of one story: instances are aircraft, and airlines."""

    aircraft: str
    airlines: str


def app_names(story: int | None = None) -> AppNames:
    """Return the apps of a story; by default of the one that the environment names."""
    if story is None:
        story = int(os.environ.get(STORY_VARIABLE) or 1)
    suffix = "" if story == 1 else f"-{story}"
    return AppNames(f"aircraft{suffix}", f"airlines{suffix}")


def newest_story(apps: Iterable[str]) -> int:
    """Return the last story of a store that has these apps; 1 where none was begun."""
    found = (re.fullmatch(r"aircraft(?:-(\d+))?", name) for name in apps)
    return max((int(match[1] or 1) for match in found if match), default=1)


def unused_story(apps: Iterable[str]) -> int:
    """Return the first story that has no app yet."""
    taken = set(apps)
    return next(n for n in itertools.count(1) if not taken & set(app_names(n)))
