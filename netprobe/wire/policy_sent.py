"""What the frames of a verify run say of themselves, as columns, and the table of those that were sent.

The table is filled by parsing the very frames that are sent, so what a frame is compared with can never disagree with
the encoder. Total like `decode_headers`, on which it stands: any bytes give values. Used by `policy_decode`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from netprobe.model.packets import ACK, FIN, SYN
from netprobe.model.policy import ICMP, ICMPV6, TCP, WITH_PORTS
from netprobe.wire import mark
from netprobe.wire.decode_headers import I64, U64, Bools, Octets, Packets, frame_bounds, parse_ethernet, parse_ip
from netprobe.wire.policy_layout import ARP_IDENTITY_AT, FRAGMENT_HEADER, QUERIES_V4, QUERIES_V6, identity_at

_ARP_TYPE, _ARP_BYTES = 0x0806, 28
_ARP_FAMILY = 1  # in the column of families: neither 4 nor 6
_WHOLE, _FIRST, _LATER = 0, 1, 2
_AT_END = -1
_WORDS = 6
# Odd, and otherwise arbitrary: the sum of a row's words only finds candidates, all words are compared.
_FACTORS = np.random.default_rng(22).integers(1 << 63, size=_WORDS, dtype=np.uint64) << np.uint64(1) | np.uint64(1)


def _places(numbers: Sequence[int | None]) -> I64:
    return np.array([_AT_END if number is None else number for number in numbers], np.int64)


_AT_OF_PROTOCOL = _places([identity_at(0, protocol, 0) for protocol in range(256)])
_AT_OF_TYPE = {
    4: _places([identity_at(4, ICMP, kind) for kind in range(256)]),
    6: _places([identity_at(6, ICMPV6, kind) for kind in range(256)]),
}
_HAS_PORTS = np.isin(np.arange(256), list(WITH_PORTS))


@dataclass(frozen=True, slots=True)
class Heads:
    """Headers of IP packets and of ARP, one a row; columns of shape (n,).

    Attributes:
        index: which input frame.
        words: shape (n, 6): family, protocol and which fragment; source (two words); destination (two words); ports, or
            ICMP type and code.
        protocol: IANA number; 0 for ARP.
        number: TCP sequence number; identifier and sequence number of an ICMP query; else 0.
        acknowledged: TCP acknowledgment number, else 0.
        flags: six flags of TCP, else 0.
        data_bytes: after the TCP header, else 0.
        l4, end: positions of the transport header and after the packet.
        identity: position where the identity would stand; it may lie beyond `end`.
    """

    index: I64
    words: U64
    protocol: I64
    number: I64
    acknowledged: I64
    flags: I64
    data_bytes: I64
    l4: I64
    end: I64
    identity: I64

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: I64 | Bools) -> "Heads":
        """Some rows."""
        return Heads(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def family(self) -> I64:
        """4, 6, or 1 for ARP."""
        return (self.words[:, 0] >> np.uint64(16)).astype(np.int64)

    @property
    def icmp_type(self) -> I64:
        """Type of an ICMP or ICMPv6 message; -1 elsewhere, and in later fragments."""
        is_icmp = _is_icmp(self.family, self.protocol) & (self.words[:, 0] & np.uint64(0xFF) != _LATER)
        return np.where(is_icmp, (self.words[:, 5] >> np.uint64(8)).astype(np.int64), -1)

    def turned(self) -> U64:
        """`words` of the packets that these answer: addresses and ports swapped."""
        words = self.words[:, [0, 3, 4, 1, 2, 5]]
        ports = words[:, 5]
        words[:, 5] = ports >> np.uint64(16) | (ports & np.uint64(0xFFFF)) << np.uint64(16)
        return words


def _is_icmp(family: I64, protocol: I64) -> Bools:
    is_icmp: Bools = (family == 4) & (protocol == ICMP) | (family == 6) & (protocol == ICMPV6)
    return is_icmp


def parse_heads(octets: Octets, index: I64, ether_types: I64, l3: I64, ends: I64) -> Heads:
    """Parse the packets at `l3`, later fragments and ARP too; what is neither IP nor ARP is left out.

    Args:
        octets: the buffer.
        index: which input frame each row belongs to.
        ether_types: of each row.
        l3: positions of the network headers.
        ends: positions after the last captured octets.
    """
    packets = parse_ip(octets, index, ether_types, l3, ends)
    fragment = np.zeros(len(l3), np.uint64)
    _ipv4_fragments(octets, np.flatnonzero((ether_types == 0x0800) & (l3 + 20 <= ends)), l3, packets, fragment)
    _ipv6_fragments(octets, packets, fragment)
    ports = np.zeros(len(l3), np.uint64)
    _arp(octets, np.flatnonzero((ether_types == _ARP_TYPE) & (l3 + _ARP_BYTES <= ends)), l3, packets, ports)
    rows = np.flatnonzero(packets.family)
    packets, fragment, ports = packets.take(rows), fragment[rows], ports[rows]
    _transport(octets, packets, fragment, ports)
    return _heads(octets, packets, fragment, ports)


def _ipv4_fragments(octets: Octets, rows: I64, l3: I64, packets: Packets, fragment: U64) -> None:
    """Say which are fragments, and fill in the later ones, which `parse_ip` leaves out."""
    words = octets.uint(l3[rows] + 6, 2)
    header_bytes = (octets.uint(l3[rows], 1) & 0xF) * 4
    fragment[rows] = np.where(words & 0x1FFF, _LATER, np.where(words & 0x2000, _FIRST, _WHOLE))
    l4 = l3[rows] + header_bytes
    end = np.minimum(packets.end[rows], l3[rows] + octets.uint(l3[rows] + 2, 2))
    is_ipv4 = octets.uint(l3[rows], 1) >> 4 == 4
    fine = np.flatnonzero(is_ipv4 & (header_bytes >= 20) & (l4 <= end) & (words & 0x1FFF > 0))
    rows, l4, end = rows[fine], l4[fine], end[fine]
    packets.family[rows] = 4
    packets.protocol[rows] = octets.uint(l3[rows] + 9, 1)
    packets.src_lo[rows] = octets.uint(l3[rows] + 12, 4)
    packets.dst_lo[rows] = octets.uint(l3[rows] + 16, 4)
    packets.l4[rows], packets.end[rows] = l4, end


def _ipv6_fragments(octets: Octets, packets: Packets, fragment: U64) -> None:
    """Step over the fragment header (RFC 8200 §4.5)."""
    is_one = (packets.family == 6) & (packets.protocol == FRAGMENT_HEADER) & (packets.l4 + 8 <= packets.end)
    rows = np.flatnonzero(is_one)
    l4 = packets.l4[rows]
    words = octets.uint(l4 + 2, 2)
    fragment[rows] = np.where(words & 0xFFF8, _LATER, np.where(words & 1, _FIRST, _WHOLE))
    packets.protocol[rows] = octets.uint(l4, 1)
    packets.l4[rows] = l4 + 8


def _arp(octets: Octets, rows: I64, l3: I64, packets: Packets, ports: U64) -> None:
    """RFC 826: hardware address of the sender, both protocol addresses, and the operation."""
    at = l3[rows]
    packets.family[rows] = _ARP_FAMILY
    packets.src_hi[rows] = octets.uint(at + 8, 2) << 32 | octets.uint(at + 10, 4)
    packets.src_lo[rows] = octets.uint(at + 14, 4)
    packets.dst_lo[rows] = octets.uint(at + 24, 4)
    packets.l4[rows] = at
    ports[rows] = octets.uint(at + 4, 4)  # sizes of addresses, operation


def _transport(octets: Octets, packets: Packets, fragment: U64, ports: U64) -> None:
    """Ports, or ICMP type and code."""
    has_head = (packets.family != _ARP_FAMILY) & (fragment != _LATER)
    with_ports = np.flatnonzero(has_head & _HAS_PORTS[packets.protocol] & (packets.l4 + 4 <= packets.end))
    ports[with_ports] = octets.uint(packets.l4[with_ports], 4)
    icmp = np.flatnonzero(has_head & _is_icmp(packets.family, packets.protocol) & (packets.l4 + 2 <= packets.end))
    ports[icmp] = octets.uint(packets.l4[icmp], 2)


def _heads(octets: Octets, packets: Packets, fragment: U64, ports: U64) -> Heads:
    l4, end = packets.l4, packets.end
    has_head = (packets.family != _ARP_FAMILY) & (fragment != _LATER)
    is_tcp = has_head & (packets.protocol == TCP)
    is_icmp = has_head & _is_icmp(packets.family, packets.protocol)
    kind = np.where(is_icmp, ports >> np.uint64(8), np.uint64(0)).astype(np.int64)
    is_query = is_icmp & np.where(packets.family == 4, np.isin(kind, QUERIES_V4), np.isin(kind, QUERIES_V6))
    is_whole = is_tcp & (l4 + 20 <= end)
    family_word = packets.family << 16 | packets.protocol << 8
    words = (family_word.astype(np.uint64) | fragment, packets.src_hi, packets.src_lo, packets.dst_hi, packets.dst_lo)
    at = _AT_OF_PROTOCOL[packets.protocol]
    at = np.where(is_icmp, np.where(packets.family == 4, _AT_OF_TYPE[4][kind], _AT_OF_TYPE[6][kind]), at)
    at = np.where(fragment == _LATER, 0, np.where(packets.family == _ARP_FAMILY, ARP_IDENTITY_AT, at))
    return Heads(
        index=packets.index,
        words=np.stack([*words, ports], axis=1),
        protocol=packets.protocol,
        number=np.where((is_tcp | is_query) & (l4 + 8 <= end), octets.uint(l4 + 4, 4), 0),
        acknowledged=np.where(is_whole, octets.uint(l4 + 8, 4), 0),
        flags=np.where(is_whole, octets.uint(l4 + 13, 1) & 0x3F, 0),
        data_bytes=np.where(is_whole, end - l4 - (octets.uint(l4 + 12, 1) >> 4) * 4, 0),
        l4=l4,
        end=end,
        identity=np.where(at == _AT_END, end - mark.IDENTITY_BYTES, l4 + at),
    )


class SentTable:
    """The frames that were sent, by number. Grows while a run goes on; one writer, and its decoders on one thread."""

    def __init__(self) -> None:
        self._heads = parse_heads(Octets(np.empty(0, np.uint8)), *(np.empty(0, np.int64),) * 4)
        self._order, self._sums = np.empty(0, np.int64), np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self._heads)

    def append(self, frames: Sequence[bytes]) -> None:
        """Add the next frames.

        Args:
            frames: of `policy_frames.encode_packet`, numbered from len(self) on, without a gap.
        """
        lengths = np.array([len(frame) for frame in frames], np.int64)
        buffer = np.frombuffer(b"".join(frames), np.uint8)
        octets = Octets(buffer)
        starts, ends = frame_bounds(len(buffer), np.cumsum(lengths) - lengths, lengths)
        l3, ether_types, _ = parse_ethernet(octets, starts, ends)
        more = parse_heads(octets, np.arange(len(frames)), ether_types, l3, ends)
        assert len(more) == len(frames), "a frame that is neither IP nor ARP"
        names = [field.name for field in fields(Heads)]
        self._heads = Heads(*(np.concatenate([getattr(self._heads, name), getattr(more, name)]) for name in names))

    def holds(self, seqs: I64, seen: Heads, *, is_quoted: bool = False) -> Bools:
        """Whether the frame of each number, if there is one, is the one seen.

        Args:
            seqs: shape (n,), any integers.
            seen: n rows.
            is_quoted: eight octets of the transport header are enough.
        """
        if not len(self):
            return np.zeros(len(seqs), np.bool_)
        is_there = (seqs >= 0) & (seqs < len(self))
        sent = self._heads.take(np.where(is_there, seqs, 0))
        same: Bools = is_there & (sent.words == seen.words).all(axis=1) & (sent.number == seen.number)
        if not is_quoted:
            same &= (sent.flags == seen.flags) & (sent.data_bytes == seen.data_bytes)
        return same

    def is_rejected_by(self, seqs: I64, resets: Heads) -> Bools:
        """Whether each reset has the numbers that an answer to that frame has (RFC 9293 §3.5.2).

        One that acknowledges: everything that was sent, or, as OVN counts, one octet. One that does not: its number is
        what the frame acknowledged.
        """
        sent = self._heads.take(seqs)
        used = sent.data_bytes + (sent.flags & SYN > 0) + (sent.flags & FIN > 0)
        ahead = resets.acknowledged - sent.number & 0xFFFFFFFF
        acknowledges = resets.flags & ACK > 0
        is_next = acknowledges & ((ahead == used) | (ahead == 1))
        fits: Bools = is_next | ~acknowledges & (sent.flags & ACK > 0) & (resets.number == sent.acknowledged)
        return fits

    def latest(self, words: U64, fits: Callable[[I64, I64], Bools]) -> I64:
        """The last sent frame with each row's addresses and ports that fits.

        Args:
            words: as in Heads, shape (n, 6).
            fits: asked with rows and the numbers of their candidates, shape (m,) each.

        Returns:
            Its number, -1 where there is none.
        """
        found = np.full(len(words), -1)
        if not len(words) or not len(self):
            return found
        self._index()
        sums = words @ _FACTORS
        low, at = np.searchsorted(self._sums, sums, "left"), np.searchsorted(self._sums, sums, "right")
        rows = np.flatnonzero(at > low)
        while len(rows):
            at[rows] -= 1
            candidates = self._order[at[rows]]
            same = (self._heads.words[candidates] == words[rows]).all(axis=1)
            same[same] = fits(rows[same], candidates[same])
            found[rows[same]] = candidates[same]
            rows = rows[~same & (at[rows] > low[rows])]
        return found

    def _index(self) -> None:
        """Sort the frames by the sum of their words, those with one sum by their number."""
        if len(self._order) == len(self):
            return
        sums = self._heads.words @ _FACTORS
        self._order = np.argsort(sums, kind="stable")
        self._sums = sums[self._order]
