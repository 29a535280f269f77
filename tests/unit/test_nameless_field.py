"""No field is without a name: the key that one would have is that of its instance's head."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventstore import App, EventStore, Guard, InstanceNotFound, Verdict


@pytest.fixture
def app() -> Iterator[App]:
    with EventStore("memory://") as store:
        app = store.app("orders")
        app.append("o-1", {"status": "new"}).verdict()  # folded, so that the head has its row
        yield app


def test_a_field_without_a_name_is_never_there(app: App) -> None:
    state = app.get("o-1")

    assert "" not in state
    assert state.get("", "absent") == "absent"
    with pytest.raises(InstanceNotFound):
        app.get("o-1", "")
    with pytest.raises(InstanceNotFound):
        app.get("o-1", "", at=1)


def test_who_asked_for_a_field_without_a_name_can_commit(app: App) -> None:
    state = app.get("o-1")
    state.get("")

    assert app.commit("o-1", state.update(status="paid"))["status"] == "paid"


def test_a_guard_on_a_field_without_a_name_stops_nobody(app: App) -> None:
    guard = Guard(1, ("",))

    assert app.append("o-1", {"status": "paid"}, guard=guard).verdict() == Verdict.ACCEPTED
