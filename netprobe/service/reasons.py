"""Why probes were lost: asks the switches that stand where the loss happened, and tests the answer.

The prediction is a trace of the model, with the conntrack state that the first lost probe met, followed from switch to
switch; under OVN its databases say which ACL, port security or router stage stands behind the deciding rule. Where that
rule has a cookie of its own, service.rule_testing shows whether our probes hit it. Runs after the rings are closed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from netprobe.collect.ledger import Fate
from netprobe.collect.session import LegOutcome
from netprobe.errors import HostNotReadyError, NetprobeError
from netprobe.host.ovn_flows import OvnRuleBook, OvnRules
from netprobe.host.signals import StopRequest
from netprobe.host.tracing import OpenSwitch, Passage, Question, follow_probe
from netprobe.host.unixctl import CommandError, UnixctlClient
from netprobe.judge.counter_pattern import PatternResult
from netprobe.judge.ofproto_trace import TraceStep, five_tuple, probe_flow
from netprobe.judge.ovn_flows import OvnDecision
from netprobe.judge.reason import NEUTRON_TABLES, Evidence, Reason, ReasonCode, deciding_step, explain, unknown_reason
from netprobe.judge.where import Span, span_between, switches_on_the_way, to_blame
from netprobe.model.probes import Flow
from netprobe.model.topology import Host, Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.service.bridge_reasons import bridge_reason
from netprobe.service.journal import Journal
from netprobe.service.permits import own_tuples
from netprobe.service.prepare import PortSource, Prepared
from netprobe.service.rule_testing import OpenBridge, RuleTest, keeps_tuples, open_bridge, run_rule_test

TESTABLE = frozenset(
    {
        ReasonCode.SECURITY_GROUP,
        ReasonCode.ANTI_SPOOFING,
        ReasonCode.CONNTRACK_INVALID,
        ReasonCode.RULE_DROP,
        ReasonCode.ACL,
        ReasonCode.PORT_SECURITY,
        ReasonCode.ROUTER,
        ReasonCode.NO_DESTINATION,
    }
)
"""Reasons that a rule of its own may stand behind, so that its counter can be tested."""


def open_switch(host: Host) -> AbstractContextManager[UnixctlClient]:
    """The control socket of a switch on this machine."""
    return UnixctlClient(host.ovs_rundir)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What the reason of one session is asked with.

    Attributes:
        allowlist: of the sender's host, where a test is injected.
        journal: the run's; what a test sends is written down there too.
        stop: once it is asked, nothing more is sent.
        switches: opens the control socket of a host's switch; a spread run gives one that asks the host's agent.
        bridges: opens a bridge's OpenFlow management; None where that is out of reach, and then nothing is tested.
        ovn: who knows what stands behind OVN's rules; None for OVN's databases, where the topology says that there are.
    """

    one: Prepared
    topology: Topology
    allowlist: Allowlist
    port_source: PortSource
    journal: Journal
    stop: StopRequest
    switches: OpenSwitch = open_switch
    bridges: OpenBridge | None = open_bridge
    ovn: OvnRules | None = None

    @property
    def rule_book(self) -> OvnRules | None:
        """Who says what stands behind OVN's rules; None without OVN."""
        if self.ovn is not None or self.topology.ovn is None:
            return self.ovn
        return OvnRuleBook(self.topology.ovn)


@dataclass(frozen=True, slots=True)
class Loss:
    """The largest group of lost probes.

    Attributes:
        first, second: stops: last seen, first missing.
        seqs: numbers of its probes.
    """

    first: int
    second: int
    seqs: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one switch does with the probe, and why."""

    passage: Passage
    decision: OvnDecision | None
    reason: Reason


def _largest(outcome: LegOutcome) -> Loss | None:
    ledger = outcome.ledger
    spans = ledger.lost_spans()
    if not spans:
        return None
    first, second, _count = spans[0]
    group = (ledger.fate == Fate.LOST) & (ledger.last_stop == first) & (ledger.first_missing == second)
    return Loss(first, second, np.flatnonzero(group))


def _late(outcome: LegOutcome, loss: Loss) -> Reason | None:
    """The reason where most of the group did arrive, after Tmax: slow, not lost."""
    came = int(np.count_nonzero(outcome.arrivals.late[loss.second :, loss.seqs].any(axis=0)))
    if came * 2 <= len(loss.seqs):
        return None
    where = outcome.stops[loss.second].point.id
    detail = f"{came} of {len(loss.seqs)} came to {where} or further after Tmax: slow, not lost"
    return Reason(ReasonCode.LATE, Evidence.OBSERVED, detail)


def find_reason(inquiry: Inquiry, outcome: LegOutcome) -> Reason | None:
    """The reason of the largest group of lost probes.

    Args:
        inquiry: the session, and whom to ask.
        outcome: its forward leg.

    Returns:
        None where nothing was lost. A switch that does not answer makes the code `unknown`; it never raises for that.
    """
    loss = _largest(outcome)
    if loss is None:
        return None
    late = _late(outcome, loss)
    if late is not None:
        return late
    one = inquiry.one
    way, passed = switches_on_the_way(outcome.stops, one.sender, one.target, inquiry.topology.hosts)
    span = span_between(loss.first, loss.second, passed)
    if span is None:
        start, end = outcome.stops[loss.first].point, outcome.stops[loss.second].point
        guarded = bridge_reason(one, int(loss.seqs[0]), (start, end), inquiry.topology)
        if guarded is not None:
            return guarded
        detail = f"no rule stands between {start.id} and {end.id}: lost on the link, in a queue or in a driver"
        return replace(unknown_reason(detail), code=ReasonCode.LINK_LOSS)
    try:
        some_passed = outcome.ledger.count(Fate.DELIVERED) > 0
        return _ask(inquiry, way, span, _question(one, int(loss.seqs[0]), some_passed=some_passed))
    except NetprobeError as error:
        return unknown_reason(f"the switch could not be asked: {error}")


def _question(one: Prepared, seq: int, *, some_passed: bool) -> Question:
    return Question(
        probe_flow(one.probe, seq, one.sender.ofport),
        five_tuple(one.probe, seq),
        frozenset(own_tuples(one.probe)),
        is_answered=some_passed and one.probe.type_p.flow is Flow.SAME,
    )


def _ask(inquiry: Inquiry, way: Sequence[str], span: Span, question: Question) -> Reason:
    one, topology = inquiry.one, inquiry.topology
    trail = follow_probe(question, way, topology.hosts, inquiry.switches)
    findings = [_find(inquiry, trail, number) for number in range(len(trail))]
    blamed = to_blame([(f.passage.host.name, f.reason) for f in findings], span)
    if isinstance(blamed, Reason):
        return blamed
    found = findings[blamed]
    step = _rule_to_test(inquiry, found)
    if step is None or inquiry.bridges is None:
        return found.reason
    test = RuleTest(
        one,
        topology.host(one.sender.host),
        found.passage.host,
        step,
        topology,
        inquiry.allowlist,
        inquiry.port_source,
        inquiry.journal,
        inquiry.stop,
    )
    pattern = run_rule_test(test, inquiry.bridges)
    return found.reason if pattern is None else _find(inquiry, trail, blamed, pattern).reason


def _find(inquiry: Inquiry, trail: Sequence[Passage], number: int, pattern: PatternResult | None = None) -> Finding:
    """What a switch on the way does with the probe."""
    passage, target = trail[number], inquiry.one.target
    here, following = passage.host.name, trail[number + 1 : number + 2]
    if passage.error is not None:
        return Finding(passage, None, _silent(passage.error, here))
    decision, notes = _decide(inquiry, passage)
    expected = target.port_device if here == target.host else f"{target.port_device} on {target.host}"
    reason = explain(
        passage.trace,
        inquiry.topology.rules,
        pattern,
        expected_port="" if following else expected,
        tables=NEUTRON_TABLES if inquiry.rule_book is None else None,
        ovn=decision,
        chassis=here,
    )
    if following and reason.code is ReasonCode.LINK_LOSS:
        reason = replace(reason, detail=f"{_sent_on(passage)} to {following[0].host.name}: lost outside its rules")
    elif passage.output is not None and reason.code is ReasonCode.FORWARDED_ELSEWHERE:
        reason = replace(reason, detail=f"{_sent_on(passage)}, where no host of its way is known")
    if reason.code is ReasonCode.LINK_LOSS:
        notes += [_admitted(inquiry, here, label) for label in passage.acl_labels]
    before = trail[number - 1].output if number else None
    if before is not None and before.doubts:
        notes.append(f"not all that was done to it before could be followed: {'; '.join(before.doubts)}")
    return Finding(passage, decision, replace(reason, detail="; ".join([reason.detail, *notes])))


def _admitted(inquiry: Inquiry, host: str, label: int) -> str:
    """That conntrack has the probe's connection, and which ACL admitted it: more than a prediction."""
    row = None
    if inquiry.rule_book is not None:
        with suppress(NetprobeError):
            row = inquiry.rule_book.admitted_by(label)
    by = row.title if row is not None else f"the ACL with label {label}"
    return f"conntrack of {host} has its connection, admitted by {by}"


def _sent_on(passage: Passage) -> str:
    """How a switch sends a probe to another host."""
    output, host = passage.output, passage.host.name
    assert output is not None  # it does
    if output.tunnel is not None:
        return f"{host}'s switch sends it in a tunnel to {output.tunnel.dst}"
    tags = "".join(f", VLAN {vlan}" for vlan in output.vlans)
    return f"{host}'s switch sends it out of {output.device}{tags}"


def _silent(error: NetprobeError, host: str) -> Reason:
    """The reason where a switch does not tell."""
    if isinstance(error, CommandError) or not isinstance(error, HostNotReadyError):
        return unknown_reason(f"the switch could not tell: {error}")
    detail = f"the switch does not answer, so it may not have forwarded either: {error}"
    return Reason(ReasonCode.VSWITCH_DOWN, Evidence.OBSERVED, detail, chassis=host)


def _decide(inquiry: Inquiry, passage: Passage) -> tuple[OvnDecision | None, list[str]]:
    """What stands behind OVN's deciding rule, and what to remark."""
    if inquiry.rule_book is None:
        return None, []
    try:
        return inquiry.rule_book.decide(passage.trace, passage.host.bridge), []
    except NetprobeError as error:
        return None, [f"OVN's databases could not be asked: {error}"]


def _rule_to_test(inquiry: Inquiry, found: Finding) -> TraceStep | None:
    """The rule whose counter can be tested: one that drops, with a cookie that names it alone."""
    reason = found.reason
    if reason.code not in TESTABLE or not reason.cookie:
        return None
    if reason.code is ReasonCode.CONNTRACK_INVALID and not keeps_tuples(inquiry.one):
        return None  # a new connection is not an invalid one: it would not hit the rule
    if found.decision is not None:
        step = found.decision.step if found.decision.has_counter else None
    else:
        step = deciding_step(found.passage.trace, inquiry.topology.rules)
        step = step if step is not None and f"{step.cookie:#x}" in inquiry.topology.rules else None
    return step if step is not None and (step.table, step.cookie) == (reason.table, reason.cookie) else None
