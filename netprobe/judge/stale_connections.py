"""Which tracked connections a policy does not permit: what conntrack remembers of rules that are gone. Pure.

An entry is judged as its first packet would be today. Where each port has a conntrack zone of its own, only what that
port enforces counts there: a connection that its sender may open stands in the sender's zone, whatever the target says.
"""

from collections.abc import Callable, Iterable, Mapping
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
        entries: a host's; those of others' ports are left out.
        policy: bound: ports have addresses.
        decide: says what should become of a packet.
        zones: the port of each conntrack zone, by name; None or a zone that is not in it: all ports share it.
    """
    ports = {ip: port for port in policy.ports for ip in port.ips}
    found: dict[tuple[object, ...], StaleConnection] = {}

    def is_permitted(entry: ConntrackEntry) -> bool | None:
        stale = _judge(entry, ports, decide, (zones or {}).get(entry.zone, ""))
        if isinstance(stale, StaleConnection):
            found.setdefault((entry.original, stale.check.point), stale)
            return False
        return stale

    stale_entries(entries, is_permitted)
    return list(found.values())


def _judge(
    entry: ConntrackEntry, ports: Mapping[IPAddress, PolicyPort], decide: Decide, owner: str
) -> StaleConnection | bool | None:
    """A stale connection, or whether it is permitted; None where its ends are not both the policy's."""
    tuple_ = entry.original
    src, dst = ports.get(tuple_.src), ports.get(tuple_.dst)
    if src is None or dst is None:
        return None
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
