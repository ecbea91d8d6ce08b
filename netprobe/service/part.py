"""One part of a run: what this process does on the host or hosts that it can reach.

Permit, write down, look, send, mind the tables that tenants share, tidy up. A run in one process has one part; a run
spread over hosts has one an agent. Everything that a part finds out goes out as reports (model.observations).
Resources are opened outermost first and closed in the opposite order, also after an error or Ctrl-C.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns
from netprobe.host.conntrack import Conntrack
from netprobe.host.ovsdb import bound_ports
from netprobe.host.signals import StopRequest
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.load import DEFAULT_LIMITS, LoadLimits
from netprobe.model.points import Point
from netprobe.model.probes import ProbeSession
from netprobe.model.topology import Host, Topology
from netprobe.observe.ring import RUN_RETIRE_MS
from netprobe.plan.allowlist import Allowlist
from netprobe.plan.budget import is_too_full
from netprobe.service.behind import BehindCounts
from netprobe.service.governing import Governing
from netprobe.service.injecting import Injector, OwnPoint, open_injector
from netprobe.service.looking import Emit, Looker
from netprobe.service.machine_clocks import MachineClock, MachineClocks
from netprobe.service.merging import SendOrder, orders_of
from netprobe.service.permits import SwitchDrops
from netprobe.service.prepare import Prepared
from netprobe.service.vrings import vrings_of

SETTLE_S = 2.5 * RUN_RETIRE_MS / 1e3
"""After the last frame that matters: every ring's open block is handed over within its retire time."""

CHECK_S = 0.1
"""How often a stop request, the clock and a shared table are looked at."""

CHECKS_A_TABLE = 5  # the table is asked every fifth time
CHECKS_A_PORT = 2

DEVICE_TRY_S = 0.05
DEVICE_TRIES = 60
"""How often, and how many times, a device is looked for that a guest has been said to come with."""


@dataclass(frozen=True, slots=True)
class PartOrder:
    """What one part shall do.

    Attributes:
        prepared: the sessions that are sent from here.
        probes: the sessions that pass here, those among them.
        places: points to look at with a ring, by their index in the run.
        own: senders' own points that their agents look at, by the sender's name.
        machines: virtual machines within reach whose clocks are compared with the host's.
        limits: of the host's load, beyond which sending backs off.
    """

    prepared: tuple[Prepared, ...]
    probes: tuple[ProbeSession, ...]
    places: Mapping[int, Point]
    own: Mapping[str, OwnPoint]
    machines: tuple[MachineClock, ...] = ()
    limits: LoadLimits = DEFAULT_LIMITS

    def hosts(self, topology: Topology) -> list[Host]:
        """The hosts within reach whose switches the sessions pass; all of them where sessions only pass through."""
        passed = {name for one in self.prepared for name in one.hosts}
        sent = {one.probe.session for one in self.prepared}
        is_all = any(probe.session not in sent for probe in self.probes)
        return [h for h in topology.hosts if h.ovs_rundir and (is_all or h.name in passed)]


class Part:
    """A part under way, looking; from `open_part`."""

    def __init__(
        self, order: PartOrder, topology: Topology, injector: Injector, looker: Looker, readers: trio.Nursery
    ) -> None:
        self._order = order
        self._topology = topology
        self._injector = injector
        self._looker = looker
        self._readers = readers
        self._drops = SwitchDrops(order.prepared, topology)
        self._minded = order.hosts(topology)
        self._since_ns = realtime_ns()
        self._rings = ExitStack()
        self._behind = BehindCounts()
        self._behind.add(order.places)

    def look_at(self, places: Mapping[int, Point]) -> None:
        """Open rings on more points: a guest came to this host. Its device may follow the news of it."""
        if missing := self._open_rings(places):
            self._readers.start_soon(self._look_when_there, missing)

    def _open_rings(self, places: Mapping[int, Point]) -> dict[int, Point]:
        missing = self._looker.open_rings(places, self._rings, self._topology.unobserved)
        self._behind.add({i: point for i, point in places.items() if i not in missing})
        self._looker.read_rings(self._readers)
        return missing

    async def _look_when_there(self, missing: Mapping[int, Point]) -> None:
        for _ in range(DEVICE_TRIES):
            await trio.sleep(DEVICE_TRY_S)
            missing = self._open_rings(missing)
            if not missing:
                return

    async def send(self, emit: Emit) -> None:
        """Send all sessions; returns when every sender is done, or was stopped. Reports what was sent of each.

        Args:
            emit: takes the reports.
        """
        async with trio.open_nursery() as senders:
            for order in orders_of(self._order.prepared):
                senders.start_soon(self._send, order, emit)
        self._looker.hurry()

    async def _send(self, order: SendOrder, emit: Emit) -> None:
        for one, sent in zip(order.members, await self._injector.send(order), strict=True):
            emit(sent.report(one.probe.session))

    async def mind(self, stop: StopRequest) -> None:
        """Stop sending when asked, and never fill a conntrack table on the way (design §6a); until cancelled.

        Args:
            stop: once it is asked, nothing more is sent. This asks it too, when a table that tenants share gets full.
        """
        checks = 0
        try:
            while not stop.asked():
                await trio.sleep(CHECK_S)
                self._looker.steps.check()
                checks += 1
                if checks % CHECKS_A_PORT == 0:
                    await self._look_at_ports()
                if checks % CHECKS_A_TABLE == 0:
                    await self._look_at_tables(stop)
            while True:  # a sender may not have begun when it is first told
                await self._injector.stop()
                await trio.sleep(CHECK_S)
        finally:
            self._injector.halt()  # at once, also on the way out of an error: a sending thread is waited for

    async def _look_at_ports(self) -> None:
        """Packets are injected only while the port is bound on this host (design §6a): its number may be another's."""
        for host in self._minded:
            played = [one for one in self._order.prepared if not one.is_sent_by_agent and one.sender.host == host.name]
            if not played:
                continue
            try:
                ports = await trio.to_thread.run_sync(bound_ports, host.ovs_rundir)
            except HostNotReadyError:
                continue  # a dead switch takes no packet either
            for one in played:
                if ports.get(one.sender.iface_id) != one.sender.ofport:
                    self._injector.stop_session(one.probe.session, f"the port of {one.sender.name} left {host.name}")

    async def _look_at_tables(self, stop: StopRequest) -> None:
        for host in self._minded:
            if await trio.to_thread.run_sync(_is_full, host.ovs_rundir):
                stop.ask(f"the conntrack table of {host.name} is nearly full")

    def flush(self) -> None:
        """Report what the rings hold now, and how far the reports go."""
        self._looker.flush()

    async def finish(self) -> dict[str, int]:
        """Report the rest, when the last frame that matters has been seen.

        Returns:
            Counters of what was shed or dropped.
        """
        await trio.sleep(SETTLE_S)  # what the rings still gather
        shed = await self._injector.finish(self._looker, self._order.own, self._since_ns)
        await trio.to_thread.run_sync(self._behind.tell, self._looker)
        self._looker.flush()
        self._looker.repeat()
        dropped = await trio.to_thread.run_sync(self._drops.since_then)
        return {"agent_shed": shed, "port_dropped": dropped}

    def close(self) -> None:
        """Take rings down that were opened meanwhile."""
        self._rings.close()


def _is_full(rundir: str) -> bool:
    try:
        with UnixctlClient(rundir) as unixctl:
            use = Conntrack(unixctl).use()
    except HostNotReadyError:
        return False  # a dead switch shows in the result
    return is_too_full(use.used, use.limit)


@asynccontextmanager
async def open_part(
    order: PartOrder, topology: Topology, allowlists: dict[str, Allowlist], emit: Emit, stop: StopRequest
) -> AsyncIterator[Part]:
    """Open a part's rings and agents, and look. Permitted it was before (service.permits), and written down.

    Args:
        order: what it shall do.
        topology: its hosts.
        allowlists: of each of them that sends.
        emit: takes its reports, in order.
        stop: see Part.mind.

    Raises:
        HostNotReadyError: an agent or a namespace that is needed is not there.
    """
    looker = Looker(order.probes, emit, vrings_of(order.places.values(), topology))
    with ExitStack() as stack:
        looker.open_rings(order.places, stack, topology.unobserved)
        async with open_injector(order.prepared, topology, allowlists) as injector, trio.open_nursery() as readers:
            part = Part(order, topology, injector, looker, readers)
            try:
                looker.read_rings(readers)
                await injector.observe(looker, order.own, readers)
                for one in order.prepared:
                    await injector.absorb(one)
                readers.start_soon(part.mind, stop)
                governing = Governing(order.limits, order.prepared, topology, injector, looker)
                readers.start_soon(governing.run, emit)
                clocks = MachineClocks(order.machines, injector.agents, emit)
                clocks.start(readers)
                await clocks.wait_known()
                yield part
            finally:
                readers.cancel_scope.cancel()
                part.close()


def machines_of(prepared: Sequence[Prepared]) -> tuple[MachineClock, ...]:
    """The virtual machines at the ends of some sessions."""
    ends = {end.name: end for one in prepared for end in (one.sender, one.target) if end.has_own_clock}
    return tuple(MachineClock(end.chain[0].id, end.name, end.agent) for end in ends.values())


def own_points(prepared: Sequence[Prepared], index: Mapping[str, int]) -> dict[str, OwnPoint]:
    """The own points of senders that have an agent (a guest that the vswitch plays is no observer).

    Args:
        prepared: their sessions.
        index: of each point's place in the run.
    """
    found: dict[str, OwnPoint] = {}
    for one in prepared:
        place = index.get(one.sender.chain[0].place)
        if one.is_sent_by_agent and place is not None:
            before = found.get(one.sender.name, OwnPoint(place, frozenset()))
            found[one.sender.name] = OwnPoint(place, before.sessions | {one.probe.session})
    return found
