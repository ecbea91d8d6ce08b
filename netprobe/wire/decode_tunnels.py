"""Frames inside tunnels: from packets of an underlay to the packets that they carry. One level; total.

Geneve (RFC 8926) with any options, VXLAN (RFC 7348), over IPv4 and IPv6. Whether a packet that looks like a tunnel is
one, or a probe to that very port, is not judged here: `decode` reads both and keeps one. Above: `decode_headers`.
"""

from dataclasses import dataclass, fields

import numpy as np

from netprobe.model.contexts import Tunnel
from netprobe.wire import encapsulation
from netprobe.wire.decode_headers import I64, Octets, Packets, parse_ethernet, parse_ip

UDP = 17
TUNNELS = tuple(Tunnel)
"""A tunnel is stored as its index in here; 0 is none."""


@dataclass(frozen=True, slots=True)
class Tunnels:
    """Packets that carry another one, shape (m,) each.

    Attributes:
        outer: row of the packet in those that were asked about.
        kind: index into TUNNELS.
        vni: network identifier, 24 bits.
        start, end: of what is inside, in the buffer; end is at least start.
        ether_type: of an IP packet without an Ethernet header; 0 for an Ethernet frame.
    """

    outer: I64
    kind: I64
    vni: I64
    start: I64
    end: I64
    ether_type: I64

    def take(self, rows: I64) -> "Tunnels":
        """Some rows, in the order given."""
        return Tunnels(*(getattr(self, field.name)[rows] for field in fields(self)))


_NONE = np.empty(0, np.int64)
NO_TUNNELS = Tunnels(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE)


def find_tunnels(octets: Octets, packets: Packets) -> Tunnels:
    """Which packets are a tunnel's, by their UDP destination port and a sound header after it.

    Sound: Geneve of version 0 that carries data, not a message between the tunnel's own ends (whose content transit
    devices MUST NOT interpret, RFC 8926 §3.4); VXLAN with the I flag (the other flags are ignored on receipt, RFC 7348
    §5). Only octets inside the UDP datagram count.
    """
    rows = np.flatnonzero((packets.protocol == UDP) & (packets.family != 0))
    ports = octets.uint(packets.l4[rows] + 2, 2)
    is_geneve = ports == encapsulation.GENEVE_PORT
    is_candidate = is_geneve | np.isin(ports, encapsulation.VXLAN_PORTS)
    rows, is_geneve = rows[is_candidate], is_geneve[is_candidate]
    if not len(rows):
        return NO_TUNNELS
    l4 = packets.l4[rows]
    start = l4 + 8 + encapsulation.TUNNEL_HEADER_BYTES
    first = octets.uint(l4 + 8, 1)
    protocol = octets.uint(l4 + 10, 2)
    is_data = (first & encapsulation.GENEVE_VERSION == 0) & (octets.uint(l4 + 9, 1) & encapsulation.GENEVE_CONTROL == 0)
    is_data &= np.isin(protocol, encapsulation.GENEVE_PAYLOADS)
    is_sound = np.where(is_geneve, is_data, first & encapsulation.VXLAN_HAS_VNI != 0)
    start += np.where(is_geneve, (first & 0x3F) * 4, 0)
    # A UDP length of less than its own header is nonsense; it then ends before `start`.
    end = np.minimum(packets.end[rows], l4 + octets.uint(l4 + 4, 2))
    found = Tunnels(
        outer=rows,
        kind=np.where(is_geneve, TUNNELS.index(Tunnel.GENEVE), TUNNELS.index(Tunnel.VXLAN)),
        vni=octets.uint(l4 + 12, 4) >> 8,
        start=start,
        end=end,
        ether_type=np.where(is_geneve & (protocol != encapsulation.TRANSPARENT_ETHERNET), protocol, 0),
    )
    return found.take(np.flatnonzero(is_sound & (start <= end)))


def inner_packets(octets: Octets, packets: Packets, tunnels: Tunnels) -> Packets:
    """The IP packets inside, one row for each tunnel; `family` is 0 where there is none."""
    l3, ether_types, _ = parse_ethernet(octets, tunnels.start, tunnels.end)
    is_bare = tunnels.ether_type != 0
    return parse_ip(
        octets,
        packets.index[tunnels.outer],
        np.where(is_bare, tunnels.ether_type, ether_types),
        np.where(is_bare, tunnels.start, l3),
        tunnels.end,
    )
