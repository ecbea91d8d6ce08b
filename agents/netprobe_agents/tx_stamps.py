"""When frames really left: the kernel's own transmit stamps of a packet socket (SO_TIMESTAMPING, software).

Python's clock before `send` is 10 to 20 us early: the call itself, and what is written into a frame at the last moment.
The kernel stamps a frame as it hands it to the device, by CLOCK_REALTIME. Where a device delivers no stamps, times stay
what they were. Documentation/networking/timestamping.rst of Linux; numbers from linux/net_tstamp.h, linux/errqueue.h.
"""

import socket
import struct
from array import array

from netprobe_agents.sockopts import SOL_PACKET, timespec_ns

SO_TIMESTAMPING = 37
PACKET_TX_TIMESTAMP = 16
TX_SOFTWARE, SOFTWARE, OPT_ID, OPT_TSONLY = 1 << 1, 1 << 4, 1 << 7, 1 << 11
ORIGIN_TIMESTAMPING, SCM_TSTAMP_SND = 4, 0
CONTROL_BYTES = 256

_EXTENDED_ERROR = struct.Struct("@IBBBBII")  # errno, origin, type, code, pad, info, data


class TransmitStamps:
    """The stamps of what one socket sends.

    Args:
        sock: a packet socket, not blocking, by which nothing has been sent yet.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sent = array("q")
        self._stamped = 0
        self._is_on = True
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | OPT_ID | OPT_TSONLY)
        except OSError:
            self._is_on = False  # a kernel without

    def sent(self, index: int) -> None:
        """Frame `index` was sent: the kernel numbers what is sent, from 0."""
        if self._is_on:
            self._sent.append(index)

    def refused(self) -> None:
        """A frame was not taken. Whether the kernel counted it nobody knows, so later stamps cannot be told apart."""
        self._is_on = False

    def collect(self, times_ns: "array[int]", most: int) -> None:
        """Put the stamps that are there into `times_ns`, in the place of earlier times.

        Args:
            times_ns: by index; what `sent` was told of has a time that is not later than its stamp.
            most: how many.
        """
        for _ in range(min(most, len(self._sent) - self._stamped)):
            try:
                _, control, _, _ = self._sock.recvmsg(1, CONTROL_BYTES, socket.MSG_ERRQUEUE)
            except OSError:
                return  # none is there
            self._stamped += 1
            number, t_ns = _read(control)
            if 0 <= number < len(self._sent):
                index = self._sent[number]
                times_ns[index] = max(times_ns[index], t_ns)


def _read(control: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Number and time of a stamp; number -1 where it is none."""
    number, t_ns = -1, 0
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPING):
            t_ns = timespec_ns(data)
        elif (level, kind) == (SOL_PACKET, PACKET_TX_TIMESTAMP):
            _, origin, _, _, _, info, key = _EXTENDED_ERROR.unpack_from(data)
            if (origin, info) == (ORIGIN_TIMESTAMPING, SCM_TSTAMP_SND):
                number = key
    return number, t_ns
