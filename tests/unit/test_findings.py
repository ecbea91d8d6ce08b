"""Findings out of what was proved, what should be, and what the model says."""

from dataclasses import replace
from ipaddress import ip_address

from netprobe.judge.findings import Evidence, FindingKind, Judged, judge_steps
from netprobe.judge.inherent import FRAGMENTS, REJECT
from netprobe.judge.proof import Outcome
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.packets import (
    Check,
    ConnState,
    Decision,
    EnforcementPoint,
    Fragment,
    Kind,
    Packet,
    Scenario,
    Stage,
    Step,
)

PACKET = Packet("fa:16:3e:00:00:01", "fa:16:3e:00:00:02", ip_address("10.0.0.1"), ip_address("10.0.0.2"), 17, 61000, 53)
IN_B = EnforcementPoint("b", Stage.INGRESS)
OUT_A = EnforcementPoint("a", Stage.EGRESS)
ALLOW = Decision((Check(IN_B, True, "dns[0]", "ingress udp dport 53"),))
DENY = Decision((Check(IN_B, False, "default deny", "nothing allows it"),))
SEEN = Evidence(3, 0, 0, "a.backend", "b.backend")


def judged(decision, outcome, *, model=None, steps=1, number=0, packet=PACKET, scenario=0, evidence=SEEN):
    made = tuple(Step(True, packet, ConnState.NEW, decision) for _ in range(steps))
    return Judged(Scenario(scenario, f"s{scenario}", "a", "b", made, frozenset()), number, outcome, evidence, model)


def kinds(*steps, backend="ovs-ct"):
    return [finding.kind for finding in judge_steps(steps, backend, {}).found]


def test_what_becomes_as_it_should_is_no_finding():
    assert kinds(judged(ALLOW, Outcome.PASSED), judged(DENY, Outcome.DROPPED, scenario=1)) == []


def test_what_passes_and_should_not_is_a_leak_and_the_reverse_an_overblock_worst_first():
    result = judge_steps((judged(ALLOW, Outcome.DROPPED), judged(DENY, Outcome.PASSED, scenario=1)), "ovs-ct", {})
    leak, overblock = result.found
    assert (leak.kind, overblock.kind) == (FindingKind.LEAK, FindingKind.OVERBLOCK)
    assert leak.expected == "be dropped at b ingress"
    assert overblock.rule_id == "dns[0]"
    assert overblock.to_json()["evidence"]["segment"] == "a.backend..b.backend"
    assert result.truth == {"s0#0": False, "s1#0": True}


def test_what_is_not_decided_is_unproven_with_the_reason():
    step = judged(DENY, Outcome.OPEN)
    result = judge_steps((step,), "ovs-ct", {(0, 0): "absorption before b could not be confirmed"})
    assert [(f.kind, f.detail) for f in result.found] == [
        (FindingKind.UNPROVEN, "absorption before b could not be confirmed")
    ]
    assert result.truth == {"s0#0": None}


def test_what_comes_after_a_step_that_went_wrong_is_no_finding_of_its_own():
    steps = [judged(ALLOW, Outcome.DROPPED, steps=3), judged(ALLOW, Outcome.OPEN, steps=3, number=1)]
    assert kinds(*steps) == [FindingKind.OVERBLOCK]


def test_a_drop_at_another_enforcement_point_is_at_the_wrong_place():
    model = ModelAnswer(False, point=OUT_A, rule="default deny", place="table 72")
    assert kinds(judged(DENY, Outcome.DROPPED, model=model)) == [FindingKind.WRONG_PLACE]
    assert kinds(judged(DENY, Outcome.DROPPED, model=replace(model, point=IN_B))) == []


def test_a_model_that_says_otherwise_than_the_packet_is_a_divergence():
    assert kinds(judged(DENY, Outcome.DROPPED, model=ModelAnswer(True))) == [FindingKind.DIVERGENCE]
    assert kinds(judged(ALLOW, Outcome.PASSED, model=ModelAnswer(False))) == [FindingKind.DIVERGENCE]
    assert kinds(judged(ALLOW, Outcome.PASSED, model=ModelAnswer(None))) == []


def test_a_leak_says_whether_the_enforcements_own_rules_agree_with_the_packet():
    same, other = (
        judge_steps((judged(DENY, Outcome.PASSED, model=ModelAnswer(said)),), "ovs-ct", {}).found[0].detail
        for said in (True, False)
    )
    assert "own rules say the same" in same
    assert "differs from its model" in other


def test_what_a_backend_does_by_its_nature_is_a_difference_and_no_finding():
    fragment = replace(PACKET, fragment=Fragment.FIRST)
    result = judge_steps((judged(ALLOW, Outcome.DROPPED, packet=fragment),), "ovn", {})
    assert (result.found, result.differences) == ([], {FRAGMENTS: ["s0#0"]})
    assert kinds(judged(ALLOW, Outcome.DROPPED, packet=fragment), backend="bridge") == [FindingKind.OVERBLOCK]
    assert kinds(judged(DENY, Outcome.PASSED, packet=fragment), backend="ovn") == [FindingKind.LEAK]


def test_what_ovn_does_by_its_nature_is_told_apart_by_what_became_of_the_packet():
    def neighbour(kind):
        return replace(PACKET, protocol=58, src_port=0, dst_port=0, icmp_type=kind, kind=Kind.ND)

    advert, question = neighbour(134), neighbour(135)
    assert kinds(judged(DENY, Outcome.PASSED, packet=advert), backend="ovn") == []
    assert kinds(judged(DENY, Outcome.PASSED, packet=advert), backend="ovs-ct") == [FindingKind.LEAK]
    assert kinds(judged(ALLOW, Outcome.DROPPED, packet=question), backend="ovn") == []
    assert kinds(judged(DENY, Outcome.PASSED, packet=question), backend="ovn") == [FindingKind.LEAK]


def test_what_belongs_to_no_connection_may_be_dropped_early_by_ovn_alone():
    early = ModelAnswer(False, point=OUT_A, place="stage ls_in_acl of net1")
    scenario = Scenario(0, "s0", "a", "b", (Step(True, PACKET, ConnState.INVALID, DENY),), frozenset())
    one = Judged(scenario, 0, Outcome.DROPPED, SEEN, early)
    assert kinds(one, backend="ovn") == []
    assert kinds(one, backend="ovs-ct") == [FindingKind.WRONG_PLACE]


def test_a_rejection_that_nobody_saw_is_unproven_where_the_backend_can_tell_and_a_difference_elsewhere():
    reject = replace(DENY, is_rejected=True)
    assert kinds(judged(reject, Outcome.DROPPED), backend="ovn") == [FindingKind.UNPROVEN]
    assert kinds(judged(reject, Outcome.DROPPED, evidence=replace(SEEN, rejected=1)), backend="ovn") == []
    result = judge_steps((judged(reject, Outcome.DROPPED),), "bridge", {})
    assert (result.found, result.differences) == ([], {REJECT: ["s0#0"]})


def test_findings_of_one_rule_at_one_place_are_told_once_with_their_number():
    steps = [judged(ALLOW, Outcome.DROPPED, scenario=i) for i in range(5)]
    (finding,) = judge_steps(steps, "ovs-ct", {}).found
    assert (finding.repeats, finding.scenario) == (4, 0)


def test_the_very_rule_decides_wherever_its_stage_is_put():
    same = ModelAnswer(False, point=EnforcementPoint("b", Stage.ANTI_SPOOFING), rule_id="default deny")
    assert kinds(judged(DENY, Outcome.DROPPED, model=same)) == []
    assert kinds(judged(DENY, Outcome.DROPPED, model=replace(same, rule_id="x"))) == [FindingKind.WRONG_PLACE]
