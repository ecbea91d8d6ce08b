"""Laws of decoding: what was encoded comes back, and nothing else ever does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.wire_frames import ALL, all_sessions, answers, block, decode, encoder, make_session, probe, rows, with_tags

from netprobe.model.points import Leg
from netprobe.model.probes import Protocol
from netprobe.wire.decode import Decoder, Kind

SESSIONS = all_sessions()
DECODER = Decoder(SESSIONS)
KINDS = {
    "icmp-error": Kind.ICMP_ERROR,
    "stamp-reply": Kind.STAMP_REPLY,
    "echo-reply": Kind.ECHO_REPLY,
    "syn-ack": Kind.SYN_ACK,
    "rst": Kind.RST,
}
TAGS = [(), ((0x8100, 5),), ((0x88A8, 6), (0x8100, 7)), ((0x8100, 1), (0x8100, 2))]
FRAMES = [(s, 42, "probe", probe(s, 42)) for s in SESSIONS]
FRAMES += [(s, 42, name, frame) for s in SESSIONS for name, frame in answers(s, 42).items()]
IDS = [f"{s.type_p.protocol.value}{s.type_p.family}-{name}" for s, _, name, _ in FRAMES]


def expected(index, session, seq, name):
    if name == "probe":
        return (index, session.session, seq, Leg.FORWARD, Kind.PROBE)
    return (index, session.session, seq, Leg.RETURN, KINDS[name])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    picks=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 999), st.sampled_from(TAGS)), min_size=1, max_size=30)
)
def test_probes_of_mixed_sessions_come_back_in_any_order_behind_vlan_tags(picks):
    frames = [with_tags(probe(SESSIONS[s], seq), *tags) for s, seq, tags in picks]
    decoded = DECODER.decode(*block(frames))
    assert rows(decoded) == [expected(i, SESSIONS[s], seq, "probe") for i, (s, seq, _) in enumerate(picks)]
    assert (decoded.forged, decoded.foreign, decoded.merged) == (0, 0, 0)
    assert (decoded.dscp == 3).all()
    assert (decoded.ttl == 64).all()
    assert not decoded.weak.any()


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.data())
def test_answers_come_back_on_the_return_leg(data):
    found, wanted = [], []
    for _ in range(6):
        session = data.draw(st.sampled_from(SESSIONS))
        seq = data.draw(st.integers(0, 999))
        for name, frame in answers(session, seq).items():
            wanted.append(expected(len(found), session, seq, name))
            found.append(with_tags(frame, *data.draw(st.sampled_from(TAGS))))
    decoded = DECODER.decode(*block(found))
    assert rows(decoded) == wanted
    assert (decoded.forged, decoded.foreign) == (0, 0)


@pytest.mark.parametrize(("protocol", "family"), ALL)
def test_a_whole_block_comes_back(protocol, family):
    session = make_session(protocol, family, extra=5)
    frames = encoder(session).encode(0, 1000).frames
    order = np.random.default_rng(3).permutation(1000)
    offsets = np.arange(1000) * frames.shape[1]
    decoded = Decoder([session]).decode(frames.reshape(-1), offsets[order], np.full(1000, frames.shape[1]))
    assert (decoded.seq == order).all()
    assert (decoded.index == np.arange(1000)).all()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, len(FRAMES) - 1), max_size=12), st.integers(0, 12))
def test_the_result_does_not_depend_on_where_blocks_end(picks, cut):
    frames = [FRAMES[i][3] for i in picks]
    whole = DECODER.decode(*block(frames))
    parts = [DECODER.decode(*block(frames[:cut])), DECODER.decode(*block(frames[cut:]))]
    shift = [0, len(frames[:cut])]
    joined = [(i + by, *rest) for part, by in zip(parts, shift, strict=True) for i, *rest in rows(part)]
    assert rows(whole) == joined


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.binary(max_size=400), st.lists(st.tuples(st.integers(-50, 500), st.integers(-50, 500)), max_size=20))
def test_random_bytes_offsets_and_lengths_never_raise_and_never_verify(data, cuts):
    offsets = np.array([a for a, _ in cuts], np.int64)
    lengths = np.array([b for _, b in cuts], np.int64)
    decoded = DECODER.decode(np.frombuffer(data, np.uint8), offsets, lengths)
    assert len(decoded) == 0
    assert decoded.forged + decoded.foreign == len(cuts)


def test_extreme_offsets_and_lengths_never_raise():
    extremes = np.array([0, -(2**63), 2**63 - 1, 2**62, -1, 1], np.int64)
    offsets, lengths = (axis.ravel() for axis in np.meshgrid(extremes, extremes))
    for size in (0, 1, 39, 41, 2000):
        assert len(DECODER.decode(np.zeros(size, np.uint8), offsets, lengths)) == 0


@pytest.mark.parametrize(("session", "seq", "name", "frame"), FRAMES, ids=IDS)
def test_every_flipped_bit_gives_the_same_probe_or_none(session, seq, name, frame):
    """And where the bit is in the identity, its tag, or a SYN's number, none."""
    flipped = []
    for bit in range(len(frame) * 8):
        octets = bytearray(frame)
        octets[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(octets))
    decoded = DECODER.decode(*block(flipped))
    for _, number, found, _, _ in rows(decoded):
        assert (number, found) == (session.session, seq)
    protected = protected_octets(session, name, frame)
    assert not set((decoded.index // 8).tolist()) & protected
    assert len(set(decoded.index.tolist()) | set(decoded.forged_index.tolist())) + decoded.foreign == len(flipped)


def protected_octets(session, name, frame):
    """Where flipping a bit must not leave a hop record: the identity block, or what stands for it."""
    if session.type_p.protocol is not Protocol.TCP:
        start = frame.index(b"nprb")
        return set(range(start, start + 20))
    l4 = 14 + (20 if session.type_p.family == 4 else 40)
    if name == "icmp-error":
        l4 += 8 + (20 if session.type_p.family == 4 else 40)
    number = l4 + (8 if name in {"syn-ack", "rst"} else 4)
    return set(range(l4, l4 + 4)) | set(range(number, number + 4))


@pytest.mark.parametrize(("session", "seq", "name", "frame"), FRAMES, ids=IDS)
def test_truncation_at_every_length_gives_the_probe_or_none(session, seq, name, frame):
    """The octets after the cut are there in the buffer, but not captured: they must not count."""
    buf = np.frombuffer(frame, np.uint8)
    n = len(frame) + 1
    decoded = DECODER.decode(buf, np.zeros(n, np.int64), np.arange(n))
    assert all(row[1:] == expected(0, session, seq, name)[1:] for row in rows(decoded))
    assert len(decoded) >= 1
    assert decoded.index.max() == len(frame)
    assert decoded.index.min() > max(protected_octets(session, name, frame))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.sampled_from(range(len(FRAMES))), st.data())
def test_many_mutations_never_raise_and_never_give_another_probe(which, data):
    session, seq, _, frame = FRAMES[which]
    octets = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 12))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(octets)))
    decoded = DECODER.decode(*block([bytes(octets), bytes(octets[:cut])]))
    strong = ~decoded.weak  # a reply that lost its TLV has no tag to protect its number
    assert set(decoded.session[strong].tolist()) <= {session.session}
    assert set(decoded.seq[strong].tolist()) <= {seq}


@settings(deadline=None, derandomize=True, max_examples=30)
@given(key=st.binary(min_size=16, max_size=16), seq=st.integers(0, 999))
def test_a_forger_without_the_key_never_gets_a_record(key, seq):
    forgers = all_sessions(key=key)
    if forgers[0].key == SESSIONS[0].key:
        return
    frames = [probe(session, seq) for session in forgers]
    frames += [frame for session in forgers for frame in answers(session, seq).values()]
    decoded = decode(SESSIONS, frames)
    assert len(decoded) == 0
    assert decoded.forged == len(frames)
    assert decoded.forged_index.tolist() == list(range(len(frames)))
