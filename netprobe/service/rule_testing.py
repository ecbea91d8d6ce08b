"""Tests a predicted reason: a secret pattern of bursts, and whether the deciding rule's counter follows it.

The bursts enter at the sender's switch by packet-out, wherever the rule is; its counter is read where it is, which may
be another host. Whatever is sent is allowed, journalled and audited as a run's own probes are.
"""

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

from netprobe.errors import NetprobeError, NoAnswerError
from netprobe.host.audit import InjectionOrder, record_order
from netprobe.host.clock import realtime_ns
from netprobe.host.openflow import OpenFlowClient
from netprobe.host.rule_counters import probe_rule, read_noise
from netprobe.host.signals import StopRequest
from netprobe.host.unixctl import UnixctlClient
from netprobe.inject.packet_out import paced_sender
from netprobe.judge.counter_pattern import BurstPattern, PatternResult, fit_pattern
from netprobe.judge.ofproto_trace import TraceStep
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.model.topology import Host, Topology
from netprobe.plan.allowlist import Allowlist, Order
from netprobe.service.journal import Journal
from netprobe.service.permits import audit_path, check_tuples, own_tuples
from netprobe.service.prepare import PortSource, Prepared, prepare_session, type_p_json

OpenBridge = Callable[[Host], AbstractContextManager[OpenFlowClient]]
"""Opens the OpenFlow management of a host's bridge."""


def open_bridge(host: Host) -> AbstractContextManager[OpenFlowClient]:
    """A bridge on this machine."""
    return OpenFlowClient(host.ovs_rundir, host.bridge)


@dataclass(frozen=True, slots=True)
class RuleTest:
    """What a test is made with.

    Attributes:
        one: the session whose probes were lost.
        source: the host that they are sent on.
        place: the host whose rule it is.
        step: the rule.
        journal: the run's; what a test sends is written down there too.
        stop: once it is asked, nothing more is sent.
    """

    one: Prepared
    source: Host
    place: Host
    step: TraceStep
    topology: Topology
    allowlist: Allowlist
    port_source: PortSource
    journal: Journal
    stop: StopRequest


def keeps_tuples(one: Prepared) -> bool:
    """Whether a test's probes have the tuples of those that were lost: SYNs get new ones unless the plan names some."""
    return one.plan.protocol is not Protocol.TCP or one.plan.src_port is not None


def run_rule_test(test: RuleTest, open_bridge: OpenBridge) -> PatternResult | None:
    """Carry out a counter pattern.

    Returns:
        None where the host does not allow it, where tenants' traffic would drown it, or where the switch fails: the
        evidence then stays what it is.
    """
    if test.stop.asked():
        return None
    try:
        test.allowlist.check(_order(test.one, test.allowlist))
        with ExitStack() as stack:
            unixctl = stack.enter_context(UnixctlClient(test.place.ovs_rundir))
            client = stack.enter_context(open_bridge(test.place))
            sender = client if test.place == test.source else stack.enter_context(open_bridge(test.source))
            noise = read_noise(client, unixctl, test.step.table, test.step.cookie)
            pattern = fit_pattern(secrets.randbits(32), noise)
            if pattern is None:
                return None
            send = _permitted_sender(test, pattern, sender)
            if sender is not client:
                send = _until_there(send, unixctl)
            return probe_rule(client, unixctl, pattern, send, table=test.step.table, cookie=test.step.cookie)
    except NetprobeError:
        return None


def _order(one: Prepared, allowlist: Allowlist) -> Order:
    return Order(
        names=(one.sender.name, one.sender.port_device, one.sender.iface_id, one.sender.mac),
        protocol=one.plan.protocol,
        family=one.plan.family,
        vantage=Vantage.VSWITCH,
        pps=allowlist.cap_pps(Vantage.VSWITCH),
    )


def _permitted_sender(test: RuleTest, pattern: BurstPattern, client: OpenFlowClient) -> Callable[[int], int]:
    """Sends bursts, once they are allowed and written down."""
    cap = test.allowlist.cap_pps(Vantage.VSWITCH)
    extra = _extra_session(test, pattern.total)
    check_tuples([extra], test.topology, ours=frozenset(own_tuples(test.one.probe)))
    test.journal.add(extra, test.topology)
    _audit(extra, test.source, pattern.total, cap)
    send = paced_sender(client, extra.block.frames, extra.sender.ofport, cap_pps=cap)

    def send_unless_stopped(count: int) -> int:
        if test.stop.asked():
            raise NoAnswerError("rule counter", test.stop.why)
        return send(count)

    return send_unless_stopped


def _until_there(send: Callable[[int], int], unixctl: UnixctlClient) -> Callable[[int], int]:
    """The same, but returns when the other host's switch has had time for the burst.

    No barrier reaches across hosts. Two rounds of counting behind a burst (the second is the reading itself) leave it
    the time that a round takes, half a second, and put whatever came by the end of the first into the second.
    """

    def send_and_wait(count: int) -> int:
        sent = send(count)
        unixctl.wait_revalidators()
        return sent

    return send_and_wait


def _extra_session(test: RuleTest, count: int) -> Prepared:
    """Probes of the same Type-P for the pattern: a session of their own, never counted in the result."""
    one = test.one
    plan = replace(one.plan, count=count, name=f"{one.plan.name} (rule counter)")
    if one.plan.protocol is not Protocol.TCP and one.probe.type_p.src_port:
        # The same tuple as the probes that were lost: another one may meet another rule.
        plan = replace(plan, src_port=one.probe.type_p.src_port, flow=Flow.SAME)
    number = (one.probe.session + 0x80000000) % (1 << 32)
    return prepare_session(plan, test.topology, seed=0, session=number, port_source=test.port_source)


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
