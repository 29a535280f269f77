"""A process that runs updates is killed: the next one applies every request, once and in order.

Goal: exactly once in effect, whatever the moment. Method: requests of every kind of update wait; a
child process runs them until a named point, where it dies by SIGKILL; another process runs what is
left. Then the states are compared with the requests in the log, and the calls that reached the
world outside are counted.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eventstore import App, Diff, EventStore, Kind, State, Verdict
from eventstore.events import Answer, Event
from eventstore.processing import Processing
from processors.component import Component
from processors.context import Context
from processors.runner import Runner
from tests.contract.logs import eventually
from tests.fault.runner_component import POISON_EXIT_CODE, component
from tests.fault.runner_processes import daemon_child, examine, runner_child, token_of
from tests.fault.sqlite_processes import PATIENCE_S

WAIT_S = 60.0

INSTANCES = 2
KINDS = ("k/note", "k/call", "k/wait", "k/steps")
REQUESTS = 24

#: So many processes may die of one poisonous request before it is run in a process of its own.
DEATHS_MAX = 3

#: Where the process dies, and at which passage: of the runner first, then of the log under it. It
#: comes by there that often even where each commit has something of every lane.
POINTS = (
    "processor.step",
    "processor.step:9",
    "processor.handler.before",
    "processor.handler.before:8",
    "processor.handler.after",
    "processor.handler.after:6",
    "processor.append.before",
    "processor.append.before:7",
    "processor.append.after",
    "processor.append.after:7",
    "processor.effect.before",
    "processor.effect.before:3",
    "processor.effect.after",
    "processor.effect.after:3",
    "processor.part.before",
    "processor.part.before:4",
    "processor.part.after",
    "processor.part.after:4",
    "log.commit.before:2",
    "log.commit.before:9",
    "log.commit.inside:5",
    "log.commit.after:3",
    "log.commit.after:9",
    "log.acknowledged:6",
    "view.batch.inside:5",
)


def ask(store: EventStore, calls: Path) -> list[str]:
    """Ask for updates of every kind, durably; return their tokens."""
    app = store.app(component.name)
    tokens = [f"t-{number}" for number in range(REQUESTS)]
    receipts = [
        app.request(
            f"i{number % INSTANCES}",
            KINDS[number // INSTANCES % len(KINDS)],
            {"token": token, "calls": str(calls)},
        )
        for number, token in enumerate(tokens)
    ]
    for receipt in receipts:
        receipt.result()
    return tokens


def run_what_is_left(store: EventStore) -> None:
    runner = Runner(store, component).start()
    assert runner.drain(WAIT_S), runner.snapshot()
    assert runner.stop(WAIT_S)


def called(calls: Path) -> Counter[str]:
    """Count the calls that reached the world outside, by what they were about."""
    return Counter(calls.read_text().split()) if calls.exists() else Counter()


def recorded(store: EventStore) -> list[str]:
    """Return the tokens whose call outside is recorded in the log."""
    app = store.app(component.name)
    found = []
    for instance in app.instances():
        tokens: dict[int, str] = {}
        for entry in app.history(instance):
            if entry.event.kind == Kind.REQUEST:
                tokens[entry.sequence] = token_of(entry)
            elif entry.event.kind == Kind.EFFECT and entry.verdict == Verdict.ACCEPTED:
                assert entry.event.answer is not None
                found.append(tokens[entry.event.answer.cause])
    return found


@pytest.mark.parametrize("point", POINTS)
def test_every_request_is_applied_once_and_in_order_though_its_process_dies(
    tmp_path: Path, point: str
) -> None:
    calls = tmp_path / "calls"
    with EventStore(tmp_path / "log") as store:
        tokens = ask(store, calls)

        with runner_child("run", tmp_path / "log", fault=point) as killed:
            killed.end()
            assert killed.process.returncode == -signal.SIGKILL
        made, known = called(calls), recorded(store)
        run_what_is_left(store)

        found = examine(store, tokens)
    assert found.wrong == []
    assert (found.requests, found.applied) == (REQUESTS, REQUESTS)
    again = called(calls) - made
    assert not [token for token in known if again[token]], "a recorded call was made again"
    # Each call that was not on record is made once; one per lane may have been on its way.
    assert again.total() == REQUESTS // len(KINDS) - len(known)
    assert (made.total() - len(known)) in range(INSTANCES + 1)


@pytest.mark.parametrize("point", ["processor.append.before:7", "log.acknowledged:6"])
def test_on_kafka_too_every_request_is_applied_once_and_in_order(
    kafka_url: str, namespace: str, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTSTORE_NAMESPACE", namespace)
    with EventStore(kafka_url) as store:
        tokens = ask(store, tmp_path / "calls")

        with runner_child("run", kafka_url, fault=point) as killed:
            killed.end()
            assert killed.process.returncode == -signal.SIGKILL
        run_what_is_left(store)

        found = examine(store, tokens)
    assert found.wrong == []
    assert (found.requests, found.applied) == (REQUESTS, REQUESTS)


# --- input that changes meanwhile -----------------------------------------------------------------


@pytest.mark.parametrize("point", ["processor.effect.before", "processor.effect.after"])
def test_an_input_that_changes_around_an_effect_is_what_the_final_value_reflects(
    tmp_path: Path, point: str
) -> None:
    calls = tmp_path / "calls"
    with EventStore(tmp_path / "log") as store:
        app = store.app(component.name)
        app.append("i", {"input": 1}).result()
        app.request("i", "k/derive", {"token": "t", "calls": str(calls)}).result()

        with runner_child("run", tmp_path / "log", fault=point) as killed:
            killed.end()
            assert killed.process.returncode == -signal.SIGKILL
        app.append("i", {"input": 2}).result()
        run_what_is_left(store)

        assert app.get("i", "derived", fresh=True) == 20
    assert called(calls) == Counter({"1": 1, "2": 1})  # the old answer is not taken for the new


def test_an_input_that_changes_while_an_effect_runs_is_what_the_final_value_reflects(
    tmp_path: Path,
) -> None:
    meanwhile = Component("meanwhile")
    asked: list[int] = []

    with EventStore(tmp_path) as store:
        app = store.app("meanwhile")

        def outside(given: int) -> int:
            asked.append(given)
            if len(asked) == 1:
                app.append("i", {"input": 2}).result()
            return given * 10

        @meanwhile.update("k", isolation="serializable")
        def derive(state: State, props: Mapping[str, Any], context: Context) -> dict[str, Any]:
            return {"derived": context.effect("outside", outside, state["input"])}

        app.append("i", {"input": 1}).result()
        runner = Runner(store, meanwhile).start()
        runner.complete([app.request("i", "k/derive")], WAIT_S)
        runner.stop(WAIT_S)

        assert app.get("i", "derived") == 20
    assert asked == [1, 2]


# --- who is to blame ------------------------------------------------------------------------------


def test_a_request_is_not_blamed_for_the_deaths_of_processes_that_happened_to_run_it(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    with EventStore(tmp_path / "log") as store:
        app = store.app(component.name)
        app.request("i", "k/note", {"token": "slow", "gate": str(gate)}).result()
        app.request("i", "k/note", {"token": "next"}).result()

        for deaths in range(1, 6):
            with daemon_child(tmp_path / "log") as killed:
                assert eventually(lambda deaths=deaths: attempts(app, "i") >= deaths, PATIENCE_S)  # type: ignore[misc]
                killed.kill()
        gate.touch()
        run_what_is_left(store)

        assert app.get("i", "log") == ["slow", "next"]


def attempts(app: App, instance: str) -> int:
    """Count the attempts at the first request of an instance."""
    return sum(
        entry.event.kind == Kind.ATTEMPT
        and entry.event.answer is not None
        and entry.event.answer.cause == 0
        for entry in app.history(instance)
    )


# --- somebody else is faster ----------------------------------------------------------------------


def test_a_request_that_somebody_else_answers_while_it_runs_is_not_run_again(
    tmp_path: Path,
) -> None:
    contested = Component("contested")
    runs: list[int] = []

    with EventStore(tmp_path) as store:
        app = store.app("contested")
        processing = Processing(app)

        @contested.update("k")
        def note(state: State, props: Mapping[str, Any]) -> Diff:
            runs.append(props["n"])
            if props["n"] == 1:
                other = Event(
                    Kind.DIFF,
                    "k/note",
                    Diff().append("log", "other").encode(),
                    answer=Answer(1, 0, True),
                )
                processing.send([("i", other)])[0].entry()
            return Diff().append("log", props["n"])

        receipts = [app.request("i", "k/note", {"n": n}) for n in range(3)]
        runner = Runner(store, contested).start()
        runner.complete(receipts, WAIT_S)
        assert runner.drain(WAIT_S)
        runner.stop(WAIT_S)

        assert app.get("i", "log") == [0, "other", 2]
    assert runs.count(1) == 1


# --- a handler that ends its process --------------------------------------------------------------


def test_a_request_whose_handler_ends_its_process_fails_and_everything_else_is_applied(
    tmp_path: Path,
) -> None:
    deaths = 0
    with EventStore(tmp_path / "log") as store:
        app = store.app(component.name)
        before = [app.request("i0", "k/note", {"token": f"before-{n}"}) for n in range(3)]
        poison = app.request("i0", "k/poison", {"token": "poison"})
        after = [app.request(f"i{n % 2}", "k/note", {"token": f"after-{n}"}) for n in range(6)]
        for receipt in (*before, poison, *after):
            receipt.result()

        while True:
            with daemon_child(tmp_path / "log", "--once") as child:
                child.end()
                if child.process.returncode != POISON_EXIT_CODE:
                    assert child.process.returncode == 1  # an update has failed, as it says
                    break
            deaths += 1
            assert deaths < DEATHS_MAX

        failures = [json.loads(entry.event.body) for entry in app.failures()]
        assert [body["reason"] for body in failures] == ["crashed"]
        assert app.get("i0", "log") == [
            *(f"before-{n}" for n in range(3)), "after-0", "after-2", "after-4"
        ]  # fmt: skip
        assert app.get("i1", "log") == ["after-1", "after-3", "after-5"]
