"""Why probes were lost: asks the switch, with the conntrack state that the first lost probe met, and tests the answer.

The prediction is a trace of the model; where the deciding rule has a cookie of its own, a secret pattern of bursts
shows whether our probes really hit it (design §5), although tenants may hit it too. Runs after the rings are closed.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from netprobe.collect.ledger import Fate
from netprobe.collect.session import LegOutcome
from netprobe.errors import HostNotReadyError, NetprobeError, NoAnswerError
from netprobe.host.audit import InjectionOrder, record_order
from netprobe.host.clock import realtime_ns
from netprobe.host.conntrack import Conntrack
from netprobe.host.openflow import OpenFlowClient
from netprobe.host.rule_counters import probe_rule, read_noise
from netprobe.host.signals import StopRequest
from netprobe.host.tracing import trace_probe
from netprobe.host.unixctl import CommandError, UnixctlClient
from netprobe.inject.packet_out import paced_sender
from netprobe.judge.counter_pattern import PatternResult, fit_pattern
from netprobe.judge.ofproto_trace import Trace, TraceStep, five_tuple, probe_flow
from netprobe.judge.reason import NEUTRON_TABLES, Evidence, Reason, ReasonCode, deciding_step, explain, unknown_reason
from netprobe.model.points import PointKind, Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.model.topology import Host, Topology
from netprobe.plan.allowlist import Allowlist, Order
from netprobe.service.journal import Journal
from netprobe.service.permits import audit_path, check_tuples, own_tuples
from netprobe.service.prepare import PortSource, Prepared, prepare_session, type_p_json

TESTABLE = frozenset(
    {ReasonCode.SECURITY_GROUP, ReasonCode.ANTI_SPOOFING, ReasonCode.CONNTRACK_INVALID, ReasonCode.RULE_DROP}
)
"""Reasons that a rule of its own stands behind, so that its counter can be tested."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What the reason of one session is asked with.

    Attributes:
        journal: the run's; what a test sends is written down there too.
        stop: once it is asked, nothing more is sent.
    """

    one: Prepared
    topology: Topology
    allowlist: Allowlist
    port_source: PortSource
    journal: Journal
    stop: StopRequest


def _outside_the_switch(one: Prepared, outcome: LegOutcome, first: int, second: int) -> Reason | None:
    """The reason where no switch stands between the two stops; None where one does."""
    start, end = outcome.stops[first].point, outcome.stops[second].point
    is_before = start.kind is PointKind.VSWITCH or start in one.sender.chain
    if is_before and end in one.target.chain:
        return None
    detail = f"no rule stands between {start.id} and {end.id}: lost on the link, in a queue or in a driver"
    return replace(unknown_reason(detail), code=ReasonCode.LINK_LOSS)


def _late(outcome: LegOutcome, first: int, second: int, count: int) -> Reason | None:
    """The reason where most of the group did arrive, after Tmax: slow, not lost."""
    ledger, late = outcome.ledger, outcome.arrivals.late
    group = (ledger.fate == Fate.LOST) & (ledger.last_stop == first) & (ledger.first_missing == second)
    came = int(np.count_nonzero(group & late[second:].any(axis=0)))
    if came * 2 <= count:
        return None
    detail = f"{came} of {count} came to {outcome.stops[second].point.id} or further after Tmax: slow, not lost"
    return Reason(ReasonCode.LATE, Evidence.OBSERVED, detail)


def find_reason(inquiry: Inquiry, outcome: LegOutcome) -> Reason | None:
    """The reason of the largest group of lost probes.

    Args:
        inquiry: the session, and whom to ask.
        outcome: its forward leg.

    Returns:
        None where nothing was lost. A switch that does not answer makes the code `unknown`; it never raises for that.
    """
    spans = outcome.ledger.lost_spans()
    if not spans:
        return None
    first, second, count = spans[0]
    plain = _late(outcome, first, second, count) or _outside_the_switch(inquiry.one, outcome, first, second)
    if plain is not None:
        return plain
    ledger = outcome.ledger
    group = (ledger.fate == Fate.LOST) & (ledger.last_stop == first) & (ledger.first_missing == second)
    seq = int(np.flatnonzero(group)[0])
    some_passed = ledger.count(Fate.DELIVERED) > 0
    try:
        return _ask(inquiry, seq, some_passed=some_passed)
    except CommandError as error:
        return unknown_reason(f"the switch could not tell: {error}")
    except HostNotReadyError as error:
        detail = f"the switch does not answer, so it may not have forwarded either: {error}"
        return Reason(ReasonCode.VSWITCH_DOWN, Evidence.OBSERVED, detail)
    except NetprobeError as error:
        return unknown_reason(f"the switch could not be asked: {error}")


def _ask(inquiry: Inquiry, seq: int, *, some_passed: bool) -> Reason:
    one, topology = inquiry.one, inquiry.topology
    host, expected_port = topology.host(one.sender.host), one.target.port_device
    with UnixctlClient(host.ovs_rundir) as unixctl:
        own = set(own_tuples(one.probe))
        entries = [e for e in Conntrack(unixctl).dump(host.zone).entries if e.original not in own]
        trace = trace_probe(
            unixctl,
            host.bridge,
            probe_flow(one.probe, seq, one.sender.ofport),
            five_tuple(one.probe, seq),
            entries,
            is_answered=some_passed and one.probe.type_p.flow is Flow.SAME,
        )
        reason = explain(trace, topology.rules, expected_port=expected_port, tables=NEUTRON_TABLES)
        step = _rule_to_test(trace, reason, topology)
        if step is None:
            return reason
        pattern = _test(inquiry, host, unixctl, step)
    return explain(trace, topology.rules, pattern, expected_port=expected_port, tables=NEUTRON_TABLES)


def _rule_to_test(trace: Trace, reason: Reason, topology: Topology) -> TraceStep | None:
    """The rule whose counter can be tested: one that drops, with a cookie that names it alone."""
    if reason.code not in TESTABLE:
        return None
    step = deciding_step(trace, topology.rules)
    return step if step is not None and step.cookie and f"{step.cookie:#x}" in topology.rules else None


def _test(inquiry: Inquiry, host: Host, unixctl: UnixctlClient, step: TraceStep) -> PatternResult | None:
    """Carry out a counter pattern by packet-out; None where the host does not allow it, or others would drown it."""
    one, allowlist = inquiry.one, inquiry.allowlist
    cap = allowlist.cap_pps(Vantage.VSWITCH)
    order = Order(
        names=(one.sender.name, one.sender.port_device, one.sender.iface_id, one.sender.mac),
        protocol=one.plan.protocol,
        family=one.plan.family,
        vantage=Vantage.VSWITCH,
        pps=cap,
    )
    if inquiry.stop.asked():
        return None
    try:
        allowlist.check(order)
        with OpenFlowClient(host.ovs_rundir, host.bridge) as client:
            noise = read_noise(client, unixctl, step.table, step.cookie)
            pattern = fit_pattern(secrets.randbits(32), noise)
            if pattern is None:
                return None
            extra = _extra_session(inquiry, pattern.total)
            check_tuples([extra], inquiry.topology, ours=frozenset(own_tuples(one.probe)))
            inquiry.journal.add(extra, inquiry.topology)
            _audit(extra, host, pattern.total, cap)
            send = paced_sender(client, extra.block.frames, extra.sender.ofport, cap_pps=cap)
            stoppable = _until_stopped(send, inquiry.stop)
            return probe_rule(client, unixctl, pattern, stoppable, table=step.table, cookie=step.cookie)
    except NetprobeError:
        return None  # without a test the evidence stays what it is: predicted


def _until_stopped(send: Callable[[int], int], stop: StopRequest) -> Callable[[int], int]:
    def send_unless_stopped(count: int) -> int:
        if stop.asked():
            raise NoAnswerError("rule counter", stop.why)
        return send(count)

    return send_unless_stopped


def _extra_session(inquiry: Inquiry, count: int) -> Prepared:
    """Probes of the same Type-P for the pattern: a session of their own, never counted in the result."""
    one = inquiry.one
    plan = replace(one.plan, count=count, name=f"{one.plan.name} (rule counter)")
    if one.plan.protocol is not Protocol.TCP and one.probe.type_p.src_port:
        # The same tuple as the probes that were lost: another one may meet another rule.
        plan = replace(plan, src_port=one.probe.type_p.src_port, flow=Flow.SAME)
    number = (one.probe.session + 0x80000000) % (1 << 32)
    return prepare_session(plan, inquiry.topology, seed=0, session=number, port_source=inquiry.port_source)


def _audit(extra: Prepared, host: Host, count: int, pps: float) -> None:
    type_p = {**type_p_json(extra.probe), "src": str(extra.probe.src_ip), "dst": str(extra.probe.dst_ip)}
    order = InjectionOrder(
        host=host.name,
        port=extra.sender.name,
        vantage=Vantage.VSWITCH.value,
        type_p=type_p,
        count=count,
        pps=pps,
        session=extra.probe.session,
    )
    record_order(order, realtime_ns(), path=audit_path())
