"""Whatever stands in a log, a copy of it folds to the same.

Goal: a copy has the same instances, verdicts, versions, winners, times, states and pending
requests as its source, whoever wrote that, and a copy that was cut off anywhere and begun again
ends as one that was not. Method: random records, among them foreign and absurd ones, notes of
repairs and events that state a place already, are put into a log of several partitions and copied
to a log of another number of them. The copy is compared by copy.py itself, and its view with its
log by the verifier.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from typing import Final

import pytest

from eventstore import Config, EventStore, codec, errors
from eventstore.channel import Channel
from eventstore.events import SYSTEM_PREFIX, Kind, Record
from eventstore.fold import GENERATION_NOTE
from eventstore.history.copy import CopyReport, copy_app
from eventstore.history.verify import verify_app
from eventstore.log.base import Append
from tests.contract.logs import Told
from tests.property.test_any_record import Producer

SEEDS: Final = 60
RECORDS: Final = 80
DEADLINE_S: Final = 30.0


def memory(partitions: int) -> EventStore:
    config = Config.load({}, namespace="copies")
    return EventStore(f"memory://{uuid.uuid4().hex}?partitions={partitions}", config=config)


def records(seed: int) -> Iterator[Record]:
    """The producer's records, but for notes on generations that no repair would leave."""
    for record in Producer(seed).records(RECORDS):
        try:
            event = codec.decode_event(record.value or b"")
        except (errors.CorruptEvent, errors.UnknownSchema):
            if not codec.is_ours(record.value) or record.value is None:
                yield record
            continue
        is_note = event.kind == Kind.NOTE and event.name == GENERATION_NOTE
        if not is_note or (record.key or b"").startswith(SYSTEM_PREFIX.encode()):
            yield record


def fill(store: EventStore, seed: int) -> None:
    """Put random records into the app "app", nearly all where they belong."""
    choose = random.Random(seed)
    topic = store.log.topic("copies.app", create=True)
    assert topic is not None
    for record in records(seed):
        partition = store.log.partition_of(record.key or b"", topic)
        if choose.random() < 0.03:
            partition = choose.randrange(topic.partitions)
        append = Append(partition, record.key, record.value, Told())  # type: ignore[arg-type]
        store.log.append(topic, [append])


class Cut(Exception):
    """Stands for the end of the process."""


def copy_in_pieces(
    source: EventStore, target: EventStore, choose: random.Random, monkeypatch: pytest.MonkeyPatch
) -> CopyReport:
    """Copy, but cut each attempt off at some event until one gets through."""
    send = Channel.send

    for _ in range(choose.randrange(1, 4)):
        left = choose.randrange(1, RECORDS)

        def send_some(channel, events, *, system=False):  # type: ignore[no-untyped-def]
            nonlocal left
            receipts = send(channel, events[:left], system=system)
            left -= len(events)
            if left <= 0:
                raise Cut
            return receipts

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "send", send_some)
            patch.setattr("eventstore.history.copy._BATCH_RECORDS_MAX", choose.randrange(1, 20))
            try:
                copy_app(source, "app", target, compare=False)
            except Cut:
                continue
    return copy_app(source, "app", target)


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(0, SEEDS, 20)])
def test_a_copy_of_any_log_is_like_it_also_when_it_was_cut_off(
    seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds:
        choose = random.Random(seed)
        with memory(choose.randrange(1, 4)) as source, memory(choose.randrange(1, 4)) as target:
            fill(source, seed)

            report = copy_in_pieces(source, target, choose, monkeypatch)
            verified = verify_app(target, "app")

            again = copy_app(source, "app", target)

        assert report.events > 10, f"seed {seed}"
        assert verified.events == report.events, f"seed {seed}"
        assert verified.differences == (), f"seed {seed}"
        assert again.written == 0, f"seed {seed}"
