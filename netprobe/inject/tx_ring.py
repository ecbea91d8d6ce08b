"""A packet ring (AF_PACKET, TPACKET_V2) that sends: frames lie in slots shared with the kernel, one call sends many.

Knows nothing of probes; inject.ring_sender fills the slots. Not with PACKET_QDISC_BYPASS, which hides frames from the
rings on the sending device and passes by the egress filters. Each slot starts with a virtio header that says "all of
this is header": so the kernel copies the frame instead of pinning the ring's pages, which it would have to copy a page
at a time later on (skb_copy_ubufs) for whoever looks at the device. That is a fifth of its time. Layouts:
linux/if_packet.h, linux/virtio_net.h; what was measured: docs/performance.md.
"""

import contextlib
import errno
import fcntl
import mmap
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns
from netprobe.wire.mark import ETHERNET_BYTES

# Linux ABI; the socket module of Python 3.11 lacks these.
SOL_PACKET = 263
PACKET_VERSION = 10
PACKET_TX_RING = 13
PACKET_VNET_HDR = 15
SO_SNDBUFFORCE = 32
TPACKET_V2 = 1
TP_STATUS_AVAILABLE = 0
TP_STATUS_SEND_REQUEST = 1
TP_STATUS_WRONG_FORMAT = 1 << 2
SIOCGIFFLAGS, SIOCGIFMTU = 0x8913, 0x8921
IFF_UP, IFF_RUNNING = 1, 1 << 6

_HEADER_BYTES = 32  # TPACKET_ALIGN(sizeof(struct tpacket2_hdr)): a sent frame starts right behind it
_VNET = struct.Struct("<BBHHHH")  # virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_FRAME_AT = _HEADER_BYTES + _VNET.size
_MIN_SLOT_BYTES = 256
_BLOCK_BYTES = 1 << 17  # the kernel allocates contiguous pieces of this size

SLOTS = 4096
SEND_BUFFER_BYTES = 8 << 20
STALL_NS = 2_000_000_000
"""A device that takes no frame for so long is stuck; the sender gives up and says so."""
PAUSE_S = 0.0001  # before a frame that the device gave back is tried again


@dataclass(frozen=True, slots=True)
class Handed:
    """What the kernel took of the frames of one call.

    Attributes:
        taken: how many, from the first on. Those behind were not sent, and never will be.
        failure: why not all, "" when all were taken.
    """

    taken: int
    failure: str


class TxRing:
    """One transmit ring, open until `close`.

    Take slots with `claim`, write into their rows of `frames`, then `hand_over`: in pieces if you like, but in order.

    Args:
        netns: namespace of the device, "" for the caller's own.
        device: its name.
        frame_bytes: length of every frame, without FCS.
        slots: a power of two.
        clock: monotonic, ns; for giving up after STALL_NS.
        sleep: takes seconds.

    Attributes:
        frames: shape (slots, frame_bytes), uint8; the ring itself. Keeps what was written until it is written over.
        given_back: how often the device had no room for a frame (ENOBUFS) that was then tried again. A ring on the
            sending device may have seen it each time.
        refused: frames that the kernel will not send as they are (TP_STATUS_WRONG_FORMAT); with the lengths that are
            written here there should be none.

    Raises:
        HostNotReadyError: the namespace or device is not there or down, packet sockets are not permitted, or frames of
            this length do not fit the device's MTU.
    """

    def __init__(
        self,
        netns: str,
        device: str,
        frame_bytes: int,
        *,
        slots: int = SLOTS,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        assert slots & (slots - 1) == 0, f"slots are a power of two, got {slots}"
        self.device = device
        self._clock, self._sleep = clock, sleep
        slot_bytes = max(_MIN_SLOT_BYTES, 1 << (_FRAME_AT + frame_bytes - 1).bit_length())
        where = f"transmit ring on {device}"
        try:
            self._sock, self._memory = in_netns(netns, lambda: _open_socket(device, frame_bytes, slots, slot_bytes))
        except PermissionError as error:
            raise HostNotReadyError(
                where, "packet sockets are not permitted", advice="run as root (CAP_NET_RAW)"
            ) from error
        except OSError as error:
            raise HostNotReadyError(where, f"cannot be opened: {error.strerror}", advice="is the lab up?") from error
        self._slots = slots
        self._fill = self._next = 0  # running counts: slots claimed, slots handed over
        self.given_back = self.refused = 0
        ring = np.frombuffer(self._memory, np.uint8).reshape(slots, slot_bytes)
        self._status = ring[:, :4].view(np.uint32)[:, 0]
        ring[:, 4:8].view(np.uint32)[:, 0] = _VNET.size + frame_bytes  # tp_len
        ring[:, _HEADER_BYTES:_FRAME_AT] = np.frombuffer(_VNET.pack(0, 0, frame_bytes, 0, 0, 0), np.uint8)
        self.frames: npt.NDArray[np.uint8] = ring[:, _FRAME_AT : _FRAME_AT + frame_bytes]

    def claim(self, most: int) -> slice:
        """The next free slots, to be written.

        Args:
            most: how many are wanted, at least 1.

        Returns:
            Rows of `frames`, one after the other: 1 to `most`; less at the end of the ring, or where frames are still
            on their way. None at all (an empty slice) when the device took longer than STALL_NS for the next one.
        """
        start = self._fill % self._slots
        room = min(most, self._slots - start, self._slots - (self._fill - self._next))
        assert room > 0, "hand over what was claimed before claiming more"
        deadline = 0
        while len(busy := np.flatnonzero(self._status[start : start + room])):
            if busy[0]:
                room = int(busy[0])
                break
            now_ns = self._clock()
            deadline = deadline or now_ns + STALL_NS
            if now_ns > deadline:
                return slice(start, start)
            self._sleep(PAUSE_S)
        self._fill += room
        return slice(start, start + room)

    def hand_over(self, count: int) -> Handed:
        """Let the kernel send the next `count` claimed slots; returns when it has taken them all, or never will.

        After a failure the rest of what was claimed is forgotten: claim and write it again.
        """
        first = self._next % self._slots
        assert count <= self._fill - self._next, f"{count} slots to send, {self._fill - self._next} were claimed"
        assert first + count <= self._slots, "a claim ends where the ring ends"
        status = self._status[first : first + count]
        status[:] = TP_STATUS_SEND_REQUEST
        left, deadline = count, 0
        # The kernel takes slots in order, so the last one tells of all of them.
        while count and not (failure := self._kick()) and status[-1] == TP_STATUS_SEND_REQUEST:
            waiting, now_ns = int(np.count_nonzero(status == TP_STATUS_SEND_REQUEST)), self._clock()
            if waiting < left or not deadline:
                left, deadline = waiting, now_ns + STALL_NS
            elif now_ns > deadline:
                failure = f"took no frame for {STALL_NS / 1e9:g} s"
                break
            self._sleep(PAUSE_S)
        if count and failure:
            return self._give_up(status, failure)
        self._next += count
        return Handed(count, "")

    def forget(self) -> None:
        """Let go of what was claimed and not handed over."""
        self._fill = self._next

    def _kick(self) -> str:
        """Tell the kernel to look at the ring; why it cannot go on, or ""."""
        try:
            self._sock.send(b"", socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ""  # the send buffer is full of frames that the device still has
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                return error.strerror or str(error)
            self.given_back += 1  # the slot is as it was: the kernel takes it up again at the next call
        return ""

    def _give_up(self, status: npt.NDArray[np.uint32], failure: str) -> Handed:
        """Take back what the kernel did not take, so that a later call does not send it."""
        is_left = (status == TP_STATUS_SEND_REQUEST) | (status & TP_STATUS_WRONG_FORMAT != 0)
        self.refused += int(np.count_nonzero(status & TP_STATUS_WRONG_FORMAT))
        status[is_left] = TP_STATUS_AVAILABLE
        taken = len(status) - int(np.count_nonzero(is_left))
        self._next += taken  # where the kernel's own pointer stands
        self._fill = self._next
        return Handed(taken, f"device {self.device}: {failure}")

    def link_problem(self) -> str:
        """Why frames do not get out of the device now, or "": down, gone, no carrier, a smaller MTU.

        Ask now and then: of the last two nothing else tells, the kernel drops such frames and says that it sent them.
        """
        try:
            return _link_problem(self._sock, self.device, self.frames.shape[1])
        except OSError as error:
            return f"it is gone: {error.strerror}"

    def close(self) -> None:
        """Take the ring down. What the kernel took is sent; the memory goes with the last view of it. Twice is fine."""
        self._sock.close()
        self.frames = np.empty((0, 0), np.uint8)
        self._status = np.empty(0, np.uint32)
        with contextlib.suppress(BufferError):  # somebody still looks at `frames`
            self._memory.close()


def _open_socket(device: str, frame_bytes: int, slots: int, slot_bytes: int) -> tuple[socket.socket, mmap.mmap]:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: it receives nothing
    try:
        if problem := _link_problem(sock, device, frame_bytes):
            advice = "set it and its other end up, or send smaller probes"
            raise HostNotReadyError(f"transmit ring on {device}", problem, advice=advice)  # noqa: TRY301
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        except PermissionError:  # in a container
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        ring_bytes = slots * slot_bytes
        block_bytes = min(ring_bytes, _BLOCK_BYTES)
        request = struct.pack("4I", block_bytes, ring_bytes // block_bytes, slot_bytes, slots)
        sock.setsockopt(SOL_PACKET, PACKET_TX_RING, request)
        memory = mmap.mmap(sock.fileno(), ring_bytes)
        sock.bind((device, 0))
    except BaseException:
        sock.close()
        raise
    return sock, memory


def _ifreq(device: str) -> bytes:
    return struct.pack("16s16x", device.encode())


def _link_problem(sock: socket.socket, device: str, frame_bytes: int) -> str:
    """Why frames would not get out, or "". With a virtio header the kernel looks at neither carrier nor MTU itself."""
    (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, _ifreq(device)), 16)
    if not flags & IFF_UP:
        return "it is down"
    if not flags & IFF_RUNNING:
        return "it has no carrier"
    (mtu,) = struct.unpack_from("i", fcntl.ioctl(sock, SIOCGIFMTU, _ifreq(device)), 16)
    if frame_bytes > mtu + ETHERNET_BYTES:
        return f"frames of {frame_bytes} bytes do not fit its MTU of {mtu}"
    return ""
