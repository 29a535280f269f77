"""Components whose updates do what a good handler would not; run in spawned children."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.synchronize import Event as EventOfProcesses
from typing import Any

from eventstore import Diff, State
from processors.component import Component
from processors.context import Context

component = Component("Handlers")


class NotReadable(Exception):
    """It can be pickled, but not read again: its arguments are not its `args`."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


class Readable(ValueError):
    """It survives the way between processes."""


@component.update("do")
def count(state: State, props: Mapping[str, Any]) -> dict[str, object]:
    return {"count": state.get("count", 0) + props["by"], "pid": os.getpid()}


@component.update("do")
def nothing(state: State, props: Mapping[str, Any]) -> None:
    return None


@component.update("do")
def add_text(state: State, props: Mapping[str, Any]) -> State:
    return state.update(text=state["text"] + props["text"])


@component.update("do")
def exit_at_once(state: State, props: Mapping[str, Any]) -> None:
    os._exit(props["code"])


@component.update("do")
def exit_politely(state: State, props: Mapping[str, Any]) -> None:
    sys.exit("enough")


@component.update("do")
def raise_not_readable(state: State, props: Mapping[str, Any]) -> None:
    raise NotReadable("this", "that")


@component.update("do")
def raise_readable(state: State, props: Mapping[str, Any]) -> None:
    raise Readable("no", 7)


@component.update("do")
def return_a_number(state: State, props: Mapping[str, Any]) -> int:
    return 7


@component.update("do")
def wait_for_ever(state: State, props: Mapping[str, Any], context: Context) -> None:
    context.effect("pid", os.getpid)
    threading.Event().wait()


@component.update("do")
def ask_once(state: State, props: Mapping[str, Any], context: Context) -> dict[str, object]:
    """Return what the parent says, whenever it says it."""
    context.effect("pid", os.getpid)
    return {"is_stale": context.is_stale(), "pid": os.getpid()}


@component.update("do")
def use_effects(state: State, props: Mapping[str, Any], context: Context) -> dict[str, object]:
    first = context.effect("roll", lambda: props["mine"])
    second = context.effect("roll", lambda: props["mine"])
    context.append("other", {"seen": first})
    return {"rolls": [first, second], "key": context.idempotency_key, "attempt": context.attempt}


@component.update("do")
def use_checkpoint(state: State, props: Mapping[str, Any], context: Context) -> State:
    later: State = context.checkpoint(state.update(half=True))
    return later.update(seen=later["half"], whole=True)


@component.update("do", isolation="serializable")
def sum_up(state: State, props: Mapping[str, Any], context: Context) -> dict[str, object]:
    value = state["value"]
    context.effect("looked", lambda: None)
    return {"sum": value}


@component.update("do", isolation="serializable")
def sum_up_in_parts(state: State, props: Mapping[str, Any], context: Context) -> dict[str, object]:
    value = state["value"]
    context.effect("looked", lambda: None)
    context.checkpoint({"half": value})
    return {"sum": value}


@component.update("do")
def read_another(state: State, props: Mapping[str, Any], context: Context) -> dict[str, object]:
    other: State = context.get(props["instance"], app=props["app"])
    return {"read": [other.version, dict(other)], "pid": os.getpid()}


@component.update("do")
async def wait_on_a_loop(
    state: State, props: Mapping[str, Any], context: Context
) -> dict[str, object]:
    await asyncio.sleep(0)
    roll = await context.effect("roll", lambda: 5)
    return {"loop": id(asyncio.get_running_loop()), "roll": roll}


_leaked: list[Context] = []


@component.update("do")
def leak_context(state: State, props: Mapping[str, Any], context: Context) -> None:
    _leaked.append(context)


@component.update("do")
def use_leaked_context(state: State, props: Mapping[str, Any]) -> None:
    _leaked.pop().is_stale()


@component.update("do")
def end_a_program(state: State, props: Mapping[str, Any]) -> dict[str, object]:
    """Start a program that would wait for ever, and end it as programs are ended."""
    program = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    program.terminate()
    with program:
        return {"exit_code": program.wait()}


def _say_and_wait(is_there: EventOfProcesses) -> None:
    is_there.set()
    threading.Event().wait()


@component.update("do")
def use_a_process(state: State, props: Mapping[str, Any]) -> dict[str, object]:
    forking = multiprocessing.get_context("fork")
    is_there = forking.Event()
    process = forking.Process(target=_say_and_wait, args=(is_there,))
    process.start()
    is_there.wait()
    process.terminate()
    process.join()
    return {"exit_code": process.exitcode}


@component.update("do")
def leave_a_process_behind(state: State, props: Mapping[str, Any], context: Context) -> None:
    """End with a forked process that goes on until the test ends it."""
    pid = os.fork()
    if pid == 0:
        threading.Event().wait()
    context.effect("left", lambda: pid)
    os._exit(4)


kept = Component("Kept")


@kept.load_state
def load(saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "only in memory": len(saved["text"])}


@kept.save_state
def save(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "only in memory"}


@kept.update("do")
def remember(state: Mapping[str, Any], props: Mapping[str, Any]) -> dict[str, object]:
    return {"length": state["only in memory"]}


@kept.update("do")
def remember_in_parts(
    state: Mapping[str, Any], props: Mapping[str, Any], context: Context
) -> dict[str, object]:
    later = context.checkpoint({"length": state["only in memory"]})
    return {"twice": later["length"] + later["only in memory"]}


@kept.update("do")
def write_diff(state: Mapping[str, Any], props: Mapping[str, Any]) -> Diff:
    return Diff().append_text("text", "!")


def hidden() -> Component:
    """Return a component that no other process has."""
    inside = Component("Inside")
    inside.update("do")(count)
    return inside
