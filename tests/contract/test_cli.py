"""The command line as a shell sees it: answers, exit codes, and errors without a traceback.

Most tests run the command in this process (click's CliRunner); those about pipes and signals start
a real one. Each uses a folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eventstore import Diff, EventStore, Position
from eventstore.cli import eventstore
from eventstore.log.base import Append

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `eventstore ...` on the folder, in this process."""
    monkeypatch.setenv("EVENTSTORE_URL", str(folder))

    def run(*arguments: str, input: str | bytes | None = None) -> Result:
        return CliRunner().invoke(eventstore, arguments, input=input)

    return run


def answers(result: Result) -> list[Any]:
    """The lines of a JSON answer."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def answer(result: Result) -> Any:
    (line,) = answers(result)
    return line


def test_what_was_appended_can_be_read(run: Run) -> None:
    run("append", "orders", "o-1", 'status="new"', "items=[]")
    written = answer(
        run("append", "orders", "o-1", "--append", 'items="book"', "--increment", "total=12")
    )

    read = answer(run("get", "orders", "o-1"))

    assert written["verdict"] == "accepted"
    assert read["state"] == {"status": "new", "items": ["book"], "total": 12}
    assert (read["version"], read["position"]) == (2, written["position"])


def test_operations_apply_in_the_order_in_which_they_are_written(run: Run) -> None:
    run(
        "append", "a", "i", "--append", "n=1", "--delete", "n", "--append", "n=2",
        "--append", "n=3", "--remove", "n=0", "--insert", "n=0,9",
    )  # fmt: skip

    assert answer(run("get", "a", "i", "n")) == [9, 3]


def test_a_position_can_be_waited_for(run: Run) -> None:
    token = answer(run("append", "a", "i", "x=1", "--no-verdict"))["position"]

    assert answer(run("get", "a", "i", "x", "--after", token)) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("f", {"key": [{"x": 1}, 2]}),
        ("f.key.0.x", 1),
        ('["f","key",1]', 2),
        ("t.1", "b"),
        ("src/main.py", "dotted"),
        ("d.7", "seven"),
    ],
)
def test_a_path_leads_into_a_value(run: Run, folder: Path, path: str, value: object) -> None:
    with EventStore(folder) as store:
        fields = {
            "f": {"key": [{"x": 1}, 2]}, "t": ("a", "b"), "src/main.py": "dotted",
            "d": {7: "seven"},
        }  # fmt: skip
        store.app("a").append("i", fields)

    assert answer(run("get", "a", "i", path)) == value


@pytest.mark.parametrize(
    ("at", "value"), [("0", None), ("1", 1), ("HEAD", 3), ("HEAD~1", 2), ("2100-01-01T00:00Z", 3)]
)
def test_a_moment_is_a_version_or_a_place_before_the_newest_or_a_time(
    run: Run, at: str, value: int | None
) -> None:
    for number in (1, 2, 3):
        run("append", "a", "i", f"x={number}")

    assert answer(run("get", "a", "i", "--at", at))["state"].get("x") == value


def test_a_moment_is_a_position_or_when_something_occurred(run: Run) -> None:
    first = answer(run("append", "a", "i", "x=1", "--occurred-at", "2020-01-01T00:00:00Z"))
    run("append", "a", "i", "x=2", "--occurred-at", "2021-01-01T00:00:00Z")

    assert answer(run("get", "a", "i", "x", "--at", first["position"])) == 1
    assert answer(run("get", "a", "i", "x", "--at", "occurred:2020-06-01T00:00:00+02:00")) == 1


def test_what_is_not_there_exits_with_3(run: Run) -> None:
    run("append", "orders", "o-1", "x=1")

    for arguments in (
        ("get", "orders", "nobody"),
        ("get", "orders", "o-1", "no.such.path"),
        ("get", "orders", "o-1", "--at", "7"),
        ("get", "nothing", "o-1"),
        ("history", "orders", "nobody"),
        ("instances", "nothing"),
        ("pending", "nothing"),
        ("tail", "nothing"),
        ("reset", "orders", "nobody", "--yes"),
        ("fork", "orders", "nobody", "o-2"),
    ):
        result = run(*arguments)

        assert result.exit_code == 3, (arguments, result.output)
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["get", "history"])
def test_a_misspelt_app_is_told_from_an_instance_that_is_not_there(run: Run, command: str) -> None:
    run("append", "orders", "o-1", "x=1")

    misspelt = run(command, "order", "o-1")
    absent = run(command, "orders", "o-2")

    assert "has no app 'order'; it has: orders" in misspelt.stderr
    assert "app 'orders' has no instance 'o-2'" in absent.stderr


def test_a_conflict_exits_with_4_and_says_who_came_first(run: Run) -> None:
    run("append", "a", "i", "x=1")

    result = run("append", "a", "i", "x=2", "--expected-version", "0")

    assert result.exit_code == 4
    assert json.loads(result.stdout)["winner"] == 0
    assert "had no effect" in result.stderr


def test_operations_that_do_not_fit_exit_with_1_and_change_nothing(run: Run) -> None:
    run("append", "a", "i", 'x="text"')

    result = run("append", "a", "i", "y=1", "--increment", "x")

    assert result.exit_code == 1
    assert "it is text, not a number" in result.stderr
    assert answer(run("get", "a", "i"))["state"] == {"x": "text"}


def test_the_same_key_takes_effect_once(run: Run) -> None:
    for _ in range(2):
        result = run("append", "a", "i", "--increment", "x", "--key", "k")

        assert result.exit_code == 0

    assert answer(result)["verdict"] == "duplicate"
    assert answer(run("get", "a", "i", "x")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("status=paid",),
        ("x",),
        ("x=",),
        ("x=1", "--delete", "y=1"),
        ("--insert", "x=1"),
        (".a=1",),
        ("--ops", "{"),
        ("--ops", "7"),
        ("x=1", "--meta", "[1]"),
        ("x=1", "--no-such-option"),
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(
    run: Run, folder: Path, arguments: tuple[str, ...]
) -> None:
    result = run("append", "a", "i", *arguments)

    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr
    assert not folder.exists()


def test_numbers_keep_all_their_digits(run: Run) -> None:
    run("append", "a", "i", "small=9223372036854775807", "large=9223372036854775808")

    state = answer(run("get", "a", "i"))["state"]

    assert state == {"small": 2**63 - 1, "large": {"$int": "9223372036854775808"}}


def test_a_value_that_nobody_could_read_back_is_refused(run: Run, folder: Path) -> None:
    result = run("append", "a", "i", 'x={"$decimal":"many"}')

    assert result.exit_code == 1
    assert "$decimal" in result.stderr
    assert not folder.exists()


def test_values_of_classes_that_are_not_loaded_are_shown(run: Run) -> None:
    model = {"$dataclass": ["nowhere.to.be:Found", {"x": [1, 2]}]}
    run("append", "a", "i", f"model={json.dumps(model)}")

    assert answer(run("get", "a", "i"))["state"] == {"model": model}
    assert answer(run("get", "a", "i", "model.x.1")) == 2
    assert answer(run("history", "a", "i", "--states"))["state"] == {"model": model}


def test_history_has_verdicts_and_states(run: Run) -> None:
    run("append", "a", "i", "x=1", "--name", "begin", "--actor", "ann", "--meta", '{"n":1}')
    run("append", "a", "i", "x=2", "--expected-version", "0")
    run("append", "a", "i", "x=3")

    entries = answers(run("history", "a", "i", "--states"))

    assert [entry["verdict"] for entry in entries] == ["accepted", "conflict", "accepted"]
    assert [entry["state"]["x"] for entry in entries] == [1, 1, 3]
    assert entries[0]["operations"] == [["set", "x", 1]]
    assert [entries[0][key] for key in ("name", "actor", "meta")] == ["begin", "ann", {"n": 1}]
    assert entries[0]["time"].endswith("Z")


def test_history_can_be_turned_filtered_and_cut(run: Run) -> None:
    for number in (1, 2, 3):
        run("append", "a", "i", f"x={number}")
        run("append", "a", "i", "x=0", "--expected-version", "0")

    def sequences(*options: str) -> list[int]:
        return [entry["sequence"] for entry in answers(run("history", "a", "i", *options))]

    assert sequences("--reverse") == [5, 4, 3, 2, 1, 0]
    assert sequences("--verdict", "conflict") == [1, 3, 5]
    assert sequences("--verdict", "accepted", "--reverse", "--limit", "2") == [4, 2]


def test_apps_and_instances_are_listed(run: Run) -> None:
    for app, instance in (("b", "i"), ("a", "two"), ("a", "one"), ("a", "three")):
        run("append", app, instance, "x=1")

    assert answers(run("apps")) == [{"app": "a"}, {"app": "b"}]
    names = [line["instance"] for line in answers(run("instances", "a"))]
    assert names == ["one", "three", "two"]
    assert answers(run("instances", "a", "--prefix", "t", "--limit", "1")) == [
        {"instance": "three"}
    ]


def test_tail_goes_on_where_it_stopped(run: Run) -> None:
    for number in range(4):
        run("append", "a", f"i-{number}", "x=1")

    first = answers(run("tail", "a", "--limit", "3"))
    rest = answers(run("tail", "a", "--from", first[-1]["resume"]))

    assert [entry["instance"] for entry in first + rest] == ["i-0", "i-1", "i-2", "i-3"]


def test_a_tail_can_begin_now_and_end_at_once(run: Run) -> None:
    run("append", "a", "i", "x=1")

    assert answers(run("tail", "a", "--from", "now")) == []


def test_the_token_of_a_tail_covers_every_partition(run: Run) -> None:
    url = f"memory://{uuid.uuid4().hex}?partitions=4"
    with EventStore(url) as store:
        for number in range(20):
            store.app("a").append(f"i-{number}", {"x": 1})
        store.app("a").get("i-0")

        first = answers(run("--url", url, "tail", "a", "--limit", "7"))
        rest = answers(run("--url", url, "tail", "a", "--from", first[-1]["resume"]))
        beyond = answers(run("--url", url, "tail", "a", "--from", rest[-1]["resume"]))

    assert sorted(entry["instance"] for entry in first + rest) == sorted(
        f"i-{number}" for number in range(20)
    )
    assert beyond == []
    # Also those that it has not come to: else a tail that began now would begin them anew.
    assert all(len(Position.parse(entry["resume"])) == 4 for entry in first)


def test_pending_requests_are_listed(run: Run, folder: Path) -> None:
    with EventStore(folder) as store:
        store.app("a").request("i", "summarize", {"n": 1}, lane="slow")
        store.app("a").request("j", "other")

    assert [row["name"] for row in answers(run("pending", "a"))] == ["summarize", "other"]
    row = answer(run("pending", "a", "i"))
    assert (row["instance"], row["sequence"], row["lane"]) == ("i", 0, "slow")


def test_a_fork_begins_with_the_past_of_another(run: Run) -> None:
    run("append", "a", "i", "x=1")
    run("append", "a", "i", "x=2")

    forked = answer(run("fork", "a", "i", "j", "--at", "1"))

    assert forked["version"] == 1
    assert answer(run("get", "a", "j"))["state"] == {"x": 1}
    assert run("fork", "a", "i", "j").exit_code == 4


def test_a_reset_asks_or_is_told(run: Run) -> None:
    run("append", "a", "i", "x=1")

    unasked = run("reset", "a", "i")
    told = run("reset", "a", "i", "--yes")

    assert unasked.exit_code == 2
    assert "--yes" in unasked.stderr
    assert answer(told)["version"] == 2
    assert answer(run("get", "a", "i"))["state"] == {}
    assert answer(run("get", "a", "i", "x", "--at", "1")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("apps",),
        ("get", "a", "i"),
        ("instances", "a"),
        ("history", "a", "i"),
        ("tail", "a"),
        ("pending", "a"),
        ("fork", "a", "i", "j"),
        ("reset", "a", "i", "--yes"),
    ],
)
def test_reading_creates_nothing(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    run(*arguments)
    assert not folder.exists()

    with EventStore(folder) as store:
        store.app("other").append("i", {"x": 1})
    run(*arguments)
    with EventStore(folder) as store:
        assert store.apps() == ["other"]


def test_a_table_shows_what_people_look_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run("append", "a", "i", f'long="{"x" * 500}"', "n=7")

    state = run("get", "a", "i", "--table").stdout.splitlines()
    history = run("history", "a", "i", "--table").stdout.splitlines()

    assert state[0] == "a/i  version 1"
    assert state[-1].split() == ["n", "7"]
    assert "accepted" in history[-1]
    assert all(len(line) <= 120 for line in state + history)
    assert run("get", "a", "i", "long").stdout == f'"{"x" * 500}"\n'


def test_a_table_with_states_fits_a_narrow_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run("append", "a", "i", 'status="new"', f'long="{"x" * 100}"')

    table = run("history", "a", "i", "--states", "--table").stdout.splitlines()

    assert table[0].split() == ["seq", "version", "verdict", "what", "state"]
    assert all(len(line) <= 80 for line in table)


@pytest.mark.parametrize(
    ("command", "remark"),
    [
        (("pending", "a"), "no request waits"),
        (("instances", "a", "--prefix", "z"), "no instances"),
        (("history", "a", "i", "--verdict", "conflict"), "no events"),
        (("get", "a", "i", "--at", "0"), "no fields"),
    ],
)
def test_a_table_without_rows_says_so(run: Run, command: tuple[str, ...], remark: str) -> None:
    run("append", "a", "i", "x=1")

    result = run(*command, "--table")

    assert result.exit_code == 0
    assert result.stderr == f"{remark}\n"


def test_names_cannot_command_the_terminal(run: Run, folder: Path) -> None:
    with EventStore(folder) as store:
        store.app("a").append("i\x1b[2J\r", Diff().set("f\x1b[31m", "v\x1b[31m"))

    outputs = [
        run(*command, "--table").stdout
        for command in (("instances", "a"), ("get", "a", "i\x1b[2J\r"), ("tail", "a"))
    ]

    assert not any("\x1b" in output or "\r" in output for output in outputs)
    assert "i\\x1b[2J\\r" in outputs[0]


def test_options_of_the_store_may_stand_before_and_behind_the_command(
    run: Run, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    run("--url", other, "append", "a", "i", "x=1", "--namespace", "mine")

    assert answers(run("apps", "--url", other, "--namespace", "mine")) == [{"app": "a"}]
    assert answers(run("--url", other, "apps")) == []


def test_a_log_that_is_none_is_one_message(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    result = run("apps", "--url", str(file))

    assert result.exit_code == 1
    assert result.stderr == f"Error: {file} is a file; the embedded log needs a folder\n"


def lines(*facts: object) -> bytes:
    return b"".join(json.dumps(fact).encode() + b"\n" for fact in facts)


def test_lines_are_imported_with_their_options(run: Run) -> None:
    imported = answer(
        run(
            "import", "a", "-",
            input=lines(
                {"instance": "i", "set": {"x": 1, "a.b": 2}, "name": "begin", "meta": {"n": 1}},
                {"instance": "i", "ops": [["increment", "x", 4]], "actor": "ann"},
                {"instance": "j", "set": {"x": 1}, "occurred_at": "2020-01-01T00:00:00Z"},
            ) + b"\n",
        )
    )  # fmt: skip

    entries = answers(run("history", "a", "i"))
    assert imported["written"] == 3
    assert answer(run("get", "a", "i", "--after", imported["position"]))["state"] == {
        "x": 5,
        "a.b": 2,
    }
    assert [entries[0]["name"], entries[0]["meta"], entries[1]["actor"]] == [
        "begin",
        {"n": 1},
        "ann",
    ]
    assert answer(run("history", "a", "j"))["occurred_at"] == "2020-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b'{"set": {"x": 1}}', "needs an instance"),
        (b'{"instance": "i"}', "neither set nor ops"),
        (b'{"instance": "i", "set": {"x": 1}, "kee": "k"}', "unknown keys: kee; there are actor, "),
        (b'{"instance": "i", "ops": [["explode", "x"]]}', "'explode' is unknown"),
        (b'{"instance": "i", "set": {"x": 1}, "expected_version": "1"}', "a number of 0 or more"),
        (b'{"instance": "i", "set": {"x": 1}, "occurred_at": "2020-01-01"}', "no time zone"),
        (b'{"instance": "", "set": {"x": 1}}', "not empty"),
    ],
)
def test_an_import_stops_at_the_first_bad_line_and_says_what_was_written(
    run: Run, tmp_path: Path, bad: bytes, reason: str
) -> None:
    file = tmp_path / "events.ndjson"
    good = lines({"instance": "good", "ops": [["increment", "x", 1]]})
    file.write_bytes(good * 2 + bad + b"\n" + good)

    result = run("import", "a", str(file))

    assert result.exit_code == 1
    assert reason in result.stderr
    assert "line 3" in result.stderr
    assert "2 events were written before" in result.stderr
    assert answer(run("get", "a", "good", "x")) == 2


def test_an_import_of_nothing_says_so(run: Run) -> None:
    result = run("import", "a", "-", "--table", input="")

    assert (result.exit_code, result.stdout) == (0, "0 events written to a\n")


def test_an_import_with_keys_can_be_repeated(run: Run) -> None:
    events = lines(
        *(
            {"instance": "i", "ops": [["increment", "x", 1]], "idempotency_key": str(number)}
            for number in range(5)
        )
    )
    half = events[: len(events) // 2].rpartition(b"\n")[0]

    for part in (half, events, events):
        assert run("import", "a", "-", input=part).exit_code == 0

    assert answer(run("get", "a", "i", "x")) == 5


def test_lines_that_end_without_a_newline_or_are_longer_than_one_read_are_imported(
    run: Run,
) -> None:
    text = "x" * 600_000
    imported = run("import", "a", "-", input=lines({"instance": "i", "set": {"t": text}})[:-1])

    assert answer(imported)["written"] == 1
    assert answer(run("get", "a", "i", "t")) == text


# --- an operator's calls ------------------------------------------------------------------------


def test_views_are_shown_and_rebuilt(run: Run) -> None:
    run("append", "a", "i", "x=1")

    before = answer(run("view", "status", "a"))
    rebuilt = run("view", "rebuild", "a")
    after = answer(run("view", "status", "a"))

    assert [part["end"] for part in before["log"]["partitions"]] == [1]
    assert [(view["busy"], view["set_aside"]) for view in before["views"]] == [(False, None)]
    assert answer(rebuilt)["rebuilt"] is True
    assert [view["set_aside"] for view in after["views"]] == [None, "a rebuild was asked for"]
    assert answer(run("get", "a", "i", "x")) == 1


def test_a_view_in_use_is_shown_as_such(run: Run, folder: Path) -> None:
    with EventStore(folder) as store:
        store.app("a").append("i", {"x": 1})
        store.app("a").get("i")

        status = answer(run("view", "status", "a"))

    assert [view["busy"] for view in status["views"]] == [True]


UNKNOWN_EVENT = b"\xc3\x01" + b"\x07" * 8 + b"from the future"


def append_raw(folder: Path, key: bytes, value: bytes) -> None:
    """Append a record that is no event of this release."""
    delivered = threading.Event()

    class Delivery:
        def delivered(self, partition: int, offset: int) -> None:
            delivered.set()

        def failed(self, error: Exception) -> None:
            raise error

    with EventStore(folder) as store:
        topic = store.log.topic("foldlog.a", create=True)
        assert topic is not None
        store.log.append(topic, [Append(0, key, value, Delivery())])
        store.log.flush(60)
    assert delivered.is_set()


def test_quarantine_lets_a_partition_go_on(run: Run, folder: Path) -> None:
    run("append", "a", "i", "x=1")
    append_raw(folder, b"i", UNKNOWN_EVENT)
    stopped = run("get", "a", "i")

    quarantined = run("quarantine", "a", "0", "1", "--reason", "made by a test")

    assert stopped.exit_code == 1
    assert "unknown schema fingerprint" in stopped.stderr
    assert quarantined.exit_code == 0
    assert answer(run("get", "a", "i", "x")) == 1
    assert answer(run("view", "status", "a"))["log"]["partitions"][0]["quarantined"] == [1]


def test_quarantine_needs_a_reason_and_a_repair_a_yes(run: Run) -> None:
    run("append", "a", "i", "x=1")

    assert run("quarantine", "a", "0", "0").exit_code == 2
    assert run("repair", "a").exit_code == 2
    assert run("quarantine", "a", "5", "0", "--reason", "r").exit_code == 1
    assert answer(run("view", "status", "a"))["log"]["partitions"][0]["quarantined"] == []


def test_a_repair_goes_on_with_what_there_is(run: Run) -> None:
    run("append", "a", "i", "x=1")

    repaired = run("repair", "a", "--accept-loss")

    assert repaired.exit_code == 0, repaired.output
    assert answer(run("view", "status", "a"))["log"]["repairs"] == 1
    assert answer(run("get", "a", "i", "x")) == 1


# --- the doctor ---------------------------------------------------------------------------------


def findings(result: Result) -> dict[str, list[str]]:
    """The texts of what the doctor found, by level."""
    found: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for line in result.stdout.splitlines():
        finding = json.loads(line)
        found[finding["level"]].append(finding["text"])
        assert finding["level"] != "fail" or finding["advice"]
    return found


def test_the_doctor_finds_a_healthy_store_healthy(run: Run) -> None:
    run("append", "a", "i", "x=1")

    result = run("doctor")

    found = findings(result)
    assert result.exit_code == 0, result.output
    assert found["fail"] == []
    assert any("it has 1 app(s)" in text for text in found["ok"])
    assert any("a: 0 of 1 view(s) in use" in text for text in found["ok"])
    assert any(text.startswith("SQLite 3.") for text in found["ok"])


def test_the_doctor_finds_a_misspelt_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTSTORE_READ_TIMEOUT", "3")
    monkeypatch.setenv("EVENTSTORE_APPEND_TIMEOUT_S", "3")

    result = run("doctor", "--table")

    assert "$EVENTSTORE_READ_TIMEOUT is no setting" in result.stdout
    assert "perhaps EVENTSTORE_READ_TIMEOUT_S is meant" in result.stdout
    assert "EVENTSTORE_APPEND_TIMEOUT_S" not in result.stdout


def test_the_doctor_creates_nothing(run: Run, folder: Path) -> None:
    assert run("doctor").exit_code == 0

    assert not folder.exists()


def test_the_doctor_names_a_log_that_is_none(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    result = run("doctor", "--url", str(file))

    assert result.exit_code == 1
    assert findings(result)["fail"] == [f"{file} is a file; the embedded log needs a folder"]


def test_the_doctor_finds_foreign_records_and_views_that_were_set_aside(
    run: Run, folder: Path
) -> None:
    run("append", "a", "i", "x=1")
    append_raw(folder, b"i", b"garbage")
    run("view", "rebuild", "a")

    warnings = findings(run("doctor"))["warn"]

    assert any("1 record(s) are no events of ours" in text for text in warnings)
    assert any("was set aside: a rebuild was asked for" in text for text in warnings)


def test_the_doctor_finds_a_partition_that_waits(run: Run, folder: Path) -> None:
    append_raw(folder, b"i", UNKNOWN_EVENT)

    result = run("doctor")
    quick = run("doctor", "--quick")

    assert result.exit_code == 1
    assert any("unknown schema fingerprint" in text for text in findings(result)["fail"])
    assert quick.exit_code == 0


def test_the_doctor_finds_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    result = run("doctor")

    assert result.exit_code == 1
    assert all("0.0 GB are free" in text for text in findings(result)["fail"])


# --- a real process -----------------------------------------------------------------------------


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "EVENTSTORE_URL": str(folder)}
    command = [sys.executable, "-m", "eventstore", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_a_reader_that_has_seen_enough_is_no_error(run: Run, folder: Path) -> None:
    text = "x" * 100
    run(
        "import",
        "a",
        "-",
        input=lines(*({"instance": "i", "set": {"t": text}} for _ in range(3000))),
    )

    with start(folder, "history", "a", "i") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        code = process.wait(60)

    assert json.loads(first)["sequence"] == 0
    assert errors == b""
    assert code == 141


def test_an_interrupt_ends_a_tail_quietly(run: Run, folder: Path) -> None:
    run("append", "a", "i", "x=1")

    with start(folder, "tail", "a", "--follow", "--from", "beginning") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        run("append", "a", "i", "x=2")
        second = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)

    assert [first["sequence"], second["sequence"]] == [0, 1]
    assert (rest, errors, process.returncode) == (b"", b"", 130)


def test_lines_of_a_slow_pipe_are_written_as_they_come(run: Run, folder: Path) -> None:
    run("append", "a", "begun", "x=1")
    app_lines = lines({"instance": "i", "set": {"x": 1}})

    with start(folder, "import", "a", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(app_lines)
        process.stdin.flush()
        with EventStore(folder) as store:
            entries = store.app("a").tail(start="beginning", timeout_s=60)
            written = [next(entries).instance for _ in range(2)]
        still_running = process.poll() is None
        answered, errors = process.communicate(timeout=60)

    assert written == ["begun", "i"]
    assert still_running
    assert (json.loads(answered)["written"], errors) == (1, b"")


def test_an_error_has_no_traceback(folder: Path) -> None:
    with start(folder, "get", "a", "i") as process:
        answered, errors = process.communicate(timeout=60)

    assert (answered, process.returncode) == (b"", 3)
    assert errors.decode() == f"Error: {folder} has no app 'a'; it has: none\n"
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_one_message(run: Run, folder: Path) -> None:
    run("append", "a", "i", "x=1")

    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "eventstore", "--url", str(folder), "get", "a", "i"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert ended.returncode == 1
    assert ended.stderr.startswith(b"Error: [Errno 28]")
    assert ended.stderr.count(b"\n") == 1


def test_the_help_loads_neither_the_store_nor_rich() -> None:
    program = (
        "import sys; import eventstore.cli;"
        "print(*({'pydantic', 'rich', 'rocksdict', 'apsw', 'confluent_kafka', 'orjson',"
        " 'eventstore.store', 'eventstore.config'} & set(sys.modules)))"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert loaded.stdout.strip() == ""


def test_a_shell_can_complete_commands_and_apps(run: Run, folder: Path) -> None:
    run("append", "orders", "o-1", "x=1")

    def completed(words: str, word: int) -> str:
        environment = {
            **os.environ, "EVENTSTORE_URL": str(folder), "_EVENTSTORE_COMPLETE": "bash_complete",
            "COMP_WORDS": words, "COMP_CWORD": str(word),
        }  # fmt: skip
        program = "from eventstore.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program],
            env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert completed("eventstore hi", 1).split() == ["plain,history"]
    assert completed("eventstore get or", 2).split() == ["plain,orders"]
