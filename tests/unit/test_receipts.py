"""Receipts: who is told what became of a write, when, and who is told in their place."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any, cast

import pytest

from eventstore import Entry, LogUnavailable, Position, ReadTimeout, Receipt
from eventstore.receipts import _App


class FakeLog:
    """Drives nothing: the test delivers."""

    def __init__(self) -> None:
        self.driven = 0
        self.on_drive = threading.Event()
        self.moved = threading.Event()

    def drive(self, timeout_s: float | None) -> None:
        self.driven += 1
        self.on_drive.set()
        self.moved.wait(0.01 if timeout_s is None else min(timeout_s, 0.01))


class FakeApp:
    name = "orders"
    identity = "log"

    def __init__(self) -> None:
        self.log: Any = FakeLog()
        self.unasked_receipts: list[Receipt] = []

    def unasked(self, receipt: Receipt) -> None:
        self.unasked_receipts.append(receipt)

    def entry_at(self, receipt: Receipt, timeout_s: float | None) -> Entry:
        raise AssertionError("no test here folds")

    def original(self, receipt: Receipt, entry: Entry) -> Entry:
        raise AssertionError("no test here folds")


@pytest.fixture
def app() -> FakeApp:
    return FakeApp()


@pytest.fixture
def receipt(app: FakeApp) -> Receipt:
    return Receipt(cast(_App, app), "o-1")


ERROR = LogUnavailable("the disk is full")


def test_result_drives_the_log_until_the_event_is_durable(app: FakeApp, receipt: Receipt) -> None:
    def deliver() -> None:
        app.log.on_drive.wait(30)
        receipt.delivered(2, 41)

    thread = threading.Thread(target=deliver)
    thread.start()

    position = receipt.result(30)

    thread.join()
    assert position == Position("log", {2: 41})
    assert app.log.driven >= 1


def test_result_of_what_is_durable_already_drives_nothing(app: FakeApp, receipt: Receipt) -> None:
    receipt.delivered(0, 7)

    assert str(receipt.result(0)) == "log@0:7"
    assert app.log.driven == 0


def test_result_that_takes_too_long_is_a_timeout_and_can_be_asked_again(
    app: FakeApp, receipt: Receipt
) -> None:
    with pytest.raises(TimeoutError, match="still on its way") as caught:
        receipt.result(0.01)
    assert isinstance(caught.value, ReadTimeout)
    receipt.delivered(0, 7)

    assert receipt.result(0) == Position("log", {0: 7})


def test_a_failure_is_raised_as_often_as_somebody_asks(app: FakeApp, receipt: Receipt) -> None:
    receipt.failed(ERROR)

    for _ in range(2):
        with pytest.raises(LogUnavailable, match="disk is full"):
            receipt.result()
    assert receipt.asked
    assert receipt.done


def test_a_failure_that_nobody_asked_about_is_told_to_the_app(
    app: FakeApp, receipt: Receipt
) -> None:
    receipt.failed(ERROR)

    assert app.unasked_receipts == [receipt]
    assert not receipt.asked


def test_whoever_gave_up_waiting_has_not_been_told(app: FakeApp, receipt: Receipt) -> None:
    with pytest.raises(TimeoutError):
        receipt.result(0.01)
    receipt.failed(ERROR)

    assert app.unasked_receipts == [receipt]


def test_a_waiter_that_was_cancelled_has_not_been_told(app: FakeApp, receipt: Receipt) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receipt, 0.01)

    asyncio.run(give_up())
    receipt.failed(ERROR)

    assert app.unasked_receipts == [receipt]


def test_whoever_waits_is_told_of_the_failure_and_the_app_is_not(
    app: FakeApp, receipt: Receipt
) -> None:
    async def wait() -> None:
        asyncio.get_running_loop().call_soon(receipt.failed, ERROR)
        with pytest.raises(LogUnavailable):
            await receipt

    asyncio.run(wait())

    assert app.unasked_receipts == []


def test_many_tasks_of_several_loops_wait_for_one_receipt(receipt: Receipt) -> None:
    ready = threading.Barrier(3)
    found: list[Position] = []

    async def wait() -> None:
        tasks = [asyncio.ensure_future(receipt) for _ in range(5)]
        await asyncio.sleep(0)  # each task is at its await now
        ready.wait(30)
        found.extend(await asyncio.gather(*tasks))

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait(30)
    receipt.delivered(1, 3)
    for thread in threads:
        thread.join(30)

    assert found == [Position("log", {1: 3})] * 10


def test_awaiting_what_is_durable_needs_no_loop_of_its_own(receipt: Receipt) -> None:
    receipt.delivered(1, 3)

    async def wait() -> Position:
        return await receipt

    assert asyncio.run(wait()) == asyncio.run(wait()) == Position("log", {1: 3})


def test_a_loop_that_was_closed_while_it_waited_does_not_hinder_the_others(
    receipt: Receipt,
) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(_wait(receipt))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()

    receipt.delivered(1, 3)

    assert receipt.result(0) == Position("log", {1: 3})


async def _wait(receipt: Receipt) -> Position:
    return await receipt


def test_repr_says_where_the_event_is(app: FakeApp, receipt: Receipt) -> None:
    assert repr(receipt) == "<Receipt orders/o-1: on its way>"
    failed = Receipt(cast(_App, app), "o-2")

    receipt.delivered(1, 3)
    failed.failed(ERROR)

    assert repr(receipt) == "<Receipt orders/o-1: partition 1, offset 3>"
    assert repr(failed) == "<Receipt orders/o-2: failed: the disk is full>"
    assert (receipt.partition, receipt.offset, receipt.error) == (1, 3, None)


def test_a_program_without_an_event_loop_does_not_wait_for_asyncio_to_be_imported() -> None:
    program = (
        "import sys; from eventstore import EventStore; store = EventStore('memory://');"
        " store.app('orders').append('o-1', {'a': 1}).result(); sys.exit('asyncio' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
