"""What was absorbed at ports' taps: one ring for all of them, on the devices that the absorbing filters redirect to.

Nothing else comes there: the namespace is netprobe's own. Canaries (frames whose trailer is ours) have a socket of
their own, for they are waited for, and are left out of what the ring gives. Knows nothing of marks; whoever takes the
frames decodes them.
"""

import contextlib
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns
from netprobe.model.points import Direction
from netprobe.observe.ring import ETH_P_ALL, PACKET_OUTGOING, FrameBlock, RxRing, attach_filter
from netprobe.wire.bpf_asm import Assembler

PASS_ALL = struct.pack("HBBI", 0x06, 0, 0, 0x40000)  # ret 262144
TRAILER = struct.Struct("!8sIHH")  # the run's key, number of the round, port, which of the canaries
KEY_BYTES = 8
CANARY_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Absorbed:
    """Frames of one ring block that came from ports' taps.

    Attributes:
        ports: shape (n,), int64; index of the port of each frame.
        frames: n frames; views into the ring, valid only while they are being taken.
    """

    ports: npt.NDArray[np.int64]
    frames: FrameBlock

    def copy(self) -> "Absorbed":
        """The same with octets of their own, for after they were taken."""
        frames = self.frames
        ends = frames.offsets + frames.lengths
        pieces = [frames.buffer[a:b] for a, b in zip(frames.offsets.tolist(), ends.tolist(), strict=True)]
        buffer = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        return replace(self, frames=replace(frames, buffer=buffer, offsets=np.cumsum(frames.lengths) - frames.lengths))


class Absorber:
    """Ring and canaries of one namespace; open until `close`.

    Args:
        netns: netprobe's own namespace.
        devices: in the order of the ports.

    Attributes:
        dropped: frames that the ring had no room for.
        unstamped: frames that the kernel had not stamped.

    Raises:
        HostNotReadyError: a device is not there, or packet sockets are not permitted.
    """

    def __init__(self, netns: str, devices: Sequence[str]) -> None:
        self.dropped = 0
        self.unstamped = 0
        self._port_of = _ports_by_ifindex(netns, devices)
        self._devices = list(devices)
        self._key = secrets.token_bytes(KEY_BYTES)
        self._ring = RxRing(netns, "", PASS_ALL, incoming_only=True)
        try:
            self._canaries = in_netns(netns, lambda: _open_canary_socket(self._key))
        except BaseException:
            self._ring.close()
            raise

    def fileno(self) -> int:
        """For select and trio: frames are there."""
        return self._ring.fileno()

    @property
    def canary_socket(self) -> socket.socket:
        """For select and trio: a canary came back."""
        return self._canaries

    def drain(self, take: Callable[[Absorbed], None]) -> int:
        """Give all frames that the kernel has handed over to `take`, block by block. Returns how many.

        A frame waits up to 20 ms for its block to be handed over (observe.ring.RETIRE_MS).
        """
        blocks = self._ring.blocks()
        total = 0
        try:
            for block in blocks:
                absorbed = self._ours(block)
                self.unstamped += absorbed.frames.unstamped
                if len(absorbed.ports):
                    total += len(absorbed.ports)
                    take(absorbed)
        finally:
            self._ring.release(len(blocks))
            self.dropped += self._ring.drops()
        return total

    def failure(self) -> str:
        """Why the ring sees nothing any more, "" while it does."""
        return self._ring.failure()

    def _ours(self, block: FrameBlock) -> Absorbed:
        """Incoming frames of known devices without the canaries."""
        is_known = (block.ifindex >= 0) & (block.ifindex < len(self._port_of))
        ports = np.where(is_known, self._port_of[np.where(is_known, block.ifindex, 0)], -1)
        kept = (ports >= 0) & (block.direction == Direction.IN) & ~self._is_canary(block)
        frames = replace(
            block,
            offsets=block.offsets[kept],
            lengths=block.lengths[kept],
            t_ns=block.t_ns[kept],
            direction=block.direction[kept],
            vlan=None if block.vlan is None else block.vlan[kept],
            ifindex=block.ifindex[kept],
        )
        return Absorbed(ports[kept], frames)

    def _is_canary(self, block: FrameBlock) -> npt.NDArray[np.bool_]:
        is_long = block.lengths >= TRAILER.size
        at = np.where(is_long, block.offsets + block.lengths - TRAILER.size, block.offsets)
        key = np.frombuffer(self._key, np.uint8)
        is_ours: npt.NDArray[np.bool_] = (block.buffer[at[:, None] + np.arange(KEY_BYTES)] == key).all(axis=1)
        return is_long & is_ours

    def canary(self, frame: bytes, number: int, port: int, which: int) -> bytes:
        """A frame made a canary, by a trailer behind what its headers count.

        Args:
            frame: a frame that the absorbing filter matches.
            number: of the round.
            port: its index.
            which: index of the frame among the canaries of a port.
        """
        return frame + TRAILER.pack(self._key, number, port, which)

    def canaries_back(self, number: int) -> set[tuple[int, int]]:
        """Canaries of a round that have come back since the last call, each by its own port: (port, which)."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._canaries.recvfrom(1 << 16)
                if len(frame) < TRAILER.size:  # received before the filter was attached
                    continue
                key, round_, port, which = TRAILER.unpack(frame[-TRAILER.size :])
                is_own = key == self._key and round_ == number and address[2] != PACKET_OUTGOING
                if is_own and port < len(self._devices) and self._devices[port] == address[0]:
                    found.add((port, which))
        return found

    def close(self) -> None:
        """Take ring and socket down. Twice is fine."""
        self._canaries.close()
        self._ring.close()


def _ports_by_ifindex(netns: str, devices: Sequence[str]) -> npt.NDArray[np.int64]:
    """Shape (largest ifindex + 1,): index of the port, -1 for other devices."""
    try:
        indices = in_netns(netns, lambda: [socket.if_nametoindex(device) for device in devices])
    except OSError as error:
        raise HostNotReadyError(f"devices of {netns}", f"are not all there: {error}") from error
    found = np.full(max(indices, default=0) + 1, -1, np.int64)
    found[indices] = np.arange(len(indices))
    return found


def _open_canary_socket(key: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    try:
        attach_filter(sock, _canary_program(key))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CANARY_BUFFER_BYTES)
    except BaseException:
        sock.close()
        raise
    return sock


def _canary_program(key: bytes) -> bytes:
    """Passes frames whose trailer has the key; a load before the frame's start ends the program with "no"."""
    program = Assembler()
    for at in (0, 4):
        program.op("ldx_imm", TRAILER.size)
        program.op("ld_length")
        program.op("sub_x")
        program.op("tax")
        program.op("ld", at)
        wrong = program.new_label()
        right = program.new_label()
        program.branch("jeq", int.from_bytes(key[at : at + 4], "big"), right, wrong)
        program.place(wrong)
        program.op("ret", 0)
        program.place(right)
    program.op("ret", 0x40000)
    return program.assemble()
