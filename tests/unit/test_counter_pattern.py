"""Counter patterns: what they confirm, what they refuse to confirm, and how seldom they are wrong."""

from itertools import accumulate

import numpy as np
import pytest

from netprobe.errors import UsageError
from netprobe.judge.counter_pattern import (
    ALPHA,
    MAX_BURST,
    BurstPattern,
    PatternVerdict,
    fit_pattern,
    judge_pattern,
    make_pattern,
)


def counts(deltas, start=1000):
    return list(accumulate(map(int, deltas), initial=start))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total", [None, 60, 100, 140])
def test_without_other_traffic_the_rule_is_confirmed(seed, total):
    pattern = make_pattern(seed, total=total)
    result = judge_pattern(pattern, counts(pattern.sizes))
    assert result.verdict is PatternVerdict.CONFIRMED
    assert result.p_value <= ALPHA


def test_a_pattern_has_the_total_and_the_bursts_that_were_asked_for():
    for seed in range(20):
        pattern = make_pattern(seed, slots=14, total=110, largest=16)
        assert (pattern.total, len(pattern.sizes)) == (110, 14)
        assert min(pattern.sizes) >= 0
        assert max(pattern.sizes) <= 16
    assert make_pattern(1) == make_pattern(1) != make_pattern(2)


@pytest.mark.parametrize(
    "wrong", [{"slots": 8}, {"slots": 65}, {"largest": MAX_BURST + 1}, {"total": 5}, {"total": 20}, {"total": 181}]
)
def test_a_pattern_that_could_prove_nothing_or_would_burst_is_refused(wrong):
    with pytest.raises(UsageError):
        make_pattern(1, **wrong)


def test_moderate_tenant_traffic_on_the_same_rule_does_not_hide_us():
    rng = np.random.default_rng(5)
    confirmed = 0
    for seed in range(10):
        pattern = make_pattern(seed)
        confirmed += judge_pattern(pattern, counts(pattern.sizes + rng.poisson(4, 12))).is_confirmed
    assert confirmed == 10


def test_heavy_tenant_traffic_is_undecided_not_confirmed():
    pattern = make_pattern(3)
    noise = np.random.default_rng(9).poisson(5000, 12)
    assert judge_pattern(pattern, counts(pattern.sizes + noise)).verdict is PatternVerdict.UNDECIDED


def test_one_delta_below_our_burst_proves_that_we_missed_the_rule():
    pattern = make_pattern(3)
    deltas = list(pattern.sizes)
    deltas[int(np.argmax(deltas))] -= 1
    assert judge_pattern(pattern, counts(deltas)).verdict is PatternVerdict.NOT_HIT
    assert judge_pattern(pattern, counts([0] * 12)).verdict is PatternVerdict.NOT_HIT


def test_a_counter_that_was_reset_decides_nothing():
    pattern = make_pattern(3)
    values = counts(pattern.sizes)
    assert judge_pattern(pattern, [*values[:5], *(v - 1000 for v in values[5:])]).verdict is PatternVerdict.UNDECIDED


def test_what_was_really_sent_counts_and_not_the_plan():
    pattern = make_pattern(3)
    sent = [max(n - 1, 0) for n in pattern.sizes]
    assert judge_pattern(pattern, counts(sent)).verdict is PatternVerdict.NOT_HIT
    assert judge_pattern(pattern, counts(sent), sent=sent).is_confirmed


def test_a_pattern_without_a_single_probe_confirms_nothing():
    empty = BurstPattern((0,) * 12, 1)
    assert judge_pattern(empty, counts([5] * 12)).verdict is PatternVerdict.UNDECIDED


def test_counts_that_do_not_fit_the_pattern_are_refused():
    with pytest.raises(UsageError, match="slots"):
        judge_pattern(make_pattern(1), [1, 2, 3])
    with pytest.raises(UsageError, match="alpha"):
        judge_pattern(make_pattern(1), counts([0] * 12), alpha=1e-9)


def noise_of(kind, rng, seed):
    """Tenants that never saw the pattern; all deltas are above our bursts, so only the permutation test protects."""
    return {
        "slow": 20 + rng.poisson(2, 12),
        "fast": 20 + rng.poisson(500, 12),
        "trend": 20 + np.arange(12) * 3,
        "bursts": 20 + 200 * rng.integers(0, 2, 12),
        "imitator": 20 + np.array(make_pattern(seed + 10_000).sizes),  # the same sizes in an order of its own
    }[kind]


@pytest.mark.parametrize("kind", ["slow", "fast", "trend", "bursts", "imitator"])
def test_false_confirmations_are_as_rare_as_alpha_says_whatever_the_tenants_do(kind, monkeypatch):
    """400 patterns at alpha = 5 %: 20 false ones on average; more than 40 has a probability below 1e-4."""
    monkeypatch.setattr("netprobe.judge.counter_pattern.PERMUTATIONS", 399)
    rng = np.random.default_rng(17)
    false = sum(
        judge_pattern(make_pattern(seed), counts(noise_of(kind, rng, seed)), alpha=0.05).is_confirmed
        for seed in range(400)
    )
    assert false <= 40


@pytest.mark.parametrize("noise", [0, 5, 40, 150])
def test_a_fitted_pattern_stands_out_of_the_noise_that_it_was_fitted_to(noise):
    rng = np.random.default_rng(3)
    confirmed = 0
    for seed in range(20):
        pattern = fit_pattern(seed, noise)
        confirmed += judge_pattern(pattern, counts(pattern.sizes + rng.poisson(noise, len(pattern.sizes)))).is_confirmed
    assert confirmed >= 18


def test_noise_that_drowns_every_pattern_is_not_worth_a_packet():
    assert fit_pattern(1, 0).total < fit_pattern(1, 100).total
    assert fit_pattern(1, 5_000) is None
