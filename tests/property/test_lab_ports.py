"""Port ranges as masks: exactly the range, never a port twice."""

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from netprobe.lab.ports import range_masks

RANGES = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted)


def block(value: int, mask: int) -> range:
    """The ports that match; the mask's zero bits are its low ones."""
    size = (~mask & 0xFFFF) + 1
    assert size & (size - 1) == 0
    assert value & ~mask & 0xFFFF == 0
    return range(value, value + size)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(RANGES)
@example([0, 65535])
@example([0, 0])
@example([65535, 65535])
@example([1, 65534])
def test_the_masks_cover_the_range_exactly_once(bounds):
    first, last = bounds
    blocks = [block(value, mask) for value, mask in range_masks(first, last)]
    assert blocks[0].start == first
    assert blocks[-1].stop == last + 1
    assert all(a.stop == b.start for a, b in pairwise(blocks))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(RANGES)
def test_no_range_needs_more_than_thirty_masks(bounds):
    assert len(range_masks(*bounds)) <= 30  # 2 * (16 bits - 1)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(RANGES)
def test_no_two_neighbouring_blocks_could_be_one(bounds):
    blocks = [block(value, mask) for value, mask in range_masks(*bounds)]
    for a, b in pairwise(blocks):
        assert not (len(a) == len(b) and a.start % (2 * len(a)) == 0)
