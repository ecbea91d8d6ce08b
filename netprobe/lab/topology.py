"""Where things are in a lab: endpoints, points, chains, segments, and what a relay in a port changes about them. Pure.

A relay splices P - relay - Q=R into a port: P is the device that faces the guest, R the new device of the vswitch. The
words are those of netprobe.model.points; netprobe.lab.state writes the result down, netprobe.lab.faults acts on it.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise

from netprobe.errors import UsageError, unknown_name
from netprobe.lab.config import LabConfig
from netprobe.model.points import Point, PointKind, segment_id, segment_kind

HOST = "hv1"
BRIDGE = "br-int"
BYPASS = "bypass"
BYPASS_NETNS = "byp1"
ZONE = 1
"""One conntrack zone a network, as Neutron does."""

_BYPASS_NUMBER = 100
_IFACE_IDS = uuid.UUID("6c1b2f6e-7d0a-4f2b-9c55-6e7470726f62")
VSWITCH = f"{HOST}.vswitch"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A guest, or the bypass NIC: a tiny host in a namespace, behind a port of the bridge.

    Attributes:
        device: its NIC, in `netns`.
        tap: the other end of that NIC, on the host; the port's device unless a relay stands there.
        copy_of: the guest whose groups the bypass NIC has; empty for guests.
    """

    name: str
    netns: str
    device: str
    tap: str
    mac: str
    ipv4: str
    ipv6: str
    groups: tuple[str, ...]
    ofport: int
    iface_id: str
    copy_of: str = ""

    @property
    def middle(self) -> str:
        """Q: the relay's device towards the vswitch."""
        return f"rq-{self.tap.removeprefix('tap')}"

    @property
    def outer(self) -> str:
        """R: Q's other end, the port's device while a relay stands there."""
        return f"rr-{self.tap.removeprefix('tap')}"


def endpoints(config: LabConfig) -> tuple[Endpoint, ...]:
    """The guests in the order of the configuration, then the bypass NIC."""
    made = [
        _endpoint(guest.name, guest.name, "eth0", (number, number), guest.groups)
        for number, guest in enumerate(config.guests, start=1)
    ]
    groups = next(guest.groups for guest in config.guests if guest.name == config.copy_of)
    bypass = _endpoint(BYPASS, BYPASS_NETNS, "byp0", (_BYPASS_NUMBER, len(made) + 1), groups)
    return (*made, replace(bypass, copy_of=config.copy_of))


def tap_of(name: str) -> str:
    """The host's end of an endpoint's NIC."""
    return "tapbyp" if name == BYPASS else f"tap{name}"


def _endpoint(name: str, netns: str, device: str, numbers: tuple[int, int], groups: tuple[str, ...]) -> Endpoint:
    number, ofport = numbers
    return Endpoint(
        name=name,
        netns=netns,
        device=device,
        tap=tap_of(name),
        mac=f"fa:16:3e:00:00:{number:02x}",
        ipv4=f"10.0.0.{number}",
        ipv6=f"fd00:10::{number}",
        groups=groups,
        ofport=ofport,
        iface_id=str(uuid.uuid5(_IFACE_IDS, name)),
    )


class Placement(Enum):
    """Which of a port's segments a relay puts faults into."""

    FROM_GUEST = "from-guest"  # X.guest..X.backend: the relay stands before the backend point
    TO_PEER = "to-peer"  # X.backend..Y.backend: behind it, and only frames to Y's MAC are hit
    TO_GUEST = "to-guest"  # X.backend..X.guest: between the backend point and the guest


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
    """Where a relay goes: the port, the place, and whose frames are hit (empty for all)."""

    segment: str
    endpoint: str
    placement: Placement
    peer: str = ""
    expose: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """Two neighbouring points, and the fault between them, by the name of the endpoint that has the relay."""

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
    """The points of a lab, each endpoint's chain of them (from its NIC towards the vswitch), and the segments."""

    points: tuple[Point, ...]
    chains: dict[str, tuple[Point, ...]]
    segments: tuple[Segment, ...] = field(default=())


def _chain(endpoint: Endpoint, splice: Splice | None) -> tuple[Point, ...]:
    guest = Point(f"{endpoint.name}.guest", PointKind.GUEST, endpoint.name, endpoint.netns, endpoint.device)

    def on_host(role: str, device: str) -> Point:
        return Point(f"{endpoint.name}.{role}", PointKind.BACKEND, HOST, HOST, device)

    if splice is None:
        return guest, on_host("backend", endpoint.tap)
    if splice.placement is Placement.TO_PEER:
        backend, relay = on_host("backend", endpoint.tap), on_host("relay", endpoint.outer)
        return (guest, backend, relay) if splice.expose else (guest, backend)
    backend, relay = on_host("backend", endpoint.outer), on_host("relay", endpoint.tap)
    return (guest, relay, backend) if splice.expose else (guest, backend)


def layout(ends: Sequence[Endpoint], splices: Iterable[Splice] = ()) -> Layout:
    """Points, chains and segments of a lab.

    Args:
        ends: guests and bypass NIC.
        splices: the relays that stand in ports, at most one a port.
    """
    at = {splice.endpoint: splice for splice in splices}
    chains = {end.name: _chain(end, at.get(end.name)) for end in ends}
    vswitch = Point(VSWITCH, PointKind.VSWITCH, HOST)
    pairs = []
    for chain in chains.values():
        inward = list(pairwise(chain))
        pairs += inward + [(b, a) for a, b in reversed(inward)]
    pairs += [(a[-1], b[-1]) for a in chains.values() for b in chains.values() if a is not b]
    pairs += [(vswitch, chain[-1]) for chain in chains.values()]
    carried = {_carrier(splice, chains): name for name, splice in at.items()}
    segments = (Segment(a, b, carried.get(segment_id(a.id, b.id), "")) for a, b in pairs)
    return Layout((*(point for chain in chains.values() for point in chain), vswitch), chains, tuple(segments))


def _carrier(splice: Splice, chains: dict[str, tuple[Point, ...]]) -> str:
    """The id of the segment in which a relay's faults are found."""
    chain = chains[splice.endpoint]
    if splice.placement is Placement.TO_PEER:
        return segment_id(chain[1].id, chain[2].id if splice.expose else chains[splice.peer][-1].id)
    inner, outer = chain[-2].id, chain[-1].id
    return segment_id(inner, outer) if splice.placement is Placement.FROM_GUEST else segment_id(outer, inner)


def locate(segment: str, ends: Sequence[Endpoint], *, expose: bool = False) -> Splice:
    """Where a relay must stand for a fault in a segment.

    Args:
        segment: id as it is (or would be) without any relay.
        ends: guests and bypass NIC.
        expose: whether the relay shall be a segment of its own.

    Raises:
        UsageError: no such segment, or one that no relay can stand in.
    """
    for known in layout(ends).segments:
        if known.id == segment:
            break
    else:
        raise unknown_name("fault", segment, (known.id for known in layout(ends).segments), kind="segment")
    first, second = (point.id.rpartition(".")[0] for point in (known.first, known.second))
    kinds = (known.first.kind, known.second.kind)
    if kinds == (PointKind.GUEST, PointKind.BACKEND):
        return Splice(segment, first, Placement.FROM_GUEST, expose=expose)
    if kinds == (PointKind.BACKEND, PointKind.GUEST):
        return Splice(segment, first, Placement.TO_GUEST, expose=expose)
    if kinds == (PointKind.BACKEND, PointKind.BACKEND):
        return Splice(segment, first, Placement.TO_PEER, second, expose=expose)
    raise UsageError(
        f"segment {segment}",
        "has no place for a relay: it begins inside the vswitch",
        advice=f"use {segment_id(f'{second}.backend', f'{second}.guest')} to hit what comes out of the vswitch there",
    )
