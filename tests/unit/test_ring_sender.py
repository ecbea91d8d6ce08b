"""The sender of a transmit ring, on a virtual clock and a ring that only notes: due times, bursts, stops, failures."""

import numpy as np
import pytest
from support.wire_frames import make_session

from netprobe.errors import UsageError
from netprobe.inject.pacer import BURST_FRAMES, BURST_PAUSE_NS
from netprobe.inject.ring_pacing import BurstWindow, EvenSchedule, ListedSchedule, PacingTally
from netprobe.inject.ring_sender import BLOCK_FRAMES, COLUMN_FRAMES, Clocks, RingSender
from netprobe.inject.templates import build_template
from netprobe.inject.tx_ring import Handed
from netprobe.model.probes import Protocol

EPOCH_NS = 1_700_000_000_000_000_000


class World:
    """A virtual clock, and a ring of 64 slots on it. Reading the clock costs 50 ns, a frame `frame_ns`."""

    device = "veth"

    def __init__(self, *, frame_bytes, frame_ns=700, late_ns=60_000, takes=None, slots=64):
        self.now_ns = 1_000
        self.frame_ns, self.late_ns = frame_ns, late_ns
        self.frames = np.zeros((slots, frame_bytes), np.uint8)
        self.given_back = self.refused = 0
        self.left = takes  # frames until the device fails; None: never
        self.claimed = self.handed = 0
        self.sent = []  # (frame, when it left)
        self.calls = []  # (when, how many)
        self.forgot = False
        self.problem = ""

    def clock(self):
        self.now_ns += 50
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9) + self.late_ns

    def clocks(self):
        return Clocks(self.clock, lambda: EPOCH_NS + self.now_ns, self.sleep)

    def claim(self, most):
        start = self.claimed % len(self.frames)
        room = min(most, len(self.frames) - start)
        self.claimed += room
        return slice(start, start + room)

    def hand_over(self, count):
        self.calls.append((self.now_ns, count))
        taken = count if self.left is None else min(count, self.left)
        for _ in range(taken):
            self.now_ns += self.frame_ns
            self.sent.append((self.frames[self.handed % len(self.frames)].tobytes(), self.now_ns))
            self.handed += 1
        if self.left is not None:
            self.left -= taken
        return Handed(taken, "" if taken == count else "device veth: Network is down")

    def forget(self):
        self.claimed = self.handed
        self.forgot = True

    def link_problem(self):
        return self.problem

    def close(self):
        pass


def sender(protocol=Protocol.RAW_UDP, *, count=100_000, **world):
    session = make_session(protocol, count=count)
    template = build_template(session)
    ring = World(frame_bytes=len(template), **world)
    return RingSender(session, template, ring, clocks=ring.clocks()), ring


def numbers(ring):
    """The seq of each RAW_UDP frame that left."""
    return [int.from_bytes(frame[50:54], "big") for frame, _ in ring.sent]


def test_flat_out_sends_all_in_order_once():
    made, ring = sender()
    done = made.send(7, 3_000, burst_frames=None)
    assert numbers(ring) == list(range(7, 3_007))
    assert (done.planned, done.sent, done.unsent, done.failure, done.pacing) == (3_000, 3_000, 0, "", None)
    assert done.start_ns < done.end_ns


def test_blocks_tell_of_each_probe_once_with_a_time_within_its_call():
    made, ring = sender()
    blocks = []
    made.send(0, 1_000, burst_frames=None, on_block=blocks.append)
    assert [b.first_seq for b in blocks] == [0, *np.cumsum([len(b.times_ns) for b in blocks])[:-1].tolist()]
    times = np.concatenate([b.times_ns for b in blocks]) - EPOCH_NS
    left = np.array([at for _, at in ring.sent])
    assert (np.diff(times) >= 0).all()
    assert (np.abs(left - times) <= 2 * BLOCK_FRAMES * 50 + 1_000).all()
    assert all(block.errors_ns is None for block in blocks)


def test_paced_probes_are_never_early_and_the_stated_error_bounds_the_real_one():
    made, ring = sender()
    errors = []
    start_ns = 10_000_000
    done = made.send(0, 500, EvenSchedule(start_ns, 5_000), on_block=lambda block: errors.append(block.errors_ns))
    late = np.array([at for _, at in ring.sent]) - (start_ns + np.arange(500) * 200_000)
    stated = np.concatenate(errors)
    assert (late > 0).all()
    assert (late <= stated).all()
    assert stated.max() <= 2_000
    assert done.pacing.max_ns == stated.max()
    assert done.pacing.p99_ns == pytest.approx(np.percentile(stated, 99), rel=0.01, abs=100)
    assert (done.pacing.planned, done.pacing.unsent, done.pauses) == (500, 0, 0)


def test_gathering_sends_what_became_due_together_and_sleeps_in_between():
    made, ring = sender(slots=4_096)
    done = made.send(0, 50_000, EvenSchedule(10_000_000, 250_000), burst_frames=None, gather_ns=200_000)
    assert numbers(ring) == list(range(50_000))
    assert done.pacing.max_ns <= 200_000 + 60_000 + 100_000  # gathered, overslept, and the calls of the kernel
    assert len(ring.calls) < 50_000 / 30


def most_in_a_millisecond(times):
    last = np.searchsorted(times, times + BURST_PAUSE_NS)
    return int((last - np.arange(len(times))).max())


@pytest.mark.parametrize("limit", [1, BURST_FRAMES, 300])
def test_in_no_millisecond_more_than_the_limit_leaves_however_late_the_sender_is(limit):
    made, ring = sender()
    done = made.send(0, 2_000, ListedSchedule(np.zeros(2_000, np.int64)), burst_frames=limit)
    times = np.array([at for _, at in ring.sent])
    assert len(times) == 2_000
    assert most_in_a_millisecond(times) <= limit
    assert done.pauses >= 2_000 // limit - 1


def test_the_limit_holds_where_probes_come_in_steadily_but_too_fast():
    made, ring = sender()
    done = made.send(0, 3_000, EvenSchedule(1_000_000, 150_000), burst_frames=64)
    assert most_in_a_millisecond(np.array([at for _, at in ring.sent])) <= 64
    assert done.pacing.p50_ns > 1_000_000


def test_flat_out_keeps_to_64_a_millisecond_unless_told_otherwise():
    made, ring = sender()
    made.send(0, 1_000)
    assert most_in_a_millisecond(np.array([at for _, at in ring.sent])) <= 64


def test_a_stop_leaves_the_rest_unsent_and_unclaimed():
    made, ring = sender()
    done = made.send(0, 1_000, EvenSchedule(0, 10_000), stopped=lambda: len(ring.sent) >= 100)
    assert (done.sent, done.unsent, done.failure) == (100, 900, "")
    assert (ring.claimed, ring.forgot) == (100, True)
    assert done.pacing.unsent == 900


def test_a_device_that_fails_ends_the_send_and_says_what_was_sent():
    made, ring = sender(takes=333)
    blocks = []
    done = made.send(0, 1_000, burst_frames=None, on_block=blocks.append)
    assert (done.sent, done.unsent, done.failure) == (333, 667, "device veth: Network is down")
    assert sum(len(block.times_ns) for block in blocks) == 333
    ring.left = None
    assert made.send(333, 667, burst_frames=None).sent == 667
    assert numbers(ring) == list(range(1_000))


def test_a_device_that_does_not_let_go_of_frames_is_a_failure():
    made, ring = sender()
    ring.claim = lambda _most: slice(0, 0)
    done = made.send(0, 10)
    assert (done.sent, done.failure) == (0, "device veth: frames do not leave it")


def test_a_device_that_lost_its_carrier_ends_the_send_soon():
    made, ring = sender()
    ring.problem = "it has no carrier"
    done = made.send(0, 50_000, burst_frames=None)
    assert (done.sent, done.failure) == (COLUMN_FRAMES, "device veth: it has no carrier")


def t1_of(ring):
    """T1 of each frame that left, ns on the ring's clock."""
    raw = np.array([int.from_bytes(frame[46:54], "big") for frame, _ in ring.sent], np.uint64)
    seconds = (raw >> np.uint64(32)).astype(np.int64) - 2_208_988_800
    fraction_ns = ((raw & np.uint64(0xFFFFFFFF)).astype(np.int64) * 10**9 + 2**31) >> 32
    return seconds * 1_000_000_000 + fraction_ns - EPOCH_NS


@pytest.mark.parametrize("pps", [2_000, 400_000])
def test_t1_is_close_to_when_the_frame_left_and_the_reported_time_never_later(pps):
    """One by one and by rows."""
    made, ring = sender(Protocol.UDP)
    blocks = []
    made.send(0, 3_000, EvenSchedule(1_000_000, pps), burst_frames=None, gather_ns=100_000, on_block=blocks.append)
    left_ns = np.array([at for _, at in ring.sent])
    reported_ns = np.concatenate([block.times_ns for block in blocks]) - EPOCH_NS
    assert (reported_ns < left_ns).all()
    assert (reported_ns <= t1_of(ring)).all()
    assert (np.abs(t1_of(ring) - left_ns) < 5_000).all()


def test_a_call_that_hung_does_not_spoil_the_t1_of_those_after_it():
    made, ring = sender(Protocol.UDP)
    hang = ring.hand_over

    def hang_once(count):
        if len(ring.calls) == 10:
            ring.now_ns += 50_000_000
        return hang(count)

    ring.hand_over = hang_once
    made.send(0, 3_000, EvenSchedule(1_000_000, 400_000), burst_frames=None, gather_ns=100_000)
    late_ns = np.abs(t1_of(ring) - np.array([at for _, at in ring.sent]))
    after = np.cumsum([count for _, count in ring.calls])[10]
    assert late_ns[after:].max() < 64 * 200  # the ring has 64 slots


def test_numbers_outside_the_session_are_refused_before_anything_is_sent():
    made, ring = sender(count=100)
    with pytest.raises(UsageError, match=r"allowed: 0..99"):
        made.send(50, 51)
    assert not ring.sent


def test_memory_does_not_grow_with_the_number_of_probes():
    """A tally of a million errors holds a histogram and less than its gathering size."""
    tally = PacingTally()
    for _ in range(1_000):
        tally.add(np.arange(1_000))
    stats = tally.stats(1_000_000, 1_000_000, 0)
    assert len(tally._waiting) == 0
    assert (stats.max_ns, stats.p50_ns) == (999, pytest.approx(500, rel=0.01))


def test_an_even_schedule_does_not_drift():
    schedule = EvenSchedule(5, 300_000)
    assert schedule.due_ns(0, 4).tolist() == [5, 3_338, 6_671, 10_005]
    assert schedule.due_ns(3_000_000_000, 1).tolist() == [5 + 10_000 * 10**9]


@pytest.mark.parametrize("bad", [0, -1, 2e9])
def test_a_rate_that_cannot_be_is_refused(bad):
    with pytest.raises(UsageError, match="probes/s"):
        EvenSchedule(0, bad)


def test_a_burst_limit_below_one_is_refused():
    with pytest.raises(UsageError, match="burst limit"):
        BurstWindow(0)
