"""Sends the sessions of a run: through the source's agent (guest, bypass) or by packet-out (vswitch).

Owned by service.run's nursery. Each sender reports the actual time of every probe, 0 where it was not sent; a sender
that dies on the way leaves a result that says how far it came.
"""

import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trio

from netprobe.errors import HostNotReadyError, NetprobeError, UsageError
from netprobe.host.guest_agent import GuestAgent, GuestFrames, open_guest_agent
from netprobe.host.openflow import OpenFlowClient
from netprobe.inject.packet_out import send_packet_outs
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.model.results import Pacing
from netprobe.model.topology import Attachment, Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.service.prepare import Prepared
from netprobe.service.watching import Watch

LEAD_NS = 20_000_000
"""From the order to the first probe: all senders of a run start together, and none of them late."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent of one session.

    Attributes:
        times_ns: shape (count,), int64; CLOCK_REALTIME, 0 for unsent.
        failure: why sending ended early, "" when it did not.
    """

    times_ns: npt.NDArray[np.int64]
    pacing: Pacing | None
    failure: str = ""

    @classmethod
    def nothing(cls, count: int, failure: str) -> "Sent":
        """No probe left."""
        return cls(np.zeros(count, np.int64), None, failure)


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
        self._held: dict[str, list[GuestFrames]] = {}

    async def stop(self) -> None:
        """Send nothing more; what was sent until now is still told."""
        self._stop.set()
        for agent in self._agents.values():
            await agent.stop_sends()

    async def observe(self, watch: Watch, nursery: trio.Nursery) -> None:
        """Let the agents look for answers at their own NICs, and feed `watch` with what they see."""
        for name, agent in self._agents.items():
            place = _attachment(self._topology, name).chain[0]
            if place.id in watch.point_index:
                await agent.observe(watch.program, snap_bytes=SNAP_BYTES)
                self._held[name] = []
                nursery.start_soon(self._listen, name, agent, watch)

    async def _listen(self, name: str, agent: GuestAgent, watch: Watch) -> None:
        while True:
            try:
                self._held[name].append(await agent.receive_frames())
            except trio.EndOfChannel:
                return
            await trio.sleep(GATHER_S)  # a decode costs the same for one frame as for hundreds
            self._decode(name, agent, watch)

    def _decode(self, name: str, agent: GuestAgent, watch: Watch) -> None:
        held, self._held[name] = self._held[name], []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                held.append(agent.receive_frames_nowait())
        if held:
            place = _attachment(self._topology, name).chain[0]
            watch.took(watch.decode_agent_frames(place, held))

    async def finish(self, watch: Watch) -> dict[str, int]:
        """Decode what the agents still hold.

        Returns:
            By point, what was shed: frames by the agents' observers, batches on the way here.
        """
        counts = {}
        for name, agent in self._agents.items():
            try:
                status, _ = await agent.status()  # frames seen before are in the channel when it returns
            except HostNotReadyError:
                status = agent.observe_status
            if name in self._held:
                self._decode(name, agent, watch)
            place = _attachment(self._topology, name).chain[0].id
            counts[place] = status.dropped + status.shed + agent.shed_batches
        return counts

    async def absorb(self, one: Prepared) -> None:
        """Keep the sender's kernel from answering STAMP replies with "port unreachable"."""
        if one.plan.vantage is not Vantage.VSWITCH and one.plan.protocol is Protocol.UDP:
            ports = sorted({one.probe.type_p.src_port, *one.probe.src_ports})
            if len(ports) <= MAX_ABSORBED:
                await self._agents[one.sender.name].absorb(ports, family=one.plan.family)

    async def send(self, one: Prepared) -> Sent:
        """Send one session; never raises for a sender that fails on the way."""
        try:
            if one.plan.vantage is Vantage.VSWITCH:
                return await trio.to_thread.run_sync(self._packet_out, one, abandon_on_cancel=False)
            return await self._through_agent(one)
        except UsageError:
            raise
        except NetprobeError as error:
            return Sent.nothing(one.probe.count, str(error))

    async def _through_agent(self, one: Prepared) -> Sent:
        agent = self._agents[one.sender.name]
        block = one.block
        report = await agent.send(
            block.frames,
            block.frames.shape[1],
            one.due_ns,
            t1_offset=block.t1_offset,
            checksum_offset=block.checksum_offset,
            lead_ns=LEAD_NS,
        )
        pacing = Pacing(report.pacing.p50_ns, report.pacing.p99_ns, report.pacing.max_ns)
        return Sent(report.times_ns, pacing, report.error)

    def _packet_out(self, one: Prepared) -> Sent:
        host = self._topology.host(one.sender.host)
        with OpenFlowClient(host.ovs_rundir, host.bridge) as client:
            due = one.due_ns + time.monotonic_ns() + LEAD_NS
            cap = self._allowlists[host.name].cap_pps(Vantage.VSWITCH)
            done = send_packet_outs(
                client, one.block.frames, one.sender.ofport, due, cap_pps=cap, stopped=self._stop.is_set
            )
        pacing = Pacing(done.pacing.p50_ns, done.pacing.p99_ns, done.pacing.max_ns)
        return Sent(done.times_ns, pacing, str(done.failure) if done.failure else "")


SNAP_BYTES = 2_048
GATHER_S = 0.02
MAX_ABSORBED = 64
"""Ports that an agent binds; with a new port for each probe the kernel's rate limit on ICMP errors has to do."""


def _attachment(topology: Topology, name: str) -> Attachment:
    return next(a for a in topology.attachments if a.name == name)


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
        yield Injector(agents, topology, allowlists)


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
