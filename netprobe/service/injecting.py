"""Sends the sessions of a part: through the source's agent (guest, bypass) or by packet-out (vswitch).

Owned by service.part's nursery. Each sender reports the actual time of every probe, 0 where it was not sent; a sender
that dies on the way leaves a result that says how far it came.
"""

import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import trio

from netprobe.collect.arrivals import Times
from netprobe.errors import HostNotReadyError, NetprobeError, UsageError
from netprobe.host.clock import realtime_ns
from netprobe.host.guest_agent import ANSWER_TIMEOUT_S, GuestAgent, open_guest_agent
from netprobe.host.guest_messages import GuestFrames
from netprobe.host.openflow import OpenFlowClient
from netprobe.inject.pacer import HELD
from netprobe.inject.packet_out import send_packet_outs
from netprobe.model.observations import SentReport
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.model.results import Pacing
from netprobe.model.topology import Attachment, Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.service.looking import Looker
from netprobe.service.merging import SendOrder
from netprobe.service.prepare import Prepared

MAX_PACKET_OUTS = 500
"""Sessions that send packet-outs at the same time, a thread each."""

LEAD_NS = 20_000_000
"""From the order to the first probe: all senders of a run start together, and none of them late."""


@dataclass(frozen=True, slots=True)
class OwnPoint:
    """A sender's own point, at which its agent looks for answers: index in the run, and to which sessions."""

    index: int
    sessions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent of one session.

    Attributes:
        times_ns: shape (count,), int64; when, by this host's clock: the sender's stamp where that fits, else the plan;
            0 for unsent.
        stamps_ns: shape (count,), int64; the sender's stamp where it can be used, else 0.
        doubtful: stamps that cannot be right: outside the time in which the order was carried out.
        failure: why sending ended early, "" when it did not.
        held: how many of the unsent were held back by the governor.
    """

    times_ns: Times
    stamps_ns: Times
    pacing: Pacing | None
    doubtful: int = 0
    failure: str = ""
    held: int = 0

    def report(self, session: int) -> SentReport:
        """As a report of the part."""
        return SentReport(
            session, 0, self.times_ns, self.stamps_ns, self.pacing, self.doubtful, self.failure, held=self.held
        )

    @classmethod
    def nothing(cls, count: int, failure: str) -> "Sent":
        """No probe is known to have left (what a point saw nevertheless counts as sent)."""
        return cls(np.zeros(count, np.int64), np.zeros(count, np.int64), None, failure=failure)

    @classmethod
    def told(cls, stamps_ns: Times, planned_ns: Times, window: tuple[int, int]) -> "Sent":
        """What a sender reports. Its clock is believed whole or not at all.

        Args:
            stamps_ns: shape (count,); 0 for unsent.
            planned_ns: shape (count,); when each was due, by our clock.
            window: our clock before the order and after the report.
        """
        sent = stamps_ns > 0
        outside = sent & ((stamps_ns < window[0]) | (stamps_ns > window[1]))
        apart = np.abs(stamps_ns[sent] - planned_ns[sent])
        if not outside.any() and (not len(apart) or np.median(apart) <= MAX_APART_NS):
            return cls(stamps_ns, stamps_ns, None)
        times = np.where(sent, np.minimum(planned_ns, window[1]), 0)
        return cls(times, np.zeros_like(stamps_ns), None, int(np.count_nonzero(sent)))

    @classmethod
    def told_by_machine(cls, stamps_ns: Times, planned_ns: Times, window: tuple[int, int]) -> "Sent":
        """What a virtual machine reports: stamps of a clock of its own, which collect.domains carries over to ours.

        Args:
            stamps_ns: shape (count,), by the machine's clock; 0 for unsent.
            planned_ns: shape (count,); when each was due, by our clock.
            window: our clock before the order and after the report.
        """
        sent = stamps_ns > 0
        times = np.where(sent, np.clip(planned_ns, *window), 0)
        took_ns = int(np.ptp(stamps_ns[sent])) if sent.any() else 0
        if took_ns <= 2 * (window[1] - window[0]):  # no clock runs at twice the rate of another
            return cls(times, stamps_ns, None)
        return cls(times, np.zeros_like(stamps_ns), None, int(np.count_nonzero(sent)))


MAX_APART_NS = 100_000_000
"""Median distance of a sender's stamps from the plan beyond which its clock is another one than ours."""


class Injector:
    """The senders of one run; from `open_injector`.

    Args:
        agents: connected agents by the name of the attachment that they serve.
        allowlists: of each host.
    """

    def __init__(self, agents: dict[str, GuestAgent], topology: Topology, allowlists: dict[str, Allowlist]) -> None:
        self._agents = agents
        self._topology = topology
        self._allowlists = allowlists
        self._stop = threading.Event()
        self._share = 1.0
        self._ended: dict[int, str] = {}
        self._threads = trio.CapacityLimiter(MAX_PACKET_OUTS)
        self._held: dict[str, list[GuestFrames]] = {}
        self._sending: list[trio.CancelScope] = []
        self._absorbed: set[tuple[str, int, int]] = set()

    @property
    def agents(self) -> Mapping[str, GuestAgent]:
        """The agents that are connected, by the name of the attachment that they serve."""
        return self._agents

    def halt(self) -> None:
        """No packet-out goes any more, whatever becomes of the tasks around."""
        self._stop.set()

    async def thin(self, share: float) -> None:
        """From now on send only this part of what is due, 0 to 1: by packet-out, and by all agents that can."""
        self._share = share
        for agent in self._agents.values():
            with suppress(HostNotReadyError):
                await agent.thin(share)

    def dropped(self) -> int:
        """Frames that agents' observers had no room for, so far, and batches that we had none for."""
        statuses = [(agent.observe_status, agent.shed_batches) for agent in self._agents.values()]
        return sum(status.dropped + status.shed + batches for status, batches in statuses)

    def stop_session(self, session: int, why: str) -> None:
        """No packet-out of one session goes any more."""
        self._ended.setdefault(session, why)

    async def stop(self) -> None:
        """Send nothing more; what was sent until now is still told."""
        self.halt()
        for scope in self._sending:
            scope.deadline = min(scope.deadline, trio.current_time() + ANSWER_TIMEOUT_S)
        for agent in self._agents.values():
            with suppress(HostNotReadyError):
                await agent.stop_sends()

    async def observe(self, looker: Looker, own: Mapping[str, OwnPoint], nursery: trio.Nursery) -> None:
        """Let the agents look for answers at their own NICs, and feed `looker` with what they see.

        Args:
            looker: where frames go.
            own: the point of each sender that its agent looks at.
            nursery: for the listeners.
        """
        for name, agent in self._agents.items():
            place = own.get(name)
            if place is not None:
                looker.decoding(place.index, place.sessions)
                await agent.observe(looker.program, snap_bytes=SNAP_BYTES)
                self._held[name] = []
                nursery.start_soon(self._listen, name, agent, looker, place.index)

    async def _listen(self, name: str, agent: GuestAgent, looker: Looker, point: int) -> None:
        while True:
            try:
                self._held[name].append(await agent.receive_frames())
            except trio.EndOfChannel:
                return
            await looker.gather()
            self._decode(name, agent, looker, point)

    def _decode(self, name: str, agent: GuestAgent, looker: Looker, point: int) -> None:
        held, self._held[name] = self._held[name], []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                held.append(agent.receive_frames_nowait())
        if held:
            looker.take_agent_frames(point, held)

    async def finish(self, looker: Looker, own: Mapping[str, OwnPoint], since_ns: int) -> int:
        """Decode what the agents still hold. A point whose agent shed frames, or died, was blind for the whole run.

        Returns:
            What was shed: frames by the agents' observers, batches on the way here.
        """
        total = 0
        for name, agent in self._agents.items():
            is_gone = ""
            try:
                status, _ = await agent.status()  # frames seen before are in the channel when it returns
            except HostNotReadyError as error:
                status, is_gone = agent.observe_status, str(error)
            place = own.get(name)
            shed = status.dropped + status.shed + agent.shed_batches
            total += shed
            if place is None:
                continue
            if name in self._held:
                self._decode(name, agent, looker, place.index)
            if is_gone:
                looker.unwatched(place.index, is_gone, since_ns)
            if shed or is_gone:
                looker.lost_sight(place.index, since_ns, is_gone or f"its agent shed {shed} frames")
        return total

    async def absorb(self, one: Prepared) -> None:
        """Keep the sender's kernel from answering STAMP replies with "port unreachable"."""
        if one.plan.vantage is not Vantage.VSWITCH and one.plan.protocol is Protocol.UDP:
            sender, family = one.sender.name, one.plan.family
            ports = sorted({one.probe.type_p.src_port, *one.probe.src_ports})
            if len(ports) <= MAX_ABSORBED:
                # Sessions to different guests may have one source port: a mesh has.
                new = [port for port in ports if (sender, family, port) not in self._absorbed]
                self._absorbed.update((sender, family, port) for port in new)
                if new:
                    await self._agents[sender].absorb(new, family=family)

    async def send(self, order: SendOrder) -> list[Sent]:
        """Send sessions of one order; never raises for a sender that fails on the way.

        Returns:
            What was sent of each.
        """
        first, why = order.members[0], "stopped before it began"
        if not self._stop.is_set():
            try:
                if first.plan.vantage is Vantage.VSWITCH:
                    return [await trio.to_thread.run_sync(self._packet_out, first, limiter=self._threads)]
                with trio.CancelScope() as scope:
                    self._sending.append(scope)
                    return await self._through_agent(order)
                why = f"the agent of {first.sender.name} did not say what it sent"
            except UsageError:
                raise
            except NetprobeError as error:
                why = str(error)
        return [Sent.nothing(one.probe.count, why) for one in order.members]

    async def _through_agent(self, order: SendOrder) -> list[Sent]:
        sender = order.members[0].sender
        agent, told = self._agents[sender.name], Sent.told_by_machine if sender.has_own_clock else Sent.told
        before_ns = realtime_ns()
        report = await agent.send(
            order.frames,
            order.frames.shape[1],
            order.due_ns,
            t1_offset=order.t1_offset,
            checksum_offset=order.checksum_offset,
            lead_ns=LEAD_NS,
        )
        window = (before_ns, realtime_ns())
        planned = order.shares(before_ns + LEAD_NS + order.due_ns)
        pacing = Pacing(report.pacing.p50_ns, report.pacing.p99_ns, report.pacing.max_ns)
        return [
            replace(
                told(np.maximum(times, 0), due, window),
                pacing=pacing,
                failure=report.error,
                held=int(np.count_nonzero(times == HELD)),
            )
            for times, due in zip(order.shares(report.times_ns), planned, strict=True)
        ]

    def _packet_out(self, one: Prepared) -> Sent:
        host, session = self._topology.host(one.sender.host), one.probe.session

        def is_stopped() -> bool:
            return self._stop.is_set() or session in self._ended

        with OpenFlowClient(host.ovs_rundir, host.bridge) as client:
            due = one.due_ns + time.monotonic_ns() + LEAD_NS
            cap = self._allowlists[host.name].cap_pps(Vantage.VSWITCH)
            done = send_packet_outs(
                client,
                one.block.frames,
                one.sender.ofport,
                due,
                cap_pps=cap,
                stopped=is_stopped,
                share=lambda: self._share,
            )
        held = int(np.count_nonzero(done.times_ns == HELD))
        times = np.maximum(done.times_ns, 0)
        if done.unconfirmed:
            # No barrier says that the switch took these; those that some point sees count as sent all the same.
            times[np.flatnonzero(times)[-done.unconfirmed :]] = 0
        pacing = Pacing(done.pacing.p50_ns, done.pacing.p99_ns, done.pacing.max_ns)
        failure = str(done.failure) if done.failure else self._ended.get(session, "")
        return Sent(times, times, pacing, failure=failure, held=held)


SNAP_BYTES = 2_048
MAX_ABSORBED = 64
"""Ports that an agent binds; with a new port for each probe the kernel's rate limit on ICMP errors has to do."""


@asynccontextmanager
async def open_injector(
    prepared: Sequence[Prepared], topology: Topology, allowlists: dict[str, Allowlist]
) -> AsyncIterator[Injector]:
    """Connect to the agents of all senders.

    Raises:
        HostNotReadyError: an agent is needed and not there.
    """
    senders = {one.sender.name: one.sender for one in prepared if one.plan.vantage is not Vantage.VSWITCH}
    async with _open_agents(list(senders.values())) as agents:
        injector = Injector(agents, topology, allowlists)
        try:
            yield injector
        finally:
            injector.halt()  # a thread that sends does not notice a cancelled task


@asynccontextmanager
async def _open_agents(senders: Sequence[Attachment]) -> AsyncIterator[dict[str, GuestAgent]]:
    if not senders:
        yield {}
        return
    first, *rest = senders
    if not first.agent:
        raise HostNotReadyError(
            f"vantage guest on {first.name}", "it runs no agent", advice="use --vantage bypass or vswitch"
        )
    async with open_guest_agent(first.agent) as agent, _open_agents(rest) as agents:
        yield {first.name: agent, **agents}
