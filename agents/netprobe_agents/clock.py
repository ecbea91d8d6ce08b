"""What the kernel says about its own clock: how far CLOCK_REALTIME may be from UTC, for an honest Error Estimate."""

import ctypes
import struct
from typing import NamedTuple

STA_UNSYNC = 0x0040  # linux/timex.h
WORST_ERROR_NS = 16_000_000_000  # NTP_PHASE_LIMIT: what the kernel says of a clock that nothing disciplines

_TIMEX = struct.Struct("@Illlli")  # modes, offset, freq, maxerror (us), esterror (us), status
_TIMEX_ROOM_BYTES = 512  # struct timex is 208 octets on 64-bit Linux


class ClockQuality(NamedTuple):
    """How far the clock may be from UTC (ns), and whether something disciplines it."""

    error_ns: int
    synchronized: bool


def clock_quality() -> ClockQuality:
    """Ask adjtimex(2), without changing anything. A kernel that does not say gets the worst."""
    room = ctypes.create_string_buffer(_TIMEX_ROOM_BYTES)  # modes = 0: read only
    if ctypes.CDLL(None).adjtimex(room) < 0:
        return ClockQuality(WORST_ERROR_NS, synchronized=False)
    _, _, _, max_error_us, _, status = _TIMEX.unpack_from(room)
    return ClockQuality(max(0, max_error_us) * 1000, synchronized=not status & STA_UNSYNC)
