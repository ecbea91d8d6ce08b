"""How far another clock is from ours: from two-way exchanges to an interval that holds the truth, never to a point.

Pure; fed by whoever collects exchanges, asked by collect.domains. A message cannot arrive before it left, so each one
bounds the offset from one side; a clock that runs evenly must run along one of the straight lines that keep all these
bounds (collect.hulls). docs/clocks.md has the assumptions and what they mean. Whoever runs the other clock can at worst
make its own intervals wrong or unknown: nothing here mixes two peers.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.clock_rows import (
    ABOVE_T,
    END,
    OUR_END,
    OUR_START,
    SLOT_NS,
    START,
    UNBOUNDED_NS,
    Block,
    ClockStep,
    Stretch,
    Times,
)
from netprobe.collect.hulls import Lines, fit

MAX_STAMP_NS = 1 << 61  # the year 2043; sums and differences of stamps below it fit into an int64
MAX_ROUND_TRIP_NS = 5_000_000_000  # slower exchanges say next to nothing
MAX_BATCH = 4_096  # exchanges taken at once; the rest is refused
MAX_STEPS_AT_ONCE = 4  # a peer that jumps more often in one batch is not worth the arithmetic
MAX_STRETCHES = 65  # so the last 64 steps are remembered


@dataclass(frozen=True, slots=True)
class ClockAssumptions:
    """What is taken for granted of two clocks; docs/clocks.md gives the reasons.

    Attributes:
        stamp_error_ns: by how much the difference of a stamp of one clock and a stamp of the other may be off.
        max_skew_ppm: the two never run apart faster than this; what does is a step.
        max_wander_ppm: within a window, the skew stays this close to one value.
        half_window_s: exchanges up to this long before and after an instant bear on the offset there.
        history_s: for how long exchanges are kept.
    """

    stamp_error_ns: int = 1_000
    max_skew_ppm: float = 500.0
    max_wander_ppm: float = 2.0
    half_window_s: int = 10
    history_s: int = 600


@dataclass(frozen=True, slots=True)
class _Model:
    """All lines that the offset may run along in one slot: ns above `pivot_ns` by s since `middle_ns`."""

    lines: Lines
    middle_ns: int
    pivot_ns: int

    def bounds(self, t_ns: Times) -> tuple[Times, Times]:
        """See ClockEstimator.bounds. Rounded outward, and by 1 ns more for the arithmetic."""
        low, high = self.lines.bounds((t_ns - self.middle_ns).astype(np.float64) * 1e-9)
        lowest = np.floor(low).astype(np.int64) + (self.pivot_ns - 1)
        highest = np.ceil(high).astype(np.int64) + (self.pivot_ns + 1)
        return np.maximum(lowest, -UNBOUNDED_NS), np.minimum(highest, UNBOUNDED_NS)


class ClockEstimator:
    """The offset of another clock from ours (other - ours) as intervals, by the other clock's time.

    The other clock's time is what its hop records carry, so that is what one asks with. Exchanges may come late, be
    lost, reordered or repeated, and say anything.

    Args:
        assumptions: see there.
    """

    def __init__(self, assumptions: ClockAssumptions | None = None) -> None:
        self.assumptions = assumptions or ClockAssumptions()
        self.refused: Counter[str] = Counter()
        self.step_count = 0
        self._recent = self.assumptions.half_window_s + 1
        self._stretches: deque[Stretch] = deque()

    @property
    def steps(self) -> tuple[ClockStep, ...]:
        """The steps that history still knows, oldest first."""
        return tuple(e.opened_by for e in self._stretches if e.opened_by is not None)

    def add(
        self, t1_ns: Times, t2_ns: Times, t3_ns: Times, t4_ns: Times, *, asked_by_us: bool = True
    ) -> list[ClockStep]:
        """Take exchanges (RFC 8762: T1 and T4 by the clock of who asks, T2 and T3 by the clock of who answers).

        Args:
            t1_ns: shape (n,), int64, in the order in which the answers came.
            t2_ns: likewise.
            t3_ns: likewise.
            t4_ns: likewise.
            asked_by_us: T1 and T4 are of our clock; else of the other one.

        Returns:
            The steps that they give away.
        """
        rows = self._rows(t1_ns, t2_ns, t3_ns, t4_ns, asked_by_us=asked_by_us)
        self.refused["too-many"] += max(0, len(rows) - MAX_BATCH)
        rows = rows[:MAX_BATCH]
        steps: list[ClockStep] = []
        while len(rows) and len(steps) < MAX_STEPS_AT_ONCE:
            leaves = np.flatnonzero(rows[:, ABOVE_T] // SLOT_NS != rows[0, ABOVE_T] // SLOT_NS)
            here = int(leaves[0]) if len(leaves) else len(rows)
            left, step = self._extend(rows[:here])
            rows = np.concatenate([left, rows[here:]])
            if step is not None:
                steps.append(step)
        self.refused["too-many"] += len(rows)
        return steps

    def _rows(self, t1: Times, t2: Times, t3: Times, t4: Times, *, asked_by_us: bool) -> Times:
        """Exchanges as rows; those that cannot be are counted and left out."""
        error = self.assumptions.stamp_error_ns
        stamps = np.stack([t1, t2, t3, t4], axis=1)
        in_range = ((stamps > 0) & (stamps < MAX_STAMP_NS)).all(axis=1)
        t1, t2, t3, t4 = stamps[in_range].T
        trip = (t4 - t1) - (t3 - t2)
        slack = 2 * error + (t4 - t1) * (self.assumptions.max_skew_ppm * 1e-6)
        is_sane = (t4 >= t1) & (t3 >= t2) & (trip >= -slack)
        is_quick = np.maximum(trip, t4 - t1) <= MAX_ROUND_TRIP_NS
        self.refused["stamps"] += int(np.count_nonzero(~in_range))
        self.refused["contradictory"] += int(np.count_nonzero(~is_sane))
        self.refused["slow"] += int(np.count_nonzero(is_sane & ~is_quick))
        keep = is_sane & is_quick
        t1, t2, t3, t4, trip = t1[keep], t2[keep], t3[keep], t4[keep], np.maximum(trip[keep], 0)
        there, back = t2 - t1, t3 - t4
        if asked_by_us:
            columns = (t2, there + error, t3, back - error, t2 - trip, t3 + trip, t1, t4)
        else:
            columns = (t4, -back + error, t1, -there - error, t1, t4, t2 - trip, t3 + trip)
        return np.stack(columns, axis=1)

    def _extend(self, rows: Times) -> tuple[Times, ClockStep | None]:
        """Take exchanges of one slot as far as no step comes in between; what is left then, and the step."""
        if not self._stretches:
            reach = self.assumptions.half_window_s * SLOT_NS
            floor = int(rows[0, START]) - reach, int(rows[0, OUR_START]) - reach
            self._stretches.append(Stretch(floor, floor[0]))
        stretch = self._stretches[-1]
        is_fresh = self._is_fresh(stretch, rows)
        self.refused["late"] += int(np.count_nonzero(~is_fresh))
        rows = rows[is_fresh]
        if not len(rows):
            return rows, None
        known = [b.rows for b in stretch.recent(self._recent)]
        stretch.append(rows, self._recent)
        if self._lines(stretch.recent(self._recent), stretch.blocks[-1].slot) is not None:
            self._forget()
            return rows[:0], None
        return self._split(stretch, np.concatenate([*known, rows]), sum(len(k) for k in known))

    def _is_fresh(self, stretch: Stretch, rows: Times) -> npt.NDArray[np.bool_]:
        """Exchanges that began long ago are of no use; after a step one clock alone may say so, and is not believed."""
        floors = list(stretch.floor)
        if stretch.blocks and len(stretch.blocks[-1].rows):
            newest = stretch.blocks[-1].rows[-1]
            reach = self.assumptions.half_window_s * SLOT_NS
            floors = [max(floors[0], int(newest[START]) - reach), max(floors[1], int(newest[OUR_START]) - reach)]
        theirs, ours = rows[:, START] - floors[0], rows[:, OUR_START] - floors[1]
        fresh: npt.NDArray[np.bool_] = (np.minimum(theirs, ours) > 0) | (np.maximum(theirs, ours) > MAX_ROUND_TRIP_NS)
        return fresh

    def _split(self, stretch: Stretch, rows: Times, known: int) -> tuple[Times, ClockStep]:
        """Find the step among the latest exchanges, the first `known` of which are free of contradictions.

        The step came before the end of the first exchange that contradicts those before it, and after the beginning
        of the last one that contradicts those between the two.
        """
        slot = stretch.blocks[-1].slot
        last = _first_true(known, len(rows) - 1, lambda i: not self._fits(rows[: i + 1], slot))
        first = last - _first_true(1, last, lambda n: not self._fits(rows[last - n : last + 1], slot))
        span = rows[first : last + 1]
        start, end = int(rows[first, START]), int(rows[last, END])
        # Only one clock jumped, so the other one tells how long this took; at worst that is too long.
        took = max(end - start, int(span[:, OUR_END].max()) - int(rows[first, OUR_START]), 0)
        # A jump of our own clock in the middle of an exchange falsifies its round trip; others tell how long one takes.
        took += int((rows[:, OUR_END] - rows[:, OUR_START]).max())
        step = ClockStep(((end - took, end), (start, start + took)), int(rows[last, OUR_END]))
        before = rows[:first]
        before = before[before[:, END] < start]
        self._rewind(stretch, before)
        stretch.last_ns = start
        self._stretches.append(Stretch((end, int(rows[last, OUR_END])), end, step))
        self.step_count += 1
        self._forget()
        return rows[last + 1 :], step

    def _rewind(self, stretch: Stretch, rows: Times) -> None:
        """Replace the recent blocks by what of their exchanges came before a step."""
        for _ in stretch.recent(self._recent):
            stretch.blocks.pop()
        cuts = np.flatnonzero(np.diff(rows[:, ABOVE_T] // SLOT_NS)) + 1
        for part in np.split(rows, cuts) if len(rows) else []:
            stretch.append(part, self._recent)

    def _forget(self) -> None:
        while (
            sum(len(e.blocks) for e in self._stretches) > self.assumptions.history_s
            or len(self._stretches) > MAX_STRETCHES
        ):
            if self._stretches[0].blocks and len(self._stretches) <= MAX_STRETCHES:
                self._stretches[0].blocks.popleft()
            else:
                self._stretches.popleft()

    def _fits(self, rows: Times, slot: int) -> bool:
        return self._lines([Block(slot, rows, rows[:, :2], rows[:, 2:4])], slot) is not None

    def _lines(self, blocks: Iterable[Block], slot: int) -> _Model | None:
        """What the blocks' exchanges say of one slot; None where no line fits, or one side has no bound.

        If the skew wanders by w around one value, the offset at t leaves the line through the offset at any other time
        t' by at most w |t - t'|: each bound is loosened by that, for the t' of the slot that is furthest.
        """
        above, below = np.concatenate([b.above for b in blocks]), np.concatenate([b.below for b in blocks])
        middle, pivot = slot * SLOT_NS + SLOT_NS // 2, int(above[-1, 1])
        sides = []
        for sign, table in ((1, above), (-1, below)):
            x = (table[:, 0] - middle).astype(np.float64)
            slack = (np.abs(x) + SLOT_NS // 2) * (self.assumptions.max_wander_ppm * 1e-6)
            sides.append((x * 1e-9, (table[:, 1] - pivot) + sign * slack))
        lines = fit(sides[0], sides[1], self.assumptions.max_skew_ppm * 1e3)
        return None if lines is None else _Model(lines, middle, pivot)

    def bounds(self, t_ns: Times) -> tuple[Times, Times]:
        """The offset (other - ours) at times of the other clock.

        Args:
            t_ns: shape (n,), int64, in any order.

        Returns:
            The lowest and the highest that it can be, ns: shape (n,) each; -UNBOUNDED_NS and UNBOUNDED_NS where nothing
            is known: no exchange near, or a step about there.
        """
        low, high = np.full(len(t_ns), -UNBOUNDED_NS), np.full(len(t_ns), UNBOUNDED_NS)
        owners = np.zeros(len(t_ns), np.int64)
        for stretch in self._stretches:  # a time that two of them have shown is ambiguous
            owners += (stretch.first_ns <= t_ns) & (t_ns <= stretch.last_ns)
        is_clear = owners == 1
        for step in self.steps:
            for first, last in step.doubt:
                is_clear &= (t_ns < first) | (t_ns > last)
        for stretch in self._stretches:
            chosen = np.flatnonzero(is_clear & (stretch.first_ns <= t_ns) & (t_ns <= stretch.last_ns))
            slots = t_ns[chosen] // SLOT_NS
            for slot in self._told(stretch, np.unique(slots)):
                here = chosen[slots == slot]
                both = [model.bounds(t_ns[here]) for model in self._around(stretch, slot)]
                if both:
                    low[here] = np.min([lowest for lowest, _ in both], axis=0)
                    high[here] = np.max([highest for _, highest in both], axis=0)
        return low, high

    def skew_ppm(self, t_ns: int) -> tuple[float, float] | None:
        """How fast the other clock gains on ours about one of its times: the least and the most; None: not known."""
        owners = [e for e in self._stretches if e.first_ns <= t_ns <= e.last_ns]
        if len(owners) != 1:
            return None
        slopes = [model.lines.slopes for model in self._around(owners[0], t_ns // SLOT_NS)]
        if not slopes:
            return None
        wander = self.assumptions.max_wander_ppm
        return min(low for low, _ in slopes) * 1e-3 - wander, max(high for _, high in slopes) * 1e-3 + wander

    def _told(self, stretch: Stretch, slots: Times) -> list[int]:
        """Those slots that have exchanges near; a peer may give its hop records any times."""
        known = np.unique(np.array([b.slot for b in stretch.blocks], np.int64))
        reach = self.assumptions.half_window_s
        near = np.searchsorted(known, slots + reach, side="right") > np.searchsorted(known, slots - reach)
        found: list[int] = slots[near].tolist()
        return found

    def pairs(self) -> tuple[Times, Times]:
        """Our and the other clock's time of the same instants, to within a round trip: one pair a slot, ascending."""
        firsts = [b.above[0] for stretch in self._stretches for b in stretch.blocks]
        if not firsts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        theirs, bound = np.stack(firsts, axis=1)
        order = np.argsort(theirs - bound, kind="stable")
        return (theirs - bound)[order], theirs[order]

    def _around(self, stretch: Stretch, slot: int) -> list[_Model]:
        """What the time before a slot says of it, and the time after.

        A step too small to be noticed, or a change of rate, spoils one of them, never both; so who believes the one or
        the other is right. At either end of what is known there is but one side: then its last two slots stand in.
        """
        slots = [b.slot for b in stretch.blocks]
        if not slots:
            return []
        earliest, latest = slot - self.assumptions.half_window_s, slot + self.assumptions.half_window_s
        before = earliest, min(max(slot, min(slots) + 1), latest)
        after = max(min(slot, max(slots) - 1), earliest), latest
        near = [[b for b in stretch.blocks if first <= b.slot <= last] for first, last in (before, after)]
        models = [self._lines(blocks, slot) for blocks in near if blocks]
        return [model for model in models if model is not None]


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in [low, high] for which something holds that goes on holding; `high` if none smaller."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
