"""The clock estimator by hand, against a general linear program, and against peers that lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from netprobe.collect.clock_rows import MAX_ROWS, UNBOUNDED_NS
from netprobe.collect.clocks import MAX_STEPS_AT_ONCE, MAX_STRETCHES, ClockAssumptions, ClockEstimator
from netprobe.collect.hulls import fit, lower_hull

US, MS, S = 10**3, 10**6, 10**9
START = 1_800_000_000 * S


def column(*values):
    return np.array(values, np.int64)


def exchanges(clock, sent, *, offset=0, ppm=0.0, there=50 * US, back=50 * US, asked_by_us=True):
    """Exchanges begun at our times `sent` (ns since START) with a clock that is `offset` ahead and gains `ppm`."""
    sent = np.asarray(sent, np.int64)

    def other(ours):
        return START + ours + offset + np.round(ours * ppm * 1e-6).astype(np.int64)

    came, left = sent + there, sent + there + 20 * US
    if asked_by_us:
        return clock.add(START + sent, other(came), other(left), START + left + back)
    return clock.add(other(sent), START + came, START + left, other(left + back), asked_by_us=False)


def asked(clock, *ours, offset=0):
    """Bounds at times of the other clock, given as ours."""
    low, high = clock.bounds(START + np.array(ours, np.int64) + offset)
    return list(zip(low.tolist(), high.tolist(), strict=True))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 1000)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-50, 50), st.integers(-1000, 300)), min_size=1, max_size=12),
    st.integers(-60, 60),
)
def test_the_bounds_are_those_of_the_linear_program(above, below, x):
    """Feasibility and both extremes of height + slope x, against scipy's general solver."""
    above, below = np.array(above, float), np.array(below, float)
    lines = fit((above[:, 0], above[:, 1]), (below[:, 0], below[:, 1]), 30.0)
    rows = np.concatenate(
        [np.stack([np.ones(len(above)), above[:, 0]], 1), np.stack([-np.ones(len(below)), -below[:, 0]], 1)]
    )
    limits = np.concatenate([above[:, 1], -below[:, 1]])
    solved = [linprog(sign * np.array([1.0, x]), rows, limits, bounds=[(None, None), (-30, 30)]) for sign in (1, -1)]
    assert (lines is not None) == (solved[0].status == 0)
    if lines is not None:
        low, high = lines.bounds(np.array([float(x)]))
        assert (low[0], high[0]) == pytest.approx((solved[0].fun, -solved[1].fun), abs=1e-6)


def test_the_lower_hull_is_exact_for_large_integers():
    """One ns decides, at the size of CLOCK_REALTIME, where a float could not tell."""
    x = [START, START + 1, START + 2]
    assert lower_hull(x, [START, START, START]) == [0, 2]
    assert lower_hull(x, [START, START - 1, START]) == [0, 1, 2]
    assert lower_hull([5, 5, 5], [1, 2, 3]) == [0]


@pytest.mark.parametrize("asked_by_us", [True, False])
def test_one_exchange_bounds_the_offset_by_its_two_ways(asked_by_us):
    """Offset 7 ms, ways of 30 and 80 us: up to 30 us (there) above the truth, 80 us (back) below it, plus errors."""
    clock = ClockEstimator(ClockAssumptions(stamp_error_ns=1_000, max_wander_ppm=0, max_skew_ppm=1e-6))
    exchanges(clock, [5 * S], offset=7 * MS, there=30 * US, back=80 * US, asked_by_us=asked_by_us)
    low, high = asked(clock, 5 * S, offset=7 * MS)[0]
    before, after = (80, 30) if asked_by_us else (30, 80)
    assert low == pytest.approx(7 * MS - before * US - 1_000, abs=5)
    assert high == pytest.approx(7 * MS + after * US + 1_000, abs=5)


def test_nothing_is_known_without_an_exchange_near():
    """Before any exchange, and further from all of them than half a window."""
    clock = ClockEstimator()
    unknown = (-UNBOUNDED_NS, UNBOUNDED_NS)
    assert asked(clock, 0) == [unknown]
    exchanges(clock, [100 * S])
    found = asked(clock, 80 * S, 95 * S, 105 * S, 120 * S)
    assert found[0] == found[3] == unknown
    assert unknown not in found[1:3]
    assert len(clock.bounds(column())[0]) == 0


def test_far_from_an_exchange_the_skew_that_is_possible_counts():
    """5 s away with nothing known of the skew: 500 ppm either way, 2.5 ms."""
    clock = ClockEstimator()
    exchanges(clock, [100 * S])
    low, high = asked(clock, 105 * S)[0]
    assert 2.5 * MS < high < 2.7 * MS
    assert -2.7 * MS < low < -2.5 * MS


def steady(clock, first_s, last_s, **how):
    """Ten exchanges a second, in batches of one second; the steps that were flagged."""
    return [
        step
        for second in range(first_s, last_s)
        for step in exchanges(clock, second * S + np.arange(10) * S // 10, **how)
    ]


@pytest.mark.parametrize("ppm", [-200.0, 0.0, 3.5, 150.0])
def test_the_skew_is_an_interval_too(ppm):
    """It contains the truth, and after 20 s of round trips of 120 us it is a few ppm wide; unknown far away."""
    clock = ClockEstimator()
    steady(clock, 0, 21, ppm=ppm)
    low, high = clock.skew_ppm(START + 10 * S)
    assert low <= ppm <= high
    assert high - low < 40
    assert clock.skew_ppm(START + 60 * S) is None
    assert clock.skew_ppm(START - 60 * S) is None


@pytest.mark.parametrize("jump", [5 * MS, -5 * MS, S // 2, -S // 2, -3600 * S, 3600 * S, -(2**60)])
def test_each_side_of_a_step_has_its_own_offset(jump):
    """The other clock jumps between 19.9 and 20 s. It is flagged once; then nothing is known; else the truth."""
    clock = ClockEstimator()
    assert not steady(clock, 0, 20)
    (step,) = steady(clock, 20, 40, offset=jump)
    assert step.flagged_ns <= START + 21 * S
    (low, high), (low_after, high_after) = asked(clock, 15 * S)[0], asked(clock, 35 * S, offset=jump)[0]
    assert low <= 0 <= high
    assert low_after <= jump <= high_after
    assert asked(clock, 19_950 * MS)[0] == asked(clock, 19_950 * MS, offset=jump)[0] == (-UNBOUNDED_NS, UNBOUNDED_NS)


def test_times_that_a_step_back_shows_twice_are_unknown():
    """Set back by 2 s at 20 s: what the clock shows from 18 s to 20 s may mean either; from then on it is clear."""
    clock = ClockEstimator()
    steady(clock, 0, 20)
    steady(clock, 20, 40, offset=-2 * S)
    assert asked(clock, 19 * S)[0] == (-UNBOUNDED_NS, UNBOUNDED_NS)
    low, high = asked(clock, 21 * S)[0]  # by the new offset, at 23 s
    assert low <= -2 * S <= high
    low, high = asked(clock, 17 * S)[0]
    assert low <= 0 <= high


def queued(seed, change):
    """40 s of exchanges with heavy queues, while `change` (ns, by our time) comes on top of the other clock.

    Returns:
        Our times, whether the interval held the truth then, and whether there was one.
    """
    rng, clock = np.random.default_rng(seed), ClockEstimator()
    sent = np.sort(rng.integers(0, 40 * S, 600))
    there, back = ((150 * US + 300 * US * rng.pareto(1.5, 600)).astype(np.int64) for _ in range(2))

    def other(ours):
        return START + ours + change(ours).astype(np.int64)

    for i in range(0, 600, 10):
        t, go, come = sent[i : i + 10], there[i : i + 10], back[i : i + 10]
        clock.add(START + t, other(t + go), other(t + go), START + t + go + come)
    ours = np.linspace(0, 40 * S, 800).astype(np.int64)
    low, high = clock.bounds(other(ours))
    truth = other(ours) - START - ours
    return ours, (low <= truth) & (truth <= high), high < UNBOUNDED_NS


@pytest.mark.parametrize("ppm", [10, 50, 100, 300])
def test_a_change_of_rate_does_not_falsify_the_interval(ppm):
    """The other clock runs `ppm` faster from 20 s on, seen or not: where an interval is given, it holds the truth."""
    for seed in range(12):
        _, holds, known = queued(seed, lambda ours: np.maximum(ours - 20 * S, 0) * (ppm * 1e-6))
        assert holds.all()
        assert known.mean() > 0.4


@pytest.mark.parametrize("jump", [100 * US, -300 * US])
def test_a_step_too_small_to_be_seen_spoils_its_own_second_only(jump):
    """A step at 20.5 s that drowns in the queues: times in other seconds keep their truth."""
    for seed in range(12):
        ours, holds, _ = queued(seed, lambda t: np.where(t < 20.5 * S, 0, jump))
        assert holds[(ours < 20 * S) | (ours > 21.1 * S)].all()


def test_a_skew_that_wanders_as_allowed_is_no_step():
    """From -20 to +20 ppm within 20 s, among round trips of 4 us: a parabola, which no line follows."""
    clock = ClockEstimator(ClockAssumptions(stamp_error_ns=100, max_wander_ppm=20))

    def other(ours):
        return START + ours + (ours.astype(float) * (ours - 20 * S) / (20 * S) * 20e-6).astype(np.int64)

    for second in range(21):
        t = second * S + np.arange(10) * S // 10
        assert not clock.add(START + t, other(t + 2 * US), other(t + 2 * US), START + t + 4 * US)
    ours = np.linspace(0, 20 * S, 500).astype(np.int64)
    low, high = clock.bounds(other(ours))
    truth = other(ours) - START - ours
    assert ((low <= truth) & (truth <= high)).all()
    assert np.median(high - low) < 60 * US


def test_exchanges_of_before_a_step_that_come_late_are_left_out():
    """An answer from before the step that comes after it was flagged makes no second step."""
    for jump in (50 * MS, -50 * MS):
        clock = ClockEstimator()
        steady(clock, 0, 20)
        assert len(steady(clock, 20, 21, offset=jump)) == 1
        assert not exchanges(clock, [19_900 * MS, 19_950 * MS])
        assert clock.refused["late"] == 2
        assert not steady(clock, 21, 25, offset=jump)


def test_absurd_exchanges_are_counted_and_left_out():
    """Stamps out of range, answers before questions, faster than nothing, slower than 5 s."""
    clock = ClockEstimator()
    t = START
    clock.add(column(-1, 2**62), column(t, t), column(t, t), column(t, t))
    clock.add(column(t), column(t), column(t), column(t - 1))
    clock.add(column(t), column(t + 9), column(t + 8), column(t + 20))
    clock.add(column(t), column(t), column(t + 10 * MS), column(t + MS))
    clock.add(column(t), column(t), column(t), column(t + 6 * S))
    assert +clock.refused == {"stamps": 2, "contradictory": 3, "slow": 1}
    assert asked(clock, 0) == [(-UNBOUNDED_NS, UNBOUNDED_NS)]


any_time = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(START, START + 20 * S),
    st.sampled_from([0, 1, 2**61 - 1, 2**61, 2**62, START]),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.lists(st.lists(st.tuples(any_time, any_time, any_time, any_time, st.booleans()), max_size=12), max_size=6),
    st.lists(any_time, max_size=8),
)
def test_whatever_a_peer_says_there_is_an_answer(batches, times):
    """Never an error, and the bounds are never the wrong way round."""
    clock = ClockEstimator()
    for batch in batches:
        for by_us in (True, False):
            rows = np.array([row[:4] for row in batch if row[4] == by_us], np.int64).reshape(-1, 4)
            clock.add(*rows.T, asked_by_us=by_us)
    low, high = clock.bounds(np.array(times, np.int64))
    assert (low <= high).all()
    assert (low >= -UNBOUNDED_NS).all()
    assert (high <= UNBOUNDED_NS).all()


def test_memory_is_bounded_whatever_a_peer_does():
    """A day of exchanges, a flood, and a clock that jumps all the time."""
    clock = ClockEstimator(ClockAssumptions(history_s=100))
    for second in range(2_000):
        exchanges(clock, [second * S])
    assert sum(len(e.blocks) for e in clock._stretches) <= 100
    exchanges(clock, 2_000 * S + np.arange(5_000) * 1_000)
    assert max(len(b.rows) for e in clock._stretches for b in e.blocks) <= MAX_ROWS
    rng = np.random.default_rng(1)
    wild = rng.integers(START, START + S, (5_000, 4))
    assert len(clock.add(*np.sort(wild, axis=1).T)) <= MAX_STEPS_AT_ONCE
    assert clock.refused["too-many"] > 0
    for second in range(2_001, 2_300):
        exchanges(clock, [second * S], offset=int(rng.integers(-S, S)))
    assert clock.step_count > MAX_STRETCHES
    assert len(clock.steps) <= MAX_STRETCHES
    assert sum(len(e.blocks) for e in clock._stretches) <= 100


def test_a_peer_that_lied_is_known_again_when_it_stops():
    """It claims to live in the far future for a second; within the window of reordering it is known again."""
    clock = ClockEstimator()
    steady(clock, 0, 20)
    steady(clock, 20, 21, offset=2**60)
    steady(clock, 21, 40)
    low, high = asked(clock, 35 * S)[0]
    assert low <= 0 <= high
    assert high - low < 200 * US
