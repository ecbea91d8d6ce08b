"""How far a virtual machine's clock really is from ours, to 0.1 ms: its memory is read while it writes the time there.

Nothing of what is tested is used for it: no channel, no interrupt, no network. The machine writes (count, time, count)
into a page as fast as it can; we read that page through QEMU's memory.
"""

import os
import re
import time
from collections import deque
from pathlib import Path

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
