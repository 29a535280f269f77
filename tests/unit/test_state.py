"""State: Burr's operations, what it records about its reader, and what it shares with nobody."""

from __future__ import annotations

import copy
import datetime
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest

from eventstore import Diff, EventStore, InvalidDiff, Position, State, UnsupportedValue
from eventstore.diff import ABSENT, Shape, shape_of


class CountingSource:
    """Fields as JSON, and the names of those that were loaded."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        self.loaded: list[str] = []

    def value(self, name: str) -> object:
        return self.json(name)

    def json(self, name: str) -> Any:
        self.loaded.append(name)
        if name not in self._fields:
            return ABSENT
        return orjson.loads(orjson.dumps(self._fields[name]))

    def shape(self, name: str) -> int:
        return shape_of(self._fields[name]) if name in self._fields else Shape.ABSENT

    def names(self) -> Iterable[str]:
        return self._fields

    def changed_at(self, name: str) -> int | None:
        return None


def read_from(source: CountingSource) -> State:
    position = Position("log", {0: 7})
    return State.at(source, app="orders", instance="o-1", version=3, position=position)


@pytest.fixture
def source() -> CountingSource:
    return CountingSource({"status": "new", "items": ["a"], "total": 1})


@pytest.fixture
def state(source: CountingSource) -> State:
    return read_from(source)


# --- Burr's operations ---------------------------------------------------------------------------


def test_update_sets_fields_in_another_state(state: State) -> None:
    changed = state.update(status="paid", note=None)

    assert changed.get_all() == {"status": "paid", "items": ["a"], "total": 1, "note": None}
    assert state.get_all() == {"status": "new", "items": ["a"], "total": 1}


def test_append_and_extend_add_to_lists_and_create_them(state: State) -> None:
    changed = state.append(items="b", more=1).extend(items=["c"], rest=("x", "y"))

    assert changed["items"] == ["a", "b", "c"]
    assert changed["more"] == [1]
    assert changed["rest"] == ["x", "y"]


def test_increment_adds_and_creates(state: State) -> None:
    changed = state.increment(total=2, count=1).increment(count=0.5)

    assert (changed["total"], changed["count"]) == (3, 1.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.append(status="x"),
        lambda state: state.extend(total=[1]),
        lambda state: state.increment(items=1),
        lambda state: state.update(items="text now").append(items=1),
        lambda state: state.update(total=1).append(total=1),
        lambda state: state.extend(items="text"),
        lambda state: state.increment(total="1"),
        lambda state: state.apply(Diff().insert("items", 5, "x")),
        lambda state: state.apply(Diff().increment("status", 1)),
    ],
)
def test_a_change_that_does_not_fit_is_refused_at_once(
    state: State, change: Callable[[State], object]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        change(state)

    assert isinstance(caught.value, InvalidDiff)
    assert state.get_all() == {"status": "new", "items": ["a"], "total": 1}


def test_wipe_deletes_some_or_keeps_some_or_deletes_all(state: State) -> None:
    assert state.wipe(delete=["status", "never there"]).keys() == ["items", "total"]
    assert state.wipe(keep=["status"]).keys() == ["status"]
    assert state.update(new=1).wipe(keep=["new"]).get_all() == {"new": 1}
    assert state.wipe().get_all() == {}
    with pytest.raises(ValueError, match="not both"):
        state.wipe(delete=[], keep=[])


def test_merge_sets_all_that_the_other_has(state: State) -> None:
    assert state.merge(State({"total": 9, "new": 1})).get_all() == {
        "status": "new",
        "items": ["a"],
        "total": 9,
        "new": 1,
    }


def test_subset_shows_some_fields_and_keeps_the_changes(state: State) -> None:
    part = state.update(status="paid").subset("status", "never there")

    assert part.get_all() == {"status": "paid"}
    assert part.get("items") is None
    assert "items" not in part
    assert part.diff == Diff({"status": "paid"})
    assert part.update(new=1).keys() == ["status", "new"]
    assert part.subset("items").keys() == []
    with pytest.raises(KeyError, match="never there"):
        state.subset("status", "never there", ignore_missing=False)


def test_a_state_knows_the_component_and_the_instance_that_it_is_of(state: State) -> None:
    changed = state.update(status="paid")

    assert (changed.component_name, changed.instance_id) == (state.app, state.instance)
    assert (State().component_name, State().instance_id) == (None, None)


def test_changing_a_state_in_place_is_refused_with_what_to_do_instead(state: State) -> None:
    with pytest.raises(TypeError, match=r"state\.update\(status=\.\.\.\)"):
        state["status"] = "paid"
    with pytest.raises(TypeError, match=r"state\.wipe\(delete=\['status'\]\)"):
        del state["status"]


def test_a_missing_field_is_a_key_error_that_says_what_there_is(state: State) -> None:
    with pytest.raises(
        KeyError, match=r"'prize' is not in the state of \S+; it has: items, status"
    ):
        state["prize"]
    with pytest.raises(KeyError, match=r"'prize' is not in this state; it has: -"):
        State()["prize"]

    assert state.get("prize") is None
    assert state.get("prize", 7) == 7
    assert 7 not in state  # type: ignore[comparison-overlap]


def test_a_deleted_field_is_gone_and_can_come_back(state: State) -> None:
    gone = state.wipe(delete=["status"])

    assert "status" not in gone
    assert len(gone) == 2
    assert gone.append(status="now a list")["status"] == ["now a list"]


def test_states_are_compared_by_value_and_have_no_hash(state: State) -> None:
    assert state == {"status": "new", "items": ["a"], "total": 1}
    assert state == State(state.get_all())
    assert state != state.update(total=2)
    assert state != 7
    with pytest.raises(TypeError):
        hash(state)


def test_the_changes_of_a_family_make_one_diff(state: State) -> None:
    changed = state.update(a=1).append(items="b").increment(total=1).wipe(delete=["status"])

    assert [operation.code for operation in changed.diff] == [
        "set",
        "append",
        "increment",
        "delete",
    ]
    assert state.diff == Diff()
    assert changed.version == 3


# --- what is observed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "observed"),
    [
        (lambda state: state["status"], {"status"}),
        (lambda state: state.get("status"), {"status"}),
        (lambda state: state.get("never there"), {"never there"}),
        (lambda state: "never there" in state, {"never there"}),
        (len, {"*"}),
        (list, {"*"}),
        (dict, {"*", "status", "items", "total"}),
        (lambda state: state.get_all(), {"*", "status", "items", "total"}),
        (lambda state: state.keys(), {"*"}),
        (lambda state: state.wipe(keep=[]), {"*"}),
        (lambda state: state == {}, {"*", "status", "items", "total"}),
        (repr, set()),
        (str, set()),
        (lambda state: state.peek("status"), set()),
        (lambda state: state.peek("never there", 7), set()),
        (lambda state: state.to_json(), set()),
        (lambda state: state.update(status=1), set()),
        (lambda state: state.append(items=1).increment(total=1), set()),
        (lambda state: state.apply(Diff().append("items", 1)), set()),
        (lambda state: state.subset("status"), set()),
        (lambda state: state.diff, set()),
        (pickle.dumps, set()),
    ],
)
def test_reading_observes_and_looking_does_not(
    state: State, read: Callable[[State], object], observed: set[str]
) -> None:
    read(state)

    assert state.observed == observed


def test_what_one_state_observes_its_whole_family_has_observed(state: State) -> None:
    changed = state.update(note="x")
    assert changed["status"] == "new"

    assert state.observed == changed.subset("note").observed == {"status"}


def test_a_field_that_was_written_here_is_observed_when_it_is_read(state: State) -> None:
    changed = state.update(status="paid")
    assert changed["status"] == "paid"

    assert changed.observed == {"status"}


# --- sharing and not sharing ---------------------------------------------------------------------


def test_a_field_that_was_not_touched_is_the_same_object_in_the_whole_family(state: State) -> None:
    one, other = state.update(total=2), state.increment(total=5)

    assert one["items"] is other["items"] is state["items"]
    assert one.update(more=1)["items"] is state.subset("items")["items"]


def test_a_field_that_was_touched_is_an_object_of_its_own(state: State) -> None:
    before = state["items"]
    changed = state.append(items="b")

    assert changed["items"] == ["a", "b"]
    assert before == state["items"] == ["a"]
    assert changed.update(more=1)["items"] is changed["items"]


def test_only_what_is_read_is_loaded(source: CountingSource, state: State) -> None:
    changed = state.update(status="paid").append(items="b").increment(total=1)
    assert "items" in state
    assert "status" in changed
    assert source.loaded.count("items") == source.loaded.count("total") == 0

    assert changed["items"] == ["a", "b"]
    assert changed["items"] == ["a", "b"]
    assert source.loaded.count("items") == 1


def test_a_state_made_by_hand_keeps_copies_of_the_callers_values() -> None:
    items = ["a"]
    state = State({"items": items})
    changed = state.update(more=items)
    items.append("never given")

    assert state["items"] == ["a"]
    assert changed["more"] == ["a"]


def test_what_is_done_to_a_value_of_a_state_reaches_no_store() -> None:
    with EventStore("memory://") as store:
        app = store.app("orders")
        by_hand = State({"items": ["a"]})
        by_hand["items"].append("smuggled")
        read = app.commit("o-1", by_hand)
        read["items"].append("smuggled")
        app.commit("o-1", read.append(items="b"))

        assert app.get("o-1", "items") == ["a", "b"]


@pytest.mark.parametrize("value", [object(), {"deep": [object()]}, {1, object()}], ids=type)
def test_a_value_that_no_store_could_keep_is_refused_with_its_path(
    state: State, value: object
) -> None:
    with pytest.raises(UnsupportedValue, match="'items'"):
        State({"items": value})
    with pytest.raises(UnsupportedValue, match="'items'"):
        state.update(items=value)
    with pytest.raises(UnsupportedValue):
        State({7: 1})  # type: ignore[dict-item]


# --- copies and pickles --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))]
)
def test_a_copy_has_the_fields_the_changes_and_what_was_observed(
    state: State, copied: Callable[[State], State]
) -> None:
    changed = state.update(status="paid", when=datetime.date(2026, 1, 2)).append(items="b")
    assert changed["total"] == 1

    other = copied(changed)

    assert other.observed == {"total"}
    assert other.diff == changed.diff
    assert other.get_all() == changed.get_all()
    assert (other.app, other.instance, other.version) == ("orders", "o-1", 3)
    assert other.position == Position("log", {0: 7})
    assert copied(changed.subset("status")).get_all() == {"status": "paid"}


def test_a_state_that_went_through_a_pickle_is_committed_with_its_changes_and_guard() -> None:
    with EventStore("memory://") as store:
        app = store.app("orders")
        app.append("o-1", {"status": "new", "limit": 1})
        state = app.get("o-1")
        changed = state.update(spent=state["limit"])

        after = app.commit("o-1", pickle.loads(pickle.dumps(changed)))

        assert after.get_all() == {"status": "new", "limit": 1, "spent": 1}
        (_, entry) = app.history("o-1")
        assert entry.event.guard is not None
        assert entry.event.guard.fields == ("limit", "spent")


# --- repr ----------------------------------------------------------------------------------------


def test_repr_tells_where_the_state_is_from_and_cuts_long_values(state: State) -> None:
    changed = state.update(status="x" * 500)

    assert repr(state) == "<State orders/o-1 v3: status='new', items=['a'], total=1>"
    assert repr(State({"n": 1})) == "<State by hand: n=1>"
    assert "1 changes" in repr(changed)
    assert len(repr(changed)) < 200


def test_a_state_without_a_type_has_no_data(state: State) -> None:
    with pytest.raises(TypeError, match="state_type"):
        _ = state.data


# --- after ----------------------------------------------------------------------------------------


def test_a_state_after_diffs_reads_as_if_they_had_been_folded() -> None:
    state = State({"n": 1, "items": [1], "gone": 1, "text": "a", "tree": {"x": {"y": 1}}})

    after = state.after(Diff({"n": 2}).append("items", 2).delete("gone"))
    after = after.after(Diff().append("items", 3).append_text("text", "b").set(("tree", "x"), 5))
    after = after.after(Diff({"new": [1]}).increment("n", 3)).after(Diff())

    assert dict(after) == {
        "n": 5,
        "items": [1, 2, 3],
        "text": "ab",
        "tree": {"x": 5},
        "new": [1],
    }
    assert len(after.diff) == 0
    assert dict(state)["items"] == [1]


def test_what_a_reader_of_a_state_after_a_diff_does_to_a_value_stays_with_it() -> None:
    first = State({"items": [1]}).after(Diff({"fresh": [0]}))
    first["items"].append(99)
    first["fresh"].append(99)

    second = first.after(Diff())

    assert (second["items"], second["fresh"]) == ([1], [0])
    assert second.observed == {"items", "fresh"}


def test_a_diff_made_from_a_state_after_another_has_only_its_own_operations() -> None:
    after = State({"n": 1}).after(Diff({"n": 2}))

    assert after.increment(n=1).diff.to_json() == [["increment", "n", 1]]
    assert after.append(items=1).diff.to_json() == [["append", "items", 1]]
    with pytest.raises(InvalidDiff, match="it is"):
        after.append(n=1)
