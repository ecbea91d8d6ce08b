"""What the decoder knows of the sessions, as columns: keys, addresses, ports, and two ways to find a session.

By number, for frames that carry an identity; by flow tuple, for a SYN, its answers, and replies of reflectors that drop
our TLV. Every column has one row more than there are sessions: row `unknown` fits nothing, so no lookup needs a mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from netprobe.errors import UsageError
from netprobe.model.probes import IPAddress, ProbeSession, Protocol
from netprobe.wire import isn, mark
from netprobe.wire.decode_headers import I64, U64, Bools, Packets
from netprobe.wire.siphash import key_words

PROTOCOLS = tuple(Protocol)
"""A session's protocol is stored as its index in here."""

_HALF = 0xFFFFFFFFFFFFFFFF
_NO_SESSION = 1 << 32  # greater than any session number
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing


@dataclass(frozen=True, slots=True)
class FlowTuples:
    """Flow tuples as a session's probes have them (those of answers are turned round), shape (n,) each."""

    family: I64
    src_hi: U64
    src_lo: U64
    dst_hi: U64
    dst_lo: U64
    src_port: I64
    dst_port: I64

    @classmethod
    def of(cls, packets: Packets, src_ports: I64, dst_ports: I64, is_answer: Bools) -> "FlowTuples":
        """The tuples of packets with these ports."""
        return cls(
            packets.family,
            np.where(is_answer, packets.dst_hi, packets.src_hi),
            np.where(is_answer, packets.dst_lo, packets.src_lo),
            np.where(is_answer, packets.src_hi, packets.dst_hi),
            np.where(is_answer, packets.src_lo, packets.dst_lo),
            np.where(is_answer, dst_ports, src_ports),
            np.where(is_answer, src_ports, dst_ports),
        )

    def hashes(self) -> U64:
        """One word for each tuple; equal tuples have equal words."""
        mixed = (self.family << 32 | self.src_port << 16 | self.dst_port).astype(np.uint64)
        for column in (self.src_hi, self.src_lo, self.dst_hi, self.dst_lo):
            mixed = (mixed ^ column) * _MULTIPLIER
            mixed ^= mixed >> np.uint64(29)
        return mixed


class SessionTable:
    """Sessions as columns, in the order of their numbers, and row `unknown` at the end.

    Args:
        sessions: any number of sessions, each with a number of its own.

    Raises:
        UsageError: two sessions have the same number, or one does not fit the wire.
    """

    def __init__(self, sessions: Sequence[ProbeSession]) -> None:
        ordered = sorted(sessions, key=lambda s: s.session)
        for first, second in pairwise(ordered):
            if first.session == second.session:
                raise UsageError("Decoder", f"two sessions with number {first.session}", allowed="one number each")
        for session in ordered:
            mark.check_session(session)
        self.unknown = len(ordered)
        type_ps = [session.type_p for session in ordered]
        keys = [key_words(session.key) for session in ordered]
        self.number = np.array([*(s.session for s in ordered), _NO_SESSION], np.uint64)
        self.key0 = np.array([*(low for low, _ in keys), 0], np.uint64)
        self.key1 = np.array([*(high for _, high in keys), 0], np.uint64)
        self.isn_keys = np.zeros((len(ordered) + 1, isn.ROUNDS), np.uint64)
        for row, session in enumerate(ordered):
            self.isn_keys[row] = isn.round_keys(session.key, session.session)
        self.count = np.array([*(s.count for s in ordered), 0], np.int64)
        self.ssid = np.array([*(mark.ssid(s.session) for s in ordered), 0], np.int64)
        self.protocol = np.array([*(PROTOCOLS.index(t.protocol) for t in type_ps), -1], np.int64)
        self.family = np.array([*(t.family for t in type_ps), -1], np.int64)
        self.dst_port = np.array([*(t.dst_port for t in type_ps), -1], np.int64)
        self.payload_bytes = np.array([*(mark.payload_size(t) for t in type_ps), 1], np.int64)
        self.src_hi, self.src_lo = _address_columns([s.src_ip for s in ordered])
        self.dst_hi, self.dst_lo = _address_columns([s.dst_ip for s in ordered])
        self._ports, self._port_base, self._port_step = _port_columns(ordered)

    def find(self, numbers: U64) -> I64:
        """Rows of the sessions with these numbers; `unknown` where there is none."""
        rows = np.searchsorted(self.number, numbers)
        return np.where(self.number[rows] == numbers, rows, self.unknown)

    def src_port(self, rows: I64, seqs: I64) -> I64:
        """Source ports of these probes. Numbers beyond a session's count give a port, but mean nothing."""
        known = np.where(seqs < self.count[rows], seqs, 0)
        ports: I64 = self._ports[self._port_base[rows] + known * self._port_step[rows]]
        return ports

    def ports_of(self, row: int) -> I64:
        """All source ports of one session, each once."""
        size = int(self.count[row]) if self._port_step[row] else 1
        base = int(self._port_base[row])
        return np.unique(self._ports[base : base + size])

    def is_forward(self, rows: I64, packets: Packets) -> Bools:
        """Whether each packet goes from its session's source to its destination."""
        is_right: Bools = packets.family == self.family[rows]
        is_right &= (packets.src_lo == self.src_lo[rows]) & (packets.src_hi == self.src_hi[rows])
        is_right &= (packets.dst_lo == self.dst_lo[rows]) & (packets.dst_hi == self.dst_hi[rows])
        return is_right

    def is_return(self, rows: I64, packets: Packets) -> Bools:
        """Whether each packet goes from its session's destination to its source."""
        is_right = self.is_to_source(rows, packets)
        is_right &= (packets.src_lo == self.dst_lo[rows]) & (packets.src_hi == self.dst_hi[rows])
        return is_right

    def is_to_source(self, rows: I64, packets: Packets) -> Bools:
        """Whether each packet goes to its session's source, from wherever."""
        is_right: Bools = packets.family == self.family[rows]
        is_right &= (packets.dst_lo == self.src_lo[rows]) & (packets.dst_hi == self.src_hi[rows])
        return is_right


class FlowIndex:
    """Sessions of some protocols, to be found by the tuple of a probe.

    Args:
        table: all sessions.
        protocols: which of them are in the index.
    """

    def __init__(self, table: SessionTable, *protocols: Protocol) -> None:
        self._table = table
        wanted = [PROTOCOLS.index(protocol) for protocol in protocols]
        members = np.flatnonzero(np.isin(table.protocol, wanted))
        ports = [table.ports_of(int(row)) for row in members]
        rows = np.repeat(members, [len(block) for block in ports])
        src_ports = np.concatenate(ports) if ports else np.empty(0, np.int64)
        hashes = self._tuples(rows, src_ports).hashes()
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows, self._src_ports = hashes[order], rows[order], src_ports[order]
        _, repeats = np.unique(hashes, return_counts=True)
        self._depth = int(repeats.max(initial=0))

    def __len__(self) -> int:
        return len(self._rows)

    def _tuples(self, rows: I64, src_ports: I64) -> FlowTuples:
        t = self._table
        return FlowTuples(
            t.family[rows], t.src_hi[rows], t.src_lo[rows], t.dst_hi[rows], t.dst_lo[rows], src_ports, t.dst_port[rows]
        )

    def candidates(self, tuples: FlowTuples) -> Iterator[tuple[I64, I64]]:
        """Pairs of (rows of `tuples`, rows of sessions that own them), until all owners of a shared tuple were told."""
        if not len(self._rows):
            return
        hashes = tuples.hashes()
        first = np.searchsorted(self._hashes, hashes)
        for rank in range(self._depth):
            entry = np.minimum(first + rank, len(self._rows) - 1)
            hits = np.flatnonzero((first + rank < len(self._rows)) & (self._hashes[entry] == hashes))
            if not len(hits):
                return
            entry = entry[hits]
            owned = self._tuples(self._rows[entry], self._src_ports[entry])
            same = np.ones(len(hits), np.bool_)
            for name in FlowTuples.__slots__:
                same &= getattr(owned, name) == getattr(tuples, name)[hits]
            yield hits[same], self._rows[entry[same]]


def _address_columns(addresses: list[IPAddress]) -> tuple[U64, U64]:
    """High and low halves of addresses, and an address that no packet has for row `unknown`."""
    numbers = [int(address) for address in addresses]
    high = np.array([*(number >> 64 for number in numbers), _HALF], np.uint64)
    low = np.array([*(number & _HALF for number in numbers), _HALF], np.uint64)
    return high, low


def _port_columns(sessions: list[ProbeSession]) -> tuple[I64, I64, I64]:
    """All source ports in one column; where each session's start, and the step from one probe's to the next one's."""
    blocks, bases, steps, base = [], [], [], 0
    for session in sessions:
        is_new = mark.has_own_ports(session.type_p)
        block = session.src_ports[: session.count] if is_new else (session.type_p.src_port,)
        blocks.append(np.array(block or (0,), np.int64))
        bases.append(base)
        steps.append(int(is_new))
        base += len(blocks[-1])
    return (
        np.concatenate([*blocks, np.array([-1], np.int64)]),
        np.array([*bases, base], np.int64),
        np.array([*steps, 0], np.int64),
    )
