"""Sequential tests of a share: is it still fine, or surely too much? Pure.

Wald, "Sequential Tests of Statistical Hypotheses", Ann. Math. Statist. 16 (1945): the likelihood ratio of what was
counted decides as soon as it is large or small enough, and not before. The bounds are 1/alpha and beta, a little wider
than Wald's own (1-beta)/alpha and beta/(1-alpha): with them the stated probabilities hold exactly, however many samples
a look adds (Ville's inequality). One side of the test is a whole range of shares, which is no problem: the ratio grows
with the share, so the bounds hold for all shares up to `fine`, and from `bad` on.

Not everything is known of what was counted, so evidence is a pair: against the path whatever became of the undecided,
and in its favour whatever became of them. Each side decides for itself.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from scipy.special import gammaln

from netprobe.errors import UsageError
from netprobe.model.results import Json


class Verdict(Enum):
    """What a test says."""

    OPEN = "open"  # not decided yet
    FINE = "fine"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class ShareTest:
    """A test of a share p: `p <= fine` against `p >= bad`. Between the two either answer is right.

    Attributes:
        fine, bad: 0 <= fine < bad <= 1, and not both extremes.
        alpha: bound of the probability of BAD while p <= fine.
        beta: bound of the probability of FINE while p >= bad.
    """

    fine: float
    bad: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.fine < self.bad <= 1 or self.bad - self.fine >= 1:
            raise UsageError(
                "test", f"fine {self.fine:g}, bad {self.bad:g}", allowed="0 <= fine < bad <= 1, not 0 and 1"
            )
        if not (0 < self.alpha < 1 and 0 < self.beta < 1):
            raise UsageError("test", f"alpha {self.alpha:g}, beta {self.beta:g}", allowed="between 0 and 1")

    @property
    def upper(self) -> float:
        """Logarithm of the ratio from which on it is BAD."""
        return -math.log(self.alpha)

    @property
    def lower(self) -> float:
        """Logarithm of the ratio from which down it is FINE."""
        return math.log(self.beta)

    def log_ratio(self, low: int, high: int, total: int) -> float:
        """Logarithm of the likelihood ratio, `bad` to `fine`, of "low to high of total".

        Args:
            low: at least so many, 0 and more.
            high: at most so many, up to `total`; equal to `low` where the number itself is known.
            total: trials.
        """
        assert 0 <= low <= high <= total, f"{low} to {high} of {total}"
        if low == 0 and high == total:
            return 0.0
        return _log_share(low, high, total, self.bad) - _log_share(low, high, total, self.fine)

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {"fine": self.fine, "bad": self.bad, "alpha": self.alpha, "beta": self.beta}


def _log_share(low: int, high: int, total: int, share: float) -> float:
    """Logarithm of P(low <= Bin(total, share) <= high); where low = high, without what does not depend on `share`."""
    if low == high:
        return _times(low, share) + _times(total - low, 1 - share)
    if share in {0.0, 1.0}:
        certain = 0 if share == 0 else total
        return 0.0 if low <= certain <= high else -math.inf
    k = np.arange(low, high + 1, dtype=np.float64)
    terms = gammaln(total + 1) - gammaln(k + 1) - gammaln(total - k + 1)
    terms += k * math.log(share) + (total - k) * math.log1p(-share)
    return float(np.logaddexp.reduce(terms))


def _times(count: int, share: float) -> float:
    """Product of a count and log(share), where nothing out of nothing is 0."""
    if not count:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Counted:
    """What one look counted: `low` to `high` of `total` were too much; of `undecided` more nobody knows.

    `low` and `high` differ where only a quantile is known: "more than 1 % of them, less than 10 %".

    Attributes:
        worst: the same two numbers if every measurement errs in the path's favour as far as it may (two clocks); None
            where they are the same.
    """

    low: int
    high: int
    total: int
    undecided: int = 0
    worst: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = self.worst or (self.low, self.high)
        assert 0 <= self.low <= self.high <= self.total, f"{self.low} to {self.high} of {self.total}"
        assert self.low <= low <= high <= self.total, f"at worst {low} to {high} of {self.total}"
        assert self.undecided >= 0, f"{self.undecided} undecided"


@dataclass(frozen=True, slots=True)
class Running:
    """A test under way.

    Attributes:
        against: logarithm of the ratio if all undecided were fine; `favour`: if all were too much.
        samples: decided ones, since the test began.
        since_ns: when it began.
        verdict: the last one that was reached; what came after it has not decided anything yet.
        decided_by: samples behind that verdict.
        changed_ns: from when on what the verdict says holds, by what was counted.
    """

    since_ns: int
    against: float = 0.0
    favour: float = 0.0
    samples: int = 0
    verdict: Verdict = Verdict.OPEN
    decided_by: int = 0
    changed_ns: int = 0
    least: tuple[float, int] = (0.0, 0)
    most: tuple[float, int] = (0.0, 0)

    @classmethod
    def start(cls, now_ns: int) -> "Running":
        """A test that begins now."""
        return cls(now_ns, least=(0.0, now_ns), most=(0.0, now_ns), changed_ns=now_ns)

    def to_json(self) -> Json:
        """As in docs/json.md; an infinite ratio is null."""
        ratios = [x if math.isfinite(x) else None for x in (self.against, self.favour)]
        return {
            "verdict": self.verdict.value,
            "decided_by": self.decided_by,
            "samples": self.samples,
            "log_ratio": ratios,
        }


def step(test: ShareTest, running: Running, counted: Counted, until_ns: int) -> Running:
    """A test after one more look.

    A verdict ends the test and begins the next one; it stands until another test decides otherwise. When that began to
    be so is the maximum-likelihood estimate of the moment of change: the end of the look that stood most against it.

    Args:
        test: what is asked.
        running: the test so far.
        counted: what was counted since the last look.
        until_ns: end of the look.
    """
    extra, total = counted.undecided, counted.total + counted.undecided
    # What is not decided must not pile up: a test that leans far to one side still hears of a change.
    against = max(test.lower, running.against + test.log_ratio(counted.low, counted.high, total))
    low, high = counted.worst or (counted.low, counted.high)
    favour = min(test.upper, running.favour + test.log_ratio(low + extra, high + extra, total))
    samples = running.samples + counted.total
    is_bad, is_fine = against >= test.upper, favour <= test.lower
    if not is_bad and not is_fine:
        return replace(
            running,
            against=against,
            favour=favour,
            samples=samples,
            least=min(running.least, (against, until_ns)),
            most=max(running.most, (favour, until_ns)),
        )
    verdict = Verdict.BAD if is_bad else Verdict.FINE
    changed_ns = (running.least if is_bad else running.most)[1]
    return replace(
        Running.start(until_ns),
        verdict=verdict,
        decided_by=samples,
        changed_ns=changed_ns if verdict is not running.verdict else running.changed_ns,
    )
