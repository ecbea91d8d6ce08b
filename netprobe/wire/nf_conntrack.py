"""The kernel's conntrack table as NETLINK_NETFILTER says it: bytes to entries, and the two requests made of it.

Pure. The decoder is total: any bytes give answers or WireError; attributes that are not known are skipped. The socket
is host.nf_conntrack's, above. There is no way here to write a request that empties the table: IPCTNL_MSG_CT_DELETE
does that without a tuple, and `delete_request` takes the entry that a dump has shown. Sources: linux/netlink.h,
linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_tcp.h and nf_conntrack_sctp.h.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from netprobe.errors import WireError
from netprobe.model.probes import IPAddress

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
"""On an answer: the table changed so much while it was dumped that the dump may lack entries."""

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
CT_NEW, CT_GET, CT_DELETE = 0x100, 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10  # linux/socket.h: the pure packages do not import socket

IPS_SEEN_REPLY = 0x2  # nf_conntrack_common.h
TCP_STATES = (
    "CLOSED",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT_1",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSED",
    "SYN_SENT",
)
"""enum tcp_conntrack in Open vSwitch's words. Linux's CLOSE is CLOSED here: in it a SYN opens a connection anew."""

SCTP_STATES = (
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
    "HEARTBEAT_ACKED",
)
DCCP_STATES = (
    "NONE",
    "REQUEST",
    "RESPOND",
    "PARTOPEN",
    "OPEN",
    "CLOSEREQ",
    "CLOSING",
    "TIMEWAIT",
    "IGNORE",
    "INVALID",
)

_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_STATUS, _CTA_PROTOINFO = 1, 2, 3, 4
_CTA_TIMEOUT, _CTA_MARK, _CTA_ID, _CTA_ZONE, _CTA_LABELS = 7, 8, 12, 18, 22
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO, _CTA_TUPLE_ZONE = 1, 2, 3
_CTA_IP = ((4, 1, 2), (16, 3, 4))  # bytes of an address, and the attributes of source and destination
_CTA_PROTO_NUM, _CTA_PROTO_SRC_PORT, _CTA_PROTO_DST_PORT = 1, 2, 3
_CTA_PROTO_ECHO = ((4, 5, 6), (7, 8, 9))  # identifier, type and code: of ICMP, of ICMPv6
_PROTOCOL_STATES = {1: TCP_STATES, 2: DCCP_STATES, 3: SCTP_STATES}  # CTA_PROTOINFO_*; the state is attribute 1 in each

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port; the host's own byte order
_FAMILY = struct.Struct("!BBH")  # nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_LONG = struct.Struct("=Q")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_WHAT = "conntrack message of the kernel"


@dataclass(frozen=True, slots=True)
class TrackedTuple:
    """One direction of a connection.

    Attributes:
        protocol: IANA number.
        src_port: for ICMP and ICMPv6 the identifier; 0 for protocols that Linux tracks without ports.
        dst_port: 0 where there is none.
        icmp_type, icmp_code: 0 for others.
    """

    protocol: int
    src: IPAddress
    dst: IPAddress
    src_port: int = 0
    dst_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0


@dataclass(frozen=True, slots=True)
class TrackedEntry:
    """One tracked connection.

    Attributes:
        zone: of the originating direction.
        state: of TCP, SCTP and DCCP; "" for others.
        status: IPS_* bits.
        timeout_s: seconds left, None where the kernel does not say.
        family: AF_INET or AF_INET6.
        name: what tells the kernel exactly this entry: attributes of the originating tuple, zone and number, as they
            were dumped.
    """

    original: TrackedTuple
    reply: TrackedTuple
    zone: int
    state: str
    status: int
    timeout_s: int | None
    mark: int
    labels: int
    family: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of the kernel.

    Attributes:
        sequence: of the request that it answers.
        entry: what a dump found, None in other answers.
        error: errno of the request's outcome, 0 for success; None while it goes on.
        is_interrupted: the dump that it is part of may lack entries.
    """

    sequence: int
    entry: TrackedEntry | None = None
    error: int | None = None
    is_interrupted: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# What is asked
# ---------------------------------------------------------------------------------------------------------------------


def dump_request(sequence: int) -> bytes:
    """The request for all entries, of both families and all zones."""
    return _request(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, AF_UNSPEC)


def delete_request(sequence: int, entry: TrackedEntry) -> bytes:
    """The request that deletes one entry, and says what became of it.

    A tuple alone would also match an entry that has it in the answering direction; the number is the entry's own.
    """
    assert entry.name
    return _request(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, entry.family, entry.name)


def _request(kind: int, flags: int, sequence: int, family: int, attributes: bytes = b"") -> bytes:
    body = _FAMILY.pack(family, 0, 0) + attributes
    return _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes, *, is_nested: bool = False) -> bytes:
    """One attribute, padded to whole words."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind | (_NESTED if is_nested else 0)) + value + bytes(-length % 4)


# ---------------------------------------------------------------------------------------------------------------------
# What is answered
# ---------------------------------------------------------------------------------------------------------------------


def parse_answers_untrusted(data: bytes) -> list[Answer]:
    """The messages of one datagram; of kinds that are not asked for, none.

    Raises:
        WireError: it is not whole messages, or an entry lacks what every entry has.
    """
    answers: list[Answer] = []
    place = 0
    while place < len(data):
        if len(data) - place < _MESSAGE.size:
            raise WireError(_WHAT, f"{len(data) - place} bytes are left, a header has {_MESSAGE.size}")
        length, kind, flags, sequence, _port = _MESSAGE.unpack_from(data, place)
        if not _MESSAGE.size <= length <= len(data) - place:
            raise WireError(_WHAT, f"its length is {length}, not {_MESSAGE.size} to {len(data) - place}")
        body = data[place + _MESSAGE.size : place + length]
        is_interrupted = bool(flags & NLM_F_DUMP_INTR)
        if kind == CT_NEW:
            answers.append(Answer(sequence, _entry(body), is_interrupted=is_interrupted))
        elif kind in (NLMSG_ERROR, NLMSG_DONE):
            answers.append(Answer(sequence, error=_outcome(kind, body), is_interrupted=is_interrupted))
        elif kind == NLMSG_OVERRUN:
            answers.append(Answer(sequence, is_interrupted=True))
        place += length + -length % 4
    return answers


def _outcome(kind: int, body: bytes) -> int:
    """The errno of NLMSG_ERROR and NLMSG_DONE; the latter may come without one."""
    if len(body) < _ERROR.size:
        if kind == NLMSG_DONE:
            return 0
        raise WireError(_WHAT, f"an error has {len(body)} bytes, not {_ERROR.size}")
    (code,) = _ERROR.unpack_from(body)
    return abs(int(code))


def _entry(body: bytes) -> TrackedEntry:
    if len(body) < _FAMILY.size:
        raise WireError(_WHAT, f"an entry has {len(body)} bytes, not {_FAMILY.size}")
    family = body[0]
    found = _attributes(body[_FAMILY.size :])
    raw_original = found.get(_CTA_TUPLE_ORIG, b"")
    original, own_zone = _tuple(raw_original)
    reply, _ = _tuple(found.get(_CTA_TUPLE_REPLY, b""))
    return TrackedEntry(
        original,
        reply,
        zone=_number(found, _CTA_ZONE, 2) or own_zone,
        state=_state(_attributes(found.get(_CTA_PROTOINFO, b""))),
        status=_number(found, _CTA_STATUS, 4),
        timeout_s=_number(found, _CTA_TIMEOUT, 4) if _CTA_TIMEOUT in found else None,
        mark=_number(found, _CTA_MARK, 4),
        labels=_labels(found.get(_CTA_LABELS, b"")),
        family=family,
        name=attribute(_CTA_TUPLE_ORIG, raw_original, is_nested=True)
        + b"".join(attribute(kind, found[kind]) for kind in (_CTA_ZONE, _CTA_ID) if kind in found),
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by kind; what stands twice counts as it stands last, as it does for the kernel."""
    return dict(_each(data))


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(data):
        if len(data) - place < _ATTRIBUTE.size:
            raise WireError(_WHAT, f"{len(data) - place} bytes are left, an attribute has {_ATTRIBUTE.size}")
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if not _ATTRIBUTE.size <= length <= len(data) - place:
            raise WireError(_WHAT, f"an attribute's length is {length}, not 4 to {len(data) - place}")
        yield kind & _TYPE_MASK, data[place + _ATTRIBUTE.size : place + length]
        place += length + -length % 4


def _number(found: dict[int, bytes], kind: int, size_bytes: int) -> int:
    """A number in network byte order, 0 where it is missing."""
    value = found.get(kind)
    if value is None:
        return 0
    if len(value) != size_bytes:
        raise WireError(_WHAT, f"attribute {kind} has {len(value)} bytes, not {size_bytes}")
    return int.from_bytes(value, "big")


def _tuple(data: bytes) -> tuple[TrackedTuple, int]:
    """One direction, and the zone that it alone has, 0 without one."""
    parts = _attributes(data)
    src, dst = _addresses(_attributes(parts.get(_CTA_TUPLE_IP, b"")))
    proto = _attributes(parts.get(_CTA_TUPLE_PROTO, b""))
    if _CTA_PROTO_NUM not in proto:
        raise WireError(_WHAT, "a tuple has no protocol")
    zone = _number(parts, _CTA_TUPLE_ZONE, 2)
    protocol = _number(proto, _CTA_PROTO_NUM, 1)
    for echo_id, icmp_type, icmp_code in _CTA_PROTO_ECHO:
        if echo_id in proto:
            numbers = (_number(proto, echo_id, 2), 0, _number(proto, icmp_type, 1), _number(proto, icmp_code, 1))
            return TrackedTuple(protocol, src, dst, *numbers), zone
    ports = (_number(proto, _CTA_PROTO_SRC_PORT, 2), _number(proto, _CTA_PROTO_DST_PORT, 2))
    return TrackedTuple(protocol, src, dst, *ports), zone


def _addresses(found: dict[int, bytes]) -> tuple[IPAddress, IPAddress]:
    for size_bytes, src, dst in _CTA_IP:
        if src in found and dst in found:
            if len(found[src]) != size_bytes or len(found[dst]) != size_bytes:
                raise WireError(_WHAT, f"an address has {len(found[src])} or {len(found[dst])} bytes, not {size_bytes}")
            if size_bytes == 4:
                return IPv4Address(found[src]), IPv4Address(found[dst])
            return IPv6Address(found[src]), IPv6Address(found[dst])
    raise WireError(_WHAT, "a tuple has no addresses")


def _state(found: dict[int, bytes]) -> str:
    """The protocol's state by its name, or by its number where the kernel has newer ones; "" without one."""
    for kind, names in _PROTOCOL_STATES.items():
        inner = _attributes(found.get(kind, b""))
        if 1 in inner:
            number = _number(inner, 1, 1)
            return names[number] if number < len(names) else str(number)
    return ""


def _labels(data: bytes) -> int:
    """The bitmap of labels as one number: it is an array of longs, each in the host's own byte order."""
    if len(data) > 16:
        raise WireError(_WHAT, f"labels have {len(data)} bytes, at most 16 are allowed")
    whole = data + bytes(-len(data) % _LONG.size)
    return sum(word << (64 * i) for i, (word,) in enumerate(_LONG.iter_unpack(whole)))
