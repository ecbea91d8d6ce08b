"""The agent of a host (`netprobe agent vswitch`): dials the collector, carries out parts of runs, delivers blocks.

The connection may come and go: parts go on, their blocks are spooled on disk and sent in order until the collector says
that they are on its own disk. Below: service.agent_part, wire.link, host.spool.
"""

import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from netprobe import __version__
from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, UsageError
from netprobe.host.spool import Spool, pump
from netprobe.host.tls import ClientTls, Credentials, dial
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.inventory import HostInventory
from netprobe.model.observations import Exchanges, Times
from netprobe.service.agent_part import AgentPart, KeepBlock, LocalHost
from netprobe.service.agents import HostReport
from netprobe.service.exchanging import exchange_with, serve_exchanges
from netprobe.service.inventory import inventory
from netprobe.service.link_io import LinkIo, monotonic_ns
from netprobe.service.permits import free_ports
from netprobe.wire.link import AgentLink
from netprobe.wire.link_events import Acked, Asked, Event, Welcomed
from netprobe.wire.orders import LookAsked, PartSpec, PeerSpec, PortsAsked, RunNamed
from netprobe.wire.report import PROTOCOL_VERSION, Hello, PartKey, PartState, Role

MAX_PARTS = 64
"""Runs at once; more are refused, so that a stolen collector cannot fill this host's memory."""

AGENT_SOCKETS = ("*.sock", "*.serial")
"""Control sockets of guests' agents, by the guest's name; the latter are virtio-serial ports of virtual machines."""

EXCHANGE_S = 0.05
"""Mean time between two exchanges with another host's clock: a step is seen within a second, with room to spare."""

DIAL_S = 5.0
SYNC_S = 1.0
BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
MAX_TEXT = 1 << 20
READ_ONLY = frozenset({"dpctl/dump-conntrack", "dpif/show", "ofproto/trace"})
"""What a collector may ask the switch, to explain a loss; none of it changes anything."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How a host's agent is set up.

    Attributes:
        name: as in its certificate.
        collector: address and port.
        spool: folder for blocks that the collector does not have yet.
        spool_bytes: how large that may get; the oldest blocks go first, and are counted.
        exchange: address and port where other hosts' agents compare clocks, None for nowhere.
    """

    name: str
    role: Role
    collector: tuple[str, int]
    credentials: Credentials
    local: LocalHost
    spool: Path
    spool_bytes: int
    exchange: tuple[str, int] | None = None


class HostAgent:
    """The agent of one host; `run` is its life.

    Args:
        config: how it is set up.
        say: takes a line for people.
    """

    def __init__(self, config: AgentConfig, say: Callable[[str], None] = lambda _: None) -> None:
        self._config = config
        self._say = say
        self._boot = secrets.token_hex(16)
        self._spool = Spool.open(config.spool, config.spool_bytes, self._boot)
        self._parts: dict[str, AgentPart] = {}
        self._io: LinkIo | None = None
        self._nursery: trio.Nursery | None = None
        self._ops: dict[str, Callable[[Asked], Awaitable[object]]] = {
            "part.open": self._open_part,
            "part.look": self._look,
            "part.go": self._go,
            "part.finish": self._finish,
            "inventory": self._inventory,
            "ports": self._ports,
            "unixctl": self._unixctl,
        }

    async def run(self) -> None:
        """Dial the collector and serve it, again and again, until cancelled. Parts go on meanwhile."""
        config = self._config
        with self._spool:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._sync_spool)
                if config.exchange is not None:
                    nursery.start_soon(self._serve_exchanges)
                failures = 0
                while True:
                    failures = 0 if await self._connect_once() else failures + 1
                    await trio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)] * random.uniform(0.5, 1.0))

    async def _sync_spool(self) -> None:
        """A loss of power takes no more than this."""
        while True:
            await trio.sleep(SYNC_S)
            await trio.to_thread.run_sync(self._spool.sync)

    async def _connect_once(self) -> bool:
        """One connection. Returns whether the collector let us in."""
        address, port = self._config.collector
        try:
            with trio.fail_after(DIAL_S):
                plain = await trio.open_tcp_stream(address, port)
            stream, _ = await dial(plain, ClientTls(self._config.credentials))  # files may have been renewed meanwhile
        except (OSError, trio.TooSlowError, NetprobeError) as error:
            self._say(f"collector {address}:{port}: {error or 'does not answer'}")
            return False
        hello = Hello(
            version=PROTOCOL_VERSION,
            name=self._config.name,
            role=self._config.role,
            boot=self._boot,
            software=__version__,
            parts=tuple(
                PartState(run=key.run, boot=key.boot, state=self._state_of(key), next_block=number)
                for key, number in self._spool.parts().items()
            ),
        )
        link = AgentLink(hello, monotonic_ns())
        self._io = LinkIo(stream, link, self._handle, lambda: self._pump(link))
        await self._io.run()
        self._say(f"collector {address}:{port}: {self._io.ended}")
        self._io = None
        return link.welcome is not None

    def _state_of(self, key: PartKey) -> str:
        part = self._parts.get(key.run) if key.boot == self._boot else None
        return part.state if part else "gone"

    def _pump(self, link: AgentLink) -> None:
        pump(self._spool, link, monotonic_ns())

    async def _handle(self, event: Event) -> None:
        assert self._nursery is not None
        match event:
            case Welcomed():
                self._say(f"the collector let {self._config.name} in")
            case Acked():
                self._spool.ack(event.part, event.next)
            case Asked():
                self._nursery.start_soon(self._answer, event, self._io)
            case _:
                pass

    async def _answer(self, asked: Asked, io: LinkIo | None) -> None:
        assert io is not None
        link = io.link
        try:
            link.answer(asked.id, await self._ops.get(asked.op, self._unknown)(asked))
        except NetprobeError as error:
            self._say(f"refused {asked.op}: {error}")
            link.fail(asked.id, error)
        except Exception as error:  # noqa: BLE001  one order that fails must not end the agent
            link.fail(asked.id, NetprobeError(f"agent {self._config.name}", f"failed at {asked.op}: {error!r}"))
        io.wake()

    # --- what a collector may ask ---

    async def _unknown(self, asked: Asked) -> object:
        raise UsageError(f"question {asked.op!r}", "is none that this agent knows", allowed=", ".join(self._ops))

    async def _open_part(self, asked: Asked) -> object:
        assert self._nursery is not None
        spec = asked.arguments_untrusted(PartSpec)
        part = self._parts.get(spec.run)
        if part is None:
            running = sum(1 for p in self._parts.values() if not p.ended.is_set())
            if running >= MAX_PARTS:
                raise RefusedError(f"run {spec.run}", f"{running} runs are under way", allowed=f"up to {MAX_PARTS}")
            part = self._parts[spec.run] = AgentPart(
                spec, self._config.local, self._keeper(spec.run), self._parts.values
            )
            self._nursery.start_soon(self._carry_out, part)
            self._nursery.start_soon(self._exchange_for, part)
        await part.is_looking.wait()
        if part.failure is not None:
            if isinstance(part.failure, NetprobeError):
                raise part.failure
            raise NetprobeError(f"agent {self._config.name}", repr(part.failure))
        return {"state": part.state}

    def _keeper(self, run: str) -> KeepBlock:
        def keep(block: bytes, span_ns: tuple[int, int]) -> None:
            self._spool.append(run, block, span_ns)
            if self._io is not None:
                self._io.wake()

        return keep

    async def _carry_out(self, part: AgentPart) -> None:
        await part.run()
        self._spool.finish(part.spec.run)
        ended = [run for run, p in self._parts.items() if p.ended.is_set()]
        for run in ended[:-MAX_PARTS]:
            del self._parts[run]

    def _part(self, asked: Asked) -> AgentPart:
        run = asked.arguments_untrusted(RunNamed).run
        part = self._parts.get(run)
        if part is None:
            raise HostNotReadyError(f"run {run}", f"is not known to {self._config.name}", advice="was it restarted?")
        return part

    async def _look(self, asked: Asked) -> object:
        part = self._parts.get(asked.arguments_untrusted(LookAsked).run)
        if part is None:
            raise HostNotReadyError("part.look", "of a run that is not known")
        part.look_at(asked.arguments_untrusted(LookAsked).places)
        return {"now_ns": self._config.local.clock.now_ns()}

    async def _go(self, asked: Asked) -> object:
        part = self._part(asked)
        part.go()
        return {"state": part.state}

    async def _finish(self, asked: Asked) -> object:
        part = self._part(asked)
        part.finish(asked.arguments_untrusted(RunNamed).why)
        return {"state": part.state}

    async def _inventory(self, _asked: Asked) -> object:
        local = self._config.local
        if local.host.ovs_rundir:
            found = await trio.to_thread.run_sync(inventory, local.host)
        else:
            found = HostInventory(local.host.name)
        guests = sorted({p.stem for kind in AGENT_SOCKETS for p in local.guests.glob(kind)})
        return HostReport(found, tuple(guests), self._config.exchange or ("", 0))

    async def _ports(self, asked: Asked) -> object:
        """Source ports that neither this host's conntrack nor an earlier run has."""
        want = asked.arguments_untrusted(PortsAsked)
        return await trio.to_thread.run_sync(free_ports, self._config.local.host, want)

    async def _unixctl(self, asked: Asked) -> object:
        words = asked.arguments_untrusted(list[str])
        if not words or words[0] not in READ_ONLY:
            raise RefusedError("unixctl", f"{words[:1]} may not be asked", allowed=", ".join(sorted(READ_ONLY)))
        return await trio.to_thread.run_sync(_call, self._config.local.host.ovs_rundir, words)

    # --- clocks ---

    async def _serve_exchanges(self) -> None:
        assert self._config.exchange is not None
        await serve_exchanges(*self._config.exchange, self._config.local.clock)

    async def _exchange_for(self, part: AgentPart) -> None:
        """Compare clocks with the peers of a part as long as it lasts."""
        async with trio.open_nursery() as nursery:
            for peer in part.spec.peers:
                nursery.start_soon(self._exchange_with, part, peer)
            await part.ended.wait()
            nursery.cancel_scope.cancel()

    async def _exchange_with(self, part: AgentPart, peer: PeerSpec) -> None:
        def emit(t1_ns: Times, t2_ns: Times, t3_ns: Times, t4_ns: Times) -> None:
            part.emit(Exchanges(peer.host, t1_ns, t2_ns, t3_ns, t4_ns))

        await exchange_with(peer.address, peer.port, self._config.local.clock, EXCHANGE_S, emit)


def _call(rundir: str, words: list[str]) -> str:
    with UnixctlClient(rundir) as unixctl:
        return unixctl.call(words[0], *words[1:])[:MAX_TEXT]
