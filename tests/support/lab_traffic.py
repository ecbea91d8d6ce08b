"""Traffic of the lab's guests, from their own kernels: echo, TCP, datagrams, raw frames; and where frames are seen."""

import contextlib
import itertools
import os
import socket
import struct
import time

from netprobe.host import netns
from netprobe.lab.relay_frames import parse

WAIT_S = 5.0
QUIET_S = 0.3
"""How long a probe that should be dropped is waited for."""

ETH_P_ALL = 0x0003
IDENTIFIERS = itertools.count(int.from_bytes(os.urandom(2)))
"""An echo tuple that comes back soon after its connection's end makes OVS 3.1 abort, where OVN commits with NAT."""


def guest(status, name):
    """A guest's or bypass NIC's entry in the state file."""
    return next(end for end in (*status.state["guests"], *status.state["bypasses"]) if end["name"] == name)


def echo(source, destination, payload=b"", *, seq=1, wait_s=WAIT_S):
    """One echo request from a guest's own kernel, and whether the reply came."""
    is_six = ":" in destination
    identifier = next(IDENTIFIERS) & 0xFFFF

    def go():
        kinds = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is_six else (socket.AF_INET, socket.IPPROTO_ICMP)
        with socket.socket(kinds[0], socket.SOCK_RAW, kinds[1]) as sock:
            sock.settimeout(wait_s)
            request = struct.pack("!BBHHH", 128 if is_six else 8, 0, 0, identifier, seq) + payload
            if not is_six:
                request = request[:2] + struct.pack("!H", _checksum(request)) + request[4:]
            try:
                sock.sendto(request, (destination, 0))
            except OSError:  # no route
                return False
            while True:
                try:
                    answer = sock.recv(2048)[0 if is_six else 20 :]
                except TimeoutError:
                    return False
                if answer[0] == (129 if is_six else 0) and answer[4:8] == request[4:8]:
                    return True

    return netns.in_netns(source, go)


def _checksum(octets):
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def connect(source, destination, port, wait_s):
    """What becomes of a TCP connection: open, refused or dropped."""

    def go():
        with socket.socket(socket.AF_INET6 if ":" in destination else socket.AF_INET) as sock:
            sock.settimeout(wait_s)
            try:
                sock.connect((destination, port))
            except TimeoutError:
                return "dropped"
            except ConnectionRefusedError:
                return "refused"
            return "open"

    return netns.in_netns(source, go)


def listener(name, port):
    """A TCP server in a guest, for both families."""
    return netns.in_netns(name, lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))


def receiver(name, port):
    """A UDP socket in a guest."""

    def go():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind(("", port))
        sock.settimeout(QUIET_S)
        return sock

    return netns.in_netns(name, go)


def drain(sock):
    """What comes until nothing comes any more."""
    found = []
    while True:
        try:
            found.append(sock.recv(2048))
        except TimeoutError:
            return found


def marked(seq, session=7):
    """The payload of a raw UDP probe, or of an echo request."""
    return b"nprb" + struct.pack("!II", session, seq) + bytes(40)


def send(source, destination, payloads, *, gap_s=0.0):
    """Datagrams to port 5000 from a guest's own kernel."""
    with netns.in_netns(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        due = time.monotonic()
        for payload in payloads:
            sock.sendto(payload, (destination, 5000))
            due += gap_s
            time.sleep(max(0.0, due - time.monotonic()))


def udp_frame(source, target, payload):
    """A frame from one entry's MAC and address to another's; both are dictionaries with `mac` and `ipv4`."""
    macs = bytes.fromhex((target["mac"] + source["mac"]).replace(":", ""))
    addresses = socket.inet_aton(source["ipv4"]) + socket.inet_aton(target["ipv4"])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + addresses
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    return macs + b"\x08\x00" + header + struct.pack("!HHHH", 4000, 5000, 8 + len(payload), 0) + payload


def send_frames(name, frames):
    """Frames out of a guest's NIC, whatever they claim."""
    with netns.in_netns(name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as out:
        out.bind(("eth0", 0))
        for frame in frames:
            out.send(frame)


def look_at(point):
    """A packet socket at a point of a state file; it does not block."""

    def go():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((point["device"], ETH_P_ALL))
        sock.setblocking(False)
        return sock

    return netns.in_netns(point["netns"], go)


@contextlib.contextmanager
def watching(points):
    """Look at points of a state file; yields a function: the probes (their seq) that were seen at each, by its id."""

    def seen():
        found = {}
        for name, sock in sockets.items():
            marks = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    marks.append(parse(sock.recv(2048)))
            found[name] = [mark.seq for mark in marks if mark is not None and mark.leg == 0]
        return found

    with contextlib.ExitStack() as stack:
        sockets = {point["id"]: stack.enter_context(look_at(point)) for point in points}
        yield seen
