"""The agent's spool: what is appended survives, what is acknowledged goes, what finds no room is told as lost."""

import resource
import subprocess
import sys

import pytest
from support.links import BOOT, S, exchange, open_links

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.spool import MIN_LIMIT_BYTES, SEGMENTS, ShedRange, Spool, SpooledBlock, pump
from netprobe.wire.flow_control import Limits
from netprobe.wire.framing import MAX_BODY_BYTES
from netprobe.wire.link_events import BlockArrived, ShedArrived
from netprobe.wire.report import PartKey

RUN = "run-1"
KEY = PartKey(RUN, BOOT)
LATER = "a" * 32


def span(number):
    return number * 100, number * 100 + 100


def fill(spool, numbers, size=1000, run=RUN):
    for number in numbers:
        assert spool.append(run, bytes([number % 256]) * size, span(number)) == number


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def spool(folder):
    with Spool.open(folder, MIN_LIMIT_BYTES, BOOT) as opened:
        yield opened


def contents(spool, key=KEY, start=0):
    """Everything of a part from `start` on, in order."""
    found, number = [], start
    while (item := spool.item(key, number)) is not None:
        found.append(item)
        number = item.end if isinstance(item, ShedRange) else item.number + 1
    return found


def test_blocks_come_back_as_they_were(spool):
    fill(spool, range(5))
    assert contents(spool) == [SpooledBlock(n, bytes([n]) * 1000, span(n)) for n in range(5)]
    assert spool.item(KEY, 5) is None
    assert spool.item(PartKey("run-2", BOOT), 0) is None
    assert spool.parts() == {KEY: 5}


def test_acknowledged_blocks_are_gone_and_their_files_too(spool, folder):
    fill(spool, range(400))
    files = len(list(folder.glob("*.spool")))
    spool.ack(KEY, 390)
    assert [item.number for item in contents(spool, start=390)] == list(range(390, 400))
    assert len(list(folder.glob("*.spool"))) < files / 3
    assert spool.counters().waiting == 10
    assert spool.counters().size_bytes < MIN_LIMIT_BYTES / 4


def test_a_second_life_finds_what_the_first_left_and_numbers_anew(folder):
    first = Spool.open(folder, MIN_LIMIT_BYTES, BOOT)
    fill(first, range(10))
    first.ack(KEY, 4)
    first.close()
    with Spool.open(folder, MIN_LIMIT_BYTES, LATER) as second:
        assert [item.number for item in contents(second, start=4)] == list(range(4, 10))
        assert second.counters().waiting == 6
        assert second.append(RUN, b"x", (0, 1)) == 0
        assert second.parts() == {KEY: 10, PartKey(RUN, LATER): 1}
        second.ack(KEY, 10)
        assert second.parts() == {PartKey(RUN, LATER): 1}  # nothing more can come from a life that is over


def test_a_boot_is_used_once(folder):
    with Spool.open(folder, MIN_LIMIT_BYTES, BOOT) as first:
        fill(first, range(1))
    with pytest.raises(UsageError, match="was here before"):
        Spool.open(folder, MIN_LIMIT_BYTES, BOOT)
    Spool.open(folder, MIN_LIMIT_BYTES, LATER).close()  # the failed one holds no lock


def test_two_programs_do_not_share_a_spool(folder, spool):
    with pytest.raises(HostNotReadyError, match="another program is using it"):
        Spool.open(folder, MIN_LIMIT_BYTES, LATER)


def test_a_folder_that_cannot_be_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HostNotReadyError, match="cannot be used"):
        Spool.open(tmp_path / "file" / "spool", MIN_LIMIT_BYTES, BOOT)
    with pytest.raises(UsageError, match=f"{MIN_LIMIT_BYTES} or more"):
        Spool.open(tmp_path, MIN_LIMIT_BYTES - 1, BOOT)


def test_files_are_the_owners_alone(folder, spool):
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


# --- shedding ---


def test_the_oldest_go_where_there_is_no_room_and_are_told_with_their_time(spool):
    fill(spool, range(3000))
    lost, *kept = contents(spool)
    assert lost == ShedRange(0, lost.end, (0, lost.end * 100))
    assert [item.number for item in kept] == list(range(lost.end, 3000))
    counters = spool.counters()
    assert counters.size_bytes <= MIN_LIMIT_BYTES
    assert counters.size_bytes > MIN_LIMIT_BYTES * (SEGMENTS - 3) / SEGMENTS  # no more is shed than must be
    assert (counters.shed_blocks, spool.shed_by_run) == (lost.end, {RUN: lost.end})
    assert spool.shed(KEY) == (lost,)


def test_the_oldest_go_whosever_they_are(spool):
    fill(spool, range(500), run="old")
    fill(spool, range(800), run="new")
    assert spool.shed_by_run.keys() == {"old"}


def test_lost_ranges_outlive_the_program_and_go_when_acknowledged(folder):
    with Spool.open(folder, MIN_LIMIT_BYTES, BOOT) as first:
        fill(first, range(2000))
        (lost,) = first.shed(KEY)
    with Spool.open(folder, MIN_LIMIT_BYTES, LATER) as second:
        assert second.shed(KEY) == (lost,)
        second.ack(KEY, 10)
        assert second.shed(KEY) == (ShedRange(10, lost.end, lost.span_ns),)
        second.ack(KEY, lost.end)
        assert second.shed(KEY) == ()
        second.ack(KEY, 2000)
        assert second.parts() == {}


def test_a_block_that_no_spool_holds_takes_no_other_with_it(spool, folder):
    fill(spool, range(3))
    assert spool.append(RUN, bytes(MIN_LIMIT_BYTES), span(3)) == 3
    assert [type(item) for item in contents(spool)] == [SpooledBlock] * 3 + [ShedRange]
    with pytest.raises(UsageError, match=str(MAX_BODY_BYTES)):
        spool.append(RUN, bytes(MAX_BODY_BYTES + 1), span(4))
    assert spool.parts() == {KEY: 4}  # a refused one has no number
    spool.close()
    with Spool.open(folder, MIN_LIMIT_BYTES, LATER) as second:
        assert second.item(KEY, 3) == ShedRange(3, 4, span(3))


def test_what_was_acknowledged_and_is_asked_for_again_is_told_as_lost(spool):
    """A collector that lost its log says 0; the blocks are gone, and silence would look like health."""
    fill(spool, range(10))
    spool.ack(KEY, 6)
    assert contents(spool)[0] == ShedRange(0, 6, (0, 600))
    assert [item.number for item in contents(spool)[1:]] == [6, 7, 8, 9]


def test_a_full_disk_loses_blocks_but_not_the_agent(folder, spool):
    fill(spool, range(3))
    size = max(path.stat().st_size for path in folder.glob("*.spool"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, hard))
    try:
        fill(spool, range(3, 6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fill(spool, range(6, 8))
    assert contents(spool)[3] == ShedRange(3, 6, (300, 600))
    assert [item.number for item in contents(spool) if isinstance(item, SpooledBlock)] == [0, 1, 2, 6, 7]
    assert spool.counters().write_errors >= 3
    spool.close()
    with Spool.open(folder, MIN_LIMIT_BYTES, LATER) as second:
        assert contents(second)[3] == ShedRange(3, 6, (300, 600))


# --- crashes ---


def torn(folder, tmp_path, cut):
    """A copy of the folder whose newest file ends early, as after a loss of power."""
    copy = tmp_path / f"copy-{cut}"
    copy.mkdir()
    files = sorted(folder.glob("*.spool"))
    for path in files:
        data = path.read_bytes()
        (copy / path.name).write_bytes(data[:-cut] if path == files[-1] and cut else data)
    return copy


@pytest.mark.parametrize("cut", [0, 1, 3, 500, 1100, 3000])
def test_a_torn_tail_is_cut_off_and_counted_and_everything_before_it_is_there(folder, spool, tmp_path, cut):
    fill(spool, range(5))
    copy = torn(folder, tmp_path, cut)
    with Spool.open(copy, MIN_LIMIT_BYTES, LATER) as after:
        kept = contents(after)
        assert kept == contents(spool)[: len(kept)]
        assert len(kept) == 5 - (cut + 1049) // 1050
        assert (after.counters().cut_bytes > 0) == (cut > 0)


def test_what_the_disk_damaged_in_the_middle_is_lost_and_told_with_its_time(folder):
    with Spool.open(folder, MIN_LIMIT_BYTES, BOOT) as first:
        fill(first, range(200))
    second_file = sorted(folder.glob("*.spool"))[1]
    data = bytearray(second_file.read_bytes())
    data[len(data) // 2] ^= 1
    second_file.write_bytes(data)
    with Spool.open(folder, MIN_LIMIT_BYTES, LATER) as second:
        items = contents(second)
        (lost,) = (item for item in items if isinstance(item, ShedRange))
        assert [item.number for item in items if item != lost] == [
            n for n in range(200) if not lost.first <= n < lost.end
        ]
        assert 0 < lost.end - lost.first < 60
        assert lost.span_ns == (lost.first * 100, lost.end * 100)
        assert second.counters().cut_bytes > 0


def test_a_block_that_the_disk_loses_while_we_run_is_told_as_lost(folder, spool):
    fill(spool, range(3))
    (path,) = folder.glob("*.spool")
    data = bytearray(path.read_bytes())
    data[data.index(b"\1" * 100)] ^= 1
    path.write_bytes(data)
    assert contents(spool)[1] == ShedRange(1, 2, span(1))
    assert spool.shed(KEY) == (ShedRange(1, 2, span(1)),)


def test_a_crash_between_noting_a_loss_and_deleting_its_file_brings_nothing_back(folder):
    with Spool.open(folder, MIN_LIMIT_BYTES, BOOT) as first:
        fill(first, range(100))
        oldest = min(folder.glob("*.spool"))
        data = oldest.read_bytes()
        fill(first, range(100, 1500))
        lost, *kept = contents(first)
        assert not oldest.exists()
    oldest.write_bytes(data)
    with Spool.open(folder, MIN_LIMIT_BYTES, LATER) as second:
        assert contents(second) == [lost, *kept]


@pytest.mark.parametrize("octets", [b"", b"\0" * 50, b"garbage" * 100])
def test_files_that_hold_something_else_are_survived(folder, octets):
    folder.mkdir()
    (folder / "00000007.spool").write_bytes(octets)
    (folder / "notes.spool").write_bytes(b"x")
    with Spool.open(folder, MIN_LIMIT_BYTES, BOOT) as spool:
        fill(spool, range(2))
        assert len(contents(spool)) == 2
        assert spool.counters().cut_bytes == len(octets)


WRITER = """
import sys
from pathlib import Path
from netprobe.host.spool import MIN_LIMIT_BYTES, Spool
spool = Spool.open(Path(sys.argv[1]), 64 * MIN_LIMIT_BYTES, sys.argv[2])
while True:
    print(spool.append("run-1", bytes(20_000), (0, 1)), flush=True)
"""


def test_what_append_has_returned_from_survives_a_kill(folder):
    with subprocess.Popen([sys.executable, "-c", WRITER, folder, BOOT], stdout=subprocess.PIPE) as child:
        said = [int(child.stdout.readline()) for _ in range(200)]
        child.kill()
        said += [int(line) for line in child.stdout.read().splitlines()]
    with Spool.open(folder, 64 * MIN_LIMIT_BYTES, LATER) as second:
        items = contents(second)
        assert [item.number for item in items if isinstance(item, SpooledBlock)][: len(said)] == said


# --- to the collector ---


def test_pump_fills_the_window_takes_turns_and_goes_on_after_acknowledgement(spool):
    fill(spool, range(5), run="one")
    fill(spool, range(5), run="two")
    agent, collector = open_links(Limits(window_bytes=22_000, bytes_per_s=1 << 30))
    assert pump(spool, agent, 0) == 4
    _, events = exchange(agent, collector, 0)
    assert [(event.part.run, event.number) for event in events] == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]
    assert pump(spool, agent, 1) == 0
    collector.acknowledge(PartKey("one", BOOT), 2)
    exchange(agent, collector, 1)
    assert pump(spool, agent, S) == 2
    assert agent.next_to_send(PartKey("one", BOOT)) == 3


def test_pump_tells_lost_ranges_in_their_place(spool):
    fill(spool, range(2000))
    lost = spool.item(KEY, 0)
    agent, collector = open_links()
    pump(spool, agent, 0)
    _, events = exchange(agent, collector, 0)
    assert events[0] == ShedArrived(KEY, 0, lost.end, *lost.span_ns)
    assert events[1] == BlockArrived(KEY, lost.end, bytes([lost.end % 256]) * 1000)


def test_a_finished_part_is_forgotten_when_all_is_acknowledged(spool):
    fill(spool, range(2))
    spool.finish(RUN)
    spool.finish("never-heard-of")
    assert spool.parts() == {KEY: 2}
    spool.ack(KEY, 2)
    spool.ack(KEY, 9)
    assert spool.parts() == {}
