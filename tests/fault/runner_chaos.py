"""A storm: services ask for updates and daemons run them, while processes are killed or stopped.

Two services ask, three daemons (`processors run`) share the work. At random moments, and with more
requests waiting than can be run at once,

  - a daemon is killed with SIGKILL, or dies at a named point, and another is started;
  - a daemon is stopped with SIGSTOP until the others have taken its instances over, and then goes
    on with what it held (a zombie);
  - a service is killed, and started again after what was acknowledged to it;
  - on Kafka, the broker is killed and started again.

In the end every request that was acknowledged must have been applied, once, in the log's order of
its instance. Nothing here is a test; test_runner_chaos.py and tests/soak are.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.fault.runner_processes import (
    DaemonChild,
    Examined,
    RunnerChild,
    daemon_child,
    examined,
    runner_child,
)
from tools.broker.broker import Cluster

__all__ = ["KAFKA_HAND_OVER_S", "Order", "Storm", "kafka_environment"]

DAEMONS = 3
SERVICES = ("north", "south")
#: Nothing takes so long, not even on a machine with much else to do, unless it stands still.
PATIENCE_S = 120.0
#: Longer than any owner may stand still before the others go on without it: 3 s, and 6 s.
HAND_OVER_S = 4.0
KAFKA_HAND_OVER_S = 7.5
#: At most so many requests wait per service: enough that every daemon is busy all the time.
AHEAD = 200

#: Where daemons die by themselves, and at which passage at the latest.
POINTS = (
    ("processor.step", 300),
    ("processor.handler.before", 300),
    ("processor.handler.after", 300),
    ("processor.append.before", 300),
    ("processor.append.after", 300),
    ("processor.effect.before", 40),
    ("processor.effect.after", 40),
    ("processor.part.before", 80),
    ("processor.part.after", 80),
    ("log.commit.inside", 200),
    ("log.acknowledged", 200),
    ("view.batch.inside", 200),
)


@dataclass(frozen=True)
class Order:
    """How big a storm is, and what is broken in it."""

    requests: int
    kills: int
    zombies: int
    service_kills: int
    broker_kills: int = 0
    hand_over_s: float = HAND_OVER_S
    patience_s: float = PATIENCE_S
    module: str = "tests.fault.runner_component"


@dataclass
class Storm:
    """One storm; `run` returns what was found in the end."""

    url: str
    order: Order
    chance: random.Random
    #: Where the log lines of all processes go.
    said: Path
    broker: Cluster | None = None
    kills: int = 0
    zombies: int = 0
    broker_kills: int = 0
    acknowledged: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        broker = f", {self.broker_kills} of them of the broker" if self.broker_kills else ""
        return (
            f"{len(self.acknowledged):,} requests, {self.kills + self.broker_kills} kills{broker},"
            f" {self.zombies} zombies"
        )

    def run(self) -> Examined:
        self._daemons: list[DaemonChild] = []
        self._stopped: list[tuple[DaemonChild, float]] = []
        self._services: dict[str, RunnerChild] = {}
        self._first = dict.fromkeys(SERVICES, 0)
        with ExitStack() as self._stack:
            self._lines: IO[str] = self._stack.enter_context(self.said.open("a"))
            self._watcher = self._stack.enter_context(
                runner_child("watch", self.url, self.order.module, stderr=self._lines)
            )
            self._watcher.until(bool)  # before anybody asks for anything
            for name in SERVICES:
                self._start_service(name)
            for _ in range(DAEMONS):
                self._start_daemon()
            self._rage()
            self._calm_down()
        return examined(self.url, self.acknowledged, self.order.module)

    @property
    def tracebacks(self) -> int:
        """How many errors the processes met that no kill explains."""
        said = self.said.read_text()
        # Of a process for updates whose daemon was killed while it made it.
        return said.count("Traceback") - said.count("EOFError: Ran out of input")

    @property
    def _share(self) -> int:
        """How many updates each service asks for."""
        return self.order.requests // len(SERVICES)

    @property
    def _counts(self) -> tuple[int, int]:
        """How many requests there were, and how many are closed, as far as it is known here."""
        if not self._watcher.lines:
            return 0, 0
        opened, closed = self._watcher.lines[-1].split()
        return int(opened), int(closed)

    # --- the storm ------------------------------------------------------------------------------

    def _rage(self) -> None:
        order = self.order
        acts = [
            *[self._kill] * order.kills,
            *[self._make_zombie] * order.zombies,
            *[self._kill_service] * order.service_kills,
            *[self._kill_broker] * order.broker_kills,
        ]
        self.chance.shuffle(acts)
        for number, act in enumerate(acts):
            goal = int((number + self.chance.random()) * order.requests / (len(acts) + 1))
            self._await_closed(goal)
            act()
            self._wake_zombies()
            self._replace_dead()

    def _await_closed(self, goal: int) -> None:
        """Wait until so many requests are closed, with the services just ahead of that."""
        for service in self._services.values():
            self._tell(service, min(self._share, goal // len(SERVICES) + AHEAD))
        self._wait(lambda: self._counts[1] >= goal)

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait, and look after zombies meanwhile: a stopped process may hold the log's lock.

        What stands still is not told here: what is missing in the end is.
        """
        end_s = time.monotonic() + self.order.patience_s
        pause = threading.Event()
        while not condition() and time.monotonic() < end_s:
            pause.wait(0.02)
            self._wake_zombies()
            self._replace_dead()

    def _tell(self, service: RunnerChild, number: int) -> None:
        assert service.process.stdin is not None
        service.process.stdin.write(f"{number}\n")
        service.process.stdin.flush()

    def _kill(self) -> None:
        self._replace(self.chance.choice(self._daemons))

    def _make_zombie(self) -> None:
        victim = self.chance.choice(self._daemons)
        os.kill(victim.process.pid, signal.SIGSTOP)
        self._stopped.append((victim, time.monotonic() + self.order.hand_over_s))
        self._daemons.remove(victim)
        self._start_daemon()

    def _wake_zombies(self) -> None:
        for zombie, due_s in list(self._stopped):
            if time.monotonic() >= due_s:
                self._stopped.remove((zombie, due_s))
                os.kill(zombie.process.pid, signal.SIGCONT)
                self.zombies += 1
                # It goes on for a while beside the others, then makes room for them.
                self._daemons.append(zombie)
                if len(self._daemons) > DAEMONS:
                    oldest = self._daemons.pop(0)
                    oldest.process.send_signal(signal.SIGTERM)

    def _kill_service(self) -> None:
        """Kill a service right after it was told that something is durable."""
        name = self.chance.choice(SERVICES)
        service = self._services[name]
        said = len(service.lines)
        goal = min(self._first[name] + said + AHEAD, self._share)
        self._tell(service, goal)
        self._wait(lambda: len(service.lines) > said or self._first[name] + said >= goal)
        self._end_service(name)
        self.kills += 1
        self._start_service(name)

    def _kill_broker(self) -> None:
        assert self.broker is not None
        self.broker.kill()
        self.broker.restart()
        self.broker_kills += 1

    # --- processes ------------------------------------------------------------------------------

    def _start_daemon(self, fault: str = "") -> None:
        child = daemon_child(
            self.url,
            *("--concurrency", "4"),
            module=self.order.module,
            fault=fault,
            stderr=self._lines,
        )
        self._daemons.append(self._stack.enter_context(child))

    def _replace(self, daemon: DaemonChild) -> None:
        """Start another daemon in place of one that was killed, or that is to die by itself."""
        self._daemons.remove(daemon)
        if daemon.process.poll() is None:
            daemon.kill()
        self.kills += daemon.process.returncode == -signal.SIGKILL
        point, passages = self.chance.choice(POINTS)
        fault = f"{point}:{self.chance.randrange(1, passages)}"
        self._start_daemon(fault if self.chance.random() < 0.5 else "")

    def _replace_dead(self) -> None:
        for daemon in list(self._daemons):
            if daemon.process.poll() is not None:
                self._replace(daemon)

    def _start_service(self, name: str) -> None:
        self._services[name] = self._stack.enter_context(
            runner_child("ask", self.url, name, self._first[name], stderr=self._lines)
        )

    def _end_service(self, name: str) -> None:
        service = self._services[name]
        service.kill()
        self.acknowledged += service.lines
        self._first[name] += len(service.lines)

    # --- the end --------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """Let everything be asked for and run, without any more harm."""
        for daemon in list(self._daemons):  # those that are to die at a point among them
            daemon.kill()
            self.kills += daemon.process.returncode == -signal.SIGKILL
            self._daemons.remove(daemon)
            self._start_daemon()
        for name in SERVICES:
            service = self._services[name]
            self._tell(service, self._share)
            left = self._share - self._first[name]
            self._wait(lambda service=service, left=left: len(service.lines) >= left)  # type: ignore[misc]
            self._end_service(name)
        self._wait(lambda: not self._stopped)
        self._wait(lambda: self._counts == (self.order.requests, self.order.requests))
        for daemon in self._daemons:
            daemon.process.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            daemon.end()


def kafka_environment(namespace: str) -> dict[str, str]:
    """Return the settings of all processes of a storm on Kafka, which may kill the broker."""
    return {
        "EVENTSTORE_NAMESPACE": namespace,
        "EVENTSTORE_PARTITIONS": "8",
        "EVENTSTORE_APPEND_TIMEOUT_S": "60",
        "EVENTSTORE_READ_TIMEOUT_S": "60",
    }
