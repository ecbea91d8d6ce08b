"""Probes to bytes, a block at a time: a matrix of frames from one template.

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

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58  # protocol numbers
_IP_PROTOCOL = {Protocol.UDP: _UDP, Protocol.RAW_UDP: _UDP, Protocol.TCP: _TCP, Protocol.ICMP: _ICMP}
_CHECKSUM_OFFSET = {_UDP: 6, _TCP: 16, _ICMP: 2, _ICMPV6: 2}  # in the transport header
_IDENTITY_OFFSET = {Protocol.UDP: mark.STAMP_IDENTITY_OFFSET, Protocol.RAW_UDP: 0, Protocol.ICMP: 0}  # in the payload
_FOUR_WORDS = struct.Struct("!4H")
_WORD = struct.Struct("!H")
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
        count = self._session.count
        if first_seq < 0 or n < 0 or first_seq + n > count:
            raise UsageError(
                f"session {self._session.session}",
                f"probes {first_seq}..{first_seq + n - 1}",
                allowed=f"0..{count - 1}",
            )
        seqs = (first_seq + np.arange(n, dtype=np.int64)).astype(np.uint32)
        frames = np.empty((n, len(self._template)), np.uint8)
        frames[:] = self._template
        sums = np.full(n, self._base_sum, np.uint64)
        if self._has_own_ports:
            ports = self._ports[seqs]
            frames[:, self._l4 : self._l4 + 2] = _octets(ports, ">u2")
            sums += ports
        self._patch_protocol(frames, seqs, sums)
        if self._identity is not None:
            keyed = tags(self._session.key, identity_words(self._session.session, seqs))
            frames[:, self._identity + 8 : self._identity + 12] = _octets(seqs, ">u4")
            frames[:, self._identity + 12 : self._identity + 20] = _octets(keyed, ">u8")
            sums += _word_sum(seqs) + _word_sum(keyed)
        self._write_checksums(frames, sums)
        has_t1 = self._session.type_p.protocol is Protocol.UDP
        t1_offset = self._l4 + 8 + _T1_OFFSET if has_t1 else None
        return FrameBlock(frames, first_seq, t1_offset, self._checksum if has_t1 else None)

    def _patch_protocol(self, frames: U8, seqs: U32, sums: U64) -> None:
        """Write the protocol's own number of each probe, and add it to the sums."""
        protocol = self._session.type_p.protocol
        if protocol is Protocol.UDP:
            start, numbers = self._l4 + 8, seqs
        elif protocol is Protocol.TCP:
            start, numbers = self._l4 + 4, isn.encode(self._isn_keys, seqs)
        elif protocol is Protocol.ICMP:
            low = seqs & np.uint32(0xFFFF)
            frames[:, self._l4 + 6 : self._l4 + 8] = _octets(low, ">u2")
            sums += low
            return
        else:
            return
        frames[:, start : start + 4] = _octets(numbers, ">u4")
        sums += _word_sum(numbers)

    def _write_checksums(self, frames: U8, sums: U64) -> None:
        for _ in range(3):
            sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
        checksums = sums ^ np.uint64(0xFFFF)
        if self._ip_protocol == _UDP:
            # 0 would mean "no checksum"; 0xffff is the same sum (RFC 768, RFC 8200 §8.1).
            checksums[checksums == 0] = 0xFFFF
        frames[:, self._checksum : self._checksum + 2] = _octets(checksums, ">u2")


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


def _octets(numbers: npt.NDArray[np.unsignedinteger], dtype: str) -> U8:
    """Numbers as big-endian octets, shape (n, width)."""
    return numbers.astype(dtype)[:, None].view(np.uint8)


def _word_sum(numbers: npt.NDArray[np.unsignedinteger]) -> U64:
    """Sum of the 16-bit words of each number."""
    words = numbers.astype(numbers.dtype.newbyteorder(">"))[:, None].view(">u2")
    sums: U64 = words.sum(axis=1, dtype=np.uint64)
    return sums
