"""Transport segments of a verify run's frames: header, identity, checksum, for every protocol that a policy can name.

Each builder returns what stands after the IP header. `more` octets of the datagram come in a later fragment, whose
content adds nothing to any checksum (`later_fragment`), so that lengths and checksums hold for the whole. Called by
`policy_frames`; RFC 9293, 768, 3828, 9260, 4340, 792, 4443, 4861, 3971, 4302.
"""

import struct
from dataclasses import dataclass

from netprobe.model.packets import ACK, FIN, PSH, SYN, ConnState, Packet
from netprobe.model.policy import DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE
from netprobe.wire import mark
from netprobe.wire.policy_layout import (
    AH,
    IDENTITY_AT,
    ND_IDENTITY_AT,
    QUERIES_V4,
    QUERIES_V6,
    PolicyMark,
    identity,
    is_own_port,
    syn_number,
)

_WINDOW = 64240
_EXPERIMENT = 253  # RFC 3692; conntrack finds a packet without any next header (59) invalid
_SCTP_INIT, _SCTP_INIT_ACK, _SCTP_COOKIE_ECHO = 1, 2, 10  # RFC 9260 §3.2
_SCTP_COOKIE = 7  # the State Cookie parameter, §3.3.3.1
_SCTP_IDENTITY = 0xB070  # unknown to all; the two high bits say "skip it, go on, do not report" (§3.2.1)
_DCCP_REQUEST, _DCCP_RESPONSE, _DCCP_DATA_ACK = 0, 1, 4  # RFC 4340 §5.1
_NONCE, _SOURCE_LINK, _TARGET_LINK = 14, 1, 2  # neighbour discovery options: RFC 3971 §5.3.2, RFC 4861 §4.6.1
_ADVERTISED = 0x20000000  # of a neighbour advertisement: override; neither router nor solicited


@dataclass(frozen=True, slots=True)
class TcpNumbers:
    """Sequence and acknowledgment number of a segment; a SYN's own sequence number is its mark, and not asked for."""

    seq: int
    ack: int


@dataclass(frozen=True, slots=True)
class Segment:
    """What a builder needs to know.

    Attributes:
        packet: what to build.
        mark: of the run.
        seq: number of the frame.
        tcp: numbers of a TCP segment.
        ident: ICMP identifier.
        state: what the packet is in its connection: which chunk of SCTP, which packet of DCCP.
        quoted: of an ICMP error: the packet that it is about, from the IP header on.
        more: octets of the datagram that a later fragment holds.
    """

    packet: Packet
    mark: PolicyMark
    seq: int
    tcp: TcpNumbers | None = None
    ident: int = 0
    state: ConnState = ConnState.NEW
    quoted: bytes = b""
    more: int = 0


def has_payload(packet: Packet) -> bool:
    """Whether a TCP segment carries the identity: not a SYN, which a policy shall see as a tenant's.

    Except where neither port is netprobe's own: nothing else would tell it from a tenant's.
    """
    return not packet.tcp_flags & SYN or not (is_own_port(packet.src_port or 0) or is_own_port(packet.dst_port or 0))


def sequence_bytes(packet: Packet) -> int:
    """How much sequence space a TCP segment takes: what its answer acknowledges beyond its number."""
    flags = bool(packet.tcp_flags & SYN) + bool(packet.tcp_flags & FIN)
    return flags + (mark.IDENTITY_BYTES if has_payload(packet) else 0)


def build(segment: Segment, pad_to: int = 0) -> bytes:
    """The segment, checksum and all.

    Args:
        segment: what to build.
        pad_to: zeros follow up to this length.
    """
    packet = segment.packet
    if packet.protocol == ICMP and packet.family == 4:
        body = _icmp(segment)
    elif packet.protocol == ICMPV6 and packet.family == 6:
        body = _discovery(segment) if packet.icmp_type in ND_IDENTITY_AT else _icmp(segment)
    else:
        body = _BUILDERS.get(packet.protocol, _other)(segment, max(pad_to, 0))
    body += bytes(max(0, pad_to - len(body)))
    return _with_checksum(body, packet, segment.more)


def later_fragment(packet: Packet, policy_mark: PolicyMark, seq: int) -> bytes:
    """The rest of a datagram: the identity, and four octets so that all of it adds nothing to a checksum.

    The internet checksum is a sum (RFC 1071), and CRC32c is linear: after its own state, any CRC is zero. So the
    first fragment's checksum holds for the whole datagram without knowing the number of this frame.
    """
    block = identity(policy_mark, seq)
    if packet.protocol == SCTP:
        return block + (crc32c_state(0, block)).to_bytes(4, "little")
    return block + struct.pack("!HH", internet_sum(block) ^ 0xFFFF, 0)


def _tcp(segment: Segment, _pad_to: int) -> bytes:
    packet = segment.packet
    flags = packet.tcp_flags
    numbers = segment.tcp or TcpNumbers(syn_number(segment.mark, segment.seq), 0)
    number = syn_number(segment.mark, segment.seq) if flags & SYN else numbers.seq
    acknowledged = numbers.ack if flags & ACK else 0
    payload = identity(segment.mark, segment.seq) if has_payload(packet) or segment.more else b""
    if payload and flags & ACK:
        flags |= PSH
    ports = (packet.src_port, packet.dst_port)
    return struct.pack("!HHIIBBHHH", *ports, number, acknowledged, 5 << 4, flags, _WINDOW, 0, 0) + payload


def _udp(segment: Segment, pad_to: int) -> bytes:
    packet, payload = segment.packet, identity(segment.mark, segment.seq)
    size = max(8 + len(payload), pad_to) + segment.more
    return struct.pack("!HHHH", packet.src_port, packet.dst_port, size, 0) + payload


def _udplite(segment: Segment, _pad_to: int) -> bytes:
    """Checksum coverage 0: all of it (RFC 3828 §3.1)."""
    packet = segment.packet
    return struct.pack("!HHHH", packet.src_port, packet.dst_port, 0, 0) + identity(segment.mark, segment.seq)


def _sctp(segment: Segment, pad_to: int) -> bytes:
    """INIT, INIT-ACK or COOKIE-ECHO. Both sides have one tag, so nobody has to remember the other's."""
    packet, instance = segment.packet, segment.mark.tag_of_instance
    block = identity(segment.mark, segment.seq)
    size = max(12 + 24 + len(block), pad_to) + segment.more - 12  # of the chunk
    if segment.state is ConnState.ESTABLISHED:
        chunk = struct.pack("!BBH20x", _SCTP_COOKIE_ECHO, 0, size)
    else:
        is_answer = segment.state is ConnState.REPLY
        kind, parameter = (_SCTP_INIT_ACK, _SCTP_COOKIE) if is_answer else (_SCTP_INIT, _SCTP_IDENTITY)
        chunk = struct.pack("!BBHIIHHI", kind, 0, size, instance, 1 << 16, 1, 1, segment.seq)
        chunk += struct.pack("!HH", parameter, size - 20)
    verification = 0 if segment.state not in (ConnState.ESTABLISHED, ConnState.REPLY) else instance  # §8.5.1
    return struct.pack("!HHII", packet.src_port, packet.dst_port, verification, 0) + chunk + block


def _dccp(segment: Segment, _pad_to: int) -> bytes:
    """Request, Response or DataAck, with 48-bit numbers; options (Padding) fill the header up to 28 octets."""
    packet, header_bytes = segment.packet, IDENTITY_AT[DCCP]
    kinds = {ConnState.REPLY: _DCCP_RESPONSE, ConnState.ESTABLISHED: _DCCP_DATA_ACK}
    kind = kinds.get(segment.state, _DCCP_REQUEST)
    ports = (packet.src_port, packet.dst_port)
    header = struct.pack("!HHBBHBBHI", *ports, header_bytes // 4, 0, 0, kind << 1 | 1, 0, 0, segment.seq)
    if kind != _DCCP_REQUEST:
        header += struct.pack("!HHI", 0, 0, segment.seq)  # the acknowledgment; nobody on the way compares it
    return header.ljust(header_bytes, b"\0") + identity(segment.mark, segment.seq)


def _ah(segment: Segment, _pad_to: int) -> bytes:
    """An authentication header around nothing, the identity as its check value: IPv6 stacks walk over it."""
    size = IDENTITY_AT[AH] + mark.IDENTITY_BYTES
    header = struct.pack("!BBHII", _EXPERIMENT, size // 4 - 2, 0, segment.mark.session, segment.seq)
    return header + identity(segment.mark, segment.seq)


def _other(segment: Segment, _pad_to: int) -> bytes:
    return identity(segment.mark, segment.seq)


def _icmp(segment: Segment) -> bytes:
    """Any type: queries have identifier and sequence number, errors their quote, and all the identity at the end."""
    packet = segment.packet
    is_query = packet.icmp_type in (QUERIES_V4 if packet.family == 4 else QUERIES_V6)
    rest = (segment.ident, segment.seq & 0xFFFF) if is_query else (0, 0)
    header = struct.pack("!BBHHH", packet.icmp_type, packet.icmp_code, 0, *rest)
    return header + segment.quoted + identity(segment.mark, segment.seq)


def _discovery(segment: Segment) -> bytes:
    """Router or neighbour discovery: the body, the Nonce with the identity, the link-layer option (RFC 4861 §4)."""
    packet, neighbour = segment.packet, segment.packet.neighbour
    kind = packet.icmp_type
    target = (neighbour.ip if neighbour else packet.dst_ip).packed
    if kind == 133:
        body = bytes(4)
    elif kind == 134:
        body = struct.pack("!BBHII", 64, 0, 0, 0, 0)  # lifetime 0: whoever hears it takes nobody for a router
    else:
        body = (_ADVERTISED if kind == 136 else 0).to_bytes(4, "big") + target
    body += struct.pack("!BB", _NONCE, 3) + identity(segment.mark, segment.seq) + bytes(2)
    mac = neighbour.mac if neighbour else packet.src_mac
    if mac:
        body += struct.pack("!BB", _TARGET_LINK if kind == 136 else _SOURCE_LINK, 1) + mac_octets(mac)
    return struct.pack("!BBH", kind, packet.icmp_code, 0) + body


_BUILDERS = {TCP: _tcp, UDP: _udp, UDPLITE: _udplite, SCTP: _sctp, DCCP: _dccp, AH: _ah}
_CHECKSUM_AT = {TCP: 16, UDP: 6, UDPLITE: 6, DCCP: 6}


def _with_checksum(body: bytes, packet: Packet, more: int) -> bytes:
    """The segment with its checksum filled in; protocols without one stay as they are."""
    if packet.protocol == SCTP:
        crc = crc32c_state(0xFFFFFFFF, body + bytes(more)) ^ 0xFFFFFFFF
        return b"".join((body[:8], crc.to_bytes(4, "little"), body[12:]))
    is_icmp = (packet.family, packet.protocol) in ((4, ICMP), (6, ICMPV6))
    at = 2 if is_icmp else _CHECKSUM_AT.get(packet.protocol)
    if at is None:
        return body
    covered = body
    if packet.protocol != ICMP:
        pseudo = struct.pack("!II", len(body) + more, packet.protocol)
        covered = b"".join((packet.src_ip.packed, packet.dst_ip.packed, pseudo, body))
    checksum = internet_sum(covered) ^ 0xFFFF
    if packet.protocol in (UDP, UDPLITE):
        checksum = checksum or 0xFFFF  # 0 would mean "none" (RFC 768; RFC 3828 §3.1)
    return b"".join((body[:at], checksum.to_bytes(2, "big"), body[at + 2 :]))


def internet_sum(data: bytes) -> int:
    """One's complement sum of the 16-bit words (RFC 1071): the remainder modulo 2^16 - 1, for 2^16 is 1 there."""
    number = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    return number % 0xFFFF or (0xFFFF if number else 0)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for octet in range(256):
        value = octet
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c_state(state: int, data: bytes) -> int:
    """CRC32c (RFC 9260 appendix A) of some more octets, without the inversions at start and end."""
    table = _CRC32C
    for octet in data:
        state = state >> 8 ^ table[(state ^ octet) & 0xFF]
    return state


def mac_octets(mac: str) -> bytes:
    """Six octets of `02:00:00:00:00:01`."""
    return bytes.fromhex(mac.replace(":", ""))
