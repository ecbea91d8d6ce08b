"""`netprobe watch`: a plan that runs for good, window after window, and the state of each of its paths.

A window is one run (service.run); judge.reachability turns its results into states. A window that cannot be run makes
its paths unobserved, which is never called loss, and the watch goes on. Between two windows nobody looks: how long that
was is part of the report.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import trio

from netprobe.collect.intervals import loss_bounds
from netprobe.errors import NetprobeError
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.reachability import Change, Limits, PathState, State, WindowFacts, advance
from netprobe.model.points import Leg
from netprobe.model.results import Json, SessionResult
from netprobe.model.topology import Topology
from netprobe.plan.mesh import CompiledPlan, compile_plan
from netprobe.plan.plans import RunPlan, SessionPlan, WatchPlan
from netprobe.service.run import Progress, RunOutcome, run_plan

PAUSE_S = 0.1
"""How often a stop request is looked at while there is nothing to run."""

SEED_STEP = 1_000_003
"""From window to window: a prime, so that the sessions' seeds (one more each) do not meet again soon."""

Run = Callable[[RunPlan, Topology, Progress], Awaitable[RunOutcome]]


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One path in one window.

    Attributes:
        facts: what the window said of it.
        path: its state after the window.
        change: None where the state stayed.
    """

    name: str
    src: str
    dst: str
    facts: WindowFacts
    path: PathState
    change: Change | None

    def to_json(self) -> Json:
        """An element of a window's `sessions` (docs/watch.md)."""
        facts, path = self.facts, self.path
        known = facts.delivered + facts.lost
        bounds = loss_bounds(facts.lost, facts.undecided, facts.sent)
        return {
            "name": self.name,
            "src": self.src,
            "dst": self.dst,
            "state": path.state.value,
            "since_ns": path.since_ns,
            "sent": facts.sent,
            "received": facts.delivered,
            "lost": facts.lost,
            "undecided": facts.undecided,
            "loss_ratio": facts.lost / known if known else None,
            "loss_interval_95": list(bounds),
            "delay_ns": facts.delay.to_json() if facts.delay else None,
            "clock_error_ns": facts.clock_error_ns or None,
            "last_seen": facts.last_seen,
            "first_missing": facts.first_missing,
            "tests": {name: running.to_json() for name, running in path.running.items()},
        }

    def change_json(self) -> Json | None:
        """The change as a document of its own (docs/watch.md)."""
        if self.change is None:
            return None
        return {"name": self.name, "src": self.src, "dst": self.dst, **self.change.to_json()}


@dataclass(frozen=True, slots=True)
class WindowReport:
    """One window.

    Attributes:
        number: from 0.
        start_ns, end_ns: CLOCK_REALTIME of its first and last probe, as far as they were seen.
        gap_ns: from the last probe of the window before to the first of this one: nobody looked. None for the first.
        outcome: of its run, None where it could not be run.
        error: why it could not.
        plan: what was run; `meshes` and `flows` say how it came about.
    """

    number: int
    start_ns: int
    end_ns: int
    gap_ns: int | None
    outcome: RunOutcome | None
    error: str
    plan: RunPlan
    compiled: CompiledPlan
    rows: tuple[WindowRow, ...]

    def to_json(self) -> Json:
        """The `window` document (docs/watch.md), without what the store says."""
        return {
            "window": self.number,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "gap_ns": self.gap_ns,
            "stopped": (self.outcome.stopped if self.outcome else "") or None,
            "error": self.error or None,
            "sessions": [row.to_json() for row in self.rows],
        }


def limits_of(watch: WatchPlan) -> Limits:
    """The thresholds of a plan, for the judge."""
    return Limits(watch.max_loss, watch.max_p99_ns, watch.factor, watch.alpha, watch.beta)


def window_plan(plan: RunPlan, number: int) -> RunPlan:
    """What is run in one window: each session for as long as the window, with a seed of its own."""
    window_ns = plan.watch.window_ns
    sessions = tuple(
        replace(s, count=max(1, window_ns * s.rate_pps // (s.stretch * 1_000_000_000))) for s in plan.sessions
    )
    return replace(plan, sessions=sessions, seed=(plan.seed + number * SEED_STEP) % (1 << 32))


@dataclass(slots=True)
class Watcher:
    """The states of all paths of a plan; `take` is told of each window."""

    limits: Limits
    start_ns: int
    paths: dict[str, PathState] = field(default_factory=dict)
    last_probe_ns: int | None = None
    taken: int = 0

    def take(
        self, compiled: CompiledPlan, plan: RunPlan, outcome: RunOutcome | NetprobeError, now_ns: int
    ) -> WindowReport:
        """Count one window.

        Args:
            compiled: the plan, single sessions.
            plan: what was run of it.
            outcome: of its run, or why there was none.
            now_ns: CLOCK_REALTIME.
        """
        run = outcome if isinstance(outcome, RunOutcome) else None
        start_ns, end_ns = _probed(run) if run else (now_ns, now_ns)
        facts = _facts(run, start_ns, end_ns) if run else {}
        nothing = WindowFacts.nothing(start_ns, end_ns)
        rows = tuple(self._row(session, facts.get(session.name, nothing), run) for session in plan.sessions)
        self.paths = {row.name: row.path for row in rows}  # what the topology no longer has is forgotten
        gap_ns = None if self.last_probe_ns is None else start_ns - self.last_probe_ns
        self.last_probe_ns = end_ns if run else self.last_probe_ns
        self.taken += 1
        error = "" if run else str(outcome)
        return WindowReport(self.taken - 1, start_ns, end_ns, gap_ns, run, error, plan, compiled, rows)

    def _row(self, session: SessionPlan, facts: WindowFacts, run: RunOutcome | None) -> WindowRow:
        path = self.paths.get(session.name) or PathState.start(self.limits, self.start_ns)
        is_cut_short = run is not None and bool(run.stopped) and not facts.delivered + facts.lost
        after, change = (path, None) if is_cut_short else advance(path, facts)
        return WindowRow(session.name, session.src, session.dst, facts, after, change)

    def states(self) -> Mapping[str, State]:
        """Every path's state by now."""
        return {name: path.state for name, path in self.paths.items()}


def _probed(run: RunOutcome) -> tuple[int, int]:
    """When the first and the last probe of a run were seen; where none was, when it began."""
    times = run.hops.t_ns[(run.hops.leg == Leg.FORWARD) & (run.hops.t_ns > 0)]
    return (int(times.min()), int(times.max())) if len(times) else (run.started_ns, run.started_ns)


def _heard(run: RunOutcome) -> dict[str, int]:
    """When each session's last probe arrived for certain: seen at its path's end, or an answer to it was seen."""
    hops = run.hops
    found: dict[str, int] = {}
    if not len(hops):
        return {}
    order = np.argsort(hops.session, kind="stable")
    sorted_sessions = hops.session[order]
    point, leg, t_ns = hops.point[order], hops.leg[order], hops.t_ns[order]
    for number, result in zip(run.sessions, run.results, strict=True):
        first, end = np.searchsorted(sorted_sessions, (number, number + 1))
        here = slice(int(first), int(end))
        last = result.forward.end_to_end.second
        places = [i for i, name in enumerate(run.points) if name == last or name.startswith(f"{last}@")]
        arrived = (leg[here] == Leg.RETURN) | np.isin(point[here], places)
        times = t_ns[here][arrived & (t_ns[here] > 0)]
        if len(times):
            found[result.name] = max(int(times.max()), found.get(result.name, 0))
    return found


def _facts(run: RunOutcome, start_ns: int, end_ns: int) -> dict[str, WindowFacts]:
    """What a window says of each path, by the session's name."""
    heard = _heard(run)
    by_name: dict[str, list[SessionResult]] = {}
    for result in run.results:
        by_name.setdefault(result.name, []).append(result)
    return {name: _facts_of(parts, start_ns, end_ns, heard.get(name)) for name, parts in by_name.items()}


def _facts_of(results: Sequence[SessionResult], start_ns: int, end_ns: int, heard_ns: int | None) -> WindowFacts:
    """Of a guest that moved, all its paths together, without a delay."""
    legs = [result.forward for result in results]
    worst = max(results, key=lambda result: result.forward.lost)
    whole = legs[0].end_to_end
    return WindowFacts(
        start_ns=start_ns,
        end_ns=end_ns,
        sent=sum(leg.planned - leg.unsent for leg in legs),
        delivered=sum(leg.delivered for leg in legs),
        lost=sum(leg.lost for leg in legs),
        undecided=sum(leg.unobserved + leg.pending for leg in legs),
        delay=whole.delay if len(legs) == 1 else None,
        clock_error_ns=whole.clock_error_ns or 0,
        heard_ns=heard_ns,
        last_seen=worst.forward.last_seen,
        first_missing=worst.forward.first_missing,
        reason=worst.reason,
    )


async def watch_plan(
    plan: RunPlan,
    read: Callable[[], Awaitable[Topology]],
    report: Callable[[WindowReport], None],
    *,
    stop: StopRequest,
    windows: int | None = None,
    progress: Progress = lambda _: None,
    run: Run = run_plan,
    now_ns: Callable[[], int] = realtime_ns,
) -> Mapping[str, State]:
    """Watch a plan until somebody asks to stop, or for so many windows.

    Args:
        plan: as written; compiled anew whenever the topology changed.
        read: where things are now.
        report: is told of each window when it is over.
        stop: asked between windows; a signal during a window ends that, and then the watch.
        windows: how many, None for good.
        progress: is told in words what happens.
        run: carries out one window; another one in tests.
        now_ns: CLOCK_REALTIME.

    Returns:
        The state of each path at the end.

    Raises:
        NetprobeError: the very first window cannot be run.
    """
    watcher = Watcher(limits_of(plan.watch), now_ns())
    topology: Topology | None = None
    compiled: CompiledPlan | None = None
    while not stop.asked() and (windows is None or watcher.taken < windows):
        began = trio.current_time()
        outcome: RunOutcome | NetprobeError
        try:
            newest = await read()
            if compiled is None or newest != topology:
                compiled, topology = compile_plan(plan, newest), newest
            todo = window_plan(compiled.plan, watcher.taken)
            outcome = await _expected(run, todo, newest, progress)
        except NetprobeError as error:
            if compiled is None:
                raise
            outcome, todo = error, window_plan(compiled.plan, watcher.taken)
        if isinstance(outcome, NetprobeError) and not watcher.taken:
            raise outcome
        report(watcher.take(compiled, todo, outcome, now_ns()))
        if isinstance(outcome, NetprobeError):
            await _pause(stop, began + plan.watch.window_ns / 1e9)
        elif outcome.stopped.startswith("stopped by"):
            stop.ask(outcome.stopped)
    return watcher.states()


async def _expected(run: Run, plan: RunPlan, topology: Topology, progress: Progress) -> RunOutcome | NetprobeError:
    """The outcome of a run, or the error that it was raised on purpose, also out of a nursery; others pass."""
    try:
        return await run(plan, topology, progress)
    except BaseExceptionGroup as group:
        ours, rest = group.split(NetprobeError)
        if ours is None or rest is not None:
            raise
        return _first(ours)


def _first(group: BaseExceptionGroup[NetprobeError]) -> NetprobeError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _pause(stop: StopRequest, until: float) -> None:
    """Wait, but not for somebody who asked to stop."""
    while trio.current_time() < until and not stop.asked():  # noqa: ASYNC110  signals ask, and they may not touch trio
        await trio.sleep(min(PAUSE_S, max(0.0, until - trio.current_time())))
