"""What the decoder knows of the sessions, as columns: keys, addresses (also behind NAT), ports, by session number.

Every column has one row more than there are sessions: row `unknown` fits nothing, so no lookup needs a mask. To find a
session by the tuple of a probe: `decode_flows`.
"""

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class AddressPairs:
    """A source and a destination address in each row, columns of one length."""

    src_hi: U64
    src_lo: U64
    dst_hi: U64
    dst_lo: U64

    def take(self, rows: I64) -> "AddressPairs":
        """Some rows, in the order given."""
        return AddressPairs(self.src_hi[rows], self.src_lo[rows], self.dst_hi[rows], self.dst_lo[rows])

    def equals(self, other: "AddressPairs") -> Bools:
        """Whether each row is that of the other one."""
        is_same: Bools = (self.src_lo == other.src_lo) & (self.dst_lo == other.dst_lo)
        is_same &= (self.src_hi == other.src_hi) & (self.dst_hi == other.dst_hi)
        return is_same


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
        pairs = [mark.address_pairs(session) for session in ordered]
        self.pair_count = np.array([*(len(own) for own in pairs), 0], np.int64)
        # A session with fewer repeats its own pair: who looks from the last one to the first finds the right number.
        most = max((len(own) for own in pairs), default=1)
        self.pairs = tuple(_pair_columns([own[k] if k < len(own) else own[0] for own in pairs]) for k in range(most))
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

    def has_own_ports(self, row: int) -> bool:
        """Whether each probe of one session has a source port of its own."""
        return bool(self._port_step[row])

    def ports_of(self, row: int) -> I64:
        """All source ports of one session, each once."""
        size = int(self.count[row]) if self._port_step[row] else 1
        base = int(self._port_base[row])
        return np.unique(self._ports[base : base + size])

    def addresses(self, rows: I64, numbers: I64) -> AddressPairs:
        """The address pairs with these numbers of these sessions."""
        columns = []
        for name in AddressPairs.__slots__:
            column: U64 = getattr(self.pairs[0], name)[rows]
            for number in range(1, len(self.pairs)):
                column = np.where(numbers == number, getattr(self.pairs[number], name)[rows], column)
            columns.append(column)
        return AddressPairs(*columns)

    def forward_pair(self, rows: I64, packets: Packets) -> I64:
        """Which address pair of its session each packet goes along, from source to destination.

        Returns:
            Shape (n,): 0 the session's own, more a translation, -1 none.
        """
        addresses = AddressPairs(packets.src_hi, packets.src_lo, packets.dst_hi, packets.dst_lo)
        return self._pair(rows, packets.family, addresses)

    def return_pair(self, rows: I64, packets: Packets) -> I64:
        """Likewise, from destination to source."""
        addresses = AddressPairs(packets.dst_hi, packets.dst_lo, packets.src_hi, packets.src_lo)
        return self._pair(rows, packets.family, addresses)

    def _pair(self, rows: I64, family: I64, addresses: AddressPairs) -> I64:
        found = np.full(len(rows), -1)
        for number in reversed(range(len(self.pairs))):
            found[addresses.equals(self.pairs[number].take(rows))] = number
        found[family != self.family[rows]] = -1
        return found

    def is_to_source(self, rows: I64, packets: Packets) -> Bools:
        """Whether each packet goes to its session's source, under any of its addresses, from wherever."""
        is_right = np.zeros(len(rows), np.bool_)
        for pair in self.pairs:
            is_right |= (packets.dst_lo == pair.src_lo[rows]) & (packets.dst_hi == pair.src_hi[rows])
        is_right &= packets.family == self.family[rows]
        return is_right


def _pair_columns(pairs: list[tuple[IPAddress, IPAddress]]) -> AddressPairs:
    return AddressPairs(*_address_columns([src for src, _ in pairs]), *_address_columns([dst for _, dst in pairs]))


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
