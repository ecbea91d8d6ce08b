"""One packet of a scenario to one Ethernet frame: what a guest would send, with a mark that tells it from a guest's.

Pure: packets in, octets out. IP, fragments and ARP are here, what stands after the IP header is in
`policy_transport`. `policy_decode` is the inverse, `policy_bpf` the filter that absorbs these frames. Offsets:
docs/wire-format.md.
"""

import struct

from netprobe.errors import UsageError
from netprobe.model.packets import ConnState, Fragment, Kind, Packet
from netprobe.model.policy import ICMPV6
from netprobe.wire.policy_layout import (
    FIRST_BYTES,
    FRAGMENT_HEADER,
    IPV6_EXTENSIONS,
    LATER_BYTES,
    PolicyMark,
    identity,
    syn_number,
)
from netprobe.wire.policy_transport import (
    Segment,
    TcpNumbers,
    build,
    internet_sum,
    later_fragment,
    mac_octets,
    sequence_bytes,
)

__all__ = ["PolicyMark", "TcpNumbers", "encode_packet", "identity", "sequence_bytes", "syn_number"]

_TTL = 64
_DISCOVERY = range(133, 138)  # RFC 4861: only believed with a hop limit of 255
_DONT_FRAGMENT, _MORE_FRAGMENTS = 0x4000, 0x2000
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_ARP_REQUEST, _ARP_REPLY = 1, 2


def encode_packet(
    packet: Packet,
    mark: PolicyMark,
    seq: int,
    *,
    tcp: TcpNumbers | None = None,
    ident: int = 0,
    state: ConnState = ConnState.NEW,
    datagram: int | None = None,
    quoted_seq: int = 0,
) -> bytes:
    """The frame of one packet.

    ARP to the broadcast address is a request, to any other a reply.

    Args:
        packet: with all ports chosen (`Packet.with_ephemeral`).
        mark: of the run.
        seq: number of the frame in the run, 32 bits.
        tcp: numbers of a TCP segment, or of the one that an ICMP error quotes. A SYN's own sequence number is always
            its mark; without `tcp`, so is that of others, and what they acknowledge is 0.
        ident: identifier of an ICMP query, or of the one that is quoted.
        state: of SCTP and DCCP: INIT or Request; where it is REPLY, INIT-ACK or Response; where it is ESTABLISHED,
            COOKIE-ECHO or DataAck.
        datagram: of fragments: any number that both share, and no other datagram; `seq` of the first one is meant.
            None is `seq`.
        quoted_seq: of an ICMP error: `seq` of the packet that it quotes.

    Raises:
        UsageError: a packet that cannot be made: an IPv6 extension header as protocol, an error in fragments.
    """
    assert packet.src_port is not None, f"open source port in {packet.text()}"
    assert packet.dst_port is not None, f"open destination port in {packet.text()}"
    _check(packet)
    ether_type = 0x0806 if packet.kind is Kind.ARP else 0x0800 if packet.family == 4 else 0x86DD
    ethernet = mac_octets(packet.dst_mac) + mac_octets(packet.src_mac) + ether_type.to_bytes(2, "big")
    if packet.kind is Kind.ARP:
        return ethernet + _arp(packet) + identity(mark, seq)
    quoted = b""
    if packet.quoted is not None:
        quoted = _ip(Segment(packet.quoted, mark, quoted_seq, tcp, ident), quoted_seq)
    segment = Segment(packet, mark, seq, tcp, ident, state, quoted)
    return ethernet + _ip(segment, seq if datagram is None else datagram)


def _check(packet: Packet) -> None:
    """Refuse what has no frame.

    Raises:
        UsageError: see `encode_packet`.
    """
    if packet.family == 6 and packet.protocol in IPV6_EXTENSIONS:
        advice = "a packet with it is one of the protocol that follows it"
        raise UsageError(packet.text(), f"protocol {packet.protocol} is an IPv6 extension header", advice=advice)
    if packet.fragment is not Fragment.NONE and (packet.quoted is not None or packet.kind is not Kind.IP):
        raise UsageError(packet.text(), "an ICMP error or neighbour discovery in fragments", allowed="whole packets")
    if packet.quoted is not None and packet.quoted.fragment is not Fragment.NONE:
        raise UsageError(packet.text(), "an ICMP error about a fragment", allowed="errors about whole packets")


def _arp(packet: Packet) -> bytes:
    """The 28 octets of ARP for IPv4 over Ethernet (RFC 826)."""
    neighbour = packet.neighbour
    sender_mac, sender = (neighbour.mac, neighbour.ip) if neighbour else (packet.src_mac, packet.src_ip)
    target = neighbour.target if neighbour and neighbour.target else packet.dst_ip
    is_request = packet.dst_mac == _BROADCAST
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _ARP_REQUEST if is_request else _ARP_REPLY)
    target_mac = bytes(6) if is_request else mac_octets(packet.dst_mac)
    return b"".join((header, mac_octets(sender_mac), sender.packed, target_mac, target.packed))


def _ip(segment: Segment, datagram: int) -> bytes:
    """The packet from the IP header on."""
    packet = segment.packet
    if packet.fragment is Fragment.LATER:
        body = later_fragment(packet, segment.mark, segment.seq)
    elif packet.fragment is Fragment.FIRST:
        body = build(_with_more(segment), FIRST_BYTES)
    else:
        body = build(segment)
    return (_ipv4 if packet.family == 4 else _ipv6)(segment, body, datagram)


def _with_more(segment: Segment) -> Segment:
    s = segment
    return Segment(s.packet, s.mark, s.seq, s.tcp, s.ident, s.state, s.quoted, LATER_BYTES)


def _ipv4(segment: Segment, body: bytes, datagram: int) -> bytes:
    """RFC 791 §3.1, no options."""
    packet, mark = segment.packet, segment.mark
    number, control = mark.ip_id, _DONT_FRAGMENT
    if packet.fragment is not Fragment.NONE:
        number = mark.fragment_id(datagram)
        control = _MORE_FRAGMENTS if packet.fragment is Fragment.FIRST else FIRST_BYTES // 8
    head = struct.pack("!BBHHHBB", 0x45, mark.dscp << 2, 20 + len(body), number, control, _TTL, packet.protocol)
    addresses = packet.src_ip.packed + packet.dst_ip.packed
    checksum = internet_sum(head + addresses) ^ 0xFFFF
    return b"".join((head, checksum.to_bytes(2, "big"), addresses, body))


def _ipv6(segment: Segment, body: bytes, datagram: int) -> bytes:
    """RFC 8200 §3 and, for fragments, §4.5."""
    packet, mark = segment.packet, segment.mark
    next_header = packet.protocol
    if packet.fragment is not Fragment.NONE:
        offset = 1 if packet.fragment is Fragment.FIRST else FIRST_BYTES  # in units of 8 above three bits of flags
        body = struct.pack("!BBHI", next_header, 0, offset, mark.session ^ datagram) + body
        next_header = FRAGMENT_HEADER
    is_discovery = packet.protocol == ICMPV6 and packet.icmp_type in _DISCOVERY
    word = 6 << 28 | mark.dscp << 22 | mark.flow_label
    head = struct.pack("!IHBB", word, len(body), next_header, 255 if is_discovery else _TTL)
    return b"".join((head, packet.src_ip.packed, packet.dst_ip.packed, body))
