"""Claims of being ours: what one says, and how an identity block is checked.

A claim is our magic, or the tuple of an outstanding probe. It holds when the keyed tag (of a SYN: the permuted number)
is right and addresses, ports and protocol are those of the session on that leg; else it is forged. Made by
`decode_udp`, `decode_tcp` and `decode_icmp`, one function a protocol; put together by `decode`.
"""

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np

from netprobe.wire.decode_flows import FlowIndex
from netprobe.wire.decode_headers import I64, Bools, Octets
from netprobe.wire.decode_sessions import SessionTable
from netprobe.wire.siphash import tags_with


class Kind(IntEnum):
    """What a frame of ours is."""

    PROBE = 0
    STAMP_REPLY = 1
    ECHO_REPLY = 2
    SYN_ACK = 3
    RST = 4
    ICMP_ERROR = 5


@dataclass(frozen=True, slots=True)
class Claims:
    """Packets that claim to be ours, shape (n,) each. What is not valid is forged, and its other columns mean nothing.

    Attributes:
        packet: row of the packet in the Packets that were asked about.
        session: row in the session table.
    """

    packet: I64
    is_valid: Bools
    session: I64
    seq: I64
    leg: I64
    kind: I64
    weak: Bools
    t1_ns: I64
    t2_ns: I64
    t3_ns: I64
    reflector_seq: I64

    @classmethod
    def of(cls, packet: I64, is_valid: Bools, session: I64, seq: I64, *, leg: I64, kind: I64) -> "Claims":
        """Claims without times."""
        n = len(packet)
        zeros = np.zeros(n, np.int64)
        return cls(packet, is_valid, session, seq, leg, kind, np.zeros(n, np.bool_), zeros, zeros, zeros, zeros - 1)

    @classmethod
    def none(cls) -> "Claims":
        """No claims. To say so at once spares a small block most of its cost, which is numpy's calls."""
        nothing = np.empty(0, np.int64)
        return cls.of(nothing, np.empty(0, np.bool_), nothing, nothing, leg=nothing, kind=nothing)

    @classmethod
    def concat(cls, parts: "list[Claims]") -> "Claims":
        """All claims of several parts, in the order given; there is at least one part."""
        parts = [part for part in parts if len(part.packet)] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, rows: I64) -> "Claims":
        """Some rows, in the order given."""
        return Claims(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Known:
    """What claims are checked against: the sessions, and their indices by tuple."""

    table: SessionTable
    tcp: FlowIndex
    udp: FlowIndex


def identities(octets: Octets, table: SessionTable, positions: I64) -> tuple[I64, I64, Bools]:
    """Identity blocks at these positions: session row, seq, and whether the tag proves them."""
    words = octets.u64(positions + 4)  # session and seq, just as they are hashed
    sessions = table.find(words >> np.uint64(32))
    seqs = (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
    expected = tags_with(table.key0[sessions], table.key1[sessions], words)
    return sessions, seqs, (octets.u64(positions + 12) == expected) & (seqs < table.count[sessions])


def either(mask: Bools, yes: IntEnum, no: IntEnum) -> I64:
    """One of two members, by a mask."""
    return np.where(mask, np.int64(yes), np.int64(no))
