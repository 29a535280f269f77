"""The command `processors` as a shell sees it: what it runs, shows and decides, and its exit codes.

Most tests run the command in this process (click's CliRunner), `run --once` included; daemons that
live on are in tests/fault/test_daemon.py. Each test has a folder and a module of its own.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from eventstore import Discard, EventStore, LogUnavailable, ReadTimeout
from eventstore.processing import Processing
from processors.cli import processors
from processors.cli.loading import load_component
from processors.component import Component
from processors.daemon import Daemon
from processors.failures import (
    discard_failure,
    discard_request,
    open_failures,
    retry_failure,
)
from processors.health import HealthPort
from processors.logs import written_logs
from processors.notices import Notice, NoticeBoard, Publisher, code_digest, publish
from processors.runner import Runner
from processors.status import status_of
from tests.contract.logs import eventually

Run = Callable[..., Result]

SOURCE = """
from processors import Component

cart = Component("cart")
empty = Component("empty")
number = 3

@cart.serve("add")
def look(state, props):
    return state.get("n", 0)

@cart.update("add")
def keep(state, props):
    if props.get("bad"):
        raise ValueError(f"cannot keep {props['by']}")
    return {"n": state.get("n", 0) + props["by"]}
"""


#: Watches the other one, and cannot say for whom a change is.
WATCHING = """
from processors import Component, changed

follower = Component("follower")

def key(change):
    return {"u-1": "u-1"}[change.instance]

@follower.update(on=changed("n", app="cart", key=key, trigger_id="follow", start="beginning"))
def see(state, props):
    return {"seen": props["version"]}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with a component, in the current folder."""
    name = f"shop_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def watching(module: str, tmp_path: Path) -> Iterator[str]:
    """The name of a module, in the current folder, whose component watches another app."""
    name = f"{module}_watching"
    (tmp_path / f"{name}.py").write_text(WATCHING)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `processors ...` on the folder, in this process."""
    monkeypatch.setenv("EVENTSTORE_URL", str(folder))
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(processors, arguments)


def answers(result: Result) -> list[Any]:
    """The lines of a JSON answer."""
    assert result.exit_code in (0, 1), result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def request(folder: Path, *propses: Mapping[str, object], instance: str = "u-1") -> None:
    with EventStore(folder) as store:
        for props in propses:
            store.app("cart").request(instance, "add/keep", props)


# --- run ------------------------------------------------------------------------------------------


def test_once_runs_what_is_pending_and_ends_well(run: Run, folder: Path, module: str) -> None:
    request(folder, {"by": 1}, {"by": 2})

    result = run("run", f"{module}:cart", "--once")

    assert result.exit_code == 0, result.output
    assert "applied=2" in result.stderr
    with EventStore(folder) as store:
        assert store.app("cart").get("u-1") == {"n": 3}


def test_once_exits_with_1_when_an_update_failed(run: Run, folder: Path, module: str) -> None:
    request(folder, {"by": 1, "bad": True}, {"by": 2})

    result = run("run", f"{module}:cart", "--once", "--log-format", "json")

    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    (failed,) = [line for line in lines if line["event"] == "failed"]
    assert (failed["instance"], failed["message"]) == ("u-1", "cannot keep 1")
    assert lines[-1]["applied"] == 1


def test_once_ends_where_nobody_has_appended_yet(run: Run, module: str) -> None:
    ended = run("run", f"{module}:cart", "--once", "--log-format", "json")

    assert ended.exit_code == 0
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    (nothing,) = [line for line in lines if line["event"] == "nothing to run"]
    assert (nothing["app"], nothing["why"]) == ("cart", "nobody has appended to it yet")


def test_an_app_that_a_trigger_watches_and_nobody_has_appended_to_is_named(
    run: Run, folder: Path, watching: str
) -> None:
    arguments = ("run", f"{watching}:follower", "--once", "--log-format", "json")

    before = run(*arguments)
    with EventStore(folder) as store:
        store.app("cart").append("u-1", {"n": 1}).result()
    after = run(*arguments)

    lines = [json.loads(line) for line in before.stderr.splitlines()]
    missing = [line for line in lines if line["event"] == "nothing to run"]
    assert [line.get("watched") for line in missing] == [None, "cart"]
    assert "nothing to run" not in after.stderr
    assert after.exit_code == 0
    with EventStore(folder) as store:
        assert store.app("follower").get("u-1") == {"seen": 1}


def test_what_a_trigger_could_not_deliver_is_counted_by_status(
    run: Run, folder: Path, watching: str
) -> None:
    component = load_component(f"{watching}:follower")
    with EventStore(folder) as store, running(store, component) as publisher:
        store.app("cart").append("nobody", {"n": 1}).result()

        assert eventually(lambda: 1 in [one.undelivered for one in publisher.tick().relays])
        (status,) = answers(run("status", "follower"))
        table = run("status", "follower", "--table").stdout

    (trigger,) = [one for one in status["owners"][0]["relays"] if one["trigger_id"]]
    assert (trigger["trigger_id"], trigger["undelivered"]) == ("follow", 1)
    (row,) = [line for line in table.splitlines() if "follow " in line and "cart" in line]
    assert row.split()[-1] == "1"


def test_a_health_port_that_is_taken_is_named(run: Run, module: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        refused = run("run", f"{module}:cart", "--once", "--health-port", str(port))

    assert refused.exit_code == 1
    assert f"the health port 127.0.0.1:{port} cannot be had: Address already" in refused.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{module}", "write module:component; its components: {module}:cart, {module}:empty"),
        ("{module}:crat", "has no 'crat'; perhaps {module}:cart is meant"),
        ("{module}:number", "this is of type int, not a Component"),
        ("{module}:empty", "has no updates, so there is nothing to run"),
        ("{module}.py:cart", "is a file's name; write the module's: {module}:cart"),
        ("./{module}:cart", "is a file's name; write the module's: {module}:cart"),
        ("./{module}.py:cart", "is a file's name; write the module's: {module}:cart"),
        (".{module}:cart", "is a file's name; write the module's: {module}:cart"),
        ("shop/{module}.py:cart", "is a file's name; write the module's: shop.{module}:cart"),
        ("/shop/{module}:cart", "write the module's: {module}:cart, in the folder /shop"),
        ("./{module}", "write the module's: {module}:component"),
        ("{module}x:cart", "Looked for in the current folder ("),
        ("{module}x:cart", "Perhaps {module} is meant"),
        (":cart", "write module:component"),
    ],
)
def test_a_component_that_is_not_there_is_wrong_usage_that_teaches(
    run: Run, folder: Path, module: str, name: str, words: str
) -> None:
    result = run("run", name.format(module=module), "--once")

    assert result.exit_code == 2
    assert words.format(module=module) in result.stderr
    assert not folder.exists()


def test_a_module_that_raises_shows_where_and_nothing_of_ours(
    run: Run, module: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text("def f():\n    raise RuntimeError('no key')\n\nf()\n")

    result = run("run", f"{module}:cart", "--once")

    assert result.exit_code == 1
    assert "RuntimeError: no key" in result.stderr
    assert f'{module}.py", line 4' in result.stderr
    assert "loading.py" not in result.stderr
    assert "importlib" not in result.stderr


def test_a_module_that_imports_what_is_not_installed_is_told_from_one_that_is_not_there(
    run: Run, module: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text("import nowhere_to_be_found\n")

    result = run("run", f"{module}:cart", "--once")

    assert "it imports 'nowhere_to_be_found', which is not installed" in result.stderr


def test_two_components_of_one_name_are_refused(run: Run, module: str, tmp_path: Path) -> None:
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write('\nother = Component("cart")\n@other.update("x")\ndef f(state, props): ...\n')

    result = run("run", f"{module}:cart", f"{module}:other", "--once")

    assert result.exit_code == 2
    assert "there is a component called cart before it" in result.stderr


def test_once_and_reload_contradict_one_another(run: Run, module: str) -> None:
    assert run("run", f"{module}:cart", "--once", "--reload").exit_code == 2


def test_the_help_loads_neither_the_store_nor_rich() -> None:
    code = (
        "import sys; from processors.cli import processors\n"
        "try: processors(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'rich', 'orjson', 'pydantic', 'eventstore.store', 'processors.runner'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert said.stdout.splitlines()[-1] == "[]"


# --- failures -------------------------------------------------------------------------------------


def test_a_failure_is_listed_with_traceback_and_props(run: Run, folder: Path, module: str) -> None:
    request(folder, {"by": 1, "bad": True})
    run("run", f"{module}:cart", "--once")

    (failure,) = answers(run("failures"))

    assert (failure["app"], failure["instance"], failure["request"]) == ("cart", "u-1", 0)
    assert (failure["update"], failure["reason"], failure["attempts"]) == ("add/keep", "raised", 1)
    assert failure["props"] == {"by": 1, "bad": True}
    assert "raise ValueError(f\"cannot keep {props['by']}\")" in failure["traceback"]
    assert "ValueError: cannot keep 1" in run("failures", "--table").stdout
    shown = run("failures", "--table", "--traceback").stdout
    assert "Traceback" in shown
    assert 'props {"by":1,"bad":true}' in shown


def test_a_retry_requests_the_same_again_and_the_failure_is_open_no_more(
    run: Run, folder: Path, module: str, tmp_path: Path
) -> None:
    with EventStore(folder) as store:
        store.app("cart").request(
            "u-1", "add/keep", {"by": 5, "bad": True}, discard=Discard.seconds(60)
        )
    run("run", f"{module}:cart", "--once")

    (retried,) = answers(run("failures", "retry", "cart", "u-1", "0"))

    assert (retried["failed"], retried["update"]) == (0, "add/keep")
    assert answers(run("failures")) == []
    assert [one["open"] for one in answers(run("failures", "--all"))] == [False]
    assert " closed " in run("failures", "--all", "--table").stdout
    with EventStore(folder) as store:
        again = Processing(store.app("cart")).entry("u-1", retried["request"])
    assert again is not None
    assert json.loads(again.event.body) == {"by": 5, "bad": True}
    assert again.event.request is not None
    assert again.event.request.retry_of == 0
    assert again.event.request.discard_after == 60_000


def test_a_failure_is_retried_once_however_often_it_is_asked_for(
    folder: Path, run: Run, module: str
) -> None:
    request(folder, {"by": 1, "bad": True})
    run("run", f"{module}:cart", "--once")
    with EventStore(folder) as store:
        processing = Processing(store.app("cart"))
        (failure,) = list(open_failures(processing))

        first, second = retry_failure(processing, failure), retry_failure(processing, failure)

        assert first.sequence == second.sequence
        assert [row.request.sequence for row in processing.pending()] == [first.sequence]
    assert run("failures", "retry", "cart", "u-1", "0").exit_code == 3


def test_a_discarded_failure_is_a_note_and_can_be_retried_no_more(
    folder: Path, run: Run, module: str
) -> None:
    request(folder, {"by": 1, "bad": True}, {"by": 2, "bad": True})
    run("run", f"{module}:cart", "--once")

    run("failures", "discard", "cart", "u-1", "0")

    assert [one["request"] for one in answers(run("failures"))] == [1]
    with EventStore(folder) as store:
        app = store.app("cart")
        (note,) = [one for one in app.history("u-1") if one.event.name == "failure/discarded"]
        assert json.loads(note.event.body) == {"cause": 0}
        failure = next(app.failures("u-1"))
        with pytest.raises(LookupError, match="was discarded"):
            retry_failure(Processing(app), failure)
        assert discard_failure(Processing(app), failure).sequence == note.sequence


def test_a_program_decides_on_failures_and_on_what_waits_by_the_app(
    folder: Path, run: Run, module: str
) -> None:
    request(folder, {"by": 1, "bad": True}, {"by": 2, "bad": True})
    run("run", f"{module}:cart", "--once")

    with EventStore(folder) as store:
        app = store.app("cart")
        first, second = open_failures(app)
        again = retry_failure(app, first)
        discard_failure(app, second)
        left = list(open_failures(app, "u-1"))
        closed = discard_request(app, "u-1", again.sequence)

        assert left == []
        assert json.loads(closed.event.body)["reason"] == "operator"
        assert list(app.pending()) == []


def test_a_failure_can_be_retried_after_its_log_was_repaired(
    folder: Path, run: Run, module: str
) -> None:
    request(folder, {"by": 1, "bad": True}, {"by": 2, "bad": True})
    run("run", f"{module}:cart", "--once")
    with EventStore(folder) as store:
        store.app("cart").repair(accept_loss=True)

    assert run("failures", "retry", "cart", "u-1", "0").exit_code == 0
    assert run("failures", "discard", "cart", "u-1", "1").exit_code == 0

    assert answers(run("failures")) == []
    assert [one["update"] for one in answers(run("pending"))] == ["add/keep"]


def test_all_failures_of_an_app_or_of_an_update_are_retried_together(
    folder: Path, run: Run, module: str
) -> None:
    for instance in ("u-1", "u-2"):
        request(folder, {"by": 1, "bad": True}, instance=instance)
    run("run", f"{module}:cart", "--once")

    assert run("failures", "retry", "cart").exit_code == 2
    assert run("failures", "retry", "cart", "--update", "other").exit_code == 3
    retried = answers(run("failures", "retry", "cart", "--all"))

    assert {one["instance"] for one in retried} == {"u-1", "u-2"}
    assert len(answers(run("pending", "cart"))) == 2


@pytest.mark.parametrize("before", [(), ("--json",), ("--limit", "3"), ("--namespace", "foldlog")])
def test_options_may_stand_before_a_verb(
    folder: Path, run: Run, module: str, before: tuple[str, ...]
) -> None:
    request(folder, {"by": 1})
    if "--limit" in before:
        assert answers(run("pending", *before, "cart"))[0]["request"] == 0
        return

    assert run("pending", *before, "discard", "cart", "u-1", "0").exit_code == 0


def test_the_help_of_a_list_has_its_options_and_its_verbs(run: Run) -> None:
    shown = run("failures", "--help").stdout

    for word in ("--traceback", "--update", "--limit", "retry", "discard"):
        assert word in shown
    assert "--all" in run("failures", "retry", "--help").stdout


# --- pending and discards -------------------------------------------------------------------------


def test_what_waits_is_listed_for_all_apps_for_one_and_for_an_instance(
    run: Run, folder: Path
) -> None:
    request(folder, {"by": 1}, {"by": 2})
    request(folder, {"by": 1}, instance="u-2")

    rows = answers(run("pending"))

    assert [(one["instance"], one["request"]) for one in rows] == [
        ("u-1", 0), ("u-1", 1), ("u-2", 0),
    ]  # fmt: skip
    assert {one["state"] for one in rows} == {"pending"}
    assert len(answers(run("pending", "cart", "u-1"))) == 2
    assert len(answers(run("pending", "--limit", "1"))) == 1


def test_a_request_that_waits_is_discarded_by_an_operator(run: Run, folder: Path) -> None:
    request(folder, {"by": 1}, {"by": 2})

    (told,) = answers(run("pending", "discard", "cart", "u-1", "0"))

    assert told["discarded"] is True
    assert [one["request"] for one in answers(run("pending"))] == [1]
    (discard,) = answers(run("discards", "cart"))
    assert (discard["request"], discard["reason"]) == (0, "operator")
    assert run("pending", "discard", "cart", "u-1", "0").exit_code == 3


def test_requests_of_an_update_that_is_gone_are_discarded_together(run: Run, folder: Path) -> None:
    with EventStore(folder) as store:
        for instance in ("u-1", "u-2"):
            store.app("cart").request(instance, "gone/away")
            store.app("cart").request(instance, "add/keep", {"by": 1})

    assert run("pending", "discard", "cart").exit_code == 2
    told = answers(run("pending", "discard", "cart", "--update", "gone/away"))

    assert [one["instance"] for one in told] == ["u-1", "u-2"]
    assert {one["update"] for one in answers(run("pending"))} == {"add/keep"}


@pytest.mark.parametrize("command", ["pending", "failures", "discards", "status"])
def test_reading_creates_nothing_and_an_app_that_is_not_there_exits_with_3(
    run: Run, folder: Path, command: str
) -> None:
    assert run(command).exit_code == 0
    assert run(command, "nothing").exit_code == 3
    assert not folder.exists()


# --- status ---------------------------------------------------------------------------------------


@contextmanager
def running(store: EventStore, component: Component) -> Iterator[Publisher]:
    """A runner of this process, with its notice up."""
    runner = Runner(store, component).start()
    publisher = Publisher(NoticeBoard.of(store, component.name), component, runner)
    try:
        assert runner.drain(30)
        publisher.tick()
        yield publisher
    finally:
        publisher.close()
        runner.stop()


def test_requests_that_nobody_runs_are_a_fault(run: Run, folder: Path) -> None:
    request(folder, {"by": 1}, {"by": 2})

    result = run("status")

    assert result.exit_code == 1
    (status,) = answers(result)
    assert (status["pending"], status["unowned"], status["running"]) == (2, 2, 0)
    assert len(status["shards_free"]) == status["shards"] == 16
    assert status["oldest_age_ms"] >= 0
    assert "2 request(s) wait, and nobody here runs them" in run("status", "--table").stdout


def test_an_owner_is_shown_with_what_it_holds_and_did(run: Run, folder: Path, module: str) -> None:
    request(folder, {"by": 1}, {"by": 2})
    with EventStore(folder) as store, running(store, load_component(f"{module}:cart")):
        (status,) = answers(run("status", "cart"))

    (owner,) = status["owners"]
    assert status["faults"] == []
    assert (status["pending"], status["shards_free"], status["lag_events"]) == (0, [], 0)
    assert owner["shards"] == list(range(16))
    assert owner["counts"] == {"applied": 2, "discarded": 0, "failed": 0, "conflicts": 0}
    assert NoticeBoard(folder / "views" / "runners" / "foldlog.cart").read() == []


def test_what_runs_is_named_and_an_age_above_the_bound_is_a_fault(run: Run, folder: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    component = Component("cart")

    @component.update("slow")
    def wait(state: Any, props: Any) -> None:
        begun.set()
        go.wait(30)

    with EventStore(folder) as store, running(store, component) as publisher:
        store.app("cart").request("u-1", "slow/wait")
        assert begun.wait(30)
        publisher.tick()
        (status,) = answers(run("status", "--age-max", "0"))
        (row,) = answers(run("pending"))
        codes = run("status").exit_code, run("status", "--age-max", "0").exit_code
        go.set()

    assert (status["pending"], status["running"]) == (1, 1)
    assert status["owners"][0]["running"][0]["name"] == "slow/wait"
    assert row["state"] == "running"
    assert codes == (0, 1)


def test_two_codes_of_one_update_are_a_fault(folder: Path, run: Run, module: str) -> None:
    request(folder, {"by": 1})
    other = Component("cart")

    @other.update("add")
    def keep(state: Any, props: Any) -> None: ...

    with (
        EventStore(folder) as store,
        running(store, load_component(f"{module}:cart")) as first,
        running(store, other) as second,
    ):
        first.tick()
        second.tick()
        status = status_of(store, "cart")

    assert [name for name, _, _ in status.different_code] == ["add/keep"]
    assert "run 'add/keep' with different code" in status.faults[-1]


def test_a_program_that_is_no_daemon_can_be_seen_too(folder: Path, module: str) -> None:
    component = load_component(f"{module}:cart")
    with EventStore(folder) as store:
        runner = Runner(store, component).start()
        board = NoticeBoard.of(store, "cart")

        end = publish(runner)

        assert eventually(lambda: [len(one.shards) for one in board.read()] == [16])
        end()
        assert board.read() == []
        runner.stop()


def test_a_daemon_can_be_stopped_while_its_views_are_folded(folder: Path, module: str) -> None:
    folds, folded = threading.Event(), threading.Event()

    class Folding(Runner):
        def start(self) -> Self:
            folds.set()
            folded.wait(30)
            return self

    with EventStore(folder) as store:
        daemon = Daemon(store, [load_component(f"{module}:cart")], runner_of=Folding)
        codes: list[int] = []
        life = threading.Thread(target=lambda: codes.append(daemon.run()))
        life.start()
        assert folds.wait(30)
        faults = daemon.faults()

        daemon.stop()
        life.join(30)
        folded.set()

    assert faults == []
    assert (codes, daemon.is_cut_off) == ([0], True)


def test_a_daemon_that_cannot_start_raises_why(folder: Path, module: str) -> None:
    class Broken(Runner):
        def start(self) -> Self:
            raise LogUnavailable("the disk is on fire")

    with EventStore(folder) as store:
        daemon = Daemon(store, [load_component(f"{module}:cart")], runner_of=Broken)

        with pytest.raises(LogUnavailable, match="on fire"):
            daemon.run()


def test_a_log_that_cannot_be_reached_is_a_fault_and_a_view_that_folds_is_none(
    folder: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventStore(folder) as store:
        daemon = Daemon(store, [load_component(f"{module}:cart")])
        life = threading.Thread(target=daemon.run)
        life.start()
        assert eventually(lambda: bool(daemon.notices()))
        assert daemon.runners[0].drain(30)

        def raising(error: Exception) -> Callable[[float], None]:
            def catch_up(timeout_s: float) -> None:
                raise error

            return catch_up

        processing = daemon.runners[0].processing
        with monkeypatch.context() as patch:
            patch.setattr(processing, "catch_up", raising(LogUnavailable("no broker")))
            # It asks the log from the moment on in which all its runners have started.
            is_fault = eventually(lambda: daemon.faults() == ["cart: no broker"])
            patch.setattr(processing, "catch_up", raising(ReadTimeout("folds")))
            folding = daemon.faults()
        daemon.stop()
        life.join(30)

    assert is_fault
    assert folding == []
    assert daemon.faults()[0] == "it is stopping"


def test_without_prometheus_client_the_page_says_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with HealthPort("127.0.0.1", 0, lambda: [], lambda: []) as port:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{port.address}/metrics", timeout=30)
        with raised.value as answer:
            text = answer.read().decode()

    assert raised.value.code == 501
    assert 'pip install "foldlog[metrics]"' in text


def test_status_is_watched_until_ctrl_c(folder: Path) -> None:
    request(folder, {"by": 1})
    watching = subprocess.Popen(
        [sys.executable, "-m", "processors", "status", "--watch", "--url", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    with watching.stdout:
        first = json.loads(watching.stdout.readline())
        request(folder, {"by": 2})
        while (later := json.loads(watching.stdout.readline()))["pending"] == 1:
            pass
        watching.send_signal(signal.SIGINT)

        assert (first["pending"], later["pending"]) == (1, 2)
        assert watching.wait(30) == 130


def test_the_notice_of_a_process_that_died_is_taken_away(tmp_path: Path) -> None:
    board = NoticeBoard(tmp_path)
    left = Notice("1-dead", "cart", 1, "here", 0)
    (tmp_path / "1-dead.json").write_text(json.dumps(left.as_json()))
    (tmp_path / "1-dead.lock").touch()

    assert board.read() == []
    assert list(tmp_path.iterdir()) == []


def test_a_digest_follows_the_code_and_the_policy_and_not_the_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def digest(source: str) -> str:
        name = f"code_{uuid.uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(source)
        return code_digest(load_component(f"{name}:cart").updates["add/keep"])

    same = digest(SOURCE.replace("    if props", "    # why\n    if   props"))

    assert same == digest(SOURCE)
    assert digest(SOURCE.replace("+ props", "- props")) != same
    assert digest(SOURCE.replace('update("add")', 'update("add", timeout_s=1)')) != same


def test_a_daemon_that_has_nothing_to_do_says_nothing(
    folder: Path,
    module: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("processors.daemon._TICK_S", 0.01)
    looks = threading.Semaphore(0)

    class Looking(Daemon):
        def _tick(self) -> None:
            super()._tick()
            looks.release()

    with EventStore(folder) as store, written_logs("text"):
        daemon = Looking(store, [load_component(f"{module}:cart")])
        ended = threading.Thread(target=daemon.run)
        ended.start()
        assert eventually(lambda: bool(daemon.notices()))
        assert daemon.runners[0].drain(30)
        capsys.readouterr()
        while looks.acquire(blocking=False):
            pass

        for _ in range(5):
            assert looks.acquire(timeout=30)

        said = capsys.readouterr().err
        daemon.stop()
        ended.join(30)

    assert said == ""


def test_of_a_burst_of_failures_the_first_are_told_and_the_rest_counted(
    run: Run, folder: Path, module: str
) -> None:
    request(folder, *({"by": n, "bad": True} for n in range(30)))

    result = run("run", f"{module}:cart", "--once", "--log-format", "json")

    lines = [json.loads(line) for line in result.stderr.splitlines()]
    failed = [line for line in lines if line["event"] == "failed"]
    told, counted = [f for f in failed if "message" in f], [f for f in failed if "more" in f]
    assert len(told) >= 20
    assert len(told) + sum(line["more"] for line in counted) == 30


def test_a_log_that_cannot_be_reached_ends_the_daemon_with_one_line(
    run: Run, folder: Path, module: str
) -> None:
    folder.mkdir()
    (folder / "log.sqlite").write_bytes(b"this is no database" * 100)

    result = run("run", f"{module}:cart", "--log-format", "json")

    assert result.exit_code == 1
    assert "log.sqlite" in result.stderr
    assert result.stderr.count("\n") == 1


def test_on_kafka_too_requests_that_nobody_runs_are_a_fault(
    kafka_url: str, namespace: str, module: str
) -> None:
    with EventStore(kafka_url, namespace=namespace) as store:
        store.app("cart").request("u-1", "add/keep", {"by": 1}).result(30)

    def run(*arguments: str) -> Result:
        places = ("--url", kafka_url, "--namespace", namespace)
        return CliRunner().invoke(processors, (*arguments, *places))

    (before,) = answers(run("status"))
    ran = run("run", f"{module}:cart", "--once")
    (after,) = answers(run("status"))

    assert (before["pending"], before["unowned"], before["running"]) == (1, 1, 0)
    assert before["faults"] == ["1 request(s) wait, and nobody here runs them"]
    assert ran.exit_code == 0, ran.output
    assert (after["pending"], after["faults"]) == (0, [])


def test_a_graph_is_written_in_each_form(run: Run, module: str) -> None:
    mermaid = run("graph", f"{module}:cart").stdout
    graphviz = run("graph", f"{module}:cart", "--format", "graphviz").stdout
    (data,) = answers(run("graph", f"{module}:cart", "--format", "json"))

    assert mermaid.startswith("flowchart")
    assert graphviz.startswith("digraph")
    assert data["name"] == "cart"
