"""Totals of a session whose windows have been settled one by one: counts and histograms add up. Pure.

They are the figures that collect.ledger and collect.segments give for the whole session at once, with two exceptions:
the interval of a median comes from the histogram, within its error; and a row for a wider span, which is there because
some probes were lost in it, has no delay unless it was known from the start that nobody looks in between.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from netprobe.collect.across import Figures
from netprobe.collect.histogram import Histogram
from netprobe.collect.intervals import median_rank
from netprobe.collect.ledger import Fate
from netprobe.collect.segments import Counts, LegTables, delay_from, duplicated_between, samples_between, segment_row
from netprobe.model.points import Stop
from netprobe.model.results import LegResult, SegmentResult

Pair = tuple[int, int]


def median_interval_of(histogram: Histogram, lost: int) -> tuple[int, int | None] | None:
    """As collect.intervals.median_interval, within the histogram's error."""
    n = histogram.samples + lost
    r = median_rank(n)
    low = histogram.quantile_ns(r / n, lost) if r else None
    return None if low is None else (low, histogram.quantile_ns((n - r + 1) / n, lost))


class Totals:
    """Sums over windows.

    Args:
        stops: of the leg.
        unwatched: ids of points where nobody looks.

    Attributes:
        pairs: stops between which delays, copies and reordering are counted.
        fates: probes by fate.
        late: lost probes that did come, after their deadline.
    """

    def __init__(self, stops: Sequence[Stop], unwatched: frozenset[str]) -> None:
        last = len(stops) - 1
        watched = [i for i, stop in enumerate(stops) if stop.point.id not in unwatched]
        self.stops = stops
        self.neighbours: list[Pair] = [(i, i + 1) for i in range(last)]
        self.pairs: list[Pair] = sorted({*self.neighbours, (0, last), *pairwise(watched)})
        self.fates: Counter[Fate] = Counter()
        self.late = 0
        self.is_complete = True
        self._spans: Counter[Pair] = Counter()
        self._rows: set[Pair] = {*self.neighbours, *pairwise(watched)}
        self._reached = np.zeros(len(stops), np.int64)
        self._missed = np.zeros(len(stops), np.int64)
        self._histograms = {pair: Histogram() for pair in self.pairs}
        self._negative: Counter[Pair] = Counter()
        self._reordered: Counter[Pair] = Counter()
        self._duplicated: Counter[Pair] = Counter()

    def add(self, leg: LegTables) -> None:
        """One more window."""
        ledger = leg.ledger
        self.fates.update({fate: ledger.count(fate) for fate in Fate})
        self.late += ledger.late
        for first, second, count in ledger.lost_spans():
            self._spans[first, second] += count
        exactly = np.bincount(ledger.last_stop + 1, minlength=len(self.stops) + 1)[1:]
        self._reached += np.cumsum(exactly[::-1])[::-1]
        self._missed += ledger.missed
        self.is_complete &= bool(leg.arrivals.seen[1:, ledger.fate == Fate.DELIVERED].all())
        for pair in self.pairs:
            delay_ns = samples_between(leg.arrivals, *pair).delay_ns
            usable = delay_ns if delay_ns.min(initial=0) >= 0 else delay_ns[delay_ns >= 0]
            self._histograms[pair] = self._histograms[pair].merged(Histogram.of(usable))
            self._negative[pair] += len(delay_ns) - len(usable)
            self._reordered[pair] += leg.reordered_between(*pair)
            self._duplicated[pair] += int(duplicated_between(leg.arrivals, leg.copies, *pair).sum())

    def add_untouched(self, fate: Fate, count: int) -> None:
        """Probes of which nothing at all was heard."""
        self.fates[fate] += count

    @property
    def planned(self) -> int:
        """How many probes are accounted for."""
        return sum(self.fates.values())

    def result(self) -> LegResult:
        """The ledger and its segments."""
        ids = [stop.point.id for stop in self.stops]
        spans = sorted(self._spans.items(), key=lambda row: (-row[1], row[0]))
        last_seen, first_missing = (ids[spans[0][0][0]], ids[spans[0][0][1]]) if spans else (None, None)
        if not spans and self._reached[0]:
            last_seen = ids[int(np.flatnonzero(self._reached)[-1])]
        missed: Counter[str] = Counter()
        for point, count in zip(ids, self._missed.tolist(), strict=True):
            missed[point] += count
        return LegResult(
            planned=self.planned,
            unsent=self.fates[Fate.UNSENT],
            delivered=self.fates[Fate.DELIVERED],
            lost=self.fates[Fate.LOST],
            unobserved=self.fates[Fate.UNOBSERVED],
            pending=self.fates[Fate.PENDING],
            late=self.late,
            segments=tuple(self._row(pair, self._spans[pair]) for pair in sorted(self._rows | self._spans.keys())),
            end_to_end=self._row((0, len(ids) - 1), self._spans.total(), is_whole=True),
            last_seen=last_seen,
            first_missing=first_missing,
            missed={point: count for point, count in missed.items() if count},
            is_complete=self.is_complete,
        )

    def _row(self, pair: Pair, lost: int, *, is_whole: bool = False) -> SegmentResult:
        counts_here = is_whole or pair in self.neighbours  # copies and overtaking are the business of the rows within
        counts = Counts(
            sent=int(self._reached[pair[0]]),
            received=int(self._reached[pair[1]]),
            lost=lost,
            reordered=self._reordered[pair] if counts_here else 0,
            duplicated=self._duplicated[pair] if counts_here else 0,
        )
        histogram = self._histograms.get(pair, Histogram())
        delay, pdv = delay_from(histogram, lost, median_interval_of(histogram, lost)) or (None, None)
        return segment_row(self.stops, pair, counts, Figures(delay, pdv, negative=self._negative[pair]))
