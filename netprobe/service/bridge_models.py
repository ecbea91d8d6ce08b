"""What iptables, ebtables and the switch say of packets between guests behind hybrid bridges.

A packet crosses the sender's bridge, tap to veth, then the vswitch, which guards what iptables cannot see, and then the
target's bridge, veth to tap. Each host's rules are read once a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from netprobe.errors import NetprobeError
from netprobe.host.iptables import read_ebtables, read_rules, read_sets
from netprobe.judge.ebtables import evaluate_frame, parse_ebtables
from netprobe.judge.iptables import evaluate
from netprobe.judge.iptables_answer import bridge_answer, frame_answer
from netprobe.judge.iptables_conditions import Crossing, IpSet
from netprobe.judge.iptables_rules import RuleSet, parse_rules, parse_sets
from netprobe.judge.trace_answer import silent_answer
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import Kind
from netprobe.model.points import PointKind
from netprobe.model.topology import Attachment, Host, Topology

CHAIN_ID = 10
"""How much of a port's UUID is in the names of its chains."""


@dataclass(frozen=True, slots=True)
class HostRules:
    """A host's whole firewall: rules by family, sets, and rules for frames."""

    by_family: dict[int, RuleSet]
    sets: dict[str, IpSet]
    frames: RuleSet


def is_behind_bridge(attachment: Attachment) -> bool:
    """Whether a port is behind a Linux bridge of the hybrid model, where iptables enforces its groups."""
    return any(point.kind is PointKind.BRIDGE for point in attachment.chain)


def crossing_of(attachment: Attachment, *, is_out: bool) -> Crossing:
    """A packet's pass through a port's own bridge, from the guest or to it."""
    tap = attachment.chain[1].device
    inner = [p.device for p in attachment.chain[1:] if p.kind is PointKind.BRIDGE and p.device != tap]
    name = tap.removeprefix("tap")
    veth = next((device for device in inner if device.startswith("qvb")), f"qvb{name}")
    ends = (tap, veth) if is_out else (veth, tap)
    return Crossing(f"qbr{name}", *ends)


def guarded(crossing: Crossing, attachment: Attachment, rules: RuleSet) -> Crossing:
    """The same crossing, with the device that the port's chains are for in the tap's place.

    They differ where something stands between tap and bridge, so that another device is the bridge's port. Neutron
    names a port's chains by the beginning of its UUID; without such chains the tap stands.
    """
    ending = f"-i{attachment.iface_id[:CHAIN_ID]}"
    for rule in rules.rules:
        if rule.target.endswith(ending):
            for condition in rule.conditions:
                option, _, device = condition.text.partition(" ")
                if option == "--physdev-out":
                    if crossing.physdev_in.startswith("qvb"):
                        return replace(crossing, physdev_out=device)
                    return replace(crossing, physdev_in=device)
    return crossing


def read_host(host: Host) -> HostRules:
    """Read a host's firewall.

    Raises:
        HostNotReadyError: a command failed.
        RulesTextError: its text could not be read.
    """
    families = {family: parse_rules(read_rules(host.netns, family)) for family in (4, 6)}
    return HostRules(families, parse_sets(read_sets(host.netns)), parse_ebtables(read_ebtables(host.netns)))


class Bridges:
    """The bridges' firewalls of the hosts that some packets pass, as they were when this was made.

    It reads; a host that cannot be read makes answers without a verdict.
    """

    def __init__(self, questions: Sequence[ModelQuestion], topology: Topology) -> None:
        self._rules = topology.rules
        self._read: dict[str, HostRules | str] = {}
        ends = (end for question in questions for end in (question.src, question.dst) if is_behind_bridge(end))
        for name in dict.fromkeys(end.host for end in ends):
            try:
                self._read[name] = read_host(topology.host(name))
            except NetprobeError as error:
                self._read[name] = str(error)

    def answer(self, question: ModelQuestion, between: ModelAnswer) -> ModelAnswer:
        """The answer of the first that stops a packet: sender's bridge, vswitch, target's bridge; else of the last.

        Args:
            question: the packet.
            between: what the vswitch says of it.
        """
        answers = [self._at(question, question.src, is_out=True), between, self._at(question, question.dst)]
        there = [answer for answer in answers if answer is not None]
        return next((answer for answer in there if not answer.is_allowed), there[-1])

    def _at(self, question: ModelQuestion, end: Attachment, *, is_out: bool = False) -> ModelAnswer | None:
        """What the bridge at one end says; None where that end has none."""
        if not is_behind_bridge(end):
            return None
        rules = self._read[end.host]
        if isinstance(rules, str):
            return silent_answer(rules, end.host)
        packet = question.packet
        crossing = crossing_of(end, is_out=is_out)
        if packet.kind is Kind.ARP:
            return frame_answer(evaluate_frame(rules.frames, packet, crossing), question, end.host)
        family = rules.by_family[packet.family]
        verdict = evaluate(family, rules.sets, packet, question.state, guarded(crossing, end, family))
        return bridge_answer(verdict, self._rules, question, end.host, is_target=not is_out)
