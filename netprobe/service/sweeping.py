"""`trace --mtu`: runs over many frame sizes, until the byte is known at which a path begins to swallow them.

plan.sweep says which sizes to try next, judge.sizes what the counts prove; this module sends, run after run, and puts
the answer together. All probes of IPv4 carry DF (inject.templates), IPv6 never fragments on the way.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from netprobe.errors import HostNotReadyError
from netprobe.host.iproute import mtu
from netprobe.host.signals import StopRequest
from netprobe.judge.sizes import Place, SizeRecord, SizeRun, Sizes, SizeState, judge_sizes
from netprobe.model.results import Json, LegResult, SessionResult
from netprobe.model.topology import Topology
from netprobe.plan.flows import slowed
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.plan.sweep import ETHERNET_BYTES, first_sizes, gaps, rounds, sizes_between
from netprobe.service.prepare import resolve
from netprobe.service.run import Progress, RunOutcome, run_plan
from netprobe.service.sweep_answer import SweepAnswer, answer_json, answer_of, sizes_json
from netprobe.wire.mark import min_frame_size

PER_RUN = 8
"""Sizes in one run: as many orders as a guest's agent carries out at a time (netprobe_agents.session)."""

PROBES = 4
"""Of each size in a run, unless the user says otherwise."""

MAX_PROBES = 64  # of one size in one run
CALIBRATION = 32
"""Of some sizes that pass, once, where many do not: knowing the path's loss is cheaper than asking all again."""

MAX_RUNS = 200
MAX_VOID = 2
"""Runs of which nothing arrived, one after the other: the path is down, whatever the size."""

DEFAULT_MTU = 1500  # where the sender's NIC cannot be asked
Run = Callable[[RunPlan, Topology, Progress], Awaitable[RunOutcome]]


@dataclass(slots=True)
class Sweep:
    """A sweep under way, and what came out.

    Attributes:
        void: what runs said of which nothing arrived.
        unsent: sizes that the sender did not send.
        ends: id of the last point of each leg, once a run told.
        confirmed: limits that were asked once more.
        is_calibrated: the path's loss was asked by itself.
        results: of all runs, with the number of the session behind each.
        stopped: why it ended early, "" when it did not.
    """

    smallest: int
    largest: int
    forward: dict[int, SizeRecord] = field(default_factory=dict)
    returned: dict[int, SizeRecord] = field(default_factory=dict)
    void: dict[int, SizeRecord] = field(default_factory=dict)
    unsent: set[int] = field(default_factory=set)
    ends: dict[str, str] = field(default_factory=dict)
    results: list[SessionResult] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)
    confirmed: set[tuple[int, ...]] = field(default_factory=set)
    is_calibrated: bool = False
    runs: int = 0
    started_ns: int = 0
    stopped: str = ""

    def answer(self) -> SweepAnswer:
        """What the forward leg says."""
        return answer_of(self.forward, self.void, self.stopped)

    def answer_back(self) -> SweepAnswer | None:
        """What the answers' leg says; None where no answer is expected, or none was due."""
        return answer_of(self.returned, {}, self.stopped) if self.returned else None

    def to_json(self) -> Json:
        """The `mtu` of docs/json.md."""
        answer, back = self.answer(), self.answer_back()
        return {
            **answer_json(answer, self.ends.get("forward", "")),
            "smallest": self.smallest,
            "largest": self.largest,
            "unsent": sorted(self.unsent),
            "runs": self.runs,
            "sizes": sizes_json(answer),
            "return": None if back is None else answer_json(back, self.ends.get("returned", "")),
        }


def largest_size(session: SessionPlan, topology: Topology) -> int:
    """The largest frame that the sender's own NIC takes, bytes without FCS."""
    _, _, sender = resolve(session, topology)
    with suppress(HostNotReadyError):
        return mtu(sender.netns, sender.device) + ETHERNET_BYTES
    return DEFAULT_MTU + ETHERNET_BYTES


async def sweep_sizes(
    plan: RunPlan, topology: Topology, stop: StopRequest, progress: Progress, *, run: Run = run_plan
) -> Sweep:
    """Find out which sizes of frame a path swallows.

    Args:
        plan: of one session; its size is chosen here, its count is that of each size in a run, its rate that of all.
        topology: where things are.
        stop: once it is asked, no further run is begun.
        progress: is told in words what happens.
        run: carries out one run; another one in tests.

    Raises:
        UsageError, RefusedError, HostNotReadyError: from the first run, as `run_plan`.
    """
    session = plan.sessions[0]
    sweep = Sweep(min_frame_size(session.protocol, session.family), largest_size(session, topology))
    first = first_sizes(sweep.smallest, sweep.largest)
    ends = (first[0], first[len(first) // 2], first[-1])  # a path that is down is found out with few probes
    waiting = deque((chunk, session.count) for chunk in (ends, *rounds(first, PER_RUN - 1)))
    voids = 0
    while not sweep.stopped and voids < MAX_VOID and sweep.runs < MAX_RUNS:
        if not waiting and not (waiting := _next(sweep, session.count)):
            break
        sizes, count = waiting[0]
        chunk = sorted({_control(sweep), *(() if voids else sizes)})  # nothing arrived: is the path still there?
        progress(f"run {sweep.runs + 1}: {len(chunk)} sizes from {chunk[0]} to {chunk[-1]} bytes, {count} probes each")
        outcome = await run(_plan_of(plan, chunk, count, sweep.runs), topology, lambda _: None)
        sweep.stopped = outcome.stopped or stop.why
        was_void = voids > 0
        is_void = not _take(sweep, chunk, outcome)
        voids = voids + 1 if is_void else 0
        if not is_void and not was_void:
            waiting.popleft()
    if voids >= MAX_VOID and sweep.forward:
        sweep.stopped = "nothing arrived any more: the path went down"
    if sweep.runs >= MAX_RUNS:
        sweep.stopped = f"no end after {MAX_RUNS} runs"
    return sweep


def _control(sweep: Sweep) -> int:
    """A size that is known to pass goes along in each run: what is lost beside it is not lost in an outage."""
    return min((size for size, record in sweep.forward.items() if record.passed), default=sweep.smallest)


def _plan_of(plan: RunPlan, sizes: Sequence[int], count: int, number: int) -> RunPlan:
    """Sessions of these sizes that take turns, so that all of them meet the same weather."""
    session = plan.sessions[0]
    each = replace(slowed(session, len(sizes)), count=count, probe_mtu=True)
    gap_ns = 1_000_000_000 // session.rate_pps
    sessions = tuple(
        replace(each, name=f"{size} bytes", size_bytes=size, start_ns=i * gap_ns) for i, size in enumerate(sizes)
    )
    return replace(plan, sessions=sessions, seed=(plan.seed + number) % (1 << 32))


def _furthest(leg: LegResult) -> str | None:
    """The furthest point that any probe was seen at."""
    reached = [segment.first for segment in leg.segments if segment.sent]
    return reached[-1] if reached else leg.last_seen


def _record(size: int, leg: LegResult, reason: Json | None) -> SizeRecord:
    sent = leg.planned - leg.unsent
    run = SizeRun(sent, leg.delivered, leg.lost)
    code = str((reason or {}).get("code") or "")
    places = []
    if leg.lost and leg.last_seen:
        places.append((Place(leg.last_seen, leg.first_missing, code), leg.lost))
    if run.silent and (furthest := _furthest(leg)):
        places.append((Place(furthest), run.silent))
    return SizeRecord(size, (run,), tuple(places))


def _take(sweep: Sweep, sizes: Sequence[int], outcome: RunOutcome) -> bool:
    """Count a run; False where nothing arrived, so that it says nothing about sizes."""
    size_of = {f"{size} bytes": size for size in sizes}
    sweep.runs += 1
    sweep.started_ns = sweep.started_ns or outcome.started_ns
    sweep.results += outcome.results
    sweep.sessions += outcome.sessions
    is_void = not any(result.forward.delivered for result in outcome.results)
    into = sweep.void if is_void else sweep.forward
    for result in outcome.results:
        size = size_of[result.name]
        if result.forward.planned == result.forward.unsent:
            sweep.unsent.add(size)
            continue
        sweep.ends["forward"] = result.forward.end_to_end.second
        _add(into, _record(size, result.forward, result.reason))
        if result.returned and result.returned.planned:
            sweep.ends["returned"] = result.returned.end_to_end.second
            _add(sweep.returned, _record(size, result.returned, None))
    return not is_void


def _add(records: dict[int, SizeRecord], record: SizeRecord) -> None:
    before = records.get(record.size)
    records[record.size] = record if before is None else before.plus(record)


Waiting = deque[tuple[tuple[int, ...], int]]


def _next(sweep: Sweep, count: int) -> Waiting:
    """The runs that are needed before the sweep can answer; none when it can, or when no run would help."""
    sizes = judge_sizes(list(sweep.forward.values()))
    if sizes.contradictions:
        return deque()
    if SizeState.OPEN in sizes.states.values():
        return _about_open(sweep, sizes, count)
    back = judge_sizes(list(sweep.returned.values())).passes
    for passes in (sizes.passes, back):
        between = [size for size in sizes_between(passes, PER_RUN - 3) if size not in sweep.unsent]
        if between:
            low, high = gaps(passes)[0]
            return deque([((low, *between, high), count)])
    edge = _edge(sizes)
    if edge and edge not in sweep.confirmed:  # once more, with new probes: neither a moment nor a source port made it
        sweep.confirmed.add(edge)
        return deque([(edge, max(count, min(2 * sizes.needed, MAX_PROBES)))])
    return deque()


def _about_open(sweep: Sweep, sizes: Sizes, count: int) -> Waiting:
    """Runs that tell chance from size, where none arrived of some; none where no number of probes would."""
    open_ = sorted(size for size, state in sizes.states.items() if state is SizeState.OPEN)
    if len(open_) > PER_RUN and not sweep.is_calibrated:
        sweep.is_calibrated = True
        passing = [size for size, state in sizes.states.items() if state is SizeState.PASSES]
        return deque([(tuple(passing[:PER_RUN]), max(count, CALIBRATION))])
    if not 0 < sizes.needed <= MAX_PROBES:
        return deque()
    more = sizes.needed - min(sizes.records[size].sent for size in open_)
    return deque((chunk, max(count, more)) for chunk in rounds(open_, PER_RUN - 1))


def _edge(sizes: Sizes) -> tuple[int, ...]:
    """The smallest size that fails, and the one below it."""
    failing = [size for size, state in sizes.states.items() if state is SizeState.FAILS]
    if not failing:
        return ()
    first = min(failing)
    below = max((size for size in sizes.states if size < first), default=None)
    return (first,) if below is None else (below, first)
