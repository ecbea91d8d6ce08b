"""The collector (`netprobe serve`): agents and operators dial in over TLS, runs are conducted, kept and taken up again.

It believes an agent only what its certificate names, an operator only that it may ask. Blocks are acknowledged when
they are on the disk. Below: service.spread_run for each run, service.link_io for each connection.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from netprobe.errors import HostNotReadyError, NetprobeError, UsageError
from netprobe.host.certificates import Identity
from netprobe.host.clock import realtime_ns
from netprobe.host.tls import Credentials, ServerTls, accept
from netprobe.model.results import Json
from netprobe.model.topology import Topology
from netprobe.plan.grants import Role
from netprobe.plan.mesh import compile_plan
from netprobe.plan.plans import parse_plan
from netprobe.service.agents import AgentConn, Agents
from netprobe.service.door import Door, LineLimit
from netprobe.service.following import Follower, open_follower
from netprobe.service.kept_run import Taken
from netprobe.service.link_io import LinkIo, monotonic_ns
from netprobe.service.listening import listen_at
from netprobe.service.run_files import RunFolder, unfinished_runs
from netprobe.service.spread_run import SpreadRun, load_run
from netprobe.wire.flow_control import SECOND_NS, Limits
from netprobe.wire.link import CollectorLink
from netprobe.wire.link_events import Asked, BlockArrived, Closed, Ending, Event, Greeted, ShedArrived
from netprobe.wire.report import Hello, PartKey, pack_value

JUDGE_S = 1.0
COMMIT_S = 0.05
"""How often blocks are brought to the disk and acknowledged."""

LEARN_S = 0.5
"""How often an agent is asked what its host has: a guest that moves is followed within 2 s."""

MAX_CONNECTIONS = 1_000
"""Of agents and operators that have proved who they are."""

MAX_OPERATORS = 64
"""Connections of one operator: each run that is waited for has one."""

MIN_STAY_NS = 2 * SECOND_NS
"""A connection that is younger is not replaced by another one under the same name: of a stolen and an honest one, each
has its time, and the log says so."""

MAX_RUNS = 64
MAX_RESULT_BYTES = 512 << 10
"""What stands in an answer's header; the document of a large mesh goes as its body."""

MISBEHAVED = frozenset({Ending.GARBAGE, Ending.FLOOD, Ending.UNREAD})
"""How links end that an honest peer never ends so."""

ROLES = frozenset({Role.VSWITCH, Role.OPERATOR})
Say = Callable[[str], None]


class RunAsked(msgspec.Struct, frozen=True):
    """An operator's plan: the text of a plan file, and its name for errors."""

    plan: str
    where: str = "plan"


class RunWanted(msgspec.Struct, frozen=True):
    """Which run an operator waits for."""

    run: str


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """How a collector is set up.

    Attributes:
        listen: addresses and port.
        folder: where runs are kept.
        topology: what was written down: hosts, OVN's databases; agents and databases say the rest.
        state_file: where it was read from, to be read again when it changes; None for nowhere.
        keep: takes a run's outcome into the store; says whether it is there.
        told: is told of a run that is over, in the collector's own thread.
    """

    listen: tuple[str, int]
    credentials: Credentials
    folder: Path
    topology: Topology
    state_file: Path | None
    keep: Callable[[SpreadRun], bool] = lambda _run: False
    told: Callable[[SpreadRun], None] = lambda _run: None
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class RunEntry:
    """A run that this collector conducts or has conducted."""

    run: SpreadRun
    over: trio.Event
    document: Json | None = None
    failure: NetprobeError | None = None
    is_following: bool = False


class Collector:
    """The program; `serve` is its life."""

    def __init__(self, config: CollectorConfig, say: Say = lambda _: None) -> None:
        self._config = config
        self._say = say
        self._tls = ServerTls(config.credentials)
        self._boot = secrets.token_hex(16)
        self._agents = Agents()
        self._runs: dict[str, RunEntry] = {}
        self._door = Door()
        self._lines = LineLimit()
        self._peers: set[_Peer] = set()
        self._nursery: trio.Nursery | None = None
        self._follower: Follower | None = None
        self._away: dict[str, str] = {}  # agents that were connected, and the hosts that they were on
        self.counters: dict[str, int] = {}

    async def serve(self, ready: Callable[[int], None] = lambda _port: None) -> None:
        """Listen, conduct runs, take up those of an earlier life; until cancelled.

        Args:
            ready: is told the port when agents may dial.

        Raises:
            UsageError: the address is none.
            HostNotReadyError: it cannot be listened at.
        """
        listeners = await listen_at("--listen", *self._config.listen)
        base, state_file = self._config.topology, self._config.state_file
        async with (
            open_follower(base, state_file=state_file, local_hosts=()) as self._follower,
            trio.open_nursery() as nursery,
        ):
            self._nursery = nursery
            nursery.start_soon(self._commit_now_and_then)
            nursery.start_soon(self._follow)
            nursery.start_soon(self._judge_connections)
            await self._take_up_runs()
            ready(listeners[0].socket.getsockname()[1])
            await trio.serve_listeners(self._serve_connection, listeners, handler_nursery=nursery)

    def _count(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1

    def _say_of(self, name: str, text: str) -> None:
        """A line about somebody, "" for somebody unknown; no more of them than a log can bear."""
        line = self._lines.admit(name or "strangers", text, monotonic_ns())
        if line is not None:
            self._say(line)

    # -----------------------------------------------------------------------------------------------------------------
    # Connections
    # -----------------------------------------------------------------------------------------------------------------

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        """Never raises: one connection that fails must not end the collector."""
        try:
            await self._let_in(stream)
        except Exception as error:  # noqa: BLE001  said above; groups of exceptions are among them
            self._count("connections_failed")
            self._say_of("", f"a connection failed: {error!r}")
        finally:
            await trio.aclose_forcefully(stream)

    async def _let_in(self, stream: trio.SocketStream) -> None:
        try:
            address = str(stream.socket.getpeername()[0])
        except OSError:
            return  # gone already
        if len(self._peers) >= MAX_CONNECTIONS or not self._door.knock(address, monotonic_ns()):
            self._count("connections_refused")
            return
        identity: Identity | None = None
        with self._door.handshake(address):
            try:
                secure, identity = await accept(stream, self._tls)
            except NetprobeError as error:
                self._count("handshakes_failed")
                self._say_of("", f"a connection from {address} was refused: {error}")
                return
        if identity is None:
            self._count("handshakes_cut")
            return
        await self._talk(secure, identity, address)

    async def _talk(self, stream: trio.abc.Stream, identity: Identity, address: str) -> None:
        link = CollectorLink(self._config.limits, monotonic_ns())
        peer = _Peer(self, identity, link, address)
        io = LinkIo(stream, link, peer.handle)
        peer.io = io
        self._peers.add(peer)
        try:
            await io.run()
        finally:
            self._peers.discard(peer)
            peer.leave()
            if not peer.is_refused:
                self._say_of(identity.name, f"{identity.name} is gone: {io.ended}")

    def ended(self, peer: "_Peer", event: Closed) -> None:
        """A link has ended; who broke the protocol stays outside for a while."""
        self._count(f"links_{event.ending.value}")
        if event.ending in MISBEHAVED:
            self._door.strike(peer.identity.name, monotonic_ns())

    def greet(self, peer: "_Peer", event: Greeted) -> None:
        """Let somebody in, or refuse: the name and role in the greeting must be those of the certificate."""
        hello, identity, link = event.hello, peer.identity, peer.link
        why = self._why_not(peer, hello)
        if why:
            self._count("hellos_refused")
            self._say_of(identity.name, f"{identity.name} from {peer.address} was not let in: {why}")
            peer.is_refused = True
            link.refuse(why)
            return
        before = self._agents.connected.get(hello.name) if identity.role.is_agent else None
        if before is not None:
            self._count("connections_replaced")
            assert isinstance(before.io.link, CollectorLink)
            before.io.link.refuse(f"another connection came under the name {hello.name}, from {peer.address}")
            before.io.wake()
        resume = {PartKey(p.run, p.boot): self._resume_at(hello.name, p.run, p.boot, p.next_block) for p in hello.parts}
        link.let_in(self._boot, realtime_ns(), resume)
        self._say_of(hello.name, f"{hello.name} ({hello.role}) dialled in, with {len(hello.parts)} parts")
        if identity.role.is_agent:
            assert peer.io is not None
            peer.agent = AgentConn(identity, hello, peer.io, realtime_ns(), peer.address)
            self._agents.connected[hello.name] = peer.agent
            self._away.pop(hello.name, None)
            assert self._nursery is not None
            self._nursery.start_soon(self._learn, peer.agent)

    def _why_not(self, peer: "_Peer", hello: Hello) -> str:
        """Why somebody is not let in, "" if he is."""
        identity, now_ns = peer.identity, monotonic_ns()
        if (hello.name, hello.role) != (identity.name, identity.role.value):
            said = f"{hello.name}'s ({hello.role})"
            return f"the certificate is {identity.name}'s ({identity.role.value}), not {said}"
        if identity.role not in ROLES:
            return f"role {hello.role} has nothing to do here: its host's agent asks for it"
        outside_ns = self._door.stays_outside_ns(hello.name, now_ns)
        if outside_ns:
            return f"{hello.name} broke the protocol: it is let in again in {outside_ns / SECOND_NS:.1f} s"
        mine = [p for p in self._peers if p is not peer and p.identity.name == hello.name and p.link.is_open]
        if identity.role is Role.OPERATOR:
            return f"{len(mine)} connections of {hello.name} are open" if len(mine) >= MAX_OPERATORS else ""
        young = any(now_ns - p.began_ns < MIN_STAY_NS for p in mine)
        return f"another connection under the name {hello.name} has just come" if young else ""

    def _resume_at(self, agent: str, run: str, boot: str, next_block: int) -> int:
        entry = self._runs.get(run)
        if entry is None or entry.run.log is None:
            return next_block  # nobody wants these any more: the agent may forget them
        part = entry.run.parts.get(agent)
        if part is None or part.boot != boot:
            return next_block
        return entry.run.log.durable(part.key)

    async def _learn(self, agent: AgentConn) -> None:
        """Ask an agent what its host has, again and again, as long as it is connected."""
        follower = self._follower
        assert follower is not None
        while self._agents.connected.get(agent.name) is agent:
            try:
                was_silent = not agent.host
                others = [a for a in self._agents.connected.values() if a is not agent]
                if await agent.learn(others, follower.topology):
                    follower.take_inventory(agent.report.inventory)
                if was_silent:
                    self._say_of(agent.name, f"{agent.name} is on {agent.host}")
                agent.trouble = ""
            except NetprobeError as error:
                if str(error) != agent.trouble:
                    self._count("inventories_refused")
                    self._say_of(agent.name, f"{agent.name} does not say what it has: {error}")
                agent.trouble = str(error)
            await trio.sleep(LEARN_S)

    def forget(self, agent: AgentConn) -> None:
        """An agent's connection has ended."""
        if self._agents.connected.get(agent.name) is agent:
            del self._agents.connected[agent.name]
            self._away[agent.name] = agent.host
            if self._follower is not None and agent.host:
                self._follower.lose_host(agent.host, f"the agent {agent.name} is not connected")

    async def _follow(self) -> None:
        """Tell every run what has changed; one that takes long keeps no other one waiting."""
        assert self._follower is not None
        assert self._nursery is not None
        version = 0
        while True:
            version, _ = await self._follower.wait_changed(version)
            for entry in list(self._runs.values()):
                if not entry.over.is_set() and not entry.is_following:
                    entry.is_following = True
                    self._nursery.start_soon(self._follow_one, entry)

    async def _follow_one(self, entry: RunEntry) -> None:
        """Tell one run, until it has heard the newest. A run that fails at it goes on as it was."""
        assert self._follower is not None
        version = 0
        try:
            while version < self._follower.version and not entry.over.is_set():
                version = self._follower.version
                await entry.run.follow(self._follower.topology)
        except Exception as error:  # noqa: BLE001  neither ends it, nor the collector
            self._count("follows_failed")
            self._say(f"run {entry.run.run} cannot follow what has changed: {error!r}")
        finally:
            entry.is_following = False

    # -----------------------------------------------------------------------------------------------------------------
    # Blocks
    # -----------------------------------------------------------------------------------------------------------------

    async def take_block(self, peer: "_Peer", event: BlockArrived) -> None:
        """A block: kept and acknowledged at the next commit; one that nobody wants is acknowledged at once."""
        entry, name, part = self._runs.get(event.part.run), peer.identity.name, event.part
        taken = Taken.UNWANTED
        if entry is not None and not entry.over.is_set():
            taken = await entry.run.take_block(name, part.boot, event.number, event.octets)
        self._answer_block(peer, taken, part, event.number + 1)

    async def take_shed(self, peer: "_Peer", event: ShedArrived) -> None:
        """Blocks that an agent lost."""
        entry, name, part = self._runs.get(event.part.run), peer.identity.name, event.part
        taken = Taken.UNWANTED
        if entry is not None and not entry.over.is_set():
            span = (event.from_ns, event.to_ns)
            taken = await entry.run.take_shed(name, part.boot, event.first, event.next, span)
        self._answer_block(peer, taken, part, event.next)

    def _answer_block(self, peer: "_Peer", taken: Taken, part: PartKey, following: int) -> None:
        if taken is Taken.UNWANTED:
            self._count("blocks_unwanted")
            peer.link.acknowledge(part, following)
        elif taken is Taken.AGAIN:
            entry = self._runs[part.run].run
            peer.link.acknowledge(part, entry.durable(peer.identity.name))
        elif taken is Taken.IMPOSSIBLE:
            self._count("blocks_refused")
            if not self._runs[part.run].run.is_broken:  # else it is our own disk that cannot take it
                self._door.strike(peer.identity.name, monotonic_ns())
            peer.link.refuse(f"block of {part.run} is not the next one, or more than this agent may write")

    async def _commit_now_and_then(self) -> None:
        while True:
            await trio.sleep(COMMIT_S)
            for entry in list(self._runs.values()):
                try:
                    await self._commit(entry.run)
                except NetprobeError as error:  # nothing of it is acknowledged; agents keep it
                    self._count("commits_failed")
                    self._say(f"run {entry.run.run} cannot be kept: {error}")
                    entry.run.give_up_log()

    async def _commit(self, run: SpreadRun) -> None:
        log = run.log
        commit = log.begin_commit() if log is not None else None
        if log is None or commit is None:
            return
        await trio.to_thread.run_sync(commit.wait)
        for source, number in log.finish_commit(commit).items():
            agent = self._agents.connected.get(source.agent)
            if agent is not None:
                assert isinstance(agent.io.link, CollectorLink)
                agent.io.link.acknowledge(PartKey(run.run, source.boot), number)
                agent.io.wake()

    async def _judge_connections(self) -> None:
        """A certificate that was revoked, or is over, ends the connection that it began."""
        while True:
            await trio.sleep(JUDGE_S)
            try:
                self._tls.refresh()
            except NetprobeError as error:
                self._say(f"certificates: {error}")
                continue
            for peer in list(self._peers):
                identity = peer.identity
                if self._tls.is_revoked(identity) or identity.is_expired(realtime_ns()):
                    self._count("certificates_over")
                    peer.link.refuse("the certificate was revoked, or is over")
                    if peer.io is not None:
                        peer.io.wake()

    # -----------------------------------------------------------------------------------------------------------------
    # Runs
    # -----------------------------------------------------------------------------------------------------------------

    async def _take_up_runs(self) -> None:
        """Before anybody is let in: what agents deliver comes after what they had delivered."""
        assert self._nursery is not None
        assert self._follower is not None
        for folder in unfinished_runs(self._config.folder):
            try:
                run = load_run(folder, self._follower.topology, self._agents)
                if run is not None:
                    await trio.to_thread.run_sync(run.replay)
            except NetprobeError as error:
                self._say(f"run {folder.run} is given up: {error}")
                folder.finish({"run": folder.run, "error": str(error)})
                continue
            if run is not None:
                entry = self._runs[folder.run] = RunEntry(run, trio.Event())
                self._say(f"run {folder.run} is taken up again")
                self._nursery.start_soon(self._conduct, entry, run.resume)

    async def _conduct(self, entry: RunEntry, how: Callable[[], object]) -> None:
        run = entry.run
        try:
            entry.document = await how()  # type: ignore[misc]
            assert entry.document is not None
            entry.document["stored"] = await trio.to_thread.run_sync(self._config.keep, run)
            self._config.told(run)
            run.folder.finish(entry.document)
        except NetprobeError as error:
            entry.failure = error
        except Exception as error:  # noqa: BLE001  one run that fails must not end the collector
            entry.failure = NetprobeError(f"run {run.run}", f"failed: {error!r}")
        finally:
            entry.over.set()
            if run.log is not None:
                run.log.close()
                run.log = None
        for name, record in run.collection.parts.items():
            if record.refused:
                what = ", ".join(f"{count} {kind}" for kind, count in sorted(record.refused.items()))
                self._count("reports_refused")
                self._say_of(name, f"run {run.run}: {name} reported what it may not: {what}")
        self._say(f"run {run.run} is over" + (f": {entry.failure}" if entry.failure else ""))

    def begin_run(self, asked: RunAsked) -> Json:
        """Begin a run of a plan; returns its id.

        Raises:
            UsageError: the plan is none.
            HostNotReadyError: no topology, or too many runs.
        """
        under_way = sum(1 for e in self._runs.values() if not e.over.is_set())
        if under_way >= MAX_RUNS:
            raise HostNotReadyError("collector", f"{under_way} runs are under way", allowed=f"up to {MAX_RUNS}")
        assert self._follower is not None
        topology = self._follower.topology
        plan = parse_plan(asked.plan, asked.where)
        if plan.influx is not None:  # else an operator could let the collector talk to whomever he likes
            raise UsageError(
                f"{asked.where}.influx", "a collector writes where its own configuration says", advice="leave it out"
            )
        compiled = compile_plan(plan, topology)
        run_id = secrets.token_hex(8)
        run = SpreadRun(RunFolder(self._config.folder / run_id), compiled.plan, topology, agents=self._agents)
        run.latest = lambda: self._follower.topology if self._follower is not None else topology
        run.others = [entry.run for entry in self._runs.values() if not entry.over.is_set()]
        run.extras = {"mesh": [report.to_json() for report in compiled.meshes]}
        entry = self._runs[run_id] = RunEntry(run, trio.Event())
        assert self._nursery is not None
        self._nursery.start_soon(self._conduct, entry, run.conduct)
        return {"run": run_id}

    async def wait_run(self, wanted: RunWanted) -> Json:
        """The document of a run, when it is over.

        Raises:
            UsageError: no such run.
            NetprobeError: why it has no document.
        """
        entry = self._runs.get(wanted.run)
        if entry is None:
            document = RunFolder(self._config.folder / wanted.run).result() if wanted.run.isalnum() else None
            if document is None:
                raise UsageError(f"run {wanted.run[:80]!r}", "is not known to this collector")
            return document
        await entry.over.wait()
        if entry.failure is not None:
            raise entry.failure
        assert entry.document is not None
        return entry.document

    def status(self) -> Json:
        """Who is connected, what runs."""
        return {
            "agents": [
                {
                    "name": a.name,
                    "host": a.host,
                    "since_ns": a.since_ns,
                    "guests": list(a.report.guests),
                    "trouble": a.trouble,
                }
                for a in self._agents.connected.values()
            ],
            "away": [{"name": name, "host": host} for name, host in self._away.items()],
            "runs": [{"run": r, "over": e.over.is_set()} for r, e in self._runs.items()],
            "counters": dict(self.counters),
        }


class _Peer:
    """Somebody on a connection: an agent or an operator."""

    def __init__(self, collector: Collector, identity: Identity, link: CollectorLink, address: str) -> None:
        self.identity = identity
        self.link = link
        self.address = address
        self.began_ns = monotonic_ns()
        self.is_refused = False
        self.io: LinkIo | None = None
        self.agent: AgentConn | None = None
        self._collector = collector

    async def handle(self, event: Event) -> None:
        """One event of the link."""
        match event:
            case Greeted():
                self._collector.greet(self, event)
            case BlockArrived():
                await self._collector.take_block(self, event)
            case ShedArrived():
                await self._collector.take_shed(self, event)
            case Asked():
                assert self._collector._nursery is not None  # noqa: SLF001  its own helper
                self._collector._nursery.start_soon(self._answer, event)  # noqa: SLF001
            case Closed():
                self._collector.ended(self, event)
            case _:
                pass

    async def _answer(self, asked: Asked) -> None:
        """Only operators ask."""
        try:
            result = pack_value(await self._result(asked))
            is_long = len(result) > MAX_RESULT_BYTES
            self.link.answer(asked.id, None if is_long else result, bytes(result) if is_long else b"")
        except NetprobeError as error:
            self.link.fail(asked.id, error)
        except Exception as error:  # noqa: BLE001  one question that fails must not end the collector
            self.link.fail(asked.id, NetprobeError("collector", f"failed at {asked.op}: {error!r}"))
        if self.io is not None:
            self.io.wake()

    async def _result(self, asked: Asked) -> Json:
        match asked.op:
            case "run":
                return self._collector.begin_run(asked.arguments_untrusted(RunAsked))
            case "wait":
                return await self._collector.wait_run(asked.arguments_untrusted(RunWanted))
            case "status":
                return self._collector.status()
        raise UsageError(f"question {asked.op!r}", "is none", allowed="run, wait, status")

    def leave(self) -> None:
        """The connection has ended."""
        if self.agent is not None:
            self._collector.forget(self.agent)
