"""The `processors` command: the daemon, and an operator's look at what it does.

`command.py` puts it together; running.py has the daemon, showing.py what can be seen, answering.py
what an operator decides. Which components a command line means is in loading.py.

At import nothing here loads more than click, as in eventstore/cli.
"""

from __future__ import annotations

from processors.cli.command import main, processors

__all__ = ["main", "processors"]
