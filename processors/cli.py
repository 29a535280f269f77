"""The `processors` command. It arrives with components and their daemon; until then it says so."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Say that nothing can be run yet, and fail, so that no script takes it for a success."""
    print("processors: components and their daemon come with a later release", file=sys.stderr)
    raise SystemExit(1)
