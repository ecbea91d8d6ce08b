"""Findings out of what was proved, what should be, and what the model says."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from netprobe.judge.findings import Evidence, FindingKind, Judged, judge_steps
from netprobe.judge.inherent import FRAGMENTS, REJECT, ROUTER_ADVERTISEMENTS, SOLICITATIONS, inherent_difference
from netprobe.judge.proof import Outcome
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.packets import (
    Check,
    ConnState,
    Decision,
    EnforcementPoint,
    Fragment,
    Kind,
    Neighbour,
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
    assert finding.alike == ("s1#0", "s2#0", "s3#0", "s4#0")
    told = finding.to_json()
    assert (told["repeats"], told["alike"]) == (4, ["s1#0", "s2#0", "s3#0", "s4#0"])


ICMP = replace(PACKET, protocol=1, src_port=0, dst_port=0, icmp_type=8)
SIX = {"src_ip": ip_address("fd00::1"), "dst_ip": ip_address("fd00::2")}


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (PACKET, replace(PACKET, dst_port=54), 2),
        (PACKET, replace(PACKET, protocol=6), 2),
        (ICMP, replace(ICMP, icmp_type=13), 2),
        (replace(PACKET, src_port=53, dst_port=None), replace(PACKET, src_port=54, dst_port=None), 2),
        (PACKET, replace(PACKET, src_port=61001), 1),
        (PACKET, replace(PACKET, **SIX), 1),
    ],
)
def test_packets_of_another_class_are_another_finding_and_those_of_another_family_are_not(one, other, found):
    steps = [judged(DENY, Outcome.PASSED, packet=packet, scenario=i) for i, packet in enumerate((one, other))]
    assert len(kinds(*steps)) == found


@pytest.mark.parametrize("what", ["place", "rule", "cookie"])
def test_what_other_rules_decide_is_another_finding(what):
    """With iptables there are no cookies: chains and rules tell causes apart."""
    answers = [ModelAnswer(True, **{what: name}) for name in ("one", "other", "one")]
    steps = [judged(DENY, Outcome.PASSED, model=answer, scenario=i) for i, answer in enumerate(answers)]
    first, second = judge_steps(steps, "bridge", {}).found
    assert (first.alike, second.alike) == (("s2#0",), ())


def test_what_could_not_be_judged_for_another_reason_is_another_finding():
    steps = [judged(DENY, Outcome.OPEN, scenario=i) for i in range(2)]
    assert len(judge_steps(steps, "ovs-ct", {(0, 0): "no way in", (1, 0): "not absorbed"}).found) == 2


def test_only_a_contradiction_or_nothing_proved_hides_the_rest_of_a_scenario():
    leak = judged(DENY, Outcome.PASSED, steps=2, number=1)
    otherwise = judged(ALLOW, Outcome.PASSED, steps=2, model=ModelAnswer(False))
    misplaced = judged(DENY, Outcome.DROPPED, steps=2, model=ModelAnswer(False, point=OUT_A))
    untold = judged(replace(DENY, is_rejected=True), Outcome.DROPPED, steps=2)
    assert kinds(otherwise, leak, backend="ovn") == [FindingKind.LEAK, FindingKind.DIVERGENCE]
    assert kinds(misplaced, leak, backend="ovn") == [FindingKind.LEAK, FindingKind.WRONG_PLACE]
    assert kinds(untold, leak, backend="ovn") == [FindingKind.LEAK, FindingKind.UNPROVEN]
    assert kinds(judged(DENY, Outcome.OPEN, steps=2), leak) == [FindingKind.UNPROVEN]
    assert kinds(judged(ALLOW, Outcome.DROPPED, steps=2), leak) == [FindingKind.OVERBLOCK]


@pytest.mark.parametrize("backend", ["ovs-ct", "bridge", "ovn"])
def test_a_sender_that_is_told_of_what_should_be_dropped_silently_is_a_divergence(backend):
    told = replace(SEEN, rejected=2)
    (finding,) = judge_steps((judged(DENY, Outcome.DROPPED, evidence=told),), backend, {}).found
    assert finding.kind is FindingKind.DIVERGENCE
    assert finding.detail == "its sender is told, where the policy drops silently"
    elsewhere = ModelAnswer(False, point=OUT_A)
    (finding,) = judge_steps((judged(DENY, Outcome.DROPPED, evidence=told, model=elsewhere),), backend, {}).found
    assert "its sender is told" in finding.detail
    assert "at a egress instead of b ingress" in finding.detail
    assert kinds(judged(replace(DENY, is_rejected=True), Outcome.DROPPED, evidence=told), backend=backend) == []


def test_early_drops_of_ovn_do_not_hide_that_the_sender_is_told():
    early = ModelAnswer(False, point=OUT_A)
    scenario = Scenario(0, "s0", "a", "b", (Step(True, PACKET, ConnState.INVALID, DENY),), frozenset())
    one = Judged(scenario, 0, Outcome.DROPPED, replace(SEEN, rejected=1), early)
    assert kinds(one, backend="ovn") == [FindingKind.DIVERGENCE]


@pytest.mark.parametrize("said", [None, ModelAnswer(None), ModelAnswer(False), ModelAnswer(True)])
def test_a_dropped_fragment_is_excused_only_where_the_rules_do_not_say_that_it_passes(said):
    step = Step(True, replace(PACKET, fragment=Fragment.FIRST), ConnState.NEW, ALLOW)
    is_excused = said is None or said.is_allowed is not True
    assert inherent_difference(step, "ovn", is_passed=False, model=said) is (FRAGMENTS if is_excused else None)
    assert inherent_difference(step, "ovn-kernel", is_passed=False, model=said) is None
    assert inherent_difference(step, "ovs-kernel", is_passed=False, model=said) is None


@pytest.mark.parametrize("backend", ["ovn", "ovn-kernel"])
def test_passing_discovery_is_excused_only_where_the_rules_do_not_say_that_it_is_dropped(backend):
    base = replace(PACKET, protocol=58, src_port=0, dst_port=0, kind=Kind.ND, **SIX)
    advert = replace(base, icmp_type=134)
    claim = replace(base, icmp_type=135, neighbour=Neighbour("fa:16:3e:00:00:09", SIX["dst_ip"]))
    for packet, difference in ((advert, ROUTER_ADVERTISEMENTS), (claim, SOLICITATIONS)):
        result = judge_steps((judged(DENY, Outcome.PASSED, packet=packet, model=ModelAnswer(True)),), backend, {})
        assert list(result.differences) == [difference]
        steps = judged(DENY, Outcome.PASSED, packet=packet, model=ModelAnswer(False))
        assert kinds(steps, backend=backend) == [FindingKind.LEAK]


def test_the_kernels_datapath_has_the_differences_of_its_switch_but_not_of_userspace():
    early = ModelAnswer(False, point=OUT_A)
    scenario = Scenario(0, "s0", "a", "b", (Step(True, PACKET, ConnState.INVALID, DENY),), frozenset())
    assert kinds(Judged(scenario, 0, Outcome.DROPPED, SEEN, early), backend="ovn-kernel") == []
    reject = judged(replace(DENY, is_rejected=True), Outcome.DROPPED)
    assert kinds(reject, backend="ovs-kernel") == []
    assert kinds(reject, backend="ovn-kernel") == [FindingKind.UNPROVEN]
    fragment = replace(PACKET, fragment=Fragment.FIRST)
    assert kinds(judged(ALLOW, Outcome.DROPPED, packet=fragment), backend="ovn-kernel") == [FindingKind.OVERBLOCK]


def test_the_very_rule_decides_wherever_its_stage_is_put():
    same = ModelAnswer(False, point=EnforcementPoint("b", Stage.ANTI_SPOOFING), rule_id="default deny")
    assert kinds(judged(DENY, Outcome.DROPPED, model=same)) == []
    assert kinds(judged(DENY, Outcome.DROPPED, model=replace(same, rule_id="x"))) == [FindingKind.WRONG_PLACE]


def test_a_sender_that_is_told_is_not_hidden_behind_another_divergence_of_the_same_rule():
    steps = [
        judged(DENY, Outcome.DROPPED, model=ModelAnswer(True), scenario=i, evidence=replace(SEEN, rejected=i))
        for i in range(2)
    ]
    assert kinds(*steps) == [FindingKind.DIVERGENCE] * 2
