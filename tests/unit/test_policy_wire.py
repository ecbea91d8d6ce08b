"""Frames of a verify run against scapy as an independent oracle, golden octets, and what is taken for a refusal."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, in4_chksum
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrFragment,
    in6_chksum,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck, crc32c
from scapy.packet import Raw
from scapy.utils import checksum
from support.policy_wire import (
    MACS,
    MARK,
    NAMES,
    NUMBERS,
    OTHER,
    PACKETS,
    PORTS,
    all_sent,
    decode,
    frame,
    packet,
    rows,
    table,
)
from support.wire_frames import with_tags

from netprobe.errors import UsageError
from netprobe.model.packets import ACK, FIN, SYN, ConnState, Fragment, Kind
from netprobe.wire import mark as wire_mark
from netprobe.wire.decode_headers import vlan_ids
from netprobe.wire.policy_decode import PolicyKind
from netprobe.wire.policy_frames import TcpNumbers, encode_packet, identity, sequence_bytes, syn_number

IP_NAMES = [name for name in NAMES if PACKETS[name].kind is not Kind.ARP]
FIRST_NAMES = [name for name in NAMES if PACKETS[name].fragment is Fragment.FIRST]


def ip_payload(data, family):
    """Protocol and octets after the IP header (and IPv6's fragment header)."""
    if family == 4:
        return data[23], data[34:]
    return (data[54], data[62:]) if data[20] == 44 else (data[20], data[54:])


def assert_transport_checksum(one, protocol, payload):
    """Recomputed by scapy over the whole payload: a checksum over itself is 0."""
    family = one.family
    if protocol == 132:
        zeroed = payload[:8] + bytes(4) + payload[12:]
        assert payload[8:12] == struct.pack("!I", int(crc32c(zeroed)))
    elif protocol == 1 and family == 4:
        assert checksum(payload) == 0
    elif protocol in (6, 17, 33, 136) or (protocol == 58 and family == 6):
        if family == 4:
            assert in4_chksum(protocol, IP(src=str(one.src_ip), dst=str(one.dst_ip)), payload) == 0
        else:
            assert in6_chksum(protocol, IPv6(src=str(one.src_ip), dst=str(one.dst_ip)), payload) == 0


@pytest.mark.parametrize("name", IP_NAMES)
def test_scapy_reads_the_headers_that_were_asked_for(name):
    one, data = PACKETS[name], frame(name, 5)
    seen = Ether(data)
    assert (seen.src, seen.dst) == (one.src_mac, one.dst_mac)
    if one.family == 4:
        ip = seen[IP]
        assert checksum(data[14:34]) == 0
        assert (ip.src, ip.dst, ip.tos, ip.len) == (str(one.src_ip), str(one.dst_ip), 12, len(data) - 14)
        assert ip.ttl == 64
        if one.fragment is Fragment.NONE:
            assert (ip.id, str(ip.flags), ip.frag) == (0x4321, "DF", 0)
        else:
            assert ip.id not in (0, 0x4321)
            assert (one.fragment is Fragment.FIRST) == ip.flags.MF
            assert ip.frag == (0 if one.fragment is Fragment.FIRST else 154)
    else:
        ip = seen[IPv6]
        assert (ip.src, ip.dst, ip.tc, ip.fl) == (str(one.src_ip), str(one.dst_ip), 12, 0x54321)
        assert (ip.plen, ip.hlim) == (len(data) - 54, 255 if one.icmp_type in range(133, 138) else 64)
        if one.fragment is not Fragment.NONE:
            assert ip[IPv6ExtHdrFragment].m == (one.fragment is Fragment.FIRST)
            assert ip[IPv6ExtHdrFragment].offset == (0 if one.fragment is Fragment.FIRST else 154)
    protocol, payload = ip_payload(data, one.family)
    assert protocol == one.protocol
    if one.fragment is Fragment.NONE:
        assert_transport_checksum(one, protocol, payload)


@pytest.mark.parametrize("name", FIRST_NAMES)
def test_two_fragments_make_a_datagram_whose_checksum_holds_though_neither_knew_the_other(name):
    """And both have one identification, and so much in the first one that nobody takes it for an attack."""
    later = replace(PACKETS[name], fragment=Fragment.LATER)
    for seq in (9, 70_000, 2**32 - 1):
        first, rest = frame(name, 8), encode_packet(later, MARK, seq, datagram=8)
        protocol, head = ip_payload(first, later.family)
        assert len(head) == 1232
        assert len(rest) <= len(first)
        assert_transport_checksum(later, protocol, head + ip_payload(rest, later.family)[1])
        number = slice(18, 20) if later.family == 4 else slice(58, 62)
        assert first[number] == rest[number]
        assert first[number] != frame(name, 9)[number]


@pytest.mark.parametrize("secret", [1, 0x4321, 65535])
def test_no_two_datagrams_in_fragments_share_an_identification_and_none_has_the_secret_one(secret):
    mark = replace(MARK, ip_id=secret)
    numbers = {mark.fragment_id(datagram) for datagram in range(1000, 1000 + 65534)}
    assert numbers == set(range(1, 65536)) - {secret}


def test_nothing_can_be_added_to_a_table():
    sent = table(frame("arp reply", 0))
    sent.append([])
    assert len(sent) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_segments_have_the_numbers_that_they_are_given_and_a_syn_its_mark(family):
    for flags in (SYN, SYN | ACK, ACK, FIN | ACK):
        seen = Ether(frame(f"ipv{family} tcp flags {flags:#x}", 7))[TCP]
        assert seen.seq == (syn_number(MARK, 7) if flags & SYN else NUMBERS.seq)
        assert seen.ack == (NUMBERS.ack if flags & ACK else 0)
        assert bytes(seen.payload) == (b"" if flags & SYN else identity(MARK, 7))
        assert int(seen.flags) == flags | (0x08 if not flags & SYN else 0)
        assert (seen.sport, seen.dport) == (61234, 443)


def test_a_syn_on_two_ports_of_tenants_carries_the_identity():
    assert bytes(Ether(frame("ipv4 tcp syn elsewhere", 7))[TCP].payload) == identity(MARK, 7)


def test_what_a_segment_takes_of_the_sequence_space():
    flags = {SYN: 1, ACK: 20, FIN | ACK: 21}
    assert {f: sequence_bytes(packet(4, 6, tcp_flags=f, **PORTS)) for f in flags} == flags


def test_sctp_chunks_fit_the_state_and_verify_each_other():
    frames = {
        state: Ether(encode_packet(packet(4, 132, **PORTS), MARK, 7, state=state))[SCTP]
        for state in (ConnState.NEW, ConnState.REPLY, ConnState.ESTABLISHED)
    }
    init, answer, echo = frames.values()
    assert (init.tag, init[SCTPChunkInit].init_tag) == (0, MARK.session)
    assert (answer.tag, answer[SCTPChunkInitAck].init_tag) == (MARK.session, MARK.session)
    assert (init[SCTPChunkInit].len, answer[SCTPChunkInitAck].len) == (44, 44)
    assert (echo.tag, bytes(echo.payload)[0]) == (MARK.session, 10)
    assert [bytes(chunk)[36:56] for chunk in frames.values()] == [identity(MARK, 7)] * 3


def test_dccp_packets_fit_the_state():
    for state, kind in ((ConnState.NEW, 0), (ConnState.REPLY, 1), (ConnState.ESTABLISHED, 4)):
        data = encode_packet(packet(4, 33, **PORTS), MARK, 7, state=state)[34:]
        assert (data[4], data[8]) == (7, kind << 1 | 1)
        assert data[28:] == identity(MARK, 7)


def test_echoes_have_identifier_and_number():
    echo = Ether(frame("ipv4 icmp 8", 0x12345))[ICMP]
    assert (echo.id, echo.seq, bytes(echo.payload)) == (0x77, 0x2345, identity(MARK, 0x12345))
    echo = Ether(encode_packet(packet(6, 58, icmp_type=128), MARK, 0x12345, ident=0x77))[ICMPv6EchoRequest]
    assert (echo.id, echo.seq, bytes(echo.data)) == (0x77, 0x2345, identity(MARK, 0x12345))


@pytest.mark.parametrize("family", [4, 6])
def test_an_error_quotes_the_frame_that_was_sent(family):
    for name in ("tcp flags 0x2", "protocol 17", "protocol 47"):
        one = PACKETS[f"ipv{family} error about {name}"]
        sent = encode_packet(one.quoted, MARK, 3, tcp=NUMBERS)
        error = encode_packet(one, MARK, 4, tcp=NUMBERS, quoted_seq=3)
        head = 14 + (20 if family == 4 else 40) + 8
        assert error[head:] == sent[14:] + identity(MARK, 4)


def test_arp_and_discovery_as_scapy_reads_them():
    arp = Ether(frame("arp reply", 7))[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (2, MACS[0], "10.0.0.1", MACS[1], "10.0.0.2")
    assert bytes(arp.payload) == identity(MARK, 7)
    arp = Ether(frame("arp request", 7))[ARP]
    assert (arp.op, arp.hwdst) == (1, "00:00:00:00:00:00")
    kinds = {133: ICMPv6ND_RS, 134: ICMPv6ND_RA, 135: ICMPv6ND_NS, 136: ICMPv6ND_NA}
    for kind, layer in kinds.items():
        seen = Ether(frame(f"nd {kind} {MACS[0]}", 7))
        assert seen[IPv6].hlim == 255
        assert layer in seen
        if kind > 134:
            assert seen[layer].tgt == "fd00::1"
        link = seen[ICMPv6NDOptDstLLAddr if kind == 136 else ICMPv6NDOptSrcLLAddr]
        assert link.lladdr == MACS[0]
        nonce = seen[ICMPv6NDOptUnknown]
        assert (nonce.type, nonce.len, bytes(nonce.data)[:20]) == (14, 3, identity(MARK, 7))
        assert ICMPv6NDOptSrcLLAddr not in Ether(frame(f"nd {kind} ", 7))
    assert Ether(frame(f"nd 134 {MACS[0]}", 7))[ICMPv6ND_RA].routerlifetime == 0


def test_golden_octets():
    ethernet = "020000000002020000000001"
    syn = ethernet + "0800450c0028432140004006e3a00a0000010a000002"
    assert frame("ipv4 tcp flags 0x2", 0).hex() == syn + "ef3201bb21b591bf000000005002faf0fc8c0000"
    udp = ethernet + "86dd60c54321001c1140fd000000000000000000000000000001fd000000000000000000000000000002"
    block = "6e7072621234567800000001718b0ca6e91d2d1c"
    assert frame("ipv6 protocol 17", 1).hex() == udp + "ef3201bb001c36d8" + block
    assert identity(MARK, 70_000) == wire_mark.encode_identity(MARK.key, MARK.session, 70_000)


def test_what_has_no_frame_is_refused():
    with pytest.raises(UsageError, match="protocol 43 is an IPv6 extension header"):
        encode_packet(packet(6, 43), MARK, 0)
    error = replace(PACKETS["ipv4 error about protocol 17"], fragment=Fragment.FIRST)
    with pytest.raises(UsageError, match="allowed: whole packets"):
        encode_packet(error, MARK, 0)
    quoted = replace(packet(4, 17, **PORTS), fragment=Fragment.FIRST)
    with pytest.raises(UsageError, match="about a fragment"):
        encode_packet(packet(4, 1, icmp_type=3, quoted=quoted), MARK, 0)
    with pytest.raises(AssertionError, match="open source port"):
        encode_packet(packet(4, 17, src_port=None, dst_port=1), MARK, 0)


def test_every_frame_decodes_to_its_number_also_behind_vlan_tags():
    frames, sent = all_sent()
    wanted = [(i, i, PolicyKind.ARRIVED) for i in range(len(frames))]
    decoded = decode(sent, *frames)
    assert rows(decoded) == wanted
    assert (decoded.forged, decoded.foreign) == (0, 0)
    tagged = [with_tags(data, (0x88A8, 7), (0x8100, 8)) for data in frames]
    assert rows(decode(sent, *tagged)) == wanted
    decoded = decode(sent, frames[0], with_tags(frames[1], (0x8100, 8)), vlan=[-1, 5])
    assert [vlan_ids(int(tags)) for tags in decoded.tags] == [(), (5, 8)]


def test_a_table_grows_while_it_is_used():
    frames, _ = all_sent()
    sent = table(*frames[:10])
    decoded = decode(sent, *frames)
    assert len(decoded) == 10
    assert decoded.forged > 0  # valid tags of what was not sent yet
    sent.append(frames[10:])
    assert len(decode(sent, *frames)) == len(frames)


def test_frames_of_another_run_are_forged_and_unmarked_ones_foreign():
    frames, sent = all_sent()
    others = [frame(name, seq, mark=OTHER) for seq, name in enumerate(NAMES)]
    decoded = decode(sent, *others)
    assert (len(decoded), decoded.foreign) == (0, 0)
    decoded = decode(table(), *frames)
    bare = sum(bool(p.tcp_flags & SYN) and p.fragment is Fragment.NONE and "else" not in n for n, p in PACKETS.items())
    assert (len(decoded), decoded.foreign) == (0, bare)


def test_an_identity_proves_nothing_at_other_addresses_or_ports():
    frames, sent = all_sent()
    for name, at in (("ipv4 protocol 17", 29), ("ipv4 protocol 17", 34), ("ipv6 icmp 128", 55), ("arp reply", 31)):
        data = bytearray(frames[NAMES.index(name)])
        data[at] ^= 1
        decoded = decode(sent, bytes(data))
        assert (len(decoded), decoded.forged) == (0, 1), name


def answer(data):
    """Ethernet and IP of an answer, by scapy."""
    seen = Ether(data)
    if IPv6 in seen:
        return Ether(src=seen.dst, dst=seen.src) / IPv6(src=seen[IPv6].dst, dst=seen[IPv6].src)
    return Ether(src=seen.dst, dst=seen.src) / IP(src=seen[IP].dst, dst=seen[IP].src)


def reset(data, *, seq, ack, flags, port=None):
    tcp = Ether(data)[TCP]
    return bytes(answer(data) / TCP(sport=tcp.dport, dport=port or tcp.sport, seq=seq, ack=ack, flags=flags))


@pytest.mark.parametrize("family", [4, 6])
def test_a_reset_refuses_the_segment_whose_numbers_it_has(family):
    """A SYN by what it acknowledges, an ACK by the number that it takes; a wrong one is a tenant's."""
    ack_numbers = TcpNumbers(syn_number(MARK, 0) + 1, 5000)
    syn, ack = f"ipv{family} tcp flags 0x2", f"ipv{family} tcp flags 0x10"
    frames = [frame(syn, 0), frame(ack, 1, tcp=ack_numbers)]
    sent = table(*frames)
    right = [
        reset(frames[0], seq=0, ack=syn_number(MARK, 0) + 1, flags="RA"),
        reset(frames[1], seq=5000, ack=0, flags="R"),
    ]
    assert rows(decode(sent, *right)) == [(0, 0, PolicyKind.REJECTED), (1, 1, PolicyKind.REJECTED)]
    wrong = [
        reset(frames[0], seq=0, ack=syn_number(MARK, 0) + 9, flags="RA"),
        reset(frames[1], seq=5001, ack=0, flags="R"),
        reset(frames[0], seq=0, ack=syn_number(MARK, 0) + 1, flags="RA", port=61235),
    ]
    decoded = decode(sent, *wrong)
    assert (len(decoded), decoded.forged, decoded.foreign) == (0, 0, 3)


def test_a_reset_that_acknowledges_the_payload_or_one_octet_refuses_a_segment():
    data = frame("ipv4 tcp flags 0x0", 0)
    sent = table(data)
    for used in (20, 1):
        assert rows(decode(sent, reset(data, seq=0, ack=NUMBERS.seq + used, flags="RA"))) == [(0, 0, 1)]


def unreachable(data, octets=None, code=None):
    seen = Ether(data)
    if IPv6 in seen:
        return bytes(answer(data) / ICMPv6DestUnreach(code=1) / Raw(bytes(seen[IPv6])[:octets]))
    return bytes(answer(data) / ICMP(type=3, code=13 if code is None else code) / Raw(bytes(seen[IP])[:octets]))


def quotable():
    """What can be refused with an ICMP error: all but ICMP errors and ARP."""
    return [n for n in IP_NAMES if decode_name(n)]


def decode_name(name):
    one = PACKETS[name]
    is_icmp = one.is_icmp and one.protocol == (1 if one.family == 4 else 58)
    is_error = one.icmp_type in (3, 5, 11, 12) if one.family == 4 else one.icmp_type < 128
    return not (is_icmp and is_error and one.fragment is not Fragment.LATER)


def test_an_unreachable_refuses_what_it_quotes_and_says_nothing_else():
    frames, sent = all_sent()
    for name in quotable():
        seq = NAMES.index(name)
        decoded = decode(sent, unreachable(frames[seq]))
        assert rows(decoded) == [(0, seq, PolicyKind.REJECTED)], name
        assert decoded.forged == 0


@pytest.mark.parametrize("family", [4, 6])
def test_eight_octets_of_a_quote_name_the_last_that_was_sent_there(family):
    names = [f"ipv{family} {name}" for name in ("tcp flags 0x2", "protocol 17", "icmp 8", "protocol 47")]
    names = [name.replace("icmp 8", "icmp 128") if family == 6 else name for name in names]
    frames = [frame(names[i % 4], i) for i in range(12)]
    sent = table(*frames)
    head = 20 if family == 4 else 40
    seen = [rows(decode(sent, unreachable(data, head + 8)))[0][1] for data in frames]
    assert seen == [0, 9, 2, 11, 4, 9, 6, 11, 8, 9, 10, 11]  # SYN and echo have a number, UDP and GRE do not


def test_no_other_error_is_a_refusal():
    frames, sent = all_sent()
    data = frames[NAMES.index("ipv4 protocol 17")]
    too_big = unreachable(data, code=4)
    syn = frames[NAMES.index("ipv4 tcp flags 0x2")]
    decoded = decode(sent, too_big, unreachable(data, 20 + 3), unreachable(syn, 20 + 7), unreachable(data, 12))
    assert (len(decoded), decoded.forged, decoded.foreign) == (0, 0, 4)
    elsewhere = Ether(unreachable(data))
    elsewhere[IP].dst = "10.0.0.9"
    del elsewhere[IP].chksum
    assert len(decode(sent, bytes(elsewhere))) == 0


def test_a_spoiled_error_of_ours_is_no_refusal_of_what_it_quotes():
    """Nor is one whose quote was spoiled."""
    data = bytearray(frame("ipv4 error about protocol 17", 1))
    one = PACKETS["ipv4 error about protocol 17"].quoted
    sent = table(encode_packet(one, MARK, 0), bytes(data))
    assert rows(decode(sent, bytes(data))) == [(0, 1, PolicyKind.ARRIVED)]
    data[-1] ^= 1
    decoded = decode(sent, bytes(data))
    assert (len(decoded), decoded.forged) == (0, 1)
    quote = bytearray(unreachable(encode_packet(one, MARK, 0)))
    quote[-1] ^= 1
    assert len(decode(sent, bytes(quote))) == 0


def test_a_block_without_frames_is_empty():
    decoded = decode(table())
    assert (len(decoded), decoded.forged, decoded.foreign) == (0, 0, 0)
    assert decoded.seq.dtype == np.uint32
