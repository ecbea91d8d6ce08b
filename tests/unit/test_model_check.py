"""Reality against model: each way in which the three accounts of a packet can differ, and connections gone stale."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from netprobe.judge.conntrack import ConntrackEntry, FiveTuple
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.model_check import DifferenceKind, compare, stale_entries
from netprobe.judge.stale_connections import find_stale
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.packets import Check, ConnState, Decision, EnforcementPoint, Stage
from netprobe.model.policy import Group, GroupRule, Policy, PolicyPort, Way

IN, OUT = EnforcementPoint("vm2", Stage.INGRESS), EnforcementPoint("vm1", Stage.EGRESS)
PASSES = Decision((Check(OUT, True, "out", "egress any"), Check(IN, True, "web[0]", "ingress tcp 80")))
STOPS = Decision((Check(OUT, True, "out", "egress any"), Check(IN, False, "default deny", "")))
ALLOWS = ModelAnswer(True, host="hv1", place="table 82", rule="ingress any", point=IN)
DROPS = ModelAnswer(False, host="hv1", place="table 82", rule="default deny", point=IN)
SILENT = ModelAnswer(None, detail="no switch")


@pytest.mark.parametrize(
    ("is_passed", "expected", "answer"),
    [(True, PASSES, ALLOWS), (False, STOPS, DROPS), (True, PASSES, SILENT), (False, STOPS, SILENT)],
)
def test_where_all_agree_there_is_no_difference(is_passed, expected, answer):
    assert compare(is_passed, expected, answer) is None


@pytest.mark.parametrize(
    ("is_passed", "expected", "answer", "kind", "point"),
    [
        (True, STOPS, ALLOWS, DifferenceKind.RULES, IN),
        (False, PASSES, replace(DROPS, point=OUT), DifferenceKind.RULES, OUT),
        (True, STOPS, SILENT, DifferenceKind.UNKNOWN, IN),
        (True, STOPS, DROPS, DifferenceKind.STALE_FLOW, IN),
        (False, PASSES, ALLOWS, DifferenceKind.BEHIND_THE_RULES, IN),
        (False, STOPS, ALLOWS, DifferenceKind.BEHIND_THE_RULES, IN),
        (False, STOPS, replace(DROPS, point=OUT), DifferenceKind.WRONG_PLACE, OUT),
    ],
)
def test_the_first_point_of_difference_is_named(is_passed, expected, answer, kind, point):
    found = compare(is_passed, expected, answer)
    assert (found.kind, found.point) == (kind, point)
    assert found.detail


def test_a_new_connection_that_conntrack_knew_already_is_a_stale_one():
    assert compare(True, STOPS, DROPS, had_entry=True).kind is DifferenceKind.STALE_CONNECTION
    assert compare(True, STOPS, DROPS, state=ConnState.REPLY).kind is DifferenceKind.STALE_CONNECTION


def test_a_rule_that_only_the_database_has_is_named():
    found = compare(False, PASSES, DROPS, missing=["web[0]", "web[1]"])
    assert (found.kind, found.point) == (DifferenceKind.RULE_NOT_IN_SWITCH, IN)
    assert "web[0]" in found.detail
    assert "web[1]" not in found.detail


VM1 = PolicyPort("vm1", mac="a", ips=(ip_address("10.0.0.1"),), groups=("web",))
VM2 = PolicyPort("vm2", mac="b", ips=(ip_address("10.0.0.2"),), groups=("web",))
RULES = (GroupRule("out", Way.EGRESS, (4, 6)), GroupRule("in", Way.INGRESS, (4, 6), 6, (80, 80)))
POLICY = Policy((Group("web", RULES),), (VM1, VM2))


def entry(dst_port, src="10.0.0.1", dst="10.0.0.2", zone=1, mark=0):
    there = FiveTuple(6, ip_address(src), ip_address(dst), 40000, dst_port)
    back = FiveTuple(6, ip_address(dst), ip_address(src), dst_port, 40000)
    return ConntrackEntry(there, back, zone, "ESTABLISHED", mark=mark)


def stale(*entries, zones=None):
    return find_stale(entries, POLICY, Evaluator(POLICY).decide, zones)


def test_what_the_policy_would_not_open_any_more_is_stale():
    (found,) = stale(entry(80), entry(22), entry(22, src="10.9.9.9"))
    assert (found.entry, found.src, found.dst) == (entry(22), "vm1", "vm2")
    assert found.check.point == IN


def test_a_connection_that_was_blocked_already_is_not_told():
    assert stale(entry(22, mark=1)) == []
    assert stale_entries([entry(22)], lambda _entry: None) == []


def test_in_a_port_s_own_zone_only_its_own_stages_count():
    """vm1 may open anything, so its zone may remember what vm2 then refuses."""
    zones = {1: "vm1", 2: "vm2"}
    assert stale(entry(22, zone=1), zones=zones) == []
    assert len(stale(entry(22, zone=2), zones=zones)) == 1
    assert len(stale(entry(22, zone=1), entry(22, zone=2))) == 1
