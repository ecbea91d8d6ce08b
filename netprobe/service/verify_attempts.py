"""One attempt of a scenario: its own ports and numbers, and the frames of its steps one by one.

Every attempt has a source port (or echo identifier) that no attempt of this run had between the same addresses, so that
conntrack takes it for a new connection. Encodes, counts and remembers; sends nothing (service.verify_rounds does).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from netprobe.judge.conntrack import FiveTuple
from netprobe.model.packets import ACK, SYN, Fragment, Kind, Packet, Scenario
from netprobe.model.policy import ICMP, ICMPV6, TCP, UDP, WITH_PORTS
from netprobe.plan.budget import PORT_BLOCK
from netprobe.wire.policy_frames import PolicyMark, TcpNumbers, encode_packet, sequence_bytes, syn_number

TRACKED_APART = frozenset({TCP, UDP, ICMP, ICMPV6})
"""Protocols whose connections are told apart by ports or identifiers everywhere."""

CONTROL = -1
"""The step of frames that belong to no scenario: controls."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame of ours.

    Attributes:
        seq: its number in the run.
        step: place of its step in judge.proof's columns, CONTROL for a control.
        sender, receiver: numbers of ports.
        round: when it was sent.
        ident: its attempt's port, which is an echo's identifier.
    """

    seq: int
    step: int
    sender: int
    receiver: int
    round: int
    packet: Packet
    ident: int
    frame: bytes


@dataclass(slots=True)
class Attempt:
    """One attempt of a scenario.

    Attributes:
        port: source port or echo identifier of its flow.
        seqs: numbers of the frames made so far, one a step.
        is_over: no further step is sent: one before did not arrive.
    """

    scenario: Scenario
    port: int
    seqs: list[int] = field(default_factory=list)
    next_number: dict[bool, int] = field(default_factory=dict)
    is_over: bool = False

    def numbers(self, packet: Packet, mark: PolicyMark, seq: int, *, is_forward: bool) -> TcpNumbers | None:
        """Sequence and acknowledgement numbers of this attempt's next segment, as a real connection would have them."""
        if packet.protocol != TCP:
            return self._quoted_numbers(packet, is_forward=is_forward)
        is_syn = bool(packet.tcp_flags & SYN)
        own = syn_number(mark, seq) if is_syn else self.next_number.get(is_forward, syn_number(mark, seq))
        other = self.next_number.get(not is_forward, syn_number(mark, seq ^ 1) + 1)
        self.next_number[is_forward] = (own + sequence_bytes(packet)) % (1 << 32)
        return TcpNumbers(own, other % (1 << 32) if packet.tcp_flags & ACK else 0)

    def _quoted_numbers(self, packet: Packet, *, is_forward: bool) -> TcpNumbers | None:
        """Those of the segment that an ICMP error is about: it came from the other side."""
        if packet.quoted is None or packet.quoted.protocol != TCP:
            return None
        return TcpNumbers((self.next_number.get(not is_forward, 1) - 1) % (1 << 32), 0)


def levels(scenario: Scenario) -> tuple[tuple[int, ...], ...]:
    """Steps that are sent together: the fragments of one datagram, for nobody lets the first one pass alone."""
    found: list[tuple[int, ...]] = []
    for number, step in enumerate(scenario.steps):
        if found and step.packet.fragment is Fragment.LATER:
            found[-1] = (*found[-1], number)
        else:
            found.append((number,))
    return tuple(found)


class Attempts:
    """Makes attempts, and their frames.

    Args:
        mark: of this run.
        first_port: where in the block of source ports to begin; random, so that two runs do not meet.
    """

    def __init__(self, mark: PolicyMark, first_port: int) -> None:
        self._mark = mark
        low, high = PORT_BLOCK
        self._low, self._ports = low, high - low + 1
        self._next = first_port
        self.sent: list[Sent] = []

    def attempt(self, scenario: Scenario) -> Attempt:
        """A new attempt. Ports go round; between the same ends one comes again only after the whole block."""
        self._next += 1
        return Attempt(scenario, self._low + self._next % self._ports)

    def frame(self, attempt: Attempt, step: int, place: int, ends: tuple[int, int], round_: int) -> Sent:
        """The frame of an attempt's step.

        Args:
            attempt: all steps before were sent.
            step: number in its scenario.
            place: in judge.proof's columns.
            ends: numbers of the scenario's source and target.
            round_: when it is sent.
        """
        one = attempt.scenario.steps[step]
        seq = len(self.sent)
        packet = one.packet.with_ephemeral(attempt.port)
        tcp = attempt.numbers(packet, self._mark, seq, is_forward=one.is_forward)
        before = attempt.seqs[step - 1] if step else seq
        frame = encode_packet(
            packet,
            self._mark,
            seq,
            tcp=tcp,
            ident=attempt.port,
            state=one.state,
            datagram=before if packet.fragment is Fragment.LATER else seq,
            quoted_seq=before,
        )
        sender, receiver = ends if one.is_forward else (ends[1], ends[0])
        attempt.seqs.append(seq)
        return self._keep(Sent(seq, place, sender, receiver, round_, packet, attempt.port, frame))

    def control(self, packet: Packet, ends: tuple[int, int], round_: int) -> Sent:
        """The frame of a control: a packet that every policy lets pass."""
        seq = len(self.sent)
        frame = encode_packet(packet, self._mark, seq)
        return self._keep(Sent(seq, CONTROL, *ends, round_, packet, 0, frame))

    def _keep(self, sent: Sent) -> Sent:
        self.sent.append(sent)
        return sent


Shared = tuple[int, frozenset[object]]
"""A protocol, and the two ends of the connection that conntrack makes of its packets."""


def shared_connections(packets: Iterable[Packet]) -> frozenset[Shared]:
    """The connections that packets share with other scenarios' packets between the same two addresses.

    Conntrack tells protocols without ports apart by addresses alone; Open vSwitch's own does so with all but TCP, UDP
    and ICMP. And where both ports are given (DHCP), an attempt has none of its own. Of two such scenarios the later one
    would meet the earlier one's connection.
    """
    return frozenset(found for packet in packets if packet.kind is Kind.IP for found in _shared(packet))


def _shared(packet: Packet) -> Iterator[Shared]:
    if packet.protocol not in TRACKED_APART:
        yield packet.protocol, frozenset((packet.src_ip, packet.dst_ip))
    elif packet.protocol in (TCP, UDP) and packet.src_port is not None and packet.dst_port is not None:
        yield packet.protocol, frozenset(((packet.src_ip, packet.src_port), (packet.dst_ip, packet.dst_port)))


def waves(attempts: Iterable[Attempt], most: int) -> list[list[Attempt]]:
    """Attempts in groups of at most `most` within which none shares a connection with another."""
    found: list[list[Attempt]] = []
    used: list[set[Shared]] = []
    for attempt in attempts:
        pairs = shared_connections(step.packet for step in attempt.scenario.steps)
        fits = (i for i, taken in enumerate(used) if len(found[i]) < most and not pairs & taken)
        place = next(fits, len(found))
        if place == len(found):
            found.append([])
            used.append(set())
        found[place].append(attempt)
        used[place] |= pairs
    return found


def own_tuples(sent: Iterable[Sent], *, is_kernel: bool) -> Iterator[FiveTuple]:
    """The tuples of conntrack entries that frames may have made: of all IP packets, as each may have begun one.

    Args:
        sent: the frames.
        is_kernel: the kernel tracks them: it has ports also for SCTP, DCCP and UDP-Lite.
    """
    with_ports = WITH_PORTS if is_kernel else frozenset({TCP, UDP})
    for one in sent:
        packet = one.packet
        if packet.kind is not Kind.IP or packet.fragment is Fragment.LATER:
            continue
        if packet.protocol in (ICMP, ICMPV6):
            kind = (packet.icmp_type, packet.icmp_code)
            yield FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, one.ident, 0, *kind)
        else:
            ports = (packet.src_port or 0, packet.dst_port or 0) if packet.protocol in with_ports else (0, 0)
            yield FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, *ports)
