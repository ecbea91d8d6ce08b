"""Segment statistics: loss with its interval, delay, PDV, duplicates and reordering between two stops of a path.

Pure. Reads the tables of collect.arrivals and the fates of collect.ledger; model.results holds what comes out.
Sources: RFC 7679 (one-way delay), RFC 7680 (loss), RFC 5481 §4.2 (PDV), RFC 4737 §3 (reordering), RFC 5560
(duplication).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.arrivals import Arrivals, Flags
from netprobe.collect.histogram import Histogram
from netprobe.collect.intervals import binomial_interval, median_interval
from netprobe.collect.ledger import Ledger
from netprobe.model.points import Stop, segment_id, segment_kind
from netprobe.model.records import NO_TIME
from netprobe.model.results import Delay, Pdv, SegmentResult


@dataclass(frozen=True, slots=True)
class Samples:
    """The single delays behind a segment: shape (n,) each.

    `seq` are the probes with a time at both stops; `delay_ns` may be negative, which is a clock problem.
    """

    seq: npt.NDArray[np.int64]
    delay_ns: npt.NDArray[np.int64]


def samples_between(arrivals: Arrivals, first: int, second: int) -> Samples:
    """Delays of the probes that carry a time at both stops."""
    start, end = arrivals.first_ns[first], arrivals.first_ns[second]
    seq = np.flatnonzero((start != NO_TIME) & (end != NO_TIME))
    return Samples(seq, end[seq] - start[seq])


def duplicated_between(arrivals: Arrivals, first: int, second: int) -> npt.NDArray[np.int64]:
    """Probes of which more copies arrived at `second` than at `first`: shape (count,), the surplus."""
    before = np.maximum(arrivals.copies[first], 1)
    surplus: npt.NDArray[np.int64] = np.maximum(arrivals.copies[second] - before, 0)
    return surplus


def reordered_between(arrivals: Arrivals, first: int, second: int) -> Flags:
    """Type-P-Reordered of RFC 4737 §3.3 between two stops: shape (count,), bool.

    The order at `first` takes the place of the sequence number; at `second`, in order of arrival, a probe is reordered
    when one that passed `first` after it has arrived before. First arrivals only.
    """
    both = np.flatnonzero((arrivals.order[first] >= 0) & (arrivals.order[second] >= 0))
    flags = np.zeros(arrivals.order.shape[1], np.bool_)
    if len(both) < 2:
        return flags
    arrived = both[np.argsort(arrivals.order[second][both], kind="stable")]
    position = arrivals.order[first][arrived]
    newest = np.maximum.accumulate(position)
    flags[arrived[1:][position[1:] < newest[:-1]]] = True
    return flags


def delay_of(histogram: Histogram, delays_ns: npt.NDArray[np.int64], lost: int) -> tuple[Delay, Pdv] | None:
    """Delay and PDV of a segment; lost probes count as infinite, so a quantile may be None."""
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
        p50_interval_95=median_interval(delays_ns),
    )
    above = [None if q is None else q - delay.min for q in (p50, p90, p99)]
    return delay, Pdv(p50=above[0], p90=above[1], p99=above[2], max=delay.max - delay.min)


def _stamp(first: Stop, second: Stop) -> str:
    names = (first.stamp.value, second.stamp.value)
    return names[0] if names[0] == names[1] else f"{names[0]}/{names[1]}"


def _segment(stops: Sequence[Stop], arrivals: Arrivals, ledger: Ledger, first: int, second: int) -> SegmentResult:
    sent = int(np.count_nonzero(ledger.last_stop >= first))
    received = int(np.count_nonzero(ledger.last_stop >= second))
    lost = ledger.lost_between(first, second)
    samples = samples_between(arrivals, first, second)
    usable = samples.delay_ns[samples.delay_ns >= 0]
    figures = delay_of(Histogram.of(usable), usable, lost)
    known = received + lost
    a, b = stops[first].point, stops[second].point
    return SegmentResult(
        id=segment_id(a.id, b.id),
        first=a.id,
        second=b.id,
        kind=segment_kind(a.kind, b.kind),
        sent=sent,
        received=received,
        lost=lost,
        undecided=sent - received - lost,
        loss_ratio=lost / known if known else None,
        loss_interval_95=binomial_interval(lost, known),
        delay=figures[0] if figures else None,
        pdv=figures[1] if figures else None,
        negative=len(samples.delay_ns) - len(usable),
        reordered=int(np.count_nonzero(reordered_between(arrivals, first, second))),
        duplicated=int(duplicated_between(arrivals, first, second).sum()),
        stamp=_stamp(stops[first], stops[second]),
    )


def segment_results(stops: Sequence[Stop], arrivals: Arrivals, ledger: Ledger) -> tuple[SegmentResult, ...]:
    """One result a pair of neighbouring stops, in travel order.

    Where a stop in between was blind to some lost probes, their loss is stated for the wider span, as a row of its own.

    Args:
        stops: the leg's stops in travel order.
        arrivals: its tables.
        ledger: its fates.
    """
    pairs = {(i, i + 1) for i in range(len(stops) - 1)}
    pairs |= {(first, second) for first, second, _ in ledger.lost_spans()}
    return tuple(_segment(stops, arrivals, ledger, first, second) for first, second in sorted(pairs))


def end_to_end(stops: Sequence[Stop], arrivals: Arrivals, ledger: Ledger) -> SegmentResult:
    """The whole leg as one segment; its loss is the loss of all spans."""
    whole = _segment(stops, arrivals, ledger, 0, len(stops) - 1)
    lost = sum(n for _, _, n in ledger.lost_spans())
    return whole.with_loss(lost, binomial_interval(lost, whole.received + lost))
