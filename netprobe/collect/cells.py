"""Cells: a table with one cell for each (stop, probe), into which hop records are scattered. Linear, never a sort.

A cell keeps one record, its holder; further records of the same cell are set aside (there are few), and `resolve`
puts them right at the end. Knows neither stops nor sessions: a cell is a number. Used by collect.arrivals for a whole
session and by collect.windows for the live part of one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from netprobe.model.records import NO_TIME

Times = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

NOBODY = -1
"""Number of no record."""

BLOCK = 1 << 14
"""Records to put at once: the lines of the tables that they touch (64 octets each, twice) stay in a second-level cache
of 2 MiB until the last pass over them."""

_LAST_NUMBER = np.iinfo(np.int32).max
_LAST_NS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Aside:
    """Records that share a cell with others: columns of shape (n,), in no order.

    Attributes:
        cell: int64.
        t_ns: int64.
        number: int32; of the record, in order of arrival.
    """

    cell: Times
    t_ns: Times
    number: Numbers

    @classmethod
    def none(cls) -> "Aside":
        """No record."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))

    @classmethod
    def concat(cls, parts: "list[Aside]") -> "Aside":
        """All of several."""
        if not parts:
            return cls.none()
        return cls(
            np.concatenate([p.cell for p in parts]),
            np.concatenate([p.t_ns for p in parts]),
            np.concatenate([p.number for p in parts]),
        )

    def where(self, mask: Flags) -> "Aside":
        """Those for which `mask` (shape (n,), bool) holds."""
        return Aside(self.cell[mask], self.t_ns[mask], self.number[mask])


class Cells:
    """The table.

    Args:
        size: how many cells.
        is_clear: whether all are wanted at once. Otherwise memory is taken only when some are cleared.

    Attributes:
        first_ns: shape (size,), int64; time of each cell's holder, NO_TIME in an empty one.
        number: shape (size,), int32; number of each cell's holder, NOBODY in an empty one.
        aside: records of cells that have another holder.
    """

    def __init__(self, size: int, *, is_clear: bool = True) -> None:
        self.first_ns = np.empty(size, np.int64)
        self.number = np.empty(size, np.int32)
        self.aside: list[Aside] = []
        if is_clear:
            self.clear(slice(None))

    def clear(self, there: slice) -> None:
        """Empty some cells, or make them usable for the first time."""
        self.first_ns[there] = NO_TIME
        self.number[there] = NOBODY

    def put(self, cell: Times, t_ns: Times, number: Numbers) -> None:
        """Scatter records that carry a time.

        Args:
            cell: shape (n,), int64, each in [0, size).
            t_ns: shape (n,), int64; not NO_TIME.
            number: shape (n,), int32; ascending, and larger than all that were put before.
        """
        before = self.number.take(cell)
        self.number[cell] = number  # of several in one cell the last one stays, here and below
        holds = self.number.take(cell) == number
        if not holds.all():
            few = np.flatnonzero(~holds)
            self.aside.append(Aside(cell[few], t_ns[few], number[few]))
        if len(before) and before.max() >= 0:
            few = np.flatnonzero((before >= 0) & holds)
            self.aside.append(Aside(cell[few], self.first_ns[cell[few]], before[few]))
        self.first_ns[cell] = t_ns

    def fold(self) -> int:
        """Forget the records that were set aside, but let the first of each cell hold it; how many they were."""
        aside = Aside.concat(self.aside)
        self.aside = []
        _hold_first(self.first_ns, self.number, aside)
        return len(aside.cell)


def _hold_first(first_ns: Times, number: Numbers, aside: Aside) -> None:
    """Let the first record of each cell hold it; the tables are flat."""
    cell = aside.cell
    before_ns = first_ns[cell]
    np.minimum.at(first_ns, cell, aside.t_ns)
    number[cell[first_ns[cell] < before_ns]] = _LAST_NUMBER
    is_first = aside.t_ns == first_ns[cell]
    np.minimum.at(number, cell[is_first], aside.number[is_first])


@dataclass(frozen=True)
class Resolved:
    """What a table says; all of shape (stops, count). What is seldom asked for is made when it is.

    Attributes:
        first_ns: int64; first arrival in time, else NO_TIME.
        number: int32; number of the first arrival, else NOBODY.
        late: bool; an arrival came after the deadline.
        again: further arrivals in time; `t_ns` is not before that of the cell's holder.
        alone: cells that hold nothing but such.
    """

    first_ns: Times
    number: Numbers
    late: Flags
    again: Aside
    alone: Times

    @cached_property
    def last_ns(self) -> Times:
        """int64; last arrival in time, else NO_TIME."""
        last_ns = self.first_ns.copy()
        np.maximum.at(last_ns.reshape(-1), self.again.cell, self.again.t_ns)
        return last_ns

    @cached_property
    def copies(self) -> Numbers:
        """int32; arrivals in time."""
        copies: Numbers = (self.number != NOBODY).astype(np.int32)
        np.add.at(copies.reshape(-1), self.again.cell, np.int32(1))
        copies.reshape(-1)[self.alone] -= 1
        return copies


def resolve(first_ns: Times, number: Numbers, aside: Aside, deadline_ns: Times | None) -> Resolved:
    """First arrival wins, the earlier put of two at the same time; what is late is no arrival.

    Args:
        first_ns: shape (stops, count), as in Cells; changed in place.
        number: shape (stops, count), as in Cells; changed in place.
        aside: further records; cell is `stop * count + seq`.
        deadline_ns: shape (count,); what comes after it is late. None: nothing is.
    """
    late = np.zeros(first_ns.shape, np.bool_)
    if deadline_ns is not None and first_ns.max(initial=NO_TIME) > deadline_ns.min(initial=_LAST_NS):
        np.greater(first_ns, deadline_ns, out=late)
        late &= number != NOBODY
        first_ns[late] = NO_TIME
        number[late] = NOBODY
    if deadline_ns is not None and len(aside.cell):
        is_late = aside.t_ns > deadline_ns[aside.cell % len(deadline_ns)]
        late.reshape(-1)[aside.cell[is_late]] = True
        aside = aside.where(~is_late)
    cell, flat_ns, numbers = aside.cell, first_ns.reshape(-1), number.reshape(-1)
    held_ns = flat_ns[cell]
    alone = np.unique(cell[numbers[cell] == NOBODY])
    flat_ns[alone], numbers[alone] = _LAST_NS, _LAST_NUMBER
    _hold_first(flat_ns, numbers, aside)
    return Resolved(first_ns, number, late, Aside(cell, np.maximum(aside.t_ns, held_ns), aside.number), alone)
