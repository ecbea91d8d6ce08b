"""Headers of many frames at once: Ethernet with VLAN tags, IPv4 with options, IPv6. Columns in, columns out.

Total: any bytes, offsets and lengths give values. A field that lies beyond what was captured reads as some octets of
the buffer, and the row is marked as having no packet (`family` 0), so that nobody looks. `decode` calls it for the
frames of a block, `decode_tunnels` for the frames inside tunnels, `decode_icmp` for the packets that errors quote.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from netprobe.wire.encapsulation import VLAN_TYPES

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_MAX_VLAN_TAGS = 2
_TAG_BITS = 13  # of one tag in a packed stack: a bit that is always set, then the VLAN id
_TAG_IS_THERE = 1 << 12
_WIDEST = 40  # octets of the widest gather, an IPv6 header


class Octets:
    """A buffer that is read at many positions at once, at any alignment, in network byte order.

    Args:
        buffer: uint8, shape (size,).
    """

    def __init__(self, buffer: U8) -> None:
        if len(buffer) < _WIDEST or not buffer.flags.c_contiguous:
            padded = np.zeros(max(len(buffer), _WIDEST), np.uint8)
            padded[: len(buffer)] = buffer
            buffer = padded
        self._buffer = buffer

    def gather(self, positions: I64, dtype: str) -> npt.NDArray[np.void]:
        """One item of `dtype` at each position; where it would not lie in the buffer, another one."""
        width = np.dtype(dtype).itemsize
        last = len(self._buffer) - width
        window = np.ndarray((last + 1,), dtype, buffer=self._buffer.data, strides=(1,))
        return window[np.minimum(np.maximum(positions, 0), last)]

    def rows(self, positions: I64, width: int) -> U8:
        """`width` octets at each position, shape (n, width)."""
        return self.gather(positions, f"V{width}").view(np.uint8).reshape(len(positions), width)

    def uint(self, positions: I64, width: int) -> I64:
        """Unsigned integers of 1, 2 or 4 octets, widened."""
        return self.gather(positions, f">u{width}").astype(np.int64)

    def u64(self, positions: I64) -> U64:
        """Unsigned integers of eight octets."""
        return self.gather(positions, ">u8").astype(np.uint64)


def words_of(rows: U8, start: int, dtype: str) -> U64:
    """The big-endian field of `dtype` at octet `start` of each row, widened."""
    width = np.dtype(dtype).itemsize
    return rows[:, start : start + width].copy().view(dtype)[:, 0].astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Packets:
    """IP packets, one a row, shape (n,) each.

    Attributes:
        index: which input frame it is in.
        family: 4 or 6; 0 where there is no packet, or a later fragment, and nothing else holds.
        protocol: IPv4 protocol or IPv6 next header.
        src_hi, src_lo, dst_hi, dst_lo: addresses; an IPv4 address is in the low half.
        dscp, ttl: as in the header; the hop limit of IPv6.
        l4: position of the transport header in the buffer.
        end: position after the packet's last captured octet; at least l4.
    """

    index: I64
    family: I64
    protocol: I64
    src_hi: U64
    src_lo: U64
    dst_hi: U64
    dst_lo: U64
    dscp: U8
    ttl: U8
    l4: I64
    end: I64

    def take(self, rows: I64) -> "Packets":
        """Some rows, in the order given."""
        return Packets(*(getattr(self, field.name)[rows] for field in fields(self)))

    def joined(self, more: "Packets") -> "Packets":
        """These rows, and then those of `more`."""
        names = (field.name for field in fields(self))
        return Packets(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in names))


def frame_bounds(size: int, offsets: I64, lengths: I64) -> tuple[I64, I64]:
    """Where frames start and end, forced into a buffer of `size` octets."""
    starts = np.clip(np.asarray(offsets, np.int64), 0, size)
    return starts, starts + np.clip(np.asarray(lengths, np.int64), 0, size - starts)


def parse_ethernet(octets: Octets, starts: I64, ends: I64) -> tuple[I64, I64, I64]:
    """Find the network layer behind up to two VLAN tags.

    Returns:
        Position of the network header, its EtherType (0 where the frame is too short), and the tags, packed: see
        `vlan_ids`.
    """
    l3 = starts + 14
    ether_types = octets.uint(starts + 12, 2)
    tags = np.zeros(len(starts), np.int64)
    for _ in range(_MAX_VLAN_TAGS):
        is_tagged = (ether_types == VLAN_TYPES[0]) | (ether_types == VLAN_TYPES[1])
        tagged = np.flatnonzero(is_tagged & (l3 + 4 <= ends))
        if not len(tagged):
            break
        tags[tagged] = tags[tagged] << _TAG_BITS | _packed_tag(octets.uint(l3[tagged], 2))
        ether_types[tagged] = octets.uint(l3[tagged] + 2, 2)
        l3[tagged] += 4
    ether_types[l3 > ends] = 0
    return l3, ether_types, tags


def _packed_tag(control: I64) -> I64:
    """One tag from its Tag Control Information; the VLAN id is its low 12 bits (IEEE 802.1Q §9.6)."""
    return control & 0xFFF | _TAG_IS_THERE


def with_outermost_tag(tags: I64, vlan: I64) -> I64:
    """Packed tags with one more in front, which the kernel took off the frame; `vlan` is -1 where it took none."""
    in_band = (tags > 0).astype(np.int64) + (tags >> _TAG_BITS > 0)
    return np.where(vlan >= 0, _packed_tag(vlan) << in_band * _TAG_BITS | tags, tags)


def vlan_ids(tags: int) -> tuple[int, ...]:
    """VLAN ids of a packed stack of tags, the outermost first."""
    found: tuple[int, ...] = ()
    while tags:
        found = (tags & 0xFFF, *found)
        tags >>= _TAG_BITS
    return found


def parse_ip(octets: Octets, index: I64, ether_types: I64, l3: I64, ends: I64) -> Packets:
    """Parse the IP headers at `l3`.

    Args:
        octets: the buffer.
        index: which input frame each row belongs to.
        ether_types: 0x0800, 0x86DD, or anything else for no IP.
        l3: positions of the network headers.
        ends: positions after the last captured octets.
    """
    n = len(l3)
    packets = Packets(
        index=index,
        family=np.zeros(n, np.int64),
        protocol=np.zeros(n, np.int64),
        src_hi=np.zeros(n, np.uint64),
        src_lo=np.zeros(n, np.uint64),
        dst_hi=np.zeros(n, np.uint64),
        dst_lo=np.zeros(n, np.uint64),
        dscp=np.zeros(n, np.uint8),
        ttl=np.zeros(n, np.uint8),
        l4=ends.copy(),
        end=ends.copy(),
    )
    _fill_ipv4(octets, np.flatnonzero((ether_types == 0x0800) & (l3 + 20 <= ends)), l3, packets)
    _fill_ipv6(octets, np.flatnonzero((ether_types == 0x86DD) & (l3 + 40 <= ends)), l3, packets)
    return packets


def _fill_ipv4(octets: Octets, rows: I64, l3: I64, packets: Packets) -> None:
    """RFC 791 §3.1."""
    if not len(rows):
        return
    header = octets.rows(l3[rows], 20)
    header_bytes = (header[:, 0] & 0xF).astype(np.int64) * 4
    l4 = l3[rows] + header_bytes
    end = np.minimum(packets.end[rows], l3[rows] + words_of(header, 2, ">u2").astype(np.int64))
    is_first = (words_of(header, 6, ">u2") & np.uint64(0x1FFF)) == 0
    fine = (header[:, 0] >> 4 == 4) & (header_bytes >= 20) & (l4 <= end) & is_first
    if not fine.all():
        rows, header, l4, end = rows[fine], header[fine], l4[fine], end[fine]
    packets.family[rows] = 4
    packets.protocol[rows] = header[:, 9]
    packets.src_lo[rows] = words_of(header, 12, ">u4")
    packets.dst_lo[rows] = words_of(header, 16, ">u4")
    packets.dscp[rows] = header[:, 1] >> 2
    packets.ttl[rows] = header[:, 8]
    packets.l4[rows] = l4
    packets.end[rows] = end


def _fill_ipv6(octets: Octets, rows: I64, l3: I64, packets: Packets) -> None:
    """RFC 8200 §3; a packet with extension headers is none of ours."""
    if not len(rows):
        return
    header = octets.rows(l3[rows], 40)
    fine = header[:, 0] >> 4 == 6
    if not fine.all():
        rows, header = rows[fine], header[fine]
    l4 = l3[rows] + 40
    packets.family[rows] = 6
    packets.protocol[rows] = header[:, 6]
    packets.src_hi[rows] = words_of(header, 8, ">u8")
    packets.src_lo[rows] = words_of(header, 16, ">u8")
    packets.dst_hi[rows] = words_of(header, 24, ">u8")
    packets.dst_lo[rows] = words_of(header, 32, ">u8")
    packets.dscp[rows] = (words_of(header, 0, ">u2") >> np.uint64(6) & np.uint64(0x3F)).astype(np.uint8)
    packets.ttl[rows] = header[:, 7]
    packets.l4[rows] = l4
    packets.end[rows] = np.minimum(packets.end[rows], l4 + words_of(header, 4, ">u2").astype(np.int64))
