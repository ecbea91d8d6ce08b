"""Probes to bytes, a block at a time: a matrix of frames from one template, or slots of a ring that hold it already.

What differs from probe to probe is patched in by columns, and checksums are corrected by what the patched columns add
(RFC 1071 §2: the sum does not care about order), never computed per packet. Templates come from `inject.templates`;
`decode` is the inverse. Offsets: docs/wire-format.md.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import UsageError
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.wire import isn, mark
from netprobe.wire.siphash import identity_words, tags
from netprobe.wire.stamp import NTP_EPOCH_OFFSET_S

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58  # protocol numbers
_IP_PROTOCOL = {Protocol.UDP: _UDP, Protocol.RAW_UDP: _UDP, Protocol.TCP: _TCP, Protocol.ICMP: _ICMP}
_CHECKSUM_OFFSET = {_UDP: 6, _TCP: 16, _ICMP: 2, _ICMPV6: 2}  # in the transport header
_IDENTITY_OFFSET = {Protocol.UDP: mark.STAMP_IDENTITY_OFFSET, Protocol.RAW_UDP: 0, Protocol.ICMP: 0}  # in the payload
_FOUR_WORDS = struct.Struct("!4H")
_WORD = struct.Struct("!H")
_NS_PER_S = 1_000_000_000
_T1_OFFSET = 4  # in a Session-Sender packet (RFC 8762 §4.2.1)


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Consecutive probes of one session, ready to be sent.

    Attributes:
        frames: shape (n, size_bytes), uint8, C-contiguous; the reader's own.
        first_seq: number of the probe in row 0.
        t1_offset: where the 8-octet timestamp of a STAMP packet stands in each row, zero so far; else None.
        checksum_offset: where the UDP checksum that covers it stands; None when t1_offset is.
    """

    frames: U8
    first_seq: int
    t1_offset: int | None
    checksum_offset: int | None


class FrameEncoder:
    """Encodes the probes of one session. Keeps no state between calls: any range, in any order.

    Args:
        session: what to send.
        template: `inject.templates.build_template(session)`.

    Raises:
        UsageError: the session does not fit the wire, or the template is not one of this session's size.
    """

    def __init__(self, session: ProbeSession, template: bytes) -> None:
        mark.check_session(session)
        type_p = session.type_p
        if len(template) != type_p.size_bytes:
            raise UsageError("template", f"{len(template)} octets", allowed=f"size_bytes = {type_p.size_bytes}")
        self._session = session
        self._l4 = mark.ETHERNET_BYTES + mark.IP_BYTES[type_p.family]
        self._ip_protocol = _IP_PROTOCOL[type_p.protocol]
        if type_p.protocol is Protocol.ICMP and type_p.family == 6:
            self._ip_protocol = _ICMPV6
        self._checksum = self._l4 + _CHECKSUM_OFFSET[self._ip_protocol]
        in_payload = _IDENTITY_OFFSET.get(type_p.protocol)
        self._identity = None if in_payload is None else self._l4 + 8 + in_payload  # a SYN has none
        self._isn_keys = isn.round_keys(session.key, session.session)
        self._has_own_ports = mark.has_own_ports(type_p)
        self._ports = np.array(session.src_ports if self._has_own_ports else (type_p.src_port,), np.uint32)
        self._template = self._prepare(template)
        self._base_sum = _transport_sum(self._template, type_p.family, self._l4, self._ip_protocol)

    def _prepare(self, template: bytes) -> U8:
        """The template with magic and session, and with zeros wherever `encode` writes."""
        row = np.frombuffer(template, np.uint8).copy()
        row[self._checksum : self._checksum + 2] = 0
        if self._identity is not None:
            block = mark.MAGIC + self._session.session.to_bytes(4, "big") + bytes(12)
            row[self._identity : self._identity + mark.IDENTITY_BYTES] = np.frombuffer(block, np.uint8)
        if self._has_own_ports:
            row[self._l4 : self._l4 + 2] = 0
        return row

    def encode(self, first_seq: int, n: int) -> FrameBlock:
        """Frames of the probes first_seq .. first_seq + n - 1.

        Args:
            first_seq: number of the first probe.
            n: how many.

        Returns:
            The block, with all checksums right; T1 of STAMP packets is zero (see `patch_t1`).

        Raises:
            UsageError: a number outside 0..count-1.
        """
        columns = self.columns(first_seq, n)
        frames = np.empty((n, len(self._template)), np.uint8)
        frames[:] = self._template
        columns.write(frames)
        return FrameBlock(frames, first_seq, self.t1_offset, self._checksum if self.t1_offset is not None else None)

    @property
    def template(self) -> U8:
        """What all frames share, shape (size_bytes,); zeros wherever `Columns.write` writes. A copy."""
        return self._template.copy()

    @property
    def t1_offset(self) -> int | None:
        """Where the 8-octet timestamp of a STAMP packet stands in each frame; None for other protocols."""
        return self._l4 + 8 + _T1_OFFSET if self._session.type_p.protocol is Protocol.UDP else None

    @property
    def checksum_offset(self) -> int:
        """Where the checksum of the transport header stands in each frame."""
        return self._checksum

    def check_range(self, first_seq: int, n: int) -> None:
        """Refuse probes that the session does not have.

        Raises:
            UsageError: a number outside 0..count-1.
        """
        count = self._session.count
        if first_seq < 0 or n < 0 or first_seq + n > count:
            raise UsageError(
                f"session {self._session.session}",
                f"probes {first_seq}..{first_seq + n - 1}",
                allowed=f"0..{count - 1}",
            )

    def columns(self, first_seq: int, n: int) -> "Columns":
        """What differs in the frames of the probes first_seq .. first_seq + n - 1, checksums included.

        A few thousand at a time are cheapest: with fewer the cost of a numpy call shows, more leave the CPU's cache.

        Raises:
            UsageError: a number outside 0..count-1.
        """
        self.check_range(first_seq, n)
        seqs = (first_seq + np.arange(n, dtype=np.int64)).astype(np.uint32)
        sums = np.full(n, self._base_sum, np.uint64)
        parts: list[tuple[int, npt.NDArray[np.unsignedinteger]]] = []
        if self._has_own_ports:
            ports = self._ports[seqs]
            parts.append((self._l4, ports.astype(">u2")))
            sums += ports
        if (own := self._protocol_numbers(seqs)) is not None:
            parts.append(own)
            sums += _word_sum(own[1])
        if self._identity is not None:
            keyed = tags(self._session.key, identity_words(self._session.session, seqs))
            parts += [(self._identity + 8, seqs.astype(">u4")), (self._identity + 12, keyed.astype(">u8"))]
            sums += _word_sum(seqs) + _word_sum(keyed)
        if self.t1_offset is not None:
            parts.append((self.t1_offset, np.zeros(n, ">u8")))  # a slot may have an older one
        parts.append((self._checksum, self._checksums(sums)))
        return Columns(tuple(parts))

    def _protocol_numbers(self, seqs: U32) -> tuple[int, npt.NDArray[np.unsignedinteger]] | None:
        """Offset and values of the protocol's own number of each probe."""
        protocol = self._session.type_p.protocol
        if protocol is Protocol.UDP:
            return self._l4 + 8, seqs.astype(">u4")
        if protocol is Protocol.TCP:
            return self._l4 + 4, isn.encode(self._isn_keys, seqs).astype(">u4")
        if protocol is Protocol.ICMP:
            return self._l4 + 6, (seqs & np.uint32(0xFFFF)).astype(">u2")
        return None

    def _checksums(self, sums: U64) -> npt.NDArray[np.unsignedinteger]:
        for _ in range(3):
            sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
        checksums = sums ^ np.uint64(0xFFFF)
        if self._ip_protocol == _UDP:
            # 0 would mean "no checksum"; 0xffff is the same sum (RFC 768, RFC 8200 §8.1).
            checksums[checksums == 0] = 0xFFFF
        return checksums.astype(">u2")


@dataclass(frozen=True, slots=True)
class Columns:
    """What differs from frame to frame in consecutive probes of a session.

    Attributes:
        parts: offset in the frame, and what stands there: shape (n,), big-endian. T1 is zero, in the checksums too.
    """

    parts: tuple[tuple[int, npt.NDArray[np.unsignedinteger]], ...]

    def __len__(self) -> int:
        return len(self.parts[0][1])

    def write(self, frames: U8, first: int = 0) -> None:
        """Write rows first .. first + n - 1 into n frames that hold the template.

        Args:
            frames: shape (n, at least size_bytes), rows of any stride.
            first: which row of the columns goes into frames[0].
        """
        n = len(frames)
        for offset, numbers in self.parts:
            # As one number each, not octet by octet: a third of the time.
            frames[:, offset : offset + numbers.itemsize].view(numbers.dtype)[:, 0] = numbers[first : first + n]


def patch_t1(frame: bytearray | memoryview, t1_offset: int, checksum_offset: int, t1_ntp: int) -> None:
    """Write T1 into one encoded STAMP frame, in place, just before it is sent, and correct its checksum (RFC 1624 §3).

    Args:
        frame: one row of a block (`frames[i].data`), or a writable slot of a ring that holds a copy of one.
        t1_offset: of the block, plus where the frame starts in `frame`.
        checksum_offset: likewise.
        t1_ntp: 64-bit NTP timestamp (RFC 5905 §6).
    """
    old_words = _FOUR_WORDS.unpack_from(frame, t1_offset)
    (old_sum,) = _WORD.unpack_from(frame, checksum_offset)
    struct.pack_into("!Q", frame, t1_offset, t1_ntp)
    new_words = _FOUR_WORDS.unpack_from(frame, t1_offset)
    total = (old_sum ^ 0xFFFF) + sum(word ^ 0xFFFF for word in old_words) + sum(new_words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    _WORD.pack_into(frame, checksum_offset, total ^ 0xFFFF or 0xFFFF)


def patch_t1_rows(frames: U8, t1_offset: int, checksum_offset: int, t_ns: I64) -> None:
    """Write T1 into the STAMP frames of a block, in place, just before they are sent, and correct their checksums.

    Args:
        frames: shape (n, at least size_bytes), whose T1 is zero, as `Columns.write` leaves it.
        t1_offset: FrameEncoder.t1_offset.
        checksum_offset: FrameEncoder.checksum_offset.
        t_ns: shape (n,), ns since 1970; becomes 64-bit NTP timestamps (RFC 5905 §6), seconds modulo 2^32.
    """
    seconds = t_ns // _NS_PER_S
    fraction = (((t_ns - seconds * _NS_PER_S) << 32) // _NS_PER_S).astype(np.uint64)
    raw = (seconds + NTP_EPOCH_OFFSET_S).astype(np.uint64) << np.uint64(32) | fraction
    frames[:, t1_offset : t1_offset + 8].view(">u8")[:, 0] = raw
    checksums = frames[:, checksum_offset : checksum_offset + 2].view(">u2")[:, 0]
    # RFC 1624 §3 with an old value of zero, whose complement changes nothing: four times 0xffff is zero.
    sums = (checksums ^ np.uint16(0xFFFF)) + _word_sum(raw)
    for _ in range(3):
        sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
    sums ^= np.uint64(0xFFFF)
    sums[sums == 0] = 0xFFFF
    checksums[:] = sums


def _transport_sum(row: U8, family: int, l4: int, ip_protocol: int) -> int:
    """One's complement sum (not folded) of pseudo header and transport segment; IPv4's ICMP has no pseudo header."""
    if family == 4:
        end = mark.ETHERNET_BYTES + int.from_bytes(row[16:18].tobytes(), "big")
        addresses = row[26:34]
    else:
        end = l4 + int.from_bytes(row[18:20].tobytes(), "big")
        addresses = row[22:54]
    segment = row[l4:end].tobytes()
    words = np.frombuffer(segment + bytes(len(segment) % 2), ">u2").sum(dtype=np.uint64)
    if ip_protocol == _ICMP:
        return int(words)
    return int(words) + int(addresses.copy().view(">u2").sum(dtype=np.uint64)) + len(segment) + ip_protocol


def _word_sum(numbers: npt.NDArray[np.unsignedinteger]) -> U64:
    """A number congruent to the sum of the 16-bit words of each, modulo 0xffff, and below 2^34."""
    wide = numbers.astype(np.uint64)
    if numbers.itemsize < 8:
        return wide
    # 2^16 is 1 modulo 0xffff, so any way to cut the number into multiples of 16 bits has the same sum.
    folded: U64 = (wide & np.uint64(0xFFFFFFFF)) + (wide >> np.uint64(32))
    return folded
