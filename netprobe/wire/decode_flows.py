"""Sessions found by the tuple of a probe: for SYNs and their answers, and for replies that lost our TLV.

A session is known under its own addresses and under those that NAT gives its probes. Above: `decode_sessions`; asked by
`decode_tcp` and `decode_udp`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netprobe.model.probes import Protocol
from netprobe.wire.decode_headers import I64, U64, Bools, Packets
from netprobe.wire.decode_sessions import PROTOCOLS, AddressPairs, SessionTable

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing


@dataclass(frozen=True, slots=True)
class FlowTuples:
    """Flow tuples as a session's probes have them (those of answers are turned round), shape (n,) each."""

    family: I64
    addresses: AddressPairs
    src_port: I64
    dst_port: I64

    @classmethod
    def of(cls, packets: Packets, src_ports: I64, dst_ports: I64, is_answer: Bools) -> "FlowTuples":
        """The tuples of packets with these ports."""
        addresses = AddressPairs(
            np.where(is_answer, packets.dst_hi, packets.src_hi),
            np.where(is_answer, packets.dst_lo, packets.src_lo),
            np.where(is_answer, packets.src_hi, packets.dst_hi),
            np.where(is_answer, packets.src_lo, packets.dst_lo),
        )
        ports = np.where(is_answer, dst_ports, src_ports), np.where(is_answer, src_ports, dst_ports)
        return cls(packets.family, addresses, *ports)

    def take(self, rows: I64) -> "FlowTuples":
        """Some rows, in the order given."""
        return FlowTuples(self.family[rows], self.addresses.take(rows), self.src_port[rows], self.dst_port[rows])

    def equals(self, other: "FlowTuples") -> Bools:
        """Whether each row is that of the other one."""
        is_same = self.addresses.equals(other.addresses)
        is_same &= (self.src_port == other.src_port) & (self.dst_port == other.dst_port)
        is_same &= self.family == other.family
        return is_same

    def hashes(self) -> U64:
        """One word for each tuple; equal tuples have equal words."""
        mixed = (self.family << 32 | self.src_port << 16 | self.dst_port).astype(np.uint64)
        pairs = self.addresses
        for column in (pairs.src_hi, pairs.src_lo, pairs.dst_hi, pairs.dst_lo):
            mixed = (mixed ^ column) * _MULTIPLIER
            mixed ^= mixed >> np.uint64(29)
        return mixed


@dataclass(frozen=True, slots=True)
class Owners:
    """Sessions that own some of the tuples that were asked about, shape (n,) each.

    Attributes:
        which: row of the tuple.
        session: row in the session table.
        is_own: the addresses are the session's own; else NAT gave them, and others may stand behind them too.
    """

    which: I64
    session: I64
    is_own: Bools

    def where(self, mask: Bools) -> "Owners":
        """The rows for which `mask` holds."""
        return Owners(self.which[mask], self.session[mask], self.is_own[mask])


class FlowIndex:
    """Sessions of some protocols, to be found by the tuple of a probe.

    Args:
        table: all sessions.
        protocols: which of them are in the index.
    """

    def __init__(self, table: SessionTable, *protocols: Protocol) -> None:
        self._table = table
        wanted = [PROTOCOLS.index(protocol) for protocol in protocols]
        members = np.flatnonzero(np.isin(table.protocol, wanted)).tolist()
        blocks = [(row, pair, table.ports_of(row)) for row in members for pair in range(int(table.pair_count[row]))]
        sizes = [len(ports) for _, _, ports in blocks]
        rows = np.repeat(np.array([row for row, _, _ in blocks], np.int64), sizes)
        pairs = np.repeat(np.array([pair for _, pair, _ in blocks], np.int64), sizes)
        src_ports = np.concatenate([np.empty(0, np.int64), *(ports for _, _, ports in blocks)])
        hashes = self._tuples(rows, pairs, src_ports).hashes()
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows, self._pairs = hashes[order], rows[order], pairs[order]
        self._src_ports = src_ports[order]
        self._dst_ports = np.unique(table.dst_port[members])
        _, repeats = np.unique(hashes, return_counts=True)
        self._depth = int(repeats.max(initial=0))

    def __len__(self) -> int:
        return len(self._rows)

    def _tuples(self, rows: I64, pairs: I64, src_ports: I64) -> FlowTuples:
        table = self._table
        return FlowTuples(table.family[rows], table.addresses(rows, pairs), src_ports, table.dst_port[rows])

    def is_near(self, src_ports: I64, dst_ports: I64) -> Bools:
        """Whether a session has one of the ports as its destination: without, none owns the tuple, either way."""
        return np.isin(dst_ports, self._dst_ports) | np.isin(src_ports, self._dst_ports)

    def candidates(self, tuples: FlowTuples) -> Iterator[Owners]:
        """Owners of these tuples, until all owners of a shared one were told."""
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
            owned = self._tuples(self._rows[entry], self._pairs[entry], self._src_ports[entry])
            is_same = owned.equals(tuples.take(hits))
            entry = entry[is_same]
            yield Owners(hits[is_same], self._rows[entry], self._pairs[entry] == 0)
