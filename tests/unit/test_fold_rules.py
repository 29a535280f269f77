"""The rules of the fold, one sentence each.

What goes wrong without them is shown by tests/property/test_fold_world.py; here is what each says.
The instance is a `DictRows`, which holds in plain dicts what the fold decided.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from eventstore.diff import ABSENT, Shape
from eventstore.events import (
    Answer,
    Copied,
    EffectKey,
    Event,
    ForkOf,
    Guard,
    Kind,
    RequestPolicy,
    Source,
    Verdict,
)
from eventstore.fold import GENERATION_NOTE, fold
from eventstore.rows import UNKNOWN, Outcome, Touch
from tests.property.dict_rows import DictRows

ACCEPTED, CONFLICT = Verdict.ACCEPTED, Verdict.CONFLICT
DUPLICATE, REJECTED = Verdict.DUPLICATE, Verdict.REJECTED


@pytest.fixture
def rows() -> DictRows:
    return DictRows()


def diff(*operations: list[Any], **more: Any) -> Event:
    return Event(Kind.DIFF, body=orjson.dumps(operations))._replace(**more)


def put(name: str, value: Any, **more: Any) -> Event:
    return diff(["set", name, value], **more)


def request(lane: str = "", due_ms: int | None = None) -> Event:
    return Event(Kind.REQUEST, "update", request=RequestPolicy(lane, not_before_ms=due_ms))


def answer(cause: int, part: int = 0, *, closes: bool = True, **more: Any) -> Event:
    return put("a", part, answer=Answer(cause, part, closes), **more)


def effect(cause: int, call_index: int = 0, digest: str = "x", **more: Any) -> Event:
    key = EffectKey(call_index, digest)
    return Event(Kind.EFFECT, "ask", b"1", answer=Answer(cause), effect=key)._replace(**more)


def verdicts(rows: DictRows, *events: Event) -> list[Verdict]:
    return [rows.take(event).verdict for event in events]


def refusal(outcome: Outcome) -> tuple[Verdict, int | None]:
    return outcome.verdict, outcome.winner


# --- versions ------------------------------------------------------------------------------------


def test_every_accepted_diff_makes_one_version(rows: DictRows) -> None:
    rows.take(put("a", 1))
    rows.take(diff(["increment", "a", 1], ["set", "b", 0]))

    assert rows.version == 2
    assert [rows.at(version) for version in range(3)] == [{}, {"a": 1}, {"a": 2, "b": 0}]


def test_every_event_takes_a_place_and_a_refused_one_changes_nothing_else(rows: DictRows) -> None:
    rows.take(put("a", "text"))

    refused = rows.take(diff(["append", "a", 1]))

    assert (refused.verdict, refused.sequence, refused.version) == (REJECTED, 1, 1)
    assert (rows.sequence, rows.version, rows.state()) == (2, 1, {"a": "text"})


def test_events_without_operations_make_no_version(rows: DictRows) -> None:
    rows.take(request())
    rows.take(effect(0))
    rows.take(Event(Kind.ATTEMPT, answer=Answer(0)))
    rows.take(Event(Kind.NOTE, "remark", b"{}"))
    rows.take(diff(answer=Answer(0, 0, True)))

    assert (rows.sequence, rows.version) == (5, 0)


# --- once ----------------------------------------------------------------------------------------


def test_a_second_event_with_the_same_key_and_content_is_a_duplicate_of_the_first(
    rows: DictRows,
) -> None:
    rows.take(put("b", 0))
    rows.take(put("a", 1, idempotency_key="k"))

    second = rows.take(put("a", 1, idempotency_key="k"))

    assert refusal(second) == (DUPLICATE, 1)


@pytest.mark.parametrize(
    "other",
    [
        put("a", 2),
        put("a", 1)._replace(name="n"),
        put("a", 1, outbox=b"[1]"),
        put("a", 1, answer=Answer(0)),
        Event(Kind.NOTE, body=orjson.dumps([["set", "a", 1]])),
    ],
)
def test_a_key_with_other_content_is_rejected_and_names_the_first(
    rows: DictRows, other: Event
) -> None:
    rows.take(request())
    rows.take(put("a", 1, idempotency_key="k"))

    second = rows.take(other._replace(idempotency_key="k"))

    assert refusal(second) == (REJECTED, 1)


def test_a_retry_may_have_another_guard_than_the_first_attempt(rows: DictRows) -> None:
    rows.take(put("a", 1, idempotency_key="k"))

    retry = rows.take(put("a", 1, idempotency_key="k", guard=Guard(1, ("a",))))

    assert refusal(retry) == (DUPLICATE, 0)


def test_a_key_stays_free_after_a_conflict(rows: DictRows) -> None:
    rows.take(put("a", 1))
    late = put("a", 2, idempotency_key="k", guard=Guard(0, ("a",)))

    assert verdicts(rows, late, late._replace(guard=Guard(1, ("a",)))) == [CONFLICT, ACCEPTED]


def test_a_key_is_used_up_by_a_rejection(rows: DictRows) -> None:
    rows.take(put("a", "text"))
    rows.take(diff(["append", "a", 1], idempotency_key="k"))
    rows.take(put("a", []))

    assert refusal(rows.take(diff(["append", "a", 1], idempotency_key="k"))) == (DUPLICATE, 1)


def test_a_step_of_a_chain_counts_once(rows: DictRows) -> None:
    first, second = (put("a", n, guard=Guard(0, ("a",), "c", n)) for n in range(2))
    rows.take(first)
    rows.take(second)

    assert refusal(rows.take(first)) == (DUPLICATE, 0)
    assert refusal(rows.take(second)) == (DUPLICATE, 1)


def test_a_number_of_a_source_counts_once(rows: DictRows) -> None:
    event = put("a", 1, source=Source("s", (4, 0)))
    rows.take(event)

    assert refusal(rows.take(event)) == (DUPLICATE, 0)


@pytest.mark.parametrize("kind", [Kind.DIFF, Kind.EFFECT, Kind.ATTEMPT, Kind.DISCARD, Kind.FAILURE])
def test_whatever_comes_for_a_closed_request_is_a_duplicate_of_what_closed_it(
    rows: DictRows, kind: Kind
) -> None:
    rows.take(request())
    rows.take(answer(0))

    late = Event(kind, "ask", b"[]", answer=Answer(0, 0, True), effect=EffectKey(0, "x"))

    assert refusal(rows.take(late)) == (DUPLICATE, 1)


def test_an_answer_to_a_request_that_never_was_does_not_count(rows: DictRows) -> None:
    assert refusal(rows.take(answer(17))) == (DUPLICATE, None)


def test_an_effect_is_recorded_once_for_its_request_call_and_arguments(rows: DictRows) -> None:
    rows.take(request())
    rows.take(request())
    rows.take(effect(0))

    assert refusal(rows.take(effect(0))) == (DUPLICATE, 2)
    others = effect(1), effect(0, call_index=1), effect(0, digest="y"), effect(0, name="tell")
    assert verdicts(rows, *others) == [ACCEPTED] * 4


def test_a_second_copy_is_a_duplicate_even_if_its_guard_has_failed_since(rows: DictRows) -> None:
    event = put("a", 1, idempotency_key="k", guard=Guard(0, ("a",)))
    rows.take(event)
    rows.take(put("a", 2))

    assert refusal(rows.take(event)) == (DUPLICATE, 0)


# --- order ---------------------------------------------------------------------------------------


def test_a_source_that_leaves_a_gap_is_refused_until_the_gap_is_filled(rows: DictRows) -> None:
    first = put("a", 1, source=Source("s", (1, 0)))
    second = put("a", 2, source=Source("s", (3, 1), (1, 0)))

    assert verdicts(rows, second, first, second) == [CONFLICT, ACCEPTED, ACCEPTED]


def test_two_sources_do_not_mind_each_other(rows: DictRows) -> None:
    events = [put("a", 1, source=Source(name, (5, 0))) for name in ("s", "t")]

    assert verdicts(rows, *events) == [ACCEPTED, ACCEPTED]


def test_parts_of_an_answer_count_in_their_order(rows: DictRows) -> None:
    rows.take(request())
    first, last = answer(0, 0, closes=False), answer(0, 1)

    assert verdicts(rows, last, first, first, last) == [CONFLICT, ACCEPTED, CONFLICT, ACCEPTED]
    assert rows.waiting == {}


def test_a_lane_is_answered_in_its_order(rows: DictRows) -> None:
    for lane in ("left", "left", "right"):
        rows.take(request(lane))

    assert refusal(rows.take(answer(1))) == (CONFLICT, 0)
    assert verdicts(rows, answer(2), answer(0), answer(1)) == [ACCEPTED] * 3


def test_a_failure_keeps_the_order_of_the_lane_and_a_discard_need_not(rows: DictRows) -> None:
    for _ in range(3):
        rows.take(request())
    failure = Event(Kind.FAILURE, answer=Answer(1, closes=True))
    discard = Event(Kind.DISCARD, answer=Answer(1, closes=True))

    assert verdicts(rows, failure, discard, failure) == [CONFLICT, ACCEPTED, DUPLICATE]


def test_a_part_that_does_not_close_need_not_wait_for_the_lane(rows: DictRows) -> None:
    rows.take(request())
    rows.take(request())

    assert verdicts(rows, answer(1, closes=False)) == [ACCEPTED]


def test_a_delayed_request_neither_waits_for_its_lane_nor_is_waited_for(rows: DictRows) -> None:
    for due_ms in (1, None, 1):
        rows.take(request("left", due_ms))

    assert verdicts(rows, answer(2), answer(1), answer(0)) == [ACCEPTED] * 3


def test_a_failed_attempt_leaves_the_request_pending_and_a_final_failure_closes_it(
    rows: DictRows,
) -> None:
    rows.take(request())

    rows.take(Event(Kind.FAILURE, answer=Answer(0)))
    still_pending = dict(rows.waiting)
    rows.take(Event(Kind.FAILURE, answer=Answer(0, closes=True)))

    assert list(still_pending) == [0]
    assert rows.waiting == {}


def test_a_chain_counts_only_from_its_first_step_on_and_is_over_once_refused(
    rows: DictRows,
) -> None:
    steps = [put("a", n, guard=Guard(0, (), "c", n)) for n in range(3)]

    assert verdicts(rows, steps[0], steps[2], steps[1]) == [ACCEPTED, CONFLICT, CONFLICT]
    assert rows.state() == {"a": 0}


def test_a_chain_whose_second_step_came_first_is_over(rows: DictRows) -> None:
    steps = [put("a", n, guard=Guard(0, (), "c", n)) for n in range(2)]

    assert verdicts(rows, steps[1], steps[0], steps[1]) == [CONFLICT] * 3


def test_a_chain_is_over_after_a_rejected_step(rows: DictRows) -> None:
    rows.take(put("a", "text"))
    step = diff(["append", "a", 1], guard=Guard(1, (), "c", 0))
    rows.take(step)
    rows.take(put("a", []))

    assert verdicts(rows, step) == [CONFLICT]


def test_a_chain_is_over_after_a_step_with_a_key_of_another_event(rows: DictRows) -> None:
    rows.take(put("a", 1, idempotency_key="k"))
    guard = Guard(1, (), "c", 0)
    rows.take(put("a", 2, idempotency_key="k", guard=guard))

    assert verdicts(rows, put("a", 3, guard=guard)) == [CONFLICT]


# --- guard ---------------------------------------------------------------------------------------


def test_a_guarded_field_must_not_have_changed_since_it_was_read(rows: DictRows) -> None:
    rows.take(put("a", 1))
    rows.take(put("b", 1))

    stale = rows.take(put("a", 2, guard=Guard(1, ("a", "b"))))
    fresh = rows.take(put("a", 2, guard=Guard(1, ("a",))))

    assert refusal(stale) == (CONFLICT, 1)
    assert stale.reason == "b\0field 'b' changed at version 2, after version 1 that was read"
    assert fresh.verdict == ACCEPTED


def test_setting_an_equal_value_is_a_change(rows: DictRows) -> None:
    rows.take(put("a", 1))
    rows.take(put("a", 1))

    assert verdicts(rows, put("a", 2, guard=Guard(1, ("a",)))) == [CONFLICT]


def test_a_star_guards_all_fields_also_those_that_were_not_there(rows: DictRows) -> None:
    rows.take(put("a", 1))

    assert verdicts(rows, put("b", 1, guard=Guard(0, ("*",)))) == [CONFLICT]
    assert verdicts(rows, put("b", 1, guard=Guard(1, ("*",)))) == [ACCEPTED]


def test_a_deleted_field_keeps_the_version_of_its_deletion(rows: DictRows) -> None:
    rows.take(put("a", 1))
    rows.take(diff(["delete", "a"]))

    assert verdicts(rows, put("a", 2, guard=Guard(1, ("a",)))) == [CONFLICT]
    assert verdicts(rows, put("a", 2, guard=Guard(2, ("a",)))) == [ACCEPTED]


def test_a_field_that_never_was_has_not_changed(rows: DictRows) -> None:
    rows.take(put("a", 1))

    assert verdicts(rows, put("b", 2, guard=Guard(0, ("b",)))) == [ACCEPTED]


def test_steps_of_a_chain_do_not_stand_in_their_own_way(rows: DictRows) -> None:
    steps = [put("a", n, guard=Guard(0, ("a", "*"), "c", n)) for n in range(4)]

    assert verdicts(rows, *steps) == [ACCEPTED] * 4


@pytest.mark.parametrize("foreign", [put("a", 9), diff(["append", "b", 9])])
def test_a_foreign_change_between_two_steps_refuses_the_second(
    rows: DictRows, foreign: Event
) -> None:
    rows.take(put("a", 0, guard=Guard(0, ("a", "*"), "c", 0)))
    rows.take(foreign)

    assert verdicts(rows, put("a", 1, guard=Guard(0, ("a", "*"), "c", 1))) == [CONFLICT]


def test_a_foreign_change_that_the_chain_wrote_over_blindly_is_still_foreign(
    rows: DictRows,
) -> None:
    rows.take(diff(["append", "a", 0], guard=Guard(0, (), "c", 0)))
    rows.take(diff(["append", "a", 9]))
    rows.take(diff(["append", "a", 1], guard=Guard(0, (), "c", 1)))

    assert rows.fields["a"].touch == Touch(3, "c", 2)
    assert verdicts(rows, put("a", 2, guard=Guard(0, ("a",), "c", 2))) == [CONFLICT]


# --- fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b"1", b"[1]", b'[["explode","a"]]', b'[["set","*",1]]', b"\xff"]
)
def test_a_body_that_is_not_a_list_of_operations_is_rejected(rows: DictRows, body: bytes) -> None:
    assert verdicts(rows, Event(Kind.DIFF, body=body)) == [REJECTED]


def test_operations_that_do_not_all_fit_are_rejected_together(rows: DictRows) -> None:
    rows.take(diff(["set", "a", [1]], ["set", "b", "text"]))

    refused = rows.take(diff(["append", "a", 2], ["append", "b", 2]))

    assert refused.verdict == REJECTED
    assert refused.reason == "append 'b': it is text, not a list"
    assert rows.state() == {"a": [1], "b": "text"}


def test_a_value_nested_too_deep_is_rejected(rows: DictRows) -> None:
    deep = b"[" * 249 + b"]" * 249

    assert verdicts(rows, Event(Kind.DIFF, body=b'[["set","a",' + deep + b"]]")) == [REJECTED]


def test_appending_to_a_value_does_not_load_it(
    rows: DictRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.take(diff(["set", "l", [1]], ["set", "t", "x"], ["set", "d", {}]))
    monkeypatch.setattr(rows, "value", None)  # calling it would fail
    event = diff(
        ["append", "l", 2],
        ["extend", "l", [3]],
        ["append_text", "t", "y"],
        ["merge_into", "d", {"k": 1}],
    )

    outcome = fold(rows, event, 0)

    assert outcome.fields is not None
    assert {name: change.value for name, change in outcome.fields.items()} == dict.fromkeys(
        ("l", "t", "d"), UNKNOWN
    )


def test_an_operation_after_unread_appends_meets_what_they_made(rows: DictRows) -> None:
    rows.take(put("l", [1]))

    outcome = rows.take(diff(["append", "l", 2], ["append", "l", 3], ["remove", "l", 1]))

    assert rows.state() == {"l": [1, 3]}
    assert outcome.fields is not None
    assert outcome.fields["l"].value == [1, 3]


def test_a_change_holds_each_operation_as_it_was_written(rows: DictRows) -> None:
    outcome = rows.take(diff(["set", "a", {"l": []}], ["append", ["a", "l"], {}]))

    assert outcome.fields is not None
    change = outcome.fields["a"]
    assert change.operations == [["set", "a", {"l": []}], ["append", ["a", "l"], {}]]
    assert change.value == {"l": [{}]}


def test_a_deletion_is_a_change_to_nothing(rows: DictRows) -> None:
    rows.take(put("a", 1))

    outcome = rows.take(diff(["delete", "a"]))

    assert outcome.fields is not None
    assert outcome.fields["a"].value is ABSENT
    assert outcome.fields["a"].shape == Shape.ABSENT
    assert rows.state() == {}


@pytest.mark.parametrize("kind", [Kind.EFFECT, Kind.ATTEMPT, Kind.DISCARD, Kind.FAILURE, Kind.FORK])
def test_an_event_without_what_its_kind_needs_is_rejected(rows: DictRows, kind: Kind) -> None:
    assert verdicts(rows, Event(kind, body=b"[]")) == [REJECTED]


def test_the_reserved_kind_is_rejected(rows: DictRows) -> None:
    assert verdicts(rows, Event(Kind.ERASE)) == [REJECTED]


def test_attempts_are_counted(rows: DictRows) -> None:
    rows.take(request())

    for _ in range(3):
        rows.take(Event(Kind.ATTEMPT, answer=Answer(0)))

    assert rows.waiting[0].attempts == 3


# --- reset and fork ------------------------------------------------------------------------------


def test_a_reset_clears_the_fields_and_closes_what_is_pending_in_one_version(
    rows: DictRows,
) -> None:
    rows.take(put("a", 1))
    rows.take(request())

    reset = rows.take(Event(Kind.RESET))

    assert (rows.version, rows.floor, rows.state(), rows.waiting) == (2, 2, {}, {})
    assert reset.closed == (1,)
    assert refusal(rows.take(answer(1))) == (DUPLICATE, 2)


def test_whoever_read_before_a_reset_is_refused(rows: DictRows) -> None:
    rows.take(put("a", 1))
    rows.take(Event(Kind.RESET))

    late = [put("x", 1, guard=Guard(1, (name,))) for name in ("a", "never", "*")]

    assert verdicts(rows, *late) == [CONFLICT] * 3


def test_keys_chains_and_sources_outlive_a_reset(rows: DictRows) -> None:
    events = [
        put("a", 1, idempotency_key="k"),
        put("a", 2, guard=Guard(0, (), "c", 0)),
        put("a", 3, source=Source("s", (0, 0))),
    ]
    verdicts(rows, *events, Event(Kind.RESET))

    assert verdicts(rows, *events) == [DUPLICATE] * 3


def fork(part: int, parts: int, *operations: list[Any], chain: str = "fork") -> Event:
    return Event(
        Kind.FORK,
        body=orjson.dumps(operations),
        guard=Guard(0, (), chain, part),
        fork=ForkOf("app", "other", 7, part, parts),
    )


def test_a_fork_makes_version_1_of_an_instance_that_has_none(rows: DictRows) -> None:
    rows.take(fork(0, 1, ["set", "a", 1]))

    assert (rows.version, rows.state()) == (1, {"a": 1})
    assert verdicts(rows, fork(0, 1, chain="second")) == [CONFLICT]


def test_a_fork_in_parts_shows_only_when_it_is_complete(rows: DictRows) -> None:
    rows.take(fork(0, 2, ["set", "a", "x"]))
    half = rows.version, rows.state()

    rows.take(fork(1, 2, ["append_text", "a", "y"], ["set", "b", 1]))

    assert half == (0, {})
    assert (rows.version, rows.state()) == (1, {"a": "xy", "b": 1})


def test_half_a_fork_is_given_up_for_a_diff_that_comes_in_between(rows: DictRows) -> None:
    rows.take(fork(0, 2, ["set", "a", "x"], ["set", "b", "x"]))

    rows.take(put("a", 1, guard=Guard(0, ("a",))))
    late = rows.take(fork(1, 2, ["set", "b", 1]))

    assert late.verdict == CONFLICT
    assert rows.state() == {"a": 1}


def test_parts_of_two_forks_are_not_mixed(rows: DictRows) -> None:
    rows.take(fork(0, 2, ["set", "a", 1]))

    others = fork(0, 2, ["set", "a", 2], chain="other"), fork(1, 2, chain="other")

    assert verdicts(rows, *others) == [CONFLICT, CONFLICT]
    assert verdicts(rows, fork(1, 2)) == [ACCEPTED]
    assert rows.state() == {"a": 1}


def test_parts_of_a_fork_that_are_no_chain_are_rejected(rows: DictRows) -> None:
    assert verdicts(rows, fork(0, 2)._replace(guard=None)) == [REJECTED]


# --- generations and copies ----------------------------------------------------------------------


def test_what_rests_on_an_older_generation_of_the_log_is_refused(rows: DictRows) -> None:
    rows.take(request())
    rows.take(Event(Kind.NOTE, GENERATION_NOTE, b'{"generation": 3}'))
    late = [
        put("a", 1, guard=Guard(0, ("a",))),
        answer(0),
        put("a", 1, source=Source("s", (0, 0))),
    ]

    assert verdicts(rows, *late) == [CONFLICT] * 3
    assert verdicts(rows, *(event._replace(generation=3) for event in late)) == [ACCEPTED] * 3


def test_a_blind_write_of_an_older_generation_counts(rows: DictRows) -> None:
    rows.take(Event(Kind.NOTE, GENERATION_NOTE, b'{"generation": 1}'))

    assert verdicts(rows, put("a", 1)) == [ACCEPTED]


@pytest.mark.parametrize("body", [b'{"generation": 0}', b'{"generation": "1"}', b"{}", b"[]", b""])
def test_a_generation_only_rises(rows: DictRows, body: bytes) -> None:
    assert verdicts(rows, Event(Kind.NOTE, GENERATION_NOTE, body)) == [REJECTED]
    assert rows.generation == 0


def test_a_copied_event_that_is_here_already_takes_no_place(rows: DictRows) -> None:
    events = [put("a", n, copied=Copied(n, 1_000 + n)) for n in range(3)]
    verdicts(rows, *events[:2])

    again = [rows.take(event) for event in events]

    assert [outcome.sequence for outcome in again] == [None, None, 2]
    assert [outcome.verdict for outcome in again] == [DUPLICATE, DUPLICATE, ACCEPTED]
    assert rows.state() == {"a": 2}


def test_the_fold_asks_and_does_not_change_the_rows(rows: DictRows) -> None:
    rows.take(diff(["set", "a", [1]], idempotency_key="k"))

    outcomes = [fold(rows, diff(["append", "a", 2]), time_ms) for time_ms in (0, 5)]

    assert outcomes[0] == outcomes[1]
    assert (rows.sequence, rows.version, rows.state()) == (1, 1, {"a": [1]})
