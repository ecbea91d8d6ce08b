"""How sure a ratio or a quantile is: exact binomial intervals and order-statistic intervals.

Pure; used by collect.segments and judge.changes.
"""

from bisect import bisect_left, bisect_right
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv

CONFIDENCE = 0.95


def binomial_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval of a binomial proportion.

    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26 (1934): the coverage is never below `confidence`.

    Args:
        successes: 0 <= successes <= trials.
        trials: 0 gives the whole [0, 1]: nothing is known.
        confidence: in (0, 1).

    Returns:
        (low, high), both in [0, 1].
    """
    assert 0 <= successes <= trials
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


def median_rank(n: int, confidence: float = CONFIDENCE) -> int:
    """The r of `median_interval`, 0 where there are too few values.

    P(Bin(n, 1/2) <= k) increases in k, so how many k keep both tails small enough is found by halving.
    """
    tail = (1 - confidence) / 2
    return bisect_right(range(n // 2), tail, key=lambda k: float(bdtr(float(k), n, 0.5)))


def median_interval(
    values: npt.NDArray[np.int64], infinite: int = 0, confidence: float = CONFIDENCE
) -> tuple[int, int | None] | None:
    """A distribution-free interval of the median, from order statistics.

    David and Nagaraja, "Order Statistics" (2003), §7.1: [x(r), x(n-r+1)] covers the median with probability
    1 - 2 P(Bin(n, 1/2) < r).

    Args:
        values: shape (m,), any order.
        infinite: further values, larger than any (lost probes).
        confidence: in (0, 1).

    Returns:
        (low, high) in the units of `values`; high is None where it is infinite. None where there are too few values
        for the confidence asked, or where even the lower bound is infinite.
    """
    n = len(values) + infinite
    r = median_rank(n, confidence)
    if r == 0 or r > len(values):
        return None
    top = n - r
    if top >= len(values):
        return int(np.partition(values, r - 1)[r - 1]), None
    ordered = np.partition(values, (r - 1, top))
    return int(ordered[r - 1]), int(ordered[top])


@lru_cache(maxsize=4_096)
def quantile_ranks(n: int, q: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Ranks of the order statistics between which a quantile lies, whatever the distribution.

    David and Nagaraja, "Order Statistics" (2003), §7.1: [x(r), x(s)] covers the q-quantile with probability
    P(r <= Bin(n, q) < s); either tail is at most half of what `confidence` leaves.

    Args:
        n: values, the infinite ones among them.
        q: in (0, 1).
        confidence: in (0, 1).

    Returns:
        (r, s), 0 <= r < s <= n + 1. 0: nothing is known below; n + 1: n values are too few to say anything above.
    """
    tail = (1 - confidence) / 2

    def at_most(k: int) -> float:
        return float(bdtr(float(k), n, q))

    return bisect_right(range(n), tail, key=at_most), 1 + bisect_left(range(n), 1 - tail, key=at_most)


def loss_bounds(lost: int, undecided: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """An interval of a loss ratio that holds whatever became of the undecided probes.

    Args:
        lost: probes known to be lost.
        undecided: probes of which nobody can say; all or none of them may be lost.
        total: all of them and those that arrived.
        confidence: of the exact binomial interval at either end.
    """
    return (
        binomial_interval(lost, total, confidence)[0],
        binomial_interval(lost + undecided, total, confidence)[1],
    )
