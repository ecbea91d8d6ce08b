"""First arrivals: hop records of one session and leg, scattered into [stop, seq] tables.

Sessions are dense in seq, so a join is a scatter, not a sort. Knows the path only as a sequence of (point, direction);
what the tables mean is decided in collect.ledger and collect.segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.model.records import NO_TIME, HopBatch

Times = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What was seen of one leg of one session.

    Attributes:
        first_ns: shape (stops, count), int64; time of the first arrival by the stop's own clock, NO_TIME where none
            with a time was seen.
        last_ns: shape (stops, count), int64; time of the last arrival that was not late, else NO_TIME.
        order: shape (stops, count), int64; arrival order at the stop (rank of the record), for equal times.
        copies: shape (stops, count), int64; in-time arrivals.
        seen: shape (stops, count), bool; passed for certain, with or without a time.
        late: shape (stops, count), bool; an arrival came after the probe's deadline.
        forged: records at a point or in a direction that is not on this leg's path, or with a seq out of range.
    """

    first_ns: Times
    last_ns: Times
    order: Times
    copies: Times
    seen: Flags
    late: Flags
    forged: int


def _stop_of(hops: HopBatch, stops: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    size = max([int(hops.point.max(initial=0)), *(p for p, _ in stops)]) + 1
    lookup = np.full((size, 2), -1, np.int64)
    for i, (point, direction) in enumerate(stops):
        lookup[point, direction] = i
    return lookup[hops.point, np.minimum(hops.direction, 1)]


def tabulate(
    hops: HopBatch, stops: Sequence[tuple[int, int]], deadline_ns: Times, late: Flags | None = None
) -> Arrivals:
    """Scatter the hop records of one session and leg.

    Args:
        hops: records of this session and leg only, those of one point in arrival order.
        stops: (index of the point, direction) in travel order.
        deadline_ns: shape (count,); an arrival after it is late and else ignored.
        late: shape (n,); which records are late, where other clocks than that of `deadline_ns` stamped them.

    Returns:
        The tables. First arrival wins; the result does not depend on how records were batched.
    """
    count = len(deadline_ns)
    shape = (len(stops), count)
    stop = _stop_of(hops, stops)
    is_ours = (stop >= 0) & (hops.seq < count)
    stop, seq, t_ns = stop[is_ours], hops.seq[is_ours].astype(np.int64), hops.t_ns[is_ours]
    is_late = t_ns > deadline_ns[seq] if late is None else late[is_ours]
    came_late = np.zeros(shape, np.bool_)
    came_late[stop[is_late], seq[is_late]] = True
    stop, seq, t_ns = stop[~is_late], seq[~is_late], t_ns[~is_late]
    seen = np.zeros(shape, np.bool_)
    seen[stop, seq] = True
    timed = t_ns != NO_TIME
    stop, seq, t_ns = stop[timed], seq[timed], t_ns[timed]
    # Latest first, so that the earliest is written last and stays; ties are broken by arrival order.
    rank = np.empty(len(t_ns), np.int64)
    earliest = np.argsort(t_ns, kind="stable")
    rank[earliest] = np.arange(len(t_ns))
    first_ns = np.full(shape, NO_TIME, np.int64)
    order = np.full(shape, -1, np.int64)
    back = earliest[::-1]
    first_ns[stop[back], seq[back]] = t_ns[back]
    order[stop[back], seq[back]] = rank[back]
    last_ns = np.full(shape, NO_TIME, np.int64)
    last_ns[stop[earliest], seq[earliest]] = t_ns[earliest]
    copies = np.bincount(stop * count + seq, minlength=shape[0] * count).reshape(shape)
    forged = int(len(is_ours) - np.count_nonzero(is_ours))
    return Arrivals(first_ns, last_ns, order, copies, seen, came_late, forged)
