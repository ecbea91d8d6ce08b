"""The mark of a TCP SYN: its initial sequence number is a keyed permutation of the probe's number.

A SYN has no payload, so that a policy sees just what a tenant would send; 32 bits are all there is. Four rounds of a
Feistel network over two 16-bit halves make decoding O(1) and numbers look random (RFC 6528 wants that of an ISN). It is
no proof by itself: a guess is right by chance once in 2^32, and valid only for an outstanding probe on its own port.
Used by `frames` and `decode`; layout in docs/wire-format.md.
"""

import numpy as np
import numpy.typing as npt

from netprobe.wire.siphash import U64, identity_words, tags

U32 = npt.NDArray[np.uint32]

ROUNDS = 4
_DOMAIN = 0x5C  # xored to the key, so that a round key is never the tag of a probe
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # finaliser of MurmurHash3, 64 bits


def round_keys(key: bytes, session: int) -> U64:
    """The round keys of a session, shape (ROUNDS,).

    Args:
        key: the session's 16 secret octets.
        session: its 32-bit number; two sessions under one key have different permutations.
    """
    return tags(bytes(octet ^ _DOMAIN for octet in key), identity_words(session, np.arange(ROUNDS, dtype=np.uint32)))


def encode(keys: U64, seq: U32) -> U32:
    """Probe numbers to initial sequence numbers.

    Args:
        keys: `round_keys`, shape (ROUNDS,), or one row a probe, shape (n, ROUNDS).
        seq: shape (n,).
    """
    left, right = seq >> np.uint32(16), seq & np.uint32(0xFFFF)
    for i in range(ROUNDS):
        left, right = right, left ^ _mix(right, keys[..., i])
    return left << np.uint32(16) | right


def decode(keys: U64, isn: U32) -> U32:
    """Initial sequence numbers back to probe numbers: the inverse of `encode` for the same keys."""
    left, right = isn >> np.uint32(16), isn & np.uint32(0xFFFF)
    for i in reversed(range(ROUNDS)):
        left, right = right ^ _mix(left, keys[..., i]), left
    return left << np.uint32(16) | right


def _mix(half: U32, key: U64 | np.uint64) -> U32:
    """Sixteen bits that depend on all bits of `half` (16 bits) and `key`."""
    x = half.astype(np.uint64) ^ key
    x *= _MULTIPLIERS[0]
    x ^= x >> np.uint64(33)
    x *= _MULTIPLIERS[1]
    return (x >> np.uint64(48)).astype(np.uint32)
