"""What iptables and ebtables say of packets between guests behind hybrid bridges.

A packet crosses the sender's bridge, tap to veth, and the target's, veth to tap; the vswitch between them only
forwards. Each host's rules are read once a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from netprobe.errors import NetprobeError
from netprobe.host.iptables import read_ebtables, read_rules, read_sets
from netprobe.judge.ebtables import evaluate_frame, parse_ebtables
from netprobe.judge.iptables import evaluate
from netprobe.judge.iptables_answer import bridge_answer, frame_answer
from netprobe.judge.iptables_rules import Crossing, IpSet, RuleSet, parse_rules, parse_sets
from netprobe.judge.trace_answer import silent_answer
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import Kind
from netprobe.model.points import PointKind
from netprobe.model.topology import Attachment, Host, Topology


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


def read_host(host: Host) -> HostRules:
    """Read a host's firewall.

    Raises:
        HostNotReadyError: a command failed.
        RulesTextError: its text could not be read.
    """
    families = {family: parse_rules(read_rules(host.netns, family)) for family in (4, 6)}
    return HostRules(families, parse_sets(read_sets(host.netns)), parse_ebtables(read_ebtables(host.netns)))


def ask_bridges(questions: Sequence[ModelQuestion], topology: Topology) -> list[ModelAnswer]:
    """What the bridges' firewalls say of each packet; a host that cannot be read makes answers without a verdict."""
    read: dict[str, HostRules | str] = {}
    for name in dict.fromkeys(end.host for question in questions for end in (question.src, question.dst)):
        try:
            read[name] = read_host(topology.host(name))
        except NetprobeError as error:
            read[name] = str(error)
    return [_answer(question, read, topology) for question in questions]


def _answer(question: ModelQuestion, read: dict[str, HostRules | str], topology: Topology) -> ModelAnswer:
    """The answer of the first bridge that stops the packet, else of the last."""
    answer = silent_answer("neither end is behind a bridge")
    for end, is_out in ((question.src, True), (question.dst, False)):
        if not is_behind_bridge(end):
            continue
        rules = read[end.host]
        if isinstance(rules, str):
            return silent_answer(rules, end.host)
        crossing = crossing_of(end, is_out=is_out)
        packet = question.packet
        if packet.kind is Kind.ARP:
            answer = frame_answer(evaluate_frame(rules.frames, packet, crossing), question, end.host)
        else:
            verdict = evaluate(rules.by_family[packet.family], rules.sets, packet, question.state, crossing)
            answer = bridge_answer(verdict, topology.rules, question, end.host, is_target=not is_out)
        if not answer.is_allowed:
            return answer
    return answer
