"""When the frames of a transmit ring are due, how many may go at once, and how far from the plan they went.

Values and arithmetic only; inject.ring_sender does the waiting and sending. Single probes are paced by inject.pacer.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from netprobe.collect.histogram import Histogram
from netprobe.errors import UsageError
from netprobe.inject.pacer import BURST_PAUSE_NS, PacingStats

I64 = npt.NDArray[np.int64]


class Schedule(Protocol):
    """When probes are due."""

    def due_ns(self, first: int, n: int) -> I64:
        """Due times of the n probes from the `first`-th of the send on, CLOCK_MONOTONIC ns, not decreasing."""
        ...


@dataclass(frozen=True, slots=True)
class EvenSchedule:
    """Evenly spaced probes.

    Attributes:
        start_ns: when the first one is due, CLOCK_MONOTONIC. Leave the sender some milliseconds to fill its ring.
        pps: probes a second.
    """

    start_ns: int
    pps: float

    def __post_init__(self) -> None:
        if not 0 < self.pps <= 1e9:
            raise UsageError("schedule", f"{self.pps:g} probes/s", allowed="more than 0, up to 10^9")

    def due_ns(self, first: int, n: int) -> I64:
        """See Schedule. Each time is rounded by itself, so that long streams do not drift."""
        # float128 would be slow and float64 has 53 bits: exact to the ns for 104 days after the start.
        offsets = np.arange(first, first + n, dtype=np.int64) * (1e9 / self.pps)
        due: I64 = self.start_ns + offsets.astype(np.int64)
        return due


@dataclass(frozen=True, slots=True)
class ListedSchedule:
    """Times that were planned one by one.

    Attributes:
        times_ns: shape (count,), CLOCK_MONOTONIC ns, not decreasing.
    """

    times_ns: I64

    def due_ns(self, first: int, n: int) -> I64:
        """See Schedule."""
        return self.times_ns[first : first + n]


class BurstWindow:
    """At most so many frames in any millisecond, wherever it begins.

    Args:
        limit: frames; None for no limit.
        window_ns: how long a "millisecond" is.

    Attributes:
        pauses: how often frames that were due had to wait.
    """

    __slots__ = ("_limit", "_recent", "_used", "_window_ns", "pauses")

    def __init__(self, limit: int | None, window_ns: int = BURST_PAUSE_NS) -> None:
        if limit is not None and limit < 1:
            raise UsageError("burst limit", f"{limit} frames a millisecond", allowed="1 or more, or none")
        self._limit = limit
        self._window_ns = window_ns
        self._recent: deque[tuple[int, int]] = deque()  # (when the last of them went, how many), within the window
        self._used = 0
        self.pauses = 0

    def room(self, wanted: int, now_ns: int) -> int:
        """How many of the wanted frames may go now; 0: wait until `free_ns`."""
        if self._limit is None:
            return wanted
        while self._recent and self._recent[0][0] + self._window_ns <= now_ns:
            self._used -= self._recent.popleft()[1]
        allowed = min(wanted, self._limit - self._used)
        self.pauses += allowed <= 0
        return allowed

    def free_ns(self) -> int:
        """When there is room again, after `room` said 0."""
        return self._recent[0][0] + self._window_ns

    def sent(self, count: int, now_ns: int) -> None:
        """Account for frames, the last of which went at now_ns at the latest."""
        if self._limit is not None and count:
            self._recent.append((now_ns, count))
            self._used += count


class PacingTally:
    """Errors of any number of sends, in bounded memory: quantiles within 0.4 % (collect.histogram), exact maximum."""

    _GATHER = 16_384  # values before they are sorted into the histogram: it costs as much for one as for thousands

    def __init__(self) -> None:
        self._histogram = Histogram()
        self._waiting: list[I64] = []
        self._waiting_count = 0

    def add(self, errors_ns: I64) -> None:
        """Take a column of |actual - planned|, shape (n,)."""
        self._waiting.append(errors_ns)
        self._waiting_count += len(errors_ns)
        if self._waiting_count >= self._GATHER:
            self._sort_in()

    def _sort_in(self) -> None:
        if self._waiting:
            self._histogram = self._histogram.merged(Histogram.of(np.concatenate(self._waiting)))
            self._waiting, self._waiting_count = [], 0

    def stats(self, planned: int, sent: int, pauses: int) -> PacingStats:
        """What inject.pacer says of its sends, of these."""
        self._sort_in()
        found = self._histogram
        p50, p99 = (found.quantile_ns(q) or 0 for q in (0.5, 0.99))
        return PacingStats(planned, planned - sent, p50, p99, found.max_ns, pauses)
