"""Packet-outs by the block against a switch that only counts: octets, window, cap, bursts, stopping, a dead switch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.openflow import MAX_OUTSTANDING
from netprobe.inject.packet_out_blocks import PacketOutBlocks
from netprobe.wire.openflow import OpenFlowConnection
from netprobe.wire.openflow_messages import MessageType, Version, message
from netprobe.wire.openflow_requests import packet_out


class CountingSwitch:
    """Takes blocks like OpenFlowClient, on a virtual clock; fails at the `fails_at`-th barrier, dies at a frame."""

    def __init__(self, *, fails_at=None, dies_at=math.inf, write_ns=20_000):
        self.now_ns, self.write_ns = 1_000, write_ns
        self.fails_at, self.dies_at = fails_at, dies_at
        self.frames, self.times = [], []
        self.unconfirmed, self.most, self.waited = [], 0, 0

    def clock(self):
        self.now_ns += 100
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9) + 60_000

    def packet_outs_nowait(self, in_port, frames):
        if len(self.frames) + len(frames) > self.dies_at:
            self.fails_at = math.inf
        if self.fails_at == math.inf:
            raise HostNotReadyError("bridge", "closed the connection")
        self.frames += [(in_port, row.tobytes()) for row in frames]
        self.times += [self.now_ns] * len(frames)
        self.now_ns += self.write_ns
        self.unconfirmed.append(len(frames))
        self.most = max(self.most, sum(self.unconfirmed))
        return self.waited + len(self.unconfirmed)

    def wait_barrier(self, xid):
        if self.fails_at == math.inf:
            raise HostNotReadyError("bridge", "closed the connection")
        assert xid == self.waited + 1, "barriers are waited for in order"
        self.waited += 1
        self.unconfirmed.pop(0)
        if xid == self.fails_at:
            raise HostNotReadyError("bridge", "the switch answered BAD_REQUEST/BAD_PORT")


def blocks(switch, **settings):
    settings = {"cap_pps": math.inf, "burst_frames": None} | settings
    return PacketOutBlocks(switch, 3, clock=switch.clock, sleep=switch.sleep, **settings)


def frames(count, size=60):
    return (np.arange(count)[:, None] + np.zeros(size, np.int64)).astype(np.uint8)


@settings(max_examples=30, derandomize=True)
@given(version=st.sampled_from(list(Version)), n=st.integers(1, 9), size=st.integers(14, 90), data=st.data())
def test_a_block_is_the_single_messages_one_after_the_other(version, n, size, data):
    block = np.frombuffer(data.draw(st.binary(min_size=n * size, max_size=n * size)), np.uint8).reshape(n, size)
    port = data.draw(st.integers(1, 0xFFFFFF00))
    connection = OpenFlowConnection((version,))
    connection.feed(message(version, MessageType.HELLO, 0))
    connection._xid = data.draw(st.sampled_from([0, 5, 0xFFFFFFFC]))
    xids = [(connection._xid + i) % 0xFFFFFFFF + 1 for i in range(n)]
    wanted = [packet_out(version, xid, port, row.tobytes()) for xid, row in zip(xids, block, strict=True)]
    assert connection.packet_outs(port, block).tobytes() == b"".join(wanted)
    assert connection._xid == xids[-1]
    assert 0 not in xids


def test_every_frame_goes_once_in_order_with_its_time():
    switch = CountingSwitch()
    sender = blocks(switch)
    times = np.concatenate([sender.send(frames(200)), sender.send(frames(77))])
    sender.finish()
    assert switch.frames == [(3, row.tobytes()) for row in (*frames(200), *frames(77))]
    assert (times > 0).all()
    assert (np.diff(times) >= 0).all()
    assert (sender.outstanding, sender.failure, switch.unconfirmed) == (0, None, [])


@pytest.mark.parametrize("window", [2, 7, MAX_OUTSTANDING, 1_000])
def test_the_switch_never_has_more_than_the_window_of_ours(window):
    switch = CountingSwitch()
    sender = blocks(switch, window=window)
    sender.send(frames(3_000))
    assert window - 1 <= switch.most <= window
    sender.finish()
    assert len(switch.frames) == 3_000


@pytest.mark.parametrize("cap_pps", [1, 100, 1_500, 40_000])
def test_the_cap_holds_in_any_stretch_of_time(cap_pps):
    """Never more than a millisecond's worth beyond the rate, also after a pause of the caller's."""
    switch = CountingSwitch()
    sender = blocks(switch, cap_pps=cap_pps, burst_frames=64)
    sender.send(frames(100))
    switch.now_ns += 5_000_000_000
    sender.send(frames(100))
    times = np.array(switch.times)
    for i in range(0, 200, 7):
        span_s = (times[i:] - times[i]) / 1e9
        sent = np.arange(1, len(span_s) + 1)
        assert (sent <= span_s * cap_pps + max(1, cap_pps / 1_000)).all()


def test_at_most_64_go_in_a_millisecond_unless_told_otherwise():
    switch = CountingSwitch()
    PacketOutBlocks(switch, 3, cap_pps=math.inf, clock=switch.clock, sleep=switch.sleep).send(frames(2_000))
    times = np.array(switch.times)
    assert (np.searchsorted(times, times + 1_000_000) - np.arange(len(times))).max() <= 64


def test_stopping_leaves_the_rest_unsent():
    switch = CountingSwitch()
    sender = blocks(switch)
    times = sender.send(frames(500), stopped=lambda: len(switch.frames) >= 96)
    sender.finish()
    assert np.flatnonzero(times).tolist() == list(range(96))
    assert (sender.failure, sender.outstanding) == (None, 0)


def test_a_switch_that_dies_leaves_the_times_of_what_was_written():
    switch = CountingSwitch(dies_at=100)
    sender = blocks(switch)
    times = sender.send(frames(500))
    assert isinstance(sender.failure, HostNotReadyError)
    assert np.flatnonzero(times).tolist() == list(range(96))
    assert not sender.send(frames(5)).any()
    sender.finish()
    assert sender.outstanding == 32


def test_what_the_switch_refuses_ends_the_send_and_stays_unconfirmed():
    switch = CountingSwitch(fails_at=2)
    sender = blocks(switch)
    times = sender.send(frames(500))
    sender.finish()
    assert "BAD_PORT" in str(sender.failure)
    assert np.count_nonzero(times) == 96
    assert sender.outstanding == 32  # of the piece that was refused; the one behind it is confirmed
    assert switch.waited == 3


def test_a_refusal_at_the_last_barrier_is_kept():
    sender = blocks(CountingSwitch(fails_at=1))
    assert sender.send(frames(10)).all()
    sender.finish()
    assert (sender.outstanding, type(sender.failure)) == (10, HostNotReadyError)


@pytest.mark.parametrize("bad", [{"cap_pps": 0}, {"cap_pps": -1}, {"cap_pps": math.nan}, {"window": 1}])
def test_a_cap_or_window_that_permits_nothing_is_refused(bad):
    with pytest.raises(UsageError, match="packet-out in port 3"):
        blocks(CountingSwitch(), **bad)


def test_no_frames_at_all_are_fine():
    sender = blocks(CountingSwitch())
    assert len(sender.send(frames(0))) == 0
    sender.finish()
    assert sender.failure is None
