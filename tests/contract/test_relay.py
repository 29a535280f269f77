"""What a relay promises: one request per watched change, in order, whatever happens to it.

Method: a component with triggers, its relays in this process, and a stand-in for the runner that
answers requests where a test needs that. Times are waited for, never guessed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventstore import Diff, Entry, EventStore, Kind, State, Verdict, copy_app, values
from eventstore.events import Answer, Event, RequestPolicy, Source
from eventstore.processing import Processing
from eventstore.view.instance import Instance
from processors.component import Component, changed
from processors.policy import DiscardPolicy
from processors.relay import Relay, RelayStatus
from processors.relay_change import Change
from processors.relay_feed import Epoch, Feed
from processors.relay_record import UNDELIVERED, system_instance
from processors.relays import Relays
from processors.runner import Runner
from tests.contract.logs import eventually

#: The most that a test waits for what should come at once.
WAIT_S = 60.0

STORES = ["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> Iterator[EventStore]:
    url = {"memory": "memory://", "sqlite": str(tmp_path / "log")}.get(request.param)
    if url is None:
        url = str(request.getfixturevalue("kafka_url"))
    with EventStore(url, namespace=namespace) as opened:
        yield opened


#: Starts the relays of a component on a store; they are stopped at the end of the test.
Start = Callable[[EventStore, Component], Relays]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start_relays(store: EventStore, component: Component) -> Relays:
            processing = Processing(store.app(component.name))
            relays = Relays(store, component, processing)
            relays.shards_changed(frozenset(range(processing.shards())))
            stack.callback(relays.stop)
            return relays

        yield start_relays


def watching(*fields: str, name: str = "shop", **options: Any) -> Component:
    """Return a component with one trigger, `refresh`."""
    component = Component(name)

    @component.update(on=changed(*fields, **options))
    def refresh(state: State, props: Mapping[str, Any]) -> None:
        """Never run here."""

    return component


def level(relays: Relays) -> bool:
    return all(one.state == "level" and not one.lag_events for one in relays.status())


def wait_level(relays: Relays, *apps: Processing) -> None:
    """Wait until the relays have dealt with all that is in the logs of these apps."""
    for app in apps:
        app.catch_up()
    assert eventually(lambda: level(relays)), relays.status()


def requests(store: EventStore, app: str, name: str = "refresh") -> list[Entry]:
    """Return the accepted requests of an app, in log order."""
    return [
        entry
        for entry in store.app(app).tail(start="beginning", follow=False)
        if entry.event.kind == Kind.REQUEST
        and entry.verdict == Verdict.ACCEPTED
        and entry.event.name == name
    ]


def props_of(entry: Entry) -> dict[str, Any]:
    props: dict[str, Any] = values.decode(entry.event.body)
    return props


def watched_sequences(found: list[Entry]) -> list[int]:
    return [props_of(entry)["sequence"] for entry in found]


def answer(app: Processing, request: Entry, diff: Diff, outbox: list[Any] | None = None) -> Entry:
    """Close a request as a runner would."""
    event = Event(
        Kind.DIFF,
        request.event.name,
        diff.encode(),
        answer=Answer(request.sequence, 0, True),
        outbox=None if outbox is None else orjson.dumps(outbox),
    )
    entry = app.send([(request.instance, event)])[0].entry()
    assert entry.verdict == Verdict.ACCEPTED
    return entry


def status_of(relays: Relays, trigger_id: str | None) -> RelayStatus:
    return next(one for one in relays.status() if one.trigger_id == trigger_id)


def notes(app: Processing, trigger_id: str | None) -> list[dict[str, Any]]:
    app.catch_up()
    head = app.head(system_instance(trigger_id))
    found = []
    for sequence in range(0 if head is None else head.sequence):
        entry = app.entry(system_instance(trigger_id), sequence)
        if entry is not None and entry.event.name == UNDELIVERED:
            found.append(orjson.loads(entry.event.body))
    return found


# --- what fires ----------------------------------------------------------------------------------


def test_each_change_of_a_watched_field_makes_one_request_in_order(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("purchases"))
    wait_level(relays)

    for number in range(30):
        shop.app.append("u-1", {"purchases" if number % 3 == 0 else "address": number})
    wait_level(relays, shop)

    found = requests(store, "shop")
    assert [props_of(entry)["version"] for entry in found] == [
        number + 1 for number in range(0, 30, 3)
    ]
    assert [entry.instance for entry in found] == ["u-1"] * 10


def test_a_request_says_what_changed_and_carries_the_update_s_policy(
    store: EventStore, start: Start
) -> None:
    component = Component("shop")

    @component.update(
        on=changed("purchases", "basket"),
        discard_policy=DiscardPolicy.NUM_NEW_UPDATES,
        discard_after=3,
    )
    def refresh(state: State, props: Mapping[str, Any]) -> None: ...

    shop = Processing(store.app("shop"))
    relays = start(store, component)
    wait_level(relays)

    shop.app.append("u-1", {"basket": 1, "address": "x"}, name="fill")
    wait_level(relays, shop)

    (request,) = requests(store, "shop")
    assert props_of(request) == {
        "app": "shop",
        "instance": "u-1",
        "sequence": 0,
        "version": 1,
        "name": "fill",
        "fields": ["basket"],
    }
    assert request.event.request == RequestPolicy(discard_policy=1, discard_after=3, hops=1)


def test_any_field_fires_a_trigger_on_a_star(store: EventStore, start: Start) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("*"))
    wait_level(relays)

    shop.app.append("u-1", {"a": 1})
    shop.app.append("u-1", {"b": 1})
    wait_level(relays, shop)

    assert [props_of(entry)["fields"] for entry in requests(store, "shop")] == [["a"], ["b"]]


def test_a_reset_and_a_fork_are_changes(store: EventStore, start: Start) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("purchases", "address"))
    wait_level(relays)
    shop.app.append("u-1", {"purchases": 1})

    shop.app.fork("u-1", to="u-2")
    shop.app.reset("u-1")
    wait_level(relays, shop)

    found = [(entry.instance, props_of(entry)["fields"]) for entry in requests(store, "shop")]
    assert sorted(found) == [  # of each instance in its order; u-1 and u-2 have none between them
        ("u-1", ["purchases"]),
        ("u-1", ["purchases", "address"]),
        ("u-2", ["purchases"]),
    ]


def test_refused_diffs_and_other_kinds_of_events_fire_nothing(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("*"))
    wait_level(relays)

    shop.app.append("u-1", {"n": 1}, expected_version=7)  # a conflict
    shop.app.append("u-1", Diff().append("n", 1), idempotency_key="k")
    shop.app.append("u-1", Diff().append("n", 1), idempotency_key="k")  # a duplicate
    shop.app.append("u-1", Diff().increment("n", 1))  # does not fit
    shop.app.request("u-1", "other", {})
    wait_level(relays, shop)

    assert [props_of(entry)["version"] for entry in requests(store, "shop")] == [1]


def test_what_an_update_answers_does_not_fire_its_own_trigger(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("n"))
    wait_level(relays)
    shop.app.append("u-1", {"n": 1})
    wait_level(relays, shop)

    answer(shop, requests(store, "shop")[0], Diff({"n": 2}))
    wait_level(relays, shop)

    assert len(requests(store, "shop")) == 1


def test_own_answers_fire_where_that_is_asked_for_and_hops_count_them(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("n", own_answers=True))
    wait_level(relays)
    shop.app.append("u-1", {"n": 0})
    for number in range(3):
        wait_level(relays, shop)
        answer(shop, requests(store, "shop")[number], Diff({"n": number + 1}))

    wait_level(relays, shop)

    policies = [entry.event.request for entry in requests(store, "shop")]
    assert [policy.hops for policy in policies if policy is not None] == [1, 2, 3, 4]


def test_the_answers_of_another_update_of_the_component_fire(
    store: EventStore, start: Start
) -> None:
    component = watching("n")

    @component.update(on=changed("summary"))
    def publish(state: State, props: Mapping[str, Any]) -> None: ...

    shop = Processing(store.app("shop"))
    relays = start(store, component)
    wait_level(relays)
    shop.app.append("u-1", {"n": 1})
    wait_level(relays, shop)

    answer(shop, requests(store, "shop")[0], Diff({"summary": "one"}))
    wait_level(relays, shop)

    (request,) = requests(store, "shop", "publish")
    assert request.event.request == RequestPolicy(hops=2)


# --- other apps, and keys ------------------------------------------------------------------------


def test_a_change_of_another_app_makes_requests_where_key_says(
    store: EventStore, start: Start
) -> None:
    seen: list[tuple[str, object]] = []

    def customers(change: Change) -> list[str]:
        seen.append((change.instance, change.state["customer"]))
        return [f"u-{name}" for name in change.state["customer"]]

    orders = store.app("orders")
    orders.append("o-0", {"status": "before", "customer": ["zero"]}).result()
    relays = start(store, watching("status", app="orders", key=customers))
    wait_level(relays)

    orders.append("o-1", {"status": "new", "customer": ["ann", "bob"]})
    orders.append("o-1", {"customer": []})
    orders.append("o-1", {"status": "paid", "customer": ["ann"]})
    wait_level(relays, Processing(orders))

    found = [(entry.instance, props_of(entry)["version"]) for entry in requests(store, "shop")]
    assert sorted(found) == [("u-ann", 1), ("u-ann", 3), ("u-bob", 1)]
    assert seen == [("o-1", ["ann", "bob"]), ("o-1", ["ann"])]  # the state as of that version


def test_an_app_that_does_not_exist_yet_is_waited_for_and_not_made(
    store: EventStore, start: Start
) -> None:
    relays = start(store, watching("status", app="orders"))
    trigger = "shop.refresh"
    assert eventually(
        lambda: Processing(store.app("shop")).head(system_instance(trigger)) is not None
    )
    assert eventually(lambda: status_of(relays, trigger).state == "waiting")
    assert "orders" not in store.apps()

    store.app("orders").append("o-1", {"status": "new"}).result()

    assert eventually(lambda: len(requests(store, "shop")) == 1)


def test_a_key_that_raises_is_noted_and_the_trigger_goes_on(
    store: EventStore, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def key(change: Change) -> Any:
        if change.version == 1:
            raise ValueError("no such customer")
        return ["", "$foldlog/x", 7, "x" * 2_000, "u-2"] if change.version == 2 else None

    shop = Processing(store.app("shop"))
    relays = start(store, watching("n", key=key))
    wait_level(relays)

    with caplog.at_level(logging.ERROR, "processors.relay"):
        for number in range(3):
            shop.app.append("u-1", {"n": number})
        wait_level(relays, shop)

    assert [entry.instance for entry in requests(store, "shop")] == ["u-2"]
    found = notes(shop, "shop.refresh")
    assert [note["sequence"] for note in found] == [0, 1, 1, 1, 1]
    assert "no such customer" in found[0]["reason"]
    assert status_of(relays, "shop.refresh").undelivered == 5
    assert "no such customer" in caplog.text


def test_a_key_that_looks_for_what_is_not_there_holds_up_no_other_change(
    store: EventStore, start: Start
) -> None:
    shop, customers = Processing(store.app("shop")), store.app("customers")
    customers.append("u-2", {"group": "g-1"})
    relays = start(
        store, watching("n", key=lambda change: str(customers.get(change.instance, "group")))
    )
    wait_level(relays)

    shop.app.append("u-1", {"n": 1})
    shop.app.append("u-2", {"n": 2})
    wait_level(relays, shop)

    assert [entry.instance for entry in requests(store, "shop")] == ["g-1"]
    assert "InstanceNotFound" in notes(shop, "shop.refresh")[0]["reason"]


def test_a_trigger_id_that_watched_another_app_is_refused(
    store: EventStore, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(store, watching("n", trigger_id="t"))
    wait_level(first)
    first.stop()

    second = start(store, watching("n", trigger_id="t", app="orders"))
    assert eventually(lambda: status_of(second, "t").state == "failing")

    assert "another id" in str(status_of(second, "t").error_last)


# --- where it starts, and where it goes on -------------------------------------------------------


def test_a_trigger_from_now_on_does_not_see_what_was_before(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    for number in range(50):
        shop.app.append("u-1", {"n": number})
    shop.catch_up()
    relays = start(store, watching("n"))
    wait_level(relays)

    shop.app.append("u-1", {"n": 50})
    wait_level(relays, shop)

    assert [props_of(entry)["version"] for entry in requests(store, "shop")] == [51]


def test_a_trigger_from_the_beginning_sees_everything(store: EventStore, start: Start) -> None:
    shop = Processing(store.app("shop"))
    for number in range(50):
        shop.app.append(f"u-{number % 3}", {"n": number})

    relays = start(store, watching("n", start="beginning"))
    wait_level(relays, shop)

    assert len(requests(store, "shop")) == 50


def test_what_happened_while_no_relay_ran_is_made_up_for(store: EventStore, start: Start) -> None:
    shop = Processing(store.app("shop"))
    first = start(store, watching("n"))
    wait_level(first)
    first.stop()

    for number in range(10):
        shop.app.append("u-1", {"n": number})
    shop.catch_up()
    second = start(store, watching("n"))
    wait_level(second, shop)

    assert len(requests(store, "shop")) == 10


def test_two_relays_of_one_trigger_at_once_make_each_request_once(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    first, second = start(store, watching("n")), start(store, watching("n"))
    wait_level(first)
    wait_level(second)

    for number in range(500):
        shop.app.append(f"u-{number % 7}", {"n": number})
    wait_level(first, shop)
    wait_level(second, shop)

    found = requests(store, "shop")
    for instance in {entry.instance for entry in found}:
        of_instance = [props_of(one)["version"] for one in found if one.instance == instance]
        assert of_instance == list(range(1, len(of_instance) + 1))
    assert len(found) == 500


def test_what_a_relay_repeats_is_known_as_such_without_a_search_each_time(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Processing(store.app("shop"))
    numbers = [(number, 0) for number in range(300)]
    links = zip(numbers, [None, *numbers], strict=False)
    stream = [
        ("u-1", Event(Kind.REQUEST, "refresh", b"{}", source=Source("trigger/t", number, previous)))
        for number, previous in links
    ]
    shop.send(stream)[-1].entry()
    read: list[int] = []
    history = Instance.history

    def counted(instance: Instance, sequence: int) -> bytes:
        read.append(sequence)
        return history(instance, sequence)

    monkeypatch.setattr(Instance, "history", counted)
    copies = [receipt.entry() for receipt in shop.send(stream)]

    assert [copy.winner for copy in copies] == list(range(300))
    assert len(read) < 4 * 300


def test_a_relay_without_a_cursor_begins_at_its_start_and_repeats_nothing(
    store: EventStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processors.relay_record.Record.move", lambda record, cursor: None)
    shop = Processing(store.app("shop"))
    first = start(store, watching("n"))
    wait_level(first)
    for number in range(20):
        shop.app.append("u-1", {"n": number})
    wait_level(first, shop)
    first.stop()

    second = start(store, watching("n"))
    shop.app.append("u-1", {"n": 20})
    wait_level(second, shop)

    assert [props_of(one)["version"] for one in requests(store, "shop")] == list(range(1, 22))
    assert status_of(second, "shop.refresh").sent == 1


def test_a_relay_that_has_not_looked_yet_does_not_say_that_nothing_is_left(
    store: EventStore,
) -> None:
    component = watching("n", start="beginning")
    shop = Processing(store.app("shop"))
    shop.app.append("u-1", {"n": 1}).result()
    relay = Relay(store, component, component.updates["refresh"], shop, lambda: None)

    before = relay.status()
    relay.step()
    relay.step()
    after = relay.status()
    relay.close()

    assert (before.state, before.lag_events) == ("starting", 1)
    assert (after.state, after.lag_events, after.sent) == ("level", 0, 1)


def test_a_relay_that_begins_anew_while_it_is_asked_does_not_say_that_it_is_level(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = watching("n", start="beginning")
    shop = Processing(store.app("shop"))
    shop.app.append("u-1", {"n": 1}).result()
    relay = Relay(store, component, component.updates["refresh"], shop, lambda: None)
    relay.step()
    relay.step()
    assert relay.status().state == "level"
    events_behind = Feed.events_behind

    def behind_and_then_repaired(feed: Feed) -> int:
        found = events_behind(feed)
        relay.step()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "events_behind", behind_and_then_repaired)
        patch.setattr("processors.relay.epoch_of", lambda app: Epoch("of a repaired log", 1))
        status = relay.status()
    relay.close()

    assert (status.state, status.lag_events) == ("catching up", 1)


def test_an_idle_app_gets_no_cursors(store: EventStore, start: Start) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("n"))
    wait_level(relays)
    shop.app.append("u-1", {"n": 1})
    wait_level(relays, shop)
    instance = system_instance("shop.refresh")

    def written() -> int:
        head = shop.head(instance)
        return 0 if head is None else head.sequence

    assert eventually(lambda: written() == 2)  # the start, and one cursor
    relays.stop()
    shop.catch_up()

    assert written() == 2


def test_a_rebuilt_view_neither_loses_nor_repeats_a_request(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, watching("n"))
    wait_level(relays)
    for number in range(100):
        shop.app.append("u-1", {"n": number})
        if number % 25 == 0:
            shop.app.rebuild_view()

    wait_level(relays, shop)

    assert [props_of(one)["version"] for one in requests(store, "shop")] == list(range(1, 101))


def test_a_relay_that_falls_behind_its_memory_reads_the_log(
    store: EventStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processors.relay_feed._WAITING_EVENTS_MAX", 3)
    shop = Processing(store.app("shop"))
    relays = start(store, watching("n"))
    wait_level(relays)

    for _ in range(10):
        shop.app.append_many([(f"u-{number % 5}", {"n": number}) for number in range(100)])
    wait_level(relays, shop)

    found = requests(store, "shop")
    for instance in {entry.instance for entry in found}:
        of_instance = [props_of(one)["version"] for one in found if one.instance == instance]
        assert of_instance == list(range(1, 201))


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # it has shards that can be lost
def test_shards_that_are_lost_and_gained_while_a_hand_over_lasts_have_their_relays(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = Component("shop")
    for number in range(20):

        @component.update(name=f"refresh-{number}", on=changed("n", trigger_id=f"t-{number}"))
        def refresh(state: State, props: Mapping[str, Any]) -> None: ...

    runner = Runner(store, component).start()
    assert runner.wait_ready(WAIT_S)
    everything, told = runner.snapshot().shards, threading.Semaphore(0)
    go, take_in, shards_changed = threading.Event(), Runner._take_in, Relays.shards_changed

    def take_in_late(runner: Runner, gained: frozenset[int]) -> None:
        if not gained:
            go.wait(WAIT_S)
        take_in(runner, gained)

    def tell(relays: Relays, shards: frozenset[int]) -> None:
        shards_changed(relays, shards)
        told.release()

    monkeypatch.setattr(Runner, "_take_in", take_in_late)
    monkeypatch.setattr(Relays, "shards_changed", tell)

    runner._shards_changed(frozenset(range(8)))
    runner._shards_changed(everything)
    assert told.acquire(timeout=WAIT_S)
    go.set()
    assert told.acquire(timeout=WAIT_S)

    assert len(runner.relays()) == 21  # and the outboxes
    runner.stop(WAIT_S)


# --- outboxes ------------------------------------------------------------------------------------


def test_an_outbox_is_delivered_once_and_in_order(store: EventStore, start: Start) -> None:
    component = Component("shop")
    shop = Processing(store.app("shop"))
    relays = start(store, component)
    sequence = shop.app.request("u-1", "ship").entry().sequence
    request = shop.entry("u-1", sequence)
    assert request is not None

    answer(
        shop,
        request,
        Diff({"done": True}),
        [
            {
                "app": "log",
                "instance": "l-1",
                "kind": "diff",
                "name": "a",
                "body": [["set", "n", 1]],
            },
            {"instance": "u-2", "kind": "request", "name": "greet", "body": {"to": "ann"}},
            {
                "app": "log",
                "instance": "l-1",
                "kind": "diff",
                "name": "b",
                "body": [["set", "n", 2]],
            },
        ],
    )
    wait_level(relays, shop)
    relays.stop()
    wait_level(start(store, component), shop)

    assert [entry.event.name for entry in store.app("log").history("l-1")] == ["a", "b"]
    (greeting,) = requests(store, "shop", "greet")
    assert (greeting.instance, props_of(greeting)) == ("u-2", {"to": "ann"})


def test_a_message_that_cannot_be_delivered_is_noted_and_holds_nothing_up(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    store.app("log").append("l-1", {"n": "text"}).result()
    relays = start(store, Component("shop"))
    sequence = shop.app.request("u-1", "ship").entry().sequence
    request = shop.entry("u-1", sequence)
    assert request is not None

    answer(
        shop,
        request,
        Diff(),
        [
            {"app": "no such name", "instance": "l-1", "kind": "diff", "body": []},
            {"instance": "", "kind": "diff", "body": []},
            {"app": "log", "instance": "l-1", "kind": "diff", "body": [["increment", "n", 1]]},
            {"app": "log", "instance": "l-1", "kind": "surprise", "body": []},
            {"app": "log", "instance": "l-1", "kind": "diff", "body": [["set", "n", 2]]},
        ],
    )
    wait_level(relays, shop)

    assert store.app("log").get("l-1", "n", fresh=True) == 2
    assert len(notes(shop, None)) == 4


def test_what_a_refused_answer_had_in_its_outbox_is_never_sent(
    store: EventStore, start: Start
) -> None:
    shop = Processing(store.app("shop"))
    relays = start(store, Component("shop"))
    sequence = shop.app.request("u-1", "ship").entry().sequence
    message = {"instance": "u-2", "kind": "request", "name": "greet", "body": {}}
    event = Event(
        Kind.DIFF, "ship", b"[]", answer=Answer(sequence, 0, True), outbox=orjson.dumps([message])
    )

    verdicts = [shop.send([("u-1", event)])[0].entry().verdict for _ in range(2)]
    wait_level(relays, shop)

    assert verdicts == [Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert len(requests(store, "shop", "greet")) == 1


# --- copies --------------------------------------------------------------------------------------


def test_a_copied_app_gets_no_request_twice_and_none_from_before_the_start(
    store: EventStore, start: Start, tmp_path: Path
) -> None:
    component = watching("n")
    shop = Processing(store.app("shop"))
    for number in range(10):
        shop.app.append(f"u-{number}", {"n": number})  # before the start, each of its own
    shop.catch_up()
    first = start(store, component)
    wait_level(first)
    for number in range(10):
        shop.app.append(f"u-{number % 3}", {"n": number})
    wait_level(first, shop)
    first.stop()
    shop.app.append("u-1", {"n": "not yet requested"}).result()

    with EventStore(tmp_path / "copy", namespace=store.config.namespace) as target:
        copy_app(store, "shop", target)
        copied = Processing(target.app("shop"))
        second = start(target, component)
        copied.app.append("u-9", {"n": "after the copy"})
        wait_level(second, copied)
        second.stop()

        found = requests(target, "shop")

    assert len(found) == 12
    assert len({(one.instance, props_of(one)["sequence"]) for one in found}) == 12
    assert [props_of(one)["version"] for one in found if one.instance == "u-9"] == [2]
