"""One attempt of a scenario: its own ports and numbers, and the frames of its steps one by one.

Every attempt has a source port and an echo identifier that no other has whose connections may still be known, and that
nobody else's connection had when the run began: conntrack takes it for a new one. Encodes, counts and remembers; sends
nothing (service.verify_rounds does).
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

PORTS = PORT_BLOCK[1] - PORT_BLOCK[0] + 1
IDENTIFIERS = 0xFFFF
TRIES = 64
"""Ports that are tried for an attempt before it is given up: somebody's connection has them."""

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
        port, ident: source port and echo identifier of its flow.
        seqs: numbers of the frames made so far, one a step.
    """

    scenario: Scenario
    port: int
    ident: int
    seqs: list[int] = field(default_factory=list)
    next_number: dict[bool, int] = field(default_factory=dict)

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
        first: where among source ports and identifiers to begin; random, so that two runs do not meet.

    Attributes:
        taken: connections that hosts knew before anything was sent, both directions of each: others'.
        is_kernel: the kernel tracks them.
    """

    def __init__(self, mark: PolicyMark, first: int) -> None:
        self._mark = mark
        self._next = first
        self.sent: list[Sent] = []
        self.taken: frozenset[FiveTuple] = frozenset()
        self.is_kernel = False

    def attempt(self, scenario: Scenario) -> Attempt | None:
        """A new attempt; None where it would meet a connection that is not ours.

        Ports go round: no more scenarios are under way at once than there are (PORTS). Identifiers have a longer way,
        for Open vSwitch cannot be asked to forget ICMPv6.
        """
        for _ in range(TRIES):
            self._next += 1
            made = Attempt(scenario, PORT_BLOCK[0] + self._next % PORTS, self._next % IDENTIFIERS + 1)
            if not self.taken or not self.taken.intersection(self._tuples(made)):
                return made
        return None

    def _tuples(self, attempt: Attempt) -> Iterator[FiveTuple]:
        for step in attempt.scenario.steps:
            packet = step.packet.with_ephemeral(attempt.port)
            if packet.kind is Kind.IP:
                yield tuple_of(packet, attempt.ident, is_kernel=self.is_kernel)

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
            ident=attempt.ident,
            state=one.state,
            datagram=before if packet.fragment is Fragment.LATER else seq,
            quoted_seq=before,
        )
        sender, receiver = ends if one.is_forward else (ends[1], ends[0])
        attempt.seqs.append(seq)
        return self._keep(Sent(seq, place, sender, receiver, round_, packet, attempt.ident, frame))

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
    for one in sent:
        if one.packet.kind is Kind.IP and one.packet.fragment is not Fragment.LATER:
            yield tuple_of(one.packet, one.ident, is_kernel=is_kernel)


def tuple_of(packet: Packet, ident: int, *, is_kernel: bool) -> FiveTuple:
    """The tuple of the conntrack entry that an IP packet would begin.

    Args:
        packet: with its ports.
        ident: of an ICMP query.
        is_kernel: the kernel tracks it: it has ports also for SCTP, DCCP and UDP-Lite.
    """
    if packet.protocol in (ICMP, ICMPV6):
        kind = (packet.icmp_type, packet.icmp_code)
        return FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, ident, 0, *kind)
    with_ports = WITH_PORTS if is_kernel else (TCP, UDP)
    ports = (packet.src_port or 0, packet.dst_port or 0) if packet.protocol in with_ports else (0, 0)
    return FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, *ports)
