"""One run from plan to results: permit, look, send, wait, settle, explain, tidy up.

Resources are opened outermost first and closed in the opposite order, also after an error or Ctrl-C: rings and agents,
then the nursery with its readers innermost. The first probe is sent only when every observer truly looks.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns
from netprobe.host.conntrack import Conntrack
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.records import HopBatch
from netprobe.model.results import SessionResult
from netprobe.model.topology import Topology
from netprobe.plan.budget import is_too_full
from netprobe.plan.plans import RunPlan
from netprobe.service.injecting import Injector, Sent, open_injector
from netprobe.service.journal import open_journal
from netprobe.service.permits import SwitchDrops, permit_run, port_source
from netprobe.service.prepare import Prepared, prepare_run
from netprobe.service.reasons import Inquiry, find_reason
from netprobe.service.settling import RunFacts, session_result, settle_run
from netprobe.service.watching import Watch

SETTLE_NS = 50_000_000
"""After the last deadline: a block of a ring is handed over at most its retire time (20 ms) later."""

CHECK_S = 0.25
"""How often a shared table and the clock are looked at while sending and waiting."""

Progress = Callable[[str], None]


@dataclass(slots=True)
class RunState:
    """A run under way; `stopped` says why it ended early."""

    plan: RunPlan
    prepared: Sequence[Prepared]
    topology: Topology
    watch: Watch
    sent: dict[int, Sent] = field(default_factory=dict)
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Everything that a run found out.

    Attributes:
        results: one for each session of the plan, in its order.
        hops: all hop records; points are indices into `points`.
        sessions: their numbers, in the order of the plan.
        stopped: why the run ended early, "" when it did not.
    """

    started_ns: int
    results: tuple[SessionResult, ...]
    hops: HopBatch
    points: tuple[str, ...]
    sessions: tuple[int, ...]
    stopped: str


async def run_plan(plan: RunPlan, topology: Topology, progress: Progress = lambda _: None) -> RunOutcome:
    """Run a plan.

    Args:
        plan: what to send.
        topology: where things are.
        progress: is told in words what happens.

    Raises:
        UsageError, RefusedError: the plan does not fit the cloud, or the host does not allow it; nothing was sent.
        HostNotReadyError: a switch, an agent or a namespace that is needed is not there.
    """
    started_ns = realtime_ns()
    ports = port_source(topology, started_ns)
    prepared = prepare_run(plan, topology, ports)
    allowlists = permit_run(prepared, topology, started_ns)
    watch = Watch(prepared)
    state = RunState(plan, prepared, topology, watch)
    drops = SwitchDrops(prepared, topology)
    journal = open_journal(prepared, topology)
    try:
        with ExitStack() as stack:
            watch.open_rings(stack)
            async with open_injector(prepared, topology, allowlists) as injector:
                progress(f"sending {sum(one.probe.count for one in prepared)} probes")
                await _look_and_send(state, injector)
                shed = await injector.finish(watch)
                for point, count in shed.items():
                    watch.lost_sight(point, started_ns, count)
            watch.drain()
    finally:
        with trio.CancelScope(shield=True):
            deleted, kept = await trio.to_thread.run_sync(journal.undo)
    facts = RunFacts(
        plan=plan,
        watch=watch,
        sent=state.sent,
        settled_ns=realtime_ns(),
        agent_shed=sum(shed.values()),
        port_dropped=await trio.to_thread.run_sync(drops.since_then),
        conntrack_deleted=deleted,
        conntrack_kept=kept,
    )
    outcomes = settle_run(prepared, facts)
    results = []
    for one, outcome in zip(prepared, outcomes, strict=True):
        inquiry = Inquiry(one, topology, allowlists[one.sender.host], ports)
        reason = await trio.to_thread.run_sync(find_reason, inquiry, outcome.forward)
        results.append(session_result(one, outcome, facts, reason))
    return RunOutcome(
        started_ns=started_ns,
        results=tuple(results),
        hops=watch.hops(),
        points=tuple(watch.points),
        sessions=tuple(one.probe.session for one in prepared),
        stopped=state.stopped,
    )


async def _look_and_send(state: RunState, injector: Injector) -> None:
    async with trio.open_nursery() as readers:
        state.watch.read_rings(readers)
        await injector.observe(state.watch, readers)
        for one in state.prepared:
            await injector.absorb(one)
        async with trio.open_nursery() as guards:
            waiting = trio.CancelScope()
            guards.start_soon(_stop_on_signal, state, injector, waiting)
            guards.start_soon(_stop_when_full, state, injector)
            async with trio.open_nursery() as senders:
                for one in state.prepared:
                    senders.start_soon(_send, state, injector, one)
            with waiting:
                await _wait_for_the_last(state)
            guards.cancel_scope.cancel()
        readers.cancel_scope.cancel()


async def _send(state: RunState, injector: Injector, one: Prepared) -> None:
    sent = await injector.send(one)
    state.sent[one.probe.session] = sent
    state.watch.completion.note_sent(one.probe.session, sent.times_ns > 0)


async def _wait_for_the_last(state: RunState) -> None:
    """Until every probe has been seen at its last stop, or the last one's waiting time is over."""
    last_ns = max((int(s.times_ns.max(initial=0)) for s in state.sent.values()), default=0)
    left_ns = last_ns + state.plan.tmax_ns + SETTLE_NS - realtime_ns()
    if not last_ns or left_ns <= 0:
        return
    with trio.move_on_after(left_ns / 1e9):
        while not state.watch.completion.is_complete:
            state.watch.steps.check()
            with trio.move_on_after(CHECK_S):
                await state.watch.changed.wait()


async def _stop_on_signal(state: RunState, injector: Injector, waiting: trio.CancelScope) -> None:
    """The first Ctrl-C ends sending and waiting: what is known by then is the result, the rest is unsent or pending."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            state.stopped = f"stopped by {signal.Signals(number).name}"
            await injector.stop()
            waiting.cancel()


async def _stop_when_full(state: RunState, injector: Injector) -> None:
    """Conntrack is shared: sending stops when a table on the way is nearly full (design §6a)."""
    hosts = {one.sender.host for one in state.prepared}
    while True:
        await trio.sleep(CHECK_S)
        for name in hosts:
            if await trio.to_thread.run_sync(_is_full, state.topology.host(name).ovs_rundir):
                state.stopped = f"the conntrack table of {name} is nearly full"
                await injector.stop()
                return


def _is_full(rundir: str) -> bool:
    try:
        with UnixctlClient(rundir) as unixctl:
            use = Conntrack(unixctl).use()
    except HostNotReadyError:
        return False  # a dead switch shows in the result
    return is_too_full(use.used, use.limit)
