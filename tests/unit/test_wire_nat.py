"""Probes behind NAT: which addresses and ports a router may have changed, and what stays forged or foreign."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.wire_frames import (
    ALL,
    answers,
    decode,
    echo_reply,
    icmp_error,
    in_geneve,
    make_session,
    probe,
    rows,
    stamp_reply,
    tcp_answer,
    translated,
)

from netprobe.errors import UsageError
from netprobe.model.contexts import HopContext
from netprobe.model.points import Leg
from netprobe.model.probes import Flow, Protocol, Translation
from netprobe.wire.bpf import probe_filter
from netprobe.wire.decode import Decoder, Kind

# Addresses are given, or scapy would resolve them, on the wire.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OUTSIDE = {4: ("203.0.113.1", "203.0.113.2"), 6: ("2001:db8::1", "2001:db8::2")}
TCP_ANSWERS = ("SA", "RA")


def counts(decoded):
    return len(decoded), decoded.forged, decoded.foreign


def snat(protocol=Protocol.UDP, family=4, **changes):
    """A session whose source a router replaces, and that session as it is on the far side."""
    session = make_session(protocol, family, dscp=None, **changes)
    return translated(session, src=OUTSIDE[family][0])


def with_ports(frame, src=None, dst=None):
    """The frame with other ports; transport checksums don't matter here."""
    frame = bytearray(frame)
    l4 = 34 if frame[12:14] == b"\x08\x00" else 54
    for at, port in ((l4, src), (l4 + 2, dst)):
        if port is not None:
            frame[at : at + 2] = port.to_bytes(2, "big")
    return bytes(frame)


# --- addresses ---


@pytest.mark.parametrize(("protocol", "family"), ALL)
@pytest.mark.parametrize("which", ["snat", "dnat", "both"])
def test_probes_and_answers_are_known_under_both_address_pairs(protocol, family, which):
    """On either side of the router, in a tunnel or not, and the filter passes them; the context tells which."""
    outside = OUTSIDE[family]
    known, far = translated(
        make_session(protocol, family, dscp=None),
        src=outside[0] if which != "dnat" else None,
        dst=outside[1] if which != "snat" else None,
    )
    program = probe_filter([known])
    for side in (known, far):
        frames = [probe(side, 9), *answers(side, 9).values()]
        decoded = decode([known], frames)
        assert rows(decoded) == rows(decode([replace(side, translations=())], frames))
        assert counts(decoded) == (len(frames), 0, 0)
        there = HopContext(side.src_ip, side.dst_ip)
        back = HopContext(side.dst_ip, side.src_ip)
        wanted = [there if leg == Leg.FORWARD else back for leg in decoded.leg]
        assert [decoded.contexts[i] for i in decoded.context] == wanted
        assert len(decode([known], [in_geneve(frame) for frame in frames])) == len(frames)
        for frame in frames:
            assert run(program, frame)
            assert run(program, in_geneve(frame))


@pytest.mark.parametrize(("protocol", "family"), ALL)
def test_several_translations_and_sessions_with_none_live_side_by_side(protocol, family):
    known, first = translated(make_session(protocol, family, session=1), src=OUTSIDE[family][0])
    known, second = translated(known, *OUTSIDE[family])
    plain = make_session(protocol, family, session=2, flow=Flow.SAME, src_port=50000)
    decoded = decode([plain, known], [probe(side, 3) for side in (known, first, second, plain)])
    assert [row[1:3] for row in rows(decoded)] == [(1, 3)] * 3 + [(2, 3)]


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.RAW_UDP, Protocol.ICMP])
def test_other_addresses_and_mixed_pairs_stay_forged(protocol):
    """Translations are pairs: the source of one with the destination of another is none."""
    own = make_session(protocol)
    known, _ = translated(own, *OUTSIDE[4])
    elsewhere = [replace(own, src_ip=ip_address("203.0.113.1")), replace(own, dst_ip=ip_address("203.0.113.2"))]
    assert counts(decode([known], [probe(session, 1) for session in elsewhere])) == (0, 2, 0)


def test_a_probe_turned_round_is_no_answer():
    known, far = snat(Protocol.RAW_UDP)
    back = replace(far, src_ip=far.dst_ip, dst_ip=far.src_ip)
    assert counts(decode([known], [probe(back, 1)])) == (0, 1, 0)


def test_an_error_goes_to_the_source_under_either_address():
    known, far = snat()
    for side in (known, far):
        assert rows(decode([known], [icmp_error(probe(side, 1), src="192.0.2.1")])) == [
            (0, known.session, 1, Leg.RETURN, Kind.ICMP_ERROR)
        ]
    error = bytearray(icmp_error(probe(far, 1)))
    error[30:34] = bytes([10, 0, 0, 9])
    assert counts(decode([known], [bytes(error)])) == (0, 1, 0)


def test_the_filter_passes_errors_toward_a_translated_source_only_if_there_is_one():
    known, far = snat()
    error = bytes(ETHER / IP(src="192.0.2.1", dst=str(far.src_ip)) / ICMP(type=11) / Raw(bytes(28)))
    assert run(probe_filter([known]), error)
    assert not run(probe_filter([replace(known, translations=())]), error)


def test_a_translation_that_is_the_sessions_own_pair_changes_nothing():
    session = make_session(Protocol.RAW_UDP)
    same = replace(session, translations=(Translation(session.src_ip, session.dst_ip),))
    moved = with_ports(probe(session, 1), src=50_000)
    assert counts(decode([same], [probe(session, 1), moved])) == (1, 1, 0)


def test_a_translation_of_another_family_is_refused():
    session = replace(make_session(), translations=(Translation(ip_address("fd00::1"), ip_address("fd00::2")),))
    with pytest.raises(UsageError, match=r"fd00::1 -> fd00::2.*IPv4 addresses"):
        Decoder([session])


# --- ports ---


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.RAW_UDP])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("flow", list(Flow))
def test_the_source_port_may_change_where_the_address_did(protocol, family, flow):
    known, far = snat(protocol, family, flow=flow)
    frames = [with_ports(probe(far, 9), src=1024)]
    if protocol is Protocol.UDP:
        frames.append(with_ports(stamp_reply(probe(far, 9), t2=1, t3=1, reflector_seq=1), dst=1024))
    decoded = decode([known], frames)
    assert [row[2:4] for row in rows(decoded)] == [(9, Leg.FORWARD), (9, Leg.RETURN)][: len(frames)]
    assert decoded.weak.tolist() == [False] * len(frames)
    for frame in frames:
        assert run(probe_filter([known]), frame)


def test_an_error_may_quote_the_changed_port():
    known, far = snat()
    quoted = with_ports(probe(far, 9), src=1024)
    assert rows(decode([known], [icmp_error(quoted)])) == [(0, known.session, 9, Leg.RETURN, Kind.ICMP_ERROR)]


def test_the_source_port_may_not_change_between_the_sessions_own_addresses():
    known, _ = snat()
    reply = stamp_reply(probe(known, 9), t2=1, t3=1, reflector_seq=1)
    frames = [with_ports(probe(known, 9), src=1024), with_ports(reply, dst=1024)]
    assert counts(decode([known], frames)) == (0, 2, 0)


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.RAW_UDP])
def test_another_sessions_nat_loosens_nothing(protocol):
    """A session without NAT, or with less of it, beside one that has two translations."""
    much = translated(translated(make_session(protocol, session=1), src="203.0.113.1")[0], src="203.0.113.2")[0]
    none = make_session(protocol, session=2)
    some, far = translated(make_session(protocol, session=3), src="203.0.113.3")
    frames = [with_ports(probe(session, 9), src=1024) for session in (none, some, much)]
    assert counts(decode([much, none, some], frames)) == (0, 3, 0)
    assert len(decode([much, none, some], [with_ports(probe(far, 9), src=1024)])) == 1


def test_the_destination_port_may_never_change():
    known, far = snat()
    reply = stamp_reply(probe(far, 9), t2=1, t3=1, reflector_seq=1)
    frames = [with_ports(probe(far, 9), dst=863), with_ports(reply, src=863)]
    assert counts(decode([known], frames)) == (0, 2, 0)


def test_the_echo_identifier_may_change_where_the_address_did_and_the_sequence_number_may_not():
    known, far = snat(Protocol.ICMP)
    for side, wanted in ((far, (2, 0, 0)), (known, (0, 2, 0))):
        frames = [bytearray(probe(side, 9)), bytearray(echo_reply(probe(side, 9)))]
        for frame in frames:
            frame[38:40] = b"\x12\x34"
        assert counts(decode([known], [bytes(f) for f in frames])) == wanted
    frame = bytearray(probe(far, 9))
    frame[41] ^= 1
    assert counts(decode([known], [bytes(frame)])) == (0, 1, 0)


def test_a_syn_and_a_reply_without_tlv_need_their_own_port_behind_nat_too():
    """32 bits of a sequence number, or a sender's number, are no proof, and others use the address too."""
    known, far = snat(Protocol.TCP)
    syn = probe(far, 9)
    frames = [with_ports(syn, src=1024), *(with_ports(tcp_answer(syn, flags), dst=1024) for flags in TCP_ANSWERS)]
    assert counts(decode([known], frames)) == (0, 0, 3)
    known, far = snat()
    reply = stamp_reply(probe(far, 9), t2=1, t3=1, reflector_seq=1, keep_tlvs=False)
    assert decode([known], [reply]).weak.tolist() == [True]
    assert counts(decode([known], [with_ports(reply, dst=1024)])) == (0, 0, 1)


# --- others behind the same address ---


def test_others_behind_the_same_address_are_foreign_and_not_forged():
    """On the session's own addresses the same frames are forged; behind NAT the tuple may be a tenant's."""
    for protocol, wanted in ((Protocol.TCP, 3), (Protocol.UDP, 2)):
        known, far = snat(protocol)
        for side in (known, far):
            frames = list(strangers(side))
            assert len(frames) == wanted
            is_forged = side is known
            assert counts(decode([known], frames)) == (0, wanted * is_forged, wanted * (not is_forged))


def strangers(session):
    """A tenant's frames on the tuple of a probe: a connection of its own, or datagrams."""
    there = ETHER / IP(src=str(session.src_ip), dst=str(session.dst_ip))
    back = ETHER / IP(src=str(session.dst_ip), dst=str(session.src_ip))
    dst_port = session.type_p.dst_port
    if session.type_p.protocol is Protocol.TCP:
        port = session.src_ports[9]
        yield bytes(there / TCP(sport=port, dport=dst_port, flags="S", seq=12345))
        yield bytes(back / TCP(sport=dst_port, dport=port, flags="SA", seq=1, ack=12346))
        yield bytes(back / TCP(sport=dst_port, dport=port, flags="RA", seq=1, ack=12346))
        return
    yield bytes(there / UDP(sport=61000, dport=dst_port) / Raw(bytes(100)))
    yield bytes(back / UDP(sport=dst_port, dport=61000) / Raw(b"\xff" * 100))


def test_a_forged_identity_behind_nat_is_forged():
    known, far = snat()
    assert counts(decode([known], [probe(replace(far, key=bytes(16)), 9)])) == (0, 1, 0)


def test_ipv6_addresses_that_differ_in_one_half_only_are_told_apart():
    known, far = translated(make_session(Protocol.RAW_UDP, 6), src="fd00:0:0:1::1")
    assert Ether(probe(far, 1))[IPv6].src == "fd00:0:0:1::1"
    near_miss = replace(far, src_ip=ip_address("fd00:0:0:2::1"))
    assert counts(decode([known], [probe(far, 1), probe(near_miss, 1)])) == (1, 1, 0)
