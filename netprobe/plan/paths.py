"""From source, destination and vantage to a path: the ordered stops that a probe and its answer pass. Pure.

Also what that way means for the frame: which MAC it is sent to, which address, and what a router's NAT makes of it.
Where a router's port is served by one host alone (OVN's gateway chassis), the way leads there and on.
"""

from collections.abc import Sequence
from itertools import pairwise

from netprobe.errors import UsageError
from netprobe.model.points import Direction, Path, Point, PointKind, Stamp, Stop, Vantage
from netprobe.model.probes import IPAddress, Protocol, Translation
from netprobe.model.topology import Attachment, RouterLink, Topology

ANSWER_STAMP = {
    Protocol.UDP: Stamp.PACKET,  # T2 and T3 of the STAMP reply
    Protocol.ICMP: Stamp.INFERRED,
    Protocol.TCP: Stamp.INFERRED,
}
"""How the destination guest's point is known, where it answers; raw UDP is not answered."""


def build_path(
    topology: Topology, sender: Attachment, target: Attachment, vantage: Vantage, protocol: Protocol
) -> Path:
    """The path of a session.

    Args:
        topology: its hosts, their uplinks and vswitches, and its routers.
        sender: the guest that sends, the bypass NIC that stands in for it, or the guest that the vswitch plays.
        target: the guest that is probed.
        vantage: how the probe gets in.
        protocol: decides how arrival in the target is known.

    Raises:
        UsageError: both ends are the same, a host is unknown, no router joins the networks, or the way passes one
            point twice in the same direction.
    """
    if sender.name == target.name:
        raise UsageError("path", f"source and destination are both {sender.name!r}", advice="name two guests")
    hosts = _hosts(topology, sender, target)
    if vantage is Vantage.VSWITCH:
        forward = [Stop(topology.vswitches[sender.host], Direction.OUT, Stamp.SENDER)]
    else:
        forward = [Stop(sender.chain[0], Direction.OUT, Stamp.SENDER), *_up(sender)]
    forward += [*_between(topology, hosts), *_down(target)]
    answer = ANSWER_STAMP.get(protocol)
    if answer is None:
        return Path(_distinct(forward, sender, target))
    forward.append(Stop(target.chain[0], Direction.IN, answer))
    returned = [Stop(target.chain[0], Direction.OUT, answer), *_up(target)]
    returned += [*_between(topology, hosts[::-1]), *_down(sender)]
    if vantage is not Vantage.VSWITCH:
        returned.append(Stop(sender.chain[0], Direction.IN, Stamp.KERNEL_RX))
    return Path(_distinct(forward, sender, target), _distinct(returned, target, sender))


def _up(attachment: Attachment) -> list[Stop]:
    """From the guest's port to the vswitch, the guest itself left out."""
    return [Stop(p, _across(p, Direction.IN), p.stamp) for p in attachment.chain[1:]]


def _down(attachment: Attachment) -> list[Stop]:
    """From the vswitch to the guest's port, the guest itself left out."""
    return [Stop(p, _across(p, Direction.OUT), p.stamp) for p in reversed(attachment.chain[1:])]


def _across(point: Point, direction: Direction) -> Direction:
    """A hybrid bridge's far port looks at the vswitch: what comes in at the guest's own port goes out of it."""
    if point.kind is not PointKind.BRIDGE:
        return direction
    return Direction.OUT if direction is Direction.IN else Direction.IN


def _between(topology: Topology, hosts: Sequence[str]) -> list[Stop]:
    """From host to host: out through one's uplink, in through the next one's. None where nobody can look there."""
    uplink = {host.name: host.uplink for host in topology.hosts}
    stops = []
    for here, there in pairwise(hosts):
        stops += [_leaving(point) for point in uplink.get(here, ())]
        stops += [_entering(point) for point in reversed(uplink.get(there, ()))]
    return stops


def _leaving(point: Point) -> Stop:
    """A frame that leaves a host goes out of its NIC and into the fabric's port."""
    direction = Direction.IN if point.kind is PointKind.FABRIC else Direction.OUT
    return Stop(point, direction, Stamp.KERNEL_RX)


def _entering(point: Point) -> Stop:
    """A frame that comes to a host goes out of the fabric's port and into its NIC."""
    direction = Direction.OUT if point.kind is PointKind.FABRIC else Direction.IN
    return Stop(point, direction, Stamp.KERNEL_RX)


def _distinct(stops: Sequence[Stop], sender: Attachment, target: Attachment) -> tuple[Stop, ...]:
    """The stops of one leg, each known from a hop record's point and direction alone.

    Raises:
        UsageError: they are not.
    """
    seen = set()
    for stop in stops:
        if (stop.point.id, stop.direction) in seen:
            raise UsageError(
                f"path {sender.name} to {target.name}",
                f"passes {stop.point.id} twice in the same direction, and records cannot tell the two passes apart",
                advice="name a guest on another host",
            )
        seen.add((stop.point.id, stop.direction))
    return tuple(stops)


def _hosts(topology: Topology, sender: Attachment, target: Attachment) -> list[str]:
    """The hosts on the way, first and last included, none twice in a row.

    Raises:
        UsageError: an end's host is unknown, or where NAT is done is.
    """
    known = {host.name for host in topology.hosts}
    for end in (sender, target):
        if end.host not in known:
            raise UsageError(
                "path",
                f"{end.name} is on {end.host!r}, of which nothing is known",
                allowed=", ".join(sorted(known)) or "no host",
                advice="run an agent there",
            )
    way = [sender.host, *_gateways(topology, sender, target), target.host]
    if not topology.routers and len(known) > 1 and _is_translated(sender, target):
        raise UsageError(
            f"path {sender.name} to {target.name}",
            "is translated by a router, and which host that is done on is not known",
            advice="let discovery read OVN's southbound database",
        )
    return [way[0], *(b for a, b in pairwise(way) if a != b)]


def _gateways(topology: Topology, sender: Attachment, target: Attachment) -> list[str]:
    """The hosts that the way must pass because they alone serve a router's port."""
    hosts = []
    for number, link in enumerate(route(topology, sender.network, target.network)):
        behind = target if number % 2 == 0 else sender  # into a router from the target's outside, or out of it
        is_translated_at_home = behind.floating_mac and link.network in behind.behind_nat
        if not link.is_central or is_translated_at_home:
            continue
        if not link.gateway:
            raise UsageError(
                f"path {sender.name} to {target.name}",
                f"no host serves the port of router {link.router} on {link.network} at present",
                advice="is its gateway chassis up?",
            )
        hosts.append(link.gateway)
    return hosts


def _is_translated(sender: Attachment, target: Attachment) -> bool:
    """Whether NAT stands between the two ends' own networks."""
    return target.network in sender.behind_nat or sender.network in target.behind_nat


def route(topology: Topology, source: str, target: str) -> tuple[RouterLink, ...]:
    """The routers' ports between two networks, in the order of travel: two a router, in and out.

    Empty within one network, and where no routers are known. Of several ways the shortest, by name where equal.

    Raises:
        UsageError: routers are known, and none leads there.
    """
    if source == target or not topology.routers:
        return ()
    of_network: dict[str, list[RouterLink]] = {}
    of_router: dict[str, list[RouterLink]] = {}
    for link in sorted(topology.routers, key=lambda link: (link.router, link.network)):
        of_network.setdefault(link.network, []).append(link)
        of_router.setdefault(link.router, []).append(link)
    came_by: dict[str, tuple[RouterLink, RouterLink] | None] = {source: None}
    queue = [source]
    for network in queue:
        for into in of_network.get(network, ()):
            for out in of_router.pop(into.router, ()):
                if out.network not in came_by:
                    came_by[out.network] = (into, out)
                    queue.append(out.network)
    if target not in came_by:
        raise UsageError("path", f"no router joins {source!r} and {target!r}", advice="name guests that can reach")
    links: list[RouterLink] = []
    while (step := came_by[target]) is not None:
        links[:0] = step
        target = step[0].network
    return tuple(links)


def next_hop(sender: Attachment, target: Attachment, family: int) -> str:
    """The MAC that the sender's frame is sent to: the target's on the same link, else the router's.

    Args:
        sender: who sends.
        target: the guest that is probed.
        family: 4 or 6.

    Raises:
        UsageError: the target is elsewhere and the sender has no router; or has no address of that family.
    """
    address = target.address(family)
    if sender.network == target.network:
        on_link = [prefix for prefix in sender.prefixes if prefix.version == family]
        if not on_link or any(address in prefix for prefix in on_link):
            return target.mac
    elif target.floating_mac and sender.network in target.behind_nat and family == 4:
        return target.floating_mac
    if not sender.gateway_mac:
        raise UsageError(
            f"{sender.name} to {target.name}",
            f"{address} is not on {sender.name}'s network, which has no router",
            advice="name two guests that a router joins",
        )
    return sender.gateway_mac


def translations(
    topology: Topology, sender: Attachment, target: Attachment, family: int
) -> tuple[IPAddress, tuple[Translation, ...]]:
    """Where a probe must be sent, and under which other addresses it is seen further on.

    Args:
        topology: its routers; without any only NAT between the two ends' own networks is known.
        sender: who sends.
        target: the guest that is probed.
        family: 4 or 6; only IPv4 is translated.

    Returns:
        The address to send to, and the address pairs behind each router that translates, in the order of travel.

    Raises:
        UsageError: the target is hidden behind a router's NAT and has no floating IP.
    """
    own, there = sender.address(family), target.address(family)
    if family != 4 or sender.network == target.network:
        return there, ()
    links = route(topology, sender.network, target.network)
    crossed = [link.network for link in links] or [sender.network, target.network]
    hidden = any(network in target.behind_nat for network in crossed[:-1])
    if hidden and target.floating is None:
        raise UsageError(
            f"{sender.name} to {target.name}",
            f"{target.name} is behind a router's NAT, seen from {sender.network}, and has no floating IP",
            advice="probe the other way round, or give it one",
        )
    src, dst = own, target.floating if hidden and target.floating is not None else there
    sent_to, seen = dst, []
    for network in crossed[1:]:
        # A router translates the source on leaving for `network`; the target's router the destination, on coming in.
        if network in sender.behind_nat and src == own:
            src = sender.floating or sender.behind_nat[network]
            seen.append(Translation(src, dst))
    if dst != there:
        seen.append(Translation(src, there))
    return sent_to, tuple(seen)
