"""Is one thing faster, slower or the same as another: medians of pairs, with their intervals.

Pure. Used by `netprobe bench harm` and by the benchmarks in bench/. What was measured in alternation is compared pair
by pair, since the machine's own drift moves both halves of a pair alike and cancels out of their ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

CONFIDENCE = 0.95

RESAMPLES = 4000
"""The ends of a 95 % interval are the 100th and 3900th of these: their own noise is small beside the interval."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and where it may truly lie.

    Attributes:
        value: the median of the sample.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, in the unit of the value."""
        return (self.high - self.low) / 2


def _tail(count: int, confidence: float) -> float:
    """The percentile to take so that a small sample's interval is wide enough.

    Hesterberg, "What Teachers Should Know about the Bootstrap", The American Statistician 69 (2015), §5.3 ("expanded
    percentile interval"): a bootstrap distribution is too narrow by sqrt((n-1)/n) and has normal rather than t tails.
    """
    t = float(stdtrit(count - 1, (1 - confidence) / 2))
    return float(ndtr(sqrt(count / (count - 1)) * t))


def bootstrap_median(
    values: Sequence[float] | Floats, *, seed: int = 0, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> Estimate:
    """The median and its bootstrap interval.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), §13.3, with Hesterberg's expanded percentiles.

    Args:
        values: at least two, independent of each other, each of them finite.
        seed: of the resampling: the same values give the same interval.
        confidence: in (0, 1).
        resamples: how many samples are drawn.
    """
    sample = np.asarray(values, np.float64)
    count = len(sample)
    assert count >= 2, "one value says nothing about its own uncertainty"
    assert bool(np.isfinite(sample).all())
    picks = np.random.default_rng(seed).integers(0, count, (resamples, count))
    medians = np.median(sample[picks], axis=1)
    tail = _tail(count, confidence)
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Estimate(float(np.median(sample)), float(low), float(high))


MIN_RANKED = 6
"""Fewer pairs have no 95 % interval: even the widest one covers 1 - 2 / 2^5 = 93.75 %."""

EXACT_RANKED = 60
"""Up to so many pairs the distribution of signed ranks is computed; beyond, the normal one is as good."""


def hodges_lehmann(differences: Sequence[float] | Floats, *, confidence: float = CONFIDENCE) -> Estimate:
    """The median of the means of all pairs of values, with the interval of Wilcoxon's signed ranks.

    Hollander and Wolfe, "Nonparametric Statistical Methods" (1999), §3.2 and §3.3. Holds for any distribution that is
    symmetric about the value; more precise than the median where it is close to normal, and as indifferent to outliers.

    Args:
        differences: at least two. Fewer than MIN_RANKED have no interval of 95 %: theirs is as wide as it can be.
        confidence: in (0, 1); the coverage is never below it.
    """
    sample = np.asarray(differences, np.float64)
    count = len(sample)
    assert count >= 2, "one value says nothing about its own uncertainty"
    first, second = np.triu_indices(count)
    means = np.sort((sample[first] + sample[second]) / 2)
    outside = _ranks_outside(count, (1 - confidence) / 2)
    return Estimate(float(np.median(means)), float(means[outside]), float(means[-1 - outside]))


def _ranks_outside(count: int, tail: float) -> int:
    """How many of the ordered means lie below the interval: the largest k with P(T <= k) <= tail, T a sum of ranks."""
    if count > EXACT_RANKED:
        total = count * (count + 1)
        middle, deviation = total / 4, sqrt(total * (2 * count + 1) / 24)
        return max(int(middle - 0.5 + float(ndtri(tail)) * deviation), 0)
    ways = np.ones(1)
    for rank in range(1, count + 1):
        ways = np.concatenate((ways, np.zeros(rank))) + np.concatenate((np.zeros(rank), ways))
    below = np.cumsum(ways) / 2.0**count
    return max(int(np.count_nonzero(below <= tail)) - 1, 0)


def paired_ratio(own: Sequence[float] | Floats, peer: Sequence[float] | Floats, *, seed: int = 0) -> Estimate:
    """The median of own[i] / peer[i] and its interval.

    Args:
        own: shape (n,), n >= 2; one figure a slice.
        peer: shape (n,); of the slice beside it, positive.
        seed: of the resampling.
    """
    numerator, denominator = np.asarray(own, np.float64), np.asarray(peer, np.float64)
    assert numerator.shape == denominator.shape
    assert bool((denominator > 0).all()), "a peer that did nothing cannot be compared with"
    return bootstrap_median(numerator / denominator, seed=seed)
