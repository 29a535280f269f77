"""Goal: a view that is damaged, or of another log, is set aside and rebuilt, with one warning; a
log that was cut stops the view and changes nothing, until an operator accepts the loss.

Method: real files are truncated, overwritten, deleted and restored between, and under, open stores.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from eventstore import (
    Conflict,
    Diff,
    Event,
    EventStore,
    Kind,
    LogTruncated,
    LogUnavailable,
    State,
    Verdict,
    ViewDamaged,
)
from eventstore.events import Guard
from eventstore.history.verify import verify_app
from eventstore.view import keys
from eventstore.view.rocks import RocksTable
from tests.contract.logs import eventually

EVENTS = 300


def fill(folder: Path, events: int = EVENTS) -> None:
    """Make an app with some events, and a view of it in slot 0."""
    with EventStore(folder) as store:
        app = store.app("app")
        for number in range(events):
            app.append(f"i{number % 3}", Diff().increment("n").set("text", f"{number}" * 500))
        app.get("i0")


def slot(folder: Path) -> Path:
    return folder / "views" / "foldlog.app" / "slot-00"


def set_aside(folder: Path) -> list[str]:
    return sorted(path.name for path in slot(folder).parent.glob("*.damaged-?"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# --- the view's files ---


def cut_a_table_file(path: Path) -> None:
    file = sorted(path.glob("*.sst"))[0]
    os.truncate(file, file.stat().st_size // 2)


def overwrite_current(path: Path) -> None:
    (path / "CURRENT").write_bytes(b"garbage")


def overwrite_the_manifest(path: Path) -> None:
    file = sorted(path.glob("MANIFEST-*"))[0]
    file.write_bytes(os.urandom(file.stat().st_size))


def put_a_foreign_folder_there(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "photographs.txt").write_text("dear diary")


def write_another_layout(path: Path) -> None:
    table = RocksTable(path)
    meta = table.get(keys.META)
    assert meta is not None
    batch = table.batch()
    batch.put(keys.META, meta.replace(b'"layout":', b'"layout":9'))
    table.write(batch)
    table.close()


@pytest.mark.parametrize(
    "damage",
    [
        cut_a_table_file,
        overwrite_current,
        overwrite_the_manifest,
        put_a_foreign_folder_there,
        write_another_layout,
    ],
)
def test_a_damaged_view_is_set_aside_and_rebuilt_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    fill(tmp_path)
    damage(slot(tmp_path))

    with EventStore(tmp_path) as store:
        assert store.app("app").get("i0", "n") == EVENTS // 3
        assert verify_app(store, "app")

    assert len(warnings_of(caplog)) == 1
    assert "is rebuilt from the log" in warnings_of(caplog)[0]
    assert set_aside(tmp_path) == ["slot-00.damaged-1"]
    with EventStore(tmp_path) as store:
        assert verify_app(store, "app")
    assert set_aside(tmp_path) == ["slot-00.damaged-1"]
    assert len(warnings_of(caplog)) == 1


def test_a_view_with_a_damaged_block_says_so_and_can_be_rebuilt(tmp_path: Path) -> None:
    """The database opens; only a read of that block fails."""
    fill(tmp_path, 30_000)
    file = max(slot(tmp_path).glob("*.sst"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\xff" * 20_000)

    with EventStore(tmp_path) as store:
        app = store.app("app")
        with pytest.raises(ViewDamaged, match="view database"):
            [entry for number in range(3) for entry in app.history(f"i{number}")]
        app.append("i0", Diff().increment("n")).result()
        app.rebuild_view()

        assert app.get("i0", "n") == 10_001
        assert verify_app(store, "app")
    assert set_aside(tmp_path)


def test_a_view_that_says_something_else_than_its_log_is_found_out(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        store.app("app").append("i0", {"n": 1}).result()
        store.app("app").get("i0")
    table = RocksTable(slot(tmp_path))
    key, row = next(table.scan(b"f", b"g", reverse=True))
    batch = table.batch()
    batch.put(key, row[:-1] + b"2")
    table.write(batch)
    table.close()

    with EventStore(tmp_path) as store:
        verified = verify_app(store, "app")

    assert not verified
    assert verified.differences == ("i0['n']: the view says 2, the log 1",)


# --- another log ---


def delete_the_log(folder: Path) -> None:
    for file in folder.glob("log.sqlite*"):
        file.unlink()


def cut(folder: Path, count: int) -> None:
    """Delete the newest rows, as an unfinished restore would."""
    with closing(apsw.Connection(str(folder / "log.sqlite"))) as connection:
        connection.execute(
            "DELETE FROM records_1 WHERE offset > (SELECT max(offset) - ? FROM records_1)", (count,)
        )


def test_a_rebuild_on_a_cut_log_keeps_the_view_that_has_what_was_lost(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        store.app("orders").append_many([(f"o-{n}", {"n": n}) for n in range(10)])
        assert store.app("orders").get("o-9", "n") == 9
    cut(tmp_path, 5)

    with EventStore(tmp_path) as store, pytest.raises(LogTruncated):
        store.app("orders").rebuild_view()

    assert not list((tmp_path / "views").glob("*/*.damaged-*"))


def test_a_log_that_was_deleted_and_made_again_gets_a_new_view_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path)
    delete_the_log(tmp_path)

    with EventStore(tmp_path) as store:
        app = store.app("app")
        app.append("i0", {"n": "new"}).result()
        assert dict(app.get("i0")) == {"n": "new"}
        assert list(app.instances()) == ["i0"]
        assert verify_app(store, "app")

    assert len(warnings_of(caplog)) == 1
    assert "its log identity is" in warnings_of(caplog)[0]
    assert set_aside(tmp_path) == ["slot-00.damaged-1"]


def test_a_log_that_is_replaced_under_an_open_store_is_no_longer_written_or_read(
    tmp_path: Path,
) -> None:
    fill(tmp_path)
    with EventStore(tmp_path) as store:
        app = store.app("app")
        app.append("i0", Diff().increment("n")).result()
        delete_the_log(tmp_path)
        with EventStore(tmp_path) as new:
            new.app("app").append("i0", {"n": "new"}).result()

        with pytest.raises(LogUnavailable, match="moved, deleted or replaced"):
            app.append("i0", Diff().increment("n")).result()
        with pytest.raises(LogUnavailable, match="moved, deleted or replaced"):
            app.get("i0", fresh=True)

    with EventStore(tmp_path) as store:
        assert store.app("app").get("i0", "n") == "new"
        assert verify_app(store, "app")


def test_a_log_restored_from_an_older_copy_is_truncated_until_the_loss_is_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 30)
    shutil.copy(tmp_path / "log.sqlite", tmp_path / "backup")
    fill(tmp_path, 30)
    delete_the_log(tmp_path)
    shutil.copy(tmp_path / "backup", tmp_path / "log.sqlite")

    with EventStore(tmp_path) as store:
        with pytest.raises(LogTruncated, match="ends at offset 30, but events up to 59"):
            store.app("app").get("i0")
        assert set_aside(tmp_path) == []
        store.app("app").repair(accept_loss=True)
        assert store.app("app").get("i0", "n") == 10
        assert verify_app(store, "app")

    assert set_aside(tmp_path) == ["slot-00.damaged-1"]
    assert len(warnings_of(caplog)) == 1


def test_a_restored_log_that_grew_again_is_told_by_its_last_record(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    shutil.copy(tmp_path / "log.sqlite", tmp_path / "backup")
    fill(tmp_path, 5)
    delete_the_log(tmp_path)
    shutil.copy(tmp_path / "backup", tmp_path / "log.sqlite")
    with EventStore(tmp_path) as store:  # opens no view
        for _ in range(20):
            store.app("app").append("i0", Diff().increment("other"))

    with (
        EventStore(tmp_path) as store,
        pytest.raises(LogTruncated, match="has another record at offset 34"),
    ):
        store.app("app").get("i0")


def test_after_a_repair_nothing_counts_that_was_prepared_against_lost_events(
    tmp_path: Path,
) -> None:
    fill(tmp_path, 30)
    with EventStore(tmp_path) as store:
        app = store.app("app")
        stale: State = app.get("i2")
        request = app.request("i1", "work").entry()
        dict(stale)
    cut(tmp_path, 1)

    with EventStore(tmp_path) as store:
        app = store.app("app")
        with pytest.raises(LogTruncated):
            app.get("i0")
        app.repair(accept_loss=True)

        app.append("i2", {"text": "first of the new generation"})
        with pytest.raises(Conflict, match="generation"):
            app.commit("i2", stale.update(n=1))
        assert app.append("i2", {"n": 5}, guard=stale).verdict() == Verdict.CONFLICT
        answer = Event(Kind.DIFF, "done", b"[]", Guard(0, (), "chain", 0), idempotency_key="answer")
        answered = app._channel.send([("i2", answer)])[0]
        fresh: State = app.get("i2")

        assert answered.verdict() == Verdict.CONFLICT
        assert app.commit("i2", fresh.update(n=2))["n"] == 2
        assert request.sequence == 10
        assert list(app.pending()) == []
        assert verify_app(store, "app")


def test_a_log_that_is_cut_under_an_open_store_is_noticed_by_a_fresh_read(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    with EventStore(tmp_path) as store:
        app = store.app("app")
        assert app.get("i0", "n") == 10
        cut(tmp_path, 6)

        with pytest.raises(LogTruncated, match="ends at offset 24, but events up to 29"):
            app.get("i0", fresh=True)


def test_a_cut_that_the_view_s_own_thread_has_noticed_is_told_in_the_same_words(
    tmp_path: Path,
) -> None:
    fill(tmp_path, 30)
    with EventStore(tmp_path) as store:
        app = store.app("app")
        assert app.get("i0", "n") == 10
        follower = app._channel._follower
        assert follower is not None
        cut(tmp_path, 6)

        store.log.wake()  # it looks by itself once a second, too
        assert eventually(lambda: follower.is_stopped)

        with pytest.raises(LogTruncated, match=r"events up to 29 were .*`eventstore repair"):
            app.get("i0", fresh=True)


def test_after_a_repair_the_views_of_other_processes_are_rebuilt_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 30)
    with EventStore(tmp_path) as one, EventStore(tmp_path) as two:
        assert one.app("app").get("i0", "n") == two.app("app").get("i0", "n") == 10
    cut(tmp_path, 6)
    with EventStore(tmp_path) as one, EventStore(tmp_path) as two:
        with pytest.raises(LogTruncated):
            one.app("app").get("i0")
        one.app("app").repair(accept_loss=True)
        position = one.app("app").append("i0", Diff().increment("n")).result()

        with EventStore(tmp_path) as three:
            for store in (one, two, three):
                assert store.app("app").get("i0", "n", after=position) == 9
                assert verify_app(store, "app")

    assert set_aside(tmp_path) == ["slot-00.damaged-1", "slot-01.damaged-2"]
    assert len(warnings_of(caplog)) == 2, "one for each view"
