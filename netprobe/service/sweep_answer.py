"""What a sweep over frame sizes says: the answer of one leg, and its JSON. No I/O.

judge.sizes says which sizes pass; service.sweeping sends and asks here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from netprobe.judge.sizes import SizeRecord, Sizes, SizeState, judge_sizes
from netprobe.model.points import segment_id
from netprobe.model.results import Json
from netprobe.plan.sweep import ETHERNET_BYTES, ranges_of


@dataclass(frozen=True, slots=True)
class SweepAnswer:
    """What a sweep says of one leg.

    Attributes:
        verdict: `all-pass`, `limited`, `unreachable`, `unobserved` or `inconclusive`.
        passes_up_to: bytes without FCS: the largest size below which none that was tried fails; None where the smallest
            fails.
        first_failing: the smallest size that fails; None where none does.
        is_exact: whether the two are neighbours.
        record: of the smallest size that fails, or of what did not arrive at all; None where all passed.
        failing: ranges of sizes that fail, from first to last that was tried.
        why: what is wrong with an answer that is none, in words.
    """

    verdict: str
    sizes: Sizes
    passes_up_to: int | None = None
    first_failing: int | None = None
    is_exact: bool = False
    record: SizeRecord | None = None
    failing: tuple[tuple[int, int], ...] = ()
    why: str = ""


def answer_of(records: Mapping[int, SizeRecord], void: Mapping[int, SizeRecord], stopped: str) -> SweepAnswer:
    """The answer that records give.

    Args:
        records: of the runs in which something arrived, by size.
        void: of the others.
        stopped: why the sweep ended early, "" when it did not.
    """
    sizes = judge_sizes(list(records.values()))
    if not any(record.passed for record in records.values()):
        nothing = min(void.values(), key=lambda record: record.size, default=None)
        lost = sum(record.lost for record in void.values())
        sent = sum(record.sent for record in void.values())
        verdict = "unreachable" if lost * 2 > sent else "unobserved"
        return SweepAnswer(verdict, replace(sizes, records=void, states=_all_open(void)), record=nothing, why=stopped)
    failing = sorted(size for size, state in sizes.states.items() if state is SizeState.FAILS)
    first = failing[0] if failing else None
    below = max((size for size in sizes.states if first is None or size < first), default=None)
    answer = SweepAnswer(
        verdict="limited" if failing else "all-pass",
        sizes=sizes,
        passes_up_to=below,
        first_failing=first,
        is_exact=first is None or below is None or first - below == 1,
        record=None if first is None else sizes.records[first],
        failing=ranges_of(failing, sizes.states),
    )
    why = _doubt(sizes, stopped)
    # An answer that is none names no size: half of one would be believed.
    return SweepAnswer("inconclusive", sizes, why=why) if why else answer


def _all_open(records: Mapping[int, SizeRecord]) -> dict[int, SizeState]:
    return dict.fromkeys(records, SizeState.OPEN)


def _doubt(sizes: Sizes, stopped: str) -> str:
    """Why there is no answer, "" where there is one."""
    if stopped:
        return stopped
    if sizes.contradictions:
        which = ", ".join(map(str, sizes.contradictions[:4]))
        return f"{which} bytes passed in one run and failed in another: the limit moves, or depends on the flow"
    open_ = [size for size, state in sizes.states.items() if state is SizeState.OPEN]
    if open_:
        which = ", ".join(map(str, open_[:4])) + (f" and {len(open_) - 4} more" if len(open_) > 4 else "")
        return f"the path loses up to {sizes.loss_bound:.0%} of what passes: of {which} bytes chance may have taken all"
    return ""


def _packet(size: int | None) -> int | None:
    return None if size is None else size - ETHERNET_BYTES


def _where(record: SizeRecord | None, end: str) -> Json:
    """Between which points a size is lost; not `certain` where it may as well be its answers, first stretch back."""
    place = None if record is None else record.place
    if place is None:
        return {"segment": None, "last_seen": None, "first_missing": None, "certain": False, "reason": None}
    is_certain = place.first_missing is not None
    second = place.first_missing or end
    return {
        "segment": segment_id(place.last_seen, second),
        "last_seen": place.last_seen,
        "first_missing": second,
        "certain": is_certain,
        "reason": (place.reason or None) if is_certain else "unanswered",
    }


def answer_json(answer: SweepAnswer, end: str) -> Json:
    """The answer of one leg, whose last point is `end`."""
    return {
        "verdict": answer.verdict,
        "passes_up_to": answer.passes_up_to,
        "first_failing": answer.first_failing,
        "passes_up_to_packet": _packet(answer.passes_up_to),
        "first_failing_packet": _packet(answer.first_failing),
        "exact": answer.is_exact,
        "failing": [list(pair) for pair in answer.failing],
        **_where(answer.record, end),
        "loss_bound": answer.sizes.loss_bound,
        "why": answer.why or None,
    }


def _size_json(record: SizeRecord, state: SizeState) -> Json:
    place = record.place
    return {
        "size": record.size,
        "packet": record.size - ETHERNET_BYTES,
        "state": state.value,
        "sent": record.sent,
        "passed": record.passed,
        "lost": record.lost,
        "silent": record.sent - record.passed - record.lost,
        "last_seen": place.last_seen if place else None,
        "first_missing": place.first_missing if place else None,
    }


def sizes_json(answer: SweepAnswer) -> list[Json]:
    """One object a size, ascending."""
    sizes = answer.sizes
    return [_size_json(sizes.records[size], sizes.states[size]) for size in sorted(sizes.records)]
