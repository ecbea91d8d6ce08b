"""Conntrack entries as values: parse the lines of `dpctl/dump-conntrack`, and the state that a probe would be given.

Pure and total: a line that is no entry is counted, never an exception. host.conntrack, above, asks the switch;
judge.ofproto_trace uses the states.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address

from netprobe.errors import UsageError
from netprobe.model.probes import IPAddress

PROTOCOL_NUMBERS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "icmpv6": 58, "sctp": 132, "udplite": 136}
"""IANA protocol numbers by the names that OVS prints; of others it prints the number."""

ICMP, TCP, UDP, DCCP, GRE, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 47, 58, 132, 136
ECHO_REQUEST = 8
ECHO_REQUEST_V6 = 128
QUERIES = frozenset({ECHO_REQUEST, 13, 15})
"""ICMP types whose tuples OVS 3.1 takes (echo, timestamp, information); any other aborts it. It tracks no others."""

WITH_PORTS = frozenset({TCP, UDP, DCCP, SCTP, UDPLITE})
IPS_SEEN_REPLY = 0x2  # linux/netfilter/nf_conntrack_common.h


@dataclass(frozen=True, slots=True)
class FiveTuple:
    """One direction of a connection.

    Attributes:
        protocol: IANA number.
        src_port: for ICMP and ICMPv6 the echo identifier.
        dst_port: 0 for ICMP and ICMPv6.
        icmp_type: echo request or reply; 0 for others.
        icmp_code: 0 for echo.
    """

    protocol: int
    src: IPAddress
    dst: IPAddress
    src_port: int
    dst_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0

    @property
    def is_icmp(self) -> bool:
        """Whether it has an identifier instead of ports."""
        return self.protocol in (ICMP, ICMPV6)


@dataclass(frozen=True, slots=True)
class ConntrackEntry:
    """One tracked connection.

    Attributes:
        state: TCP's (`SYN_SENT`), of the originating end where both are given.
        labels: 128 bits that the switch's rules have set.
        status: Linux's IPS_* bits; 0 where a switch says nothing.
    """

    original: FiveTuple
    reply: FiveTuple
    zone: int
    state: str = ""
    timeout_s: int | None = None
    mark: int = 0
    labels: int = 0
    status: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether the table itself says that an answer has gone back; only Linux does."""
        return bool(self.status & IPS_SEEN_REPLY)

    @property
    def acl_label(self) -> int:
        """Label of the ACL of OVN's that admitted it, 0 without one: bits 96 to 127 (`ct_label.label`)."""
        return self.labels >> 96 & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ConntrackDump:
    """What a dump held; `bad_lines` could not be read."""

    entries: tuple[ConntrackEntry, ...]
    bad_lines: int


_TUPLE = r"\(src=([0-9a-fA-F.:]+),dst=([0-9a-fA-F.:]+),(?:sport=(\d+),dport=(\d+)|id=(\d+),type=(\d+),code=(\d+))\)"
_ENTRY = re.compile(rf"(\w+),orig={_TUPLE},reply={_TUPLE}((?:,[^\n]*)?)")
_EXTRA = {
    "zone": re.compile(r",zone=(\d+)"),
    "timeout": re.compile(r",timeout=(\d+)"),
    "mark": re.compile(r",mark=(0x[0-9a-fA-F]+|\d+)"),
    "labels": re.compile(r",labels=(0x[0-9a-fA-F]{1,32})"),
}
_STATE = re.compile(r"[(,]state(?:_orig)?=(\w+)")


def _tuple_of(protocol: int, fields: tuple[str | None, ...]) -> FiveTuple:
    src, dst, sport, dport, echo_id, icmp_type, icmp_code = fields
    numbers = [int(text or 0) for text in (sport or echo_id, dport, icmp_type, icmp_code)]
    if max(numbers) > 0xFFFF:
        raise ValueError(max(numbers))
    return FiveTuple(protocol, ip_address(src or ""), ip_address(dst or ""), *numbers)


def _extra(rest: str, name: str) -> int | None:
    found = _EXTRA[name].search(rest)
    return int(found[1], 0) if found else None


def parse_line(line: str) -> ConntrackEntry | None:
    """The entry on one line of `dpctl/dump-conntrack` (with or without -m, -s), or None."""
    found = _ENTRY.fullmatch(line.strip())
    if found is None:
        return None
    protocol = PROTOCOL_NUMBERS.get(found[1])
    try:
        protocol = int(found[1]) if protocol is None else protocol
        if protocol > 0xFF:
            return None
        original, reply = _tuple_of(protocol, found.groups()[1:8]), _tuple_of(protocol, found.groups()[8:15])
        rest = found[16]
        state = _STATE.search(rest)
        return ConntrackEntry(
            original,
            reply,
            zone=_extra(rest, "zone") or 0,
            state=state[1] if state else "",
            timeout_s=_extra(rest, "timeout"),
            mark=_extra(rest, "mark") or 0,
            labels=_extra(rest, "labels") or 0,
        )
    except ValueError:
        return None


def parse_dump(text: str) -> ConntrackDump:
    """All entries of a dump; lines that are none are counted."""
    lines = [line for line in text.splitlines() if line.strip()]
    entries = [entry for entry in map(parse_line, lines) if entry is not None]
    return ConntrackDump(tuple(entries), len(lines) - len(entries))


def entries_matching(
    entries: Iterable[ConntrackEntry], wanted: Iterable[FiveTuple], *, zone: int | None = None
) -> list[ConntrackEntry]:
    """The entries in which one of the wanted tuples is the originating or the answering direction.

    Args:
        entries: what to look through.
        wanted: exact tuples.
        zone: only this zone; None is any.
    """
    keys = frozenset(wanted)
    return [e for e in entries if (zone is None or e.zone == zone) and (e.original in keys or e.reply in keys)]


def flush_argument(tuple_: FiveTuple, *, is_alone: bool = False) -> str:
    """The tuple as `dpctl/flush-conntrack` wants it, complete.

    OVS takes a field that is 0 or missing as "any" and then deletes other people's connections too (measured on 3.1:
    ct_tp_src=0 deleted two of two), so nothing with such a field is accepted, but for one case. It also aborts on an
    ICMP type that is no query, and on every ICMPv6 tuple (its reverse_icmp_type() knows ICMPv4's types only; seen on
    3.1.0).

    The case is a protocol that the table has without ports, which for OVS's own are all but TCP, UDP and ICMP. Naming
    one is harmless (tried on 3.1.0: 2, 33, 47, 50, 51, 112, 136, 253), but means all entries of these addresses and
    that protocol; it must have been seen that there is one.

    Args:
        tuple_: the originating direction.
        is_alone: no other entry of its zone has these addresses and this protocol.

    Raises:
        UsageError: the tuple cannot be named exactly, or naming it would kill the switch.
    """
    where = f"conntrack tuple {tuple_}"
    if tuple_.protocol == ICMPV6:
        raise UsageError(where, "is ICMPv6", allowed="TCP, UDP and ICMP", advice="it goes by its own timeout")
    if tuple_.src.is_unspecified or tuple_.dst.is_unspecified or not tuple_.protocol:
        raise UsageError(where, "has a field that is 0", allowed="exact addresses, ports and identifiers")
    names = ("ct_nw_src", "ct_nw_dst") if tuple_.src.version == 4 else ("ct_ipv6_src", "ct_ipv6_dst")
    words = f"{names[0]}={tuple_.src},{names[1]}={tuple_.dst},ct_nw_proto={tuple_.protocol}"
    if tuple_.protocol == ICMP:
        if tuple_.icmp_type not in QUERIES or tuple_.icmp_code or tuple_.src.version != 4 or not tuple_.src_port:
            allowed = f"queries (types {', '.join(map(str, sorted(QUERIES)))}) with an identifier"
            raise UsageError(where, f"is of ICMP type {tuple_.icmp_type}", allowed=allowed)
        return f"{words},icmp_id={tuple_.src_port},icmp_type={tuple_.icmp_type},icmp_code=0"
    if tuple_.protocol in WITH_PORTS and tuple_.src_port and tuple_.dst_port:
        return f"{words},ct_tp_src={tuple_.src_port},ct_tp_dst={tuple_.dst_port}"
    if tuple_.protocol in (TCP, UDP) or tuple_.src_port or tuple_.dst_port or not is_alone:
        allowed = "exact ports; none where the table has only this one entry of its addresses and protocol"
        raise UsageError(where, "has a field that is 0", allowed=allowed)
    return words


class CtState(Enum):
    """Conntrack states that a probe can be given; the value is what `ofproto/trace --ct-next` takes."""

    NEW = "trk,new"
    ESTABLISHED = "trk,est"
    REPLY = "trk,est,rpl"
    RELATED = "trk,rel,rpl"
    INVALID = "trk,inv"


SYN, ACK = 0x02, 0x10
_TAKES_A_SYN = frozenset({"SYN_SENT", "TIME_WAIT", "FIN_WAIT_2", "CLOSED"})
"""States in which another SYN is `new` again (measured on OVS 3.1: unanswered, and after a RST)."""


def state_for(
    tuple_: FiveTuple,
    entries: Iterable[ConntrackEntry],
    *,
    tcp_flags: int = SYN,
    is_answered: bool = False,
    zone: int | None = None,
) -> CtState:
    """The state that a packet of `tuple_` would be given, from the entries that were there before it.

    A SYN on a tuple whose connection is up has another initial sequence number than the first one had, so it falls
    outside the window: invalid (measured: 98 of 100 were `+inv`). UDP and ICMP stay `new` until somebody answers.

    Args:
        tuple_: the packet's own direction.
        entries: entries before the packet; those that the packet itself made do not belong here.
        tcp_flags: flags of a TCP segment; ignored for others.
        is_answered: whether an answer has gone back on this tuple (the datapath does not say it for UDP and ICMP).
        zone: only this zone's entries count; None is any.
    """
    is_tcp = tuple_.protocol == TCP
    for entry in entries_matching(entries, [tuple_], zone=zone):
        if entry.reply == tuple_:
            return CtState.REPLY
        if is_tcp and tcp_flags & (SYN | ACK) == SYN:
            return CtState.NEW if entry.state in _TAKES_A_SYN else CtState.INVALID
        return CtState.ESTABLISHED if is_tcp or is_answered or entry.is_answered else CtState.NEW
    is_late = is_tcp and tcp_flags & (SYN | ACK) == SYN | ACK
    return CtState.INVALID if is_late else CtState.NEW  # a SYN-ACK opens nothing; an ACK picks a connection up
