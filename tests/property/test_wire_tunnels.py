"""Laws of what is inside tunnels: a frame inside is judged as it would be alone, by the decoder and by the filter."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.geneve import GeneveOptions
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.wire_frames import (
    all_sessions,
    answers,
    block,
    in_geneve,
    in_vxlan,
    make_session,
    probe,
    rows,
    stamp_reply,
    tenant,
    translated,
    underlay,
    with_tags,
    wraps,
)

from netprobe.model.contexts import Tunnel
from netprobe.model.probes import Protocol
from netprobe.wire.bpf import MAX_INSTRUCTIONS, probe_filter
from netprobe.wire.decode import Decoder

# Addresses are given, or scapy would resolve them, on the wire.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
SESSIONS = all_sessions(dscp=None)
DECODER = Decoder(SESSIONS)
FILTER, SHALLOW = probe_filter(SESSIONS), probe_filter(SESSIONS, tunnels=False)
WRAPS = wraps()
TAGS = [(), ((0x8100, 5),), ((0x88A8, 6), (0x8100, 7))]
FRAMES = [(s, f) for s in SESSIONS for f in (probe(s, 42), *answers(s, 42).values())]
# Sessions that use a tunnel's port themselves, or may get one from NAT: plain frames that look like a tunnel.
ODD = [
    make_session(Protocol.UDP, session=1, dscp=None, dst_port=6081, extra=150, count=2**31),
    make_session(Protocol.UDP, session=2, dscp=None, src_port=4789, extra=150, count=2**31),
    make_session(Protocol.RAW_UDP, 6, session=3, dscp=None, dst_port=8472, extra=150, count=2**31),
    translated(make_session(Protocol.UDP, 6, session=4, dscp=None, extra=150, count=2**31), src="2001:db8::1")[0],
]
ODD_SEQS = (1, 0x6558, 0x0800, 0x0800_0000, 0x0800_6558)


def mutated(frame, rng, most=6):
    """Some octets changed, and maybe cut; most of the time within the headers."""
    octets = bytearray(frame)
    for _ in range(rng.randrange(most)):
        if octets:
            end = len(octets) if rng.random() < 0.4 else min(len(octets), 100)
            octets[rng.randrange(end)] = rng.randrange(256)
    if rng.random() < 0.2:
        del octets[rng.randrange(len(octets) + 1) :]
    return bytes(octets)


def columns(decoded):
    """All that is told of the probes, but the tunnel."""
    told = [
        (*row, int(dscp), int(ttl), bool(weak), int(t1), int(t2), int(t3), int(number))
        for row, dscp, ttl, weak, t1, t2, t3, number in zip(
            rows(decoded),
            decoded.dscp,
            decoded.ttl,
            decoded.weak,
            decoded.t1_ns,
            decoded.t2_ns,
            decoded.t3_ns,
            decoded.reflector_seq,
            strict=True,
        )
    ]
    shown = [decoded.contexts[i] for i in decoded.context]
    counts = (decoded.forged, decoded.forged_index.tolist(), decoded.unknown, decoded.foreign, decoded.merged)
    return told, [(c.src, c.dst) for c in shown], counts


@pytest.mark.parametrize("name", WRAPS)
def test_decoding_agrees_with_decoding_the_inner_frame_alone(name):
    """Sound and mutated frames, forged ones and tenants', behind tags inside and outside."""
    rng = random.Random(name)
    inner = [frame for _, frame in FRAMES]
    inner += [probe(replace(s, key=bytes(16)), 1) for s in SESSIONS]
    inner += [mutated(with_tags(frame, *rng.choice(TAGS)), rng) for frame in inner for _ in range(4)]
    inner += [rng.randbytes(rng.randrange(120)) for _ in range(60)]
    # What is inside a tunnel is not looked into again.
    alone = DECODER.decode(*block(inner), tunnels=False)
    wrapped = DECODER.decode(*block([with_tags(WRAPS[name](frame), *rng.choice(TAGS)) for frame in inner]))
    assert columns(wrapped) == columns(alone)
    assert len(alone) > 30
    assert alone.forged > 8
    assert {context.tunnel.value for context in wrapped.contexts} == {name.split()[0]}


def test_the_filter_gives_a_frame_inside_the_verdict_that_it_would_get_alone():
    rng = random.Random(2)
    for name, wrap in WRAPS.items():
        inner = [frame for _, frame in FRAMES] + [rng.randbytes(rng.randrange(120)) for _ in range(20)]
        inner += [mutated(with_tags(frame, *rng.choice(TAGS)), rng) for frame in inner]
        for frame in inner:
            outside = with_tags(wrap(frame), *rng.choice(TAGS))
            assert run(FILTER, outside) == run(SHALLOW, frame), name


def test_the_filter_gives_a_plain_frame_the_same_verdict_with_and_without_tunnels():
    """Also random octets, and frames to a tunnel's port that have no sound tunnel header."""
    rng = random.Random(3)
    program, shallow = probe_filter(all_sessions(dscp=3)), probe_filter(all_sessions(dscp=3), tunnels=False)
    for _, frame in FRAMES:
        for _ in range(40):
            plain = mutated(with_tags(frame, *rng.choice(TAGS)), rng)
            assert run(program, plain) == run(shallow, plain)
    for header in (b"", bytes(8), b"\x40\x00\x65\x58" + bytes(60), b"\x00\x80\x65\x58" + bytes(60), b"\xf7" * 70):
        for port in (6081, 4789, 8472):
            for tos in (0, 3 << 2):
                frame = underlay(Raw(header), dst_port=port, tos=tos)
                if len(header) == 0 or (header[0] & 8 and port != 6081):
                    continue  # VXLAN needs one flag only
                assert not run(program, frame)
                assert not run(shallow, frame)


def odd_frames(session):
    """Probes and answers of a session on a tunnel's port whose first octets may make a sound tunnel header."""
    sides = [session, *(replace(session, src_ip=t.src_ip, dst_ip=t.dst_ip) for t in session.translations)]
    for seq in ODD_SEQS:
        for side in sides:
            frame = probe(side, seq)
            yield frame
            yield from answers(side, seq).values()
            if session.type_p.protocol is not Protocol.UDP:
                continue
            replies = [
                stamp_reply(frame, t2=1, t3=1, reflector_seq=seq, keep_tlvs=keep_tlvs) for keep_tlvs in (True, False)
            ]
            yield from replies
            if side is not session:
                for port in (6081, 4789, 8472):  # NAT gave the probe a tunnel's port
                    yield replies[0][:56] + port.to_bytes(2, "big") + replies[0][58:]


@pytest.mark.parametrize("session", ODD, ids=["to 6081", "from 4789", "raw to 8472", "nat"])
def test_a_filter_for_one_session_on_a_tunnels_port_passes_all_that_is_its(session):
    frames = list(odd_frames(session))
    program = probe_filter([session])
    decoded = Decoder([session]).decode(*block(frames))
    assert decoded.index.tolist() == list(range(len(frames)))
    assert {context.tunnel for context in decoded.contexts} == {Tunnel.NONE}
    assert all(run(program, frame) for frame in frames)


def test_any_number_of_sessions_on_a_tunnels_port_fits():
    """Of replies without magic, one tunnel port is left where their source ports no longer fit."""
    sessions = [make_session(session=i, dscp=None, src_port=6081, dst_port=1000 + i) for i in range(3000)]
    program = probe_filter(sessions)
    assert len(program) // 8 <= MAX_INSTRUCTIONS
    for session in sessions[::500]:
        reply = stamp_reply(probe(session, 1), t2=1, t3=1, reflector_seq=0x6558, keep_tlvs=False)
        assert len(Decoder([session]).decode(*block([reply]))) == 1
        assert run(program, reply)


@pytest.mark.parametrize("odd", [[], ODD], ids=["", "beside sessions on a tunnel's port"])
def test_ip_packets_in_geneve_without_an_ethernet_header_pass_however_short(odd):
    """A SYN that way is too short to be asked for magic as if it were a plain probe."""
    program, decoder = probe_filter([*SESSIONS, *odd]), Decoder([*SESSIONS, *odd])
    for session, frame in FRAMES:
        proto = 0x0800 if session.type_p.family == 4 else 0x86DD
        for count in (0, 1, 3):
            options = [GeneveOptions(classid=1, type=1, data=bytes(4))] * count
            bare = in_geneve(frame[14:], proto=proto, options=options)
            assert run(program, bare)
            assert len(decoder.decode(*block([bare]))) == 1


def test_whatever_the_decoder_recognises_the_filter_passes():
    """Mutated plain, tagged and tunnelled frames, of ordinary sessions and of those on a tunnel's own port."""
    rng = random.Random(4)
    sessions = [*SESSIONS, *ODD]
    decoder, program = Decoder(sessions), probe_filter(sessions)
    seeds = [frame for _, frame in FRAMES] + [frame for session in ODD for frame in odd_frames(session)]
    everything = [with_tags(f, *tags) for f in seeds for tags in TAGS] + [w(f) for f in seeds for w in WRAPS.values()]
    everything += [mutated(frame, rng) for frame in everything]
    decoded = decoder.decode(*block(everything))
    ours = set(decoded.index.tolist())
    assert set(range(len(seeds) * 3)) <= ours  # the sound ones are all recognised, each as what it is
    assert all(
        decoded.contexts[c].tunnel is Tunnel.NONE
        for i, c in zip(decoded.index, decoded.context, strict=True)
        if i < len(seeds) * 3
    )
    blind = [i for i in sorted(ours) if not run(program, everything[i])]
    assert blind == []


@settings(deadline=None, derandomize=True, max_examples=120)
@given(data=st.data(), family=st.sampled_from([4, 6]), tags=st.sampled_from(TAGS), name=st.sampled_from(list(WRAPS)))
def test_tenants_inside_tunnels_never_pass(data, family, tags, name):
    """Whatever they say, and whatever the outer header's DSCP is; nor do their IP packets in Geneve."""
    frame = bytes(tenant(data, family))
    tos = data.draw(st.integers(0, 255))
    assert run(FILTER, with_tags(WRAPS[name](with_tags(frame, *tags), tos=tos), *tags)) == 0
    bare = in_geneve(frame[14:], proto=0x0800 if family == 4 else 0x86DD, tos=tos)
    assert run(FILTER, bare) == 0


@pytest.mark.parametrize("name", WRAPS)
def test_the_class_mark_passes_nothing_inside_and_outside(name):
    """Only a session's own tuples do, whatever the outer header carries: fabrics may use the mark themselves."""
    program = probe_filter(all_sessions(dscp=3))
    for ip, tc in ((IP, "tos"), (IPv6, "tc")):
        for inner, outer in ((3 << 2, 0), (0, 3 << 2), (3 << 2 | 1, 3 << 2), (0, 0)):
            src, dst = ("192.0.2.1", "192.0.2.2") if ip is IP else ("2001:db8::1", "2001:db8::2")
            frame = bytes(ETHER / ip(src=src, dst=dst, **{tc: inner}) / UDP(sport=1, dport=2))
            assert not run(program, WRAPS[name](frame, tos=outer))
    for outer in (0, 3 << 2):
        assert run(program, WRAPS[name](FRAMES[0][1], tos=outer))


def test_a_marked_later_fragment_of_the_underlay_does_not_pass():
    """It has no UDP header, so nobody can tell that a tunnel's datagram was cut; and its addresses are no session's."""
    frame = bytearray(in_geneve(FRAMES[0][1], tos=3 << 2))
    frame[21] = 1
    assert not run(probe_filter(all_sessions(dscp=3)), bytes(frame))
    assert not run(FILTER, bytes(frame))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.data())
def test_any_octets_after_a_tunnels_header_give_values(data):
    """Total, and nothing verifies by chance: random options, lengths and inner octets."""
    wrap = data.draw(st.sampled_from([in_geneve, in_vxlan]))
    frames = [wrap(data.draw(st.binary(max_size=120)), family=data.draw(st.sampled_from([4, 6]))) for _ in range(3)]
    changed = []
    for frame in frames:
        octets = bytearray(frame)
        for _ in range(data.draw(st.integers(0, 8))):
            octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
        changed.append(bytes(octets[: data.draw(st.integers(0, len(octets)))]))
    vlan = np.array([data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in changed], np.int64)
    decoded = DECODER.decode(*block(changed), vlan)
    assert len(decoded) == 0
    assert decoded.contexts == ()
    for frame in changed:
        assert run(FILTER, frame) == 0


@pytest.mark.parametrize("name", ["geneve ovn over 4", "geneve 5 options over 6", "vxlan over 4", "vxlan over 6"])
def test_truncation_at_every_length_gives_the_probe_or_none(name):
    for session, frame in FRAMES:
        whole = WRAPS[name](frame)
        n = len(whole) + 1
        decoded = DECODER.decode(np.frombuffer(whole, np.uint8), np.zeros(n, np.int64), np.arange(n))
        assert decoded.index.max() == len(whole)
        assert set(decoded.session.tolist()) == {session.session}
        assert set(decoded.seq.tolist()) == {42}
        assert all(run(FILTER, whole[:size]) for size in decoded.index)


@pytest.mark.parametrize("name", ["geneve ovn over 4", "vxlan over 6"])
def test_every_flipped_bit_gives_the_same_probe_or_none(name):
    session, frame = FRAMES[0]
    whole = WRAPS[name](frame)
    flipped = []
    for bit in range(len(whole) * 8):
        octets = bytearray(whole)
        octets[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(octets))
    decoded = DECODER.decode(*block(flipped))
    assert set(decoded.session.tolist()) == {session.session}
    assert set(decoded.seq.tolist()) == {42}
    start = whole.index(b"nprb")
    assert not set((decoded.index // 8).tolist()) & set(range(start, start + 20))
    assert all(run(FILTER, flipped[i]) for i in decoded.index)
