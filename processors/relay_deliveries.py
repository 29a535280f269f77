"""What an event of a watched app asks for: the requests of a trigger, the messages of an outbox.

Which events are changes is decided in relay_change.py, and how deliveries are made in
relay_courier.py. What can never be delivered is noted, and nothing waits for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import orjson

from eventstore import (
    Closed,
    ConfigError,
    Event,
    EventStore,
    Kind,
    LogTruncated,
    LogUnavailable,
    ReadTimeout,
    UnknownSchema,
    ViewDamaged,
)
from eventstore.events import RequestPolicy, moment
from eventstore.processing import Folded, Processing, instance_fault
from processors.component import Component, Update
from processors.relay_change import Change, own_names, props_of, watched_fields
from processors.relay_courier import Delivery
from processors.relay_record import source_id
from processors.text import text_of

__all__ = ["OutboxDeliveries", "TriggerDeliveries"]

#: Instances that `key=` may map one change to.
_TARGETS_MAX: Final = 10_000

#: What a store raises when it cannot be read now. All else that it says is an answer, which would
#: be the same the next time.
_TROUBLES: Final = (LogUnavailable, LogTruncated, ReadTimeout, UnknownSchema, ViewDamaged, Closed)

#: Writes down what cannot be delivered: the instance and sequence of the event, whereto, and why.
Note = Callable[[tuple[str, int], str, str], None]


class TriggerDeliveries:
    """What the changes of a watched app ask of an update with a trigger: one request per target."""

    def __init__(self, component: Component, update: Update, watched_name: str, note: Note) -> None:
        assert update.trigger is not None
        self._component, self._update, self._trigger = component, update, update.trigger
        self._watched_name = watched_name
        self._note = note
        #: Requests whose answers are the trigger's own work, and do not fire it.
        self._own_names: frozenset[str] = frozenset()
        if watched_name == component.name and not update.trigger.own_answers:
            self._own_names = own_names(component, update)

    def matters(self, change: Folded) -> bool:
        """Whether an accepted event asks for anything. Reads nothing: the view's lock is held."""
        event = change.event
        if not watched_fields(change, self._trigger.fields):
            return False
        return event.answer is None or event.name not in self._own_names

    def of(self, change: Folded, watched: Processing) -> list[Delivery]:
        """Return what a change asks for; `watched` is the app that it is of."""
        trigger, update = self._trigger, self._update
        seen = self._change(change, watched)
        targets = self._targets(seen)
        if not targets:
            return []
        discard = update.discard
        policy = RequestPolicy(hops=_hops(change, watched) + 1)
        if discard is not None:
            policy = policy._replace(
                discard_policy=discard.policy,
                discard_after=discard.after,
                discard_running=discard.running,
            )
        event = Event(Kind.REQUEST, update.name, props_of(seen), request=policy)
        identity = source_id(trigger.trigger_id, self._watched_name, change.instance)
        about = (change.instance, change.sequence)
        return [
            Delivery(self._component.name, target, identity, (change.sequence, 0), event, about)
            for target in targets
        ]

    def _change(self, change: Folded, watched: Processing) -> Change:
        origin = change.event.origin
        return Change(
            self._watched_name,
            change.instance,
            change.sequence,
            change.version,
            change.event.name,
            watched_fields(change, self._trigger.fields),
            None if origin is None else origin.actor,
            moment(change.time_ms * 1_000),
            partial(watched.state_at, change.instance, change.version),
        )

    def _targets(self, change: Change) -> list[str]:
        """Return the instances that a change is for; what is wrong with them is noted."""
        key = self._trigger.key
        if key is None:
            return [change.instance]
        about = (change.instance, change.sequence)
        try:
            named: Any = key(change)
            if named is None:
                return []
            found = [named] if isinstance(named, str) else _bounded(named)
        except _TROUBLES:
            raise  # of the store, in which `key` reads: that passes, and the change waits for it
        except BaseException as error:  # SystemExit too: it would end all triggers of the app
            self._note(about, "", f"key= raised {type(error).__name__}: {text_of(error)}")
            return []
        targets = []
        for target in found:
            fault = instance_fault(target)
            if fault is None:
                targets.append(target)
            else:
                self._note(about, str(target), f"key= returned {fault}")
        return targets


class OutboxDeliveries:
    """What handlers of a component sent: the messages that ride in their closing events."""

    def __init__(self, store: EventStore, component: Component, note: Note) -> None:
        self._store, self._component = store, component
        self._note = note

    def matters(self, change: Folded) -> bool:
        """Whether an accepted event asks for anything. Reads nothing: the view's lock is held."""
        event = change.event
        return event.outbox is not None and event.answer is not None and event.answer.closes

    def of(self, change: Folded, watched: Processing) -> list[Delivery]:
        """Return what an event's outbox has; `watched` is the component's own app."""
        raw = change.event.outbox
        assert raw is not None
        about = (change.instance, change.sequence)
        try:
            messages = orjson.loads(raw)
            if not isinstance(messages, list):
                raise ValueError("it is not a list")
        except ValueError as error:
            self._note(about, "", f"the outbox cannot be read: {error}")
            return []
        hops = _hops(change, watched)
        identity = source_id(None, self._component.name, change.instance)
        found = []
        for index, message in enumerate(messages):
            delivery = self._message(message, identity, (change.sequence, index), about, hops)
            if delivery is not None:
                found.append(delivery)
        return found

    def _message(
        self,
        message: Any,
        identity: str,
        number: tuple[int, int],
        about: tuple[str, int],
        hops: int,
    ) -> Delivery | None:
        """Return one message of an outbox as it is sent; None, with a note, where it cannot be."""
        try:
            app = message.get("app", self._component.name)
            instance = message["instance"]
            fault = instance_fault(instance)
            if fault is not None:
                raise ValueError(fault)
            self._store.app(app)
            event = _event_of(message, hops)
        except Closed:
            raise
        except (AttributeError, ConfigError, LookupError, TypeError, ValueError) as error:
            place = f"message {number[1]}"
            self._note(about, place, f"cannot be sent: {type(error).__name__}: {error}")
            return None
        return Delivery(app, instance, identity, number, event, about)


def _hops(change: Folded, watched: Processing) -> int:
    """Return how many triggers led to a change."""
    event = change.event
    if event.request is not None:
        return event.request.hops  # it came out of an outbox, which handed them on
    if event.answer is None:
        return 0
    cause = watched.entry(change.instance, event.answer.cause)
    if cause is None or cause.event.request is None:
        return 0
    return cause.event.request.hops


def _bounded(named: Iterable[str]) -> list[str]:
    """Return the instances that `key=` named, each once."""
    found = list(itertools.islice(named, _TARGETS_MAX + 1))
    if len(found) > _TARGETS_MAX:
        raise ValueError(f"more than {_TARGETS_MAX} instances for one change")
    return list(dict.fromkeys(found))


def _event_of(message: dict[str, Any], hops: int) -> Event:
    """Return a message of an outbox as an event; what is wrong with it raises."""
    name, body = str(message.get("name", "")), orjson.dumps(message["body"])
    policy = RequestPolicy(hops=hops)
    if message["kind"] == "diff":
        # A diff carries its hops where a request has them, for triggers that watch its target.
        return Event(Kind.DIFF, name, body, request=policy if hops else None)
    if message["kind"] != "request":
        raise ValueError(f"kind {message['kind']!r:.40} is neither diff nor request")
    if "discard" in message:
        kind, after, running = message["discard"]
        policy = policy._replace(discard_policy=kind, discard_after=after, discard_running=running)
    return Event(
        Kind.REQUEST,
        name,
        body,
        request=policy._replace(not_before_ms=message.get("not_before_ms")),
    )
