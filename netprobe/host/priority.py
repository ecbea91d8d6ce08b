"""Who goes first on a processor: netprobe's reading and decoding yield to everybody else.

The kernel stamps frames and a ring holds 640 ms of them, so nothing is measured worse when they are read late; a tenant
that waits for a processor is harmed. What keeps time (inject.pacer) is not lowered.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

NICE = 10
"""Beside a busy thread of normal priority we get a tenth of a processor (kernel/sched/core.c, sched_prio_to_weight)."""


@contextmanager
def yielding(nice: int = NICE) -> Iterator[None]:
    """Within, the calling thread, and those that it starts, yield to others; afterwards it is as before.

    Linux gives each thread a priority of its own (setpriority(2), notes). Without the privilege to take it back
    (CAP_SYS_NICE) nothing is changed.

    Args:
        nice: -20 to 19; a thread that yields more already is left as it is.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if before >= nice or os.geteuid():
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
