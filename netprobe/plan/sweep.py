"""Which frame sizes to try, so that the exact byte at which they begin to fail is found. Pure.

Failures need not be monotonic, nor near 1500: a known plague lets 68 bytes pass and swallows 69. So sizes all over the
range come first, densest where limits are known to lie; then gaps between a size that passes and one that does not are
narrowed until they are one byte wide. judge.sizes says which sizes pass; service.sweeping sends.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

ETHERNET_BYTES = 14
DENSE = (64, 128)
"""Minimum Ethernet frame to twice that: headers end here, and so do the limits of those who copy only headers."""

MTUS = (68, 576, 1280, 9000, 9216, 65_535)
"""Packets: the least of IPv4 (RFC 791), what every IPv4 host takes, the least of IPv6 (RFC 8200 §5), jumbo frames."""

TUNNELS = (1400, 1410, 1420, 1430, 1436, 1440, 1442, 1446, 1450, 1454, 1458, 1460, 1462, 1464, 1468, 1472, 1476, 1480)
"""Packets that are what 1500 leaves inside IPsec, WireGuard, Geneve, VXLAN, GRE and the like, and steps in between."""

NEAR_1500 = (1484, 1488, 1492, 1496, 1499, 1500)
MOST_GAPS = 8
"""Gaps that are narrowed at a time; a path that fails here and there has no more to say by more of them."""


def first_sizes(smallest: int, largest: int) -> tuple[int, ...]:
    """Frame sizes to begin with, ascending: both ends, and every boundary that matters between them.

    Args:
        smallest: what the Type-P's mark needs, bytes without FCS.
        largest: what the sender's NIC takes.
    """
    assert smallest <= largest, f"{smallest} to {largest}"
    sizes = {smallest, largest, *range(DENSE[0], DENSE[1] + 1)}
    for base in (*(1 << n for n in range(7, 17)), *MTUS):
        for size in (base, base + ETHERNET_BYTES):
            sizes |= {size - 1, size, size + 1}
    sizes |= {packet + ETHERNET_BYTES for packet in (*TUNNELS, *NEAR_1500)}
    return tuple(sorted(size for size in sizes if smallest <= size <= largest))


def gaps(passes: Mapping[int, bool]) -> tuple[tuple[int, int], ...]:
    """Neighbouring sizes that were tried, of which one passes and the other does not, and between which there are more.

    Args:
        passes: whether each size that is decided passes.

    Returns:
        (lower, upper), ascending.
    """
    ordered = sorted(passes)
    return tuple((a, b) for a, b in pairwise(ordered) if passes[a] != passes[b] and b - a > 1)


def sizes_between(passes: Mapping[int, bool], most: int) -> tuple[int, ...]:
    """Sizes to try next: they cut every gap into equal parts.

    Args:
        passes: as in `gaps`.
        most: how many at a time; the lowest gaps come first.

    Returns:
        Ascending; empty when every limit is known to the byte.
    """
    open_gaps = gaps(passes)[: min(MOST_GAPS, most)]
    each = most // max(1, len(open_gaps))
    found: set[int] = set()
    for low, high in open_gaps:
        parts = min(each, high - low - 1) + 1
        found |= {low + (high - low) * i // parts for i in range(1, parts)}
    return tuple(sorted(found - set(passes)))


def rounds(sizes: Sequence[int], each: int) -> tuple[tuple[int, ...], ...]:
    """Sizes dealt out to runs of at most `each`, so that every run has small and large ones."""
    count = -(-len(sizes) // each)
    return tuple(tuple(sizes[i::count]) for i in range(count))


def ranges_of(sizes: Iterable[int], tried: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sizes as ranges from first to last, joined where no other size that was tried lies between."""
    wanted = set(sizes)
    found: list[tuple[int, int]] = []
    is_joined = False
    for size in sorted(set(tried) | wanted):
        if size in wanted:
            found[-1:] = [(found[-1][0], size)] if is_joined else [*found[-1:], (size, size)]
        is_joined = size in wanted
    return tuple(found)
