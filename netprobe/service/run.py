"""One run from plan to results, in one process: permit, look, send, follow, wait, settle, explain, tidy up.

What the run does on hosts is service.part's, what comes back is kept by service.collection. The first probe is sent
only when every observer truly looks. A run that is spread over hosts is service.spread_run's.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import trio

from netprobe.collect.epochs import Epoch
from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest, stop_on_signals
from netprobe.inject.pacer import SWITCH_INTERVAL_S
from netprobe.judge.reason import Reason
from netprobe.model.observations import PartDone, Report, Unwatched
from netprobe.model.points import Path as ProbePath
from netprobe.model.points import Point
from netprobe.model.progress import SessionProgress
from netprobe.model.records import HopBatch
from netprobe.model.results import SessionResult
from netprobe.model.topology import Topology
from netprobe.plan.allowlist import Allowlist
from netprobe.plan.plans import RunPlan
from netprobe.service.collection import Collection
from netprobe.service.following import Follower, open_follower
from netprobe.service.journal import Journal, open_journal
from netprobe.service.moves import are_ports_known, moved_sessions
from netprobe.service.part import Part, PartOrder, machines_of, open_part, own_points
from netprobe.service.permits import permit_run, port_source
from netprobe.service.prepare import PortSource, Prepared, prepare_run
from netprobe.service.reasons import Inquiry, find_reason
from netprobe.service.run_clocks import clock_maps
from netprobe.service.settling import RunFacts, Settled, session_result, settle_run
from netprobe.service.stream_keeping import StreamKeep
from netprobe.service.streamed_run import is_stream, run_stream
from netprobe.service.vrings import AS_ALLOWED, VringWish, chosen_vrings

CHECK_S = 0.1
LASTS_S = 86_400.0
"""How long what machines tell of their clocks is kept."""

PORT_S = 1.0
"""That a guest has moved is known before its new host's port is; so long is waited for that."""

HERE = "here"
"""The name of the only part of a run in one process."""

LIVE_S = 0.25

Progress = Callable[[str], None]
Live = Callable[[Sequence[SessionProgress]], None]


@dataclass(slots=True)
class RunState:
    """A run under way.

    Attributes:
        epochs: the paths of each session, in order of time.
        topology: as it is now.
        journal: what the run leaves in switches, None before it is opened.
    """

    plan: RunPlan
    prepared: Sequence[Prepared]
    topology: Topology
    collection: Collection
    stop: StopRequest
    started_ns: int
    epochs: dict[int, list[Epoch]] = field(default_factory=dict)
    journal: Journal | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Everything that a run found out.

    Attributes:
        results: those of each session of the plan, in its order; one for each path that a session had.
        hops: all hop records; points are indices into `points`.
        sessions: number of the session behind each result.
        stopped: why the run ended early, "" when it did not.
        run_id: under which parts of it are stored already, "" for none.
    """

    started_ns: int
    results: tuple[SessionResult, ...]
    hops: HopBatch
    points: tuple[str, ...]
    sessions: tuple[int, ...]
    stopped: str
    run_id: str = ""


async def run_plan(
    plan: RunPlan,
    topology: Topology,
    progress: Progress = lambda _: None,
    state_file: Path | None = None,
    vrings: VringWish = AS_ALLOWED,
    *,
    live: Live | None = None,
    keep: StreamKeep | None = None,
) -> RunOutcome:
    """Run a plan. Ctrl-C or SIGTERM ends it early: what is known by then is the result, the rest unsent or pending.

    Args:
        plan: what to send.
        topology: where things are.
        progress: is told in words what happens.
        state_file: where the topology was read from, to be read again when it changes; None for nowhere.
        vrings: how points behind vhost-user ports are to be looked at.
        live: is told how far each session is, every LIVE_S while probes are sent and awaited.
        keep: where the windows of a stream go while it runs; None for nowhere.

    Raises:
        UsageError, RefusedError: the plan does not fit the cloud, or the host does not allow it; nothing was sent.
        HostNotReadyError: a switch, an agent or a namespace that is needed is not there.
        Each has as notes what the run changed and could not take back.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    left: list[str] = []
    try:
        with stop_on_signals() as stop, chosen_vrings(plan, topology, vrings, left.append) as looked_at:
            async with open_follower(looked_at, state_file=state_file) as follower:
                _check_present(plan, looked_at, follower.topology)
                outcome = await _run(plan, follower, stop, progress, live=live, keep=keep)
        return replace(outcome, results=tuple(replace(r, notes=(*r.notes, *left)) for r in outcome.results))
    except BaseException as error:  # a nursery's group, or an interrupt, too
        for problem in left:
            error.add_note(problem)
        raise
    finally:
        sys.setswitchinterval(before)


def _check_present(plan: RunPlan, before: Topology, now: Topology) -> None:
    """A guest that was written down, and that no database knows any more, is not a misspelt name."""
    for session in plan.sessions:
        for name in (session.src, session.dst):
            try:
                now.guest(name, "run")
            except UsageError:
                with suppress(UsageError):
                    gone = before.guest(name, "run").name
                    raise HostNotReadyError(
                        f"port of {gone}",
                        "is bound on no host at present",
                        advice="is the guest still there? `netprobe lab status` tells",
                    ) from None


async def _run(
    plan: RunPlan,
    follower: Follower,
    stop: StopRequest,
    progress: Progress,
    *,
    live: Live | None,
    keep: StreamKeep | None,
) -> RunOutcome:
    started_ns = realtime_ns()
    topology = follower.topology
    if is_stream(plan):
        progress(f"streaming {plan.sessions[0].count} probes")
        one, result = await run_stream(plan, topology, stop, keep)
        run_id = keep.run_id if keep is not None else ""
        return RunOutcome(started_ns, (result,), HopBatch.empty(), (), (one.probe.session,), stop.why, run_id)
    ports = port_source(topology)
    prepared = prepare_run(plan, topology, ports)
    allowlists = permit_run(prepared, topology, started_ns)
    collection = Collection(one.probe for one in prepared)
    state = RunState(plan, prepared, topology, collection, stop, started_ns)
    with open_journal(prepared, topology) as journal:
        state.journal = journal
        await _look_and_send(state, follower, allowlists, progress, live)
        hosts = {one.sender.host for one in prepared}
        here = hosts.pop() if len(hosts) == 1 else "the hosts"  # one clock, in any case
        clocks = clock_maps(collection, {HERE: here}, own=frozenset(m.domain for m in machines_of(prepared)))
        facts = RunFacts(plan, collection, realtime_ns(), clocks, stale=state.topology.stale)
        settled = settle_run(prepared, state.epochs, facts)
        reasons = await _explain(state, settled, allowlists, ports, journal)
    undone = {"conntrack_deleted": journal.deleted, "conntrack_kept": journal.kept}
    results = [session_result(one, facts, reason, undone) for one, reason in zip(settled, reasons, strict=True)]
    return RunOutcome(
        started_ns=started_ns,
        results=tuple(results),
        hops=collection.hops(),
        points=collection.point_names(),
        sessions=tuple(one.prepared.probe.session for one in settled),
        stopped=stop.why,
    )


async def _explain(
    state: RunState,
    settled: Sequence[Settled],
    allowlists: dict[str, Allowlist],
    ports: PortSource,
    journal: Journal,
) -> list[Reason | None]:
    reasons = []
    for one in settled:
        inquiry = Inquiry(
            one.prepared, state.topology, allowlists[one.prepared.sender.host], ports, journal, state.stop
        )
        reasons.append(await trio.to_thread.run_sync(find_reason, inquiry, one.outcome.forward))
    return reasons


def first_epochs(state: RunState) -> None:
    """Begin with the paths as they are planned: every point gets an index."""
    for one in state.prepared:
        _begin_epoch(state, one, Epoch(one.path))


def _begin_epoch(state: RunState, one: Prepared, epoch: Epoch) -> None:
    path, session = epoch.path, one.probe.session
    state.collection.add_points(s.point for leg in (path.forward, path.returned) for s in leg)
    state.collection.expect(session, path)
    state.epochs.setdefault(session, []).append(epoch)


def ring_places(state: RunState, prepared: Sequence[Prepared]) -> dict[int, Point]:
    """The points of these sessions' newest paths where a ring shall look: not where an agent does."""
    index = state.collection.index
    by_agent = {p.index for p in own_points(prepared, index).values()}
    stops = [
        s
        for one in prepared
        for path in [state.epochs[one.probe.session][-1].path]
        for s in (*path.forward, *path.returned)
        if s.is_observed_by_ring
    ]
    places = {index[s.point.place]: s.point for s in stops}
    return {i: point for i, point in places.items() if i not in by_agent}


async def _look_and_send(
    state: RunState, follower: Follower, allowlists: dict[str, Allowlist], progress: Progress, live: Live | None
) -> None:
    first_epochs(state)
    collection = state.collection
    order = PartOrder(
        prepared=tuple(state.prepared),
        probes=tuple(one.probe for one in state.prepared),
        places=ring_places(state, state.prepared),
        own=own_points(state.prepared, collection.index),
        machines=machines_of(state.prepared),
        limits=state.plan.governor,
    )
    collection.peers = frozenset(machine.domain for machine in order.machines)
    collection.lasts_s = LASTS_S
    collection.add_part(HERE, range(len(collection.points)), collection.probes)

    def emit(report: Report) -> None:
        collection.take(HERE, report)

    async with open_part(order, state.topology, allowlists, emit, state.stop) as part:
        progress(f"sending {sum(one.probe.count for one in state.prepared)} probes")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, state, part, follower)
            if live is not None:
                nursery.start_soon(_tell_live, state, live)
            await part.send(emit)
            await _wait_for_the_last(state)
            nursery.cancel_scope.cancel()
        emit(PartDone(await part.finish()))


async def _tell_live(state: RunState, live: Live) -> None:
    """Tell how far each session is, again and again."""
    began = trio.current_time()
    while True:
        now = trio.current_time()
        elapsed_ns = int((now - began) * 1e9)
        arrived = state.collection.arrived()
        live(
            [
                SessionProgress(
                    name=one.plan.name,
                    src=one.source.name,
                    dst=one.target.name,
                    planned=one.probe.count,
                    due=int(np.searchsorted(one.due_ns, elapsed_ns, side="right")),
                    arrived=arrived[one.probe.session],
                )
                for one in state.prepared
            ]
        )
        await trio.sleep(max(LIVE_S, 10 * (trio.current_time() - now)))  # of many sessions less often


async def _wait_for_the_last(state: RunState) -> None:
    """Until every probe has been seen at its last stop, or the waiting time after the last one is over.

    By this host's own clock: a guest's idea of when it sent decides nothing here.
    """
    if not state.collection.was_any_sent:
        return
    with trio.move_on_after(state.plan.tmax_ns / 1e9):
        while not state.collection.is_complete and not state.stop.asked():
            with trio.move_on_after(CHECK_S):
                await state.collection.changed.wait()


async def _follow(state: RunState, part: Part, follower: Follower) -> None:
    """Follow guests that move: from when their new points are looked at, their sessions have a new path."""
    version = 0
    while True:
        version, topology = await follower.wait_changed(version)
        noticed_ns = realtime_ns()
        with trio.move_on_after(PORT_S):
            while not are_ports_known(moved_sessions(state.prepared, state.epochs, state.topology, topology)):
                version, topology = await follower.wait_changed(version)
        moved = moved_sessions(state.prepared, state.epochs, state.topology, topology)
        state.topology = topology
        for one, path, because in moved:
            _write_down(state, one, path)
            _begin_epoch(state, one, Epoch(path, noticed_ns, because, noticed_ns))
            state.collection.add_part(HERE, range(len(state.collection.points)), ())
            places = ring_places(state, [one])
            blind = {i: why for i, p in places.items() if (why := topology.unobserved.get(p.id))}
            for i, why in blind.items():
                state.collection.take(HERE, Unwatched(i, why))
            part.look_at({i: p for i, p in places.items() if i not in blind})
            # From now on, not from when it was noticed: what was sent meanwhile was not looked for.
            state.epochs[one.probe.session][-1] = Epoch(path, realtime_ns(), because, noticed_ns)


def _write_down(state: RunState, one: Prepared, path: ProbePath) -> None:
    """Connections of a session that goes another way have entries on that way's hosts too."""
    assert state.journal is not None
    new = {s.point.host for s in (*path.forward, *path.returned)} - one.hosts
    state.journal.add_probe(one.probe, (h for h in state.topology.hosts if h.name in new))
