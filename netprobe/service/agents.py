"""The agents that are connected to a collector: who they are, what they may, what they say their host has."""

from dataclasses import dataclass, field

import msgspec
import trio

from netprobe.errors import HostNotReadyError, RefusedError
from netprobe.host.certificates import Identity
from netprobe.model.inventory import HostInventory
from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Topology
from netprobe.service.link_io import LinkIo
from netprobe.wire.link_events import Answered
from netprobe.wire.report import Hello, PartKey, unpack_value_untrusted


class HostReport(msgspec.Struct, frozen=True):
    """What an agent says of its host.

    Attributes:
        guests: names of guests and bypass NICs whose agents it can reach.
        exchange: address and port where other hosts' agents compare clocks, "" and 0 where they cannot.
    """

    inventory: HostInventory
    guests: tuple[str, ...] = ()
    exchange: tuple[str, int] = ("", 0)


@dataclass(slots=True)
class AgentConn:
    """One connected agent.

    Attributes:
        since_ns: when it connected, CLOCK_REALTIME.
    """

    identity: Identity
    hello: Hello
    io: LinkIo
    since_ns: int
    report: HostReport = field(default_factory=lambda: HostReport(HostInventory("")))

    @property
    def name(self) -> str:
        """As in its certificate."""
        return self.identity.name

    async def ask(self, op: str, args: object = None) -> Answered:
        """Ask it. Raises the agent's own error, or HostNotReadyError when it is gone."""
        return await self.io.ask(op, args)

    @property
    def host(self) -> str:
        """The host that it is on, "" until it has said so."""
        return self.report.inventory.host

    async def learn(self) -> bool:
        """Ask what its host has. Returns whether that is something new.

        Raises:
            WireError: it says something else.
            RefusedError: it speaks of a host that its certificate does not name.
            HostNotReadyError: it is gone, or its OVSDB does not answer.
        """
        answer = await self.ask("inventory")
        report = unpack_value_untrusted(answer.result, HostReport)
        host = report.inventory.host
        if not self.identity.grants.may_report(f"{host}/"):
            raise RefusedError(
                f"agent {self.name}", f"says that it is on {host[:80]!r}", allowed="hosts of its certificate"
            )
        is_new = report != self.report
        self.report = report
        return is_new


class RemoteSwitch:
    """A switch whose host's agent is asked; from a worker thread of the event loop."""

    def __init__(self, agent: AgentConn) -> None:
        self._agent = agent

    def call(self, command: str, *args: str) -> str:
        """Ask `ovs-appctl` questions that change nothing.

        Raises:
            RefusedError: the agent does not ask its switch that.
            HostNotReadyError: agent or switch does not answer.
        """
        answer = trio.from_thread.run(self._agent.ask, "unixctl", [command, *args])
        return unpack_value_untrusted(answer.result, str)


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
