"""Whose frames a relay hits, by where it stands. Pure; netprobe.lab.relay_core looks for it in each frame."""

from collections.abc import Sequence
from dataclasses import dataclass

from netprobe.lab.layout import Placement, Splice
from netprobe.lab.shapes import FABRIC, Shape
from netprobe.lab.topology import Endpoint, leaves_host


@dataclass(frozen=True, slots=True)
class Targets:
    """Frames to one of these MACs or IP addresses; all frames where both are empty.

    Attributes:
        inside: the frame that a tunnel carries is looked at, where there is one.
    """

    macs: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    inside: bool = False


def targets(splice: Splice, shape: Shape, ends: Sequence[Endpoint]) -> Targets:
    """Whose frames a relay hits.

    A MAC is not enough where a router stands between: frames for its other side go to the router's own. In the fabric
    all frames from a port are meant: with two hypervisors they have one other port to go to.

    Args:
        splice: where the relay stands.
        shape: of the lab.
        ends: guests and bypass NICs.
    """
    by_name = {end.name: end for end in ends}
    if splice.placement is Placement.TO_PEER and not splice.peer.startswith(FABRIC):
        peer = by_name[splice.peer]
        return Targets((peer.mac,), (peer.ipv4, peer.ipv6))
    if splice.placement is Placement.LEAVING:
        source = by_name[splice.port]
        others = [end for end in ends if end is not source]
        away = [a for end in others if leaves_host(shape, source, end) for a in (end.ipv4, end.ipv6)]
        floating = [e.floating for e in others if e.floating and leaves_host(shape, source, e, by_floating=True)]
        return Targets(addresses=(*away, *floating))
    if splice.placement is Placement.ARRIVING:
        peer = by_name[splice.peer]
        return Targets((peer.mac,), (peer.floating,) if peer.floating else (), inside=True)
    return Targets()
