"""Reading while the view is rebuilt shows neither the rebuild nor what it has not got to yet.

Method: threads read, commit and ask for verdicts without a pause while another one rebuilds.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eventstore import Conflict, EventStore, Verdict

REBUILDS = 15
INSTANCES = 300


def test_nobody_who_reads_sees_a_rebuild(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        app = store.app("orders")
        app.append_many([(f"o-{number}", {"number": number}) for number in range(INSTANCES)])
        app.get("o-0")
        done = threading.Event()

        def read() -> int:
            count = 0
            while not done.is_set():
                number = count % INSTANCES
                assert app.get(f"o-{number}", "number") == number
                assert app.exists(f"o-{number}")
                count += 1
            return count

        def write() -> int:
            count = 0
            while not done.is_set():
                assert app.append("w", {"count": count}).verdict() == Verdict.ACCEPTED
                try:
                    app.commit("w", app.get("w").update(seen=count))
                except Conflict:
                    raise AssertionError("nobody else writes to it") from None
                count += 1
            return count

        with ThreadPoolExecutor(3) as threads:
            counts = [threads.submit(one) for one in (read, read, write)]
            try:
                for _ in range(REBUILDS):
                    app.rebuild_view()
            finally:
                done.set()
            assert all(count.result() for count in counts)
