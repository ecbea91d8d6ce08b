"""One row of a relay's truth log: the fate of one copy of one marked frame. Standard library only.

netprobe.lab.truth reads the same layout as numpy columns; docs/lab.md explains it. A test holds the two together.
"""

import struct
from typing import NamedTuple

ROW = struct.Struct("<qqqIIIHBBBBBB")
"""Little-endian, packed, 44 octets, in the order of Row's fields."""

FATE_DROPPED = 0
FATE_FORWARDED = 1
FATE_DUPLICATE = 2

LEG_FORWARD = 0
LEG_RETURN = 1

FROM_GUEST = 0
TO_GUEST = 1


class Row(NamedTuple):
    """The fate of one copy of one marked frame.

    Attributes:
        t_in_ns: the kernel's receive stamp at the relay, CLOCK_REALTIME.
        t_out_ns: read just before the frame was handed over, CLOCK_REALTIME; 0 when it was dropped.
        delay_ns: planned: due time less t_in_ns.
        session: of the identity; 0 for a TCP SYN.
        seq: of the identity; 0 for a TCP SYN.
        isn: a TCP SYN's sequence number, else 0.
        src_port: a TCP SYN's source port, else 0.
        proto: IP protocol number (1, 6, 17, 58).
        leg: LEG_FORWARD for a probe, LEG_RETURN for an answer.
        direction: FROM_GUEST or TO_GUEST.
        fate: FATE_DROPPED, FATE_FORWARDED, or FATE_DUPLICATE for the second copy.
        held: 1 when it was held back on purpose, so that later ones overtake it.
        faulted: 1 when the fault applies to this frame's direction and destination.
    """

    t_in_ns: int
    t_out_ns: int
    delay_ns: int
    session: int
    seq: int
    isn: int
    src_port: int
    proto: int
    leg: int
    direction: int
    fate: int
    held: int
    faulted: int


def pack(row: Row) -> bytes:
    """The row as it stands in the log."""
    return ROW.pack(*row)
