"""Results for pure tests."""

from netprobe.collect.intervals import binomial_interval
from netprobe.model.results import Delay, Pdv, SegmentResult


def segment(p50, lost=0, *, name="a..b", total=2000, width=2_000):
    delay = Delay(p50 - 9_000, p50, p50 + 9_000, None, p50 + 90_000, total - lost, (p50 - width, p50 + width))
    return SegmentResult(
        id=name,
        first="a",
        second="b",
        kind="backend-backend",
        sent=total,
        received=total - lost,
        lost=lost,
        undecided=0,
        loss_ratio=lost / total,
        loss_interval_95=binomial_interval(lost, total),
        delay=delay,
        pdv=Pdv(9_000, 18_000, None, 99_000),
        negative=0,
        reordered=0,
        duplicated=0,
        stamp="kernel-rx",
    )
