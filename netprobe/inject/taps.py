"""Frames into guests' ports from outside: a packet socket on the far ends of links whose near ends lead into taps.

service.tap_links makes the links, service.tap_ports owns the sender. Canaries go the other way: out of a tap, where the
absorbing filter must catch them. Blocking; paced by inject.batches.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns
from netprobe.inject.batches import send_in_batches

SEND_BUFFER_BYTES = 4 << 20


def open_transmit_socket(netns: str) -> socket.socket:
    """A packet socket that sends whole frames by any device of a namespace and receives nothing.

    Not with PACKET_QDISC_BYPASS, which would pass by the egress filters too.

    Raises:
        HostNotReadyError: the namespace is not there, or packet sockets are not permitted.
    """

    def go() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return sock

    try:
        return in_netns(netns, go)
    except OSError as error:
        raise HostNotReadyError(
            f"packet socket in {netns or 'this namespace'}",
            f"cannot be opened: {error.strerror}",
            advice="run as root (CAP_NET_RAW)",
        ) from error


@dataclass(frozen=True, slots=True)
class TapSent:
    """What was sent.

    Attributes:
        times_ns: shape (n,), int64; CLOCK_REALTIME just before each frame was handed over, 0 where unsent.
        refused: frames that the kernel did not take; `error` is the first reason.
    """

    times_ns: npt.NDArray[np.int64]
    refused: int
    error: str = ""


class TapSender:
    """Sends by the far ends of links; open until `close`.

    Args:
        netns: the namespace that they are in.
        devices: them, in the order of the ports.

    Raises:
        HostNotReadyError: packet sockets are not permitted.
    """

    def __init__(self, netns: str, devices: Sequence[str]) -> None:
        self._devices = [(device, 0) for device in devices]  # protocol 0: the kernel reads it off the frame
        self._sock = open_transmit_socket(netns)

    def send(self, frames: Sequence[tuple[int, bytes]], gap_ns: int, *, stopped: Callable[[], bool]) -> TapSent:
        """Send frames, each as if a port's guest had sent it.

        Args:
            frames: index of the port, and the Ethernet frame without FCS.
            gap_ns: from one to the next, on the average; at most 64 go in a millisecond all the same.
            stopped: asked every millisecond; once it says True nothing more is sent.
        """
        refused, errors = 0, [""]

        def send(number: int) -> int:
            nonlocal refused
            port, frame = frames[number]
            t_ns = time.time_ns()
            try:
                self._sock.sendto(frame, self._devices[port])
            except OSError as error:  # a full queue, or a port that is gone: the next frame may go
                refused += 1
                errors.append(error.strerror or str(error))
                return 0
            return t_ns

        times = send_in_batches(len(frames), gap_ns, send, stopped=stopped)
        return TapSent(np.array(times, np.int64), refused, errors[1] if refused else "")

    def close(self) -> None:
        """Let go of the socket. Twice is fine."""
        self._sock.close()


class CanarySender:
    """Sends out of taps, toward their guests; open until `close`.

    Args:
        taps: namespace and device of each, in the order of the ports.

    Raises:
        HostNotReadyError: a namespace is not there, or packet sockets are not permitted.
    """

    def __init__(self, taps: Sequence[tuple[str, str]]) -> None:
        self._taps = list(taps)
        self._sockets: dict[str, socket.socket] = {}
        try:
            for netns in dict.fromkeys(netns for netns, _ in taps):
                self._sockets[netns] = open_transmit_socket(netns)
        except BaseException:
            self.close()
            raise

    def send(self, port: int, frame: bytes) -> str:
        """Send one frame out of a tap. Returns why the kernel did not take it (the tap is gone, or down), or ""."""
        netns, device = self._taps[port]
        try:
            self._sockets[netns].sendto(frame, (device, 0))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def close(self) -> None:
        """Let go of the sockets. Twice is fine."""
        for sock in self._sockets.values():
            sock.close()
