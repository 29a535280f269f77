"""What breaks a runner, a trigger or a cache from inside: handlers and data that nobody expects.

Each test is an attack that once succeeded. After it, the one request that it was made with has
been answered with a clear word, and everything else goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import apsw
import orjson
import pytest

from eventstore import Entry, EventStore, Kind, State
from processors.component import Component
from processors.context import Context
from processors.policy import Retry
from processors.runner import Runner

WAIT_S = 20.0


@pytest.fixture
def store() -> Iterator[EventStore]:
    with EventStore("memory://") as opened:
        yield opened


@pytest.fixture
def run(store: EventStore) -> Iterator[Callable[..., Runner]]:
    """Start runners that stop with the test."""
    started: list[Runner] = []

    def start(component: Component, **options: Any) -> Runner:
        runner = Runner(store, component, **options).start()
        started.append(runner)
        assert runner.wait_ready(WAIT_S)
        return runner

    yield start
    for runner in started:
        runner.stop(WAIT_S)


def answer_of(runner: Runner, instance: str, name: str) -> Entry:
    """Request an update, and return what closed it."""
    app = runner.store.app(runner.component.name)
    entry = app.request(instance, name).entry()
    return runner.processing.wait_closed(instance, entry.sequence, WAIT_S)


def facts_of(answer: Entry) -> dict[str, Any]:
    assert answer.event.kind == Kind.FAILURE
    facts: dict[str, Any] = orjson.loads(answer.event.body)
    return facts


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no file \udcff"), r"no file \udcff"),
        (Speechless(), "its text cannot be made: RuntimeError"),
    ],
)
@pytest.mark.parametrize("attempts", [1, 2])
def test_an_error_whose_text_cannot_be_stored_fails_its_request_all_the_same(
    run: Callable[..., Runner], error: Exception, message: str, attempts: int
) -> None:
    component = Component("words")
    runs: list[int] = []

    @component.update("k", retry=Retry(attempts=attempts, backoff_s=0.001))
    def fail(state: State, props: dict[str, Any]) -> None:
        runs.append(1)
        raise error

    answer = answer_of(run(component), "i", "k/fail")

    assert facts_of(answer)["message"] == message
    assert len(runs) == attempts


@pytest.mark.parametrize(
    "send",
    [
        lambda context: context.append("x", {"a": 1}, name="\udcff"),
        lambda context: context.append("\udcff", {"a": 1}),
        lambda context: context.append("x", {"a": 1}, app=7),
        lambda context: context.request("x", object()),
    ],
)
def test_a_message_that_cannot_be_sent_is_the_error_of_the_handler_that_sends_it(
    run: Callable[..., Runner], send: Callable[[Context], None]
) -> None:
    component = Component("letters")

    @component.update("k")
    def write(state: State, props: dict[str, Any], context: Context) -> None:
        send(context)

    answer = answer_of(run(component), "i", "k/write")

    assert facts_of(answer)["type"] == "ValueError"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["the update", "a task of it"])
def test_an_async_update_that_ends_its_program_ends_nothing_but_itself(
    run: Callable[..., Runner], kind: type[BaseException], place: str
) -> None:
    component = Component("exits")

    async def end() -> None:
        raise kind

    @component.update("k")
    async def leave(state: State, props: dict[str, Any]) -> None:
        if place == "the update":
            await end()
        task = asyncio.create_task(end())
        with pytest.raises(kind):
            await task
        raise ValueError("goes on")

    @component.update("k")
    async def stay(state: State, props: dict[str, Any]) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"stayed": 1}

    runner = run(component)
    left = answer_of(runner, "i", "k/leave")
    stayed = answer_of(runner, "i", "k/stay")

    expected = kind.__name__ if place == "the update" else "ValueError"
    assert facts_of(left)["type"] == expected
    assert stayed.event.kind == Kind.DIFF


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_an_effect_that_a_handler_tried_again_itself_is_not_made_once_more_by_its_next_run(
    run: Callable[..., Runner], colour: Literal["plain", "async"]
) -> None:
    component = Component("bank")
    tries: list[int] = []
    paid: list[int] = []

    def pay(amount: int) -> str:
        tries.append(amount)
        if len(tries) == 1:
            raise ConnectionError("no line")
        paid.append(amount)
        return "paid"

    @component.update("plain", retry=Retry(attempts=2, backoff_s=0.001))
    def order(state: State, props: dict[str, Any], context: Context) -> dict[str, str]:
        try:
            answer = context.effect("pay", pay, 10)
        except ConnectionError:
            answer = context.effect("pay", pay, 10)
        if context.attempt == 1:
            raise ValueError("after the payment")
        return {"answer": answer}

    @component.update("async", retry=Retry(attempts=2, backoff_s=0.001), name="order")
    async def order_async(state: State, props: dict[str, Any], context: Context) -> dict[str, str]:
        try:
            answer = await context.effect("pay", pay, 10)
        except ConnectionError:
            answer = await context.effect("pay", pay, 10)
        if context.attempt == 1:
            raise ValueError("after the payment")
        return {"answer": answer}

    answer = answer_of(run(component), "i", f"{colour}/order")

    assert answer.event.kind == Kind.DIFF
    assert paid == [10]


@pytest.mark.parametrize("value", ["'text'", "7", "2.5", "null", "x''"])
def test_a_serve_cache_with_values_of_any_kind_costs_time_and_nothing_else(
    tmp_path: Path, value: str
) -> None:
    component = Component("served")

    @component.serve("k")
    def answer(state: State, props: dict[str, Any]) -> int:
        return 42

    with EventStore(tmp_path / "log") as store, component("i", store=store) as instance:
        instance.run("k")
        (path,) = tmp_path.rglob("serve_cache")
        connection = apsw.Connection(str(path))
        for column in ("marks", "body", "digest"):
            connection.execute(f"update or ignore results set {column} = {value}")
        connection.close()

        assert instance.run("k") == 42
