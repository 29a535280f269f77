"""What the API promises (docs/design.md, section 7), asked of each log and of both colours."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from eventstore import (
    App,
    Closed,
    Config,
    ConfigError,
    Conflict,
    Diff,
    Discard,
    Event,
    EventStore,
    EventStoreError,
    EventTooLarge,
    Guard,
    InstanceNotFound,
    InvalidDiff,
    Kind,
    LogUnavailable,
    Position,
    ReadTimeout,
    Receipt,
    Rejected,
    State,
    UnsupportedValue,
    Verdict,
    VersionNotFound,
    occurred,
)
from eventstore.aio import AsyncApp, AsyncEventStore
from eventstore.events import Answer, EffectKey, Times
from eventstore.log.base import Append, Topic
from tests.contract.faces import DEADLINE_S, AsyncFace, Face, SyncFace

LOGS = ["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)]

UTC = datetime.UTC

#: For what is refused or looked up before any log is asked: a broker would only take time.
embedded = pytest.mark.parametrize("log_url", ["memory", "sqlite"], indirect=True)


@pytest.fixture(params=LOGS)
def log_url(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> str:
    if request.param == "kafka":
        return str(request.getfixturevalue("kafka_url"))
    return str(tmp_path / "log") if request.param == "sqlite" else f"memory://{namespace}"


@pytest.fixture
def config(log_url: str, tmp_path: Path, namespace: str) -> Config:
    views = tmp_path / "views" if log_url.startswith("kafka") else None
    return Config.load({}, namespace=namespace, partitions=2, view_path=views)


OpenStore = Callable[..., Face]


@pytest.fixture(params=["sync", "async"])
def open_store(request: pytest.FixtureRequest, log_url: str, config: Config) -> Iterator[OpenStore]:
    """Opens the log once more at each call, as another process would; all are closed at the end."""
    with ExitStack() as stack:

        def open_again(**settings: Any) -> Face:
            changed = Config.model_validate({**config.model_dump(), **settings})
            store = EventStore(log_url, config=changed)
            face: Face = SyncFace(store) if request.param == "sync" else AsyncFace(store)
            stack.callback(face.end)
            return face

        yield open_again


@pytest.fixture
def store(open_store: OpenStore) -> Face:
    return open_store()


@pytest.fixture
def app(store: Face) -> Any:
    return store.app("orders")


def raw(store: Face, instance: str, *events: Event) -> list[Receipt]:
    """Append events as a processor does, past the App."""
    channel = store.store.app("orders")._channel
    return channel.send([(instance, event) for event in events])


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def verdicts(app: Any, instance: str) -> list[Verdict]:
    return [entry.verdict for entry in app.history(instance)]


def nothing_was_written(app: Any, instance: str) -> bool:
    return app.get(instance, default=None) is None and not app.exists(instance)


# --- append --------------------------------------------------------------------------------------


def test_a_mapping_sets_fields_and_the_next_read_sees_them(app: Any) -> None:
    app.append("o-1", {"status": "new", "items": []})

    state = app.get("o-1")

    assert isinstance(state, State)
    assert dict(state) == {"status": "new", "items": []}
    assert (state.app, state.instance, state.version) == ("orders", "o-1", 1)


def test_a_diff_takes_effect_as_a_whole(app: Any) -> None:
    app.append("o-1", Diff().append("items", "book").increment("total", 12))
    app.append("o-1", Diff().append("items", "pen").increment("total", 2))

    assert dict(app.get("o-1")) == {"items": ["book", "pen"], "total": 14}
    assert app.get("o-1").version == 2


def test_a_diff_of_which_one_operation_does_not_fit_has_no_effect_at_all(app: Any) -> None:
    app.append("o-1", {"total": "much", "status": "new"})
    receipt = app.append("o-1", Diff().set("status", "paid").increment("total", 1))

    assert receipt.verdict(DEADLINE_S) == Verdict.REJECTED
    assert dict(app.get("o-1")) == {"total": "much", "status": "new"}
    assert "total" in list(app.history("o-1"))[-1].reason


def test_a_receipt_tells_where_the_event_is_once_it_is_durable(store: Face, app: Any) -> None:
    first, second = app.append("o-1", {"n": 1}), app.append("o-1", {"n": 2})

    before, after = store.result(first), store.result(second)

    assert first.done
    assert before <= after
    assert not after <= before
    assert Position.parse(str(after)) == after
    assert store.result(first) == before, "asked again, it says the same"


def test_a_receipt_can_be_awaited_on_several_loops_at_once(store: Face, app: Any) -> None:
    receipts = [app.append("o-1", {"n": number}) for number in range(20)]

    async def positions() -> list[Position]:
        return list(await asyncio.gather(*receipts))

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: asyncio.run(positions()), range(2))

    assert one == other == [store.result(receipt) for receipt in receipts]


def test_an_event_carries_what_its_writer_says_about_it(app: Any) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)

    app.append(
        "o-1", {"n": 1}, name="counted", occurred_at=when, actor="ada", meta={"trace": ("t", 1)}
    )

    (entry,) = app.history("o-1")
    assert entry.event.name == "counted"
    assert entry.occurred_at == when
    assert entry.event.origin.actor == "ada"
    assert abs(entry.time - datetime.datetime.now(UTC)) < datetime.timedelta(hours=1)


def test_the_fields_of_an_append_are_those_of_the_moment_of_the_call(app: Any) -> None:
    items = ["book"]
    app.append("o-1", {"items": items})
    items.append("never sold")

    assert app.get("o-1", "items") == ["book"]


def test_many_appends_keep_their_order_per_instance(store: Face, app: Any) -> None:
    items = [(f"o-{number % 3}", Diff().append("n", number)) for number in range(60)]

    receipts = app.append_many(items)

    assert len(receipts) == 60
    store.flush()
    assert all(receipt.done for receipt in receipts)
    assert app.get("o-1", "n") == list(range(1, 60, 3))


def test_many_appends_take_the_options_of_append(app: Any) -> None:
    app.append_many([("o-1", {"n": 1}), ("o-1", {"n": 2}, {"name": "second", "actor": "ada"})])

    assert [entry.event.name for entry in app.history("o-1")] == ["", "second"]
    with pytest.raises(ConfigError, match="unknown options nmae"):
        app.append_many([("o-1", {"n": 1}, {"nmae": "typo"})])


def test_a_refused_item_means_that_none_of_the_many_was_written(app: Any) -> None:
    with pytest.raises(UnsupportedValue):
        app.append_many([("o-1", {"n": 1}), ("o-2", {"n": object()})])

    assert nothing_was_written(app, "o-1")


@embedded
@pytest.mark.parametrize(
    ("diff", "error", "message"),
    [
        ({"n": object()}, UnsupportedValue, r"\['n'\]"),
        ({"n": {"deep": [1, object()]}}, UnsupportedValue, r"\['n'\]\['deep'\]\[1\]"),
        ({"": 1}, InvalidDiff, "not empty"),
        ({1: 2}, InvalidDiff, r"path 1 \(int\): give a field's name, which is text"),
        ({"*": 1}, InvalidDiff, "'\\*'"),
        ({"text": "x" * 1_000_001}, EventTooLarge, "event_bytes_max"),
        (State({"n": 1}), InvalidDiff, "app.commit"),
        (7, InvalidDiff, "neither a Diff nor a mapping"),
        (Diff().set("n", "text").increment("n", 1), InvalidDiff, "nothing was written"),
    ],
    ids=[
        "value",
        "nested value",
        "empty field",
        "numbered field",
        "star",
        "large",
        "state",
        "number",
        "contradiction",
    ],
)
def test_what_can_be_seen_to_be_wrong_is_refused_and_not_written(
    app: Any, diff: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        app.append("o-1", diff)

    assert nothing_was_written(app, "o-1")


def test_an_event_of_the_largest_size_goes_through(open_store: OpenStore) -> None:
    app = open_store(event_bytes_max=2_000).app("orders")

    app.append("o-1", {"text": "x" * 1_900})

    assert len(app.get("o-1", "text")) == 1_900
    with pytest.raises(EventTooLarge) as caught:
        app.append("o-1", {"text": "x" * 2_000})
    assert caught.value.limit_bytes == 2_000 < caught.value.size_bytes


@embedded
@pytest.mark.parametrize("when", [datetime.datetime(2026, 1, 2), "2026-01-02T03:04:05", "soon"])
def test_a_time_without_a_zone_is_refused(app: Any, when: Any) -> None:
    with pytest.raises(ConfigError, match=r"time zone|not a time"):
        app.append("o-1", {"n": 1}, occurred_at=when)

    assert nothing_was_written(app, "o-1")


# --- names ---------------------------------------------------------------------------------------

NAMES = ["a\0b", "\0", "schön/☃/\U0001d518", " ", "a" * 1_024, "../..", "%s", "😀" * 256]


def test_any_text_up_to_1024_bytes_is_a_name(app: Any) -> None:
    app.append_many([(name, {"name": name, name[:40]: 1}) for name in NAMES])

    assert [app.get(name, "name") for name in NAMES] == NAMES
    assert all(app.get(name, name[:40]) == 1 for name in NAMES)
    assert list(app.instances()) == sorted(NAMES, key=str.encode)


@embedded
@pytest.mark.parametrize(
    "name",
    ["", "a" * 1_025, "😀" * 257, "$foldlog/cursor", "\ud800", 7, None, b"o-1"],
    ids=["empty", "long", "long in bytes", "ours", "surrogate", "number", "None", "bytes"],
)
def test_what_cannot_be_a_name_is_refused_and_not_written(app: Any, name: Any) -> None:
    with pytest.raises(ConfigError, match="instance"):
        app.append(name, {"n": 1})

    assert list(app.instances()) == []


@embedded
@pytest.mark.parametrize(
    "name", ["", "a" * 1_025, "never", "\ud800"], ids=["empty", "long", "never", "surrogate"]
)
def test_a_name_that_was_never_written_is_not_found(app: Any, name: str) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(InstanceNotFound):
        app.get(name)
    assert not app.exists(name)
    assert list(app.instances("\ud800")) == []


@embedded
@pytest.mark.parametrize(
    "name", ["", "a.b", "a b", "ü", "a/b", "a" * 121, None, "a\n"], ids=lambda name: ascii(name)[:9]
)
def test_an_app_has_a_name_that_can_be_a_topic(store: Face, name: Any) -> None:
    with pytest.raises(ConfigError, match="app"):
        store.app(name)


def test_apps_are_those_that_have_events(store: Face) -> None:
    for name in ("b", "a"):
        store.app(name).append("x", {"n": 1})
    store.app("never-written")
    store.flush()

    assert store.apps() == ["a", "b"]


@pytest.mark.parametrize("namespace", ["", "a.b", "a/b", "x" * 121])
def test_a_namespace_that_cannot_be_one_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        EventStore("memory://", namespace=namespace)


def test_apps_of_another_namespace_are_not_seen(
    store: Face, open_store: OpenStore, namespace: str
) -> None:
    other = open_store(namespace=f"{namespace}-other")
    store.result(store.app("orders").append("o-1", {"n": 1}))

    assert other.apps() == []
    assert not other.app("orders").exists("o-1")


# --- receipts, verdicts, keys --------------------------------------------------------------------


def test_the_verdict_of_an_event_that_takes_effect_is_accepted(app: Any) -> None:
    assert app.append("o-1", {"n": 1}).verdict(DEADLINE_S) == Verdict.ACCEPTED


def test_an_event_with_a_used_key_has_no_second_effect_and_the_verdict_of_the_first(
    app: Any,
) -> None:
    diff = Diff().increment("n", 1)
    first = app.append("o-1", diff, idempotency_key="k")
    second = app.append("o-1", diff, idempotency_key="k")

    assert app.get("o-1", "n") == 1
    assert verdicts(app, "o-1") == [Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert first.verdict(DEADLINE_S) == second.verdict(DEADLINE_S) == Verdict.ACCEPTED
    assert second.entry(DEADLINE_S).winner == first.entry(DEADLINE_S).sequence == 0


def test_the_copy_of_a_rejected_event_is_reported_as_rejected(app: Any) -> None:
    app.append("o-1", {"n": "text"})
    diff = Diff().increment("n", 1)
    copies = [app.append("o-1", diff, idempotency_key="k") for _ in range(2)]

    assert [copy.verdict(DEADLINE_S) for copy in copies] == [Verdict.REJECTED] * 2
    assert copies[1].entry(DEADLINE_S).verdict == Verdict.DUPLICATE


def test_a_used_key_with_other_content_is_rejected(app: Any) -> None:
    app.append("o-1", {"n": 1}, idempotency_key="k")
    other = app.append("o-1", {"n": 2}, idempotency_key="k")

    assert other.verdict(DEADLINE_S) == Verdict.REJECTED
    assert app.get("o-1", "n") == 1


def test_a_conflict_leaves_the_key_to_the_retry(app: Any) -> None:
    app.append("o-1", {"n": 1})
    stale = app.append("o-1", {"n": 2}, expected_version=0, idempotency_key="k")
    retry = app.append("o-1", {"n": 2}, expected_version=1, idempotency_key="k")

    assert stale.verdict(DEADLINE_S) == Verdict.CONFLICT
    assert retry.verdict(DEADLINE_S) == Verdict.ACCEPTED


def test_keys_of_two_instances_are_two_keys(app: Any) -> None:
    receipts = [app.append(name, {"n": 1}, idempotency_key="k") for name in ("o-1", "o-2")]

    assert [receipt.verdict(DEADLINE_S) for receipt in receipts] == [Verdict.ACCEPTED] * 2


def test_expected_version_is_a_guard_on_all_fields(app: Any) -> None:
    app.append("o-1", {"n": 1})
    fits = app.append("o-1", {"m": 1}, expected_version=1)
    stale = app.append("o-1", {"m": 2}, expected_version=1)

    assert fits.verdict(DEADLINE_S) == Verdict.ACCEPTED
    assert stale.verdict(DEADLINE_S) == Verdict.CONFLICT
    entry = stale.entry(DEADLINE_S)
    assert (entry.winner, entry.field, entry.version) == (1, "*", 2)


def test_a_guard_may_name_its_fields_or_be_a_state(app: Any) -> None:
    app.append("o-1", {"a": 1, "b": 1})
    state = app.get("o-1")
    assert state["a"] == 1
    app.append("o-1", {"b": 2})
    by_state = app.append("o-1", Diff().increment("c", 1), guard=state)
    by_fields = app.append("o-1", {"c": 2}, guard=Guard(1, ("a",)))
    app.append("o-1", {"a": 2})
    stale = app.append("o-1", Diff().increment("c", 1), guard=state)
    stale_fields = app.append("o-1", {"c": 3}, guard=Guard(1, ("a",)))

    found = [receipt.verdict(DEADLINE_S) for receipt in (by_state, by_fields, stale, stale_fields)]

    assert found == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.CONFLICT, Verdict.CONFLICT]


def test_two_kinds_of_guard_at_once_are_refused(app: Any) -> None:
    with pytest.raises(ConfigError, match="not both"):
        app.append("o-1", {"n": 1}, guard=Guard(0, ("n",)), expected_version=0)

    assert nothing_was_written(app, "o-1")


# --- what a read sees ----------------------------------------------------------------------------


def test_every_read_sees_what_was_written_before_it(app: Any) -> None:
    for number in range(1, 31):
        app.append("o-1", Diff().increment("n", 1))

        assert app.get("o-1", "n") == number


def test_a_token_lets_another_store_wait_for_a_write(store: Face, open_store: OpenStore) -> None:
    writer, reader = store.app("orders"), open_store().app("orders")
    store.result(writer.append("o-1", {"n": 0}))
    assert reader.get("o-1", "n", fresh=True) == 0

    for number in range(1, 11):
        receipt = writer.append("o-1", {"n": number})
        after = (str(store.result(receipt)), store.result(receipt), receipt)[number % 3]

        assert reader.get("o-1", "n", after=after) == number


def test_a_fresh_read_sees_what_anyone_was_acknowledged(store: Face, open_store: OpenStore) -> None:
    other = open_store().app("orders")

    for number in range(10):
        store.result(store.app("orders").append("o-1", {"n": number}))

        assert other.get("o-1", "n", fresh=True) == number


def test_two_stores_on_one_log_in_one_process_write_and_read_side_by_side(
    store: Face, open_store: OpenStore
) -> None:
    other = open_store()

    def write(face: Face) -> None:
        face.store.app("orders").append_many(
            [("o-1", Diff().increment("n", 1)) for _ in range(100)]
        )
        face.store.flush(DEADLINE_S)

    threads = [threading.Thread(target=write, args=(face,)) for face in (store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    reads = [face.app("orders").get("o-1", "n", fresh=True) for face in (store, other)]
    assert reads == [200, 200]


def test_a_position_of_another_log_cannot_be_waited_for(app: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(ConfigError, match="another log"):
        app.get("o-1", after="some-other-log@0:0")
    with pytest.raises(ConfigError, match="token"):
        app.get("o-1", after="nonsense")


def test_a_position_that_the_log_has_not_reached_is_a_timeout(store: Face, app: Any) -> None:
    position = store.result(app.append("o-1", {"n": 1}))
    (partition,) = position
    later = Position(position.identity, {partition: position[partition] + 1_000})

    with pytest.raises(ReadTimeout, match="read again later"):
        app.get("o-1", after=later, timeout_s=0.05)
    assert app.get("o-1", "n") == 1


def test_a_path_leads_into_a_field(app: Any) -> None:
    app.append("o-1", {"order": {"lines": [{"price": 3}]}, "n": 0, "none": None})

    assert app.get("o-1", "n") == 0
    assert app.get("o-1", ("order", "lines", 0, "price")) == 3
    assert app.get("o-1", ("n",)) == 0
    assert app.get("o-1", "none", default=7) is None


@embedded
@pytest.mark.parametrize("path", ["no", ("no",), ("order", "no"), ("order", "lines", 1), ("n", 0)])
def test_where_a_path_leads_nowhere_there_is_an_error_or_the_default(app: Any, path: Any) -> None:
    app.append("o-1", {"order": {"lines": [1]}, "n": 0})

    with pytest.raises(InstanceNotFound) as caught:
        app.get("o-1", path)
    assert (caught.value.app, caught.value.instance, caught.value.path) == ("orders", "o-1", path)
    assert app.get("o-1", path, default=None) is None


@embedded
@pytest.mark.parametrize("path", [(), (0,), ["n"], 7])
def test_what_is_no_path_is_refused(app: Any, path: Any) -> None:
    app.append("o-1", {"n": 0})

    with pytest.raises(ConfigError, match="path"):
        app.get("o-1", path)


def test_an_instance_that_does_not_exist_is_a_key_error_or_the_default(app: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(KeyError, match="o-2"):
        app.get("o-2")
    assert app.get("o-2", default="nobody") == "nobody"
    assert app.get("o-2", "n", default="nobody") == "nobody"


def test_what_a_reader_does_to_a_value_reaches_nobody_else(app: Any) -> None:
    app.append("o-1", {"items": [{"name": "book"}]})
    app.get("o-1")["items"][0]["name"] = "burnt"
    app.get("o-1", "items").clear()

    assert app.get("o-1", "items") == [{"name": "book"}]


def test_a_state_stays_what_it_was_however_far_the_log_goes_on(app: Any) -> None:
    app.append("o-1", {"n": 1, "gone": "here", "big": "x" * 2_000})
    state = app.get("o-1")
    app.append("o-1", Diff().set("n", 2).delete("gone").append_text("big", "y").set("new", 1))
    app.reset("o-1")

    assert dict(state) == {"n": 1, "gone": "here", "big": "x" * 2_000}
    assert app.get("o-1").version == 3


# --- commit --------------------------------------------------------------------------------------


def test_a_commit_writes_the_changes_and_returns_the_state_after_them(app: Any) -> None:
    app.append("o-1", {"status": "new", "n": 1})
    state = app.get("o-1")

    after = app.commit("o-1", state.update(status="paid").increment(n=2))

    assert (after.version, dict(after)) == (2, {"status": "paid", "n": 3})
    assert app.get("o-1") == after


def test_a_commit_on_what_has_changed_since_is_a_conflict_that_says_what_happened(app: Any) -> None:
    app.append("o-1", {"status": "new"})
    state = app.get("o-1")
    app.append("o-1", {"note": "harmless"})
    app.append("o-1", {"status": "cancelled"})

    with pytest.raises(Conflict) as caught:
        app.commit("o-1", state.update(status="paid"))

    error = caught.value
    assert (error.app, error.instance) == ("orders", "o-1")
    assert (error.field, error.base, error.version, error.winner) == ("status", 1, 3, 2)
    assert app.get("o-1", "status") == "cancelled"
    assert verdicts(app, "o-1")[-1] == Verdict.CONFLICT


def test_a_commit_depends_on_what_was_read(app: Any) -> None:
    app.append("o-1", {"limit": 10})
    state = app.get("o-1")
    spent = state.update(spent=state["limit"])
    app.append("o-1", {"limit": 5})

    with pytest.raises(Conflict, match="'limit'"):
        app.commit("o-1", spent)
    assert "spent" not in app.get("o-1")


def test_snapshot_isolation_guards_only_what_is_overwritten(app: Any) -> None:
    app.append("o-1", {"limit": 10, "spent": 0})
    state = app.get("o-1")
    spent = state.update(spent=state["limit"])
    app.append("o-1", {"limit": 5})

    after = app.commit("o-1", spent, isolation="snapshot")

    assert dict(after) == {"limit": 5, "spent": 10}
    with pytest.raises(Conflict, match="'spent'"):
        app.commit("o-1", spent, isolation="snapshot")


def test_appends_and_increments_of_two_writers_both_count(app: Any) -> None:
    app.append("o-1", {"items": [], "n": 0})
    one, other = app.get("o-1"), app.get("o-1")

    app.commit("o-1", one.append(items="a").increment(n=1))
    app.commit("o-1", other.append(items="b").increment(n=1))

    assert dict(app.get("o-1")) == {"items": ["a", "b"], "n": 2}


def test_iterating_over_a_state_depends_on_every_field(app: Any) -> None:
    app.append("o-1", {"a": 1})
    state = app.get("o-1")
    counted = state.update(count=len(state))
    app.append("o-1", {"new": 1})

    with pytest.raises(Conflict) as caught:
        app.commit("o-1", counted)
    assert caught.value.field == "*"


def test_a_commit_that_does_not_fit_what_the_state_has_become_is_rejected(app: Any) -> None:
    app.append("o-1", {"items": []})
    state = app.get("o-1").append(items="book")
    app.append("o-1", {"items": "text now"})

    with pytest.raises(Rejected, match="items"):
        app.commit("o-1", state)
    assert app.get("o-1", "items") == "text now"


def test_committing_no_change_writes_nothing_and_returns_the_newest(app: Any) -> None:
    app.append("o-1", {"n": 1})
    state = app.get("o-1")
    app.append("o-1", {"n": 2})

    assert app.commit("o-1", state)["n"] == 2
    assert len(list(app.history("o-1"))) == 2


def test_a_state_made_by_hand_begins_an_instance_and_never_overwrites_one(app: Any) -> None:
    state = State({"n": 1}).update(status="new")

    assert dict(app.commit("o-1", state)) == {"n": 1, "status": "new"}
    with pytest.raises(Conflict):
        app.commit("o-1", state)
    assert app.get("o-1").version == 1


def test_a_state_is_committed_only_to_its_own_instance(app: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(InvalidDiff, match="orders/o-1"):
        app.commit("o-2", app.get("o-1").update(n=2))
    assert nothing_was_written(app, "o-2")


def test_what_is_committed_is_a_state(app: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(InvalidDiff, match=r"takes a State.*not \{'n': 2\}.*append.*nothing was"):
        app.commit("o-1", {"n": 2})
    assert app.get("o-1").version == 1


def test_a_commit_with_a_used_key_returns_the_state_after_the_first(app: Any) -> None:
    app.append("o-1", {"n": 1})
    state = app.get("o-1").increment(n=1)

    first = app.commit("o-1", state, idempotency_key="k")
    app.append("o-1", {"n": 100})
    again = app.commit("o-1", state, idempotency_key="k")

    assert (first.version, again.version, again["n"]) == (2, 2, 2)


def test_writers_who_commit_and_retry_never_lose_an_update(app: Any, store: Face) -> None:
    app.append("o-1", {"n": 0})
    sync: App = store.store.app("orders")

    def count() -> None:
        for _ in range(10):
            while True:
                state = sync.get("o-1")
                with suppress(Conflict):
                    sync.commit("o-1", state.update(n=state["n"] + 1))
                    break

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(count) for _ in range(3)]:
            done.result()

    assert app.get("o-1", "n") == 30


# --- the past ------------------------------------------------------------------------------------


def test_the_history_has_every_event_with_its_place_and_verdict(store: Face, app: Any) -> None:
    position = store.result(app.append("o-1", {"n": 1}, name="made"))
    app.append("o-1", {"n": 2}, expected_version=7, name="stale")
    app.append("o-1", Diff().append("n", 1), name="misfit")
    app.append("o-1", {"n": 3}, name="changed")

    entries = list(app.history("o-1"))

    assert [entry.sequence for entry in entries] == [0, 1, 2, 3]
    assert [entry.version for entry in entries] == [1, 1, 1, 2]
    assert [entry.event.name for entry in entries] == ["made", "stale", "misfit", "changed"]
    assert [str(entry.verdict) for entry in entries] == [
        "accepted",
        "conflict",
        "rejected",
        "accepted",
    ]
    assert entries[0].position == position
    assert all(one.time <= other.time for one, other in itertools.pairwise(entries))


def test_the_history_reads_both_ways_and_in_parts(app: Any) -> None:
    app.append_many([("o-1", {"n": number}) for number in range(10)])

    def sequences(**options: Any) -> list[int]:
        return [entry.sequence for entry in app.history("o-1", **options)]

    assert sequences() == list(range(10))
    assert sequences(reverse=True) == list(range(9, -1, -1))
    assert sequences(start=3, end=6) == [3, 4, 5]
    assert sequences(start=3, end=6, reverse=True) == [5, 4, 3]
    assert sequences(start=8, end=99) == [8, 9]
    assert sequences(start=10) == sequences(start=5, end=2) == sequences(end=0) == []
    with pytest.raises(ConfigError, match="sequence"):
        sequences(start=-1)
    with pytest.raises(ConfigError, match="sequence"):
        sequences(end=-1)


def test_the_history_is_read_as_it_is_used(app: Any) -> None:
    app.append_many([("o-1", {"n": number}) for number in range(300)])

    entries = app.history("o-1", reverse=True)

    assert next(entries).sequence == 299
    assert next(entries).sequence == 298


def test_the_history_of_nobody_is_not_found(app: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(InstanceNotFound):
        list(app.history("o-2"))


@pytest.mark.parametrize("call", ["get", "history"])
def test_who_reads_an_app_that_nobody_has_written_is_told_so(
    store: Face, app: Any, call: str
) -> None:
    with pytest.raises(InstanceNotFound) as absent_app:
        list(getattr(app, call)("o-1"))
    app.append("o-2", {"n": 1})
    with pytest.raises(InstanceNotFound) as absent_instance:
        list(getattr(app, call)("o-1"))

    (note,) = absent_app.value.__notes__
    assert note.startswith(f"{store.store.url} has no app 'orders' in namespace ")
    assert not hasattr(absent_instance.value, "__notes__")


def test_a_state_can_be_read_at_each_of_its_versions(app: Any) -> None:
    app.append("o-1", {"n": 1})
    app.append("o-1", Diff().set("n", 2).set("m", "x" * 1_000))
    app.append("o-1", Diff().delete("n").append_text("m", "y"))

    def fields(at: Any) -> dict[str, Any]:
        return dict(app.get("o-1", at=at))

    assert fields(0) == {}
    assert fields(1) == fields("HEAD~2") == {"n": 1}
    assert fields(2) == fields("HEAD~1") == {"n": 2, "m": "x" * 1_000}
    assert fields(3) == fields("HEAD") == fields("HEAD~0") == {"m": "x" * 1_000 + "y"}
    assert app.get("o-1", at=1).version == 1
    assert app.get("o-1", "n", at=1) == 1


@embedded
@pytest.mark.parametrize("at", [4, -1, "HEAD~4", 10**30])
def test_a_version_that_never_was_is_not_found(app: Any, at: Any) -> None:
    app.append_many([("o-1", {"n": number}) for number in range(3)])

    with pytest.raises(VersionNotFound) as caught:
        app.get("o-1", at=at)
    assert caught.value.at == at


@embedded
@pytest.mark.parametrize("at", [True, 1.0, "HEAD~", "HEAD~x", "yesterday", "", b"1", "7"])
def test_what_is_no_version_time_or_position_is_refused(app: Any, at: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(ConfigError, match="at="):
        app.get("o-1", at=at)


def test_a_state_can_be_read_as_of_a_time_of_the_log(store: Face, app: Any) -> None:
    noon = datetime.datetime(2026, 1, 1, 12, tzinfo=UTC)
    for minute in range(1, 4):
        recorded_ms = int((noon + datetime.timedelta(minutes=minute)).timestamp()) * 1_000
        times = Times(None, recorded_ms)
        raw(store, "o-1", Event(Kind.DIFF, body=Diff({"n": minute}).encode(), times=times))

    def version(at: Any) -> int | None:
        state: State = app.get("o-1", at=at)
        return state.version

    assert version(noon) == 0
    assert version(noon + datetime.timedelta(minutes=1)) == 1
    assert version(noon + datetime.timedelta(minutes=2, seconds=59)) == 2
    assert version("2026-01-01T12:03:00+00:00") == 3
    assert version("2026-01-01T14:02:00+02:00") == 2
    assert version("2026-01-01T12:02:00Z") == 2
    assert version(datetime.datetime.now(UTC)) == 3
    with pytest.raises(ConfigError, match="no time zone"):
        version(datetime.datetime(2026, 1, 1, 12))
    with pytest.raises(ConfigError, match="no time zone"):
        version("2026-01-01T12:00:00")


def test_a_state_can_be_read_as_of_what_had_occurred(app: Any) -> None:
    day = datetime.datetime(2026, 1, 1, tzinfo=UTC)
    for days in (1, 3, 2, 9):
        app.append("o-1", {"n": days}, occurred_at=day + datetime.timedelta(days=days))
    app.append("o-1", {"n": "no time of its own"})

    def value(days: int) -> Any:
        return app.get("o-1", "n", at=occurred(day + datetime.timedelta(days=days)), default=None)

    assert value(0) is None
    assert value(1) == 1
    assert value(2) == 1, "what occurred on day 3 came before it, and is not undone"
    assert value(3) == 2
    assert value(9) == "no time of its own"
    with pytest.raises(ConfigError, match="no time zone"):
        occurred("2026-01-01T00:00:00")


def test_a_state_can_be_read_as_of_a_position(store: Face, app: Any) -> None:
    positions = [store.result(app.append("o-1", {"n": number})) for number in range(3)]

    found = [app.get("o-1", "n", at=position) for position in positions]
    by_token = [app.get("o-1", "n", at=str(position)) for position in positions]

    assert found == by_token == [0, 1, 2]
    assert app.get("o-1", at=app.get("o-1").position)["n"] == 2


def test_a_position_of_another_log_is_no_place_in_this_one(app: Any) -> None:
    app.append("o-1", {"n": 1})

    with pytest.raises(ConfigError, match="another log"):
        app.get("o-1", at="some-other-log@0:0")
    with pytest.raises(ConfigError, match="token"):
        app.get("o-1", at="@0:x")


# --- requests and what becomes of them -----------------------------------------------------------


def test_a_request_waits_until_something_answers_it(app: Any) -> None:
    receipt = app.request(
        "o-1", "price", {"items": [1]}, lane="pricing", discard=Discard.num_new_updates(3)
    )

    (row,) = app.pending("o-1")

    assert receipt.verdict(DEADLINE_S) == Verdict.ACCEPTED
    assert (row.instance, row.request.name, row.request.lane) == ("o-1", "price", "pricing")
    assert row.request.sequence == 0
    assert app.exists("o-1")
    assert list(app.instances()) == ["o-1"]
    state = app.get("o-1")
    assert (state.version, dict(state)) == (0, {})


def test_a_request_without_a_name_is_refused(app: Any) -> None:
    with pytest.raises(ConfigError, match="name"):
        app.request("o-1", "")
    with pytest.raises(UnsupportedValue):
        app.request("o-1", "price", {"of": object()})

    assert nothing_was_written(app, "o-1")


def test_pending_requests_are_in_the_order_of_the_log(app: Any) -> None:
    for instance, name in [("a", "x"), ("b", "y"), ("a", "z")]:
        app.request(instance, name)

    assert [row.request.name for row in app.pending("a")] == ["x", "z"]
    assert [(row.instance, row.request.name) for row in app.pending("b")] == [("b", "y")]
    assert sorted((row.instance, row.request.sequence) for row in app.pending()) == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
    ]
    assert list(app.pending("nobody")) == []


def test_answers_count_once_and_close_their_request(store: Face, app: Any) -> None:
    app.request("o-1", "price")
    answer = Event(Kind.DIFF, "price", Diff({"price": 3}).encode(), answer=Answer(0, 0, True))
    again = answer._replace(body=Diff({"price": 4}).encode())

    receipts = raw(store, "o-1", answer, again)

    assert list(app.pending("o-1")) == []
    assert app.get("o-1", "price") == 3
    entries = [receipt.entry(DEADLINE_S) for receipt in receipts]
    assert [entry.verdict for entry in entries] == [Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert entries[1].winner == 1
    assert receipts[1].verdict(DEADLINE_S) == Verdict.ACCEPTED


def test_effects_are_recorded_once(store: Face, app: Any) -> None:
    app.request("o-1", "price")
    effect = Event(Kind.EFFECT, "ask", body("7"), answer=Answer(0), effect=EffectKey(0, "d"))

    raw(store, "o-1", effect, effect._replace(body=body("8")), effect._replace(name="other"))

    assert verdicts(app, "o-1")[1:] == [Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.ACCEPTED]


def test_discards_and_failures_are_listed_of_one_instance_and_of_all(store: Face, app: Any) -> None:
    for name in ("a", "b"):
        app.request(name, "late")
        app.request(name, "broken")
        raw(
            store,
            name,
            Event(Kind.DISCARD, "late", body({"reason": "stale"}), answer=Answer(0)),
            Event(Kind.FAILURE, "broken", body({"error": "ouch"}), answer=Answer(1, 0, True)),
        )

    assert [(entry.instance, entry.sequence) for entry in app.discards("a")] == [("a", 2)]
    assert [(entry.instance, entry.sequence) for entry in app.failures("a")] == [("a", 3)]
    assert {entry.instance for entry in app.discards()} == {"a", "b"}
    assert all(entry.event.kind == Kind.FAILURE for entry in app.failures())
    assert list(app.pending()) == []
    assert list(app.discards("nobody")) == list(app.failures("nobody")) == []


def test_a_request_with_a_used_key_is_one_request(app: Any) -> None:
    receipts = [app.request("o-1", "price", idempotency_key="k") for _ in range(2)]

    assert [receipt.verdict(DEADLINE_S) for receipt in receipts] == [Verdict.ACCEPTED] * 2
    assert len(list(app.pending("o-1"))) == 1


def test_a_delayed_request_says_when_it_is_due(app: Any) -> None:
    due = datetime.datetime(2030, 1, 1, tzinfo=UTC)
    app.request("o-1", "remind", not_before=due)

    (row,) = app.pending("o-1")

    assert row.request.due_ms == int(due.timestamp()) * 1_000
    with pytest.raises(ConfigError, match="time zone"):
        app.request("o-1", "remind", not_before=datetime.datetime(2030, 1, 1))


# --- instances, tail -----------------------------------------------------------------------------


def test_instances_are_listed_by_prefix_in_byte_order(app: Any) -> None:
    app.append_many([(name, {"n": 1}) for name in ("b/2", "a/1", "b/10", "c", "b")])

    assert list(app.instances()) == ["a/1", "b", "b/10", "b/2", "c"]
    assert list(app.instances("b/")) == ["b/10", "b/2"]
    assert list(app.instances(prefix="x")) == []


def test_an_instance_of_which_nothing_took_effect_does_not_exist(app: Any) -> None:
    app.append("o-1", {"n": 1}, expected_version=5)

    assert not app.exists("o-1")
    assert list(app.instances()) == []
    assert verdicts(app, "o-1") == [Verdict.CONFLICT]
    with pytest.raises(InstanceNotFound):
        app.get("o-1")


def test_a_tail_from_the_beginning_has_every_event_with_its_verdict(app: Any) -> None:
    app.append("o-1", {"n": 1})
    app.append("o-1", {"n": 2}, expected_version=9)
    app.append("o-2", {"n": 3})

    entries = list(app.tail(start="beginning", follow=False))

    assert sorted((entry.instance, entry.sequence, entry.verdict) for entry in entries) == [
        ("o-1", 0, Verdict.ACCEPTED),
        ("o-1", 1, Verdict.CONFLICT),
        ("o-2", 0, Verdict.ACCEPTED),
    ]


def test_a_tail_goes_on_after_a_position_or_token(store: Face, app: Any) -> None:
    positions = [store.result(app.append("o-1", {"n": number})) for number in range(4)]

    by_token = app.tail(start=str(positions[1]), follow=False)
    by_position = app.tail(start=positions[2], follow=False)

    assert [entry.sequence for entry in by_token] == [2, 3]
    assert [entry.sequence for entry in by_position] == [3]
    with pytest.raises(ConfigError, match="another log"):
        list(app.tail(start="some-other-log@0:0", follow=False))
    with pytest.raises(ConfigError, match="start"):
        list(app.tail(start="yesterday", follow=False))


def test_a_tail_that_follows_sees_what_comes_while_it_waits(store: Face, app: Any) -> None:
    app.append("o-1", {"n": 0})
    tail = app.tail(start="beginning", timeout_s=DEADLINE_S)
    assert next(tail).sequence == 0

    for number in range(1, 4):
        app.append("o-1", {"n": number})

        assert next(tail).sequence == number


def test_a_tail_ends_after_so_long_without_news(app: Any) -> None:
    app.append("o-1", {"n": 0})

    assert [e.sequence for e in app.tail(start="beginning", timeout_s=0.05)] == [0]
    assert list(app.tail(timeout_s=0.05)) == []


def test_a_tail_of_an_app_without_events_waits_for_the_first(store: Face, app: Any) -> None:
    assert list(app.tail(follow=False)) == []
    assert list(app.tail(timeout_s=0.05)) == []
    tail = store.store.app("orders").tail(timeout_s=DEADLINE_S)
    found: list[Any] = []

    def read() -> None:
        found.append(next(tail))

    reader = threading.Thread(target=read)
    reader.start()
    app.append("o-1", {"n": 0})
    reader.join(DEADLINE_S)

    assert [entry.instance for entry in found] == ["o-1"]


# --- fork, reset ---------------------------------------------------------------------------------


def test_a_fork_begins_with_the_state_of_another_and_goes_its_own_way(app: Any) -> None:
    app.append("o-1", {"n": 1, "items": [1]})
    app.append("o-1", {"n": 2})

    forked = app.fork("o-1", to="o-2", actor="ada")
    early = app.fork("o-1", at=1, to="o-3")
    app.append("o-2", Diff().append("items", 2))

    assert (forked.version, dict(forked)) == (1, {"n": 2, "items": [1]})
    assert dict(early) == {"n": 1, "items": [1]}
    assert app.get("o-2", "items") == [1, 2]
    assert app.get("o-1", "items") == [1]
    (entry, _) = app.history("o-2")
    assert entry.event.fork[:3] == ("orders", "o-1", 2)
    assert entry.event.origin.actor == "ada"


def test_a_fork_needs_a_name_that_is_free_and_a_state_that_is_there(app: Any) -> None:
    app.append_many([("o-1", {"n": 1}), ("o-2", {"n": 2})])

    with pytest.raises(Conflict, match="had no effect: fork to a name that is free"):
        app.fork("o-1", to="o-2")
    with pytest.raises(InstanceNotFound):
        app.fork("nobody", to="o-3")
    with pytest.raises(VersionNotFound):
        app.fork("o-1", at=9, to="o-3")
    with pytest.raises(ConfigError, match="instance"):
        app.fork("o-1", to="")

    assert app.get("o-2", "n") == 2
    assert nothing_was_written(app, "o-3")


def test_an_empty_state_can_be_forked(app: Any) -> None:
    app.append("o-1", {"n": 1})

    assert dict(app.fork("o-1", at=0, to="o-2")) == {}
    assert app.exists("o-2")


def test_a_fork_of_a_state_that_is_larger_than_an_event_has_all_of_it(
    open_store: OpenStore,
) -> None:
    app = open_store(event_bytes_max=5_000).app("orders")
    app.append("o-1", {f"field-{number}": "x" * 100 for number in range(20)})
    for number in range(60):
        app.append(
            "o-1",
            Diff()
            .append("list", {"number": number, "text": "ü" * 50})
            .append_text("text", f"{number:04}" * 60)
            .set(("dict", str(number)), [number] * 20)
            if number
            else {"dict": {}},
        )

    forked = app.fork("o-1", to="o-2")

    assert forked == app.get("o-1")
    assert len(list(app.history("o-2"))) > 5
    app.append("o-2", Diff().append("list", "more"))
    assert app.get("o-2", "list")[-1] == "more"
    assert app.get("o-2", at=1) == app.get("o-1")


def test_a_reset_clears_fields_and_requests_and_keeps_history_and_keys(app: Any) -> None:
    app.append("o-1", {"n": 1}, idempotency_key="k")
    app.request("o-1", "price")

    state = app.reset("o-1", actor="ada")
    again = app.append("o-1", {"n": 1}, idempotency_key="k")

    assert (state.version, dict(state)) == (2, {})
    assert list(app.pending()) == []
    assert app.exists("o-1")
    assert again.entry(DEADLINE_S).verdict == Verdict.DUPLICATE
    assert dict(app.get("o-1", at=1)) == {"n": 1}
    assert [entry.event.kind for entry in app.history("o-1")] == [
        Kind.DIFF,
        Kind.REQUEST,
        Kind.RESET,
        Kind.DIFF,
    ]
    with pytest.raises(InstanceNotFound):
        app.reset("nobody")


def test_what_was_read_before_a_reset_cannot_be_committed_after_it(app: Any) -> None:
    app.append("o-1", {"n": 1})
    state = app.get("o-1").update(n=2)
    app.reset("o-1")

    with pytest.raises(Conflict):
        app.commit("o-1", state)
    assert dict(app.get("o-1")) == {}


# --- reading creates nothing ---------------------------------------------------------------------


def test_reading_never_creates_an_app(store: Face, app: Any, open_store: OpenStore) -> None:
    assert app.get("o-1", default=None) is None
    assert not app.exists("o-1")
    assert list(app.instances()) == list(app.pending()) == list(app.refused()) == []
    assert list(app.discards()) == list(app.failures()) == list(app.tail(follow=False)) == []
    for call in (
        lambda: app.get("o-1"),
        lambda: list(app.history("o-1")),
        lambda: app.reset("o-1"),
        lambda: app.fork("o-1", to="o-2"),
    ):
        with pytest.raises(InstanceNotFound):
            call()
    with pytest.raises(ConfigError, match="no events"):
        app.get("o-1", after="some-log@0:0")

    assert store.apps() == open_store().apps() == []


def test_an_app_that_was_not_there_is_found_once_another_store_writes_it(
    app: Any, open_store: OpenStore
) -> None:
    assert not app.exists("o-1")
    other = open_store()
    other.result(other.app("orders").append("o-1", {"n": 1}))

    assert app.get("o-1", "n", fresh=True) == 1


# --- failures ------------------------------------------------------------------------------------


@pytest.fixture
def break_log(store: Face, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes every further append fail after it was queued, as when the disk is full."""

    def fail(topic: Topic, appends: Sequence[Append]) -> None:
        for append in appends:
            append.delivery.failed(LogUnavailable("the disk is full; nothing was written"))

    return lambda: monkeypatch.setattr(store.store.log, "append", fail)


def test_a_failed_write_is_raised_by_its_receipt_and_then_by_nobody_else(
    store: Face, app: Any, break_log: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.result(app.append("o-1", {"n": 1}))
    break_log()
    receipt = app.append("o-1", {"n": 2})

    with pytest.raises(LogUnavailable, match="disk is full"):
        store.result(receipt)
    monkeypatch.undo()
    assert app.get("o-1", "n") == 1
    store.flush()


@pytest.mark.parametrize(
    "ask",
    [
        lambda store, app: app.get("o-1"),
        lambda store, app: app.append("o-1", {"n": 3}),
        lambda store, app: list(app.instances()),
        lambda store, app: list(app.tail(follow=False)),
        lambda store, app: store.flush(),
        lambda store, app: store.close(),
    ],
    ids=["get", "append", "instances", "tail", "flush", "close"],
)
def test_a_failed_write_that_nobody_asked_about_is_raised_by_the_next_call(
    store: Face,
    app: Any,
    ask: Callable[[Face, Any], object],
    break_log: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.result(app.append("o-1", {"n": 1}))
    break_log()
    app.append_many([("o-1", {"n": 2}), ("o-1", {"n": 3})])
    monkeypatch.undo()

    with pytest.raises(LogUnavailable, match="disk is full") as caught:
        ask(store, app)

    assert caught.value.__notes__ == ["of an earlier write to orders/o-1 (and 1 more)"]


def test_a_failed_write_is_raised_once(
    store: Face, app: Any, break_log: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.result(app.append("o-1", {"n": 1}))
    break_log()
    app.append("o-1", {"n": 2})
    monkeypatch.undo()
    with pytest.raises(LogUnavailable):
        app.get("o-1")

    assert app.get("o-1", "n") == 1


def test_a_failed_write_is_raised_by_one_of_two_calls_at_once(
    store: Face, app: Any, break_log: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.result(app.append("o-1", {"n": 1}))
    break_log()
    app.append("o-1", {"n": 2})
    monkeypatch.undo()
    sync = store.store.app("orders")
    begun, go, asked = threading.Event(), threading.Event(), vars(Receipt)["asked"].fget
    main = threading.get_ident()

    def asked_slowly(receipt: Receipt) -> bool:
        begun.set()
        if threading.get_ident() != main:
            go.wait(DEADLINE_S)
        return bool(asked(receipt))

    monkeypatch.setattr(Receipt, "asked", property(asked_slowly))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(sync.get, "o-1")
        assert begun.wait(DEADLINE_S)
        found = sync.get("o-1", "n")
        go.set()

        with pytest.raises(LogUnavailable, match="disk is full"):
            first.result(DEADLINE_S)
    assert found == 1


def test_closing_makes_everything_durable(store: Face, open_store: OpenStore) -> None:
    receipts = store.app("orders").append_many([("o-1", Diff().increment("n", 1))] * 200)

    store.close()

    assert all(receipt.error is None and receipt.done for receipt in receipts)
    assert open_store().app("orders").get("o-1", "n") == 200


def test_a_closed_store_refuses_every_call_and_closes_again(store: Face, app: Any) -> None:
    app.append("o-1", {"n": 1})
    state = app.get("o-1")
    store.close()

    calls: list[Callable[[], object]] = [
        lambda: app.append("o-1", {"n": 2}),
        lambda: app.append_many([("o-1", {"n": 2})]),
        lambda: app.request("o-1", "price"),
        lambda: app.get("o-1"),
        lambda: app.exists("o-1"),
        lambda: app.commit("o-1", state.update(n=2)),
        lambda: list(app.history("o-1")),
        lambda: list(app.instances()),
        lambda: list(app.pending()),
        lambda: list(app.discards()),
        lambda: list(app.refused()),
        lambda: list(app.tail(follow=False)),
        lambda: app.fork("o-1", to="o-2"),
        lambda: app.reset("o-1"),
        lambda: app.rebuild_view(),
        lambda: app.quarantine(0, 0, reason="r"),
        lambda: app.repair(accept_loss=True),
        lambda: store.app("orders"),
        lambda: store.apps(),
        lambda: store.flush(),
    ]
    for call in calls:
        with pytest.raises(Closed):
            call()
    store.close()


def test_an_app_that_is_asked_for_while_its_store_closes_is_refused(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store().store
    fullmatch = re.fullmatch

    def close_and_match(*arguments: Any) -> Any:
        store.close()
        return fullmatch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("eventstore.store.re.fullmatch", close_and_match)

        with pytest.raises(Closed):
            store.app("orders")


def test_a_tail_ends_with_an_error_when_its_store_is_closed(store: Face, app: Any) -> None:
    app.append("o-1", {"n": 1})
    tail = store.store.app("orders").tail(start="beginning")
    next(tail)
    waiting = threading.Thread(target=store.store.close)
    waiting.start()

    with pytest.raises(EventStoreError):
        next(tail)
    waiting.join(DEADLINE_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused_and_the_parent_goes_on(store: Face, app: Any) -> None:
    app.append("o-1", {"n": 1})
    app.get("o-1")
    sync = store.store.app("orders")
    reading, writing = os.pipe()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
        child = os.fork()
    if child == 0:
        answers = []
        for call in (
            lambda: sync.append("o-1", {"n": 2}),
            lambda: sync.get("o-1"),
            lambda: sync.exists("o-1"),
            lambda: list(sync.history("o-1")),
        ):
            try:
                call()
                answers.append("answered")
            except BaseException as error:
                answers.append(type(error).__name__)
        os.write(writing, " ".join(answers).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answers_read = pipe.read()
    os.waitpid(child, 0)

    assert answers_read == "Closed Closed Closed Closed"
    app.append("o-1", {"n": 3})
    assert app.get("o-1", "n") == 3


# --- colours -------------------------------------------------------------------------------------


def test_the_async_face_has_every_call_of_the_sync_one() -> None:
    def names(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    only_inside = {"is_ready"}
    assert names(App) - only_inside == names(AsyncApp)
    assert names(EventStore) - {"url", "threads", "aio", "abandon"} <= names(AsyncEventStore)
