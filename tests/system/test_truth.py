"""Truth tests: a known fault goes in, and netprobe reports that, there, and nothing else.

Network: vm1 and vm2 on hv1's userspace Open vSwitch; the relay that makes the fault is spliced into one segment of
vm1 -> vm2 and keeps a log of what it really did to each probe.
"""

import numpy as np
import pytest
from support.truth_checks import COUNT, MS, US, check_fault, first_arrivals, log_of, probe, run

from netprobe.lab import control
from netprobe.model.points import Vantage

pytestmark = [pytest.mark.system, pytest.mark.alone(reason="delays are held against a log to some microseconds")]

# Segment of the fault, and the segment that the relay becomes.
PLACES = {
    "vm1.guest..vm1.backend": "vm1.relay..vm1.backend",
    "vm1.backend..vm2.backend": "vm1.backend..vm1.relay",
    "vm2.backend..vm2.guest": "vm2.backend..vm2.relay",
}
FAULTS = {
    "loss 2 %": {"loss": 0.02},
    "delay 200 us": {"delay_ns": 200 * US},
    "delay 1 ms": {"delay_ns": MS},
    "delay 10 ms": {"delay_ns": 10 * MS},
    "duplicate 3 %": {"duplicate": 0.03},
    "reorder 3 %": {"reorder": 0.03},
}


@pytest.fixture
def warm(lab):
    """A throw-away run, so that ARP and the datapath's caches are as they are in the middle of a run."""
    return run(probe(count=20))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("segment", PLACES)
def test_what_goes_into_a_segment_is_what_is_reported_there(warm, segment, fault):
    """Lost set, duplicated ids and reordered set equal the log; delay agrees probe by probe; nobody else is blamed."""
    put = control.fault_set(segment, seed=11, expose=True, **FAULTS[fault])
    try:
        outcome = run(probe())
        rows = log_of(put, outcome, COUNT)
    finally:
        control.fault_clear()
    check_fault(outcome, rows, PLACES[segment], FAULTS[fault])


@pytest.mark.parametrize("segment", PLACES)
def test_a_clean_run_blames_nobody(warm, segment):
    """A relay that changes nothing: no loss, no duplicate, no reordering anywhere, on either leg."""
    control.fault_set(segment, expose=True)
    try:
        (result,) = run(probe()).results
    finally:
        control.fault_clear()
    assert result.forward.delivered == COUNT
    assert result.returned.delivered == COUNT
    for leg in (result.forward, result.returned):
        assert not any(s.lost or s.duplicated or s.reordered for s in leg.segments)


@pytest.mark.parametrize("delay_ns", [200 * US, MS, 10 * MS])
def test_delay_across_the_vswitch_is_what_was_put_in(warm, delay_ns):
    """Half of the probes are delayed in one run; without their logged delay the medians of the halves agree."""
    put = control.fault_set("vm1.backend..vm2.backend", delay_ns=delay_ns, share=0.5, seed=5)
    try:
        outcome = run(probe())
        rows = log_of(put, outcome, COUNT)
    finally:
        control.fault_clear()
    start, _ = first_arrivals(outcome, "vm1.backend")
    end, _ = first_arrivals(outcome, "vm2.backend")
    logged = {int(r["seq"]): (int(r["t_out_ns"] - r["t_in_ns"]), int(r["delay_ns"])) for r in rows}
    rest = {s: end[s] - start[s] - logged[s][0] for s in end}
    halves = [np.median([v for s, v in rest.items() if (logged[s][1] > 0) == late]) for late in (False, True)]
    assert 300 < sum(1 for _, planned in logged.values() if planned) < 700
    assert abs(halves[0] - halves[1]) <= max(20 * US, 0.05 * max(halves))


def test_an_answer_is_never_a_duplicate_of_its_probe(warm):
    """Each leg has segments and statistics of its own; 1,000 probes with 1,000 answers are no duplicate."""
    (result,) = run(probe()).results
    forward, back = result.forward.segments, result.returned.segments
    assert [s.id for s in forward] == [
        "vm1.guest..vm1.backend",
        "vm1.backend..vm2.backend",
        "vm2.backend..vm2.guest",
    ]
    assert [s.id for s in back] == ["vm2.guest..vm2.backend", "vm2.backend..vm1.backend", "vm1.backend..vm1.guest"]
    assert all(s.duplicated == 0 and s.received == COUNT for s in (*forward, *back))


def test_a_fault_on_the_way_back_is_not_a_fault_on_the_way_there(warm):
    """Answers are lost: every probe is delivered or unobserved, none is lost, and the return leg names the segment."""
    control.fault_set("vm2.backend..vm1.backend", loss=0.1, seed=3)
    try:
        (result,) = run(probe()).results
    finally:
        control.fault_clear()
    assert result.forward.lost == 0
    assert {s.id for s in result.returned.segments if s.lost} == {"vm2.backend..vm1.backend"}
    assert result.forward.delivered + result.forward.unobserved == COUNT


def test_two_vantages_agree_about_the_vswitch(warm):
    """Guest and bypass probes, interleaved in one run, see the same p50 across the vswitch."""
    guest = probe(name="guest", rate_pps=500)
    bypass = probe(name="bypass", vantage=Vantage.BYPASS, rate_pps=500)
    one, two = run(guest, bypass).results
    first = next(s for s in one.forward.segments if s.id == "vm1.backend..vm2.backend").delay.p50
    second = next(s for s in two.forward.segments if s.id == "bypass.backend..vm2.backend").delay.p50
    assert abs(first - second) <= max(30 * US, 0.3 * max(first, second))
