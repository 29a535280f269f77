"""What the runner promises of requests: order, once, retries, discards, hand-over.

Each test asks it of the memory log, of the embedded one and of Kafka. Handlers that must be held
up wait for events that the test sets; nothing here depends on how fast anything is.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventstore import (
    Diff,
    Discard,
    Entry,
    EventStore,
    InstanceNotFound,
    Kind,
    LogUnavailable,
    OutcomeUnknown,
    ReadTimeout,
    State,
    Verdict,
    testing,
)
from eventstore.codec import decode_event
from eventstore.events import Answer, Event
from eventstore.log.base import Append, Topic
from processors.component import Component
from processors.failures import retry_failure
from processors.policy import DiscardPolicy, Retry
from processors.runner import Runner
from processors.runner.run import LogCalls
from tests.contract.logs import eventually
from tests.fault import worker_handlers

WAIT_S = 60.0


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def store(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> Iterator[EventStore]:
    urls = {"memory": "memory://", "sqlite": str(tmp_path / "log")}
    url = urls.get(request.param) or request.getfixturevalue("kafka_url")
    with EventStore(url, namespace=namespace) as opened:
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


def body_of(entry: Entry) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(entry.event.body)
    return body


def log_component() -> Component:
    component = Component("log")

    @component.update(["a", "b"])
    def note(state: State, props: dict[str, Any]) -> Diff:
        return Diff().append("log", props["n"])

    @component.update("a")
    def again(state: State, props: dict[str, Any]) -> Diff:
        return Diff().append("log", -props["n"])

    return component


def test_updates_of_an_instance_run_in_the_order_of_their_requests_over_all_flows(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    names = ["a/note", "b/note", "a/again"] * 40
    receipts = [app.request("i", name, {"n": n}) for n, name in enumerate(names)]

    run(log_component()).complete(receipts, WAIT_S)

    expected = [-n if name == "a/again" else n for n, name in enumerate(names)]
    assert app.get("i", "log") == expected


def test_a_state_read_by_an_update_has_what_the_one_before_it_changed(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("count")

    @component.update("add")
    def add(state: State, props: dict[str, Any]) -> dict[str, Any]:
        return {"count": state.get("count", 0) + props["by"]}

    app = store.app("count")
    receipts = [app.request(f"i{n % 3}", "add/add", {"by": 1}) for n in range(600)]
    runner = run(component)
    runner.complete(receipts, WAIT_S)

    assert [app.get(f"i{n}", "count") for n in range(3)] == [200, 200, 200]
    assert runner.drain(WAIT_S)
    assert runner.snapshot().applied == 600


def test_a_name_without_its_flow_is_enough_where_it_is_unique(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")

    closed = run(log_component()).complete([app.request("i", "again", {"n": 7})], WAIT_S)

    assert closed[0].event.kind == Kind.DIFF
    assert app.get("i", "log") == [-7]


@pytest.mark.parametrize("result", [None, {}])
def test_an_update_that_changes_nothing_is_answered_without_a_new_version(
    store: EventStore, run: Callable[..., Runner], result: object
) -> None:
    component = Component("idle")

    @component.update("k")
    def nothing(state: State, props: dict[str, Any]) -> object:
        return result

    closed = run(component).complete([store.app("idle").request("i", "k/nothing")], WAIT_S)

    assert (closed[0].verdict, closed[0].version) == (Verdict.ACCEPTED, 0)


def test_a_value_changed_in_place_changes_nothing_for_the_next_update(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("place")
    seen: list[list[int]] = []

    @component.update("k")
    def change(state: State, props: dict[str, Any]) -> None:
        seen.append(list(state["items"]))
        state["items"].append(99)

    app = store.app("place")
    app.append("i", {"items": [1]})
    run(component).complete([app.request("i", "k/change") for _ in range(5)], WAIT_S)

    assert seen == [[1]] * 5
    assert app.get("i", "items") == [1]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_instance_that_nobody_opened_begins_before_its_first_update(
    store: EventStore, run: Callable[..., Runner], is_async: bool
) -> None:
    component = Component("begins")

    def begin() -> dict[str, Any]:
        return {"log": ["begun"], "kept": 0}

    async def begin_async() -> dict[str, Any]:
        return begin()

    @component.update("k")
    def note(state: State, props: dict[str, Any]) -> Diff:
        assert state["log"][0] == "begun"
        return Diff().append("log", props["n"])

    component.init_state(begin_async if is_async else begin)
    app = store.app("begins")
    app.append("i", {"kept": 1})
    run(component).complete([app.request("i", "k/note", {"n": n}) for n in range(3)], WAIT_S)

    assert dict(app.get("i")) == {"log": ["begun", 0, 1, 2], "kept": 1}


def test_a_first_state_that_cannot_be_made_is_a_failure_of_the_request(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("never")

    @component.init_state
    def begin() -> dict[str, Any]:
        raise OSError("no network")

    @component.update("k")
    def note(state: State, props: dict[str, Any]) -> None:
        return None

    closed = run(component).complete([store.app("never").request("i", "k/note")], WAIT_S)

    assert "no network" in body_of(closed[0])["traceback"]


# --- failures and retries -------------------------------------------------------------------------


def test_an_update_that_raises_is_set_aside_with_its_traceback_and_the_lane_goes_on(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("fails")

    @component.update("k")
    def divide(state: State, props: dict[str, Any]) -> dict[str, Any]:
        return {"x": 1 / props["by"]}

    app = store.app("fails")
    receipts = [app.request("i", "k/divide", {"by": by}) for by in (1, 0, 2)]
    runner = run(component)
    closed = runner.complete(receipts, WAIT_S)

    assert [entry.event.kind for entry in closed] == [Kind.DIFF, Kind.FAILURE, Kind.DIFF]
    body = body_of(closed[1])
    assert (body["reason"], body["type"], body["attempts"]) == ("raised", "ZeroDivisionError", 1)
    assert "divide" in body["traceback"]
    assert app.get("i", "x") == 0.5
    assert isinstance(runner.error_of("i", 1), ZeroDivisionError)


@pytest.mark.parametrize("wrong", ["text", 3, [1], {"x": object()}])
def test_a_result_that_is_no_change_is_a_failure_that_names_the_update(
    store: EventStore, run: Callable[..., Runner], wrong: object
) -> None:
    component = Component("wrong")

    @component.update("k")
    def odd(state: State, props: dict[str, Any]) -> object:
        return wrong

    closed = run(component).complete([store.app("wrong").request("i", "k/odd")], WAIT_S)

    assert closed[0].event.kind == Kind.FAILURE
    assert "k/odd" in body_of(closed[0])["traceback"]


@pytest.mark.parametrize("attempts", [1, 3])
def test_an_answer_that_is_too_large_for_the_log_fails_after_its_attempts(
    store: EventStore, run: Callable[..., Runner], attempts: int
) -> None:
    component = Component("large")
    runs: list[int] = []

    @component.update("k", retry=Retry(attempts=attempts, backoff_s=0.001))
    def fill(state: State, props: dict[str, Any]) -> dict[str, Any]:
        runs.append(1)
        # At last it fits: a runner that took no such run for an attempt would never end.
        return {"text": "x" * (store.config.event_bytes_max if len(runs) < 10 else 1)}

    closed = run(component).complete([store.app("large").request("i", "k/fill")], WAIT_S)

    assert closed[0].event.kind == Kind.FAILURE
    body = body_of(closed[0])
    assert (body["type"], body["attempts"]) == ("EventTooLarge", attempts)
    assert len(runs) == attempts


def test_an_update_is_retried_by_its_policy_and_each_attempt_is_in_the_history(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("retries")
    runs: list[int] = []

    @component.update("k", retry=Retry(attempts=3, backoff_s=0.001, retry_on=(OSError,)))
    def flaky(state: State, props: dict[str, Any]) -> dict[str, Any]:
        runs.append(1)
        if len(runs) < 3:
            raise OSError("not now")
        return {"runs": len(runs)}

    app = store.app("retries")
    run(component).complete([app.request("i", "k/flaky")], WAIT_S)

    kinds = [entry.event.kind for entry in app.history("i")]
    assert kinds == [Kind.REQUEST, Kind.ATTEMPT, Kind.ATTEMPT, Kind.DIFF]
    assert app.get("i", "runs") == 3


def test_an_exception_that_is_not_worth_a_retry_fails_at_once(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("once")

    @component.update("k", retry=Retry(attempts=3, retry_on=(OSError,)))
    def wrong(state: State, props: dict[str, Any]) -> None:
        raise ValueError("always")

    closed = run(component).complete([store.app("once").request("i", "k/wrong")], WAIT_S)

    assert body_of(closed[0])["attempts"] == 1


def test_a_run_that_met_a_newer_state_is_no_attempt_of_the_retry_policy(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("excused")
    app = store.app("excused")

    @component.update("k", retry=Retry(attempts=2, backoff_s=0.001))
    def unlucky(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        if context.attempt < 3:
            app.append("i", {"value": context.attempt}).entry()
        if context.attempt == 3:
            raise OSError("once")
        return {"value": context.attempt}

    closed = run(component).complete([app.request("i", "k/unlucky")], WAIT_S)

    assert closed[0].event.kind == Kind.DIFF, body_of(closed[0])
    assert app.get("i", "value") == 4


def test_the_lane_waits_for_a_retry_and_keeps_its_order(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("order")
    failed: list[int] = []

    @component.update("k", retry=Retry(attempts=2, backoff_s=0.05))
    def note(state: State, props: dict[str, Any]) -> Diff:
        if props["n"] == 1 and not failed:
            failed.append(1)
            raise OSError("once")
        return Diff().append("log", props["n"])

    app = store.app("order")
    run(component).complete([app.request("i", "k/note", {"n": n}) for n in range(4)], WAIT_S)

    assert app.get("i", "log") == [0, 1, 2, 3]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_update_that_takes_longer_than_it_may_fails_and_the_lane_goes_on(
    store: EventStore, run: Callable[..., Runner], is_async: bool
) -> None:
    component = Component("slow")
    release = threading.Event()

    def slow(state: State, props: dict[str, Any]) -> None:
        release.wait(WAIT_S)

    async def slow_async(state: State, props: dict[str, Any]) -> None:
        await asyncio.sleep(WAIT_S)

    @component.update("k")
    def behind(state: State, props: dict[str, Any]) -> dict[str, Any]:
        return {"n": 1}

    component.update("k", timeout_s=0.1, name="slow")(slow_async if is_async else slow)
    app = store.app("slow")
    receipts = [app.request("i", name) for name in ("k/slow", "k/behind")]
    closed = run(component).complete(receipts, WAIT_S)
    release.set()

    failure = body_of(closed[0])
    assert failure["reason"] == "timeout"
    assert failure["message"].startswith("it ran longer than timeout_s=0.1")
    assert app.get("i", "n") == 1


def test_a_request_that_no_code_knows_fails_with_advice_and_blocks_no_other_instance(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    unknown = app.request("i", "gone/renamed")
    behind = app.request("i", "a/note", {"n": 1})
    other = app.request("j", "a/note", {"n": 2})
    runner = run(log_component(), unknown_wait_s=0.2)

    closed = runner.complete([other, unknown, behind], WAIT_S)

    assert body_of(closed[1])["reason"] == "unknown"
    assert "a/note" in body_of(closed[1])["message"]
    assert (app.get("i", "log"), app.get("j", "log")) == ([1], [2])


def test_each_request_that_no_code_knows_has_its_own_time_to_find_some(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    runner = run(log_component(), unknown_wait_s=0.2)

    for _ in range(2):
        asked = app.request("i", "gone/renamed")
        (closed,) = runner.complete([asked], WAIT_S)

        assert body_of(closed)["reason"] == "unknown"
        assert closed.time_ms - asked.entry().time_ms >= 200


def test_triggers_that_lead_in_a_circle_end(store: EventStore, run: Callable[..., Runner]) -> None:
    from eventstore.events import RequestPolicy
    from eventstore.processing import Processing

    processing = Processing(store.app("log"))
    request = Event(Kind.REQUEST, "a/note", b'{"n":1}', request=RequestPolicy(hops=17))
    receipts = processing.send([("i", request)])

    closed = run(log_component()).complete(receipts, WAIT_S)

    assert body_of(closed[0])["reason"] == "hops"


# --- conflicts ------------------------------------------------------------------------------------


def test_an_update_runs_again_on_the_newer_state_when_what_it_overwrites_has_changed(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("total")
    begun, changed = threading.Event(), threading.Event()

    @component.update("k")
    def double(state: State, props: dict[str, Any]) -> dict[str, Any]:
        value = state["value"]
        begun.set()
        assert changed.wait(WAIT_S)
        return {"value": value * 2}

    app = store.app("total")
    app.append("i", {"value": 1}).entry()
    runner = run(component)
    receipt = app.request("i", "k/double")
    assert begun.wait(WAIT_S)
    app.append("i", {"value": 10}).entry()
    changed.set()
    runner.complete([receipt], WAIT_S)

    assert app.get("i", "value") == 20
    assert runner.snapshot().conflicts == 1


def test_an_update_that_only_reads_what_changes_is_not_held_up_by_it(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("reads")
    begun, changed = threading.Event(), threading.Event()
    runs: list[int] = []

    @component.update("k")
    def summary(state: State, props: dict[str, Any]) -> dict[str, Any]:
        runs.append(1)
        value = state["value"]
        begun.set()
        assert changed.wait(WAIT_S)
        return {"summary": f"value {value}"}

    app = store.app("reads")
    app.append("i", {"value": 1}).entry()
    runner = run(component)
    receipt = app.request("i", "k/summary")
    assert begun.wait(WAIT_S)
    app.append("i", {"value": 10}).entry()
    changed.set()
    runner.complete([receipt], WAIT_S)

    assert (app.get("i", "summary"), len(runs)) == ("value 1", 1)


def test_a_serializable_update_runs_again_when_what_it_read_has_changed(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("strict")
    begun, changed = threading.Event(), threading.Event()

    @component.update("k", isolation="serializable")
    def summary(state: State, props: dict[str, Any]) -> dict[str, Any]:
        value = state["value"]
        begun.set()
        assert changed.wait(WAIT_S)
        return {"summary": f"value {value}"}

    app = store.app("strict")
    app.append("i", {"value": 1}).entry()
    runner = run(component)
    receipt = app.request("i", "k/summary")
    assert begun.wait(WAIT_S)
    app.append("i", {"value": 10}).entry()
    changed.set()
    runner.complete([receipt], WAIT_S)

    assert app.get("i", "summary") == "value 10"


def test_answers_in_a_row_survive_a_conflict_in_their_middle_each_once_and_in_order(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("row")

    @component.update("k")
    def note(state: State, props: dict[str, Any]) -> Diff:
        return Diff({"last": [*state.get("last", []), props["n"]][-3:]}).append("log", props["n"])

    app = store.app("row")
    runner = run(component)
    receipts = []
    for n in range(300):
        receipts.append(app.request("i", "k/note", {"n": n}))
        if n % 7 == 0:
            app.append("i", {"last": []})
    runner.complete(receipts, WAIT_S)

    assert app.get("i", "log") == list(range(300))


def test_an_update_that_runs_while_an_answer_before_it_is_refused_comes_after_that_one_again(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("behind")
    asked, ran = threading.Event(), []
    held_back: list[Callable[[], None]] = []

    @component.update("k")
    def note(state: State, props: dict[str, Any]) -> Diff:
        ran.append(props["n"])
        if ran == [0]:
            assert asked.wait(WAIT_S)
        elif ran == [0, 1]:  # the answer of 0 is on its way, and meets this one there
            app.append("i", {"last": None}).result()
            held_back.pop()()
            assert eventually(lambda: runner.snapshot().conflicts == 1)
        return Diff({"last": props["n"]}).append("log", props["n"])

    append = store.log.append

    def hold_back_first_answer(topic: Topic, appends: Sequence[Append]) -> None:
        if decode_event(appends[0].value).answer is not None and not held_back and ran == [0]:
            held_back.append(lambda: append(topic, appends))
        else:
            append(topic, appends)

    app = store.app("behind")
    app.append("i", {"last": None}).entry()
    runner = run(component)
    monkeypatch.setattr(store.log, "append", hold_back_first_answer)
    receipts = [app.request("i", "k/note", {"n": n}) for n in range(3)]
    receipts[-1].entry()
    asked.set()
    runner.complete(receipts, WAIT_S)

    assert app.get("i", "log") == [0, 1, 2]
    assert ran == [0, 1, 0, 1, 2]


def test_a_row_of_answers_that_somebody_else_has_ended_is_judged_before_another_begins(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, runner = store.app("log"), run(log_component())
    asked, ended = threading.Event(), threading.Event()
    held_back: list[Callable[[], None]] = []
    steps = itertools.count()

    def answer_before_third_step(point: str) -> None:
        step = next(steps) if point == "processor.step" else None
        if step == 0:
            assert asked.wait(WAIT_S)
        elif step == 2:  # the answers of 0 and 1 are on their way
            theirs = Event(Kind.DIFF, "a/note", b"[]", answer=Answer(0, 0, True))
            runner.processing.send([("i", theirs)])[0].entry()
            ended.set()

    append = store.log.append

    def hold_back_two_answers(topic: Topic, appends: Sequence[Append]) -> None:
        event = decode_event(appends[0].value)
        if event.answer is not None and event.guard is not None and next(firsts, None):
            held_back.append(lambda: append(topic, appends))
        else:
            append(topic, appends)

    firsts = iter(["of 0", "of 1"])
    monkeypatch.setattr(testing, "on_fault_point", answer_before_third_step)
    monkeypatch.setattr(store.log, "append", hold_back_two_answers)
    receipts = [app.request("i", "a/note", {"n": n}) for n in range(3)]
    receipts[-1].entry()
    asked.set()
    assert ended.wait(WAIT_S)
    assert eventually(lambda: not runner._board.busy)
    for go_on in held_back:
        go_on()
    runner.complete(receipts, WAIT_S)

    assert app.get("i", "log") == [1, 2]  # 0 was theirs, and changed nothing


def test_an_answer_that_does_not_fit_is_a_failure(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("misfit")

    @component.update("k")
    def wrong(state: State, props: dict[str, Any]) -> Diff:
        return Diff().append("text", 1)

    app = store.app("misfit")
    app.append("i", {"text": "not a list"})
    closed = run(component).complete([app.request("i", "k/wrong")], WAIT_S)

    body = body_of(closed[0])
    assert body["reason"] == "rejected"
    assert "version 1: append 'text': it is text, not a list" in body["message"]


# --- discards -------------------------------------------------------------------------------------


def test_of_many_only_the_newest_run_and_each_discard_says_why(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("newest")

    @component.update("k", DiscardPolicy.NUM_NEW_UPDATES, 2)
    def note(state: State, props: dict[str, Any]) -> Diff:
        return Diff().append("log", props["n"])

    app = store.app("newest")
    receipts = [
        app.request("i", "k/note", {"n": n}, discard=Discard.num_new_updates(2)) for n in range(6)
    ]
    run(component).complete(receipts, WAIT_S)

    assert app.get("i", "log") == [4, 5]
    discards = [body_of(entry) for entry in app.discards("i")]
    assert [(body["reason"], body["after"], body["newer"]) for body in discards] == [
        ("num_new_updates", 2, newer) for newer in (5, 4, 3, 2)
    ]
    assert all(body["offset"] for body in discards)


def test_newer_requests_of_other_updates_do_not_count(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    once = Discard.num_new_updates(1)
    receipts = [
        app.request("i", name, {"n": n}, discard=once)
        for n, name in enumerate(["a/note", "b/note", "a/again"])
    ]

    run(log_component()).complete(receipts, WAIT_S)

    assert app.get("i", "log") == [0, 1, -2]


def test_a_request_that_waited_too_long_is_discarded_with_its_age(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    old = app.request("i", "a/note", {"n": 1}, discard=Discard.seconds(0.001))
    app.append("other", {"later": 1}).entry()
    deadline = time.monotonic() + WAIT_S
    while app.append("other", {"n": 1}).entry().time_ms <= old.entry().time_ms + 1:
        assert time.monotonic() < deadline

    closed = run(log_component()).complete([old], WAIT_S)

    body = body_of(closed[0])
    assert (body["reason"], body["after"]) == ("seconds", 1)
    assert body["age_ms"] > 1


@pytest.mark.parametrize("changes_hands", [False, True])
def test_a_running_async_update_that_became_stale_is_given_up_but_never_twice_in_a_row(
    store: EventStore, run: Callable[..., Runner], changes_hands: bool
) -> None:
    component = Component("given")
    begun: list[int] = []
    news, release = threading.Condition(), asyncio.Event()

    @component.update("k", DiscardPolicy.NUM_NEW_UPDATES, 1, discard_running=True)
    async def slow(state: State, props: dict[str, Any]) -> Diff:
        with news:
            begun.append(props["n"])
            news.notify_all()
        if props["n"] < 2:
            await release.wait()
        return Diff().append("log", props["n"])

    def ask(n: int) -> Any:
        return app.request(
            "i", "k/slow", {"n": n}, discard=Discard.num_new_updates(1, running=True)
        )

    app = store.app("given")
    runner = run(component)
    receipts = [ask(0)]
    with news:
        assert news.wait_for(lambda: begun == [0], WAIT_S)
    receipts.append(ask(1))  # 0 is given up
    with news:
        assert news.wait_for(lambda: begun == [0, 1], WAIT_S)
    if changes_hands:
        runner.stop_now()
        runner = run(component)
        with news:
            assert news.wait_for(lambda: begun == [0, 1, 1], WAIT_S)
    receipts.append(ask(2))  # 1 is not: the one before it was
    receipts[2].entry()
    runner._board.loop.call_soon_threadsafe(release.set)
    closed = runner.complete(receipts, WAIT_S)

    assert [entry.event.kind for entry in closed] == [Kind.DISCARD, Kind.DIFF, Kind.DIFF]
    assert body_of(closed[0])["running"] is True
    assert app.get("i", "log") == [1, 2]


def test_a_plain_update_is_told_that_it_became_stale_and_is_dropped_before_its_append(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("told")
    begun, asked, told = threading.Event(), threading.Event(), []

    @component.update("k", DiscardPolicy.NUM_NEW_UPDATES, 1, discard_running=True)
    def slow(state: State, props: dict[str, Any], context: Any) -> Diff:
        if props["n"] == 0:
            begun.set()
            assert asked.wait(WAIT_S)
            told.append(context.is_stale())
        return Diff().append("log", props["n"])

    app = store.app("told")
    runner = run(component)
    policy = Discard.num_new_updates(1, running=True)
    receipts = [app.request("i", "k/slow", {"n": 0}, discard=policy)]
    assert begun.wait(WAIT_S)
    receipts.append(app.request("i", "k/slow", {"n": 1}, discard=policy))
    receipts[1].entry()
    asked.set()
    closed = runner.complete(receipts, WAIT_S)

    assert told == [True]
    assert [entry.event.kind for entry in closed] == [Kind.DISCARD, Kind.DIFF]


# --- later ----------------------------------------------------------------------------------------


def test_a_delayed_request_waits_for_its_time_and_holds_nobody_up(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    runner = run(log_component())
    now = datetime.datetime.now(datetime.UTC)
    late, soon = (now + datetime.timedelta(seconds=seconds) for seconds in (3_600, 0.5))
    app.request("i", "a/note", {"n": 1}, not_before=late)
    delayed = app.request("i", "a/note", {"n": 2}, not_before=soon)
    prompt = app.request("i", "a/note", {"n": 3})

    closed = runner.complete([prompt, delayed], WAIT_S)

    assert sorted(app.get("i", "log")) == [2, 3]  # in this order where 0.5 s had passed already
    assert closed[1].time >= soon - datetime.timedelta(milliseconds=2)


# --- many at once ---------------------------------------------------------------------------------


def test_async_updates_of_many_instances_run_at_the_same_time(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("many")
    at_once = 0
    all_begun = asyncio.Event()

    @component.update("k")
    async def wait(state: State, props: dict[str, Any]) -> dict[str, Any]:
        nonlocal at_once
        at_once += 1
        if at_once == 200:
            all_begun.set()
        await all_begun.wait()
        return {"done": True}

    app = store.app("many")
    receipts = [app.request(f"i{n}", "k/wait") for n in range(200)]
    closed = run(component).complete(receipts, WAIT_S)

    assert {entry.event.kind for entry in closed} == {Kind.DIFF}


def test_no_more_async_updates_run_at_once_than_allowed(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("few")
    now, most = 0, 0
    all_begun = asyncio.Event()

    @component.update("k")
    async def wait(state: State, props: dict[str, Any]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 3:
            all_begun.set()
        await all_begun.wait()
        await asyncio.sleep(0.001)  # for one more to begin, if it may
        now -= 1

    app = store.app("few")
    receipts = [app.request(f"i{n}", "k/wait") for n in range(50)]
    run(component, async_max=3).complete(receipts, WAIT_S)

    assert most == 3


def test_plain_updates_that_are_held_up_do_not_hold_up_other_instances(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("held")
    together = threading.Barrier(5)

    @component.update("k")
    def wait(state: State, props: dict[str, Any]) -> None:
        together.wait(WAIT_S)

    app = store.app("held")
    receipts = [app.request(f"i{n}", "k/wait") for n in range(5)]
    closed = run(component, concurrency=5).complete(receipts, WAIT_S)

    assert {entry.event.kind for entry in closed} == {Kind.DIFF}


def test_a_busy_instance_does_not_starve_another(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("fair")
    order: list[str] = []
    is_ready = threading.Event()

    @component.update("k")
    def note(state: State, props: dict[str, Any]) -> None:
        assert is_ready.wait(WAIT_S)  # a lane goes on while others are still taken in
        order.append(str(state.instance_id))

    app = store.app("fair")
    for _ in range(300):
        app.request("busy", "k/note")
    app.request("quiet", "k/note").entry()
    runner = run(component, concurrency=1)
    is_ready.set()
    # Waiting for a request would help with the busy one: all turns are the one thread's.
    assert runner.drain(WAIT_S)

    assert len(order) == 301
    assert order.index("quiet") < 100


# --- hand-over ------------------------------------------------------------------------------------


def test_what_is_pending_when_a_runner_stops_is_run_by_the_next(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("next")
    begun, release = threading.Event(), threading.Event()

    @component.update("k")
    def note(state: State, props: dict[str, Any]) -> Diff:
        begun.set()
        assert release.wait(WAIT_S)
        return Diff().append("log", props["n"])

    app = store.app("next")
    first = run(component)
    receipts = [app.request("i", "k/note", {"n": n}) for n in range(20)]
    assert begun.wait(WAIT_S)
    stopper = threading.Thread(target=first.stop, args=(WAIT_S,))
    stopper.start()
    deadline = time.monotonic() + WAIT_S
    while not first.snapshot().is_stopping:
        assert time.monotonic() < deadline
    release.set()
    stopper.join()
    assert app.get("i", "log") == [0]  # what ran has ended, the rest stayed

    run(component).complete(receipts, WAIT_S)

    assert app.get("i", "log") == list(range(20))


def test_a_request_that_an_earlier_owner_may_have_begun_is_marked_before_it_runs(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("log")
    receipt = app.request("i", "a/note", {"n": 1})
    receipt.entry()

    run(log_component()).complete([receipt], WAIT_S)

    kinds = [entry.event.kind for entry in app.history("i")]
    assert kinds == [Kind.REQUEST, Kind.ATTEMPT, Kind.DIFF]


def test_a_request_that_took_down_every_owner_is_set_aside_unrun(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    from eventstore.processing import Processing

    processing = Processing(store.app("log"))
    receipt = processing.app.request("i", "a/note", {"n": 1})
    cause = receipt.entry().sequence
    for _ in range(3):
        processing.send([("i", Event(Kind.ATTEMPT, "a/note", b"{}", answer=Answer(cause)))])
    behind = processing.app.request("i", "a/note", {"n": 2})
    behind.entry()

    closed = run(log_component()).complete([receipt, behind], WAIT_S)

    assert body_of(closed[0])["reason"] == "crashed"
    assert processing.app.get("i", "log") == [2]


def test_two_runners_of_one_lane_have_one_effect(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = store.app("log")
    first, second = run(log_component()), run(log_component())
    everything = frozenset(range(64))
    for runner in (first, second):  # as if each had been told that all is its own
        runner._shards_changed(everything)

    receipts = [app.request(f"i{n % 4}", "a/note", {"n": n}) for n in range(400)]
    first.complete(receipts, WAIT_S)

    for lane in range(4):
        assert app.get(f"i{lane}", "log") == list(range(lane, 400, 4))


def test_what_runs_when_another_runner_joins_is_not_begun_a_second_time(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    if store.url.startswith("memory:"):
        pytest.skip("a memory log is one program's")
    component, began, gate = Component("slow"), [], threading.Event()

    @component.update("k")
    async def wait(state: State, props: dict[str, Any]) -> dict[str, Any]:
        began.append(props["n"])
        assert await asyncio.to_thread(gate.wait, WAIT_S)
        return {"n": props["n"]}

    first = run(component)
    instances = first_of_each_shard(first)
    receipts = [
        store.app("slow").request(name, "k/wait", {"n": n}) for n, name in enumerate(instances)
    ]
    assert eventually(lambda: len(began) == len(instances), WAIT_S)
    with EventStore(store.url, namespace=store.config.namespace) as elsewhere:
        second = Runner(elsewhere, component).start()
        assert eventually(lambda: len(first.snapshot().shards) < len(instances), WAIT_S)
        # It would have them, and have begun, within this time.
        assert not eventually(lambda: bool(second.snapshot().shards), 2.0)
        gate.set()
        assert eventually(
            lambda: (
                len(first.snapshot().shards | second.snapshot().shards) == len(instances)
                and bool(second.snapshot().shards)
            ),
            WAIT_S,
        )
        first.complete(receipts, WAIT_S)
        second.stop()

    assert sorted(began) == list(range(len(instances)))
    assert [store.app("slow").get(name, "n") for name in instances] == sorted(began)


def test_what_has_run_is_passed_on_only_when_its_answer_counts(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, runner = store.app("log"), run(log_component())
    append, is_on_its_way = store.log.append, threading.Event()
    held_back: list[Callable[[], None]] = []

    def hold_back_answers(topic: Topic, appends: Sequence[Append]) -> None:
        if decode_event(appends[0].value).answer is None:
            append(topic, appends)
        else:
            held_back.append(lambda: append(topic, appends))
            is_on_its_way.set()

    monkeypatch.setattr(store.log, "append", hold_back_answers)
    receipt = app.request("i", "a/note", {"n": 1})
    shard = runner.processing.shard_of("i")
    assert is_on_its_way.wait(WAIT_S)
    assert eventually(lambda: not runner._board.busy)
    is_busy_before = runner._board.is_busy(shard)
    held_back.pop()()
    runner.complete([receipt], WAIT_S)

    assert is_busy_before
    assert eventually(lambda: not runner._board.is_busy(shard))


def test_what_runs_for_too_long_when_another_runner_joins_runs_there_as_well_and_counts_once(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.url.startswith("memory:"):
        pytest.skip("a memory log is one program's")
    for log in ("ownership", "kafka_owner"):
        monkeypatch.setattr(f"eventstore.log.{log}.HAND_OVER_S_MAX", 0.1)
    component, began, gate = Component("long"), [], threading.Event()

    @component.update("k")
    async def wait(state: State, props: dict[str, Any]) -> Diff:
        began.append(props["n"])
        assert await asyncio.to_thread(gate.wait, WAIT_S)
        return Diff().append("log", props["n"])

    first = run(component)
    instances = first_of_each_shard(first)
    app = store.app("long")
    receipts = [app.request(name, "k/wait", {"n": n}) for n, name in enumerate(instances)]
    assert eventually(lambda: len(began) == len(instances), WAIT_S)
    with EventStore(store.url, namespace=store.config.namespace) as elsewhere:
        second = Runner(elsewhere, component).start()
        assert eventually(lambda: len(began) > len(instances), WAIT_S)
        gate.set()
        first.complete(receipts, WAIT_S)
        second.stop()

    assert [app.get(name, "log") for name in instances] == [[n] for n in range(len(instances))]


def first_of_each_shard(runner: Runner) -> list[str]:
    """Return the name of an instance for each shard of a runner's app."""
    names: dict[int, str] = {}
    for number in itertools.count():
        names.setdefault(runner.processing.shard_of(str(number)), str(number))
        if len(names) == runner.processing.shards():
            break
    return list(names.values())


# --- in processes of their own --------------------------------------------------------------------


def test_sync_updates_run_in_spawned_processes_where_that_is_asked_for(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("Handlers")
    names = ["count", "use_effects", "use_checkpoint", "count"]

    run(worker_handlers.component, worker="process").complete(
        [app.request("i", f"do/{name}", {"by": 2, "mine": 5}) for name in names], WAIT_S
    )

    state = app.get("i")
    assert state["pid"] != os.getpid()
    assert (state["count"], state["rolls"], state["seen"]) == (4, [5, 5], True)
    effects = [entry for entry in app.history("i") if entry.event.kind == Kind.EFFECT]
    assert len(effects) == 2


@pytest.mark.parametrize("name", ["sum_up", "sum_up_in_parts"])
def test_a_serializable_update_in_a_spawned_process_runs_again_when_what_it_read_has_changed(
    store: EventStore,
    run: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    app = store.app("Handlers")
    app.append("i", {"value": 1}).entry()
    record, changes = LogCalls.record, [10]

    def record_after_a_change(*args: Any) -> bytes:
        if changes:
            app.append("i", {"value": changes.pop()}).entry()
        return record(*args)

    monkeypatch.setattr(LogCalls, "record", record_after_a_change)
    runner = run(worker_handlers.component, worker="process")
    runner.complete([app.request("i", f"do/{name}")], WAIT_S)

    state = app.get("i")
    assert (state["sum"], state.get("half", 10)) == (10, 10)
    assert runner.snapshot().conflicts == 1


def test_async_updates_stay_in_the_runner_s_process(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("Handlers")
    runner = run(worker_handlers.component, worker="process")

    runner.complete([app.request("i", "do/wait_on_a_loop")], WAIT_S)

    assert app.get("i", "loop") == id(runner._board.loop)


def test_what_is_raised_in_a_spawned_process_is_a_failure_like_any_other(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("Handlers")
    runner = run(worker_handlers.component, worker="process")

    closed = runner.complete(
        [app.request("i", "do/raise_readable"), app.request("i", "do/count", {"by": 1})], WAIT_S
    )

    assert [entry.event.kind for entry in closed] == [Kind.FAILURE, Kind.DIFF]
    failure = body_of(closed[0])
    assert (failure["reason"], failure["type"], failure["attempts"]) == ("raised", "Readable", 1)
    assert "raise_readable" in failure["traceback"]


# --- reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_an_update_reads_other_instances_of_its_own_app_and_of_others(
    store: EventStore, run: Callable[..., Runner], is_async: bool
) -> None:
    component = Component("reader")

    def found(other: State, order: State, namesake: State) -> dict[str, Any]:
        return {
            "other": other["n"],
            "order": [order.app, order.instance, order.version, order["status"]],
            "namesake": namesake["n"],
        }

    def read(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        return found(
            context.get("j"), context.get("o-1", app="orders"), context.get(app="namesakes")
        )

    async def read_async(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        return found(
            *await asyncio.gather(
                context.get("j"), context.get("o-1", app="orders"), context.get(app="namesakes")
            )
        )

    component.update("k", name="read")(read_async if is_async else read)
    store.app("orders").append("o-1", {"status": "new"})
    store.app("orders").append("o-1", {"status": "paid"})
    store.app("namesakes").append("i", {"n": 2})
    app = store.app("reader")
    app.append("j", {"n": 1})

    run(component).complete([app.request("i", "k/read")], WAIT_S)

    assert dict(app.get("i")) == {
        "other": 1,
        "order": ["orders", "o-1", 2, "paid"],
        "namesake": 2,
    }


def test_an_update_reads_what_another_program_was_told_is_written(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    if store.url.startswith("memory:"):
        pytest.skip("a memory log is one program's")
    component = Component("reader")

    with EventStore(store.url, namespace=store.config.namespace) as elsewhere:
        orders = elsewhere.app("orders")

        @component.update("k")
        def read(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
            seen = []
            for n in range(20):
                orders.append("o-1", {"n": n}).result()
                seen.append(context.get("o-1", app="orders")["n"])
            return {"seen": seen}

        app = store.app("reader")
        run(component).complete([app.request("i", "k/read")], WAIT_S)

    assert app.get("i", "seen") == list(range(20))


def test_a_read_of_what_only_waits_is_of_version_0_and_of_what_is_not_there_an_error(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("reader")
    caught: list[str] = []

    @component.update("k")
    def read(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        waiting = context.get("waiting", app="orders")
        for place in ({"instance": "nobody"}, {"instance": "x", "app": "nowhere"}):
            try:
                context.get(**place)
            except InstanceNotFound as error:
                caught.append(str(error))
        return {"waiting": [waiting.version, dict(waiting)]}

    store.app("orders").request("waiting", "k/later")
    app = store.app("reader")
    run(component).complete([app.request("i", "k/read")], WAIT_S)

    assert app.get("i", "waiting") == [0, {}]
    assert caught == [
        "app 'reader' has no instance 'nobody'",
        "app 'nowhere' has no instance 'x'",
    ]
    assert "nowhere" not in store.apps()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({}, "context.get: reader/i is the instance that this update runs on"),
        ({"instance": "i", "app": "reader"}, "its state is the handler's first parameter"),
        ({"instance": "j", "app": "a b"}, "'a b' is no app's name"),
        ({"instance": "j", "app": ""}, "'' is no app"),
        ({"instance": ""}, "a name is text, and not empty"),
        ({"instance": 7}, "7: a name is text"),
        ({"instance": "$foldlog/clock"}, "names that begin with $foldlog/ are ours"),
    ],
)
def test_a_read_of_the_own_instance_or_of_what_can_be_none_is_refused(
    store: EventStore, run: Callable[..., Runner], place: dict[str, Any], words: str
) -> None:
    component = Component("reader")

    @component.update("k")
    def read(state: State, props: dict[str, Any], context: Any) -> None:
        context.get(**place)

    receipt = store.app("reader").request("i", "k/read")
    (failure,) = run(component).complete([receipt], WAIT_S)

    assert (body_of(failure)["reason"], body_of(failure)["type"]) == ("raised", "ValueError")
    assert words in body_of(failure)["message"]


def test_what_an_update_reads_of_others_guards_nothing(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("strict")
    runs: list[int] = []

    @component.update("k", isolation="serializable")
    def copy(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        runs.append(context.attempt)
        value = context.get("j")["value"]
        app.append("j", {"value": value + 1}).result()
        return {"copy": value}

    app = store.app("strict")
    app.append("j", {"value": 1})
    run(component).complete([app.request("i", "k/copy")], WAIT_S)

    assert (app.get("i", "copy"), app.get("j", "value"), runs) == (1, 2, [1])


def test_a_log_that_is_away_while_an_update_reads_is_waited_for(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("away")
    failures = iter([LogUnavailable("away"), ReadTimeout("slow")])

    @component.update("k")
    def read(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        return {"n": context.get("o-1", app="orders")["n"], "attempt": context.attempt}

    runner = run(component)
    state_in = runner.processing.state_in

    def failing(app: str, instance: str) -> State:
        if (error := next(failures, None)) is not None:
            raise error
        return state_in(app, instance)

    monkeypatch.setattr(runner.processing, "state_in", failing)
    store.app("orders").append("o-1", {"n": 1})
    app = store.app("away")
    runner.complete([app.request("i", "k/read")], WAIT_S)

    assert next(failures, None) is None
    assert dict(app.get("i")) == {"n": 1, "attempt": 1}


def test_an_update_in_a_spawned_process_reads_by_the_runner_s_store(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("Handlers")
    store.app("orders").append("o-1", {"status": "paid", "items": ["book"]})
    runner = run(worker_handlers.component, worker="process")

    closed = runner.complete(
        [
            app.request("i", "do/read_another", {"instance": "o-1", "app": "orders"}),
            app.request("i", "do/read_another", {"instance": "o-2", "app": "orders"}),
            app.request("i", "do/read_another", {"instance": "i", "app": "Handlers"}),
            app.request("i", "do/count", {"by": 1}),
        ],
        WAIT_S,
    )

    assert app.get("i", "pid") != os.getpid()
    assert app.get("i", "read") == [1, {"status": "paid", "items": ["book"]}]
    kinds = [Kind.DIFF, Kind.FAILURE, Kind.FAILURE, Kind.DIFF]
    assert [entry.event.kind for entry in closed] == kinds
    assert [body_of(closed[n])["type"] for n in (1, 2)] == ["InstanceNotFound", "ValueError"]


# --- effects, checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda context: context.checkpoint({}), "checkpoint"),
        (lambda context: context.effect("nothing", dict), "effect"),
        (lambda context: context.get("j"), "get"),
    ],
)
def test_a_call_that_nobody_awaits_is_warned_about_by_its_name(
    store: EventStore,
    run: Callable[..., Runner],
    call: Callable[[Any], object],
    name: str,
) -> None:
    component = Component("forgetful")

    @component.update("k")
    async def forget(state: State, props: dict[str, Any], context: Any) -> None:
        call(context)

    with pytest.warns(RuntimeWarning, match=f"'context.{name}' was never awaited"):
        run(component).complete([store.app("forgetful").request("i", "k/forget")], WAIT_S)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_effect_whose_result_cannot_be_stored_says_that_its_call_was_made(
    store: EventStore, run: Callable[..., Runner], is_async: bool
) -> None:
    component = Component("effects")

    def pay(state: State, props: dict[str, Any], context: Any) -> None:
        context.effect("charge", object)

    async def pay_async(state: State, props: dict[str, Any], context: Any) -> None:
        await context.effect("charge", object)

    component.update("k", name="pay")(pay_async if is_async else pay)
    receipt = store.app("effects").request("i", "k/pay")
    (failure,) = run(component).complete([receipt], WAIT_S)

    assert (
        "effect 'charge': the call was made, and is not recorded" in body_of(failure)["traceback"]
    )


@pytest.mark.parametrize("app_name", ["a b", "", "x" * 121])
def test_a_message_to_what_can_be_no_app_is_refused_where_it_is_sent(
    store: EventStore, run: Callable[..., Runner], app_name: str
) -> None:
    component = Component("sender")

    @component.update("k")
    def send(state: State, props: dict[str, Any], context: Any) -> None:
        context.append("l-1", {"n": 1}, app=app_name)

    receipt = store.app("sender").request("i", "k/send")
    (failure,) = run(component).complete([receipt], WAIT_S)

    assert body_of(failure)["reason"] == "raised"
    assert " is no app" in body_of(failure)["message"]


def test_an_effect_is_called_once_however_often_its_update_runs(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("effects")
    calls: list[str] = []
    runs: list[int] = []

    def charge(amount: int) -> str:
        calls.append(f"charged {amount}")
        return calls[-1]

    @component.update("k", retry=Retry(attempts=3, backoff_s=0.001))
    def pay(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        receipt = context.effect("charge", charge, 5)
        runs.append(context.attempt)
        if len(runs) < 3:
            raise OSError("after the call")
        return {"receipt": receipt}

    app = store.app("effects")
    run(component).complete([app.request("i", "k/pay")], WAIT_S)

    assert (calls, runs) == (["charged 5"], [1, 2, 3])
    assert app.get("i", "receipt") == "charged 5"


def test_a_failure_that_is_retried_takes_the_effects_of_its_failed_runs_from_the_log(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("retriedeffects")
    calls: list[int] = []
    faults = [OSError("first"), OSError("second")]

    def ask() -> int:
        calls.append(1)
        return len(calls)

    @component.update("k")
    def pay(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        receipt = context.effect("pay", ask)
        if faults:
            raise faults.pop()
        return {"receipt": receipt}

    app = store.app("retriedeffects")
    runner = run(component)
    (failure,) = runner.complete([app.request("i", "k/pay")], WAIT_S)
    for _ in range(2):
        retried = retry_failure(app, failure)
        failure = runner.closed("i", retried.sequence, WAIT_S)

    assert failure.event.kind == Kind.DIFF
    assert (app.get("i", "receipt"), calls) == (1, [1])


def test_an_effect_whose_arguments_cannot_be_stored_is_known_by_its_key(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("keyedeffects")
    calls: list[object] = []

    def ask(client: object, question: str) -> str:
        calls.append(client)
        return question.upper()

    @component.update("k", retry=Retry(attempts=2, backoff_s=0.001))
    def answer(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        found = [
            context.effect("ask", ask, object(), question, key=question) for question in ("a", "b")
        ]
        if context.attempt == 1:
            raise OSError("once")
        return {"found": found}

    app = store.app("keyedeffects")
    run(component).complete([app.request("i", "k/answer")], WAIT_S)

    assert app.get("i", "found") == ["A", "B"]
    assert len(calls) == 2


def test_a_log_that_is_away_while_an_effect_is_recorded_is_waited_for(
    store: EventStore, run: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("away")
    calls: list[str] = []
    failures = iter([LogUnavailable("away"), ReadTimeout("slow"), OutcomeUnknown("perhaps")])

    def charge() -> str:
        calls.append("charged")
        return "receipt"

    @component.update("k")
    def pay(state: State, props: dict[str, Any], context: Any) -> State:
        receipt = context.effect("charge", charge)
        state = context.checkpoint(state.update(receipt=receipt))
        return state.update(done=True)

    runner = run(component)
    send = runner.processing.send

    def failing(events: Any) -> Any:
        if events[0][1].kind == Kind.EFFECT and (error := next(failures, None)) is not None:
            raise error
        return send(events)

    monkeypatch.setattr(runner.processing, "send", failing)
    app = store.app("away")
    closed = runner.complete([app.request("i", "k/pay")], WAIT_S)

    assert closed[0].event.kind == Kind.DIFF
    assert calls == ["charged"]
    assert dict(app.get("i")) == {"receipt": "receipt", "done": True}


def test_that_the_log_is_away_is_said_once_however_many_instances_wait_for_it(
    store: EventStore,
    run: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = store.app("log")
    runner = run(log_component())
    send = runner.processing.send
    refused: set[str] = set()

    def failing(events: Any) -> Any:
        [(instance, event)] = events
        if event.kind == Kind.DIFF and instance not in refused:
            refused.add(instance)
            raise LogUnavailable("the disk is full")
        return send(events)

    monkeypatch.setattr(runner.processing, "send", failing)
    receipts = [app.request(f"i{n}", "b/note", {"n": n}) for n in range(30)]
    runner.complete(receipts, WAIT_S)

    assert len(refused) == 30
    said = [record for record in caplog.records if "the disk is full" in record.getMessage()]
    assert len(said) == 1


def test_equal_calls_of_one_run_are_effects_of_their_own_and_other_arguments_another(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("calls")
    calls: list[int] = []

    def roll(sides: int) -> int:
        calls.append(sides)
        return len(calls)

    @component.update("k")
    def play(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        return {"rolls": [context.effect("roll", roll, sides) for sides in (6, 6, 8)]}

    app = store.app("calls")
    run(component).complete([app.request("i", "k/play")], WAIT_S)

    assert app.get("i", "rolls") == [1, 2, 3]


def test_an_async_update_awaits_its_effects_and_the_loop_goes_on(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("asynceffects")
    calls: list[int] = []

    async def ask(n: int) -> int:
        calls.append(n)
        await asyncio.sleep(0)
        return n * 2

    @component.update("k", retry=Retry(attempts=2, backoff_s=0.001))
    async def gather(state: State, props: dict[str, Any], context: Any) -> dict[str, Any]:
        found = await asyncio.gather(*(context.effect("ask", ask, n) for n in range(5)))
        if context.attempt == 1:
            raise OSError("once")
        return {"found": list(found)}

    app = store.app("asynceffects")
    run(component).complete([app.request("i", "k/gather")], WAIT_S)

    assert app.get("i", "found") == [0, 2, 4, 6, 8]
    assert sorted(calls) == [0, 1, 2, 3, 4]


def test_a_later_run_passes_the_checkpoints_of_an_earlier_one(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("parts")

    @component.update("k", retry=Retry(attempts=3, backoff_s=0.001))
    def steps(state: State, props: dict[str, Any], context: Any) -> State:
        state = context.checkpoint(state.append(log="one"))
        if context.attempt == 1:
            raise OSError("after the first part")
        state = context.checkpoint(state.append(log="two"))
        if context.attempt == 2:
            raise OSError("after the second part")
        assert state["log"] == ["one", "two"]
        return state.append(log="three")

    app = store.app("parts")
    closed = run(component).complete([app.request("i", "k/steps")], WAIT_S)

    assert closed[0].event.kind == Kind.DIFF, body_of(closed[0])
    assert app.get("i", "log") == ["one", "two", "three"]


def test_what_follows_a_checkpoint_keeps_it_where_a_component_has_hooks(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("livingparts")
    are_same: list[bool] = []

    @component.load_state
    def load(saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "client": object()}

    @component.save_state
    def save(state: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in state.items() if name != "client"}

    @component.update("k", retry=Retry(attempts=2, backoff_s=0.001))
    def steps(state: dict[str, Any], props: dict[str, Any], context: Any) -> dict[str, Any]:
        later = context.checkpoint({"first": 1})
        are_same.append(later["client"] is state["client"])
        if context.attempt == 1:
            raise OSError("after the checkpoint")
        return {"second": later["first"] + 1}

    app = store.app("livingparts")
    run(component).complete([app.request("i", "k/steps")], WAIT_S)

    assert dict(app.get("i")) == {"first": 1, "second": 2}
    assert are_same == [True, True]


def test_what_follows_a_checkpoint_in_a_spawned_process_keeps_it_where_a_component_has_hooks(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    app = store.app("Kept")
    app.append("i", {"text": "four"}).entry()

    run(worker_handlers.kept, worker="process").complete(
        [app.request("i", "do/remember_in_parts")], WAIT_S
    )

    assert dict(app.get("i")) == {"text": "four", "length": 4, "twice": 8}


def test_a_checkpoint_that_met_the_changes_of_others_is_gone_on_from_with_them(
    store: EventStore, run: Callable[..., Runner]
) -> None:
    component = Component("sharedparts")
    app = store.app("sharedparts")

    @component.load_state
    def load(saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "only in memory": sorted(saved)}

    @component.save_state
    def save(state: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in state.items() if name != "only in memory"}

    @component.update("k")
    def steps(state: dict[str, Any], props: dict[str, Any], context: Any) -> dict[str, Any]:
        app.append("i", {"theirs": 1}).entry()
        later = context.checkpoint({"ours": 1})
        return {"seen": later["only in memory"]}

    run(component).complete([app.request("i", "k/steps")], WAIT_S)

    assert dict(app.get("i")) == {"theirs": 1, "ours": 1, "seen": ["ours", "theirs"]}
