"""STAMP packets, one at a time: RFC 8762 with the extensions of RFC 8972. Bytes <-> values, both modes.

Used by the reflector and the sender of the guest agent, so it knows the standard library only. Blocks of probes are
built and decoded elsewhere (wire/frames.py, wire/decode.py); what the experimental TLV says is wire/mark.py's matter.
Timestamps stay raw 64-bit fields in packets, so that a reflector copies them bit by bit; the functions here convert.
"""

import hmac
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from netprobe.errors import WireError

STAMP_PORT = 862  # RFC 8762 §4.1
UNAUTHENTICATED_BYTES = 44  # RFC 8762 §4.2.1
AUTHENTICATED_BYTES = 112  # RFC 8762 §4.2.2
HMAC_COVERS_BYTES = 96  # "the first six blocks", RFC 8762 §4.4
HMAC_BYTES = 16  # HMAC-SHA-256 truncated to 128 bits, RFC 8762 §4.4

NTP_EPOCH_OFFSET_S = 2_208_988_800  # 1900-01-01 to 1970-01-01, RFC 5905 §6
_S = 1_000_000_000
_U32 = 0xFFFF_FFFF

_SENDER = struct.Struct("!IQHH28x")
_SENDER_AUTH = struct.Struct("!I12xQHH68x")  # then the HMAC
_REFLECTOR = struct.Struct("!IQHHQIQH2xB3x")
_REFLECTOR_AUTH = struct.Struct("!I12xQHH4xQ8xI12xQH6xB15x")  # then the HMAC
assert _SENDER.size == _REFLECTOR.size == UNAUTHENTICATED_BYTES
assert _SENDER_AUTH.size == _REFLECTOR_AUTH.size == HMAC_COVERS_BYTES


class TimestampFormat(IntEnum):
    """The Z bit of an Error Estimate (RFC 8186 §2.3)."""

    NTP = 0
    PTP = 1


class TlvType(IntEnum):
    """TLV types that this code names (RFC 8972 §5.1); 240-251 are experimental."""

    EXTRA_PADDING = 1
    LOCATION = 2
    TIMESTAMP_INFORMATION = 3
    CLASS_OF_SERVICE = 4
    DIRECT_MEASUREMENT = 5
    ACCESS_REPORT = 6
    FOLLOW_UP_TELEMETRY = 7
    HMAC = 8
    NETPROBE_IDENTITY = 240


class TlvFlag(IntFlag):
    """STAMP TLV Flags (RFC 8972 §4)."""

    UNRECOGNIZED = 0x80
    MALFORMED = 0x40
    INTEGRITY = 0x20


TLV_HEADER_BYTES = 4


def ns_to_ntp(t_ns: int) -> int:
    """The 64-bit NTP timestamp of a time (RFC 5905 §6), seconds modulo 2^32.

    Args:
        t_ns: ns since 1970-01-01 UTC, not negative.
    """
    seconds, rest_ns = divmod(t_ns, _S)
    return ((seconds + NTP_EPOCH_OFFSET_S) & _U32) << 32 | (rest_ns << 32) // _S


def ntp_to_ns(raw: int) -> int:
    """The time of a 64-bit NTP timestamp, ns since 1970-01-01 UTC; the inverse of ns_to_ntp from 1970 to 2104.

    The era is taken from the top bit, as RFC 4330 §3 has it: set means 1968 to 2036, clear means 2036 to 2104.
    """
    seconds = raw >> 32
    if not seconds & 0x8000_0000:
        seconds += 1 << 32
    # The fraction was rounded down to a multiple of 0.23 ns, so rounding to the nearest ns undoes it exactly.
    return (seconds - NTP_EPOCH_OFFSET_S) * _S + (((raw & _U32) * _S + (1 << 31)) >> 32)


def ns_to_ptp(t_ns: int) -> int:
    """The 64-bit truncated PTPv2 timestamp of a time (RFC 8186 §2.1), seconds modulo 2^32.

    The timescale is the one of `t_ns`. netprobe stamps with CLOCK_REALTIME, so UTC and not the TAI of a PTP clock.
    """
    seconds, rest_ns = divmod(t_ns, _S)
    return (seconds & _U32) << 32 | rest_ns


def ptp_to_ns_untrusted(raw: int) -> int:
    """The time of a truncated PTPv2 timestamp, ns since 1970-01-01.

    Raises:
        WireError: the nanoseconds field is 10^9 or more.
    """
    rest_ns = raw & _U32
    if rest_ns >= _S:
        raise WireError("PTP timestamp", f"nanoseconds field is {rest_ns}, not below 10^9")
    return (raw >> 32) * _S + rest_ns


def ns_to_timestamp(t_ns: int, timestamp_format: TimestampFormat) -> int:
    """The raw 64-bit timestamp of a time (ns since 1970) in a format."""
    return ns_to_ptp(t_ns) if timestamp_format is TimestampFormat.PTP else ns_to_ntp(t_ns)


def timestamp_to_ns_untrusted(raw: int, timestamp_format: TimestampFormat) -> int:
    """The time (ns since 1970) of a raw 64-bit timestamp in a format.

    Raises:
        WireError: a PTP timestamp whose nanoseconds field is 10^9 or more.
    """
    return ptp_to_ns_untrusted(raw) if timestamp_format is TimestampFormat.PTP else ntp_to_ns(raw)


@dataclass(frozen=True, slots=True)
class ErrorEstimate:
    """The Error Estimate field (RFC 4656 §4.1.2): error = multiplier * 2^(scale - 32) s.

    Attributes:
        synchronized: the S bit: the clock follows UTC through an external source.
        timestamp_format: the Z bit: the format of the timestamps that this estimate belongs to.
        scale: 0 to 63.
        multiplier: 0 to 255. 0 is forbidden by RFC 4656 but seen on the wire; `of` never makes it.
    """

    synchronized: bool
    timestamp_format: TimestampFormat
    scale: int
    multiplier: int

    @classmethod
    def of(
        cls, error_ns: int, *, synchronized: bool, timestamp_format: TimestampFormat = TimestampFormat.NTP
    ) -> "ErrorEstimate":
        """The smallest estimate that does not understate a clock error of `error_ns` (ns, not negative)."""
        units = max(1, -(-(error_ns << 32) // _S))  # of 2^-32 s, rounded up
        scale = max(0, units.bit_length() - 8)
        multiplier = -(-units >> scale)
        if multiplier > 255:
            scale, multiplier = scale + 1, 128
        if scale > 63:
            scale, multiplier = 63, 255
        return cls(synchronized, timestamp_format, scale, multiplier)

    @classmethod
    def from_field(cls, field: int) -> "ErrorEstimate":
        """The estimate in a 16-bit field."""
        return cls(bool(field & 0x8000), TimestampFormat(field >> 14 & 1), field >> 8 & 0x3F, field & 0xFF)

    def to_field(self) -> int:
        """The 16-bit field."""
        return self.synchronized << 15 | self.timestamp_format << 14 | self.scale << 8 | self.multiplier

    @property
    def error_ns(self) -> int:
        """The error that the field states, ns, rounded up."""
        return -(-((self.multiplier << self.scale) * _S) >> 32)


@dataclass(frozen=True, slots=True)
class SenderPacket:
    """A Session-Sender packet (RFC 8762 §4.2, RFC 8972 §3).

    Attributes:
        timestamp: raw 64 bits, in the format that `error_estimate` names.
        error_estimate: the raw 16-bit field.
        tlv_area: whatever follows the base packet.
    """

    seq: int
    timestamp: int
    error_estimate: int
    ssid: int = 0
    tlv_area: bytes = b""


@dataclass(frozen=True, slots=True)
class ReflectorPacket:
    """A Session-Reflector packet (RFC 8762 §4.3, RFC 8972 §3).

    Attributes:
        timestamp: T3, raw 64 bits; receive_timestamp: T2; both in the format that `error_estimate` names.
        sender_timestamp: T1, in the format that `sender_error_estimate` names.
        sender_ttl: TTL or Hop Limit with which the question arrived.
    """

    seq: int
    timestamp: int
    error_estimate: int
    ssid: int
    receive_timestamp: int
    sender_seq: int
    sender_timestamp: int
    sender_error_estimate: int
    sender_ttl: int
    tlv_area: bytes = b""


def hmac_128(key: bytes, text: bytes) -> bytes:
    """HMAC-SHA-256 truncated to 16 octets (RFC 8762 §4.4, RFC 4868)."""
    return hmac.digest(key, text, "sha256")[:HMAC_BYTES]


def encode_sender(packet: SenderPacket, *, key: bytes | None = None) -> bytes:
    """The octets of a Session-Sender packet; with a key in authenticated mode."""
    fields = (packet.seq, packet.timestamp, packet.error_estimate, packet.ssid)
    if key is None:
        return _SENDER.pack(*fields) + packet.tlv_area
    base = _SENDER_AUTH.pack(*fields)
    return base + hmac_128(key, base) + packet.tlv_area


def encode_reflector(packet: ReflectorPacket, *, key: bytes | None = None) -> bytes:
    """The octets of a Session-Reflector packet; with a key in authenticated mode."""
    fields = (
        packet.seq,
        packet.timestamp,
        packet.error_estimate,
        packet.ssid,
        packet.receive_timestamp,
        packet.sender_seq,
        packet.sender_timestamp,
        packet.sender_error_estimate,
        packet.sender_ttl,
    )
    if key is None:
        return _REFLECTOR.pack(*fields) + packet.tlv_area
    base = _REFLECTOR_AUTH.pack(*fields)
    return base + hmac_128(key, base) + packet.tlv_area


def _check_base_untrusted(data: bytes, key: bytes | None) -> None:
    """Length, and in authenticated mode the HMAC, before anything else is looked at (RFC 8762 §4.4)."""
    base_bytes = UNAUTHENTICATED_BYTES if key is None else AUTHENTICATED_BYTES
    if len(data) < base_bytes:
        raise WireError("STAMP packet", f"{len(data)} octets, at least {base_bytes} needed")
    if key is not None:
        claimed = data[HMAC_COVERS_BYTES:AUTHENTICATED_BYTES]
        if not hmac.compare_digest(hmac_128(key, data[:HMAC_COVERS_BYTES]), claimed):
            raise WireError("STAMP packet", "its HMAC is wrong")


def decode_sender_untrusted(data: bytes, *, key: bytes | None = None) -> SenderPacket:
    """The Session-Sender packet in a UDP payload; must-be-zero fields are ignored, as RFC 8762 §4.2.1 demands.

    Args:
        data: the UDP payload.
        key: given, the packet is in authenticated mode and its HMAC is verified first.

    Raises:
        WireError: too short, or the HMAC is wrong.
    """
    _check_base_untrusted(data, key)
    if key is None:
        return SenderPacket(*(*_SENDER.unpack_from(data), data[UNAUTHENTICATED_BYTES:]))
    return SenderPacket(*(*_SENDER_AUTH.unpack_from(data), data[AUTHENTICATED_BYTES:]))


def decode_reflector_untrusted(data: bytes, *, key: bytes | None = None) -> ReflectorPacket:
    """The Session-Reflector packet in a UDP payload.

    Args:
        data: the UDP payload.
        key: given, the packet is in authenticated mode and its HMAC is verified first.

    Raises:
        WireError: too short, or the HMAC is wrong.
    """
    _check_base_untrusted(data, key)
    if key is None:
        return ReflectorPacket(*(*_REFLECTOR.unpack_from(data), data[UNAUTHENTICATED_BYTES:]))
    return ReflectorPacket(*(*_REFLECTOR_AUTH.unpack_from(data), data[AUTHENTICATED_BYTES:]))


MAX_TURNAROUND_S = 60


def looks_reflected(data: bytes, *, authenticated: bool = False) -> bool:
    """Whether a packet that came to a reflector is itself an answer of some reflector.

    Where a question has zeroes (or, from a TWAMP-Light sender, random padding), an answer has T2, at most
    MAX_TURNAROUND_S before T3, and zeroes further on. Random octets look so once in 2^60. Both timestamp formats begin
    with seconds, so the format doesn't matter.

    Args:
        data: at least the base packet.
        authenticated: the mode, for the offsets.
    """
    if authenticated:
        t3_at, t2_at, zeroes = 16, 32, data[74:80] + data[81:96]
    else:
        t3_at, t2_at, zeroes = 4, 16, data[38:40] + data[41:44]
    if any(zeroes):
        return False
    (t3_s,) = struct.unpack_from("!I", data, t3_at)
    (t2_s,) = struct.unpack_from("!I", data, t2_at)
    return bool(t2_s) and (t3_s - t2_s) & _U32 <= MAX_TURNAROUND_S


class Tlv(NamedTuple):
    """One TLV (RFC 8972 §4): raw flags octet, type octet, value."""

    flags: int
    type: int
    value: bytes


def encode_tlv(tlv: Tlv) -> bytes:
    """The octets of one TLV."""
    return struct.pack("!BBH", tlv.flags, tlv.type, len(tlv.value)) + tlv.value


def sender_tlv(tlv_type: int, value: bytes) -> Tlv:
    """A TLV with the flags that a Session-Sender must set: U alone (RFC 8972 §4)."""
    return Tlv(TlvFlag.UNRECOGNIZED, tlv_type, value)


def _walk_untrusted(area: bytes) -> Iterator[tuple[int, int, int, bool]]:
    """(offset, type, length of the value, whether it is whole) of each TLV; a truncated one is the last."""
    offset = 0
    while offset < len(area):
        if len(area) - offset < TLV_HEADER_BYTES:
            yield offset, 0, 0, False
            return
        _, tlv_type, length = struct.unpack_from("!BBH", area, offset)
        end = offset + TLV_HEADER_BYTES + length
        yield offset, tlv_type, length, end <= len(area)
        if end > len(area):
            return
        offset = end


def decode_tlvs_untrusted(area: bytes) -> tuple[Tlv, ...]:
    """The TLVs that follow a base packet.

    Raises:
        WireError: the last one is longer than what is left.
    """
    tlvs = []
    for offset, tlv_type, length, whole in _walk_untrusted(area):
        if not whole:
            raise WireError("STAMP TLVs", f"the TLV at octet {offset} is longer than what is left of the packet")
        start = offset + TLV_HEADER_BYTES
        tlvs.append(Tlv(area[offset], tlv_type, area[start : start + length]))
    return tuple(tlvs)


def append_hmac_tlv(area: bytes, seq: int, key: bytes) -> bytes:
    """TLVs followed by the HMAC TLV over the base packet's sequence number and them (RFC 8972 §4.8)."""
    return area + encode_tlv(sender_tlv(TlvType.HMAC, hmac_128(key, struct.pack("!I", seq) + area)))


def verify_tlvs_untrusted(area: bytes, seq: int, key: bytes) -> None:
    """Check the HMAC TLV of a received packet: place and digest (RFC 8972 §4.8).

    Args:
        area: all octets after the base packet.
        seq: the sequence number of the base packet.
        key: the session's key.

    Raises:
        WireError: malformed TLVs, no HMAC TLV where one is needed, one in the wrong place, or a wrong digest.
    """
    reflected = reflect_tlvs_untrusted(area, seq, key=key, authenticated=True, understood=range(256))
    if reflected.malformed or reflected.integrity_failed:
        raise WireError("STAMP TLVs", "they are malformed" if reflected.malformed else "their HMAC is missing or wrong")


class ReflectedTlvs(NamedTuple):
    """TLVs made ready for the answer.

    Attributes:
        area: as long as the question's, with the flags set; the HMAC still the question's.
        hmac_at: offset of the HMAC TLV whose digest the answer must renew, or -1.
    """

    area: bytearray
    hmac_at: int
    malformed: bool
    integrity_failed: bool


def reflect_tlvs_untrusted(
    area: bytes, seq: int, *, key: bytes | None, authenticated: bool, understood: Container[int]
) -> ReflectedTlvs:
    """What a reflector makes of the octets after the base packet: the same length, with U, M and I set (RFC 8972 §4).

    Octets that are all zero are TWAMP-Light padding and come back as they are (RFC 8762 §4.6).

    Args:
        area: all octets after the base packet.
        seq: the question's sequence number, which the HMAC TLV covers.
        key: to verify an HMAC TLV; without one that type counts as not understood.
        authenticated: whether TLVs must carry an HMAC TLV (all but a lone Extra Padding).
        understood: types that are echoed with U = 0, besides HMAC.

    Returns:
        The area of the answer; `sign_reflected_tlvs` completes it.
    """
    out = bytearray(area)
    if not any(area):
        return ReflectedTlvs(out, -1, malformed=False, integrity_failed=False)
    seen: list[tuple[int, int]] = []
    hmac_at = -1
    malformed = misplaced = False
    for offset, tlv_type, length, whole in _walk_untrusted(area):
        seen.append((offset, tlv_type))
        malformed = not whole or (tlv_type == TlvType.HMAC and length != HMAC_BYTES)
        if malformed:
            out[offset] = TlvFlag.MALFORMED  # what follows is copied, not processed
            break
        known = key is not None if tlv_type == TlvType.HMAC else tlv_type in understood
        out[offset] = 0 if known else TlvFlag.UNRECOGNIZED
        misplaced = misplaced or (hmac_at >= 0 and tlv_type != TlvType.EXTRA_PADDING)
        if tlv_type == TlvType.HMAC and key is not None:
            hmac_at = offset
    failed = key is not None and (
        misplaced or not _integrity_holds(area, seq, key, hmac_at, required=authenticated and _need_hmac(seen))
    )
    if failed:
        for offset, _ in seen:
            out[offset] |= TlvFlag.INTEGRITY
    return ReflectedTlvs(out, -1 if failed else hmac_at, malformed, failed)


def _need_hmac(seen: list[tuple[int, int]]) -> bool:
    """All but a single Extra Padding TLV must be protected in authenticated mode (RFC 8972 §4.8)."""
    return len(seen) != 1 or seen[0][1] != TlvType.EXTRA_PADDING


def _integrity_holds(area: bytes, seq: int, key: bytes, hmac_at: int, *, required: bool) -> bool:
    if hmac_at < 0:
        return not required
    claimed = area[hmac_at + TLV_HEADER_BYTES : hmac_at + TLV_HEADER_BYTES + HMAC_BYTES]
    return hmac.compare_digest(hmac_128(key, struct.pack("!I", seq) + area[:hmac_at]), claimed)


def sign_reflected_tlvs(tlvs: ReflectedTlvs, seq: int, key: bytes | None) -> bytes:
    """The answer's TLVs, the HMAC renewed over the answer's sequence number and flags."""
    if tlvs.hmac_at >= 0 and key is not None:
        start = tlvs.hmac_at + TLV_HEADER_BYTES
        tlvs.area[start : start + HMAC_BYTES] = hmac_128(key, struct.pack("!I", seq) + tlvs.area[: tlvs.hmac_at])
    return bytes(tlvs.area)
