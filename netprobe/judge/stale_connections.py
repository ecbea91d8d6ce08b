"""Which tracked connections a policy does not permit: what conntrack remembers of rules that are gone. Pure.

An entry is judged as its first packet would be today. Where each port has a conntrack zone of its own, only what that
port enforces counts there: a connection that its sender may open stands in the sender's zone, whatever the target says.

Networks may have the same addresses. Whose such an address is, only a zone tells that is one port's own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from netprobe.judge.conntrack import ConntrackEntry
from netprobe.judge.model_check import stale_entries
from netprobe.model.packets import SYN, Check, ConnState, Decision, Packet
from netprobe.model.policy import TCP, IPAddress, Policy, PolicyPort

Decide = Callable[[Packet, str, str, ConnState], Decision]
"""judge.evaluator's Evaluator.decide."""


@dataclass(frozen=True, slots=True)
class StaleConnection:
    """A connection that conntrack knows and the policy does not permit.

    Attributes:
        src, dst: names of the ports at its ends; `src` began it.
        packet: its first packet, as it would be today.
        check: what stops it.
    """

    entry: ConntrackEntry
    src: str
    dst: str
    packet: Packet
    check: Check


def find_stale(
    entries: Iterable[ConntrackEntry], policy: Policy, decide: Decide, zones: Mapping[int, str] | None = None
) -> list[StaleConnection]:
    """The stale ones among the connections between two ports of a policy.

    Args:
        entries: a host's; left out are those of others' ports, and those of which nobody can say whose they are.
        policy: bound: ports have addresses.
        decide: says what should become of a packet.
        zones: the port of each conntrack zone, by name; None or a zone that is not in it: all ports share it.
    """
    ports: dict[IPAddress, list[PolicyPort]] = {}
    for port in policy.ports:
        for ip in dict.fromkeys(port.ips):
            ports.setdefault(ip, []).append(port)
    found: dict[tuple[object, ...], StaleConnection] = {}

    def is_permitted(entry: ConntrackEntry) -> bool | None:
        stale = _judge(entry, ports, decide, (zones or {}).get(entry.zone, ""))
        if isinstance(stale, StaleConnection):
            found.setdefault((entry.original, stale.check.point), stale)
            return False
        return stale

    stale_entries(entries, is_permitted)
    return list(found.values())


def _ends(
    entry: ConntrackEntry, ports: Mapping[IPAddress, Sequence[PolicyPort]], owner: str
) -> tuple[PolicyPort, PolicyPort] | None:
    """Who began a connection with whom; None where they are not both the policy's, or where others may be meant."""
    all_src, all_dst = ports.get(entry.original.src, ()), ports.get(entry.original.dst, ())
    if len(all_src) == 1 == len(all_dst):
        return all_src[0], all_dst[0]
    # A zone is its port's own: it is one of the ends, and on its network the other end's address is there but once.
    pairs = [
        (src, dst)
        for src in all_src
        for dst in all_dst
        if src.network == dst.network and src != dst and owner in (src.name, dst.name)
    ]
    return pairs[0] if len(pairs) == 1 else None


def _judge(
    entry: ConntrackEntry, ports: Mapping[IPAddress, Sequence[PolicyPort]], decide: Decide, owner: str
) -> StaleConnection | bool | None:
    """A stale connection, or whether it is permitted; None where nobody can say whose it is."""
    tuple_ = entry.original
    ends = _ends(entry, ports, owner)
    if ends is None:
        return None
    src, dst = ends
    packet = Packet(
        src_mac=src.mac,
        dst_mac=dst.mac,
        src_ip=tuple_.src,
        dst_ip=tuple_.dst,
        protocol=tuple_.protocol,
        src_port=0 if tuple_.is_icmp else tuple_.src_port,
        dst_port=0 if tuple_.is_icmp else tuple_.dst_port,
        icmp_type=tuple_.icmp_type,
        icmp_code=tuple_.icmp_code,
        tcp_flags=SYN if tuple_.protocol == TCP else 0,
    )
    decision = decide(packet, src.name, dst.name, ConnState.NEW)
    stopped = next((check for check in decision.checks if not check.is_allowed), None)
    if stopped is None or owner not in ("", stopped.point.port):
        return True
    return StaleConnection(entry, src.name, dst.name, packet, stopped)
