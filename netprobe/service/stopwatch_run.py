"""One run of a stopwatch on open taps: connections are opened, lanes sent, the command run, and what came is judged.

Resources: none of its own; service.stopwatch opens taps and journal, asks for leave, and tells what came out. What is
sent is service.stopwatch_streams', what it proves judge.stopwatch's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import StepDetector, realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.proof import LossBound
from netprobe.judge.stopwatch import (
    Change,
    Command,
    Connection,
    Stream,
    connection,
    fates,
    judge_change,
    measured_loss,
    misses_needed,
)
from netprobe.model.policy import Policy
from netprobe.observe.absorber import Absorbed
from netprobe.service.stopwatch_command import COMMAND_S, Ran, run_command
from netprobe.service.stopwatch_streams import Arrivals, Conversation, Frames, Lane, Schedule, Watched, cycle, stream_of
from netprobe.service.tap_ports import TapPorts
from netprobe.service.verify_rounds import control_packet
from netprobe.wire.policy_decode import PolicyDecoder, PolicyKind, SentTable

I64 = npt.NDArray[np.int64]
Tell = Callable[[str], None]

TRIES = 3
"""How often a connection is tried to be opened."""

MORE_S = 10.0
"""How much longer than asked the end is waited for, while packets still have the old verdict."""

LOOK_S = 0.05
JUDGE_S = 0.2
CONFIRM_S = 0.2


@dataclass(frozen=True, slots=True)
class StopwatchOrder:
    """What is watched, and how.

    Attributes:
        command: its words.
        rule: id, "" for all rules that allow.
        rate: packets of existing flows a second, all classes together.
        connections: new ones a second, likewise.
        before_ns: from the first packet to the command.
        after_ns: how long no packet must have had the old verdict.
        tmax_ns: waiting time after which a packet counts as missed.
        alpha: probability that anything at all is called dropped that was lost.
    """

    command: tuple[str, ...]
    rule: str = ""
    rate: int = 1000
    connections: int = 200
    before_ns: int = 1_000_000_000
    after_ns: int = 3_000_000_000
    tmax_ns: int = 200_000_000
    alpha: float = 1e-3

    @property
    def least_s(self) -> float:
        """How long it takes with a command that takes no time, seconds."""
        return (self.before_ns + self.after_ns) / 1e9

    @property
    def controls(self) -> float:
        """Controls a second: often enough to vouch for gaps of some milliseconds."""
        return max(200.0, (self.rate + self.connections) / 20)

    @property
    def pps(self) -> float:
        """Packets a second in all."""
        return self.rate + self.connections + self.controls


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What one class met.

    Attributes:
        existing: of the flow that was there; `is_open`: both its ends had spoken before the command.
        new: of new connections, None where the protocol has none to tell apart.
    """

    watched: Watched
    is_open: bool
    existing: Change
    new: Change | None

    @property
    def connection(self) -> Connection:
        """What became of the flow."""
        return connection(self.existing, self.new)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Of both streams."""
        return (self.existing,) if self.new is None else (self.existing, self.new)


class StopwatchRun:
    """One run.

    Args:
        order: what is watched, and how.
        policy: bound.
        taps: open, of all ports that take part.
        frames: of the run's mark; nothing made yet.
        stop: once it is asked, nothing more is sent.

    Attributes:
        ran: the command.
        notes: what else one should know.
        loss, needed: what was measured of the loss, and misses in a row that were a drop then.
        sent, unsent, controls, overflow, forged: packets.
    """

    def __init__(
        self, order: StopwatchOrder, policy: Policy, taps: TapPorts, frames: Frames, stop: StopRequest
    ) -> None:
        self.ran = Ran()
        self.notes: list[str] = []
        self.loss = LossBound(0, 0, 1.0)
        self.needed = self.sent = self.unsent = self.controls = self.overflow = self.forged = 0
        self._order, self._policy = order, policy
        self._taps, self._frames = taps, frames
        self._stop = stop
        self._table = SentTable()
        self._decoder = PolicyDecoder(frames.mark, self._table)
        self._receivers = np.empty(0, np.int64)
        self._arrivals = Arrivals()
        self._is_over = False
        self._done = trio.Event()
        self._all: list[Lane] = []
        self._existing: list[int] = []
        self._new: list[int | None] = []
        self._control: list[int | None] = []

    # -- what is sent -------------------------------------------------------------------------------------------------

    def _register(self, receivers: Sequence[int]) -> None:
        """Let the frames that were made since the last call be known, each with the port that it is for."""
        made = self._frames.take()
        assert len(made) == len(receivers), f"{len(receivers)} receivers of {len(made)} frames"
        self._table.append(made)
        self._receivers = np.concatenate((self._receivers, np.array(receivers, np.int64)))

    def _ends(self, watched: Watched) -> tuple[int, int]:
        return self._taps.index(watched.scenario.src), self._taps.index(watched.scenario.dst)

    async def _open(self, watched: Watched, ports: Sequence[int]) -> Conversation:
        """A connection of a class, with both ends played; one that is not open where its first packet does not pass."""
        src, dst = self._ends(watched)
        for port in ports[:TRIES]:
            conversation = Conversation(watched, port, self._frames)
            self._register([dst if part.is_forward else src for part in conversation.parts])
            conversation.is_open = True
            for part in conversation.parts:
                await self._taps.send([(src if part.is_forward else dst, part.frame)], 0)
                if not await self._has_come(part.seq):
                    conversation.is_open = False
                    break
            if conversation.is_open:
                return conversation
        conversation = Conversation(watched, ports[TRIES], self._frames)  # never asked for, so conntrack knows nothing
        self._register([dst if part.is_forward else src for part in conversation.parts])
        return conversation

    async def _has_come(self, seq: int) -> bool:
        with trio.move_on_after(self._order.tmax_ns / 1e9):
            while True:
                self._taps.drain(self._take)
                if self._arrivals.has(seq):
                    return True
                await self._taps.wait_absorbed()
        return self._arrivals.has(seq)

    def _lanes(self, classes: Sequence[Watched], ports: Sequence[Sequence[int]], flows: Sequence[Conversation]) -> None:
        """Make all frames: `existing`, `new` and `control` lanes of each class, by their place in `_all`."""
        order, frames = self._order, self._frames
        rate, connections = order.rate / len(classes), order.connections / max(sum(w.has_new for w in classes), 1)
        self._new, self._control = [None] * len(classes), [None] * len(classes)
        for flow, watched in zip(flows, classes, strict=True):
            src, dst = self._ends(watched)
            first = frames.count
            data = flow.data(cycle(rate))
            self._register([dst] * len(data))
            self._existing.append(self._add(Lane(first, [(src, one) for one in data], rate, goes_round=True)))
        for number, (watched, own) in enumerate(zip(classes, ports, strict=True)):
            if watched.has_new and connections:
                src, dst = self._ends(watched)
                first = frames.count
                made = [frames.add(watched.packet.with_ephemeral(port), ident=port) for port in own[TRIES + 1 :]]
                self._register([dst] * len(made))
                lane = Lane(first, [(src, one) for one in made], connections, goes_round=False)
                self._new[number] = self._add(lane)
        self._add_controls(classes)

    def _add(self, lane: Lane) -> int:
        self._all.append(lane)
        return len(self._all) - 1

    def _add_controls(self, classes: Sequence[Watched]) -> None:
        policy = self._policy
        lanes: dict[tuple[str, str], int] = {}
        pairs = {(watched.scenario.src, watched.scenario.dst) for watched in classes}
        for number, watched in enumerate(classes):
            pair = (watched.scenario.src, watched.scenario.dst)
            sender, receiver = (policy.port(name) for name in pair)
            if sender.network != receiver.network:
                self.notes.append(f"between {pair[0]} and {pair[1]} nothing vouches for the path: they are routed")
                continue
            if pair not in lanes:
                src, dst = self._ends(watched)
                rate = self._order.controls / len(pairs)
                first = self._frames.count
                packet = control_packet(sender, receiver)
                made = [(src, self._frames.add(packet)) for _ in range(cycle(rate))]
                self._register([dst] * len(made))
                lanes[pair] = self._add(Lane(first, made, rate, goes_round=True))
            self._control[number] = lanes[pair]

    # -- what comes ---------------------------------------------------------------------------------------------------

    def _take(self, absorbed: Absorbed) -> None:
        block = absorbed.frames
        decoded = self._decoder.decode(block.buffer, block.offsets, block.lengths, block.vlan)
        self.forged += decoded.forged
        seqs = decoded.seq.astype(np.int64)
        fine = (decoded.kind == PolicyKind.ARRIVED) & (absorbed.ports[decoded.index] == self._receivers[seqs])
        self._arrivals.add(seqs[fine], block.t_ns[decoded.index[fine]])

    async def _look(self) -> None:
        """Decode what comes, a ring block at a time."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._taps.wait_absorbed()
            self._taps.drain(self._take)

    async def _guard(self) -> None:
        """Absorption is confirmed all the while: no guest may see what is sent. A canary may get lost, two do not."""
        while True:
            await trio.sleep(CONFIRM_S)
            if await self._missing() and (missing := await self._missing()):
                self._note_missing(missing)
                self._is_over = True
                return

    async def _missing(self) -> list[int]:
        """Ports where absorption is not confirmed."""
        confirmed = await self._taps.confirm()
        return [port for port in range(len(self._taps.ports)) if port not in confirmed]

    def _note_missing(self, missing: Sequence[int]) -> None:
        port = missing[0]
        why = f"{self._taps.ports[port].name}: {self._taps.why_unconfirmed(port)}"
        self.notes.append(f"absorption could not be confirmed any more, its guest may have seen packets: {why}")

    # -- the run ------------------------------------------------------------------------------------------------------

    async def go(
        self, classes: Sequence[Watched], ports: Sequence[Sequence[int]], tell: Tell
    ) -> tuple[ClassResult, ...]:
        """Everything, from the first canary to the verdicts.

        Args:
            classes: what is watched.
            ports: source ports of each: TRIES + 1 for its flow, the others for new connections.
            tell: takes lines of progress.

        Raises:
            HostNotReadyError: absorption cannot be confirmed.
        """
        if missing := await self._missing():
            raise HostNotReadyError(
                f"port of {self._taps.ports[missing[0]].name}",
                f"absorption cannot be confirmed: {self._taps.why_unconfirmed(missing[0])}",
            )
        flows = [await self._open(watched, own) for watched, own in zip(classes, ports, strict=True)]
        self._lanes(classes, ports, flows)
        order = self._order
        seconds = order.least_s + COMMAND_S + MORE_S
        schedule = Schedule(self._all, seconds)
        self._arrivals = Arrivals()
        steps = StepDetector()
        tell(f"{len(classes)} classes, {order.rate} packets/s and {order.connections} new connections/s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            nursery.start_soon(self._guard)
            nursery.start_soon(self._command, schedule)
            sent = await self._taps.send(schedule, schedule.gap_ns, stopped=self._ends_now)
            await self._done.wait()  # stopped before its time: the command has been asked to end
            await trio.sleep(order.tmax_ns / 1e9)
            nursery.cancel_scope.cancel()
        self._taps.drain(self._take)
        if missing := await self._missing():
            self._note_missing(missing)
        if steps.check():
            self.notes.append("the wall clock was stepped meanwhile: times are not to be trusted")
        if sent.refused:
            self.notes.append(f"sending by taps: {sent.error}")
        return self._results(classes, flows, schedule, sent.times_ns[: schedule.asked])

    def _ends_now(self) -> bool:
        return self._is_over or self._stop.asked()

    async def _command(self, schedule: Schedule) -> None:
        """Run the command in the middle, and say when it is over."""
        try:
            await self._run_and_wait(schedule)
        finally:
            self._is_over = True
            self._done.set()

    async def _run_and_wait(self, schedule: Schedule) -> None:
        order = self._order
        await trio.sleep(order.before_ns / 1e9)
        if self._ends_now():
            return
        await run_command(order.command, self.ran, self._stop)
        self.notes += self.ran.notes
        latest_ns = self.ran.end_ns + order.after_ns + round(MORE_S * 1e9)
        last_old_ns = self.ran.end_ns
        while not self._ends_now():
            now_ns = realtime_ns()
            if now_ns - max(last_old_ns, self.ran.end_ns) >= order.after_ns + order.tmax_ns:
                last_old_ns = self._last_old_ns(schedule, now_ns)
                if now_ns - last_old_ns >= order.after_ns + order.tmax_ns or now_ns >= latest_ns:
                    break
            await trio.sleep(JUDGE_S)

    def _last_old_ns(self, schedule: Schedule, now_ns: int) -> int:
        """When the last packet that had an old verdict was sent, as far as it is known."""
        asked_ns = schedule.asked_ns[: schedule.asked].copy()
        settled = asked_ns[: int(np.searchsorted(asked_ns, now_ns - self._order.tmax_ns))]
        found = [change.last_old_ns for change in self._changes(schedule, settled).values()]
        return max([self.ran.end_ns, *found])

    def _changes(self, schedule: Schedule, times_ns: I64) -> dict[int, Change]:
        """What happened to each lane but those of controls."""
        streams = {
            number: stream_of(lane, schedule.sent_ns(number, times_ns), self._arrivals)
            for number, lane in enumerate(self._all)
        }
        watched = [number for number in (*self._existing, *self._new) if number is not None]
        controls = sorted({number for number in self._control if number is not None})
        vouched = [streams[number] for number in controls]
        together = Stream(
            np.concatenate([np.empty(0, np.int64), *(one.sent_ns for one in vouched)]),
            np.concatenate([np.empty(0, np.int64), *(one.arrived_ns for one in vouched)]),
        )
        command = Command(self.ran.begin_ns, self.ran.end_ns)
        self.loss = measured_loss(together, tuple(streams[number] for number in watched), command)
        self.needed = misses_needed(self.loss, sum(len(streams[n].sent_ns) for n in watched), self._order.alpha)
        found = {}
        for mine in ([*self._existing], self._new):
            for number, control in zip(mine, self._control, strict=True):
                if number is not None:
                    beside = None if control is None else streams[control]
                    found[number] = judge_change(
                        streams[number], fates(streams[number], beside, self.needed, command.begin_ns), command
                    )
        self.controls = len(together.sent_ns)
        return found

    def _results(
        self, classes: Sequence[Watched], flows: Sequence[Conversation], schedule: Schedule, times_ns: I64
    ) -> tuple[ClassResult, ...]:
        if not self.ran.end_ns:  # stopped before the command began: what was sent says nothing of a change
            self.ran.begin_ns = 0
        changes = self._changes(schedule, times_ns)
        self.sent = int(np.count_nonzero(times_ns)) - self.controls
        self.unsent = int(np.count_nonzero(times_ns == 0))
        for number, lane in enumerate(self._all):
            if not lane.goes_round and len(schedule.sent_ns(number, times_ns)) >= len(lane.frames):
                self.notes.append(f"{len(lane.frames)} new connections were begun, then there were no ports left")
        return tuple(
            ClassResult(watched, flow.is_open, changes[existing], None if new is None else changes[new])
            for watched, flow, existing, new in zip(classes, flows, self._existing, self._new, strict=True)
        )

    def note_losses(self) -> None:
        """Say what got lost on netprobe's own way."""
        losses = self._taps.losses()
        self.overflow = losses.ring
        for count, what in (
            (losses.refused, "frames were not taken by the kernel for sending"),
            (losses.sent, "frames were lost on netprobe's own links before the taps"),
            (losses.absorbed, "frames were lost on netprobe's own links behind the taps"),
            (losses.ring, "absorbed frames found no room in the ring"),
        ):
            if count:
                self.notes.append(f"{count} {what}")
        if self._taps.failure:
            self.notes.append(f"the ring of absorbed frames failed: {self._taps.failure}")
