"""Ordered probes out of the guest's device: whole Ethernet frames, paced, stamped at the last moment.

The agent holds no keys: frames come ready from the controller; only T1 and the checksum that covers it are written
here. Runs in a worker thread (netprobe.inject.pacer blocks); the session starts and stops it.
"""

import contextlib
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from netprobe.errors import HostNotReadyError, WireError
from netprobe.inject.pacer import HELD, PacingStats, pace
from netprobe.wire.control import Message, mixed_frames_untrusted, unpack_i64_untrusted
from netprobe.wire.stamp import ns_to_ntp
from netprobe_agents.tx_stamps import TransmitStamps

MAX_FRAMES = 1_000_000
MIN_FRAME_BYTES = 14
MAX_FRAME_BYTES = 65_549
MAX_LEAD_NS = 10_000_000_000
MAX_DUE_NS = 24 * 3600 * 1_000_000_000
SEND_BUFFER_BYTES = 4 << 20
T1_BYTES = 8

STAMPS_A_TURN, MOST_STAMPS = 16, 32
"""The kernel's stamps are fetched for so many frames at once; it keeps some 270. Fetched after each frame they took
the processor from the switch that the frame had just woken."""

_WORDS = struct.Struct("!4H")


@dataclass(frozen=True, slots=True)
class SendOrder:
    """One `send` or `send-mixed` message, checked.

    Attributes:
        id: the controller's number for it.
        frames: all frames, one after the other.
        bounds: where in `frames` each begins, and where the last one ends; shape (count + 1,).
        due_ns: offsets from the start, int64, shape (count,).
        lead_ns: from now to the start.
        t1_offset: where in each frame the 8-octet T1 goes, or None.
        checksum_offset: where in each frame the UDP checksum is that covers T1, or None.
    """

    id: int
    frames: bytearray = field(repr=False)
    bounds: Sequence[int] = field(repr=False)
    due_ns: "array[int]" = field(repr=False)
    lead_ns: int
    t1_offset: int | None
    checksum_offset: int | None

    @classmethod
    def from_message_untrusted(cls, message: Message) -> "SendOrder":
        """The order in a message.

        Raises:
            WireError: a field is missing or out of range, or the body does not hold what the header says.
        """
        if message.type == "send-mixed":
            return cls._mixed_untrusted(message)
        frame_bytes = message.integer("frame_bytes", minimum=MIN_FRAME_BYTES, maximum=MAX_FRAME_BYTES)
        count = message.integer("count", minimum=1, maximum=MAX_FRAMES)
        if len(message.body) != count * (frame_bytes + 8):
            raise WireError("send", f"body has {len(message.body)} octets, not {count} * ({frame_bytes} + 8)")
        due_ns = _due_untrusted(message.body[count * frame_bytes :])
        t1_offset = message.optional_integer("t1_offset", maximum=frame_bytes - T1_BYTES)
        checksum_offset = message.optional_integer("checksum_offset", maximum=frame_bytes - 2)
        if checksum_offset is not None:
            if t1_offset is None or (t1_offset - checksum_offset) % 2:
                raise WireError("send", "checksum_offset needs a t1_offset at an even distance")
            if t1_offset - 2 < checksum_offset < t1_offset + T1_BYTES:
                raise WireError("send", "the checksum lies within T1")
        return cls(
            id=message.integer("id"),
            frames=bytearray(message.body[: count * frame_bytes]),
            bounds=range(0, (count + 1) * frame_bytes, frame_bytes),
            due_ns=due_ns,
            lead_ns=message.integer("lead_ns", maximum=MAX_LEAD_NS),
            t1_offset=t1_offset,
            checksum_offset=checksum_offset,
        )

    @classmethod
    def _mixed_untrusted(cls, message: Message) -> "SendOrder":
        """Frames of different lengths, in which nothing is written."""
        columns = mixed_frames_untrusted(message)
        lengths = columns.lengths
        if not 1 <= len(lengths) <= MAX_FRAMES:
            raise WireError("send-mixed", f"{len(lengths)} frames, not from 1 to {MAX_FRAMES}")
        if min(lengths) < MIN_FRAME_BYTES or max(lengths) > MAX_FRAME_BYTES:
            raise WireError("send-mixed", f"a frame has not from {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES} octets")
        return cls(
            id=message.integer("id"),
            frames=bytearray(columns.data),
            bounds=array("q", accumulate(lengths, initial=0)),
            due_ns=_due_untrusted(columns.due_ns),
            lead_ns=message.integer("lead_ns", maximum=MAX_LEAD_NS),
            t1_offset=None,
            checksum_offset=None,
        )


def _due_untrusted(column: bytes) -> "array[int]":
    due_ns = unpack_i64_untrusted(column)
    if min(due_ns) < 0 or max(due_ns) > MAX_DUE_NS:
        raise WireError("send", f"a due offset is not from 0 to {MAX_DUE_NS} ns")
    return due_ns


@dataclass(frozen=True, slots=True)
class Sent:
    """How an order went.

    Attributes:
        start_ns: CLOCK_REALTIME of the start that the due offsets count from.
        times_ns: CLOCK_REALTIME of each frame's sending, by the kernel's stamp where it gives one, else right before
            the send; 0 where it was not sent, HELD where it was held back.
        refused: frames that the kernel did not take; `error` is the first reason.
    """

    start_ns: int
    times_ns: "array[int]"
    pacing: PacingStats
    refused: int
    error: str


def write_t1(frame: memoryview, t1_offset: int, checksum_offset: int | None, t_ns: int) -> None:
    """Write T1 as an NTP timestamp and repair the UDP checksum that covers it (RFC 1624, eq. 3).

    Args:
        frame: one frame, writable.
        t1_offset: of the 8 octets.
        checksum_offset: of the checksum, at an even distance from T1; None leaves checksums alone. A checksum of 0
            means that the sender made none, and stays (RFC 768).
        t_ns: CLOCK_REALTIME, ns.
    """
    raw = ns_to_ntp(t_ns)
    if checksum_offset is not None:
        (old,) = struct.unpack_from("!H", frame, checksum_offset)
        if old:
            total = ~old & 0xFFFF
            total += sum(~word & 0xFFFF for word in _WORDS.unpack_from(frame, t1_offset))
            total += (raw >> 48) + (raw >> 32 & 0xFFFF) + (raw >> 16 & 0xFFFF) + (raw & 0xFFFF)
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            struct.pack_into("!H", frame, checksum_offset, ~total & 0xFFFF or 0xFFFF)
    struct.pack_into("!Q", frame, t1_offset, raw)


def open_transmit_socket(device: str) -> socket.socket:
    """A packet socket that sends whole frames through `device` and receives nothing.

    Not with PACKET_QDISC_BYPASS: that would hide the frames from packet rings on the device.

    Raises:
        HostNotReadyError: no such device, or no CAP_NET_RAW.
    """
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            sock.bind((device, 0))
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise HostNotReadyError(
            device,
            f"cannot be sent through: {error.strerror}",
            advice="the agent needs CAP_NET_RAW and an existing device",
        ) from error
    return sock


def transmit(order: SendOrder, device: str, stop: threading.Event, share: Callable[[], float] = lambda: 1.0) -> Sent:
    """Carry out an order; blocks until it is done or `stop` is set.

    Args:
        order: what.
        device: that sends.
        stop: ends it early.
        share: which part of the frames is sent, asked as each is due.

    Raises:
        HostNotReadyError: the device cannot be sent through.
    """
    errors: list[str] = []
    refused = 0
    frames = memoryview(order.frames)
    bounds, t1_offset, checksum_offset = order.bounds, order.t1_offset, order.checksum_offset
    stamped_ns = array("q", bytes(8 * len(order.due_ns)))
    with contextlib.closing(open_transmit_socket(device)) as sock:
        stamps = TransmitStamps(sock)

        def send(i: int) -> int:
            nonlocal refused
            frame = frames[bounds[i] : bounds[i + 1]]
            t_ns = time.time_ns()
            if t1_offset is not None:
                write_t1(frame, t1_offset, checksum_offset, t_ns)
            try:
                sock.send(frame)
            except OSError as error:  # queue full, device down: this frame is unsent, the next one may go
                refused += 1
                stamps.refused()
                if not errors:
                    errors.append(error.strerror or str(error))
                return 0
            stamped_ns[i] = t_ns
            stamps.sent(i)
            if i % STAMPS_A_TURN == STAMPS_A_TURN - 1:
                stamps.collect(stamped_ns, MOST_STAMPS)
            return t_ns

        start_mono_ns = time.monotonic_ns() + order.lead_ns
        start_ns = time.time_ns() + order.lead_ns
        due_ns = array("q", [start_mono_ns + offset for offset in order.due_ns])
        paced = pace(due_ns, send, stopped=stop.is_set, share=share)
        stamps.collect(stamped_ns, len(stamped_ns))
    for i, t_ns in enumerate(paced.times_ns):
        if t_ns == HELD:
            stamped_ns[i] = HELD
    return Sent(start_ns, stamped_ns, paced.stats, refused, errors[0] if errors else "")
