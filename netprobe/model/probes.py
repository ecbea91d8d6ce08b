"""Probes: what a session sends (Type-P), along which addresses, when.

A session's numbers are dense from 0; every probe is named by (session, seq). Imports no numpy: the guest agent's side
reads some of these too.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


class Protocol(Enum):
    """Protocols of Type-P that netprobe can mark."""

    UDP = "udp"  # a STAMP Session-Sender packet
    RAW_UDP = "raw-udp"
    ICMP = "icmp"  # ICMP or ICMPv6 echo, by the address family
    TCP = "tcp"  # a SYN


class Flow(Enum):
    """Whether the probes of a session share one 5-tuple."""

    SAME = "same"
    NEW_PER_PROBE = "new-per-probe"


@dataclass(frozen=True, slots=True)
class TypeP:
    """Everything about a probe that a policy or a queue can look at (RFC 2330 §13).

    Attributes:
        size_bytes: length of the Ethernet frame without FCS.
        dscp: the class mark, or None when the plan turned it off (then DSCP 0 is sent and not matched).
        src_port: source port; with Flow.NEW_PER_PROBE the first of the session's block. 0 for ICMP.
    """

    protocol: Protocol
    family: int
    size_bytes: int
    dscp: int | None
    src_port: int
    dst_port: int
    flow: Flow
    ttl: int = 64


@dataclass(frozen=True, slots=True)
class Translation:
    """Addresses that a probe carries on some stretch of its way because a router's NAT put them there."""

    src_ip: IPAddress
    dst_ip: IPAddress


@dataclass(frozen=True, slots=True)
class ProbeSession:
    """One session: probes of one Type-P on one path, ready to be encoded.

    Attributes:
        session: 32-bit number, random per run, so that records of an older run are recognised as stale.
        key: 16 secret octets for the keyed tag; never sent.
        src_ports: source port of each probe when the flow is new per probe, else empty.
        translations: other address pairs under which its probes are known, behind a NAT (answers: turned round).
    """

    session: int
    key: bytes
    type_p: TypeP
    src_mac: bytes
    dst_mac: bytes
    src_ip: IPAddress
    dst_ip: IPAddress
    count: int
    src_ports: tuple[int, ...] = ()
    translations: tuple[Translation, ...] = ()
