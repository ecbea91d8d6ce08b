"""Why a probe did not arrive: one code of a closed list, the rule behind it, and how we know.

Pure: from a trace of the model, the map of the user's own rules, and what measurements have confirmed. The list for
people, with what to do about each, is docs/reasons.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from netprobe.judge.counter_pattern import PatternResult, PatternVerdict
from netprobe.judge.ofproto_trace import Trace, TraceStep, Verdict
from netprobe.judge.ovn_flows import OvnDecision, OvnKind

Json = dict[str, object]
Rules = Mapping[str, Mapping[str, str]]
"""The user's rule behind each cookie ("0x…"): port, group, direction, rule, kind."""


class ReasonCode(Enum):
    """Why a probe was lost; a closed list (docs/reasons.md)."""

    SECURITY_GROUP = "security-group"
    ACL = "acl"
    PORT_SECURITY = "port-security"
    ROUTER = "router"
    ANTI_SPOOFING = "anti-spoofing"
    CONNTRACK_INVALID = "conntrack-invalid"
    TABLE_MISS = "table-miss"
    RULE_DROP = "rule-drop"
    NO_DESTINATION = "no-destination"
    FORWARDED_ELSEWHERE = "forwarded-elsewhere"
    CONTROLLER = "controller"
    RATE_LIMIT = "rate-limit"
    PORT_DOWN = "port-down"
    LINK_LOSS = "link-loss"
    LATE = "late"
    VSWITCH_DOWN = "vswitch-down"
    UNKNOWN = "unknown"


class Evidence(Enum):
    """How a reason is known (design §5), the strongest first."""

    PACKET_IN = "packet-in"
    SAMPLE = "sample"
    COUNTER_PATTERN = "counter-pattern"
    OBSERVED = "observed"
    PREDICTED = "predicted"


KINDS = {
    "security-group": ReasonCode.SECURITY_GROUP,
    "default-deny": ReasonCode.SECURITY_GROUP,
    "network-acl": ReasonCode.ACL,
    "revoked": ReasonCode.SECURITY_GROUP,
    "anti-spoofing": ReasonCode.ANTI_SPOOFING,
    "conntrack-invalid": ReasonCode.CONNTRACK_INVALID,
}
"""Kinds of the rules map whose rules decide by themselves; others ("plumbing") only pass packets on."""

NEUTRON_TABLES = {
    71: ReasonCode.ANTI_SPOOFING,
    72: ReasonCode.SECURITY_GROUP,
    81: ReasonCode.SECURITY_GROUP,
    82: ReasonCode.SECURITY_GROUP,
}
"""What Neutron's Open vSwitch firewall drops in which table, for switches whose cookies name no rule."""


OVN_CODES = {
    OvnKind.ACL: ReasonCode.ACL,
    OvnKind.PORT_SECURITY: ReasonCode.PORT_SECURITY,
    OvnKind.ROUTER: ReasonCode.ROUTER,
    OvnKind.CONNTRACK_INVALID: ReasonCode.CONNTRACK_INVALID,
    OvnKind.NO_DESTINATION: ReasonCode.NO_DESTINATION,
    OvnKind.QOS: ReasonCode.RATE_LIMIT,
}
"""What OVN's stages stand for; others drop for reasons of their own, with the stage's name."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why, by which rule, and how we know.

    `table`, `cookie` and `priority` are None where no rule is to blame, `chassis` (a host) where none decided.
    """

    code: ReasonCode
    evidence: Evidence
    detail: str
    table: int | None = None
    cookie: int | None = None
    priority: int | None = None
    match: str = ""
    rule: str = ""
    chassis: str | None = None

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "code": self.code.value,
            "table": self.table,
            "cookie": None if self.cookie is None else f"{self.cookie:#x}",
            "priority": self.priority,
            "match": self.match,
            "rule": self.rule,
            "chassis": self.chassis,
            "evidence": self.evidence.value,
            "detail": self.detail,
        }


def unknown_reason(detail: str) -> Reason:
    """The reason when nothing could be asked."""
    return Reason(ReasonCode.UNKNOWN, Evidence.PREDICTED, detail)


def _rule_of(step: TraceStep, rules: Rules) -> Mapping[str, str]:
    return rules.get(f"{step.cookie:#x}", {})


_COOKIE = re.compile(r"0x[0-9a-fA-F]{1,16}")


def deciding_step(trace: Trace, rules: Rules) -> TraceStep | None:
    """The step whose rule decided, knowing which cookies belong to rules that decide even without a match."""
    kinds = {cookie: rule.get("kind") for cookie, rule in rules.items()}
    decisive = {int(c, 16) for c, kind in kinds.items() if kind in KINDS and _COOKIE.fullmatch(c)}  # or an ACL's name
    return trace.deciding(decisive)


def explain(
    trace: Trace,
    rules: Rules,
    pattern: PatternResult | None = None,
    *,
    expected_port: str = "",
    tables: Mapping[int, ReasonCode] | None = None,
    evidence: Evidence | None = None,
    ovn: OvnDecision | None = None,
    chassis: str = "",
) -> Reason:
    """Say why a probe that was seen to enter this switch, and not to leave it, was lost.

    Args:
        trace: what the switch's tables would do with it, with the right conntrack states and with port names.
        rules: the user's rules by cookie; may be empty.
        pattern: result of a counter pattern on the deciding rule (deciding_step), None when none was made.
        expected_port: name of the port that the probe should have left by; empty when unknown.
        tables: what a drop in a table means where cookies name no rule: NEUTRON_TABLES, or None.
        evidence: stronger evidence that the caller has (a packet-in or a sample from the deciding rule).
        ovn: what OVN's databases say about the deciding rule, None without OVN.
        chassis: name of the host that the switch is on.

    Returns:
        One reason. Its evidence is `counter-pattern` only when the pattern was confirmed, and a pattern that proves
        that the probes did not hit the predicted rule takes the prediction back: then the code is `unknown`.
    """
    reason = _predict(trace, rules, expected_port, tables or {}, ovn)
    if reason.table is not None:
        place = f", on {chassis}" if ovn is not None and chassis and reason.rule else ""
        reason = replace(reason, chassis=chassis or None, rule=reason.rule + place)
    if evidence is not None:
        return replace(reason, evidence=evidence)
    step = ovn.step if ovn is not None else deciding_step(trace, rules)
    is_tested = step is not None and (step.table, step.cookie) == (reason.table, reason.cookie)
    if pattern is None or not is_tested or reason.code is ReasonCode.RATE_LIMIT:  # a meter's rule passes packets, too
        return reason
    if pattern.is_confirmed:
        text = f"{reason.detail}; its counter followed our bursts (p = {pattern.p_value:.2g})"
        return replace(reason, evidence=Evidence.COUNTER_PATTERN, detail=text)
    if pattern.verdict is PatternVerdict.NOT_HIT:
        where = f" on {chassis}" if chassis else ""
        return unknown_reason(
            f"the model says {reason.code.value} in table {reason.table}{where}, but its counter missed our bursts"
        )
    return replace(reason, detail=f"{reason.detail}; its counter is drowned in other traffic")


def _predict(
    trace: Trace,
    rules: Rules,
    expected_port: str,
    tables: Mapping[int, ReasonCode],
    ovn: OvnDecision | None,
) -> Reason:
    if trace.verdict is Verdict.UNKNOWN or not trace.steps:
        return unknown_reason("the switch's trace could not be read")
    ports = trace.ports
    if expected_port in ports or (ports and not expected_port):
        return _forwarded(trace, rules, expected_port or ", ".join(ports), ovn)
    if ports and not trace.ends_in_drop and not (ovn is not None and ovn.is_end):
        step = deciding_step(trace, rules) or trace.steps[-1]
        detail = f"the switch sends it to {', '.join(ports)}, not to {expected_port}"
        return _blame(ReasonCode.FORWARDED_ELSEWHERE, step, rules, detail)
    return _dropped(trace, rules, tables, ovn)


def _forwarded(trace: Trace, rules: Rules, port: str, ovn: OvnDecision | None) -> Reason:
    for step in trace.steps:
        meters = [action for action in step.actions if action.startswith("meter:")]
        if meters:
            reason = _blame(ReasonCode.RATE_LIMIT, step, rules, f"it passes {meters[0]}, which drops above its rate")
            return replace(reason, rule=ovn.title) if ovn is not None and ovn.step == step else reason
    text = f"the switch's rules forward it to {port}: lost outside them (link, queue, driver or guest)"
    return Reason(ReasonCode.LINK_LOSS, Evidence.PREDICTED, text)


def _dropped(trace: Trace, rules: Rules, tables: Mapping[int, ReasonCode], ovn: OvnDecision | None) -> Reason:
    last = trace.steps[-1]
    remarks = [action for action in last.actions if action.startswith(">>")]
    if trace.missing_neighbour:
        at = next(s for s in trace.steps if any("neighbor cache miss" in action for action in s.actions))
        return _blame(ReasonCode.NO_DESTINATION, at, rules, f"the tunnel is down: {trace.missing_neighbour}")
    if remarks:
        return _blame(ReasonCode.PORT_DOWN, last, rules, remarks[0].lstrip("> "))
    if ovn is not None and ovn.is_end:
        return _dropped_by_ovn(trace, ovn)
    return _dropped_by_rule(trace, rules, tables)


def _dropped_by_rule(trace: Trace, rules: Rules, tables: Mapping[int, ReasonCode]) -> Reason:
    last = trace.steps[-1]
    step = deciding_step(trace, rules) or last
    if last.is_miss:
        return _blame(ReasonCode.TABLE_MISS, last, rules, f"no rule of table {last.table} matches it")
    if trace.verdict is Verdict.CONTROLLER:
        return _blame(ReasonCode.CONTROLLER, last, rules, "it goes to the controller and to no port")
    if "NORMAL" in last.actions:
        said = [action.lstrip("-> ") for action in last.actions if action.startswith("->")]
        return _blame(ReasonCode.NO_DESTINATION, last, rules, said[-1] if said else "no port for its destination")
    if step.is_catch_all and _rule_of(step, rules).get("kind") not in KINDS:
        return _blame(ReasonCode.TABLE_MISS, step, rules, f"only the catch-all of table {step.table} matches it")
    code = _code_of(step, rules, tables)
    return _blame(code, step, rules, _DETAILS[code].format(table=step.table))


def _dropped_by_ovn(trace: Trace, ovn: OvnDecision) -> Reason:
    code = OVN_CODES.get(ovn.kind, ReasonCode.RULE_DROP)
    if ovn.kind is OvnKind.PHYSICAL and (ovn.step.is_miss or ovn.step.is_catch_all):
        code = ReasonCode.TABLE_MISS
    if ovn.kind is OvnKind.STAGE and trace.verdict is Verdict.CONTROLLER:
        code = ReasonCode.CONTROLLER
    return replace(_blame(code, ovn.step, {}, ovn.detail), rule=ovn.title)


_DETAILS = {
    ReasonCode.SECURITY_GROUP: "a security group's rule or default deny in table {table} drops it",
    ReasonCode.ACL: "an entry of a network ACL in table {table} drops it",
    ReasonCode.ANTI_SPOOFING: "it doesn't carry its port's own addresses (table {table})",
    ReasonCode.CONNTRACK_INVALID: "conntrack says that it belongs to no connection (table {table})",
    ReasonCode.RULE_DROP: "a rule in table {table} drops it; netprobe does not know on whose behalf",
}


def _code_of(step: TraceStep, rules: Rules, tables: Mapping[int, ReasonCode]) -> ReasonCode:
    by_kind = KINDS.get(_rule_of(step, rules).get("kind", ""))
    if by_kind is not None:
        return by_kind
    if "+inv" in step.match:
        return ReasonCode.CONNTRACK_INVALID
    return tables.get(step.table, ReasonCode.RULE_DROP)


def _blame(code: ReasonCode, step: TraceStep, rules: Rules, detail: str) -> Reason:
    return Reason(
        code,
        Evidence.PREDICTED,
        detail,
        table=step.table,
        cookie=None if step.is_miss else step.cookie,
        priority=step.priority,
        match="" if step.is_miss else step.match,
        rule=_rule_text(_rule_of(step, rules)),
    )


def _rule_text(rule: Mapping[str, str]) -> str:
    """The user's own rule in words: whose port, which groups, what it says."""
    whose = " ".join(part for part in (rule.get("port", ""), f"[{rule['group']}]" if rule.get("group") else "") if part)
    text = rule.get("rule", "")
    return f"{whose}: {text}" if whose and text else text
