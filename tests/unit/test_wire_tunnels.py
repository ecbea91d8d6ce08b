"""Marks inside tunnels, example by example, and what was around them; frames are scapy's, the independent oracle."""

import struct
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from support.wire_frames import (
    ALL,
    answers,
    block,
    decode,
    icmp_error,
    in_geneve,
    in_vxlan,
    make_session,
    probe,
    rows,
    stamp_reply,
    underlay,
    with_tags,
    wraps,
)

from netprobe.model.contexts import HopContext, Tunnel
from netprobe.model.points import Leg
from netprobe.model.probes import Protocol
from netprobe.wire.decode import Decoder, Kind
from netprobe.wire.decode_contexts import _FACTORS, _distinct

# Addresses are given, or scapy would resolve them, on the wire.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
STAMP = make_session()
RAW = make_session(Protocol.RAW_UDP)
SYN = make_session(Protocol.TCP)
OWN = (ip_address("10.0.0.1"), ip_address("10.0.0.2"))
OUTER4 = (ip_address("192.168.0.1"), ip_address("192.168.0.2"))
OUTER6 = (ip_address("fd01::1"), ip_address("fd01::2"))


def counts(decoded):
    return len(decoded), decoded.forged, decoded.foreign


def only_context(decoded):
    assert decoded.context.tolist() == [0] * len(decoded)
    (context,) = decoded.contexts
    return context


# --- golden frames ---


def test_a_probe_in_geneve_as_ovn_sends_it():
    """Octet by octet from RFC 8926 §3.4; the option is OVN's: class 0x0102, type 0x80 (critical), ports in and out."""
    inner = probe(STAMP, 5)
    header = bytes.fromhex("02 40 65 58 00 00 07 00" + "01 02 80 01 00 02 00 03")
    frame = underlay(Raw(header + inner))
    assert frame == in_geneve(inner)
    decoded = decode([STAMP], [frame])
    assert rows(decoded) == [(0, STAMP.session, 5, Leg.FORWARD, Kind.PROBE)]
    assert only_context(decoded) == HopContext(*OWN, (), Tunnel.GENEVE, 7, *OUTER4)


def test_a_probe_in_vxlan():
    """Octet by octet from RFC 7348 §5."""
    inner = probe(STAMP, 5)
    frame = underlay(Raw(bytes.fromhex("08 00 00 00 00 00 07 00") + inner), dst_port=4789)
    assert frame == in_vxlan(inner)
    decoded = decode([STAMP], [frame])
    assert rows(decoded) == [(0, STAMP.session, 5, Leg.FORWARD, Kind.PROBE)]
    assert only_context(decoded) == HopContext(*OWN, (), Tunnel.VXLAN, 7, *OUTER4)


@pytest.mark.parametrize("name", wraps())
@pytest.mark.parametrize(("protocol", "family"), ALL)
def test_every_probe_and_answer_is_found_in_every_wrap(name, protocol, family):
    session = make_session(protocol, family)
    frames = [probe(session, 9), *answers(session, 9).values()]
    plain, wrapped = decode([session], frames), decode([session], [wraps()[name](frame) for frame in frames])
    assert len(plain) == len(frames)
    assert rows(wrapped) == rows(plain)
    for context in wrapped.contexts:
        assert context.tunnel.value == name.split()[0]
        assert (context.outer_src, context.outer_dst) == (OUTER6 if "over 6" in name else OUTER4)
    shown = [wrapped.contexts[i] for i in wrapped.context]
    alone = [plain.contexts[i] for i in plain.context]
    assert [(c.src, c.dst) for c in shown] == [(c.src, c.dst) for c in alone]


def test_dscp_and_hop_limit_are_the_probes_own():
    session = make_session(dscp=3, ttl=9)
    decoded = decode([session], [in_geneve(probe(session, 1), tos=46 << 2)])
    assert (decoded.dscp.tolist(), decoded.ttl.tolist()) == ([3], [9])


def test_times_are_read_inside_too():
    reply = stamp_reply(probe(STAMP, 9), t2=4_000_000_000 << 32, t3=4_000_000_001 << 32, reflector_seq=77)
    decoded = decode([STAMP], [in_vxlan(reply), reply])
    assert decoded.t2_ns[0] == decoded.t2_ns[1] != 0
    assert decoded.reflector_seq.tolist() == [77, 77]


@pytest.mark.parametrize("vni", [0, 1, 0xABCDEF, 0xFFFFFF])
@pytest.mark.parametrize("wrap", [in_geneve, in_vxlan])
def test_all_24_bits_of_the_network_identifier_are_told(wrap, vni):
    assert only_context(decode([STAMP], [wrap(probe(STAMP, 1), vni=vni)])).vni == vni


@pytest.mark.parametrize("words", range(0, 64, 7))
def test_geneve_options_of_any_length_are_skipped(words):
    """Up to 63 words, in options of up to 31 words (RFC 8926 §3.5)."""
    options = [GeneveOptions(classid=1, type=1, data=bytes(4 * min(31, n) - 4)) for n in (words, words - 31) if n > 0]
    options += [GeneveOptions(classid=1, type=2)] * (words - sum(1 + len(o.data) // 4 for o in options))
    frame = in_geneve(probe(SYN, 1), options=options)
    assert Ether(frame)[GENEVE].optionlen == words
    assert rows(decode([SYN], [frame])) == [(0, SYN.session, 1, Leg.FORWARD, Kind.PROBE)]


@pytest.mark.parametrize("family", [4, 6])
def test_an_ip_packet_in_geneve_without_an_ethernet_header(family):
    session = make_session(Protocol.RAW_UDP, family)
    frame = in_geneve(probe(session, 3)[14:], proto=0x0800 if family == 4 else 0x86DD)
    assert rows(decode([session], [frame])) == [(0, session.session, 3, Leg.FORWARD, Kind.PROBE)]
    wrong = in_geneve(probe(session, 3)[14:], proto=0x86DD if family == 4 else 0x0800)
    assert counts(decode([session], [wrong])) == (0, 0, 1)


def test_flags_that_are_ignored_and_flags_that_are_not():
    """VXLAN needs I and ignores the rest; of Geneve, a message between the tunnel's ends is not ours to read."""
    inner = probe(STAMP, 1)
    frame = in_vxlan(inner)
    decoded = decode([STAMP], [frame[:42] + bytes([flags]) + frame[43:] for flags in range(256)])
    assert decoded.index.tolist() == [flags for flags in range(256) if flags & 0x08]
    assert len(decode([STAMP], [in_geneve(inner, flags={"critical": 1, "reserved": 63})])) == 1
    for refused in ({"version": 1}, {"version": 2}, {"oam": 1}):
        assert counts(decode([STAMP], [in_geneve(inner, flags=refused)])) == (0, 0, 1)
    assert counts(decode([STAMP], [in_geneve(inner, proto=0x8847)])) == (0, 0, 1)


# --- what is not looked into ---


def test_one_level_only():
    assert counts(decode([STAMP], [in_geneve(in_vxlan(probe(STAMP, 1)))])) == (0, 0, 1)


def test_other_ports_later_fragments_and_frames_without_ip_inside_are_foreign():
    inner = probe(STAMP, 1)
    fragment = bytearray(in_geneve(inner))
    fragment[21] = 1
    arp = bytes(ETHER / ARP())
    frames = [in_geneve(inner, dst_port=6082), in_vxlan(inner, dst_port=4790), bytes(fragment), in_geneve(arp)]
    frames += [in_geneve(b""), in_vxlan(b"\x02"), underlay(dst_port=6081), underlay(Raw(b"\x08"), dst_port=4789)]
    assert counts(decode([STAMP], frames)) == (0, 0, len(frames))


def test_the_answers_port_is_not_a_tunnels():
    """Only the destination port says what is inside; 6081 as a source port says nothing."""
    assert len(decode([STAMP], [in_geneve(probe(STAMP, 1), src_port=6081, dst_port=40000)])) == 0


@pytest.mark.parametrize("wrap", [in_geneve, in_vxlan])
def test_only_octets_inside_the_outer_datagram_count(wrap):
    """What the outer UDP or IP length leaves out is Ethernet padding."""
    frame = wrap(probe(RAW, 1))
    assert len(decode([RAW], [frame + bytes(9)])) == 1
    for at in (16, 38):  # total length of IPv4, length of UDP
        (length,) = struct.unpack_from("!H", frame, at)
        for wrong in (length - 1, length - 20, 8, 7, 0):
            cut = frame[:at] + struct.pack("!H", wrong) + frame[at + 2 :]
            assert len(decode([RAW], [cut])) == 0, (at, wrong)


def test_without_tunnels_nothing_is_looked_into():
    """A guest can wrap a probe that it has seen; where guests' own frames pass, the decoder is told not to look."""
    buf = block([in_geneve(probe(STAMP, 1)), in_vxlan(probe(STAMP, 2)), probe(STAMP, 3)])
    decoded = Decoder([STAMP]).decode(*buf, tunnels=False)
    assert rows(decoded) == [(2, STAMP.session, 3, Leg.FORWARD, Kind.PROBE)]
    assert decoded.foreign == 2


# --- a probe to a tunnel's own port ---


@pytest.mark.parametrize("port", [6081, 4789, 8472])
@pytest.mark.parametrize("family", [4, 6])
def test_a_probe_to_a_tunnels_port_is_a_plain_probe_and_only_once(port, family):
    """Also where its first octets make a sound tunnel header: seq 0x6558 for Geneve, 0x08000000 for VXLAN."""
    for protocol in (Protocol.UDP, Protocol.RAW_UDP):
        session = make_session(protocol, family, dst_port=port, count=1 << 31, extra=200)
        frames = [probe(session, seq) for seq in (0, 0x6558, 0x0800_0000)]
        decoded = decode([session], frames)
        assert [row[2] for row in rows(decoded)] == [0, 0x6558, 0x0800_0000]
        assert {context.tunnel for context in decoded.contexts} == {Tunnel.NONE}
        assert (decoded.forged, decoded.foreign) == (0, 0)


def test_a_plain_probe_whose_padding_is_another_probe_in_a_tunnel_is_one_probe():
    """Two readings hold; the frame as it stands wins. Its number says: Geneve, 16 words of options, then a frame."""
    session = make_session(session=1, dst_port=6081, count=1 << 31, extra=200)
    seq = 0x1000_6558
    for inner, inside in ((probe(replace(SYN, session=2), 9), [9]), (merged_frame(), [1, 2])):
        frame = bytearray(probe(session, seq))
        frame[42 + 72 : 42 + 72 + len(inner)] = inner
        others = [replace(SYN, session=2), RAW]
        assert decode(others, [bytes(frame)]).seq.tolist() == inside
        decoded = decode([session, *others], [bytes(frame)])
        assert rows(decoded) == [(0, 1, seq, Leg.FORWARD, Kind.PROBE)]
        assert (*counts(decoded), decoded.merged) == (1, 0, 0, 0)


def test_a_forged_plain_probe_to_a_tunnels_port_is_forged():
    session = make_session(Protocol.RAW_UDP, dst_port=4789)
    frame = probe(replace(session, key=bytes(16)), 4)
    assert counts(decode([session], [frame])) == (0, 1, 0)


def test_a_true_probe_inside_outweighs_a_false_claim_outside():
    """Between tunnel ends that are a session's own addresses, on its own ports: the outer datagram proves nothing."""
    ends = make_session(src_ip=OUTER4[0], dst_ip=OUTER4[1], src_port=40_000, dst_port=6081)
    decoded = decode([ends, replace(SYN, session=9)], [in_geneve(probe(replace(SYN, session=9), 4))])
    assert rows(decoded) == [(0, 9, 4, Leg.FORWARD, Kind.PROBE)]
    assert counts(decoded) == (1, 0, 0)


def test_a_forged_probe_inside_is_forged_once():
    forged = probe(replace(STAMP, key=bytes(16)), 4)
    decoded = decode([STAMP], [in_geneve(forged), in_geneve(probe(STAMP, 3)), in_vxlan(forged)])
    assert counts(decoded) == (1, 2, 0)
    assert decoded.forged_index.tolist() == [0, 2]
    assert decoded.index.tolist() == [1]


# --- VLAN tags ---

TAGGINGS = [(), (Dot1Q(vlan=5),), (Dot1AD(vlan=6), Dot1Q(vlan=7)), (Dot1Q(vlan=0, prio=5), Dot1Q(vlan=4095))]


def tagged(frame, layers):
    """Scapy's own stack of tags in front of a frame's network layer."""
    packet = Ether(frame)
    rest = packet.payload
    out = Ether(src=packet.src, dst=packet.dst)
    for layer in layers:
        out = out / layer.copy()
    return bytes(out / rest)


@pytest.mark.parametrize("layers", TAGGINGS)
@pytest.mark.parametrize("wrap", [None, in_geneve, in_vxlan])
def test_vlans_are_those_of_the_outermost_header(wrap, layers):
    frame = probe(STAMP, 5)
    if wrap:
        frame = wrap(with_tags(frame, (0x88A8, 100), (0x8100, 200)))
    decoded = decode([STAMP], [tagged(frame, layers)])
    assert len(decoded) == 1
    assert only_context(decoded).vlans == tuple(layer.vlan for layer in layers)


@pytest.mark.parametrize("inner", TAGGINGS)
@pytest.mark.parametrize("outer", TAGGINGS)
def test_tags_inside_and_outside_a_tunnel_are_skipped(outer, inner):
    decoded = decode([SYN], [tagged(in_geneve(tagged(probe(SYN, 5), inner)), outer)])
    assert rows(decoded) == [(0, SYN.session, 5, Leg.FORWARD, Kind.PROBE)]


def test_a_third_tag_inside_is_foreign():
    assert counts(decode([SYN], [in_geneve(with_tags(probe(SYN, 5), *[(0x8100, 1)] * 3))])) == (0, 0, 1)


def test_a_tag_that_the_kernel_took_off_stands_in_front():
    frames = [probe(STAMP, 1), with_tags(probe(STAMP, 2), (0x8100, 9)), in_geneve(probe(STAMP, 3)), probe(STAMP, 4)]
    frames.append(with_tags(in_vxlan(probe(STAMP, 5)), (0x88A8, 8), (0x8100, 9)))
    vlan = np.array([5, 6, 0, -1, 0xE000 | 4095])  # the last one with a priority, as the kernel has it
    decoded = Decoder([STAMP]).decode(*block(frames), vlan)
    assert [decoded.contexts[i].vlans for i in decoded.context] == [(5,), (6, 9), (0,), (), (4095, 8, 9)]


# --- contexts ---


def test_no_probe_no_context():
    decoded = decode([STAMP], [in_geneve(b""), b""])
    assert decoded.contexts == ()
    assert decoded.context.shape == (0,)
    assert decode([STAMP], []).contexts == ()


def test_each_distinct_context_stands_once_and_every_probe_has_its_own():
    v6 = make_session(family=6, session=6)
    frames, wanted = [], []
    back = (OWN[1], OWN[0])
    for _ in range(3):
        for session, addresses in ((STAMP, OWN), (v6, (ip_address("fd00::1"), ip_address("fd00::2")))):
            plain = probe(session, 1)
            frames += [plain, with_tags(plain, (0x8100, 3)), in_geneve(plain), in_geneve(plain, vni=8)]
            wanted += [HopContext(*addresses), HopContext(*addresses, (3,))]
            wanted += [HopContext(*addresses, (), Tunnel.GENEVE, vni, *OUTER4) for vni in (7, 8)]
            frames += [in_vxlan(plain), in_vxlan(plain, family=6)]
            wanted += [HopContext(*addresses, (), Tunnel.VXLAN, 7, *outer) for outer in (OUTER4, OUTER6)]
        frames.append(icmp_error(probe(STAMP, 1), src="192.0.2.1"))
        wanted.append(HopContext(ip_address("192.0.2.1"), OWN[0]))
        frames.append(in_geneve(stamp_reply(probe(STAMP, 1), t2=1, t3=1, reflector_seq=1)))
        wanted.append(HopContext(*back, (), Tunnel.GENEVE, 7, *OUTER4))
    decoded = decode([STAMP, v6], frames)
    assert [decoded.contexts[i] for i in decoded.context] == wanted
    assert len(decoded.contexts) == len(set(decoded.contexts)) == len(set(wanted))


def merged_frame():
    payload = b"".join(bytes(Ether(probe(RAW, seq))[UDP].payload) for seq in (1, 2))
    return bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=61000, dport=9000) / Raw(payload))


def test_the_parts_of_a_merged_frame_share_a_context_and_it_counts_once():
    merged = merged_frame()
    decoded = decode([RAW], [in_geneve(merged), in_vxlan(merged), in_geneve(probe(RAW, 3))])
    assert decoded.index.tolist() == [0, 0, 1, 1, 2]
    assert decoded.seq.tolist() == [1, 2, 1, 2, 3]
    assert decoded.merged == 2
    assert [decoded.contexts[i].tunnel for i in decoded.context] == [Tunnel.GENEVE] * 2 + [Tunnel.VXLAN] * 2 + [
        Tunnel.GENEVE
    ]


def test_rows_that_happen_to_have_one_word_are_still_told_apart():
    """The word of a row is a sum of products: with a factor and its opposite two rows have the same one."""
    a, b = int(_FACTORS[0]), int(_FACTORS[1])
    one, other = [b, 5], [0, (5 + a) % 2**64]
    table = np.array([one, other, one], np.uint64)
    assert len(set((table @ _FACTORS[:2]).tolist())) == 1
    which, distinct = _distinct(table)
    assert distinct[which].tolist() == table.tolist()
    assert len(distinct) == 2


def test_scapys_own_layers_read_the_wraps():
    """The oracle parses what the helpers built: headers stand where they should."""
    assert Ether(in_geneve(probe(SYN, 1)))[GENEVE].vni == 7
    assert Ether(in_vxlan(probe(SYN, 1), family=6))[VXLAN].vni == 7
    assert IPv6 in Ether(in_vxlan(probe(SYN, 1), family=6))
