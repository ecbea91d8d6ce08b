"""Sequential tests: the error rates that are stated, by simulation; what a pair of ratios makes of the undecided."""

import math

import numpy as np
import pytest

from netprobe.errors import UsageError
from netprobe.judge.reachability import exceeding
from netprobe.judge.sequential import Counted, Running, ShareTest, Verdict, step
from netprobe.model.results import Delay

RUNS = 600
MOST_LOOKS = 3_000


def first_verdict(test, looks):
    """The first verdict of a test that looks are fed to, and the samples behind it."""
    running = Running.start(0)
    for i, counted in enumerate(looks):
        running = step(test, running, counted, i + 1)
        if running.verdict is not Verdict.OPEN:
            break
    return running


def share_of(verdict, test, make, seed):
    """How often, over seeded simulations, a test's first verdict is this one; every simulation must decide."""
    rng = np.random.default_rng(seed)
    verdicts = [first_verdict(test, (make(rng) for _ in range(MOST_LOOKS))).verdict for _ in range(RUNS)]
    assert Verdict.OPEN not in verdicts
    return verdicts.count(verdict) / RUNS


def losing(share, probes):
    def make(rng):
        lost = int(rng.binomial(probes, share))
        return Counted(lost, lost, probes)

    return make


@pytest.mark.parametrize(("fine", "bad"), [(0.01, 0.02), (0.05, 0.2), (0.5, 0.99)])
@pytest.mark.parametrize("probes", [7, 100])
@pytest.mark.parametrize("below", [1.0, 0.5])
def test_a_share_that_is_fine_raises_an_alarm_with_probability_alpha_at_most(fine, bad, probes, below):
    """At the limit itself, and below it; however many probes a look adds."""
    test = ShareTest(fine, bad, alpha=0.05, beta=0.05)
    assert share_of(Verdict.BAD, test, losing(fine * below, probes), seed=1) <= test.alpha


@pytest.mark.parametrize(("fine", "bad"), [(0.01, 0.02), (0.05, 0.2), (0.5, 0.99)])
@pytest.mark.parametrize("probes", [7, 100])
@pytest.mark.parametrize("above", [0.0, 0.5])
def test_a_share_that_is_bad_is_missed_with_probability_beta_at_most(fine, bad, probes, above):
    """At the alternative itself, and halfway from there to 1."""
    test = ShareTest(fine, bad, alpha=0.05, beta=0.05)
    share = bad + above * (1 - bad)
    assert share_of(Verdict.FINE, test, losing(share, probes), seed=2) <= test.beta


def slow(share, probes, lossy=0.0):
    """Looks at delays of which only quantiles are known: 1 or 9 against a limit of 5; lost ones are infinite."""

    def make(rng):
        lost = int(rng.binomial(probes, lossy))
        delays = np.sort(np.where(rng.random(probes - lost) < share, 9, 1))
        everything = [*delays.tolist(), *[None] * lost]
        quantiles = [everything[math.ceil(q * probes) - 1] for q in (0.5, 0.9, 0.99)]
        delay = Delay(int(delays[0]), *quantiles, int(delays[-1]), len(delays), None)
        low, high = exceeding(delay, lost, 5)
        assert low <= int((delays > 5).sum()) + lost <= high
        return Counted(low, high, probes)

    return make


@pytest.mark.parametrize("probes", [100, 1000])
def test_a_quantile_test_keeps_its_error_rates_though_it_sees_quantiles_only(probes):
    """1 % beyond the limit is fine, 2 % is not."""
    test = ShareTest(0.01, 0.02, alpha=0.05, beta=0.05)
    assert share_of(Verdict.BAD, test, slow(0.01, probes), seed=3) <= test.alpha
    assert share_of(Verdict.FINE, test, slow(0.02, probes), seed=4) <= test.beta


def test_lost_probes_exceed_every_delay():
    """2 % lost is a p99 that is infinite."""
    test = ShareTest(0.01, 0.02, alpha=0.05, beta=0.05)
    assert share_of(Verdict.BAD, test, slow(0.0, 100, lossy=0.04), seed=5) >= 1 - test.beta


def test_a_surer_test_takes_more_samples():
    """A tenth of both errors: roughly twice as many probes."""
    looks = [Counted(1, 1, 10)] * 1000
    sure = first_verdict(ShareTest(0.01, 0.05, 0.0005, 0.0005), looks)
    quick = first_verdict(ShareTest(0.01, 0.05, 0.05, 0.05), looks)
    assert quick.verdict is sure.verdict is Verdict.BAD
    assert 0 < quick.decided_by < sure.decided_by


def test_one_bad_look_decides_nothing():
    """Three of ten lost, once, is no proof of 2 % loss: the test goes on."""
    test = ShareTest(0.01, 0.02, 0.001, 0.001)
    assert step(test, Running.start(0), Counted(3, 3, 10), 1).verdict is Verdict.OPEN


def test_undecided_probes_decide_neither_way():
    """Whatever became of them must not matter: 60 of 100 delivered and 40 unknown say nothing about 10 % loss."""
    test = ShareTest(0.1, 0.3, 0.01, 0.01)
    running = first_verdict(test, [Counted(0, 0, 60, undecided=40)] * 100)
    assert running.verdict is Verdict.OPEN
    assert running.samples == 6000
    assert first_verdict(test, [Counted(0, 0, 60)] * 100).verdict is Verdict.FINE


def test_what_was_undecided_for_long_does_not_delay_an_alarm():
    """A test that could not decide for a thousand looks hears of a change as soon as one that is new."""
    test = ShareTest(0.1, 0.3, 0.01, 0.01)
    running = first_verdict(test, [Counted(0, 0, 60, undecided=40)] * 1000)
    looks = 0
    while running.verdict is Verdict.OPEN:
        running = step(test, running, Counted(60, 60, 60, undecided=40), 2000 + looks)
        looks += 1
    assert running.verdict is Verdict.BAD
    assert looks == 1


def test_a_verdict_stands_until_another_test_decides():
    """Hysteresis: after BAD a few good looks do not make it fine, many do."""
    test = ShareTest(0.01, 0.1, 0.001, 0.001)
    running = step(test, Running.start(0), Counted(50, 50, 100), 1)
    assert running.verdict is Verdict.BAD
    after = step(test, running, Counted(0, 0, 20), 2)
    assert (after.verdict, after.samples) == (Verdict.BAD, 20)
    for at in range(3, 10):
        after = step(test, after, Counted(0, 0, 20), at)
    assert after.verdict is Verdict.FINE


def test_a_change_is_dated_where_it_began():
    """Ten good looks, then bad ones: since the end of the tenth, whenever it was decided."""
    test = ShareTest(0.01, 0.1, 1e-9, 1e-9)
    running = Running.start(0)
    for at in range(1, 11):
        running = step(test, running, Counted(0, 0, 5), at)
    assert running.verdict is Verdict.OPEN
    at = 10
    while running.verdict is Verdict.OPEN:
        at += 1
        running = step(test, running, Counted(1, 1, 5), at)
    assert (running.verdict, running.changed_ns) == (Verdict.BAD, 10)
    assert at > 11


def test_no_loss_allowed_means_that_one_lost_probe_decides():
    """A limit of 0 % is refuted by one, and never a division by zero."""
    test = ShareTest(0.0, 0.01, 0.001, 0.001)
    assert step(test, Running.start(0), Counted(1, 1, 1000), 1).verdict is Verdict.BAD
    open_yet = step(test, Running.start(0), Counted(0, 0, 5, undecided=1), 1)
    assert open_yet.verdict is Verdict.OPEN
    assert math.isfinite(open_yet.favour)


@pytest.mark.parametrize(("fine", "bad"), [(0.2, 0.1), (0.1, 0.1), (-0.1, 0.2), (0.0, 1.0), (0.5, 1.1)])
def test_a_test_that_asks_nothing_is_refused(fine, bad):
    """Fine is less than bad, both shares."""
    with pytest.raises(UsageError):
        ShareTest(fine, bad, 0.01, 0.01)


def test_a_ratio_of_a_range_is_that_of_its_sum():
    """low..high of n: the probabilities of all numbers in between, added up."""
    test = ShareTest(0.1, 0.4, 0.01, 0.01)
    n = 12
    expected = math.log(
        sum(math.comb(n, k) * 0.4**k * 0.6 ** (n - k) for k in range(2, 6))
        / sum(math.comb(n, k) * 0.1**k * 0.9 ** (n - k) for k in range(2, 6))
    )
    assert test.log_ratio(2, 5, n) == pytest.approx(expected)
    assert test.log_ratio(3, 3, n) == pytest.approx(3 * math.log(4) + 9 * math.log(0.6 / 0.9))
    assert test.log_ratio(0, n, n) == 0.0


def mean_samples(share, probes=1, seed=21):
    """How many samples the loss test of docs/watch.md takes in the mean to call a share bad."""
    rng = np.random.default_rng(seed)
    test = ShareTest(0.01, 0.02, 0.001, 0.001)
    runs = [first_verdict(test, (losing(share, probes)(rng) for _ in range(50_000))) for _ in range(100)]
    bad = [run.decided_by for run in runs if run.verdict is Verdict.BAD]
    assert len(bad) >= 98
    return sum(bad) / len(bad)


@pytest.mark.parametrize(("share", "documented"), [(0.02, 1800), (0.1, 110), (0.5, 20)])
def test_verdicts_take_as_many_probes_as_documented(share, documented):
    """The figures of docs/watch.md: alpha = beta = 0.001, limit 1 %, factor 2."""
    assert mean_samples(share, probes=1 if share > 0.02 else 20) == pytest.approx(documented, rel=0.2)


@pytest.mark.parametrize(("lost", "samples"), [(1, 11), (0, 2)])
def test_a_dead_path_takes_11_probes_and_one_that_is_back_2(lost, samples):
    """Likewise."""
    running = first_verdict(ShareTest(0.5, 0.99, 0.001, 0.001), [Counted(lost, lost, 1)] * 50)
    assert running.decided_by == samples
