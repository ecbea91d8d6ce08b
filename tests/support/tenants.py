"""Tenant traffic from a lab's guest, for as long as a `with` lasts: datagrams at a port, paced in a thread."""

import socket
import threading
from contextlib import contextmanager

from netprobe.host.netns import in_netns


@contextmanager
def datagrams(netns, address, gap_s=0.002, limit=20_000):
    """Send datagrams from a namespace to (ip, port) all the while; bounded in number.

    Yields:
        A function that says how many were sent until now.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = in_netns(netns, lambda: socket.socket(family, socket.SOCK_DGRAM))
    stop, sent = threading.Event(), [0]

    def go():
        while not stop.wait(gap_s) and sent[0] < limit:
            try:
                sock.sendto(b"tenant", address)
            except ConnectionRefusedError:
                continue  # the guest said "port unreachable"; that is its right
            sent[0] += 1

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield lambda: sent[0]
    finally:
        stop.set()
        thread.join()
        sock.close()


@contextmanager
def listener(netns, port, family=socket.AF_INET):
    """A TCP socket in a namespace that accepts connections (in the kernel; nobody reads)."""

    def open_it():
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
        sock.listen(1024)
        return sock

    sock = in_netns(netns, open_it)
    try:
        yield sock
    finally:
        sock.close()
