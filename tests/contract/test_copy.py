"""What a copy of an app promises, between logs of every kind and number of partitions."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from eventstore import (
    App,
    Config,
    ConfigError,
    Conflict,
    Diff,
    Discard,
    Event,
    EventStore,
    EventTooLarge,
    Guard,
    Kind,
    LogUnavailable,
    UnknownSchema,
    Verdict,
)
from eventstore.channel import Channel
from eventstore.cli import eventstore
from eventstore.events import SYSTEM_PREFIX, Answer, EffectKey, Source
from eventstore.history.copy import CopyProgress, copy_app
from eventstore.history.verify import verify_app
from eventstore.log.base import Append
from eventstore.processing import Processing
from tests.contract.logs import Told

#: From where to where: each log is on both sides, and so are one partition and several.
KAFKA = pytest.mark.kafka
PAIRS = [
    ("memory-1", "memory-4"),
    ("memory-4", "sqlite"),
    ("sqlite", "sqlite"),
    pytest.param(("sqlite", "kafka"), marks=KAFKA),
    pytest.param(("kafka", "memory-1"), marks=KAFKA),
]

CURSOR = f"{SYSTEM_PREFIX}trigger/prompt"

OpenStore = Callable[[str], EventStore]


@pytest.fixture
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[OpenStore]:
    """Opens a store of a kind; the same side and kind again is the same log."""
    with ExitStack() as stack:

        def open_one(side_and_kind: str) -> EventStore:
            side, _, kind = side_and_kind.partition(":")
            views = None
            if kind == "kafka":
                url, views = str(request.getfixturevalue("kafka_url")), tmp_path / f"views-{side}"
            elif kind == "sqlite":
                url = str(tmp_path / side)
            else:
                url = f"memory://{namespace}-{side}?partitions={kind.removeprefix('memory-')}"
            config = Config.load({}, namespace=f"{namespace}{side}", partitions=3, view_path=views)
            return stack.enter_context(EventStore(url, config=config))

        yield open_one


@pytest.fixture(params=PAIRS, ids=lambda pair: "-to-".join(pair))
def source_and_target(
    request: pytest.FixtureRequest, open_store: OpenStore
) -> tuple[EventStore, EventStore]:
    source, target = request.param
    return open_store(f"source:{source}"), open_store(f"target:{target}")


@pytest.fixture
def source(open_store: OpenStore) -> EventStore:
    return open_store("source:memory-4")


@pytest.fixture
def target(open_store: OpenStore) -> EventStore:
    return open_store("target:memory-1")


def live(store: EventStore) -> App:
    """Fill the app "orders" with an event of every kind and verdict, and return it."""
    orders = store.app("orders")
    for number in range(5):
        orders.append(f"o-{number}", {"status": "new", "items": []}, idempotency_key="begin")
    occurred_at = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    orders.append("o-1", Diff().append("items", "book"), name="add", occurred_at=occurred_at)
    orders.append("o-1", Diff().append("items", "pen"), actor="ann", meta={"why": ["x"]})
    orders.append("o-1", Diff().append("status", "misfit"))
    orders.append("o-1", {"status": "begun twice"}, idempotency_key="begin")
    orders.append("o-1", {"status": "late"}, expected_version=1)
    orders.fork("o-1", at=2, to="o-fork")
    orders.reset("o-2")
    answer_requests(store)
    later = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    orders.request("o-4", "remind", {"n": 1}, not_before=later)
    orders.request("o-4", "charge", discard=Discard.seconds(9), idempotency_key="charge")
    processing = Processing(orders)
    for number in range(3):
        body = orjson.dumps([["set", "at", number]])
        processing.send([(CURSOR, Event(Kind.DIFF, "cursor", body))])
    store.flush()
    return orders


def answer_requests(store: EventStore) -> None:
    """Give "o-3" requests that were answered in parts, discarded and failed."""
    processing = Processing(store.app("orders"))
    for _ in range(3):
        store.app("orders").request("o-3", "charge", {"amount": 12})
    chain = [Guard(1, ("status",), "attempt", index) for index in range(2)]
    processing.send(
        [
            ("o-3", event)
            for event in (
                Event(Kind.ATTEMPT, "charge", b"{}", answer=Answer(1)),
                Event(
                    Kind.EFFECT, "bank", b'"ok"', answer=Answer(1), effect=EffectKey(0, "digest")
                ),
                Event(Kind.DIFF, "charge", b'[["set","a",1]]', chain[0], Answer(1, 0)),
                Event(Kind.DIFF, "charge", b'[["set","b",2]]', chain[1], Answer(1, 1, True)),
                Event(Kind.DIFF, "charge", b'[["set","b",3]]', chain[1], Answer(1, 1, True)),
                Event(Kind.DISCARD, "charge", b"{}", answer=Answer(2, 0, True)),
                Event(Kind.FAILURE, "charge", b"{}", answer=Answer(3, 0, True)),
                Event(Kind.DIFF, "t", b'[["set","c",1]]', source=Source("trigger", (4, 0))),
            )
        ]
    )


def told(app: App, instance: str) -> list[tuple[Any, ...]]:
    """All that an instance's history says, but for where it is in the log."""
    return [
        (
            entry.sequence,
            entry.event._replace(copied=None),
            entry.verdict,
            entry.version,
            entry.time_ms,
            entry.winner,
            entry.field,
            entry.reason,
        )
        for entry in app.history(instance)
    ]


def everything(app: App) -> dict[str, Any]:
    """All that can be read of an app, but for positions."""
    names = [*app.instances(), CURSOR]
    return {
        name: (
            told(app, name),
            [app.get(name, at=version).to_json() for version in range(app.get(name).version + 1)],
            [row[1:] for row in app.pending(name)],
            [entry.sequence for entry in app.discards(name)],
            [entry.sequence for entry in app.failures(name)],
        )
        for name in names
    }


def test_a_copy_tells_of_every_instance_what_its_source_tells(
    source_and_target: tuple[EventStore, EventStore],
) -> None:
    source, target = source_and_target
    orders = live(source)

    report = copy_app(source, "orders", target)

    copied = everything(target.app("orders"))
    assert copied == everything(orders)
    assert {event[2] for event in copied["o-1"][0]} == {
        Verdict.ACCEPTED,
        Verdict.CONFLICT,
        Verdict.REJECTED,
    }
    assert Verdict.DUPLICATE in {event[2] for event in copied["o-3"][0]}
    assert len(copied[CURSOR][0]) == 3
    assert report.written == report.events == sum(len(one[0]) for one in copied.values())
    assert (report.left_out, report.compared) == (0, True)
    assert verify_app(target, "orders").differences == ()


def test_the_rules_go_on_in_a_copy_as_they_would_in_its_source(
    source: EventStore, target: EventStore
) -> None:
    orders = live(source)
    stale = orders.get("o-1", at=2)

    copy_app(source, "orders", target)
    copy = target.app("orders")
    repeated = copy.append("o-0", {"status": "new", "items": []}, idempotency_key="begin")
    late = copy.append("o-1", Diff({"status": "late"}), guard=Guard(stale.version, ("items",)))
    trigger = Event(Kind.DIFF, "t", b'[["set","c",9]]', source=Source("trigger", (4, 0)))
    twice = Processing(copy).send([("o-3", trigger)])[0]
    charge = next(row for row in copy.pending("o-4") if row.request.name == "charge")
    answer = Answer(charge.request.sequence, 0, True)
    close = Event(Kind.DIFF, "charge", b'[["set","status","paid"]]', None, answer)
    closed = Processing(copy).send([("o-4", close)])[0]

    assert repeated.entry().verdict == Verdict.DUPLICATE
    assert late.verdict() == Verdict.CONFLICT
    assert twice.entry().verdict == Verdict.DUPLICATE
    assert closed.verdict() == Verdict.ACCEPTED
    assert copy.get("o-4", "status") == "paid"


def test_a_copy_that_is_run_again_adds_what_the_source_has_got_since(
    source_and_target: tuple[EventStore, EventStore],
) -> None:
    source, target = source_and_target
    orders = live(source)

    first = copy_app(source, "orders", target)
    nothing = copy_app(source, "orders", target)
    orders.append("o-1", {"status": "paid"})
    orders.append("o-9", {"status": "new"})
    more = copy_app(source, "orders", target)

    assert (nothing.events, nothing.written) == (first.events, 0)
    assert (more.events, more.written) == (first.events + 2, 2)
    assert everything(target.app("orders")) == everything(orders)


def test_what_the_source_gets_while_it_is_copied_is_for_the_next_run(
    source: EventStore, target: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = live(source)
    before = records(source, "orders")
    monkeypatch.setattr("eventstore.history.copy._BATCH_RECORDS_MAX", 5)
    send = Channel.send

    def send_while_others_write(channel: Channel, *args: Any, **options: Any) -> Any:
        orders.append("o-1", Diff().append("items", "meanwhile")).result()
        orders.append("o-new", Diff().increment("n")).result()
        return send(channel, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "send", send_while_others_write)
        first = copy_app(source, "orders", target)
    rest = copy_app(source, "orders", target)

    assert first.written == before
    assert rest.written == records(source, "orders") - before > 4
    assert everything(target.app("orders")) == everything(orders)


def test_a_copy_of_a_copy_is_like_the_first(source: EventStore, target: EventStore) -> None:
    orders = live(source)

    copy_app(source, "orders", target)
    copy_app(target, "orders", source, to="again")

    assert everything(source.app("again")) == everything(orders)


def test_a_namespace_of_the_same_log_is_another_store(
    open_store: OpenStore, tmp_path: Path
) -> None:
    source = open_store("source:sqlite")
    orders = live(source)

    with EventStore(tmp_path / "source", namespace="dev") as dev:
        copy_app(source, "orders", dev)
        dev.app("orders").append("o-1", {"status": "tried"})

        assert dev.app("orders").get("o-1", "status") == "tried"
        assert orders.get("o-1", "status") == "new"


# --- what cannot be copied -----------------------------------------------------------------------


def records(store: EventStore, app: str) -> int:
    """How many records an app's log has; 0 for an app without one."""
    topic = store.log.topic(f"{store.config.namespace}.{app}", create=False)
    if topic is None:
        return 0
    return sum(store.log.offset_end(topic, partition) for partition in range(topic.partitions))


def test_a_target_with_events_of_its_own_is_refused_before_anything_is_written(
    source: EventStore, target: EventStore
) -> None:
    live(source)
    target.app("orders").append("o-1", {"status": "another"}).result()

    with pytest.raises(ConfigError, match=r"event 0 of 'o-1' is another one.*Nothing was written"):
        copy_app(source, "orders", target)

    assert records(target, "orders") == 1


def test_a_copy_that_somebody_wrote_to_is_not_gone_on_with(
    source: EventStore, target: EventStore
) -> None:
    orders = live(source)
    copy_app(source, "orders", target)
    target.app("orders").append("o-0", {"status": "changed in the copy"}).result()
    orders.append("o-0", {"status": "changed in the source"}).result()
    before = records(target, "orders")

    with pytest.raises(ConfigError, match="event 1 of 'o-0' is another one in the source"):
        copy_app(source, "orders", target)

    assert records(target, "orders") == before


@pytest.mark.parametrize("instance", ["o-0", "only here"])
def test_who_writes_to_the_target_while_it_is_copied_is_found(
    source: EventStore,
    target: EventStore,
    monkeypatch: pytest.MonkeyPatch,
    instance: str,
) -> None:
    live(source)
    send = Channel.send

    def send_after_somebody(channel: Channel, *args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "send", send)
            target.app("orders").append(instance, {"status": "mine"}).result()
        return send(channel, *args, **options)

    monkeypatch.setattr(Channel, "send", send_after_somebody)

    with pytest.raises(Conflict, match="nobody else may write to app 'orders'"):
        copy_app(source, "orders", target)


def test_a_store_is_not_copied_onto_itself(open_store: OpenStore) -> None:
    source = open_store("source:sqlite")
    live(source)
    before = records(source, "orders")

    with pytest.raises(ConfigError, match="is the source itself"):
        copy_app(source, "orders", open_store("source:sqlite"))

    assert records(source, "orders") == before


def test_an_app_without_events_is_not_copied(source: EventStore, target: EventStore) -> None:
    with pytest.raises(ConfigError, match="has no app 'order'"):
        copy_app(source, "order", target)

    assert target.apps() == []


def test_what_takes_no_place_is_left_out_and_counted(
    source: EventStore, target: EventStore
) -> None:
    orders = live(source)
    topic = source.log.topic(f"{source.config.namespace}.orders", create=False)
    assert topic is not None
    belongs = source.log.partition_of(b"o-1", topic)
    misplaced = (belongs + 1) % topic.partitions
    value = b"\xc3\x01garbage"
    source.log.append(topic, [Append(belongs, b"o-1", b"not ours", Told())])
    source.log.append(topic, [Append(belongs, b"o-1", b"", Told())])
    plain = next(iter(orders.tail(start="beginning", follow=False)))
    assert plain.instance
    batch = source.log.read(topic, belongs, 0, records_max=1, bytes_max=1)
    value = batch.records[0].value or b""
    source.log.append(topic, [Append(misplaced, b"o-1", value, Told())])

    report = copy_app(source, "orders", target)

    assert report.left_out == 3
    assert everything(target.app("orders")) == everything(orders)
    assert list(target.app("orders").refused()) == []


def test_a_source_that_waits_at_an_unknown_event_is_copied_once_that_is_taken_out(
    source: EventStore, target: EventStore
) -> None:
    orders = live(source)
    topic = source.log.topic(f"{source.config.namespace}.orders", create=False)
    assert topic is not None
    partition = source.log.partition_of(b"o-1", topic)
    offset = source.log.offset_end(topic, partition)
    newer = b"\xc3\x01" + b"\x07" * 20
    source.log.append(topic, [Append(partition, b"o-1", newer, Told())])

    with pytest.raises(UnknownSchema):
        copy_app(source, "orders", target)
    nothing = target.apps()
    orders.quarantine(partition, offset, reason="a test")
    report = copy_app(source, "orders", target)

    assert nothing == []
    assert report.left_out == 1
    assert everything(target.app("orders")) == everything(orders)


def test_an_event_above_the_target_s_limit_is_named_and_a_larger_limit_goes_on(
    source: EventStore, namespace: str
) -> None:
    orders = live(source)
    orders.append("o-1", {"status": "x" * 2_000})
    url = f"memory://{namespace}-small"

    with (
        EventStore(url, config=Config.load({}, event_bytes_max=1_500)) as small,
        pytest.raises(EventTooLarge) as raised,
    ):
        copy_app(source, "orders", small)
    with EventStore(url, config=Config.load({})) as larger:
        copy_app(source, "orders", larger)

        assert everything(larger.app("orders")) == everything(orders)
    assert raised.value.__notes__[0] == "event 6 of 'o-1'"
    assert "can be run again" in raised.value.__notes__[1]


# --- repaired logs -------------------------------------------------------------------------------


def test_the_copy_of_a_repaired_log_is_one_that_needed_no_repair(
    source: EventStore, target: EventStore
) -> None:
    orders = live(source)
    before = orders.get("o-0")
    orders.repair(accept_loss=True)
    orders.commit("o-0", orders.get("o-0").update(status="after"))
    stale = Event(Kind.DIFF, "", b'[["set","status","lost"]]', Guard(1, ("status",)))
    Processing(orders).send([("o-0", stale._replace(generation=before.generation))])

    report = copy_app(source, "orders", target)
    copy = target.app("orders")
    copy.commit("o-0", copy.get("o-0").update(status="in the copy"))

    assert report.left_out == 4  # one note for each partition
    verdicts = [entry.verdict for entry in copy.history("o-0")]
    assert verdicts == [
        Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.CONFLICT, Verdict.ACCEPTED
    ]  # fmt: skip
    assert copy.get("o-0", "status") == "in the copy"


# --- progress, failures --------------------------------------------------------------------------


def test_progress_is_told_for_each_step_up_to_its_end(
    source: EventStore, target: EventStore
) -> None:
    live(source)
    told: list[CopyProgress] = []

    copy_app(source, "orders", target, progress=told.append)
    first = [progress.step for progress in told if progress.done]
    copy_app(source, "orders", target, progress=told.append, compare=False)

    assert first == ["copying", "comparing", "comparing"]
    assert [progress.step for progress in told if progress.done][3:] == ["checking", "copying"]
    assert all(one.records == one.records_total > 0 for one in told if one.done)


def test_a_write_that_fails_ends_the_copy_and_the_next_run_completes_it(
    source: EventStore, target: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = live(source)
    monkeypatch.setattr("eventstore.history.copy._BATCH_RECORDS_MAX", 5)
    append = target.log.append
    calls = []

    def fail_third(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise LogUnavailable("the disk is full")
        append(*args)

    with monkeypatch.context() as patch:
        patch.setattr(target.log, "append", fail_third)
        with pytest.raises(LogUnavailable, match="the disk is full") as raised:
            copy_app(source, "orders", target)
    assert 0 < records(target, "orders") < records(source, "orders")
    copy_app(source, "orders", target)

    assert "can be run again" in raised.value.__notes__[0]
    assert everything(target.app("orders")) == everything(orders)


def test_a_copy_holds_a_few_batches_at_a_time(
    source: EventStore, target: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = source.app("orders")
    orders.append_many([(f"i{number % 7}", {"n": number}) for number in range(100)])
    monkeypatch.setattr("eventstore.history.copy._BATCH_RECORDS_MAX", 3)
    sizes = []
    send = Channel.send

    def counting(channel: Channel, events: Any, **options: Any) -> Any:
        sizes.append(len(events))
        return send(channel, events, **options)

    monkeypatch.setattr(Channel, "send", counting)

    copy_app(source, "orders", target)

    assert max(sizes) == 3
    assert sum(sizes) == 100


# --- the command ---------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(eventstore, arguments)


def test_the_command_copies_all_apps_or_those_that_are_named(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    run("--url", here, "append", "orders", "o-1", 'status="new"')
    run("--url", here, "append", "users", "u-1", "n=1")

    one = run("--url", here, "copy", "users", "--to", there, "--as", "people")
    both = run("--url", here, "copy", "--to", there)

    assert json.loads(one.stdout)["target_app"] == "people"
    assert [json.loads(line)["written"] for line in both.stdout.splitlines()] == [1, 1]
    found = run("--url", there, "get", "people", "u-1", "n")
    assert json.loads(found.stdout) == 1
    assert json.loads(run("--url", there, "get", "orders", "o-1").stdout)["version"] == 1


def test_the_command_makes_a_dev_environment_of_a_namespace(tmp_path: Path) -> None:
    here = str(tmp_path)
    run("--url", here, "append", "orders", "o-1", 'status="new"')

    copied = run("--url", here, "copy", "--to", here, "--to-namespace", "dev", "--table")
    run("--url", here, "--namespace", "dev", "append", "orders", "o-1", 'status="tried"')

    assert "1 events written to orders" in copied.stdout
    assert "alike" in copied.stdout
    assert json.loads(run("--url", here, "get", "orders", "o-1", "status").stdout) == "new"


def test_the_command_says_what_it_cannot_copy(tmp_path: Path) -> None:
    here = str(tmp_path)
    run("--url", here, "append", "orders", "o-1", 'status="new"')

    missing = run("--url", here, "copy", "ordesr", "--to", str(tmp_path / "there"))
    itself = run("--url", here, "copy", "--to", here)
    renamed = run("--url", here, "copy", "--to", here, "--as", "x")

    assert (missing.exit_code, "no app 'ordesr'" in missing.stderr) == (3, True)
    assert (itself.exit_code, "is the source itself" in itself.stderr) == (1, True)
    assert (renamed.exit_code, "--as" in renamed.stderr) == (2, True)
