"""The daemon as a supervisor sees it: signals, deadlines, deaths, new code, and its health port.

Goal: whatever ends a daemon, what it had not finished is pending, and the next one runs it. Method:
real processes on one embedded log; a slow update says that it has begun, and ends when told.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.app import App
from processors.notices import NoticeBoard
from tests.fault.daemon_processes import COMPONENT, DaemonProcess, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")

Start = Callable[..., DaemonProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(COMPONENT)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts `processors run shop:cart ...` in the folder; all are ended with the test."""
    started: list[DaemonProcess] = []

    def start(*arguments: str) -> DaemonProcess:
        started.append(DaemonProcess(folder, "shop:cart", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def store(folder: Path) -> Iterator[EventStore]:
    with EventStore(folder / "store") as opened:
        yield opened


@pytest.fixture
def app(store: EventStore) -> App:
    return store.app("cart")


def names_pending(app: App) -> list[str]:
    app.get("u-1", fresh=True, default=None)
    return [row.request.name for row in app.pending()]


def until_state(app: App, instance: str, **fields: object) -> None:
    def is_there() -> bool:
        state = app.get(instance, fresh=True, default={})
        return fields.items() <= dict(state).items()

    wait_for(is_there, f"{instance} has {fields}")


def begin_slow(app: App, folder: Path, name: str = "slow/wait") -> None:
    app.request("u-1", name).result(30)
    wait_for((folder / "begun").exists, "the update has begun")


def test_sigterm_lets_what_runs_end_and_leaves_the_rest_pending(
    start: Start, store: EventStore, app: App, folder: Path
) -> None:
    daemon = start()
    board = NoticeBoard.of(store, "cart")
    begin_slow(app, folder)
    app.request("u-1", "add/keep", {"n": 1}).result(30)

    daemon.signal(signal.SIGTERM)
    wait_for(lambda: any(one.is_stopping for one in board.read()), "it begins nothing new")
    (folder / "go").touch()

    assert daemon.end() == 0
    assert app.get("u-1", fresh=True) == {"waited": True}
    assert names_pending(app) == ["add/keep"]
    assert daemon.said("stopped")


#: Beside the cart a component that is never through with its start, as with a long fold.
LATE = f"""{COMPONENT}
import threading
from processors.runner import Runner

late = Component("late")
late.update("add")(keep)
start = Runner.start

def start_unless_late(runner):
    if runner.component is late:
        threading.Event().wait()
    return start(runner)

Runner.start = start_unless_late
"""


def test_sigterm_lets_what_runs_end_while_another_component_is_still_being_started(
    start: Start, app: App, folder: Path
) -> None:
    (folder / "shop.py").write_text(LATE)
    daemon = start("shop:late")
    begin_slow(app, folder)

    daemon.signal(signal.SIGTERM)
    daemon.until_said("stopping")
    (folder / "go").touch()

    assert daemon.end() == 0
    assert app.get("u-1", fresh=True) == {"waited": True}


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_what_runs_too_long_after_sigterm_is_cut_off_and_stays_pending(
    start: Start, app: App, folder: Path, worker: str
) -> None:
    daemon = start("--stop-timeout", "0.1", "--worker", worker)
    begin_slow(app, folder, "stuck/block")

    daemon.signal(signal.SIGTERM)

    assert daemon.end() == 5
    assert names_pending(app) == ["stuck/block"]
    (line,) = daemon.said("stopped")
    assert line["running"] == ["cart/u-1 stuck/block"]


def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    start: Start, store: EventStore, app: App, folder: Path
) -> None:
    daemon = start()
    begin_slow(app, folder, "stuck/block")

    daemon.signal(signal.SIGINT)
    daemon.until_said("stopping")
    daemon.signal(signal.SIGINT)

    assert daemon.end() == 130
    assert names_pending(app) == ["stuck/block"]
    assert NoticeBoard.of(store, "cart").read() == []


def test_a_killed_daemon_is_followed_by_one_that_waits_for_it(
    start: Start, store: EventStore, app: App, folder: Path
) -> None:
    daemons = {daemon.process.pid: daemon for daemon in (start(), start())}
    board = NoticeBoard.of(store, "cart")
    # The second one's coming moves shards, and an update that runs would run in both.
    wait_for(lambda: [len(one.shards) for one in board.read()] == [8, 8], "they share the shards")
    begin_slow(app, folder)
    wait_for(lambda: any(one.running for one in board.read()), "one says that it runs the update")
    # Both run it where the machine has stood still for so long that its shard was passed on.
    killed, *_ = [one.process for one in board.read() if one.running]

    daemons.pop(killed).process.kill()

    (survivor,) = daemons
    wait_for(
        lambda: [one.process for one in board.read() if len(one.shards) == 16] == [survivor],
        "the other one has all shards",
    )
    (folder / "go").touch()
    until_state(app, "u-1", waited=True)


def test_a_daemon_waits_for_an_app_that_nobody_has_appended_to_and_says_so_once(
    start: Start, app: App
) -> None:
    daemon = start()
    daemon.until_said("shards")

    app.request("u-1", "add/keep", {"n": 1})

    until_state(app, "u-1", count=1)
    assert len(daemon.said("waiting", app="cart")) == 1


def test_two_daemons_with_different_code_for_one_update_are_told(
    start: Start, store: EventStore, folder: Path
) -> None:
    first = start()
    wait_for(NoticeBoard.of(store, "cart").read, "its notice is up, which tells its code")
    (folder / "shop.py").write_text(COMPONENT.replace('"by": CODE', '"by": "other"'))

    second = start()

    line = second.until_said("different code", update="add/keep")
    assert line["owner"].startswith(f"{second.process.pid}@")
    assert line["other"].startswith(f"{first.process.pid}@")
    assert not second.said("different code", update="slow/wait")
    assert first.until_said("different code", update="add/keep")


def test_what_failed_is_one_line_with_its_instance(start: Start, app: App) -> None:
    daemon = start()

    app.request("u-1", "add/keep", {"bad": True, "n": 7})

    line = daemon.until_said("failed")
    assert (line["app"], line["instance"], line["update"]) == ("cart", "u-1", "add/keep")
    assert line["type"] == "ValueError"
    assert "cannot keep 7" in line["message"]


# --- the health port ------------------------------------------------------------------------------


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health(address: str) -> tuple[int, list[str]]:
    """Return the status of a probe, and the reasons that it is given."""
    status, body = get(f"{address}/healthz")
    facts = json.loads(body)
    assert facts["healthy"] == (status == 200)
    return status, facts["reasons"]


def test_the_health_port_tells_probes_and_prometheus(start: Start, app: App, folder: Path) -> None:
    daemon = start("--health-port", "0")
    address = str(daemon.until_said("health")["address"])
    daemon.until_said("shards")
    app.request("u-1", "add/keep", {"n": 1})
    until_state(app, "u-1", count=1)

    wait_for(
        lambda: (
            'foldlog_updates_total{app="cart",outcome="applied"} 1.0'
            in get(f"{address}/metrics")[1]
        ),
        "the metrics count the update",
    )
    # Not at once where the log is looked at while the machine stands still.
    wait_for(lambda: health(address) == (200, []), "it is in good health")

    assert 'foldlog_shards_owned{app="cart"} 16.0' in get(f"{address}/metrics")[1]
    assert get(f"{address}/elsewhere")[0] == 404

    begin_slow(app, folder)
    daemon.signal(signal.SIGTERM)
    daemon.until_said("stopping")

    wait_for(lambda: health(address) == (503, ["it is stopping"]), "it says that it is stopping")


# --- reload ---------------------------------------------------------------------------------------


def change(folder: Path, code: str, number: int) -> None:
    """Write the source with a time of its own: two edits may come within the clock's grain.

    In one step: of two, each would be a change, and the second might come when all is done.
    """
    file = folder / "shop.py"
    new = folder / "shop.new"
    new.write_text(code)
    time_ns = new.stat().st_mtime_ns + number * 1_000_000_000
    os.utime(new, ns=(time_ns, time_ns))
    new.replace(file)


def test_reload_runs_new_code_and_survives_code_that_cannot_be_imported(
    start: Start, app: App, folder: Path
) -> None:
    daemon = start("--reload")
    daemon.until_said("shards")

    change(folder, "syntax error here", 1)
    daemon.until_said("ended")
    change(folder, COMPONENT.replace("first", "second"), 2)
    daemon.until_said("reload", changed=["shop.py"])
    app.request("u-1", "add/keep", {"n": 1})

    until_state(app, "u-1", by="second")
    daemon.signal(signal.SIGTERM)
    assert daemon.end() == 0


def test_the_child_of_reload_stops_when_its_parent_was_killed(
    start: Start, store: EventStore
) -> None:
    daemon = start("--reload")
    daemon.until_said("shards")
    board = NoticeBoard.of(store, "cart")
    wait_for(board.read, "the child has its notice up")
    (child,) = [one.process for one in board.read()]

    daemon.process.kill()

    try:
        wait_for(lambda: not board.read(), "the child has ended")
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    daemon.until_said("stopped")


def test_a_request_that_no_code_knows_is_named_and_blocks_nothing(start: Start, app: App) -> None:
    daemon = start()

    app.request("u-1", "gone/away")
    app.request("u-2", "add/keep", {"n": 1})

    until_state(app, "u-2", count=1)
    daemon.until_said("unknown update", update="gone/away")
