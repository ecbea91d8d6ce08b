"""From source, destination and vantage to a path: the ordered stops that a probe and its answer pass. Pure."""

from netprobe.errors import UsageError
from netprobe.model.points import Direction, Path, Stamp, Stop, Vantage
from netprobe.model.probes import Protocol
from netprobe.model.topology import Attachment, Topology

ANSWER_STAMP = {
    Protocol.UDP: Stamp.PACKET,  # T2 and T3 of the STAMP reply
    Protocol.ICMP: Stamp.INFERRED,
    Protocol.TCP: Stamp.INFERRED,
}
"""How the destination guest's point is known, where it answers; raw UDP is not answered."""


def _up(attachment: Attachment) -> list[Stop]:
    """From the guest's port to the vswitch, the guest itself left out."""
    return [Stop(point, Direction.IN, Stamp.KERNEL_RX) for point in attachment.chain[1:]]


def _down(attachment: Attachment) -> list[Stop]:
    """From the vswitch to the guest's port, the guest itself left out."""
    return [Stop(point, Direction.OUT, Stamp.KERNEL_RX) for point in reversed(attachment.chain[1:])]


def build_path(
    topology: Topology, sender: Attachment, target: Attachment, vantage: Vantage, protocol: Protocol
) -> Path:
    """The path of a session.

    Args:
        topology: for the vswitch's point.
        sender: the guest that sends, the bypass NIC that stands in for it, or the guest that the vswitch plays.
        target: the guest that is probed.
        vantage: how the probe gets in.
        protocol: decides how arrival in the target is known.

    Raises:
        UsageError: both ends are the same, or they are on different hosts.
    """
    if sender.name == target.name:
        raise UsageError("path", f"source and destination are both {sender.name!r}", advice="name two guests")
    if sender.host != target.host:
        raise UsageError(
            "path", f"{sender.name} is on {sender.host} and {target.name} on {target.host}", allowed="one host"
        )
    if vantage is Vantage.VSWITCH:
        forward = [Stop(topology.vswitches[sender.host], Direction.OUT, Stamp.SENDER)]
    else:
        forward = [Stop(sender.chain[0], Direction.OUT, Stamp.SENDER), *_up(sender)]
    forward += _down(target)
    answer = ANSWER_STAMP.get(protocol)
    if answer is None:
        return Path(tuple(forward))
    forward.append(Stop(target.chain[0], Direction.IN, answer))
    returned = [Stop(target.chain[0], Direction.OUT, answer), *_up(target), *_down(sender)]
    if vantage is not Vantage.VSWITCH:
        returned.append(Stop(sender.chain[0], Direction.IN, Stamp.KERNEL_RX))
    return Path(tuple(forward), tuple(returned))
