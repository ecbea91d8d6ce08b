"""Sets of numbers as ranges: sorted, disjoint, with both ends. Pure. Ports, protocols and addresses alike."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, summarize_address_range

from netprobe.model.policy import IPNetwork

Ranges = tuple[tuple[int, int], ...]


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The numbers in any of the pairs, in any order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def common(one: Ranges, other: Ranges) -> Ranges:
    """The numbers in both."""
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(one) and j < len(other):
        first, last = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if first <= last:
            found.append((first, last))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def others(ranges: Ranges, high: int) -> Ranges:
    """The numbers from 0 to `high` that are in none."""
    found: list[tuple[int, int]] = []
    next_ = 0
    for first, last in ranges:
        if next_ < first:
            found.append((next_, first - 1))
        next_ = last + 1
    if next_ <= high:
        found.append((next_, high))
    return tuple(found)


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """The numbers of the first that are not in the second."""
    if not ranges:
        return ()
    return common(ranges, others(removed, ranges[-1][1]))


def size(ranges: Ranges) -> int:
    """How many numbers."""
    return sum(last - first + 1 for first, last in ranges)


def of_prefixes(prefixes: Iterable[IPNetwork]) -> Ranges:
    """The addresses of prefixes of one family, as numbers."""
    return ranges_of((int(prefix.network_address), int(prefix.broadcast_address)) for prefix in prefixes)


def prefixes(ranges: Ranges, family: int) -> tuple[IPNetwork, ...]:
    """The fewest prefixes with exactly these addresses."""
    found: list[IPNetwork] = []
    for first, last in ranges:
        if family == 4:
            found += summarize_address_range(IPv4Address(first), IPv4Address(last))
        else:
            found += summarize_address_range(IPv6Address(first), IPv6Address(last))
    return tuple(found)
