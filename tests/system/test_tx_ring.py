"""The transmit ring on a veth pair of its own (namespace tx-): each frame once and right, times, refusals, failures."""

import contextlib
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from support.waiting import until
from support.wire_frames import make_session

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, process
from netprobe.host.netns import in_netns
from netprobe.inject.ring_pacing import EvenSchedule, ListedSchedule
from netprobe.inject.ring_sender import RingSender
from netprobe.inject.templates import build_template
from netprobe.inject.tx_ring import TxRing
from netprobe.model.points import Direction
from netprobe.model.probes import Protocol
from netprobe.observe.ring import RxRing
from netprobe.wire.decode import Decoder
from netprobe.wire.frames import FrameEncoder

pytestmark = pytest.mark.system

PASS_ALL = b"\x06\x00\x00\x00\xff\xff\xff\x00"


@pytest.fixture(scope="module")
def pair():
    name = f"tx-{os.getpid()}"
    iproute.add_namespaces([name])
    try:
        iproute.set_sysctls(name, {"ipv6/conf/default/disable_ipv6": "1"})
        commands = ["link add name tx0 type veth peer name tx1", "link set tx0 up", "link set tx1 up"]
        iproute.batch(commands, netns=name)
        until(lambda: carries(name))
        yield name
    finally:
        iproute.delete_namespaces([name])


def carries(netns):
    """A pair drops frames until its carrier is noticed: whether one comes through."""
    left, right = (in_netns(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) for _ in range(2))
    with left, right:
        left.bind(("tx0", 0))
        right.bind(("tx1", 0x88B5))
        right.settimeout(0.05)
        with contextlib.suppress(OSError):
            left.send(bytes(12) + b"\x88\xb5" + bytes(46))
            return bool(right.recv(64))
        return False


def queue(netns, words):
    process.run(process.netns_argv(netns, ["tc", "qdisc", *words.split()]))


class Reader:
    """A ring that keeps what it saw."""

    def __init__(self, netns, device, direction):
        self.ring, self.direction = RxRing(netns, device, PASS_ALL), direction
        self.frames, self.stamps = [], []

    def read(self):
        blocks = self.ring.blocks()
        for block in blocks:
            for i in np.flatnonzero(block.direction == self.direction):
                start = int(block.offsets[i])
                self.frames.append(bytes(block.buffer[start : start + int(block.lengths[i])]))
            self.stamps += block.t_ns[block.direction == self.direction].tolist()
        self.ring.release(len(blocks))

    def all(self, count):
        """(frames, stamps), in order, once `count` have come; nothing was dropped."""

        def enough():
            self.read()
            return len(self.frames) >= count

        until(enough)
        assert self.ring.drops() == 0
        return self.frames, np.array(self.stamps)


@pytest.fixture
def both_ends(pair):
    out, into = Reader(pair, "tx0", Direction.OUT), Reader(pair, "tx1", Direction.IN)
    yield out, into
    out.ring.close()
    into.ring.close()


def open_sender(pair, protocol, *, slots=4_096, **changes):
    session = make_session(protocol, count=100_000, **changes)
    return session, RingSender.open(session, build_template(session), pair, "tx0", slots=slots)


@pytest.mark.parametrize("protocol", [Protocol.RAW_UDP, Protocol.TCP, Protocol.ICMP])
@pytest.mark.parametrize("family", [4, 6])
def test_every_frame_arrives_once_in_order_octet_by_octet(pair, both_ends, protocol, family):
    """Across the end of a small ring, many times; both ends of the cable see what the encoder makes."""
    session, sender = open_sender(pair, protocol, family=family, extra=31, slots=64)
    with sender:
        done = sender.send(3, 5_000, burst_frames=256)
    assert (done.sent, done.unsent, done.refused, done.given_back, done.failure) == (5_000, 0, 0, 0, "")
    wanted = FrameEncoder(session, build_template(session)).encode(3, 5_000).frames
    for reader in both_ends:
        frames, _ = reader.all(5_000)
        assert frames == [row.tobytes() for row in wanted]


def test_stamp_frames_carry_a_time_within_their_estimate_a_right_checksum_and_a_right_tag(pair, both_ends):
    """Few at a time and many at a time: T1 is patched in by two ways."""
    session, sender = open_sender(pair, Protocol.UDP)
    blocks = []
    with sender:
        sender.send(0, 2_000, on_block=blocks.append)
        start_ns = time.monotonic_ns() + 5_000_000
        sender.send(2_000, 50, EvenSchedule(start_ns, 10_000), on_block=blocks.append)
    _, into = both_ends
    frames, _ = into.all(2_050)
    times_ns = np.concatenate([block.times_ns for block in blocks])
    buffer = np.frombuffer(b"".join(frames), np.uint8)
    size = len(frames[0])
    decoded = Decoder([session]).decode(buffer, np.arange(2_050) * size, np.full(2_050, size))
    assert decoded.seq.tolist() == list(range(2_050))  # and so with the right tag
    for frame, t_ns in zip(frames, times_ns.tolist(), strict=True):
        seconds, fraction = struct.unpack_from("!II", frame, 46)
        t1_ns = (seconds - 2_208_988_800) * 10**9 + ((fraction * 10**9 + 2**31) >> 32)
        assert 0 <= t1_ns - t_ns <= 1_000_000  # RFC 4656's Error Estimate of a probe: mark.ERROR_ESTIMATE
    for frame in frames[::97]:
        fresh = Ether(frame)
        del fresh[IP].chksum, fresh[UDP].chksum
        assert bytes(fresh) == frame


@pytest.mark.parametrize("gather_ns", [0, 300_000])
def test_the_stated_pacing_error_bounds_what_the_kernels_stamps_say(pair, both_ends, gather_ns):
    """No frame leaves before it is due, and none later than stated: on any machine, however busy."""
    out, _ = both_ends
    _session, sender = open_sender(pair, Protocol.RAW_UDP)
    blocks = []
    shift_ns = time.time_ns() - time.monotonic_ns()
    due_ns = time.monotonic_ns() + 10_000_000 + np.arange(2_000) * 50_000
    with sender:
        done = sender.send(0, 2_000, ListedSchedule(due_ns), gather_ns=gather_ns, on_block=blocks.append)
    _frames, stamps = out.all(2_000)
    late_ns = stamps - shift_ns - due_ns
    stated_ns = np.concatenate([block.errors_ns for block in blocks])
    slack_ns = 20_000  # the two clocks are read one after the other, and one of them is slewed
    assert (late_ns >= -slack_ns).all()
    assert (late_ns <= stated_ns + slack_ns).all()
    assert done.pacing.max_ns == stated_ns.max()
    assert done.pacing.p99_ns == pytest.approx(np.sort(stated_ns)[1_979], rel=0.01)
    assert (done.pacing.p99_ns >= 200_000) or not gather_ns


def test_a_frame_that_the_kernel_refuses_is_counted_and_the_ring_works_on(pair, both_ends):
    """A virtio header that says more than there is. What was handed over and not taken is never sent later on."""
    ring = TxRing(pair, "tx0", 60, slots=16)
    memory = np.frombuffer(ring._memory, np.uint8).reshape(16, -1)
    try:
        for number in range(16):
            ring.frames[number, 12:15] = (0x88, 0xB5, number)
        memory[5, 34:36] = 0xFF
        ring.claim(10)
        handed = ring.hand_over(10)
        assert (handed.taken, handed.failure, ring.refused) == (5, "device tx0: Invalid argument", 1)
        memory[5, 34:36] = (60, 0)
        rows = ring.claim(16)
        assert (rows.start, rows.stop) == (5, 16)
        ring.frames[5, 14] = 0x55
        assert ring.hand_over(11).taken == 11
    finally:
        del memory
        ring.close()
    _, into = both_ends
    assert [frame[14] for frame in into.all(16)[0]] == [0, 1, 2, 3, 4, 0x55, *range(6, 16)]


def test_a_smaller_mtu_is_noticed_while_sending(pair):
    """The kernel would say that it sent such frames."""
    _session, sender = open_sender(pair, Protocol.RAW_UDP, extra=700)
    try:
        with sender:
            assert not sender.send(0, 100).failure
            iproute.batch(["link set tx0 mtu 500"], netns=pair)
            done = sender.send(100, 50_000, burst_frames=None)
    finally:
        iproute.batch(["link set tx0 mtu 1500"], netns=pair)
    assert done.failure == "device tx0: frames of 762 bytes do not fit its MTU of 500"
    assert done.sent < 50_000


def test_frames_that_the_device_gives_back_are_tried_again_and_counted(pair, both_ends):
    """A queue of two frames in front of the device: it says ENOBUFS again and again, and all arrive, once."""
    queue(pair, "replace dev tx0 root tbf rate 20mbit burst 1600 limit 1600")
    try:
        session, sender = open_sender(pair, Protocol.RAW_UDP, extra=400)
        with sender:
            done = sender.send(0, 200, burst_frames=None)
    finally:
        queue(pair, "del dev tx0 root")
    assert (done.sent, done.failure) == (200, "")
    assert done.given_back > 0
    wanted = FrameEncoder(session, build_template(session)).encode(0, 200).frames
    _, into = both_ends
    assert into.all(200)[0] == [row.tobytes() for row in wanted]


def test_a_device_that_goes_down_ends_the_send_with_what_was_sent(pair):
    _session, sender = open_sender(pair, Protocol.RAW_UDP)
    sent = []

    def down_after_a_while(block):
        sent.append(len(block.times_ns))
        if len(sent) == 3:
            iproute.batch(["link set tx0 down"], netns=pair)

    try:
        with sender:
            done = sender.send(0, 100_000, burst_frames=None, on_block=down_after_a_while)
    finally:
        iproute.batch(["link set tx0 up"], netns=pair)
        until(lambda: carries(pair))
    assert done.failure == "device tx0: Network is down"
    assert (done.sent, done.unsent) == (sum(sent), 100_000 - sum(sent))
    assert len(sent) == 3


@pytest.mark.parametrize(
    ("netns", "device", "size", "text"),
    [
        ("", "no-such-device", 60, "transmit ring on no-such-device: cannot be opened: No such device"),
        ("no-such-netns", "tx0", 60, "no-such-netns"),
        (None, "tx0", 1_515, "frames of 1515 bytes do not fit its MTU of 1500"),
        (None, "tx2", 60, "tx2: it is down"),
        (None, "tx3", 60, "tx3: it has no carrier"),
    ],
)
def test_a_ring_that_cannot_be_says_why(pair, netns, device, size, text):
    iproute.batch(["link add name tx2 type veth peer name tx3", "link set tx3 up"], netns=pair)
    try:
        with pytest.raises(HostNotReadyError, match=text):
            TxRing(pair if netns is None else netns, device, size)
    finally:
        iproute.batch(["link del tx2"], netns=pair)


def test_closing_leaves_no_socket_and_no_memory(pair):
    _session, sender = open_sender(pair, Protocol.RAW_UDP)
    before = in_netns(pair, sockets)
    sender.close()
    sender.close()
    assert in_netns(pair, sockets) == before - 1


def sockets():
    return len(Path("/proc/thread-self/net/packet").read_text(encoding="ascii").splitlines())
