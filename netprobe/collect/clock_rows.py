"""Exchanges between two clocks as rows, kept by the second: what collect.clocks remembers. Pure, and bounded.

A row is two bounds of the offset, each with the other clock's time at which it holds. Of what is no longer needed to
find a step only the convex hulls stay.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from netprobe.collect.hulls import lower_hull

Times = npt.NDArray[np.int64]

UNBOUNDED_NS = 1 << 61
"""Where nothing is known the interval is [-UNBOUNDED_NS, UNBOUNDED_NS]; its width still fits into an int64."""

SLOT_NS = 1_000_000_000
"""Exchanges are kept, and questions answered, by such slots of the other clock's time."""

MAX_ROWS = 256  # exchanges kept in a slot; more than that say nothing new

# Columns of an exchange: two bounds, each with the other clock's time at which it holds, and when the exchange began
# and ended by either clock, as wide as its round trip may make it.
ABOVE_T, ABOVE, BELOW_T, BELOW, START, END, OUR_START, OUR_END = range(8)


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A jump of one of the two clocks, or a change of rate beyond the assumptions.

    Attributes:
        doubt: spans [from, to] of the other clock's time, ns, to which it cannot be said whether the old or the new
            offset belongs: around the step, and around the time that a step back shows a second time.
        flagged_ns: when the exchange ended that gave it away, by our clock.
    """

    doubt: tuple[tuple[int, int], ...]
    flagged_ns: int


def _on_hull(t_ns: Times, bound_ns: Times, sign: int) -> Times:
    order = np.lexsort((bound_ns * sign, t_ns))
    t_ns, bound_ns = t_ns[order], bound_ns[order]
    keep = lower_hull(t_ns.tolist(), (bound_ns * sign).tolist())
    return np.stack([t_ns[keep], bound_ns[keep]], axis=1)


@dataclass(frozen=True, slots=True)
class Block:
    """Exchanges of one slot that came in a row.

    Attributes:
        rows: shape (n, 8) in order of arrival; empty once they are history.
        above, below: what lies on the hulls: shape (m, 2) of (time, bound).
    """

    slot: int
    rows: Times
    above: Times
    below: Times

    @classmethod
    def of(cls, slot: int, rows: Times) -> "Block":
        """The block of these rows, with their hulls."""
        above = _on_hull(rows[:, ABOVE_T], rows[:, ABOVE], 1)
        return cls(slot, rows, above, _on_hull(rows[:, BELOW_T], rows[:, BELOW], -1))

    def reduced(self) -> "Block":
        """Only the hulls."""
        return Block(self.slot, self.rows[:0], self.above, self.below)


@dataclass(slots=True)
class Stretch:
    """A time without a step.

    Attributes:
        floor: exchanges that began before it, by the other clock and by ours, do not belong here.
        first_ns, last_ns: times of the other clock for which it can be asked.
        blocks: in order of arrival.
    """

    floor: tuple[int, int]
    first_ns: int
    opened_by: ClockStep | None = None
    last_ns: int = UNBOUNDED_NS
    blocks: deque[Block] = field(default_factory=deque)

    def append(self, rows: Times, recent: int) -> None:
        """Take exchanges of one slot; of older blocks than the `recent` last ones only the hulls are kept."""
        slot = int(rows[-1, ABOVE_T]) // SLOT_NS
        if self.blocks and self.blocks[-1].slot == slot:
            rows = np.concatenate([self.blocks.pop().rows, rows])
        self.blocks.append(Block.of(slot, rows[:MAX_ROWS]))
        if len(self.blocks) > recent and len(self.blocks[-recent - 1].rows):
            self.blocks[-recent - 1] = self.blocks[-recent - 1].reduced()

    def recent(self, count: int) -> list[Block]:
        """The last blocks, oldest first."""
        return [self.blocks[i] for i in range(max(0, len(self.blocks) - count), len(self.blocks))]
