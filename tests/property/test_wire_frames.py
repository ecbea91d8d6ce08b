"""Encoded frames as scapy, an independent oracle, reads them."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.stamp import STAMPSessionSenderTestUnauthenticated
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from support.wire_frames import ALL, DST_MAC, KEY, SRC_MAC, encoder, make_session

from netprobe.errors import UsageError
from netprobe.inject.templates import build_template
from netprobe.model.probes import Flow, Protocol
from netprobe.wire import isn, mark
from netprobe.wire.frames import FrameEncoder, patch_t1, patch_t1_rows
from netprobe.wire.stamp import ns_to_ntp

CHECKSUM_FIELDS = {IP: "chksum", UDP: "chksum", TCP: "chksum", ICMP: "chksum", ICMPv6EchoRequest: "cksum"}


def assert_checksums_are_scapys(frame):
    """Scapy, told to compute all checksums and lengths itself, builds the same octets."""
    fresh = Ether(frame)
    for layer, name in CHECKSUM_FIELDS.items():
        if layer in fresh:
            fresh[layer].delfieldval(name)
    for layer, name in ((IP, "len"), (UDP, "len"), (IPv6, "plen")):
        if layer in fresh:
            fresh[layer].delfieldval(name)
    assert bytes(fresh) == bytes(frame)


def assert_fields(session, packet, seq):
    type_p = session.type_p
    assert (packet.src, packet.dst) == (SRC_MAC.hex(":"), DST_MAC.hex(":"))
    ip = packet[IPv6] if type_p.family == 6 else packet[IP]
    assert (ip.src, ip.dst) == (str(session.src_ip), str(session.dst_ip))
    if type_p.family == 6:
        assert (ip.tc, ip.hlim) == ((type_p.dscp or 0) << 2, type_p.ttl)
    else:
        assert (ip.tos, ip.ttl, ip.flags.DF) == ((type_p.dscp or 0) << 2, type_p.ttl, True)
    identity = mark.encode_identity(session.key, session.session, seq)
    src_port = session.src_ports[seq] if type_p.flow is Flow.NEW_PER_PROBE else type_p.src_port
    if type_p.protocol is Protocol.TCP:
        tcp = packet[TCP]
        keys = isn.round_keys(session.key, session.session)
        assert (tcp.sport, tcp.dport, str(tcp.flags)) == (src_port, type_p.dst_port, "S")
        assert (tcp.ack, tcp.window, tcp.options) == (0, 64240, [])
        assert tcp.seq == int(isn.encode(keys, np.array([seq], np.uint32))[0])
    elif type_p.protocol is Protocol.ICMP:
        echo = ip.payload
        assert (echo.type, echo.code) == ((128, 0) if type_p.family == 6 else (8, 0))
        assert (echo.id, echo.seq) == (session.session & 0xFFFF, seq & 0xFFFF)
        data = echo.data if type_p.family == 6 else bytes(echo.payload)
        assert data == identity.ljust(len(data), b"\0")
    else:
        udp = packet[UDP]
        assert (udp.sport, udp.dport) == (src_port, type_p.dst_port)
        data = bytes(udp.payload)
        assert len(data) == mark.payload_size(type_p)
        if type_p.protocol is Protocol.RAW_UDP:
            assert data == identity.ljust(len(data), b"\0")
        else:
            assert_stamp(data, session, seq, identity)


def assert_stamp(data, session, seq, identity):
    stamp = STAMPSessionSenderTestUnauthenticated(data)
    assert (stamp.seq, stamp.mbz, stamp.ssid) == (seq, 0, session.session & 0xFFFF)
    assert data[4:12] == bytes(8)
    estimate = stamp.err_estimate
    assert (estimate.S, estimate.Z, estimate.multiplier) == (0, 0, 1)
    first, *rest = stamp.tlv_objects
    assert (first.flags, first.type, first.value.rstrip(b"\0")) == (0x80, 240, identity.rstrip(b"\0"))
    assert [tlv.type for tlv in rest] in ([], [1])
    assert sum(4 + tlv.len for tlv in stamp.tlv_objects) == len(data) - 44


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    extra=st.integers(0, 200),
    session=st.integers(0, 2**32 - 1),
    first=st.integers(0, 900),
    is_new=st.booleans(),
    key=st.binary(min_size=16, max_size=16),
    dscp=st.none() | st.integers(0, 63),
)
@pytest.mark.parametrize(("protocol", "family"), ALL)
def test_every_frame_parses_in_scapy_with_the_right_fields_and_checksums(
    protocol, family, extra, session, first, is_new, key, dscp
):
    if session & 0xFFFF == 0:
        session += 1
    flow = Flow.NEW_PER_PROBE if is_new and protocol is not Protocol.ICMP else Flow.SAME
    made = make_session(protocol, family, extra=extra, session=session, flow=flow, key=key, dscp=dscp, ttl=33)
    block = encoder(made).encode(first, 3)
    assert block.frames.shape == (3, made.type_p.size_bytes)
    for i in range(3):
        frame = block.frames[i].tobytes()
        assert_checksums_are_scapys(frame)
        assert_fields(made, Ether(frame), first + i)


@pytest.mark.parametrize(("protocol", "family"), ALL)
def test_blocks_are_the_concatenation_of_single_frames(protocol, family):
    made = encoder(make_session(protocol, family, extra=3))
    whole = made.encode(10, 50)
    single = np.concatenate([made.encode(seq, 1).frames for seq in range(10, 60)])
    assert (whole.frames == single).all()
    assert whole.first_seq == 10
    assert made.encode(0, 0).frames.shape[0] == 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_checksum_that_comes_out_as_zero_is_sent_as_ffff(family):
    """Among 65,536 tags some give 0; RFC 768 would read it as no checksum at all, RFC 8200 forbids it."""
    made = encoder(make_session(Protocol.RAW_UDP, family, count=300_000))
    at = 14 + (20 if family == 4 else 40) + 6
    checksums = np.concatenate([made.encode(s, 50_000).frames[:, at : at + 2] for s in range(0, 300_000, 50_000)])
    words = checksums.copy().view(">u2")[:, 0]
    assert (words != 0).all()
    first = int(np.flatnonzero(words == 0xFFFF)[0])
    assert_checksums_are_scapys(made.encode(first, 1).frames[0].tobytes())


@settings(deadline=None, derandomize=True, max_examples=30)
@given(times=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3), family=st.sampled_from([4, 6]))
def test_t1_can_be_patched_in_again_and_again_and_the_checksum_stays_right(times, family):
    block = encoder(make_session(family=family)).encode(0, 2)
    for raw in times:
        patch_t1(block.frames[1].data, block.t1_offset, block.checksum_offset, raw)
        frame = block.frames[1].tobytes()
        assert struct.unpack_from("!Q", frame, block.t1_offset)[0] == raw
        assert bytes(Ether(frame)[UDP].payload)[4:12] == struct.pack("!Q", raw)
        assert_checksums_are_scapys(frame)


def test_t1_in_a_ring_slot_with_a_header_before_it():
    block = encoder(make_session()).encode(3, 1)
    slot = bytearray(32) + bytearray(block.frames[0].tobytes())
    patch_t1(slot, 32 + block.t1_offset, 32 + block.checksum_offset, 0x0123456789ABCDEF)
    assert_checksums_are_scapys(bytes(slot[32:]))


@pytest.mark.parametrize("protocol", [Protocol.RAW_UDP, Protocol.ICMP, Protocol.TCP])
def test_only_stamp_has_a_t1(protocol):
    block = encoder(make_session(protocol)).encode(0, 1)
    assert (block.t1_offset, block.checksum_offset) == (None, None)


@pytest.mark.parametrize(("first", "n"), [(-1, 1), (0, 1001), (1000, 1), (5, -1)])
def test_numbers_outside_the_session_are_refused(first, n):
    with pytest.raises(UsageError, match=r"allowed: 0..999"):
        encoder(make_session()).encode(first, n)


def test_a_template_of_another_size_is_refused():
    with pytest.raises(UsageError, match=r"110"):
        FrameEncoder(make_session(), build_template(make_session(extra=1)))


def test_numbers_near_two_to_the_32():
    session = make_session(Protocol.ICMP, count=2**32)
    frame = encoder(session).encode(2**32 - 1, 1).frames[0].tobytes()
    assert_fields(session, Ether(frame), 2**32 - 1)
    assert_checksums_are_scapys(frame)


def test_template_leaves_what_differs_zero():
    rng = random.Random(1)
    for protocol, family in ALL:
        session = make_session(protocol, family, session=rng.randrange(1, 2**32), extra=9)
        assert mark.MAGIC not in build_template(session)
        assert KEY not in build_template(session)


# -- into the slots of a ring ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "family"), ALL)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(data=st.data())
def test_what_is_written_into_used_slots_is_what_encode_makes(protocol, family, data):
    """Any range, cut anywhere, into rows of a wider array that held other probes with another T1 before."""
    made = encoder(make_session(protocol, family, extra=data.draw(st.integers(0, 40)), count=5_000))
    first, n = data.draw(st.integers(0, 4_000)), data.draw(st.integers(1, 900))
    cut, gap = data.draw(st.integers(0, n)), data.draw(st.integers(0, 50))
    size = len(made.template)
    slots = np.full((n, gap + size + 3), 0xA5, np.uint8)
    frames = slots[:, gap : gap + size]
    frames[:] = made.template
    made.columns(data.draw(st.integers(0, 4_000)), n).write(frames)
    if made.t1_offset is not None:
        patch_t1_rows(frames, made.t1_offset, made.checksum_offset, np.arange(n) + 10**18)
    columns = made.columns(first, n)
    columns.write(frames[:cut])
    columns.write(frames[cut:], cut)
    assert np.array_equal(frames, made.encode(first, n).frames)
    assert (slots[:, :gap] == 0xA5).all()
    assert (slots[:, gap + size :] == 0xA5).all()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(times=st.lists(st.integers(0, 2**62), min_size=1, max_size=40), family=st.sampled_from([4, 6]))
def test_t1_of_a_block_is_what_it_is_one_by_one(times, family):
    rows, single = (encoder(make_session(family=family, extra=1)).encode(5, len(times)) for _ in range(2))
    patch_t1_rows(rows.frames, rows.t1_offset, rows.checksum_offset, np.array(times))
    for row, t_ns in zip(single.frames, times, strict=True):
        patch_t1(row.data, single.t1_offset, single.checksum_offset, ns_to_ntp(t_ns))
    assert np.array_equal(rows.frames, single.frames)


def test_every_checksum_of_very_many_t1_is_right_and_none_is_zero():
    """Enough for every carry, and for a sum whose checksum would be zero, which RFC 768 reads as none."""
    made, would_be_zero = encoder(make_session(count=400_000)), 0
    for first in range(0, 400_000, 50_000):
        block = made.encode(first, 50_000)
        t_ns = 10**18 + np.arange(first, first + 50_000) * 1_234_567
        patch_t1_rows(block.frames, block.t1_offset, block.checksum_offset, t_ns)
        words = block.frames[:, 26:].copy().view(">u2").astype(np.uint64)  # addresses, UDP, payload: an even length
        sums = words.sum(axis=1) + 17 + block.frames.shape[1] - 34
        assert (sums % 0xFFFF == 0).all()
        checksums = block.frames[:, 40:42].copy().view(">u2")
        assert (checksums != 0).all()
        would_be_zero += int((checksums == 0xFFFF).sum())
    assert would_be_zero
