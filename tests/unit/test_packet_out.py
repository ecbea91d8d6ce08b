"""Timed packet-out against a switch that only counts: back-pressure, the rate cap, stopping, and a switch that dies."""

import time

import numpy as np
import pytest

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host.openflow import MAX_OUTSTANDING
from netprobe.inject.packet_out import paced_sender, send_packet_outs


class CountingSwitch:
    """Takes packet-outs like OpenFlowClient; dies when the `dies_at`-th one comes."""

    def __init__(self, dies_at=None, dies_at_barrier=False):
        self.frames = []
        self.outstanding = self.most_outstanding = self.barriers = 0
        self.dies_at, self.dies_at_barrier = dies_at, dies_at_barrier

    def packet_out_nowait(self, in_port, frame):
        if len(self.frames) == self.dies_at:
            raise HostNotReadyError("bridge", "closed the connection")
        self.frames.append((in_port, frame))
        self.outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self.outstanding)

    def barrier(self):
        if self.dies_at_barrier:
            raise HostNotReadyError("bridge", "did not answer")
        self.barriers += 1
        self.outstanding = 0


def frames(count, size=60):
    return np.repeat(np.arange(count, dtype=np.uint8)[:, None], size, axis=1)


def past(count, pps=10_000):
    """Due times that are over, so that nobody waits; spaced as a schedule of this rate."""
    return [i * 1_000_000_000 // pps for i in range(count)]


def test_every_frame_goes_out_once_in_order_with_its_time():
    switch = CountingSwitch()
    before = time.time_ns()
    done = send_packet_outs(switch, frames(5), 3, past(5), cap_pps=10_000)
    assert switch.frames == [(3, bytes([i] * 60)) for i in range(5)]
    assert done.times_ns.dtype == np.int64
    assert before <= done.times_ns.min() <= done.times_ns.max() <= time.time_ns()
    assert (done.unconfirmed, done.failure, done.pacing.unsent) == (0, None, 0)


def test_the_switch_never_has_more_than_64_of_ours():
    switch = CountingSwitch()
    send_packet_outs(switch, frames(200), 3, past(200), cap_pps=20_000)
    assert (len(switch.frames), switch.most_outstanding, switch.outstanding) == (200, MAX_OUTSTANDING, 0)
    assert switch.barriers == 4


def test_a_schedule_above_the_cap_sends_nothing():
    switch = CountingSwitch()
    with pytest.raises(RefusedError, match=r"packet-out in port 3: .*allowed: 100 packets/s"):
        send_packet_outs(switch, frames(200), 3, past(200, pps=1_000), cap_pps=100)
    assert switch.frames == []


def test_a_switch_that_dies_leaves_the_times_of_what_was_sent():
    switch = CountingSwitch(dies_at=70)
    done = send_packet_outs(switch, frames(100), 3, past(100), cap_pps=20_000)
    assert isinstance(done.failure, HostNotReadyError)
    assert np.count_nonzero(done.times_ns) == 70
    assert (done.times_ns[70:] == 0).all()
    assert done.unconfirmed == 6


def test_a_barrier_that_fails_leaves_what_it_should_have_confirmed_unconfirmed():
    done = send_packet_outs(CountingSwitch(dies_at_barrier=True), frames(10), 3, past(10), cap_pps=20_000)
    assert (done.unconfirmed, np.count_nonzero(done.times_ns)) == (10, 10)
    assert isinstance(done.failure, HostNotReadyError)


def test_stopping_leaves_the_rest_unsent():
    switch = CountingSwitch()
    done = send_packet_outs(switch, frames(10), 3, past(10), cap_pps=20_000, stopped=lambda: len(switch.frames) == 4)
    assert np.flatnonzero(done.times_ns).tolist() == [0, 1, 2, 3]
    assert (done.failure, switch.outstanding) == (None, 0)


def test_arrays_that_do_not_fit_are_refused_and_none_at_all_is_fine():
    with pytest.raises(UsageError):
        send_packet_outs(CountingSwitch(), frames(3), 3, past(2), cap_pps=100)
    assert len(send_packet_outs(CountingSwitch(), frames(0), 3, [], cap_pps=100).times_ns) == 0


def test_a_pattern_is_sent_burst_by_burst_within_the_cap():
    switch = CountingSwitch()
    send = paced_sender(switch, frames(30), 3, cap_pps=5_000)
    start_ns = time.monotonic_ns()
    assert [send(n) for n in (5, 1, 24)] == [5, 1, 24]
    assert time.monotonic_ns() - start_ns >= 29 * 200_000
    assert [frame[0] for _, frame in switch.frames] == list(range(30))
    with pytest.raises(HostNotReadyError):
        paced_sender(CountingSwitch(dies_at=0), frames(1), 3, cap_pps=100)(1)
