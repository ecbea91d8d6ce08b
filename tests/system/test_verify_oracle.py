"""The reference evaluator against an oracle that knows nothing of it: the real datapath, with thousands of packets.

Network: each lab in turn, with the policy of tests/support/policies/forty.toml. The conversations are not the covering
ones: tests/mutation draws them from the policy's boundaries and at random, seeded. Neighbour discovery and DHCP are
left out: what becomes of them besides the rules differs from one enforcement to the next; test_verify_forty has them.
"""

from collections import Counter
from dataclasses import replace

import pytest
import trio
from mutation.replay_packets import conversations
from support.verifying import forty_lab

from netprobe.host.signals import StopRequest
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.findings import FindingKind
from netprobe.model.packets import Cover, Kind
from netprobe.service.discovery import read_topology
from netprobe.service.policy_sources import read_policies
from netprobe.service.verify import VerifyOrder, plan_verify, verify

pytestmark = pytest.mark.system

PACKETS = 6_000
SEED = 20
ND = {133, 134, 135, 136}
DHCP = {67, 68, 546, 547}


def is_about_rules(scenario):
    """Whether it is no neighbour discovery and no DHCP."""
    packets = [step.packet for step in scenario.steps]
    return all(p.kind is Kind.IP and not DHCP & {p.src_port, p.dst_port} and p.icmp_type not in ND for p in packets)


def expected(scenario, number, decide):
    """The conversation with what the evaluator says of each packet, as far as it gets."""
    steps = []
    for step in scenario.steps:
        ends = (scenario.src, scenario.dst) if step.is_forward else (scenario.dst, scenario.src)
        decision = decide(step.packet, *ends, step.state)
        steps.append(replace(step, expected=decision))
        if not decision.is_allowed:
            break
    return replace(scenario, number=number, key=f"{scenario.key} #{number}", steps=tuple(steps))


@pytest.mark.parametrize("lab", ["single", "bridge", "pair"])
def test_what_the_evaluator_says_of_random_packets_becomes_of_them(lab, lab_place, tmp_path):
    """Both ways: what it lets pass arrives, what it stops does not; but for what a backend does by its nature."""
    with forty_lab(lab, tmp_path) as path:
        sources, topology = read_policies(str(path), None, None), read_topology()
        order = VerifyOrder(sources.policy, sources.where, rounds=20)
        plan = plan_verify(order, topology)
        decide = Evaluator(plan.policy).decide
        drawn = filter(is_about_rules, conversations(plan.policy, PACKETS, SEED))
        scenarios = tuple(expected(one, number, decide) for number, one in enumerate(drawn))
        plan = replace(plan, cover=Cover(scenarios, 0, 0))
        outcome = trio.run(verify, order, plan, topology, StopRequest(), lambda _: None)
    found = [f for f in outcome.findings.found if f.kind in (FindingKind.LEAK, FindingKind.OVERBLOCK)]
    assert found == [], [(f.key, f.step, f.expected, f.observed, f.detail) for f in found]
    fates = Counter(outcome.findings.truth.values())
    assert fates[True] > 300
    assert fates[False] > 300
    assert fates[None] < 0.01 * sum(fates.values())
    natural = sum(map(len, outcome.findings.differences.values()))
    assert natural < 0.1 * sum(fates.values())
    print(f"{lab}: {fates[True]} passed, {fates[False]} dropped, {fates[None]} undecided; {natural} by nature")
