"""Decoding, example by example: times, weak replies, merged frames, and what counts as forged or as foreign."""

import struct
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.wire_frames import (
    ALL,
    KEY,
    block,
    decode,
    echo_reply,
    encoder,
    icmp_error,
    make_session,
    probe,
    rows,
    stamp_reply,
    tcp_answer,
    with_tags,
)

from netprobe.errors import UsageError
from netprobe.model.points import Leg
from netprobe.model.probes import Flow, Protocol
from netprobe.wire import mark, stamp
from netprobe.wire.decode import Decoder, Kind
from netprobe.wire.frames import patch_t1

STAMP = make_session()
RAW = make_session(Protocol.RAW_UDP)
SYN = make_session(Protocol.TCP)
ECHO = make_session(Protocol.ICMP)
T_NS = 1_790_000_000_123_456_789  # in September 2026


def ether(ip, *rest):
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip
    for layer in rest:
        packet /= layer
    return bytes(packet)


def counts(decoded):
    return len(decoded), decoded.forged, decoded.foreign


# --- times ---


def test_t1_of_a_probe_is_told():
    made = encoder(STAMP).encode(7, 1)
    patch_t1(made.frames[0].data, made.t1_offset, made.checksum_offset, stamp.ns_to_ntp(T_NS))
    decoded = decode([STAMP], [made.frames[0].tobytes(), probe(STAMP, 8)])
    assert decoded.t1_ns.tolist() == [T_NS, 0]
    assert decoded.t2_ns.tolist() == decoded.t3_ns.tolist() == [0, 0]
    assert decoded.reflector_seq.tolist() == [-1, -1]


@pytest.mark.parametrize("z", [0, 1])
@pytest.mark.parametrize("t_ns", [T_NS, T_NS + 1, 1, 999_999_999, 2_085_978_496_000_000_001, 4_000_000_000_000_000_007])
def test_times_of_a_reply_in_the_reflectors_format_and_ours(z, t_ns):
    """T2 and T3 as the reflector's Z flag says, T1 as ours does; from 1970 on, beyond NTP's era 0 (2036)."""
    to_raw = stamp.ns_to_ptp if z else stamp.ns_to_ntp
    t1 = stamp.ns_to_ntp(T_NS)
    reply = stamp_reply(probe(STAMP, 9), t1=t1, t2=to_raw(t_ns), t3=to_raw(t_ns + 5), reflector_seq=77, z=z)
    decoded = decode([STAMP], [reply])
    assert (decoded.t1_ns[0], decoded.t2_ns[0], decoded.t3_ns[0]) == (T_NS, t_ns, t_ns + 5)
    assert decoded.reflector_seq[0] == 77
    assert not decoded.weak[0]


def test_a_ptp_time_with_too_many_nanoseconds_is_none():
    reply = stamp_reply(probe(STAMP, 9), t2=5 << 32 | 10**9, t3=5 << 32 | 10**9 - 1, reflector_seq=0, z=1)
    decoded = decode([STAMP], [reply])
    assert (decoded.t2_ns[0], decoded.t3_ns[0]) == (0, 5_999_999_999)


# --- replies of reflectors that know no TLVs ---


@pytest.mark.parametrize("ssid", [None, 0])
@pytest.mark.parametrize("trailer", [b"", bytes(24)])
def test_a_reply_without_our_tlv_is_matched_by_tuple_and_number(ssid, trailer):
    reply = stamp_reply(probe(STAMP, 9), t2=1 << 63, t3=1 << 63, reflector_seq=3, keep_tlvs=False, ssid=ssid)
    packet = Ether(reply)
    payload = bytes(packet[UDP].payload) + trailer
    decoded = decode(
        [STAMP],
        [ether(packet[IP].__class__(src="10.0.0.2", dst="10.0.0.1"), UDP(sport=862, dport=61000), Raw(payload))],
    )
    assert rows(decoded) == [(0, STAMP.session, 9, Leg.RETURN, Kind.STAMP_REPLY)]
    assert decoded.weak.tolist() == [True]
    assert decoded.reflector_seq.tolist() == [3]
    assert decoded.t2_ns[0] != 0


@pytest.mark.parametrize("change", [{"sender_seq": 1000}, {"ssid": 1}])
def test_a_weak_reply_with_a_wrong_number_or_ssid_is_forged(change):
    reply = stamp_reply(probe(STAMP, 9), t2=1, t3=1, reflector_seq=3, keep_tlvs=False, **change)
    assert counts(decode([STAMP], [reply])) == (0, 1, 0)


def test_a_weak_reply_to_another_probes_port_is_forged():
    session = make_session(flow=Flow.NEW_PER_PROBE)
    right = stamp_reply(probe(session, 9), t2=1, t3=1, reflector_seq=3, keep_tlvs=False)
    wrong = stamp_reply(probe(session, 9), t2=1, t3=1, reflector_seq=3, keep_tlvs=False, sender_seq=10)
    decoded = decode([session], [right, wrong])
    assert rows(decoded) == [(0, session.session, 9, Leg.RETURN, Kind.STAMP_REPLY)]
    assert decoded.forged_index.tolist() == [1]


def test_sessions_that_share_a_tuple_are_told_apart_by_the_ssid():
    other = replace(STAMP, session=0x0000_0001, count=5)
    for session, seq in ((STAMP, 3), (other, 4)):
        reply = stamp_reply(probe(session, seq), t2=1, t3=1, reflector_seq=3, keep_tlvs=False)
        assert rows(decode([STAMP, other], [reply])) == [(0, session.session, seq, Leg.RETURN, Kind.STAMP_REPLY)]


def test_a_reply_with_a_forged_tlv_is_not_matched_weakly():
    reply = bytearray(stamp_reply(probe(STAMP, 9), t2=1, t3=1, reflector_seq=3))
    for at, what in ((reply.index(b"nprb"), b"NPRB"), (len(reply) - 1, bytes([reply[-1] ^ 1]))):
        changed = bytes(reply[:at]) + what + bytes(reply[at + len(what) :])
        assert counts(decode([STAMP], [changed])) == (0, 1, 0)


# --- merged frames ---


def merged_frame(session, seqs):
    frames = [probe(session, seq) for seq in seqs]
    payload = b"".join(bytes(Ether(frame)[UDP].payload) for frame in frames)
    packet = Ether(frames[0])
    packet[UDP].remove_payload()
    for layer, names in ((packet.payload, ("len", "chksum", "plen")), (packet[UDP], ("len", "chksum"))):
        for name in names:
            if name in layer.fields:
                layer.delfieldval(name)
    return bytes(packet / Raw(payload))


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.RAW_UDP])
@pytest.mark.parametrize("family", [4, 6])
def test_every_probe_of_a_merged_frame_is_decoded(protocol, family):
    session = make_session(protocol, family, extra=11)
    frames = [probe(session, 1), merged_frame(session, [2, 3, 4]), probe(session, 5), merged_frame(session, [6, 7])]
    decoded = decode([session], frames)
    assert decoded.index.tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert decoded.seq.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (decoded.merged, decoded.forged, decoded.foreign) == (2, 0, 0)


def test_a_forged_probe_in_a_merged_frame_is_the_only_one_lost():
    good = merged_frame(RAW, [2, 3, 4])
    bad = bytearray(good)
    bad[bad.index(b"nprb", bad.index(b"nprb") + 1) + 12] ^= 1
    decoded = decode([RAW], [bytes(bad)])
    assert decoded.seq.tolist() == [2, 4]
    assert (decoded.forged, decoded.forged_index.tolist(), decoded.foreign) == (1, [0], 0)


def test_a_merged_frame_cut_short_gives_what_is_there():
    frame = merged_frame(RAW, [2, 3, 4])
    buf = np.frombuffer(frame, np.uint8)
    decoded = Decoder([RAW]).decode(buf, np.array([0]), np.array([len(frame) - 1]))
    assert decoded.seq.tolist() == [2, 3]


# --- forged ---


@pytest.mark.parametrize(("protocol", "family"), ALL)
def test_a_number_beyond_the_count_and_a_stale_session_are_forged(protocol, family):
    session = make_session(protocol, family, flow=Flow.SAME)
    stale = replace(session, session=session.session - 1)
    small = replace(session, count=5)
    assert counts(decode([small], [probe(session, 4), probe(session, 5)])) == (1, 1, 0)
    assert counts(decode([session], [probe(stale, 4)])) == (0, 1, 0)


@pytest.mark.parametrize("session", [STAMP, RAW, ECHO], ids=["stamp", "raw", "echo"])
@pytest.mark.parametrize("change", ["src_ip", "dst_ip"])
def test_a_right_tag_between_wrong_addresses_is_forged(session, change):
    elsewhere = replace(session, **{change: ip_address("10.0.0.9")})
    assert counts(decode([session], [probe(elsewhere, 4)])) == (0, 1, 0)


def test_a_right_tag_on_wrong_ports_or_in_another_protocol_is_forged():
    for change in ({"dst_port": 863}, {"src_port": 61001}):
        assert counts(decode([STAMP], [probe(make_session(**change), 4)])) == (0, 1, 0)
    assert counts(decode([STAMP], [probe(RAW, 4), probe(ECHO, 4)])) == (0, 2, 0)
    assert counts(decode([RAW], [probe(STAMP, 4), probe(ECHO, 4)])) == (0, 2, 0)
    assert counts(decode([ECHO], [probe(STAMP, 4), probe(RAW, 4)])) == (0, 2, 0)


def test_raw_udp_has_no_return_leg():
    packet = Ether(probe(RAW, 4))
    back = ether(IP(src="10.0.0.2", dst="10.0.0.1"), UDP(sport=9000, dport=61000), packet[UDP].payload)
    assert counts(decode([RAW], [back])) == (0, 1, 0)


def test_an_echo_request_on_the_return_leg_and_a_reply_on_the_forward_leg_are_forged():
    request, reply = bytearray(probe(ECHO, 4)), bytearray(echo_reply(probe(ECHO, 4)))
    request[34], reply[34] = 0, 8
    assert counts(decode([ECHO], [bytes(request), bytes(reply)])) == (0, 2, 0)


def test_a_syn_from_another_probes_port_is_forged():
    frame = bytearray(probe(SYN, 4))
    frame[34:36] = SYN.src_ports[5].to_bytes(2, "big")
    assert counts(decode([SYN], [bytes(frame)])) == (0, 1, 0)


def test_a_syn_with_a_number_of_its_own_on_a_probes_tuple_is_forged():
    tenant = ether(IP(src="10.0.0.1", dst="10.0.0.2"), TCP(sport=SYN.src_ports[4], dport=443, flags="S", seq=12345))
    assert counts(decode([SYN], [tenant])) == (0, 1, 0)


def test_an_error_toward_somebody_else_is_forged():
    error = bytearray(icmp_error(probe(STAMP, 4)))
    error[30:34] = bytes([10, 0, 0, 9])
    assert counts(decode([STAMP], [bytes(error)])) == (0, 1, 0)


def test_udp_on_a_sessions_tuple_without_a_mark_is_forged():
    frame = ether(IP(src="10.0.0.1", dst="10.0.0.2"), UDP(sport=61000, dport=862), Raw(bytes(44)))
    assert counts(decode([STAMP], [frame])) == (0, 1, 0)


def test_with_no_session_everything_marked_is_forged():
    assert counts(decode([], [probe(STAMP, 4), probe(SYN, 4), echo_reply(probe(ECHO, 4))])) == (0, 2, 1)


# --- foreign ---


def tenant_frames():
    v4 = IP(src="10.0.0.1", dst="10.0.0.2", tos=12)
    yield ether(v4, UDP(sport=61000, dport=53), Raw(b"x" * 100))
    yield ether(v4, TCP(sport=50000, dport=443, flags="S"))
    yield ether(v4, TCP(sport=61001, dport=443, flags="S"))  # in the block, but no probe's
    yield ether(v4, TCP(sport=SYN.src_ports[4], dport=443, flags="PA"), Raw(b"data"))
    yield ether(v4, TCP(sport=SYN.src_ports[4], dport=443, flags="R"))
    yield ether(v4, ICMP(id=STAMP.session & 0xFFFF), Raw(b"y" * 56))
    yield ether(
        IP(src="10.0.0.2", dst="10.0.0.1"), UDP(sport=9000, dport=61000), Raw(b"an answer of the tenant's program")
    )
    yield ether(IPv6(src="fd00::1", dst="fd00::2", tc=12), UDP(sport=1, dport=2))
    yield Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0806).build() + bytes(46)
    yield b""


def test_a_tenants_frames_claim_nothing():
    frames = list(tenant_frames())
    assert counts(decode([STAMP, replace(RAW, session=2), replace(SYN, session=3)], frames)) == (0, 0, len(frames))


def test_an_error_about_an_answer_claims_nothing():
    """A guest whose probes the vswitch sent for it refuses their answers; that is no news of the probe."""
    reply = stamp_reply(probe(STAMP, 4), t2=1, t3=1, reflector_seq=0)
    assert counts(decode([STAMP], [icmp_error(reply)])) == (0, 0, 1)
    assert counts(decode([SYN], [icmp_error(tcp_answer(probe(SYN, 4), "SA"))])) == (0, 0, 1)


def test_an_error_that_quotes_too_little_claims_nothing_but_eight_octets_of_tcp_do():
    assert counts(decode([STAMP], [icmp_error(probe(STAMP, 4), quoted_bytes=28)])) == (0, 0, 1)
    decoded = decode([SYN], [icmp_error(probe(SYN, 4), quoted_bytes=28)])
    assert rows(decoded) == [(0, SYN.session, 4, Leg.RETURN, Kind.ICMP_ERROR)]


def test_later_fragments_extension_headers_and_a_third_tag_are_foreign():
    fragment = bytearray(probe(STAMP, 4))
    fragment[21] = 1
    payload = Ether(probe(make_session(family=6), 4))[UDP]
    extended = ether(IPv6(src="fd00::1", dst="fd00::2"), IPv6ExtHdrHopByHop(), payload)
    tagged = with_tags(probe(STAMP, 4), *[(0x8100, 1)] * 3)
    assert counts(decode([STAMP], [bytes(fragment), extended, tagged])) == (0, 0, 3)


# --- headers ---


def test_ipv4_options_are_skipped_also_in_quoted_packets():
    inner = Ether(probe(STAMP, 4))
    packet = (
        IP(src="10.0.0.1", dst="10.0.0.2", ttl=9, tos=0xB8 | 1, options=[IPOption(b"\x94\x04\x00\x00")]) / inner[UDP]
    )
    frame = ether(packet)
    decoded = decode([STAMP], [frame, icmp_error(frame, src="192.0.2.1")])
    assert [row[2:] for row in rows(decoded)] == [(4, Leg.FORWARD, Kind.PROBE), (4, Leg.RETURN, Kind.ICMP_ERROR)]
    assert decoded.dscp.tolist() == [46, 0]
    assert decoded.ttl.tolist() == [9, 64]


@pytest.mark.parametrize("dscp", [0, 3, 46, 63])
@pytest.mark.parametrize("family", [4, 6])
def test_the_dscp_and_the_hop_limit_are_told_as_they_are_seen(family, dscp):
    session = make_session(family=family, dscp=dscp, ttl=7)
    decoded = decode([session], [probe(session, 1)])
    assert (decoded.dscp.tolist(), decoded.ttl.tolist()) == ([dscp], [7])


def test_ethernet_padding_is_not_taken_for_payload():
    """A SYN is 54 octets and travels as 60; a datagram whose identity stands in the padding has none."""
    assert len(decode([SYN], [probe(SYN, 4) + bytes(6)])) == 1
    frame = probe(RAW, 4)
    short = frame[:16] + struct.pack("!H", 28) + frame[18:38] + struct.pack("!H", 8) + frame[40:]
    assert len(decode([RAW], [short])) == 0


def test_two_sessions_on_one_tcp_tuple_are_told_apart_by_the_number():
    other = replace(SYN, session=5)
    decoded = decode([SYN, other], [probe(other, 4), probe(SYN, 4), tcp_answer(probe(other, 6), "RA")])
    assert [row[1:3] for row in rows(decoded)] == [(5, 4), (SYN.session, 4), (5, 6)]


def test_a_syn_with_ecn_flags_is_still_a_syn():
    frame = bytearray(probe(SYN, 4))
    frame[47] |= 0xC0
    assert rows(decode([SYN], [bytes(frame)])) == [(0, SYN.session, 4, Leg.FORWARD, Kind.PROBE)]


def test_a_read_only_or_strided_buffer_will_do():
    buf, offsets, lengths = block([probe(STAMP, 4)])
    strided = np.repeat(buf, 2)[::2]
    assert len(Decoder([STAMP]).decode(strided, offsets, lengths)) == 1


def test_two_sessions_with_one_number_are_refused():
    with pytest.raises(UsageError, match=r"two sessions with number 305419896"):
        Decoder([STAMP, RAW])


@pytest.mark.parametrize("extra", [0, 1, 3, 4, 900])
def test_the_scalar_codec_of_the_guest_reads_what_the_encoder_wrote(extra):
    payload = probe(make_session(extra=extra), 4)[14 + 20 + 8 :]
    packet = stamp.decode_sender_untrusted(payload)
    assert (packet.seq, packet.ssid) == (4, mark.ssid(STAMP.session))
    first, *rest = stamp.decode_tlvs_untrusted(payload[44:])
    assert first.type == stamp.TlvType.NETPROBE_IDENTITY
    assert [tlv.type for tlv in rest] in ([], [stamp.TlvType.EXTRA_PADDING])
    assert mark.decode_identity_untrusted(first.value) == mark.decode_identity_untrusted(payload[48:])
    assert mark.is_authentic(mark.decode_identity_untrusted(first.value), KEY)
