"""The fold holds in a random world of writers, and every one of its rules is needed there.

Goal: show that the rules of eventstore/fold.py are enough, and that none can be left out.
Method: run the world of world.py, whose judge knows nothing of the rules, for many seeds. Then take
the fold's own source, replace one exact piece of it, and let the same world find what goes wrong
(a "mutant"). A rule whose absence is seen in fewer than one world of a hundred, or only by whoever
asks for it, has a scenario instead: a few events that the mutant judges wrongly.
When a refactoring moves a piece, the mutant says so: its piece must occur exactly once.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from eventstore import fold as fold_module
from eventstore.events import (
    Answer,
    Copied,
    Event,
    ForkOf,
    Guard,
    Kind,
    Source,
    Verdict,
)
from eventstore.rows import ChainRow, Outcome
from tests.property.dict_rows import DictRows, Fold
from tests.property.world import STORM, Habits, Report, run

#: Worlds of the fast profile, in `make test`; and of the long one, about a minute of work, which
#: FOLDLOG_PROFILE=long asks for, or the soak, where each round has seeds of its own.
SEEDS_FAST, SEEDS_LONG = 600, 3_000
SOAK_ROUNDS = int(os.environ.get("EVENTSTORE_TEST_SOAK_ROUNDS", "1"))
BLOCK = 100
SOURCE = Path(fold_module.__file__).read_text(encoding="utf-8")


def _blocks() -> list[object]:
    """Blocks of seeds, so that workers share them; those beyond the fast profile are marked."""
    long = os.environ.get("FOLDLOG_PROFILE") == "long"
    return [
        pytest.param(start, marks=() if long or start < SEEDS_FAST else pytest.mark.soak)
        for start in range(0, SEEDS_LONG * SOAK_ROUNDS, BLOCK)
    ]


@pytest.mark.parametrize("first", _blocks())
def test_nothing_is_lost_doubled_or_made_on_a_stale_state_in_the_random_world(first: int) -> None:
    for seed in range(first, first + BLOCK):
        report = run(seed)

        assert not report.wrong, (seed, report.wrong, report.trace)


def test_nothing_goes_wrong_in_a_storm_either() -> None:
    for seed in range(100):
        report = run(seed, habits=Habits(impatient=1), weather=STORM)

        assert not report.wrong, (seed, report.wrong, report.trace)


def test_the_random_world_sees_every_verdict_many_times() -> None:
    verdicts = sum((run(seed).verdicts for seed in range(20)), start=run(20).verdicts)

    assert verdicts[Verdict.ACCEPTED] > 2_000
    assert verdicts[Verdict.CONFLICT] > 1_000
    assert verdicts[Verdict.DUPLICATE] > 500
    assert verdicts[Verdict.REJECTED] > 5


# --- rules taken out of the fold -----------------------------------------------------------------


def mutant(piece: str, replacement: str) -> Fold:
    """Return the fold with one piece of its source replaced."""
    assert SOURCE.count(piece) == 1, f"{SOURCE.count(piece)} times in fold.py: {piece!r}"
    module = types.ModuleType("mutant")
    exec(compile(SOURCE.replace(piece, replacement), "mutant of fold.py", "exec"), vars(module))
    changed: Fold = module.fold
    return changed


def first_wrong(consequence: str, worlds_max: int, world: Callable[[int], Report]) -> Report | None:
    """Return the report of the first world in which this goes wrong."""
    reports = (world(seed) for seed in range(worlds_max))
    return next((report for report in reports if consequence in report.wrong), None)


class Mutant(NamedTuple):
    """A rule, the piece of the fold's source that makes it, and what goes wrong without."""

    rule: str
    piece: str
    replacement: str
    consequence: str
    in_storm: bool = False


STALE = "a diff counts on a state that its writer did not read"
TWICE = "a write counts twice"

MUTANTS = [
    Mutant(
        "what used an idempotency key counts once",
        "(used := rows.key(key)) is not None:",
        "(used := rows.key(key)) is not None and False:",
        TWICE,
    ),
    Mutant(
        "a conflict does not use its key up",
        "        winner,\n        chain=_ended(rows, event),",
        "        winner,\n        key=_key(rows, event),\n        chain=_ended(rows, event),",
        "a write is lost",
    ),
    Mutant(
        "a step of a chain counts once",
        "guard.chain_index <= chain.chain_index",
        "False",
        TWICE,
    ),
    Mutant(
        "a source's number counts once",
        "source.number <= last",
        "False",
        "a trigger fires twice for one change",
    ),
    Mutant(
        "accepted numbers of a source are remembered",
        "return None if source is None else source.number",
        "return None",
        "a trigger fires twice for one change",
    ),
    Mutant(
        "an answer needs a request that is pending",
        "rows.pending(answer.cause) is None:",
        "False:",
        "the fold contradicts its rows",
    ),
    Mutant(
        "an effect is recorded once",
        "if recorded is not None:",
        "if False:",
        "an effect is recorded twice",
    ),
    Mutant(
        "an effect is known by its arguments",
        "rows.effect(answer.cause, event.name, call_index, digest)",
        "rows.effect(answer.cause, event.name, call_index, '')",
        "an effect is recorded twice",
    ),
    Mutant(
        "once is asked before order and guard",
        "    refused = _once(rows, event) or _order(rows, event) or _guard(rows, event)",
        "    refused = _guard(rows, event) or _once(rows, event) or _order(rows, event)",
        TWICE,
    ),
    Mutant(
        "a source's event links to the one before",
        "source.previous != rows.source(source.id)",
        "False",
        "a trigger misses a change",
    ),
    Mutant(
        "the parts of an answer are counted",
        "answer.part != request.parts",
        "False",
        "an answer is closed without all of its parts in order",
    ),
    Mutant(
        "accepted parts move the count",
        "parts=request.parts + 1",
        "parts=request.parts",
        "the world does not come to rest",
    ),
    Mutant(
        "a lane is answered in order",
        "if first != request.sequence:",
        "if False:",
        "a lane is answered out of order",
    ),
    Mutant(
        "delayed requests stand outside the lane's order",
        "if answer.closes and request.due_ms is None:",
        "if answer.closes:",
        "the world does not come to rest",
    ),
    Mutant(
        "a chain counts only in an unbroken row",
        "guard.chain_index != (0 if chain is None else chain.chain_index + 1)",
        "False",
        STALE,
    ),
    Mutant(
        "a refused chain is over for good",
        "if chain is not None and chain.ended:",
        "if False:",
        TWICE,
        in_storm=True,
    ),
    Mutant(
        "a conflict ends its chain",
        "        winner,\n        chain=_ended(rows, event),",
        "        winner,",
        TWICE,
        in_storm=True,
    ),
    Mutant(
        "a chain that was refused before it was seen is over too",
        "return ChainRow(-1 if chain is None else chain.chain_index, True)",
        "return None if chain is None else ChainRow(chain.chain_index, True)",
        TWICE,
        in_storm=True,
    ),
    Mutant("guarded fields must not have changed", "if version > guard.base:", "if False:", STALE),
    Mutant(
        "a chain's own change does not hide a foreign one before it",
        "return touch.foreign",
        "return 0",
        STALE,
    ),
    Mutant(
        "a foreign change between two of a chain is remembered",
        "old.foreign if old.setter == chain else old.version",
        "old.foreign",
        STALE,
    ),
    Mutant(
        "a field without a row changed at the reset",
        "            return rows.floor",
        "            return 0",
        STALE,
    ),
    Mutant(
        "a deleted field keeps its versions",
        "        touch = row.touch\n",
        "        touch = row.touch if row.shape else Touch(0, None, 0)\n",
        STALE,
    ),
    Mutant(
        "* guards every field",
        "touch = rows.star",
        "touch = Touch(rows.floor, None, rows.floor)",
        STALE,
    ),
    Mutant(
        "* changes with every diff",
        "_touched(rows.star, version, chain) if version != rows.version else None",
        "None",
        STALE,
    ),
    Mutant(
        "a reset is a version",
        "    version = rows.version + 1\n    return _accepted",
        "    version = rows.version\n    return _accepted",
        STALE,
    ),
    Mutant("a reset raises the floor", "        floor=version,", "        floor=0,", STALE),
    Mutant(
        "a reset closes what is pending",
        "closed=tuple(rows.pendings())",
        "closed=()",
        "a request is closed twice",
    ),
    Mutant(
        "a fork counts on version 0 only",
        "    if rows.version:\n        return _conflict(",
        "    if False:\n        return _conflict(",
        "a fork does not make the state that it carries",
    ),
    Mutant(
        "half a fork is given up for what comes in between",
        "given_up = rows.fork_parts > 0",
        "given_up = False",
        "the state is not what the operations say",
        in_storm=True,
    ),
    Mutant(
        "a copied event takes the place that it states, or none",
        "if copied is not None and copied.sequence != rows.sequence:",
        "if False:",
        "a resumed copy differs",
    ),
]


@pytest.mark.parametrize("broken", MUTANTS, ids=lambda broken: broken.rule.replace(" ", "-"))
def test_without_this_rule_something_goes_wrong_in_the_random_world(broken: Mutant) -> None:
    fold = mutant(broken.piece, broken.replacement)
    habits = Habits(impatient=1) if broken.in_storm else None
    weather = STORM if broken.in_storm else None

    report = first_wrong(
        broken.consequence, 250, lambda seed: run(seed, fold, habits, weather=weather)
    )

    assert report is not None


def test_the_fold_compiled_anew_without_a_change_does_nothing_wrong() -> None:
    # Or the mutants above would fail for how they are made, not for what they lack.
    fold = mutant("FOLD_NUMBER: Final = 1", "FOLD_NUMBER: Final = 1")

    for seed in range(10):
        assert not run(seed, fold).wrong


# --- rows that forget ----------------------------------------------------------------------------


class ForgetfulRows(DictRows):
    """Rows that keep only the last two chains."""

    def apply(self, event: Event, outcome: Outcome, time_ms: int = 0) -> None:
        if outcome.chain is not None and event.guard is not None:
            self.chains.pop(event.guard.chain or "", None)  # so that it is the youngest again
        super().apply(event, outcome, time_ms)
        while len(self.chains) > 2:
            del self.chains[next(iter(self.chains))]


class ResetRows(DictRows):
    """Rows that a reset clears of keys, chains and sources as well."""

    def apply(self, event: Event, outcome: Outcome, time_ms: int = 0) -> None:
        super().apply(event, outcome, time_ms)
        if event.kind == Kind.RESET and outcome.verdict == Verdict.ACCEPTED:
            self.keys, self.chains, self.sources = {}, {}, {}


class TomblessRows(DictRows):
    """Rows that forget a field when it is deleted."""

    def apply(self, event: Event, outcome: Outcome, time_ms: int = 0) -> None:
        super().apply(event, outcome, time_ms)
        self.fields = {name: row for name, row in self.fields.items() if row.shape}


@pytest.mark.parametrize(
    ("rows", "consequence"),
    [(ForgetfulRows, TWICE), (ResetRows, TWICE), (TomblessRows, STALE)],
)
def test_rows_that_forget_let_something_go_wrong(rows: type[DictRows], consequence: str) -> None:
    report = first_wrong(consequence, 250, lambda seed: run(seed, rows=rows))

    assert report is not None


# --- writers that cheat --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("habits", "consequence"),
    [
        (Habits(predicts_versions=True), STALE),
        (Habits(trusts_own_effects=True), "an answer relies on a result that is not recorded"),
        (
            Habits(effects_without_arguments=True),
            "an answer relies on a call with other arguments",
        ),
        (Habits(parts_without_chain=True), STALE),
        (Habits(cursor_first=True), "a trigger misses a change"),
        (Habits(commits_with_key=False), TWICE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_writers_that_do_not_keep_their_side_make_something_go_wrong(
    habits: Habits, consequence: str
) -> None:
    report = first_wrong(consequence, 400, lambda seed: run(seed, habits=habits))

    assert report is not None


# --- scenarios for what a random world hardly shows ----------------------------------------------


def diff(*operations: list[object], **more: Any) -> Event:
    return Event(Kind.DIFF, body=orjson.dumps(operations))._replace(**more)


def key_of_a_rejected_event(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(diff(["set", "a", "text"]))
    rows.take(diff(["append", "a", 1], idempotency_key="k"))
    rows.take(diff(["set", "a", []]))

    copy = rows.take(diff(["append", "a", 1], idempotency_key="k"))

    assert (copy.verdict, copy.winner) == (Verdict.DUPLICATE, 1)


def key_with_other_content(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(diff(["set", "a", 1], idempotency_key="k"))

    other = rows.take(diff(["set", "a", 2], idempotency_key="k"))

    assert (other.verdict, other.winner) == (Verdict.REJECTED, 0)


def step_that_fits_later(fold: Fold) -> None:
    rows = DictRows(fold)
    step = diff(["append", "a", 1], guard=Guard(1, (), "c", 0))
    rows.take(diff(["set", "a", "text"]))
    rows.take(step)
    rows.take(diff(["set", "a", []]))

    copy = rows.take(step)

    assert copy.verdict == Verdict.CONFLICT


def copy_of_an_answer(fold: Fold) -> None:
    rows = DictRows(fold)
    answer = diff(["set", "a", 1], guard=Guard(0, ("a",), "c", 0), answer=Answer(0, 0, True))
    rows.take(Event(Kind.REQUEST))
    rows.take(answer)

    copy = rows.take(answer)

    assert (copy.verdict, copy.winner) == (Verdict.DUPLICATE, 1)


def first_step_after_its_own_chain(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(diff(["set", "a", 1], guard=Guard(0, ("a",), "c", 0)))
    rows.chains["c"] = ChainRow(-1, False)  # as if the chain's row had been lost

    again = rows.take(diff(["set", "a", 2], guard=Guard(0, ("a",), "c", 0)))

    assert again.verdict == Verdict.CONFLICT


def third_step_on_one_field(fold: Fold) -> None:
    rows = DictRows(fold)
    steps = [diff(["set", "a", n], guard=Guard(0, ("a", "*"), "c", n)) for n in range(3)]

    assert [rows.take(step).verdict for step in steps] == [Verdict.ACCEPTED] * 3


def star_over_a_reset(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(diff(["set", "a", 1]))
    rows.take(Event(Kind.RESET))

    late = rows.take(diff(["set", "b", 1], guard=Guard(1, ("*",))))

    assert late.verdict == Verdict.CONFLICT


def fork(part: int = 0, parts: int = 1, *operations: list[object], **more: Any) -> Event:
    event = Event(Kind.FORK, body=orjson.dumps(operations), fork=ForkOf("p", "i", 3, part, parts))
    return event._replace(guard=Guard(0, (), "fork", part))._replace(**more)


def star_over_a_fork(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(fork(0, 1, ["set", "a", 1]))

    late = rows.take(diff(["set", "b", 1], guard=Guard(0, ("*",))))

    assert late.verdict == Verdict.CONFLICT


def two_forks_at_once(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(fork(0, 2, ["set", "a", 1]))
    rows.take(fork(0, 2, ["set", "a", 2], guard=Guard(0, (), "other", 0)))
    second_of_the_other = rows.take(fork(1, 2, ["set", "b", 2], guard=Guard(0, (), "other", 1)))
    rows.take(fork(1, 2, ["set", "b", 1]))

    assert second_of_the_other.verdict == Verdict.CONFLICT
    assert rows.state() == {"a": 1, "b": 1}


def fork_in_parts_without_a_chain(fold: Fold) -> None:
    rows = DictRows(fold)

    half = rows.take(fork(0, 2, ["set", "a", 1], guard=None))

    assert half.verdict == Verdict.REJECTED


def writer_before_half_a_fork(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(fork(0, 2, ["set", "a", "half"]))

    commit = rows.take(diff(["set", "a", 1], guard=Guard(0, ("a", "*"))))

    assert commit.verdict == Verdict.ACCEPTED
    assert rows.state() == {"a": 1}


def answer_that_changes_nothing(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(Event(Kind.REQUEST))

    rows.take(diff(answer=Answer(0, 0, True)))

    assert (rows.version, rows.waiting) == (0, {})


def attempts(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(Event(Kind.REQUEST))

    rows.take(Event(Kind.ATTEMPT, answer=Answer(0)))
    rows.take(Event(Kind.ATTEMPT, answer=Answer(0)))

    assert rows.waiting[0].attempts == 2


def older_generation(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(Event(Kind.REQUEST))
    rows.take(Event(Kind.NOTE, "generation", b'{"generation": 1}'))
    late = [
        diff(["set", "a", 1], guard=Guard(0, ("a",))),
        diff(["set", "a", 1], answer=Answer(0, 0, True)),
        diff(["set", "a", 1], source=Source("s", (0, 0))),
    ]

    assert [rows.take(event).verdict for event in late] == [Verdict.CONFLICT] * 3
    assert rows.take(late[0]._replace(generation=1)).verdict == Verdict.ACCEPTED
    assert rows.take(late[1]._replace(generation=1)).verdict == Verdict.ACCEPTED


def cause_of_an_older_generation(fold: Fold) -> None:
    # The log was cut behind sequence 0, and what is closed there now is another request.
    rows = DictRows(fold, generation=1)
    rows.take(Event(Kind.REQUEST, generation=1))
    rows.take(Event(Kind.DISCARD, answer=Answer(0), generation=1))

    late = rows.take(diff(["set", "a", 1], answer=Answer(0, 0, True)))

    assert late.verdict == Verdict.CONFLICT


def generation_that_does_not_rise(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(Event(Kind.NOTE, "generation", b'{"generation": 2}'))

    again = rows.take(Event(Kind.NOTE, "generation", b'{"generation": 2}', generation=2))

    assert again.verdict == Verdict.REJECTED


def operations_that_do_not_fit_together(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(diff(["set", "a", 1], ["set", "b", "text"]))

    refused = rows.take(diff(["increment", "a", 1], ["increment", "b", 1], idempotency_key="k"))

    assert refused.verdict == Verdict.REJECTED
    assert (rows.version, rows.state()) == (1, {"a": 1, "b": "text"})


def event_that_was_copied_already(fold: Fold) -> None:
    rows = DictRows(fold)
    rows.take(diff(["set", "a", 1], copied=Copied(0, 1_000)))

    again = rows.take(diff(["set", "a", 1], copied=Copied(0, 1_000)))

    assert (again.verdict, again.sequence, len(rows.history)) == (Verdict.DUPLICATE, None, 1)


def operation_after_a_set(fold: Fold) -> None:
    rows = DictRows(fold)

    outcome = rows.take(diff(["set", "a", []], ["append", "a", 1]))

    assert outcome.fields is not None
    assert outcome.fields["a"].operations == [["set", "a", []], ["append", "a", 1]]
    assert rows.state() == {"a": [1]}


SCENARIOS: list[tuple[Callable[[Fold], None], str, str]] = [
    (
        key_of_a_rejected_event,
        "        key=_key(rows, event),\n        chain=_ended(rows, event),",
        "        chain=_ended(rows, event),",
    ),
    (key_with_other_content, "used.content != content_digest(event)", "False"),
    (
        step_that_fits_later,
        "        key=_key(rows, event),\n        chain=_ended(rows, event),",
        "        key=_key(rows, event),",
    ),
    (
        copy_of_an_answer,
        "\n    refused = _once(rows, event) or _order(rows, event) or _guard(rows, event)",
        "\n    refused = _guard(rows, event) or _once(rows, event) or _order(rows, event)",
    ),
    (first_step_after_its_own_chain, "guard.chain_index > 0 and touch", "touch"),
    (third_step_on_one_field, "return touch.foreign", "return touch.version"),
    (
        third_step_on_one_field,
        "old.foreign if old.setter == chain else old.version",
        "old.version",
    ),
    (
        star_over_a_reset,
        "        floor=version,\n        star=Touch(version, None, version),",
        "        floor=version,",
    ),
    (star_over_a_fork, "star=Touch(1, None, 1), fork_parts=0", "fork_parts=0"),
    (two_forks_at_once, "fork.part != rows.fork_parts", "False"),
    (fork_in_parts_without_a_chain, "fork.parts > 1 and ", "False and "),
    (writer_before_half_a_fork, "row is None or rows.fork_parts", "row is None"),
    (answer_that_changes_nothing, "before + 1 if operations else before", "before + 1"),
    (attempts, "attempts=request.attempts + 1", "attempts=request.attempts"),
    (older_generation, "if event.generation != rows.generation and (", "if False and ("),
    (
        cause_of_an_older_generation,
        "answer is not None and event.generation == rows.generation",
        "answer is not None",
    ),
    (generation_that_does_not_rise, "or generation <= rows.generation", ""),
    (
        operations_that_do_not_fit_together,
        "        return _rejected(rows, event, str(error))\n    opened",
        "        fields = {}\n    opened",
    ),
    (event_that_was_copied_already, "copied.sequence != rows.sequence", "False"),
    (operation_after_a_set, "and value is operations[-2][-1]", "and False"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "piece", "replacement"),
    SCENARIOS,
    ids=[f"{number}-{scenario.__name__}" for number, (scenario, _, _) in enumerate(SCENARIOS)],
)
def test_the_fold_judges_a_scenario_rightly_and_without_its_rule_wrongly(
    scenario: Callable[[Fold], None], piece: str, replacement: str
) -> None:
    scenario(fold_module.fold)

    with pytest.raises(AssertionError):
        scenario(mutant(piece, replacement))
