"""What probing does to tenants: rounds of slices in, shifts and verdicts out."""

import itertools

import numpy as np
import pytest

from netprobe.cli.bench import order_of
from netprobe.cli.main import build_parser
from netprobe.errors import UsageError
from netprobe.judge.harm import Arm, TenantSlice, Verdict, order_of_arms, shifts_of, verdict_of


def slice_of(scale):
    return TenantSlice(requests=1000, p50_ns=50_000 * scale, p99_ns=100_000 * scale, bytes_per_s=1e9 / scale)


def rounds_of(worse, *, noise, count=20, seed=3):
    """Slices in which everything is `worse` times as bad with probing, on a machine that drifts a lot."""
    rng = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(rng.normal(scale=0.3, size=count)))

    def draw():
        return float(np.exp(rng.normal(scale=noise)))

    return [
        {
            Arm.QUIET: slice_of(d * draw()),
            Arm.AGAIN: slice_of(d * draw()),
            Arm.PROBING: slice_of(d * draw() * worse),
        }
        for d in drift
    ]


@pytest.mark.parametrize(
    ("worse", "noise", "verdict"),
    [
        (1.0, 0.01, Verdict.WITHIN),
        (1.2, 0.01, Verdict.BEYOND),
        (1.05, 0.01, Verdict.OPEN),  # at the limit nobody can say
        (1.0, 0.5, Verdict.OPEN),  # too noisy
    ],
)
def test_verdict(worse, noise, verdict):
    shifts = shifts_of(rounds_of(worse, noise=noise), limit=0.05)
    assert verdict_of(shifts) is verdict


def test_a_true_shift_is_found_in_latency_and_throughput_alike():
    for shift in shifts_of(rounds_of(1.2, noise=0.01), limit=0.05):
        assert shift.shift.low <= 0.2 <= shift.shift.high, shift.metric.name
        assert shift.noise.low <= 0 <= shift.noise.high, shift.metric.name
        assert shift.shift.high - shift.shift.low < 0.05


def test_five_rounds_prove_nothing():
    assert verdict_of(shifts_of(rounds_of(1.0, noise=0.001, count=5), limit=0.05)) is Verdict.OPEN
    assert verdict_of(shifts_of(rounds_of(1.0, noise=0.001, count=6), limit=0.05)) is Verdict.WITHIN


def test_one_metric_beyond_the_limit_is_enough():
    rounds = rounds_of(1.0, noise=0.001)
    for one in rounds:
        p = one[Arm.PROBING]
        one[Arm.PROBING] = TenantSlice(p.requests, p.p50_ns, p.p99_ns * 2, p.bytes_per_s)
    shifts = shifts_of(rounds, limit=0.05)
    assert [s.verdict for s in shifts] == [Verdict.WITHIN, Verdict.BEYOND, Verdict.WITHIN]
    assert verdict_of(shifts) is Verdict.BEYOND


def test_no_place_in_a_round_favours_an_arm():
    orders = order_of_arms(6)
    assert sorted(orders, key=str) == sorted(itertools.permutations(Arm), key=str)
    for place in range(3):
        assert [sum(order[place] is arm for order in orders) for arm in Arm] == [2, 2, 2]
    assert orders[1] == orders[0][::-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("vm1",), "SRC without DST"),
        (("--slices", "1"), "--slices: got 1"),
        (("--slice", "1ms"), "--slice"),
        (("--rate", "0"), "--rate: got 0"),
        (("--vantage", "nowhere"), "nowhere"),
        (("--tenant-cpus", "9999"), "--tenant-cpus"),
    ],
)
def test_what_makes_no_sense_is_refused(words, told):
    with pytest.raises(UsageError, match=told):
        order_of(build_parser().parse_args(["bench", "harm", *words]))


def test_each_slice_with_probing_has_probes_to_spare():
    order = order_of(build_parser().parse_args(["bench", "harm", "--rate", "500", "--slice", "2s"]))
    (session,) = order.plan.sessions
    assert session.count == 500 * 2.4
    assert (session.src, session.dst) == order.tenants == ("vm1", "vm3")
