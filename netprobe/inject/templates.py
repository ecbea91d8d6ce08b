"""Frame templates: one whole Ethernet frame of a session, with everything that its probes share.

The only module that imports scapy (GPL-2.0), and narrowly: scapy.all costs a second, these layers a third of that.
What differs from probe to probe is zero here; `wire.frames` fills it in, block by block. Does no I/O.
"""

import struct

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from netprobe.model.probes import ProbeSession, Protocol
from netprobe.wire import mark

TCP_WINDOW = 64240  # what Linux offers in a SYN at an MTU of 1500


def build_template(session: ProbeSession) -> bytes:
    """The frame that all probes of a session start from.

    Args:
        session: what to send, along which addresses.

    Returns:
        Exactly `size_bytes` octets: Ethernet, IP, the transport header and a payload of zeros; of a STAMP packet also
        the Error Estimate, the SSID and the TLV headers. A SYN has no payload: what it is longer is Ethernet padding.

    Raises:
        UsageError: the session does not fit the wire: see `mark.check_session`.
    """
    mark.check_session(session)
    frame = bytes(_ether(session) / _ip(session) / _transport(session))
    size = session.type_p.size_bytes
    assert len(frame) <= size, f"{len(frame)} octets built, {size} wanted"
    return frame.ljust(size, b"\0")


def _ether(session: ProbeSession) -> Packet:
    return Ether(src=session.src_mac.hex(":"), dst=session.dst_mac.hex(":"))


def _ip(session: ProbeSession) -> Packet:
    type_p = session.type_p
    traffic_class = (type_p.dscp or 0) << 2
    src, dst = str(session.src_ip), str(session.dst_ip)
    if type_p.family == 6:
        return IPv6(src=src, dst=dst, tc=traffic_class, hlim=type_p.ttl)
    # Don't fragment, as tenants' TCP and UDP do; such a datagram needs no identification (RFC 6864 §4.1).
    return IP(src=src, dst=dst, tos=traffic_class, ttl=type_p.ttl, flags="DF", id=0)


def _transport(session: ProbeSession) -> Packet:
    type_p = session.type_p
    payload = bytes(mark.payload_size(type_p))
    if type_p.protocol is Protocol.TCP:
        return TCP(sport=type_p.src_port, dport=type_p.dst_port, flags="S", seq=0, window=TCP_WINDOW)
    if type_p.protocol is Protocol.ICMP:
        echo = ICMPv6EchoRequest if type_p.family == 6 else ICMP
        return echo(id=session.session & 0xFFFF, seq=0) / Raw(payload)
    if type_p.protocol is Protocol.UDP:
        payload = _stamp(session.session, len(payload))
    return UDP(sport=type_p.src_port, dport=type_p.dst_port) / Raw(payload)


def _stamp(session: int, payload_bytes: int) -> bytes:
    """A Session-Sender packet (RFC 8762 §4.2.1, RFC 8972 §3) with sequence number, timestamp and identity zero."""
    base = struct.pack("!IQHH28x", 0, 0, mark.ERROR_ESTIMATE, mark.ssid(session))
    return base + mark.stamp_tlvs(payload_bytes)
