"""A relay: accepted events of a watched app become requests, and outboxes are delivered, once each.

Every trigger of a component has one relay, and so have its outboxes (what handlers sent rides in
the closing events of the component's own app). One process runs it, for all partitions of the
watched app (relays.py). What an event asks for is decided in relay_deliveries.py.

A relay takes events in log order, sends what they ask for, waits until that has counted, and only
then moves its cursor. Killed at any point, its successor begins at the cursor, and what was sent
before is known by its number at the target (relay_courier.py): nothing is lost, nothing comes
twice, and a relay that should be dead does no harm.

Limits, which follow from what a log keeps:

- An app that was deleted and begun anew under its old name numbers its events from 0 again, like
  those before: give its triggers other ids. A copy of an app goes on where the original was.
- A trigger that starts "now", on a copy made before it had sent anything for an instance, tells
  old from new by their times: exact where times are those of one log; where producers state their
  own (`recorded_at` of imports), or partitions have clocks of their own, an event of an earlier
  time than the start is taken for one from before it.
- Events that a log lost, and that a repair accepted as lost, had numbers that new ones get again:
  those fire nothing until their instance is past the lost ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from eventstore import Closed, EventStore, EventStoreError
from eventstore.processing import Folded, Processing
from processors.component import Changed, Component, Update
from processors.relay_courier import Courier, Delivery, Refused
from processors.relay_deliveries import OutboxDeliveries, TriggerDeliveries
from processors.relay_feed import PASSED_MAX, Feed, epoch_of
from processors.relay_record import (
    Cursor,
    Record,
    Start,
    system_instance,
)
from processors.stores import processing_of
from processors.text import storable, text_of

__all__ = ["Relay", "RelayStatus", "watched_app"]

logger: Final = logging.getLogger("processors.relay")

#: Events that are dealt with together: one group commit for what they ask for.
_BATCH_EVENTS_MAX: Final = 500
#: A cursor is written so long after something was sent: a successor looks at so much again.
_CURSOR_DELAY_S: Final = 1.0
#: A relay that stops writes a cursor if so many events came by since the last one: looking at
#: fewer again costs less than one more event in the log.
_PASSED_AT_STOP: Final = 100
#: How often one looks for a watched app that has no events yet.
_LOOK_INTERVAL_S: Final = 0.5
#: Pauses after failures: the first, and the longest.
_PAUSE_S: Final = 0.05
_PAUSE_S_MAX: Final = 5.0
#: How often a relay without news looks whether its log is still the same.
HEARTBEAT_S: Final = 5.0


class RelayStatus(NamedTuple):
    """How one relay is: for `processors status` and the metrics.

    `trigger_id` is None for the outboxes. `lag_events` counts the events of the watched app that
    it has not dealt with, about, and is 0 only when there is nothing left for it to do; `lag_ms`
    is the age of the oldest of them. `sent` counts what was sent since this relay began here,
    `undelivered` what it noted as impossible to deliver, `errors` its failures; `error_last` is
    why it fails now.
    """

    trigger_id: str | None
    watched: str
    #: "starting", "waiting" for the app to begin, "catching up", "level", "failing" or "stopped".
    state: str
    lag_events: int
    lag_ms: int
    sent: int
    undelivered: int
    errors: int
    error_last: str | None


def watched_app(component: Component, update: Update | None) -> str:
    """Return the name of the app whose events a relay takes; None stands for the outboxes."""
    trigger = None if update is None else update.trigger
    return component.name if trigger is None or trigger.app is None else trigger.app


class _Wrong(Exception):
    """This relay cannot run with what it was declared to be; nothing was sent."""


class Relay:
    """One trigger's relay, or that of the outboxes (`update` None). Stepped by one thread.

    `ring` is called, from any thread, when there is something to do.
    """

    def __init__(
        self,
        store: EventStore,
        component: Component,
        update: Update | None,
        processing: Processing,
        ring: Callable[[], None],
    ) -> None:
        trigger = None if update is None else update.trigger
        self._store, self._component = store, component
        self._trigger: Changed | None = trigger
        self._ring = ring
        self._target = processing
        self.trigger_id = None if trigger is None else trigger.trigger_id
        self.watched_name = watched_app(component, update)
        self._deliveries = (
            OutboxDeliveries(store, component, self._note)
            if update is None
            else TriggerDeliveries(component, update, self.watched_name, self._note)
        )
        self._courier = Courier(self._processing_of)
        self._record = Record(processing, system_instance(self.trigger_id))
        self._watched: Processing | None = None
        self._start: Start | None = None
        self._feed: Feed | None = None
        #: Taken from the feed and not done with; and what of it is to be sent, once that is known.
        self._taken: list[Folded] = []
        self._open: list[Delivery] | None = None
        self._is_busy = False
        #: It was stepped once: where it begins is decided, or could not be.
        self.has_begun = threading.Event()
        #: Whether there is no app to watch yet.
        self._is_waiting = False
        #: When the cursor is due, monotonic; None while nothing was sent since the last.
        self._cursor_at_s: float | None = None
        self._retry_at_s = 0.0
        self._pause_s = _PAUSE_S
        self._is_failing = False
        self._is_wrong = False
        self._is_closed = False
        self._sent = self._undelivered = self._errors = 0
        self._error_last: str | None = None

    def _processing_of(self, app: str) -> Processing:
        return self._target if app == self._target.name else processing_of(self._store, app)

    # --- being stepped --------------------------------------------------------------------------

    def step(self) -> float:
        """Do some of the work; return how long until there is more, if nobody rings before.

        Raises:
            Closed: the store is closed.
        """
        if self._is_wrong:
            return HEARTBEAT_S
        left_s = self._retry_at_s - time.monotonic()
        if left_s > 0:
            return left_s
        try:
            wait_s = self._step()
        except Closed:
            raise
        except _Wrong as error:
            self._is_wrong = True
            self._failed(error)
            return HEARTBEAT_S
        except Exception as error:
            self._failed(error)
            return self._pause()
        finally:
            self._is_busy = False
            self.has_begun.set()
        return wait_s

    def _step(self) -> float:
        self._is_busy = True  # first: what is taken below is not in the feed any more
        feed = self._feed or self._begin()
        self._is_waiting = feed is None
        if feed is None:
            self._recovered()
            return _LOOK_INTERVAL_S
        if not self._taken:
            self._taken = feed.take(_BATCH_EVENTS_MAX)
            if feed.epoch != epoch_of(feed.processing):
                # Deleted and made again, or repaired: what was taken has other offsets.
                self._end_feed()
                return 0.0
        if self._taken and not self._is_done(feed):
            return self._pause()
        self._taken, self._open = [], None
        self._recovered()
        self._move_cursor_when_due(feed)
        if not feed.is_level:
            return 0.0
        if self._cursor_at_s is None:
            return HEARTBEAT_S
        return max(0.0, self._cursor_at_s - time.monotonic())

    def _is_done(self, feed: Feed) -> bool:
        """Deliver what was taken; False where some of it is to be sent again."""
        if self._open is None:
            self._open = [delivery for one in self._taken for delivery in self._asked(feed, one)]
        if self._open:
            self._deliver(self._open)
        return not self._open

    def _asked(self, feed: Feed, change: Folded) -> list[Delivery]:
        """Return what an event asks for; nothing, if it is from before the start."""
        start = self._start
        assert start is not None
        if start.epoch != feed.epoch and start.has_before(change):
            return []
        return self._deliveries.of(change, feed.processing)

    def _failed(self, error: Exception) -> None:
        self._errors += 1
        self._error_last = storable(f"{type(error).__name__}: {text_of(error)}")
        if not self._is_failing:
            what = "the outboxes" if self.trigger_id is None else f"trigger {self.trigger_id}"
            unexpected = not isinstance(error, EventStoreError | _Wrong)
            logger.warning(
                "%s of %s, watching %s, waits: %s",
                what,
                self._component.name,
                self.watched_name,
                error,
                exc_info=error if unexpected else None,
            )
        self._is_failing = True

    def _recovered(self) -> None:
        self._is_failing, self._error_last, self._pause_s = False, None, _PAUSE_S

    def _pause(self) -> float:
        pause_s = self._pause_s
        self._pause_s = min(_PAUSE_S_MAX, pause_s * 2)
        self._retry_at_s = time.monotonic() + pause_s
        return pause_s

    def close(self) -> None:
        """Move the cursor to where the relay is, and end; what is on its way is done or not."""
        if self._is_closed:
            return
        self._is_closed = True
        self.has_begun.set()  # nobody need wait for it any more
        feed = self._feed
        try:
            if feed is not None and not self._taken and not self._is_failing:
                passed = feed.passed >= _PASSED_AT_STOP
                if self._cursor_at_s is not None or passed:
                    self._record.move(Cursor(feed.epoch, dict(feed.offsets_next)))
        except EventStoreError as error:
            # The successor looks at a little more again.
            logger.info("no cursor of %s at its end: %s", self.trigger_id or "outbox", error)
        finally:
            self._end_feed()

    # --- beginning ------------------------------------------------------------------------------

    def _begin(self) -> Feed | None:
        """Find the place to go on from; None while there is no app to watch."""
        if self._start is None:
            self._target.catch_up()
            self._watched = self._watched or self._find_watched()
            self._start = self._decided_start(self._watched)
        self._watched = self._watched or self._find_watched()
        if self._watched is None:
            return None
        watched, start = self._watched, self._start
        epoch = epoch_of(watched)
        cursor = self._record.cursor()
        if cursor is not None and cursor.epoch == epoch:
            offsets_next = cursor.offsets_next
        elif start.epoch == epoch:
            offsets_next = start.offsets_next
        else:
            # Another log, where offsets of the first mean nothing: all of it is looked at, and
            # the numbers at the targets say what was sent already.
            offsets_next = {}
        self._feed = Feed(watched, offsets_next, self._deliveries.matters, self._ring)
        return self._feed

    def _find_watched(self) -> Processing | None:
        if self.watched_name == self._component.name:
            return self._target
        # Looking must not make it: a misspelt name would become a topic.
        if self.watched_name not in self._store.apps():
            return None
        return self._processing_of(self.watched_name)

    def _decided_start(self, watched: Processing | None) -> Start:
        trigger = self._trigger
        if trigger is None:
            return Start(self.watched_name, None, {}, None, frozenset())
        start = self._record.decided_start(self.watched_name, watched, trigger.start)
        if start.app != self.watched_name:
            raise _Wrong(
                f"the trigger id {trigger.trigger_id!r} was used to watch {start.app}, and how far"
                f" that was looked at says nothing of {self.watched_name}: give the trigger"
                " another id"
            )
        return start

    def _end_feed(self) -> None:
        feed, self._feed = self._feed, None
        self._taken, self._open = [], None
        self._cursor_at_s = None
        if feed is not None:
            feed.close()

    # --- sending --------------------------------------------------------------------------------

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        outcome = self._courier.deliver(deliveries)
        for refused in outcome.refused:
            self._note_refused(refused)
        self._sent += outcome.sent
        self._open = outcome.again
        if self._cursor_at_s is None:
            self._cursor_at_s = time.monotonic() + _CURSOR_DELAY_S

    def _note_refused(self, refused: Refused) -> None:
        one = refused.delivery
        self._note(one.about, f"{one.app}/{one.instance}", refused.reason)

    def _note(self, about: tuple[str, int], target: str, reason: str) -> None:
        instance, sequence = about
        target, reason = storable(target), storable(reason)
        logger.error(
            "trigger %s of %s: event %d of %s/%s is not delivered to %s: %s",
            self.trigger_id or "outbox",
            self._component.name,
            sequence,
            self.watched_name,
            instance,
            target or "any instance",
            reason,
        )
        self._record.note(about, target[:200], reason[:2_000])
        self._undelivered += 1

    def _move_cursor_when_due(self, feed: Feed) -> None:
        due = self._cursor_at_s is not None and time.monotonic() >= self._cursor_at_s
        if due or feed.passed >= PASSED_MAX:
            # Only now: everything before it has counted (tests/fault/test_relay_killed.py).
            self._record.move(Cursor(feed.epoch, dict(feed.offsets_next)))
            feed.rest()
            self._cursor_at_s = None

    # --- asking ---------------------------------------------------------------------------------

    def status(self) -> RelayStatus:
        """Return how it is now; safe from any thread."""
        feed, taken = self._feed, self._taken
        lag_events = lag_ms = 0
        if feed is not None:
            try:
                lag_events = feed.events_behind() + len(taken)
                lag_ms = feed.age_ms(taken[0] if taken else None) if lag_events else 0
            except EventStoreError:
                pass  # the view is being opened anew, or was closed
        if self._may_have_work(feed):
            lag_events = max(1, lag_events)
        return RelayStatus(
            self.trigger_id,
            self.watched_name,
            self._state(feed),
            lag_events,
            lag_ms,
            self._sent,
            self._undelivered,
            self._errors,
            self._error_last,
        )

    def _may_have_work(self, feed: Feed | None) -> bool:
        """Whether it is in the middle of a step, or has not looked at anything yet."""
        if self._is_closed or self._is_wrong:
            return False
        if feed is None:
            return not self._is_waiting
        # In this order: a step that has ended the feed was in the middle before that.
        return self._is_busy or self._feed is not feed

    def _state(self, feed: Feed | None) -> str:
        if self._is_closed:
            return "stopped"
        if self._is_failing:
            return "failing"
        if feed is None:
            return "waiting" if self._is_waiting else "starting"
        is_level = feed.is_level and not self._taken and not self._may_have_work(feed)
        return "level" if is_level else "catching up"
