"""Port ranges as value/mask pairs: what an OpenFlow match can say. Pure.

Neutron's agent compiles ranges this way; so do the labs, and plan.covering has a probe for each pair.
"""

PORT_BITS = 16
ALL_ONES = (1 << PORT_BITS) - 1


def range_masks(first: int, last: int) -> list[tuple[int, int]]:
    """The fewest value/mask pairs that match exactly the ports from `first` to `last`.

    Each pair is the largest aligned block of 2^n ports that starts where the one before ended and does not reach past
    the range.

    Args:
        first: 0-65535.
        last: `first`-65535.

    Returns:
        (value, mask) in rising order; a port matches when `port & mask == value`.
    """
    assert 0 <= first <= last <= ALL_ONES, (first, last)
    pairs = []
    while first <= last:
        size = first & -first or 1 << PORT_BITS
        while size > last - first + 1:
            size >>= 1
        pairs.append((first, ALL_ONES & ~(size - 1)))
        first += size
    return pairs
