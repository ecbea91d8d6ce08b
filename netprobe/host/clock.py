"""Clocks of this host, and whether the wall clock was stepped meanwhile.

Kernel stamps are CLOCK_REALTIME. A step of it would look like delay; watching its distance from CLOCK_MONOTONIC tells.
`HostClock` is for tests: hosts of a lab share one kernel, so an agent can be told to show a clock that is wrong.
"""

import re
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from netprobe.errors import UsageError, unknown_name
from netprobe.plan.fields import parse_duration_ns

Times = npt.NDArray[np.int64]

MAX_SLEW_PPM = 500  # the kernel slews no faster (adjtimex(2)); more than that is a step
OFFSET_READINGS = 5
STEP_FLOOR_NS = 200_000  # two clocks are read one after the other; under load that takes this long


def realtime_ns() -> int:
    """CLOCK_REALTIME, ns."""
    return time.time_ns()


def monotonic_offset_ns() -> tuple[int, int]:
    """What CLOCK_REALTIME shows more than CLOCK_MONOTONIC now, and by how much that may be wrong, either way: ns.

    The closest of some readings of the one between two of the other: being preempted meanwhile looks like a step.
    """
    best: tuple[int, int] | None = None
    for _ in range(OFFSET_READINGS):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best[1]:
            best = (wall - (before + after) // 2, after - before)
    assert best is not None
    return best[0], (best[1] + 1) // 2


def realtime_of_monotonic(monotonic_ns: Times) -> Times:
    """Times of CLOCK_MONOTONIC, as BPF programs stamp, by CLOCK_REALTIME, as packet rings stamp: shape (n,), ns.

    The one place where the two meet. By the distance that they have now: for stamps of the last moments. Both are
    slewed alike, so only a step of the wall clock changes it, and that is detected (StepDetector).
    """
    return monotonic_ns + monotonic_offset_ns()[0]


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


MAX_OFFSET_NS = 100 * 365 * 86_400 * 1_000_000_000  # a century: what is shown still fits into a stamp
MAX_DRIFT_PPM = 10_000.0
_S = 1_000_000_000
_DRIFT = re.compile(r"([+-]?\d{1,5}(?:\.\d{1,9})?)\s*ppm", re.ASCII)


def _signed_ns(text: str, where: str) -> int:
    bare = text.strip()
    sign = -1 if bare.startswith("-") else 1
    value = sign * parse_duration_ns(bare.removeprefix("-" if sign < 0 else "+"), where)
    if abs(value) > MAX_OFFSET_NS:
        raise UsageError(where, f"{text!r} is too much", allowed=f"up to {MAX_OFFSET_NS // _S} s either way")
    return value


@dataclass(frozen=True, slots=True)
class HostClock:
    """What this agent's wall clock shows: the real one, or in tests one that is off, drifts and jumps.

    Attributes:
        offset_ns: added from the beginning.
        drift_ppm: gained since `began_ns`.
        steps: jumps: (s since `began_ns`, ns by which it jumps), in any order.
        began_ns: CLOCK_REALTIME from which drift and steps count.
    """

    offset_ns: int = 0
    drift_ppm: float = 0.0
    steps: tuple[tuple[float, int], ...] = ()
    began_ns: int = field(default_factory=realtime_ns)

    @classmethod
    def parse(cls, text: str, *, where: str = "--test-clock", began_ns: int | None = None) -> "HostClock":
        """A clock from `offset=300ms,drift=-50ppm,step=5s:20ms`; `step` as often as one likes, "" for the real one.

        Args:
            text: what was given.
            where: who gave it, for the error.
            began_ns: the default is now.

        Raises:
            UsageError: it cannot be read.
        """
        offset_ns, drift_ppm, steps = 0, 0.0, []
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, _, value = part.partition("=")
            match key.strip():
                case "offset":
                    offset_ns = _signed_ns(value, f"{where}: offset")
                case "drift":
                    drift_ppm = _drift_ppm(value, f"{where}: drift")
                case "step":
                    at, _, by = value.partition(":")
                    at_s = parse_duration_ns(at, f"{where}: step") / _S
                    steps.append((at_s, _signed_ns(by, f"{where}: step")))
                case unknown:
                    raise unknown_name(where, unknown, ("offset", "drift", "step"), kind="key")
        return cls(offset_ns, drift_ppm, tuple(steps), realtime_ns() if began_ns is None else began_ns)

    @property
    def is_true(self) -> bool:
        """Whether it shows CLOCK_REALTIME as it is."""
        return not self.offset_ns and not self.drift_ppm and not self.steps

    def now_ns(self) -> int:
        """What it shows now."""
        return self.shown_one(realtime_ns())

    def shown(self, real_ns: Times) -> Times:
        """What it showed at times of CLOCK_REALTIME, ns: shape (n,)."""
        if self.is_true:
            return real_ns
        since = real_ns - self.began_ns
        shown = real_ns + (self.offset_ns + np.round(since * (self.drift_ppm * 1e-6)).astype(np.int64))
        for at_s, by_ns in self.steps:
            shown = shown + np.where(since >= round(at_s * _S), by_ns, 0)
        return shown

    def shown_one(self, real_ns: int) -> int:
        """What it showed at one time of CLOCK_REALTIME."""
        return real_ns if self.is_true else int(self.shown(np.array([real_ns], np.int64))[0])

    def real(self, shown_ns: Times) -> Times:
        """When it showed these times first, by CLOCK_REALTIME; for times that it jumped over, when it jumped."""
        if self.is_true:
            return shown_ns
        rate = 1 + self.drift_ppm * 1e-6
        ahead = self.offset_ns
        edges = sorted((round(at_s * _S), by_ns) for at_s, by_ns in self.steps)
        found = self.began_ns + np.round((shown_ns - self.began_ns - ahead) / rate).astype(np.int64)
        for at_ns, by_ns in edges:
            ahead += by_ns
            later = self.began_ns + np.round((shown_ns - self.began_ns - ahead) / rate).astype(np.int64)
            found = np.where(found < self.began_ns + at_ns, found, np.maximum(later, self.began_ns + at_ns))
        return found


def _drift_ppm(text: str, where: str) -> float:
    match = _DRIFT.fullmatch(text.strip())
    value = float(match[1]) if match else MAX_DRIFT_PPM + 1
    if abs(value) > MAX_DRIFT_PPM:
        raise UsageError(where, f"{text!r} is no drift", allowed=f"up to {MAX_DRIFT_PPM:g}ppm either way")
    return value
