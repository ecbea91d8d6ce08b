"""Very many packets through the switches' tables: one socket a switch, and conntrack states as they are told.

host.tracing asks why one probe was lost, with the conntrack states that really hold. Here the question is what the
rules do with a packet of a given state; a switch answers thousands of those a second.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from netprobe.errors import HostNotReadyError, NetprobeError, NoAnswerError
from netprobe.host.tracing import (
    NEIGHBOUR_TRIES,
    Passage,
    SwitchAnswers,
    next_host,
    nics_of,
    takes,
    trace_flow,
    trace_words,
)
from netprobe.host.unixctl import CommandError
from netprobe.judge.conntrack import CtState
from netprobe.judge.ofproto_trace import Trace, parse_trace
from netprobe.judge.rewriting import SwitchPort, next_flow, output_of, parse_ports
from netprobe.model.topology import Host


class ManyAnswers(SwitchAnswers, Protocol):
    """A switch's control socket that takes many questions at once."""

    def call_each(self, command: str, arguments: Sequence[Sequence[str]]) -> list[str | HostNotReadyError]:
        """Run one command many times; the texts in order, CommandError where refused, other errors where it is lost."""


OpenManyAnswers = Callable[[Host], AbstractContextManager[ManyAnswers]]
"""Opens the control socket of a host's switch."""


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

    def __init__(self, host: Host, switch: ManyAnswers) -> None:
        self._host = host
        self._switch = switch
        self._ports: tuple[SwitchPort, ...] | None = None
        self._lost: HostNotReadyError | None = None
        self._neighbour_tries = NEIGHBOUR_TRIES

    def follow(self, trails: Sequence[Trail], hosts: Sequence[Host]) -> list[Trail]:
        """Ask this switch about packets; what it does not answer is in the last passage's error.

        Args:
            trails: they end here.
            hosts: all that are known.
        """
        entries = [self._entry(trail) for trail in trails]
        words = [
            trace_words(*entry, trail.states)
            for trail, entry in zip(trails, entries, strict=True)
            if isinstance(entry, tuple)
        ]
        answers = iter(self._switch.call_each("ofproto/trace", words))
        return [
            self._followed(trail, entry, next(answers), hosts)
            if isinstance(entry, tuple)
            else _on(trail, Passage(self._host, Trace(), error=entry), None, trail.flow)
            for trail, entry in zip(trails, entries, strict=True)
        ]

    def _entry(self, trail: Trail) -> tuple[str, str] | NetprobeError:
        """The bridge that a packet comes to, and the packet there; or why that is not known."""
        if self._lost is not None:  # each question would wait as long as the first did
            return self._lost
        if not trail.passages:
            return self._host.bridge, trail.flow
        try:
            return self._arrived(trail)
        except (HostNotReadyError, NoAnswerError) as error:
            self._note(error)
            return error

    def _followed(
        self, trail: Trail, entry: tuple[str, str], answer: str | HostNotReadyError, hosts: Sequence[Host]
    ) -> Trail:
        try:
            trace = self._trace(trail, entry, answer)
        except HostNotReadyError as error:
            self._note(error)
            return _on(trail, Passage(self._host, Trace(), error=error), None, entry[1])
        output = output_of(trace, nics_of(self._host))
        ahead = [host for host in trail.way if host not in {p.host for p in trail.passages} | {self._host}]
        return _on(trail, Passage(self._host, trace, output), next_host(output, ahead, hosts), entry[1])

    def _trace(self, trail: Trail, entry: tuple[str, str], answer: str | HostNotReadyError) -> Trace:
        """An answer as values; asked again where the switch has to look for a tunnel's next hop first.

        Raises:
            HostNotReadyError: it does not answer.
        """
        if isinstance(answer, HostNotReadyError):
            raise answer
        trace = parse_trace(answer)
        if trace.missing_neighbour and self._neighbour_tries:
            trace = trace_flow(self._switch, *entry, trail.states, neighbour_tries=self._neighbour_tries)
        if trace.missing_neighbour:
            self._neighbour_tries = 0  # the next packet would find no other end of the tunnel either
        return trace

    def _note(self, error: NetprobeError) -> None:
        if isinstance(error, HostNotReadyError) and not isinstance(error, CommandError):
            self._lost = error

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
