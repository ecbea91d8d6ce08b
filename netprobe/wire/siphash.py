"""SipHash-2-4 of one 64-bit word, a block at a time: the keyed tag of a probe's identity.

Source: Aumasson, Bernstein, "SipHash: a fast short-input PRF" (2012). The word is (session << 32) | seq, hashed as its
eight octets in little-endian order. The scalar twin, for programs without numpy, is `mark.tag`; `frames` writes tags
and `decode` checks them.
"""

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

KEY_BYTES = 16

_INIT = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_LENGTH_BLOCK = np.uint64(8 << 56)  # the final block of an eight-octet message: no rest, length in the top octet


def key_words(key: bytes) -> tuple[np.uint64, np.uint64]:
    """The two little-endian halves of a 16-octet key."""
    assert len(key) == KEY_BYTES, f"a SipHash key has {KEY_BYTES} octets, got {len(key)}"
    return np.uint64(int.from_bytes(key[:8], "little")), np.uint64(int.from_bytes(key[8:], "little"))


def identity_words(session: npt.NDArray[np.uint32] | int, seq: npt.NDArray[np.uint32]) -> U64:
    """The hashed words (session << 32) | seq.

    Args:
        session: one number for all, or shape (n,).
        seq: shape (n,).
    """
    return np.asarray(session, np.uint64) << np.uint64(32) | seq.astype(np.uint64)


def tags(key: bytes, words: U64) -> U64:
    """SipHash-2-4 of each word under one key.

    Args:
        key: 16 octets.
        words: shape (n,).

    Returns:
        The tags, shape (n,).
    """
    k0, k1 = key_words(key)
    return tags_with(k0, k1, words)


def tags_with(k0: U64 | np.uint64, k1: U64 | np.uint64, words: U64) -> U64:
    """SipHash-2-4 of each word, each under a key of its own.

    Args:
        k0: low half (first eight octets) of the key, one for all or shape (n,).
        k1: high half, likewise.
        words: shape (n,).

    Returns:
        The tags, shape (n,).
    """
    v = np.empty((4, len(words)), np.uint64)
    for row, half, constant in zip(v, (k0, k1, k0, k1), _INIT, strict=True):
        np.bitwise_xor(half, np.uint64(constant), out=row)
    a, b, c, d = v
    scratch = np.empty(len(words), np.uint64)
    for block in (words, _LENGTH_BLOCK):
        d ^= block
        _round(a, b, c, d, scratch)
        _round(a, b, c, d, scratch)
        a ^= block
    c ^= np.uint64(0xFF)
    for _ in range(4):
        _round(a, b, c, d, scratch)
    return a ^ b ^ c ^ d


def _rotate(x: U64, bits: int, scratch: U64) -> None:
    np.right_shift(x, np.uint64(64 - bits), out=scratch)
    np.left_shift(x, np.uint64(bits), out=x)
    np.bitwise_or(x, scratch, out=x)


def _round(a: U64, b: U64, c: U64, d: U64, scratch: U64) -> None:
    """SipRound (figure 2.1 of the paper), in place."""
    a += b
    c += d
    _rotate(b, 13, scratch)
    _rotate(d, 16, scratch)
    b ^= a
    d ^= c
    _rotate(a, 32, scratch)
    c += b
    a += d
    _rotate(b, 17, scratch)
    _rotate(d, 21, scratch)
    b ^= c
    d ^= a
    _rotate(c, 32, scratch)
