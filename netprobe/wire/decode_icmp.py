"""Claims of ICMP and ICMPv6 messages: echo probes and their replies, and errors that quote a probe of any protocol.

Headers come parsed from `decode_headers`, sessions from `decode_sessions`. Called by `decode`.
"""

from dataclasses import replace

import numpy as np

from netprobe.model.points import Leg
from netprobe.model.probes import Protocol
from netprobe.wire import mark
from netprobe.wire.decode_claims import Claims, Kind, Known, either, identities
from netprobe.wire.decode_headers import I64, Octets, Packets, parse_ip
from netprobe.wire.decode_sessions import PROTOCOLS, SessionTable
from netprobe.wire.decode_tcp import tcp_claims
from netprobe.wire.decode_udp import udp_claims

ICMP, ICMPV6 = 1, 58
_ERROR_TYPES = {4: (3, 4, 11, 12), 6: (1, 2, 3, 4)}  # RFC 792; RFC 4443 §2.1


def echo_claims(octets: Octets, table: SessionTable, packets: Packets) -> Claims:
    """ICMP and ICMPv6 echo requests and replies with our magic (RFC 792, RFC 4443 §4)."""
    rows, types = _icmp(octets, packets, mark.IDENTITY_BYTES)
    if not len(rows):
        return Claims.none()
    family = packets.family[rows]
    is_request = types == np.where(family == 6, 128, 8)
    is_reply = types == np.where(family == 6, 129, 0)
    l4 = packets.l4[rows]
    is_claim = (is_request | is_reply) & (octets.uint(l4 + 8, 4) == mark.MAGIC_WORD)
    if not is_claim.all():
        rows, is_reply, l4 = rows[is_claim], is_reply[is_claim], l4[is_claim]
    ours = packets.take(rows)
    sessions, seqs, is_authentic = identities(octets, table, l4 + 8)
    pair = np.where(is_reply, table.return_pair(sessions, ours), table.forward_pair(sessions, ours))
    numbers = table.number[sessions].astype(np.int64) & 0xFFFF
    is_valid = is_authentic & (pair >= 0) & (table.protocol[sessions] == PROTOCOLS.index(Protocol.ICMP))
    # NAT treats the identifier like a port (RFC 5508 §3.1), and may change it where it changed an address.
    is_valid &= (octets.uint(l4 + 4, 2) == numbers) | (pair > 0)
    is_valid &= octets.uint(l4 + 6, 2) == seqs & 0xFFFF
    is_valid &= octets.uint(l4 + 1, 1) == 0
    leg, kind = either(is_reply, Leg.RETURN, Leg.FORWARD), either(is_reply, Kind.ECHO_REPLY, Kind.PROBE)
    return Claims.of(rows, is_valid, sessions, seqs, leg=leg, kind=kind)


def _icmp(octets: Octets, packets: Packets, data_bytes: int) -> tuple[I64, I64]:
    """Rows of the ICMP messages of the packet's own family with that much after the header, and their types."""
    is_icmp = (packets.family == 4) & (packets.protocol == ICMP) | (packets.family == 6) & (packets.protocol == ICMPV6)
    rows = np.flatnonzero(is_icmp & (packets.l4 + 8 + data_bytes <= packets.end))
    return rows, octets.uint(packets.l4[rows], 1)


def error_claims(octets: Octets, known: Known, packets: Packets) -> Claims:
    """ICMP and ICMPv6 errors that quote a forward probe (RFC 792, RFC 4443 §3).

    An error about an answer is nobody's claim: a guest whose probes the vswitch sent for it refuses the answers.
    """
    rows, types = _icmp(octets, packets, 20 + 8)
    family = packets.family[rows]
    is_error = (family == 4) & np.isin(types, _ERROR_TYPES[4]) | (family == 6) & np.isin(types, _ERROR_TYPES[6])
    rows = rows[is_error]
    if not len(rows):
        return Claims.none()
    outer = packets.take(rows)
    ether_types = np.where(outer.family == 6, 0x86DD, 0x0800)
    quoted = parse_ip(octets, outer.index, ether_types, outer.l4 + 8, outer.end)
    udp, _ = udp_claims(octets, known, quoted, is_quoted=True)
    parts = [udp, echo_claims(octets, known.table, quoted), tcp_claims(octets, known, quoted, is_quoted=True)]
    claims = Claims.concat(parts)
    claims = claims.take(np.flatnonzero(~claims.is_valid | (claims.kind == Kind.PROBE)))
    is_to_source = known.table.is_to_source(claims.session, outer.take(claims.packet))
    n = len(claims.packet)
    return replace(
        claims,
        packet=rows[claims.packet],
        is_valid=claims.is_valid & is_to_source,
        leg=np.full(n, Leg.RETURN),
        kind=np.full(n, Kind.ICMP_ERROR),
    )
