"""StateMigrator: every state goes through a function, once, whoever writes meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eventstore import (
    App,
    Config,
    Conflict,
    Diff,
    EventStore,
    EventTooLarge,
    InstanceNotFound,
    OutcomeUnknown,
    UnsupportedValue,
)
from eventstore.receipts import Receipt
from processors import migrate as migrate_module
from processors.instance import Component
from processors.instances import clear_instance, inspect_state
from processors.migrate import MigrationResult, StateMigrator

LOGS = ["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)]

OpenStore = Callable[[], EventStore]


@pytest.fixture(params=LOGS)
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[OpenStore]:
    """Opens the log once more at each call, as another process would."""
    views = None
    if request.param == "kafka":
        url, views = str(request.getfixturevalue("kafka_url")), tmp_path / "views"
    else:
        url = str(tmp_path / "log") if request.param == "sqlite" else f"memory://{namespace}"
    config = Config.load({}, namespace=namespace, partitions=2, view_path=views)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(EventStore(url, config=config))


@pytest.fixture
def store(open_store: OpenStore) -> EventStore:
    return open_store()


@pytest.fixture
def users(store: EventStore) -> App:
    """The app of a component, with the instances "u0" to "u9"."""
    app = store.app("Users")
    app.append_many([(f"u{n}", {"name": f"user {n}", "visits": [n], "old": 1}) for n in range(10)])
    store.flush()
    return app


@pytest.fixture
def component() -> Component:
    return Component("Users")


def split_name(state: dict[str, Any]) -> dict[str, Any]:
    """A migration that cannot be repeated: it needs the field that it takes away."""
    first, last = state.pop("name").split()
    return {**state, "first": first, "last": last}


def count(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "runs": state.get("runs", 0) + 1}


# --- what changes --------------------------------------------------------------------------------


def test_each_state_becomes_what_the_function_returns(
    store: EventStore, users: App, component: Component
) -> None:
    results = StateMigrator(component, split_name, store).migrate()

    assert [one.instance_id for one in results] == [f"u{n}" for n in range(10)]
    assert not any(one.exception or one.skipped for one in results)
    assert dict(users.get("u3")) == {"visits": [3], "old": 1, "first": "user", "last": "3"}
    assert users.get("u3").version == 2
    assert [entry.event.name for entry in users.history("u3")] == ["", "migrate"]


def test_a_result_says_what_was_changed(
    store: EventStore, users: App, component: Component
) -> None:
    def move(state: dict[str, Any]) -> dict[str, Any]:
        state["visits"].append(99)  # in place: it is the function's own
        return {"visits": state["visits"], "name": state["name"]}

    (result,) = StateMigrator(component, move, store).migrate(["u1"])

    assert result.diff is not None
    assert result.diff.to_json() == [["delete", "old"], ["append", "visits", 99]]
    assert dict(users.get("u1")) == {"name": "user 1", "visits": [1, 99]}


def test_some_instances_by_id_or_by_name(
    store: EventStore, users: App, component: Component
) -> None:
    results = StateMigrator(component, count, store).migrate(["Users__u7", "u2", "u7"])

    assert [one.instance_id for one in results] == ["u7", "u2"]
    assert [name for name in users.instances() if "runs" in users.get(name)] == ["u2", "u7"]


def test_a_dry_run_tells_the_diffs_and_writes_nothing(
    store: EventStore, users: App, component: Component
) -> None:
    migrator = StateMigrator(component, split_name, store, name="split")

    planned = migrator.migrate(dry_run=True)
    written = [entry.sequence for name in users.instances() for entry in users.history(name)]
    done = migrator.migrate()

    assert written == [0] * 10
    assert [one.diff for one in planned] == [one.diff for one in done]
    assert planned[0].diff is not None
    assert planned[0].diff.fields == {"name", "first", "last"}


def test_a_function_may_be_a_lambda(store: EventStore, users: App, component: Component) -> None:
    StateMigrator(component, lambda state: {"kept": state["old"]}, store).migrate(num_workers=2)

    assert all(dict(users.get(name)) == {"kept": 1} for name in users.instances())


def test_a_state_that_stays_as_it_is_gets_no_new_version(
    store: EventStore, users: App, component: Component
) -> None:
    results = StateMigrator(component, lambda state: dict(state), store).migrate()

    assert all(one.diff == Diff() for one in results)
    assert len(list(users.history("u1"))) == 1


def test_load_state_and_save_state_stand_around_the_function(
    store: EventStore, component: Component
) -> None:
    app = store.app("Users")
    app.append("u", {"rows": "1,2"})

    @component.load_state
    def load(saved: dict[str, Any]) -> dict[str, Any]:
        return {"rows": saved["rows"].split(","), "cursor": object()}

    @component.save_state
    def save(state: dict[str, Any]) -> dict[str, Any]:
        return {"rows": ",".join(state["rows"])}

    StateMigrator(
        component, lambda state: {**state, "rows": state["rows"] + ["3"]}, store
    ).migrate()

    assert dict(app.get("u")) == {"rows": "1,2,3"}


# --- once ----------------------------------------------------------------------------------------


def test_a_named_migration_changes_each_instance_once(
    open_store: OpenStore, store: EventStore, users: App, component: Component
) -> None:
    first = StateMigrator(component, split_name, store, name="split").migrate(["u1", "u2"])

    rest = StateMigrator(component, split_name, open_store(), name="split").migrate()

    assert not any(one.skipped for one in first)
    assert [one.instance_id for one in rest if one.skipped == "migrated already"] == ["u1", "u2"]
    assert not any(one.exception for one in rest)
    assert all(users.get(name, fresh=True).version == 2 for name in users.instances())


def test_a_named_migration_remembers_what_it_did_not_have_to_change(
    store: EventStore, users: App, component: Component
) -> None:
    StateMigrator(component, lambda state: dict(state), store, name="n").migrate(["u1"])

    (again,) = StateMigrator(component, split_name, store, name="n").migrate(["u1"])

    assert again.skipped == "migrated already"
    assert users.get("u1").version == 1


def test_migrations_without_a_name_and_of_other_names_run_each_time(
    store: EventStore, users: App, component: Component
) -> None:
    for name in (None, None, "a", "b", "a"):
        StateMigrator(component, count, store, name=name).migrate(["u1"])

    assert users.get("u1", "runs") == 4


def test_two_processes_that_migrate_at_once_migrate_each_instance_once(
    open_store: OpenStore, store: EventStore, users: App, component: Component
) -> None:
    migrators = [
        StateMigrator(component, count, one, name="count") for one in (store, open_store())
    ]
    found: list[list[MigrationResult]] = []
    threads = [
        threading.Thread(target=lambda one=one: found.append(one.migrate())) for one in migrators
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [users.get(f"u{n}", "runs", fresh=True) for n in range(10)] == [1] * 10
    results = [one for results in found for one in results]
    assert len(results) == 20
    assert not any(one.exception for one in results)
    assert sum(not one.skipped for one in results) == 10


@pytest.mark.parametrize("name", [None, "count"])
def test_a_change_whose_acknowledgement_was_lost_takes_effect_once(
    store: EventStore,
    users: App,
    component: Component,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
) -> None:
    entry = Receipt.entry
    lost: list[Receipt] = []

    def lose_first(receipt: Receipt, timeout_s: float | None = None) -> Any:
        found = entry(receipt, timeout_s)
        if not lost:
            lost.append(receipt)
            raise OutcomeUnknown("the connection broke")
        return found

    monkeypatch.setattr(Receipt, "entry", lose_first)

    (result,) = StateMigrator(component, count, store, name=name).migrate(["u1"])

    assert lost
    assert (result.exception, result.skipped) == (None, "")
    assert result.diff is not None
    assert users.get("u1", "runs") == 1


# --- while others write --------------------------------------------------------------------------


def test_a_change_made_meanwhile_is_migrated_too(
    open_store: OpenStore, store: EventStore, users: App, component: Component
) -> None:
    other = open_store().app("Users")
    seen: list[list[int]] = []

    def slow(state: dict[str, Any]) -> dict[str, Any]:
        seen.append(state["visits"])
        if len(seen) == 1:
            other.append("u1", Diff().append("visits", 2)).result()
        return {"seen": state["visits"]}

    (result,) = StateMigrator(component, slow, store).migrate(["u1"])

    assert seen == [[1], [1, 2]]
    assert result.exception is None
    assert dict(users.get("u1")) == {"seen": [1, 2]}


def test_an_instance_that_never_rests_is_given_up_and_the_others_are_migrated(
    store: EventStore,
    users: App,
    component: Component,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migrate_module, "_ATTEMPTS_MAX", 3)

    def restless(state: dict[str, Any]) -> dict[str, Any]:
        if state["name"] == "user 1":
            users.append("u1", Diff().increment("old")).result()
        return count(state)

    results = StateMigrator(component, restless, store).migrate(num_workers=1)

    failed = {one.instance_id: one.exception for one in results if one.exception is not None}
    assert list(failed) == ["u1"]
    assert isinstance(failed["u1"], Conflict)
    assert "changed 3 times" in str(failed["u1"])
    assert users.get("u2", "runs") == 1


def test_an_update_that_ran_meanwhile_runs_again_on_the_migrated_state(
    open_store: OpenStore, store: EventStore
) -> None:
    component = Component("Users")
    started, migrated = threading.Event(), threading.Event()
    seen: list[int] = []

    @component.init_state
    def start() -> dict[str, int]:
        return {"points": 1}

    @component.update("score")
    def score(state: Any, props: Any) -> dict[str, int]:
        seen.append(state["points"])
        started.set()
        assert migrated.wait(30)
        return {"points": state["points"] + 1}

    with component("u", store=store) as living:
        living.run("score")
        assert started.wait(30)
        migrator = StateMigrator(component, lambda s: {"points": s["points"] * 100}, open_store())
        migrator.migrate()
        migrated.set()
        living.flush_update("score")

        assert seen == [1, 100]
        assert living.read_state("points") == 101


def test_a_cleared_instance_is_left_alone(
    store: EventStore, users: App, component: Component
) -> None:
    clear_instance("Users__u1", store)
    users.request("waits", "key/update")

    listed = StateMigrator(component, count, store).migrate()
    (named,) = StateMigrator(component, count, store).migrate(["u1"])

    assert "u1" not in {one.instance_id for one in listed}
    assert {one.instance_id for one in listed if one.skipped == "it has no state"} == {"waits"}
    assert named.skipped == "it has no state"
    assert dict(users.get("u1")) == {}


# --- what goes wrong -----------------------------------------------------------------------------


def test_one_bad_instance_does_not_keep_the_others_from_being_migrated(
    store: EventStore, users: App, component: Component
) -> None:
    def choosy(state: dict[str, Any]) -> Any:
        return {
            "user 0": lambda: 1 / 0,
            "user 1": lambda: None,
            "user 2": lambda: {"f": object()},
            "user 3": lambda: {"f": "x" * 2_000_000},
            "user 4": lambda: {1: "no name"},
        }.get(state["name"], lambda: {"done": True})()

    results = StateMigrator(component, choosy, store).migrate(["nobody", *users.instances()])

    kinds = [type(one.exception) for one in results[:6]]
    assert kinds[:5] == [
        InstanceNotFound, ZeroDivisionError, TypeError, UnsupportedValue, EventTooLarge
    ]  # fmt: skip
    assert isinstance(results[5].exception, TypeError | ValueError)
    assert "None (NoneType) instead of a dict" in str(results[2].exception)
    assert [dict(users.get(f"u{n}")) for n in range(5, 10)] == [{"done": True}] * 5
    assert [users.get(f"u{n}").version for n in range(5)] == [1] * 5


def test_an_app_that_nobody_used_is_not_created(store: EventStore, component: Component) -> None:
    nothing = StateMigrator(component, count, store).migrate()
    (missing,) = StateMigrator(component, count, store).migrate(["u1"])

    assert nothing == []
    assert isinstance(missing.exception, InstanceNotFound)
    assert store.apps() == []


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, ("Users", count)),
        (TypeError, (Component("Users"), "count")),
        (ValueError, (Component("Users"), lambda: {})),
        (ValueError, (Component("Users"), lambda state, more: {})),
    ],
)
def test_what_is_no_migration_is_refused_at_once(
    error: type[Exception], arguments: tuple[Any, Any]
) -> None:
    with pytest.raises(error, match="StateMigrator"):
        StateMigrator(*arguments)


def test_an_async_function_and_a_name_that_is_none_are_refused_at_once() -> None:
    async def later(state: dict[str, Any]) -> dict[str, Any]:
        return state

    with pytest.raises(TypeError, match="not a plain function"):
        StateMigrator(Component("Users"), later)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name=''"):
        StateMigrator(Component("Users"), count, name="")


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (TypeError, {"instance_ids": "u1"}),
        (TypeError, {"instance_ids": [1]}),
        (ValueError, {"instance_ids": [""]}),
        (ValueError, {"instance_ids": ["$foldlog/trigger/x"]}),
        (ValueError, {"num_workers": 0}),
    ],
)
def test_arguments_that_are_none_are_refused_before_anything_is_written(
    store: EventStore,
    users: App,
    component: Component,
    error: type[Exception],
    options: dict[str, Any],
) -> None:
    with pytest.raises(error, match="migrate"):
        StateMigrator(component, count, store).migrate(**options)

    assert users.get("u1").version == 1


# --- around it -----------------------------------------------------------------------------------


def test_ctrl_c_ends_what_is_running_and_leaves_the_rest_for_the_next_run(
    store: EventStore, users: App, component: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait)

    def interrupted(futures: Any) -> Any:
        assert begun.wait(30)
        raise KeyboardInterrupt

    def slow(state: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert cancelled.wait(30)
        return count(state)

    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "ThreadPoolExecutor", Threads)
        patch.setattr(migrate_module, "as_completed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            StateMigrator(component, slow, store, name="n").migrate(num_workers=1)
    done = [users.get(name, "runs", default=0) for name in users.instances()]
    StateMigrator(component, count, store, name="n").migrate()

    assert done == [1] + [0] * 9
    assert [users.get(name, "runs") for name in users.instances()] == [1] * 10


def test_a_bar_is_shown_to_people_only(
    store: EventStore,
    users: App,
    component: Component,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    StateMigrator(component, count, store).migrate()
    unseen = capsys.readouterr()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    StateMigrator(component, count, store).migrate()
    seen = capsys.readouterr()

    assert (unseen.out, unseen.err, seen.out) == ("", "", "")
    assert "migrating Users" in seen.err


def test_without_a_store_it_is_the_process_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: Component
) -> None:
    monkeypatch.setenv("EVENTSTORE_URL", str(tmp_path))
    with EventStore() as store:
        store.app("Users").append("u", {"n": 1})

    StateMigrator(component, count).migrate()

    assert inspect_state("Users__u")["runs"] == 1
