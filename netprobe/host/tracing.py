"""Ask switches what their tables would do with a probe: `ofproto/trace` with the conntrack states that really hold.

By itself a trace takes every packet for a new connection and looks at no conntrack table. Without a packet it neither
learns nor counts; a switch may only send an ARP request of its own for a tunnel's next hop. A probe that leaves for
another host is followed to the switch there. The words are judge.ofproto_trace's and judge.rewriting's, below.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from netprobe.errors import HostNotReadyError, NetprobeError, NoAnswerError
from netprobe.judge.conntrack import ConntrackEntry, CtState, FiveTuple, parse_dump
from netprobe.judge.ofproto_trace import Trace, parse_trace
from netprobe.judge.rewriting import Output, SwitchPort, next_flow, next_states, output_of, parse_ports, tuples_behind
from netprobe.model.points import PointKind
from netprobe.model.topology import Host

MAX_ROUNDS = 8
"""Rounds until the states settle: one for each pass through conntrack; Neutron's pipeline has two, OVN's up to six."""

MAX_SWITCHES = 4
"""On one way: source, gateways of two routers, destination."""

NEIGHBOUR_TRIES = 5
NEIGHBOUR_WAIT_S = 0.1
"""A trace into a tunnel whose next hop the switch has forgotten makes it ask; the answer takes less than this."""


class SwitchAnswers(Protocol):
    """A switch's control socket, here or on another host."""

    def call(self, command: str, *arguments: str) -> str:
        """Run one command as `ovs-appctl COMMAND ARGUMENTS` would.

        Raises:
            CommandError: the daemon refused the command.
            HostNotReadyError: it does not run, or does not answer in time.
        """


OpenSwitch = Callable[[Host], AbstractContextManager[SwitchAnswers]]
"""Opens the control socket of a host's switch."""


def trace_flow(
    switch: SwitchAnswers,
    bridge: str,
    flow: str,
    states: Sequence[CtState] = (),
    *,
    neighbour_tries: int = NEIGHBOUR_TRIES,
) -> Trace:
    """One trace.

    Args:
        switch: the switch's control socket.
        bridge: name of the bridge.
        flow: as judge.ofproto_trace.probe_flow writes it.
        states: what conntrack gives at each of its passes; `new` behind the last one.
        neighbour_tries: how often to ask again while the switch looks for a tunnel's next hop.

    Raises:
        CommandError: the switch does not understand the flow, or has no such bridge.
        HostNotReadyError: the switch is gone.
    """
    words = trace_words(bridge, flow, states)
    trace = parse_trace(switch.call("ofproto/trace", *words))
    for _ in range(neighbour_tries):
        if not trace.missing_neighbour:
            break
        time.sleep(NEIGHBOUR_WAIT_S)
        trace = parse_trace(switch.call("ofproto/trace", *words))
    return trace


def trace_words(bridge: str, flow: str, states: Sequence[CtState]) -> list[str]:
    """The arguments of `ofproto/trace` for `trace_flow`'s question."""
    return ["--names", bridge, flow, *(word for state in states for word in ("--ct-next", state.value))]


def trace_probe(
    switch: SwitchAnswers,
    bridge: str,
    flow: str,
    tuple_: FiveTuple,
    entries: Sequence[ConntrackEntry],
    *,
    is_answered: bool = False,
) -> Trace:
    """Trace one probe with the conntrack states that it met.

    Args:
        switch: the switch's control socket.
        bridge: name of the bridge.
        flow: the probe, as judge.ofproto_trace.probe_flow writes it.
        tuple_: its 5-tuple.
        entries: conntrack entries before it was sent; not those that it made itself.
        is_answered: whether earlier probes of this tuple were answered.

    Raises:
        HostNotReadyError: the switch is gone or does not understand the question.
    """
    states: tuple[CtState, ...] = ()
    trace = trace_flow(switch, bridge, flow)
    for _ in range(MAX_ROUNDS):
        wanted = next_states(trace, tuple_, entries, is_answered=is_answered)
        if wanted == states or all(state is CtState.NEW for state in (*wanted, *states)):
            break
        states = wanted
        trace = trace_flow(switch, bridge, flow, states)
    return trace


@dataclass(frozen=True, slots=True)
class Question:
    """A probe whose way through the switches is asked for.

    Attributes:
        flow: as judge.ofproto_trace.probe_flow writes it, at the first switch.
        tuple_: its 5-tuple there.
        own: tuples whose conntrack entries the run itself made, which therefore do not count.
        is_answered: whether earlier probes of this tuple were answered.
    """

    flow: str
    tuple_: FiveTuple
    own: frozenset[FiveTuple] = frozenset()
    is_answered: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """What one switch on a probe's way does with it.

    Attributes:
        host: where the switch is.
        trace: its answer; without passes when it gave none.
        output: how the probe leaves for another host, None where it does not.
        error: why there is no answer, None where there is one.
        acl_labels: those of the connections that the probe itself made there; empty where it made none.
    """

    host: Host
    trace: Trace
    output: Output | None = None
    error: NetprobeError | None = None
    acl_labels: tuple[int, ...] = ()


def follow_probe(
    question: Question, way: Sequence[str], hosts: Sequence[Host], open_switch: OpenSwitch
) -> list[Passage]:
    """Trace a probe through one switch after the other.

    Args:
        question: the probe.
        way: names of the hosts on its planned way, the first is where it is sent. A tunnel says by itself where it
            leads, and may lead elsewhere; a NIC does not.
        hosts: all that are known.
        open_switch: opens a host's control socket.

    Returns:
        One passage a switch, in the order of travel, up to the one that keeps it, that gives it to a port, or that
        does not answer.
    """
    by_name = {host.name: host for host in hosts}
    passages: list[Passage] = []
    here = by_name.get(way[0]) if way else None
    while here is not None and len(passages) < MAX_SWITCHES:
        try:
            with open_switch(here) as switch:
                bridge = here.bridge
                if passages:
                    bridge, question = _arrived(question, passages[-1], here, switch)
                dump = _dump(switch, here.zone)
                entries = [e for e in dump if e.original not in question.own]
                flow, tuple_ = question.flow, question.tuple_
                trace = trace_probe(switch, bridge, flow, tuple_, entries, is_answered=question.is_answered)
        except (HostNotReadyError, NoAnswerError) as error:
            passages.append(Passage(here, Trace(), error=error))
            break
        output = output_of(trace, nics_of(here))
        labels = {entry.acl_label for entry in dump if entry.original == tuple_} - {0}
        passages.append(Passage(here, trace, output, acl_labels=tuple(sorted(labels))))
        here = next_host(output, [by_name[name] for name in way[len(passages) :] if name in by_name], hosts)
    return passages


def nics_of(host: Host) -> list[str]:
    """The devices by which a host's switch sends packets to other hosts as they are."""
    return [point.device for point in host.uplink if point.kind is PointKind.NIC]


def next_host(output: Output | None, planned: Sequence[Host], hosts: Sequence[Host]) -> Host | None:
    """Where a probe goes from here; None where it goes nowhere, or to no host that is known."""
    if output is None:
        return None
    if output.tunnel is None:
        return planned[0] if planned else None
    dst = output.tunnel.dst
    return next((host for host in hosts if dst in host.encap_ips), None)


def _dump(switch: SwitchAnswers, zone: int | None) -> tuple[ConntrackEntry, ...]:
    words = (f"zone={zone}",) if zone is not None else ()
    return parse_dump(switch.call("dpctl/dump-conntrack", *words)).entries


def _arrived(question: Question, before: Passage, here: Host, switch: SwitchAnswers) -> tuple[str, Question]:
    """The bridge that the probe comes to from the switch before, and the probe as it is by then.

    Raises:
        NoAnswerError: this switch has no tunnel to that one, or no port on its NIC.
        HostNotReadyError: it does not answer.
    """
    assert before.output is not None  # nothing else leads on
    ports = parse_ports(switch.call("dpif/show"))
    port = next((p for p in ports if takes(p, before, here)), None)
    if port is None:
        way_in = "tunnel to" if before.output.tunnel is not None else "port on its NIC for what comes from"
        raise NoAnswerError(
            f"Open vSwitch on {here.name}", f"has no {way_in} {before.host.name}", advice="is its agent alive?"
        )
    behind = tuples_behind(before.trace, question.tuple_)[-1]
    flow = next_flow(question.flow, before.output, port.ofport)
    return port.bridge, Question(flow, behind, question.own | {behind}, is_answered=question.is_answered)


def takes(port: SwitchPort, before: Passage, here: Host) -> bool:
    """Whether what the switch before sent comes in by this port."""
    tunnel = before.output.tunnel if before.output is not None else None
    if tunnel is None:
        return port.device in nics_of(here)
    return port.is_tunnel and port.bridge == here.bridge and port.remote in {*before.host.encap_ips, tunnel.src, None}
