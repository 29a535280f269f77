"""Ctrl-C held back, and let through again: what a block in the main thread makes of it.

Python's own handler stands at the beginning of each test, and must stand at its end. That a store
and an instance work after a Ctrl-C is shown in tests/fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from eventstore.interrupts import HeldBack, LetThrough
from tests.fault.interrupt import Interrupt


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    assert threading.current_thread() is threading.main_thread()
    # A shell that runs the tests in the background lets them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def is_interrupted(block: Callable[[], None]) -> bool:
    try:
        block()
    except KeyboardInterrupt:
        return True
    return False


def test_what_is_pressed_in_a_block_comes_at_its_end() -> None:
    steps = []

    def block() -> None:
        with HeldBack():
            press()
            steps.append("whole")
        steps.append("after")

    assert is_interrupted(block)
    assert steps == ["whole"]


def test_a_second_time_it_comes_at_once() -> None:
    steps = []

    def block() -> None:
        with HeldBack():
            press()
            steps.append("first")
            press()
            steps.append("second")

    assert is_interrupted(block)
    assert steps == ["first"]


def test_a_block_within_another_leaves_it_to_that_one() -> None:
    steps = []

    def block() -> None:
        with HeldBack():
            with HeldBack():
                press()
            steps.append("between")

    assert is_interrupted(block)
    assert steps == ["between"]


def test_what_came_before_code_of_others_is_raised_instead_of_it() -> None:
    steps = []

    def block() -> None:
        with HeldBack():
            press()
            steps.append("ours")
            with LetThrough():
                steps.append("theirs")

    assert is_interrupted(block)
    assert steps == ["ours"]


def test_code_of_others_may_hold_back_itself_and_is_let_through_each_time() -> None:
    steps = []

    def their_code() -> None:
        with LetThrough():
            press()
            steps.append("not held back")

    with HeldBack():
        with LetThrough(), HeldBack():
            steps.append("theirs")
        assert is_interrupted(their_code)
        with LetThrough():
            with LetThrough():
                steps.append("within")
            assert is_interrupted(press)

    assert steps == ["theirs", "within"]


def test_it_is_held_back_again_after_code_of_others() -> None:
    steps = []

    def block() -> None:
        with HeldBack():
            with LetThrough(), HeldBack():
                steps.append("theirs")
            press()
            steps.append("whole")

    assert is_interrupted(block)
    assert steps == ["theirs", "whole"]


def test_a_handler_that_code_of_others_sets_stays() -> None:
    pressed = []

    def handler(number: int, frame: FrameType | None) -> None:
        pressed.append(number)

    with HeldBack(), LetThrough():
        signal.signal(signal.SIGINT, handler)
    press()

    assert signal.signal(signal.SIGINT, signal.default_int_handler) is handler
    assert pressed == [signal.SIGINT]


def test_wherever_the_second_comes_pythons_own_handler_stands_again() -> None:
    def held_back() -> None:
        with contextlib.suppress(KeyboardInterrupt), HeldBack():
            with LetThrough():
                pass
            press()

    for place in range(1, 200):
        interrupt = Interrupt(place)

        interrupt.during(held_back)  # it looks for the handler

        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, interrupt.came_at
        if not interrupt.came_at:
            break
    assert 10 < place < 199


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_that_another_thread_forks_holds_nothing_back() -> None:
    exit_codes = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
        exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=fork)
    with HeldBack():
        thread.start()
        thread.join()

    assert exit_codes == [0]
