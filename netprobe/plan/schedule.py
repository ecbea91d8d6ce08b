"""When each probe of a session is due, relative to its start. Pure and seeded."""

import numpy as np
import numpy.typing as npt

from netprobe.plan.plans import Schedule, SessionPlan


def due_offsets_ns(schedule: Schedule, count: int, rate_pps: int, seed: int) -> npt.NDArray[np.int64]:
    """Offsets from the session's start.

    Args:
        schedule: PERIODIC, or POISSON with exponential gaps of mean 1/rate (RFC 2330 §11.1.1).
        count: how many.
        rate_pps: mean rate.
        seed: of the exponential gaps; the same seed gives the same schedule.

    Returns:
        Shape (count,), int64, ns, not decreasing; the first is 0.
    """
    if schedule is Schedule.PERIODIC:
        return np.arange(count, dtype=np.int64) * 1_000_000_000 // rate_pps
    gaps = np.random.default_rng(seed).exponential(1e9 / rate_pps, count)
    gaps[0] = 0.0
    return np.cumsum(gaps).astype(np.int64)


def session_due_ns(plan: SessionPlan, seed: int) -> npt.NDArray[np.int64]:
    """When each probe of a session is due, from the start of the run: its schedule, stretched, from its own start on.

    Args:
        plan: the session.
        seed: of its exponential gaps.

    Returns:
        Shape (count,), int64, ns, not decreasing; the first is start_ns.
    """
    return plan.start_ns + plan.stretch * due_offsets_ns(plan.schedule, plan.count, plan.rate_pps, seed)
