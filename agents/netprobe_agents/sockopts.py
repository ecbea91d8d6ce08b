"""Linux socket options that Python 3.11 does not name, and the control messages that come with received packets.

Numbers from asm-generic/socket.h, linux/in.h, linux/in6.h, linux/if_packet.h. Used by everything here with a socket.
"""

import array
import contextlib
import socket
import struct

SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33

IP_PKTINFO = 8
IP_RECVTTL = 12
IP_RECVTOS = 13
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50
IPV6_RECVHOPLIMIT = 51
IPV6_HOPLIMIT = 52
IPV6_RECVTCLASS = 66
IPV6_TCLASS = 67

SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3

TIMESPEC = struct.Struct("@ll")
IN_PKTINFO = struct.Struct("@i4s4s")  # interface, local address (or source to send from), destination in the header
IN6_PKTINFO = struct.Struct("@16sI")
C_INT = struct.Struct("@i")

ControlMessage = tuple[int, int, bytes]

BPF_DISCARD_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # ret #0
SOCK_FILTER_BYTES = 8


def timespec_ns(data: bytes) -> int:
    """Nanoseconds of a struct timespec."""
    seconds, rest_ns = TIMESPEC.unpack_from(data)
    return int(seconds * 1_000_000_000 + rest_ns)


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program (native struct sock_filter, 8 octets each).

    Raises:
        OSError: the kernel refuses the program.
    """
    instructions = array.array("B", program)  # its buffer stays put until the call is over
    address, _ = instructions.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // SOCK_FILTER_BYTES, address))


def raise_receive_buffer(sock: socket.socket, size_bytes: int) -> None:
    """Make the receive buffer big: past the system's limit as root, else as far as it goes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes)
