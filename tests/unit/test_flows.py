"""Flows side by side: the one whose leg is broken is named, chance is not, and silence is no answer."""

import numpy as np
import pytest
from support.runs import leg, session

from netprobe.judge.flows import LEVEL, FlowCount, FlowState, chance, states_of
from netprobe.plan.flows import FlowGroup, spread_flows
from netprobe.plan.plans import SessionPlan
from netprobe.service.spreading import flow_verdicts


def verdict_of(counts):
    """What is said of flows with these (received, lost, undecided)."""
    plans = spread_flows(SessionPlan("s", "vm1", "vm2", flows=len(counts)))
    results = [
        session(
            plan.name,
            leg(
                received + lost + undecided,
                received,
                lost,
                last_seen="vm1.backend" if lost else "vm2.guest",
                first_missing="vm2.backend" if lost else None,
            ),
            src_port=61_000 + i,
        )
        for i, (plan, (received, lost, undecided)) in enumerate(zip(plans, counts, strict=True))
    ]
    (verdict,) = flow_verdicts([FlowGroup("s", 0, len(counts))], plans, results)
    return verdict


def test_one_broken_leg_is_named_with_its_port():
    """Flow 3 lost everything, the others nothing."""
    verdict = verdict_of([(20, 0, 0)] * 3 + [(0, 20, 0)] + [(20, 0, 0)] * 12)
    assert verdict.is_failing
    assert not verdict.is_open
    assert verdict.text() == ("15 of 16 flows pass; flow 3 (source port 61003) lost 20 of 20; the others 0 of 300")
    said = verdict.to_json()
    assert (said["flows"], said["passes"], said["fails"], said["failing"]) == (16, 15, 1, [3])
    low, high = said["failing_interval_95"]
    assert 0 < low < 1 / 16 < high < 0.4
    row = verdict.rows[3].to_json()
    assert (row["state"], row["src_port"], row["loss_ratio"]) == ("fails", 61_003, 1.0)
    assert (row["last_seen"], row["first_missing"]) == ("vm1.backend", "vm2.backend")


def test_all_flows_that_pass_leave_an_interval():
    """None of 16 failed: that less than a fifth of the legs is broken is all that 16 flows can prove."""
    verdict = verdict_of([(20, 0, 0)] * 16)
    assert verdict.text() == "16 of 16 flows pass"
    assert verdict.failing_interval_95[0] == 0
    assert verdict.failing_interval_95[1] == pytest.approx(0.206, abs=0.001)


def test_loss_that_all_flows_share_is_no_leg():
    """5 % everywhere: all pass."""
    verdict = verdict_of([(19, 1, 0)] * 16)
    assert verdict.to_json()["failing"] == []


def test_a_flow_that_loses_more_than_the_others_differs():
    """Half of its probes; the others none."""
    verdict = verdict_of([(20, 0, 0)] * 7 + [(10, 10, 0)])
    assert verdict.rows[7].state is FlowState.LOSSY
    assert verdict.is_failing


def test_half_of_the_legs_may_be_broken():
    """Eight of sixteen: each of them differs from all the others together."""
    verdict = verdict_of([(20, 0, 0), (0, 20, 0)] * 8)
    assert verdict.numbers(FlowState.FAILS) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert verdict.text().startswith("8 of 16 flows pass; flow 1 (source port 61001) lost 20 of 20;")
    assert "4 more of them; the others 0 of 160" in verdict.text()


def test_nothing_at_all_is_a_path_that_is_down():
    """No flow differs, all fail."""
    verdict = verdict_of([(0, 20, 0)] * 4)
    assert verdict.numbers(FlowState.FAILS) == [0, 1, 2, 3]


def test_one_lost_probe_of_one_is_a_suspicion():
    """A flow of TCP is one SYN: chance may have taken it."""
    verdict = verdict_of([(1, 0, 0)] * 15 + [(0, 1, 0)])
    assert verdict.rows[15].state is FlowState.SUSPECT
    assert not verdict.is_failing
    assert verdict.is_open
    assert verdict.text() == "15 of 16 flows pass; of 1 nobody can say: send more"


@pytest.mark.parametrize("count", [(0, 0, 20), (0, 0, 0), (0, 5, 15)])
def test_a_flow_of_which_nobody_can_say_is_unknown(count):
    """Unobserved is never lost; what was not sent says nothing."""
    verdict = verdict_of([(20, 0, 0), (20, 0, 0), count])
    assert verdict.rows[2].state is FlowState.UNKNOWN
    assert verdict.is_open
    assert verdict.failing_interval_95[1] > verdict_of([(20, 0, 0)] * 3).failing_interval_95[1]


def test_results_of_a_guest_that_moved_are_one_flow():
    """A session whose path changed has several results."""
    plans = spread_flows(SessionPlan("s", "vm1", "vm2", flows=2))
    results = [session("s#0", leg(5, 5)), session("s#0", leg(7, 6, 1)), session("s#1", leg(12, 12))]
    (verdict,) = flow_verdicts([FlowGroup("s", 0, 2)], plans, results)
    assert [(r.sent, r.count.received, r.count.lost) for r in verdict.rows] == [(12, 11, 1), (12, 12, 0)]


def test_the_test_is_fishers():
    """Against the four-field table worked out by hand: 1/70 for 4 of 4 against 0 of 4."""
    assert chance(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert chance(0, 4, 4, 4) == 1
    assert chance(2, 3, 1, 5) == pytest.approx((3 * 5 + 1) / 56)


@pytest.mark.parametrize("loss", [0.01, 0.1, 0.5])
def test_flows_that_are_alike_are_rarely_told_apart(loss):
    """1,000 simulated runs of 16 equal flows: at most LEVEL of them blame one."""
    rng = np.random.default_rng(9)
    wrong = 0
    for lost in rng.binomial(20, loss, (1000, 16)).tolist():
        states = states_of([FlowCount(20 - n, n, 0) for n in lost])
        wrong += bool({FlowState.FAILS, FlowState.LOSSY} & set(states))
    assert wrong <= LEVEL * 1000
