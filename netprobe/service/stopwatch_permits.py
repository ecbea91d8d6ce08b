"""What a stopwatch may do on each host, asked before anything is sent (design §6a), and the ports that it may use."""

from collections.abc import Sequence
from dataclasses import dataclass

from netprobe.host.audit import InjectionOrder, record_order
from netprobe.host.clock import realtime_ns
from netprobe.host.conntrack import Conntrack
from netprobe.host.nf_conntrack import KernelConntrack
from netprobe.host.port_ledger import reserve_ports
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import ConntrackEntry, FiveTuple
from netprobe.model.policy import PROTOCOL_NAMES
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.plan.budget import Demand, check_conntrack
from netprobe.plan.port_ledger import flow_key
from netprobe.service.discovery import base_dir
from netprobe.service.permits import ZONES_A_HOST, audit_path, read_host_allowlist
from netprobe.service.stopwatch_streams import Watched
from netprobe.service.verify_permits import check_bound, check_rate, conntrack_use

ZONES_OF_A_PATH = 2
"""Where iptables enforce, each port has a zone: a connection has an entry in its sender's and in its target's."""


@dataclass(frozen=True, slots=True)
class StopwatchTerms:
    """What is asked for.

    Attributes:
        pps: packets a second, all streams together.
        connections: how many at the most, of all classes together.
        packets: at the most.
    """

    pps: int
    connections: int
    packets: int


def permit_stopwatch(
    attachments: Sequence[Attachment], topology: Topology, classes: Sequence[Watched], terms: StopwatchTerms, *,
    is_kernel: bool,
) -> None:  # fmt: skip
    """Let a stopwatch run, and write it to each host's audit log.

    Args:
        attachments: the ports that take part.
        topology: their hosts.
        classes: what is watched.
        terms: how much.
        is_kernel: connections are tracked by the kernel (iptables), not by the vswitch.

    Raises:
        RefusedError: a host does not allow it, or its conntrack table has no room.
        HostNotReadyError: a switch does not answer, or a port is not bound.
    """
    hosts = [host for host in topology.hosts if host.name in {one.host for one in attachments}]
    lists = {host.name: read_host_allowlist(host) for host in hosts}
    for one in attachments:
        lists[one.host].check_verify((one.name, one.port_device, one.iface_id, one.mac))
    for name, allowlist in lists.items():
        check_rate(allowlist, "tap", terms.pps, name)
    check_bound(attachments, hosts)
    demands = [Demand(host.name, host.zone, terms.connections * _zones(host, is_kernel=is_kernel)) for host in hosts]
    check_conntrack(demands, {host.name: conntrack_use(host, is_kernel=is_kernel) for host in hosts})
    for host in hosts:
        here = [one.name for one in attachments if one.host == host.name]
        type_p: dict[str, object] = {"protocol": "verify", "watched": [watched.rule[:100] for watched in classes]}
        record = InjectionOrder(
            host=host.name,
            port=", ".join(here)[:1024],
            vantage="tap",
            type_p=type_p,
            count=terms.packets,
            pps=terms.pps,
            session=0,
        )
        record_order(record, realtime_ns(), path=audit_path())


def _zones(host: Host, *, is_kernel: bool) -> int:
    if is_kernel:
        return ZONES_OF_A_PATH
    return 1 if host.zone is not None else ZONES_A_HOST


def tracked(hosts: Sequence[Host], *, is_kernel: bool) -> frozenset[FiveTuple]:
    """Both directions of every connection that hosts know now.

    Raises:
        HostNotReadyError: a switch or the kernel does not answer.
    """
    found: list[ConntrackEntry] = []
    for host in hosts:
        if is_kernel:
            with KernelConntrack(host.netns) as table:
                found += table.dump()
        elif host.ovs_rundir:
            with UnixctlClient(host.ovs_rundir) as unixctl:
                found += Conntrack(unixctl).dump(host.zone).entries
    return frozenset(one for entry in found for one in (entry.original, entry.reply))


def reserve(watched: Watched, count: int, last_use_ns: int, known: frozenset[FiveTuple]) -> tuple[int, ...]:
    """Source ports (or identifiers) of a class that nobody uses, and that no run had lately.

    Args:
        watched: the class.
        count: how many.
        last_use_ns: when the last one may be used, CLOCK_REALTIME.
        known: `tracked`.

    Raises:
        RefusedError: not so many are free; it says when there will be.
        HostNotReadyError: the ledger cannot be written.
    """
    packet = watched.packet
    names = {number: name for name, number in PROTOCOL_NAMES.items()}
    name = names.get(packet.protocol, str(packet.protocol))
    key = flow_key(name, packet.src_ip, packet.dst_ip, packet.dst_port or 0)
    like = (packet.protocol, packet.src_ip, packet.dst_ip, packet.dst_port or 0)
    taken = {one.src_port for one in known if (one.protocol, one.src, one.dst, one.dst_port) == like}
    path = base_dir() / "ports.json"
    return reserve_ports(key, count, realtime_ns(), in_use=taken, last_use_ns=last_use_ns, path=path)
