"""What a run may do, asked before anything is sent: allowlist, rates, conntrack room, source ports, audit log.

Design §6a. Every refusal is an error that says which file, line or number forbids it; nothing is sent then.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
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
from netprobe.model.probes import Flow, IPAddress, ProbeSession, Protocol
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.plan.allowlist import Allowlist, Order
from netprobe.plan.budget import Demand, check_burst, check_conntrack, check_rate
from netprobe.plan.plans import SessionPlan
from netprobe.plan.port_ledger import flow_key
from netprobe.service.discovery import base_dir
from netprobe.service.prepare import PortSource, Prepared, type_p_json
from netprobe.wire.orders import PortsAsked

ETHERNET_BYTES = 14
DPDK_MTU = 1500  # what Open vSwitch gives a vhost-user port that nobody asked for another one
ALWAYS_FITS = 1280  # every link that carries IPv6 takes as much (RFC 8200 §5)
ZONES_A_HOST = 3
"""Under OVN a connection has an entry in the zone of each port and router that it passes on a host: at most these."""

IP_PROTOCOL = {Protocol.UDP: 17, Protocol.RAW_UDP: 17, Protocol.TCP: 6}


def read_host_allowlist(host: Host) -> Allowlist:
    """The allowlist of a host. Raises RefusedError where there is none."""
    return read_allowlist(Path(host.allowlist))


def audit_path() -> Path:
    """The audit log (NETPROBE_AUDIT overrides)."""
    return Path(os.environ.get("NETPROBE_AUDIT", DEFAULT_AUDIT_PATH))


def free_ports(host: Host, asked: PortsAsked) -> list[int]:
    """Source ports from netprobe's own block: none that the host's conntrack has, none that rests from an earlier run.

    Raises:
        RefusedError: not enough are free.
        HostNotReadyError: the switch does not answer, or the ledger of ports cannot be written.
    """
    with UnixctlClient(host.ovs_rundir) as unixctl:
        entries = Conntrack(unixctl).dump(host.zone).entries
    flow = (asked.protocol, asked.src, asked.dst, asked.dst_port)
    originals = [e.original for e in entries]
    taken = {t.src_port for t in originals if (t.protocol, str(t.src), str(t.dst), t.dst_port) == flow}
    return list(
        reserve_ports(
            asked.flow,
            asked.wanted,
            realtime_ns(),
            in_use=taken,
            last_use_ns=asked.last_use_ns,
            path=base_dir() / "ports.json",
        )
    )


def ports_asked(sender: Attachment, dst: IPAddress, plan: SessionPlan, wanted: int) -> PortsAsked:
    """What is asked for a session's source ports."""
    src, dst_port = sender.address(plan.family), plan.dst_port or 0
    return PortsAsked(
        flow=flow_key(plan.protocol.value, src, dst, dst_port),
        protocol=IP_PROTOCOL[plan.protocol],
        src=str(src),
        dst=str(dst),
        dst_port=dst_port,
        wanted=wanted,
        last_use_ns=realtime_ns() + plan.duration_ns,
    )


def port_source(topology: Topology) -> PortSource:
    """Source ports that nobody uses on the sender's host, which is this machine's."""

    def ports(sender: Attachment, dst: IPAddress, plan: SessionPlan, wanted: int) -> Sequence[int]:
        return free_ports(topology.host(sender.host), ports_asked(sender, dst, plan, wanted))

    return ports


def own_tuples(probe: ProbeSession) -> list[FiveTuple]:
    """The 5-tuples of a session, one for each entry that it makes; behind a NAT they are others."""
    count = probe.count if probe.type_p.flow is Flow.NEW_PER_PROBE else 1
    sent = [five_tuple(probe, seq) for seq in range(count)]
    return sent + [replace(t, src=other.src_ip, dst=other.dst_ip) for other in probe.translations for t in sent]


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
        netns = {h.name: h.netns for h in topology.hosts}
        wanted = (one.sender,) if one.plan.probe_mtu else (one.sender, one.target)
        ends = [a for a in wanted if a.host in netns]
        places = [(a.netns, a.device) for a in ends if a.device and a.netns]
        places += [(netns[a.host], a.port_device) for a in ends if not a.chain[1].socket]
        smallest = min((mtu(*place) for place in places), default=DPDK_MTU)
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
        tuples = own_tuples(one.probe)
        for host in (h for h in topology.hosts if h.name in one.hosts and h.ovs_rundir):
            zones = 1 if host.zone is not None else ZONES_A_HOST
            demands.append(Demand(host.name, host.zone, len(tuples) * zones))
            if host.name not in rooms:
                with UnixctlClient(host.ovs_rundir) as unixctl:
                    table = Conntrack(unixctl)
                    use, entries = table.use(), table.dump(host.zone).entries
                rooms[host.name] = use
                known[host.name] = frozenset(t for e in entries for t in (e.original, e.reply))
        taken = known.get(one.sender.host, frozenset()).intersection(tuples) - ours
        if taken:
            port = min(t.src_port for t in taken)
            raise RefusedError(
                f"session {one.plan.name}",
                f"source port {port} of {one.sender.name} to {one.target.name} is in conntrack: somebody uses it",
                advice="leave sport out, or wait until that entry is gone",
            )
    check_conntrack(demands, rooms)


def check_room(probes: Sequence[ProbeSession], host: Host) -> None:
    """Room enough on a host for the entries of sessions that only pass it.

    Raises:
        RefusedError: its table is too full for that.
        HostNotReadyError: its switch does not answer.
    """
    if not probes or not host.ovs_rundir:
        return
    zones = 1 if host.zone is not None else ZONES_A_HOST
    entries = sum(len(own_tuples(probe)) for probe in probes) * zones
    with UnixctlClient(host.ovs_rundir) as unixctl:
        check_conntrack([Demand(host.name, host.zone, entries)], {host.name: Conntrack(unixctl).use()})


def _check_bursts(prepared: Sequence[Prepared]) -> None:
    """No burst into a vswitch, however many sessions begin at one instant (design §6a)."""
    for name in {one.sender.host for one in prepared}:
        here = [one.due_ns for one in prepared if one.sender.host == name]
        if len(here) > 1:
            check_burst(np.sort(np.concatenate(here)).tolist(), f"all sessions from {name}")


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
            pps=one.plan.mean_pps,
        )
        allowlist = lists[one.sender.host]
        allowlist.check(order)
        check_rate(one.due_ns.tolist(), allowlist.cap_pps(one.plan.vantage), f"session {one.plan.name}")
    _check_bridges(prepared, lists)
    _check_bursts(prepared)
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
                pps=one.plan.mean_pps,
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
        self._before = {rundir: read_drops(rundir) for rundir in {h.ovs_rundir for h in topology.hosts} if rundir}

    def since_then(self) -> int:
        """Frames dropped until now; a switch that is gone adds nothing."""
        total = 0
        for rundir, before in self._before.items():
            with suppress(HostNotReadyError):
                total += read_drops(rundir).since(before, self._names)
        return total
