"""Clock exchanges without their sockets: STAMP questions and answers (RFC 8762) between host agents. Pure.

Stands on wire.stamp; service.exchanging gives it sockets and clocks. The answering side is no weapon: it answers only
packets of exactly its own answer's size, never an answer, never a port where reflectors listen, so many a second and no
more, and remembers a bounded number of peers.
"""

import secrets
from collections import Counter, OrderedDict

from netprobe.errors import WireError
from netprobe.wire.stamp import (
    AUTHENTICATED_BYTES,
    STAMP_PORT,
    UNAUTHENTICATED_BYTES,
    ErrorEstimate,
    ReflectorPacket,
    SenderPacket,
    TimestampFormat,
    decode_reflector_untrusted,
    decode_sender_untrusted,
    encode_reflector,
    encode_sender,
    looks_reflected,
    ns_to_ptp,
    timestamp_to_ns_untrusted,
)

Stamps = tuple[int, int, int, int]

MAX_OUTSTANDING = 1_024
MAX_PEERS = 1_024
ANSWERS_PPS = 200  # to one address
BURST = 50

# Clocks are compared here, so what a clock says of its own error is of no use to anybody: the worst is stated.
_ERROR = ErrorEstimate.of(16_000_000_000, synchronized=False, timestamp_format=TimestampFormat.PTP).to_field()


class Questions:
    """The asking side of one peer.

    Args:
        key: given, packets are in authenticated mode (RFC 8762 §4.4).
    """

    def __init__(self, key: bytes | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self._key = key
        self._ssid = secrets.randbelow(0xFFFF) + 1
        self._seq = secrets.randbits(31)
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def ask(self, now_ns: int) -> bytes:
        """A question; `sent` is to follow. Nobody who has not seen it can answer it: its number begins anywhere."""
        self._seq = (self._seq + 1) & 0xFFFF_FFFF
        stamp = ns_to_ptp(now_ns)
        self._open[self._seq] = (stamp, now_ns)
        if len(self._open) > MAX_OUTSTANDING:
            self._open.popitem(last=False)
            self.counters["lost"] += 1
        return encode_sender(SenderPacket(self._seq, stamp, _ERROR, self._ssid), key=self._key)

    def sent(self, t1_ns: int) -> None:
        """When the last question really left."""
        self._open[self._seq] = (self._open[self._seq][0], t1_ns)

    def take_untrusted(self, data: bytes, t4_ns: int) -> Stamps | None:
        """T1 to T4 of the exchange that this answer completes; None for what is no answer of ours, or came again."""
        try:
            answer = decode_reflector_untrusted(data, key=self._key)
            form = ErrorEstimate.from_field(answer.error_estimate).timestamp_format
            t2_ns = timestamp_to_ns_untrusted(answer.receive_timestamp, form)
            t3_ns = timestamp_to_ns_untrusted(answer.timestamp, form)
        except WireError:
            self.counters["bad"] += 1
            return None
        stamp, t1_ns = self._open.get(answer.sender_seq, (None, 0))
        if stamp != answer.sender_timestamp or answer.ssid != self._ssid:
            self.counters["foreign"] += 1
            return None
        del self._open[answer.sender_seq]
        self.counters["answered"] += 1
        return t1_ns, t2_ns, t3_ns, t4_ns


class Answering:
    """The answering side: what is answered at all, and how.

    Args:
        port: the one that it listens on.
        key: given, only packets in authenticated mode with a right HMAC are answered.
    """

    def __init__(self, port: int, key: bytes | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self._key = key
        self.port = port
        self._ports = {0, STAMP_PORT, port}
        self._size_bytes = UNAUTHENTICATED_BYTES if key is None else AUTHENTICATED_BYTES
        self._due_ns: OrderedDict[str, int] = OrderedDict()

    def take_untrusted(self, data: bytes, peer: tuple[str, int], now_ns: int) -> SenderPacket | None:
        """The question, or None where there will be no answer. `now_ns` is a clock that never goes back."""
        refusal = self._refusal(data, peer, now_ns)
        if refusal:
            self.counters[refusal] += 1
            return None
        try:
            return decode_sender_untrusted(data, key=self._key)
        except WireError:
            self.counters["bad-hmac"] += 1
            return None

    def _refusal(self, data: bytes, peer: tuple[str, int], now_ns: int) -> str:
        """Why there is no answer, "" where there may be one; the keyed hash comes later, behind the rate limit."""
        if peer[1] in self._ports:
            return "reflector-port"
        if len(data) != self._size_bytes:
            return "size"
        if looks_reflected(data, authenticated=self._key is not None):
            return "reflected"
        return "" if self._take_token(peer[0], now_ns) else "rate"

    def _take_token(self, address: str, now_ns: int) -> bool:
        interval_ns = 1_000_000_000 // ANSWERS_PPS
        due_ns = self._due_ns.pop(address, 0)
        is_early = due_ns - now_ns > interval_ns * (BURST - 1)
        self._due_ns[address] = due_ns if is_early else max(due_ns, now_ns) + interval_ns
        if len(self._due_ns) > MAX_PEERS:
            self._due_ns.popitem(last=False)
        return not is_early

    def answer(self, question: SenderPacket, t2_ns: int, t3_ns: int) -> bytes:
        """The answer, as long as the question; stateless, so it carries the question's own number."""
        self.counters["answered"] += 1
        packet = ReflectorPacket(
            seq=question.seq,
            timestamp=ns_to_ptp(t3_ns),
            error_estimate=_ERROR,
            ssid=question.ssid,
            receive_timestamp=ns_to_ptp(t2_ns),
            sender_seq=question.seq,
            sender_timestamp=question.timestamp,
            sender_error_estimate=question.error_estimate,
            sender_ttl=0,
        )
        return encode_reflector(packet, key=self._key)
