"""Which segment changed: by intervals, and never below what a median wanders by itself."""

from dataclasses import replace

import pytest
from support.results import segment

from netprobe.judge.changes import MIN_CHANGE_NS, changes_between
from netprobe.model.results import SegmentResult


def test_a_slower_and_lossier_segment_is_named_with_both_figures():
    """300 us and 2 % put in: both are reported, with intervals."""
    (change,) = changes_between([segment(30_000)], [segment(330_000, lost=40)])
    assert change.segment == "a..b"
    assert change.delay_ns == 300_000
    assert change.delay_interval_95 == (296_000, 304_000)
    assert change.loss_ratio == 0.02
    assert change.loss_interval_95[0] < 0.02 < change.loss_interval_95[1]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (segment(30_000), segment(30_000 + MIN_CHANGE_NS - 1)),  # a median wanders that far by itself
        (segment(1_000_000), segment(1_400_000)),  # less than half of what it was
        (segment(30_000, width=350_000), segment(330_000)),  # the intervals meet: not sure
        (segment(30_000, lost=5), segment(30_000, lost=9)),  # intervals of the loss meet
    ],
)
def test_what_may_be_chance_is_no_change(before, now):
    """Nobody is blamed on a doubt."""
    assert changes_between([before], [now]) == ()


def test_a_segment_that_recovered_is_a_change_too():
    """Faster, and no loss any more."""
    (change,) = changes_between([segment(330_000, lost=40)], [segment(30_000)])
    assert change.delay_ns == -300_000
    assert (change.loss_ratio, change.loss_before) == (0.0, 0.02)


def test_between_hosts_the_clocks_may_have_made_the_difference():
    """300 us slower, and the clocks off by up to 200 us both times: no change; by 20 us: one, with that added."""
    before, now = segment(30_000), segment(330_000)
    off = [replace(s, clock_error_ns=200_000) for s in (before, now)]
    assert changes_between(off[:1], off[1:]) == ()
    off = [replace(s, clock_error_ns=20_000) for s in (before, now)]
    (change,) = changes_between(off[:1], off[1:])
    assert change.delay_interval_95 == (256_000, 344_000)


def test_only_segments_of_both_results_are_compared_in_travel_order():
    """A segment that is new has nothing to be compared with."""
    now = [segment(900_000, name="x..y"), segment(900_000, name="c..d"), segment(900_000)]
    before = [segment(30_000), segment(30_000, name="c..d")]
    assert [c.segment for c in changes_between(before, now)] == ["c..d", "a..b"]


def test_a_segment_survives_the_way_through_json():
    """What is stored can be compared with later."""
    one = segment(30_000, lost=3)
    assert SegmentResult.from_json(one.to_json()) == one
