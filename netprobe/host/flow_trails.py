"""Very many packets through the switches' tables: one socket a switch, and conntrack states as they are told.

host.tracing asks why one probe was lost, with the conntrack states that really hold. Here the question is what the
rules do with a packet of a given state; a switch answers thousands of those a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from netprobe.errors import HostNotReadyError, NoAnswerError
from netprobe.host.tracing import NEIGHBOUR_TRIES, Passage, SwitchAnswers, next_host, nics_of, takes, trace_flow
from netprobe.host.unixctl import CommandError
from netprobe.judge.conntrack import CtState
from netprobe.judge.ofproto_trace import Trace
from netprobe.judge.rewriting import SwitchPort, next_flow, output_of, parse_ports
from netprobe.model.topology import Host


@dataclass(frozen=True, slots=True)
class Trail:
    """A packet's way through the switches, as far as it has been followed.

    Attributes:
        flow: the packet as `ofproto/trace` had it at the last switch, at first as it enters the first one.
        here: whose switch is to be asked next; None where the way ends.
        passages: what the switches before it did.
        states: what conntrack gives at each of a switch's passes.
        way: hosts on the planned way, for packets that leave by a NIC.
    """

    flow: str
    here: Host | None
    states: tuple[CtState, ...]
    way: tuple[Host, ...] = ()
    passages: tuple[Passage, ...] = ()


class SwitchTracer:
    """One host's switch, asked many times; once it is lost it is asked no more. Not for two threads at once.

    Args:
        host: where it is.
        switch: its control socket; the caller owns it.
    """

    def __init__(self, host: Host, switch: SwitchAnswers) -> None:
        self._host = host
        self._switch = switch
        self._ports: tuple[SwitchPort, ...] | None = None
        self._lost: HostNotReadyError | None = None
        self._neighbour_tries = NEIGHBOUR_TRIES

    def follow(self, trail: Trail, hosts: Sequence[Host]) -> Trail:
        """Ask this switch about a packet; what it does not answer is in the last passage's error.

        Args:
            trail: it ends here.
            hosts: all that are known.
        """
        bridge, flow = self._host.bridge, trail.flow
        if self._lost is not None:  # each question would wait as long as the first did
            return _on(trail, Passage(self._host, Trace(), error=self._lost), None, flow)
        try:
            if trail.passages:
                bridge, flow = self._arrived(trail)
            trace = trace_flow(self._switch, bridge, flow, trail.states, neighbour_tries=self._neighbour_tries)
        except (HostNotReadyError, NoAnswerError) as error:
            if isinstance(error, HostNotReadyError) and not isinstance(error, CommandError):
                self._lost = error
            return _on(trail, Passage(self._host, Trace(), error=error), None, flow)
        if trace.missing_neighbour:
            self._neighbour_tries = 0  # the next packet would find no other end of the tunnel either
        output = output_of(trace, nics_of(self._host))
        ahead = [host for host in trail.way if host not in {p.host for p in trail.passages} | {self._host}]
        return _on(trail, Passage(self._host, trace, output), next_host(output, ahead, hosts), flow)

    def _arrived(self, trail: Trail) -> tuple[str, str]:
        """The bridge that the packet comes to, and the packet there.

        Raises:
            NoAnswerError: this switch has no port for what comes from the one before.
            HostNotReadyError: it does not answer.
        """
        before = trail.passages[-1]
        assert before.output is not None  # nothing else leads on
        if self._ports is None:
            self._ports = parse_ports(self._switch.call("dpif/show"))
        port = next((p for p in self._ports if takes(p, before, self._host)), None)
        if port is None:
            raise NoAnswerError(
                f"Open vSwitch on {self._host.name}",
                f"has no way in for what {before.host.name} sends",
                advice="is its agent alive?",
            )
        return port.bridge, next_flow(trail.flow, before.output, port.ofport)


def _on(trail: Trail, passage: Passage, here: Host | None, flow: str) -> Trail:
    return Trail(flow, here, trail.states, trail.way, (*trail.passages, passage))
