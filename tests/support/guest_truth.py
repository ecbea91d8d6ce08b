"""How far a virtual machine's clock really is from ours, to 0.1 ms: its memory is read while it writes the time there.

Nothing of what is tested is used for it: no channel, no interrupt, no network. The machine writes (count, time, count)
into a page as fast as it can; we read that page through QEMU's memory.
"""

import os
import re
import time
from collections import deque
from pathlib import Path

import numpy as np
import trio
from support.waiting import until

from netprobe.collect.domains import clock_map
from netprobe.lab import control, machines, state
from netprobe.service.machine_clocks import MachineClock, MachineClocks

US, MS, SECOND_NS = 1_000, 1_000_000, 1_000_000_000
PAGE = 4096
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw")
READ_BYTES = 8 << 20


def _mappings(pid, size):
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = MAPPING.match(line)
        if found:
            start, end = (int(word, 16) for word in found.groups())
            if end - start >= size:
                yield start, end


def find_page(pid, memory_bytes, magic):
    """The address in QEMU's memory of the page that begins with `magic`, 0 where there is none yet."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for start, end in _mappings(pid, memory_bytes):
            for at in range(start, end, READ_BYTES):
                data = os.pread(fd, min(READ_BYTES, end - at), at)
                found = data.find(magic)
                while found >= 0:
                    if (at + found) % PAGE == 0:
                        return at + found
                    found = data.find(magic, found + 1)
    finally:
        os.close(fd)
    return 0


def true_offset(pid, address, seconds):
    """What the machine's clock is ahead of ours: (lowest, highest, by its clock when).

    A time that we read was shown by its clock before: offset >= time - now. And while count n is there, n + 1 has not
    been written, so the time beside n + 2 is taken later: offset <= that time - when n was last read. What is read
    while it is being written may bear the time before, so n + 3 stands for n + 2. The offset moves meanwhile, at
    100 ppm by 10 us in 0.1 s, so that the two bounds may pass each other by as much.
    """
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    low, high, shown, reads = -(1 << 62), 1 << 62, 0, deque()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.time_ns()
            data = os.pread(fd, 24, address + 16)
            now = time.time_ns()
            count, shown_now, again = (int.from_bytes(data[i : i + 8], "little") for i in (0, 8, 16))
            if count != again or not count:
                continue
            shown = shown_now
            low = max(low, shown - now)
            while len(reads) > 1 and reads[1][0] <= count - 3:
                reads.popleft()
            if reads and reads[0][0] <= count - 3:
                high = min(high, shown - reads[0][1])
            reads.append((count, began))
    finally:
        os.close(fd)
    return min(low, high), max(low, high), shown


def places():
    return state.Places.from_environment()


def serial(name):
    """Where the agent of a machine of the lab is reached."""
    return f"serial:{places().agent_port(name)}"


def machine_pid(name):
    """QEMU's, of a machine of the lab."""
    return next(p["pid"] for p in control.status().state["processes"] if p["name"] == machines.machine_name(name))


def truth_of(name):
    """What a machine's clock is ahead of ours: (lowest, highest, by its clock when)."""
    magic, pid = os.urandom(16), machine_pid(name)
    machines.order(places(), name, do="beacon", magic=magic.hex(), seconds=4.0)
    address = until(lambda: find_page(pid, machines.MEMORY_MIB << 20, magic), 4.0)
    found = []
    for _ in range(20):  # we and the machine must run at the same time; on a busy host that takes some looks
        found.append(true_offset(pid, address, 0.1))
        if found[-1][1] - found[-1][0] < 200 * US:
            break
    return min(found, key=lambda truth: truth[1] - truth[0])


def exchanges_with(name, count):
    """So many exchanges with a machine's agent, as a run has them: the reports."""
    reports, enough = [], trio.Event()

    def emit(report):
        reports.append(report)
        if sum(len(r.t1_ns) for r in reports) >= count:
            enough.set()

    async def main():
        comparing = MachineClocks((MachineClock(f"{name}.guest", name, serial(name)),), {}, emit)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                comparing.start(nursery)
                await enough.wait()
                nursery.cancel_scope.cancel()

    trio.run(main)
    return reports


def check_interval_of_a_clock_that_is_off(name, measure):
    """With its clock 1 s off and 100 ppm fast, what is said of how far it is ahead contains the truth each time.

    The truth is read before, between and after the exchanges.

    Returns:
        What `measure()` gave, called while the clock is off.
    """
    before = truth_of(name)
    machines.order(places(), name, do="clock", step_ns=SECOND_NS, ppm=100.0)
    try:
        truths = [truth_of(name)]
        reports = exchanges_with(name, 40)
        truths.append(truth_of(name))
        reports += exchanges_with(name, 40)
        truths.append(truth_of(name))
        measured = measure()
    finally:
        machines.order(places(), name, do="clock", step_ns=-SECOND_NS, ppm=0.0)
    lowest, highest, when = (np.array(column, np.int64) for column in zip(*truths, strict=True))
    assert (highest - lowest < 5 * MS).all()
    assert abs(lowest[0] - before[0] - SECOND_NS) < 10 * MS
    gained = ((lowest + highest)[-1] - (lowest + highest)[0]) / 2 / (when[-1] - when[0])
    assert 50e-6 < gained < 150e-6, "it is 100 ppm fast, and by itself drifts less"
    bases = {f"{name}.guest": "hv1"}
    known = clock_map("hv1", [("hv1", r) for r in reports], bases=bases).offsets[f"{name}.guest"]
    low, high = known.bounds(when)
    assert (low <= highest).all()
    assert (high >= lowest).all()
    assert (high - low < 20 * MS).all()
    return measured
