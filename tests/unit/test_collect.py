"""Histogram, intervals, reordering and answers against independent arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from netprobe.collect.answers import Answers, guest_records, proved_unreflected
from netprobe.collect.arrivals import tabulate
from netprobe.collect.histogram import MAX_RELATIVE_ERROR, Histogram
from netprobe.collect.intervals import binomial_interval, loss_bounds, median_interval, quantile_ranks
from netprobe.collect.segments import delay_of, duplicated_between, known_copies, reordered_between
from netprobe.model.points import Direction, Point, PointKind, Stamp, Stop
from netprobe.model.records import HopBatch, HopRecord


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=60), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_the_stated_error(values, q):
    """Nearest-rank quantile of the sorted values, to 1 %; extremes exact."""
    histogram = Histogram.of(np.array(values, np.int64))
    exact = sorted(values)[max(1, int(np.ceil(q * len(values) - 1e-9))) - 1]
    got = histogram.quantile_ns(q)
    assert abs(got - exact) <= max(1, MAX_RELATIVE_ERROR * exact)
    assert (histogram.min_ns, histogram.max_ns, histogram.samples) == (min(values), max(values), len(values))
    assert MAX_RELATIVE_ERROR <= 0.01


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.integers(0, 2**40), max_size=30), st.lists(st.integers(0, 2**40), max_size=30))
def test_merged_histograms_are_the_histogram_of_all(a, b):
    """Addition is merging."""
    one = Histogram.of(np.array(a, np.int64)).merged(Histogram.of(np.array(b, np.int64)))
    both = Histogram.of(np.array(a + b, np.int64))
    assert (one.counts == both.counts).all()
    assert (one.min_ns, one.max_ns) == (both.min_ns, both.max_ns)


def test_lost_probes_count_as_infinite_delay():
    """With 2 of 100 lost the 99th percentile is infinite, the 98th is not."""
    histogram = Histogram.of(np.full(98, 1000, np.int64))
    assert histogram.quantile_ns(0.98, infinite=2) == 1000
    assert histogram.quantile_ns(0.99, infinite=2) is None
    assert Histogram().quantile_ns(0.5) is None


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 100), (40, 2000), (1, 1)])
def test_the_binomial_interval_is_exact(k, n):
    """At its bounds the binomial tails are exactly 2.5 % (Clopper and Pearson)."""
    low, high = binomial_interval(k, n)
    if k:
        assert binom.sf(k - 1, n, low) == pytest.approx(0.025)
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(0.025)
    assert low <= k / n <= high


def test_no_trial_says_nothing():
    """Without a decided probe any loss is possible."""
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_the_median_interval_covers_as_promised():
    """Seeded: at least 95 % of 400 intervals contain the true median of a skewed distribution."""
    rng = np.random.default_rng(5)
    truth = np.log(2) * 1e6
    hits = 0
    for _ in range(400):
        low, high = median_interval(rng.exponential(1e6, 101).astype(np.int64))
        hits += low <= truth <= high
    assert hits >= 380
    assert median_interval(np.array([1, 2, 3], np.int64)) is None


def arrivals_of(first, second):
    """Two stops; each list is the seqs in order of arrival."""
    rows = [HopRecord(100 + i, 1, s, 0, 0, 0) for i, s in enumerate(first)]
    rows += [HopRecord(1000 + i, 1, s, 1, 0, 0) for i, s in enumerate(second)]
    return tabulate(HopBatch.of(rows), [(0, 0), (1, 0)], np.full(10, 10_000))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], []),
        ([0, 1, 2, 3], [0, 2, 3, 1], [1]),  # RFC 4737 §3.3: only those that come after a later one
        ([0, 1, 2, 3], [3, 0, 1, 2], [0, 1, 2]),
        ([1, 0, 2], [1, 0, 2], []),  # reordered before this segment: not its fault
        ([0, 1, 2, 3], [0, 3, 3, 1], [1]),  # a second copy counts for nothing; 2 was lost
    ],
)
def test_reordering_is_that_of_rfc_4737_relative_to_the_first_point(first, second, expected):
    """The reordered set, by hand."""
    flags = reordered_between(arrivals_of(first, second), 0, 1)
    assert np.flatnonzero(flags).tolist() == expected


def answers(pairs):
    """Answers from (seq, reflector_seq)."""
    seq = np.array([p[0] for p in pairs], np.uint32)
    times = np.arange(1, len(pairs) + 1, dtype=np.int64)
    return Answers(seq, times, times, np.array([p[1] for p in pairs], np.int64), times)


@pytest.mark.parametrize(
    ("arrived", "pairs", "expected"),
    [
        ([0, 1, 2, 3], [(0, 0), (3, 1)], [1, 2]),  # numbers run on: 1 and 2 never reached the reflector
        ([0, 1, 2, 3], [(0, 0), (3, 3)], []),  # numbers jump: the answers may have been lost
        ([0, 1, 2, 3], [(0, 0), (3, 2)], []),  # one of two was reflected; nobody knows which
        ([0, 1, 2], [(2, 0)], [0, 1]),  # a session starts at 0
        ([0, 1, 2], [(2, 9)], []),  # unless it does not
        ([0, 1, 2], [(0, 0)], []),  # nothing is known after the last answer
        ([0, 2, 1, 3], [(0, 0), (3, 1)], [1, 2]),  # order of arrival counts, not the seq
        ([0, 1, 2, 3], [(0, 0), (0, 1), (3, 2)], [1, 2]),  # a duplicate took number 1
        ([0, 1, 0, 3], [(0, 2), (3, 3)], []),  # 0 and 1 were both answered, the answers were lost; 0's copy came later
        ([0, 1, 2, 3], [(0, 0), (2, 2), (3, 3)], []),  # a stateless reflector copies our numbers
        ([], [], []),
    ],
)
def test_the_reflectors_own_numbers_prove_forward_loss(arrived, pairs, expected):
    """Only a gapless run of reflector numbers around a probe proves that it never arrived."""
    first, last = np.full(5, -1, np.int64), np.full(5, -1, np.int64)
    for i, seq in enumerate(arrived):
        first[seq] = 1000 * i if first[seq] < 0 else first[seq]
        last[seq] = 1000 * i
    flags = proved_unreflected(first, last, answers(pairs), 10)
    assert np.flatnonzero(flags).tolist() == expected


def test_a_probe_that_may_have_been_overtaken_is_not_proved_lost():
    """0 and 2 are answered with 1 and 2; 1 may have come before 0, as number 0, if it may be late by as much."""
    given = answers([(0, 1), (2, 2)])
    first = np.array([1_000, 2_000, 9_000], np.int64)
    assert not proved_unreflected(first, first, given, 5_000).any()
    assert proved_unreflected(first, first, given, 10).tolist() == [False, True, False]


def test_an_answer_seen_at_three_points_is_one_answer():
    """Sightings of one reply are merged, the earliest time stays; two replies to one probe are two."""
    seq = np.array([4, 4, 4, 4], np.uint32)
    t2 = np.array([10, 10, 10, 11], np.int64)
    seen = np.array([90, 70, 80, 75], np.int64)
    got = Answers(seq, t2, t2 + 1, np.array([0, 0, 0, 1], np.int64), seen).unique()
    assert got.t2_ns.tolist() == [10, 11]
    assert got.seen_ns.tolist() == [70, 75]


def records_of(t2, t3, seen, was_late=False):
    """Hop times at the guest (in, out) and doubts, for one answer to one probe."""
    one = np.array([0], np.uint32), *(np.array([v], np.int64) for v in (t2, t3, 0, seen))
    batch, doubts = guest_records(
        Answers(*one), session=1, guest=3, earliest_ns=np.array([100]), was_late=np.array([was_late])
    )
    return batch.t_ns.tolist(), doubts


@pytest.mark.parametrize(
    ("given", "times", "doubts"),
    [
        ((150, 160, 200), [150, 160], 0),  # the guest's clock fits ours
        ((5_000_150, 5_000_160, 200), [-1, -1], 1),  # another clock: present for certain, its times unused
        ((150, 140, 200), [-1, -1], 1),  # left before it came
        ((99, 160, 200), [-1, -1], 1),  # came before it was sent
        ((-1, -1, 200), [-1, -1], 0),  # an echo reply has no times
        ((-1, -1, 1_200, True), [1_200, 1_200], 0),  # the probe was late before it reached the guest
        ((-1, -1, 1_200, False), [-1, -1], 0),  # it was in time as far as anybody knows, whenever the answer came
        ((150, 160, 1_200), [150, 160], 0),  # the answer was late, the probe was not
    ],
)
def test_a_guests_times_are_used_only_where_they_fit_our_own(given, times, doubts):
    """Presence by our clock, delay by theirs only in between."""
    assert records_of(*given) == (times, doubts)


def test_new_tuples_or_copied_numbers_prove_nothing():
    """A reflector that counts each tuple apart, and a stateless one, number nothing that could be missing."""
    first = np.arange(1000, 5000, 1000, dtype=np.int64)
    assert not proved_unreflected(first, first, answers([(3, 3)]), 10).any()
    overtaken = np.array([1_000, 3_000, 2_000, 4_000], np.int64)  # 2 came before 1; its answer was lost
    assert not proved_unreflected(overtaken, overtaken, answers([(0, 0), (1, 1), (3, 3)]), 10).any()


def stop(name, stamp):
    return Stop(Point(name, PointKind.BACKEND, "h"), Direction.IN, stamp)


def test_a_copy_is_blamed_on_the_segment_that_made_it_whoever_missed_it_and_on_no_answer():
    """Two copies from stop 1 on; stop 2 missed them; the guest's presence is inferred: one duplicate, behind stop 0."""
    rows = [HopRecord(100 + i, 1, 0, 1, 0, 0) for i in range(2)] + [HopRecord(300 + i, 1, 0, 3, 0, 0) for i in range(2)]
    arrivals = tabulate(HopBatch.of(rows), [(i, 0) for i in range(4)], np.array([10_000]))
    stops = [stop("a", Stamp.SENDER), *(stop(n, Stamp.KERNEL_RX) for n in "bcd")]
    known = known_copies(stops, arrivals, np.ones(1, np.int64))
    assert known[:, 0].tolist() == [1, 2, 2, 2]
    assert [int(duplicated_between(arrivals, known, i, i + 1)[0]) for i in range(3)] == [1, 0, 0]
    back = [stop("g", Stamp.INFERRED), stop("d", Stamp.KERNEL_RX)]
    twice = tabulate(HopBatch.of([HopRecord(t, 1, 0, 1, 0, 0) for t in (5, 6)]), [(0, 0), (1, 0)], np.array([10_000]))
    assert known_copies(back, twice, np.array([2]))[:, 0].tolist() == [2, 2]


@pytest.mark.parametrize(("lost", "undecided", "total"), [(0, 40, 100), (10, 0, 100), (5, 5, 10), (0, 0, 0)])
def test_a_loss_interval_holds_whatever_became_of_the_undecided(lost, undecided, total):
    """From none of them lost to all of them lost."""
    low, high = loss_bounds(lost, undecided, total)
    assert low == binomial_interval(lost, total)[0]
    assert high == binomial_interval(lost + undecided, total)[1]


def test_lost_probes_push_the_medians_interval_up():
    """With 20 % lost the interval lies where p50 lies; with half lost its upper bound is infinite."""
    values = np.arange(1, 801, dtype=np.int64)
    low, high = median_interval(values, 200)
    assert low <= 500 <= high
    assert median_interval(np.arange(1, 501, dtype=np.int64), 500)[1] is None
    assert median_interval(np.arange(1, 101, dtype=np.int64), 900) is None


@pytest.mark.parametrize(("n", "q"), [(1, 0.99), (240, 0.99), (1000, 0.99), (5000, 0.99), (101, 0.5)])
def test_a_quantiles_ranks_cover_it_as_promised_and_no_narrower_ones_do(n, q):
    """Against the sums themselves; of an interval that is open above nothing is asked there."""
    low, high = quantile_ranks(n, q)
    assert 0 <= low < high <= n + 1
    assert binom.cdf(low - 1, n, q) <= 0.025 < binom.cdf(low, n, q)
    assert binom.sf(high - 1, n, q) <= 0.025 < binom.sf(high - 2, n, q)


def test_the_interval_of_p99_covers_as_promised_and_lost_probes_push_it_up():
    """Seeded: at least 95 % of 200 intervals, within the histogram's error; 368 probes are the fewest with an end."""
    rng = np.random.default_rng(6)
    truth, hits = np.log(100) * 1e6, 0
    for _ in range(200):
        low, high = delay_of(rng.exponential(1e6, 2000).astype(np.int64), 0)[0].p99_interval_95
        hits += low * (1 - MAX_RELATIVE_ERROR) <= truth <= high * (1 + MAX_RELATIVE_ERROR)
    assert hits >= 190
    values = np.arange(1, 2001, dtype=np.int64)
    assert delay_of(values[:368], 0)[0].p99_interval_95[1] is not None
    assert delay_of(values[:367], 0)[0].p99_interval_95[1] is None
    low, high = delay_of(values, 10)[0].p99_interval_95
    assert low > delay_of(values, 0)[0].p99_interval_95[0]
    assert high is not None
    assert delay_of(values, 20)[0].p99_interval_95[1] is None
    assert delay_of(values, 400)[0].p99_interval_95 is None
