"""Bytes to probes, a block at a time: which frames are ours, which only say so.

Takes a block of a packet ring as it is and returns columns; never raises, whatever the bytes. The work is in
`decode_headers` (Ethernet, IP), `decode_tunnels` (frames inside), `decode_sessions` and `decode_flows` (whom we know),
`decode_udp`, `decode_tcp` and `decode_icmp` (who claims to be ours, and who proves it), `decode_contexts` (what was
around it). Frames like those that went through all of that are recognised by `decode_known`. Layouts:
docs/wire-format.md. Fed by observe's rings; becomes hop records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from netprobe.model.contexts import HopContext
from netprobe.model.points import Leg
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.wire.decode_claims import Claims, Kind, Known
from netprobe.wire.decode_contexts import Frames
from netprobe.wire.decode_flows import FlowIndex
from netprobe.wire.decode_headers import (
    I64,
    U8,
    Bools,
    Octets,
    Packets,
    frame_bounds,
    parse_ethernet,
    parse_ip,
    with_outermost_tag,
)
from netprobe.wire.decode_icmp import echo_claims, error_claims
from netprobe.wire.decode_known import Found, KnownFrames, kernel_tags_of
from netprobe.wire.decode_sessions import SessionTable
from netprobe.wire.decode_shapes import Parsed, shapes_of
from netprobe.wire.decode_tcp import tcp_claims
from netprobe.wire.decode_tunnels import NO_TUNNELS, find_tunnels, inner_packets
from netprobe.wire.decode_udp import udp_claims
from netprobe.wire.tag_cache import TagCache

__all__ = ["Decoded", "Decoder", "Kind", "Leg"]

U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Probes and answers of one block, in the order of its frames; columns of shape (n,).

    Attributes:
        index: which input frame; more than once where a frame held several probes.
        context: what was around it: index into `contexts`.
        contexts: the distinct ones of this block, in no order.
        session: session number.
        seq: probe number, always less than the session's count.
        leg: model.points.Leg, told by the addresses.
        kind: what it is (Kind).
        dscp: of the probe's own IP header, inside a tunnel the inner one.
        ttl: TTL or hop limit, likewise.
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
    context: I64
    contexts: tuple[HopContext, ...]

    def __len__(self) -> int:
        return len(self.index)


class Decoder:
    """Decodes frames of these sessions. Not to be shared by threads.

    What it keeps between calls are the shapes of frames (`decode_shapes`) and tags that it computed: they make it
    faster, and change no result. So all points of a host can share one, and are fastest if they do.

    Args:
        sessions: whom to know, each with a number of its own.

    Raises:
        UsageError: two sessions have the same number, or one does not fit the wire.
    """

    def __init__(self, sessions: Sequence[ProbeSession]) -> None:
        table = SessionTable(sessions)
        self._known = Known(table, FlowIndex(table, Protocol.TCP), FlowIndex(table, Protocol.UDP, Protocol.RAW_UDP))
        tags = TagCache(table)
        self._frames = {tunnels: KnownFrames(table, tags) for tunnels in (False, True)}

    def decode(self, buf: U8, offsets: I64, lengths: I64, vlan: I64 | None = None, *, tunnels: bool = True) -> Decoded:
        """Decode a block of frames.

        Args:
            buf: the octets, uint8, shape (size,), C-contiguous (else it is copied).
            offsets: where the Ethernet header of each frame starts, shape (n,).
            lengths: captured octets of each frame, shape (n,). Both are forced into the buffer.
            vlan: VLAN id (or the whole Tag Control Information) of a tag that the kernel took off each frame, shape
                (n,), -1 where none; it stood in front of those in band. None where it took none.
            tunnels: look into Geneve and VXLAN. Right on the underlay; wrong where a guest could wrap a probe.

        Returns:
            What is ours, and counts of what is not. Nothing in it refers to `buf`.
        """
        offsets, lengths = np.asarray(offsets, np.int64), np.asarray(lengths, np.int64)
        vlan = None if vlan is None else np.asarray(vlan, np.int64)
        known = self._frames[tunnels]
        found = known.find(buf, offsets, lengths, vlan)
        if found is None:
            return self._parse(buf, offsets, lengths, vlan, tunnels=tunnels)
        decoded = self._of_found(known, found)
        if len(found.rows) == len(offsets):
            return decoded
        is_left = np.ones(len(offsets), np.bool_)
        is_left[found.rows] = False
        left = np.flatnonzero(is_left)
        some_vlan = None if vlan is None else vlan[left]
        return _joined(decoded, self._parse(buf, offsets[left], lengths[left], some_vlan, tunnels=tunnels), left)

    def _of_found(self, known: KnownFrames, found: Found) -> Decoded:
        columns, context, contexts = known.columns(found)
        return Decoded(
            index=found.rows,
            session=self._known.table.number.take(found.session).astype(np.uint32),
            seq=found.seq.astype(np.uint32),
            t1_ns=found.t1_ns,
            t2_ns=found.t2_ns,
            t3_ns=found.t3_ns,
            reflector_seq=found.reflector_seq,
            weak=np.zeros(len(found.rows), np.bool_),
            forged=0,
            forged_index=np.empty(0, np.int64),
            unknown=0,
            foreign=0,
            merged=0,
            context=context,
            contexts=contexts,
            **columns,
        )

    def _parse(self, buf: U8, offsets: I64, lengths: I64, vlan: I64 | None, *, tunnels: bool) -> Decoded:
        """Decode a block of frames by their headers, whatever they are, and learn their shapes."""
        octets = Octets(buf)
        starts, ends = frame_bounds(len(buf), offsets, lengths)
        l3, ether_types, tags = parse_ethernet(octets, starts, ends)
        if vlan is not None:
            tags = with_outermost_tag(tags, vlan)
        packets = parse_ip(octets, np.arange(len(starts)), ether_types, l3, ends)
        found = find_tunnels(octets, packets) if tunnels else NO_TUNNELS
        if len(found.outer):
            packets = packets.joined(inner_packets(octets, packets, found))
        udp, merged = udp_claims(octets, self._known, packets, is_quoted=False)
        parts = [
            udp,
            echo_claims(octets, self._known.table, packets),
            tcp_claims(octets, self._known, packets, is_quoted=False),
            error_claims(octets, self._known, packets),
        ]
        claims = Claims.concat(parts)
        if len(found.outer):
            claims = _one_reading(claims, packets, len(starts))
        frames = Frames(packets, tags, found)
        decoded, ours = self._result(frames, claims, merged)
        if len(ours.packet):
            kernel_tags = np.zeros(len(starts), np.int64) if vlan is None else kernel_tags_of(vlan)
            parsed = Parsed(buf, starts, ends, kernel_tags, frames, ours, decoded.context)
            self._frames[tunnels].learn(shapes_of(self._known, parsed))
        return decoded

    def _result(self, frames: Frames, claims: Claims, merged: I64) -> tuple[Decoded, Claims]:
        table, packets = self._known.table, frames.packets
        is_claimed = np.zeros(len(frames.tags), np.bool_)
        is_claimed[packets.index[claims.packet]] = True
        forged_index = np.sort(packets.index[claims.packet[~claims.is_valid]])
        is_unknown = ~claims.is_valid & (claims.session == table.unknown)
        ours = claims.take(np.flatnonzero(claims.is_valid))
        index = packets.index[ours.packet]
        if (index[1:] < index[:-1]).any():
            order = np.argsort(index, kind="stable")
            ours, index = ours.take(order), index[order]
        context, contexts = frames.contexts(ours.packet)
        decoded = Decoded(
            index=index,
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
            merged=int(np.count_nonzero(np.isin(merged, claims.packet))) if len(merged) else 0,
            context=context,
            contexts=contexts,
        )
        return decoded, ours


_ROW_COLUMNS = ("session", "seq", "leg", "kind", "dscp", "ttl", "t1_ns", "t2_ns", "t3_ns", "reflector_seq", "weak")


def _joined(known: Decoded, parsed: Decoded, left: I64) -> Decoded:
    """What was found of a block, and what was parsed of the frames that were left, in the order of the frames."""
    parsed = replace(parsed, index=left[parsed.index], forged_index=left[parsed.forged_index])
    if not len(parsed):
        counts: dict[str, Any] = {
            name: getattr(parsed, name) for name in ("forged", "forged_index", "unknown", "foreign", "merged")
        }
        return replace(known, **counts)
    index = np.concatenate([known.index, parsed.index])
    order = np.argsort(index, kind="stable")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(known, name), getattr(parsed, name)])[order] for name in _ROW_COLUMNS
    }
    contexts = tuple(dict.fromkeys([*known.contexts, *parsed.contexts]))
    numbers = {context: number for number, context in enumerate(contexts)}
    own = np.array([numbers[context] for context in parsed.contexts], np.int64)
    context = np.concatenate([known.context, own[parsed.context]])[order]
    return replace(parsed, index=index[order], context=context, contexts=contexts, **columns)


def _one_reading(claims: Claims, packets: Packets, n: int) -> Claims:
    """Each frame is read once: as it stands if that proves a probe, else as the tunnel that it looks like.

    A probe whose own destination port is a tunnel's stays a plain probe. What the frame claims as it stands, but does
    not prove, counts only if the frame inside claims nothing.
    """
    frame = packets.index[claims.packet]
    is_inner = claims.packet >= n
    is_proved, is_claimed_inside = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    is_proved[frame[~is_inner & claims.is_valid]] = True
    is_claimed_inside[frame[is_inner]] = True
    is_kept = np.where(is_inner, ~is_proved[frame], is_proved[frame] | ~is_claimed_inside[frame])
    return claims if is_kept.all() else claims.take(np.flatnonzero(is_kept))
