"""OpenFlow 1.3, 1.4 and 1.5: the few messages that netprobe sends, as bytes.

Pure. Makers take the wire version (4, 5 or 6) and the transaction id. The rules of design §6a that concern flows live
here, so that nobody can make a message that breaks them: each flow carries netprobe's cookie and a hard timeout, and
only such flows can be deleted. Answers are decoded in wire.openflow_messages, beside.
"""

import struct
from dataclasses import dataclass

from netprobe.errors import RefusedError, UsageError
from netprobe.wire.openflow_messages import OXM_BASIC, MessageType, Multipart, OxmField, Version, message

OFPP_IN_PORT = 0xFFFFFFF8
OFPP_TABLE = 0xFFFFFFF9  # run the packet through the flow tables: valid in packet-out only
OFPP_CONTROLLER = 0xFFFFFFFD
OFPP_ANY = 0xFFFFFFFF
OFPTT_ALL = 0xFF
NO_BUFFER = 0xFFFFFFFF

NETPROBE_COOKIE = int.from_bytes(b"nprb", "big") << 32
"""Upper 32 bits of the cookie of every flow that netprobe adds; the lower 32 bits are its own to use."""
NETPROBE_COOKIE_MASK = 0xFFFFFFFF_00000000
MAX_HARD_TIMEOUT_S = 60  # design §6a: a flow that outlives a kill -9 is gone after a minute


_OXM_BYTES = {
    OxmField.IN_PORT: 4, OxmField.ETH_DST: 6, OxmField.ETH_SRC: 6, OxmField.ETH_TYPE: 2, OxmField.IP_DSCP: 1,
    OxmField.IP_PROTO: 1, OxmField.IPV4_SRC: 4, OxmField.IPV4_DST: 4, OxmField.TCP_SRC: 2, OxmField.TCP_DST: 2,
    OxmField.UDP_SRC: 2, OxmField.UDP_DST: 2, OxmField.ICMPV4_TYPE: 1, OxmField.IPV6_SRC: 16, OxmField.IPV6_DST: 16,
    OxmField.ICMPV6_TYPE: 1,
}  # fmt: skip


def hello(versions: tuple[Version, ...], xid: int) -> bytes:
    """A Hello of the highest version with the bitmap of all of them (§7.5.1)."""
    bitmap = sum(1 << version for version in versions)
    return message(max(versions), MessageType.HELLO, xid, struct.pack("!HHI", 1, 8, bitmap))


def oxm(field: OxmField, value: int, mask: int | None = None) -> bytes:
    """One match field.

    Raises:
        UsageError: value or mask does not fit the field.
    """
    width = _OXM_BYTES[field]
    for number in (value, mask or 0):
        if not 0 <= number < 1 << 8 * width:
            raise UsageError(f"match field {field.name}", f"got {number:#x}", allowed=f"{width} bytes")
    payload = value.to_bytes(width, "big") + (b"" if mask is None else mask.to_bytes(width, "big"))
    return struct.pack("!HBB", OXM_BASIC, field << 1 | (mask is not None), len(payload)) + payload


def match(oxms: bytes = b"") -> bytes:
    """An ofp_match of the OXM type, padded to 8 bytes; its length field does not count the padding (§7.2.3.1)."""
    size = 4 + len(oxms)
    return struct.pack("!HH", 1, size) + oxms + bytes(-size % 8)


def output(port: int, max_len: int = 0xFFFF) -> bytes:
    """The action that sends to an OpenFlow port; max_len counts for OFPP_CONTROLLER only."""
    return struct.pack("!HHIH6x", 0, 16, port, max_len)


def apply_actions(*actions: bytes) -> bytes:
    """The instruction that applies actions at once; without any action the flow drops."""
    body = b"".join(actions)
    return struct.pack("!HH4x", 4, 8 + len(body)) + body


def goto_table(table: int) -> bytes:
    """The instruction that goes on in a later table."""
    return struct.pack("!HHB3x", 1, 8, table)


def packet_out(version: int, xid: int, in_port: int, frame: bytes, *, actions: bytes = b"") -> bytes:
    """A packet-out as if `frame` had come in at `in_port`.

    Args:
        version: wire version; 1.5 carries in_port in a match, the others in a field.
        xid: transaction id.
        in_port: OpenFlow port number of the port that is played.
        frame: Ethernet frame without FCS.
        actions: packed actions; default is one pass through the pipeline (output:TABLE).
    """
    acts = actions or output(OFPP_TABLE)
    if version >= Version.OF15:
        head = struct.pack("!IH2x", NO_BUFFER, len(acts)) + match(oxm(OxmField.IN_PORT, in_port))
    else:
        head = struct.pack("!IIH6x", NO_BUFFER, in_port, len(acts))
    return message(version, MessageType.PACKET_OUT, xid, head + acts + frame)


def stats_request(version: int, xid: int, kind: Multipart, *, table: int, cookie: int, cookie_mask: int) -> bytes:
    """A request for flow or aggregate statistics: one layout in 1.3, 1.4 and 1.5."""
    select = struct.pack("!B3xII4xQQ", table, OFPP_ANY, OFPP_ANY, cookie, cookie_mask) + match()
    return message(version, MessageType.MULTIPART_REQUEST, xid, struct.pack("!HH4x", kind, 0) + select)


@dataclass(frozen=True, slots=True)
class FlowAdd:
    """A flow of netprobe's own.

    Attributes:
        label: lower 32 bits of the cookie; the upper ones are NETPROBE_COOKIE's.
        hard_timeout_s: 1 to MAX_HARD_TIMEOUT_S; refreshed by adding the flow again.
        oxms: match fields, one after the other.
        instructions: packed instructions; empty drops.
    """

    table: int
    priority: int
    label: int
    hard_timeout_s: int
    oxms: bytes = b""
    instructions: bytes = b""

    @property
    def cookie(self) -> int:
        """The whole cookie."""
        return NETPROBE_COOKIE | self.label


_FLOW_MOD = struct.Struct("!QQBBHHHIIIHH")
_ADD, _DELETE = 0, 3


def flow_add(version: int, xid: int, flow: FlowAdd) -> bytes:
    """A flow-mod that adds `flow`.

    Raises:
        RefusedError: it has no hard timeout in 1..MAX_HARD_TIMEOUT_S, so that it would outlive netprobe.
        UsageError: the label does not fit 32 bits.
    """
    if not 1 <= flow.hard_timeout_s <= MAX_HARD_TIMEOUT_S:
        raise RefusedError(
            f"flow {flow.cookie:#x} in table {flow.table}",
            f"hard_timeout {flow.hard_timeout_s} s",
            allowed=f"1 to {MAX_HARD_TIMEOUT_S} s",
            advice="add the flow again while it is in use",
        )
    if not 0 <= flow.label < 1 << 32:
        raise UsageError("flow label", f"got {flow.label:#x}", allowed="32 bits")
    head = _FLOW_MOD.pack(
        flow.cookie, 0, flow.table, _ADD, 0, flow.hard_timeout_s, flow.priority, NO_BUFFER, OFPP_ANY, OFPP_ANY, 0, 0
    )
    return message(version, MessageType.FLOW_MOD, xid, head + match(flow.oxms) + flow.instructions)


def flow_delete(version: int, xid: int, *, label: int | None = None, table: int = OFPTT_ALL) -> bytes:
    """A flow-mod that deletes netprobe's own flows: all of them, or those with one label. It can't name others."""
    cookie = NETPROBE_COOKIE | (label or 0)
    mask = NETPROBE_COOKIE_MASK if label is None else (1 << 64) - 1
    head = _FLOW_MOD.pack(cookie, mask, table, _DELETE, 0, 0, 0, NO_BUFFER, OFPP_ANY, OFPP_ANY, 0, 0)
    return message(version, MessageType.FLOW_MOD, xid, head + match())
