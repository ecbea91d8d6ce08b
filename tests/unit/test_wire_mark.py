"""The keyed tag, the identity block, sizes, and the permutation of initial sequence numbers."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.wire_frames import KEY, make_session

from netprobe.errors import UsageError, WireError
from netprobe.inject.templates import build_template
from netprobe.model.probes import Flow, Protocol
from netprobe.wire import isn, mark
from netprobe.wire.frames import FrameEncoder
from netprobe.wire.siphash import identity_words, tags

M = 2**64


def reference_siphash(key, message):
    """SipHash-2-4 of any message, written from the paper's section 2 alone."""

    def rotl(x, b):
        return (x * 2**b % M) | (x >> (64 - b))

    def sipround(v0, v1, v2, v3):
        v0 = (v0 + v1) % M
        v1 = rotl(v1, 13) ^ v0
        v0 = rotl(v0, 32)
        v2 = (v2 + v3) % M
        v3 = rotl(v3, 16) ^ v2
        v0 = (v0 + v3) % M
        v3 = rotl(v3, 21) ^ v0
        v2 = (v2 + v1) % M
        v1 = rotl(v1, 17) ^ v2
        return v0, v1, rotl(v2, 32), v3

    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = k0 ^ int.from_bytes(b"somepseu"), k1 ^ int.from_bytes(b"dorandom"), k0 ^ int.from_bytes(b"lygenera")
    v = (*v, k1 ^ int.from_bytes(b"tedbytes"))
    whole = len(message) // 8 * 8
    blocks = [message[i : i + 8] for i in range(0, whole, 8)]
    blocks.append(message[whole:].ljust(7, b"\0") + bytes([len(message) % 256]))
    for block in blocks:
        m = int.from_bytes(block, "little")
        v = (*v[:3], v[3] ^ m)
        for _ in range(2):
            v = sipround(*v)
        v = (v[0] ^ m, *v[1:])
    v = (v[0], v[1], v[2] ^ 0xFF, v[3])
    for _ in range(4):
        v = sipround(*v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_reference_gives_the_papers_test_vector():
    assert reference_siphash(KEY, bytes(range(15))) == 0xA129CA6149BE45E5


def test_tags_of_the_authors_vector_for_eight_octets():
    word = int.from_bytes(bytes(range(8)), "little")
    assert int(tags(KEY, np.array([word], np.uint64))[0]) == 0x93F5F5799A932462


def test_block_scalar_and_reference_agree():
    rng = np.random.default_rng(1)
    for key in (KEY, bytes(16), b"\xff" * 16, rng.bytes(16)):
        sessions = rng.integers(0, 2**32, 20, dtype=np.uint32)
        seqs = rng.integers(0, 2**32, 20, dtype=np.uint32)
        words = identity_words(sessions, seqs)
        for session, seq, word, found in zip(sessions, seqs, words, tags(key, words), strict=True):
            assert int(word) == int(session) << 32 | int(seq)
            assert int(found) == reference_siphash(key, int(word).to_bytes(8, "little"))
            assert int(found) == mark.tag(key, int(session), int(seq))


def test_no_tags_of_no_words():
    assert tags(KEY, np.empty(0, np.uint64)).shape == (0,)


def test_the_identity_block_has_the_documented_octets():
    block = mark.encode_identity(KEY, 0x01020304, 0x05060708)
    word = 0x0102030405060708
    tag = reference_siphash(KEY, word.to_bytes(8, "little"))
    assert block == b"nprb" + word.to_bytes(8, "big") + tag.to_bytes(8, "big")
    identity = mark.decode_identity_untrusted(block + b"padding")
    assert identity == mark.Identity(0x01020304, 0x05060708, tag)
    assert mark.is_authentic(identity, KEY)
    assert not mark.is_authentic(identity, bytes(16))


@pytest.mark.parametrize("data", [b"", b"nprb", b"nprb".ljust(19, b"x"), b"nprB".ljust(20, b"x")])
def test_a_short_or_strange_block_is_a_wire_error(data):
    with pytest.raises(WireError):
        mark.decode_identity_untrusted(data)


@pytest.mark.parametrize("rest", [0, 1, 2, 3, 4, 5, 100])
def test_tlvs_fill_the_payload_and_are_well_formed(rest):
    tlvs = mark.stamp_tlvs(mark.STAMP_PAYLOAD_BYTES + rest, b"i" * 20)
    assert len(tlvs) == 24 + rest
    found = []
    while tlvs:
        flags, kind, size = tlvs[0], tlvs[1], int.from_bytes(tlvs[2:4])
        assert flags == 0x80
        assert len(tlvs) >= 4 + size
        found.append((kind, tlvs[4 : 4 + size]))
        tlvs = tlvs[4 + size :]
    assert found[0][0] == 240
    assert found[0][1].rstrip(b"\0") == b"i" * 20
    assert [kind for kind, _ in found[1:]] == ([1] if rest >= 4 else [])


def test_the_ssid_is_never_zero():
    assert mark.ssid(0x1234_5678) == 0x5678
    assert mark.ssid(0x1234_0000) == 0xFFFF


def test_minimum_sizes_are_the_documented_ones():
    sizes = {(p, f): mark.min_frame_size(p, f) for p in Protocol for f in (4, 6)}
    assert sizes == {
        (Protocol.UDP, 4): 110,
        (Protocol.UDP, 6): 130,
        (Protocol.RAW_UDP, 4): 62,
        (Protocol.RAW_UDP, 6): 82,
        (Protocol.ICMP, 4): 62,
        (Protocol.ICMP, 6): 82,
        (Protocol.TCP, 4): 54,
        (Protocol.TCP, 6): 74,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size_bytes": 109}, "size 109 bytes (allowed: 110..65549)"),
        ({"size_bytes": 70000}, "size 70000 bytes (allowed: 110..65549)"),
        ({"key": b"short"}, "key of 5 octets (allowed: 16)"),
        ({"session": 2**32}, "number 4294967296"),
        ({"src_mac": b"12345"}, "MAC"),
        ({"dscp": 64}, "DSCP 64 (allowed: 0..63 or none)"),
        ({"dst_port": 65536}, "destination port 65536"),
        ({"src_port": -1}, "source ports -1..-1"),
        ({"ttl": 0}, "TTL 0"),
        ({"flow": Flow.NEW_PER_PROBE, "src_ports": (61000,)}, "1 source ports (allowed: one for each of 1000 probes)"),
    ],
)
def test_a_session_that_does_not_fit_is_refused_by_template_and_encoder(changes, says):
    session = make_session(**changes)
    with pytest.raises(UsageError) as caught:
        build_template(session)
    assert says in str(caught.value)
    with pytest.raises(UsageError):
        FrameEncoder(session, bytes(110))


def test_an_address_of_the_other_family_is_refused():
    other = make_session(family=6)
    with pytest.raises(UsageError, match=r"destination fd00::2"):
        build_template(make_session(dst_ip=other.dst_ip))


def test_no_third_address_family():
    with pytest.raises(UsageError, match=r"family 5"):
        mark.min_frame_size(Protocol.UDP, 5)


def test_the_isn_is_a_permutation():
    keys = isn.round_keys(KEY, 7)
    seqs = np.concatenate(
        [np.arange(1 << 16, dtype=np.uint32), np.random.default_rng(2).integers(0, 2**32, 1 << 16, dtype=np.uint32)]
    )
    isns = isn.encode(keys, seqs)
    assert (isn.decode(keys, isns) == seqs).all()
    assert len(np.unique(isns[: 1 << 16])) == 1 << 16


def test_the_isn_depends_on_session_and_key_and_looks_random():
    seqs = np.arange(4096, dtype=np.uint32)
    one = isn.encode(isn.round_keys(KEY, 7), seqs)
    for other in (isn.round_keys(KEY, 8), isn.round_keys(bytes(16), 7)):
        assert np.count_nonzero(one == isn.encode(other, seqs)) <= 1
    bits = (one[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    assert (np.abs(bits.mean(axis=0) - 0.5) < 0.05).all()
    flips = (one[1:] ^ one[:-1])[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    assert abs(flips.sum(axis=1).mean() - 16) < 0.5


def test_the_isn_takes_one_set_of_keys_a_row():
    keys = np.stack([isn.round_keys(KEY, session) for session in (7, 8)])
    seqs = np.array([5, 5], np.uint32)
    isns = isn.encode(keys, seqs)
    assert isns[0] == isn.encode(keys[0], seqs)[0]
    assert isns[1] == isn.encode(keys[1], seqs)[1]
    assert (isn.decode(keys, isns) == seqs).all()


def test_the_guests_side_of_the_mark_imports_no_numpy():
    code = "import sys, netprobe.wire.mark; sys.exit('numpy' in sys.modules or 'scapy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_document_says_what_the_code_does():
    """docs/wire-format.md: the minimum sizes, the magic, and the worked example of a tag."""
    text = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()
    table = dict(re.findall(r"^\| `([a-z-]+)` .*\| (\d+ / \d+) \|$", text, re.MULTILINE))
    assert table == {p.value: f"{mark.min_frame_size(p, 4)} / {mark.min_frame_size(p, 6)}" for p in Protocol}
    example = mark.encode_identity(KEY, 0x07060504, 0x03020100)
    assert f"tag `{example[12:].hex(' ')}`" in text
    assert f"magic `{example[:4].hex(' ')}`" in text
    assert f"Error Estimate `{mark.ERROR_ESTIMATE.to_bytes(2, 'big').hex(' ')}`" in text
