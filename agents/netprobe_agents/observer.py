"""Frames seen in the guest: an AF_PACKET socket with the controller's filter, kernel stamps, batches of frames.

A ring would be faster, but needs numpy to be worth it; a guest sees its own probes only. The session
(netprobe_agents.session) sends the batches on.
"""

import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field

from netprobe.errors import HostNotReadyError
from netprobe.wire.control import DIRECTION_IN, DIRECTION_OUT, encode_frames
from netprobe_agents import sockopts

RECEIVE_BUFFER_BYTES = 16 << 20
FRAMES_PER_BATCH = 256
CONTROL_ROOM_BYTES = 128
ETHERNET_ADDRESSES_BYTES = 12

_AUXDATA = struct.Struct("@IIIHHHH")  # status, length, snapped length, mac, net, vlan_tci, vlan_tpid
_STATISTICS = struct.Struct("@II")  # packets, drops
_VLAN_VALID = 0x10  # TP_STATUS_VLAN_VALID
_VLAN_TPID_VALID = 0x40
_DOT1Q = 0x8100
_PKTTYPE_OUTGOING = 4  # PACKET_OUTGOING


@dataclass(slots=True)
class Batch:
    """Frames of one wake-up, as columns."""

    t_ns: list[int] = field(default_factory=list)
    directions: list[int] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)

    def encode(self) -> bytes:
        """The `frames` message."""
        return encode_frames(self.t_ns, self.directions, self.frames)


class Observer:
    """A filtered packet socket on one device. Close it with `close`.

    Args:
        device: interface name.
        program: classic BPF, native struct sock_filter; empty passes every frame.
        snap_bytes: octets kept of each frame.
        outgoing: whether frames that leave through the device are seen too.

    Raises:
        HostNotReadyError: no such device, no CAP_NET_RAW, or the kernel refuses the program.
    """

    def __init__(self, device: str, program: bytes, *, snap_bytes: int, outgoing: bool) -> None:
        self.received = 0
        self.unstamped = 0  # stamped by the agent, for want of a kernel stamp
        self._dropped = 0
        self._outgoing = outgoing
        self._buffer = bytearray(snap_bytes)
        try:
            # Protocol 0: nothing arrives before the bind, so no frame can pass ahead of the filter.
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            try:
                if program:
                    sockopts.attach_filter(self.socket, program)
                self.socket.setsockopt(socket.SOL_SOCKET, sockopts.SO_TIMESTAMPNS, 1)
                self.socket.setsockopt(sockopts.SOL_PACKET, sockopts.PACKET_AUXDATA, 1)
                sockopts.raise_receive_buffer(self.socket, RECEIVE_BUFFER_BYTES)
                if not outgoing:
                    with contextlib.suppress(OSError):  # Linux 4.20; before, they are sorted out below
                        self.socket.setsockopt(sockopts.SOL_PACKET, sockopts.PACKET_IGNORE_OUTGOING, 1)
                self.socket.bind((device, sockopts.ETH_P_ALL))
            except BaseException:
                self.socket.close()
                raise
        except OSError as error:
            raise HostNotReadyError(
                device,
                f"cannot be observed: {error.strerror}",
                advice="the agent needs CAP_NET_RAW and an existing device",
            ) from error

    def close(self) -> None:
        """Stop observing."""
        self.socket.close()

    def receive_batch(self) -> Batch:
        """Up to FRAMES_PER_BATCH frames that are there already; perhaps none."""
        batch = Batch()
        for _ in range(FRAMES_PER_BATCH):
            try:
                size, control, _, address = self.socket.recvmsg_into([self._buffer], CONTROL_ROOM_BYTES)
            except OSError:  # nothing there, or the device went down
                break
            out = address[2] == _PKTTYPE_OUTGOING
            if out and not self._outgoing:
                continue
            t_ns, vlan = self._parse_control(control)
            batch.t_ns.append(t_ns)
            batch.directions.append(DIRECTION_OUT if out else DIRECTION_IN)
            frame = bytes(self._buffer[:size])
            batch.frames.append(frame[:ETHERNET_ADDRESSES_BYTES] + vlan + frame[ETHERNET_ADDRESSES_BYTES:])
        self.received += len(batch.frames)
        return batch

    def _parse_control(self, control: list[sockopts.ControlMessage]) -> tuple[int, bytes]:
        """The stamp, and the VLAN tag that the kernel took out of the frame."""
        t_ns, vlan = 0, b""
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, sockopts.SO_TIMESTAMPNS):
                t_ns = sockopts.timespec_ns(data)
            elif (level, kind) == (sockopts.SOL_PACKET, sockopts.PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(data)
                if status & _VLAN_VALID:
                    vlan = struct.pack("!HH", tpid if status & _VLAN_TPID_VALID else _DOT1Q, tci)
        if not t_ns:
            self.unstamped += 1
            t_ns = time.time_ns()
        return t_ns, vlan

    def dropped(self) -> int:
        """Frames that passed the filter and found the socket's buffer full."""
        with contextlib.suppress(OSError):
            # Reading resets the kernel's counters.
            data = self.socket.getsockopt(sockopts.SOL_PACKET, sockopts.PACKET_STATISTICS, _STATISTICS.size)
            self._dropped += _STATISTICS.unpack(data)[1]
        return self._dropped
