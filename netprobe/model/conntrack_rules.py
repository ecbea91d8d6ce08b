"""What connection tracking makes of packets, as far as a policy depends on it. Pure.

The same knowledge serves whoever judges packets (judge.evaluator) and whoever chooses them (plan.covering).
"""

from dataclasses import replace

from netprobe.model.packets import ACK, FIN, RST, SYN, ConnState, Kind, Packet
from netprobe.model.policy import ICMP, ICMPV6, TCP

ANSWERS = {4: {8: 0, 13: 14, 15: 16, 17: 18}, 6: {128: 129}}
"""ICMP queries that start a connection, and the type that answers each: RFC 792, RFC 950, RFC 4443. By family."""
ERRORS = {4: frozenset({3, 4, 5, 11, 12}), 6: frozenset({1, 2, 3, 4})}
"""ICMP messages about another packet, which they quote."""
UNTRACKED = frozenset({*range(130, 138), 143})
"""ICMPv6 types that Linux leaves alone (nf_conntrack_proto_icmpv6.c): discovery of neighbours, routers, listeners."""
NEIGHBOURS = frozenset({133, 135, 136})
ROUTER_ADVERTISEMENT = 134

_QUESTIONS = {family: {answer: query for query, answer in pairs.items()} for family, pairs in ANSWERS.items()}


def first_state(packet: Packet) -> ConnState:
    """What a packet is where nothing is known of its connection: NEW or INVALID.

    A lone ACK is NEW: conntrack picks connections up in the middle. An answer without a question, a reset without a
    connection and an error about nothing are INVALID.
    """
    if packet.kind is not Kind.IP:
        return ConnState.NEW
    if packet.protocol == TCP:
        return _first_state_tcp(packet.tcp_flags)
    if is_icmp(packet):
        return ConnState.NEW if packet.icmp_type in ANSWERS[packet.family] else ConnState.INVALID
    return ConnState.NEW


def _first_state_tcp(flags: int) -> ConnState:
    if flags & (RST | FIN) or flags & (SYN | ACK) == SYN | ACK or not flags & (SYN | ACK):
        return ConnState.INVALID
    return ConnState.NEW


def is_icmp(packet: Packet) -> bool:
    """Whether it is ICMP of its own family; protocol 1 within IPv6 is just a number."""
    return packet.protocol == (ICMP if packet.family == 4 else ICMPV6)


def can_open(family: int, icmp_type: int) -> bool:
    """Whether an ICMP message of this type is the first of a connection."""
    return icmp_type in ANSWERS[family]


def answer_to(packet: Packet) -> Packet:
    """The first packet that its receiver sends back: SYN-ACK, the answer to an ICMP query, the same protocol else.

    Args:
        packet: opens a connection.
    """
    back = packet.reversed()
    if packet.protocol == TCP:
        return replace(back, tcp_flags=SYN | ACK)
    if is_icmp(packet):
        return replace(back, icmp_type=ANSWERS[packet.family].get(packet.icmp_type, packet.icmp_type))
    return back


def question_of(packet: Packet) -> Packet:
    """What the other side sent, if this is an answer or an error: the packet that conntrack must have seen before."""
    if packet.quoted is not None:
        return packet.quoted
    back = packet.reversed()
    if is_icmp(packet):
        return replace(back, icmp_type=_QUESTIONS[packet.family].get(packet.icmp_type, packet.icmp_type))
    return back
