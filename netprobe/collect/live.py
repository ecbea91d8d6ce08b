"""Live probes: the tables of those whose fate is still open, in slots of equally many probes, within a bound.

A session's probes are cut into windows of `span`. A window takes a slot when one of its probes is first heard of, and
gives it back when it is closed; where no slot is free the whole window is shed. Knows no fates; collect.windows asks
for the tables of a window and settles them. Pure.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.arrivals import Arrivals, Flags, StopBases, Times
from netprobe.collect.cells import Aside, Cells, Resolved, resolve
from netprobe.model.records import NO_TIME, HopBatch

NEW, SHED, CLOSED = -1, -2, -3
"""What stands in place of a slot for a window that has none."""

MAX_NUMBER = 1 << 30
"""Records are numbered in 32 bits; from here on the live ones are numbered anew."""

SLOW = NO_TIME + 1


@dataclass(frozen=True, slots=True)
class Strays:
    """Records of windows that are closed: columns of shape (n,)."""

    seq: Times
    stop: Times


@dataclass(frozen=True, slots=True)
class WindowTables:
    """What is known of the first probes of a window, shape (count,).

    Attributes:
        sent_ns: when each was sent by what its sender told, else 0.
        left_ns: when each left, for certain, else 0: a probe that some point saw was sent.
        deadline_ns: when its waiting time is over.
    """

    arrivals: Arrivals
    sent_ns: Times
    left_ns: Times
    deadline_ns: Times


class Live:
    """Tables of live probes.

    Args:
        stops: (index of the point, direction) in travel order; the first is where probes are sent.
        count: planned probes.
        tmax_ns: waiting time.
        span: probes a window, a power of two.
        slots: how many windows may be live.

    Attributes:
        told: of how many probes the sender has told.
        counters: records that were not kept, by why.
    """

    def __init__(self, stops: Sequence[tuple[int, int]], *, count: int, tmax_ns: int, span: int, slots: int) -> None:
        self.span, self.count, self.tmax_ns = span, count, tmax_ns
        self.told = 0
        self.counters: Counter[str] = Counter()
        self.slot = np.full(-(-count // span), NEW, np.int64)
        self._shift = span.bit_length() - 1
        self._rows = len(stops) - 1
        self._size = self._rows * span
        self._row = StopBases(stops, [i * span for i in range(-1, self._rows)])
        self._sender = StopBases(stops[:1], [0])
        self._free = list(range(slots))[::-1]
        self._cells = Cells(slots * self._size, is_clear=False)
        self._sent_ns = np.empty(slots * span, np.int64)
        self._stamped = np.empty(slots * span, np.bool_)
        self._max_aside = slots * span
        self._taken = 0

    @property
    def windows(self) -> int:
        """How many windows the session has."""
        return len(self.slot)

    def size_of(self, window: int) -> int:
        """How many probes a window has: the last one may have fewer."""
        return min(self.span, self.count - window * self.span)

    def told_of(self, window: int) -> int:
        """Of how many probes of a window the sender has told."""
        return min(max(self.told - window * self.span, 0), self.size_of(window))

    def open(self, window: int) -> bool:
        """Give a window its slot; False where it is shed since none is free."""
        if self.slot[window] == NEW:
            if not self._free:
                self.slot[window] = SHED
                return False
            slot = self._free.pop()
            self.slot[window] = slot
            self._cells.clear(slice(slot * self._size, (slot + 1) * self._size))
            self._sent_ns[slot * self.span : (slot + 1) * self.span] = 0
        return bool(self.slot[window] >= 0)

    def sent(self, window: int, there: slice, times_ns: Times, stamped: Flags | None) -> None:
        """When probes of an open window were sent; `there` are their places in it."""
        start = int(self.slot[window]) * self.span
        place = slice(start + there.start, start + there.stop)
        self._sent_ns[place] = times_ns
        self._stamped[place] = True if stamped is None else stamped

    def sent_ns(self, window: int) -> Times:
        """When the probes of an open window were sent, as far as it was told; shape (told,)."""
        start = int(self.slot[window]) * self.span
        return self._sent_ns[start : start + self.told_of(window)]

    def put(self, hops: HopBatch) -> Strays | None:
        """Take at most BLOCK records; those of closed windows are given back."""
        way, seqs = hops.way_and_seq
        row, seq, t_ns = self._row.look_up(way), seqs.astype(np.int64), hops.t_ns
        if row.min() < 0 or int(seq.max()) >= self.count or t_ns.min() < SLOW:
            row, seq, t_ns = self._ours(way, row, seq, t_ns)
        if not len(seq):
            return None
        slot = self._slots(seq)
        strays = None
        if slot.min() < 0:
            row, slot = np.broadcast_to(row, seq.shape), np.broadcast_to(slot, seq.shape)
            self.counters["shed"] += int(np.count_nonzero(slot == SHED))
            late, live = slot == CLOSED, slot >= 0
            strays = Strays(seq[late], row[late] // self.span + 1)
            row, seq, t_ns, slot = row[live], seq[live], t_ns[live], slot[live]
        cell = seq & (self.span - 1)
        cell += slot * self._size + row
        self._cells.put(cell, t_ns, self._numbers(len(cell)))
        if sum(len(a.cell) for a in self._cells.aside) > self._max_aside:
            self.counters["copies_shed"] += self._cells.fold()
        return strays

    def _ours(self, way: npt.NDArray[np.uint32], row: Times, seq: Times, t_ns: Times) -> tuple[Times, Times, Times]:
        """Leave out what is off the path, what the sender's own point saw, and what carries no time."""
        is_sender = np.broadcast_to(self._sender.look_up(way) >= 0, seq.shape)
        row = np.broadcast_to(row, seq.shape)
        is_ours = (row >= 0) & (seq < self.count)
        timed = t_ns >= SLOW
        self.counters["forged"] += int(np.count_nonzero(~is_ours & ~(is_sender & (seq < self.count))))
        self.counters["untimed"] += int(np.count_nonzero(is_ours & ~timed))
        good = is_ours & timed
        return row[good], seq[good], t_ns[good]

    def _slots(self, seq: Times) -> Times:
        """The slot of each probe: shape (n,), or (1,) where all are of one window."""
        first, last = int(seq.min()) >> self._shift, int(seq.max()) >> self._shift
        windows = seq >> self._shift if first != last else np.array([first], np.int64)
        slot: Times = self.slot.take(windows)
        new = slot == NEW
        if new.any():
            for window in np.unique(windows[new]).tolist():
                self.open(window)
            slot = self.slot.take(windows)
        return slot

    def _numbers(self, count: int) -> npt.NDArray[np.int32]:
        self._taken += count
        return np.arange(self._taken - count, self._taken, dtype=np.int32)

    def renumber(self) -> int:
        """Number the live records anew where numbers have become large; by how much they are smaller now."""
        if self._taken < MAX_NUMBER:
            return 0
        places = [slice(s * self._size, (s + 1) * self._size) for s in self.slot[self.slot >= 0].tolist()]
        numbers = [self._cells.number[place] for place in places]
        aside = Aside.concat(self._cells.aside)
        least = [int(n[n >= 0].min(initial=self._taken)) for n in numbers] + [
            int(aside.number.min(initial=self._taken))
        ]
        shift = min(least)
        for here in numbers:
            here[here >= 0] -= np.int32(shift)
        self._cells.aside = [Aside(aside.cell, aside.t_ns, aside.number - np.int32(shift))]
        self._taken -= shift
        return shift

    def tables(self, window: int, count: int) -> WindowTables:
        """What is known of the first `count` probes of an open window; nothing is changed."""
        slot = int(self.slot[window])
        there = slice(slot * self._size, (slot + 1) * self._size)
        shape = (self._rows + 1, count)
        first_ns, number = np.empty(shape, np.int64), np.empty(shape, np.int32)
        for table, cells in ((first_ns, self._cells.first_ns), (number, self._cells.number)):
            table[0] = NO_TIME
            table[1:] = cells[there].reshape(self._rows, self.span)[:, :count]
        aside = self._aside_of(slot, count)
        sent_ns = self._sent_ns[slot * self.span :][:count]
        left_ns = _left_ns(sent_ns, first_ns, aside)
        deadline_ns = np.where(left_ns > 0, left_ns + self.tmax_ns, 0)
        arrivals = Arrivals.of(resolve(first_ns, number, aside, deadline_ns))
        stamped = (sent_ns > 0) & self._stamped[slot * self.span :][:count]
        arrivals.stamp_first_stop(sent_ns, stamped, window * self.span % MAX_NUMBER)
        return WindowTables(arrivals, sent_ns, left_ns, deadline_ns)

    def _aside_of(self, slot: int, count: int) -> Aside:
        """Further records of the first `count` probes of a slot, with cells of a table of as many probes."""
        aside = Aside.concat(self._cells.aside)
        self._cells.aside = [aside] if len(aside.cell) else []
        row, place = np.divmod(aside.cell - slot * self._size, self.span)
        here = (row >= 0) & (row < self._rows) & (place < count)
        found = aside.where(here)
        return Aside((row[here] + 1) * count + place[here], found.t_ns, found.number)

    def close(self, window: int) -> None:
        """A window is settled: its slot is free."""
        slot = int(self.slot[window])
        self.slot[window] = CLOSED
        if slot >= 0:
            self._free.append(slot)
            aside = Aside.concat(self._cells.aside)
            kept = aside.where(aside.cell // self._size != slot)
            self._cells.aside = [kept] if len(kept.cell) else []


def nothing_of(sent: int, count: int, stops: int) -> WindowTables:
    """The tables of a window that was shed: of its `count` probes `sent` were sent, and nothing else is known."""
    shape = (stops, count)
    first_ns, number = np.full(shape, NO_TIME, np.int64), np.full(shape, -1, np.int32)
    flags = np.zeros(shape, np.bool_)
    tables = Resolved(first_ns, number, flags, Aside.none(), np.empty(0, np.int64))
    left_ns = (np.arange(count) < sent).astype(np.int64)
    return WindowTables(Arrivals.of(tables), left_ns, left_ns, np.zeros(count, np.int64))


def _left_ns(sent_ns: Times, first_ns: Times, aside: Aside) -> Times:
    """When each probe left: as its sender said, else when it was first seen; 0 for neither."""
    unsent = np.flatnonzero(sent_ns <= 0)
    if not len(unsent):
        return sent_ns
    never = np.iinfo(np.int64).max
    earliest = np.where(first_ns == NO_TIME, never, first_ns).min(axis=0)
    np.minimum.at(earliest, aside.cell % len(sent_ns), aside.t_ns)
    return np.where(sent_ns > 0, sent_ns, np.where(earliest < never, earliest, 0))
