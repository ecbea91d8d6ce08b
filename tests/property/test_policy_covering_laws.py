"""Laws of covering probes over random policies, their mutation score in pure Python, and what a big policy takes."""

import random
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from support.mutants import mutants
from support.policies import random_packet, random_policy

from netprobe.judge.evaluator import Evaluator
from netprobe.model.conntrack_rules import first_state
from netprobe.model.packets import Fragment
from netprobe.model.policy import ICMP, TCP, UDP, Group, GroupRule, Policy, PolicyPort, Way
from netprobe.plan.covering import cover

FEW = settings(deadline=None, derandomize=True, max_examples=40)
SEEDS = st.integers(0, 2**32)


def made(seed, **sizes):
    rng = random.Random(seed)
    policy = random_policy(rng, **sizes)
    return rng, policy, cover(policy, Evaluator(policy))


def sent(found):
    """All steps: sender, receiver, step."""
    for scenario in found.scenarios:
        for step in scenario.steps:
            ends = (scenario.src, scenario.dst)
            yield *(ends if step.is_forward else ends[::-1]), step


@FEW
@given(SEEDS)
def test_every_rule_is_named_by_an_expectation_or_said_why_not(seed):
    _, policy, found = made(seed)
    named = {check.rule for _, _, step in sent(found) for check in step.expected.checks}
    said = {label for part in (found.shadowed, found.unproven, found.unreachable) for label, _ in part}
    rules = {rule.id for group in policy.groups for rule in group.rules} | {acl.id for acl in policy.acls}
    assert rules <= named | said


@FEW
@given(SEEDS)
def test_expectations_are_the_evaluators(seed):
    _, policy, found = made(seed)
    evaluator = Evaluator(policy)
    for src, dst, step in sent(found):
        assert evaluator.decide(step.packet, src, dst, step.state) == step.expected


@FEW
@given(SEEDS)
def test_a_step_follows_only_what_arrives_or_is_the_same_datagram(seed):
    _, _, found = made(seed)
    for scenario in found.scenarios:
        before = scenario.steps[:-1]
        assert all(step.expected.is_allowed or step.packet.fragment is Fragment.FIRST for step in before)


@FEW
@given(SEEDS)
def test_nobody_sends_from_another_ports_address_and_nobody_hears_what_is_not_his(seed):
    _, policy, found = made(seed)
    owners = {ip: port.name for port in policy.ports for ip in port.ips}
    macs = {port.mac: port.name for port in policy.ports}
    for src, dst, step in sent(found):
        packet, receiver = step.packet, policy.port(dst)
        assert owners.get(packet.src_ip, src) == src
        assert macs.get(packet.src_mac, src) == src
        assert packet.dst_mac == receiver.mac
        is_his = packet.dst_ip in receiver.ips or receiver.may_send_from(packet.dst_ip)
        assert is_his or packet.dst_ip.is_multicast  # whose address somebody may look for


@FEW
@given(SEEDS)
def test_keys_are_unique_and_the_bound_is_one(seed):
    _, _, found = made(seed)
    assert len({scenario.key for scenario in found.scenarios}) == len(found.scenarios)
    assert found.lower_bound <= len(found.scenarios)


@FEW
@given(SEEDS)
def test_without_a_shadowed_rule_nothing_changes(seed):
    rng, policy, found = made(seed)
    names = [port.name for port in policy.ports]
    idle = {rule for rule, _ in found.shadowed}
    for rule in sorted(idle)[:4]:
        groups = tuple(replace(g, rules=tuple(r for r in g.rules if r.id != rule)) for g in policy.groups)
        without = replace(policy, groups=groups, acls=tuple(acl for acl in policy.acls if acl.id != rule))
        before, after = Evaluator(policy), Evaluator(without)
        for _ in range(100):
            src, dst = rng.sample(names, 2)
            packet = random_packet(rng, policy, src, dst)
            one, other = (each.decide(packet, src, dst, first_state(packet)) for each in (before, after))
            assert one.is_allowed is other.is_allowed


def difference(policy, mutant, packets):
    """A packet with another outcome, None if there is none among these."""
    before, after = Evaluator(policy), Evaluator(mutant)
    for src, dst, packet in packets:
        state = first_state(packet)
        if before.decide(packet, src, dst, state).is_allowed is not after.decide(packet, src, dst, state).is_allowed:
            return src, dst, packet.text()
    return None


def mutation_score(seeds, mutants_each, packets_each):
    """Killed and survived mutants of random policies; those that random packets cannot tell either do not count."""
    killed, survivors = Counter(), []
    for seed in seeds:
        rng, policy, found = made(seed)
        names = [port.name for port in policy.ports]
        steps = [(src, dst, step.packet, step.state, step.expected.is_allowed) for src, dst, step in sent(found)]
        packets = []
        for _ in range(packets_each):
            src, dst = rng.sample(names, 2)
            packets.append((src, dst, random_packet(rng, policy, src, dst)))
        chosen = list(mutants(rng, policy))
        rng.shuffle(chosen)
        for name, mutant in chosen[:mutants_each]:
            evaluator = Evaluator(mutant)
            if any(evaluator.decide(p, src, dst, state).is_allowed is not was for src, dst, p, state, was in steps):
                killed[name.rsplit(" ", 1)[0]] += 1
            elif shown := difference(policy, mutant, packets):
                survivors.append((seed, name, *shown))
    return killed, survivors


def test_single_rule_mutants_are_found_where_random_packets_find_them():
    killed, survivors = mutation_score(range(20), 12, 800)
    total = killed.total() + len(survivors)
    print(f"\nmutants: {killed.total()} of {total} killed: {dict(killed)}; survivors: {survivors}")
    assert total > 80
    assert killed.total() >= 0.99 * total


def big(rules, guests, groups, seed=1):
    """Groups of rules, guests with one or two groups: ports, ranges, prefixes and remote groups as clouds have them."""
    rng = random.Random(seed)
    found = []
    for number in range(groups):
        own = [GroupRule(f"sg{number}[0]", Way.EGRESS, (4, 6))]
        while len(own) < rules // groups:
            family, kind = rng.choice((4, 4, 6)), rng.random()
            protocol, first = rng.choice((TCP, TCP, TCP, UDP, UDP, ICMP)), rng.randint(1, 60000)
            remote = {}
            if kind < 0.15:
                remote = {"remote_group": f"sg{rng.randrange(groups)}"}
            elif kind < 0.45:
                remote = {"remote_prefix": ip_network(rng.choice(("10.0.0.0/25", "10.0.0.64/26", "10.0.0.0/16")))}
                family = 4
            own.append(
                GroupRule(
                    f"sg{number}[{len(own)}]",
                    Way.INGRESS if rng.random() < 0.8 else Way.EGRESS,
                    (family,),
                    protocol,
                    None if protocol == ICMP else (first, first + rng.choice((0, 0, 0, 0, 0, 1, 9, 50))),
                    **remote,
                )
            )
        found.append(Group(f"sg{number}", tuple(own)))
    ports = [
        PolicyPort(
            f"g{number}",
            "net",
            f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
            (ip_address("10.0.0.1") + number, ip_address("fd00::1") + number),
            tuple(f"sg{group}" for group in rng.sample(range(groups), rng.choice((1, 2)))),
        )
        for number in range(guests)
    ]
    return Policy(tuple(found), tuple(ports))


def test_a_thousand_rules_take_a_few_probes_for_each_rule_of_each_guest():
    """Counts are asserted; seconds are only printed, for this machine is shared."""
    print()
    for rules, guests, groups, most in ((40, 5, 4, 900), (1000, 50, 50, 10_000), (1000, 200, 50, 45_000)):
        policy = big(rules, guests, groups)
        start = time.process_time()
        found = cover(policy, Evaluator(policy))
        took = time.process_time() - start
        print(
            f"{rules} rules, {guests} guests: {len(found.scenarios)} scenarios, {found.probes} packets, "
            f"lower bound {found.lower_bound}, naive {found.naive}, {took:.2f} s"
        )
        assert found.lower_bound <= len(found.scenarios) <= most
        assert found.probes <= 2.5 * len(found.scenarios)
