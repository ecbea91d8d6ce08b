"""Pacing: call `send` for each probe at its due time, and say how well that went.

A sleep ends some 50 us late, so the last stretch is spun (0.3 us at the median). A late sender catches up, but never
floods: a userspace vswitch drops bursts beyond what its socket buffers hold. Standard library only: the guest agent
uses it as well as the host's injectors. Clock and sleep are arguments, so tests run on a virtual clock. Blocking: call
it in a worker thread.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SPIN_NS = 100_000  # a sleep is at most this late, except under load
BURST_FRAMES = 64  # measured: 64 every 1 ms pass a userspace vswitch with conntrack, 64 every 0.2 ms lose 1.4 %
BURST_PAUSE_NS = 1_000_000
SWITCH_INTERVAL_S = 0.0001
"""For `sys.setswitchinterval` in a process whose main thread works while a pacer waits: by default a thread whose time
has come may wait 5 ms for the interpreter."""

MAX_SLEEP_NS = 20_000_000  # how long a stop may go unnoticed

HELD = -1
"""In the place of a time: the probe was held back on purpose, so that tenants are not harmed."""


@dataclass(frozen=True, slots=True)
class PacingStats:
    """How far sends were from their plan.

    Attributes:
        planned: number of probes that were to be sent.
        unsent: how many were not: stopped before, or refused by `send`.
        p50_ns: median of |actual - planned| over what was sent, ns (nearest rank); 0 when nothing was.
        p99_ns: 99th percentile of the same.
        max_ns: the largest of the same.
        pauses: how often a late sender was held back so as not to burst.
    """

    planned: int
    unsent: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    pauses: int


@dataclass(frozen=True, slots=True)
class Paced:
    """What `pace` did.

    Attributes:
        times_ns: array of int64, shape (planned,): what `send` returned for each probe, 0 where unsent, HELD where
            it was held back.
        stats: how far from the plan.
    """

    times_ns: "array[int]"
    stats: PacingStats


def _never() -> bool:
    return False


def _all() -> float:
    return 1.0


def is_held(number: int, share: float) -> bool:
    """Whether probe `number` is held back when only `share` (0 to 1) of all are sent.

    Multiples of the golden ratio spread evenly (Knuth, The Art of Computer Programming 3, §6.4): neither bursts nor
    long gaps come of it, and those of a smaller share are among those of a larger one.
    """
    return (number * 0x9E3779B1 & 0xFFFFFFFF) >= share * 0x1_0000_0000


def wait_until(
    due_ns: int,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
    stopped: Callable[[], bool] = _never,
) -> bool:
    """Wait for a time: sleep to SPIN_NS before it and spin the rest.

    Args:
        due_ns: in the domain of `clock`.
        clock: the time now, ns.
        sleep: takes seconds.
        stopped: asked at least every MAX_SLEEP_NS while sleeping.

    Returns:
        False when it was stopped before the time came.
    """
    if not _sleep_until(due_ns - SPIN_NS, clock=clock, sleep=sleep, stopped=stopped):
        return False
    while clock() < due_ns:
        pass
    return not stopped()


def _sleep_until(
    end_ns: int, *, clock: Callable[[], int], sleep: Callable[[float], object], stopped: Callable[[], bool]
) -> bool:
    while (left_ns := end_ns - clock()) > 0:
        if stopped():
            return False
        sleep(min(left_ns, MAX_SLEEP_NS) / 1e9)
    return True


class BurstGuard:
    """Allows BURST_FRAMES late frames, and as many again per BURST_PAUSE_NS of idle time."""

    __slots__ = ("_credit_ns", "pauses")
    _FRAME_NS = BURST_PAUSE_NS // BURST_FRAMES

    def __init__(self) -> None:
        self._credit_ns = BURST_PAUSE_NS
        self.pauses = 0

    def idle(self, idle_ns: int) -> None:
        """The sender waited this long (ns) for a due time."""
        self._credit_ns = min(self._credit_ns + idle_ns, BURST_PAUSE_NS)

    def must_pause(self) -> bool:
        """Account for one late frame. True: pause BURST_PAUSE_NS before sending it."""
        if self._credit_ns < self._FRAME_NS:
            self._credit_ns = BURST_PAUSE_NS - self._FRAME_NS
            self.pauses += 1
            return True
        self._credit_ns -= self._FRAME_NS
        return False


def pace(
    due_ns: Sequence[int],
    send: Callable[[int], int],
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
    stopped: Callable[[], bool] = _never,
    share: Callable[[], float] = _all,
) -> Paced:
    """Send probe i at due_ns[i], for every i in order.

    Args:
        due_ns: not decreasing, in the domain of `clock`.
        send: takes i and returns the time to report for it (ns, any domain), or 0 when it could not be sent.
        clock: the time now, ns.
        sleep: takes seconds.
        stopped: asked before each probe; once it says True nothing more is sent.
        share: asked when a probe is due: which part of all is sent. What is held back is not waited for by spinning.

    Returns:
        What `send` returned, and how far from the plan the sends were on `clock`.
    """
    times_ns = array("q", bytes(8 * len(due_ns)))
    errors_ns: list[int] = []
    guard = BurstGuard()
    for i, due in enumerate(due_ns):
        now = clock()
        if share() < 1.0:
            if not _sleep_until(due - SPIN_NS, clock=clock, sleep=sleep, stopped=stopped) or stopped():
                break
            if is_held(i, share()):
                times_ns[i] = HELD
                continue
        if due > now:
            if not wait_until(due, clock=clock, sleep=sleep, stopped=stopped):
                break
            guard.idle(due - now)
        elif stopped() or (
            guard.must_pause() and not wait_until(now + BURST_PAUSE_NS, clock=clock, sleep=sleep, stopped=stopped)
        ):
            break
        actual = clock()
        times_ns[i] = send(i)
        if times_ns[i] > 0:
            errors_ns.append(abs(actual - due))
    return Paced(times_ns, _stats(len(due_ns), errors_ns, guard.pauses))


def _stats(planned: int, errors_ns: list[int], pauses: int) -> PacingStats:
    errors_ns.sort()
    sent = len(errors_ns)

    def rank(percent: int) -> int:
        return errors_ns[-(-sent * percent // 100) - 1] if sent else 0

    return PacingStats(planned, planned - sent, rank(50), rank(99), rank(100), pauses)
