"""A trace of a switch's tables as an answer about a policy: passes or not, by whose rule, decided at which port. Pure.

What the cookies stand for comes from the topology's rules; where those are silent, Neutron's tables say at which stage
a packet is. Rules of OVN's are explained by judge.ovn_flows, whose decisions come in here.
"""

from collections.abc import Mapping

from netprobe.judge.ofproto_trace import Trace, TraceStep, Verdict
from netprobe.judge.ovn_flows import EGRESS, NorthRow, OvnDecision, OvnKind
from netprobe.judge.reason import Rules, deciding_step
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import EnforcementPoint, Kind, Stage

NEUTRON_STAGES = {71: Stage.ANTI_SPOOFING, 72: Stage.EGRESS, 81: Stage.INGRESS, 82: Stage.INGRESS}
"""Tables of Neutron's Open vSwitch firewall in which a policy decides."""

_STAGES = {"egress": Stage.EGRESS, "ingress": Stage.INGRESS}

OVN_RULE_KINDS = {
    OvnKind.ACL: "acl",
    OvnKind.PORT_SECURITY: "anti-spoofing",
    OvnKind.CONNTRACK_INVALID: "conntrack-invalid",
    OvnKind.NO_DESTINATION: "no-destination",
    OvnKind.ROUTER: "router",
    OvnKind.QOS: "rate-limit",
}


ANSWERED = "answered"
"""Kind of an answer about a question for an address, which the switch itself answers."""


def silent_answer(detail: str, host: str = "") -> ModelAnswer:
    """The answer where the model cannot say anything."""
    return ModelAnswer(None, host=host, detail=detail)


def arrives(trace: Trace, device: str) -> bool | None:
    """Whether the last switch on its way gives a packet to a port.

    Returns:
        None where the trace could not be read, or ends at a tunnel that is down: that is no rule's verdict.
    """
    if trace.verdict is Verdict.UNKNOWN or not trace.steps:
        return None
    return device in trace.ports or (None if trace.missing_neighbour else False)


def _unread(trace: Trace, host: str) -> ModelAnswer:
    down = f"the tunnel is down: {trace.missing_neighbour}" if trace.missing_neighbour else ""
    return silent_answer(down or "the switch's trace could not be read", host)


def answer_of(trace: Trace, rules: Rules, question: ModelQuestion, host: str) -> ModelAnswer:
    """What a switch whose cookies name the user's rules says of a packet.

    Args:
        trace: of the last switch on its way.
        rules: the user's rules by cookie; may be empty.
        question: the packet.
        host: where the switch is.
    """
    is_allowed = arrives(trace, question.dst.port_device)
    if is_allowed is None:
        return _unread(trace, host)
    step = _deciding(trace, rules, is_allowed=is_allowed)
    rule = rules.get(f"{step.cookie:#x}", {})
    return ModelAnswer(
        is_allowed,
        host=host,
        place=f"table {step.table}",
        table=step.table,
        cookie="" if step.is_miss else f"{step.cookie:#x}",
        priority=step.priority,
        match="" if step.is_miss else step.match,
        rule=rule.get("rule", ""),
        rule_id=rule.get("id", ""),
        kind=_kind(step, rule),
        point=_point(step, rule, question),
        detail=_detail(trace, step, is_allowed=is_allowed),
    )


def _deciding(trace: Trace, rules: Rules, *, is_allowed: bool) -> TraceStep:
    """The rule that decided: of a packet that arrives the last one of the policy, behind which is only forwarding."""
    if is_allowed:
        for step in reversed(trace.steps):
            if step.table in NEUTRON_STAGES and not step.is_miss and not step.is_catch_all:
                return step
    return deciding_step(trace, rules) or trace.steps[-1]


def _kind(step: TraceStep, rule: Mapping[str, str]) -> str:
    if rule.get("kind"):
        return rule["kind"]
    if step.is_miss:
        return "table-miss"
    return "conntrack-invalid" if "+inv" in step.match else ""


def _point(step: TraceStep, rule: Mapping[str, str], question: ModelQuestion) -> EnforcementPoint | None:
    stage = NEUTRON_STAGES.get(step.table)
    if rule.get("kind") == "anti-spoofing":
        stage = Stage.ANTI_SPOOFING
    elif rule.get("direction") in _STAGES and stage is not Stage.ANTI_SPOOFING:
        stage = _STAGES[rule["direction"]]
    if stage is None:
        return None
    ours = question.dst if stage is Stage.INGRESS else question.src
    return EnforcementPoint(rule.get("port") or ours.name, stage)


def _detail(trace: Trace, step: TraceStep, *, is_allowed: bool) -> str:
    if is_allowed:
        return ""
    if trace.ports:
        return f"the switch sends it to {', '.join(trace.ports)}"
    if trace.verdict is Verdict.CONTROLLER:
        return "the switch gives it to its controller"
    return f"no rule of table {step.table} matches it" if step.is_miss else ""


def ovn_answer(
    trace: Trace, decision: OvnDecision | None, rules: Rules, question: ModelQuestion, host: str
) -> ModelAnswer:
    """What a switch under OVN says of a packet.

    Args:
        trace: of the last switch on its way.
        decision: the rule that decided and what stands behind it: the ACL stage that let it pass last, or where it
            ended; None where no rule of OVN's did.
        rules: the user's rules by the ACL's name or UUID; may be empty.
        question: the packet.
        host: where the switch is.
    """
    is_allowed = arrives(trace, question.dst.port_device)
    if is_allowed is None:
        return _unread(trace, host)
    if not is_allowed and _is_answered(trace, decision, question):
        said = "OVN answers it in the target's stead"
        return ModelAnswer(is_allowed, host=host, rule=said, kind=ANSWERED, detail=said)
    if decision is None or (not is_allowed and trace.ports):
        kind = "forwarded-elsewhere" if trace.ports and not is_allowed else ""
        detail = _detail(trace, trace.steps[-1], is_allowed=is_allowed)
        return ModelAnswer(is_allowed, host=host, kind=kind, detail=detail)
    step, row = decision.step, decision.row
    known = _known(rules, row)
    return ModelAnswer(
        is_allowed,
        host=host,
        place=_ovn_place(decision),
        table=step.table,
        cookie=f"{step.cookie:#x}" if step.cookie else "",
        priority=decision.flow.priority if decision.flow is not None else step.priority,
        match=decision.flow.match if decision.flow is not None else step.match,
        rule=known.get("rule", "") or _ovn_rule(decision, is_allowed=is_allowed),
        rule_id=known.get("id", "") or _row_id(row),
        kind=known.get("kind", "") or _ovn_kind(decision, is_allowed=is_allowed),
        point=_ovn_point(decision, question, known),
        detail="" if is_allowed else _ovn_detail(decision),
    )


def _is_answered(trace: Trace, decision: OvnDecision | None, question: ModelQuestion) -> bool:
    """Whether OVN answers an ARP request or a neighbour solicitation by itself: then it goes back, or to OVN."""
    is_asking = question.packet.kind is not Kind.IP
    is_responder = decision is not None and decision.flow is not None and decision.flow.stage.endswith("_arp_rsp")
    return is_asking and (is_responder or trace.ports == (question.src.port_device,))


def _ovn_rule(decision: OvnDecision, *, is_allowed: bool) -> str:
    if decision.row is not None:
        return decision.row.title
    if is_allowed and decision.flow is not None:
        is_known = "ct.est" in decision.flow.match or "ct.rel" in decision.flow.match
        return "answers of permitted connections" if is_known else "no ACL matches it, and the default is to pass"
    if decision.kind is OvnKind.CONNTRACK_INVALID:
        return "conntrack knows no such connection"
    return decision.title


def _ovn_kind(decision: OvnDecision, *, is_allowed: bool) -> str:
    if is_allowed and decision.row is None:
        return "plumbing"
    return OVN_RULE_KINDS.get(decision.kind, "stage")


def _ovn_detail(decision: OvnDecision) -> str:
    is_told = decision.row is not None and decision.row.action == "reject"
    return decision.detail + ("; its sender is told" if is_told else "")


def _known(rules: Rules, row: NorthRow | None) -> Mapping[str, str]:
    if row is None:
        return {}
    names = (row.name, row.neutron_rule, row.uuid, _row_id(row))
    return next((rules[name] for name in names if name in rules), {})


def _row_id(row: NorthRow | None) -> str:
    """What plan.policy_ovn calls an ACL."""
    if row is None:
        return ""
    holder = row.owner.removeprefix("port group ").removeprefix("switch ")
    return row.neutron_rule or row.name or f"{holder} {row.direction} {row.priority} {row.text}"


def _ovn_place(decision: OvnDecision) -> str:
    if decision.flow is None:
        return f"table {decision.step.table}"
    whose = f" of {decision.datapath}" if decision.datapath else ""
    return f"stage {decision.flow.stage}{whose}"


def _ovn_point(decision: OvnDecision, question: ModelQuestion, known: Mapping[str, str]) -> EnforcementPoint | None:
    """Ingress of OVN's pipeline is the sender's port, its egress the target's. ACLs may guard against spoofing too."""
    if decision.flow is None:
        return None
    is_target = decision.flow.pipeline == EGRESS
    port = (question.dst if is_target else question.src).name
    if decision.kind is OvnKind.PORT_SECURITY or known.get("kind") == "anti-spoofing":
        return EnforcementPoint(port, Stage.ANTI_SPOOFING)
    if decision.kind in (OvnKind.ACL, OvnKind.CONNTRACK_INVALID):
        return EnforcementPoint(port, Stage.INGRESS if is_target else Stage.EGRESS)
    return None
