"""Single-rule mutants of a policy, as somebody might get it wrong: seeded, at the user's level."""

import random
from dataclasses import replace

from netprobe.model.policy import (
    ICMP,
    TCP,
    UDP,
    WITH_PORTS,
    AclMatch,
    Action,
    Group,
    GroupRule,
    NetworkAcl,
    Policy,
    Way,
)


def rule_mutants(rng: random.Random, policy: Policy, group: Group, rule: GroupRule):
    """Names and mutated rules; None is a deleted one."""
    yield "deleted", None
    yield "direction", replace(rule, way=Way.EGRESS if rule.way is Way.INGRESS else Way.INGRESS)
    if rule.ports:
        first, last = rule.ports
        if first > 0:
            yield "port before", replace(rule, ports=(first - 1, last))
        if last < 65535:
            yield "port after", replace(rule, ports=(first, last + 1))
    if rule.protocol in WITH_PORTS:
        yield "protocol", replace(rule, protocol=UDP if rule.protocol == TCP else TCP)
        yield "any protocol", replace(rule, protocol=None, ports=None)
    elif rule.protocol == ICMP:
        yield "protocol", replace(rule, protocol=TCP, icmp_type=None, icmp_code=None)
        if rule.icmp_type is not None:
            yield "icmp type", replace(rule, icmp_type=None, icmp_code=None)
    elif rule.protocol is None:
        yield "protocol", replace(rule, protocol=rng.choice((TCP, UDP, 47)))
    if rule.remote_prefix is not None and rule.remote_prefix.prefixlen:
        yield "prefix bit", replace(rule, remote_prefix=rule.remote_prefix.supernet())
        yield "no prefix", replace(rule, remote_prefix=None)
    if rule.remote_group:
        for other in policy.groups:
            if other.id != rule.remote_group:
                yield "remote group", replace(rule, remote_group=other.id)
        yield "no group", replace(rule, remote_group="")
    if len(rule.families) == 1 and rule.remote_prefix is None:
        yield "family", replace(rule, families=(10 - rule.families[0],))
    elif rule.remote_prefix is None:
        yield "one family", replace(rule, families=(rng.choice(rule.families),))


def acl_mutants(rng: random.Random, acl: NetworkAcl):
    yield "acl deleted", None
    yield "acl direction", replace(acl, way=Way.EGRESS if acl.way is Way.INGRESS else Way.INGRESS)
    yield "acl action", replace(acl, action=Action.DROP if acl.action.allows else Action.ALLOW)
    yield "acl priority", replace(acl, priority=rng.choice((900, 1003, 1150, 3000)))
    for number, match in enumerate(acl.matches):
        for name, mutant in match_mutants(match):
            yield f"acl {name}", replace(acl, matches=(*acl.matches[:number], mutant, *acl.matches[number + 1 :]))


def match_mutants(match: AclMatch):
    if match.dst_ports:
        first, last = match.dst_ports
        if first > 0:
            yield "port before", replace(match, dst_ports=(first - 1, last))
        if last < 65535:
            yield "port after", replace(match, dst_ports=(first, last + 1))
    for side in ("sources", "destinations"):
        prefixes = getattr(match, side)
        if prefixes and prefixes[0].prefixlen:
            yield "prefix bit", replace(match, **{side: (prefixes[0].supernet(), *prefixes[1:])})
    if match.protocol in WITH_PORTS:
        yield "protocol", replace(match, protocol=UDP if match.protocol == TCP else TCP)


def mutants(rng: random.Random, policy: Policy):
    """All of a policy: name and mutated policy."""
    for group in policy.groups:
        for rule in group.rules:
            for name, mutant in rule_mutants(rng, policy, group, rule):
                rules = tuple(mutant if each is rule else each for each in group.rules)
                changed = replace(group, rules=tuple(each for each in rules if each is not None))
                groups = tuple(changed if each is group else each for each in policy.groups)
                yield f"{name} {rule.id}", replace(policy, groups=groups)
    for acl in policy.acls:
        for name, mutant in acl_mutants(rng, acl):
            acls = tuple(mutant if each is acl else each for each in policy.acls)
            yield f"{name} {acl.id}", replace(policy, acls=tuple(each for each in acls if each is not None))
