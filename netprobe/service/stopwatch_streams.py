"""What a stopwatch sends: the classes that a rule is about, their frames made ahead, and the order in which they go.

A class has up to three streams: packets of a flow that was there before, new connections, and controls that every
policy lets pass. Frames of a flow go round and round, for each arrival belongs to the last time that its frame was sent
before it; new connections have a source port each, and none comes again. Sends nothing (service.stopwatch does).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from netprobe.errors import UsageError, unknown_name
from netprobe.host.clock import realtime_ns
from netprobe.judge.conntrack import FiveTuple
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.stopwatch import Stream
from netprobe.model.conntrack_rules import ANSWERS
from netprobe.model.packets import ACK, SYN, ConnState, Cover, Fragment, Kind, Packet, Scenario
from netprobe.model.policy import TCP, WITH_PORTS, Policy
from netprobe.wire.policy_frames import PolicyMark, TcpNumbers, encode_packet, sequence_bytes, syn_number

I64 = npt.NDArray[np.int64]

MAX_CLASSES = 8
"""They share the rate; with more, each would be probed too rarely."""

CYCLE_S = 2.0
"""A flow's frames come again after this: far longer than any packet is under way."""

MAX_CYCLE = 20_000


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watched:
    """A class of packets that is watched.

    Attributes:
        rule: id of the rule that it stands for; two where one packet is about both, as one lets it out, one in.
        scenario: where it is from.
    """

    rule: str
    scenario: Scenario

    @property
    def packet(self) -> Packet:
        """What begins a connection of this class; its own port is open."""
        return self.scenario.steps[0].packet

    @property
    def has_new(self) -> bool:
        """Whether new connections can be told apart: by ports, or by identifiers of echo."""
        return self.packet.is_icmp or self.packet.protocol in WITH_PORTS


def choose_classes(cover: Cover, policy: Policy, rule: str) -> tuple[tuple[Watched, ...], tuple[str, ...]]:
    """The classes that are watched: of one rule one for each family and protocol, or one for each rule that allows.

    Args:
        cover: of the policy.
        policy: bound.
        rule: id of the rule, "" for all.

    Returns:
        Them, and the rules that there is no room for.

    Raises:
        UsageError: there is no such rule, or no packet that it decides about can be sent.
    """
    known = [one.id for group in policy.groups for one in group.rules] + [acl.id for acl in policy.acls]
    if rule and rule not in known:
        raise unknown_name("--watch-rule", rule, known, kind="rule")
    found: dict[object, Watched] = {}
    for scenario in cover.scenarios:
        if not _can_be_watched(scenario):
            continue
        step = scenario.steps[0]
        for check in step.expected.checks:
            if rule:
                key: object = (step.packet.family, step.packet.protocol)
                is_meant = check.rule == rule
            else:
                key = check.rule
                is_meant = check.rule in known and check.is_allowed and step.expected.is_allowed
            if is_meant and (key not in found or _worth(policy, scenario) > _worth(policy, found[key].scenario)):
                found[key] = Watched(check.rule, scenario)
    evaluator = Evaluator(policy)
    found = {key: _within_a_network(policy, evaluator, watched) for key, watched in found.items()}
    if not found:
        what = f"rule {rule}" if rule else "the policy"
        raise UsageError(
            "--watch-rule" if rule else "--watch-change",
            f"no connection that {what} decides about can be begun between the ports",
            advice="`netprobe verify POLICY --plan` says which rules nothing can prove",
        )
    shared: dict[tuple[int, str], Watched] = {}
    for one in found.values():
        place = one.scenario.number, one.scenario.src
        before = shared.get(place)
        shared[place] = replace(one, rule=f"{before.rule}, {one.rule}") if before else one
    one_each = list(shared.values())
    return tuple(one_each[:MAX_CLASSES]), tuple(watched.rule for watched in one_each[MAX_CLASSES:])


def _worth(policy: Policy, scenario: Scenario) -> tuple[bool, bool]:
    """How well a scenario stands for its rule: within one network controls can vouch for the path; it should pass."""
    src, dst = policy.port(scenario.src), policy.port(scenario.dst)
    return src.network == dst.network, scenario.steps[0].expected.is_allowed


def _within_a_network(policy: Policy, evaluator: Evaluator, watched: Watched) -> Watched:
    """The same class with a sender of its target's own network, where the rule decides about one's packets.

    A cover knows nothing of routers, and what goes to another network needs one.
    """
    scenario, step = watched.scenario, watched.scenario.steps[0]
    dst = policy.port(scenario.dst)
    if policy.port(scenario.src).network == dst.network:
        return watched
    for port in policy.ports:
        ip = port.ip(step.packet.family)
        if port.network != dst.network or port.name == dst.name or not port.mac or ip is None:
            continue
        packet = replace(step.packet, src_mac=port.mac, dst_mac=dst.mac, src_ip=ip)
        decision = evaluator.decide(packet, port.name, dst.name, step.state)
        if any(check.rule == watched.rule for check in decision.checks):
            first = replace(step, packet=packet, expected=decision)
            key = f"{port.name}>{dst.name} {scenario.key.partition(' ')[2]}"
            return replace(watched, scenario=replace(scenario, key=key, src=port.name, steps=(first,)))
    return watched


def _can_be_watched(scenario: Scenario) -> bool:
    """Whether its first packet begins a connection that can be told from others."""
    step = scenario.steps[0]
    packet = step.packet
    if packet.kind is not Kind.IP or packet.fragment is not Fragment.NONE or step.state is not ConnState.NEW:
        return False
    if packet.is_icmp:
        return packet.icmp_type in ANSWERS[packet.family]
    if packet.protocol == TCP and packet.tcp_flags != SYN:
        return False
    return packet.protocol not in WITH_PORTS or packet.src_port is None


# ---------------------------------------------------------------------------------------------------------------------
# Frames
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Frames:
    """Makes frames, and numbers them densely.

    Attributes:
        mark: of the run.
        made: frames that no table knows yet.
        count: of all.
    """

    mark: PolicyMark
    made: list[bytes] = field(default_factory=list)
    count: int = 0

    def add(
        self, packet: Packet, *, tcp: TcpNumbers | None = None, ident: int = 0, state: ConnState = ConnState.NEW
    ) -> bytes:
        """The next frame."""
        frame = encode_packet(packet, self.mark, self.count, tcp=tcp, ident=ident, state=state)
        self.made.append(frame)
        self.count += 1
        return frame

    def take(self) -> list[bytes]:
        """Those that no table knows yet, in order."""
        made, self.made = self.made, []
        return made


@dataclass(frozen=True, slots=True)
class Part:
    """A frame of a conversation, and its number."""

    is_forward: bool
    seq: int
    frame: bytes


class Conversation:
    """One connection of a class, opened by playing both ends.

    Args:
        watched: of which class.
        port: its source port or echo identifier.
        frames: where its frames are made.
    """

    def __init__(self, watched: Watched, port: int, frames: Frames) -> None:
        self._frames = frames
        self._port = port
        self._request = watched.packet.with_ephemeral(port)
        self._is_tcp = self._request.protocol == TCP
        self.is_open = False
        first = self._add(self._request)
        answer = self._add(_answer(self._request), _after(frames, first.seq), ConnState.REPLY)
        self.parts = [first, answer]
        self._data = self._request
        self._numbers: TcpNumbers | None = None
        if self._is_tcp:
            self._data = replace(self._request, tcp_flags=ACK)
            last = TcpNumbers(syn_number(frames.mark, first.seq) + 1 & 0xFFFFFFFF, _after(frames, answer.seq).ack)
            self.parts.append(self._add(self._data, last, ConnState.ESTABLISHED))
            self._numbers = TcpNumbers(last.seq + sequence_bytes(self._data) & 0xFFFFFFFF, last.ack)

    def _add(self, packet: Packet, tcp: TcpNumbers | None = None, state: ConnState = ConnState.NEW) -> Part:
        seq = self._frames.count
        is_forward = packet.src_ip == self._request.src_ip
        return Part(is_forward, seq, self._frames.add(packet, tcp=tcp, ident=self._port, state=state))

    def data(self, count: int) -> list[bytes]:
        """Packets of the flow.

        Once it is open they are data on their way to the target: of TCP always the same octets, as if sent again, for
        nothing else stays in the window without answers. Otherwise they are what a flow would send that was there
        before the rules were: conntrack picks TCP up in the middle.
        """
        state = ConnState.ESTABLISHED if self.is_open else ConnState.NEW
        numbers = self._numbers if self.is_open or not self._numbers else TcpNumbers(self._numbers.seq, 1)
        add = self._frames.add
        return [add(self._data, tcp=numbers, ident=self._port, state=state) for _ in range(count)]


def _answer(request: Packet) -> Packet:
    answer = request.reversed()
    if request.is_icmp:
        return replace(answer, icmp_type=ANSWERS[request.family][request.icmp_type])
    return replace(answer, tcp_flags=SYN | ACK) if request.protocol == TCP else answer


def _after(frames: Frames, syn: int) -> TcpNumbers:
    """What acknowledges a SYN."""
    return TcpNumbers(0, syn_number(frames.mark, syn) + 1 & 0xFFFFFFFF)


def tuple_of(watched: Watched, port: int) -> FiveTuple:
    """What conntrack calls a connection of a class."""
    packet = watched.packet
    if packet.is_icmp:
        kind = (packet.icmp_type, packet.icmp_code)
        return FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, port, 0, *kind)
    if packet.protocol not in WITH_PORTS:
        return FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, 0, 0)
    return FiveTuple(packet.protocol, packet.src_ip, packet.dst_ip, port, packet.dst_port or 0)


# ---------------------------------------------------------------------------------------------------------------------
# Streams and their order
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lane:
    """The frames of one stream, and how often one is due.

    Attributes:
        first_seq: number of its first frame; those of the others follow.
        frames: port and frame of each.
        rate: packets a second.
        goes_round: after the last frame comes the first again; else the lane ends.
    """

    first_seq: int
    frames: list[tuple[int, bytes]]
    rate: float
    goes_round: bool


class Schedule(Sequence[tuple[int, bytes]]):
    """Which frame is sent when: all lanes merged, each at its own rate, for a time. As `TapPorts.send` wants it.

    It remembers when each frame was asked for, which is just before it is sent: whoever looks on meanwhile reads it.

    Args:
        lanes: of all classes; the first one stands in for those that are at their end.
        seconds: how long at the most.
    """

    def __init__(self, lanes: Sequence[Lane], seconds: float) -> None:
        self.lanes = lanes
        due = [np.arange(int(seconds * lane.rate)) / lane.rate for lane in lanes]
        which = np.repeat(np.arange(len(lanes), dtype=np.uint8), [len(one) for one in due])
        order = np.argsort(np.concatenate(due), kind="stable")
        which = which[order]
        for number, lane in enumerate(lanes):
            places = np.flatnonzero(which == number)
            if not lane.goes_round:
                which[places[len(lane.frames) :]] = 0
        self._which = which
        place = np.zeros(len(which), np.int64)
        for number, lane in enumerate(lanes):
            mine = which == number
            place[mine] = np.arange(np.count_nonzero(mine)) % max(len(lane.frames), 1)
        self._lane_of = which.tobytes()
        self._place_of = array("i", place.astype(np.int32).tobytes())
        self.asked_ns = np.zeros(len(which), np.int64)
        self.asked = 0

    @property
    def gap_ns(self) -> int:
        """From one frame to the next."""
        return int(1e9 / sum(lane.rate for lane in self.lanes))

    def __len__(self) -> int:
        return len(self._lane_of)

    def __getitem__(self, number: int) -> tuple[int, bytes]:  # type: ignore[override]  # nobody takes slices
        found = self.lanes[self._lane_of[number]].frames[self._place_of[number]]
        self.asked = number + 1
        self.asked_ns[number] = realtime_ns()
        return found

    def sent_ns(self, lane: int, times_ns: I64) -> I64:
        """When the packets of a lane were sent, in order.

        Args:
            lane: its number.
            times_ns: of all frames, as far as they are known; 0 for those that could not be sent.
        """
        mine: I64 = times_ns[self._which[: len(times_ns)] == lane]
        return mine


@dataclass(slots=True)
class Arrivals:
    """What has been seen: columns, in pieces."""

    seqs: list[I64] = field(default_factory=list)
    times: list[I64] = field(default_factory=list)

    def add(self, seqs: I64, t_ns: I64) -> None:
        """Take a piece."""
        self.seqs.append(seqs)
        self.times.append(t_ns)

    def all(self) -> tuple[I64, I64]:
        """Numbers of frames, and when each was seen."""
        if not self.seqs:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if len(self.seqs) > 1:
            self.seqs, self.times = [np.concatenate(self.seqs)], [np.concatenate(self.times)]
        return self.seqs[0], self.times[0]

    def has(self, seq: int) -> bool:
        """Whether a frame was seen."""
        return bool((self.all()[0] == seq).any())


def stream_of(lane: Lane, sent_ns: I64, arrivals: Arrivals) -> Stream:
    """A lane's packets, with what became of them.

    Args:
        lane: its frames may have been sent many times.
        sent_ns: when each packet was sent, 0 where it was not.
        arrivals: of the run. Each is that of the last packet with its frame that was sent before it came.
    """
    seqs, times = arrivals.all()
    count = len(lane.frames)
    mine = (seqs >= lane.first_seq) & (seqs < lane.first_seq + count)
    places, times = seqs[mine] - lane.first_seq, times[mine]
    last = np.searchsorted(np.maximum.accumulate(sent_ns), times, side="right") - 1
    at = last - (last - places) % max(count, 1)
    known = (last >= 0) & (at >= 0)
    arrived_ns = np.zeros(len(sent_ns), np.int64)
    order = np.argsort(-times[known], kind="stable")  # of duplicates the first one counts: it is written last
    arrived_ns[at[known][order]] = times[known][order]
    really = sent_ns > 0
    return Stream(sent_ns[really], arrived_ns[really])


def cycle(rate: float) -> int:
    """How many frames a lane of a rate needs that goes round."""
    return min(max(round(rate * CYCLE_S), 64), MAX_CYCLE)
