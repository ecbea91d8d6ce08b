"""What no run can decide is said to be unproven: a policy is never called enforced because nothing could be tried."""

from ipaddress import IPv4Address

from netprobe.judge.evaluator import Evaluator
from netprobe.judge.gaps import ALONE, gap_findings
from netprobe.model.policy import TCP, Group, GroupRule, Policy, PolicyPort, Way
from netprobe.plan.covering import cover

SILENT = Group("silent", (GroupRule("silent[0]", Way.INGRESS, (4,), TCP, (80, 80)),))
OPEN = Group("open", (GroupRule("open[0]", Way.EGRESS, (4,)),))


def port(number, *groups):
    return PolicyPort(f"vm{number}", "", f"02:00:00:00:00:{number:02x}", (IPv4Address(f"10.0.0.{number}"),), groups)


def gaps(*ports, remarks=()):
    policy = Policy((SILENT, OPEN), ports, remarks=remarks)
    return [(f.rule_id, f.detail) for f in gap_findings(policy, cover(policy, Evaluator(policy)), ports)]


def test_a_port_alone_is_unproven():
    assert ("vm1", ALONE) in gaps(port(1, "open"))


def test_a_rule_whose_every_packet_is_stopped_at_its_sender_is_unproven():
    """Nobody among the ports may send, but somebody outside might."""
    found = gaps(port(1, "silent"), port(2, "silent"))
    assert "silent[0]" in dict(found)
    assert "no packet between these ports can show it" in dict(found)["silent[0]"]


def test_a_rule_that_packets_show_is_no_gap_though_some_of_its_variants_are_out_of_reach():
    assert gaps(port(1, "open", "silent"), port(2, "open", "silent")) == []


def test_what_the_policy_itself_could_not_say_is_told():
    assert gaps(port(1, "open"), port(2, "open"), remarks=("group x is not known",))[0] == ("", "group x is not known")
