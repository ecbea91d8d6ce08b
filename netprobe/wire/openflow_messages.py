"""OpenFlow 1.3, 1.4 and 1.5: what a switch says, from bytes to events.

Pure. Decoders are total: any bytes give an event or WireError. Which message may come when is said in wire.openflow,
above; what netprobe sends is made in wire.openflow_requests, beside. Sources: OpenFlow Switch Specification 1.3.5,
1.4.1 and 1.5.1, §7.3 (1.5: OXS statistics, §7.2.4).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from netprobe.errors import UsageError, WireError

HEADER = struct.Struct("!BBHI")
MAX_MESSAGE_BYTES = 0xFFFF


class Version(IntEnum):
    """Wire versions that netprobe speaks."""

    OF13 = 4
    OF14 = 5
    OF15 = 6


class MessageType(IntEnum):
    """OFPT_*: the same numbers in 1.3, 1.4 and 1.5."""

    HELLO = 0
    ERROR = 1
    ECHO_REQUEST = 2
    ECHO_REPLY = 3
    EXPERIMENTER = 4
    FEATURES_REQUEST = 5
    FEATURES_REPLY = 6
    GET_CONFIG_REPLY = 8
    PACKET_IN = 10
    FLOW_REMOVED = 11
    PORT_STATUS = 12
    PACKET_OUT = 13
    FLOW_MOD = 14
    MULTIPART_REQUEST = 18
    MULTIPART_REPLY = 19
    BARRIER_REQUEST = 20
    BARRIER_REPLY = 21


class Multipart(IntEnum):
    """OFPMP_*; in 1.5 the first one is called FLOW_DESC."""

    FLOW = 1
    AGGREGATE = 2


class OxmField(IntEnum):
    """OFPXMT_OFB_* fields that netprobe's own flows match on."""

    IN_PORT = 0
    ETH_DST = 3
    ETH_SRC = 4
    ETH_TYPE = 5
    IP_DSCP = 8
    IP_PROTO = 10
    IPV4_SRC = 11
    IPV4_DST = 12
    TCP_SRC = 13
    TCP_DST = 14
    UDP_SRC = 15
    UDP_DST = 16
    ICMPV4_TYPE = 19
    IPV6_SRC = 26
    IPV6_DST = 27
    ICMPV6_TYPE = 29


OXM_BASIC = 0x8000
_OXS_BASIC = 0x8002
_OXS_FLOW_COUNT, _OXS_PACKET_COUNT, _OXS_BYTE_COUNT = 3, 4, 5
_FLAG_MORE = 1


def message(version: int, kind: MessageType, xid: int, body: bytes = b"") -> bytes:
    """A whole message: header and `body`.

    Raises:
        UsageError: it would be longer than an OpenFlow message can be.
    """
    size = HEADER.size + len(body)
    if size > MAX_MESSAGE_BYTES:
        raise UsageError("OpenFlow message", f"{size} bytes", allowed=f"at most {MAX_MESSAGE_BYTES}")
    return HEADER.pack(version, kind, size, xid) + body


@dataclass(frozen=True, slots=True)
class Hello:
    """The handshake is over; `version` is what both ends speak from now on."""

    xid: int
    version: Version


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """The switch asks whether we live; send `reply` back at once."""

    xid: int
    reply: bytes


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """The switch refused the message with this xid; `data` begins as that message did."""

    xid: int
    type: int
    code: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BarrierReply:
    """Everything sent before the barrier has been worked off."""

    xid: int


@dataclass(frozen=True, slots=True)
class AggregateStats:
    """Sums over all flows that the request selected."""

    xid: int
    packet_count: int
    byte_count: int
    flow_count: int


@dataclass(frozen=True, slots=True)
class FlowEntry:
    """One flow of a FlowStats reply. `match` is the OXM list, undecoded."""

    table: int
    priority: int
    cookie: int
    packet_count: int
    byte_count: int
    hard_timeout_s: int
    match: bytes


@dataclass(frozen=True, slots=True)
class FlowStats:
    """One part of the answer to a flow statistics request; `more` says that another part follows."""

    xid: int
    flows: tuple[FlowEntry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class PacketIn:
    """A packet that a flow sent to us; `in_port` is 0 where the switch named none."""

    xid: int
    reason: int
    table: int
    cookie: int
    in_port: int
    total_bytes: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class FeaturesReply:
    """What the switch says about itself."""

    xid: int
    datapath_id: int
    n_tables: int


@dataclass(frozen=True, slots=True)
class Other:
    """A well-formed message that netprobe has no use for."""

    xid: int
    type: int
    body: bytes


Event = (
    Hello | EchoRequest | ErrorMessage | BarrierReply | AggregateStats | FlowStats | PacketIn | FeaturesReply | Other
)


def _unpack(layout: struct.Struct, body: bytes, offset: int, what: str) -> tuple[int, ...]:
    if offset < 0 or offset + layout.size > len(body):
        raise WireError(what, f"{len(body)} bytes, {offset + layout.size} needed")
    return layout.unpack_from(body, offset)


_MATCH_HEAD = struct.Struct("!HH")
_TLV_HEAD = struct.Struct("!HBB")


def _match_untrusted(body: bytes, offset: int, what: str) -> tuple[bytes, int]:
    """The OXM list of the match at `offset`, and the offset behind its padding."""
    kind, size = _unpack(_MATCH_HEAD, body, offset, what)
    end = offset + size
    if kind != 1 or size < _MATCH_HEAD.size or end > len(body):
        raise WireError(what, f"a match of type {kind} and {size} bytes at {offset} of {len(body)}")
    return body[offset + _MATCH_HEAD.size : end], end + -size % 8


def _tlvs_untrusted(data: bytes, what: str) -> Iterator[tuple[int, int, bytes]]:
    """(class, field, value) of an OXM or OXS list."""
    offset = 0
    while offset < len(data):
        group, field, size = _unpack(_TLV_HEAD, data, offset, what)
        offset += _TLV_HEAD.size
        if offset + size > len(data):
            raise WireError(what, f"field {group:#x}/{field >> 1} wants {size} bytes, {len(data) - offset} left")
        yield group, field >> 1, data[offset : offset + size]
        offset += size


def _oxs_untrusted(body: bytes, offset: int, what: str) -> tuple[dict[int, int], int]:
    """The OXS statistics at `offset` by field number, and the offset behind their padding (1.5, §7.2.4)."""
    _reserved, size = _unpack(_MATCH_HEAD, body, offset, what)
    end = offset + size
    if size < _MATCH_HEAD.size or end > len(body):
        raise WireError(what, f"statistics of {size} bytes at {offset} of {len(body)}")
    data = body[offset + _MATCH_HEAD.size : end]
    found = {f: int.from_bytes(value, "big") for group, f, value in _tlvs_untrusted(data, what) if group == _OXS_BASIC}
    return found, end + -size % 8


_AGGREGATE = struct.Struct("!QQI4x")


def _aggregate_untrusted(version: int, xid: int, body: bytes) -> AggregateStats:
    what = "OpenFlow aggregate statistics"
    if version >= Version.OF15:
        stats, _end = _oxs_untrusted(body, 0, what)
        counts = (stats.get(field, 0) for field in (_OXS_PACKET_COUNT, _OXS_BYTE_COUNT, _OXS_FLOW_COUNT))
        return AggregateStats(xid, *counts)
    return AggregateStats(xid, *_unpack(_AGGREGATE, body, 0, what))


_FLOW_HEAD = struct.Struct("!HBxIIHHHHH2xQQQ")  # length table duration prio idle hard flags importance cookie counts
_FLOW_DESC_HEAD = struct.Struct("!H2xBxHHHHHQ")  # 1.5: the counters follow the match


def _flow_untrusted(version: int, body: bytes) -> tuple[FlowEntry, int]:
    what = "OpenFlow flow statistics"
    if version >= Version.OF15:
        size, table, priority, _idle, hard, _flags, _importance, cookie = _unpack(_FLOW_DESC_HEAD, body, 0, what)
        fields, end = _match_untrusted(body[:size], _FLOW_DESC_HEAD.size, what)
        stats, _end = _oxs_untrusted(body[:size], end, what)
        packets, octets = stats.get(_OXS_PACKET_COUNT, 0), stats.get(_OXS_BYTE_COUNT, 0)
    else:
        size, table, _s, _ns, priority, _idle, hard, _flags, _importance, cookie, packets, octets = _unpack(
            _FLOW_HEAD, body, 0, what
        )
        fields, _end = _match_untrusted(body[:size], _FLOW_HEAD.size, what)
    if size > len(body):
        raise WireError(what, f"an entry of {size} bytes, {len(body)} left")
    return FlowEntry(table, priority, cookie, packets, octets, hard, fields), size


_MULTIPART_HEAD = struct.Struct("!HH4x")


def _multipart_untrusted(version: int, xid: int, body: bytes) -> Event:
    kind, flags = _unpack(_MULTIPART_HEAD, body, 0, "OpenFlow multipart reply")
    rest = body[_MULTIPART_HEAD.size :]
    if kind == Multipart.AGGREGATE:
        return _aggregate_untrusted(version, xid, rest)
    if kind != Multipart.FLOW:
        return Other(xid, MessageType.MULTIPART_REPLY, body)
    flows = []
    while rest:
        flow, size = _flow_untrusted(version, rest)
        flows.append(flow)
        rest = rest[size:]
    return FlowStats(xid, tuple(flows), bool(flags & _FLAG_MORE))


_PACKET_IN = struct.Struct("!IHBBQ")


def _packet_in_untrusted(_version: int, xid: int, body: bytes) -> PacketIn:
    what = "OpenFlow packet-in"
    _buffer, total, reason, table, cookie = _unpack(_PACKET_IN, body, 0, what)
    fields, end = _match_untrusted(body, _PACKET_IN.size, what)
    in_port = 0
    for group, field, value in _tlvs_untrusted(fields, what):
        if (group, field) == (OXM_BASIC, OxmField.IN_PORT):
            in_port = int.from_bytes(value, "big")
    if end + 2 > len(body):
        raise WireError(what, f"{len(body)} bytes, {end + 2} needed")
    return PacketIn(xid, reason, table, cookie, in_port, total, body[end + 2 :])


_ERROR = struct.Struct("!HH")
_FEATURES = struct.Struct("!QIBB2xII")


def _error_untrusted(_version: int, xid: int, body: bytes) -> ErrorMessage:
    error_type, code = _unpack(_ERROR, body, 0, "OpenFlow error")
    return ErrorMessage(xid, error_type, code, body[_ERROR.size :])


def _features_untrusted(_version: int, xid: int, body: bytes) -> FeaturesReply:
    datapath_id, _buffers, tables, _aux, _caps, _reserved = _unpack(_FEATURES, body, 0, "OpenFlow features")
    return FeaturesReply(xid, datapath_id, tables)


_DECODERS: dict[int, Callable[[int, int, bytes], Event]] = {
    MessageType.ECHO_REQUEST: lambda version, xid, body: EchoRequest(
        xid, message(version, MessageType.ECHO_REPLY, xid, body)
    ),
    MessageType.ERROR: _error_untrusted,
    MessageType.BARRIER_REPLY: lambda _version, xid, _body: BarrierReply(xid),
    MessageType.MULTIPART_REPLY: _multipart_untrusted,
    MessageType.PACKET_IN: _packet_in_untrusted,
    MessageType.FEATURES_REPLY: _features_untrusted,
}


def body_untrusted(version: int, kind: int, xid: int, body: bytes) -> Event:
    """The event of one message that is not a Hello.

    Args:
        version: negotiated wire version.
        kind: the header's type.
        xid: the header's transaction id.
        body: what follows the header.

    Raises:
        WireError: `body` is not what `kind` says.
    """
    decode = _DECODERS.get(kind)
    return decode(version, xid, body) if decode else Other(xid, kind, body)


def hello_versions_untrusted(header_version: int, body: bytes) -> set[int]:
    """Wire versions that a Hello offers: its bitmap, or without one everything up to its header's (§6.3.1).

    Raises:
        WireError: an element is cut off.
    """
    offset = 0
    while offset < len(body):
        kind, size = _unpack(_MATCH_HEAD, body, offset, "OpenFlow hello")
        if size < _MATCH_HEAD.size or offset + size > len(body):
            raise WireError("OpenFlow hello", f"an element of {size} bytes at {offset} of {len(body)}")
        if kind == 1:
            words = body[offset + _MATCH_HEAD.size : offset + size]
            first = int.from_bytes(words[:4], "big")  # versions 0..31; later words name none that exists
            return {bit for bit in range(32) if first >> bit & 1}
        offset += size + -size % 8
    return set(range(1, header_version + 1))
