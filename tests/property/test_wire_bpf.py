"""Laws of the in-kernel filter, by an interpreter: every probe and answer passes, unmarked frames do not."""

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.wire_frames import ALL, all_sessions, answers, make_session, probe, stamp_reply, tenant, with_tags

from netprobe.model.probes import Protocol
from netprobe.wire import mark
from netprobe.wire.bpf import MAX_INSTRUCTIONS, probe_filter

# Without a class mark, so that every other way to pass is tested; other frames of the same addresses are tenants'.
# Addresses are given, or scapy would resolve them, on the wire.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
SESSIONS = all_sessions(dscp=None)
FILTER = probe_filter(SESSIONS, snap_bytes=0x1234)
MARKED = all_sessions(dscp=3)
TAGS = [(), ((0x8100, 5),), ((0x88A8, 6), (0x8100, 7))]
FRAMES = [(s, probe(s, 42)) for s in SESSIONS] + [(s, f) for s in SESSIONS for f in answers(s, 42).values()]


def test_every_probe_and_every_answer_passes_behind_tags_too():
    for _, frame in FRAMES:
        for tags in TAGS:
            assert run(FILTER, with_tags(frame, *tags)) == 0x1234


@pytest.mark.parametrize("which", range(len(ALL)))
def test_a_filter_for_one_session_passes_that_one(which):
    session = SESSIONS[which]
    program = probe_filter([session])
    for frame in (probe(session, 7), *answers(session, 7).values()):
        assert run(program, frame) == 0x40000


def test_a_reply_that_lost_our_tlv_passes():
    for family in (4, 6):
        session = make_session(family=family, dscp=None)
        reply = stamp_reply(probe(session, 1), t2=1, t3=1, reflector_seq=1, keep_tlvs=False)
        assert run(probe_filter([session]), reply)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(data=st.data(), family=st.sampled_from([4, 6]), tags=st.sampled_from(TAGS))
def test_tenants_between_the_same_hosts_on_other_ports_never_pass(data, family, tags):
    frame = bytes(tenant(data, family))
    assert run(FILTER, with_tags(frame, *tags)) == 0


def test_a_tenants_segments_on_a_probes_tuple_pass_only_if_they_could_be_an_answer():
    syn = SESSIONS[ALL.index((Protocol.TCP, 4))]
    for flags, passes in (
        ("S", True),
        ("SA", True),
        ("RA", True),
        ("R", True),
        ("A", False),
        ("PA", False),
        ("FA", False),
    ):
        frame = ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=syn.src_ports[3], dport=443, flags=flags)
        assert bool(run(FILTER, bytes(frame))) == passes
    other = ETHER / IP(src="10.0.0.1", dst="10.0.0.3") / TCP(sport=syn.src_ports[3], dport=443)
    assert run(FILTER, bytes(other)) == 0


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_end_with_a_verdict_and_never_pass_by_chance(data):
    assert run(FILTER, data) == 0


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.sampled_from(range(len(FRAMES))), st.data())
def test_mutated_and_truncated_frames_end_with_a_verdict(which, data):
    octets = bytearray(FRAMES[which][1])
    for _ in range(data.draw(st.integers(0, 5))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    assert run(FILTER, bytes(octets[: data.draw(st.integers(0, len(octets)))])) in (0, 0x1234)


@pytest.mark.parametrize("family", [4, 6])
def test_the_class_mark_alone_passes_nothing(family):
    """Marked frames on no tuple of a session, between its addresses or others: a guest could send any number."""
    ours = ("10.0.0.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00::2")
    others = ("192.0.2.1", "192.0.2.2") if family == 4 else ("2001:db8::1", "2001:db8::2")
    for src, dst in (ours, others):
        for payload in (b"", mark.MAGIC_WORD.to_bytes(4, "big") + bytes(60)):
            ip = IP(src=src, dst=dst, tos=3 << 2) if family == 4 else IPv6(src=src, dst=dst, tc=3 << 2)
            assert not run(probe_filter(MARKED), bytes(ETHER / ip / UDP(sport=1, dport=2) / Raw(payload)))


def test_later_fragments_pass_with_the_class_mark_between_a_sessions_addresses():
    """They have no ports: the mark is all that there is."""
    for src, tos, passes in (("10.0.0.1", 3 << 2, True), ("10.0.0.1", 0, False), ("192.0.2.1", 3 << 2, False)):
        frame = bytes(ETHER / IP(src=src, dst="10.0.0.2", tos=tos, frag=100, proto=17) / Raw(bytes(64)))
        assert bool(run(probe_filter(MARKED), frame)) == passes
        assert not run(FILTER, frame)


def test_errors_pass_toward_a_sessions_source_only():
    for src, dst, passes in (("192.0.2.1", "10.0.0.1", True), ("192.0.2.1", "10.0.0.2", False)):
        frame = ETHER / IP(src=src, dst=dst) / ICMP(type=3, code=1) / Raw(bytes(40))
        assert bool(run(FILTER, bytes(frame))) == passes
    for dst, passes in (("fd00::1", True), ("fd00::2", False)):
        frame = ETHER / IPv6(src="2001:db8::1", dst=dst) / ICMPv6DestUnreach() / Raw(bytes(60))
        assert bool(run(FILTER, bytes(frame))) == passes


def test_no_sessions_pass_nothing():
    program = probe_filter([])
    assert not run(program, probe(SESSIONS[0], 1))
    assert not run(program, probe(SESSIONS[ALL.index((Protocol.TCP, 4))], 1))
    assert len(program) // 8 < 230
    assert len(probe_filter([], tunnels=False)) // 8 < 130


def many(n, **changes):
    rng = random.Random(5)
    sessions = []
    for i in range(n):
        protocol, family = ALL[i % len(ALL)]
        base = make_session(protocol, family, session=i, dscp=None, count=3, **changes)
        address = ip_address(rng.randrange(2**24) + (0x0B000000 if family == 4 else 0xFD << 120))
        type_p = replace(base.type_p, dst_port=rng.randrange(1, 50000), src_port=61000 + i)
        ports = tuple(61000 + i + k for k in range(3)) if base.src_ports else ()
        sessions.append(replace(base, src_ip=address, type_p=type_p, src_ports=ports))
    return sessions


@pytest.mark.parametrize("n", [1, 50, 150, 400, 3000])
def test_any_number_of_sessions_fits_and_passes(n):
    """With few, by addresses; with more, by ports; with very many, by one range of ports."""
    sessions = many(n)
    program = probe_filter(sessions)
    assert len(program) // 8 <= MAX_INSTRUCTIONS
    for session in sessions[:: max(1, n // 16)]:
        for frame in (probe(session, 2), *answers(session, 2).values()):
            assert run(program, frame)


def test_sessions_that_share_their_tuples_cost_nothing_more():
    session = SESSIONS[ALL.index((Protocol.TCP, 6))]
    assert len(probe_filter([session])) == len(probe_filter([replace(session, session=i) for i in range(500)]))
