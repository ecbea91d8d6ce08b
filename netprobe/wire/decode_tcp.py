"""Claims of TCP segments: SYNs that carry a probe's number in their own, and the answers to them.

Headers come parsed from `decode_headers`, sessions from `decode_flows`. Called by `decode` for frames and by
`decode_icmp` for quoted packets.
"""

import numpy as np

from netprobe.model.points import Leg
from netprobe.wire import isn
from netprobe.wire.decode_claims import Claims, Kind, Known, either
from netprobe.wire.decode_flows import FlowTuples
from netprobe.wire.decode_headers import Octets, Packets

TCP = 6
_FLAGS_MASK = 0x17  # FIN, SYN, RST, ACK; the others say nothing about whose segment it is
_SYN, _SYN_ACK, _RST_ACK = 0x02, 0x12, 0x14


def tcp_claims(octets: Octets, known: Known, packets: Packets, *, is_quoted: bool) -> Claims:
    """SYNs on a session's tuple, and the SYN-ACKs and RST-ACKs that answer them (ack - 1; RFC 9293 §3.5).

    Behind NAT the source port has to be the probe's too: the number alone is no proof. What does not hold there claims
    nothing, for others use the same address.

    Args:
        octets: the buffer.
        known: the sessions.
        packets: IP packets of any kind.
        is_quoted: they were quoted by ICMP errors: eight octets, ports and number, are enough.
    """
    table = known.table
    needed = 8 if is_quoted else 20
    rows = np.flatnonzero((packets.protocol == TCP) & (packets.family != 0) & (packets.l4 + needed <= packets.end))
    if not len(known.tcp) or not len(rows):
        return Claims.none()
    packets = packets.take(rows)
    l4 = packets.l4
    flags = np.where(l4 + 14 <= packets.end, octets.uint(l4 + 13, 1) & _FLAGS_MASK, _SYN)
    is_answer = (flags == _SYN_ACK) | (flags == _RST_ACK)
    numbers = np.where(is_answer, octets.uint(l4 + 8, 4) - 1, octets.uint(l4 + 4, 4)).astype(np.uint32)
    tuples = FlowTuples.of(packets, octets.uint(l4, 2), octets.uint(l4 + 2, 2), is_answer)
    is_of_a_probe = is_answer | (flags == _SYN)
    is_claim, is_valid = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
    chosen, seqs = np.full(len(rows), table.unknown), np.zeros(len(rows), np.int64)
    for owners in known.tcp.candidates(tuples):
        which, sessions = owners.which, owners.session
        decoded = isn.decode(table.isn_keys[sessions], numbers[which]).astype(np.int64)
        fits = (decoded < table.count[sessions]) & (table.src_port(sessions, decoded) == tuples.src_port[which])
        fits &= is_of_a_probe[which] & ~is_valid[which]
        is_claim[which] |= is_of_a_probe[which] & owners.is_own | fits
        is_valid[which] |= fits
        chosen[which[fits]], seqs[which[fits]] = sessions[fits], decoded[fits]
    answer_kind = np.where(flags == _SYN_ACK, Kind.SYN_ACK, Kind.RST)
    kind = np.where(is_answer, answer_kind, Kind.PROBE)
    leg = either(is_answer, Leg.RETURN, Leg.FORWARD)
    claims = Claims.of(rows, is_valid, chosen, seqs, leg=leg, kind=kind)
    return claims.take(np.flatnonzero(is_claim))
