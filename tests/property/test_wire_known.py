"""The law of known shapes: a decoder that has seen such frames before says of any block what a fresh one says."""

import random
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.wire_frames import (
    all_sessions,
    answers,
    block,
    encoder,
    in_geneve,
    in_vxlan,
    make_session,
    probe,
    rows,
    stamp_reply,
    translated,
    with_tags,
    wraps,
)

from netprobe.model.probes import Flow, Protocol
from netprobe.wire import decode_known
from netprobe.wire.decode import Decoder

TAGS = [(), ((0x8100, 5),), ((0x88A8, 6), (0x8100, 7))]
LONG = [make_session(Protocol.RAW_UDP, f, session=100 + f, extra=90, dst_port=9001) for f in (4, 6)]
OWN_PORTS = [
    make_session(p, f, session=200 + 10 * i + f, dst_port=7000 + i, flow=Flow.NEW_PER_PROBE)
    for i, p in enumerate((Protocol.UDP, Protocol.RAW_UDP))
    for f in (4, 6)
]
TO_TUNNEL_PORTS = [
    make_session(Protocol.UDP, session=300, dst_port=6081, extra=150),
    make_session(Protocol.RAW_UDP, 6, session=301, dst_port=4789, extra=150),
]
NAT = [
    translated(make_session(Protocol.UDP, session=400, dst_port=5000), src="203.0.113.1")[0],
    translated(make_session(Protocol.RAW_UDP, session=401, dst_port=5001, flow=Flow.NEW_PER_PROBE), dst="203.0.113.2")[
        0
    ],
]
ON_THE_UNDERLAY = [
    make_session(Protocol.UDP, session=500, src_ip=ip_address("192.168.0.1"), dst_ip=ip_address("192.168.0.2"))
]
SESSIONS = [*all_sessions(), *LONG, *OWN_PORTS, *TO_TUNNEL_PORTS, *NAT, *ON_THE_UNDERLAY]


def everything(decoded):
    """All that is told of a block, as plain values."""
    columns = (
        decoded.dscp,
        decoded.ttl,
        decoded.weak,
        decoded.t1_ns,
        decoded.t2_ns,
        decoded.t3_ns,
        decoded.reflector_seq,
    )
    told = [(*row, *rest) for row, *rest in zip(rows(decoded), *(c.tolist() for c in columns), strict=True)]
    counts = (decoded.forged, decoded.forged_index.tolist(), decoded.unknown, decoded.foreign, decoded.merged)
    assert len(set(decoded.contexts)) == len(decoded.contexts) == len(set(decoded.context.tolist()))
    return told, [decoded.contexts[i] for i in decoded.context], counts


def merged(session, seqs):
    payload = b"".join(bytes(Ether(probe(session, seq))[UDP].payload) for seq in seqs)
    packet = Ether(probe(session, seqs[0]))
    packet[UDP].remove_payload()
    del packet[UDP].len, packet[UDP].chksum
    del packet.payload.len
    return bytes(packet / Raw(payload))


def sound_frames(seq):
    """Sound frames of all kinds."""
    rng, found = random.Random(seq), []
    for session in SESSIONS:
        frame = probe(session, seq)
        found += [frame, *answers(session, seq).values()]
        if session.type_p.protocol is Protocol.UDP:
            times = {"t1": rng.getrandbits(64), "t2": rng.getrandbits(64), "t3": rng.getrandbits(64)}
            found.append(stamp_reply(frame, reflector_seq=rng.getrandbits(32), **times))
            found.append(stamp_reply(frame, reflector_seq=3, z=1, **times))
            found.append(stamp_reply(frame, reflector_seq=4, keep_tlvs=False, **times))
        for translation in session.translations:
            far = replace(session, src_ip=translation.src_ip, dst_ip=translation.dst_ip)
            found += [probe(far, seq), *answers(far, seq).values()]
    found += [merged(session, [seq, seq + 1]) for session in (LONG[0], NAT[1])]
    # Magic where that of a STAMP packet would stand, with and without its TLV.
    raw = bytearray(probe(LONG[0], seq))
    raw[90:94] = b"nprb"
    found.append(bytes(raw))
    raw[42 + 45] = 240
    return [*found, bytes(raw)]


SOUND = [frame for seq in (3, 77, 500, 998) for frame in sound_frames(seq)]
OUTSIDE = [bytes(wraps()[name](b"")) for name in ("geneve ovn over 4", "vxlan over 6", "vxlan over 4 with options")]


def in_tunnel(head, frame, rng):
    """Behind headers of the underlay, of which some differ from packet to packet."""
    head = bytearray(head)
    if head[12:14] == b"\x08\x00":
        l4 = 14 + 4 * (head[14] & 15)
        head[16:18] = (len(head) - 14 + len(frame)).to_bytes(2, "big")
        head[18:20], head[24:26] = rng.randbytes(2), rng.randbytes(2)
    else:
        l4 = 54
        head[18:20] = (len(head) - 54 + len(frame)).to_bytes(2, "big")
        head[16:18] = rng.randbytes(2)  # flow label
    head[l4 : l4 + 2], head[l4 + 6 : l4 + 8] = rng.randbytes(2), rng.randbytes(2)
    head[l4 + 4 : l4 + 6] = (len(head) - l4 + len(frame)).to_bytes(2, "big")
    return bytes(head) + frame


def around(frame, rng):
    """The frame as it is, behind tags, or in a tunnel."""
    if rng.random() < 0.4:
        frame = in_tunnel(rng.choice(OUTSIDE), frame, rng)
    return with_tags(frame, *rng.choice(TAGS)) if rng.random() < 0.3 else frame


def changed(frame, rng):
    """Some octets or bits changed, and maybe cut."""
    octets = bytearray(frame)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 6))):
        end = rng.choice((len(octets), min(len(octets), 60)))
        at = rng.randrange(end)
        octets[at] = octets[at] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
    if rng.random() < 0.1:
        del octets[rng.randrange(len(octets)) :]
    return bytes(octets)


def kernel_tags(n, rng):
    return None if rng.random() < 0.8 else np.array([rng.choice((-1, -1, 5, 0xE005)) for _ in range(n)], np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_a_decoder_that_has_seen_frames_like_these_says_what_a_fresh_one_says(seed):
    """Probes and answers of all kinds, plain, tagged, in tunnels, behind NAT, merged, forged, mutated, cut."""
    rng = random.Random(seed)
    seen, found = Decoder(SESSIONS), 0
    for turn in range(80):
        frames = [around(frame, rng) for frame in rng.choices(SOUND, k=rng.choice((1, 3, 200)))]
        if turn > 10:
            frames = [changed(frame, rng) for frame in frames]
        buf, offsets, lengths = block(frames, gap=rng.choice((1, 7, 200)))
        vlan, tunnels = kernel_tags(len(frames), rng), rng.random() < 0.7
        known = seen._frames[tunnels].find(buf, offsets, lengths, vlan)
        found += 0 if known is None else len(known.rows)
        assert everything(seen.decode(buf, offsets, lengths, vlan, tunnels=tunnels)) == everything(
            Decoder(SESSIONS).decode(buf, offsets, lengths, vlan, tunnels=tunnels)
        )
    assert found > 300


@pytest.mark.parametrize(
    "session", [*all_sessions()[:4], *LONG, *OWN_PORTS], ids=lambda s: f"{s.type_p.protocol.value}{s.session}"
)
def test_every_flipped_bit_is_read_as_a_fresh_decoder_reads_it(session):
    """Plain, tagged and in tunnels: no bit that counts is among those that a shape leaves free."""
    for wrap in (bytes, lambda f: with_tags(f, (0x8100, 5)), in_geneve, in_vxlan):
        frames = [wrap(probe(session, seq)) for seq in range(3)]
        seen = Decoder(SESSIONS)
        seen.decode(*block(frames))
        flipped = []
        for bit in range(8 * len(frames[0])):
            octets = bytearray(frames[1])
            octets[bit // 8] ^= 1 << bit % 8
            flipped.append(bytes(octets))
        assert everything(seen.decode(*block(flipped))) == everything(Decoder(SESSIONS).decode(*block(flipped)))


@pytest.mark.parametrize(
    "session", [*all_sessions()[:4], *LONG, *OWN_PORTS], ids=lambda s: f"{s.type_p.protocol.value}{s.session}"
)
@pytest.mark.parametrize("wrap", [bytes, in_geneve, in_vxlan], ids=["plain", "geneve", "vxlan"])
def test_frames_like_those_before_are_not_parsed_again(session, wrap, monkeypatch):
    """Of whatever numbers; on the way back too, unless VXLAN and a free port let a reply look like a probe outside."""
    decoder = Decoder([session])
    before = [probe(session, 1), *answers(session, 1).values()]
    after = [probe(session, seq) for seq in range(2, 60)]
    if session.type_p.protocol is Protocol.UDP and not (wrap is in_vxlan and session.src_ports):
        after += [answers(session, seq)["stamp-reply"] for seq in range(2, 60)]
    decoder.decode(*block([wrap(frame) for frame in before]))
    monkeypatch.setattr(Decoder, "_parse", None)
    decoded = decoder.decode(*block([*map(wrap, after), b"\0" * 400][:-1], gap=200))
    assert decoded.index.tolist() == list(range(len(after)))
    assert decoded.seq.tolist() == [*range(2, 60)] * (len(after) // 58)


def test_a_guest_that_sends_under_ever_new_headers_fills_no_memory():
    """Its own session's shapes are forgotten when they become too many; the results stay right."""
    session, other = make_session(Protocol.RAW_UDP), make_session(Protocol.RAW_UDP, session=7, dst_port=9009)
    decoder = Decoder([session, other])
    decoder.decode(*block([probe(other, 1)]))
    frames = [frame.tobytes() for frame in encoder(session).encode(0, 3).frames]
    for ttl in range(1, 256):
        decoded = decoder.decode(*block([frame[:22] + bytes([ttl]) + frame[23:] for frame in frames]))
        assert decoded.ttl.tolist() == [ttl] * 3
    kept = decoder._frames[True]._shapes
    assert min(map(len, kept.values())) == 1
    assert sum(map(len, kept.values())) <= 1 + decode_known.MAX_SHAPES_A_SESSION
    found = decoder._frames[True].find(*block([probe(other, 2)], gap=200), None)
    assert len(found.rows) == 1


def test_tags_are_right_however_numbers_jump():
    """In runs, backwards, at random and all over the sessions: the same as a decoder that computes each."""
    rng = np.random.default_rng(1)
    sessions = [make_session(Protocol.RAW_UDP, session=i, dst_port=9000 + i, count=2**32) for i in range(40)]
    decoder = Decoder(sessions)
    first = [encoder(s).encode(0, 1).frames[0].tobytes() for s in sessions]
    decoder.decode(*block(first, gap=200))
    for turn in range(12):
        chosen = [sessions[i] for i in rng.integers(0, (1, 3, 40)[turn % 3], 20)]
        starts = rng.integers(0, (3000, 2**31, 2**32 - 40)[turn // 3 % 3], 20)
        frames = [
            f.tobytes() for s, a in zip(chosen, starts, strict=True) for f in encoder(s).encode(int(a), 30).frames
        ]
        decoded = decoder.decode(*block(frames, gap=200))
        assert decoded.seq.tolist() == [int(a) + i for a in starts for i in range(30)]
        for frame in (frames := [bytearray(frame) for frame in frames]):
            frame[42 + 12 + turn % 8] ^= 1
        decoded = decoder.decode(*block([bytes(frame) for frame in frames], gap=200))
        assert (len(decoded), decoded.forged) == (0, len(frames))
