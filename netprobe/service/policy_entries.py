"""Ways in for the packets of a policy: by the taps, by packet-out, or from the guests' own agents.

What each cannot prove is the business of who chose it: packet-out passes by what stands before the vswitch (the hybrid
bridge's iptables) and by cached megaflows; an agent needs a guest that runs one. Absorption is the taps' in each case.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import Protocol

import numpy as np
import trio

from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, unknown_name
from netprobe.host.clock import realtime_ns
from netprobe.host.guest_agent import GuestAgent, open_guest_agent
from netprobe.host.openflow import OpenFlowClient
from netprobe.inject.batches import send_in_batches
from netprobe.inject.packet_out import PacketOutSender
from netprobe.model.points import Vantage
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.service.injecting import LEAD_NS, Sent
from netprobe.service.permits import read_host_allowlist
from netprobe.service.tap_ports import TapPorts

ASK_STOP_S = 0.02
Stopped = Callable[[], bool]


def _never() -> bool:
    return False


class PolicyEntry(Protocol):
    """A way in.

    Attributes:
        problems: why frames were not sent, one line each, for people; empty when all were.
    """

    problems: tuple[str, ...]

    async def send(self, frames: Sequence[tuple[str, bytes]], gap_ns: int, *, stopped: Stopped = _never) -> list[int]:
        """Send frames, each as if a guest had sent it.

        Args:
            frames: the guest's name, and the Ethernet frame without FCS.
            gap_ns: from one to the next, on the average; longer where the host's allowlist asks for it.
            stopped: asked every few milliseconds; once it says True nothing more is sent.

        Returns:
            CLOCK_REALTIME ns just before each, 0 for what was not sent.
        """


def _with(problems: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*problems, *(problem for problem in more if problem))))


class TapEntry:
    """By the taps; see PolicyEntry."""

    def __init__(self, taps: TapPorts) -> None:
        self.problems: tuple[str, ...] = ()
        self._taps = taps
        self._index = {port.name: index for index, port in enumerate(taps.ports)}

    async def send(self, frames: Sequence[tuple[str, bytes]], gap_ns: int, *, stopped: Stopped = _never) -> list[int]:
        """See PolicyEntry."""
        places = [place for place, (name, _) in enumerate(frames) if name in self._index]
        known = [(self._index[frames[place][0]], frames[place][1]) for place in places]
        sent = await self._taps.send(known, gap_ns, stopped=stopped)
        times = [0] * len(frames)
        for place, t_ns in zip(places, sent.times_ns.tolist(), strict=True):
            times[place] = t_ns
        unknown = {name for name, _ in frames} - self._index.keys()
        why = [f"{name}: {self._taps.failures.get(name, 'its port is not open')}" for name in sorted(unknown)]
        self.problems = _with(self.problems, *why, f"sending by taps: {sent.error}" if sent.refused else "")
        return times


class PacketOutEntry:
    """By packet-out, in many ports of the hosts' bridges; see PolicyEntry.

    Args:
        ports: host and OpenFlow number of each guest's port.
        clients: a connection to each host's bridge.
        cap_pps: packets a second that the allowlists of all of them permit.
    """

    def __init__(
        self, ports: Mapping[str, tuple[str, int]], clients: Mapping[str, OpenFlowClient], cap_pps: float
    ) -> None:
        self.problems: tuple[str, ...] = ()
        self._ports = ports
        self._clients = clients
        self._least_gap_ns = round(1e9 / cap_pps)

    async def send(self, frames: Sequence[tuple[str, bytes]], gap_ns: int, *, stopped: Stopped = _never) -> list[int]:
        """See PolicyEntry. A bridge that fails takes nothing more of this order; others go on."""

        def is_over() -> bool:
            try:
                trio.from_thread.check_cancelled()
            except trio.Cancelled:
                return True
            return stopped()

        gap_ns = max(gap_ns, self._least_gap_ns)
        return await trio.to_thread.run_sync(self._send, frames, gap_ns, is_over)

    def _send(self, frames: Sequence[tuple[str, bytes]], gap_ns: int, stopped: Stopped) -> list[int]:
        senders = {host: PacketOutSender(client) for host, client in self._clients.items()}
        outstanding: dict[str, list[int]] = {host: [] for host in senders}

        def send(place: int) -> int:
            name, frame = frames[place]
            host, ofport = self._ports[name]
            t_ns = senders[host].send(ofport, frame)
            if t_ns:
                outstanding[host].append(place)
            return t_ns

        times = list(send_in_batches(len(frames), gap_ns, send, stopped=stopped))
        for host, sender in senders.items():
            sender.finish()
            if sender.failure is not None:
                self.problems = _with(self.problems, str(sender.failure))
            # No barrier says that the switch took the last ones.
            for place in outstanding[host][len(outstanding[host]) - sender.outstanding :]:
                times[place] = 0
        return times


class GuestEntry:
    """From the guests' agents; see PolicyEntry.

    Args:
        agents: connected, by the name of their guest.
    """

    def __init__(self, agents: Mapping[str, GuestAgent]) -> None:
        self.problems: tuple[str, ...] = ()
        self._agents = agents

    async def send(self, frames: Sequence[tuple[str, bytes]], gap_ns: int, *, stopped: Stopped = _never) -> list[int]:
        """See PolicyEntry. All agents send at once, each its own frames at their places in the whole."""
        times = [0] * len(frames)
        places: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(frames):
            places.setdefault(name, []).append(place)

        async def send(name: str, own: list[int]) -> None:
            due = [place * gap_ns for place in own]
            try:
                sent = await self._through(name, [frames[place][1] for place in own], due)
            except NetprobeError as error:
                self.problems = _with(self.problems, str(error))
                return
            self.problems = _with(self.problems, f"guest {name}: {sent.failure}" if sent.failure else "")
            for place, t_ns in zip(own, sent.times_ns.tolist(), strict=True):
                times[place] = t_ns

        async with trio.open_nursery() as outer:
            outer.start_soon(self._stop_when, stopped, list(places))
            async with trio.open_nursery() as nursery:
                for name, own in places.items():
                    nursery.start_soon(send, name, own)
            outer.cancel_scope.cancel()
        return times

    async def _through(self, name: str, frames: Sequence[bytes], due_ns: Sequence[int]) -> Sent:
        agent = self._agents.get(name)
        if agent is None:
            raise HostNotReadyError(f"guest {name}", "its agent is not connected")
        before_ns = realtime_ns()
        report = await agent.send_mixed(frames, due_ns, lead_ns=LEAD_NS)
        planned = before_ns + LEAD_NS + np.array(due_ns, np.int64)
        told = Sent.told(report.times_ns, planned, (before_ns, realtime_ns()))
        return Sent(told.times_ns, told.stamps_ns, None, told.doubtful, report.error)

    async def _stop_when(self, stopped: Stopped, names: Sequence[str]) -> None:
        while True:  # again and again: an order may have been on its way when the others were stopped
            await trio.sleep(ASK_STOP_S)
            for name in names if stopped() else ():
                if name in self._agents:
                    with suppress(HostNotReadyError):  # gone; whoever waits for it says so
                        await self._agents[name].stop_sends()


@asynccontextmanager
async def open_entry(
    vantage: str, attachments: Sequence[Attachment], topology: Topology, taps: TapPorts
) -> AsyncIterator[PolicyEntry]:
    """Open a way in for these ports.

    Args:
        vantage: "tap", "vswitch" or "guest".
        attachments: whose ports.
        topology: their hosts.
        taps: open.

    Raises:
        UsageError: there is no such vantage.
        HostNotReadyError: a switch or an agent is needed and not there, or too old.
        RefusedError: a host's allowlist permits no packet-out.
    """
    if vantage == "tap":
        yield TapEntry(taps)
    elif vantage == "vswitch":
        hosts = [host for host in topology.hosts if host.name in {one.host for one in attachments}]
        with ExitStack() as stack:
            yield _packet_out(attachments, hosts, stack)
    elif vantage == "guest":
        async with AsyncExitStack() as agents:
            yield GuestEntry({one.name: await agents.enter_async_context(_agent(one)) for one in attachments})
    else:
        raise unknown_name("vantage", vantage, ("tap", "vswitch", "guest"), kind="vantage")


def _packet_out(attachments: Sequence[Attachment], hosts: Sequence[Host], stack: ExitStack) -> PacketOutEntry:
    caps = []
    for host in hosts:
        allowlist = read_host_allowlist(host)
        caps.append(allowlist.cap_pps(Vantage.VSWITCH))
        if caps[-1] <= 0:
            raise RefusedError(allowlist.where, "permits no packet-out", allowed="packet_out_pps = 0")
    clients = {host.name: stack.enter_context(OpenFlowClient(host.ovs_rundir, host.bridge)) for host in hosts}
    return PacketOutEntry({one.name: (one.host, one.ofport) for one in attachments}, clients, min(caps))


@asynccontextmanager
async def _agent(one: Attachment) -> AsyncIterator[GuestAgent]:
    if not one.agent:
        raise HostNotReadyError(f"guest {one.name}", "it runs no agent", advice="use --vantage tap or vswitch")
    async with open_guest_agent(one.agent) as agent:
        agent.check_mixing()
        yield agent
