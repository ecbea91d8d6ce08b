"""What probing does to tenants: their latency and throughput with and without it, and whether that is within a limit.

Pure; service.harm measures. In each round there is a slice with probing and two without, in changing order: the second
one without (A/A) shows by how much two slices differ when nothing differs, and is printed beside what probing does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import permutations

import numpy as np
import numpy.typing as npt

from netprobe.judge.paired import MIN_RANKED, Estimate, hodges_lehmann

Floats = npt.NDArray[np.float64]

METHOD = (
    "Hodges-Lehmann estimate of the logarithm of the ratio between two slices of one round, with the 95 % interval of "
    "Wilcoxon's signed ranks (Hollander and Wolfe 1999, §3.2 and §3.3)"
)


class Arm(Enum):
    """What a slice is: A, A again, or B."""

    QUIET = "quiet"
    AGAIN = "again"
    PROBING = "probing"


class Verdict(Enum):
    """What an interval says of a limit."""

    WITHIN = "within"
    BEYOND = "beyond"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class TenantSlice:
    """What a tenant had in one slice.

    Attributes:
        requests: TCP requests that were answered, one after the other.
        p50_ns: median time from a request to its answer.
        p99_ns: 99th percentile of it.
        bytes_per_s: throughput of one TCP connection.
    """

    requests: int
    p50_ns: float
    p99_ns: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Metric:
    """What is compared. Of a worse latency there is more, of a worse throughput less."""

    name: str
    unit: str
    is_more_worse: bool


METRICS = (
    Metric("rr_p50", "ns", is_more_worse=True),
    Metric("rr_p99", "ns", is_more_worse=True),
    Metric("throughput", "bytes/s", is_more_worse=False),
)


@dataclass(frozen=True, slots=True)
class Shift:
    """How one metric changed; a positive shift is harm.

    Attributes:
        quiet, probing: medians without and with probing, in the metric's unit.
        shift: how much worse it is with probing, as a share; of a throughput, how much more there was without.
        noise: the same between two slices without: A/A.
        verdict: of `shift` and the limit.
    """

    metric: Metric
    quiet: float
    probing: float
    shift: Estimate
    noise: Estimate
    verdict: Verdict


def order_of_arms(rounds: int) -> list[tuple[Arm, ...]]:
    """The order of slices in each round.

    Each of the six orders comes equally often, in six rounds, and neighbours in time are alike across rounds (A A' B,
    B A' A: as A B B A for two arms), so that neither a drift nor the place in a round favours an arm.
    """
    orders = list(permutations(Arm))
    # Each round begins with the arm that the one before it ended with: no place before or after is an arm's own.
    turns = [orders[0], orders[0][::-1], orders[2], orders[2][::-1], orders[1], orders[1][::-1]]
    return [turns[i % len(turns)] for i in range(rounds)]


def _value(one: TenantSlice, metric: Metric) -> float:
    return {"rr_p50": one.p50_ns, "rr_p99": one.p99_ns, "throughput": one.bytes_per_s}[metric.name]


def judge_limit(shift: Estimate, limit: float, rounds: int) -> Verdict:
    """WITHIN when the whole interval is, BEYOND when none of it is; of too few rounds nobody can say."""
    if rounds < MIN_RANKED:
        return Verdict.OPEN
    if shift.high <= limit:
        return Verdict.WITHIN
    return Verdict.BEYOND if shift.low > limit else Verdict.OPEN


def _change(values: Floats, before: Floats, *, is_more_worse: bool) -> Estimate:
    """By what share `values` are worse than `before`."""
    log_ratio = np.log(values / before) if is_more_worse else np.log(before / values)
    found = hodges_lehmann(log_ratio)
    value, low, high = np.expm1((found.value, found.low, found.high)).tolist()
    return Estimate(value, low, high)


def shifts_of(rounds: Sequence[dict[Arm, TenantSlice]], *, limit: float) -> list[Shift]:
    """How each metric changed.

    Args:
        rounds: at least two; a slice of each arm.
        limit: the largest shift that is fine, as a share: 0.05 for 5 %.
    """
    found = []
    for metric in METRICS:
        by_arm = {arm: np.array([_value(one[arm], metric) for one in rounds]) for arm in Arm}
        quiet = by_arm[Arm.QUIET]
        shift = _change(by_arm[Arm.PROBING], quiet, is_more_worse=metric.is_more_worse)
        noise = _change(by_arm[Arm.AGAIN], quiet, is_more_worse=metric.is_more_worse)
        medians = float(np.median(quiet)), float(np.median(by_arm[Arm.PROBING]))
        found.append(Shift(metric, *medians, shift, noise, judge_limit(shift, limit, len(rounds))))
    return found


def verdict_of(shifts: Sequence[Shift]) -> Verdict:
    """Of all metrics: BEYOND before OPEN before WITHIN."""
    verdicts = {shift.verdict for shift in shifts}
    return next((v for v in (Verdict.BEYOND, Verdict.OPEN) if v in verdicts), Verdict.WITHIN)
