"""What a verification may do on each host, asked before anything is sent (design §6a)."""

from collections.abc import Sequence

from netprobe.errors import HostNotReadyError, RefusedError
from netprobe.host.audit import InjectionOrder, record_order
from netprobe.host.conntrack import Conntrack
from netprobe.host.nf_conntrack import KernelConntrack
from netprobe.host.ovsdb import bound_ports
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.points import Vantage
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.plan.budget import MAX_SHARE_OF_FREE, Demand, Room, check_conntrack
from netprobe.service.permits import audit_path, read_host_allowlist

ENTRIES_A_SCENARIO = 2
"""At most: one in the zone of the sender's port, one in that of the receiver's."""


def permit_verify(
    attachments: Sequence[Attachment],
    topology: Topology,
    frames: int,
    order: tuple[str, int],
    now_ns: int,
    *,
    is_kernel: bool,
) -> int:
    """Let a verification pass, and write it to each host's audit log.

    Args:
        attachments: the ports that take part.
        topology: their hosts.
        frames: how many will be sent at the most, besides controls.
        order: vantage ("tap", "vswitch" or "guest") and packets a second.
        now_ns: CLOCK_REALTIME.
        is_kernel: connections are tracked by the kernel (iptables), not by the vswitch.

    Returns:
        Scenarios that may be under way at once, so that their connections take no more of any conntrack table than is
        netprobe's share.

    Raises:
        RefusedError: a host does not allow it, or its conntrack table has no room.
        HostNotReadyError: a switch does not answer, or a port is not bound.
    """
    vantage, pps = order
    hosts = [host for host in topology.hosts if host.name in {one.host for one in attachments}]
    lists = {host.name: read_host_allowlist(host) for host in hosts}
    for one in attachments:
        lists[one.host].check_verify((one.name, one.port_device, one.iface_id, one.mac))
    for name, allowlist in lists.items():
        check_rate(allowlist, vantage, pps, name)
    check_bound(attachments, hosts)
    most = min(_room(host, is_kernel=is_kernel) for host in hosts)
    for host in hosts:
        _audit(host, attachments, frames, order, now_ns)
    return most


def check_rate(allowlist: Allowlist, vantage: str, pps: int, host: str) -> None:
    """Refuse a rate that a host does not permit.

    Raises:
        RefusedError: it is too high.
    """
    cap = allowlist.cap_pps(Vantage.VSWITCH if vantage == "vswitch" else Vantage.GUEST)
    if pps > cap:
        raise RefusedError(
            f"{allowlist.where}",
            f"{pps} packets/s on {host}",
            allowed=f"up to {cap:g} packets/s",
            advice="send more slowly",
        )


def check_bound(attachments: Sequence[Attachment], hosts: Sequence[Host]) -> None:
    """Packets are injected only while the port is bound on this host.

    Raises:
        HostNotReadyError: one is not.
    """
    for host in hosts:
        ports = bound_ports(host.ovs_rundir)
        for one in attachments:
            if one.host == host.name and ports.get(one.iface_id) != one.ofport:
                raise HostNotReadyError(
                    f"port of {one.name}",
                    f"is not bound on {host.name} as OpenFlow port {one.ofport}",
                    advice="is the guest still there? `netprobe lab status` tells",
                )


def _room(host: Host, *, is_kernel: bool) -> int:
    """Scenarios that a host's conntrack table has room for at once."""
    room = conntrack_use(host, is_kernel=is_kernel)
    check_conntrack([Demand(host.name, host.zone, ENTRIES_A_SCENARIO)], {host.name: room})
    return int(room.free * MAX_SHARE_OF_FREE) // ENTRIES_A_SCENARIO


def conntrack_use(host: Host, *, is_kernel: bool) -> Room:
    """How full the table is that tracks a host's connections: the kernel's or its switch's.

    Raises:
        HostNotReadyError: it does not answer.
    """
    if is_kernel:
        with KernelConntrack(host.netns) as table:
            return table.use()
    with UnixctlClient(host.ovs_rundir) as unixctl:
        return Conntrack(unixctl).use()


def _audit(host: Host, attachments: Sequence[Attachment], frames: int, order: tuple[str, int], now_ns: int) -> None:
    vantage, pps = order
    here = [one.name for one in attachments if one.host == host.name]
    type_p: dict[str, object] = {"protocol": "verify", "ports": len(here)}
    record = InjectionOrder(
        host=host.name,
        port=", ".join(here)[:1024],
        vantage=vantage,
        type_p=type_p,
        count=frames,
        pps=pps,
        session=0,
    )
    record_order(record, now_ns, path=audit_path())
