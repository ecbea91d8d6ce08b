"""What the guest agent writes into an ordered frame, and which orders it refuses to read."""

import itertools

import numpy as np
import pytest
from netprobe_agents.transmitter import SendOrder, write_t1
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from netprobe.errors import WireError
from netprobe.wire.control import Message, mixed_frames_body, pack_i64
from netprobe.wire.stamp import ns_to_ntp


def udp_checksum_of(frame):
    """What scapy would write there."""
    packet = Ether(bytes(frame))
    del packet[UDP].chksum
    return Ether(bytes(packet))[UDP].chksum


@pytest.mark.parametrize(
    ("ip", "udp_at"),
    [(IP(src="192.0.2.1", dst="192.0.2.2"), 34), (IPv6(src="2001:db8::2", dst="2001:db8::1"), 54)],
)
def test_t1_is_written_and_the_checksum_is_what_scapy_computes(ip, udp_at):
    # Every address is given, or scapy would ask the network for it.
    ethernet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    rng = np.random.default_rng(1)
    for _ in range(50):
        payload = rng.bytes(60)
        frame = bytearray(bytes(ethernet / ip / UDP(sport=40_000, dport=862) / Raw(payload)))
        t_ns = int(rng.integers(2**61))
        write_t1(memoryview(frame), udp_at + 12, udp_at + 6, t_ns)
        assert frame[udp_at + 12 : udp_at + 20] == ns_to_ntp(t_ns).to_bytes(8, "big")
        assert int.from_bytes(frame[udp_at + 6 : udp_at + 8], "big") == udp_checksum_of(frame)


def test_a_checksum_that_comes_out_as_zero_is_sent_as_ffff():
    """The rest of the packet adds up to 0xffff minus T1's sum, so that with T1 it is 0xffff, and its complement 0."""
    t1 = ns_to_ntp(0)
    t1_sum = sum(t1 >> shift & 0xFFFF for shift in (48, 32, 16, 0))
    t1_sum = (t1_sum & 0xFFFF) + (t1_sum >> 16)
    frame = bytearray(16)
    frame[0:2] = t1_sum.to_bytes(2, "big")  # ~(0xffff - t1_sum), right while T1 is still zero
    write_t1(memoryview(frame), 8, 0, 0)
    assert frame[0:2] == b"\xff\xff"


def test_a_udp_packet_without_checksum_stays_without():
    frame = bytearray(16)
    write_t1(memoryview(frame), 8, 0, 10**18)
    assert frame[0:2] == b"\0\0"


def mixed(frames=(bytes(14), bytes(60)), due_ns=(0, 5), body=None, **changes):
    header = {"id": 1, "count": len(frames), "lead_ns": 0} | changes
    return Message("send-mixed", header, mixed_frames_body(frames, due_ns) if body is None else body)


def test_frames_of_several_lengths_are_read_as_they_were_written():
    frames = [bytes([i] * size) for i, size in enumerate((60, 14, 1514))]
    read = SendOrder.from_message_untrusted(mixed(frames, (0, 0, 7), lead_ns=9))
    assert [bytes(read.frames[a:b]) for a, b in itertools.pairwise(read.bounds)] == frames
    assert (read.id, list(read.due_ns), read.lead_ns, read.t1_offset) == (1, [0, 0, 7], 9, None)


@pytest.mark.parametrize(
    "message",
    [
        mixed(count=3),
        mixed(count=1),
        mixed((), ()),
        mixed((bytes(13),), (0,)),
        mixed((bytes(70_000),), (0,)),
        mixed(due_ns=(0, -1)),
        mixed(body=b""),
        mixed(body=bytes(100)),
        mixed(lead_ns=10**12),
        mixed(id=None),
        mixed(count=1 << 60),
    ],
)
def test_an_order_of_several_lengths_that_cannot_be_is_a_wire_error(message):
    with pytest.raises(WireError):
        SendOrder.from_message_untrusted(message)


def order(count=2, frame_bytes=60, due_ns=(0, 5), body=None, **changes):
    header = {"id": 1, "count": count, "frame_bytes": frame_bytes, "lead_ns": 0} | changes
    return Message("send", header, bytes(count * frame_bytes) + pack_i64(due_ns) if body is None else body)


def test_an_order_is_read_as_it_was_written():
    read = SendOrder.from_message_untrusted(order(t1_offset=46, checksum_offset=40, lead_ns=7))
    assert (read.id, list(read.bounds), list(read.due_ns), read.lead_ns) == (1, [0, 60, 120], [0, 5], 7)
    assert (read.t1_offset, read.checksum_offset, len(read.frames)) == (46, 40, 120)


@pytest.mark.parametrize(
    "message",
    [
        order(count=3),
        order(count=0, due_ns=()),
        order(frame_bytes=13),
        order(body=b""),
        order(due_ns=(0, -1)),
        order(due_ns=(0, 2**62)),
        order(t1_offset=53),
        order(t1_offset=-1),
        order(t1_offset="46"),
        order(checksum_offset=40),
        order(t1_offset=46, checksum_offset=41),
        order(t1_offset=46, checksum_offset=48),
        order(t1_offset=46, checksum_offset=59),
        order(lead_ns=-1),
        order(lead_ns=10**12),
        order(id=None),
    ],
)
def test_an_order_that_cannot_be_is_a_wire_error(message):
    with pytest.raises(WireError):
        SendOrder.from_message_untrusted(message)
