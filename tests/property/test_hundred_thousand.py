"""100,000 random and mutated frames at every decoder that reads bytes from outside: a value or a WireError, no more.

Seeded, and in bulk rather than by hypothesis: what is wanted here is many, not small.
"""

import random

import numpy as np
import pytest
from support.wire_frames import all_sessions, answers, probe, with_tags, wraps

from netprobe.errors import WireError
from netprobe.lab.relay_frames import parse
from netprobe.model.contexts import Tunnel
from netprobe.wire import control, mark, openflow, stamp
from netprobe.wire.decode import Decoder

COUNT = 100_000
SESSIONS = all_sessions()
SEEDS = [frame for s in SESSIONS for frame in (probe(s, 42), *answers(s, 42).values())]
WRAPPED = [with_tags(wrap(frame), (0x8100, 5)) for wrap in wraps().values() for frame in SEEDS]


def hostile(seed, count=COUNT, seeds=None):
    """Random octets, and sound frames that were cut, lengthened, flipped or spliced."""
    rng = random.Random(seed)
    seeds = seeds or [bytes(f) for f in SEEDS]
    for i in range(count):
        if i % 4 == 0:
            yield rng.randbytes(rng.randrange(0, 200))
            continue
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        cut = rng.random()
        if cut < 0.2:
            del data[rng.randrange(len(data) + 1) :]
        elif cut < 0.3:
            data += rng.randbytes(rng.randrange(64))
        yield bytes(data)


def test_the_block_decoder_never_raises_and_names_no_probe_that_was_not_planned():
    """All frames through one decoder, 4,096 at a time; whatever verifies is a planned probe of a known session."""
    decoder, frames = Decoder(SESSIONS), list(hostile(1, seeds=SEEDS * 9 + WRAPPED))
    tunnels: set[Tunnel] = set()
    planned = {s.session: s.count for s in SESSIONS}
    for start in range(0, COUNT, 4_096):
        part = frames[start : start + 4_096]
        lengths = np.array([len(f) for f in part], np.int64)
        decoded = decoder.decode(np.frombuffer(b"".join(part), np.uint8), np.cumsum(lengths) - lengths, lengths)
        assert all(q < planned[s] for s, q in zip(decoded.session.tolist(), decoded.seq.tolist(), strict=True))
        # A tag holds for one (session, seq) alone; without one only a standard reflector's reply is taken, marked weak.
        assert (decoded.weak | (decoded.seq == 42)).all()
        assert ((decoded.context >= 0) & (decoded.context < len(decoded.contexts))).all()
        tunnels |= {context.tunnel for context in decoded.contexts}
    assert tunnels == set(Tunnel)


def accepts(decode, data):
    """Whether a decoder takes the octets; anything but a value or a WireError fails the test."""
    try:
        decode(data)
    except WireError:
        return False
    return True


SENDER = stamp.encode_sender(stamp.SenderPacket(1, 1 << 32, 0x0101, 7, b""))
AREA = stamp.encode_tlv(stamp.sender_tlv(240, b"abcd")) * 3
MESSAGE = control.encode_message("observe", b"x" * 24, id=1, snap=256)
HELLO = openflow.OpenFlowConnection().hello()
DECODERS = {
    "STAMP sender": (stamp.decode_sender_untrusted, [SENDER, SENDER + AREA]),
    "STAMP reflector": (stamp.decode_reflector_untrusted, [SENDER, SENDER + AREA]),
    "STAMP TLVs": (stamp.decode_tlvs_untrusted, [AREA]),
    "identity": (mark.decode_identity_untrusted, [mark.encode_identity(bytes(16), 1, 2)]),
    "control channel": (lambda data: control.ControlReader().feed(data), [MESSAGE, MESSAGE * 3]),
    "OpenFlow": (lambda data: openflow.OpenFlowConnection().feed(data), [HELLO, HELLO * 2]),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_a_value_or_a_wire_error(name):
    """Both outcomes occur: the decoder is neither blind nor gullible."""
    decode, seeds = DECODERS[name]
    taken = sum(accepts(decode, data) for data in hostile(2, seeds=[bytes(s) for s in seeds]))
    assert 0 < taken < COUNT


def test_the_relays_parser_gives_a_key_or_none():
    """The truth log's own parser is total too."""
    keys = [parse(data) for data in hostile(3)]
    assert any(key is None for key in keys)
    assert any(key is not None for key in keys)
