"""Handlers that run in processes of their own, and what is left when one of them ends.

Goal: whatever a handler does to its process, its runner lives, knows what happened, and runs the
next one; and no child outlives its parent. Method: real children, killed, stopped and misled; a
parent of its own where the parent is what ends.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventstore import Closed, InstanceNotFound
from eventstore.interrupts import HeldBack
from processors.context import Superseded
from processors.runner import workers as workers_room
from processors.runner.worker_child import Started
from processors.runner.workers import HandlerRaised, NotImportable, WorkerDied, Workers
from tests.contract.logs import DEADLINE_S, eventually
from tests.fault.sqlite_processes import ROOT, Child
from tests.fault.worker_handlers import NotReadable, Readable, hidden
from tests.fault.worker_tasks import Parent, fields_of, task


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers
    assert multiprocessing.active_children() == []


class ParentProcess(Child):
    """A process of worker_parent.py, which has children of its own."""

    MODULE = "tests.fault.worker_parent"

    def until_it_runs(self) -> int:
        """Wait until the handler runs; return the process in which it does."""
        self.until(lambda lines: len(lines) == 1)
        return int(self.lines[0].removeprefix("running "))


@pytest.fixture
def parent(request: pytest.FixtureRequest) -> Iterator[ParentProcess]:
    with contextlib.closing(ParentProcess(request.param, "")) as parent:
        yield parent


def is_gone(pid: int) -> bool:
    """Whether a process has ended; also when nobody has asked for its exit code yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Path("/proc/self").exists()  # it has ended meanwhile
    return facts.rpartition(")")[2].split()[0] == "Z"


# --- what goes well ------------------------------------------------------------------------------


def test_a_child_runs_one_task_after_another(workers: Workers) -> None:
    first = workers.run(task("count", {"by": 2}, fields={"count": 40}), Parent())
    second = workers.run(task("count", {"by": 3}), Parent())

    assert fields_of(first)["count"] == 42
    assert fields_of(second)["count"] == 3
    assert fields_of(first)["pid"] == fields_of(second)["pid"] != os.getpid()


def test_no_more_children_run_than_were_asked_for(workers: Workers) -> None:
    pids: set[int] = set()
    both_run = threading.Barrier(2)

    def meet() -> bool:
        both_run.wait(DEADLINE_S)
        return True

    with ThreadPoolExecutor(6) as threads:
        calls = [Parent(on_record=pids.add, on_stale=meet) for _ in range(6)]
        done = list(threads.map(workers.run, [task("ask_once")] * 6, calls))

    assert len(pids) == 2
    assert {fields_of(one)["pid"] for one in done} == pids


def test_effects_are_asked_of_the_parent_and_what_it_accepted_is_used(workers: Workers) -> None:
    calls = Parent()

    first = workers.run(task("use_effects", {"mine": 1}), calls)
    again = workers.run(task("use_effects", {"mine": 2}), calls)

    assert fields_of(first) == {"rolls": [1, 1], "key": "request-1", "attempt": 2}
    assert fields_of(again) == fields_of(first)
    assert first.outbox is not None
    assert b'"instance":"other"' in first.outbox


def test_a_checkpoint_gives_the_state_that_the_parent_has_and_only_later_changes_remain(
    workers: Workers,
) -> None:
    calls = Parent(fields={"text": "as the parent has it"})

    done = workers.run(task("use_checkpoint"), calls)

    assert [fields_of(part) for part in calls.parts] == [{"half": True}]
    assert fields_of(done) == {"seen": True, "whole": True}


def test_another_instance_is_read_by_the_parent(workers: Workers) -> None:
    calls = Parent(fields={"text": "as the parent has it", "tuple": (1, 2)})

    done = workers.run(task("read_another", {"instance": "o-1", "app": "orders"}), calls)

    assert calls.reads == [("o-1", "orders")]
    assert fields_of(done)["read"] == [3, {"text": "as the parent has it", "tuple": (1, 2)}]
    assert fields_of(done)["pid"] != os.getpid()


def test_an_async_handler_runs_on_a_loop_in_the_child(workers: Workers) -> None:
    first = workers.run(task("wait_on_a_loop"), Parent())
    second = workers.run(task("wait_on_a_loop"), Parent())

    assert fields_of(first)["roll"] == 5
    assert fields_of(first)["loop"] == fields_of(second)["loop"]


def test_a_state_of_ten_megabytes_goes_there_and_back(workers: Workers) -> None:
    text = "x" * 10_000_000

    done = workers.run(task("add_text", {"text": "y"}, fields={"text": text}), Parent())

    assert fields_of(done)["text"] == text + "y"


@pytest.mark.parametrize("update", ["end_a_program", "use_a_process"])
def test_what_a_handler_starts_can_be_ended_as_usual(workers: Workers, update: str) -> None:
    done = workers.run(task(update), Parent())

    assert fields_of(done)["exit_code"] == -signal.SIGTERM


# --- what a handler may do to its process --------------------------------------------------------


def test_a_child_that_is_killed_takes_down_one_task_only(workers: Workers) -> None:
    calls = Parent(on_record=lambda pid: os.kill(pid, signal.SIGKILL))

    with pytest.raises(WorkerDied, match="was killed by SIGKILL") as caught:
        workers.run(task("wait_for_ever"), calls)
    after = workers.run(task("nothing"), Parent())

    assert caught.value.exit_code == -signal.SIGKILL
    assert len(after.diff) == 0


def test_a_handler_that_ends_its_process_takes_down_one_task_only(workers: Workers) -> None:
    with pytest.raises(WorkerDied, match=r"do/exit_at_once.*exit code 3") as caught:
        workers.run(task("exit_at_once", {"code": 3}), Parent())
    after = workers.run(task("nothing"), Parent())

    assert caught.value.exit_code == 3
    assert len(after.diff) == 0


def test_the_end_of_a_child_is_seen_although_it_left_a_process_behind(workers: Workers) -> None:
    calls = Parent()

    with pytest.raises(WorkerDied, match="exit code 4"):
        workers.run(task("leave_a_process_behind"), calls)

    os.kill(calls.wait(), signal.SIGKILL)


def test_an_exception_that_cannot_be_read_here_is_told_by_its_text(workers: Workers) -> None:
    with pytest.raises(HandlerRaised, match="NotReadable: this and that") as caught:
        workers.run(task("raise_not_readable"), Parent())

    assert caught.value.exception is None
    assert caught.value.is_a((NotReadable,))
    assert 'raise NotReadable("this", "that")' in caught.value.traceback


def test_an_exception_that_can_be_read_here_comes_along(workers: Workers) -> None:
    with pytest.raises(HandlerRaised) as caught:
        workers.run(task("raise_readable"), Parent())

    assert isinstance(caught.value.exception, Readable)
    assert caught.value.exception.args == ("no", 7)


@pytest.mark.parametrize("refusal", [Superseded("too late"), NotReadable("a", "b")])
def test_what_a_call_raises_here_ends_the_handler_and_is_raised_here(
    workers: Workers, refusal: BaseException
) -> None:
    with pytest.raises(type(refusal)) as caught:
        workers.run(task("use_checkpoint"), Parent(refusal=refusal))

    assert caught.value is refusal


def test_what_is_not_there_to_be_read_is_the_handler_s_error_and_no_trouble_of_the_parent(
    workers: Workers,
) -> None:
    place = {"instance": "o-1", "app": "orders"}
    calls = Parent(refusal=InstanceNotFound("orders", "o-1"))

    with pytest.raises(HandlerRaised, match="app 'orders' has no instance 'o-1'") as caught:
        workers.run(task("read_another", place), calls)

    assert caught.value.is_a((KeyError,))
    assert isinstance(caught.value.exception, InstanceNotFound)


def test_a_read_by_a_run_that_is_over_ends_it(workers: Workers) -> None:
    place = {"instance": "o-1", "app": "orders"}

    with pytest.raises(Superseded, match="the runner has ended"):
        workers.run(task("read_another", place), Parent(refusal=Superseded("the runner has ended")))


def test_a_handler_that_takes_too_long_is_killed(workers: Workers) -> None:
    # Asked of a task before: who is killed in time may not have got to tell who it is.
    pid = fields_of(workers.run(task("count", {"by": 1}), Parent()))["pid"]

    with pytest.raises(TimeoutError, match=r"do/wait_for_ever.* more than 0\.2 s"):
        workers.run(task("wait_for_ever", timeout_s=0.2), Parent())
    after = workers.run(task("nothing", timeout_s=DEADLINE_S), Parent())

    assert is_gone(pid)
    assert len(after.diff) == 0


def test_ctrl_c_interrupts_a_handler_that_runs_where_it_is_held_back_else(workers: Workers) -> None:
    pids: list[int] = []
    raised: list[BaseException] = []

    def press(pid: int) -> None:
        pids.append(pid)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), HeldBack():
            try:
                workers.run(task("wait_for_ever", timeout_s=DEADLINE_S), Parent(on_record=press))
            except BaseException as error:
                raised.append(error)
    finally:
        signal.signal(signal.SIGINT, before)
    after = workers.run(task("nothing", timeout_s=DEADLINE_S), Parent())

    assert [type(error) for error in raised] == [KeyboardInterrupt]
    assert is_gone(*pids)
    assert len(after.diff) == 0


def test_a_child_that_dies_while_it_is_idle_is_replaced_without_a_word(workers: Workers) -> None:
    pid = fields_of(workers.run(task("count", {"by": 1}), Parent()))["pid"]
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: is_gone(pid))

    done = workers.run(task("count", {"by": 1}), Parent())

    assert fields_of(done)["pid"] != pid


def test_a_child_that_is_idle_for_long_ends(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_room, "IDLE_S_MAX", 0.05)

    pid = fields_of(workers.run(task("count", {"by": 1}), Parent()))["pid"]

    assert eventually(lambda: multiprocessing.active_children() == [])
    assert is_gone(pid)
    assert fields_of(workers.run(task("count", {"by": 1}), Parent()))["pid"] != pid


def test_a_child_that_is_taken_is_no_longer_to_end_as_an_idle_one(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    dues_s: list[float] = []
    converse = workers._converse

    def look(child: Any, *arguments: Any) -> Any:
        dues_s.append(child.due_s)  # all that the keeper looks at, should it wake up now
        return converse(child, *arguments)

    monkeypatch.setattr(workers, "_converse", look)
    for _ in range(2):
        workers.run(task("nothing"), Parent())

    assert dues_s == [math.inf, math.inf]


def test_a_child_that_begins_as_its_time_to_start_is_over_is_told_not_to_have_come_to_it(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = workers_room._Child.receive

    def receive_too_late(child: Any) -> Any:
        answer = receive(child)
        if isinstance(answer, Started):
            with workers._mutex:
                workers._end_due(child)  # as the keeper does
        return answer

    monkeypatch.setattr(workers_room._Child, "receive", receive_too_late)

    with pytest.raises(NotImportable, match="a new process did not get to it in 120 s"):
        workers.run(task("wait_for_ever"), Parent())


class StandsStill:
    """A lock in front of which a thread stands still, once, when it has let go of it."""

    def __init__(self, lock: threading.Lock, stands_still: Callable[[], bool]) -> None:
        self._lock, self._stands_still = lock, stands_still
        self.may_go_on = threading.Event()
        self.stood_still: list[threading.Thread] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        is_now = not self.stood_still and self._stands_still()
        if is_now:
            self.stood_still.append(threading.current_thread())
        self._lock.release()
        if is_now:
            assert self.may_go_on.wait(DEADLINE_S)


def test_who_gives_a_child_back_says_nothing_of_the_one_who_takes_it_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    due_s: list[float] = []
    with Workers(1) as workers, ThreadPoolExecutor(1) as threads:
        lock = StandsStill(workers._mutex, lambda: bool(workers._idle))
        monkeypatch.setattr(workers, "_mutex", lock)
        giver = threads.submit(workers.run, task("nothing"), Parent())
        assert eventually(lambda: bool(lock.stood_still))

        def let_the_giver_go_on() -> bool:
            lock.may_go_on.set()
            giver.result(DEADLINE_S)
            due_s.extend(child.due_s for child in workers._children)
            return True

        workers.run(task("ask_once"), Parent(on_stale=let_the_giver_go_on))

    assert due_s == [math.inf]  # an update without a time limit


# --- what cannot be found in a child -------------------------------------------------------------


def test_a_component_inside_a_function_cannot_run_in_a_child(workers: Workers) -> None:
    inside = hidden()

    with pytest.raises(NotImportable, match=r"does not define the component Inside: define it at"):
        workers.run(task("count", component=(inside.module, inside.name)), Parent())


def test_an_update_that_a_new_process_lacks_is_named(workers: Workers) -> None:
    with pytest.raises(NotImportable, match="has no update 'do/no such update' in a newly started"):
        workers.run(task("no such update"), Parent())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('no disk')", "(?s)importing module worker_sample_.* raised:.*no disk"),
        ("import no_such_package", "(?s)importing module worker_sample_.*no_such_package"),
        ("import os; os._exit(5)", "exit code 5 while it imported"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    name = f"worker_sample_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    with Workers(1) as workers, pytest.raises(NotImportable, match=said):
        workers.run(task("count", component=(name, "Handlers")), Parent())


SCRIPT = """
from processors.component import Component
from processors.runner.workers import HandlerRaised, Workers
from tests.fault.worker_tasks import Parent, fields_of, task

class Odd(Exception):
    pass

component = Component("InScript")

@component.update("do")
def work(state, props):
    if props["odd"]:
        raise Odd
    return {"worked": True}

def main():
    with Workers(1) as workers:
        here = (component.module, component.name)
        print(fields_of(workers.run(task("work", {"odd": False}, component=here), Parent())))
        try:
            workers.run(task("work", {"odd": True}, component=here), Parent())
        except HandlerRaised as error:
            print(error.is_a((Odd,)), type(error.exception) is Odd)
"""


def run_script(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    path.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


def test_a_component_of_a_script_runs_in_a_child(tmp_path: Path) -> None:
    ended = run_script(tmp_path / "script.py", SCRIPT + "if __name__ == '__main__':\n    main()\n")

    assert ended.stdout.splitlines() == ["{'worked': True}", "True True"], ended.stderr


def test_a_script_that_does_its_work_when_it_is_imported_is_told_so(tmp_path: Path) -> None:
    ended = run_script(tmp_path / "script.py", SCRIPT + "main()\n")

    assert ended.returncode == 1
    assert 'a script does its work under `if __name__ == "__main__":`' in ended.stderr


# --- ends ----------------------------------------------------------------------------------------


def test_closing_ends_a_running_handler_and_says_so() -> None:
    workers, calls = Workers(1), Parent()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(workers.run, task("wait_for_ever"), calls)
        pid = calls.wait()
        waiting = threads.submit(workers.run, task("nothing"), Parent())

        workers.close()

        for call in (running, waiting):
            with pytest.raises(Closed):
                call.result(DEADLINE_S)
    assert is_gone(pid)
    with pytest.raises(Closed, match="the workers are closed"):
        workers.run(task("nothing"), Parent())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_leaves_the_children_to_its_parent(workers: Workers) -> None:
    workers.run(task("nothing"), Parent())

    pid = os.fork()
    if pid == 0:
        try:
            workers.run(task("nothing"), Parent())
        except Closed:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert len(workers.run(task("nothing"), Parent()).diff) == 0


@pytest.mark.parametrize("parent", ["wait"], indirect=True)
def test_a_child_ends_when_its_parent_is_killed(parent: ParentProcess) -> None:
    pid = parent.until_it_runs()

    parent.process.kill()

    assert eventually(lambda: is_gone(pid))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="pidfd_open is of Linux")
@pytest.mark.parametrize("parent", ["fork"], indirect=True)
def test_a_child_ends_when_its_parent_is_killed_and_left_a_copy_of_the_pipe_behind(
    parent: ParentProcess,
) -> None:
    pid = parent.until_it_runs()

    parent.process.kill()

    assert eventually(lambda: is_gone(pid))
    assert parent.process.stdin is not None
    parent.process.stdin.close()  # for the forked process, which waits for that


@pytest.mark.parametrize("parent", ["leave"], indirect=True)
def test_a_parent_that_ends_without_closing_ends_its_children_at_once(
    parent: ParentProcess,
) -> None:
    parent.end()

    assert parent.lines == ["left"]
    assert parent.process.returncode == 0


@pytest.mark.parametrize("parent", ["run"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_parent_and_child_lets_a_running_handler_finish(
    parent: ParentProcess, number: signal.Signals
) -> None:
    pid = parent.until_it_runs()

    os.kill(parent.process.pid, number)
    os.kill(pid, number)
    assert parent.process.stdin is not None
    parent.process.stdin.write("you may return\n")
    parent.process.stdin.flush()
    parent.end()

    assert parent.lines == [f"running {pid}", f"done {pid}"]


def test_a_signal_does_not_end_a_child_that_is_being_started(workers: Workers) -> None:
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(workers.run, task("nothing"), Parent())
        assert eventually(lambda: multiprocessing.active_children() != [] or running.done())
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)
            os.kill(child.pid, signal.SIGTERM)

        assert len(running.result(DEADLINE_S).diff) == 0
