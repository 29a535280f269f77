"""Updates that run at once: their request is written together with their answer.

Goal: whoever calls `run(..., flush_update=True)` cannot tell such an update from one whose request
was written first, but by the clock; and what other programs write meanwhile is never run over.
Method: every update counts as quick, and does, while it runs, what another program would do in that
moment: it writes through a store of its own. At the end the view is compared with the log.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from eventstore import (
    Config,
    Diff,
    Event,
    EventStore,
    EventTooLarge,
    Kind,
    LogUnavailable,
    ReadTimeout,
    State,
    Verdict,
    codec,
    testing,
)
from eventstore.history.verify import verify_app
from eventstore.processing import NewerRecord, Processing
from processors import (
    Component,
    ComponentInstance,
    Context,
    Retry,
    UpdateFailed,
    beginning,
    clear_instance,
)
from processors.runner import Runner, engine, handlers, turns
from tests.contract.logs import read_all

#: No wait of a test takes so long unless something is broken.
WAIT_S = 60.0

Props = Mapping[str, Any]


@pytest.fixture(autouse=True)
def everything_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every update for quick that has run before, on the slowest of machines.

    There, an instance has its shard from the beginning, too: nobody else can have begun a request.
    """
    monkeypatch.setattr(handlers, "_QUICK_S_MAX", WAIT_S)
    monkeypatch.setattr(engine, "_SHARE_WAIT_S", WAIT_S)


@pytest.fixture(params=["memory", "sqlite"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[Callable[[], EventStore]]:
    """Open the log once more at each call, as another process would; all are checked and closed."""
    url = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "log")
    stores: list[EventStore] = []
    with ExitStack() as stack:

        def open_again() -> EventStore:
            config = Config.load({}, namespace=namespace, event_bytes_max=10_000)
            stores.append(stack.enter_context(EventStore(url, config=config)))
            return stores[-1]

        yield open_again
        for store in stores:
            for app in store.apps():
                assert verify_app(store, app).differences == ()


@pytest.fixture
def store(open_store: Callable[[], EventStore]) -> EventStore:
    return open_store()


@pytest.fixture
def other(open_store: Callable[[], EventStore]) -> EventStore:
    """The store of another program."""
    return open_store()


class Meanwhile:
    """What happens while an update runs, once; and what each run of it found in the log."""

    def __init__(self) -> None:
        self.act: Callable[[], object] | None = None
        #: The kinds of the instance's events that were in the log at each call.
        self.found: list[list[str]] = []

    def pass_by(self, store: EventStore) -> None:
        self.found.append(logged(store))
        act, self.act = self.act, None
        if act is not None:
            act()


@pytest.fixture
def meanwhile() -> Meanwhile:
    return Meanwhile()


@pytest.fixture
def counter(meanwhile: Meanwhile, store: EventStore) -> Component:
    """Counts in `count`, from 100, and keeps the `what` of each call in `log`."""
    component = Component("counter")

    @component.init_state
    def begin() -> dict[str, Any]:
        return {"count": 100, "log": []}

    @component.update("add")
    def add(state: State, props: Props) -> dict[str, Any]:
        meanwhile.pass_by(store)
        return {"count": state["count"] + props.get("by", 1)}

    @component.update("note")
    def note(state: State, props: Props) -> Diff:
        meanwhile.pass_by(store)
        return Diff().append("log", props["what"])

    @component.update("total", isolation="serializable")
    def total(state: State, props: Props) -> dict[str, Any]:
        count = state["count"]
        meanwhile.pass_by(store)
        return {"total": count}

    return component


@pytest.fixture
def instance(counter: Component, store: EventStore) -> Iterator[ComponentInstance]:
    with counter("i", store=store) as opened:
        yield opened


def logged(store: EventStore, instance: str = "i") -> list[str]:
    """Return the kinds of an instance's events, as they stand in the log at this moment."""
    topics = [store.log.topic(name, create=False) for name in store.log.topics()]
    return [
        codec.decode_event(record.value).kind.name
        for topic in topics
        for record in (read_all(store.log, topic) if topic is not None else ())
        if record.key == instance.encode() and record.value is not None
    ]


def verdicts(store: EventStore, app: str = "counter") -> list[tuple[str, str]]:
    """Return kind and verdict of each event of the instance, as the view has them."""
    store.app(app).get("i", fresh=True)
    return [(entry.event.kind.name, entry.verdict.name) for entry in store.app(app).history("i")]


def warm(instance: ComponentInstance, *keys: str) -> None:
    """Run each flow once, so that it is known to be quick."""
    for key in keys:
        instance.run(key, {"what": "warm", "by": 0}, flush_update=True)


# --- the two records ------------------------------------------------------------------------------


def test_a_quick_update_is_written_side_by_side_with_its_request(
    instance: ComponentInstance, store: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    before, version = logged(store), instance.get_version()

    instance.run("add", {"by": 5}, flush_update=True)

    assert meanwhile.found[-1] == before  # no request was in the log while it ran
    assert logged(store) == [*before, "REQUEST", "DIFF"]
    assert instance.read_state("count") == 105
    assert instance.get_version() == version + 1
    assert {verdict for _, verdict in verdicts(store)} == {"ACCEPTED"}
    *_, request, answer = store.app("counter").history("i")
    assert (request.event.name, answer.event.name) == ("add/add", "add/add")
    assert answer.event.answer is not None
    assert (answer.event.answer.cause, answer.event.answer.closes) == (request.sequence, True)


def test_a_request_that_waits_for_its_time_does_not_keep_an_update_from_running_at_once(
    instance: ComponentInstance, store: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    later = instance.submit("add", {"by": 5}, delay_s=3_600)
    instance.get_version()  # a read has what was requested before it: else it is newer
    before = logged(store)

    instance.run("add", {"by": 5}, flush_update=True)

    assert meanwhile.found[-1] == before  # no request was in the log while it ran
    assert logged(store) == [*before, "REQUEST", "DIFF"]
    assert later.updates[0].state == "pending"


@pytest.mark.parametrize("open_store", ["sqlite"], indirect=True)
def test_request_and_answer_are_one_commit(instance: ComponentInstance, store: EventStore) -> None:
    warm(instance, "add")
    topic = store.log.topic(store.log.topics()[0], create=False)
    assert topic is not None
    store.flush(WAIT_S)  # a commit that is read already may not be counted yet
    before = store.log.stamp(topic)

    for _ in range(3):
        instance.run("add", flush_update=True)

    assert before is not None
    assert store.log.stamp(topic) == before + 3


def test_the_first_run_of_an_update_has_its_request_in_the_log(
    instance: ComponentInstance, meanwhile: Meanwhile
) -> None:
    instance.run("add", flush_update=True)
    instance.run("note", {"what": 1}, flush_update=True)

    assert [found[-1] for found in meanwhile.found] == ["REQUEST", "REQUEST"]


def test_an_update_that_was_slow_the_last_time_has_its_request_in_the_log(
    instance: ComponentInstance, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(instance, "add")
    monkeypatch.setattr(handlers, "_QUICK_S_MAX", 0.0)

    instance.run("add", flush_update=True)

    assert meanwhile.found[-1][-1] == "REQUEST"


@pytest.mark.parametrize("kind", ["context", "async", "timeout", "hooks", "two updates", "process"])
def test_what_is_no_quick_plain_update_has_its_request_in_the_log(
    store: EventStore, meanwhile: Meanwhile, kind: str
) -> None:
    component = Component("counter")
    timeout_s = WAIT_S if kind == "timeout" else None
    worker: Literal["process"] | None = "process" if kind == "process" else None

    def plain(state: State, props: Props) -> None:
        meanwhile.pass_by(store)

    def with_context(state: State, props: Props, context: Context) -> None:
        meanwhile.pass_by(store)

    async def asynchronous(state: State, props: Props) -> None:
        meanwhile.pass_by(store)

    function: Any = {"context": with_context, "async": asynchronous}.get(kind, plain)
    component.update("k", timeout_s=timeout_s, worker=worker)(function)
    if kind == "two updates":
        component.update("k", name="again")(plain)
    if kind == "hooks":
        component.load_state(lambda state: dict(state))
        component.save_state(lambda state: dict(state))

    with component("i", store=store) as instance:
        for _ in range(3):
            if kind == "process":  # no process finds a component of a test's own
                with pytest.raises(UpdateFailed):
                    instance.run("k", flush_update=True)
            else:
                instance.run("k", flush_update=True)

    assert all(found[-1] == "REQUEST" or kind == "two updates" for found in meanwhile.found)
    assert logged(store).count("REQUEST") == (6 if kind == "two updates" else 3)
    closing = "FAILURE" if kind == "process" else "DIFF"
    assert logged(store).count(closing) == logged(store).count("REQUEST")


def test_an_update_that_changes_nothing_is_answered_without_a_new_version(
    store: EventStore, meanwhile: Meanwhile
) -> None:
    component = Component("idle")

    @component.update("k")
    def nothing(state: State, props: Props) -> None:
        meanwhile.pass_by(store)

    with component("i", store=store) as instance:
        for _ in range(3):
            instance.run("k", flush_update=True)

        assert instance.get_version() == 0
    assert meanwhile.found[-1] == ["REQUEST", "DIFF"] * 2
    assert logged(store) == ["REQUEST", "DIFF"] * 3


def test_the_runner_and_the_instance_count_what_ran_at_once(
    instance: ComponentInstance, counter: Component, store: EventStore
) -> None:
    runner = Runner.share(store, counter)
    warm(instance, "add")
    before = runner.snapshot()

    for _ in range(5):
        instance.run("add", flush_update=True)

    status = runner.snapshot()
    runner.release()
    assert status.applied == before.applied + 5
    assert (status.failed, status.conflicts, status.waiting, status.running) == (0, 0, 0, ())
    outcomes = [request.outcome for request in instance.requests()]
    assert [outcome.state for outcome in outcomes] == ["applied"] * 6


def test_an_instance_is_counted_on_in_the_order_of_the_calls_of_both_kinds(
    instance: ComponentInstance, store: EventStore
) -> None:
    warm(instance, "note")

    for number in range(0, 30, 3):
        instance.run("note", {"what": number})
        store.app("counter").append("i", Diff().append("log", number + 1))
        instance.run("note", {"what": number + 2}, flush_update=True)

    log = instance.read_state("log")
    assert [one for one in log if one != "warm" and one % 3 != 1] == [
        number for number in range(30) if number % 3 != 1
    ]
    assert sorted(log[1:]) == list(range(30))


def test_what_serve_answered_comes_with_the_props(store: EventStore) -> None:
    component = Component("served")

    @component.serve("k")
    def double(state: State, props: Props) -> int:
        return int(props["n"]) * 2

    @component.update("k")
    def keep(state: State, props: Any) -> dict[str, Any]:
        return {"last": props.serve_result}

    with component("i", store=store) as instance:
        for number in range(3):
            assert instance.run("k", {"n": number}, flush_update=True) == number * 2
            assert instance.read_state("last") == number * 2


# --- what does not end well -----------------------------------------------------------------------


def failing(store: EventStore, meanwhile: Meanwhile, **options: Any) -> Component:
    """Return a component whose update raises, if `raises_until` says so, up to its nth call."""
    component = Component("counter")

    @component.update("k", **options)
    def update(state: State, props: Props) -> dict[str, Any]:
        meanwhile.pass_by(store)
        if len(meanwhile.found) <= props.get("raises_until", 0):
            raise ValueError("no")
        return {"done": len(meanwhile.found)}

    return component


def test_an_update_that_raises_is_called_once_and_its_failure_is_on_record(
    store: EventStore, meanwhile: Meanwhile
) -> None:
    with failing(store, meanwhile)("i", store=store) as instance:
        instance.run("k", flush_update=True)
        with pytest.raises(UpdateFailed) as caught:
            instance.run("k", {"raises_until": 99}, flush_update=True)
        instance.get_version()  # a read is behind the failure, and so is what runs at once
        instance.run("k", flush_update=True)

        [failed] = [one for one in instance.requests() if one.outcome.state == "failed"]
        assert instance.get_version() == 2
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.reason, caught.value.attempts) == ("raised", 1)
    assert caught.value.sequence == failed.sequence == 2
    assert logged(store) == ["REQUEST", "DIFF", "REQUEST", "FAILURE", "REQUEST", "DIFF"]
    assert meanwhile.found[1:] == [["REQUEST", "DIFF"], logged(store)[:4]]


def test_an_update_that_raises_is_retried_as_its_policy_says_and_each_attempt_shows(
    store: EventStore, meanwhile: Meanwhile
) -> None:
    component = failing(store, meanwhile, retry=Retry(attempts=3, backoff_s=0.001))
    with component("i", store=store) as instance:
        instance.run("k", flush_update=True)
        with pytest.raises(UpdateFailed) as caught:
            instance.run("k", {"raises_until": 99}, flush_update=True)
        calls = len(meanwhile.found)
        instance.get_version()  # a read is behind the failure, and so is what runs at once
        instance.run("k", {"raises_until": calls + 1}, flush_update=True)

        assert instance.read_state("done") == calls + 2
    assert calls == 1 + 3
    assert caught.value.attempts == 3
    assert logged(store) == [
        *("REQUEST", "DIFF"),
        *("REQUEST", "ATTEMPT", "ATTEMPT", "FAILURE"),
        *("REQUEST", "ATTEMPT", "DIFF"),
    ]
    attempts = [
        json.loads(entry.event.body)
        for entry in store.app("counter").history("i")
        if entry.event.kind == Kind.ATTEMPT
    ]
    assert [body["attempt"] for body in attempts] == [2, 3, 2]
    assert {body["why"] for body in attempts} == {"raised"}


def test_an_answer_that_does_not_fit_fails_its_request(
    store: EventStore, meanwhile: Meanwhile
) -> None:
    component = Component("counter")

    @component.update("k")
    def update(state: State, props: Props) -> Diff:
        meanwhile.pass_by(store)
        return Diff().append("list", 1) if props.get("fits") else Diff().increment("list", 1)

    with component("i", store=store) as instance:
        instance.run("k", {"fits": True}, flush_update=True)
        calls = len(meanwhile.found)
        with pytest.raises(UpdateFailed) as caught:
            instance.run("k", flush_update=True)
        calls = len(meanwhile.found) - calls
        instance.run("k", {"fits": True}, flush_update=True)

        assert instance.read_state("list") == [1, 1]
    assert caught.value.reason == "rejected"
    assert calls == 1
    accepted = [kind for kind, verdict in verdicts(store) if verdict == "ACCEPTED"]
    assert accepted == ["REQUEST", "DIFF", "REQUEST", "FAILURE", "REQUEST", "DIFF"]


def test_an_answer_that_is_too_large_fails_its_request(
    store: EventStore, meanwhile: Meanwhile
) -> None:
    component = Component("counter")

    @component.update("k")
    def update(state: State, props: Props) -> dict[str, Any]:
        meanwhile.pass_by(store)
        return {"text": "x" * props["size"]}

    with component("i", store=store) as instance:
        instance.run("k", {"size": 1}, flush_update=True)
        with pytest.raises(UpdateFailed) as caught:
            instance.run("k", {"size": 20_000}, flush_update=True)
        instance.run("k", {"size": 2}, flush_update=True)

        assert instance.read_state("text") == "xx"
    assert isinstance(caught.value.__cause__, EventTooLarge)
    assert logged(store) == ["REQUEST", "DIFF", "REQUEST", "FAILURE", "REQUEST", "DIFF"]


def test_a_request_that_is_too_large_is_told_and_nothing_is_written(
    instance: ComponentInstance, store: EventStore
) -> None:
    warm(instance, "note")
    before = logged(store)

    with pytest.raises(EventTooLarge):
        instance.run("note", {"what": "x" * 20_000}, flush_update=True)

    assert logged(store) == before
    instance.run("note", {"what": "after"}, flush_update=True)
    assert instance.read_state("log") == ["warm", "after"]


def test_ctrl_c_in_an_update_leaves_nothing_behind_and_the_instance_usable(
    instance: ComponentInstance, store: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    before = logged(store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    meanwhile.act = interrupt
    with pytest.raises(KeyboardInterrupt):
        instance.run("add", flush_update=True)

    assert logged(store) == before
    instance.run("add", flush_update=True)
    assert instance.read_state("count") == 101


@pytest.mark.parametrize("open_store", ["sqlite"], indirect=True)
def test_a_log_that_cannot_be_written_is_told_once_and_the_instance_goes_on(
    instance: ComponentInstance, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(instance, "add")
    before = logged(store)

    def refuse(point: str) -> None:
        if point == "log.commit.before":
            raise LogUnavailable("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(testing, "on_fault_point", refuse)
        with pytest.raises(LogUnavailable, match="the disk is away"):
            instance.run("add", flush_update=True)

    assert logged(store) == before
    instance.run("add", flush_update=True)
    assert instance.read_state("count") == 101


# --- what others write meanwhile ------------------------------------------------------------------


def test_an_update_sees_a_change_that_came_while_it_ran(
    instance: ComponentInstance, store: EventStore, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    before = logged(store)

    meanwhile.act = lambda: other.app("counter").append("i", {"count": 1_000}).result()
    instance.run("add", flush_update=True)

    assert instance.read_state("count") == 1_001
    assert logged(store) == [*before, "DIFF", "REQUEST", "DIFF"]
    assert {verdict for _, verdict in verdicts(store)} == {"ACCEPTED"}


def test_a_serializable_update_sees_what_it_read_change(
    instance: ComponentInstance, store: EventStore, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "total")

    meanwhile.act = lambda: other.app("counter").append("i", {"count": 7}).result()
    instance.run("total", flush_update=True)

    assert instance.read_state("total") == 7
    *_, answer = store.app("counter").history("i")
    assert answer.event.guard is not None
    assert {"count", "total"} <= set(answer.event.guard.fields)


def test_a_request_that_came_while_an_update_ran_comes_first(
    instance: ComponentInstance, store: EventStore, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "note")

    meanwhile.act = lambda: (
        other.app("counter").request("i", "note/note", {"what": "theirs"}).result()
    )
    instance.run("note", {"what": "ours"}, flush_update=True)

    assert instance.read_state("log") == ["warm", "theirs", "ours"]
    closed = [
        entry.event.answer.cause
        for entry in store.app("counter").history("i")
        if entry.event.kind == Kind.DIFF and entry.event.answer is not None
    ]
    assert len(closed) == len(set(closed)) == 3


def test_a_reset_that_came_while_an_update_ran_comes_first(
    instance: ComponentInstance, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    instance.run("add", {"by": 50}, flush_update=True)

    meanwhile.act = lambda: clear_instance("counter__i", other)
    instance.run("add", flush_update=True)

    assert instance.read_state("count") == 101  # init_state has run once more, before it


def test_what_another_writes_to_another_instance_does_not_matter(
    instance: ComponentInstance, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    calls = len(meanwhile.found)

    meanwhile.act = lambda: other.app("counter").append("j", {"count": 1}).result()
    instance.run("add", flush_update=True)

    assert len(meanwhile.found) == calls + 1
    assert instance.read_state("count") == 101


def test_an_update_that_fails_on_a_state_that_was_changed_meanwhile_runs_on_the_new_one(
    instance: ComponentInstance, counter: Component, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")

    def change_and_raise() -> None:
        other.app("counter").append("i", {"count": 7}).result()
        raise ValueError("it read 100")

    meanwhile.act = change_and_raise
    instance.run("add", flush_update=True)

    assert instance.read_state("count") == 8


def test_a_refusal_is_no_failure_of_any_later_call(
    instance: ComponentInstance, store: EventStore, other: EventStore, meanwhile: Meanwhile
) -> None:
    warm(instance, "add")
    app = store.app("counter")

    for number in range(5):
        meanwhile.act = lambda: other.app("counter").append("i", {"x": 1}).result()
        instance.run("add", flush_update=True)
        app.append("i", {"y": number}).result()
        assert app.get("i", "y") == number

    store.flush(WAIT_S)
    assert instance.read_state("count") == 105


@pytest.mark.parametrize("open_store", ["sqlite"], indirect=True)
def test_who_does_not_wait_to_the_end_for_what_is_refused_hears_of_it_in_no_later_call(
    store: EventStore,
) -> None:
    app = store.app("counter")
    app.append("i", {"count": 1}).result()
    processing = Processing(app)

    receipts = processing.send_unless_newer("i", [Event(Kind.NOTE, "late")], 0)
    with pytest.raises(ReadTimeout):
        receipts[0].result(timeout_s=0)
    store.flush(WAIT_S)

    app.append("i", {"count": 2}).result()
    assert app.get("i", "count") == 2
    with pytest.raises(NewerRecord):
        receipts[0].result()


def test_an_instance_that_was_cleared_begins_again_before_its_next_update(
    instance: ComponentInstance, store: EventStore, other: EventStore
) -> None:
    for cleared_by in (store, other, store):
        warm(instance, "add")
        instance.run("add", {"by": 50}, flush_update=True)

        assert clear_instance("counter__i", cleared_by)
        instance.run("add", flush_update=True)

        assert instance.read_state("count") == 101


@pytest.mark.parametrize("open_store", ["sqlite"], indirect=True)
def test_a_reset_that_comes_while_an_instance_is_asked_whether_it_has_begun_is_not_missed(
    counter: Component, store: EventStore, other: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = beginning.has_begun
    resets = [lambda: other.app("counter").reset("i")]

    def asked(processing: Processing, instance: str) -> bool:
        found = has_begun(processing, instance)
        while resets:
            resets.pop()()
            processing.catch_up()
        return found

    monkeypatch.setattr(turns, "has_begun", asked)
    with counter("i", store=store) as instance:
        with pytest.raises(UpdateFailed, match="reset"):
            instance.run("add", flush_update=True)
        instance.run("add", flush_update=True)

        assert instance.read_state("count") == 101


def test_an_update_that_writes_to_its_own_instance_is_seldom_run_in_vain(
    store: EventStore,
) -> None:
    component = Component("counter")
    runs, calls = [], 200

    @component.update("k")
    def update(state: State, props: Props) -> None:
        runs.append(1)
        store.app("counter").append("i", Diff().increment("count", 1)).result()

    with component("i", store=store) as instance:
        for _ in range(calls):
            instance.run("k", flush_update=True)

        assert instance.read_state("count") == len(runs)
    assert calls <= len(runs) < calls * 1.1


# --- others who run updates -----------------------------------------------------------------------


def test_an_instance_that_leaves_its_updates_to_others_waits_for_them_all_the_same(
    counter: Component, store: EventStore
) -> None:
    with counter("i", disable_update_task=True, store=store) as instance:
        for _ in range(4):
            instance.run("add", flush_update=True)

        assert instance.read_state("count") == 104


def test_updates_of_instances_that_others_run_are_waited_for(
    counter: Component, store: EventStore, other: EventStore
) -> None:
    runner = Runner(other, counter).start()
    assert runner.wait_ready(WAIT_S)
    names = [f"i{number}" for number in range(12)]

    for name in names:
        with counter(name, store=store) as instance:
            for number in range(4):
                instance.run("note", {"what": number}, flush_update=True)

    assert runner.stop(WAIT_S)
    for name in names:
        assert store.app("counter").get(name, "log", fresh=True) == [0, 1, 2, 3]
    assert runner.snapshot().applied > 0


def test_a_request_that_is_folded_in_the_moment_before_an_update_runs_at_once_runs_before_it(
    instance: ComponentInstance, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(instance, "note")
    found = Processing.offset_next

    def let_another_come_first(processing: Processing, name: str) -> int:
        monkeypatch.setattr(Processing, "offset_next", found)
        store.app("counter").request("i", "note/note", {"what": "first"}).entry()
        return found(processing, name)

    monkeypatch.setattr(Processing, "offset_next", let_another_come_first)

    instance.run("note", {"what": "second"}, flush_update=True)

    assert instance.read_state("log")[-2:] == ["first", "second"]
    assert {verdict for _, verdict in verdicts(store)} == {Verdict.ACCEPTED.name}


@pytest.mark.parametrize("flush", [True, False])
def test_threads_that_run_one_instance_at_the_same_time_each_count_once(
    instance: ComponentInstance, store: EventStore, meanwhile: Meanwhile, flush: bool
) -> None:
    warm(instance, "add", "note")
    threads, calls = 6, 20
    version = instance.get_version()
    barrier = threading.Barrier(threads)

    def hammer(thread: int) -> None:
        barrier.wait(WAIT_S)
        for number in range(calls):
            instance.run("add", flush_update=flush or number % 2 == 0)
            instance.run("note", {"what": [thread, number]}, flush_update=True)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(hammer, range(threads)))
    instance.flush_update("add")

    assert instance.read_state("count") == 100 + threads * calls
    assert instance.get_version() == version + 2 * threads * calls
    log = [one for one in instance.read_state("log") if one != "warm"]
    for thread in range(threads):
        assert [number for one, number in log if one == thread] == list(range(calls))
    assert {verdict for _, verdict in verdicts(store)} == {Verdict.ACCEPTED.name}


def test_two_programs_that_run_one_instance_at_the_same_time_each_count_once(
    counter: Component, store: EventStore, other: EventStore
) -> None:
    calls = 40
    barrier = threading.Barrier(4)

    def hammer(program: EventStore) -> None:
        with counter("i", store=program) as instance:
            barrier.wait(WAIT_S)
            for _ in range(calls):
                instance.run("add", flush_update=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hammer, [store, other, store, other]))

    assert store.app("counter").get("i", "count", fresh=True) == 100 + 4 * calls
    requests = [kind for kind, verdict in verdicts(store) if kind == "REQUEST"]
    answers = [one for one in verdicts(store) if one == ("DIFF", "ACCEPTED")]
    assert (len(requests), len(answers)) == (4 * calls, 4 * calls + 1)  # and init_state's
