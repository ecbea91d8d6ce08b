"""A policy's packet as `ofproto/trace` wants it, with the conntrack states that it shall be given. Pure.

judge.ofproto_trace writes the flows of probes; this writes those of anything that a policy can be asked about.
"""

from netprobe.judge.conntrack import CtState
from netprobe.model.packets import ConnState, Fragment, Kind, Packet
from netprobe.model.policy import ICMPV6, SCTP, TCP, UDP

_NS, _NA = 135, 136  # RFC 4861 §4.3, §4.4
_HOP_LIMIT_ND = 255  # RFC 4861 §7.1: neighbour discovery with any other is no neighbour discovery
_TTL = 64
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_PORT_WORDS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
"""Protocols whose ports Open vSwitch reads; it knows the others by number only, and their ports not at all."""

PASSES = 8
"""States that a question carries, one for each pass through conntrack; OVN's pipelines have up to six."""

_STATES = {
    ConnState.NEW: CtState.NEW,
    ConnState.ESTABLISHED: CtState.ESTABLISHED,
    ConnState.REPLY: CtState.REPLY,
    ConnState.RELATED: CtState.RELATED,
    ConnState.INVALID: CtState.INVALID,
}


def states_of(state: ConnState) -> tuple[CtState, ...]:
    """The states of a trace's passes through conntrack; what a pipeline does not use is not asked for."""
    return (_STATES[state],) * PASSES


def packet_flow(packet: Packet, in_port: int) -> str:
    """One packet as `ofproto/trace` wants it.

    Args:
        packet: with concrete ports; None counts as 0.
        in_port: OpenFlow number of the port it comes in at.
    """
    ethernet = [f"in_port={in_port}"]
    if packet.kind is Kind.ARP:
        return ",".join([*ethernet, "arp", *_ethernet(packet), *_arp(packet)])
    return ",".join([*ethernet, _protocol_word(packet), *_ethernet(packet), *_ip(packet), *_transport(packet)])


def _ethernet(packet: Packet) -> list[str]:
    return [f"dl_src={packet.src_mac}", f"dl_dst={packet.dst_mac}"]


def _arp(packet: Packet) -> list[str]:
    body = packet.neighbour
    sender = body.mac if body is not None and body.mac else packet.src_mac
    source = body.ip if body is not None else packet.src_ip
    target = body.target if body is not None and body.target is not None else packet.dst_ip
    is_request = packet.dst_mac == _BROADCAST
    answered = "00:00:00:00:00:00" if is_request else packet.dst_mac
    return [
        f"arp_op={1 if is_request else 2}",
        f"arp_spa={source}",
        f"arp_tpa={target}",
        f"arp_sha={sender}",
        f"arp_tha={answered}",
    ]


def _protocol_word(packet: Packet) -> str:
    is_v6 = packet.family == 6
    if packet.is_icmp and (packet.protocol == ICMPV6) == is_v6:
        return "icmp6" if is_v6 else "icmp"
    if packet.protocol in _PORT_WORDS:
        return _PORT_WORDS[packet.protocol] + ("6" if is_v6 else "")
    return "ipv6" if is_v6 else "ip"


def _ip(packet: Packet) -> list[str]:
    src, dst = ("ipv6_src", "ipv6_dst") if packet.family == 6 else ("nw_src", "nw_dst")
    ttl = _HOP_LIMIT_ND if packet.kind is Kind.ND else _TTL
    words = [f"{src}={packet.src_ip}", f"{dst}={packet.dst_ip}", f"nw_ttl={ttl}"]
    if _protocol_word(packet) in {"ip", "ipv6"}:
        words.append(f"nw_proto={packet.protocol}")
    if packet.fragment is not Fragment.NONE:
        words.append(f"nw_frag={packet.fragment.value}")
    return words


def _transport(packet: Packet) -> list[str]:
    word = _protocol_word(packet)
    if packet.fragment is Fragment.LATER:
        return []  # it has no transport header, and OVS refuses one
    if word == "icmp":
        return [f"icmp_type={packet.icmp_type}", f"icmp_code={packet.icmp_code}"]
    if word == "icmp6":
        return [f"icmpv6_type={packet.icmp_type}", f"icmpv6_code={packet.icmp_code}", *_neighbour(packet)]
    if packet.protocol not in _PORT_WORDS:
        return []
    # Not tp_src and tp_dst: parsing an exact flow, OVS 3.1 takes those for TCP alone.
    name = _PORT_WORDS[packet.protocol]
    words = [f"{name}_src={packet.src_port or 0}", f"{name}_dst={packet.dst_port or 0}"]
    if packet.protocol == TCP:
        flags = "|".join(flag for bit, flag in enumerate(_FLAGS) if packet.tcp_flags >> bit & 1)
        words.append(f"tcp_flags={flags or 0}")
    return words


def _neighbour(packet: Packet) -> list[str]:
    body = packet.neighbour
    if body is None or packet.icmp_type not in (_NS, _NA):
        return []  # OVS knows no fields of router discovery
    option = "nd_sll" if packet.icmp_type == _NS else "nd_tll"
    return [f"nd_target={body.ip}", *([f"{option}={body.mac}"] if body.mac else [])]
