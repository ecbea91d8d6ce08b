"""Clocks of this host, and whether the wall clock was stepped meanwhile.

Kernel stamps are CLOCK_REALTIME. A step of it would look like delay; watching its distance from CLOCK_MONOTONIC tells.
"""

import time

MAX_SLEW_PPM = 500  # the kernel slews no faster (adjtimex(2)); more than that is a step
STEP_FLOOR_NS = 200_000  # two clocks are read one after the other; under load that takes this long


def realtime_ns() -> int:
    """CLOCK_REALTIME, ns."""
    return time.time_ns()


class StepDetector:
    """Watches the distance between CLOCK_REALTIME and CLOCK_MONOTONIC; `steps` counts the jumps."""

    def __init__(self) -> None:
        self.steps = 0
        self._offset_ns, self._checked_ns = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        # The closest of three readings: being preempted between the two clocks looks like a step.
        best: tuple[int, int, int] | None = None
        for _ in range(3):
            before = time.monotonic_ns()
            wall = time.time_ns()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, wall - before, before)
        assert best is not None
        return best[1], best[2]

    def check(self) -> bool:
        """Whether the wall clock jumped since the last call."""
        offset_ns, now_ns = self._read()
        allowed = STEP_FLOOR_NS + (now_ns - self._checked_ns) * MAX_SLEW_PPM // 1_000_000
        is_step = abs(offset_ns - self._offset_ns) > allowed
        self._offset_ns, self._checked_ns = offset_ns, now_ns
        self.steps += is_step
        return is_step
