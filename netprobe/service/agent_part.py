"""A part of a spread run on its host: checked against the host's own rules, carried out, reported in numbered blocks.

The order says what, never how: ports are looked up in the host's own OVSDB, filters and frames are made here. A part
goes on when the collector is away, and ends by itself at the latest when its time is over. Below: service.part.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path as FilePath

import numpy as np
import trio

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host.clock import HostClock, realtime_ns
from netprobe.host.ovsdb import LocalPort, local_ports
from netprobe.host.signals import StopRequest
from netprobe.inject.templates import build_template
from netprobe.model.observations import HOST_STOPPED, Exchanges, Hops, PartDone, Report, SentReport
from netprobe.model.points import Path, Point, PointKind, Vantage
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.plan.budget import PORT_BLOCK
from netprobe.plan.plans import MAX_RATE_PPS, Schedule, SessionPlan
from netprobe.plan.schedule import session_due_ns
from netprobe.service.injecting import OwnPoint
from netprobe.service.journal import open_journal
from netprobe.service.machine_clocks import MachineClock
from netprobe.service.part import Part, PartOrder, open_part
from netprobe.service.permits import check_room, permit_run
from netprobe.service.prepare import Prepared
from netprobe.service.shown import shown_report
from netprobe.wire.blocks import MAX_BLOCK_BYTES, encode_reports, size_of
from netprobe.wire.frames import FrameEncoder
from netprobe.wire.orders import PartSpec, PlaceSpec, SendSpec, limits_of, place_of_untrusted, probe_of_untrusted
from netprobe.wire.serial_sync import SERIAL

FLUSH_S = 0.1
"""How often reports become a block: a collector that waits for the last probe waits no longer than that."""

BLOCK_BYTES = MAX_BLOCK_BYTES // 4
ROWS_A_REPORT = 30_000
MAX_UNTIL_S = 86_400.0
MAX_MACHINES = 1_000
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

KeepBlock = Callable[[bytes, tuple[int, int]], None]
"""Takes the octets of a block, and the times (CLOCK_REALTIME) that it stands for."""


@dataclass(frozen=True, slots=True)
class LocalHost:
    """What an agent knows of its own host.

    Attributes:
        host: its name, as in the places that it reports.
        guests: folder of the control sockets of guests' agents, `<name>.sock`, and `<name>.serial` for a virtual
            machine's virtio-serial port.
        clock: the test-only distortion of this agent's clock.
    """

    host: Host
    guests: FilePath
    clock: HostClock

    def port(self, send: SendSpec) -> LocalPort:
        """The port that a session is sent from, as this host's OVSDB has it.

        Raises:
            RefusedError: there is none.
            HostNotReadyError: OVSDB does not answer.
        """
        for port in local_ports(self.host.ovs_rundir):
            if port.iface_id == send.iface_id and port.ofport > 0:
                return port
        raise RefusedError(
            f"port of {send.sender}",
            f"no port of {self.host.name} has iface-id {send.iface_id!r}",
            advice="has it moved?",
        )

    def socket(self, name: str) -> str:
        """The control socket of a guest's agent.

        Raises:
            UsageError: the name could lead elsewhere.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"guest {name[:80]!r}", "is no name of a guest", allowed=NAME.pattern)
        port = self.guests / f"{name}.serial"
        return f"{SERIAL}{port}" if port.exists() else str(self.guests / f"{name}.sock")


def _mac_text(mac: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in mac)


def _sender(local: LocalHost, send: SendSpec, probe: ProbeSession) -> Attachment:
    """The port that sends, from the host's own OVSDB; a probe with another MAC than the port's is refused."""
    port, mac = local.port(send), _mac_text(probe.src_mac)
    if port.mac and port.mac.lower() != mac:
        raise RefusedError(
            f"session {send.name}", f"would be sent as {mac} from the port of {port.mac}", advice="spoofing is refused"
        )
    v4 = probe.src_ip if isinstance(probe.src_ip, IPv4Address) else IPv4Address(0)
    v6 = probe.src_ip if isinstance(probe.src_ip, IPv6Address) else IPv6Address(0)
    agent = local.socket(send.sender)
    guest = Point(f"{send.sender}.guest", PointKind.GUEST, send.sender)
    backend = Point(f"{send.sender}.backend", PointKind.BACKEND, local.host.name, "", port.device)
    return Attachment(
        name=send.sender,
        host=local.host.name,
        netns="",
        device="",
        mac=mac,
        ipv4=v4,
        ipv6=v6,
        groups=(),
        agent=agent,
        iface_id=send.iface_id,
        ofport=port.ofport,
        port_device=port.device,
        chain=(guest, backend),
        has_own_clock=agent.startswith(SERIAL),
    )


def _plan(send: SendSpec, probe: ProbeSession) -> SessionPlan:
    t = probe.type_p
    try:
        vantage, schedule = Vantage(send.vantage), Schedule(send.schedule)
    except ValueError as error:
        raise UsageError(f"session {send.name}", str(error)) from error
    return SessionPlan(
        name=send.name,
        src=send.sender,
        dst=str(probe.dst_ip),
        vantage=vantage,
        protocol=t.protocol,
        family=t.family,
        count=probe.count,
        rate_pps=send.rate_pps,
        stretch=send.stretch,
        start_ns=send.start_ns,
        schedule=schedule,
        size_bytes=t.size_bytes,
        dscp=t.dscp,
        src_port=t.src_port if t.protocol is not Protocol.TCP else None,
        dst_port=t.dst_port,
        flow=t.flow,
        ttl=t.ttl,
    )


def prepared_of(local: LocalHost, send: SendSpec, probe: ProbeSession) -> Prepared:
    """A session, ready to be sent from this host.

    Raises:
        RefusedError, UsageError: the port is not here, or the order makes no sense.
        HostNotReadyError: OVSDB does not answer.
    """
    sender, plan = _sender(local, send, probe), _plan(send, probe)
    if not 1 <= send.rate_pps <= MAX_RATE_PPS or send.stretch < 1 or not 0 <= send.start_ns < 1 << 60:
        raise UsageError(f"session {send.name}: rate", f"got {send.rate_pps}", allowed=f"1 to {MAX_RATE_PPS} packets/s")
    elsewhere = replace(sender, name=str(probe.dst_ip), host="", port_device="", device="", ofport=0)
    return Prepared(
        plan=plan,
        probe=probe,
        path=Path(()),
        sender=sender,
        source=sender,
        target=elsewhere,
        block=FrameEncoder(probe, build_template(probe)).encode(0, probe.count),
        due_ns=session_due_ns(plan, send.seed),
    )


def _machines_here(local: LocalHost, names: Iterable[str]) -> Iterable[MachineClock]:
    """Those of a collector's guests that are virtual machines of this host, whose agents can be reached."""
    for name in list(names)[:MAX_MACHINES]:
        if NAME.fullmatch(name) and (agent := local.socket(name)).startswith(SERIAL):
            yield MachineClock(f"{name}.guest", name, agent)


class AgentPart:
    """One part, from its order to its end.

    Args:
        spec: the order.
        local: this host.
        keep: takes blocks.
        others: the parts of this host, this one among them.
    """

    def __init__(
        self,
        spec: PartSpec,
        local: LocalHost,
        keep: KeepBlock,
        others: Callable[[], Iterable["AgentPart"]] = tuple,
    ) -> None:
        self.spec = spec
        self.state = "opening"
        self.is_looking = trio.Event()
        self.ended = trio.Event()
        self.failure: Exception | None = None
        self.stop = StopRequest()
        self._go = trio.Event()
        self._finish = trio.Event()
        self.prepared: tuple[Prepared, ...] = ()
        self._others = others
        self._local = local
        self._keep = keep
        self._pending: list[Report] = []
        self._pending_bytes = 0
        self._since_ns = realtime_ns()
        self._part: Part | None = None
        self._machines: tuple[MachineClock, ...] = ()
        self._is_ended_by_collector = False

    def go(self) -> None:
        """Send now."""
        self._go.set()

    def finish(self, why: str = "") -> None:
        """No probe is awaited any more: stop what still sends, report the rest and end."""
        if why:
            self._is_ended_by_collector = True
            self.stop.ask(why)
        self._go.set()
        self._finish.set()

    def look_at(self, places: Iterable[PlaceSpec]) -> None:
        """Look at more points.

        Raises:
            WireError: one of them is none.
            HostNotReadyError: the part is not looking.
        """
        if self._part is None:
            raise HostNotReadyError(f"run {self.spec.run}", f"is {self.state} on {self._local.host.name}")
        self._part.look_at(dict(place_of_untrusted(place, self._local.host.name) for place in places))

    async def run(self) -> None:
        """Carry the part out. An error before it looks is kept in `failure`; one later ends it, with what is known."""
        why = ""
        try:
            await self._carry_out()
        except Exception as error:  # noqa: BLE001  the agent goes on; the collector is told
            self.failure = error
            why = str(error)
        finally:
            if self.state != "ended":
                self._emit_end({}, why or "the agent was stopped")
            self.is_looking.set()
            self.ended.set()

    def _order(self) -> tuple[PartOrder, Topology]:
        spec, local = self.spec, self._local
        probes = {p.session: p for p in map(probe_of_untrusted, spec.probes)}
        unknown = [s.session for s in spec.sends if s.session not in probes]
        if unknown:
            raise UsageError(f"run {spec.run}", f"sends session {unknown[0]}, which it does not describe")
        prepared = tuple(prepared_of(local, send, probes[send.session]) for send in spec.sends)
        own: dict[str, OwnPoint] = {}
        for send in spec.sends:
            if send.own >= 0 and send.vantage != Vantage.VSWITCH.value:
                before = own.get(send.sender, OwnPoint(send.own, frozenset()))
                own[send.sender] = OwnPoint(send.own, before.sessions | {send.session})
        places = dict(place_of_untrusted(place, local.host.name) for place in spec.places)
        self._machines = machines = tuple(_machines_here(local, spec.machines))
        topology = Topology((local.host,), (), (), {})
        limits = limits_of(spec.governor)
        return PartOrder(prepared, tuple(probes.values()), places, own, machines, limits=limits), topology

    async def _carry_out(self) -> None:
        order, topology = await trio.to_thread.run_sync(self._order)
        allowlists = {}
        if order.prepared:
            allowlists = await trio.to_thread.run_sync(permit_run, order.prepared, topology, realtime_ns())
        self._check_packet_outs(order.prepared, allowlists)
        self.prepared = order.prepared
        mine = {one.probe.session for one in order.prepared}
        others = [probe for probe in order.probes if probe.session not in mine]
        await trio.to_thread.run_sync(check_room, others, self._local.host)
        passing = [probe for probe in others if is_of_our_ports(probe)]
        with open_journal(order.prepared, topology, passing) as journal:
            async with open_part(order, topology, allowlists, self.emit, self.stop) as part:
                self._part = part
                self.state = "looking"
                self._flush_part(part)
                self.is_looking.set()
                with trio.move_on_after(min(self.spec.until_s, MAX_UNTIL_S)):
                    await self._work(part)
                self._part = None
                counters = await part.finish()
        counters |= {"conntrack_deleted": journal.deleted, "conntrack_kept": journal.kept}
        if self.stop.asked() and not self._is_ended_by_collector:
            counters[HOST_STOPPED] = 1
        self._emit_end(counters, self.stop.why)

    def _check_packet_outs(self, prepared: Sequence[Prepared], allowlists: Mapping[str, Allowlist]) -> None:
        """Packet-out is capped a bridge, however many runs share it. Raises RefusedError."""
        wanted = sum(one.plan.mean_pps for one in prepared if not one.is_sent_by_agent)
        running = sum(
            one.plan.mean_pps
            for other in self._others()
            if other is not self and not other.ended.is_set()
            for one in other.prepared
            if not one.is_sent_by_agent
        )
        for allowlist in allowlists.values():
            cap = allowlist.cap_pps(Vantage.VSWITCH)
            if wanted and wanted + running > cap:
                raise RefusedError(
                    f"packet-out on {self._local.host.name}",
                    f"{wanted:g} packets/s, beside {running:g} of other runs",
                    allowed=f"{cap:g} packets/s together",
                    advice="wait until they are over, or raise the cap in the host's allowlist",
                )

    async def _work(self, part: Part) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush_now_and_then, part)
            await self._go.wait()
            self.state = "sending"
            await part.send(self.emit)
            self.state = "sent"
            await self._finish.wait()
            nursery.cancel_scope.cancel()

    async def _flush_now_and_then(self, part: Part) -> None:
        while True:
            await trio.sleep(FLUSH_S)
            self._flush_part(part)
            if self.stop.asked():  # the host's own reasons count as much as the collector's
                self.finish()

    def _flush_part(self, part: Part) -> None:
        part.flush()
        self._flush()

    def _emit_end(self, counters: dict[str, int], why: str) -> None:
        self.emit(PartDone(counters, why))
        self._flush()
        self.state = "ended"

    def emit(self, report: Report) -> None:
        """A report for the collector."""
        for piece in _pieces(self._shown(report)):
            self._pending.append(piece)
            self._pending_bytes += size_of(piece)
            if self._pending_bytes > BLOCK_BYTES:
                self._flush()

    def _shown(self, report: Report) -> Report:
        """A report as this host's clock shows it (a test-only distortion); machines' clocks are their own."""
        shown, clock = shown_report(report, self._local.clock), self._local.clock
        if clock.is_true or not self._machines:
            return shown
        own = {machine.domain for machine in self._machines}
        if isinstance(report, Exchanges) and report.peer in own:
            return replace(report, t1_ns=clock.shown(report.t1_ns), t4_ns=clock.shown(report.t4_ns))
        if isinstance(report, SentReport) and isinstance(shown, SentReport):
            senders = {one.probe.session for one in self.prepared if one.sender.has_own_clock}
            return replace(shown, stamps_ns=report.stamps_ns) if report.session in senders else shown
        if isinstance(report, Hops) and isinstance(shown, Hops):
            places = [send.own for send in self.spec.sends if f"{send.sender}.guest" in own]
            is_own = np.isin(report.hops.point, np.array(places, np.int64))
            shown.hops.rows["t_ns"][is_own] = report.hops.rows["t_ns"][is_own]
        return shown

    def _flush(self) -> None:
        if not self._pending:
            return
        now_ns = realtime_ns()
        self._keep(encode_reports(self._pending), (self._since_ns, now_ns))
        self._pending, self._pending_bytes, self._since_ns = [], 0, now_ns


def _pieces(report: Report) -> Iterable[Report]:
    """A report cut so that each piece fits well into a block."""
    if isinstance(report, Hops) and len(report.hops) > ROWS_A_REPORT:
        for at in range(0, len(report.hops), ROWS_A_REPORT):
            yield Hops(type(report.hops)(np.ascontiguousarray(report.hops.rows[at : at + ROWS_A_REPORT])))
    elif isinstance(report, SentReport) and len(report.times_ns) > ROWS_A_REPORT:
        for at in range(0, len(report.times_ns), ROWS_A_REPORT):
            end = at + ROWS_A_REPORT
            is_last = report.is_last and end >= len(report.times_ns)
            yield replace(
                report,
                first=report.first + at,
                times_ns=report.times_ns[at:end],
                stamps_ns=report.stamps_ns[at:end],
                is_last=is_last,
                doubtful=report.doubtful if is_last else 0,
                held=report.held if is_last else 0,
            )
    else:
        yield report


def is_of_our_ports(probe: ProbeSession) -> bool:
    """Whether a session of others can only be netprobe's own, by its ports: then its entries here may be deleted.

    A collector could describe a tenant's connection as a session that passes; its entry must stay.
    """
    first, last = PORT_BLOCK
    ports = probe.src_ports or (probe.type_p.src_port,)
    return probe.type_p.protocol is not Protocol.ICMP and all(first <= port <= last for port in ports)
