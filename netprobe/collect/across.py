"""Delays between two clocks: figures with what they may be off, or why there are none. Pure; used by collect.segments.

A delay across two clocks is an interval. It is shown as a number only where no shown number would be negative; what the
clocks make negative beyond their own error is a clock problem, and then no delay of the segment is stated at all.
Quantiles of the intervals' ends bound the true quantile, since a quantile grows with every sample.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.domains import Carried
from netprobe.collect.histogram import Histogram
from netprobe.collect.intervals import median_interval
from netprobe.model.results import Bounds, Delay, DelayBounds, Pdv

Times = npt.NDArray[np.int64]
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a segment says of its delays; see model.results.SegmentResult."""

    delay: Delay | None = None
    pdv: Pdv | None = None
    negative: int = 0
    clock_error_ns: int | None = None
    clock_problem: str = ""
    delay_bounds: DelayBounds | None = None


def quantile(ordered: Times, q: float, infinite: int) -> int | None:
    """The smallest value that a share `q` of the samples does not exceed; None where it is infinite (RFC 7679 §4).

    Args:
        ordered: shape (n,), ascending.
        q: in (0, 1].
        infinite: probes that never arrived.
    """
    rank = max(1, math.ceil(q * (len(ordered) + infinite) - 1e-9))
    return int(ordered[rank - 1]) if rank <= len(ordered) else None


def figures_across(delays: Carried, lost: int, clocks: tuple[str, str]) -> Figures:
    """Figures of delays that two clocks stamped.

    Args:
        delays: of the probes that carry a time at both ends, with the error of each.
        lost: further probes, whose delay is infinite.
        clocks: names of the two domains.
    """
    count, known = len(delays.t_ns), delays.is_known
    delay_ns, error_ns = delays.t_ns[known], delays.error_ns[known]
    stated = len(delay_ns)
    if not count:
        return Figures()
    names = f"the clocks of {clocks[0]} and {clocks[1]}"
    if not stated:
        return Figures(clock_problem=f"how far {names} are apart is not known: no delay is stated")
    error = int(error_ns.max())
    negative = int(np.count_nonzero(delay_ns + error_ns < 0))
    if negative:
        least = -int((delay_ns + error_ns).min())
        problem = f"{names} contradict {negative} of {stated} delays, by up to {least} ns: no delay is stated"
        return Figures(negative=negative, clock_error_ns=error, clock_problem=problem)
    problem = ""
    if stated < count:
        problem = f"how far {names} were apart is not known for {count - stated} of {count} delays: left out"
    middle = np.sort(delay_ns)
    delay = _delay(middle, lost)
    return Figures(
        delay=delay if delay.min >= 0 else None,
        pdv=_pdv(delay),
        clock_error_ns=error,
        clock_problem=problem,
        delay_bounds=_bounds(np.sort(delay_ns - error_ns), np.sort(delay_ns + error_ns), lost),
    )


def _delay(ordered: Times, lost: int) -> Delay:
    p50, p90, p99 = (quantile(ordered, q, lost) for q in QUANTILES)
    interval = median_interval(ordered, lost)
    shown = Histogram.of(ordered).shown() if ordered[0] >= 0 else ()
    return Delay(int(ordered[0]), p50, p90, p99, int(ordered[-1]), len(ordered), interval, shown)


def _pdv(delay: Delay) -> Pdv:
    """Differences of delays: what the two clocks are apart cancels, what it changes meanwhile does not."""
    above = [None if q is None else q - delay.min for q in (delay.p50, delay.p90, delay.p99)]
    return Pdv(above[0], above[1], above[2], delay.max - delay.min)


def _bounds(low: Times, high: Times, lost: int) -> DelayBounds:
    def between(lowest: int | None, highest: int | None) -> Bounds:
        return (None if lowest is None or lowest <= 0 else lowest), highest

    p50, p90, p99 = (between(quantile(low, q, lost), quantile(high, q, lost)) for q in QUANTILES)
    return DelayBounds(
        min=between(int(low[0]), int(high[0])),
        p50=p50,
        p90=p90,
        p99=p99,
        max=between(int(low[-1]), int(high[-1])),
    )
