"""Points, chains and segments of a lab, and what a relay in a port changes about them. Pure.

A relay splices P - relay - Q=R into a port: P is the device that is in the port otherwise, R the new one in its place.
What is plugged into P's other end is a guest, a hypervisor (at the fabric's switch), or the fabric (at a hypervisor's
NIC). The words are those of netprobe.model.points; netprobe.lab.state writes the result down, netprobe.lab.faults acts
on it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

from netprobe.errors import UsageError, unknown_name
from netprobe.lab.shapes import BRIDGE, FABRIC, FABRIC_BRIDGE, NIC, UNDERLAY_BRIDGE, UNDERLAY_MTU, Hypervisor, Shape
from netprobe.lab.topology import Endpoint
from netprobe.model.points import Point, PointKind, Stamp, segment_id, segment_kind

GUEST_MTU = 1500


class Placement(Enum):
    """Which of a port's segments a relay puts faults into, and whose frames are hit."""

    FROM = "from"  # X.guest..X.backend, H.nic..fabric.H: before the point; all that comes in
    TO = "to"  # X.backend..X.guest, fabric.H..H.nic: behind the point; all that goes out
    TO_PEER = "to-peer"  # X.backend..Y.backend, fabric.G..fabric.H: behind the point; what comes in for the peer
    LEAVING = "leaving"  # X.backend..H.nic: behind the point; what comes in and leaves the hypervisor
    ARRIVING = "arriving"  # H.nic..X.backend: behind the NIC; what comes in for X, inside a tunnel or not
    INWARD = "inward"  # X.backend..X.bridge: behind the backend; all that comes in
    OUTWARD = "outward"  # X.bridge..X.backend: before the backend; all that goes out


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """What a fault does to the frames in its segment and direction.

    Attributes:
        delay_ns: added to the kernel's receive stamp; the due time.
        jitter_ns: the delay is uniform in [delay - jitter, delay + jitter], never negative.
        loss: fraction that is dropped.
        duplicate: fraction that is sent twice.
        reorder: fraction that is held back 3 ms longer, so that later ones overtake.
        seed: of every draw.
        share: only this fraction is delayed.
        expose: the relay is a segment of its own, with a point on each side.
    """

    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    seed: int = 0
    share: float = 1.0
    expose: bool = False


@dataclass(frozen=True, slots=True)
class Splice:
    """Where a relay goes: the port, the place, and whose frames are hit (empty: as the placement says)."""

    segment: str
    port: str
    placement: Placement
    peer: str = ""
    expose: bool = False


@dataclass(frozen=True, slots=True)
class RelayPort:
    """A port that a relay can be spliced into.

    Attributes:
        name: `vm1` (a guest's, on its hypervisor), `vm1.bridge` (where its Linux bridge is plugged into the vswitch),
            `hv1.nic` (a hypervisor's own NIC), `fabric.hv1` (the fabric's).
        netns: where its devices are.
        bridge: what it is a port of.
        device: P, its device when no relay stands there.
        mtu: of its devices, octets.
    """

    name: str
    netns: str
    bridge: str
    device: str
    mtu: int

    @property
    def middle(self) -> str:
        """Q: the relay's device towards the bridge."""
        return f"{self._letter}q-{self._stem}"

    @property
    def outer(self) -> str:
        """R: Q's other end, the port's device while a relay stands there."""
        return f"{self._letter}r-{self._stem}"

    @property
    def _letter(self) -> str:
        """What tells the two ports of a guest in the lab `bridge` apart."""
        return "o" if self.device.startswith("qvo") else "r"

    @property
    def _stem(self) -> str:
        return self.device.removeprefix("tap").removeprefix("qvo")

    @property
    def has_kernel_bridge(self) -> bool:
        """Whether the bridge is the kernel's, and not Open vSwitch."""
        return self.bridge not in (BRIDGE, UNDERLAY_BRIDGE)

    @property
    def is_guarded(self) -> bool:
        """Whether iptables rules name the port's device."""
        return self.has_kernel_bridge and self.netns != FABRIC


@dataclass(frozen=True, slots=True)
class Segment:
    """Two neighbouring points, and the fault between them, by the name of the port that has the relay."""

    first: Point
    second: Point
    fault_at: str = ""

    @property
    def id(self) -> str:
        """`<first>..<second>`."""
        return segment_id(self.first.id, self.second.id)

    @property
    def kind(self) -> str:
        """`<kind of first>-<kind of second>`."""
        return segment_kind(self.first.kind, self.second.kind)


@dataclass(frozen=True, slots=True)
class Layout:
    """The points of a lab and the segments between them.

    Attributes:
        chains: of each endpoint, from its NIC towards the vswitch.
        uplinks: of each hypervisor, from its NIC towards the fabric; empty where hypervisors are not joined.
    """

    points: tuple[Point, ...]
    chains: dict[str, tuple[Point, ...]]
    uplinks: dict[str, tuple[Point, ...]]
    segments: tuple[Segment, ...] = ()


def ports(shape: Shape, ends: Sequence[Endpoint]) -> dict[str, RelayPort]:
    """Every port that a relay can be spliced into, by name."""
    found = []
    for end in (end for end in ends if not end.is_vhost(shape)):
        found.append(RelayPort(end.name, end.host, end.qbr if shape.is_hybrid else BRIDGE, end.tap, GUEST_MTU))
        if shape.is_hybrid:
            found.append(RelayPort(plug_name(shape, end), end.host, BRIDGE, end.qvo, GUEST_MTU))
    for host in shape.hypervisors:
        if host.encap_ip:
            found.append(RelayPort(_nic(host), host.netns, UNDERLAY_BRIDGE, NIC, UNDERLAY_MTU))
            found.append(RelayPort(_switch_port(host), FABRIC, FABRIC_BRIDGE, host.fabric_port, UNDERLAY_MTU))
    return {port.name: port for port in found}


def plug_name(shape: Shape, end: Endpoint) -> str:
    """The name of an endpoint's port on the vswitch."""
    return _bridge(end.name) if shape.is_hybrid else end.name


def _bridge(name: str) -> str:
    """A guest's Linux bridge: the point at its far end, and the port of the vswitch that it is plugged into."""
    return f"{name}.bridge"


def _nic(host: Hypervisor) -> str:
    return f"{host.name}.nic"


def _switch_port(host: Hypervisor) -> str:
    return f"{FABRIC}.{host.name}"


def vhost_socket(name: str) -> str:
    """The file name of a guest's vhost-user socket, in the lab's directory."""
    return f"{name}.vhost"


def vswitch_id(host: str) -> str:
    """The point where a packet-out enters a hypervisor's vswitch."""
    return f"{host}.vswitch"


def _before_bridge(port: RelayPort, point: Point, relay_id: str, splice: Splice | None) -> tuple[Point, ...]:
    """A port's own point and, if it is shown, its relay's, in the order towards the bridge."""

    def at(device: str, name: str = point.id) -> Point:
        return Point(name, point.kind, point.host, port.netns, device)

    if splice is None:
        return (at(port.device),)
    if splice.placement in (Placement.FROM, Placement.TO):
        own, relay = at(port.outer), at(port.device, relay_id)
        return (relay, own) if splice.expose else (own,)
    own, relay = at(port.device), at(port.outer, relay_id)
    return (own, relay) if splice.expose else (own,)


def _chain(shape: Shape, end: Endpoint, known: dict[str, RelayPort], at: dict[str, Splice]) -> tuple[Point, ...]:
    nic = "" if end.is_machine else end.device  # nobody can look into a virtual machine but its agent
    guest = Point(f"{end.name}.guest", PointKind.GUEST, end.name, end.netns, nic)
    backend = Point(f"{end.name}.backend", PointKind.BACKEND, end.host)
    if end.is_vhost(shape):
        return (guest, replace(backend, socket=vhost_socket(end.name), stamp=Stamp.UPROBE))
    port = known[end.name]
    own = _before_bridge(port, backend, f"{end.name}.relay", at.get(end.name))
    if not shape.is_hybrid:
        return (guest, *own)
    name = _bridge(end.name)
    bridge = Point(name, PointKind.BRIDGE, end.host, port.netns, end.qvb)
    splice = at.get(name)
    if splice is None or not splice.expose:
        return (guest, *own, bridge)
    # The relay's far side is a port of the vswitch, so a backend, not a bridge's port.
    relay = Point(f"{end.name}.bridge-relay", PointKind.BACKEND, end.host, port.netns, known[name].outer)
    return (guest, *own, bridge, relay)


def _uplink(host: Hypervisor, known: dict[str, RelayPort], at: dict[str, Splice]) -> tuple[Point, ...]:
    if not host.encap_ip:
        return ()
    nic, port = _nic(host), _switch_port(host)
    own = _before_bridge(known[nic], Point(nic, PointKind.NIC, host.name), f"{host.name}.relay", at.get(nic))
    switch = Point(port, PointKind.FABRIC, FABRIC)
    return (*reversed(own), *_before_bridge(known[port], switch, f"relay.{host.name}", at.get(port)))


def layout(shape: Shape, ends: Sequence[Endpoint], splices: Iterable[Splice] = ()) -> Layout:
    """Points, chains, uplinks and segments of a lab.

    Args:
        shape: what is fixed about it.
        ends: guests and bypass NICs.
        splices: the relays that stand in ports, at most one a port.
    """
    at = {splice.port: splice for splice in splices}
    known = ports(shape, ends)
    chains = {end.name: _chain(shape, end, known, at) for end in ends}
    uplinks = {host.name: _uplink(host, known, at) for host in shape.hypervisors}
    vswitches = {host.name: Point(vswitch_id(host.name), PointKind.VSWITCH, host.name) for host in shape.hypervisors}
    lines = (*chains.values(), *uplinks.values())
    here = Layout((*(p for line in lines for p in line), *vswitches.values()), chains, uplinks)
    pairs = [pair for line in lines for pair in _both_ways(pairwise(line))]
    for host, vswitch in vswitches.items():
        inside = [chains[end.name][-1] for end in ends if end.host == host] + list(uplinks[host][:1])
        # Nothing comes in at a NIC to leave by it again; all else crosses the vswitch from port to port.
        pairs += [(a, b) for a in inside for b in inside if a is not b]
        pairs += [(vswitch, point) for point in inside]
    switch_ports = [uplink[-1] for uplink in uplinks.values() if uplink]
    pairs += [(a, b) for a in switch_ports for b in switch_ports if a is not b]
    carried = {_carrier(splice, here): name for name, splice in at.items()}
    segments = (Segment(a, b, carried.get(segment_id(a.id, b.id), "")) for a, b in pairs)
    return Layout(here.points, chains, uplinks, tuple(segments))


def _both_ways(pairs: Iterable[tuple[Point, Point]]) -> list[tuple[Point, Point]]:
    inward = list(pairs)
    return inward + [(b, a) for a, b in reversed(inward)]


def _carrier(splice: Splice, here: Layout) -> str:
    """The id of the segment in which a relay's faults are found."""
    if splice.placement in (Placement.INWARD, Placement.OUTWARD) or splice.port.endswith(".bridge"):
        return _hybrid_carrier(splice, here)
    host = splice.port.removeprefix(f"{FABRIC}.").removesuffix(".nic")
    if splice.placement is Placement.ARRIVING:
        uplink = here.uplinks[host]
        return (
            segment_id(uplink[1].id, uplink[0].id) if splice.expose else segment_id(uplink[0].id, _last(here, splice))
        )
    line = here.chains[host] if host in here.chains else here.uplinks[host]
    ids = [point.id for point in line if not point.id.partition(".")[2].startswith("bridge")]
    inner, last = ids[-2:]
    if splice.placement is Placement.FROM or (splice.expose and splice.placement is not Placement.TO):
        return segment_id(inner, last)
    return segment_id(last, inner if splice.placement is Placement.TO else _last(here, splice))


def _hybrid_carrier(splice: Splice, here: Layout) -> str:
    """The same where a relay stands between a guest's tap and the vswitch."""
    name = splice.port.removesuffix(".bridge")
    ids = [point.id for point in here.chains[name]]
    near = ids.index(_bridge(name) if splice.port != name else f"{name}.backend")
    if splice.placement is Placement.TO_PEER and not splice.expose:
        return segment_id(ids[near], _last(here, splice))
    pair = ids[near], ids[near + 1]
    return segment_id(*(pair[::-1] if splice.placement is Placement.OUTWARD else pair))


def _last(here: Layout, splice: Splice) -> str:
    """The peer's point across the bridge."""
    peer = splice.peer
    if peer in here.chains:
        return here.chains[peer][-1].id
    if peer.startswith(f"{FABRIC}."):
        return here.uplinks[peer.removeprefix(f"{FABRIC}.")][-1].id
    return here.uplinks[peer.removesuffix(".nic")][0].id


_PLACEMENTS = {
    (PointKind.GUEST, PointKind.BACKEND): Placement.FROM,
    (PointKind.BACKEND, PointKind.GUEST): Placement.TO,
    (PointKind.BACKEND, PointKind.BACKEND): Placement.TO_PEER,
    (PointKind.BACKEND, PointKind.BRIDGE): Placement.INWARD,
    (PointKind.BRIDGE, PointKind.BACKEND): Placement.OUTWARD,
    (PointKind.BRIDGE, PointKind.BRIDGE): Placement.TO_PEER,
    (PointKind.BACKEND, PointKind.NIC): Placement.LEAVING,
    (PointKind.NIC, PointKind.BACKEND): Placement.ARRIVING,
    (PointKind.NIC, PointKind.FABRIC): Placement.FROM,
    (PointKind.FABRIC, PointKind.NIC): Placement.TO,
    (PointKind.FABRIC, PointKind.FABRIC): Placement.TO_PEER,
}


def locate(segment: str, shape: Shape, ends: Sequence[Endpoint], *, expose: bool = False) -> Splice:
    """Where a relay must stand for a fault in a segment.

    Args:
        segment: id as it is (or would be) without any relay.
        shape: of the lab.
        ends: guests and bypass NICs.
        expose: whether the relay shall be a segment of its own.

    Raises:
        UsageError: no such segment, or one that no relay can stand in.
    """
    segments = layout(shape, ends).segments
    for known in segments:
        if known.id == segment:
            break
    else:
        raise unknown_name("fault", segment, (known.id for known in segments), kind="segment")
    placement = _PLACEMENTS.get((known.first.kind, known.second.kind))
    if placement is None:
        raise UsageError(
            f"segment {segment}",
            "has no place for a relay: it begins inside the vswitch",
            advice=f"use {_next(known, segments)} to hit what comes out of the vswitch there",
        )
    first, second = (_port_of(point) for point in (known.first, known.second))
    stands_at = known.second if placement is Placement.FROM else known.first
    if stands_at.socket:
        raise UsageError(
            f"segment {segment}",
            f"has no place for a relay: {stands_at.id} is a vhost-user port, which no device stands for",
            advice="use a segment that begins at a probe NIC, or a meter or policer of the vswitch",
        )
    # Before the second point: at a guest that is the first one's port too, at a hypervisor the fabric's.
    port = second if placement is Placement.FROM else first
    if placement is Placement.TO_PEER and known.first.kind is PointKind.BRIDGE:
        port = _bridge(port)
    peer = second if placement in (Placement.TO_PEER, Placement.LEAVING, Placement.ARRIVING) else ""
    return Splice(segment, port, placement, peer, expose)


def _port_of(point: Point) -> str:
    """The port that a point stands at."""
    return point.id if point.kind in (PointKind.NIC, PointKind.FABRIC) else point.id.rpartition(".")[0]


def _next(segment: Segment, segments: Sequence[Segment]) -> str:
    """The segment that goes on from where this one ends, away from the vswitch."""
    kinds = {PointKind.BACKEND: PointKind.GUEST, PointKind.BRIDGE: PointKind.BACKEND, PointKind.NIC: PointKind.FABRIC}
    wanted = kinds[segment.second.kind]
    return next(s.id for s in segments if s.first == segment.second and s.second.kind is wanted)
