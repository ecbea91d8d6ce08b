"""First arrivals: hop records of one session and leg, scattered into [stop, seq] tables.

Sessions are dense in seq, so a join is a scatter, not a sort. Knows the path only as a sequence of (point, direction);
what the tables mean is decided in collect.ledger and collect.segments. The scatter itself is in collect.cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.cells import BLOCK, NOBODY, Aside, Cells, Resolved, resolve
from netprobe.model.records import NO_TIME, HopBatch

Times = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Arrivals(Resolved):
    """What was seen of one leg of one session.

    Attributes:
        first_ns: shape (stops, count), int64; time of the first arrival by the stop's own clock, NO_TIME where none
            with a time was seen.
        last_ns: shape (stops, count), int64; time of the last arrival that was not late, else NO_TIME.
        number: shape (stops, count), int32; which of two first arrivals at the same time, and at the same stop, came
            first has the smaller number; -1 where `first_ns` is NO_TIME.
        copies: shape (stops, count), int32; in-time arrivals with a time.
        seen: shape (stops, count), bool; passed for certain, with or without a time.
        late: shape (stops, count), bool; an arrival came after the probe's deadline.
        forged: records at a point or in a direction that is not on this leg's path, or with a seq out of range.
    """

    seen: Flags
    forged: int

    @classmethod
    def of(cls, tables: Resolved, forged: int = 0) -> "Arrivals":
        """From resolved tables, where every record has a time."""
        seen = tables.number != NOBODY
        return cls(tables.first_ns, tables.number, tables.late, tables.again, tables.alone, seen, forged)

    def stamp_first_stop(self, t_ns: Times, is_stamped: Flags, first: int = 0) -> None:
        """Where probes are sent: known from the sender, not from records.

        Args:
            t_ns: shape (count,); when each was sent.
            is_stamped: shape (count,); which of these times may be used.
            first: number of the first probe; of two at the same time the one with the smaller number was sent first.
        """
        _ = self.last_ns, self.copies  # what records say of this stop stays what it is
        self.first_ns[0] = np.where(is_stamped, t_ns, NO_TIME)
        self.number[0] = np.where(is_stamped, np.arange(first, first + len(t_ns), dtype=np.int32), NOBODY)


class StopBases:
    """Where the cells of each stop begin.

    Args:
        stops: (index of the point, direction) in travel order.
        bases: the first cell of each.
    """

    def __init__(self, stops: Sequence[tuple[int, int]], bases: Sequence[int]) -> None:
        self._top = max((point for point, _ in stops), default=0) + 1  # no point of ours, and for all that are beyond
        self._bases = np.full(2 * (self._top + 1), -1, np.int64)
        for (point, direction), base in zip(stops, bases, strict=True):
            self._bases[2 * point + direction] = base

    def look_up(self, way: npt.NDArray[np.uint32]) -> Times:
        """Where cells begin for records with this way (HopBatch.way_and_seq), -1 for those off the path.

        Shape (n,); or (1,) where all are the same. Records of one ring come together, so most stand behind one of the
        same way, and few are looked up.
        """
        edges = np.flatnonzero(way[1:] != way[:-1])
        if len(edges) * 4 > len(way):
            return self._bases_of(way)
        starts = np.concatenate([np.zeros(1, np.int64), edges + 1])
        bases = self._bases_of(way[starts])
        return bases if len(bases) == 1 else np.repeat(bases, np.diff(starts, append=len(way)))

    def _bases_of(self, way: npt.NDArray[np.uint32]) -> Times:
        slot = np.minimum(way & np.uint32(0xFFFF), np.uint32(self._top))
        slot <<= np.uint32(1)
        slot |= (way & np.uint32(0xFF0000)) != 0
        bases: Times = self._bases.take(slot)
        return bases


class _Scatter:
    """Takes the records of one leg block by block; flags of shape (size,) are by cell.

    Args:
        stops: as in `tabulate`.
        count: planned probes.
    """

    def __init__(self, stops: Sequence[tuple[int, int]], count: int) -> None:
        size = len(stops) * count
        self.bases = StopBases(stops, [i * count for i in range(len(stops))])
        self.stops, self.count = len(stops), count
        self.cells = Cells(size)
        self.was_seen = np.zeros(0, np.bool_)
        self.was_late = np.zeros(0, np.bool_)
        self.forged = 0

    def take(self, block: HopBatch, first: int, late: Flags | None) -> None:
        """The next records; `first` is the number of the first of them."""
        number = np.arange(first, first + len(block), dtype=np.int32)
        way, seq = block.way_and_seq
        base, t_ns = self.bases.look_up(way), block.t_ns
        cell = base + seq
        if base.min() < 0 or int(seq.max()) >= self.count:
            is_ours = (base >= 0) & (seq < self.count)
            self.forged += int(len(block) - np.count_nonzero(is_ours))
            cell, t_ns, number = cell[is_ours], t_ns[is_ours], number[is_ours]
            late = None if late is None else late[is_ours]
        if late is not None and late.any():
            self.was_late = self._marked(self.was_late, cell[late])
            cell, t_ns, number = cell[~late], t_ns[~late], number[~late]
        timed = t_ns != NO_TIME
        if not timed.all():
            self.was_seen = self._marked(self.was_seen, cell[~timed])
            cell, t_ns, number = cell[timed], t_ns[timed], number[timed]
        self.cells.put(cell, t_ns, number)

    def _marked(self, flags: Flags, cell: Times) -> Flags:
        """The flags, which are made when the first is set."""
        flags = flags if len(flags) else np.zeros(len(self.cells.number), np.bool_)
        flags[cell] = True
        return flags

    def arrivals(self, deadline_ns: Times | None) -> Arrivals:
        """What came; with `deadline_ns`, shape (count,), what is later is no arrival."""
        shape = (self.stops, self.count)
        first_ns, number = self.cells.first_ns.reshape(shape), self.cells.number.reshape(shape)
        found = Arrivals.of(resolve(first_ns, number, Aside.concat(self.cells.aside), deadline_ns), self.forged)
        for flags, more in ((found.seen, self.was_seen), (found.late, self.was_late)):
            if len(more):
                np.logical_or(flags, more.reshape(shape), out=flags)
        return found


def tabulate(
    hops: HopBatch, stops: Sequence[tuple[int, int]], deadline_ns: Times, late: Flags | None = None
) -> Arrivals:
    """Scatter the hop records of one session and leg.

    Args:
        hops: records of this session and leg only, those of one point in arrival order.
        stops: (index of the point, direction) in travel order.
        deadline_ns: shape (count,), >= 0; an arrival after it is late and else ignored.
        late: shape (n,); which records are late, where other clocks than that of `deadline_ns` stamped them.

    Returns:
        The tables. First arrival wins; the result does not depend on how records were batched.
    """
    scatter = _Scatter(stops, len(deadline_ns))
    for low in range(0, len(hops), BLOCK):
        there = slice(low, low + BLOCK)
        scatter.take(HopBatch(hops.rows[there]), low, None if late is None else late[there])
    return scatter.arrivals(deadline_ns if late is None else None)
