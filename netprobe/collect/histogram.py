"""A log-linear histogram of delays: 128 buckets an octave, so a quantile is off by at most 0.4 %.

Mergeable by addition, of fixed size, filled a column at a time. The bucket of a value is read off the bits of its
float64: exponent and the upper 7 bits of the mantissa. Below 256 ns every integer has a bucket of its own.
"""

import math

import numpy as np
import numpy.typing as npt

MANTISSA_BITS = 7
MAX_RELATIVE_ERROR = 2.0 ** -(MANTISSA_BITS + 1)  # a bucket is 1/128 of its lower edge wide; its middle is reported
_SHIFT = 52 - MANTISSA_BITS
_BIAS = 1023 << MANTISSA_BITS
SHOWN_BITS = 3  # of the mantissa, in what is shown and stored: eight buckets an octave
_MAX_EXPONENT = 53  # integers above 2**53 ns (104 days) are no delays
SIZE = (_MAX_EXPONENT << MANTISSA_BITS) + 1  # bucket 0 is for 0 ns


def _bucket(values_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    bits = values_ns.astype(np.float64).view(np.int64)
    index = (bits >> _SHIFT) - _BIAS + 1
    bucket: npt.NDArray[np.int64] = np.clip(index, 0, SIZE - 1)
    return bucket


def shown_low_ns(bucket: int) -> int:
    """The smallest whole ns of the coarse bucket that holds a fine one."""
    if bucket == 0:
        return 0
    exponent, mantissa = divmod(bucket - 1, 1 << MANTISSA_BITS)
    coarse = mantissa >> (MANTISSA_BITS - SHOWN_BITS)
    return math.ceil(2.0**exponent * (1 + coarse / (1 << SHOWN_BITS)))


def _middle_ns(bucket: int) -> int:
    if bucket == 0:
        return 0
    exponent, mantissa = divmod(bucket - 1, 1 << MANTISSA_BITS)
    unit = 2.0 ** (exponent - MANTISSA_BITS)
    low = unit * ((1 << MANTISSA_BITS) + mantissa)
    return int(low + max(unit - 1, 0) / 2)


class Histogram:
    """Counts of non-negative delays, with exact extremes.

    Args:
        counts: shape (SIZE,), dtype int64, or None for an empty one.
    """

    __slots__ = ("counts", "max_ns", "min_ns")

    def __init__(self, counts: npt.NDArray[np.int64] | None = None, min_ns: int = 0, max_ns: int = 0) -> None:
        self.counts = np.zeros(SIZE, np.int64) if counts is None else counts
        self.min_ns = min_ns
        self.max_ns = max_ns

    @classmethod
    def of(cls, values_ns: npt.NDArray[np.int64]) -> "Histogram":
        """The histogram of a column, shape (n,), ns, all >= 0."""
        if not len(values_ns):
            return cls()
        counts = np.bincount(_bucket(values_ns), minlength=SIZE)
        return cls(counts, int(values_ns.min()), int(values_ns.max()))

    @property
    def samples(self) -> int:
        """How many values stand behind it."""
        return int(self.counts.sum())

    def merged(self, other: "Histogram") -> "Histogram":
        """The histogram of both sets of values."""
        if not self.samples:
            return other
        if not other.samples:
            return self
        return Histogram(self.counts + other.counts, min(self.min_ns, other.min_ns), max(self.max_ns, other.max_ns))

    def shown(self) -> tuple[tuple[int, int], ...]:
        """(lower edge in ns, count) of each coarse bucket that is not empty, ascending; SHOWN_BITS says how coarse."""
        found: dict[int, int] = {}
        for bucket in np.flatnonzero(self.counts).tolist():
            low_ns = shown_low_ns(bucket)
            found[low_ns] = found.get(low_ns, 0) + int(self.counts[bucket])
        return tuple(found.items())

    def quantile_ns(self, q: float, infinite: int = 0) -> int | None:
        """The smallest delay that a share `q` of the probes does not exceed; lost probes count as infinite (RFC 7679).

        Args:
            q: in (0, 1].
            infinite: probes that never arrived.

        Returns:
            ns, within MAX_RELATIVE_ERROR; None where the quantile is infinite or there is no probe.
        """
        samples = self.samples
        rank = max(1, math.ceil(q * (samples + infinite) - 1e-9))
        if not samples or rank > samples:
            return None
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(max(_middle_ns(bucket), self.min_ns), self.max_ns)
