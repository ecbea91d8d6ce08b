"""A standard STAMP Session-Sender over one UDP socket (RFC 8762 §4.2), and what its answers say.

`SenderSession` is sans-IO: numbers and times in, figures out. `measure` gives it a socket, a clock and a pace. Any
reflector that follows the RFC will do; nothing here needs our own.
"""

import contextlib
import secrets
import socket
import threading
import time
from array import array
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from netprobe.errors import HostNotReadyError, WireError
from netprobe.inject.pacer import PacingStats, pace
from netprobe.wire.stamp import (
    AUTHENTICATED_BYTES,
    TLV_HEADER_BYTES,
    UNAUTHENTICATED_BYTES,
    ErrorEstimate,
    SenderPacket,
    TimestampFormat,
    TlvType,
    decode_reflector_untrusted,
    encode_sender,
    encode_tlv,
    ns_to_timestamp,
    sender_tlv,
    timestamp_to_ns_untrusted,
)
from netprobe_agents import sockopts
from netprobe_agents.clock import ClockQuality, clock_quality

QUESTION_TTL = 255
RECEIVE_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class SenderConfig:
    """One measurement.

    Attributes:
        to: address of the reflector.
        size_bytes: of the UDP payload; more than the base packet is an Extra Padding TLV.
        tmax_s: how long to wait after the last question.
    """

    to: str
    port: int
    count: int
    rate_pps: float
    timestamp_format: TimestampFormat = TimestampFormat.NTP
    key: bytes | None = None
    size_bytes: int = 0
    tmax_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Quantiles:
    """min, median and max of some delays, ns, and how many there were."""

    count: int
    min_ns: int
    p50_ns: int
    max_ns: int

    @classmethod
    def of(cls, values_ns: list[int]) -> "Quantiles | None":
        """Of at least one value; None of none."""
        if not values_ns:
            return None
        ordered = sorted(values_ns)
        return cls(len(ordered), ordered[0], ordered[-(-len(ordered) // 2) - 1], ordered[-1])


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of it.

    Attributes:
        round_trip: delays without the reflector's own time: (T4 - T1) - (T3 - T2).
        forward: T2 - T1; it is as wrong as the two clocks are apart. backward: T4 - T3, likewise.
        clock_error_ns: the bound that both clocks state for themselves, added up; None where the reflector states none.
        forward_lost: questions that never reached a stateful reflector, up to the last one answered; None: unknown.
        return_lost: its answers that got lost, likewise.
    """

    sent: int
    unsent: int
    received: int
    lost: int
    duplicated: int
    bad: int
    forward_lost: int | None
    return_lost: int | None
    round_trip: Quantiles | None
    forward: Quantiles | None
    backward: Quantiles | None
    clock_error_ns: int | None
    clocks_synchronized: bool
    pacing: PacingStats | None


class SenderSession:
    """The questions of one session and the answers to them.

    Args:
        config: the measurement.
        ssid: 1 to 65535 (RFC 8972 §3).
        quality: of the sender's clock.
    """

    def __init__(self, config: SenderConfig, *, ssid: int, quality: ClockQuality) -> None:
        self._config = config
        self._ssid = ssid
        self._quality = quality
        self._error_estimate = ErrorEstimate.of(
            quality.error_ns, synchronized=quality.synchronized, timestamp_format=config.timestamp_format
        ).to_field()
        base_bytes = UNAUTHENTICATED_BYTES if config.key is None else AUTHENTICATED_BYTES
        padding_bytes = config.size_bytes - base_bytes - TLV_HEADER_BYTES
        # A lone Extra Padding TLV needs no HMAC TLV, not even in authenticated mode (RFC 8972 §4.8).
        padding = sender_tlv(TlvType.EXTRA_PADDING, secrets.token_bytes(max(0, padding_bytes)))
        self._tlv_area = encode_tlv(padding) if padding_bytes >= 0 else b""
        self._t1_ns = array("q", bytes(8 * config.count))
        self._round_trip: dict[int, int] = {}
        self._forward: list[int] = []
        self._backward: list[int] = []
        self._reflector_seqs: dict[int, int] = {}
        self._duplicated = self._bad = 0
        self._peer_error_ns: int | None = 0
        self._peer_synchronized = True

    def question(self, seq: int, t1_ns: int) -> bytes:
        """The octets of question `seq`, sent at t1_ns (CLOCK_REALTIME, ns)."""
        self._t1_ns[seq] = t1_ns
        timestamp = ns_to_timestamp(t1_ns, self._config.timestamp_format)
        packet = SenderPacket(seq, timestamp, self._error_estimate, self._ssid, self._tlv_area)
        return encode_sender(packet, key=self._config.key)

    @property
    def complete(self) -> bool:
        """Whether every question has its answer."""
        return len(self._round_trip) == self._config.count

    def receive_untrusted(self, data: bytes, t4_ns: int) -> None:
        """Judge one datagram that arrived at t4_ns (CLOCK_REALTIME, ns); what is no answer of ours counts as bad."""
        try:
            answer = decode_reflector_untrusted(data, key=self._config.key)
            estimate = ErrorEstimate.from_field(answer.error_estimate)
            t2_ns = timestamp_to_ns_untrusted(answer.receive_timestamp, estimate.timestamp_format)
            t3_ns = timestamp_to_ns_untrusted(answer.timestamp, estimate.timestamp_format)
        except WireError:
            self._bad += 1
            return
        seq = answer.sender_seq
        t1_ns = self._t1_ns[seq] if seq < self._config.count else 0
        # SSID 0: a reflector without RFC 8972 (§3).
        ours = t1_ns and answer.sender_timestamp == ns_to_timestamp(t1_ns, self._config.timestamp_format)
        if not ours or answer.ssid not in (self._ssid, 0):
            self._bad += 1
        elif seq in self._round_trip:
            self._duplicated += 1
        else:
            self._round_trip[seq] = (t4_ns - t1_ns) - (t3_ns - t2_ns)
            self._forward.append(t2_ns - t1_ns)
            self._backward.append(t4_ns - t3_ns)
            self._reflector_seqs[seq] = answer.seq
            self._note_clock(estimate)

    def _note_clock(self, estimate: ErrorEstimate) -> None:
        self._peer_synchronized &= estimate.synchronized
        if not estimate.multiplier or self._peer_error_ns is None:
            self._peer_error_ns = None  # "0" is not an estimate (RFC 4656 §4.1.2)
        else:
            self._peer_error_ns = max(self._peer_error_ns, estimate.error_ns)

    def _split_loss(self) -> tuple[int, int] | None:
        """(forward, return) loss up to the last answered question, by a stateful reflector's own numbers."""
        pairs = self._reflector_seqs
        if all(seq == reflected for seq, reflected in pairs.items()):
            return None  # stateless, or nothing was lost on the way there: the numbers can't tell
        last = max(pairs)
        reflected = max(pairs.values()) + 1
        return max(0, last + 1 - reflected), max(0, reflected - len(pairs))

    def measurement(self, pacing: PacingStats | None) -> Measurement:
        """The figures so far."""
        sent = sum(1 for t1_ns in self._t1_ns if t1_ns)
        split = self._split_loss()
        known_error = self._peer_error_ns is not None and bool(self._round_trip)
        return Measurement(
            sent=sent,
            unsent=self._config.count - sent,
            received=len(self._round_trip),
            lost=sent - len(self._round_trip),
            duplicated=self._duplicated,
            bad=self._bad,
            forward_lost=split[0] if split else None,
            return_lost=split[1] if split else None,
            round_trip=Quantiles.of(list(self._round_trip.values())),
            forward=Quantiles.of(self._forward),
            backward=Quantiles.of(self._backward),
            clock_error_ns=(self._peer_error_ns or 0) + self._quality.error_ns if known_error else None,
            clocks_synchronized=self._quality.synchronized and self._peer_synchronized and bool(self._round_trip),
            pacing=pacing,
        )

    def unsend(self, seq: int) -> None:
        """The kernel did not take question `seq`."""
        self._t1_ns[seq] = 0


def _open_socket(config: SenderConfig) -> socket.socket:
    family = socket.AF_INET6 if ip_address(config.to.partition("%")[0]).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, sockopts.SO_TIMESTAMPNS, 1)
        sockopts.raise_receive_buffer(sock, RECEIVE_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, QUESTION_TTL)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, QUESTION_TTL)
        target = socket.getaddrinfo(config.to, config.port, family, socket.SOCK_DGRAM)[0][4]
        sock.connect(target)
    except OSError as error:
        sock.close()
        raise HostNotReadyError(config.to, f"cannot be reached: {error.strerror}") from error
    return sock


def send_question(sock: socket.socket, question: bytes) -> None:
    """Send on a connected socket, whatever became of what was sent before.

    "Port unreachable" for an earlier question is told by the next call, whichever that is; it sends nothing then.

    Raises:
        OSError: the kernel does not take this question.
    """
    try:
        sock.send(question)
    except ConnectionRefusedError:
        sock.send(question)


async def _receive(sock: socket.socket, session: SenderSession) -> None:
    buffer = bytearray(65_536)
    while not session.complete:
        await trio.lowlevel.wait_readable(sock)
        with contextlib.suppress(OSError):  # nothing there, or port unreachable: the answer stays away, so it is lost
            while True:
                size, control, _, _ = sock.recvmsg_into([buffer], 128)
                stamps = [data for level, kind, data in control if kind == sockopts.SO_TIMESTAMPNS and level == 1]
                t4_ns = sockopts.timespec_ns(stamps[0]) if stamps else time.time_ns()
                session.receive_untrusted(bytes(buffer[:size]), t4_ns)


async def measure(config: SenderConfig, stop: threading.Event) -> Measurement:
    """Send the questions, wait for the answers.

    Args:
        config: the measurement.
        stop: once set, no more questions are sent.

    Raises:
        HostNotReadyError: there is no way to the address.
    """
    session = SenderSession(config, ssid=secrets.randbelow(0xFFFF) + 1, quality=clock_quality())
    with contextlib.closing(_open_socket(config)) as sock:

        def send(seq: int) -> int:
            t1_ns = time.time_ns()
            try:
                send_question(sock, session.question(seq, t1_ns))
            except OSError:
                session.unsend(seq)
                return 0
            return t1_ns

        start_ns = time.monotonic_ns() + 5_000_000
        gap_ns = 1e9 / config.rate_pps
        due_ns = array("q", [start_ns + round(seq * gap_ns) for seq in range(config.count)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receive, sock, session)
            paced = await trio.to_thread.run_sync(lambda: pace(due_ns, send, stopped=stop.is_set))
            if not session.complete:
                nursery.cancel_scope.deadline = trio.current_time() + config.tmax_s
    return session.measurement(paced.stats)
