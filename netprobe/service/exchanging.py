"""Hosts compare clocks: STAMP exchanges (RFC 8762) between host agents over UDP, for collect.clocks to judge.

T2 and T4 are the kernel's receive stamps, T1 and T3 are read right before sending; waiting in between only widens the
interval that comes of it, and never falsifies it. What is asked and what is answered is decided in wire.exchange.
"""

import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import numpy.typing as npt
import trio

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.clock import HostClock, realtime_ns
from netprobe.wire.exchange import Answering, Questions, Stamps
from netprobe.wire.stamp import STAMP_PORT

Times = npt.NDArray[np.int64]
Emit = Callable[[Times, Times, Times, Times], None]

MIN_INTERVAL_S = 0.02
"""No collector can make a host send more than this to a peer."""

SILENCE_S = 5.0
"""A peer that has not answered for so long is asked once in SLOW_S only."""

SLOW_S = 1.0
EMIT_S = 0.25
"""Exchanges are handed on in batches of this: a step is to be flagged within a second."""

DATAGRAMS_PER_WAKE_UP = 64  # then other tasks get their turn
RECEIVE_BYTES = 2_048
CONTROL_BYTES = 128
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python 3.11 has no name for it
_TIMESPEC = struct.Struct("@ll")


def _unicast(text: str) -> IPv4Address | IPv6Address | None:
    """One host's address, or None."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    wide = address.is_multicast or address.is_unspecified or (address.version == 4 and address.packed[0] >= 240)
    return None if wide else address


def _open_socket(address: IPv4Address | IPv6Address) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return sock


def _receive(sock: socket.socket) -> tuple[bytes, int, tuple[str, int]] | None:
    """(octets, when they arrived by CLOCK_REALTIME, from whom), or None where there is nothing more.

    An ICMP error about something that we sent looks like nothing; the next look finds what comes after it.
    """
    try:
        data, control, _, peer = sock.recvmsg(RECEIVE_BYTES, CONTROL_BYTES)
    except OSError:
        return None
    for level, kind, stamp in control:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, rest_ns = _TIMESPEC.unpack_from(stamp)
            return data, seconds * 1_000_000_000 + rest_ns, (str(peer[0]), int(peer[1]))
    return data, realtime_ns(), (str(peer[0]), int(peer[1]))  # later than it was: a wider interval, no wrong one


async def serve_exchanges(
    address: str,
    port: int,
    clock: HostClock,
    *,
    key: bytes | None = None,
    task_status: trio.TaskStatus[Answering] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer other hosts' questions until cancelled.

    Args:
        address: one of this host's own; never all of them.
        port: to listen on, 0 for any; not 862, which is for measurements.
        clock: what is compared.
        key: of authenticated mode; None or b"" for the open one.
        task_status: is told the answering side, with its counters, once the socket is bound.

    Raises:
        UsageError: the address is not one host's, or the port is 862.
        HostNotReadyError: it cannot be bound.
    """
    own = _unicast(address)
    if own is None or port == STAMP_PORT:
        raise UsageError(
            f"clock exchanges on {address}:{port}",
            "not an address and port to answer from",
            allowed=f"one address of this host's own, and a port other than {STAMP_PORT}",
        )
    with closing(_open_socket(own)) as sock:
        try:
            sock.bind((address, port))
        except OSError as error:
            raise HostNotReadyError(
                f"clock exchanges on {address}:{port}",
                f"cannot be bound: {error.strerror}",
                advice="choose another port",
            ) from error
        answering = Answering(int(sock.getsockname()[1]), key or None)
        task_status.started(answering)
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(DATAGRAMS_PER_WAKE_UP):
                arrival = _receive(sock)
                if arrival is None:
                    break
                data, real_ns, peer = arrival
                question = answering.take_untrusted(data, peer, time.monotonic_ns())
                if question is not None:
                    t2_ns = clock.shown_one(real_ns)
                    with suppress(OSError):
                        sock.sendto(answering.answer(question, t2_ns, clock.now_ns()), peer)


@dataclass(slots=True)
class _Asking:
    """One peer being asked, and the exchanges that have not been handed on."""

    sock: socket.socket
    questions: Questions
    clock: HostClock
    emit: Emit
    interval_s: float
    rows: list[Stamps]
    heard_s: float

    async def ask(self) -> None:
        """Ask at random intervals, so that nothing else that is periodic falls into step."""
        while True:
            data = self.questions.ask(realtime_ns())
            self.questions.sent(realtime_ns())
            with suppress(OSError):  # nobody there, or no way: the answer stays away
                self.sock.send(data)
            is_silent = trio.current_time() - self.heard_s > SILENCE_S
            mean_s = max(SLOW_S, self.interval_s) if is_silent else self.interval_s
            await trio.sleep(min(max(random.expovariate(1 / mean_s), mean_s / 4), mean_s * 3))

    async def listen(self) -> None:
        """Take answers as they come."""
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            for _ in range(DATAGRAMS_PER_WAKE_UP):
                arrival = _receive(self.sock)
                if arrival is None:
                    break
                row = self.questions.take_untrusted(arrival[0], arrival[1])
                if row is not None:
                    self.heard_s = trio.current_time()
                    self.rows.append(row)

    async def hand_on(self) -> None:
        """Hand exchanges on, a batch at a time."""
        while True:
            await trio.sleep(EMIT_S)
            self.flush()

    def flush(self) -> None:
        """Hand on what there is; T1 and T4 as the clock showed them."""
        if self.rows:
            t1, t2, t3, t4 = np.array(self.rows, np.int64).T
            self.rows = []
            self.emit(self.clock.shown(t1), t2, t3, self.clock.shown(t4))


async def exchange_with(
    address: str, port: int, clock: HostClock, interval_s: float, emit: Emit, *, key: bytes | None = None
) -> str:
    """Ask another host's agent for its time until cancelled. Never raises for what the peer or the network does.

    Args:
        address: of the peer.
        port: on which it serves exchanges.
        clock: ours; T1 and T4 are what it shows.
        interval_s: mean time between two questions, at least MIN_INTERVAL_S.
        emit: takes exchanges as they came, in order of arrival: T1 to T4, shape (n,) each.
        key: of authenticated mode; None or b"" for the open one.

    Returns:
        Why nothing can be asked there.
    """
    peer = _unicast(address)
    if peer is None or not 0 < port < 65_536 or port == STAMP_PORT:
        return f"{address}:{port} is no place of another agent"
    with closing(_open_socket(peer)) as sock:
        while True:
            with suppress(OSError):  # no way there yet
                sock.connect((address, port))
                break
            await trio.sleep(SLOW_S)
        asking = _Asking(
            sock, Questions(key or None), clock, emit, max(interval_s, MIN_INTERVAL_S), [], trio.current_time()
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asking.listen)
                nursery.start_soon(asking.hand_on)
                nursery.start_soon(asking.ask)
        finally:
            asking.flush()
    return ""
