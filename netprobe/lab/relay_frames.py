"""The relay's own frame parser: does a frame carry the mark, and which probe is it? Standard library only.

It shares no code with netprobe.wire on purpose: the truth log must not repeat a decoder's mistake. Total: any octets
give a Mark or None. Offsets: docs/wire-format.md for the identity, RFC 791, 8200, 768, 792, 4443, 9293 and 8762 for the
rest, RFC 8926 for Geneve.
"""

import struct
from typing import NamedTuple

MAGIC = b"nprb"
CLASS_DSCP = 3

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
_ETHERTYPE_IPV4 = b"\x08\x00"
_ETHERTYPE_IPV6 = b"\x86\xdd"
_VLAN_TAGS = (b"\x81\x00", b"\x88\xa8")
_GENEVE_PORT = 6081
_GENEVE_ETHERNET = b"\x65\x58"  # Trans Ether Bridging
_IDENTITY = struct.Struct(">II")
_PORT_AND_SEQUENCE = struct.Struct(">H2xI")
_SYN_ACK_RST_FIN = 0x17
_SYN = 0x02
_STAMP_IDENTITY = 48  # 44 octets of STAMP packet, 4 octets of TLV header
_STAMP_REFLECTED = slice(16, 44)  # zero in what a Session-Sender sends, times and counters in what a reflector does
_ECHO = {(ICMP, 8): 0, (ICMP, 0): 1, (ICMP6, 128): 0, (ICMP6, 129): 1}


class Mark(NamedTuple):
    """Which probe a frame is: by its identity, or, for a TCP SYN, by source port and sequence number."""

    session: int
    seq: int
    isn: int
    src_port: int
    proto: int
    leg: int


def parse(frame: bytes) -> Mark | None:
    """The mark of an Ethernet frame, or of the one that it carries through a Geneve tunnel; None when it has none.

    Args:
        frame: from the destination address on, without FCS; any octets at all.
    """
    mark = _mark(frame)
    if mark is None:
        inner = carried(frame)
        mark = None if inner is None else _mark(inner)
    return mark


def carried(frame: bytes) -> bytes | None:
    """The Ethernet frame inside a Geneve one, None when it is no such frame."""
    network = _network(frame)
    if network is None or network.proto != UDP or not network.is_first or len(frame) < network.at + 16:
        return None
    at = network.at + 8
    if frame[network.at + 2 : network.at + 4] != _GENEVE_PORT.to_bytes(2, "big"):
        return None
    if frame[at] >> 6 or frame[at + 2 : at + 4] != _GENEVE_ETHERNET:
        return None
    return frame[at + 8 + (frame[at] & 0x3F) * 4 :] or None


def destination(frame: bytes) -> bytes:
    """The IP address that a frame is for, empty when it has none."""
    network = _network(frame)
    return b"" if network is None else network.destination


class _Network(NamedTuple):
    """The IP header of a frame: where what it carries begins, and what it says."""

    at: int
    proto: int
    dscp: int
    destination: bytes
    is_first: bool


def _network(frame: bytes) -> _Network | None:
    at = 12
    while frame[at : at + 2] in _VLAN_TAGS:
        at += 4
    ethertype, at = frame[at : at + 2], at + 2
    if ethertype == _ETHERTYPE_IPV4:
        length = (frame[at] & 0xF) * 4 if len(frame) > at else 0
        if len(frame) < at + 20 or frame[at] >> 4 != 4 or length < 20:
            return None
        is_first = not (frame[at + 6] & 0x1F or frame[at + 7])
        return _Network(at + length, frame[at + 9], frame[at + 1] >> 2, frame[at + 16 : at + 20], is_first)
    if ethertype == _ETHERTYPE_IPV6:
        if len(frame) < at + 40 or frame[at] >> 4 != 6:
            return None
        dscp = (frame[at] & 0xF) << 2 | frame[at + 1] >> 6
        return _Network(at + 40, frame[at + 6], dscp, frame[at + 24 : at + 40], is_first=True)
    return None


def _mark(frame: bytes) -> Mark | None:
    network = _network(frame)
    if network is None or not network.is_first:  # a later fragment has no transport header
        return None
    return _transport(frame, network.at, network.proto, network.dscp)


def _transport(frame: bytes, at: int, proto: int, dscp: int) -> Mark | None:
    if proto == UDP:
        return _datagram(frame[at + 8 :])
    if proto == TCP and dscp == CLASS_DSCP and len(frame) >= at + 20 and frame[at + 13] & _SYN_ACK_RST_FIN == _SYN:
        port, sequence = _PORT_AND_SEQUENCE.unpack_from(frame, at)
        return Mark(0, 0, sequence, port, proto, 0)
    if proto in (ICMP, ICMP6) and len(frame) > at:
        leg = _ECHO.get((proto, frame[at]))
        if leg is not None and frame[at + 8 : at + 12] == MAGIC:
            return _identity(frame, at + 8, proto, leg)
    return None


def _datagram(payload: bytes) -> Mark | None:
    if payload[:4] == MAGIC:
        return _identity(payload, 0, UDP, 0)
    if payload[_STAMP_IDENTITY : _STAMP_IDENTITY + 4] == MAGIC:
        return _identity(payload, _STAMP_IDENTITY, UDP, int(any(payload[_STAMP_REFLECTED])))
    return None


def _identity(octets: bytes, at: int, proto: int, leg: int) -> Mark | None:
    if len(octets) < at + 12:
        return None
    session, seq = _IDENTITY.unpack_from(octets, at + 4)
    return Mark(session, seq, 0, 0, proto, leg)
