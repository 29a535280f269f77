"""Deliveries: events that each take effect at their target exactly once, and in order.

Every delivery has a number of its source, and says which number came before it at its target: a
copy of one that counted is refused by the fold as a duplicate, one that would leave a gap as a
conflict. So sending again is always safe, from whichever process; what counted is read from the
target itself, never from what the sender remembers.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from eventstore import Event, EventTooLarge, Receipt, Verdict
from eventstore.events import Source
from eventstore.processing import Processing
from eventstore.testing import fault_point

__all__ = ["Courier", "Delivered", "Delivery", "Refused"]

Number = tuple[int, int]

#: Events of one append: a group commit of its own.
_SEND_EVENTS_MAX: Final = 500
#: Last numbers that are remembered, so that they are not read before each delivery.
_ROWS_MAX: Final = 10_000


class Delivery(NamedTuple):
    """One event for one instance, with its number in its source; `about` says what it is of."""

    app: str
    instance: str
    source_id: str
    number: Number
    event: Event
    about: tuple[str, int]


class Refused(NamedTuple):
    """A delivery that can never be made, and why."""

    delivery: Delivery
    reason: str


class Delivered(NamedTuple):
    """What became of deliveries: how many were made, and which never can be.

    `again` are to be sent once more: what came before them was not known right.
    """

    sent: int
    refused: list[Refused]
    again: list[Delivery]


class _Place(NamedTuple):
    """One row of numbers: a source, as one instance knows it."""

    app: str
    instance: str
    source_id: str


class Courier:
    """Makes deliveries to the apps of a store. For one thread at a time."""

    def __init__(self, processing_of: Callable[[str], Processing]) -> None:
        """`processing_of` returns an app by its name, the same one each time."""
        self._processing_of = processing_of
        #: The last number that counted, None before the first; dropped whenever in doubt.
        self._rows: OrderedDict[_Place, Number | None] = OrderedDict()

    def deliver(self, deliveries: Sequence[Delivery]) -> Delivered:
        """Make deliveries, each row of numbers in its order; return when it is certain.

        Raises:
            EventStoreError: the log or a view failed, or an outcome is not known. Some may have
                been made; call again with the same deliveries.
        """
        by_app: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            by_app[delivery.app].append(delivery)
        outcomes: list[Delivered] = []
        for app, of_app in by_app.items():
            for start in range(0, len(of_app), _SEND_EVENTS_MAX):
                chunk = of_app[start : start + _SEND_EVENTS_MAX]
                outcome = self._deliver(self._processing_of(app), chunk)
                outcomes.append(outcome)
                if outcome.again:
                    # What comes later must not overtake it: its number would be passed for good.
                    left = of_app[start + _SEND_EVENTS_MAX :]
                    outcomes.append(Delivered(0, [], left))
                    break
        return Delivered(
            sum(one.sent for one in outcomes),
            [refused for one in outcomes for refused in one.refused],
            [delivery for one in outcomes for delivery in one.again],
        )

    def _deliver(self, target: Processing, deliveries: list[Delivery]) -> Delivered:
        try:
            linked = self._linked(target, deliveries)
            if not linked:
                return Delivered(0, [], [])
            fault_point("relay.request.before")
            sent, refused = self._send(target, linked)
            fault_point("relay.request.after")
            return self._certain(target, sent, refused)
        except BaseException:
            # What is in the log now is not known: it is read before anything is sent again.
            self._rows.clear()
            raise

    def _linked(
        self, target: Processing, deliveries: list[Delivery]
    ) -> list[tuple[Delivery, Event]]:
        """Return what has not counted yet, with the number that comes before each."""
        generation = target.generation()
        previous: dict[_Place, Number | None] = {}
        linked = []
        for one in deliveries:
            place = _Place(one.app, one.instance, one.source_id)
            last = previous[place] if place in previous else self._last(target, place)
            if last is not None and one.number <= last:
                continue
            source = Source(one.source_id, one.number, last)
            linked.append((one, one.event._replace(source=source, generation=generation)))
            previous[place] = one.number
        return linked

    def _send(
        self, target: Processing, linked: list[tuple[Delivery, Event]]
    ) -> tuple[list[tuple[Delivery, Receipt]], list[Refused]]:
        try:
            receipts = target.send([(one.instance, event) for one, event in linked])
        except EventTooLarge as error:
            if len(linked) == 1:
                return [], [Refused(linked[0][0], f"EventTooLarge: {error}")]
            # Nothing was written. One of them is it, and the others must not wait for it.
            each = [self._send(target, [one]) for one in linked]
            return (
                [one for sent, _ in each for one in sent],
                [one for _, refused in each for one in refused],
            )
        return [(one, receipt) for (one, _), receipt in zip(linked, receipts, strict=True)], []

    def _certain(
        self,
        target: Processing,
        sent: list[tuple[Delivery, Receipt]],
        refused: list[Refused],
    ) -> Delivered:
        """Return what the fold decided on what was sent."""
        newest: dict[int, Receipt] = {}
        for _, receipt in sent:
            receipt.result()
        for _, receipt in sent:
            known = newest.get(receipt.partition)
            if known is None or receipt.offset > known.offset:
                newest[receipt.partition] = receipt
        for receipt in newest.values():
            receipt.entry()  # folded up to here, all of the partition is
        rows: dict[_Place, Number | None] = {}
        again: list[Delivery] = []
        for one, receipt in sent:
            place = _Place(one.app, one.instance, one.source_id)
            if place not in rows:
                rows[place] = target.source(one.instance, one.source_id)
            last = rows[place]
            if last is not None and one.number <= last:
                continue
            entry = receipt.entry()
            if entry.verdict == Verdict.REJECTED:
                refused.append(Refused(one, entry.reason))
            else:
                again.append(one)
        for place, last in rows.items():
            self._keep(place, last)
        return Delivered(len(sent) - len(again) - len(refused), refused, again)

    def _last(self, target: Processing, place: _Place) -> Number | None:
        if place in self._rows:
            self._rows.move_to_end(place)
            return self._rows[place]
        last = target.source(place.instance, place.source_id)
        self._keep(place, last)
        return last

    def _keep(self, place: _Place, last: Number | None) -> None:
        self._rows[place] = last
        self._rows.move_to_end(place)
        if len(self._rows) > _ROWS_MAX:
            self._rows.popitem(last=False)
