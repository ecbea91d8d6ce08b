"""Sends marked garbage as fast as asked, by a transmit ring; run in a guest's namespace as a program of its own.

    python flood.py DEVICE DESTINATION_MAC SOURCE_IP DESTINATION_IP SOURCE_PORT DESTINATION_PORT SECONDS PPS

A source port of 0 is another one in each frame.

Prints how many frames the kernel took, and in how many seconds.
"""

import mmap
import random
import socket
import struct
import sys
import time

SOL_PACKET, PACKET_TX_RING, PACKET_VERSION, PACKET_QDISC_BYPASS, TPACKET_V2 = 263, 13, 10, 20, 1
FRAME_BYTES, FRAMES = 256, 4096
HEADER_BYTES = 32  # struct tpacket2_hdr, aligned
SEND_REQUEST = 1
BATCH = 500
MAGIC = b"nprb"


def frame(source_mac, target_mac, ends, rng):
    """A UDP datagram with the class mark, our magic and nonsense behind it."""
    source, target, source_port, target_port = ends
    payload = MAGIC + rng.randbytes(40)
    udp = struct.pack("!HHHH", source_port or rng.randrange(1024, 65536), target_port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 3 << 2, 20 + len(udp), 0, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return target_mac + source_mac + b"\x08\x00" + head + udp


def flood(device, target_mac, ends, seconds, pps):
    """Returns frames handed over, and the seconds that it took."""
    rng = random.Random(1)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
    sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    sock.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack("4I", FRAME_BYTES * 16, FRAMES // 16, FRAME_BYTES, FRAMES))
    sock.bind((device, 0))
    ring = mmap.mmap(sock.fileno(), FRAME_BYTES * FRAMES)
    own = sock.getsockname()[4]
    for i in range(FRAMES):
        data = frame(own, target_mac, ends, rng)
        struct.pack_into("3I", ring, i * FRAME_BYTES, 0, len(data), len(data))
        at = i * FRAME_BYTES + HEADER_BYTES
        ring[at : at + len(data)] = data
    status = memoryview(ring).cast("I")
    stride = FRAME_BYTES // 4
    sent, at, began = 0, 0, time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        if sent < (now - began) * pps:
            for _ in range(BATCH):
                status[at * stride] = SEND_REQUEST
                at = (at + 1) % FRAMES
            sock.send(b"")
            sent += BATCH
    return sent, time.monotonic() - began


if __name__ == "__main__":
    name, mac, src, dst, sport, dport, duration, rate = sys.argv[1:]
    tuple_ = (src, dst, int(sport), int(dport))
    print(*flood(name, bytes.fromhex(mac.replace(":", "")), tuple_, float(duration), float(rate)))
