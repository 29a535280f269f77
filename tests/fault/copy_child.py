"""A process that copies the app "app" until it is killed.

python -m tests.fault.copy_child copy SOURCE TARGET   "copied" and the number of events it wrote
python -m tests.fault.copy_child wait SOURCE TARGET   the same, but before it writes it says "ready"
                                                      and waits for a line
"""

from __future__ import annotations

import sys

from eventstore import Config, EventStore, copy_app, testing
from eventstore.history import copy as copy_module

#: So that a few events are several batches.
BATCH_RECORDS = 4


def wait_before_writing() -> None:
    """Stop at the first event that is to be written until the parent says so."""
    fault = testing.on_fault_point

    def wait(point: str) -> None:
        if point == "copy.send.before":
            testing.on_fault_point = fault
            print("ready", flush=True)
            sys.stdin.readline()
        if fault is not None:
            fault(point)

    testing.on_fault_point = wait


def main() -> None:
    command, source_url, target_url = sys.argv[1:]
    if command == "wait":
        wait_before_writing()
    vars(copy_module)["_BATCH_RECORDS_MAX"] = BATCH_RECORDS
    with (
        EventStore(source_url, config=Config.load({})) as source,
        EventStore(target_url, config=Config.load({})) as target,
    ):
        report = copy_app(source, "app", target)
    print("copied", report.written, flush=True)


if __name__ == "__main__":
    main()
