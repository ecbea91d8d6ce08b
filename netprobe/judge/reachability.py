"""A path's state from window to window: reachable, degraded, unreachable, unobserved. Pure.

The state follows the verdicts of sequential tests (judge.sequential), never a single sample, so it does not flap: a
verdict stands until another test has decided otherwise. Only "unobserved" needs no test: in that window nobody could
say anything of any probe. service.watch_plan, above, makes the facts out of a run's results.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from netprobe.judge.sequential import Counted, Running, ShareTest, Verdict, step
from netprobe.model.results import Delay, Json

REACH_FINE, REACH_BAD = 0.5, 0.99
"""Losing half of the probes, a path is reachable, however bad; losing 99 of 100, it is not."""

P99_SHARE = 0.01
LEAST_BAD_LOSS = 0.01  # what is surely too much where no loss at all is allowed
RANK_SLACK = 1e-9  # of a float product; collect.histogram has the same


class State(Enum):
    """States of a path; a closed set."""

    REACHABLE = "reachable"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"
    UNOBSERVED = "unobserved"


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of a watch; None where there is none. What they mean: docs/watch.md."""

    max_loss: float | None
    max_p99_ns: int | None
    factor: float
    alpha: float
    beta: float

    def tests(self) -> dict[str, ShareTest]:
        """The tests that they ask for, by name; `reach` is always there."""
        found = {"reach": ShareTest(REACH_FINE, REACH_BAD, self.alpha, self.beta)}
        if self.max_loss is not None:
            bad = min(max(self.max_loss * self.factor, LEAST_BAD_LOSS), (1 + self.max_loss) / 2)
            found["loss"] = ShareTest(self.max_loss, bad, self.alpha, self.beta)
        if self.max_p99_ns is not None:
            bad = min(P99_SHARE * self.factor, (1 + P99_SHARE) / 2)
            found["p99"] = ShareTest(P99_SHARE, bad, self.alpha, self.beta)
        return found


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """What one window found out about a path; the forward leg's.

    Attributes:
        start_ns, end_ns: CLOCK_REALTIME.
        undecided: sent probes of which nobody can say: unobserved or pending.
        delay: end to end, None where no probe has a time at both ends.
        clock_error_ns: by how much each delay may be off either way, where two clocks made it.
        heard_ns: when a probe is last known to have arrived, None where none is.
        last_seen, first_missing: of the largest group of lost probes.
        reason: why they were lost, as JSON.
    """

    start_ns: int
    end_ns: int
    sent: int
    delivered: int
    lost: int
    undecided: int
    delay: Delay | None = None
    clock_error_ns: int = 0
    heard_ns: int | None = None
    last_seen: str | None = None
    first_missing: str | None = None
    reason: Json | None = None

    @classmethod
    def nothing(cls, start_ns: int, end_ns: int) -> "WindowFacts":
        """Of a window in which nobody looked."""
        return cls(start_ns, end_ns, sent=0, delivered=0, lost=0, undecided=0)


@dataclass(frozen=True, slots=True)
class Change:
    """A path is in another state.

    Attributes:
        since_ns: from when on, as well as it is known; see docs/watch.md.
        at_ns: end of the window in which it was decided.
        tests: which tests decided it, with the samples behind each; empty for unobserved.
    """

    before: State
    after: State
    since_ns: int
    at_ns: int
    tests: Mapping[str, int]
    last_seen: str | None
    first_missing: str | None
    reason: Json | None

    def to_json(self) -> Json:
        """As in docs/watch.md, without the path's name; times in ns."""
        return {
            "from": self.before.value,
            "to": self.after.value,
            "since_ns": self.since_ns,
            "at_ns": self.at_ns,
            "tests": dict(self.tests),
            "last_seen": self.last_seen,
            "first_missing": self.first_missing,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class PathState:
    """What is known of a path by now.

    Attributes:
        since_ns: since when it is in this state.
        running: its tests, by name.
        heard_ns: when a probe last arrived for certain, over all windows.
    """

    limits: Limits
    state: State
    since_ns: int
    running: Mapping[str, Running] = field(default_factory=dict)
    heard_ns: int | None = None

    @classmethod
    def start(cls, limits: Limits, now_ns: int) -> "PathState":
        """Nothing has been seen yet."""
        return cls(limits, State.UNOBSERVED, now_ns, _restarted(limits.tests(), now_ns))


Since = tuple[int, list[str]]


def _restarted(names: Mapping[str, object], now_ns: int) -> dict[str, Running]:
    return {name: Running.start(now_ns) for name in names}


def exceeding(delay: Delay, lost: int, limit_ns: int) -> tuple[int, int]:
    """How many of the samples and the lost probes exceed a delay: at least, and at most.

    A quantile says on which side of it the limit lies, and so between which ranks the number is. Lost probes count as
    infinitely late (RFC 7679 §4).
    """
    total = delay.samples + lost
    if delay.min > limit_ns:
        return total, total
    if delay.max <= limit_ns:
        return lost, lost
    low, high = lost + 1, total - 1
    for share, quantile in ((0.5, delay.p50), (0.9, delay.p90), (0.99, delay.p99)):
        rank = max(1, math.ceil(share * total - RANK_SLACK))
        if quantile is not None and quantile <= limit_ns:
            high = min(high, total - rank)
        else:
            low = max(low, total - rank + 1)
    return low, max(low, high)  # quantiles are rounded, the extremes are not: they may disagree by one rank


def _counted(name: str, facts: WindowFacts, limits: Limits) -> Counted | None:
    """What a window says to one test; None where it says nothing."""
    decided = facts.delivered + facts.lost
    if name != "p99":
        return Counted(facts.lost, facts.lost, decided, facts.undecided) if decided else None
    if facts.delay is None or limits.max_p99_ns is None:
        return None
    total = facts.delay.samples + facts.lost
    error, limit = facts.clock_error_ns, limits.max_p99_ns
    surely = exceeding(facts.delay, facts.lost, limit + error)
    maybe = exceeding(facts.delay, facts.lost, limit - error)
    return Counted(*surely, total, max(0, facts.sent - total), worst=maybe)


def _stepped(name: str, running: Running, facts: WindowFacts, limits: Limits, test: ShareTest) -> Running:
    counted = _counted(name, facts, limits)
    return running if counted is None else step(test, running, counted, facts.end_ns)


def _tested(path: PathState, facts: WindowFacts) -> Mapping[str, Running]:
    """All tests after a window. Thresholds are asked only while the path is reachable, and anew after each outage."""
    tests = path.limits.tests()
    before = path.running
    reach = _stepped("reach", before["reach"], facts, path.limits, tests["reach"])
    others = {name: test for name, test in tests.items() if name != "reach"}
    if reach.verdict is not Verdict.FINE or before["reach"].verdict is Verdict.BAD:
        return {"reach": reach, **_restarted(others, facts.end_ns)}
    return {
        "reach": reach,
        **{name: _stepped(name, before[name], facts, path.limits, test) for name, test in others.items()},
    }


def _state_of(running: Mapping[str, Running], before: State) -> State:
    reach = running["reach"].verdict
    if reach is Verdict.OPEN:
        return before
    if reach is Verdict.BAD:
        return State.UNREACHABLE
    return State.DEGRADED if any(r.verdict is Verdict.BAD for r in running.values()) else State.REACHABLE


def _since(path: PathState, after: State, running: Mapping[str, Running], heard_ns: int | None) -> Since:
    """Since when a state that tests decided holds, and their names."""
    if after is State.UNREACHABLE:
        return (running["reach"].changed_ns if heard_ns is None else heard_ns), ["reach"]
    if after is State.DEGRADED:
        names = [name for name, r in running.items() if r.verdict is Verdict.BAD]
        return min(running[name].changed_ns for name in names), names
    was_bad = [name for name, r in path.running.items() if r.verdict is Verdict.BAD]
    names = was_bad if path.state is State.DEGRADED else ["reach"]
    return max(running[name].changed_ns for name in names), names


def advance(path: PathState, facts: WindowFacts) -> tuple[PathState, Change | None]:
    """A path's state after one more window.

    Args:
        path: its state so far.
        facts: of the window; windows come in order.

    Returns:
        The new state, and the change if there is one.
    """
    heard = [t for t in (path.heard_ns, facts.heard_ns) if t is not None]
    heard_ns = max(heard) if heard else None
    if not facts.delivered + facts.lost:
        after = State.UNOBSERVED
        running: Mapping[str, Running] = _restarted(path.running, facts.end_ns)
    else:
        running = _tested(path, facts)
        after = _state_of(running, path.state)
    moved = replace(path, running=running, heard_ns=heard_ns)
    if after is path.state:
        return moved, None
    names: list[str] = []
    since_ns = facts.start_ns
    if after is not State.UNOBSERVED:
        since_ns, names = _since(path, after, running, heard_ns)
    is_lossy = after in {State.UNREACHABLE, State.DEGRADED} and facts.first_missing is not None
    change = Change(
        before=path.state,
        after=after,
        since_ns=since_ns,
        at_ns=facts.end_ns,
        tests={name: running[name].decided_by for name in names},
        last_seen=facts.last_seen if is_lossy or after is State.UNOBSERVED else None,
        first_missing=facts.first_missing if is_lossy else None,
        reason=facts.reason if is_lossy else None,
    )
    return replace(moved, state=after, since_ns=since_ns), change
