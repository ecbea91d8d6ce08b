"""The agents that are connected to a collector: who they are, what they may, what they say their host has.

What an agent says is outside input: names that are sane, a bounded number of ports, its own host, its own chassis, its
own address for clocks. One that does not answer is not waited for.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, WireError
from netprobe.host.certificates import Identity
from netprobe.model.inventory import HostInventory
from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Topology
from netprobe.service.link_io import LinkIo
from netprobe.wire.link_events import Answered
from netprobe.wire.report import Hello, PartKey, printable, unpack_value_untrusted

ANSWER_S = 10.0
"""How long an agent may take for its answer; some questions are more work: OPS_S."""

OPS_S = {"part.open": 60.0, "ports": 20.0, "part.look": 5.0, "part.go": 2.0, "part.finish": 2.0}
EXPLAIN_S = 30.0
"""How long one switch may keep a run waiting that wants to know why probes were lost."""

MAX_PORTS = 8_192
MAX_NAME = 255
MAX_ENCAPS = 64
Port = Annotated[int, Meta(ge=0, lt=1 << 16)]


class HostReport(msgspec.Struct, frozen=True):
    """What an agent says of its host.

    Attributes:
        guests: names of guests and bypass NICs whose agents it can reach.
        exchange: address and port where other hosts' agents compare clocks, "" and 0 where they cannot.
    """

    inventory: HostInventory
    guests: tuple[str, ...] = ()
    exchange: tuple[str, Port] = ("", 0)

    def texts(self) -> Iterable[str]:
        """Every text in it."""
        found = self.inventory
        yield from (found.host, found.chassis, self.exchange[0], *found.encap_ips, *self.guests)
        yield from (*found.offloaded, *found.offloaded.values())
        for row in found.interfaces:
            yield from (row.name, row.bridge, row.kind, row.iface_id, row.mac, row.driver, row.remote_ip, row.error)

    def check(self) -> None:
        """Whether it is one that a host may have.

        Raises:
            WireError: it is not: too much of something, or texts that nobody could read.
        """
        found = self.inventory
        most = max(len(found.interfaces), len(found.offloaded), len(self.guests))
        if most > MAX_PORTS or len(found.encap_ips) > MAX_ENCAPS:
            raise WireError("inventory", f"it has {most} ports and {len(found.encap_ips)} tunnel ends")
        odd = next((t for t in self.texts() if len(t) > MAX_NAME or not t.isprintable()), None)
        if odd is not None:
            raise WireError("inventory", f"{odd[:40]!r} is no name")
        if any(not -1 <= row.ofport < 1 << 32 for row in found.interfaces):
            raise WireError("inventory", "a port has an impossible number")


@dataclass(slots=True)
class AgentConn:
    """One connected agent.

    Attributes:
        since_ns: when it connected, CLOCK_REALTIME.
        address: where it dialled from.
        trouble: why it does not say what its host has, "" while it does.
    """

    identity: Identity
    hello: Hello
    io: LinkIo
    since_ns: int
    address: str = ""
    trouble: str = ""
    report: HostReport = field(default_factory=lambda: HostReport(HostInventory("")))

    @property
    def name(self) -> str:
        """As in its certificate."""
        return self.identity.name

    async def ask(self, op: str, args: object = None) -> Answered:
        """Ask it. Raises the agent's own error, or HostNotReadyError when it is gone or does not answer in time."""
        try:
            return await self.io.ask(op, args, within_s=OPS_S.get(op, ANSWER_S))
        except HostNotReadyError as error:
            if error.where != "link":
                raise
            raise HostNotReadyError(f"agent {self.name}", error.problem) from error

    @property
    def host(self) -> str:
        """The host that it is on, "" until it has said so."""
        return self.report.inventory.host

    async def learn(self, others: Iterable["AgentConn"] = (), topology: Topology | None = None) -> bool:
        """Ask what its host has. Returns whether that is something new.

        Args:
            others: agents that are connected: what one of them has said of its host, this one cannot say of another.
            topology: where its host's management address is written down, if anywhere.

        Raises:
            WireError: it says something else.
            RefusedError: it speaks of a host, a chassis or an address that is not its own.
            HostNotReadyError: it is gone, or its OVSDB does not answer.
        """
        answer = await self.ask("inventory")
        report = unpack_value_untrusted(answer.result, HostReport)
        report.check()
        self._check_own(report, others, topology)
        is_new = report != self.report
        self.report = report
        return is_new

    def _check_own(self, report: HostReport, others: Iterable["AgentConn"], topology: Topology | None) -> None:
        host, chassis = report.inventory.host, report.inventory.chassis
        if not host or not self.identity.grants.may_report(f"{host}/"):
            raise RefusedError(
                f"agent {self.name}", f"says that it is on {host[:80]!r}", allowed="hosts of its certificate"
            )
        for other in others:
            if chassis and other.host != host and other.report.inventory.chassis == chassis:
                raise RefusedError(
                    f"agent {self.name}", f"says that its chassis is {chassis!r}, which is {other.host}'s"
                )
        written = [h.management_ip for h in topology.hosts if h.name == host] if topology is not None else []
        own, clock = {_normal(ip) for ip in (self.address, *written)} - {""}, report.exchange[0]
        if clock and _normal(clock) not in own:
            raise RefusedError(
                f"agent {self.name}",
                f"says that others shall compare clocks with {clock}",
                allowed="the address that it dials from, or its host's management_ip",
                advice="write management_ip down in the collector's configuration",
            )


def _normal(address: str) -> str:
    """An address in the one spelling that compares; "" for what is none."""
    try:
        return str(ip_address(address))
    except ValueError:
        return ""


async def ask_all(op: str, questions: Mapping[str, tuple[AgentConn, object]]) -> dict[str, NetprobeError | None]:
    """Ask several agents the same at once, so that none is kept waiting by one that does not answer.

    Args:
        op: the question.
        questions: whom, and with which arguments, by name.

    Returns:
        What went wrong with each, None where it answered well.
    """
    found: dict[str, NetprobeError | None] = {}

    async def ask(name: str, agent: AgentConn, args: object) -> None:
        try:
            await agent.ask(op, args)
            found[name] = None
        except NetprobeError as error:
            found[name] = error

    async with trio.open_nursery() as nursery:
        for name, (agent, args) in questions.items():
            nursery.start_soon(ask, name, agent, args)
    return found


class RemoteSwitch:
    """A switch whose host's agent is asked; from a worker thread of the event loop.

    Args:
        agent: of its host.
        spent_s: how long each agent has taken until now, by name; kept up to date.
    """

    def __init__(self, agent: AgentConn, spent_s: dict[str, float]) -> None:
        self._agent = agent
        self._spent_s = spent_s

    def call(self, command: str, *args: str) -> str:
        """Ask `ovs-appctl` questions that change nothing.

        Raises:
            RefusedError: the agent does not ask its switch that.
            HostNotReadyError: agent or switch does not answer.
        """
        name = self._agent.name
        if self._spent_s.get(name, 0.0) > EXPLAIN_S:
            raise HostNotReadyError(f"agent {name}", f"has taken more than {EXPLAIN_S:g} s to answer")
        began = time.monotonic()
        try:
            answer = trio.from_thread.run(self._agent.ask, "unixctl", [command, *args])
        finally:
            self._spent_s[name] = self._spent_s.get(name, 0.0) + time.monotonic() - began
        text = unpack_value_untrusted(answer.result, str)
        return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def report_name(point: Point, topology: Topology) -> str:
    """The name of a point in certificates: a guest's own point is reported by the host that the guest is on."""
    if point.kind is not PointKind.GUEST:
        return point.place
    here = next((a.host for a in topology.attachments if a.chain[0].id == point.id), point.host)
    return f"{here}/{point.id}"


class Agents:
    """All agents that are connected now, by name; a newer connection takes the place of an older one."""

    def __init__(self) -> None:
        self.connected: dict[str, AgentConn] = {}
        self.last_seen_ns: dict[str, int] = {}

    def reporter(self, point: Point, topology: Topology) -> AgentConn | None:
        """The agent that may report a point: the one on its host before others."""
        name = report_name(point, topology)
        able = [a for a in self.connected.values() if a.identity.grants.may_report(name)]
        host = name.partition("/")[0]
        return min(able, key=lambda a: (a.host != host, a.name), default=None)

    def on_host(self, host: str) -> AgentConn:
        """The agent of a host.

        Raises:
            HostNotReadyError: none is connected.
        """
        for agent in self.connected.values():
            if agent.host == host:
                return agent
        raise HostNotReadyError(
            f"host {host}", "has no agent that is connected", advice="start `netprobe agent vswitch`"
        )

    def holds(self, name: str, key: PartKey) -> bool:
        """Whether a connected agent still goes on with a part, or has blocks of it."""
        agent = self.connected.get(name)
        if agent is None:
            return False
        return agent.hello.boot == key.boot or any((p.run, p.boot) == key for p in agent.hello.parts)
