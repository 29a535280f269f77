"""The shared counter of commits: what a reader may take it for."""

from __future__ import annotations

import threading
from pathlib import Path

from eventstore import EventStore
from eventstore.log.stamp import Stamp


def test_a_counter_that_nobody_made_is_not_known(tmp_path: Path) -> None:
    assert Stamp(tmp_path / "commits").read() is None


def test_what_one_raises_all_read(tmp_path: Path) -> None:
    writer, reader = Stamp(tmp_path / "commits"), Stamp(tmp_path / "commits")

    writer.raise_()
    first = reader.read()
    writer.raise_()

    assert (first, reader.read(), writer.read()) == (1, 2, 2)


def test_a_counter_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    stamp = Stamp(tmp_path / "no such folder" / "commits")

    stamp.raise_()

    assert stamp.read() is None


def test_a_fresh_read_has_what_any_other_store_was_told_of_before_it(tmp_path: Path) -> None:
    with EventStore(tmp_path / "log") as one, EventStore(tmp_path / "log") as other:
        writer, reader = one.app("a"), other.app("a")
        for number in range(300):
            writer.append("i", {"n": number}).result()

            assert reader.get("i", "n", fresh=True) == number


def test_fresh_reads_beside_writers_never_go_back(tmp_path: Path) -> None:
    with EventStore(tmp_path / "log") as one, EventStore(tmp_path / "log") as other:
        writer, reader = one.app("a"), other.app("a")
        told = [0]
        writer.append("i", {"n": 0}).result()

        def write() -> None:
            for number in range(1, 200):
                writer.append("i", {"n": number}).result()
                told[0] = number

        thread = threading.Thread(target=write)
        thread.start()
        while thread.is_alive():
            known = told[0]
            assert reader.get("i", "n", fresh=True) >= known
        thread.join()
