"""Points, segments and paths: where a probe can be seen, and in which order it should be.

Knows nothing of devices' contents or of time. Filled by service.discovery, used by everything below it.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum


class PointKind(Enum):
    """Kinds of observation points (design §2); a closed set."""

    GUEST = "guest"
    BACKEND = "backend"
    BRIDGE = "bridge"
    NIC = "nic"
    FABRIC = "fabric"
    VSWITCH = "vswitch"


class Stamp(Enum):
    """Who took the time at a point, and how."""

    KERNEL_RX = "kernel-rx"  # packet socket, SO_TIMESTAMPNS, on the way in or out of a device
    SENDER = "sender"  # just before the frame was handed over, by the program that sent it
    PACKET = "packet"  # carried by the packet itself: T2, T3 of a STAMP reply (RFC 8762)
    INFERRED = "inferred"  # passed for certain, since an answer came back; no time known
    MIRROR = "mirror"  # a mirror copy, stamped where it arrived
    UPROBE = "uprobe"  # a BPF program at the vhost library of a DPDK vswitch, when a packet crosses a guest's vring


LOOKING = frozenset({Stamp.KERNEL_RX, Stamp.MIRROR, Stamp.UPROBE})
"""Stamps of what stands at a point and sees every frame and every copy; a point of these can say "it did not come"."""


class Leg(IntEnum):
    """The probe itself, or its answer."""

    FORWARD = 0
    RETURN = 1


class Direction(IntEnum):
    """Which way a frame crosses a device, as the kernel says it."""

    IN = 0
    OUT = 1  # PACKET_OUTGOING


class Vantage(Enum):
    """How a probe gets in."""

    GUEST = "guest"
    BYPASS = "bypass"
    VSWITCH = "vswitch"


@dataclass(frozen=True, slots=True)
class Point:
    """A place where a probe can be seen.

    `device` in network namespace `netns` is where a packet ring can look; both are empty where nobody can. `socket` is
    the path of the vhost-user socket of a guest's port that no device of the kernel stands for, "" elsewhere; `stamp`
    is how it is looked at there.
    """

    id: str
    kind: PointKind
    host: str
    netns: str = ""
    device: str = ""
    socket: str = ""
    stamp: Stamp = Stamp.KERNEL_RX

    @property
    def place(self) -> str:
        """`<host>/<id>`: unlike its id, it changes when the guest moves to another host."""
        return f"{self.host}/{self.id}"


@dataclass(frozen=True, slots=True)
class Stop:
    """A point on a path: the direction in which the probe crosses its device there, and who stamps it."""

    point: Point
    direction: Direction
    stamp: Stamp

    @property
    def is_observed_by_ring(self) -> bool:
        """Whether what looks here sees all that passes: a packet ring, also at a mirror, or BPF at a vring."""
        return self.stamp in LOOKING


def segment_id(first: str, second: str) -> str:
    """The id of the segment between two points, in the direction of travel."""
    return f"{first}..{second}"


def segment_kind(first: PointKind, second: PointKind) -> str:
    """`<kind of first>-<kind of second>` (design §2)."""
    return f"{first.value}-{second.value}"


@dataclass(frozen=True, slots=True)
class Path:
    """The ordered points from injection to delivery, and back for the answer.

    `returned` is empty where no answer is expected (raw UDP).
    """

    forward: tuple[Stop, ...]
    returned: tuple[Stop, ...] = field(default=())

    def leg(self, leg: Leg) -> tuple[Stop, ...]:
        """The stops of one leg in travel order."""
        return self.forward if leg is Leg.FORWARD else self.returned
