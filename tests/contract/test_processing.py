"""What a processor is told and may ask of an app: news once and in order, parts, effects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eventstore import ConfigError, EventStore, Guard, Kind, Verdict
from eventstore.errors import ReadTimeout
from eventstore.events import Answer, EffectKey, Event, RequestPolicy, Source
from eventstore.processing import Folded, Processing
from tests.lines import before_line


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    with EventStore("memory://" if request.param == "memory" else tmp_path / "log") as opened:
        yield opened


@pytest.fixture
def processing(store: EventStore) -> Processing:
    return Processing(store.app("orders"))


def test_a_watcher_is_told_each_event_once_and_in_order(processing: Processing) -> None:
    told: list[Folded] = []
    processing.watch(told.extend)

    for number in range(20):
        processing.app.append("o-1", {"n": number})
    processing.catch_up()

    assert [(one.instance, one.sequence, one.version) for one in told] == [
        ("o-1", number, number + 1) for number in range(20)
    ]
    assert told[0].fields == ("n",)


def test_a_view_that_is_rebuilt_tells_nothing_a_second_time(processing: Processing) -> None:
    told: list[Folded] = []
    processing.watch(told.extend)
    processing.app.append("o-1", {"n": 1})
    processing.catch_up()

    processing.app.rebuild_view()
    processing.app.append("o-1", {"n": 2})
    processing.catch_up()

    assert [one.sequence for one in told] == [0, 1]


def test_a_watcher_that_gave_up_is_told_nothing_more(processing: Processing) -> None:
    told: list[Folded] = []
    unwatch = processing.watch(told.extend)

    unwatch()
    processing.app.append("o-1", {"n": 1})
    processing.catch_up()

    assert told == []


def test_who_waits_for_a_request_is_told_when_it_is_closed(processing: Processing) -> None:
    sequence = processing.app.request("o-1", "ship").entry().sequence
    closed = threading.Event()
    processing.when_closed("o-1", sequence, closed.set)

    answer = Event(Kind.DIFF, "ship", b"[]", answer=Answer(sequence, 0, True))
    processing.send([("o-1", answer)])

    assert closed.wait(60)
    assert processing.wait_closed("o-1", sequence, 60).event.name == "ship"


def test_the_attempts_at_a_request_are_found_among_everything_else(processing: Processing) -> None:
    app = processing.app
    first, second = (app.request("o-1", "ship").entry().sequence for _ in range(2))
    assert first is not None
    assert second is not None

    def attempt(cause: int, body: bytes) -> None:
        app.append("o-1", {"between": True})
        processing.send([("o-1", Event(Kind.ATTEMPT, "ship", body, answer=Answer(cause)))])

    attempt(first, b"1")
    attempt(second, b"of the second")
    attempt(first, b"2")
    processing.send([("o-1", Event(Kind.DIFF, "ship", b"[]", answer=Answer(first, 0, True)))])
    attempt(first, b"too late")
    processing.catch_up()

    bodies = [entry.event.body for entry in processing.attempts("o-1", first)]
    before = processing.attempts(
        "o-1", first, before=processing.attempts("o-1", second)[0].sequence
    )
    assert bodies == [b"1", b"2"]
    assert [entry.event.body for entry in before] == [b"1"]
    assert processing.attempts("o-2", 0) == []


def test_the_newest_events_of_an_instance_come_newest_first_up_to_a_limit(
    processing: Processing,
) -> None:
    for number in range(5):
        processing.app.append("o-1", {"n": number})
    processing.catch_up()

    def sequences(**limits: int) -> list[int]:
        return [entry.sequence for entry in processing.newest("o-1", **limits)]

    assert sequences() == [4, 3, 2, 1, 0]
    assert sequences(after=1) == [4, 3, 2]
    assert sequences(count_max=2) == [4, 3]
    assert sequences(after=3, count_max=2) == [4]
    assert list(processing.newest("o-2")) == []


def test_who_comes_late_is_told_at_once(processing: Processing) -> None:
    sequence = processing.app.request("o-1", "ship").entry().sequence
    answer = Event(Kind.DIFF, "ship", b"[]", answer=Answer(sequence, 0, True))
    processing.send([("o-1", answer)])[0].entry()
    calls: list[int] = []

    processing.when_closed("o-1", sequence, lambda: calls.append(1))

    assert calls == [1]


def test_who_asks_while_the_answer_is_told_is_told_once(processing: Processing) -> None:
    told: list[Folded] = []
    processing.watch(told.extend)
    calls: list[int] = []
    number, tellings = 0, 0

    def tell() -> None:
        nonlocal tellings
        tellings += 1
        if not processing._mutex.locked():  # else another thread would wait for a later line
            processing._closings(told)

    while tellings == number:  # until it has no such line
        number += 1
        sequence = processing.app.request("o-1", "ship").entry().sequence
        answer = Event(Kind.DIFF, "ship", b"[]", answer=Answer(sequence, 0, True))
        processing.send([("o-1", answer)])[0].entry()
        with before_line(number, Processing.when_closed, tell):
            processing.when_closed("o-1", sequence, partial(calls.append, number))

    assert tellings > 10
    assert calls == list(range(1, number + 1))


def test_who_begins_to_wait_keeps_nobody_from_folding(
    processing: Processing, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (processing.app.request("o-1", "ship").entry().sequence for _ in range(2))
    told: list[Folded] = []
    processing.watch(told.extend)
    processing.when_closed("o-1", first, lambda: None)
    processing.close()
    watch = processing.watch

    def watch_behind_one_who_folds(callback: Callable[[Sequence[Folded]], None]) -> Any:
        answer = Event(Kind.DIFF, "ship", b"[]", answer=Answer(first, 0, True))
        processing.send([("o-1", answer)])[0].entry()
        folding = threading.Thread(target=processing._closings, args=(told,), daemon=True)
        folding.start()
        folding.join(30)
        stands_still.append(folding.is_alive())
        return watch(callback)

    stands_still: list[bool] = []
    monkeypatch.setattr(processing, "watch", watch_behind_one_who_folds)
    processing.when_closed("o-1", second, lambda: None)

    assert stands_still == [False]


def test_waiting_for_an_open_request_ends_with_advice(processing: Processing) -> None:
    sequence = processing.app.request("o-1", "ship").entry().sequence

    with pytest.raises(ReadTimeout, match="stays pending"):
        processing.wait_closed("o-1", sequence, 0.01)


def test_parts_come_back_in_order_and_refused_ones_do_not(processing: Processing) -> None:
    sequence = processing.app.request("o-1", "ship").entry().sequence
    for part, expected in ((0, Verdict.ACCEPTED), (2, Verdict.CONFLICT), (1, Verdict.ACCEPTED)):
        body = b'[["set","n",%d]]' % part
        event = Event(Kind.DIFF, "ship", body, answer=Answer(sequence, part))
        assert processing.send([("o-1", event)])[0].verdict() == expected

    assert [entry.event.body for entry in processing.parts("o-1", sequence)] == [
        b'[["set","n",0]]',
        b'[["set","n",1]]',
    ]


def test_a_recorded_effect_is_found_by_its_call(processing: Processing) -> None:
    sequence = processing.app.request("o-1", "ship").entry().sequence
    effect = Event(
        Kind.EFFECT, "pay", b'"paid"', answer=Answer(sequence), effect=EffectKey(0, "d1")
    )
    processing.send([("o-1", effect)])[0].entry()

    found = processing.effect("o-1", sequence, "pay", 0, "d1")

    assert found is not None
    assert found.event.body == b'"paid"'
    assert processing.effect("o-1", sequence, "pay", 1, "d1") is None
    assert processing.effect("o-1", sequence, "pay", 0, "d2") is None


def test_the_last_number_of_a_source_is_known(processing: Processing) -> None:
    assert processing.source("o-1", "trigger") is None
    policy = RequestPolicy()
    request = Event(Kind.REQUEST, "ship", b"{}", source=Source("trigger", (7, 0)), request=policy)
    processing.send([("o-1", request)])[0].entry()

    assert processing.source("o-1", "trigger") == (7, 0)


def test_system_instances_are_for_processors_only(processing: Processing) -> None:
    processing.send([("$foldlog/cursor", Event(Kind.DIFF, "", b'[["set","n",1]]'))])

    with pytest.raises(ConfigError, match="are ours"):
        processing.app.append("$foldlog/cursor", {"n": 2})
    processing.catch_up()
    assert processing.state("$foldlog/cursor")["n"] == 1
    assert list(processing.app.instances()) == []


def test_a_state_that_nobody_wrote_is_empty_at_version_0(processing: Processing) -> None:
    processing.app.request("o-1", "ship").entry()

    state = processing.state("o-1")

    assert (state.version, dict(state)) == (0, {})
    assert Guard(0, ()).base == state.version
