"""The identity of a probe on the wire: constants, sizes, and the scalar codec. Standard library only.

The in-guest agent imports this module, so numpy stays out. The block-wise twins are `siphash` (tags), `frames`
(encoding) and `decode`. All octets and offsets: docs/wire-format.md.
"""

import struct
from dataclasses import dataclass

from netprobe.errors import UsageError, WireError
from netprobe.model.probes import Flow, IPAddress, ProbeSession, Protocol, TypeP

MAGIC = b"nprb"
MAGIC_WORD = int.from_bytes(MAGIC, "big")
KEY_BYTES = 16

_IDENTITY = struct.Struct("!4sIIQ")  # magic, session, seq, tag
IDENTITY_BYTES = _IDENTITY.size
assert IDENTITY_BYTES == 20

STAMP_BASE_BYTES = 44  # RFC 8762 §4.2.1, unauthenticated, symmetrical
TLV_HEADER_BYTES = 4  # RFC 8972 §4: flags, type, length
IDENTITY_TLV_TYPE = 240  # RFC 8972 §5.1: 240-251 are for experimental use
EXTRA_PADDING_TLV_TYPE = 1  # RFC 8972 §4.1
TLV_FLAG_U = 0x80  # a Session-Sender sets U; who understands the TLV clears it (RFC 8972 §4)
STAMP_IDENTITY_OFFSET = STAMP_BASE_BYTES + TLV_HEADER_BYTES
STAMP_PAYLOAD_BYTES = STAMP_IDENTITY_OFFSET + IDENTITY_BYTES

ERROR_ESTIMATE = 0x1601
"""Error Estimate of a probe (RFC 4656 §4.1.2): S=0, not synchronised to UTC; Z=0, NTP format; 1 * 2^22 * 2^-32 s =
1 ms, a generous bound for a stamp taken in user space just before the frame is handed over."""

ETHERNET_BYTES = 14
IP_BYTES = {4: 20, 6: 40}
MAX_FRAME_BYTES = ETHERNET_BYTES + 0xFFFF

_L4_BYTES = {
    Protocol.UDP: 8 + STAMP_PAYLOAD_BYTES,
    Protocol.RAW_UDP: 8 + IDENTITY_BYTES,
    Protocol.ICMP: 8 + IDENTITY_BYTES,
    Protocol.TCP: 20,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What an identity block says: which probe, and the keyed tag that proves it."""

    session: int
    seq: int
    tag: int


def tag(key: bytes, session: int, seq: int) -> int:
    """SipHash-2-4 of the word (session << 32) | seq, for one probe; `siphash.tags` is the same for a block.

    Args:
        key: 16 octets.
        session: 32-bit session number.
        seq: 32-bit probe number.
    """
    assert len(key) == KEY_BYTES, f"a key has {KEY_BYTES} octets, got {len(key)}"
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = (k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573)
    for block in ((session & 0xFFFFFFFF) << 32 | seq & 0xFFFFFFFF, 8 << 56):
        a, b, c, d = v
        a, b, c, d = _sip_round(*_sip_round(a, b, c, d ^ block))
        v = (a ^ block, b, c, d)
    a, b, c, d = v
    c ^= 0xFF
    for _ in range(4):
        a, b, c, d = _sip_round(a, b, c, d)
    return a ^ b ^ c ^ d


def _sip_round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    mask = 0xFFFFFFFFFFFFFFFF

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    a, c = (a + b) & mask, (c + d) & mask
    b, d = rotate(b, 13) ^ a, rotate(d, 16) ^ c
    a = rotate(a, 32)
    c, a = (c + b) & mask, (a + d) & mask
    b, d = rotate(b, 17) ^ c, rotate(d, 21) ^ a
    return a, b, rotate(c, 32), d


def encode_identity(key: bytes, session: int, seq: int) -> bytes:
    """The identity block of one probe, 20 octets."""
    return _IDENTITY.pack(MAGIC, session, seq, tag(key, session, seq))


def decode_identity_untrusted(data: bytes) -> Identity:
    """The identity block that `data` starts with; what follows is padding. Its tag is not checked.

    Raises:
        WireError: fewer than 20 octets, or no magic.
    """
    if len(data) < IDENTITY_BYTES:
        raise WireError("identity block", f"{len(data)} octets, {IDENTITY_BYTES} are needed")
    magic, session, seq, keyed_tag = _IDENTITY.unpack_from(data)
    if magic != MAGIC:
        raise WireError("identity block", f"magic {magic!r}, not {MAGIC!r}")
    return Identity(session, seq, keyed_tag)


def is_authentic(identity: Identity, key: bytes) -> bool:
    """Whether the tag proves that a holder of `key` made this identity."""
    return identity.tag == tag(key, identity.session, identity.seq)


def ssid(session: int) -> int:
    """STAMP Session Identifier of a session: its low 16 bits, and never 0 (RFC 8972 §3)."""
    return session & 0xFFFF or 0xFFFF


def stamp_tlvs(payload_bytes: int, identity: bytes = bytes(IDENTITY_BYTES)) -> bytes:
    """The TLVs of a probe: the identity, then Extra Padding (RFC 8972 §4.1) up to the size of the payload.

    One to three octets are too few for a TLV of their own: they end the identity's, as zeros.

    Args:
        payload_bytes: length of the whole UDP payload, at least STAMP_PAYLOAD_BYTES.
        identity: the identity block; zeros in a template.
    """
    rest = payload_bytes - STAMP_PAYLOAD_BYTES
    assert rest >= 0, f"a STAMP probe has at least {STAMP_PAYLOAD_BYTES} octets of UDP payload, got {payload_bytes}"
    value = identity + bytes(rest if rest < TLV_HEADER_BYTES else 0)
    tlvs = struct.pack("!BBH", TLV_FLAG_U, IDENTITY_TLV_TYPE, len(value)) + value
    if rest >= TLV_HEADER_BYTES:
        padding = rest - TLV_HEADER_BYTES
        tlvs += struct.pack("!BBH", TLV_FLAG_U, EXTRA_PADDING_TLV_TYPE, padding) + bytes(padding)
    return tlvs


def min_frame_size(protocol: Protocol, family: int) -> int:
    """The least `size_bytes` of a Type-P: an Ethernet frame without FCS that has room for the mark.

    Args:
        protocol: protocol of the probes.
        family: 4 or 6.

    Raises:
        UsageError: there is no such family.
    """
    if family not in IP_BYTES:
        raise UsageError("Type-P", f"address family {family!r}", allowed="4 or 6")
    return ETHERNET_BYTES + IP_BYTES[family] + _L4_BYTES[protocol]


def payload_size(type_p: TypeP) -> int:
    """Octets after the UDP or ICMP header of a probe of this Type-P; 0 for a SYN."""
    if type_p.protocol is Protocol.TCP:
        return 0
    return type_p.size_bytes - ETHERNET_BYTES - IP_BYTES[type_p.family] - 8


def has_own_ports(type_p: TypeP) -> bool:
    """Whether each probe has a source port of its own; an echo has none."""
    return type_p.flow is Flow.NEW_PER_PROBE and type_p.protocol is not Protocol.ICMP


def address_pairs(session: ProbeSession) -> tuple[tuple[IPAddress, IPAddress], ...]:
    """Source and destination of a session's probes: its own first, then those that NAT gives them, each once."""
    pairs = [(session.src_ip, session.dst_ip), *((t.src_ip, t.dst_ip) for t in session.translations)]
    return tuple(dict.fromkeys(pairs))


def check_session(session: ProbeSession) -> None:
    """Refuse a session that cannot be encoded.

    Raises:
        UsageError: a number, a size, an address or a key does not fit the wire.
    """
    type_p = session.type_p
    where = f"session {session.session}"
    low = min_frame_size(type_p.protocol, type_p.family)
    ports = session.src_ports if has_own_ports(type_p) else (type_p.src_port,)
    needed = session.count if has_own_ports(type_p) else 1
    low_port, high_port = min(ports, default=0), max(ports, default=0)
    checks: tuple[tuple[bool, str, str], ...] = (
        (0 <= session.session < 1 << 32, f"number {session.session}", "0..2^32-1"),
        (0 <= session.count <= 1 << 32, f"count {session.count}", "0..2^32"),
        (len(session.key) == KEY_BYTES, f"key of {len(session.key)} octets", f"{KEY_BYTES}"),
        (low <= type_p.size_bytes <= MAX_FRAME_BYTES, f"size {type_p.size_bytes} bytes", f"{low}..{MAX_FRAME_BYTES}"),
        (len(session.src_mac) == len(session.dst_mac) == 6, "a MAC address of the wrong length", "6 octets"),
        (session.src_ip.version == type_p.family, f"source {session.src_ip}", f"an IPv{type_p.family} address"),
        (session.dst_ip.version == type_p.family, f"destination {session.dst_ip}", f"an IPv{type_p.family} address"),
        (
            all(ip.version == type_p.family for pair in address_pairs(session) for ip in pair),
            f"translations {', '.join(f'{t.src_ip} -> {t.dst_ip}' for t in session.translations)}",
            f"IPv{type_p.family} addresses",
        ),
        (type_p.dscp is None or 0 <= type_p.dscp < 64, f"DSCP {type_p.dscp}", "0..63 or none"),
        (1 <= type_p.ttl <= 255, f"TTL {type_p.ttl}", "1..255"),
        (0 <= type_p.dst_port <= 0xFFFF, f"destination port {type_p.dst_port}", "0..65535"),
        (0 <= low_port <= high_port <= 0xFFFF, f"source ports {low_port}..{high_port}", "0..65535"),
        (len(ports) >= needed, f"{len(ports)} source ports", f"one for each of {session.count} probes"),
    )
    for is_right, problem, allowed in checks:
        if not is_right:
            raise UsageError(where, problem, allowed=allowed)
