"""What a child does with a task and says about it, shown in a thread instead of a process."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from processors.context import Superseded
from processors.runner.worker_child import (
    Call,
    Raised,
    Reply,
    Result,
    Started,
    Task,
    Unknown,
    class_name,
    encode,
    pickled,
    serve,
    unpickled,
)
from processors.runner.workers import HandlerRaised, NotImportable, WorkerDied, Workers
from tests.contract.logs import DEADLINE_S
from tests.fault.worker_handlers import NotReadable, Readable
from tests.fault.worker_tasks import task


class Peer:
    """The parent's end of a pipe, message by message."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def give(self, task: Task) -> Any:
        """Send a task; return the first message after Started."""
        self._connection.send_bytes(encode(task))
        answer = self.next()
        return self.next() if isinstance(answer, Started) else answer

    def reply(self, reply: Reply) -> Any:
        self._connection.send_bytes(encode(reply))
        return self.next()

    def next(self) -> Any:
        assert self._connection.poll(DEADLINE_S), "the child says nothing"
        return pickle.loads(self._connection.recv_bytes())


@pytest.fixture
def peer() -> Iterator[Peer]:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        thread = threading.Thread(target=serve, args=(theirs,))
        thread.start()
        yield Peer(ours)
        ours.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_handler_is_announced_before_it_runs_so_that_its_time_can_be_counted(peer: Peer) -> None:
    peer._connection.send_bytes(encode(task("nothing")))

    assert [peer.next(), peer.next()] == [Started(), Result(b"[]", None, frozenset())]


def test_what_a_component_lacks_is_said_and_nothing_is_started(peer: Peer) -> None:
    answer = peer.give(task("no such update"))

    assert isinstance(answer, Unknown)
    assert "Handlers has no update 'do/no such update'" in answer.why


def test_an_effect_is_asked_for_recorded_and_taken_from_what_was_accepted(peer: Peer) -> None:
    asked = peer.give(task("use_effects", {"mine": 1}))
    record = peer.reply(Reply(None))
    again = peer.reply(Reply(b"2"))
    result = peer.reply(Reply(b"3"))

    assert isinstance(asked, Call)
    assert isinstance(record, Call)
    digest = asked.arguments[2]
    assert asked == Call("recorded", ("roll", 0, digest))
    assert record == Call("record", ("roll", 0, digest, b"1"))
    assert again == Call("recorded", ("roll", 1, digest))
    assert isinstance(result, Result)
    assert b'"rolls",[2,3]' in result.diff
    assert result.outbox is not None
    assert b'"instance":"other"' in result.outbox


def test_what_a_call_raised_in_the_parent_is_raised_in_the_handler_and_known_for_that(
    peer: Peer,
) -> None:
    peer.give(task("ask_once"))

    raised = peer.reply(Reply(None, "Superseded: too late", pickled(Superseded("too late"))))

    assert isinstance(raised, Raised)
    assert raised.refused
    assert raised.names[0] == "processors.context.Superseded"


def test_what_a_call_raised_reaches_the_handler_as_text_where_it_cannot_be_read(
    peer: Peer,
) -> None:
    peer.give(task("ask_once"))

    raised = peer.reply(Reply(None, "NotReadable: this and that", None))

    assert isinstance(raised, Raised)
    assert raised.refused
    assert (raised.type_name, raised.message) == ("RuntimeError", "NotReadable: this and that")


def test_a_handler_that_exits_fails_and_the_child_goes_on(peer: Peer) -> None:
    raised = peer.give(task("exit_politely"))
    result = peer.give(task("nothing"))

    assert isinstance(raised, Raised)
    assert (raised.type_name, raised.message, raised.refused) == ("SystemExit", "enough", False)
    assert isinstance(result, Result)


def test_a_result_that_is_no_change_is_the_handler_s_fault(peer: Peer) -> None:
    raised = peer.give(task("return_a_number"))

    assert isinstance(raised, Raised)
    assert raised.type_name == "TypeError"
    assert "do/return_a_number" in raised.message


def test_a_context_that_outlives_its_handler_cannot_talk_into_the_next_task(peer: Peer) -> None:
    peer.give(task("leak_context"))

    raised = peer.give(task("use_leaked_context"))

    assert isinstance(raised, Raised)
    assert "has returned already" in raised.message


def test_a_component_with_hooks_gets_its_live_state_and_stores_what_it_saves(peer: Peer) -> None:
    kept = ("tests.fault.worker_handlers", "Kept")

    read = peer.give(task("remember", fields={"text": "four"}, component=kept))
    written = peer.give(task("write_diff", fields={"text": "four" * 99}, component=kept))

    assert read.diff == b'[["set","length",4]]'
    assert written.diff == b'[["append_text","text","!"]]'


def test_what_a_handler_read_comes_with_its_result(peer: Peer) -> None:
    result = peer.give(task("add_text", {"text": "!"}, fields={"text": "four", "other": 1}))

    assert result.observed == {"text"}


def test_async_handlers_of_one_child_share_a_loop(peer: Peer) -> None:
    results = []
    for _ in range(2):
        peer.give(task("wait_on_a_loop"))
        results.append(peer.reply(Reply(b"5")))

    assert isinstance(results[0], Result)
    assert results[0] == results[1]


# --- what the parent says of it ------------------------------------------------------------------


@pytest.mark.parametrize("error", [NotReadable("a", "b"), ValueError(lambda: None)])
def test_an_exception_that_could_not_be_read_again_is_not_sent(error: Exception) -> None:
    assert pickled(error) is None


def test_an_exception_that_can_be_read_again_is_sent_whole() -> None:
    copy = unpickled(pickled(Readable("no", 7)))

    assert type(copy) is Readable
    assert copy.args == ("no", 7)


def test_an_exception_with_a_large_load_is_sent_as_text_only() -> None:
    assert pickled(ValueError("x" * 2_000_000)) is None


def test_an_exception_that_is_not_there_is_none() -> None:
    assert unpickled(pickle.dumps(("no exception",))) is None
    assert unpickled(b"no pickle") is None


def test_a_raised_exception_is_judged_by_the_names_of_its_classes() -> None:
    names = tuple(class_name(kind) for kind in Readable.__mro__)
    raised = HandlerRaised("Readable", "no", "", names, None)

    assert raised.is_a((ValueError,))
    assert raised.is_a((KeyError, Readable))
    assert not raised.is_a((KeyError, NotReadable))
    assert str(raised) == "Readable: no"


def test_a_class_of_a_script_has_the_same_name_in_the_script_and_in_its_child() -> None:
    here = type("Odd", (Exception,), {"__module__": "__main__"})
    child = type("Odd", (Exception,), {"__module__": "__mp_main__"})

    assert class_name(child) == class_name(here) == "__main__.Odd"


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL: perhaps it needed more memory"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-200, "was killed by signal 200"),
        (3, "ended with exit code 3"),
        (None, "ended"),
    ],
)
def test_the_end_of_a_child_is_said_in_words(exit_code: int | None, said: str) -> None:
    died = WorkerDied("update 'a/b' of component C", exit_code)

    assert str(died).startswith(f"the process that ran update 'a/b' of component C {said}")


@pytest.mark.parametrize(
    "error",
    [HandlerRaised("T", "m", "t", ("n",), None), WorkerDied("x", -9), NotImportable("x", "y")],
)
def test_what_workers_raise_can_be_sent_on(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_workers_without_a_child_are_refused() -> None:
    with pytest.raises(ValueError, match="count_max=0"):
        Workers(0)
