"""The component that crash tests run: every request leaves its token in its instance's `log`.

In a module of its own, so that `processors run tests.fault.runner_component:component` and spawned
processes find it. A test's wishes come with the props: how long the handler takes (`pause_s`, or
until a file named `gate` is there), and the file in which the world outside counts the calls that
reach it (`calls`).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

from eventstore import Diff, State
from processors.component import Component
from processors.context import Context

#: How a process ends that runs `poison`.
POISON_EXIT_CODE = 33

component = Component("chaos")


@component.update("k")
def note(state: State, props: Mapping[str, Any]) -> Diff:
    # What these updates do is to take time, so that kills find them at work. A gate is a file,
    # because the test that opens it is another process.
    time.sleep(props.get("pause_s", 0))
    while "gate" in props and not os.path.exists(props["gate"]):
        time.sleep(0.01)
    return Diff().append("log", props["token"])


@component.update("k")
async def wait(state: State, props: Mapping[str, Any]) -> Diff:
    await asyncio.sleep(props.get("pause_s", 0))
    return Diff().append("log", props["token"])


@component.update("k")
def call(state: State, props: Mapping[str, Any], context: Context) -> Diff:
    answer = context.effect("outside", call_outside, props["token"], props.get("calls"))
    time.sleep(props.get("pause_s", 0))
    return Diff().append("log", props["token"]).merge_into("answers", {props["token"]: answer})


@component.update("k")
def steps(state: State, props: Mapping[str, Any], context: Context) -> Diff:
    for number in (1, 2):
        context.checkpoint(Diff().append("log", f"{props['token']}/{number}"))
        time.sleep(props.get("pause_s", 0))
    return Diff().append("log", f"{props['token']}/3")


@component.update("k", isolation="serializable")
def derive(state: State, props: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Ask the world outside about an input that may change meanwhile."""
    given = state["input"]
    context.effect("outside", call_outside, given, props["calls"])
    return {"derived": given * 10}


@component.update("k")
def poison(state: State, props: Mapping[str, Any]) -> None:
    os._exit(POISON_EXIT_CODE)


def call_outside(token: object, calls: str | None) -> str:
    """Do what happens each time that it is called; return what is new each time."""
    if calls is not None:
        # One write to a file opened for appending: processes do not mix their lines.
        number = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(number, f"{token}\n".encode())
        os.close(number)
    return uuid.uuid4().hex


def leaves(name: str, token: str) -> list[str]:
    """Return what one request of update `name` leaves in the log of its instance."""
    return [f"{token}/{number}" for number in (1, 2, 3)] if name == "k/steps" else [token]
