"""What a view's writer keeps in memory between batches has a bound, whatever the instances are."""

from __future__ import annotations

import orjson

from eventstore.codec import encode_event
from eventstore.events import Batch, Event, Kind, Record
from eventstore.view import writer as view_writer
from eventstore.view.memory import MemoryTable
from eventstore.view.reader import ViewReader
from eventstore.view.writer import ViewWriter

FIELDS = 2_000


def test_many_instances_of_many_fields_stay_within_a_bound() -> None:
    table = MemoryTable()
    writer = ViewWriter(table, lambda key: 0, hot_bytes_max=1_000_000)
    operations = orjson.dumps([["set", f"field-{number}", number] for number in range(FIELDS)])
    value = encode_event(Event(Kind.DIFF, body=operations))
    instances = 2 * view_writer._FIELDS_IN_ALL_MAX // FIELDS

    for offset in range(instances):
        writer.apply(0, Batch([Record(offset, 1, b"%d" % offset, value)], offset + 1))

    kept = sum(len(instance.fields) for instance in writer._instances.values())
    assert 0 < kept <= 1.25 * view_writer._FIELDS_IN_ALL_MAX + FIELDS
    reader = ViewReader(table)
    for name in ("0", str(instances - 1)):
        head = reader.head(name)
        assert head is not None
        assert len(list(reader.snapshot(head).names())) == FIELDS
