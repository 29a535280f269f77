"""A process that copies the app "app" until it is killed.

python -m tests.fault.copy_child copy SOURCE TARGET     "copied" and the number of events it wrote
"""

from __future__ import annotations

import sys

from eventstore import Config, EventStore, copy_app
from eventstore.history import copy as copy_module

#: So that a few events are several batches.
BATCH_RECORDS = 4


def main() -> None:
    _, source_url, target_url = sys.argv[1:]
    vars(copy_module)["_BATCH_RECORDS_MAX"] = BATCH_RECORDS
    with (
        EventStore(source_url, config=Config.load({})) as source,
        EventStore(target_url, config=Config.load({})) as target,
    ):
        report = copy_app(source, "app", target)
    print("copied", report.written, flush=True)


if __name__ == "__main__":
    main()
