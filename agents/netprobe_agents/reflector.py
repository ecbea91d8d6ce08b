"""The Session-Reflector without its sockets: a question in, an answer or a refusal out (RFC 8762 §4.3, RFC 8972).

Stands on netprobe.wire.stamp; netprobe_agents.responder gives it sockets and clocks. Everything that keeps the
reflector from being a weapon is here: no answer longer than its question, none that could start a loop, none to an
address that isn't one host's, a rate limit per peer, bounded state. Anybody may send it anything: it never raises.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address, ip_address
from types import MappingProxyType

from netprobe.errors import WireError
from netprobe.wire.stamp import (
    AUTHENTICATED_BYTES,
    STAMP_PORT,
    UNAUTHENTICATED_BYTES,
    ErrorEstimate,
    ReflectedTlvs,
    ReflectorPacket,
    SenderPacket,
    TimestampFormat,
    TlvType,
    decode_sender_untrusted,
    encode_reflector,
    looks_reflected,
    ns_to_timestamp,
    reflect_tlvs_untrusted,
    sign_reflected_tlvs,
)

Endpoint = tuple[str, int]
SessionKey = tuple[str, int, str, int, int]

_S = 1_000_000_000
_UNDERSTOOD = frozenset({int(TlvType.EXTRA_PADDING), int(TlvType.NETPROBE_IDENTITY)})


class Refusal(Enum):
    """Why a datagram got no answer."""

    TOO_SHORT = "too-short"  # an answer would be longer than the question
    BAD_HMAC = "bad-hmac"
    REFLECTED = "reflected"  # it is an answer of a reflector
    REFLECTOR_PORT = "reflector-port"  # from a port where a reflector listens
    PEER_ADDRESS = "peer-address"  # from an address that is not one host's
    LOCAL_ADDRESS = "local-address"  # asked by broadcast or multicast
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class ReflectorConfig:
    """How a reflector behaves.

    Attributes:
        stateful: count answers per session (RFC 8762 §4.2), so that a sender can tell forward from return loss.
        key: given, the reflector runs in authenticated mode.
        timestamp_format: of the answers; None follows the question's Z bit.
        reflector_ports: ports where reflectors listen, besides 862: no answer goes there.
        rate_pps: answers a second to one peer address; burst_frames: how many at once.
        max_peers: peers remembered for the rate limit; the longest idle is forgotten first.
        max_sessions: the same for sessions of the stateful mode.
    """

    stateful: bool = True
    key: bytes | None = None
    timestamp_format: TimestampFormat | None = None
    reflector_ports: frozenset[int] = frozenset()
    rate_pps: int = 20_000
    burst_frames: int = 2_000
    max_peers: int = 4_096
    max_sessions: int = 4_096


@dataclass(frozen=True, slots=True)
class ReflectorStatistics:
    """Counters since the reflector began.

    Attributes:
        received: datagrams; each is either reflected, refused, or still to be finished.
        refused: by reason.
        integrity_failed: answers whose TLVs carry the I flag.
        evicted_sessions: sessions forgotten for want of room; their numbers start again at 0.
    """

    received: int
    reflected: int
    refused: Mapping[Refusal, int]
    malformed_tlvs: int
    integrity_failed: int
    sessions: int
    peers: int
    evicted_sessions: int
    evicted_peers: int


@dataclass(slots=True)
class _Session:
    next_seq: int = 0


@dataclass(slots=True)
class _Peer:
    """A peer address: whether it may be answered, and its token bucket as one theoretical arrival time."""

    one_host: bool
    loopback: bool
    due_ns: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that lacks only its transmit time.

    Attributes:
        question: the decoded question.
        size_bytes: its length, and the answer's.
        dscp: to send the answer with: the question's own, so that both legs take the same queues.
    """

    question: SenderPacket
    size_bytes: int
    dscp: int
    t2_ns: int
    ttl: int
    tlvs: ReflectedTlvs
    session: _Session | None = field(repr=False)


class Reflector:
    """A Session-Reflector (RFC 8762 §4.3). Not thread-safe.

    Args:
        config: see ReflectorConfig.
        clock_error_ns: what the reflector's clock may be off from UTC, ns; see set_clock_error.
    """

    def __init__(self, config: ReflectorConfig | None = None, *, clock_error_ns: int = 16 * _S) -> None:
        self.config = config or ReflectorConfig()
        self._interval_ns = max(1, _S // self.config.rate_pps)
        self._tolerance_ns = self._interval_ns * (self.config.burst_frames - 1)
        self._ports = self.config.reflector_ports | {0, STAMP_PORT}
        self._base_bytes = UNAUTHENTICATED_BYTES if self.config.key is None else AUTHENTICATED_BYTES
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._sessions: OrderedDict[SessionKey, _Session] = OrderedDict()
        self._refused = dict.fromkeys(Refusal, 0)
        self._received = self._reflected = self._malformed = self._integrity_failed = 0
        self._evicted_sessions = self._evicted_peers = 0
        self.set_clock_error(clock_error_ns, synchronized=False)

    def set_clock_error(self, error_ns: int, *, synchronized: bool) -> None:
        """State the clock's quality, which every answer carries.

        Args:
            error_ns: bound of the difference to UTC, ns.
            synchronized: whether an external source disciplines the clock (the S bit).
        """
        self._error_estimates = {
            form: ErrorEstimate.of(error_ns, synchronized=synchronized, timestamp_format=form).to_field()
            for form in TimestampFormat
        }

    def receive_untrusted(
        self,
        data: bytes,
        peer: Endpoint,
        local: Endpoint,
        *,
        ttl: int,
        dscp: int,
        t2_ns: int,
        now_ns: int,
        to_unicast: bool = True,
    ) -> Reply | Refusal:
        """Judge one datagram.

        Args:
            data: UDP payload, any octets.
            peer: its source (address, port).
            local: its destination (address, port).
            ttl: TTL or Hop Limit it arrived with, 0 to 255.
            dscp: of its IP header, 0 to 63.
            t2_ns: when it arrived, CLOCK_REALTIME, ns.
            now_ns: a clock that never goes back, ns; for the rate limit.
            to_unicast: False when the destination was a broadcast or multicast address.

        Returns:
            A Reply for `finish`, or why there will be none.
        """
        self._received += 1
        verdict = self._judge(data, peer, local, now_ns, to_unicast=to_unicast)
        if isinstance(verdict, Refusal):
            self._refused[verdict] += 1
            return verdict
        tlvs = reflect_tlvs_untrusted(
            verdict.tlv_area,
            verdict.seq,
            key=self.config.key,
            authenticated=self.config.key is not None,
            understood=_UNDERSTOOD,
        )
        session = self._session((*peer, *local, verdict.ssid)) if self.config.stateful else None
        return Reply(verdict, len(data), dscp, t2_ns, ttl, tlvs, session)

    def finish(self, reply: Reply, t3_ns: int) -> bytes:
        """The octets of an answer, exactly as long as the question. Call it once a reply, right before sending.

        Args:
            reply: from receive_untrusted.
            t3_ns: time of transmission, CLOCK_REALTIME, ns.
        """
        question = reply.question
        seq = question.seq
        if reply.session is not None:
            seq = reply.session.next_seq
            reply.session.next_seq = (seq + 1) & 0xFFFF_FFFF
        form = self.config.timestamp_format
        if form is None:
            form = ErrorEstimate.from_field(question.error_estimate).timestamp_format
        answer = encode_reflector(
            ReflectorPacket(
                seq=seq,
                timestamp=ns_to_timestamp(t3_ns, form),
                error_estimate=self._error_estimates[form],
                ssid=question.ssid,
                receive_timestamp=ns_to_timestamp(reply.t2_ns, form),
                sender_seq=question.seq,
                sender_timestamp=question.timestamp,
                sender_error_estimate=question.error_estimate,
                sender_ttl=reply.ttl,
                tlv_area=sign_reflected_tlvs(reply.tlvs, seq, self.config.key),
            ),
            key=self.config.key,
        )
        assert len(answer) == reply.size_bytes
        self._reflected += 1
        self._malformed += reply.tlvs.malformed
        self._integrity_failed += reply.tlvs.integrity_failed
        return answer

    def statistics(self) -> ReflectorStatistics:
        """The counters as they are now."""
        return ReflectorStatistics(
            received=self._received,
            reflected=self._reflected,
            refused=MappingProxyType(dict(self._refused)),
            malformed_tlvs=self._malformed,
            integrity_failed=self._integrity_failed,
            sessions=len(self._sessions),
            peers=len(self._peers),
            evicted_sessions=self._evicted_sessions,
            evicted_peers=self._evicted_peers,
        )

    def _judge(
        self, data: bytes, peer: Endpoint, local: Endpoint, now_ns: int, *, to_unicast: bool
    ) -> SenderPacket | Refusal:
        """Cheap checks first; the keyed hash last, behind the rate limit."""
        refusal = self._judge_addresses(peer, local, to_unicast=to_unicast)
        if refusal is not None:
            return refusal
        if len(data) < self._base_bytes:
            return Refusal.TOO_SHORT
        if looks_reflected(data, authenticated=self.config.key is not None):
            return Refusal.REFLECTED
        if not self._take_token(self._peer(peer[0]), now_ns):
            return Refusal.RATE
        try:
            return decode_sender_untrusted(data, key=self.config.key)
        except WireError:
            return Refusal.BAD_HMAC

    def _judge_addresses(self, peer: Endpoint, local: Endpoint, *, to_unicast: bool) -> Refusal | None:
        if peer[1] in self._ports or peer[1] == local[1]:
            return Refusal.REFLECTOR_PORT
        if not to_unicast:
            return Refusal.LOCAL_ADDRESS
        who = self._peer(peer[0])
        if not who.one_host or (who.loopback and not _classify(local[0]).loopback):
            return Refusal.PEER_ADDRESS
        return None

    def _peer(self, address: str) -> _Peer:
        peer = self._peers.get(address)
        if peer is not None:
            self._peers.move_to_end(address)
            return peer
        peer = self._peers[address] = _classify(address)
        if len(self._peers) > self.config.max_peers:
            self._peers.popitem(last=False)
            self._evicted_peers += 1
        return peer

    def _take_token(self, peer: _Peer, now_ns: int) -> bool:
        early_ns = peer.due_ns - now_ns
        if early_ns > self._tolerance_ns:
            return False
        peer.due_ns = max(peer.due_ns, now_ns) + self._interval_ns
        return True

    def _session(self, key: SessionKey) -> _Session:
        session = self._sessions.get(key)
        if session is not None:
            self._sessions.move_to_end(key)
            return session
        session = self._sessions[key] = _Session()
        if len(self._sessions) > self.config.max_sessions:
            self._sessions.popitem(last=False)
            self._evicted_sessions += 1
        return session


def _classify(address: str) -> _Peer:
    """Whether an address is one host's. Sending to a subnet's broadcast address is refused by the kernel."""
    try:
        ip = ip_address(address)
    except ValueError:
        return _Peer(one_host=False, loopback=False)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    wide = ip.is_multicast or ip.is_unspecified or (ip.version == 4 and (ip.packed[0] == 0 or ip.packed[0] >= 240))
    return _Peer(one_host=not wide, loopback=ip.is_loopback)
