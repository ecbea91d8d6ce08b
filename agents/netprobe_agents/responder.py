"""Sockets for the Session-Reflector: UDP over IPv4 and IPv6, kernel receive stamps, answers from the address asked.

Knows how the kernel hands over TTL, DSCP, stamps and destination; everything about STAMP is in reflector.py.
"""

import errno
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from netprobe.errors import HostNotReadyError
from netprobe_agents import sockopts
from netprobe_agents.clock import clock_quality
from netprobe_agents.reflector import Reflector, Refusal

RECEIVE_BUFFER_BYTES = 4 << 20
DATAGRAMS_PER_WAKE_UP = 64  # then other tasks get their turn
CONTROL_ROOM_BYTES = 256
ANSWER_TTL = 255  # RFC 5357 §4.2.1, so that a sender can count the hops of the way back
CLOCK_CHECK_S = 10


@dataclass(slots=True)
class _Arrival:
    """What the kernel says about a datagram besides its octets."""

    t_ns: int = 0
    ttl: int = 0
    traffic_class: int = 0
    destination: bytes = b""
    source: bytes = b""  # the local address to answer from
    interface: int = 0


def _parse_control(control: list[sockopts.ControlMessage]) -> _Arrival:
    arrival = _Arrival()
    for level, kind, data in control:
        match level, kind:
            case socket.SOL_SOCKET, sockopts.SO_TIMESTAMPNS:
                arrival.t_ns = sockopts.timespec_ns(data)
            case socket.IPPROTO_IP, sockopts.IP_PKTINFO:
                arrival.interface, arrival.source, arrival.destination = sockopts.IN_PKTINFO.unpack_from(data)
            case socket.IPPROTO_IPV6, sockopts.IPV6_PKTINFO:
                arrival.destination, arrival.interface = sockopts.IN6_PKTINFO.unpack_from(data)
                arrival.source = arrival.destination
            case (socket.IPPROTO_IP, socket.IP_TTL) | (socket.IPPROTO_IPV6, sockopts.IPV6_HOPLIMIT):
                (arrival.ttl,) = sockopts.C_INT.unpack_from(data)
            case socket.IPPROTO_IP, socket.IP_TOS:
                arrival.traffic_class = data[0]
            case socket.IPPROTO_IPV6, sockopts.IPV6_TCLASS:
                (arrival.traffic_class,) = sockopts.C_INT.unpack_from(data)
    return arrival


def _answer_control(family: int, arrival: _Arrival, dscp: int) -> list[sockopts.ControlMessage]:
    """Send from the address that was asked, with the question's DSCP, and Not-ECT: this is no ECN-capable transport."""
    if family == socket.AF_INET:
        info = sockopts.IN_PKTINFO.pack(0, arrival.source, bytes(4))
        control = [(int(socket.IPPROTO_IP), sockopts.IP_PKTINFO, info)]
        if dscp:
            control.append((int(socket.IPPROTO_IP), int(socket.IP_TOS), sockopts.C_INT.pack(dscp << 2)))
        return control
    link_local = arrival.source[0] == 0xFE and arrival.source[1] & 0xC0 == 0x80
    info = sockopts.IN6_PKTINFO.pack(arrival.source, arrival.interface if link_local else 0)
    control = [(int(socket.IPPROTO_IPV6), sockopts.IPV6_PKTINFO, info)]
    if dscp:
        control.append((int(socket.IPPROTO_IPV6), sockopts.IPV6_TCLASS, sockopts.C_INT.pack(dscp << 2)))
    return control


def _is_multicast(family: int, destination: bytes) -> bool:
    """IPv6 names the group itself in IPV6_PKTINFO; in IPv4 the local address differs from the destination."""
    return family == socket.AF_INET6 and destination[0] == 0xFF


def _open_socket(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, sockopts.SO_TIMESTAMPNS, 1)
        sockopts.raise_receive_buffer(sock, RECEIVE_BUFFER_BYTES)
        if family == socket.AF_INET:
            for option in (sockopts.IP_PKTINFO, sockopts.IP_RECVTTL, sockopts.IP_RECVTOS):
                sock.setsockopt(socket.IPPROTO_IP, option, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ANSWER_TTL)
            sock.bind(("0.0.0.0", port))  # noqa: S104  a reflector answers on every address
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for option in (sockopts.IPV6_RECVPKTINFO, sockopts.IPV6_RECVHOPLIMIT, sockopts.IPV6_RECVTCLASS):
                sock.setsockopt(socket.IPPROTO_IPV6, option, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ANSWER_TTL)
            sock.bind(("::", port))
    except BaseException:
        sock.close()
        raise
    return sock


class Responder:
    """The reflector's sockets, bound and listening from the constructor on. Close it with `close`.

    Args:
        reflector: what answers.
        port: UDP port on all local addresses, IPv4 and, where the host has it, IPv6.

    Raises:
        HostNotReadyError: the port is taken, or may not be bound.
    """

    def __init__(self, reflector: Reflector, port: int) -> None:
        self.reflector = reflector
        self.port = port
        self.unsent = 0  # answers that the kernel did not take
        self._buffer = bytearray(65_536)
        with ExitStack() as opened:
            try:
                self._sockets = [opened.enter_context(_open_socket(socket.AF_INET, port))]
                try:
                    self._sockets.append(opened.enter_context(_open_socket(socket.AF_INET6, port)))
                except OSError as error:
                    if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise
            except OSError as error:
                raise HostNotReadyError(
                    f"UDP port {port}",
                    f"cannot be bound: {error.strerror}",
                    advice="is another reflector running, or do you lack CAP_NET_BIND_SERVICE? See --reflect-port",
                ) from error
            opened.pop_all()

    def close(self) -> None:
        """Stop listening."""
        for sock in self._sockets:
            sock.close()

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_clock)
            for sock in self._sockets:
                nursery.start_soon(self._serve, sock)

    async def _watch_clock(self) -> None:
        while True:
            quality = clock_quality()
            self.reflector.set_clock_error(quality.error_ns, synchronized=quality.synchronized)
            await trio.sleep(CLOCK_CHECK_S)

    async def _serve(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(DATAGRAMS_PER_WAKE_UP):
                if not self._answer_one(sock):
                    break

    def _answer_one(self, sock: socket.socket) -> bool:
        """Receive one datagram and answer it. False when there was none."""
        try:
            size, control, _, peer = sock.recvmsg_into([self._buffer], CONTROL_ROOM_BYTES)
        except OSError:  # nothing there, or an ICMP error about an answer of ours
            return False
        arrival = _parse_control(control)
        if not arrival.source:
            return True  # without IP_PKTINFO one can't answer from the address asked
        reply = self.reflector.receive_untrusted(
            bytes(self._buffer[:size]),
            (peer[0], peer[1]),
            (socket.inet_ntop(sock.family, arrival.destination), self.port),
            ttl=arrival.ttl,
            dscp=arrival.traffic_class >> 2,
            t2_ns=arrival.t_ns or time.time_ns(),
            now_ns=time.monotonic_ns(),
            to_unicast=arrival.source == arrival.destination and not _is_multicast(sock.family, arrival.destination),
        )
        if isinstance(reply, Refusal):
            return True
        to_send = _answer_control(sock.family, arrival, reply.dscp)
        try:
            sock.sendmsg([self.reflector.finish(reply, time.time_ns())], to_send, 0, peer)
        except OSError:
            self.unsent += 1
        return True
