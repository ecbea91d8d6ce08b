"""How points behind vhost-user ports are looked at: by uprobes where its host lets them be, else by a mirror.

Uprobes cost the vswitch a trap for each look into a ring; for how long they may stay, the host's own root says
(`vring_uprobes_s`, docs/harm.md). What is chosen is known before a run begins, and its result says it (`stamp`).
"""

from collections.abc import Iterable
from pathlib import Path

from netprobe.errors import NetprobeError
from netprobe.model.points import Point, Stamp
from netprobe.model.topology import Host, Topology
from netprobe.observe.vring import VringPlace
from netprobe.service.permits import read_host_allowlist

NOT_ALLOWED = "uprobes at vrings are not allowed on {host} (vring_uprobes_s in its allowlist)"


def vrings_of(points: Iterable[Point], topology: Topology) -> dict[str, VringPlace | str]:
    """By host of these points, where its vswitch's vrings are looked at, or why they may not be."""
    hosts = {point.host for point in points if point.stamp is Stamp.UPROBE}
    return {host.name: vring_place(host) for host in topology.hosts if host.name in hosts}


def vring_place(host: Host) -> VringPlace | str:
    """Where the vrings of a host's vswitch are looked at, or why they may not be."""
    try:
        limit_s = read_host_allowlist(host).vring_uprobes_s
    except NetprobeError as error:
        return str(error)
    if not limit_s:
        return NOT_ALLOWED.format(host=host.name)
    return VringPlace(Path(host.ovs_rundir) / "ovs-vswitchd.pid", int(limit_s * 1e9))
