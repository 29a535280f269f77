"""Relays: those of a component that run in this process, and the threads that step them.

The process that holds the shard of a trigger's system instance runs its relay. One thread per
watched app steps all that watch it, and sleeps while none has anything to do.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from eventstore import Closed, EventStore
from eventstore.processing import Processing
from processors.component import Component, Update
from processors.relay import HEARTBEAT_S, Relay, RelayStatus, watched_app
from processors.relay_record import Record, system_instance

__all__ = ["Relays"]

logger: Final = logging.getLogger("processors.relay")

#: How long `stop` waits for what is on its way.
_STOP_S: Final = 10.0


class _Stepper:
    """A thread that steps the relays which watch one app, and sleeps while they have nothing."""

    def __init__(self, watched: str) -> None:
        self._news = threading.Event()
        self._mutex = threading.Lock()
        self._relays: list[Relay] = []
        self._leaving: list[Relay] = []
        self._is_stopping = False
        self.thread = threading.Thread(
            target=self._run, name=f"processors-relay-{watched}", daemon=True
        )
        self.thread.start()

    def ring(self) -> None:
        """Wake the thread; from any other, and at any time."""
        self._news.set()

    def add(self, relay: Relay) -> None:
        with self._mutex:
            self._relays.append(relay)
        self.ring()

    def remove(self, relay: Relay) -> None:
        """Let a relay end, soon, in the thread that steps it."""
        with self._mutex:
            self._relays.remove(relay)
            self._leaving.append(relay)
        self.ring()

    def stop(self) -> None:
        self._is_stopping = True
        self.ring()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                wait_s = self._step_all()
                # The ring of `stop` may have been taken for news, just before the step.
                if wait_s > 0 and not self._is_stopping:
                    self._news.wait(wait_s)
        except Closed:
            pass
        with self._mutex:
            relays = self._relays + self._leaving
            self._relays, self._leaving = [], []
        for relay in relays:
            _close(relay)

    def _step_all(self) -> float:
        self._news.clear()  # first: what is rung for from here on is a reason not to sleep
        with self._mutex:
            relays, leaving = list(self._relays), self._leaving
            self._leaving = []
        for relay in leaving:
            _close(relay)
        wait_s = HEARTBEAT_S
        for relay in relays:
            if self._is_stopping:
                break
            wait_s = min(wait_s, relay.step())
        return wait_s


def _close(relay: Relay) -> None:
    try:
        relay.close()
    except Exception:
        logger.exception("a relay of %s did not end well", relay.watched_name)


class Relays:
    """The relays of a component that are to run in this process: those whose shard it holds."""

    def __init__(self, store: EventStore, component: Component, processing: Processing) -> None:
        """Prepare; nothing runs before `shards_changed` says which shards are held here."""
        self._store, self._component, self._processing = store, component, processing
        self._updates = _relays_of(component)
        self._shard_of = {name: processing.shard_of(name) for name in self._updates}
        self._mutex = threading.Lock()
        self._running: dict[str, Relay] = {}
        self._steppers: dict[str, _Stepper] = {}
        self._is_stopped = False

    def shards_changed(self, shards: frozenset[int]) -> None:
        """Run the relays of these shards, and end the others; returns at once.

        One that ends may go on for a moment beside its successor elsewhere: that does no harm.
        """
        with self._mutex:
            if self._is_stopped:
                return
            for name, shard in self._shard_of.items():
                if shard in shards and name not in self._running:
                    self._running[name] = self._started(self._updates[name])
                elif shard not in shards and name in self._running:
                    relay = self._running.pop(name)
                    self._steppers[relay.watched_name].remove(relay)

    def decide_starts(self) -> None:
        """Write down where triggers on the component's own app begin, be their relays here or not.

        So they see what is appended from now on, however long it takes until some process has
        their shards, and its threads their turn. What cannot be written now is decided by the
        relays, and so is where triggers on other apps begin: to know their ends may take long.
        """
        name = self._component.name
        triggers = [
            update.trigger
            for update in self._component.triggers
            if update.trigger is not None and watched_app(self._component, update) == name
        ]
        if not triggers:
            return
        with contextlib.suppress(Exception):  # the relay meets it, too: it says so, and tries again
            self._processing.catch_up()
            for trigger in triggers:
                record = Record(self._processing, system_instance(trigger.trigger_id))
                record.decided_start(name, self._processing, trigger.start)

    def _started(self, update: Update | None) -> Relay:
        watched = watched_app(self._component, update)
        stepper = self._steppers.get(watched)
        if stepper is None:
            stepper = self._steppers[watched] = _Stepper(watched)
        relay = Relay(self._store, self._component, update, self._processing, stepper.ring)
        stepper.add(relay)
        return relay

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """End all relays, with a cursor where it is worth one; returns after `timeout_s` at most.

        What is still on its way then goes on from the last cursor, wherever it runs next.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._mutex:
            self._is_stopped = True
            steppers = list(self._steppers.values())
        for stepper in steppers:
            stepper.stop()
        for stepper in steppers:
            stepper.thread.join(max(0.0, deadline_s - time.monotonic()))

    def wait_begun(self, timeout_s: float | None) -> bool:
        """Wait until the relays that run here have looked where they begin; False if not in time.

        What is appended after that is seen by triggers that begin "now".
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._mutex:
            running = list(self._running.values())
        return all(
            relay.has_begun.wait(None if deadline_s is None else deadline_s - time.monotonic())
            for relay in running
        )

    def status(self) -> list[RelayStatus]:
        """Return how each relay that runs here is, the outboxes last."""
        with self._mutex:
            running: Sequence[Relay] = list(self._running.values())
        found = [relay.status() for relay in running]
        return sorted(found, key=lambda one: (one.trigger_id is None, one.trigger_id or ""))


def _relays_of(component: Component) -> dict[str, Update | None]:
    """Return a component's relays by the system instance whose shard decides who runs them.

    None stands for the outboxes.
    """
    found: dict[str, Update | None] = {system_instance(None): None}
    for update in component.triggers:
        assert update.trigger is not None
        found[system_instance(update.trigger.trigger_id)] = update
    return found
