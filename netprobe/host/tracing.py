"""Ask a switch what its tables would do with a probe: `ofproto/trace` with the conntrack states that really hold.

By itself a trace takes every packet for a new connection and looks at no conntrack table. Changes nothing in the
switch: without a packet it neither learns nor counts. The words are judge.ofproto_trace's, below.
"""

from collections.abc import Sequence

from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import ConntrackEntry, CtState, FiveTuple
from netprobe.judge.ofproto_trace import Trace, next_states, parse_trace

MAX_ROUNDS = 8
"""Rounds until the states settle: one for each pass through conntrack; Neutron's pipeline has two."""


def trace_flow(unixctl: UnixctlClient, bridge: str, flow: str, states: Sequence[CtState] = ()) -> Trace:
    """One trace.

    Args:
        unixctl: the switch's control socket.
        bridge: name of the bridge.
        flow: as judge.ofproto_trace.probe_flow writes it.
        states: what conntrack gives at each of its passes; `new` behind the last one.

    Raises:
        CommandError: the switch does not understand the flow, or has no such bridge.
        HostNotReadyError: the switch is gone.
    """
    words = [word for state in states for word in ("--ct-next", state.value)]
    return parse_trace(unixctl.call("ofproto/trace", "--names", bridge, flow, *words))


def trace_probe(
    unixctl: UnixctlClient,
    bridge: str,
    flow: str,
    tuple_: FiveTuple,
    entries: Sequence[ConntrackEntry],
    *,
    is_answered: bool = False,
) -> Trace:
    """Trace one probe with the conntrack states that it met.

    Args:
        unixctl: the switch's control socket.
        bridge: name of the bridge.
        flow: the probe, as judge.ofproto_trace.probe_flow writes it.
        tuple_: its 5-tuple.
        entries: conntrack entries before it was sent; not those that it made itself.
        is_answered: whether earlier probes of this tuple were answered.

    Raises:
        HostNotReadyError: the switch is gone or does not understand the question.
    """
    states: tuple[CtState, ...] = ()
    trace = trace_flow(unixctl, bridge, flow)
    for _ in range(MAX_ROUNDS):
        wanted = next_states(trace, tuple_, entries, is_answered=is_answered)
        if wanted == states or all(state is CtState.NEW for state in (*wanted, *states)):
            break
        states = wanted
        trace = trace_flow(unixctl, bridge, flow, states)
    return trace
