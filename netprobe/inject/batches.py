"""Pacing for many frames whose single times do not matter: a few every millisecond, and a sleep in between.

inject.pacer hits planned times and spins for it; a policy's packets only need a rate, and 10,000 a second paced by
spinning would take a whole core from the tenants. Clock and sleep are arguments. Blocking: call it in a worker thread.
"""

import time
from array import array
from collections.abc import Callable

from netprobe.inject.pacer import BURST_FRAMES, BURST_PAUSE_NS


def send_in_batches(
    count: int,
    gap_ns: int,
    send: Callable[[int], int],
    *,
    stopped: Callable[[], bool],
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> "array[int]":
    """Send frames 0 to count - 1 in order, `gap_ns` apart on the average.

    A sender that is late catches up, but at most BURST_FRAMES go in any BURST_PAUSE_NS.

    Args:
        count: how many.
        gap_ns: 0 for as fast as bursts are permitted.
        send: takes a frame's number and returns the time to report for it, or 0 when it could not be sent.
        stopped: asked before each batch; once it says True nothing more is sent.
        clock: the time now, ns.
        sleep: takes seconds.

    Returns:
        int64, shape (count,): what `send` returned, 0 where unsent.
    """
    times_ns = array("q", bytes(8 * count))
    start_ns = clock()
    at = 0
    while at < count and not stopped():
        now_ns = clock()
        due = (now_ns - start_ns) // gap_ns + 1 if gap_ns else count
        end = min(count, due, at + BURST_FRAMES)
        for number in range(at, end):
            times_ns[number] = send(number)
        at = max(at, end)
        next_ns = max(now_ns + BURST_PAUSE_NS, start_ns + at * gap_ns)
        if at < count and (left_ns := next_ns - clock()) > 0:
            sleep(left_ns / 1e9)
    return times_ns
