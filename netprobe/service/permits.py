"""What a run may do, asked before anything is sent: allowlist, rates, conntrack room, source ports, audit log.

Design §6a. Every refusal is an error that says which file, line or number forbids it; nothing is sent then.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host.allowlist import read_allowlist
from netprobe.host.audit import DEFAULT_PATH as DEFAULT_AUDIT_PATH
from netprobe.host.audit import InjectionOrder, record_order
from netprobe.host.clock import realtime_ns
from netprobe.host.conntrack import Conntrack
from netprobe.host.datapath_ports import read_drops
from netprobe.host.iproute import mtu
from netprobe.host.ovsdb import bound_ports
from netprobe.host.port_ledger import reserve_ports
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import FiveTuple
from netprobe.judge.ofproto_trace import five_tuple
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, ProbeSession, Protocol
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.plan.allowlist import Allowlist, Order
from netprobe.plan.budget import Demand, check_conntrack, check_rate
from netprobe.plan.plans import SessionPlan
from netprobe.plan.port_ledger import flow_key
from netprobe.service.discovery import base_dir
from netprobe.service.prepare import PortSource, Prepared, type_p_json

ETHERNET_BYTES = 14
ALWAYS_FITS = 1280  # every link that carries IPv6 takes as much (RFC 8200 §5)
IP_PROTOCOL = {Protocol.UDP: 17, Protocol.RAW_UDP: 17, Protocol.TCP: 6}


def read_host_allowlist(host: Host) -> Allowlist:
    """The allowlist of a host. Raises RefusedError where there is none."""
    return read_allowlist(Path(host.allowlist))


def audit_path() -> Path:
    """The audit log (NETPROBE_AUDIT overrides)."""
    return Path(os.environ.get("NETPROBE_AUDIT", DEFAULT_AUDIT_PATH))


def port_source(topology: Topology) -> PortSource:
    """Source ports from netprobe's own block: none that conntrack has, none that rests from an earlier run."""

    def ports(sender: Attachment, target: Attachment, plan: SessionPlan, wanted: int) -> Sequence[int]:
        src, dst = sender.address(plan.family), target.address(plan.family)
        protocol, dst_port = IP_PROTOCOL[plan.protocol], plan.dst_port or 0
        host, now_ns = topology.host(sender.host), realtime_ns()
        with UnixctlClient(host.ovs_rundir) as unixctl:
            entries = Conntrack(unixctl).dump(host.zone).entries
        taken = {
            e.original.src_port
            for e in entries
            if (e.original.protocol, e.original.src, e.original.dst, e.original.dst_port)
            == (protocol, src, dst, dst_port)
        }
        return reserve_ports(
            flow_key(plan.protocol.value, src, dst, dst_port),
            wanted,
            now_ns,
            in_use=taken,
            last_use_ns=now_ns + plan.count * 1_000_000_000 // plan.rate_pps,
            path=base_dir() / "ports.json",
        )

    return ports


def own_tuples(probe: ProbeSession) -> list[FiveTuple]:
    """The 5-tuples of a session, one for each entry that it makes."""
    count = probe.count if probe.type_p.flow is Flow.NEW_PER_PROBE else 1
    return [five_tuple(probe, seq) for seq in range(count)]


def _check_bound(prepared: Sequence[Prepared], topology: Topology) -> None:
    """Packets are injected only while the sender's port is bound on this host."""
    ports = {name: bound_ports(topology.host(name).ovs_rundir) for name in {one.sender.host for one in prepared}}
    for one in prepared:
        sender = one.sender
        if ports[sender.host].get(sender.iface_id) != sender.ofport:
            raise HostNotReadyError(
                f"port of {sender.name}",
                f"is not bound on {sender.host} as OpenFlow port {sender.ofport}",
                advice="is the guest still there? `netprobe lab status` tells",
            )


def _check_mtu(prepared: Sequence[Prepared], topology: Topology) -> None:
    """A frame that no device on the way takes would only look like loss."""
    for one in prepared:
        packet = one.probe.type_p.size_bytes - ETHERNET_BYTES
        if packet <= ALWAYS_FITS:
            continue
        places = [(a.netns, a.device) for a in (one.sender, one.target)]
        places += [(topology.host(a.host).netns, a.port_device) for a in (one.sender, one.target)]
        smallest = min(mtu(*place) for place in places)
        if packet > smallest:
            raise UsageError(
                f"session {one.plan.name}: size",
                f"a frame of {packet + ETHERNET_BYTES} bytes is a packet of {packet}, and the path's MTU is {smallest}",
                allowed=f"up to {smallest + ETHERNET_BYTES} bytes",
            )


def check_tuples(prepared: Sequence[Prepared], topology: Topology, *, ours: frozenset[FiveTuple] = frozenset()) -> None:
    """Room enough for our entries, and none of our tuples is somebody's connection.

    Args:
        prepared: the sessions.
        topology: their hosts.
        ours: entries that this run has made already.

    Raises:
        RefusedError: the table is too full for that, or has one of the tuples.
        HostNotReadyError: a switch does not answer.
    """
    demands, rooms = [], {}
    known: dict[str, frozenset[FiveTuple]] = {}
    for one in prepared:
        host, tuples = topology.host(one.sender.host), own_tuples(one.probe)
        demands.append(Demand(host.name, host.zone, len(tuples)))
        if host.name not in rooms:
            with UnixctlClient(host.ovs_rundir) as unixctl:
                table = Conntrack(unixctl)
                use, entries = table.use(), table.dump(host.zone).entries
            rooms[host.name] = use
            known[host.name] = frozenset(t for e in entries for t in (e.original, e.reply))
        taken = known[host.name].intersection(tuples) - ours
        if taken:
            port = min(t.src_port for t in taken)
            raise RefusedError(
                f"session {one.plan.name}",
                f"source port {port} of {one.sender.name} to {one.target.name} is in conntrack: somebody uses it",
                advice="leave sport out, or wait until that entry is gone",
            )
    check_conntrack(demands, rooms)


def _check_bridges(prepared: Sequence[Prepared], lists: dict[str, Allowlist]) -> None:
    """Packet-out is capped a bridge, however many sessions share it."""
    for name, allowlist in lists.items():
        here = [one.due_ns for one in prepared if one.sender.host == name and one.plan.vantage is Vantage.VSWITCH]
        if len(here) > 1:
            together = np.sort(np.concatenate(here))
            check_rate(together.tolist(), allowlist.cap_pps(Vantage.VSWITCH), f"all packet-out sessions on {name}")


def permit_run(prepared: Sequence[Prepared], topology: Topology, now_ns: int) -> dict[str, Allowlist]:
    """Let a run pass, and write each of its sessions to the audit log.

    Args:
        prepared: its sessions.
        topology: their hosts.
        now_ns: CLOCK_REALTIME.

    Returns:
        The allowlist of each host.

    Raises:
        RefusedError: something forbids it; nothing was sent.
        HostNotReadyError: a switch does not answer, or a port is not bound.
    """
    lists = {one.sender.host: read_host_allowlist(topology.host(one.sender.host)) for one in prepared}
    for one in prepared:
        order = Order(
            names=(one.sender.name, one.sender.port_device, one.sender.iface_id, one.sender.mac),
            protocol=one.plan.protocol,
            family=one.plan.family,
            vantage=one.plan.vantage,
            pps=one.plan.rate_pps,
        )
        allowlist = lists[one.sender.host]
        allowlist.check(order)
        check_rate(one.due_ns.tolist(), allowlist.cap_pps(one.plan.vantage), f"session {one.plan.name}")
    _check_bridges(prepared, lists)
    _check_bound(prepared, topology)
    _check_mtu(prepared, topology)
    check_tuples(prepared, topology)
    for one in prepared:
        record_order(
            InjectionOrder(
                host=one.sender.host,
                port=one.sender.name,
                vantage=one.plan.vantage.value,
                type_p={**type_p_json(one.probe), "src": str(one.probe.src_ip), "dst": str(one.probe.dst_ip)},
                count=one.plan.count,
                pps=float(one.plan.rate_pps),
                session=one.probe.session,
            ),
            now_ns,
            path=audit_path(),
        )
    return lists


class SwitchDrops:
    """What the switches' ports on the way of a run dropped since this was made (design §6a)."""

    def __init__(self, prepared: Sequence[Prepared], topology: Topology) -> None:
        self._names = frozenset(a.port_device for one in prepared for a in (one.sender, one.source, one.target))
        self._before = {rundir: read_drops(rundir) for rundir in {h.ovs_rundir for h in topology.hosts}}

    def since_then(self) -> int:
        """Frames dropped until now; a switch that is gone adds nothing."""
        total = 0
        for rundir, before in self._before.items():
            with suppress(HostNotReadyError):
                total += read_drops(rundir).since(before, self._names)
        return total
