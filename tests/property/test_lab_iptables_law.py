"""What the lab `bridge` compiles is what the policy says, of every packet of a cover, by iptables' own rules."""

from dataclasses import replace

import pytest
from support.policy_texts import forty

from netprobe.judge.evaluator import Evaluator
from netprobe.judge.iptables import Crossing, evaluate
from netprobe.judge.iptables_rules import parse_rules, parse_sets
from netprobe.lab import config, iptables_rules, topology
from netprobe.model.packets import Kind
from netprobe.plan.covering import cover

EPHEMERAL = 61_001

MIXED = """
[[group]]
name = "open"
[[group.rule]]
direction = "egress"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = "80-89"
[[group]]
name = "fast"
stateful = false
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = 80
[[group.rule]]
direction = "egress"
protocol = "tcp"
[[group.rule]]
direction = "ingress"
protocol = "icmp"
[[guest]]
name = "vm1"
groups = ["open"]
[[guest]]
name = "vm2"
groups = ["open"]
[[guest]]
name = "vm3"
groups = ["fast"]
[[guest]]
name = "vm4"
port_security = false
[[acl]]
name = "past conntrack"
direction = "ingress"
priority = 1500
action = "allow-stateless"
protocol = "tcp"
port = 81
ports = ["vm2"]
[[acl]]
name = "some are dropped first"
direction = "ingress"
priority = 1500
action = "drop"
protocol = "tcp"
source = "10.0.0.0/31"
[[acl]]
name = "not this one"
direction = "egress"
priority = 1002
action = "reject"
protocol = "udp"
source_port = 4000
port = "5000-5001"
[bypass]
copy_of = "vm4"
"""


@pytest.mark.parametrize(("text", "is_mixed"), [(forty("bridge"), False), (MIXED, True)], ids=["forty", "mixed"])
def test_iptables_lets_pass_what_the_policy_lets_pass_and_nothing_else(text, is_mixed):
    """Where some of a port's packets are not tracked its own state of an answer differs from the other end's.

    There, only first packets are asked about.
    """
    lab, ends, policy = bound(text)
    compiled = iptables_rules.compile_iptables(lab, tuple(ends.values()))
    rules = {family: parse_rules(as_saved(table)) for family, table in compiled.tables.items()}
    sets = parse_sets(compiled.ipsets)
    asked = 0
    for scenario in cover(policy, Evaluator(policy)).scenarios:
        for step in scenario.steps[:1] if is_mixed else scenario.steps:
            if step.packet.kind is not Kind.IP:
                continue  # Open vSwitch's to guard
            packet = step.packet.with_ephemeral(EPHEMERAL)
            names = (scenario.src, scenario.dst) if step.is_forward else (scenario.dst, scenario.src)
            sender, target = (ends[name] for name in names)
            verdicts = [
                evaluate(rules[packet.family], sets, packet, step.state, Crossing(end.qbr, *devices))
                for end, devices in ((sender, (sender.tap, sender.qvb)), (target, (target.qvb, target.tap)))
            ]
            assert not [verdict.unknown for verdict in verdicts if verdict.unknown]
            is_allowed = all(verdict.is_allowed for verdict in verdicts)
            assert is_allowed is step.expected.is_allowed, (scenario.key, packet.text(), step.expected.point)
            asked += 1
    assert asked > 100


def test_none_of_the_forty_rules_is_shadowed():
    _, _, policy = bound(forty("bridge"))
    assert cover(policy, Evaluator(policy)).shadowed == ()


def bound(text):
    """A lab's file, its endpoints by name, and its policy for its guests alone."""
    lab = config.parse(text, where="x.toml", lab="bridge")
    ends = {end.name: end for end in topology.endpoints(lab)}
    policy = topology.bound_policy(lab, tuple(ends.values()))
    return lab, ends, replace(policy, ports=tuple(port for port in policy.ports if not ends[port.name].copy_of))


def as_saved(text):
    """With the built-in chains, which iptables-restore does not need to be told."""
    text = text.replace("*raw\n", "*raw\n:PREROUTING ACCEPT [0:0]\n")
    return text.replace("*filter\n", "*filter\n:FORWARD ACCEPT [0:0]\n")
