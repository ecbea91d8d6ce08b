"""How points behind vhost-user ports are looked at: by uprobes where their host lets them be, else by a mirror.

Uprobes cost the vswitch a trap for each look into a ring; for how long they may stay, the host's own root says
(`vring_uprobes_s`, docs/harm.md). A mirror changes the cloud's configuration and copies all tenants' traffic of the
port: it is only made where the user allows changes, is written down first, and gone when the run ends. What is chosen
is known before a run begins, and its result says it (`stamp`).
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError
from netprobe.host.ovs_mirror import PortMirror, add_mirror
from netprobe.model.points import Point, Stamp, Vantage
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.observe.vring import VringPlace, VringWatch
from netprobe.plan.plans import RunPlan
from netprobe.service.journal import Journal, new_journal
from netprobe.service.permits import read_host_allowlist

NOT_ALLOWED = "uprobes at vrings are not allowed on {host} (vring_uprobes_s in its allowlist)"


@dataclass(frozen=True, slots=True)
class VringWish:
    """What the user asks for.

    Attributes:
        how: "auto": uprobes, or a mirror where they cannot be and changes are allowed.
        is_change_allowed: a mirror may be made.
    """

    how: Literal["auto", "uprobe", "mirror"] = "auto"
    is_change_allowed: bool = False


AS_ALLOWED = VringWish()

LEFT = "a mirror, which copies all traffic of its port, could not be taken away: {problem}; run `netprobe clean`"


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


def uprobes_missing(host: Host) -> str:
    """Why there can be no uprobes on a host, "" where they can be: it is tried."""
    place = vring_place(host)
    if isinstance(place, str):
        return place
    try:
        VringWatch(place, (), {}).close()
    except HostNotReadyError as error:
        return str(error)
    return ""


@contextmanager
def chosen_vrings(
    plan: RunPlan, topology: Topology, wish: VringWish = AS_ALLOWED, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Topology]:
    """Choose how the vrings on a plan's ways are looked at, and make mirrors where that is how.

    Args:
        plan: what will be sent.
        topology: where things are.
        wish: what the user asks for.
        tell: is told in the end what was made and could not be taken away, in sentences.

    Returns:
        The topology with each point as it is looked at. Where nothing may look at a vring, its point stays as it is,
        and the run will say why it is unobserved.

    Raises:
        RefusedError: a mirror is asked for, and changes are not allowed.
        HostNotReadyError: a mirror cannot be made.
    """
    wanted = [one for one in _on_the_way(plan, topology) if _vring(one) is not None]
    mirrored = {host.name for host in topology.hosts if _is_mirrored(host, wanted, wish)}
    if not mirrored:
        yield topology
        return
    journal = new_journal()
    try:
        chosen = {
            one.name: _mirrored(journal, one, n, topology) for n, one in enumerate(wanted) if one.host in mirrored
        }
        yield replace(
            topology,
            guests=tuple(chosen.get(one.name, one) for one in topology.guests),
            bypasses=tuple(chosen.get(one.name, one) for one in topology.bypasses),
        )
    finally:
        try:
            journal.undo()
        finally:
            for problem in journal.mirrors_left:
                tell(LEFT.format(problem=problem))


def _is_mirrored(host: Host, wanted: list[Attachment], wish: VringWish) -> bool:
    if wish.how == "uprobe" or not any(one.host == host.name for one in wanted):
        return False
    if wish.how == "mirror" and not wish.is_change_allowed:
        raise RefusedError(
            f"mirror on {host.name}",
            "changes the vswitch's configuration, and copies all traffic of the port",
            advice="say --allow-change if that is fine",
        )
    return wish.is_change_allowed and (wish.how == "mirror" or bool(uprobes_missing(host)))


def _on_the_way(plan: RunPlan, topology: Topology) -> list[Attachment]:
    """Whose ports the probes and answers of a plan pass, once each."""
    found: dict[str, Attachment] = {}
    for session in plan.sessions:
        ends = [topology.guest(name, f"session {session.name}") for name in (session.src, session.dst)]
        if session.vantage is Vantage.BYPASS:
            ends[0] = topology.bypass_on(ends[0].host, ends[0])
        found |= {end.name: end for end in ends}
    return list(found.values())


def _vring(one: Attachment) -> Point | None:
    return next((point for point in one.chain[1:] if point.socket), None)


def _mirrored(journal: Journal, one: Attachment, number: int, topology: Topology) -> Attachment:
    """Make the mirrors of a port; it with its point as they show it."""
    host = topology.host(one.host)
    stem = f"npm{secrets.token_hex(3)}-{number}"  # a device's name has 15 characters
    mirror = PortMirror(host.ovs_rundir, host.netns, host.bridge, one.port_device, stem)
    journal.add_mirror(mirror)
    add_mirror(mirror)
    chain = tuple(
        replace(p, netns=host.netns, device=stem, socket="", stamp=Stamp.MIRROR) if p.socket else p for p in one.chain
    )
    return replace(one, chain=chain)
