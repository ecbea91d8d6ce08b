"""One run from plan to results: permit, look, send, wait, settle, explain, tidy up.

Resources are opened outermost first and closed in the opposite order, also after an error or Ctrl-C: journal, rings and
agents, then the nursery with its readers innermost. The first probe is sent only when every observer truly looks.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns
from netprobe.host.conntrack import Conntrack
from netprobe.host.signals import StopRequest, stop_on_signals
from netprobe.host.unixctl import UnixctlClient
from netprobe.inject.pacer import SWITCH_INTERVAL_S
from netprobe.judge.reason import Reason
from netprobe.model.records import HopBatch
from netprobe.model.results import SessionResult
from netprobe.model.topology import Topology
from netprobe.observe.ring import RETIRE_MS
from netprobe.plan.budget import is_too_full
from netprobe.plan.plans import RunPlan
from netprobe.service.injecting import Injector, Sent, open_injector
from netprobe.service.journal import open_journal
from netprobe.service.permits import SwitchDrops, permit_run, port_source
from netprobe.service.prepare import Prepared, prepare_run
from netprobe.service.reasons import Inquiry, find_reason
from netprobe.service.settling import RunFacts, session_result, settle_run
from netprobe.service.watching import Watch

SETTLE_S = 2.5 * RETIRE_MS / 1e3
"""After the last frame that matters: every ring's open block is handed over within its retire time."""

CHECK_S = 0.1
"""How often a stop request, the clock and a shared table are looked at."""

CHECKS_A_TABLE = 5  # the table is asked every fifth time
Progress = Callable[[str], None]


@dataclass(slots=True)
class RunState:
    """A run under way."""

    plan: RunPlan
    prepared: Sequence[Prepared]
    topology: Topology
    watch: Watch
    stop: StopRequest
    started_ns: int
    sent: dict[int, Sent] = field(default_factory=dict)


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
    """Run a plan. Ctrl-C or SIGTERM ends it early: what is known by then is the result, the rest unsent or pending.

    Args:
        plan: what to send.
        topology: where things are.
        progress: is told in words what happens.

    Raises:
        UsageError, RefusedError: the plan does not fit the cloud, or the host does not allow it; nothing was sent.
        HostNotReadyError: a switch, an agent or a namespace that is needed is not there.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        with stop_on_signals() as stop:
            return await _run(plan, topology, stop, progress)
    finally:
        sys.setswitchinterval(before)


async def _run(plan: RunPlan, topology: Topology, stop: StopRequest, progress: Progress) -> RunOutcome:
    started_ns = realtime_ns()
    ports = port_source(topology)
    prepared = prepare_run(plan, topology, ports)
    allowlists = permit_run(prepared, topology, started_ns)
    watch = Watch(prepared)
    state = RunState(plan, prepared, topology, watch, stop, started_ns)
    drops = SwitchDrops(prepared, topology)
    with open_journal(prepared, topology) as journal:
        with ExitStack() as stack:
            watch.open_rings(stack)
            async with open_injector(prepared, topology, allowlists) as injector:
                progress(f"sending {sum(one.probe.count for one in prepared)} probes")
                await _look_and_send(state, injector)
                shed = await injector.finish(watch, started_ns)
            ended_ns = realtime_ns()
            watch.drain()
        facts = RunFacts(plan, watch, state.sent, ended_ns, shed, await trio.to_thread.run_sync(drops.since_then))
        outcomes = settle_run(prepared, facts)
        reasons: list[Reason | None] = []
        for one, outcome in zip(prepared, outcomes, strict=True):
            inquiry = Inquiry(one, topology, allowlists[one.sender.host], ports, journal, stop)
            reasons.append(await trio.to_thread.run_sync(find_reason, inquiry, outcome.forward))
    results = [
        session_result(
            one, outcome, facts, reason, {"conntrack_deleted": journal.deleted, "conntrack_kept": journal.kept}
        )
        for one, outcome, reason in zip(prepared, outcomes, reasons, strict=True)
    ]
    return RunOutcome(
        started_ns=started_ns,
        results=tuple(results),
        hops=watch.hops(),
        points=tuple(watch.points),
        sessions=tuple(one.probe.session for one in prepared),
        stopped=stop.why,
    )


async def _look_and_send(state: RunState, injector: Injector) -> None:
    async with trio.open_nursery() as readers:
        state.watch.read_rings(readers)
        await injector.observe(state.watch, readers)
        for one in state.prepared:
            await injector.absorb(one)
        async with trio.open_nursery() as guards:
            waiting = trio.CancelScope()
            guards.start_soon(_mind, state, injector, waiting)
            async with trio.open_nursery() as senders:
                for one in state.prepared:
                    senders.start_soon(_send, state, injector, one)
            with waiting:
                await _wait_for_the_last(state)
            guards.cancel_scope.cancel()
        await trio.sleep(SETTLE_S)  # what the rings still gather
        readers.cancel_scope.cancel()


async def _send(state: RunState, injector: Injector, one: Prepared) -> None:
    sent = await injector.send(one)
    state.sent[one.probe.session] = sent
    state.watch.completion.note_sent(one.probe.session, sent.was_sent)


async def _wait_for_the_last(state: RunState) -> None:
    """Until every probe has been seen at its last stop, or the waiting time after the last one is over.

    By this host's own clock: a guest's idea of when it sent decides nothing here.
    """
    if not any(sent.was_sent.any() for sent in state.sent.values()):
        return
    with trio.move_on_after(state.plan.tmax_ns / 1e9):
        while not state.watch.completion.is_complete:
            with trio.move_on_after(CHECK_S):
                await state.watch.changed.wait()


async def _mind(state: RunState, injector: Injector, waiting: trio.CancelScope) -> None:
    """While sending and waiting: stop when asked, watch the clock, and never fill a conntrack table (design §6a)."""
    hosts = {one.sender.host for one in state.prepared}
    checks = 0
    try:
        while not state.stop.asked():
            await trio.sleep(CHECK_S)
            state.watch.steps.check()
            checks += 1
            if checks % CHECKS_A_TABLE == 0:
                for name in hosts:
                    if await trio.to_thread.run_sync(_is_full, state.topology.host(name).ovs_rundir):
                        state.stop.ask(f"the conntrack table of {name} is nearly full")
        waiting.cancel()
        while True:  # a sender may not have begun when it is first told
            await injector.stop()
            await trio.sleep(CHECK_S)
    finally:
        injector.halt()  # at once, also on the way out of an error: a sending thread is waited for


def _is_full(rundir: str) -> bool:
    try:
        with UnixctlClient(rundir) as unixctl:
            use = Conntrack(unixctl).use()
    except HostNotReadyError:
        return False  # a dead switch shows in the result
    return is_too_full(use.used, use.limit)
