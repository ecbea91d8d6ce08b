"""What a frame of ours looked like, kept so that the next one like it is recognised by comparing octets: its shape.

A shape is learnt from a frame that `decode` proved in full. It says which bits another frame must share to be read in
the same way, apart from what is computed from the others: number, tag, times. Those others say nothing (MAC addresses,
checksums), or are those that a tunnel's end chooses anew (identification, source port, flow label), or are checked
one by one. `decode_known` finds the frames of known shapes. Layouts: docs/wire-format.md.
"""

import struct
from dataclasses import dataclass

import numpy as np

from netprobe.model.contexts import HopContext
from netprobe.model.points import Leg
from netprobe.wire import mark
from netprobe.wire.decode_claims import Claims, Kind, Known
from netprobe.wire.decode_contexts import Frames
from netprobe.wire.decode_headers import I64, U8
from netprobe.wire.encapsulation import VLAN_TYPES

UDP = 17
TYPE_AT = 12  # the EtherType's place in an untagged frame
MAX_TAGS = 2
BEFORE = 4
"""Octets in front of an identity block that are compared with it: in a STAMP packet they are the TLV's header."""
BLOCK_BYTES = BEFORE + 8  # and magic and session
MAX_HEADER_BYTES = 160  # from EtherType to payload: Geneve with OVN's option has 128 with IPv6 inside and outside

LEARNT_A_BLOCK = 128
LEARNT_A_SESSION = 2
"""Shapes of one session in one block: what a guest can make us do by sending its probes on under other headers."""

_MAGIC = struct.pack("!I", mark.MAGIC_WORD)
_TLV_TYPE_AT = mark.STAMP_BASE_BYTES + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape. Positions count from the start of the frame.

    Attributes:
        length: captured octets.
        kernel_tag: VLAN id that the kernel took off, with bit 12 set; 0 where it took none.
        stack: the tags in band, 4 octets each, as they stand there.
        header: octets from the EtherType behind the tags up to the payload; zeros where `header_mask` has zeros.
        header_mask: ones where a frame must have the same bits; as long.
        at: of the identity block.
        block: BLOCK_BYTES octets from `at` - BEFORE on.
        block_mask: likewise.
        payload: of the UDP payload.
        session: row in the session table.
        leg, kind, dscp, ttl, context: as in Decoded.
        is_stamp: the payload is a STAMP packet.
        port_at: of the port that each probe has for itself, -1 where all probes share one.
        other_magic_at: where magic would make the frame something else, -1 for nowhere.
    """

    length: int
    kernel_tag: int
    stack: bytes
    header: bytes
    header_mask: bytes
    at: int
    block: bytes
    block_mask: bytes
    payload: int
    session: int
    leg: int
    kind: int
    dscp: int
    ttl: int
    context: HopContext
    is_stamp: bool
    port_at: int
    other_magic_at: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """A block that `decode` parsed.

    Attributes:
        buf: its octets.
        starts, ends: of its frames in `buf`, shape (n,).
        kernel_tags: as in Shape, shape (n,).
        frames: what stands in them.
        claims: what was proved, shape (m,).
        context: what is around each of these, as in Decoded.
    """

    buf: U8
    starts: I64
    ends: I64
    kernel_tags: I64
    frames: Frames
    claims: Claims
    context: I64


@dataclass(frozen=True, slots=True)
class _Sample:
    """A frame, and which of its bits count so far."""

    octets: bytes
    start: int  # where it stood in the buffer that was parsed
    mask: bytearray

    def fix(self, at: int, count: int) -> None:
        self.mask[at : at + count] = b"\xff" * count

    def free(self, at: int, count: int) -> None:
        self.mask[at : at + count] = bytes(count)

    def cut(self, at: int, end: int) -> tuple[bytes, bytes]:
        """Octets as far as they count, and their mask."""
        mask = self.mask[at:end]
        octets = int.from_bytes(self.octets[at:end], "big") & int.from_bytes(mask, "big")
        return octets.to_bytes(end - at, "big"), bytes(mask)


def shapes_of(known: Known, parsed: Parsed) -> list[Shape]:
    """Shapes of a block, those of the datagrams with our tag: few of one session, and few in all."""
    claims, packets = parsed.claims, parsed.frames.packets
    is_whole = (claims.kind == Kind.PROBE) | (claims.kind == Kind.STAMP_REPLY)
    rows = np.flatnonzero(is_whole & ~claims.weak & (packets.protocol[claims.packet] == UDP))
    if not len(rows):
        return []
    packet = claims.packet[rows]
    frame = packets.index[packet]
    session = claims.session[rows]
    columns = (
        session,
        claims.leg[rows],
        parsed.context[rows],
        parsed.ends[frame] - parsed.starts[frame],
        packets.l4[packet] - parsed.starts[frame],
        packets.dscp[packet].astype(np.int64) << 8 | packets.ttl[packet],
    )
    _, first = np.unique(np.stack(columns, axis=1), axis=0, return_index=True)
    found, tried = [], dict[int, int]()
    for place in first.tolist():
        number = int(session[place])
        tried[number] = tried.get(number, 0) + 1
        if tried[number] <= LEARNT_A_SESSION and (shape := _shape_of(known, parsed, int(rows[place]))):
            found.append(shape)
        if len(found) == LEARNT_A_BLOCK:
            break
    return found


def _shape_of(known: Known, parsed: Parsed, row: int) -> Shape | None:
    """The shape of a frame; None where it has none, or another with the same octets might be read otherwise."""
    frames, claims, packets = parsed.frames, parsed.claims, parsed.frames.packets
    packet, session = int(claims.packet[row]), int(claims.session[row])
    frame = int(packets.index[packet])
    start = int(parsed.starts[frame])
    octets = parsed.buf[start : int(parsed.ends[frame])].tobytes()
    l4 = int(packets.l4[packet]) - start
    payload, first = l4 + 8, behind_tags(octets, 0)
    datagram_bytes = int.from_bytes(octets[l4 + 4 : l4 + 6], "big")
    port_at = _own_port_at(known, parsed, row, l4)
    if (
        datagram_bytes != 8 + int(known.table.payload_bytes[session])  # several probes in one, or something odd
        or payload - first > MAX_HEADER_BYTES
        or port_at is None
    ):
        return None
    captured = min(int(packets.end[packet]) - start - payload, datagram_bytes - 8)
    is_stamp = _is_stamp(octets, payload, captured)
    at = payload + (mark.STAMP_IDENTITY_OFFSET if is_stamp else 0)
    sample = _Sample(octets, start, bytearray(len(octets)))
    sample.fix(first, payload - first)
    sample.fix(at, 8)
    if is_stamp:
        sample.fix(payload + _TLV_TYPE_AT, 1)
    sample.free(l4 + 6, 2)
    if port_at >= 0:
        sample.free(port_at, 2)
    tunnel = packet - len(frames.tags)
    if tunnel >= 0:
        _free_outer(sample, frames, tunnel)
        if not _is_only_a_tunnel(known, sample, frames, tunnel):
            return None
    header, header_mask = sample.cut(first, payload)
    block, block_mask = sample.cut(at - BEFORE, at - BEFORE + BLOCK_BYTES)
    may_be_stamp = not is_stamp and captured >= mark.STAMP_PAYLOAD_BYTES
    return Shape(
        length=len(octets),
        kernel_tag=int(parsed.kernel_tags[frame]),
        stack=octets[TYPE_AT:first],
        header=header,
        header_mask=header_mask,
        at=at,
        block=block,
        block_mask=block_mask,
        payload=payload,
        session=session,
        leg=int(claims.leg[row]),
        kind=int(claims.kind[row]),
        dscp=int(packets.dscp[packet]),
        ttl=int(packets.ttl[packet]),
        context=frames.contexts(np.array([packet]))[1][0],
        is_stamp=is_stamp,
        port_at=port_at,
        other_magic_at=payload + mark.STAMP_IDENTITY_OFFSET if may_be_stamp else -1,
    )


def behind_tags(octets: bytes, start: int) -> int:
    """Where the EtherType stands that follows the tags of an Ethernet frame."""
    at = start + TYPE_AT
    for _ in range(MAX_TAGS):
        if int.from_bytes(octets[at : at + 2], "big") in VLAN_TYPES and at + 6 <= len(octets):
            at += 4
    return at


def _is_stamp(octets: bytes, payload: int, captured: int) -> bool:
    at = payload + mark.STAMP_IDENTITY_OFFSET
    has_tlv = captured >= mark.STAMP_PAYLOAD_BYTES and octets[payload + _TLV_TYPE_AT] == mark.IDENTITY_TLV_TYPE
    return has_tlv and octets[at : at + 4] == _MAGIC


def _own_port_at(known: Known, parsed: Parsed, row: int, l4: int) -> int | None:
    """Shape.port_at; None where NAT may have given the port, or the addresses do not tell the leg."""
    claims, table = parsed.claims, known.table
    rows = claims.session[row : row + 1]
    if not table.has_own_ports(int(rows[0])):
        return -1
    packet = parsed.frames.packets.take(claims.packet[row : row + 1])
    there, back = int(table.forward_pair(rows, packet)[0]), int(table.return_pair(rows, packet)[0])
    is_return = claims.leg[row] == Leg.RETURN
    if (back, there) != (0, -1) if is_return else (there, back) != (0, -1):
        return None
    return l4 + 2 if is_return else l4


def _free_outer(sample: _Sample, frames: Frames, tunnel: int) -> None:
    """What a tunnel's end chooses anew, from flow to flow or from packet to packet; and the inner MAC addresses."""
    outer = int(frames.tunnels.outer[tunnel])
    l3, l4 = behind_tags(sample.octets, 0) + 2, int(frames.packets.l4[outer]) - sample.start
    if int(frames.packets.family[outer]) == 4:
        sample.free(l3 + 4, 2)  # identification
        sample.free(l3 + 10, 2)  # header checksum
    else:
        sample.mask[l3 + 1] = 0xF0  # flow label
        sample.free(l3 + 2, 2)
    sample.free(l4, 2)
    sample.free(l4 + 6, 2)
    if int(frames.tunnels.ether_type[tunnel]) == 0:
        sample.free(int(frames.tunnels.start[tunnel]) - sample.start, 12)


def _is_only_a_tunnel(known: Known, sample: _Sample, frames: Frames, tunnel: int) -> bool:
    """Whether no frame of this shape can claim anything as it stands, with its tunnel: no magic, no tuple of ours."""
    packets, octets = frames.packets, sample.octets
    outer = frames.tunnels.outer[tunnel : tunnel + 1]
    payload = int(packets.l4[outer[0]]) - sample.start + 8
    captured = int(packets.end[outer[0]]) - sample.start - payload
    if octets[payload : payload + 4] == _MAGIC:
        return False
    if captured >= mark.STAMP_PAYLOAD_BYTES:
        at = payload + mark.STAMP_IDENTITY_OFFSET
        stamp = {payload + _TLV_TYPE_AT: mark.IDENTITY_TLV_TYPE, **{at + i: _MAGIC[i] for i in range(4)}}
        if not any((octets[i] ^ value) & sample.mask[i] for i, value in stamp.items()):
            return False
    rows = np.arange(known.table.unknown)
    packet = packets.take(np.full(len(rows), outer[0]))
    is_ours = (known.table.forward_pair(rows, packet) >= 0) | (known.table.return_pair(rows, packet) >= 0)
    return not is_ours.any()
