"""All logs and views agree with a plain dict, whatever is done to them in whatever order.

Goal: the same operations give the same states, versions, verdicts, histories, pending requests and
reads of the past in memory, on SQLite with RocksDB, on Kafka, and in a model of plain dicts
(dict_rows.py), which makes its own events from what a call promises and knows no App.
Method: a hypothesis machine does one random thing after the other in every world, and compares
what comes of it at once; at random moments it closes and opens the stores or rebuilds their views.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from eventstore import (
    App,
    Config,
    Conflict,
    Diff,
    Event,
    EventStore,
    Guard,
    InstanceNotFound,
    InvalidDiff,
    Kind,
    Rejected,
    State,
    Verdict,
    VersionNotFound,
)
from eventstore.events import Answer, EffectKey, ForkOf, RequestPolicy
from tests.property.dict_rows import DictRows

LONG = "x" * 700  # a value that does not fit a view's field row

instances = st.sampled_from(["a", "a", "a", "b"])
fields = st.sampled_from(["n", "list", "text", "dict"])
targets: st.SearchStrategy[Any] = fields | st.sampled_from(
    [["dict", "k"], ["dict", "k", "n"], ["list", 0], ["list", 1, "n"], ["text", "k"]]
)
scalars: st.SearchStrategy[Any] = st.sampled_from([0, 1, -2, None, True, 0.5, "t", LONG])
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("kn"), inner),
    max_leaves=5,
)
fitting = st.sampled_from(
    [
        ["increment", "n", 1],
        ["append", "list", LONG],
        ["append", "list", {"n": 1}],
        ["append_text", "text", "more"],
        ["append_text", "text", LONG],
        ["merge_into", "dict", {"k": {"n": 1}}],
        ["merge_into", "dict", {"n": LONG}],
        ["increment", ["dict", "k", "n"], 2],
        ["set", "dict", {"k": {"n": 1}, "n": LONG}],
        ["set", "list", [LONG, {"n": 1}]],
    ]
)
operations: st.SearchStrategy[Any] = st.one_of(
    *[fitting] * 80,  # the others seldom fit what they meet
    st.tuples(st.just("set"), targets, json_values),
    st.tuples(st.just("delete"), targets),
    st.tuples(st.just("append"), targets, json_values),
    st.tuples(st.just("extend"), targets, st.lists(scalars, max_size=3)),
    st.tuples(st.just("insert"), targets, st.integers(0, 3), scalars),
    st.tuples(st.just("remove"), targets, st.integers(0, 3)),
    st.tuples(st.just("increment"), targets, st.sampled_from([1, -1, 0.5, 2**63])),
    st.tuples(st.just("merge_into"), targets, st.dictionaries(st.sampled_from("kn"), scalars)),
    st.tuples(st.just("append_text"), targets, st.sampled_from(["", "more", LONG])),
)
diffs = st.lists(operations, min_size=1, max_size=2).map(
    lambda wire: Diff.from_json(orjson.loads(orjson.dumps(wire)))
)
keys = st.sampled_from([None, None, None, "key-1", "key-2"])
#: Versions back from the newest: 0 is fresh, -1 has not been yet.
stale = st.sampled_from([None, None, 0, 0, 1, 3, -1])
causes = st.integers(0, 12)


class World:
    """A store that can be closed and opened, and its app of this example."""

    def __init__(self, url: str, config: Config) -> None:
        self._url, self._config = url, config
        self.store = EventStore(url, config=config)
        self.app: App = self.store.app("unused")

    def begin(self, name: str) -> None:
        self._name = name
        self.app = self.store.app(name)

    def reopen(self) -> None:
        self.store.close()
        self.store = EventStore(self._url, config=self._config)
        self.app = self.store.app(self._name)


class Saved(NamedTuple):
    """A state that was read at some time: in the model, and in each world."""

    instance: str
    version: int
    observed: frozenset[str]
    states: list[State]


class Machine(RuleBasedStateMachine):
    """One random thing after the other, in every world and in the model."""

    numbers = itertools.count()

    def __init__(self, worlds: list[World]) -> None:
        super().__init__()
        self.worlds = worlds
        self.model: dict[str, DictRows] = {}
        self.saved: list[Saved] = []
        self._chains = itertools.count()
        name = f"app-{next(self.numbers)}"
        for world in worlds:
            world.begin(name)

    # --- helpers ---------------------------------------------------------------------------------

    def rows(self, instance: str) -> DictRows:
        return self.model.setdefault(instance, DictRows())

    def chain(self) -> str:
        return f"chain-{next(self._chains)}"

    def exists(self, instance: str) -> bool:
        rows = self.model.get(instance)
        return rows is not None and (rows.version > 0 or bool(rows.waiting))

    def raw(self, instance: str, event: Event) -> None:
        """Do what a processor does: append an event past the App."""
        self.rows(instance).take(event)
        for world in self.worlds:
            world.app._channel.send([(instance, event)])
        self.compare_now(instance)

    def committed(
        self, instance: str, event: Event, calls: list[Callable[[], State]], base: int
    ) -> None:
        """Do a call that waits for its verdict, and compare what it says with the model."""
        outcome = self.rows(instance).take(event)
        reason = outcome.reason.rpartition("\0")
        for call in calls:
            if outcome.verdict == Verdict.CONFLICT:
                with pytest.raises(Conflict) as conflict:
                    call()
                found = conflict.value
                assert (found.field or "", found.reason) == (reason[0], reason[2])
                assert (found.base, found.winner) == (base, outcome.winner)
            elif outcome.verdict == Verdict.REJECTED:
                with pytest.raises(Rejected) as rejected:
                    call()
                assert rejected.value.reason == outcome.reason
            else:
                assert outcome.verdict == Verdict.ACCEPTED
                state = call()
                assert state.version == outcome.version
                assert same(state.to_json(), self.rows(instance).state())
        self.compare_now(instance)

    # --- what is done ----------------------------------------------------------------------------

    # One rule that chooses, and not a rule for each: hypothesis leaves most rules out of an
    # example, and what is interesting here comes of all of them together.
    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        action, arguments = data.draw(st.sampled_from(ACTIONS))
        drawn = {name: data.draw(strategy, name) for name, strategy in arguments.items()}
        action(self, **drawn)

    def append(self, instance: str, diff: Diff, key: str | None, back: int | None) -> None:
        try:
            body = diff.encode()
        except InvalidDiff:
            for world in self.worlds:
                with pytest.raises(InvalidDiff):
                    world.app.append(instance, diff)
            return
        version = None if back is None else max(0, self.rows(instance).version - back)
        guard = None if version is None else Guard(version, ("*",))
        outcome = self.rows(instance).take(
            Event(Kind.DIFF, body=body, guard=guard, idempotency_key=key)
        )
        for world in self.worlds:
            receipt = world.app.append(
                instance, diff, expected_version=version, idempotency_key=key
            )
            entry = receipt.entry(30)
            assert (entry.sequence, entry.verdict) == (outcome.sequence, outcome.verdict)
            if outcome.verdict == Verdict.DUPLICATE:
                assert outcome.winner is not None
                original = self.rows(instance).history[outcome.winner].outcome
                assert receipt.verdict(30) == original.verdict
        self.compare_now(instance)

    def read(self, instance: str, observed: set[str], all_fields: bool) -> None:
        if not self.exists(instance):
            for world in self.worlds:
                with pytest.raises(InstanceNotFound):
                    world.app.get(instance)
            return
        states = [world.app.get(instance) for world in self.worlds]
        for state in states:
            for name in observed:
                state.get(name)
            if all_fields:
                list(state)
        seen = frozenset(observed | ({"*"} if all_fields else set()))
        self.saved.append(Saved(instance, self.rows(instance).version, seen, states))

    def commit(self, choice: int, diff: Diff, snapshot: bool) -> None:
        if not self.saved:
            return
        saved = self.saved[-1 - choice % len(self.saved)]
        states = []
        with suppress(InvalidDiff):
            states = [state.apply(diff) for state in saved.states]
            diff.encode()
        if not states:
            return
        guarded = diff.overwritten() | (frozenset() if snapshot else saved.observed)
        event = Event(
            Kind.DIFF,
            body=diff.encode(),
            guard=Guard(saved.version, tuple(sorted(guarded)), self.chain(), 0),
        )

        def committing(world: World, state: State) -> Callable[[], State]:
            isolation: Any = "snapshot" if snapshot else "serializable"
            return lambda: world.app.commit(saved.instance, state, isolation=isolation)

        calls = [committing(*pair) for pair in zip(self.worlds, states, strict=True)]
        self.committed(saved.instance, event, calls, saved.version)

    def request(self, instance: str, lane: str, delayed: bool) -> None:
        due_ms = 2_000_000_000_000 if delayed else None
        policy = RequestPolicy(lane, not_before_ms=due_ms)
        self.raw(instance, Event(Kind.REQUEST, "update", b"{}", request=policy))

    def answer(self, instance: str, cause: int, part: int, closes: bool, diff: Diff) -> None:
        with suppress(InvalidDiff):
            answer = Answer(cause, part, closes)
            self.raw(instance, Event(Kind.DIFF, "update", diff.encode(), answer=answer))

    def answer_the_first(self, instance: str, closes: bool, diff: Diff) -> None:
        rows = self.rows(instance)
        if rows.waiting:
            request = next(iter(rows.waiting.values()))
            self.answer(instance, request.sequence, request.parts, closes, diff)

    def give_up_the_first(self, instance: str, kind: Kind) -> None:
        waiting = self.rows(instance).waiting
        if waiting:
            self.give_up(instance, next(iter(waiting)), kind)

    def give_up(self, instance: str, cause: int, kind: Kind) -> None:
        answer = Answer(cause, 0, kind == Kind.FAILURE)
        self.raw(instance, Event(kind, "update", b'"reason"', answer=answer))

    def effect(self, instance: str, cause: int, first: bool, call_index: int) -> None:
        waiting = self.rows(instance).waiting
        cause = next(iter(waiting), cause) if first else cause
        event = Event(
            Kind.EFFECT, "ask", b"7", answer=Answer(cause), effect=EffectKey(call_index, "d")
        )
        self.raw(instance, event)

    def step(self, instance: str, chain: str, offset: int, back: int, diff: Diff) -> None:
        with suppress(InvalidDiff):
            known = self.rows(instance).chains.get(chain)
            step = max(0, (0 if known is None else known.chain_index + 1) + offset)
            base = max(0, self.rows(instance).version - back)
            guard = Guard(base, tuple(sorted(diff.fields)), chain, step)
            self.raw(instance, Event(Kind.DIFF, body=diff.encode(), guard=guard))

    def reset(self, instance: str) -> None:
        calls = [self._resetting(world, instance) for world in self.worlds]
        if not self.exists(instance):
            for call in calls:
                with pytest.raises(InstanceNotFound):
                    call()
            return
        self.committed(instance, Event(Kind.RESET), calls, 0)

    def _resetting(self, world: World, instance: str) -> Callable[[], State]:
        return lambda: world.app.reset(instance)

    def fork(self, instance: str, to: str, back: int) -> None:
        at = None if back == 0 else f"HEAD~{back}"
        calls = [self._forking(world, instance, to, at) for world in self.worlds]
        rows = self.rows(instance)
        if not self.exists(instance) or back > rows.version:
            error = VersionNotFound if self.exists(instance) else InstanceNotFound
            for call in calls:
                with pytest.raises(error):
                    call()
            return
        version = rows.version - back
        body = orjson.dumps([["set", name, value] for name, value in rows.at(version).items()])
        event = Event(
            Kind.FORK,
            body=body,
            guard=Guard(0, (), self.chain(), 0),
            fork=ForkOf(self.worlds[0].app.name, instance, version),
        )
        self.committed(to, event, calls, 0)

    def _forking(self, world: World, instance: str, to: str, at: str | None) -> Callable[[], State]:
        return lambda: world.app.fork(instance, to=to, at=at)

    # --- what happens to stores and views --------------------------------------------------------

    def reopen(self, number: int) -> None:
        self.saved.clear()  # their views are closed
        self.worlds[number % len(self.worlds)].reopen()

    def rebuild(self, number: int) -> None:
        if any(rows.history for rows in self.model.values()):
            self.saved.clear()
            self.worlds[number % len(self.worlds)].app.rebuild_view()

    # --- what is compared ------------------------------------------------------------------------

    def compare_now(self, instance: str) -> None:
        rows = self.rows(instance)
        for world in self.worlds:
            assert world.app.exists(instance) == self.exists(instance)
            if self.exists(instance):
                state = world.app.get(instance)
                assert state.version == rows.version
                assert same(state.to_json(), rows.state())

    def compare_the_past(self, instance: str, choice: int) -> None:
        rows = self.rows(instance)
        if self.exists(instance):
            version = choice % (rows.version + 1)
            sequence = choice % rows.sequence
            for world in self.worlds:
                assert same(world.app.get(instance, at=version).to_json(), rows.at(version))
                (entry,) = world.app.history(instance, start=sequence, end=sequence + 1)
                there = world.app.get(instance, at=entry.position)
                assert there.version == rows.history[sequence].outcome.version

    def teardown(self) -> None:
        for world in self.worlds:
            for instance, rows in self.model.items():
                self._compare_whole(world.app, instance, rows)
            names = sorted(name for name in self.model if self.exists(name))
            assert list(world.app.instances()) == names

    def _compare_whole(self, app: App, instance: str, rows: DictRows) -> None:
        if not rows.history:
            return
        found = list(app.history(instance))
        for entry, wanted in zip(found, rows.history, strict=True):
            outcome = wanted.outcome
            field, _, reason = outcome.reason.rpartition("\0")
            assert (entry.sequence, entry.event.kind) == (wanted.sequence, wanted.event.kind)
            assert (entry.verdict, entry.version) == (outcome.verdict, outcome.version)
            assert (entry.winner, entry.field or "") == (outcome.winner, field)
            assert entry.reason == reason
        assert list(app.history(instance, reverse=True)) == found[::-1]
        pending = [row.request for row in app.pending(instance)]
        assert pending == [rows.waiting[sequence] for sequence in sorted(rows.waiting)]
        for kind, listed in ((Kind.DISCARD, app.discards), (Kind.FAILURE, app.failures)):
            assert [entry.sequence for entry in listed(instance)] == [
                wanted.sequence
                for wanted in rows.history
                if wanted.event.kind == kind and wanted.outcome.verdict == Verdict.ACCEPTED
            ]
        if self.exists(instance):
            for version in range(rows.version + 1):
                assert same(app.get(instance, at=version).to_json(), rows.at(version))


one_in_three = st.sampled_from([False, False, True])
choices = st.integers(0, 1_000)
small = st.integers(0, 2)
kinds = st.sampled_from([Kind.DISCARD, Kind.FAILURE, Kind.ATTEMPT])
chains = st.sampled_from(["one", "two", "three", "four", "five"])

#: What may be done, each as often as it stands here, and what is drawn for it.
ACTIONS: list[tuple[Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = [
    *[(Machine.append, {"instance": instances, "diff": diffs, "key": st.none(), "back": st.none()})]
    * 5,
    *[(Machine.append, {"instance": instances, "diff": diffs, "key": keys, "back": stale})] * 3,
    *[
        (
            Machine.read,
            {
                "instance": instances,
                "observed": st.sets(fields, max_size=2),
                "all_fields": one_in_three,
            },
        )
    ]
    * 3,
    *[(Machine.commit, {"choice": small, "diff": diffs, "snapshot": one_in_three})] * 4,
    *[
        (
            Machine.request,
            {"instance": instances, "lane": st.sampled_from(["", "x"]), "delayed": one_in_three},
        )
    ]
    * 3,
    *[(Machine.answer_the_first, {"instance": instances, "closes": one_in_three, "diff": diffs})]
    * 3,
    (
        Machine.answer,
        {
            "instance": instances,
            "cause": causes,
            "part": small,
            "closes": st.booleans(),
            "diff": diffs,
        },
    ),
    (Machine.give_up_the_first, {"instance": instances, "kind": kinds}),
    (Machine.give_up, {"instance": instances, "cause": causes, "kind": kinds}),
    *[
        (
            Machine.effect,
            {"instance": instances, "cause": causes, "first": st.booleans(), "call_index": small},
        )
    ]
    * 2,
    *[
        (
            Machine.step,
            {
                "instance": instances,
                "chain": chains,
                "offset": st.sampled_from([0, 0, 0, -1, 1]),
                "back": small,
                "diff": diffs,
            },
        )
    ]
    * 3,
    (Machine.reset, {"instance": st.sampled_from(["a", "b"])}),
    (
        Machine.fork,
        {"instance": instances, "to": st.sampled_from(["a", "b", "fork"]), "back": small},
    ),
    (Machine.reopen, {"number": small}),
    (Machine.rebuild, {"number": small}),
    *[(Machine.compare_the_past, {"instance": instances, "choice": choices})] * 2,
]


def same(left: object, right: object) -> bool:
    """Whether two JSON values are the same: True, 1 and 1.0 differ, the order of keys does not."""
    return orjson.dumps(left, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        right, option=orjson.OPT_SORT_KEYS
    )


@pytest.fixture
def embedded_worlds(tmp_path: Path, namespace: str) -> Iterator[list[World]]:
    config = Config.load({}, namespace=namespace)
    worlds = [
        World(f"memory://{namespace}?partitions=2", config),
        World(str(tmp_path / "log"), config),
    ]
    yield worlds
    for world in worlds:
        world.store.close()


def run(worlds: list[World], *, examples: int, steps: int) -> None:
    class OfTheseWorlds(Machine):
        def __init__(self) -> None:
            super().__init__(worlds)

    run_state_machine_as_test(
        OfTheseWorlds,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)  # thousands of commits, on a machine that does other things too
def test_memory_sqlite_and_a_dict_agree(embedded_worlds: list[World]) -> None:
    run(embedded_worlds, examples=100, steps=50)


@pytest.mark.soak
def test_memory_sqlite_and_a_dict_agree_for_long(embedded_worlds: list[World]) -> None:
    run(embedded_worlds, examples=500, steps=60)


def test_kafka_memory_and_a_dict_agree(kafka_url: str, tmp_path: Path, namespace: str) -> None:
    config = Config.load({}, namespace=namespace, partitions=2, view_path=tmp_path)
    worlds = [World(kafka_url, config), World(f"memory://{namespace}?partitions=2", config)]
    try:
        run(worlds, examples=4, steps=25)
    finally:
        for world in worlds:
            world.store.close()
