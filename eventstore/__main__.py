"""`python -m eventstore` is the command `eventstore`."""

from __future__ import annotations

from eventstore.cli import main

if __name__ == "__main__":
    main()
