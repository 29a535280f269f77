"""Goal: a file that is not ours, or is damaged, is named and never changed; a disk that fails or
fills loses nothing acknowledged and leaves nothing half-written.

Method: such files are made byte by byte; a VFS between SQLite and the system fails on demand; a
small tmpfs fills up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from eventstore import EventStore, testing
from eventstore.config import Config
from eventstore.errors import ConfigError, EventStoreError, LogUnavailable, OutcomeUnknown
from eventstore.history.verify import verify_app
from eventstore.log import open_log
from eventstore.log.base import Topic
from eventstore.log.sqlite import SqliteLog
from tests.contract.logs import queue, read_all, write
from tests.fault.sqlite_child import APP
from tests.fault.sqlite_processes import ROOT, check_log

CONFIG = Config.load({})


def make_log(folder: Path, *values: bytes) -> Path:
    """Make a log with some records, closed; return its file."""
    log = SqliteLog(folder, CONFIG)
    topic = log.topic(APP, create=True)
    assert topic is not None
    if values:
        write(log, topic, *((b"k", value) for value in values))
    log.close()
    return folder / "log.sqlite"


def make_database(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


# --- whose file it is ---


def other_application(path: Path) -> None:
    make_database(path, "PRAGMA application_id=0x42424242", "CREATE TABLE theirs (x)")


def without_application(path: Path) -> None:
    make_database(path, "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)")


def text(path: Path) -> None:
    path.write_text("Dear diary, today I was not a database.\n" * 100)


def newer_layout(path: Path) -> None:
    make_log(path.parent, b"v")
    make_database(path, "PRAGMA user_version=99")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_application, "another application"),
        (without_application, "another application"),
        (text, "not an SQLite database"),
        (newer_layout, "layout 99"),
    ],
)
def test_a_file_that_is_not_ours_is_named_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "log.sqlite"
    make(path)
    before = path.read_bytes()

    with pytest.raises(ConfigError, match=message) as refusal:
        SqliteLog(tmp_path, CONFIG)

    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


def test_a_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("hello")

    with pytest.raises(ConfigError, match="is a file"):
        SqliteLog(path, CONFIG)

    assert path.read_text() == "hello"


def test_a_truncated_file_is_damaged_and_left_as_it_is(tmp_path: Path) -> None:
    path = make_log(tmp_path, *(os.urandom(3_000) for _ in range(50)))
    os.truncate(path, path.stat().st_size // 2)
    before = path.read_bytes()

    def use() -> None:
        log = SqliteLog(tmp_path, CONFIG)
        try:
            topic = log.topic(APP, create=True)
            assert topic is not None
            write(log, topic, (b"k", b"v"))
            read_all(log, topic)
        finally:
            log.close()

    with pytest.raises(LogUnavailable, match="damaged") as refusal:
        use()

    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_log_when_a_topic_is_made(tmp_path: Path) -> None:
    """A crash between creating the file and its first transaction leaves one."""
    (tmp_path / "log.sqlite").touch()
    log = SqliteLog(tmp_path, CONFIG)

    names = log.topics()
    topic = log.topic(APP, create=True)

    assert names == []
    assert topic is not None
    log.close()


def test_a_log_that_another_process_is_making_is_not_there_yet(tmp_path: Path) -> None:
    """Its file has a first page before it has tables."""
    make_database(tmp_path / "log.sqlite", "PRAGMA journal_mode=WAL")
    log = SqliteLog(tmp_path, CONFIG)

    names = log.topics()
    none = log.topic(APP, create=False)
    topic = log.topic(APP, create=True)

    assert (tmp_path / "log.sqlite").stat().st_size > 0
    assert (names, none) == ([], None)
    assert topic is not None
    log.close()


def test_reading_a_log_that_is_not_there_creates_nothing(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "none", CONFIG)

    assert log.topics() == []
    assert log.topic(APP, create=False) is None
    log.close()
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "later" / "log", CONFIG)
    (tmp_path / "later").touch()

    with pytest.raises(ConfigError, match="cannot be"):
        log.topic(APP, create=True)

    log.close()


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: "3.51.2")

    with pytest.raises(ConfigError, match=r"3\.51\.2 can corrupt"):
        SqliteLog(tmp_path, CONFIG)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs Linux's mountinfo")
@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("eventstore.log.sqlite_file.filesystem_of", lambda folder: kind)

    with pytest.raises(ConfigError, match=kind):
        SqliteLog(tmp_path, CONFIG)

    SqliteLog(tmp_path, Config.load({}, allow_network_filesystem=True)).close()


def test_the_local_file_system_is_recognised(tmp_path: Path) -> None:
    from eventstore.log.sqlite_file import filesystem_of

    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("needs Linux's mountinfo")
    assert filesystem_of(Path("/proc/self")) == "proc"
    assert filesystem_of(tmp_path / "not" / "there") not in ("", "proc")


def test_a_file_that_was_replaced_under_a_writer_is_noticed(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log", CONFIG)
    topic = log.topic(APP, create=True)
    assert topic is not None
    write(log, topic, (b"k", b"before"))
    shutil.move(tmp_path / "log" / "log.sqlite", tmp_path / "elsewhere")

    [told] = queue(log, topic, (b"k", b"lost"))
    with pytest.raises(LogUnavailable, match="moved, deleted or replaced"):
        told.drive(log)

    log.close()


def test_a_log_that_is_made_again_has_another_identity(tmp_path: Path) -> None:
    make_log(tmp_path)
    first = SqliteLog(tmp_path, CONFIG)
    topic = first.topic(APP, create=False)
    first.close()
    shutil.rmtree(tmp_path)
    make_log(tmp_path)

    second = SqliteLog(tmp_path, CONFIG)

    assert topic is not None
    assert second.topic(APP, create=False) != topic
    with pytest.raises(LogUnavailable, match="another file took its place"):
        second.offset_end(topic, 0)
    second.close()


def test_urls_name_folders(tmp_path: Path) -> None:
    make_log(tmp_path / "a b")

    by_url = open_log(f"sqlite://{tmp_path}/a%20b", CONFIG)
    by_path = open_log(str(tmp_path / "a b"), CONFIG)

    assert by_url.topics() == by_path.topics() == [APP]
    by_url.close()
    by_path.close()
    with pytest.raises(ConfigError, match="unknown scheme 'postgres'"):
        open_log("postgres://here", CONFIG)


@pytest.mark.parametrize("address", ["localhost:9092", "kafka-1.example.org:9092,10.0.0.2:9093"])
def test_an_address_without_its_scheme_is_not_taken_for_a_folder(address: str) -> None:
    with pytest.raises(ConfigError, match=f"write kafka://{address}, or ./{address}"):
        open_log(address, CONFIG)

    assert not Path(address).exists()


@pytest.mark.parametrize("url", ["kafka:/localhost:9092", "kafka:localhost", "sqlite:/var/log"])
def test_a_url_that_lacks_a_slash_is_not_taken_for_a_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=rf"{url}' could be a URL or a folder: write {url[:5]}"):
        open_log(url, CONFIG)

    assert list(tmp_path.iterdir()) == []


# --- a disk that fails ---


class FaultyDisk(apsw.VFS):
    """Between SQLite and the system; fails writes or syncs of the WAL while told to."""

    def __init__(self) -> None:
        self.fail: str | None = None
        self.system = apsw.vfs_names()[0]
        super().__init__("faulty", base=self.system, makedefault=True)

    def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name: object, flags: list[int]) -> None:
        self._disk = disk
        self._is_wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        super().__init__(disk.system, name, flags)  # type: ignore[arg-type]

    def xSync(self, flags: int) -> None:
        if self._is_wal and self._disk.fail == "sync":
            raise apsw.IOError("the disk is gone")
        super().xSync(flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._is_wal and self._disk.fail == "write":
            raise apsw.IOError("the disk is gone")
        if self._is_wal and self._disk.fail == "full":
            raise apsw.FullError("no room")
        super().xWrite(data, offset)


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    disk = FaultyDisk()
    yield disk
    apsw.set_default_vfs(disk.system)
    disk.unregister()


@pytest.fixture
def log(tmp_path: Path, disk: FaultyDisk) -> Iterator[SqliteLog]:
    opened = SqliteLog(tmp_path, CONFIG)
    yield opened
    disk.fail = None
    opened.close()


@pytest.fixture
def topic(log: SqliteLog) -> Topic:
    created = log.topic(APP, create=True)
    assert created is not None
    write(log, created, (b"k", b"before"))
    return created


@pytest.mark.parametrize("fault", ["sync", "write"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fails_in_a_commit_leaves_the_outcome_unknown(
    tmp_path: Path, log: SqliteLog, topic: Topic, disk: FaultyDisk, fault: str
) -> None:
    disk.fail = fault
    [told] = queue(log, topic, (b"k", b"perhaps"))
    with pytest.raises(OutcomeUnknown, match="same idempotency key"):
        told.drive(log)

    disk.fail = None
    [(_, offset)] = write(log, topic, (b"k", b"after"))

    log.close()
    records = check_log(tmp_path, [f"before {0}", f"after {offset}"])
    assert [record.value for record in records if record.value != b"perhaps"] == [
        b"before",
        b"after",
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_refuses_whole_commits_and_then_takes_them_again(
    tmp_path: Path, log: SqliteLog, topic: Topic, disk: FaultyDisk
) -> None:
    disk.fail = "full"
    told = queue(log, topic, *((b"k", b"lost-%d" % number) for number in range(300)))
    log.flush(30.0)

    disk.fail = None
    write(log, topic, (b"k", b"after"))

    assert all(isinstance(delivery.error, LogUnavailable) for delivery in told)
    assert not any(isinstance(delivery.error, OutcomeUnknown) for delivery in told)
    assert "disk is full" in str(told[0].error)
    log.close()
    assert [record.value for record in check_log(tmp_path, [])] == [b"before", b"after"]


@pytest.mark.parametrize("fault", ["full", "write"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_on_which_the_write_ahead_log_cannot_grow_fails_no_commit(
    tmp_path: Path,
    log: SqliteLog,
    topic: Topic,
    disk: FaultyDisk,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_between_commits(point: str) -> None:
        if point in ("log.acknowledged", "log.commit.before"):
            disk.fail = fault if point == "log.acknowledged" else None

    monkeypatch.setattr(testing, "on_fault_point", only_between_commits)

    for number in range(100):
        write(log, topic, (b"k", b"%d" % number))
    log.flush(30.0)  # whoever was told first is not yet past the point where the disk fails
    wal_bytes = (tmp_path / "log.sqlite-wal").stat().st_size

    monkeypatch.undo()
    disk.fail = None
    log.close()
    assert wal_bytes < 1_000_000
    assert len(check_log(tmp_path, [])) == 101


FILL_A_DISK = """
    import os, sys
    from pathlib import Path
    from eventstore.config import Config
    from eventstore.errors import LogUnavailable, OutcomeUnknown
    from eventstore.log.sqlite import SqliteLog
    from tests.contract.logs import write
    from tests.fault.sqlite_processes import check_log

    disk = Path(sys.argv[1])
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    log = SqliteLog(disk / "log", Config.load({}))
    topic = log.topic("foldlog.app", create=True)
    acknowledged, refusals = [], 0
    while refusals < 3:
        value = b"%d-" % (len(acknowledged) + 1_000_000 * refusals)
        try:
            [(_, offset)] = write(log, topic, (b"k", value + bytes(20_000)))
            acknowledged.append((value, offset))
        except LogUnavailable as error:
            assert not isinstance(error, OutcomeUnknown), error
            assert "disk is full" in str(error), error
            refusals += 1
    ballast.unlink()
    [(_, offset)] = write(log, topic, (b"k", b"after"))
    log.close()
    records = check_log(disk / "log", [])
    assert len(records) == len(acknowledged) + 1 == offset + 1, (len(records), len(acknowledged))
    for value, offset in acknowledged:
        assert records[offset].value.startswith(value)
    print("acknowledged", len(acknowledged))
"""


def test_a_real_disk_that_is_full_loses_nothing_and_works_again(tmp_path: Path) -> None:
    script = (
        f"mount -t tmpfs -o size=3m tmpfs {tmp_path} && exec {sys.executable} -c "
        f"'{textwrap.dedent(FILL_A_DISK)}' {tmp_path}"
    )
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets us make no mount namespace (unshare -rm)")

    filled = subprocess.run(
        [unshare, "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert filled.returncode == 0, filled.stderr
    assert int(filled.stdout.split()[1]) > 10


# --- its size ---


def test_the_wal_is_bounded_while_readers_read(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, CONFIG)
    topic = log.topic(APP, create=True)
    assert topic is not None
    largest_bytes = 0

    for number in range(60):
        write(log, topic, *((b"k", os.urandom(10_000)) for _ in range(100)))  # 1 MB each
        log.read(topic, 0, number, records_max=10, bytes_max=1_000_000)
        largest_bytes = max(largest_bytes, (tmp_path / "log.sqlite-wal").stat().st_size)

    assert largest_bytes < 20_000_000
    log.close()
    assert (tmp_path / "log.sqlite-wal").stat().st_size == 0


def test_a_small_event_costs_little_more_than_its_bytes(tmp_path: Path) -> None:
    count, value_bytes = 20_000, 70

    path = make_log(tmp_path, *(os.urandom(value_bytes) for _ in range(count)))

    assert path.stat().st_size / count <= value_bytes + 25


def test_every_error_of_a_read_is_ours(tmp_path: Path) -> None:
    """A page in the middle is overwritten: the header still fits, the rows do not."""
    path = make_log(tmp_path, *(os.urandom(3_000) for _ in range(50)))
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 8 * 4096)
    log = SqliteLog(tmp_path, CONFIG)
    topic = log.topic(APP, create=False)
    assert topic is not None

    with pytest.raises(EventStoreError, match="damaged"):
        read_all(log, topic)

    log.close()


def test_a_clock_that_is_set_back_does_not_set_the_log_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SqliteLog(tmp_path, CONFIG)
    topic = log.topic(APP, create=True)
    assert topic is not None
    write(log, topic, (b"k", b"before"))

    monkeypatch.setattr("eventstore.log.sqlite_writer.time.time_ns", lambda: 1_000_000_000)
    write(log, topic, (b"k", b"after"))

    before, after = read_all(log, topic)
    assert before.time_ms == after.time_ms
    log.close()


# --- what other programs insert ---


def test_rows_of_any_types_are_foreign_and_stop_nobody(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        app = store.app("orders")
        app.append("o-1", {"before": True}).result()
        connection = apsw.Connection(str(tmp_path / "log.sqlite"))
        good = connection.execute("SELECT value FROM records_1").get
        for offset, (time_ms, key, value) in enumerate(
            [
                (1, None, good),
                (1, b"o-1", None),
                (1, "o-1", good),
                (1, 5, 7.5),
                ("soon", None, "x"),
            ],
            1,
        ):
            connection.execute(
                "INSERT INTO records_1 VALUES (?, ?, ?, ?)", (offset, time_ms, key, value)
            )
        connection.close()

        app.append("o-1", {"after": True}).result()

        assert dict(app.get("o-1")) == {"before": True, "after": True}
        assert [row.offset for row in app.refused()] == [1, 2, 3, 4, 5]
        assert not verify_app(store, "orders").differences
