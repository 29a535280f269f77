"""The serve cache: what is put is found for its time, and at worst nothing is found."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from processors.serve_cache import Cached, ServeCache


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "views" / "serve_cache"


@pytest.fixture
def cache(path: Path) -> Iterator[ServeCache]:
    cache = ServeCache(path)
    yield cache
    cache.close()


ONE = Cached(b"[1]", b"{}")


def test_what_is_put_is_found_here_and_by_another_process(cache: ServeCache, path: Path) -> None:
    cache.put(b"k", ONE, 60)
    other = ServeCache(path)

    assert cache.get(b"k") == ONE
    assert other.get(b"k") == ONE
    assert other.get(b"q") is None
    other.close()


def test_the_newest_result_counts(cache: ServeCache) -> None:
    cache.put(b"k", ONE, 60)
    cache.put(b"k", Cached(b"[2]", b'{"a":1}'), 60)

    assert cache.get(b"k") == (b"[2]", b'{"a":1}')


def test_memory_keeps_results_without_a_file() -> None:
    cache = ServeCache(None)
    cache.put(b"k", ONE, 60)

    assert cache.get(b"k") == ONE


def test_a_result_is_found_until_its_time_is_up(
    cache: ServeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("processors.serve_cache.time.time", lambda: now)
    cache.put(b"k", ONE, 60)

    monkeypatch.setattr("processors.serve_cache.time.time", lambda: now + 59)
    assert cache.get(b"k") == ONE
    monkeypatch.setattr("processors.serve_cache.time.time", lambda: now + 61)
    assert cache.get(b"k") is None


def test_nothing_is_made_before_the_first_use(cache: ServeCache, path: Path) -> None:
    assert not path.parent.exists()
    cache.get(b"k")
    assert path.exists()


@pytest.mark.parametrize(
    "content", [b"this is no database, but long enough to be taken for one" * 20]
)
def test_a_file_that_is_none_of_ours_is_replaced(
    cache: ServeCache, path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)

    with caplog.at_level(logging.WARNING):
        cache.put(b"k", ONE, 60)

    assert cache.get(b"k") == ONE
    assert [record.message for record in caplog.records if "is replaced" in record.message]


def test_a_file_of_another_layout_is_replaced(cache: ServeCache, path: Path) -> None:
    path.parent.mkdir()
    foreign = apsw.Connection(str(path))
    foreign.execute("create table results (other); pragma user_version = 99")
    foreign.close()

    cache.put(b"k", ONE, 60)

    assert cache.get(b"k") == ONE


def test_a_file_that_is_damaged_under_it_costs_at_most_what_it_had(
    cache: ServeCache, path: Path
) -> None:
    for number in range(500):
        cache.put(b"%d" % number, Cached(b"x" * 200, b"{}"), 60)
    cache.close()
    raw = bytearray(path.read_bytes())
    raw[4_096:-4_096] = b"\xff" * (len(raw) - 8_192)
    path.write_bytes(raw)

    found = [cache.get(b"%d" % number) for number in range(500)]

    assert {one.body for one in found if one is not None} <= {b"x" * 200}
    cache.put(b"new", ONE, 60)
    assert cache.get(b"new") == ONE


def test_a_row_whose_bytes_changed_is_not_found(cache: ServeCache, path: Path) -> None:
    cache.put(b"k", ONE, 60)
    other = apsw.Connection(str(path))
    other.execute("update results set body = ?", (b"[7]",))
    other.close()

    assert cache.get(b"k") is None


def test_a_file_that_cannot_be_used_is_told_once_and_costs_only_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = ServeCache(tmp_path / "file" / "serve_cache")

    with caplog.at_level(logging.WARNING):
        cache.put(b"k", ONE, 60)
        assert cache.get(b"k") is None
        assert cache.get(b"k") is None

    assert len(caplog.records) == 1


def test_a_process_that_holds_the_file_delays_nobody_for_long(
    cache: ServeCache, path: Path
) -> None:
    cache.put(b"k", ONE, 60)
    other = apsw.Connection(str(path))
    other.execute("begin immediate")

    begun = time.monotonic()
    cache.put(b"q", ONE, 60)

    assert time.monotonic() - begun < 30
    assert cache.get(b"k") == ONE, "reading goes on"
    other.execute("rollback")
    other.close()
    assert cache.get(b"q") is None
    cache.put(b"q", ONE, 60)
    assert cache.get(b"q") == ONE


def test_the_file_is_bounded(path: Path) -> None:
    cache = ServeCache(path, bytes_max=1_000_000)
    for number in range(3_000):
        cache.put(b"%d" % number, Cached(b"x" * 2_000, b"{}"), 60 + number)

    kept = [number for number in range(3_000) if cache.get(b"%d" % number) is not None]

    assert 100 < len(kept) < 1_000
    assert kept[-1] == 2_999, "what expires next goes first"
    assert path.stat().st_size < 3_000_000
    cache.close()


def test_expired_results_make_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ServeCache(path)
    for number in range(1_000):
        cache.put(b"old %d" % number, Cached(b"x" * 1_000, b"{}"), 10)
    now = time.time()
    monkeypatch.setattr("processors.serve_cache.time.time", lambda: now + 20)

    for number in range(300):
        cache.put(b"new %d" % number, Cached(b"x" * 1_000, b"{}"), 10)

    cache.close()
    rows = apsw.Connection(str(path)).execute("select count(*) from results").fetchone()
    assert rows == (300,)


def test_a_result_that_is_too_large_is_not_kept(cache: ServeCache) -> None:
    cache.put(b"k", Cached(b"x" * 16_000_001, b"{}"), 60)

    assert cache.get(b"k") is None


def test_threads_may_share_it(cache: ServeCache) -> None:
    def work(name: int) -> None:
        for number in range(50):
            cache.put(b"%d/%d" % (name, number), ONE, 60)
            found.append(cache.get(b"%d/%d" % (name, number)))

    found: list[Cached | None] = []
    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert found == [ONE] * 200
