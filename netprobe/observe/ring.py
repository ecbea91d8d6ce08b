"""A packet ring (AF_PACKET, TPACKET_V3) on one device, or on all of a namespace: filtered frames, a block at a time.

Knows nothing of marks; observe.observer decodes. Blocks x retire time is 640 ms, so that a stalled reader loses nothing
at probe rates; at high rates what counts is the memory, see `blocks_for`. Layouts: linux/if_packet.h; the design's
reasons are in docs/architecture.md, what was measured in docs/performance.md.
"""

import contextlib
import ctypes
import math
import mmap
import os
import socket
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.netns import in_netns
from netprobe.model.points import Direction

# Linux ABI; the socket module of Python 3.11 lacks these.
SOL_PACKET = 263
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_VERSION = 10
PACKET_IGNORE_OUTGOING = 23  # Linux 4.20
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
TPACKET_V3 = 2
TP_STATUS_USER = 1
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_TS_SOFTWARE = 1 << 29
PACKET_OUTGOING = 4
ETH_P_ALL = 3

BLOCK_BYTES = 1 << 17  # holds a 64 KiB merged frame
BLOCKS = 32  # so a ring is 4 MiB of memory that is not swapped
RETIRE_MS = 20  # a decode costs the same for one frame as for hundreds
RUN_RETIRE_MS = 40
"""Of rings whose reader may be kept from the processor for long: at probe rates a ring holds 1.28 s then."""

MIN_HELD_MS = 500
"""A block holds at least one frame, and is handed over after RETIRE_MS: a ring holds what comes in so long a time."""
HEADER_BYTES = 96  # in front of each frame; where it starts is a multiple of 8

# Offsets in struct tpacket_block_desc and in struct tpacket3_hdr, which is 48 octets, with sockaddr_ll behind it.
_STATUS, _FRAMES, _FIRST, _USED = 8, 12, 16, 20
_PLACES = 24  # tp_mac, tp_net, and the hash that nobody asks for: eight octets that are alike in nearly all frames
SLL_IFINDEX = 48 + 4
SLL_PKTTYPE = 48 + 10

_IN, _OUT = np.uint8(Direction.IN), np.uint8(Direction.OUT)
_FEW_FRAMES = 48  # which a loop walks faster than numpy
_LARGE_BYTES = 1024  # frames so large that a loop over them is cheaper than a look at all of their octets


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Frames of ring blocks that follow each other. `buffer` is the ring itself: valid until they are released.

    Attributes:
        buffer: uint8, the whole ring.
        offsets: shape (n,), int64; where each frame's Ethernet header starts in `buffer`.
        lengths: shape (n,), int64; captured octets.
        t_ns: shape (n,), int64; kernel stamp, CLOCK_REALTIME.
        direction: shape (n,), uint8 of model.points.Direction.
        vlan: shape (n,), int64; VLAN id that the kernel took off the frame, -1 where none; None where none at all.
        unstamped: frames whose stamp flag was not set: stamped late, by the ring.
        ifindex: shape (n,), int64; number of the device that each frame came by or left by.
        blocks: how many ring blocks they are, for `RxRing.release`.
    """

    buffer: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    t_ns: npt.NDArray[np.int64]
    direction: npt.NDArray[np.uint8]
    vlan: npt.NDArray[np.int64] | None
    unstamped: int
    ifindex: npt.NDArray[np.int64]
    blocks: int = 1


def blocks_for(frames_per_s: float, *, frame_bytes: int = 128, seconds: float = 0.5) -> int:
    """Blocks of BLOCK_BYTES that a ring needs so as to hold what comes in some time, at least BLOCKS.

    Args:
        frames_per_s: expected.
        frame_bytes: length of a frame.
        seconds: how long the reader may stall.
    """
    slot_bytes = (HEADER_BYTES + frame_bytes + 7) // 8 * 8
    return max(BLOCKS, math.ceil(frames_per_s * seconds * slot_bytes / BLOCK_BYTES))


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Let a socket receive only what a program (an array of struct sock_filter) passes."""
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def _open_socket(
    device: str, program: bytes, *, incoming_only: bool, block_bytes: int, blocks: int, retire_ms: int
) -> tuple[socket.socket, mmap.mmap]:
    # Protocol 0: nothing is received before filter, stamps and ring are in place; bind() starts it. Python binds to no
    # "all devices": such a socket receives at once, and the kernel drops what came before its ring (packet_set_ring).
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0 if device else socket.htons(ETH_P_ALL))
    try:
        attach_filter(sock, program)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if incoming_only:
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
        frame_bytes = 2048
        frames = block_bytes * blocks // frame_bytes
        request = struct.pack("7I", block_bytes, blocks, frame_bytes, frames, retire_ms, 0, 0)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        memory = mmap.mmap(sock.fileno(), block_bytes * blocks)
        if device:
            sock.bind((device, ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock, memory


class RxRing:
    """One receive ring, open until `close`.

    Args:
        netns: namespace of the device, "" for the caller's own.
        device: its name; "" for all devices of the namespace, of which one may go down without a `failure`.
        program: classic BPF, as wire.bpf makes it.
        incoming_only: frames that leave are not seen.
        block_bytes: a power of two, at least a page. A frame that is longer, with HEADER_BYTES, is dropped.
        blocks: how many. All of the memory is taken at once and stays in place.
        retire_ms: after so long a block is handed over though it is not full.

    Raises:
        UsageError: so few blocks that a reader must not stall for MIN_HELD_MS.
        HostNotReadyError: the namespace or the device is not there, packet sockets are not permitted, or there is not
            so much memory.
    """

    def __init__(
        self,
        netns: str,
        device: str,
        program: bytes,
        *,
        incoming_only: bool = False,
        block_bytes: int = BLOCK_BYTES,
        blocks: int = BLOCKS,
        retire_ms: int = RETIRE_MS,
    ) -> None:
        where = f"packet ring on {device or f'all devices of {netns}'}"
        if blocks * retire_ms < MIN_HELD_MS:
            raise UsageError(where, f"{blocks} blocks", allowed=f"at least {math.ceil(MIN_HELD_MS / retire_ms)}")
        self._block_bytes, self._blocks = block_bytes, blocks
        try:
            self._sock, self._memory = in_netns(
                netns,
                lambda: _open_socket(
                    device,
                    program,
                    incoming_only=incoming_only,
                    block_bytes=block_bytes,
                    blocks=blocks,
                    retire_ms=retire_ms,
                ),
            )
        except PermissionError as error:
            raise HostNotReadyError(
                where, "packet sockets are not permitted", advice="run as root (CAP_NET_RAW)"
            ) from error
        except OSError as error:
            raise HostNotReadyError(where, f"cannot be opened: {error.strerror}", advice="is the lab up?") from error
        self._buffer: npt.NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        self._words = memoryview(self._memory).cast("I")
        self._next = 0

    def fileno(self) -> int:
        """For select and trio."""
        return self._sock.fileno()

    @property
    def memory_bytes(self) -> int:
        """What the ring takes."""
        return self._block_bytes * self._blocks

    def ready(self) -> int:
        """How many blocks the kernel has handed over."""
        for ahead in range(self._blocks):
            if not self._word(self._next + ahead, _STATUS) & TP_STATUS_USER:
                return ahead
        return self._blocks

    def frames(self, most: int) -> FrameBlock | None:
        """The frames of the next blocks that the kernel has handed over, None for no block.

        Call `release` with their number when done with them.

        Args:
            most: no further block is begun after so many frames.
        """
        starts: list[npt.NDArray[np.int64]] = []
        while len(starts) < self._blocks and most > 0:
            block = self._next + len(starts)
            if not self._word(block, _STATUS) & TP_STATUS_USER:
                break
            starts.append(self._walk(block))
            most -= len(starts[-1])
        return self._columns(np.concatenate(starts), len(starts)) if starts else None

    def blocks(self) -> "list[FrameBlock]":
        """The same block by block. Call `release` with how many of them are done with."""
        return [self._columns(self._walk(self._next + ahead), 1) for ahead in range(self.ready())]

    def release(self, count: int) -> None:
        """Give the first `count` blocks back to the kernel; their frames are gone."""
        for _ in range(count):
            self._words[self._next * self._block_bytes + _STATUS >> 2] = 0
            self._next = (self._next + 1) % self._blocks

    def _word(self, block: int, offset: int) -> int:
        return self._words[block % self._blocks * self._block_bytes + offset >> 2]

    def _walk(self, block: int) -> npt.NDArray[np.int64]:
        """Where the headers of a block's frames start: a chain, in which each says how far it is to the next.

        To follow it one by one takes 0.15 us a frame. What it must be can mostly be guessed, and then be checked for
        all frames at once: either all are equally long, or they are where `_PLACES` stands as in the first one.
        """
        count = self._word(block, _FRAMES)
        base = block % self._blocks * self._block_bytes
        first, end = base + self._word(block, _FIRST), base + self._word(block, _USED)
        words = self._words
        if count > _FEW_FRAMES:
            stride = words[first >> 2]
            guess = first + stride * np.arange(count)
            if self._is_chain(guess, count):
                return guess
            if end - first < count * _LARGE_BYTES:
                eights = self._buffer.view(np.uint64)[first + _PLACES >> 3 : end + 7 >> 3]
                guess = first + 8 * np.flatnonzero(eights == eights[0])
                if self._is_chain(guess, count):
                    return guess
        starts, offset = [], first
        for _ in range(count):
            starts.append(offset)
            offset += words[offset >> 2]
        return np.array(starts, np.int64)

    def _is_chain(self, starts: npt.NDArray[np.int64], count: int) -> bool:
        """Whether this is where the chain goes, link by link; its first is right."""
        if len(starts) != count or starts[-1] >= len(self._buffer):
            return False
        links = self._buffer.view(np.uint32).take(starts[:-1] >> 2)
        return bool((links == starts[1:] - starts[:-1]).all())

    def _columns(self, start: npt.NDArray[np.int64], blocks: int) -> FrameBlock:
        at = start >> 3
        eights = self._buffer.view(np.uint64)
        # As tpacket3_hdr has them: (next, seconds), (nanoseconds, captured), (length, status), (places, hash).
        second, third, fourth = (eights.take(at + number) for number in (1, 2, 3))
        low = np.uint64(0xFFFF_FFFF)
        seconds = (eights.take(at) >> np.uint64(32)).astype(np.int64)
        status = third >> np.uint64(32)
        is_tagged = status & TP_STATUS_VLAN_VALID != 0
        vlan = None
        if is_tagged.any():
            # hv1.tp_vlan_tci at 32; the id is the low 12 bits (IEEE 802.1Q)
            vlan = np.where(is_tagged, (eights.take(at + 4) & np.uint64(0xFFF)).astype(np.int64), -1)
        sll = eights.take(at + (SLL_IFINDEX >> 3))
        types = self._buffer.take(start + SLL_PKTTYPE)
        return FrameBlock(
            buffer=self._buffer,
            offsets=start + (fourth & np.uint64(0xFFFF)).astype(np.int64),
            lengths=(second >> np.uint64(32)).astype(np.int64),
            t_ns=seconds * 1_000_000_000 + (second & low).astype(np.int64),
            direction=np.where(types == PACKET_OUTGOING, _OUT, _IN),
            vlan=vlan,
            unstamped=int(np.count_nonzero(status & TP_STATUS_TS_SOFTWARE == 0)),
            ifindex=(sll >> np.uint64(32)).astype(np.int64),
            blocks=blocks,
        )

    def drops(self) -> int:
        """Frames that the ring had no room for since the last call (the kernel resets its counters on reading)."""
        raw = self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12)
        dropped: int = struct.unpack("3I", raw)[1]
        return dropped

    def failure(self) -> str:
        """Why the ring sees nothing any more (its device went down), or "". Asking clears the kernel's note."""
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return os.strerror(code) if code else ""

    def close(self) -> None:
        """Take the ring down; the memory goes with the last view of its frames. Twice is fine."""
        self._sock.close()
        self._buffer = np.empty(0, np.uint8)
        self._words.release()
        with contextlib.suppress(BufferError):  # a FrameBlock still looks at it
            self._memory.close()
