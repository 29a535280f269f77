"""`python -m processors` is the command `processors`."""

from __future__ import annotations

from processors.cli import main

if __name__ == "__main__":
    main()
