"""Segment statistics: loss with its interval, delay, PDV, duplicates and reordering between two stops of a path.

Pure. Reads the tables of collect.arrivals and the fates of collect.ledger; model.results holds what comes out.
Sources: RFC 7679 (one-way delay), RFC 7680 (loss), RFC 5481 §4.2 (PDV), RFC 4737 §3 (reordering), RFC 5560
(duplication).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from netprobe.collect.across import Figures, figures_across
from netprobe.collect.arrivals import Arrivals, Flags
from netprobe.collect.domains import ClockMap
from netprobe.collect.histogram import Histogram
from netprobe.collect.intervals import loss_bounds, median_interval, quantile_ranks
from netprobe.collect.ledger import Ledger
from netprobe.collect.reordering import Passings, reordered
from netprobe.model.points import LOOKING, Stamp, Stop, segment_id, segment_kind
from netprobe.model.records import NO_TIME
from netprobe.model.results import Delay, Pdv, SegmentResult

COUNTING = LOOKING | {Stamp.PACKET}
"""Stamps of stops that see every copy: a ring, and a reflector that answers each."""

MAX_UNDECIDED = 0.05
"""Share of undecided probes above which a loss ratio is not stated; the interval always is."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The single delays behind a segment: shape (n,) each.

    `seq` are the probes with a time at both stops; `delay_ns` may be negative, which is a clock problem. Between two
    clocks it is only a difference of stamps (see collect.across).
    """

    seq: npt.NDArray[np.int64]
    delay_ns: npt.NDArray[np.int64]


def samples_between(arrivals: Arrivals, first: int, second: int) -> Samples:
    """Delays of the probes that carry a time at both stops."""
    start, end = arrivals.first_ns[first], arrivals.first_ns[second]
    seq = np.flatnonzero((start != NO_TIME) & (end != NO_TIME))
    return Samples(seq, end[seq] - start[seq])


def known_copies(stops: Sequence[Stop], arrivals: Arrivals, base: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many copies of each probe are known to have come as far as each stop: shape (stops, count).

    Where a stop missed a probe, or can count none (an answer proves presence, not copies), the nearest count before it
    holds.

    Args:
        stops: the leg's stops.
        arrivals: its tables.
        base: shape (count,); copies with which the leg starts.
    """
    known = np.empty(arrivals.copies.shape, np.int64)
    known[0] = np.maximum(base, 1)
    for i in range(len(stops)):
        before = known[max(i - 1, 0)]
        counts = stops[i].stamp in COUNTING and bool(i or stops[i].stamp is Stamp.PACKET)
        known[i] = np.where((arrivals.copies[i] > 0) & counts, arrivals.copies[i], before)
    return known


def duplicated_between(
    arrivals: Arrivals, known: npt.NDArray[np.int64], first: int, second: int
) -> npt.NDArray[np.int64]:
    """Copies that were added between two stops: shape (count,). Of what `second` did not see, none."""
    surplus: npt.NDArray[np.int64] = np.maximum(known[second] - known[first], 0)
    return np.where(arrivals.copies[second] > 0, surplus, 0)


def reordered_between(arrivals: Arrivals, first: int, second: int) -> Flags:
    """Type-P-Reordered of RFC 4737 §3.3 between two stops: shape (count,), bool.

    See collect.reordering; what the order at `first` was before does not count against this segment.
    """
    both = np.flatnonzero((arrivals.number[first] >= 0) & (arrivals.number[second] >= 0))
    flags = np.zeros(arrivals.number.shape[1], np.bool_)
    flags[both] = reordered(passings_between(arrivals, first, second, both))
    return flags


def passings_between(arrivals: Arrivals, first: int, second: int, seq: npt.NDArray[np.int64]) -> Passings:
    """When these probes, which carry a time at both stops, passed them."""
    return Passings(
        arrivals.first_ns[first][seq],
        arrivals.number[first][seq],
        arrivals.first_ns[second][seq],
        arrivals.number[second][seq],
    )


def delay_of(delays_ns: npt.NDArray[np.int64], lost: int) -> tuple[Delay, Pdv] | None:
    """Delay and PDV of a segment; lost probes count as infinite, so a quantile may be None."""
    return delay_from(Histogram.of(delays_ns), lost, median_interval(delays_ns, lost))


def delay_from(histogram: Histogram, lost: int, interval: tuple[int, int | None] | None) -> tuple[Delay, Pdv] | None:
    """The same from a histogram of the delays, and the interval of their median."""
    if not histogram.samples:
        return None
    p50, p90, p99 = (histogram.quantile_ns(q, lost) for q in (0.5, 0.9, 0.99))
    delay = Delay(
        min=histogram.min_ns,
        p50=p50,
        p90=p90,
        p99=p99,
        max=histogram.max_ns,
        samples=histogram.samples,
        p50_interval_95=interval,
        histogram=histogram.shown(),
        p99_interval_95=_interval_of(histogram, lost, 0.99),
    )
    above = [None if q is None else q - delay.min for q in (p50, p90, p99)]
    return delay, Pdv(p50=above[0], p90=above[1], p99=above[2], max=delay.max - delay.min)


def _interval_of(histogram: Histogram, lost: int, q: float) -> tuple[int, int | None] | None:
    """The interval of a quantile, within the histogram's error; None where even its lower end is infinite."""
    n = histogram.samples + lost
    low_rank, high_rank = quantile_ranks(n, q)
    low = histogram.quantile_ns(low_rank / n, lost) if low_rank else histogram.min_ns
    if low is None:
        return None
    return low, histogram.quantile_ns(high_rank / n, lost) if high_rank <= n else None


def _stamp(first: Stop, second: Stop) -> str:
    names = (first.stamp.value, second.stamp.value)
    return names[0] if names[0] == names[1] else f"{names[0]}/{names[1]}"


def loss_ratio(lost: int, received: int, undecided: int) -> float | None:
    """Loss among the decided probes; None where too many are undecided for it to mean anything."""
    known = received + lost
    if not known or undecided > MAX_UNDECIDED * (known + undecided):
        return None
    return lost / known


@dataclass(frozen=True, slots=True)
class LegTables:
    """Everything that segments of one leg are made from.

    Attributes:
        copies: shape (stops, count); `known_copies`.
        clocks: whose clock stamps where; None: one stamps all.
        unwatched: ids of points where nobody looked.
        reordered: probes that were reordered between two stops, where more is known than these tables hold.
    """

    stops: Sequence[Stop]
    arrivals: Arrivals
    ledger: Ledger
    copies: npt.NDArray[np.int64]
    clocks: ClockMap | None = None
    unwatched: frozenset[str] = frozenset()
    reordered: Mapping[tuple[int, int], int] | None = None

    def reordered_between(self, first: int, second: int) -> int:
        """How many probes were reordered between two stops."""
        if self.reordered is not None:
            return self.reordered.get((first, second), 0)
        return int(np.count_nonzero(reordered_between(self.arrivals, first, second)))

    def spans(self) -> set[tuple[int, int]]:
        """Pairs of stops that are neighbours among those where somebody looked, with others in between."""
        watched = [i for i, stop in enumerate(self.stops) if stop.point.id not in self.unwatched]
        return {(a, b) for a, b in pairwise(watched) if b > a + 1}


def _figures(leg: LegTables, first: int, second: int, lost: int) -> Figures:
    """What is to be said of the delays between two stops."""
    samples = samples_between(leg.arrivals, first, second)
    clocks = leg.clocks
    if clocks is not None:
        domains = clocks.domain(leg.stops[first].point), clocks.domain(leg.stops[second].point)
        if domains[0] != domains[1]:
            start, end = leg.arrivals.first_ns[first][samples.seq], leg.arrivals.first_ns[second][samples.seq]
            return figures_across(clocks.delay(start, domains[0], end, domains[1]), lost, domains)
    usable = samples.delay_ns[samples.delay_ns >= 0]
    delay, pdv = delay_of(usable, lost) or (None, None)
    return Figures(delay, pdv, negative=len(samples.delay_ns) - len(usable))


@dataclass(frozen=True, slots=True)
class Counts:
    """What is counted between two stops; see model.results.SegmentResult."""

    sent: int
    received: int
    lost: int
    reordered: int
    duplicated: int


def segment_row(stops: Sequence[Stop], pair: tuple[int, int], counts: Counts, figures: Figures) -> SegmentResult:
    """The result of one segment."""
    first, second = stops[pair[0]], stops[pair[1]]
    a, b = first.point, second.point
    undecided = counts.sent - counts.received - counts.lost
    return SegmentResult(
        id=segment_id(a.id, b.id),
        first=a.id,
        second=b.id,
        kind=segment_kind(a.kind, b.kind),
        sent=counts.sent,
        received=counts.received,
        lost=counts.lost,
        undecided=undecided,
        loss_ratio=loss_ratio(counts.lost, counts.received, undecided),
        loss_interval_95=loss_bounds(counts.lost, undecided, counts.sent),
        delay=figures.delay,
        pdv=figures.pdv,
        negative=figures.negative,
        reordered=counts.reordered,
        duplicated=counts.duplicated,
        stamp=_stamp(first, second),
        clock_error_ns=figures.clock_error_ns,
        clock_problem=figures.clock_problem,
        delay_bounds=figures.delay_bounds,
    )


def _segment(leg: LegTables, first: int, second: int, lost: int) -> SegmentResult:
    counts = Counts(
        sent=int(np.count_nonzero(leg.ledger.last_stop >= first)),
        received=int(np.count_nonzero(leg.ledger.last_stop >= second)),
        lost=lost,
        reordered=leg.reordered_between(first, second),
        duplicated=int(duplicated_between(leg.arrivals, leg.copies, first, second).sum()),
    )
    return segment_row(leg.stops, (first, second), counts, _figures(leg, first, second, lost))


def segment_results(leg: LegTables) -> tuple[SegmentResult, ...]:
    """One result a pair of neighbouring stops, in travel order.

    Where a stop in between was blind to some lost probes, their loss is stated for the wider span, as a row of its own;
    likewise where nobody looked in between at all.
    """
    rows = {(i, i + 1) for i in range(len(leg.stops) - 1)}
    wide = ({(first, second) for first, second, _ in leg.ledger.lost_spans()} | leg.spans()) - rows
    results = {pair: _segment(leg, *pair, leg.ledger.lost_between(*pair)) for pair in rows | wide}
    for pair in wide:  # copies and overtaking are the business of the rows within
        results[pair] = replace(results[pair], reordered=0, duplicated=0)
    return tuple(results[pair] for pair in sorted(results))


def end_to_end(leg: LegTables) -> SegmentResult:
    """The whole leg as one segment; its loss is the loss of all spans."""
    return _segment(leg, 0, len(leg.stops) - 1, sum(n for _, _, n in leg.ledger.lost_spans()))
