"""Reading while the view is rebuilt shows neither the rebuild nor what it has not got to yet.

Method: threads read, commit and ask for verdicts without a pause while another one rebuilds; and
one asks at the very moment when the old database is closed and the new one has nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from eventstore import App, Conflict, Entry, EventStore, Receipt, Verdict
from tests.contract.logs import DEADLINE_S, eventually

REBUILDS = 15
INSTANCES = 300


def test_nobody_who_reads_sees_a_rebuild(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        app = store.app("orders")
        app.append_many([(f"o-{number}", {"number": number}) for number in range(INSTANCES)])
        app.get("o-0")
        done = threading.Event()
        counts = [0, 0, 0]

        def read(place: int) -> None:
            while not done.is_set():
                number = counts[place] % INSTANCES
                assert app.get(f"o-{number}", "number") == number
                assert app.exists(f"o-{number}")
                counts[place] += 1

        def write(place: int) -> None:
            while not done.is_set():
                count = counts[place]
                assert app.append("w", {"count": count}).verdict() == Verdict.ACCEPTED
                try:
                    app.commit("w", app.get("w").update(seen=count))
                except Conflict:
                    raise AssertionError("nobody else writes to it") from None
                counts[place] += 1

        with ThreadPoolExecutor(3) as threads:
            running = [threads.submit(one, place) for place, one in enumerate((read, read, write))]

            def are_under_way(before: Sequence[int]) -> bool:
                """Whether each has gone on since then, or one of them has failed."""
                went_on = all(now > then for now, then in zip(counts, before, strict=True))
                return went_on or any(one.done() for one in running)

            try:
                for _ in range(REBUILDS):
                    assert eventually(lambda before=tuple(counts): are_under_way(before))  # type: ignore[misc]
                    app.rebuild_view()
            finally:
                done.set()
            for one in running:
                one.result()


@pytest.mark.parametrize(
    "ask",
    [
        lambda app, receipt: receipt.entry(DEADLINE_S),
        lambda app, receipt: receipt.verdict(DEADLINE_S),
        lambda app, receipt: app.get("o", "number", timeout_s=DEADLINE_S),
    ],
    ids=["entry", "verdict", "number"],
)
def test_who_asks_when_the_old_view_is_closed_waits_for_the_new_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[App, Receipt], Entry | Verdict | int],
) -> None:
    with EventStore(tmp_path) as store, ThreadPoolExecutor(1) as thread:
        app = store.app("orders")
        receipt = app.append("o", {"number": 1})
        before = ask(app, receipt)
        follower = app._channel._follower
        assert follower is not None
        begin_anew, recover = follower._opened.begin_anew, follower.recover
        waits, answers = threading.Event(), list[Future[object]]()

        def ask_in_the_midst(reason: str) -> None:
            begin_anew(reason)
            answers.append(thread.submit(ask, app, receipt))
            assert eventually(lambda: waits.is_set() or answers[0].done())

        def wait_for_the_new_one(timeout_s: float) -> None:
            waits.set()
            recover(timeout_s)

        monkeypatch.setattr(follower._opened, "begin_anew", ask_in_the_midst)
        monkeypatch.setattr(follower, "recover", wait_for_the_new_one)
        app.rebuild_view()

        assert answers[0].result(DEADLINE_S) == before
