"""How busy this machine is: /proc/stat and pressure stall information (PSI), as shares of the time between two looks.

Sources: proc(5); Documentation/accounting/psi.rst of Linux. Without PSI in the kernel the pressure is None.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
PRESSURE = Path("/proc/pressure/cpu")
IDLE_FIELDS = (3, 4)  # idle and iowait: a processor that waits for a disk is free


@dataclass(frozen=True, slots=True)
class MachineTimes:
    """Counters since boot.

    Attributes:
        busy, total: of all processors together, in clock ticks.
        waited_us: in which somebody waited for a processor, None without PSI.
        now_ns: CLOCK_MONOTONIC.
    """

    busy: int
    total: int
    waited_us: int | None
    now_ns: int

    def cpu_since(self, before: "MachineTimes") -> float:
        """Share of the processors' time that was busy, 0 to 1."""
        total = self.total - before.total
        return min(max((self.busy - before.busy) / total, 0.0), 1.0) if total > 0 else 0.0

    def pressure_since(self, before: "MachineTimes") -> float | None:
        """Share of the time in which somebody waited, 0 to 1."""
        if self.waited_us is None or before.waited_us is None or self.now_ns <= before.now_ns:
            return None
        return min((self.waited_us - before.waited_us) * 1e3 / (self.now_ns - before.now_ns), 1.0)


def machine_times(now_ns: int) -> MachineTimes:
    """The counters now.

    Args:
        now_ns: CLOCK_MONOTONIC.
    """
    pressure = ""
    with suppress(OSError):  # PSI is not built in, or switched off
        pressure = PRESSURE.read_text()
    return parse_times(STAT.read_text(), pressure, now_ns)


def parse_times(stat: str, pressure: str, now_ns: int) -> MachineTimes:
    """The counters in the text of /proc/stat and /proc/pressure/cpu.

    The first eight fields of the first line are added up: guests' time is part of user's.
    """
    ticks = [int(word) for word in stat.partition("\n")[0].split()[1:9]]
    idle = sum(ticks[i] for i in IDLE_FIELDS if i < len(ticks))
    waited = re.search(r"^some .*\btotal=(\d+)", pressure, re.MULTILINE)
    return MachineTimes(sum(ticks) - idle, sum(ticks), int(waited[1]) if waited else None, now_ns)
