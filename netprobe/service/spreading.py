"""Results of flows, put side by side: how many of N pass, and which differ. No I/O.

plan.flows made the sessions, judge.flows compares them; the command line prints what comes out (docs/json.md).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netprobe.collect.intervals import CONFIDENCE, binomial_interval
from netprobe.judge.flows import FlowCount, FlowState, states_of
from netprobe.model.results import Json, SessionResult
from netprobe.plan.flows import FlowGroup
from netprobe.plan.plans import SessionPlan


@dataclass(frozen=True, slots=True)
class FlowRow:
    """One flow.

    Attributes:
        session: name of the session; flow: its number, from 0.
        received, lost, undecided: as in the ledger of its forward leg.
    """

    session: str
    flow: int
    src_port: int
    sent: int
    count: FlowCount
    state: FlowState
    loss_interval_95: tuple[float, float]
    last_seen: str | None
    first_missing: str | None

    def to_json(self) -> Json:
        """As in docs/json.md."""
        known = self.count.received + self.count.lost
        return {
            "session": self.session,
            "flow": self.flow,
            "src_port": self.src_port,
            "sent": self.sent,
            "received": self.count.received,
            "lost": self.count.lost,
            "undecided": self.count.undecided,
            "state": self.state.value,
            "loss_ratio": self.count.lost / known if known else None,
            "loss_interval_95": list(self.loss_interval_95),
            "last_seen": self.last_seen,
            "first_missing": self.first_missing,
        }


@dataclass(frozen=True, slots=True)
class FlowVerdict:
    """All flows of one session.

    Attributes:
        name: of the session in the plan.
    """

    name: str
    rows: tuple[FlowRow, ...]

    def numbers(self, *states: FlowState) -> list[int]:
        """The flows in one of these states."""
        return [row.flow for row in self.rows if row.state in states]

    @property
    def failing_interval_95(self) -> tuple[float, float]:
        """Exact interval of the share of all possible flows that fail or differ, whatever became of the unknown."""
        bad = len(self.numbers(FlowState.FAILS, FlowState.LOSSY))
        open_ = len(self.numbers(FlowState.SUSPECT, FlowState.UNKNOWN))
        total = len(self.rows)
        low, high = binomial_interval(bad, total, CONFIDENCE)[0], binomial_interval(bad + open_, total, CONFIDENCE)[1]
        return low, high

    @property
    def is_failing(self) -> bool:
        """Whether some flow fails, or loses more than the others."""
        return bool(self.numbers(FlowState.FAILS, FlowState.LOSSY))

    @property
    def is_open(self) -> bool:
        """Whether nobody can say of some flow."""
        return bool(self.numbers(FlowState.SUSPECT, FlowState.UNKNOWN))

    def text(self) -> str:
        """The answer in a sentence or two."""
        total = len(self.rows)
        words = [f"{len(self.numbers(FlowState.PASSES))} of {total} flows pass"]
        bad = [row for row in self.rows if row.state in {FlowState.FAILS, FlowState.LOSSY}]
        words += [
            f"flow {r.flow} (source port {r.src_port}) lost {r.count.lost} of {r.count.lost + r.count.received}"
            for r in bad[:MOST_NAMED]
        ]
        words += [f"{len(bad) - MOST_NAMED} more of them"] if len(bad) > MOST_NAMED else []
        if bad and len(bad) < total:
            rest = [row.count for row in self.rows if row not in bad]
            words.append(f"the others {sum(c.lost for c in rest)} of {sum(c.lost + c.received for c in rest)}")
        if self.is_open:
            words.append(f"of {len(self.numbers(FlowState.SUSPECT, FlowState.UNKNOWN))} nobody can say: send more")
        return "; ".join(words)

    def to_json(self) -> Json:
        """As in docs/json.md."""
        counts = Counter(row.state for row in self.rows)
        return {
            "name": self.name,
            "flows": len(self.rows),
            **{state.value: counts[state] for state in FlowState},
            "failing": self.numbers(FlowState.FAILS, FlowState.LOSSY),
            "failing_interval_95": list(self.failing_interval_95),
            "text": self.text(),
        }


MOST_NAMED = 4


def flow_verdicts(
    groups: Sequence[FlowGroup], sessions: Sequence[SessionPlan], results: Iterable[SessionResult]
) -> tuple[FlowVerdict, ...]:
    """Every group of flows with its rows.

    Args:
        groups: from plan.mesh.
        sessions: of the compiled plan.
        results: of the run; a session whose guest moved has several.
    """
    by_name: dict[str, list[SessionResult]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    return tuple(
        _verdict(group, [by_name.get(s.name, []) for s in sessions[group.first : group.first + group.count]])
        for group in groups
    )


def _verdict(group: FlowGroup, flows: Sequence[Sequence[SessionResult]]) -> FlowVerdict:
    counts = [_count(parts) for parts in flows]
    states = states_of(counts)
    return FlowVerdict(
        group.name,
        tuple(_row(i, parts, counts[i], states[i]) for i, parts in enumerate(flows) if parts),
    )


def _count(parts: Sequence[SessionResult]) -> FlowCount:
    legs = [part.forward for part in parts]
    return FlowCount(
        received=sum(leg.delivered for leg in legs),
        lost=sum(leg.lost for leg in legs),
        undecided=sum(leg.unobserved + leg.pending for leg in legs),
    )


def _row(number: int, parts: Sequence[SessionResult], count: FlowCount, state: FlowState) -> FlowRow:
    total = count.received + count.lost + count.undecided
    worst = max((part.forward for part in parts), key=lambda leg: leg.lost)
    port = parts[0].type_p.get("src_port")
    return FlowRow(
        session=parts[0].name,
        flow=number,
        src_port=port if isinstance(port, int) else 0,
        sent=total,
        count=count,
        state=state,
        loss_interval_95=(
            binomial_interval(count.lost, total)[0],
            binomial_interval(count.lost + count.undecided, total)[1],
        ),
        last_seen=worst.last_seen,
        first_missing=worst.first_missing,
    )
