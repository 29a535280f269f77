"""A process that is killed leaves the batches up to some moment: whole ones, and without a gap.

Method: a child writes numbered batches, flushes now and then, and tells what it flushed; it is
killed at a random moment, also while RocksDB writes full buffers out on its own.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import struct
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from eventstore.view.rocks import RocksTable

ROWS_PER_BATCH = 100
BATCHES_PER_FLUSH = 23
PROGRESS = b"o"


def write_batches(path: Path, channel: Connection) -> None:
    table = RocksTable(path)
    for number in range(1_000_000):
        batch = table.batch()
        for index in range(ROWS_PER_BATCH):
            batch.put(struct.pack(">cII", b"h", number, index), os.urandom(5_000))
        batch.put(PROGRESS, struct.pack(">I", number))
        table.write(batch)
        flushed = number % BATCHES_PER_FLUSH == 0
        if flushed:
            table.flush()
        channel.send((number, flushed))


@pytest.mark.parametrize("attempt", range(4))
def test_a_killed_process_leaves_a_prefix_of_its_batches(tmp_path: Path, attempt: int) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    batches_until_kill = random.Random(seed).randrange(20, 160)
    context = multiprocessing.get_context("spawn")
    channel, channel_of_writer = context.Pipe()
    writer = context.Process(target=write_batches, args=(tmp_path / "table", channel_of_writer))
    writer.start()
    channel_of_writer.close()
    written_last = flushed_last = -1
    while written_last < batches_until_kill:
        assert channel.poll(30)
        written_last, flushed = channel.recv()
        if flushed:
            flushed_last = written_last

    writer.kill()
    writer.join()

    table = RocksTable(tmp_path / "table")
    numbers = [struct.unpack_from(">II", key, 1) for key, _ in table.scan(b"h", b"i")]
    progress = table.get(PROGRESS)
    assert progress is not None
    (number_last,) = struct.unpack(">I", progress)
    assert number_last >= flushed_last
    assert numbers == [
        (number, index) for number in range(number_last + 1) for index in range(ROWS_PER_BATCH)
    ]
    table.close()
