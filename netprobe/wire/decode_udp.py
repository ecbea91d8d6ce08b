"""Claims of UDP datagrams: STAMP probes and their replies, raw UDP probes; also several in one frame that GRO merged.

Headers come parsed from `decode_headers`, sessions from `decode_sessions`. Called by `decode` for frames and by
`decode_icmp` for quoted packets.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from netprobe.model.points import Leg
from netprobe.model.probes import Protocol
from netprobe.wire import mark
from netprobe.wire.decode_claims import Claims, Kind, Known, either, identities
from netprobe.wire.decode_flows import FlowTuples
from netprobe.wire.decode_headers import I64, Bools, Octets, Packets
from netprobe.wire.decode_sessions import PROTOCOLS, SessionTable

UDP = 17
_NTP_TO_UNIX_S = 2_208_988_800  # RFC 5905 §6
_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Datagrams:
    """UDP datagrams; after a GRO-merged frame was cut up, one row for each part."""

    packets: Packets
    packet: I64  # row in the Packets that were asked about
    src_port: I64
    dst_port: I64
    payload: I64  # position
    payload_bytes: I64  # as the UDP header says
    captured: I64  # payload octets that are there

    def take(self, rows: I64) -> "_Datagrams":
        columns = (getattr(self, field.name)[rows] for field in fields(self) if field.name != "packets")
        return _Datagrams(self.packets.take(rows), *columns)


def udp_claims(octets: Octets, known: Known, packets: Packets, *, is_quoted: bool) -> tuple[Claims, I64]:
    """STAMP and raw UDP.

    Args:
        octets: the buffer.
        known: the sessions.
        packets: IP packets of any kind.
        is_quoted: they were quoted by ICMP errors, maybe cut short: without magic there is no claim.

    Returns:
        The claims, and the rows of packets that held more than one probe.
    """
    rows = np.flatnonzero((packets.protocol == UDP) & (packets.family != 0) & (packets.l4 + 8 <= packets.end))
    if not len(rows):
        return Claims.none(), rows
    packets = packets.take(rows)
    payload = packets.l4 + 8
    payload_bytes = np.maximum(octets.uint(packets.l4 + 4, 2) - 8, 0)
    datagrams = _Datagrams(
        packets,
        rows,
        octets.uint(packets.l4, 2),
        octets.uint(packets.l4 + 2, 2),
        payload,
        payload_bytes,
        np.minimum(packets.end - payload, payload_bytes),
    )
    first, owner = _datagram_claims(octets, known, datagrams, is_quoted=is_quoted)
    if is_quoted:
        return first, rows[:0]
    parts, merged = _merged_parts(known.table, datagrams.take(owner[first.is_valid]), first.session[first.is_valid])
    if not len(merged):
        return first, merged
    more, _ = _datagram_claims(octets, known, parts, is_quoted=False)
    return Claims.concat([first, more]), merged


def _merged_parts(table: SessionTable, datagrams: _Datagrams, sessions: I64) -> tuple[_Datagrams, I64]:
    """The second and later probes of frames that GRO merged (their payload is a multiple of the session's).

    Returns:
        The probes, and the packets that they were in.
    """
    size = table.payload_bytes[sessions]
    is_merged = (datagrams.payload_bytes > size) & (datagrams.payload_bytes % size == 0)
    rows = np.flatnonzero(is_merged)
    size = size[rows]
    datagrams = datagrams.take(rows)
    extra = np.maximum(datagrams.captured // size - 1, 0)
    which = np.repeat(np.arange(len(rows)), extra)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(extra) - extra, extra) + 1
    parts = datagrams.take(which)
    size = size[which]
    return replace(parts, payload=parts.payload + nth * size, payload_bytes=size, captured=size), datagrams.packet


def _datagram_claims(octets: Octets, known: Known, datagrams: _Datagrams, *, is_quoted: bool) -> tuple[Claims, I64]:
    """Claims of datagrams, and which row of `datagrams` each is about."""
    magic = mark.MAGIC_WORD
    is_stamp = _has_our_tlv(octets, datagrams)
    is_stamp &= octets.uint(datagrams.payload + mark.STAMP_IDENTITY_OFFSET, 4) == magic
    is_raw = ~is_stamp & (datagrams.captured >= mark.IDENTITY_BYTES) & (octets.uint(datagrams.payload, 4) == magic)
    has_magic = is_stamp | is_raw
    rows = np.flatnonzero(has_magic)
    claims = [Claims.none()]
    owners = [rows]
    if len(rows):
        claims = [_marked_claims(octets, known.table, datagrams.take(rows), is_stamp[rows])]
    if len(known.udp) and not is_quoted and len(rows) < len(has_magic):
        rest = np.flatnonzero(~has_magic & known.udp.is_near(datagrams.src_port, datagrams.dst_port))
        if len(rest):
            unmarked, which = _unmarked_claims(octets, known, datagrams.take(rest))
            claims.append(unmarked)
            owners.append(rest[which])
    return Claims.concat(claims), np.concatenate(owners)


def _has_our_tlv(octets: Octets, datagrams: _Datagrams) -> Bools:
    """Whether there is a TLV of our type where ours stands, whatever it says."""
    tlv_types = octets.uint(datagrams.payload + mark.STAMP_BASE_BYTES + 1, 1)
    is_ours: Bools = tlv_types == mark.IDENTITY_TLV_TYPE
    is_ours &= datagrams.captured >= mark.STAMP_PAYLOAD_BYTES
    return is_ours


def _marked_claims(octets: Octets, table: SessionTable, datagrams: _Datagrams, is_stamp: Bools) -> Claims:
    """Claims of datagrams with our magic."""
    packets, payload = datagrams.packets, datagrams.payload
    positions = payload + np.where(is_stamp, mark.STAMP_IDENTITY_OFFSET, 0)
    sessions, seqs, is_authentic = identities(octets, table, positions)
    src_port, dst_port = table.src_port(sessions, seqs), table.dst_port[sessions]
    protocol = table.protocol[sessions]
    # NAT may change the source port (RFC 4787 §4.2), but only where it changed an address.
    pair = table.forward_pair(sessions, packets)
    is_forward = (pair >= 0) & (datagrams.dst_port == dst_port) & ((datagrams.src_port == src_port) | (pair > 0))
    pair = table.return_pair(sessions, packets)
    is_return = (pair >= 0) & (datagrams.src_port == dst_port) & ((datagrams.dst_port == src_port) | (pair > 0))
    is_return &= ~is_forward
    is_raw_probe = ~is_stamp & (protocol == PROTOCOLS.index(Protocol.RAW_UDP)) & is_forward
    sender_seqs = octets.uint(payload + np.where(is_return, 24, 0), 4)  # RFC 8762 §4.3.1 and §4.2.1
    is_stamp_packet = is_stamp & (protocol == PROTOCOLS.index(Protocol.UDP)) & (is_forward | is_return)
    is_valid = is_authentic & (is_raw_probe | (is_stamp_packet & (sender_seqs == seqs)))
    leg, kind = either(is_return, Leg.RETURN, Leg.FORWARD), either(is_return, Kind.STAMP_REPLY, Kind.PROBE)
    return _with_times(
        octets, payload, Claims.of(datagrams.packet, is_valid, sessions, seqs, leg=leg, kind=kind), is_stamp
    )


def _unmarked_claims(octets: Octets, known: Known, datagrams: _Datagrams) -> tuple[Claims, I64]:
    """Datagrams without magic on a session's tuple: replies of reflectors that drop our TLV, and forged probes.

    Behind NAT others use the same address: there, only a reply that fits is a claim.
    """
    table, packets = known.table, datagrams.packets
    n = len(datagrams.packet)
    is_claim, is_weak = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    chosen = np.full(n, table.unknown)
    seqs = octets.uint(datagrams.payload + 24, 4)
    ssids = octets.uint(datagrams.payload + 14, 2)
    is_bare = (datagrams.captured >= mark.STAMP_BASE_BYTES) & ~_has_our_tlv(octets, datagrams)
    # A TLV that was sent, but not captured, may be there.
    is_bare &= (datagrams.payload_bytes < mark.STAMP_PAYLOAD_BYTES) | (datagrams.captured >= mark.STAMP_PAYLOAD_BYTES)
    never = np.zeros(n, np.bool_)
    for owners in known.udp.candidates(FlowTuples.of(packets, datagrams.src_port, datagrams.dst_port, never)):
        is_claim[owners.which[owners.is_own]] = True
    backward = FlowTuples.of(packets, datagrams.src_port, datagrams.dst_port, ~never)
    for owners in known.udp.candidates(backward):
        # What answers a raw UDP probe is the tenant's own program: no claim.
        stamp = owners.where(table.protocol[owners.session] == PROTOCOLS.index(Protocol.UDP))
        rows, sessions = stamp.which, stamp.session
        fits = is_bare[rows] & (seqs[rows] < table.count[sessions])
        fits &= table.src_port(sessions, seqs[rows]) == datagrams.dst_port[rows]
        # A reflector of RFC 8972 gives the SSID back; an older one sends zeros there (RFC 8762 §4.3.1).
        fits &= (ssids[rows] == table.ssid[sessions]) | (ssids[rows] == 0)
        fits &= ~is_weak[rows]
        is_claim[rows] |= stamp.is_own | fits
        chosen[rows[fits]] = sessions[fits]
        is_weak[rows[fits]] = True
    which = np.flatnonzero(is_claim)
    is_weak = is_weak[which]
    leg, kind = either(is_weak, Leg.RETURN, Leg.FORWARD), either(is_weak, Kind.STAMP_REPLY, Kind.PROBE)
    claims = Claims.of(datagrams.packet[which], is_weak, chosen[which], seqs[which], leg=leg, kind=kind)
    return _with_times(octets, datagrams.payload[which], replace(claims, weak=is_weak), is_weak), which


def _with_times(octets: Octets, payload: I64, claims: Claims, is_stamp: Bools) -> Claims:
    """Fill in the timestamps and the reflector's number (RFC 8762 §4.2.1, §4.3.1)."""
    is_reply = claims.kind == Kind.STAMP_REPLY
    own = _timestamps(octets, payload + 4, payload + 12)
    received = _timestamps(octets, payload + 16, payload + 12)
    sender = _timestamps(octets, payload + 28, payload + 36)
    return replace(
        claims,
        t1_ns=np.where(is_stamp, np.where(is_reply, sender, own), 0),
        t2_ns=np.where(is_reply, received, 0),
        t3_ns=np.where(is_reply, own, 0),
        reflector_seq=np.where(is_reply, octets.uint(payload, 4), -1),
    )


def _timestamps(octets: Octets, positions: I64, error_estimates: I64) -> I64:
    """64-bit timestamps as ns since 1970, in the format that the Z flag of their Error Estimate names; 0 for none."""
    seconds, rest = octets.uint(positions, 4), octets.uint(positions + 4, 4)
    is_ptp = octets.uint(error_estimates, 1) & 0x40 != 0  # RFC 8186 §2.3
    ptp_ns = np.where(rest < _S, seconds * _S + rest, 0)
    return np.where(is_ptp & (seconds | rest != 0), ptp_ns, ntp_ns(seconds, rest))


def ntp_ns(seconds: I64, fraction: I64) -> I64:
    """NTP timestamps as ns since 1970; 0 for an all-zero one, which is none.

    Seconds with the top bit clear are of era 1, after February 2036 (RFC 4330 §3).
    """
    era = np.where(seconds < 1 << 31, 1 << 32, 0)
    ns = (seconds + era - _NTP_TO_UNIX_S) * _S + ((fraction * _S + (1 << 31)) >> 32)
    return np.where(seconds | fraction != 0, ns, 0)
