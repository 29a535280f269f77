"""Processes that run the component of runner_component.py, and what is checked of their work."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from eventstore import App, Entry, EventStore, Kind, Verdict, values
from eventstore.history.verify import verify_app
from tests.fault.runner_component import component, leaves
from tests.fault.sqlite_processes import Child

__all__ = [
    "DaemonChild",
    "Examined",
    "RunnerChild",
    "daemon_child",
    "examine",
    "examined",
    "runner_child",
    "token_of",
]


class RunnerChild(Child):
    """A process of runner_child.py."""

    MODULE = "tests.fault.runner_child"

    @property
    def shards(self) -> frozenset[int]:
        """The shards that it said it holds."""
        said = [line for line in self.lines if line.startswith("shards")]
        return frozenset(map(int, said[-1].split()[1:])) if said else frozenset()


@contextmanager
def runner_child(
    command: str,
    url: Path | str,
    *arguments: object,
    fault: str = "",
    stderr: IO[str] | None = None,
) -> Iterator[RunnerChild]:
    started = RunnerChild(command, url, *arguments, fault=fault, stderr=stderr)
    try:
        yield started
    finally:
        started.close()


class DaemonChild(Child):
    """A daemon: `processors run` of the component."""

    MODULE = "processors"


@contextmanager
def daemon_child(
    url: Path | str,
    *options: str,
    module: str = "tests.fault.runner_component",
    fault: str = "",
    stderr: IO[str] | None = None,
) -> Iterator[DaemonChild]:
    """Start a daemon; its log lines go to `stderr`."""
    started = DaemonChild(
        "run", f"{module}:component", "--url", url, *options, fault=fault, stderr=stderr
    )
    try:
        yield started
    finally:
        started.close()


class Examined(NamedTuple):
    """What `examine` counted, and each fault in words."""

    requests: int
    applied: int
    lost: list[str]
    twice: list[str]
    disordered: list[str]
    differences: list[str]

    def __str__(self) -> str:
        return (
            f"{len(self.lost)} lost, {len(self.twice)} twice,"
            f" {len(self.disordered)} out of order, {len(self.differences)} other differences"
        )

    @property
    def wrong(self) -> list[str]:
        """All faults."""
        return [
            *(f"lost: {token}" for token in self.lost),
            *(f"twice: {token}" for token in self.twice),
            *(f"out of order: {text}" for text in self.disordered),
            *self.differences,
        ]


def examined(
    url: Path | str, acknowledged: Iterable[str], module: str = "tests.fault.runner_component"
) -> Examined:
    """Examine in a process of its own, which may have the same broken fold as the daemons."""
    with runner_child("examine", url, module) as child:
        assert child.process.stdin is not None
        child.process.stdin.write("".join(f"{line}\n" for line in [*acknowledged, "end"]))
        child.process.stdin.flush()
        child.end()
        return Examined(*json.loads(child.lines[-1]))


def token_of(request: Entry) -> str:
    return str(json.loads(request.event.body)["token"])


def examine(store: EventStore, acknowledged: Iterable[str]) -> Examined:
    """Compare what was asked for and acknowledged with the history, and that with the states.

    Each request in the log was applied, once and in the log's order within its instance; each
    acknowledged one is in the log; each effect that counts is the one that its handler went on
    with; and the view is what the log folds to.
    """
    app = store.app(component.name)
    asked: list[str] = []
    found = Examined(0, 0, [], [], [], list(verify_app(store, component.name).differences))
    applied = 0
    for instance in app.instances():
        requests = [
            entry
            for entry in app.history(instance)
            if entry.event.kind == Kind.REQUEST and entry.verdict == Verdict.ACCEPTED
        ]
        asked += map(token_of, requests)
        applied += _examine_instance(app, instance, requests, found)
    found.lost.extend(sorted(set(acknowledged) - set(asked)))
    found.twice.extend(token for token, count in Counter(asked).items() if count > 1)
    return found._replace(requests=len(asked), applied=applied)


def _examine_instance(app: App, instance: str, requests: list[Entry], found: Examined) -> int:
    """Add an instance's faults to `found`; return how many of its requests were applied."""
    state = app.get(instance)
    log = list(state.get("log", []))
    counts = Counter(log)
    wanted = [mark for entry in requests for mark in leaves(entry.event.name, token_of(entry))]
    missing = [mark for mark in wanted if not counts[mark]]
    found.lost.extend(missing)
    found.twice.extend(mark for mark, count in counts.items() if count > 1)
    first = list(dict.fromkeys(log))
    if first != [mark for mark in wanted if counts[mark]]:
        found.disordered.append(f"{instance}: {first}")
    found.differences.extend(_differences(app, instance, state.get("answers", {})))
    lost = set(missing)
    return sum(lost.isdisjoint(leaves(entry.event.name, token_of(entry))) for entry in requests)


def _differences(app: App, instance: str, answers: dict[str, str]) -> Iterator[str]:
    tokens: dict[int, str] = {}
    for entry in app.history(instance):
        if entry.verdict != Verdict.ACCEPTED:
            continue
        answer = entry.event.answer
        if entry.event.kind == Kind.REQUEST:
            tokens[entry.sequence] = token_of(entry)
        elif entry.event.kind == Kind.EFFECT and answer is not None:
            token, recorded = tokens[answer.cause], values.decode(entry.event.body)
            if answers.get(token) != recorded:
                yield f"{token}: went on with {answers.get(token)}, recorded is {recorded}"
        elif entry.event.kind in (Kind.FAILURE, Kind.DISCARD) and answer is not None:
            yield f"{tokens[answer.cause]}: {entry.event.kind.name} {entry.event.body!r}"
    for row in app.pending(instance):
        yield f"{instance}: request {row.request.sequence} is still pending"
