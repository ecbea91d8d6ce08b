"""Which sizes of frame a path swallows, told from loss that has nothing to do with size. Pure.

One arrival proves that a size passes. That none of n arrived proves that it does not only where chance can be excluded:
when the path loses a share q of the sizes that do pass, at most, that happens by chance with probability q^n. A path
that loses much takes more probes, or gives no answer; it never makes a false size. service.sweeping sends and counts.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from scipy.special import betaincinv

ALPHA = 0.001
"""Probability that any size at all is said to fail by chance, at most, while losses are independent."""

MAX_LOSS = 0.9
"""Losing more than this of what passes, a path gives no answer about sizes."""


class SizeState(Enum):
    """What is known of a size; a closed set."""

    PASSES = "passes"
    FAILS = "fails"
    OPEN = "open"  # none arrived yet, and it may be chance


@dataclass(frozen=True, slots=True)
class SizeRun:
    """One size in one run: `sent = passed + lost + silent`. Of the silent ones nobody saw where they went."""

    sent: int
    passed: int
    lost: int

    @property
    def silent(self) -> int:
        """Neither seen at the end nor known to be lost."""
        return self.sent - self.passed - self.lost


@dataclass(frozen=True, slots=True)
class Place:
    """Where probes went missing: last seen at, first missing at; None where nobody saw them go missing.

    Attributes:
        reason: code of the reason, "" where none is known.
    """

    last_seen: str
    first_missing: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SizeRecord:
    """One size in all runs.

    Attributes:
        places: where those that did not pass went missing, with how many of them.
    """

    size: int
    runs: tuple[SizeRun, ...] = ()
    places: tuple[tuple[Place, int], ...] = ()

    @property
    def sent(self) -> int:
        """In all runs."""
        return sum(run.sent for run in self.runs)

    @property
    def passed(self) -> int:
        """In all runs."""
        return sum(run.passed for run in self.runs)

    @property
    def lost(self) -> int:
        """In all runs."""
        return sum(run.lost for run in self.runs)

    @property
    def place(self) -> Place | None:
        """Where most went missing: a few may be lost elsewhere, by chance or in a batch with others."""
        weights = Counter[tuple[str, str | None]]()
        reasons: dict[tuple[str, str | None], str] = {}
        for place, count in self.places:
            where = (place.last_seen, place.first_missing)
            weights[where] += count
            reasons[where] = place.reason or reasons.get(where, "")
        if not weights:
            return None
        where = max(weights, key=weights.__getitem__)
        return Place(*where, reasons[where])

    def plus(self, other: "SizeRecord") -> "SizeRecord":
        """With one more run of the same size."""
        return SizeRecord(self.size, self.runs + other.runs, self.places + other.places)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of all sizes that were tried.

    Attributes:
        loss_bound: the path loses at most this share of what passes, with confidence 1 - ALPHA.
        level: below this probability a size fails: ALPHA, shared among the sizes.
    """

    records: Mapping[int, SizeRecord]
    states: Mapping[int, SizeState]
    loss_bound: float
    level: float

    @property
    def passes(self) -> dict[int, bool]:
        """Whether each size that is decided passes."""
        return {size: state is SizeState.PASSES for size, state in self.states.items() if state is not SizeState.OPEN}

    @property
    def needed(self) -> int:
        """How many probes of one size, all missing, prove that it fails; 0 where no number would do."""
        if self.loss_bound > MAX_LOSS:
            return 0
        return max(2, math.ceil(math.log(self.level) / math.log(self.loss_bound)))

    @property
    def contradictions(self) -> tuple[int, ...]:
        """Sizes that passed in one run, and in another one failed where chance is excluded."""
        return tuple(
            size
            for size, record in self.records.items()
            if record.passed
            and any(not run.passed and self.loss_bound**run.sent < self.level for run in record.runs if run.sent)
        )


def judge_sizes(records: Sequence[SizeRecord]) -> Sizes:
    """What the records say together.

    Args:
        records: one for each size.
    """
    passing = [record for record in records if record.passed]
    sent, passed = sum(r.sent for r in passing), sum(r.passed for r in passing)
    # They are here because some of theirs arrived, so one arrival of each proves nothing about loss. Without it, what
    # is missing is never less than chance alone would make it, and the bound holds.
    bound = _upper(sent - passed, sent - len(passing), ALPHA / 2)
    level = ALPHA / 2 / max(1, len(records))
    states = {}
    for record in records:
        if record.passed:
            states[record.size] = SizeState.PASSES
        elif record.sent and bound <= MAX_LOSS and bound**record.sent < level:
            states[record.size] = SizeState.FAILS
        else:
            states[record.size] = SizeState.OPEN
    return Sizes({record.size: record for record in records}, states, bound, level)


def _upper(missing: int, total: int, tail: float) -> float:
    """Upper bound of a share, one-sided (Clopper and Pearson); 1 where nothing is known."""
    return 1.0 if missing >= total else float(betaincinv(missing + 1, total - missing, 1 - tail))
