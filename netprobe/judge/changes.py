"""Which segment changed: two results of one path side by side. Pure.

A loss changed when the two exact intervals do not meet; a delay changed when the intervals of the two medians do not
meet and the difference is more than a median wanders from run to run (MIN_CHANGE_NS, MIN_CHANGE_RATIO: measured across
a userspace vswitch, docs/architecture.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netprobe.model.results import Json, SegmentResult

MIN_CHANGE_NS = 100_000
MIN_CHANGE_RATIO = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """One segment that is not what it was.

    Attributes:
        delay_ns: difference of the medians, None where the delay did not change.
        delay_interval_95: bounds of that difference, from the intervals of both medians (conservative), and between
            hosts from what the clocks may have been off.
        loss_ratio: loss now, None where it did not change.
        loss_interval_95: its exact interval.
    """

    segment: str
    delay_ns: int | None
    delay_interval_95: tuple[int, int] | None
    loss_ratio: float | None
    loss_interval_95: tuple[float, float] | None
    loss_before: float | None

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "segment": self.segment,
            "delay_ns": self.delay_ns,
            "delay_interval_95": list(self.delay_interval_95) if self.delay_interval_95 else None,
            "loss_ratio": self.loss_ratio,
            "loss_interval_95": list(self.loss_interval_95) if self.loss_interval_95 else None,
            "loss_before": self.loss_before,
        }


def _delay_change(before: SegmentResult, now: SegmentResult) -> tuple[int, tuple[int, int]] | None:
    if not before.delay or not now.delay or before.delay.p50 is None or now.delay.p50 is None:
        return None
    old, new = before.delay.p50_interval_95, now.delay.p50_interval_95
    if old is None or new is None or old[1] is None or new[1] is None:
        return None
    difference = now.delay.p50 - before.delay.p50
    # Between hosts each median may be off by what the clocks were off then, and either way.
    error = (before.clock_error_ns or 0) + (now.clock_error_ns or 0)
    bounds = (new[0] - old[1] - error, new[1] - old[0] + error)
    floor = max(MIN_CHANGE_NS, MIN_CHANGE_RATIO * before.delay.p50)
    if abs(difference) < floor or bounds[0] <= 0 <= bounds[1]:
        return None
    return difference, bounds


def _loss_changed(before: SegmentResult, now: SegmentResult) -> bool:
    if before.loss_ratio is None or now.loss_ratio is None:
        return False
    (old_low, old_high), (low, high) = before.loss_interval_95, now.loss_interval_95
    return low > old_high or high < old_low


def changes_between(before: Sequence[SegmentResult], now: Sequence[SegmentResult]) -> tuple[Change, ...]:
    """Segments of one path whose loss or delay changed, in travel order.

    Args:
        before: segments of the earlier result.
        now: segments of the later one; segments that only one of them has are left out.
    """
    old: Mapping[str, SegmentResult] = {s.id: s for s in before}
    found = []
    for segment in now:
        earlier = old.get(segment.id)
        if earlier is None:
            continue
        delay = _delay_change(earlier, segment)
        is_loss = _loss_changed(earlier, segment)
        if delay is None and not is_loss:
            continue
        found.append(
            Change(
                segment=segment.id,
                delay_ns=delay[0] if delay else None,
                delay_interval_95=delay[1] if delay else None,
                loss_ratio=segment.loss_ratio if is_loss else None,
                loss_interval_95=segment.loss_interval_95 if is_loss else None,
                loss_before=earlier.loss_ratio if is_loss else None,
            )
        )
    return tuple(found)
