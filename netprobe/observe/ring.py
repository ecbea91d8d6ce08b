"""A packet ring (AF_PACKET, TPACKET_V3) on one device, or on all of a namespace: filtered frames, a block at a time.

Knows nothing of marks; observe.observer decodes. Blocks x retire time is 640 ms, so that a stalled reader loses nothing
at probe rates. Layouts: linux/if_packet.h; the design's reasons are in docs/architecture.md.
"""

import contextlib
import ctypes
import mmap
import os
import socket
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError
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
BLOCKS = 32
RETIRE_MS = 20  # a decode costs the same for one frame as for hundreds
SLL_IFINDEX = 48 + 4  # tpacket3_hdr is 48 octets; sockaddr_ll.sll_ifindex stands at 4, sll_pkttype at 10
SLL_PKTTYPE = 48 + 10


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Frames of one ring block. Views into the ring: valid until the next call of `RxRing.blocks`.

    Attributes:
        buffer: uint8, the whole ring.
        offsets: shape (n,), int64; where each frame's Ethernet header starts in `buffer`.
        lengths: shape (n,), int64; captured octets.
        t_ns: shape (n,), int64; kernel stamp, CLOCK_REALTIME.
        direction: shape (n,), uint8 of model.points.Direction.
        vlan: shape (n,), int64; VLAN id that the kernel took off the frame, -1 where none; None where none at all.
        unstamped: frames whose stamp flag was not set: stamped late, by the ring.
        ifindex: shape (n,), int64; number of the device that each frame came by or left by.
    """

    buffer: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    t_ns: npt.NDArray[np.int64]
    direction: npt.NDArray[np.uint8]
    vlan: npt.NDArray[np.int64] | None
    unstamped: int
    ifindex: npt.NDArray[np.int64]


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Let a socket receive only what a program (an array of struct sock_filter) passes."""
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def _open_socket(device: str, program: bytes, *, incoming_only: bool) -> tuple[socket.socket, mmap.mmap]:
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
        frames = BLOCK_BYTES * BLOCKS // frame_bytes
        request = struct.pack("7I", BLOCK_BYTES, BLOCKS, frame_bytes, frames, RETIRE_MS, 0, 0)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        memory = mmap.mmap(sock.fileno(), BLOCK_BYTES * BLOCKS)
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

    Raises:
        HostNotReadyError: the namespace or the device is not there, or packet sockets are not permitted.
    """

    def __init__(self, netns: str, device: str, program: bytes, *, incoming_only: bool = False) -> None:
        where = f"packet ring on {device or f'all devices of {netns}'}"
        try:
            self._sock, self._memory = in_netns(
                netns, lambda: _open_socket(device, program, incoming_only=incoming_only)
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

    def blocks(self) -> "list[FrameBlock]":
        """At most one ring's worth of blocks that the kernel has handed over; call `release` when done with them."""
        ready = []
        for ahead in range(BLOCKS):
            block = (self._next + ahead) % BLOCKS
            base = block * BLOCK_BYTES >> 2
            if not self._words[base + 2] & TP_STATUS_USER:
                break
            ready.append(self._read(block, self._words[base + 3], self._words[base + 4]))
        return ready

    def release(self, count: int) -> None:
        """Give the first `count` blocks back to the kernel; their frames are gone."""
        for _ in range(count):
            self._words[(self._next * BLOCK_BYTES >> 2) + 2] = 0
            self._next = (self._next + 1) % BLOCKS

    def _read(self, block: int, frames: int, first: int) -> FrameBlock:
        offset = block * BLOCK_BYTES + first
        words = self._words
        starts = []
        for _ in range(frames):
            starts.append(offset)
            offset += words[offset >> 2]
        start = np.array(starts, np.int64)
        word = self._buffer.view(np.uint32)
        at = start >> 2
        seconds, nanoseconds = word[at + 1].astype(np.int64), word[at + 2].astype(np.int64)
        lengths = word[at + 3].astype(np.int64)
        status = word[at + 5]
        mac = self._buffer.view(np.uint16)[(start >> 1) + 12].astype(np.int64)
        is_tagged = status & TP_STATUS_VLAN_VALID != 0
        # tpacket3_hdr: hv1.tp_rxhash at 28, hv1.tp_vlan_tci at 32; the id is the low 12 bits (IEEE 802.1Q)
        ids = (word[at + 8] & 0xFFF).astype(np.int64)
        vlan = np.where(is_tagged, ids, -1) if is_tagged.any() else None
        outgoing = self._buffer[start + SLL_PKTTYPE] == PACKET_OUTGOING
        return FrameBlock(
            buffer=self._buffer,
            offsets=start + mac,
            lengths=lengths,
            t_ns=seconds * 1_000_000_000 + nanoseconds,
            direction=np.where(outgoing, int(Direction.OUT), int(Direction.IN)).astype(np.uint8),
            vlan=vlan,
            unstamped=int(np.count_nonzero(status & TP_STATUS_TS_SOFTWARE == 0)),
            ifindex=word[at + (SLL_IFINDEX >> 2)].astype(np.int64),
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
