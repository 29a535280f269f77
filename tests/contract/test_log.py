"""What every log promises (eventstore/log/base.py), asked of each backend in the same words."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventstore.errors import Closed, LogTruncated
from eventstore.log.base import Append, Log, NewerRecord, Topic
from tests.contract.logs import DEADLINE_S, Told, eventually, queue, read_all, write

# --- topics ---


def test_a_topic_is_made_only_when_asked(log: Log, namespace: str) -> None:
    name = f"{namespace}.orders"

    before = log.topic(name, create=False)
    created = log.topic(name, create=True)

    assert before is None
    assert created is not None
    assert created.name == name
    assert log.topic(name, create=False) == created
    assert log.topics() == [name]


def test_looking_for_topics_makes_none(log: Log, namespace: str) -> None:
    log.topic(f"{namespace}.ghost", create=False)

    assert log.topics() == []


def test_two_handles_of_one_log_see_the_same_topic(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    other = open_log_again()

    assert other.topic(topic.name, create=True) == topic


def test_topics_have_different_identities(log: Log, topic: Topic, namespace: str) -> None:
    other = log.topic(f"{namespace}.other", create=True)

    assert other is not None
    assert other.identity != topic.identity


def test_metadata_is_merged_and_seen_by_other_handles(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    before = log.metadata(topic)

    log.set_metadata(topic, {"fold": 1, "owner": "ops"})
    log.set_metadata(topic, {"fold": 2})

    assert before == {}
    assert open_log_again().metadata(topic) == {"fold": 2, "owner": "ops"}


# --- writing and reading ---


def test_what_was_delivered_is_read_back(log: Log, topic: Topic) -> None:
    [(partition, offset)] = write(log, topic, (b"o-1", b"\xc3\x01 bytes \x00"))

    batch = log.read(topic, partition, offset, records_max=10, bytes_max=1_000_000)

    [record] = batch.records
    assert (record.offset, record.key, record.value) == (offset, b"o-1", b"\xc3\x01 bytes \x00")
    assert batch.offset_next == offset + 1


def test_the_records_of_one_key_keep_their_order(log: Log, topic: Topic) -> None:
    values = [b"%d" % number for number in range(100)]

    places = write(log, topic, *((b"o-1", value) for value in values))

    partitions = {partition for partition, _ in places}
    offsets = [offset for _, offset in places]
    assert len(partitions) == 1
    assert offsets == sorted(set(offsets))
    assert [record.value for record in read_all(log, topic, partitions.pop())] == values


def test_appends_of_one_call_after_the_other_keep_their_order(log: Log, topic: Topic) -> None:
    told = [queue(log, topic, (b"k", b"%d" % number))[0] for number in range(50)]
    log.flush(DEADLINE_S)

    values = [record.value for record in read_all(log, topic, log.partition_of(b"k", topic))]

    assert all(delivery.done for delivery in told)
    assert values == [b"%d" % number for number in range(50)]


def test_each_delivery_is_told_once(log: Log, topic: Topic) -> None:
    told = queue(log, topic, *((b"%d" % number, b"v") for number in range(20)))

    log.flush(DEADLINE_S)
    log.flush(DEADLINE_S)

    assert [delivery.count for delivery in told] == [1] * 20


def test_an_append_that_nobody_waits_for_is_delivered_too(log: Log, topic: Topic) -> None:
    [delivery] = queue(log, topic, (b"k", b"v"))

    assert delivery.wait()
    assert delivery.place is not None


def test_an_empty_append_is_nothing(log: Log, topic: Topic) -> None:
    log.append(topic, [])
    log.flush(DEADLINE_S)

    assert all(log.offset_end(topic, partition) == 0 for partition in range(topic.partitions))


def test_threads_that_write_at_once_lose_nothing(log: Log, topic: Topic) -> None:
    def write_some(writer: int) -> list[tuple[int, int]]:
        return [write(log, topic, (b"%d" % writer, b"%d" % step))[0] for step in range(25)]

    with ThreadPoolExecutor(8) as pool:
        places = [place for part in pool.map(write_some, range(8)) for place in part]

    records = [
        record
        for partition in range(topic.partitions)
        for record in read_all(log, topic, partition)
    ]
    assert len(set(places)) == len(places) == len(records) == 200
    for writer in range(8):
        values = [record.value for record in records if record.key == b"%d" % writer]
        assert values == [b"%d" % step for step in range(25)]


def test_writers_through_two_handles_share_one_order(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    other = open_log_again()

    places = [
        write(handle, topic, (b"k", b"%d" % number))[0]
        for number, handle in enumerate([log, other, log, other])
    ]

    offsets = [offset for _, offset in places]
    assert offsets == sorted(set(offsets))
    values = [record.value for record in read_all(other, topic, places[0][0])]
    assert values == [b"0", b"1", b"2", b"3"]


def test_times_are_near_the_clock_and_never_fall(log: Log, topic: Topic) -> None:
    before_ms = time.time_ns() // 1_000_000
    places = [write(log, topic, (b"k", b"%d" % number))[0] for number in range(10)]
    after_ms = time.time_ns() // 1_000_000

    times_ms = [record.time_ms for record in read_all(log, topic, places[0][0])]

    assert times_ms == sorted(times_ms)
    assert before_ms - 1_000 <= times_ms[0] <= times_ms[-1] <= after_ms + 1_000


def test_reading_at_the_end_returns_nothing_at_once(log: Log, topic: Topic) -> None:
    [(partition, offset)] = write(log, topic, (b"k", b"v"))

    batch = log.read(topic, partition, offset + 1, records_max=10, bytes_max=1_000)

    assert not batch.records
    assert batch.offset_next == offset + 1


def test_a_batch_has_at_most_the_records_asked_for(log: Log, topic: Topic) -> None:
    [(partition, _), *_] = write(log, topic, *((b"k", b"%d" % n) for n in range(10)))

    batch = log.read(topic, partition, 0, records_max=3, bytes_max=1_000_000)

    assert [record.value for record in batch.records] == [b"0", b"1", b"2"]


def test_a_batch_stops_soon_after_its_bytes(log: Log, topic: Topic) -> None:
    large = b"x" * 10_000
    [(partition, _), *_] = write(log, topic, *((b"k", large) for _ in range(10)))

    batch = log.read(topic, partition, 0, records_max=100, bytes_max=25_000)

    assert 1 <= len(batch.records) <= 3


def test_one_record_is_returned_however_large(log: Log, topic: Topic) -> None:
    large = os.urandom(500_000)
    [(partition, offset)] = write(log, topic, (b"k", large))

    batch = log.read(topic, partition, offset, records_max=10, bytes_max=10)

    assert [record.value for record in batch.records] == [large]


@pytest.mark.parametrize("offset", [-1, 2, 1_000])
def test_an_offset_that_the_log_does_not_have_is_truncation(
    log: Log, topic: Topic, offset: int
) -> None:
    [(partition, _)] = write(log, topic, (b"k", b"v"))

    with pytest.raises(LogTruncated):
        log.read(topic, partition, offset, records_max=10, bytes_max=1_000)


def test_the_first_and_the_end_offset_frame_the_records(log: Log, topic: Topic) -> None:
    partition = log.partition_of(b"k", topic)
    empty = (log.offset_first(topic, partition), log.offset_end(topic, partition))

    places = write(log, topic, *((b"k", b"v") for _ in range(5)))

    assert empty == (0, 0)
    assert log.offset_first(topic, partition) == places[0][1] == 0
    assert log.offset_end(topic, partition) == places[-1][1] + 1


def test_an_offset_is_found_by_time(log: Log, topic: Topic) -> None:
    places = [write(log, topic, (b"k", b"%d" % number))[0] for number in range(20)]
    partition = places[0][0]
    records = read_all(log, topic, partition)

    def first_at(time_ms: int) -> int:
        return next((r.offset for r in records if r.time_ms >= time_ms), places[-1][1] + 1)

    for time_ms in {0, *(r.time_ms for r in records), records[-1].time_ms + 1}:
        assert log.offset_at(topic, partition, time_ms) == first_at(time_ms)


def test_topics_do_not_mix(log: Log, topic: Topic, namespace: str) -> None:
    other = log.topic(f"{namespace}.other", create=True)
    assert other is not None

    [(partition, _)] = write(log, topic, (b"k", b"here"))
    write(log, other, (b"k", b"there"))

    assert [record.value for record in read_all(log, topic, partition)] == [b"here"]
    assert [record.value for record in read_all(log, other, partition)] == [b"there"]


def test_a_handle_opened_later_reads_everything(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    [(partition, _)] = write(log, topic, (b"k", b"before"))
    log.close()

    later = open_log_again()
    write(later, topic, (b"k", b"after"))

    assert [record.value for record in read_all(later, topic, partition)] == [b"before", b"after"]


# --- appending unless something newer came ---


#: For tests of logs that see newer records; the first test here says which do not.
sees_newer = pytest.mark.parametrize("log_url", ["memory", "memory-4", "sqlite"], indirect=True)


def end_of(log: Log, topic: Topic, key: bytes) -> int:
    """Return the offset after the last record where records of this key stand."""
    return log.offset_end(topic, log.partition_of(key, topic))


def other_key(log: Log, topic: Topic, key: bytes) -> bytes:
    """Return another key whose records stand in the same partition."""
    partition = log.partition_of(key, topic)
    others = (b"%s-%d" % (key, number) for number in itertools.count())
    return next(other for other in others if log.partition_of(other, topic) == partition)


def values_of(log: Log, topic: Topic, key: bytes) -> list[bytes | None]:
    records = read_all(log, topic, log.partition_of(key, topic))
    return [record.value for record in records if record.key == key]


def test_a_log_says_whether_it_sees_newer_records(log: Log, topic: Topic) -> None:
    if log.sees_newer:
        [told] = queue(log, topic, (b"k", b"v"), unless_newer=0)
        told.drive(log)
    else:
        with pytest.raises(NotImplementedError, match="cannot see newer records"):
            queue(log, topic, (b"k", b"v"), unless_newer=0)

    log.flush(DEADLINE_S)
    assert values_of(log, topic, b"k") == ([b"v"] if log.sees_newer else [])


@sees_newer
def test_records_that_meet_nothing_newer_are_written_side_by_side(log: Log, topic: Topic) -> None:
    write(log, topic, (b"k", b"older"))
    end = end_of(log, topic, b"k")

    told = queue(log, topic, (b"k", b"1"), (b"k", b"2"), unless_newer=end)
    places = [delivery.drive(log) for delivery in told]

    assert [offset for _, offset in places] == [end, end + 1]
    assert values_of(log, topic, b"k") == [b"older", b"1", b"2"]


@sees_newer
@pytest.mark.parametrize("came_by", ["this handle", "another handle", "the same group commit"])
def test_records_that_meet_a_newer_one_are_refused_together(
    log: Log, topic: Topic, open_log_again: Callable[[], Log], came_by: str
) -> None:
    write(log, topic, (b"k", b"older"))
    end = end_of(log, topic, b"k")
    if came_by == "the same group commit":
        queue(log, topic, (b"k", b"newer"))
    else:
        handle = log if came_by == "this handle" else open_log_again()
        write(handle, topic, (b"k", b"newer"))

    told = queue(log, topic, (b"k", b"1"), (b"k", b"2"), unless_newer=end)
    log.flush(DEADLINE_S)

    assert [type(delivery.error) for delivery in told] == [NewerRecord, NewerRecord]
    assert [delivery.count for delivery in told] == [1, 1]
    assert values_of(log, topic, b"k") == [b"older", b"newer"]


@sees_newer
def test_a_refusal_says_whose_record_is_newer(log: Log, topic: Topic) -> None:
    write(log, topic, (b"k-7", b"newer"))

    [told] = queue(log, topic, (b"k-7", b"v"), unless_newer=0)

    with pytest.raises(NewerRecord, match="k-7"):
        told.drive(log)


@sees_newer
def test_a_newer_record_of_another_key_does_not_matter(log: Log, topic: Topic) -> None:
    end = end_of(log, topic, b"k")
    other = other_key(log, topic, b"k")
    write(log, topic, *((other, b"%d" % number) for number in range(20)))
    queue(log, topic, (other, b"queued"))

    [told] = queue(log, topic, (b"k", b"v"), unless_newer=end)

    assert told.drive(log)[1] == end + 21


@sees_newer
def test_what_is_handed_over_behind_a_refused_append_has_the_next_offsets(
    log: Log, topic: Topic
) -> None:
    key = b"k"
    [(partition, first)] = write(log, topic, (key, b"older"))

    # Handed over in one go, so that an embedded log writes them in one transaction.
    before = queue(log, topic, (key, b"before"))
    refused = queue(log, topic, (key, b"x"), (key, b"y"), unless_newer=first + 1)
    after = queue(log, topic, (key, b"after"), (key, b"last"))
    accepted = queue(log, topic, (other_key(log, topic, key), b"z"), unless_newer=0)
    log.flush(DEADLINE_S)

    assert [delivery.count for delivery in refused] == [1, 1]
    assert all(isinstance(delivery.error, NewerRecord) for delivery in refused)
    places = [delivery.place for delivery in (*before, *after, *accepted)]
    assert places == [(partition, first + step) for step in range(1, 5)]
    values = [record.value for record in read_all(log, topic, partition)]
    assert values == [b"older", b"before", b"after", b"last", b"z"]


@sees_newer
def test_of_two_that_count_on_the_same_end_one_is_written(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    logs = [log, open_log_again()]
    writers, rounds = 4, 25

    def race(writer: int) -> int:
        log, won = logs[writer % 2], 0
        for number in range(rounds):
            barrier.wait(DEADLINE_S)
            end = end_of(log, topic, b"k")
            barrier.wait(DEADLINE_S)
            told = queue(log, topic, (b"k", b"%d" % number), (b"k", b"!"), unless_newer=end)
            try:
                told[-1].drive(log)
                won += 1
            except NewerRecord:
                pass
        return won

    barrier = threading.Barrier(writers)
    with ThreadPoolExecutor(writers) as pool:
        wins = list(pool.map(race, range(writers)))

    assert sum(wins) == rounds
    expected = [value for number in range(rounds) for value in (b"%d" % number, b"!")]
    assert values_of(log, topic, b"k") == expected


@sees_newer
def test_a_newer_record_is_seen_behind_many_of_another_key(log: Log, topic: Topic) -> None:
    other = other_key(log, topic, b"k")
    for number in (900, 1_500):
        end = end_of(log, topic, b"k")
        write(log, topic, (b"k", b"newer"), *([(other, b"v")] * number))

        [told] = queue(log, topic, (b"k", b"lost"), unless_newer=end)

        with pytest.raises(NewerRecord):
            told.drive(log)


@pytest.mark.parametrize("log_url", ["sqlite"], indirect=True)
def test_a_writer_that_is_far_behind_is_refused_without_a_look(log: Log, topic: Topic) -> None:
    write(log, topic, *([(b"other", b"v")] * 1_001))

    [near] = queue(log, topic, (b"near", b"v"), unless_newer=1)
    near.drive(log)
    [far] = queue(log, topic, (b"far", b"v"), unless_newer=1)

    with pytest.raises(NewerRecord):
        far.drive(log)
    assert near.place == (0, 1_001)


@sees_newer
def test_an_offset_behind_the_end_counts_on_another_log_and_is_refused(
    log: Log, topic: Topic
) -> None:
    write(log, topic, (b"k", b"v"))

    [told] = queue(log, topic, (b"k", b"lost"), unless_newer=99)

    with pytest.raises(NewerRecord):
        told.drive(log)
    assert values_of(log, topic, b"k") == [b"v"]


@sees_newer
def test_nothing_appended_unless_newer_is_nothing(log: Log, topic: Topic) -> None:
    assert queue(log, topic, unless_newer=0) == []

    write(log, topic, (b"k", b"v"))
    assert values_of(log, topic, b"k") == [b"v"]


@sees_newer
def test_a_closed_log_takes_nothing_that_depends_on_what_is_newer(log: Log, topic: Topic) -> None:
    log.close()

    with pytest.raises(Closed):
        queue(log, topic, (b"k", b"v"), unless_newer=0)


# --- waiting ---


def test_waiting_for_what_is_there_returns_at_once(log: Log, topic: Topic) -> None:
    [(partition, offset)] = write(log, topic, (b"k", b"v"))

    assert log.wait(topic, {partition: offset}, DEADLINE_S)


def test_waiting_for_nothing_ends_with_the_timeout(log: Log, topic: Topic) -> None:
    assert not log.wait(topic, {0: log.offset_end(topic, 0)}, 0.05)


@pytest.mark.parametrize("same_handle", [True, False])
def test_a_waiting_reader_is_woken_by_an_append(
    log: Log, topic: Topic, open_log_again: Callable[[], Log], same_handle: bool
) -> None:
    writer = log if same_handle else open_log_again()
    partition = log.partition_of(b"k", topic)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(log.wait, topic, {partition: 0}, DEADLINE_S) for _ in range(3)]
        write(writer, topic, (b"k", b"v"))

        assert all(reader.result(DEADLINE_S) for reader in readers)


def test_wake_ends_every_wait(log: Log, topic: Topic) -> None:
    started = threading.Barrier(3)

    def wait() -> bool:
        started.wait()
        return log.wait(topic, {0: 0}, DEADLINE_S)

    with ThreadPoolExecutor(2) as pool:
        begun_s = time.monotonic()
        readers = [pool.submit(wait) for _ in range(2)]
        started.wait()
        while not all(reader.done() for reader in readers):
            log.wake()

    assert time.monotonic() - begun_s < DEADLINE_S
    assert not any(reader.result() for reader in readers)


# --- the end ---


def test_close_flushes_what_was_queued(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    told = queue(log, topic, *((b"k", b"%d" % number) for number in range(100)))

    log.close()

    assert all(delivery.place is not None for delivery in told)
    assert len(read_all(open_log_again(), topic, told[0].place[0])) == 100  # type: ignore[index]


def test_a_closed_log_refuses_and_writes_nothing(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    log.close()
    log.close()

    with pytest.raises(Closed):
        queue(log, topic, (b"k", b"v"))
    with pytest.raises(Closed):
        log.read(topic, 0, 0, records_max=1, bytes_max=1)
    other = open_log_again()
    assert all(other.offset_end(topic, partition) == 0 for partition in range(topic.partitions))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_is_refused_and_the_parent_goes_on(log: Log, topic: Topic) -> None:
    write(log, topic, (b"k", b"before"))

    child = os.fork()
    if child == 0:  # pragma: no cover
        refusals = 0
        for call in (
            lambda: log.append(topic, [Append(0, b"k", b"child", Told())]),
            lambda: log.read(topic, 0, 0, records_max=1, bytes_max=1),
            lambda: log.flush(1.0),
        ):
            try:
                call()
            except Closed:
                refusals += 1
        os._exit(refusals)
    _, status = os.waitpid(child, 0)
    [(partition, _)] = write(log, topic, (b"k", b"after"))

    assert os.waitstatus_to_exitcode(status) == 3
    assert [r.value for r in read_all(log, topic, partition)] == [b"before", b"after"]


# --- ownership ---


class Member:
    """A member of a group that notes each set of shards that it was told."""

    def __init__(self, log: Log, topic: Topic, group: str) -> None:
        self.told: list[frozenset[int]] = []
        self.ownership = log.own(topic, group, self.told.append)

    @property
    def shards(self) -> frozenset[int]:
        return self.ownership.shards


def test_every_key_has_a_shard(log: Log, topic: Topic) -> None:
    shards = {log.shard_of(b"key-%d" % number, topic) for number in range(1_000)}

    assert shards == set(range(log.shards(topic)))


def test_a_lone_member_holds_every_shard(log: Log, topic: Topic) -> None:
    member = Member(log, topic, "runners")

    assert eventually(lambda: member.shards == frozenset(range(log.shards(topic))))
    assert eventually(lambda: bool(member.told) and member.told[-1] == member.shards)


def test_two_members_share_fairly_and_never_overlap_for_long(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    everything = frozenset(range(log.shards(topic)))
    first = Member(log, topic, "runners")
    second = Member(open_log_again(), topic, "runners")

    def is_fair() -> bool:
        return (
            first.shards | second.shards == everything
            and len(first.shards) == len(second.shards)
            and not first.shards & second.shards
        )

    assert eventually(is_fair)


def test_what_a_member_gives_back_goes_to_the_others(
    log: Log, topic: Topic, open_log_again: Callable[[], Log]
) -> None:
    everything = frozenset(range(log.shards(topic)))
    first = Member(log, topic, "runners")
    second = Member(open_log_again(), topic, "runners")
    assert eventually(lambda: len(second.shards) == len(everything) // 2)

    first.ownership.close()

    assert eventually(lambda: second.shards == everything)
    assert first.shards == frozenset()


def test_a_log_of_many_hosts_says_who_holds_what_and_another_keeps_no_list(
    log: Log, topic: Topic
) -> None:
    everything = frozenset(range(log.shards(topic)))
    member = Member(log, topic, "runners")
    assert eventually(lambda: member.shards == everything)

    found, nobody = log.members(topic, "runners"), log.members(topic, "billing")

    if log.url.startswith("kafka:"):
        assert nobody == []
        assert [one.shards for one in found or ()] == [everything]
    else:
        assert (found, nobody) == (None, None)


def test_groups_do_not_disturb_one_another(log: Log, topic: Topic) -> None:
    everything = frozenset(range(log.shards(topic)))
    members = [Member(log, topic, group) for group in ("billing", "a/b ../c")]

    assert eventually(lambda: all(member.shards == everything for member in members))
