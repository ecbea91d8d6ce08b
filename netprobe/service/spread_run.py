"""One run that is spread over hosts: the collector orders parts from agents, keeps what they report, and settles.

The same steps as service.run, with agents between. A run outlives connections and the collector itself: what agents
report is in the block log before it is acknowledged, and a collector that was killed goes on from there. An agent that
is lost makes its points unobserved from its last word on; that is never called loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from netprobe.collect.domains import ClockMap
from netprobe.collect.epochs import Epoch
from netprobe.errors import HostNotReadyError, WireError
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.reason import Reason, unknown_reason
from netprobe.model.observations import FOR_EVER_NS, HOST_STOPPED, PartDone
from netprobe.model.points import Path
from netprobe.model.results import Json, SessionResult
from netprobe.model.topology import Host, Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.service.agents import AgentConn, Agents, RemoteSwitch, ask_all
from netprobe.service.journal import Journal
from netprobe.service.kept_run import KeptRun, Part
from netprobe.service.moves import are_ports_known, moved_sessions
from netprobe.service.part_orders import Orders, sender_names
from netprobe.service.permits import ports_asked
from netprobe.service.prepare import PortSource, Prepared, prepare_run
from netprobe.service.reasons import Inquiry, find_reason
from netprobe.service.run_clocks import clock_maps
from netprobe.service.run_files import (
    RunFolder,
    run_plan_of,
)
from netprobe.service.settling import RunFacts, Settled, counted, session_result, settle_run
from netprobe.wire.orders import (
    LookAsked,
    PartSpec,
    RunNamed,
    place_spec,
)
from netprobe.wire.report import PartKey, unpack_value_untrusted

LOST_S = 30.0
"""An agent that was away for so long does not come back in time: its points are unobserved from its last word on."""

FINISH_S = 120.0
"""A part that is told to end has this long for what it still has to report."""

LEAD_S = 0.2
CALM_S = 0.02
ABANDON_S = 2.0
PORT_CHECKS = 10
MAX_EPOCHS = 64
"""Paths of one session: where there is no OVN to ask, an agent that lies about its ports could change them for ever."""

CHECK_S = 0.1
REPORT_LAG_NS = 1_000_000_000
TIDIED_UP = ("conntrack_deleted", "conntrack_kept")


@dataclass(slots=True)
class SpreadRun(KeptRun):
    """A run of a collector; `conduct` begins one, `resume` takes one up.

    Attributes:
        results, numbers: what it found out, and the session behind each result.
        document: its result, when it is over.
        extras: what the document also says: of meshes.
        stop: why it is to end early, "" as long as it is not.
        others: runs that were under way when this one began.
        latest: gives the topology as it is now.
        explained_s: how long each agent has taken to help explaining losses.
        clocks: what was found out of hosts' clocks, by session; empty before the end, and where there is one.
    """

    agents: Agents = field(default_factory=Agents)
    results: tuple[SessionResult, ...] = ()
    numbers: tuple[int, ...] = ()
    document: Json | None = None
    extras: Json = field(default_factory=dict)
    stop: str = ""
    others: list["SpreadRun"] = field(default_factory=list)
    latest: Callable[[], Topology] = field(default=lambda: Topology((), (), (), {}))
    explained_s: dict[str, float] = field(default_factory=dict)
    clocks: dict[int, ClockMap] = field(default_factory=dict)

    # -----------------------------------------------------------------------------------------------------------------
    # The run
    # -----------------------------------------------------------------------------------------------------------------

    async def conduct(self) -> Json:
        """Run the plan; returns its document.

        Raises:
            UsageError, RefusedError: the plan does not fit the cloud, or a host does not allow it; nothing was sent.
            HostNotReadyError: an agent that is needed is not there.
        """
        self.started_ns = realtime_ns()
        ports = self._port_source()
        self.prepared = await trio.to_thread.run_sync(prepare_run, self.plan, self.topology, ports)
        self.begin_collection()
        for one in self.prepared:
            self.begin_epoch(one, Epoch(one.path))
        specs = self._order_parts()
        self.open_log()
        try:
            await self._open_parts(specs)
            self.went_ns = realtime_ns()
            self.save()
        except BaseException:
            with trio.move_on_after(ABANDON_S, shield=True):
                await self._abandon()
            raise
        return await self._see_through()

    async def resume(self) -> Json:
        """Take up a run of an earlier life of the collector, when it has been replayed."""
        now_ns = realtime_ns()
        for part in self.parts.values():
            part.away_since_ns = part.away_since_ns or now_ns
        return await self._see_through()

    def _port_source(self) -> PortSource:
        def ports(sender: object, dst: object, plan: object, wanted: int) -> Sequence[int]:
            asked = ports_asked(sender, dst, plan, wanted)  # type: ignore[arg-type]
            agent = self.agents.on_host(sender.host)  # type: ignore[attr-defined]
            answer = trio.from_thread.run(agent.ask, "ports", asked)
            given = unpack_value_untrusted(answer.result, list[int])
            if len(set(given)) < wanted or not all(0 < port < 1 << 16 for port in given):
                raise WireError(f"agent {agent.name}", f"gave {len(given)} ports of {wanted}, or some that are none")
            return given

        return ports

    def _order_parts(self) -> dict[str, PartSpec]:
        """Who looks where and who sends what. Raises HostNotReadyError where a sender's agent is not there."""
        senders = {one.probe.session: self.agents.on_host(one.sender.host) for one in self.prepared}
        reporters = {i: self._reporter(i) for i in range(len(self.collection.points))}
        taking_part = {a.name: a for a in (*senders.values(), *reporters.values()) if a is not None}
        points, index = self.collection.points, self.collection.index
        orders = Orders(self.run, self.plan, self.prepared, points, index, taking_part)
        specs = {}
        for name, agent in sorted(taking_part.items()):
            mine = [i for i, reporter in reporters.items() if reporter is agent]
            sent = [one for one in self.prepared if senders[one.probe.session] is agent]
            specs[name] = orders.spec(name, mine, sent)
            self.add_part(Part(name, agent.hello.boot, mine, [one.probe.session for one in sent]), agent.host)
            self._check_grants(agent)
        return specs

    def _reporter(self, index: int) -> AgentConn | None:
        """Who looks at a point; None where nobody does, and then it is written down why."""
        point = self.collection.points[index]
        why = self.topology.unobserved.get(point.id, "")
        agent = None if why else self.agents.reporter(point, self.topology)
        if agent is None:
            self.unreported[index] = why or f"no agent that is connected may report {point.place}"
        return agent

    def _check_grants(self, agent: AgentConn) -> None:
        """The certificate's rates cover everything that the agent sends at a time. Raises RefusedError."""
        runs = [self, *self.others]
        mine = [one for run in runs for one in run.prepared if run.is_sent_by(one, agent.name)]
        agent.identity.grants.check_orders((sender_names(one), one.plan.mean_pps) for one in mine)

    def is_sent_by(self, one: Prepared, agent: str) -> bool:
        """Whether an agent sends a session, or will."""
        part = self.parts.get(agent)
        return (
            part is not None
            and one.probe.session in part.sessions
            and not self.collection.sendings[one.probe.session].is_over
        )

    async def _open_parts(self, specs: Mapping[str, PartSpec]) -> None:
        """All agents look before anybody sends. Who sends nothing, and cannot look, is left out."""
        connected = self.agents.connected
        found = await ask_all("part.open", {n: (connected[n], spec) for n, spec in specs.items()})
        for name, error in found.items():
            if error is not None and self.parts[name].sessions:
                raise error
        for name, error in found.items():
            if error is not None:
                part = self.parts.pop(name)
                self.unreported.update(dict.fromkeys(part.points, f"the agent {name} does not look: {error}"))

    async def _tell(self, op: str, whys: Mapping[str, str]) -> set[str]:
        """Tell agents something about this run, those that are there. Returns which have heard.

        Args:
            op: what.
            whys: by the agent's name, "" for no reason.
        """
        connected = self.agents.connected
        there = {
            name: (connected[name], RunNamed(self.run, why))
            for name, why in whys.items()
            if name in connected and connected[name].hello.boot == self.parts[name].boot
        }
        return {name for name, error in (await ask_all(op, there)).items() if error is None}

    async def follow(self, topology: Topology) -> None:
        """The cloud has changed: sessions whose guests moved have a new path from when its points are looked at."""
        before, self.topology = self.topology, topology
        if not self.went_ns or self.is_settling:
            return
        noticed_ns = realtime_ns()
        moved = moved_sessions(self.prepared, self.epochs, before, topology)
        for _ in range(PORT_CHECKS):  # OVN tells of a move before the host has the port
            if are_ports_known(moved):
                break
            await trio.sleep(CHECK_S)
            self.topology = self.latest()
            moved = moved_sessions(self.prepared, self.epochs, before, self.topology)
        for one, path, because in moved:
            if len(self.epochs[one.probe.session]) >= MAX_EPOCHS:
                continue
            self.begin_epoch(one, Epoch(path, FOR_EVER_NS, because, noticed_ns))
            await self._look_at(path)
            # From now on, not from when it was noticed: what was sent meanwhile was not looked for.
            self.epochs[one.probe.session][-1] = Epoch(path, realtime_ns(), because, noticed_ns)
            self.save()

    async def _look_at(self, path: Path) -> None:
        """Let agents look at the points of a new path; where a ring looks already, nothing changes."""
        by_agent: dict[str, list[int]] = {}
        rings = [s.point for s in (*path.forward, *path.returned) if s.is_observed_by_ring]
        for i in dict.fromkeys(self.collection.index[point.place] for point in rings):
            agent = self._reporter(i)
            if agent is not None and agent.name not in self.parts:
                self.unreported[i] = f"no agent of this run may report {self.collection.points[i].place}"
            elif agent is not None:
                by_agent.setdefault(agent.name, []).append(i)
        questions: dict[str, tuple[AgentConn, object]] = {}
        for name, mine in by_agent.items():
            self.parts[name].points += [i for i in mine if i not in self.parts[name].points]
            self.collection.add_part(name, mine, ())
            points = {i: self.collection.points[i] for i in mine}
            places = [place_spec(i, point) for i, point in points.items() if point.device or point.socket]
            questions[name] = self.agents.connected[name], LookAsked(self.run, places)
        for name, error in (await ask_all("part.look", questions)).items():
            if error is not None:
                self.unreported.update(dict.fromkeys(by_agent[name], str(error)))

    async def _abandon(self) -> None:
        await self._tell("part.finish", dict.fromkeys(self.parts, "the run was given up"))

    async def _see_through(self) -> Json:
        """From the first probe to the result; the collector may be killed anywhere in here."""
        ended_ns = 0  # by our own clock: agents' may be off
        going: set[str] = set()
        while not self.stop:
            self._check_kept()
            self._judge_parts()
            # Also after a restart: nobody knows who had been told.
            going |= await self._tell("part.go", dict.fromkeys(self.parts.keys() - going, ""))
            if self._is_sent() or self._is_overdue():
                ended_ns = ended_ns or self._sent_by_ns()
                if self.collection.is_complete or self._is_waited_for(ended_ns + self.plan.tmax_ns):
                    break
            await self._wait_for_news()
        await self._finish_parts()
        return await self._settle()

    async def _wait_for_news(self) -> None:
        """Until something was reported, or it is time to look; not at once, however much is reported."""
        with trio.move_on_after(CHECK_S):
            await self.collection.changed.wait()
        await trio.sleep(CALM_S)

    def _check_kept(self) -> None:
        """A disk that failed ends the run; a restarted collector takes it up from what the disk really has."""
        if self.is_broken:
            raise HostNotReadyError(f"run {self.run}", "cannot be kept any more", advice="is the disk full?")

    def _judge_parts(self) -> None:
        """Notice agents that come and go, and hosts that do not want any more: those that have a switch on the way."""
        now_ns = realtime_ns()
        switches = {host.name for host in self.topology.hosts}
        for name, part in self.parts.items():
            done = self.collection.parts[name].done
            if done is not None and done.counters.get(HOST_STOPPED) and self.hosts[name] in switches:
                self.stop = self.stop or f"{self.hosts[name]}: {done.why}"
            if part.is_lost or done is not None:
                continue
            if self.agents.holds(name, PartKey(self.run, part.boot)):
                part.away_since_ns = 0
                agent = self.agents.connected[name]
                if agent.hello.boot != part.boot and not self._is_missing_blocks(agent, part):
                    part.is_lost = f"the agent {name} was restarted"
                continue
            part.away_since_ns = part.away_since_ns or now_ns
            if name in self.agents.connected:
                part.is_lost = f"the agent {name} was restarted"
            elif now_ns - part.away_since_ns > LOST_S * 1e9:
                part.is_lost = f"the agent {name} no longer reports"

    def _is_missing_blocks(self, agent: AgentConn, part: Part) -> bool:
        """Whether a restarted agent still has blocks of its earlier life for us."""
        assert self.log is not None
        for held in agent.hello.parts:
            if (held.run, held.boot) == (self.run, part.boot):
                return self.log.expected(part.key) < held.next_block
        return False

    def _is_live(self, part: Part) -> bool:
        return not part.is_lost and self.collection.parts[part.agent].done is None

    def _is_sent(self) -> bool:
        """Whether every sender is done, or lost."""
        over = {s for s, sending in self.collection.sendings.items() if sending.is_over}
        return all(set(p.sessions) <= over or not self._is_live(p) for p in self.parts.values())

    def _planned_ns(self) -> int:
        """When the last probe is due."""
        return self.went_ns + max(one.plan.duration_ns for one in self.prepared) + int(LEAD_S * 1e9)

    def _is_overdue(self) -> bool:
        """Whether senders that have not said that they are done are not waited for any longer."""
        return realtime_ns() > self._planned_ns() + LOST_S * 1e9

    def _sent_by_ns(self) -> int:
        """Until when probes may have been sent: now; or as planned, where the sender can no longer say."""
        return realtime_ns() if self.collection.is_sent else max(realtime_ns(), self._planned_ns())

    def _is_waited_for(self, deadline_ns: int) -> bool:
        """Whether everybody who still reports has reported up to the deadline (agents' clocks may be off: by ours)."""
        late_ns = realtime_ns() - deadline_ns - REPORT_LAG_NS
        if late_ns < 0:
            return False
        return late_ns > LOST_S * 1e9 or all(not self._is_live(p) or not p.away_since_ns for p in self.parts.values())

    async def _finish_parts(self) -> None:
        """Tell every agent that it is over, and wait for what it still has; those that are away get their time."""
        told: set[str] = set()
        began_ns = realtime_ns()
        while any(self._is_live(p) for p in self.parts.values()):
            self._check_kept()
            self._judge_parts()
            there = [n for n, p in self.parts.items() if self._is_live(p) and not p.away_since_ns and n not in told]
            told |= await self._tell("part.finish", {n: self.stop or self._why_stopped(n) for n in there})
            told -= {n for n, p in self.parts.items() if p.away_since_ns}
            self._lose_patience(began_ns)
            await self._wait_for_news()

    def _why_stopped(self, name: str) -> str:
        """Why an agent that is still sending shall stop, "" for one that is done."""
        is_over = all(self.collection.sendings[number].is_over for number in self.parts[name].sessions)
        return "" if is_over else "it went on sending long after the plan"

    def _lose_patience(self, began_ns: int) -> None:
        """A part that is told to end reports the rest and ends; one that does neither is not waited for."""
        now_ns = realtime_ns()
        for name, part in self.parts.items():
            is_silent = not part.away_since_ns and now_ns - max(part.heard_ns, began_ns) > LOST_S * 1e9
            if self._is_live(part) and (is_silent or now_ns - began_ns > FINISH_S * 1e9):
                part.is_lost = f"the agent {name} does not end its part"

    # -----------------------------------------------------------------------------------------------------------------
    # The end
    # -----------------------------------------------------------------------------------------------------------------

    async def _explain(self, settled: Sequence[Settled]) -> list[Reason | None]:
        """Why probes were lost; switches are asked through their hosts' agents, so no rule's counter can be tested."""
        nobody = Allowlist("", (), frozenset(), 1)
        reasons = []
        for one in settled:
            inquiry = Inquiry(
                one.prepared,
                self.topology,
                nobody,
                self._port_source(),
                Journal(self.folder.path / "journal.json"),
                StopRequest(),
                switches=self._open_switch,
                bridges=None,
            )
            try:
                reasons.append(await trio.to_thread.run_sync(find_reason, inquiry, one.outcome.forward))
            except Exception as error:  # noqa: BLE001  what a switch says, or its agent, keeps no run from its end
                reasons.append(unknown_reason(f"what its switch says makes no sense: {error!r}"))
        return reasons

    @contextmanager
    def _open_switch(self, host: Host) -> Iterator[RemoteSwitch]:
        """A host's switch by way of its agent. Raises HostNotReadyError where that is not connected."""
        yield RemoteSwitch(self.agents.on_host(host.name), self.explained_s)

    async def _settle(self) -> Json:
        self.is_settling = True
        collection = self.collection
        for index, why in self.unreported.items():
            collection.unwatched.setdefault(index, why)
        for name, part in self.parts.items():
            done = collection.parts[name].done or PartDone()
            why = part.is_lost or (done.why and f"the agent {name} ended early: {done.why}")
            for point in part.points if why and why != self.stop else ():
                collection.unwatched_since.setdefault(point, why)
        hosts = {name: self.hosts.get(name, name) for name in self.parts}
        clocks = await trio.to_thread.run_sync(clock_maps, collection, hosts)
        self.clocks = clocks or {}
        leads = {hosts[name]: collection.parts[name].lead_ns or 0 for name in self.parts}
        ended_ns = realtime_ns() + (0 if self.stop else REPORT_LAG_NS)
        facts = RunFacts(self.plan, collection, ended_ns, clocks, leads, self.topology.stale)
        epochs = {number: tuple(found) for number, found in self.epochs.items()}
        settled = await trio.to_thread.run_sync(settle_run, self.prepared, epochs, facts)
        reasons = await self._explain(settled)
        refused = {f"refused_{k}": n for k, n in self.refused.items()}
        self.results = tuple(
            session_result(one, facts, reason, {k: counted(one, facts, k) for k in TIDIED_UP} | refused)
            for one, reason in zip(settled, reasons, strict=True)
        )
        self.numbers = tuple(one.prepared.probe.session for one in settled)
        self.document = {
            "run": self.run,
            "started": datetime.fromtimestamp(self.started_ns / 1e9, UTC).isoformat(),
            "stopped": self.stop or None,
            "plan": self.plan.name,
            "seed": self.plan.seed,
            **self.extras,
            "sessions": [r.to_json() for r in self.results],
        }
        return self.document


def load_run(folder: RunFolder, topology: Topology, agents: Agents) -> SpreadRun | None:
    """A run of an earlier life of the collector, ready to be resumed.

    Raises:
        HostNotReadyError: it cannot be taken up.
    """
    saved = folder.load()
    if saved is None:
        return None
    run = SpreadRun(folder, run_plan_of(saved), topology, agents=agents)
    run.load(saved, topology)
    return run
