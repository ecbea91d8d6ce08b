"""Rounds of probes: all scenarios that are not decided yet, step by step together, until each of them is.

In a round every scenario gets one new attempt. All first steps are sent, then the second steps of those whose first
arrived, and so on; controls go before and behind. Scenarios that would share a connection go one after the other, in
waves, and what they leave in conntrack is taken away in between. What arrived, and what did not, goes to judge.proof.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

import numpy as np
import numpy.typing as npt
import trio

from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.proof import Outcome, Proofs
from netprobe.model.packets import Kind, Neighbour, Packet, Scenario
from netprobe.model.policy import ICMPV6, PolicyPort
from netprobe.service.verify_attempts import CONTROL, Attempt, Attempts, Sent, levels, waves

I64 = npt.NDArray[np.int64]

LOOK_S = 0.01
CONTROLS_A_LEVEL = 2
"""How often each port sends, and is sent, a control before the first steps of a wave; and again after the last ones."""

PASSED_S = 0.02
"""So long after it was sent the switch has surely worked a frame off; it need not have arrived yet."""

SILENT_ROUNDS = 3
"""A port that nothing comes from, or to, in so many rounds, all that there were, is cut off, whatever the reason."""

DEAF_FRAMES = 100
"""And where nothing at all has come in so many rounds, of so many frames, no further round will change that."""

LIFELINES = 3
"""Scenarios a round that show that a port without neighbours is alive, as a sender and as a receiver."""

NEIGHBOUR_ADVERTISEMENT = 136  # RFC 4861 §4.4

CONFIRMED_S = 0.25
"""So long a confirmed absorption is relied on: then it is asked for again, in the middle of a batch too."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame of ours at a port, or the news that it was rejected.

    Attributes:
        seq: its number in the run.
        port: number of the port that it was seen at.
        t_ns: CLOCK_REALTIME.
        is_rejection: an RST or ICMP error in its receiver's name, on the way back to its sender.
    """

    seq: int
    port: int
    t_ns: int
    is_rejection: bool = False


class Wire(Protocol):
    """Where frames go in, and come out again.

    Attributes:
        pps: packets a second.
    """

    pps: int

    async def send(self, sent: Sequence[Sent]) -> list[int]:
        """Send frames; the times just before each, CLOCK_REALTIME, ns; 0 where it could not be sent."""

    async def arrivals(self) -> list[Arrival]:
        """What has come since the last call."""

    async def confirm(self) -> frozenset[int]:
        """Numbers of the ports before which frames of ours are surely absorbed."""

    async def forget(self) -> str:
        """Take the connections away that frames made so far; a text if a table is too full even so, else ""."""

    def write_down(self, sent: Sequence[Sent]) -> None:
        """Put into the journal what these frames may leave in the hosts, before they are sent."""


@dataclass(frozen=True, slots=True)
class RoundLimits:
    """How long to go on.

    Attributes:
        tmax_ns: waiting time after which a packet counts as missed.
        rounds: at most so many.
        seed: of the order in which scenarios are sent.
        at_once: scenarios that may be under way at once: their connections are in tables that tenants share.
        rejects_pps: packets a second that are to be rejected, 0 for as many as others: where a controller answers them,
            tenants' packets wait for it too.
    """

    tmax_ns: int
    rounds: int
    seed: int
    at_once: int
    rejects_pps: int = 0


@dataclass(slots=True)
class Rounds:
    """The state of all rounds.

    Attributes:
        scenarios: dense in `number`.
        ports: as the policy has them, in the order of their numbers.
        not_sent: why steps could not be judged, by (scenario, step).
        strayed: frames that were seen at a port that is not their receiver's: (place of the step, port), with counts.
        late: arrivals after the end of their round.
        made: rounds so far.
        pairs: senders and receivers of controls, by number.
    """

    scenarios: Sequence[Scenario]
    ports: Sequence[PolicyPort]
    proofs: Proofs
    attempts: Attempts
    wire: Wire
    limits: RoundLimits
    stop: StopRequest
    not_sent: dict[tuple[int, int], str] = field(default_factory=dict)
    strayed: dict[tuple[int, int], int] = field(default_factory=dict)
    first_ns: dict[int, int] = field(default_factory=dict)
    late: int = 0
    made: int = 0
    pairs: list[tuple[int, int]] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _rejected: set[int] = field(default_factory=set)
    _slow: list[Sent] = field(default_factory=list)
    _ends: list[tuple[int, int]] = field(default_factory=list)
    _tried: I64 = field(init=False)
    _heard: I64 = field(init=False)
    _greeted: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {port.name: i for i, port in enumerate(self.ports)}
        self._ends = [(numbers[s.src], numbers[s.dst]) for s in self.scenarios]
        self.pairs = control_pairs(self.ports, self.proofs)
        self._tried, self._heard = np.zeros((2, len(self.ports)), np.int64), np.zeros((2, len(self.ports)), np.int64)

    def silent(self) -> list[tuple[str, bool]]:
        """Ports that are cut off, by name, and whether it is as senders; else as receivers.

        In at least SILENT_ROUNDS rounds something should have come through, with another port that works, and never
        did anything. What proofs say of such a port's steps is nothing: its rounds do not count.
        """
        cut = (self._heard == 0) & (self._tried >= SILENT_ROUNDS)
        return [(port.name, row == 0) for number, port in enumerate(self.ports) for row in (0, 1) if cut[row, number]]

    async def run(self, tell: Callable[[str], None], is_enough: Callable[[], bool] = lambda: False) -> None:
        """Make rounds until every step is decided, they are used up, or somebody asks to stop.

        Args:
            tell: takes lines of progress.
            is_enough: asked after each round, whether what is known by then is all that one wants to know.
        """
        order = random.Random(self.limits.seed)
        while self.made < self.limits.rounds and not self.stop.asked():
            wanted = self._undecided()
            if not wanted:
                break
            confirmed = await self.wire.confirm()
            ready = [n for n in wanted if confirmed.issuperset(self._ends[n])]
            self._note_unready(set(wanted) - set(ready), confirmed)
            if not ready:
                break
            ready += self._lifelines(set(ready))
            order.shuffle(ready)
            tell(f"round {self.made + 1}: {len(ready)} scenarios")
            await self._round(self._attempts(ready))
            self.made += 1
            if is_enough() or self.is_deaf:
                break
        await self._listen()
        self._take_late()

    def _attempts(self, numbers: Sequence[int]) -> list[Attempt]:
        """An attempt of each; what would meet a connection of others' is not sent."""
        found = []
        for number in numbers:
            attempt = self.attempts.attempt(self.scenarios[number])
            if attempt is not None:
                found.append(attempt)
                for step in range(len(self.scenarios[number].steps)):
                    self.not_sent.pop((number, step), None)
            else:
                for step in range(len(self.scenarios[number].steps)):
                    self.not_sent[number, step] = "somebody's connection has its addresses and ports: it was not sent"
        return found

    def _undecided(self) -> list[int]:
        """Scenarios with a step that is open, and whose steps before it pass."""
        outcomes = self.proofs.outcomes()
        found = []
        for scenario in self.scenarios:
            first = self.proofs.index(scenario.number, 0)
            for outcome in outcomes[first : first + len(scenario.steps)]:
                if outcome is Outcome.OPEN:
                    found.append(scenario.number)
                if outcome is not Outcome.PASSED:
                    break
        return found

    def _lifelines(self, others: set[int]) -> list[int]:
        """Scenarios that passed, once more: they stand in for controls where ports, or hosts, have none."""
        proofs, outcomes = self.proofs, self.proofs.outcomes()
        pairs = np.array(self.pairs, np.int64).reshape(-1, 2)
        firsts = np.array([proofs.index(s.number, 0) for s in self.scenarios if s.number not in others], np.int64)
        passed = firsts[[outcomes[i] is Outcome.PASSED for i in firsts.tolist()]] if len(firsts) else firsts
        found: set[int] = set()
        for column, known in (
            (proofs.sender, pairs[:, 0]),
            (proofs.receiver, pairs[:, 1]),
            (proofs.path, proofs.path_of(pairs[:, 0], pairs[:, 1])),
        ):
            here = column[passed]
            for lone in np.setdiff1d(here, known):
                found |= {proofs.ref(i).scenario for i in passed[here == lone][:LIFELINES].tolist()}
        return sorted(found)

    def _note_unready(self, numbers: set[int], confirmed: frozenset[int]) -> None:
        for number in numbers:
            missing = [self.ports[p].name for p in self._ends[number] if p not in confirmed]
            text = f"absorption before {', '.join(dict.fromkeys(missing))} could not be confirmed, so it was not sent"
            for step in range(len(self.scenarios[number].steps)):
                self.not_sent[number, step] = text

    async def burst(self, scenario: Scenario, count: int) -> int:
        """Send the first packet of a scenario many times, each on a tuple of its own; for a rule's counter.

        It returns once all of them arrived, or Tmax is over: by then a packet has reached every rule on its way.

        Returns:
            How many were sent.
        """
        attempts = [attempt for attempt in (self.attempts.attempt(scenario) for _ in range(count)) if attempt]
        made = [self._frame(attempt, 0, self.made) for attempt in attempts]
        await self._send(made)
        await self._send_slow()
        await self._wait([one.seq for one in made])
        return sum(self.first_ns[one.seq] > 0 for one in made)

    @property
    def is_deaf(self) -> bool:
        """Whether nothing arrives anywhere: then no port is told apart from others, and nothing can be proved."""
        is_enough = self.made >= SILENT_ROUNDS and len(self.attempts.sent) >= DEAF_FRAMES
        return is_enough and not self._seen

    @property
    def is_cut_off(self) -> bool:
        """Whether something is cut off that every policy lets pass."""
        return bool(self.silent() or self.unheard())

    def unheard(self) -> list[tuple[str, str]]:
        """Ports whose controls never arrive, with their receivers, though both send and receive other packets."""
        return [
            (self.ports[sender].name, self.ports[receiver].name)
            for (sender, receiver), count in self._greeted.items()
            if count >= SILENT_ROUNDS and self._heard[0, sender] and self._heard[1, receiver]
        ]

    # -- one round ----------------------------------------------------------------------------------------------------

    async def _round(self, attempts: Sequence[Attempt]) -> None:
        round_ = self.made
        begin = len(self.attempts.sent)
        for number, wave in enumerate(waves(attempts, self.limits.at_once)):
            if number:
                await trio.sleep(PASSED_S)
                await self._forget()
            await self._wave(wave, round_)
        await self._send(self._controls(round_))
        sent = self.attempts.sent[begin:]
        await self._wait([one.seq for one in sent if self._should_pass(one)])
        await self._wait_out(sent)
        await self._forget()
        self._feed(sent)

    async def _wave(self, attempts: Sequence[Attempt], round_: int) -> None:
        """Send scenarios that do not meet each other, a step after the other."""
        live = [(attempt, levels(attempt.scenario)) for attempt in attempts]
        level = 0
        while live and not self.stop.asked():
            batch = self._controls(round_) if not level else []
            batch += [self._frame(a, step, round_) for a, steps in live for step in steps[level]]
            await self._send(batch)
            following = [(a, steps) for a, steps in live if len(steps) > level + 1]
            await self._wait([a.seqs[-1] for a, _ in following])
            live = [(a, steps) for a, steps in following if a.seqs[-1] in self._seen]
            level += 1
        await self._send_slow()

    def _frame(self, attempt: Attempt, step: int, round_: int) -> Sent:
        number = attempt.scenario.number
        return self.attempts.frame(attempt, step, self.proofs.index(number, step), self._ends[number], round_)

    def _controls(self, round_: int) -> list[Sent]:
        """An ARP answer from each port to the next one of its network, round and round."""
        made = []
        for _ in range(CONTROLS_A_LEVEL):
            for number, other in self.pairs:
                packet = control_packet(self.ports[number], self.ports[other])
                made.append(self.attempts.control(packet, (number, other), round_))
        return made

    def _is_rejected(self, one: Sent) -> bool:
        """Whether it is one that whoever drops it answers."""
        if one.step == CONTROL:
            return False
        ref = self.proofs.ref(one.step)
        return self.scenarios[ref.scenario].steps[ref.step].expected.is_rejected

    def _should_pass(self, one: Sent) -> bool:
        if one.step == CONTROL:
            return True
        ref = self.proofs.ref(one.step)
        return self.scenarios[ref.scenario].steps[ref.step].expected.is_allowed

    async def _send(self, sent: Sequence[Sent]) -> None:
        """Send frames in the order of their numbers, but for those that have to go slowly (`_send_slow`).

        What is for, or from, a port whose absorption is not confirmed any more stays unsent.
        """
        size = max(int(self.wire.pps * CONFIRMED_S), 1)
        for first in range(0, len(sent), size):
            part = sent[first : first + size]
            self.wire.write_down(part)
            self.first_ns |= dict.fromkeys((one.seq for one in part), 0)
            slow = [one for one in part if self.limits.rejects_pps and self._is_rejected(one)]
            self._slow += slow
            confirmed = await self.wire.confirm()
            rest = part if not slow else [one for one in part if one not in slow]
            await self._pass_on([one for one in rest if confirmed.issuperset((one.sender, one.receiver))])

    async def _send_slow(self) -> None:
        """Send what is to be rejected, one by one behind all others: meanwhile their connections would time out."""
        slow, self._slow = self._slow, []
        for one in slow:
            if self.stop.asked():
                return
            confirmed = await self.wire.confirm()
            if confirmed.issuperset((one.sender, one.receiver)):
                await self._pass_on([one])
            await trio.sleep(1 / self.limits.rejects_pps)

    async def _pass_on(self, sent: Sequence[Sent]) -> None:
        times = await self.wire.send(sent)
        self.first_ns |= {one.seq: t_ns for one, t_ns in zip(sent, times, strict=True)}
        await self._listen()

    async def _forget(self) -> None:
        """Tidy up; where that does not help a full table, it is over: it is other people's too."""
        too_full = await self.wire.forget()
        if too_full:
            self.stop.ask(too_full)

    async def _listen(self) -> None:
        for arrival in await self.wire.arrivals():
            one = self.attempts.sent[arrival.seq]
            if arrival.is_rejection:
                self._rejected.add(arrival.seq)
            elif arrival.port == one.receiver:
                self._seen.add(arrival.seq)
            else:
                self.strayed[one.step, arrival.port] = self.strayed.get((one.step, arrival.port), 0) + 1

    async def _wait(self, seqs: Sequence[int]) -> None:
        """Until all of them arrived, or Tmax is over."""
        missing = {seq for seq in seqs if self.first_ns[seq]}
        deadline = trio.current_time() + self.limits.tmax_ns / 1e9
        while True:
            await self._listen()
            missing -= self._seen
            if not missing or trio.current_time() >= deadline:
                return
            await trio.sleep(LOOK_S)

    async def _wait_out(self, sent: Sequence[Sent]) -> None:
        """Until Tmax is over for the last of those that have not arrived."""
        left = [self.first_ns[one.seq] for one in sent if one.seq not in self._seen]
        if left:
            await trio.sleep(max(max(left) + self.limits.tmax_ns - realtime_ns(), 0) / 1e9)
        await self._listen()

    def _feed(self, sent: Sequence[Sent]) -> None:
        really = [one for one in sent if self.first_ns[one.seq]]
        arrived = np.array([one.seq in self._seen for one in really], np.bool_)
        senders = np.array([one.sender for one in really], np.int64)
        receivers = np.array([one.receiver for one in really], np.int64)
        steps = np.array([one.step for one in really], np.int64)
        alive = np.zeros((2, len(self.ports)), np.bool_)
        alive[0, senders[arrived]] = True
        alive[1, receivers[arrived]] = True
        should = np.array([self._should_pass(one) for one in really], np.bool_)
        tried = np.zeros_like(alive)
        tried[0, senders[should & alive[1, receivers]]] = True
        tried[1, receivers[should & alive[0, senders]]] = True
        self._tried += tried
        self._heard += alive
        is_control = steps == CONTROL
        self._greet(senders[is_control], receivers[is_control], arrived[is_control])
        paths_alive = np.zeros(self.proofs.paths, np.bool_)
        paths_alive[self.proofs.path_of(senders[arrived], receivers[arrived])] = True
        counts = is_control & alive[0, senders] & alive[1, receivers]
        counts &= paths_alive[self.proofs.path_of(senders, receivers)]
        self.proofs.feed_controls(senders[counts], receivers[counts], arrived[counts])
        self.proofs.feed(steps[~is_control], arrived[~is_control], alive, paths_alive)
        told = [one.step for one in really if one.seq in self._rejected and one.step != CONTROL]
        self.proofs.feed_rejections(np.array(told, np.int64))

    def _greet(self, senders: I64, receivers: I64, arrived: npt.NDArray[np.bool_]) -> None:
        """Count rounds in which no control of a pair arrived; one that does is the end of it."""
        came: dict[tuple[int, int], bool] = {}
        for sender, receiver, is_here in zip(senders.tolist(), receivers.tolist(), arrived.tolist(), strict=True):
            came[sender, receiver] = came.get((sender, receiver), False) or is_here
        for pair, is_here in came.items():
            self._greeted[pair] = -self.limits.rounds if is_here else self._greeted.get(pair, 0) + 1

    def _take_late(self) -> None:
        """What came in after its own round was over: it passed all the same."""
        seen = [one for one in self.attempts.sent if one.seq in self._seen]
        outcomes = self.proofs.outcomes()
        steps = sorted({one.step for one in seen if one.step != CONTROL})
        missed = [step for step in steps if outcomes[step] is not Outcome.PASSED]
        self.late += len(missed)
        for one in seen:
            self._heard[0, one.sender] += 1
            self._heard[1, one.receiver] += 1
            if one.step == CONTROL:
                self._greeted.pop((one.sender, one.receiver), None)
        self.proofs.late(np.array(missed, np.int64))


def control_pairs(ports: Sequence[PolicyPort], proofs: Proofs) -> list[tuple[int, int]]:
    """Sender and receiver of the controls: each port once as each, and each way between hosts, within a network."""
    by_network: dict[str, list[int]] = {}
    for number, port in enumerate(ports):
        if port.mac and port.ips:
            by_network.setdefault(port.network, []).append(number)
    pairs: list[tuple[int, int]] = []

    def way_of(sender: int, receiver: int) -> tuple[int, int]:
        return proofs.host_of(sender), proofs.host_of(receiver)

    for members in by_network.values():
        if len(members) > 1:
            pairs += list(zip(members, [*members[1:], members[0]], strict=True))
    ways = {way_of(*pair) for pair in pairs}
    for members in by_network.values():
        for pair in _each_way(members, proofs):
            if way_of(*pair) not in ways:
                ways.add(way_of(*pair))
                pairs.append(pair)
    return pairs


def _each_way(members: Sequence[int], proofs: Proofs) -> Iterator[tuple[int, int]]:
    """A pair of neighbours for each way between their hosts, and within each."""
    here: dict[int, list[int]] = {}
    for number in members:
        here.setdefault(proofs.host_of(number), []).append(number)
    for group, other in product(here.values(), repeat=2):
        pair = (group[0], other[-1])
        if pair[0] != pair[1]:
            yield pair


def control_packet(sender: PolicyPort, receiver: PolicyPort) -> Packet:
    """A neighbour's answer with the sender's own addresses, ARP or advertisement: every policy lets it pass.

    No request: OVN answers those itself, and they never arrive.
    """
    src, dst = sender.ip(4), receiver.ip(4)
    if src is not None and dst is not None:
        return Packet(sender.mac, receiver.mac, src, dst, 0, kind=Kind.ARP, neighbour=Neighbour(sender.mac, src, dst))
    src, dst = sender.ip(6) or sender.ips[0], receiver.ip(6) or receiver.ips[0]
    neighbour = Neighbour(sender.mac, src)
    return Packet(
        sender.mac,
        receiver.mac,
        src,
        dst,
        ICMPV6,
        icmp_type=NEIGHBOUR_ADVERTISEMENT,
        kind=Kind.ND,
        neighbour=neighbour,
    )
