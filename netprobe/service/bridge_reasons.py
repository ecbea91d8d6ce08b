"""Why probes were lost inside a hybrid bridge, where iptables stands and no switch: the rules are read and evaluated.

Used by service.reasons, for losses between a port's tap and its bridge's far port. Nothing is sent.
"""

from collections.abc import Callable

from netprobe.errors import NetprobeError
from netprobe.judge.iptables import evaluate
from netprobe.judge.iptables_answer import bridge_answer
from netprobe.judge.ofproto_trace import source_port
from netprobe.judge.reason import KINDS, Evidence, Reason, ReasonCode, unknown_reason
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import SYN, ConnState, Packet
from netprobe.model.points import Point, PointKind
from netprobe.model.policy import ICMP, ICMPV6, TCP, UDP
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.service.bridge_models import HostRules, crossing_of, guarded, read_host
from netprobe.service.prepare import Prepared

_ECHO = {4: 8, 6: 128}

ReadHost = Callable[[Host], HostRules]


def bridge_reason(
    one: Prepared, seq: int, between: tuple[Point, Point], topology: Topology, *, read: ReadHost = read_host
) -> Reason | None:
    """What iptables says of a probe that was lost between two points of one port's chain.

    Args:
        one: the session.
        seq: number of the probe.
        between: the last point that saw it, and the first that did not.
        topology: its hosts, and the users' rules by comment.
        read: reads a host's firewall.

    Returns:
        None where no bridge stands between the two.
    """
    kinds = {point.kind for point in between}
    if kinds != {PointKind.BACKEND, PointKind.BRIDGE}:
        return None
    ends = (one.sender, one.target)
    end = next((end for end in ends if all(point in end.chain for point in between)), None)
    if end is None:
        return None
    question = ModelQuestion(probe_packet(one.probe, seq), one.sender, one.target, ConnState.NEW)
    try:
        answer = _ask(question, end, topology, read)
    except NetprobeError as error:
        return unknown_reason(f"the rules of iptables on {end.host} could not be read: {error}")
    return _reason(answer)


def probe_packet(probe: ProbeSession, seq: int) -> Packet:
    """A probe as a policy sees it."""
    kind = probe.type_p
    macs, addresses = (probe.src_mac.hex(":"), probe.dst_mac.hex(":")), (probe.src_ip, probe.dst_ip)
    if kind.protocol is Protocol.ICMP:
        return Packet(*macs, *addresses, ICMP if kind.family == 4 else ICMPV6, icmp_type=_ECHO[kind.family])
    is_tcp = kind.protocol is Protocol.TCP
    ports = source_port(probe, seq), kind.dst_port
    return Packet(*macs, *addresses, TCP if is_tcp else UDP, *ports, tcp_flags=SYN if is_tcp else 0)


def _ask(question: ModelQuestion, end: Attachment, topology: Topology, read: ReadHost) -> ModelAnswer:
    rules, is_out = read(topology.host(end.host)), end is question.src
    packet = question.packet
    family = rules.by_family[packet.family]
    crossing = guarded(crossing_of(end, is_out=is_out), end, family)
    device = crossing.physdev_in if is_out else crossing.physdev_out
    if not any(device in condition.text.split() for rule in family.rules for condition in rule.conditions):
        return ModelAnswer(None, detail=f"no rule of iptables on {end.host} names {device}: is the port set up there?")
    verdict = evaluate(family, rules.sets, packet, question.state, crossing)
    return bridge_answer(verdict, topology.rules, question, end.host, is_target=not is_out)


def _reason(answer: ModelAnswer) -> Reason:
    if answer.is_allowed is None:
        return unknown_reason(answer.detail)
    if answer.is_allowed:
        detail = f"iptables on {answer.host} let it pass ({answer.place}): lost outside its rules"
        return Reason(ReasonCode.LINK_LOSS, Evidence.PREDICTED, detail)
    code = KINDS.get(answer.kind, ReasonCode.RULE_DROP)
    detail = f"dropped by iptables on {answer.host}, {answer.place}"
    return Reason(code, Evidence.PREDICTED, detail, match=answer.match, rule=answer.rule, chassis=answer.host)
