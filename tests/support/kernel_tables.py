"""Two namespaces of a test's own: a guest that sends, and a host whose kernel tracks what comes."""

import contextlib
import os
import socket
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

from netprobe.host import iproute
from netprobe.host.netns import in_netns
from netprobe.host.process import run

HOST, GUEST, GUEST2 = "10.77.0.1", "10.77.0.2", "10.77.0.3"
HOST6, GUEST6 = "fd77::1", "fd77::2"
FIRST_PORT = 61000


@dataclass(frozen=True, slots=True)
class Tracked:
    """Names of the namespaces."""

    host: str
    guest: str

    def rules(self, *lines, six=False):
        """Add iptables rules on the host."""
        for line in lines:
            run(["ip", "netns", "exec", self.host, "ip6tables" if six else "iptables", "-w", *line.split()])

    def send(self, *packets):
        """Send IP packets from the guest; scapy's, whole."""
        for family in (socket.AF_INET, socket.AF_INET6):
            mine = [p for p in packets if (IP if family == socket.AF_INET else IPv6) in p]
            with in_netns(self.guest, lambda f=family: socket.socket(f, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sock:
                for packet in mine:
                    sock.sendto(bytes(packet), (packet.dst, 0))


@contextlib.contextmanager
def open_tracked(prefix):
    """The two namespaces, joined by a veth pair; nothing is tracked before a rule asks for it."""
    names = Tracked(f"{prefix}h-{os.getpid()}", f"{prefix}g-{os.getpid()}")
    iproute.delete_namespaces([names.host, names.guest])
    iproute.add_namespaces([names.host, names.guest])
    try:
        commands = [
            f"link add kt0 type veth peer name kt1 netns {names.guest}",
            "link set lo up",
            "link set kt0 up",
            f"addr add {HOST}/24 dev kt0",
            f"addr add {HOST6}/64 dev kt0 nodad",
        ]
        iproute.batch(commands, netns=names.host)
        sysctls = {"netfilter/nf_conntrack_checksum": "0"}  # checksums of SCTP and UDPLite are not worth their code
        iproute.set_sysctls(names.host, sysctls)
        commands = ["link set kt1 up", *(f"addr add {ip}/24 dev kt1" for ip in (GUEST, GUEST2))]
        iproute.batch([*commands, f"addr add {GUEST6}/64 dev kt1 nodad"], netns=names.guest)
        yield names
    finally:
        iproute.delete_namespaces([names.host, names.guest])


def udp(src_port, dst_port=5353, *, src=GUEST):
    """One UDP packet from the guest to the host."""
    return IP(src=src, dst=HOST) / UDP(sport=src_port, dport=dst_port) / b"x"


def one_of_each():
    """Packets of every protocol that Linux tracks in its own way, and of some that it doesn't know."""
    ports = FIRST_PORT.to_bytes(2, "big") + (80).to_bytes(2, "big")
    sctp_init = ports + bytes(4 + 4) + b"\1\0\0\x14" + bytes(3) + b"\1" + bytes(4) + b"\0\1\0\1" + bytes(4)
    return [
        IP(src=GUEST, dst=HOST) / TCP(sport=FIRST_PORT, dport=80, flags="S", seq=7),
        udp(FIRST_PORT),
        *(IP(src=GUEST, dst=HOST) / ICMP(type=t, id=77) / bytes(12) for t in (8, 13, 17)),
        IP(src=GUEST, dst=HOST, proto=132) / Raw(sctp_init),
        IP(src=GUEST, dst=HOST, proto=136) / Raw(ports + b"\0\0\xff\xff" + bytes(8)),
        IP(src=GUEST, dst=HOST, proto=47) / Raw(b"\0\0\x08\0" + bytes(20)),
        IP(src=GUEST, dst=HOST, proto=253) / Raw(bytes(24)),
        IPv6(src=GUEST6, dst=HOST6) / TCP(sport=FIRST_PORT, dport=80, flags="S", seq=7),
        IPv6(src=GUEST6, dst=HOST6) / UDP(sport=FIRST_PORT, dport=5353) / b"x",
        IPv6(src=GUEST6, dst=HOST6) / ICMPv6EchoRequest(id=77),
        IPv6(src=GUEST6, dst=HOST6, nh=253) / Raw(bytes(24)),
    ]
