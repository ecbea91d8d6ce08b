"""What was around probes, as few distinct values: VLAN tags, tunnel, addresses. Columns in, indices and values out.

Asked by `decode` for what it found to be ours. Above: `decode_headers`, `decode_tunnels`.
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from netprobe.model.contexts import HopContext
from netprobe.model.probes import IPAddress
from netprobe.wire.decode_headers import I64, U64, Bools, Packets, vlan_ids
from netprobe.wire.decode_tunnels import TUNNELS, Tunnels

_KNOWN = 1024  # contexts whose values are kept: many times those of one host, and few enough to forget
_COLUMNS = 11  # of a row with a tunnel
# Odd, and otherwise arbitrary: rows that differ seldom have one sum.
_FACTORS = np.random.default_rng(11).integers(1 << 63, size=_COLUMNS, dtype=np.uint64) << np.uint64(1) | np.uint64(1)


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of a block, parsed.

    Attributes:
        packets: of n frames: one row each, then one row for what is inside each tunnel.
        tags: VLAN tags of the frames, packed, shape (n,).
        tunnels: those among the frames.
    """

    packets: Packets
    tags: I64
    tunnels: Tunnels

    def contexts(self, rows: I64) -> tuple[I64, tuple[HopContext, ...]]:
        """The distinct contexts of some packets.

        Returns:
            Which context each of them has, and the contexts.
        """
        if not len(rows):
            return np.empty(0, np.int64), ()
        packets = self.packets
        addresses = (packets.src_hi, packets.src_lo, packets.dst_hi, packets.dst_lo)
        words: list[I64 | U64] = [packets.family[rows], self.tags[packets.index[rows]]]
        words += [column[rows] for column in addresses]
        is_inner = rows >= len(self.tags)
        if is_inner.any():
            words += self._around(rows - len(self.tags), is_inner)
        which, distinct = _distinct(np.stack([word.astype(np.uint64) for word in words], axis=1))
        return which, tuple(_context(tuple(row)) for row in distinct.tolist())

    def _around(self, tunnels: I64, is_inner: Bools) -> list[I64 | U64]:
        """Columns of the tunnels around packets; all zero where there is none."""
        rows = np.where(is_inner, tunnels, 0)
        outer = self.tunnels.outer[rows]
        packets = self.packets
        what = self.tunnels.kind[rows] << 32 | packets.family[outer] << 24 | self.tunnels.vni[rows]
        addresses = (packets.src_hi, packets.src_lo, packets.dst_hi, packets.dst_lo)
        words: list[I64 | U64] = [what, *(address[outer] for address in addresses)]
        return [np.where(is_inner, word, word.dtype.type(0)) for word in words]


def _distinct(rows: U64) -> tuple[I64, U64]:
    """Which distinct row each row is, and the distinct ones.

    To sort one word a row is far cheaper than to sort rows. Two rows may have one word, by chance or by somebody's
    effort; then the rows are sorted after all.
    """
    words = rows @ _FACTORS[: rows.shape[1]]
    _, first, which = np.unique(words, return_index=True, return_inverse=True)
    distinct = rows[first]
    if (distinct[which] != rows).any():
        distinct, which = np.unique(rows, axis=0, return_inverse=True)
    return which.reshape(-1).astype(np.int64), distinct


@lru_cache(_KNOWN)
def _context(row: tuple[int, ...]) -> HopContext:
    """The context that a row of columns stands for."""
    family, tags, src_hi, src_lo, dst_hi, dst_lo, *around = row
    src, dst = _address(family, src_hi, src_lo), _address(family, dst_hi, dst_lo)
    if not around or not around[0]:
        return HopContext(src, dst, vlan_ids(tags))
    what, outer_src_hi, outer_src_lo, outer_dst_hi, outer_dst_lo = around
    outer_family = what >> 24 & 0xFF
    return HopContext(
        src,
        dst,
        vlans=vlan_ids(tags),
        tunnel=TUNNELS[what >> 32],
        vni=what & 0xFFFFFF,
        outer_src=_address(outer_family, outer_src_hi, outer_src_lo),
        outer_dst=_address(outer_family, outer_dst_hi, outer_dst_lo),
    )


def _address(family: int, high: int, low: int) -> IPAddress:
    return IPv4Address(low) if family == 4 else IPv6Address(high << 64 | low)
