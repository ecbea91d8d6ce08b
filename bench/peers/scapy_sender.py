"""The peer "scapy, one by one": builds each frame with its own identity, lets scapy do the checksums, sends it.

usage: scapy_sender.py DEVICE SECONDS; prints frames a second. A process of its own, for scapy finds devices by the
namespace that it was started in.
"""

import struct
import sys
import time

from scapy.config import conf
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw


def main(device: str, seconds: float) -> None:
    sock = conf.L2socket(iface=device)
    sent, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:99")
        payload = b"nprb" + struct.pack("!IIQ", 7, sent, sent * 0x9E3779B97F4A7C15 % 2**64)
        frame = ether / IP(src="10.77.0.1", dst="10.77.0.2") / UDP(sport=862, dport=862) / Raw(payload.ljust(50, b"\0"))
        sock.send(frame)
        sent += 1
    print(sent / took)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
