"""Medians of pairs and their bootstrap intervals: known answers, and how often they are right."""

import numpy as np
import pytest

from netprobe.judge.paired import bootstrap_median, hodges_lehmann, paired_ratio


def test_equal_pairs_have_a_ratio_of_one_without_doubt():
    estimate = paired_ratio([3.0, 5.0, 7.0], [3.0, 5.0, 7.0])
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_a_drift_of_both_halves_cancels_out():
    peer = np.linspace(1.0, 100.0, 20)
    estimate = paired_ratio(2 * peer, peer)
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)


def test_two_values_are_their_own_interval():
    estimate = bootstrap_median([1.0, 2.0])
    assert (estimate.value, estimate.low, estimate.high, estimate.half_width) == (1.5, 1.0, 2.0, 0.5)


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(5).normal(size=12)
    assert bootstrap_median(values, seed=3) == bootstrap_median(values, seed=3)


def test_against_the_exact_distribution_of_a_bootstrapped_median():
    """For n = 3 the bootstrap's median is the k-th value with probabilities 7/27, 13/27, 7/27 (all 27 resamples)."""
    estimate = bootstrap_median([1.0, 10.0, 100.0], confidence=0.2)
    # t(2) at 10 % is -0.2887 * sqrt(3/2): the normal below it is 0.36, between 7/27 and 20/27: the middle value
    assert (estimate.low, estimate.high) == (10.0, 10.0)
    estimate = bootstrap_median([1.0, 10.0, 100.0], confidence=0.95)
    assert (estimate.low, estimate.high) == (1.0, 100.0)


@pytest.mark.parametrize("slices", [8, 12, 20])
@pytest.mark.parametrize("noise", ["normal", "skewed"])
def test_a_true_ratio_of_one_is_inside_in_about_95_of_100_trials(slices, noise):
    rng = np.random.default_rng(1)
    inside, trials = 0, 400
    for trial in range(trials):
        shared = rng.lognormal(sigma=0.5, size=slices)  # what the machine does to both halves of a pair
        draw = {
            "normal": lambda: np.exp(rng.normal(scale=0.1, size=slices)),
            "skewed": lambda: 1 + rng.exponential(scale=0.3, size=slices),
        }[noise]
        estimate = paired_ratio(shared * draw(), shared * draw(), seed=trial)
        inside += estimate.low <= 1.0 <= estimate.high
    assert 0.93 <= inside / trials <= 0.995


def test_a_ratio_that_is_not_one_is_told_apart():
    rng = np.random.default_rng(2)
    estimate = paired_ratio(1.2 * np.exp(rng.normal(scale=0.05, size=20)), np.exp(rng.normal(scale=0.05, size=20)))
    assert estimate.low > 1.0


DEPRESSION = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]) - np.array(
    [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
)
"""Hollander and Wolfe, table 3.1: depression before and after a tranquilizer, nine patients."""


def test_hodges_lehmann_of_the_books_example():
    """Examples 3.3 and 3.4 there: 0.46, and the interval from 0.010 to 0.786."""
    estimate = hodges_lehmann(DEPRESSION)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.46, 0.010, 0.786))


def test_five_values_have_no_interval_of_95_percent():
    estimate = hodges_lehmann([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (estimate.value, estimate.low, estimate.high) == (3.0, 1.0, 5.0)


@pytest.mark.parametrize("rounds", [6, 12, 30, 61])
def test_no_shift_is_inside_the_interval_of_signed_ranks_in_95_of_100_trials(rounds):
    """The coverage is never below 95 %, whatever the tails; for few values it is a good deal above."""
    rng = np.random.default_rng(4)
    estimates = [hodges_lehmann(rng.standard_t(2, size=rounds)) for _ in range(800)]
    inside = np.mean([e.low <= 0 <= e.high for e in estimates])
    assert 0.94 <= inside <= (0.985 if rounds == 6 else 0.97)
