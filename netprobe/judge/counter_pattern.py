"""Did our probes hit a rule that tenants hit too? A secret pattern of bursts, and an exact test of the rule's counter.

Pure. In slot i the caller sends sizes[i] probes and then reads the rule's packet count. Tenants' packets add to every
delta, but they don't know the pattern: it is a uniformly random order of the burst sizes, so if our probes do not hit
the rule, every order of the sizes goes equally well with the deltas that were seen, whatever the tenants do. That is a
permutation test: its false-confirm probability is at most alpha for any tenant traffic, bursty or not. The sending and
reading is host.rule_counters', above.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from netprobe.errors import UsageError

MIN_SLOTS = 9  # 9! orders can give p = 1e-5, 8! cannot give alpha reliably
MAX_SLOTS = 64
MAX_BURST = 64  # design §6a: no longer bursts into a userspace vswitch
ALPHA = 1e-4
PERMUTATIONS = 99_999
"""Random orders that are compared; the smallest p that can come out is 1 / (PERMUTATIONS + 1) = 1e-5."""

_BATCH = 10_000  # orders per matrix product: 64 slots of float64 are 5 MB


@dataclass(frozen=True, slots=True)
class BurstPattern:
    """How many probes each slot gets, and the seed that the order (and the test's own orders) came from."""

    sizes: tuple[int, ...]
    seed: int

    @property
    def total(self) -> int:
        """Probes in all slots."""
        return sum(self.sizes)


class PatternVerdict(Enum):
    """What the deltas prove."""

    CONFIRMED = "confirmed"  # our probes hit the rule
    NOT_HIT = "not-hit"  # some delta is smaller than our burst: they did not, or not all of them
    UNDECIDED = "undecided"  # too much of others' traffic, or the counter was reset


@dataclass(frozen=True, slots=True)
class PatternResult:
    """The verdict with its evidence.

    Attributes:
        p_value: probability of a match as good as this one if our probes do not hit the rule; at most this.
        sent: probes per slot.
        deltas: packets of the rule per slot.
    """

    verdict: PatternVerdict
    p_value: float
    sent: tuple[int, ...]
    deltas: tuple[int, ...]

    @property
    def is_confirmed(self) -> bool:
        """Whether our probes hit the rule for certain (up to alpha)."""
        return self.verdict is PatternVerdict.CONFIRMED


def make_pattern(seed: int, *, slots: int = 12, total: int | None = None, largest: int = 16) -> BurstPattern:
    """A pattern of burst sizes, spread evenly from 0 to `largest`, in a random order.

    Args:
        seed: from a random source, fresh for each pattern: whoever knows it could imitate the pattern.
        slots: MIN_SLOTS to MAX_SLOTS.
        total: probes in all; None is what an even spread gives.
        largest: probes in one slot at most, up to MAX_BURST.

    Raises:
        UsageError: such a pattern does not exist.
    """
    if not MIN_SLOTS <= slots <= MAX_SLOTS:
        raise UsageError("counter pattern", f"{slots} slots", allowed=f"{MIN_SLOTS} to {MAX_SLOTS}")
    if not 4 <= largest <= MAX_BURST:
        raise UsageError("counter pattern", f"bursts of up to {largest}", allowed=f"4 to {MAX_BURST}")
    sizes = np.rint(np.linspace(0, largest, slots)).astype(int)
    low, high = slots, slots * (largest - 1)
    if total is not None and not low <= total <= high:
        raise UsageError("counter pattern", f"{total} probes in {slots} slots", allowed=f"{low} to {high}")
    rng = np.random.default_rng(seed)
    sizes = _with_total(sizes, int(sizes.sum()) if total is None else total, largest)
    if _orders(sizes.tolist()) < 10 / ALPHA:
        advice = "fewer or more probes in more slots"
        raise UsageError(
            "counter pattern",
            f"{sum(sizes)} probes in {slots} slots have too few orders to prove anything",
            advice=advice,
        )
    return BurstPattern(tuple(int(n) for n in rng.permutation(sizes)), seed)


def _orders(sizes: Sequence[int]) -> int:
    """How many different orders the sizes have: 1 / this is the smallest p that they can give."""
    return math.factorial(len(sizes)) // math.prod(math.factorial(n) for n in Counter(sizes).values())


def _with_total(
    sizes: "np.ndarray[tuple[int], np.dtype[np.int_]]", total: int, largest: int
) -> "np.ndarray[tuple[int], np.dtype[np.int_]]":
    """Sizes that sum to `total`, still spread: small ones give way first, the largest and a zero stay longest."""
    sizes = sizes.copy()
    order = np.argsort(sizes)
    while (missing := total - int(sizes.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = [i for i in order if 0 <= sizes[i] + step <= largest]
        for i in movable[1:-1][: abs(missing)] or movable[: abs(missing)]:
            sizes[i] += step
    return sizes


def judge_pattern(
    pattern: BurstPattern, counts: Sequence[int], *, alpha: float = ALPHA, sent: Sequence[int] = ()
) -> PatternResult:
    """Whether a rule's counter follows the pattern.

    Args:
        pattern: what was planned.
        counts: the rule's packet count before the first slot and after each slot: one more than slots.
        alpha: probability of a false confirmation, at most.
        sent: probes that were really sent per slot, where that differs from the plan. Leaving out bursts must not
            depend on the counts.

    Returns:
        CONFIRMED when every delta is at least our burst and the permutation test gives p <= alpha.

    Raises:
        UsageError: the number of counts, or alpha, is impossible.
    """
    ours = tuple(sent) or pattern.sizes
    if len(counts) != len(ours) + 1 or len(ours) != len(pattern.sizes):
        raise UsageError("counter pattern", f"{len(counts)} counts for {len(pattern.sizes)} slots", allowed="slots + 1")
    if not 1 / (PERMUTATIONS + 1) <= alpha < 1:
        raise UsageError("counter pattern", f"alpha {alpha:g}", allowed=f"{1 / (PERMUTATIONS + 1):g} to 1")
    deltas = tuple(int(b) - int(a) for a, b in itertools.pairwise(counts))
    if min(deltas) < 0:
        return PatternResult(PatternVerdict.UNDECIDED, 1.0, ours, deltas)
    if any(delta < n for delta, n in zip(deltas, ours, strict=True)):
        return PatternResult(PatternVerdict.NOT_HIT, 1.0, ours, deltas)
    p_value = _p_value(ours, deltas, pattern.seed)
    verdict = PatternVerdict.CONFIRMED if p_value <= alpha else PatternVerdict.UNDECIDED
    return PatternResult(verdict, p_value, ours, deltas)


def _p_value(ours: tuple[int, ...], deltas: tuple[int, ...], seed: int) -> float:
    """Share of orders of `ours` that go with `deltas` at least as well (sum of products), the true one included.

    Counting the true order among the random ones makes the test exact, not only nearly so (Phipson and Smyth 2010).
    """
    sizes = np.array(ours, dtype=np.float64)
    rest = np.array(deltas, dtype=np.float64)
    if not sizes.any():
        return 1.0
    rest -= rest.mean()  # shifts every order's sum alike; keeps large counts exact enough
    seen = float(sizes @ rest)
    rng = np.random.default_rng([seed, 1])
    as_good = 1
    for start in range(0, PERMUTATIONS, _BATCH):
        orders = rng.permuted(np.tile(sizes, (min(_BATCH, PERMUTATIONS - start), 1)), axis=1)
        as_good += int(np.count_nonzero(orders @ rest >= seen - 1e-6 * max(1.0, abs(seen))))
    return as_good / (PERMUTATIONS + 1)


_NEEDED = 5.0
"""Standard deviations that the pattern should stand out by: alpha needs 3.7; the rest is for luck."""

_OVERDISPERSION = 2.0
"""Variance of tenants' counts over their mean: TCP comes in bursts, Poisson traffic would have 1."""

_SHAPES = ((9, 16), (12, 16), (12, 32), (12, 64), (16, 64), (24, 64), (32, 64))


def fit_pattern(seed: int, noise_per_slot: float) -> BurstPattern | None:
    """The smallest pattern that tenants' traffic on the same rule should not drown.

    Args:
        seed: as for make_pattern.
        noise_per_slot: packets of others that the rule gets between two reads, on average.

    Returns:
        None when even the largest pattern would drown; the evidence then stays `predicted`.
    """
    for slots, largest in _SHAPES:
        ours = largest * largest / 12  # variance of an even spread
        ratio = ours / (ours + _OVERDISPERSION * max(noise_per_slot, 0.0))
        if math.sqrt(ratio / max(1 - ratio, 1e-9) * (slots - 2)) >= _NEEDED:
            return make_pattern(seed, slots=slots, largest=largest)
    return None
