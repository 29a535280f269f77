"""What breaks a runner, a trigger or a cache from inside: handlers and data that nobody expects.

Each test is an attack that once succeeded. After it, the one request that it was made with has
been answered with a clear word, and everything else goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import apsw
import orjson
import pytest

from eventstore import Diff, Discard, Entry, EventStore, Kind, LogUnavailable, State, Verdict
from eventstore.events import Answer, Event
from eventstore.processing import Processing
from processors import Component, UpdateFailed, changed
from processors.context import Context, Superseded
from processors.policy import DiscardPolicy, Retry
from processors.relay_change import Change
from processors.runner import Runner, engine, handlers

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


def error(raised: BaseException) -> NoReturn:
    raise raised


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ValueError("no file \udcff"), r"no file \udcff"),
        (Speechless(), "its text cannot be made: RuntimeError"),
    ],
)
@pytest.mark.parametrize("attempts", [1, 2])
def test_an_error_whose_text_cannot_be_stored_fails_its_request_all_the_same(
    run: Callable[..., Runner], raised: Exception, message: str, attempts: int
) -> None:
    component = Component("words")
    runs: list[int] = []

    @component.update("k", retry=Retry(attempts=attempts, backoff_s=0.001))
    def fail(state: State, props: dict[str, Any]) -> None:
        runs.append(1)
        raise raised

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


# --- runs that end otherwise than by returning or raising -----------------------------------------


@pytest.mark.parametrize("place", ["init_state", "save_state"])
def test_a_component_that_ends_the_program_in_a_hook_fails_its_request(
    run: Callable[..., Runner], place: str
) -> None:
    component = Component("hooks")

    @component.init_state
    def begin() -> dict[str, int]:
        if place == "init_state":
            raise SystemExit
        return {"n": 0}

    @component.save_state
    def save(state: dict[str, Any]) -> dict[str, Any]:
        if place == "save_state" and state["n"] == 1:
            raise SystemExit
        return state

    @component.update("k")
    def change(state: State, props: dict[str, Any]) -> dict[str, int]:
        return {"n": 1}

    runner = run(component)
    answers = [answer_of(runner, "i", "k/change") for _ in range(2)]

    assert [facts_of(answer)["type"] for answer in answers] == ["SystemExit"] * 2


def test_ctrl_c_in_an_update_that_a_caller_waits_for_reaches_the_caller_and_leaves_it_pending(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The caller's thread runs what it waits for, once this process knows that it has the shards.
    monkeypatch.setattr(engine, "_SHARE_WAIT_S", WAIT_S)
    component = Component("keyboard")
    threads: list[threading.Thread] = []

    @component.update("k")
    def change(state: State, props: dict[str, Any]) -> dict[str, int]:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            signal.raise_signal(signal.SIGINT)
        return {"n": 1}

    with component("i", store=store) as instance:
        with pytest.raises(KeyboardInterrupt):
            instance.run("k", flush_update=True)
        instance.flush_update("k", timeout_s=WAIT_S)

        assert instance.read_state("n") == 1
        assert threads[0] is threading.main_thread()


def test_a_caller_does_not_wait_for_a_plain_update_beyond_its_time_limit(
    store: EventStore,
) -> None:
    component = Component("endless")
    may_end = threading.Event()

    @component.update("k", timeout_s=0.05)
    def never(state: State, props: dict[str, Any]) -> None:
        assert may_end.wait(WAIT_S)

    with component("i", store=store) as instance:
        with pytest.raises(UpdateFailed, match="timeout"):
            instance.run("k", flush_update=True)
        was_waiting = not may_end.is_set()
        may_end.set()

    assert was_waiting


def test_more_plain_updates_than_there_are_threads_may_exceed_their_time(
    run: Callable[..., Runner],
) -> None:
    component = Component("threads")
    may_end = threading.Event()

    @component.update("k", timeout_s=0.02)
    def never(state: State, props: dict[str, Any]) -> None:
        assert may_end.wait(WAIT_S)

    @component.update("k")
    def quick(state: State, props: dict[str, Any]) -> dict[str, int]:
        return {"n": 1}

    runner = run(component, concurrency=2)
    try:
        failed = [answer_of(runner, f"i{n}", "k/never") for n in range(5)]
        applied = answer_of(runner, "i", "k/quick")
    finally:
        may_end.set()

    assert [facts_of(answer)["reason"] for answer in failed] == ["timeout"] * 5
    assert applied.event.kind == Kind.DIFF


@pytest.mark.parametrize("how", ["swallows its cancellation", "blocks its loop"])
def test_an_async_update_that_does_not_end_in_its_time_fails_and_its_lane_goes_on(
    run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(handlers, "_CANCELLED_S_MAX", 0.05)
    component = Component("deaf")
    may_end = threading.Event()

    @component.update("k", timeout_s=0.05)
    async def never(state: State, props: dict[str, Any]) -> dict[str, int]:
        if how == "blocks its loop":
            assert may_end.wait(WAIT_S)
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return {"late": 1}

    @component.update("k")
    def quick(state: State, props: dict[str, Any]) -> dict[str, int]:
        return {"quick": 1}

    runner = run(component)
    try:
        failed = answer_of(runner, "i", "k/never")
        applied = answer_of(runner, "i", "k/quick")
    finally:
        may_end.set()
    assert runner.drain(WAIT_S)

    assert facts_of(failed)["reason"] == "timeout"
    assert applied.event.kind == Kind.DIFF
    assert dict(runner.store.app("deaf").get("i")) == {"quick": 1}


def test_lanes_that_wait_for_a_place_on_the_loop_go_on_when_those_before_them_want_none(
    run: Callable[..., Runner],
) -> None:
    component = Component("places")
    began, may_end = threading.Event(), threading.Event()

    @component.update("k")
    async def wait(state: State, props: dict[str, Any]) -> None:
        began.set()
        await asyncio.to_thread(may_end.wait, WAIT_S)

    runner = run(component, async_max=1)
    app = runner.store.app("places")
    app.request("first", "k/wait").entry()
    assert began.wait(WAIT_S)
    stale = Discard(DiscardPolicy.SECONDS, -1_000, False)
    receipts = [app.request(f"i{n}", "k/wait") for n in range(2)]
    receipts += [app.request(f"j{n}", "k/wait", discard=stale) for n in range(3)]
    receipts += [app.request(f"k{n}", "k/wait") for n in range(2)]
    places = [(receipt.instance, receipt.entry().sequence) for receipt in receipts]
    may_end.set()
    closed = [runner.processing.wait_closed(*place, WAIT_S) for place in places]

    kinds = [answer.event.kind for answer in closed]
    assert kinds == [Kind.DIFF] * 2 + [Kind.DISCARD] * 3 + [Kind.DIFF] * 2


# --- triggers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        lambda: 5,
        lambda: [None, "\udcff", "$foldlog/clock"],
        lambda: [{"un": "hashable"}],
        lambda: map(str, itertools.count()),
        lambda: error(ValueError("no file \udcff")),
        lambda: error(Speechless()),
        lambda: error(SystemExit()),
    ],
)
def test_a_key_that_names_no_instances_stops_no_trigger(
    run: Callable[..., Runner], junk: Callable[[], Any]
) -> None:
    component = Component("watcher")
    seen = threading.Event()

    def key(change: Change) -> Any:
        return junk() if change.state["n"] == 1 else "good"

    @component.update(on=changed("n", app="watched", key=key, start="beginning"))
    def follow(state: State, props: dict[str, Any]) -> None:
        seen.set()

    runner = run(component)
    watched = runner.store.app("watched")
    for n in (1, 2):
        watched.append("i", {"n": n}).result()

    assert seen.wait(WAIT_S)
    assert runner.relays()[0].undelivered >= 1


# --- others who answer ----------------------------------------------------------------------------


def test_a_part_that_another_runner_made_meanwhile_is_gone_on_from(
    run: Callable[..., Runner],
) -> None:
    component = Component("zombies")
    began, may_end = threading.Event(), threading.Event()
    runs: list[int] = []

    @component.update("k")
    def change(state: State, props: dict[str, Any]) -> dict[str, int]:
        runs.append(1)
        began.set()
        assert may_end.wait(WAIT_S)
        return {"ours": 1}

    runner = run(component)
    app = runner.store.app("zombies")
    sequence = app.request("i", "k/change").entry().sequence
    assert began.wait(WAIT_S)
    part = Event(Kind.DIFF, "k/change", Diff({"part": 1}).encode(), answer=Answer(sequence, 0))
    assert runner.processing.send([("i", part)])[0].entry().verdict == Verdict.ACCEPTED
    may_end.set()
    answer = runner.processing.wait_closed("i", sequence, WAIT_S)

    assert answer.event.kind == Kind.DIFF
    assert dict(app.get("i")) == {"part": 1, "ours": 1}
    assert len(runs) <= 2


def test_a_checkpoint_of_a_thread_that_the_handler_left_behind_does_not_lose_the_answer(
    run: Callable[..., Runner],
) -> None:
    component = Component("threads-left")
    left: list[threading.Thread] = []

    @component.update("k")
    def change(state: State, props: dict[str, Any], context: Context) -> dict[str, int]:
        def stray() -> None:
            with contextlib.suppress(RuntimeError, Superseded):
                context.checkpoint({"stray": 1})

        left.append(threading.Thread(target=stray))
        left[-1].start()
        return {"n": 1}

    runner = run(component)
    answers = [answer_of(runner, f"i{n}", "k/change") for n in range(50)]
    for thread in left:
        thread.join(WAIT_S)

    assert {answer.event.kind for answer in answers} == {Kind.DIFF}


def test_a_runner_that_could_not_start_is_not_shared(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("starts")

    @component.update("k")
    def change(state: State, props: dict[str, Any]) -> dict[str, int]:
        return {"n": 1}

    def refuse(*arguments: object) -> NoReturn:
        raise LogUnavailable("starting")

    with monkeypatch.context() as broken:
        broken.setattr(Processing, "own", refuse)
        with pytest.raises(LogUnavailable):
            component("i", store=store)

    with component("i", store=store) as instance:
        instance.run("k", flush_update=True)
        assert instance.read_state("n") == 1
