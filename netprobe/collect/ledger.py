"""The ledger: the fate of every planned probe (design §2).

    planned = unsent + delivered + lost(segment) + unobserved + pending        exactly

A probe was last seen at A. If somebody was looking further on and did not see it, it was lost between A and the first
such point; if nobody was looking, it is unobserved, which is never called loss. Sources: RFC 7680 (loss and Tmax).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from netprobe.collect.arrivals import Arrivals, Flags, Times


class Fate(IntEnum):
    """What became of a planned probe."""

    UNSENT = 0
    DELIVERED = 1
    LOST = 2
    UNOBSERVED = 3
    PENDING = 4


@dataclass(frozen=True, slots=True)
class Ledger:
    """Fates of one leg of one session.

    Attributes:
        fate: shape (count,), uint8 of Fate.
        last_stop: shape (count,), int64; last stop at which the probe was seen, -1 where unsent.
        first_missing: shape (count,), int64; for lost probes the first stop that looked and did not see it, else -1.
        missed: shape (stops,), int64; probes that a stop missed though they were seen further on.
        late: lost probes that did come, after their deadline, to where they were missed or further.
    """

    fate: npt.NDArray[np.uint8]
    last_stop: npt.NDArray[np.int64]
    first_missing: npt.NDArray[np.int64]
    missed: npt.NDArray[np.int64]
    late: int

    def count(self, fate: Fate) -> int:
        """How many probes met this fate."""
        return int(np.count_nonzero(self.fate == fate))

    @property
    def planned(self) -> int:
        """How many probes were planned."""
        return len(self.fate)

    @property
    def sent(self) -> int:
        """How many probes left."""
        return self.planned - self.count(Fate.UNSENT)

    def lost_between(self, first: int, second: int) -> int:
        """Probes last seen at stop `first` and first missing at stop `second`."""
        lost = (self.fate == Fate.LOST) & (self.last_stop == first) & (self.first_missing == second)
        return int(np.count_nonzero(lost))

    def lost_spans(self) -> list[tuple[int, int, int]]:
        """(last seen, first missing, probes) for every pair of stops between which probes were lost, most first."""
        lost = self.fate == Fate.LOST
        if not lost.any():
            return []
        pairs = np.stack([self.last_stop[lost], self.first_missing[lost]])
        spans, counts = np.unique(pairs, axis=1, return_counts=True)
        rows = [(int(a), int(b), int(n)) for (a, b), n in zip(spans.T, counts, strict=True)]
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def _next_look(blind: Flags, last: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each probe the first stop after `last` whose silence proves something, or -1."""
    stops, count = blind.shape
    nearest = np.full(count, -1, np.int64)
    answer = np.full(count, -1, np.int64)
    for stop in range(stops - 1, -1, -1):
        here = last == stop
        answer[here] = nearest[here]
        nearest = np.where(blind[stop], nearest, stop)
    return answer


def settle(
    arrivals: Arrivals,
    *,
    started: Flags,
    blind: Flags,
    deadline_ns: Times,
    now_ns: int,
    untold: Flags | None = None,
    answered: Flags | None = None,
) -> Ledger:
    """Decide the fate of every probe of one leg.

    Args:
        arrivals: the tables of collect.arrivals; stop 0 is where the leg starts.
        started: shape (count,); the probe left stop 0 (was sent; for the return leg: the probe was delivered).
        blind: shape (stops, count); not seeing the probe at this stop proves nothing (nobody looked, ring overflow).
        deadline_ns: shape (count,); when the probe's waiting time Tmax is over.
        now_ns: the present; probes whose deadline is ahead are pending.
        untold: shape (count,); nobody knows whether the probe left (its sender was lost): if no point saw it either,
            it is unobserved, not unsent.
        answered: shape (count,); something came back for the probe, so that its fate is sealed before its deadline.

    Returns:
        The ledger; its equation holds for any input.
    """
    stops, count = arrivals.seen.shape
    seen = arrivals.seen & started
    seen[0] = started
    last = np.where(started, stops - 1 - np.argmax(seen[::-1], axis=0), -1)
    look = _next_look(blind, last)
    delivered = last == stops - 1
    pending = started & ~delivered & (deadline_ns > now_ns)
    if answered is not None:
        pending &= ~answered
    lost = started & ~delivered & ~pending & (look >= 0)
    fate = np.full(count, Fate.UNOBSERVED, np.uint8)
    fate[~started] = Fate.UNSENT
    if untold is not None:
        fate[~started & untold] = Fate.UNOBSERVED
    fate[delivered] = Fate.DELIVERED
    fate[pending] = Fate.PENDING
    fate[lost] = Fate.LOST
    passed = np.arange(stops)[:, None] < last
    missed = np.count_nonzero(passed & ~seen & ~blind, axis=1)
    beyond = np.arange(stops)[:, None] >= look
    late = int(np.count_nonzero(lost & (arrivals.late & beyond).any(axis=0)))
    return Ledger(fate, last, np.where(lost, look, -1), missed, late)
