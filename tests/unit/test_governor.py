"""The governor on a virtual clock: when probing backs off, how far, and when it comes back."""

import itertools
import math

import pytest

from netprobe.errors import UsageError
from netprobe.host.device_counters import parse_packets
from netprobe.host.load import parse_times
from netprobe.inject.pacer import is_held
from netprobe.judge.governor import BUSY_PPS, SHARES, Governor, LoadSample, PortLoad
from netprobe.model.load import DEFAULT_LIMITS, LoadLimits
from netprobe.plan.plans import parse_plan

S = 1_000_000_000
FINE = {"cpu": 0.2, "pressure": 0.1}
BUSY = {"cpu": 0.99, "pressure": 0.1}
BETWEEN = {"cpu": 0.9, "pressure": 0.1}


def shares(loads, *, limits=DEFAULT_LIMITS, gap_ns=S // 2):
    """The share after each sample."""
    governor = Governor(limits)
    found = []
    for number, load in enumerate(loads):
        governor.take(LoadSample(number * gap_ns, **load))
        found.append(governor.share)
    return found


def test_a_short_peak_changes_nothing():
    assert set(shares([FINE, BUSY, FINE, BUSY, FINE, BUSY])) == {1.0}


def test_half_as_many_at_each_step_down_to_a_trickle():
    """Two samples beyond the limit are one step; the last is a sixteenth, however long it lasts."""
    assert shares([BUSY] * 12) == [1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625]
    assert shares([{"cpu": 1.0, "pressure": 1.0, "drops_pps": 1e6}] * 100)[-1] == 0.0625


@pytest.mark.parametrize("count", [32, 100, 1_000])
def test_a_trickle_is_some_probes_of_every_session_spread_over_it(count):
    """Whatever number a stretch begins with: there is no stretch of 32 probes without one."""
    sent = [number for number in range(count) if not is_held(number, SHARES[-1])]
    assert sent
    assert max(b - a for a, b in itertools.pairwise([-1, *sent, count])) <= 32


def test_at_the_trickle_nothing_more_is_reported():
    """A step is told once, not again with each look."""
    governor = Governor(LoadLimits())
    told = [step for t in range(50) if (step := governor.take(LoadSample(t * S, **BUSY)))]
    assert [step.share for step in told] == list(SHARES[1:])


def test_two_seconds_without_trouble_are_a_step_back():
    found = shares([BUSY] * 4 + [FINE] * 9)
    assert found[3] == 0.25
    assert found[4:] == [0.25] * 4 + [0.5] * 4 + [1.0]


def test_just_below_the_limit_nothing_changes():
    """Else probing would swing: it backs off, the load falls, it comes back, the load rises."""
    assert shares([BUSY] * 2 + [BETWEEN] * 20)[2:] == [0.5] * 20


@pytest.mark.parametrize(
    ("load", "why"),
    [
        ({"cpu": 0.96}, "processors were busy 96 %"),
        ({"cpu": 0.5, "pressure": 0.81}, "waited for a processor 81 %"),
        ({"cpu": 0.5, "drops_pps": 3.0}, "our rings dropped 3 frames/s"),
        ({"cpu": 0.5, "ports": {"vm1": PortLoad(ours=3_000, tenants=2_000)}}, "60 % of the packets at vm1 were ours"),
    ],
)
def test_whatever_limit_is_passed_is_named(load, why):
    governor = Governor(LoadLimits())
    steps = [governor.take(LoadSample(t, **load)) for t in (0, S)]
    told = [step for step in steps if step]
    assert len(told) == 1 + ("drops_pps" in load)  # drops are not waited for
    assert why in told[0].why
    assert "limit" in told[0].why
    assert told[0].share == 0.5


@pytest.mark.parametrize(
    "load",
    [
        {"cpu": 0.95},
        {"cpu": 0.5, "pressure": None},
        {"cpu": 0.5, "ports": {"vm1": PortLoad(ours=100_000, tenants=BUSY_PPS - 1)}},
        {"cpu": 0.5, "ports": {"vm1": PortLoad(ours=1_000, tenants=1_000)}},
    ],
)
def test_at_the_limit_or_where_nobody_is_disturbed_all_is_sent(load):
    assert set(shares([load] * 10)) == {1.0}


def test_the_limits_are_those_that_were_set():
    assert shares([{"cpu": 0.3}] * 2, limits=LoadLimits(cpu=0.2))[-1] == 0.5
    assert shares([BUSY] * 10, limits=LoadLimits(is_on=False)) == [1.0] * 10


def test_every_share_is_half_of_the_one_before():
    assert all(math.isclose(a / 2, b) for a, b in itertools.pairwise(SHARES))
    assert SHARES[-1] == 1 / 16


STAT = "cpu  {} 0 100 {} 50 0 0 0 999 0\ncpu0 1 2 3 4\n"
PSI = "some avg10=1.00 avg60=1.00 avg300=1.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


def test_load_is_the_difference_of_two_looks():
    """Busy 75 of 100 ticks, and 250 ms waited of a second; iowait is idle, and guests' time is not counted twice."""
    before = parse_times(STAT.format(100, 1000), PSI.format(1_000_000), 0)
    after = parse_times(STAT.format(175, 1025), PSI.format(1_250_000), S)
    assert after.cpu_since(before) == 0.75
    assert after.pressure_since(before) == 0.25
    assert before.cpu_since(before) == 0
    assert parse_times(STAT.format(1, 1), "", S).pressure_since(before) is None


def test_packets_of_devices():
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
        "    lo:     100       2    0    0    0     0  0         0      100       3    0    0    0     0       0\n"
        "vm1-p:1 5 0 0 0 0 0 0 1 7 0 0 0 0 0 0\n"
        "odd: x y\n"
    )
    assert parse_packets(text) == {"lo": 5, "vm1-p": 12}


PLAN = '[[session]]\nsrc = "vm1"\ndst = "vm2"\n'


def test_a_plan_sets_the_limits():
    text = '[governor]\ncpu = "50%"\npressure = "40%"\nshare = "10%"\ndrops = 7\nenabled = false\n' + PLAN
    assert parse_plan(text, "p.toml").governor == LoadLimits(False, 0.5, 0.4, 0.1, 7.0)
    assert parse_plan(PLAN, "p.toml").governor == LoadLimits()


@pytest.mark.parametrize(
    ("line", "told"),
    [('cpu = "0%"', "governor.cpu"), ('cpus = "5%"', "cpu"), ("drops = -1", "drops"), ('cpu = "101%"', "cpu")],
)
def test_a_limit_that_makes_no_sense_is_refused(line, told):
    with pytest.raises(UsageError, match=told):
        parse_plan(f"[governor]\n{line}\n{PLAN}", "p.toml")
