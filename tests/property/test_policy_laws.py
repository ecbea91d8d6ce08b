"""Laws of the reference evaluator, and a model of a few lines as a second opinion."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import random_packet, random_policy, random_rule

from netprobe.judge.evaluator import Evaluator
from netprobe.model.conntrack_rules import answer_to, first_state
from netprobe.model.packets import ConnState, Packet
from netprobe.model.policy import Action, Group, Policy, Way

FEW = settings(deadline=None, derandomize=True, max_examples=60)
SEEDS = st.integers(0, 2**32)
STATELESS = (Action.ALLOW_STATELESS,)


def samples(rng, policy, count=25):
    names = [port.name for port in policy.ports]
    for _ in range(count):
        src, dst = rng.sample(names, 2)
        packet = random_packet(rng, policy, src, dst)
        yield src, dst, packet, first_state(packet)


# The second opinion: no index, no ranges, nothing shared with the evaluator.
def naive_rule(policy: Policy, rule, packet: Packet) -> bool:
    other = packet.src_ip if rule.way is Way.INGRESS else packet.dst_ip
    known = policy.remote_prefixes(rule, packet.family)
    return (
        packet.family in rule.families
        and rule.protocol_in(packet.family) in (None, packet.protocol)
        and (rule.ports is None or rule.ports[0] <= packet.dst_port <= rule.ports[1])
        and rule.icmp_type in (None, packet.icmp_type)
        and rule.icmp_code in (None, packet.icmp_code)
        and (known is None or any(other in prefix for prefix in known))
    )


def naive_acl(match, packet: Packet) -> bool:
    protocol = {1: 1 if packet.family == 4 else 58}.get(match.protocol, match.protocol)
    src = 61000 if packet.src_port is None else packet.src_port
    return (
        packet.family in match.families
        and protocol in (None, packet.protocol)
        and (not match.sources or any(packet.src_ip in p for p in match.sources))
        and (not match.destinations or any(packet.dst_ip in p for p in match.destinations))
        and (match.src_ports is None or match.src_ports[0] <= src <= match.src_ports[1])
        and (match.dst_ports is None or match.dst_ports[0] <= packet.dst_port <= match.dst_ports[1])
        and match.icmp_type in (None, packet.icmp_type)
    )


def naive_at(policy: Policy, port, way: Way, packet: Packet, state: ConnState) -> bool:
    if not port.has_port_security:
        return True
    acls = [a for a in policy.acls if a.way is way and a.is_on(port) and any(naive_acl(m, packet) for m in a.matches)]
    groups = [policy.group(g) for g in port.groups]
    rules = [(g, r) for g in groups for r in g.rules if r.way is way and naive_rule(policy, r, packet)]
    is_stateful = not groups or any(g.is_stateful for g in groups)
    loose = (Action.ALLOW_STATELESS,) if is_stateful else tuple(Action)
    is_loose = any(a.action in loose and a.priority > 1001 for a in acls) or any(not g.is_stateful for g, _ in rules)
    if state is ConnState.INVALID and is_stateful and not is_loose:
        return False
    ranked = [(a.priority, not a.action.allows, a.action.allows) for a in acls]
    ranked += [(1002, False, True)] * bool(rules) + [(1001, True, False)]
    return max(ranked)[2]


@FEW
@given(SEEDS)
def test_it_agrees_with_a_naive_model(seed):
    rng = random.Random(seed)
    policy = random_policy(rng)
    evaluator = Evaluator(policy)
    for src, dst, packet, state in samples(rng, policy):
        sender, receiver = policy.port(src), policy.port(dst)
        expected = naive_at(policy, sender, Way.EGRESS, packet, state) and naive_at(
            policy, receiver, Way.INGRESS, packet, state
        )
        assert evaluator.decide(packet, src, dst, state).is_allowed is expected, (packet.text(), src, dst)


@FEW
@given(SEEDS)
def test_without_rules_nothing_passes(seed):
    rng = random.Random(seed)
    made = random_policy(rng)
    bare = replace(
        made,
        groups=tuple(replace(group, rules=()) for group in made.groups),
        acls=(),
        ports=tuple(replace(port, has_port_security=True) for port in made.ports),
    )
    evaluator = Evaluator(bare)
    for src, dst, packet, state in samples(rng, bare):
        assert not evaluator.decide(packet, src, dst, state).is_allowed


@FEW
@given(SEEDS)
def test_one_more_rule_of_a_group_never_stops_what_passed(seed):
    """Of the group's own kind: a stateless rule takes packets out of conntrack, which answers may miss."""
    rng = random.Random(seed)
    policy = random_policy(rng)
    grown = rng.choice(policy.groups)
    more = random_rule(rng, "more", [group.id for group in policy.groups], ["ag"])
    groups = tuple(Group(g.id, (*g.rules, more), g.name, g.is_stateful) if g is grown else g for g in policy.groups)
    before, after = Evaluator(policy), Evaluator(replace(policy, groups=groups))
    for src, dst, packet, state in samples(rng, policy):
        if before.decide(packet, src, dst, state).is_allowed:
            assert after.decide(packet, src, dst, state).is_allowed


@FEW
@given(SEEDS)
def test_the_order_of_rules_and_acls_does_not_matter(seed):
    rng = random.Random(seed)
    policy = random_policy(rng)
    groups = tuple(replace(group, rules=group.rules[::-1]) for group in policy.groups[::-1])
    ports = tuple(replace(port, groups=port.groups[::-1]) for port in policy.ports)
    before = Evaluator(policy)
    after = Evaluator(replace(policy, groups=groups, ports=ports, acls=policy.acls[::-1]))
    for src, dst, packet, state in samples(rng, policy):
        one, other = before.decide(packet, src, dst, state), after.decide(packet, src, dst, state)
        assert (one.is_allowed, one.point) == (other.is_allowed, other.point)


@FEW
@given(SEEDS)
def test_an_answer_passes_where_its_question_did(seed):
    rng = random.Random(seed)
    policy = random_policy(rng, stateless=0)
    policy = replace(policy, acls=tuple(acl for acl in policy.acls if acl.action not in STATELESS))
    evaluator = Evaluator(policy)
    for src, dst, packet, state in samples(rng, policy):
        if state is ConnState.NEW and evaluator.decide(packet, src, dst, state).is_allowed:
            back = answer_to(packet)
            back = replace(back, src_mac=policy.port(dst).mac)
            if policy.port(dst).may_send_from(back.src_ip):
                assert evaluator.decide(back, dst, src, ConnState.REPLY).is_allowed


@FEW
@given(SEEDS)
def test_every_decision_names_its_points_in_the_order_of_travel(seed):
    rng = random.Random(seed)
    policy = random_policy(rng)
    evaluator = Evaluator(policy)
    ids = {rule.id for group in policy.groups for rule in group.rules} | {acl.id for acl in policy.acls}
    for src, dst, packet, state in samples(rng, policy):
        decision = evaluator.decide(packet, src, dst, state)
        stages = [str(check.point) for check in decision.checks]
        whole = [f"{src} egress", f"{dst} ingress"]
        if policy.port(src).has_port_security:
            whole.insert(0, f"{src} anti-spoofing")
        assert stages == whole[: len(stages)]
        assert all(check.is_allowed for check in decision.checks[:-1])
        assert decision.is_allowed is (stages == whole and decision.checks[-1].is_allowed)
        assert all(check.rule in ids for check in decision.checks if check.text.startswith(("sg", "acl ")))
