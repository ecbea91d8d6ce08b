"""Bytes to probes, a block at a time: which frames are ours, which only say so.

Takes a block of a packet ring as it is and returns columns; never raises, whatever the bytes. The work is in
`decode_headers` (Ethernet, IP), `decode_sessions` (whom we know) and `decode_udp`, `decode_tcp`, `decode_icmp` (who
claims to be ours, and who proves it). Layouts: docs/wire-format.md. Fed by observe's rings; becomes hop records.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.model.points import Leg
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.wire.decode_claims import Claims, Kind, Known
from netprobe.wire.decode_headers import (
    I64,
    U8,
    Bools,
    Octets,
    Packets,
    frame_bounds,
    parse_ethernet,
    parse_ip,
)
from netprobe.wire.decode_icmp import echo_claims, error_claims
from netprobe.wire.decode_sessions import FlowIndex, SessionTable
from netprobe.wire.decode_tcp import tcp_claims
from netprobe.wire.decode_udp import udp_claims

__all__ = ["Decoded", "Decoder", "Kind", "Leg"]

U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Probes and answers of one block, in the order of its frames; columns of shape (n,).

    Attributes:
        index: which input frame; more than once where a frame held several probes.
        session: session number.
        seq: probe number, always less than the session's count.
        leg: model.points.Leg, told by the addresses.
        kind: what it is (Kind).
        dscp: of the frame's own IP header.
        ttl: TTL or hop limit of the frame's own IP header.
        t1_ns: sender's time in a STAMP packet, ns since 1970; 0 where there is none.
        t2_ns: when the reflector received, likewise; only in replies.
        t3_ns: when the reflector answered, likewise.
        reflector_seq: sequence number of a STAMP reply (a stateful reflector's own); -1 elsewhere.
        weak: the reply lacks our TLV: matched by addresses, ports and sender's number, not by a tag.
        forged: claims of being ours that did not hold: bad tag, unknown or stale session, number out of range, wrong
            addresses, ports or protocol.
        forged_index: which input frames they came in, shape (forged,).
        unknown: of the forged, those that name a session that is not one of these: a stale one, another run's, or
            made up.
        foreign: frames that claim nothing.
        merged: frames that held more than one probe.
    """

    index: I64
    session: U32
    seq: U32
    leg: U8
    kind: U8
    dscp: U8
    ttl: U8
    t1_ns: I64
    t2_ns: I64
    t3_ns: I64
    reflector_seq: I64
    weak: Bools
    forged: int
    forged_index: I64
    unknown: int
    foreign: int
    merged: int

    def __len__(self) -> int:
        return len(self.index)


class Decoder:
    """Decodes frames of these sessions. Keeps no state between calls, so all points of a host can share one.

    Args:
        sessions: whom to know, each with a number of its own.

    Raises:
        UsageError: two sessions have the same number, or one does not fit the wire.
    """

    def __init__(self, sessions: Sequence[ProbeSession]) -> None:
        table = SessionTable(sessions)
        self._known = Known(table, FlowIndex(table, Protocol.TCP), FlowIndex(table, Protocol.UDP, Protocol.RAW_UDP))

    def decode(self, buf: U8, offsets: I64, lengths: I64) -> Decoded:
        """Decode a block of frames.

        Args:
            buf: the octets, uint8, shape (size,), C-contiguous (else it is copied).
            offsets: where the Ethernet header of each frame starts, shape (n,).
            lengths: captured octets of each frame, shape (n,). Both are forced into the buffer.

        Returns:
            What is ours, and counts of what is not. Nothing in it refers to `buf`.
        """
        octets = Octets(buf)
        starts, ends = frame_bounds(len(buf), offsets, lengths)
        # A tunnel (VXLAN, Geneve) is a step here: from the outer frame to where the inner one starts.
        l3, ether_types = parse_ethernet(octets, starts, ends)
        packets = parse_ip(octets, np.arange(len(starts)), ether_types, l3, ends)
        udp, merged = udp_claims(octets, self._known, packets, is_quoted=False)
        parts = [
            udp,
            echo_claims(octets, self._known.table, packets),
            tcp_claims(octets, self._known, packets, is_quoted=False),
            error_claims(octets, self._known, packets),
        ]
        return self._result(packets, Claims.concat([part for part in parts if len(part.packet)] or parts[:1]), merged)

    def _result(self, packets: Packets, claims: Claims, merged: int) -> Decoded:
        table = self._known.table
        is_claimed = np.zeros(len(packets.index), np.bool_)
        is_claimed[claims.packet] = True
        forged_index = np.sort(claims.packet[~claims.is_valid])
        is_unknown = ~claims.is_valid & (claims.session == table.unknown)
        ours = claims.take(np.flatnonzero(claims.is_valid))
        if (ours.packet[1:] < ours.packet[:-1]).any():
            ours = ours.take(np.argsort(ours.packet, kind="stable"))
        return Decoded(
            index=packets.index[ours.packet],
            session=table.number[ours.session].astype(np.uint32),
            seq=ours.seq.astype(np.uint32),
            leg=ours.leg.astype(np.uint8),
            kind=ours.kind.astype(np.uint8),
            dscp=packets.dscp[ours.packet],
            ttl=packets.ttl[ours.packet],
            t1_ns=ours.t1_ns,
            t2_ns=ours.t2_ns,
            t3_ns=ours.t3_ns,
            reflector_seq=ours.reflector_seq,
            weak=ours.weak,
            forged=len(forged_index),
            forged_index=forged_index,
            unknown=int(np.count_nonzero(is_unknown)),
            foreign=len(is_claimed) - int(np.count_nonzero(is_claimed)),
            merged=merged,
        )
