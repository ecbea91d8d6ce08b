"""The collector's log: every block once and in order, whatever agents send and however the collector dies."""

import resource

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.block_log import MAX_BOOTS, BlockLog, LoggedBlock, LoggedShed, Outcome, Source

HV1 = Source("hv1", "a" * 32)
HV2 = Source("hv2", "a" * 32)
HV1_LATER = Source("hv1", "b" * 32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "run-1.blocks"


@pytest.fixture
def log(path):
    with BlockLog.open(path) as opened:
        yield opened


def test_blocks_of_all_agents_come_back_in_the_order_in_which_they_came(log):
    for source, number in ((HV1, 0), (HV2, 0), (HV1, 1), (HV1_LATER, 0)):
        assert log.append(source, number, bytes([number])) == (Outcome.NEW, number + 1)
    assert list(log.records()) == [
        LoggedBlock(HV1, 0, b"\0"),
        LoggedBlock(HV2, 0, b"\0"),
        LoggedBlock(HV1, 1, b"\1"),
        LoggedBlock(HV1_LATER, 0, b"\0"),
    ]


def test_a_replayed_block_is_ignored_and_counted_even_with_another_content(log):
    log.append(HV1, 0, b"first")
    log.append(HV1, 1, b"second")
    assert log.append(HV1, 0, b"forged") == (Outcome.DUPLICATE, 2)
    assert [record.octets for record in log.records()] == [b"first", b"second"]
    assert log.outcomes["hv1", Outcome.DUPLICATE] == 1


def test_a_block_after_a_gap_is_not_written_and_the_expected_one_is_told(log):
    log.append(HV1, 0, b"a")
    assert log.append(HV1, 2, b"c") == (Outcome.GAP, 1)
    assert log.append(HV1, 1, b"b") == (Outcome.NEW, 2)
    assert log.append(HV1, 2, b"c") == (Outcome.NEW, 3)
    assert [record.octets for record in log.records()] == [b"a", b"b", b"c"]
    assert log.outcomes["hv1", Outcome.GAP] == 1


def test_lost_ranges_stand_in_the_place_of_their_blocks_as_far_as_these_are_not_here(log):
    log.append(HV1, 0, b"a")
    assert log.append_shed(HV1, 0, 1, (0, 9)) == (Outcome.DUPLICATE, 1)
    assert log.append_shed(HV1, 0, 4, (0, 9)) == (Outcome.NEW, 4)
    assert log.append_shed(HV1, 5, 6, (0, 9)) == (Outcome.GAP, 4)
    assert log.append(HV1, 3, b"late") == (Outcome.DUPLICATE, 4)
    assert list(log.records())[1:] == [LoggedShed(HV1, 1, 4, (0, 9))]


def test_only_a_commit_tells_what_may_be_acknowledged(log):
    log.append(HV1, 0, b"a")
    assert (log.expected(HV1), log.durable(HV1)) == (1, 0)
    commit = log.begin_commit()
    log.append(HV1, 1, b"b")
    log.append(HV2, 0, b"c")
    commit.wait()
    assert log.finish_commit(commit) == {HV1: 1}
    assert log.durable(HV1) == 1
    later = log.begin_commit()
    assert log.begin_commit() is None
    later.wait()
    assert log.finish_commit(later) == {HV1: 2, HV2: 1}
    assert log.finish_commit(commit) == {HV1: 2}  # an older one that comes last takes nothing back
    assert log.commit() == {}


def test_a_commit_outlives_its_log(log):
    """The run may be over while another thread waits for the disk."""
    log.append(HV1, 0, b"a")
    commit = log.begin_commit()
    log.close()
    commit.wait()
    assert log.finish_commit(commit) == {HV1: 1}


def test_a_reopened_log_goes_on_where_it_was(log, path):
    log.append(HV1, 0, b"a")
    log.append_shed(HV2, 0, 7, (1, 2))
    log.close()
    with BlockLog.open(path) as again:
        assert again.sources() == {HV1: 1, HV2: 7}
        assert (again.durable(HV1), again.cut_bytes) == (1, 0)
        assert again.append(HV1, 0, b"x").outcome is Outcome.DUPLICATE
        assert again.append(HV1, 1, b"b").outcome is Outcome.NEW
        assert len(list(again.records())) == 3
        assert again.commit() == {HV1: 2}


def test_wherever_a_log_is_torn_it_gives_back_every_whole_record_and_goes_on(log, path, tmp_path):
    for number in range(4):
        log.append(HV1, number, bytes(20))
    data, size = path.read_bytes(), path.stat().st_size // 4
    for length in range(0, len(data) + 1, 3):
        copy = tmp_path / "torn.blocks"
        copy.write_bytes(data[:length])
        with BlockLog.open(copy) as again:
            assert again.expected(HV1) == length // size
            assert again.cut_bytes == length % size
            assert again.append(HV1, length // size, b"x").outcome is Outcome.NEW
            assert len(list(again.records())) == length // size + 1


def test_a_damaged_record_ends_what_is_read(log, path, tmp_path):
    for number in range(4):
        log.append(HV1, number, bytes(20))
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 7):
        copy = tmp_path / "damaged.blocks"
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        copy.write_bytes(damaged)
        with BlockLog.open(copy) as again:
            assert again.expected(HV1) == at // (len(data) // 4)


def test_what_stood_behind_a_damaged_record_does_not_come_back(log, path):
    """The next record has the damaged one's length, so what was behind it would fit on."""
    for number in range(4):
        log.append(HV1, number, bytes(20))
    log.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 4 + 50] ^= 1
    path.write_bytes(data)
    with BlockLog.open(path) as again:
        assert again.append(HV1, 1, b"x" * 20).outcome is Outcome.NEW
    with BlockLog.open(path) as third:
        assert third.expected(HV1) == 2


def test_an_agent_cannot_fill_the_disk_nor_the_memory(path):
    with BlockLog.open(path, agent_bytes=100_000) as log:
        for number in range(3):
            assert log.append(HV1, number, bytes(30_000)).outcome is Outcome.NEW
        assert log.append(HV1, 3, bytes(30_000)) == (Outcome.FULL, 3)
        assert log.append(HV2, 0, bytes(30_000)).outcome is Outcome.NEW
        for boot in range(MAX_BOOTS + 5):
            outcome, _ = log.append_shed(Source("hv3", f"{boot:032x}"), 0, 1, (0, 0))
        assert outcome is Outcome.FULL
        assert len(log.sources()) == MAX_BOOTS + 2
    with BlockLog.open(path, agent_bytes=100_000) as again:
        assert again.append(HV1, 3, bytes(30_000)).outcome is Outcome.FULL


def test_a_full_disk_is_said_and_leaves_the_log_as_it_was(log, path):
    log.append(HV1, 0, bytes(1000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 300, hard))
    try:
        with pytest.raises(HostNotReadyError, match="cannot be written"):
            log.append(HV1, 1, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.expected(HV1) == 1
    assert log.append(HV1, 1, bytes(1000)).outcome is Outcome.NEW
    assert len(list(log.records())) == 2


def test_a_place_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HostNotReadyError, match="block log"):
        BlockLog.open(tmp_path / "file" / "run.blocks")
