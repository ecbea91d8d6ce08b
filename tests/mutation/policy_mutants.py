"""Mutants of a policy as its author could have made them: one rule, group, ACL or port, changed in one respect. Pure.

A mutant is a whole policy; what is enforced is compiled from it, what is verified stays the original.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from netprobe.model.policy import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    AclMatch,
    Action,
    AddressPair,
    Group,
    GroupRule,
    IPNetwork,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
)


@dataclass(frozen=True, slots=True)
class PolicyMutant:
    """One change.

    Attributes:
        name: what was changed, for people: `web[1] port 443 -> 442-443`.
        kind: which sort of change.
    """

    name: str
    kind: str
    policy: Policy


def policy_mutants(policy: Policy) -> Iterator[PolicyMutant]:
    """All mutants, those of one rule after the other.

    Args:
        policy: its ports have their addresses.
    """
    yield from _all(policy)
    yield from _state_mutants(policy)
    yield from _address_group_mutants(policy)


def _all(policy: Policy) -> Iterator[PolicyMutant]:
    for group in policy.groups:
        for rule in group.rules:
            for name, kind, mutant in _rule_mutants(policy, rule):
                yield PolicyMutant(f"{rule.id} {name}", kind, _with_rule(policy, group, rule, mutant))
    for acl in policy.acls:
        for name, kind, changed in _acl_mutants(acl):
            acls = tuple(changed if one is acl else one for one in policy.acls if one is not acl or changed is not None)
            yield PolicyMutant(f"{acl.id} {name}", kind, replace(policy, acls=acls))
    for port in policy.ports:
        for name, kind, mutated in _port_mutants(policy, port):
            ports = tuple(mutated if one is port else one for one in policy.ports)
            yield PolicyMutant(f"{port.name} {name}", kind, replace(policy, ports=ports))


def _with_rule(policy: Policy, group: Group, rule: GroupRule, mutant: GroupRule | None) -> Policy:
    rules = tuple(mutant if one is rule else one for one in group.rules if one is not rule or mutant is not None)
    groups = tuple(replace(one, rules=rules) if one is group else one for one in policy.groups)
    return replace(policy, groups=groups)


def _rule_mutants(policy: Policy, rule: GroupRule) -> Iterator[tuple[str, str, GroupRule | None]]:
    yield "deleted", "deleted", None
    other = Way.EGRESS if rule.way is Way.INGRESS else Way.INGRESS
    yield f"{rule.way.value} -> {other.value}", "direction", replace(rule, way=other)
    for name, ports in _port_ranges(rule.ports):
        yield f"port {name}", "port", replace(rule, ports=ports)
    if rule.ports and rule.protocol in (TCP, UDP):
        swapped = UDP if rule.protocol == TCP else TCP
        yield f"protocol {rule.protocol} -> {swapped}", "protocol", replace(rule, protocol=swapped)
    if rule.protocol is not None:
        free = replace(rule, protocol=None, ports=None, icmp_type=None, icmp_code=None)
        yield f"protocol {rule.protocol} -> any", "protocol", free
    if rule.protocol in (ICMP, ICMPV6) and rule.icmp_type is not None:
        yield "any type", "icmp", replace(rule, icmp_type=None, icmp_code=None)
        if rule.icmp_code is not None:
            yield "any code", "icmp", replace(rule, icmp_code=None)
    if len(rule.families) == 2:
        for family in rule.families:
            yield f"ipv{family} alone", "family", replace(rule, families=(family,))
    if rule.remote_prefix is not None:
        for name, prefix in _prefixes(rule.remote_prefix):
            yield f"prefix {name}", "prefix", replace(rule, remote_prefix=prefix)
        yield "from anywhere", "remote", replace(rule, remote_prefix=None)
    if rule.remote_group:
        yield "from anywhere", "remote", replace(rule, remote_group="")
        for group in policy.groups:
            if group.id != rule.remote_group:
                yield f"remote group {group.id}", "remote", replace(rule, remote_group=group.id)
    if rule.remote_address_group:
        yield "from anywhere", "remote", replace(rule, remote_address_group="")


def _port_ranges(ports: tuple[int, int] | None) -> Iterator[tuple[str, tuple[int, int]]]:
    if ports is None:
        return
    first, last = ports
    changes = [(first - 1, last), (first, last + 1), (first + 1, last), (first, last - 1)]
    for low, high in changes:
        if 1 <= low <= high <= 65535:
            yield f"{first}-{last} -> {low}-{high}", (low, high)


def _prefixes(prefix: IPNetwork) -> Iterator[tuple[str, IPNetwork]]:
    """One bit more, one bit less."""
    if prefix.prefixlen > 0:
        yield f"{prefix} -> {prefix.supernet()}", prefix.supernet()
    if prefix.prefixlen < prefix.max_prefixlen:
        half = next(iter(prefix.subnets()))
        yield f"{prefix} -> {half}", half


def _acl_mutants(acl: NetworkAcl) -> Iterator[tuple[str, str, NetworkAcl | None]]:
    yield "deleted", "deleted", None
    action = Action.DROP if acl.action.allows else Action.ALLOW_RELATED
    yield f"{acl.action.value} -> {action.value}", "action", replace(acl, action=action)
    yield f"priority {acl.priority} -> 900", "priority", replace(acl, priority=900)
    other = Way.EGRESS if acl.way is Way.INGRESS else Way.INGRESS
    yield f"{acl.way.value} -> {other.value}", "direction", replace(acl, way=other)
    for number, match in enumerate(acl.matches):
        for name, kind, changed in _match_mutants(match):
            matches = tuple(changed if i == number else one for i, one in enumerate(acl.matches))
            yield name, kind, replace(acl, matches=matches)


def _match_mutants(match: AclMatch) -> Iterator[tuple[str, str, AclMatch]]:
    for name, ports in _port_ranges(match.dst_ports):
        yield f"port {name}", "port", replace(match, dst_ports=ports)
    for side in ("sources", "destinations"):
        prefixes: tuple[IPNetwork, ...] = getattr(match, side)
        if prefixes:
            for name, prefix in _prefixes(prefixes[0]):
                changed = replace(match, **{side: (prefix, *prefixes[1:])})
                yield f"{side} {name}", "prefix", changed


def _port_mutants(policy: Policy, port: PolicyPort) -> Iterator[tuple[str, str, PolicyPort]]:
    yield "port security toggled", "port security", replace(port, has_port_security=not port.has_port_security)
    for group in policy.groups:
        if group.id in port.groups:
            left = tuple(one for one in port.groups if one != group.id)
            yield f"leaves group {group.id}", "group", replace(port, groups=left)
        elif port.has_port_security:
            yield f"joins group {group.id}", "group", replace(port, groups=(*port.groups, group.id))
    if port.has_port_security and port.ip(4) is not None:
        decoy = ip_network(f"{int(port.ip(4) or 0) >> 24 & 0xFF}.0.0.0/8")
        pairs = (*port.allowed_pairs, AddressPair(decoy))
        yield f"may send from {decoy}", "port security", replace(port, allowed_pairs=pairs)
    for number, pair in enumerate(port.allowed_pairs):
        rest = [one for one in port.allowed_pairs if one is not pair]
        yield f"loses {pair.prefix}", "port security", replace(port, allowed_pairs=tuple(rest))
        for name, prefix in _prefixes(pair.prefix):
            changed = [*rest[:number], replace(pair, prefix=prefix), *rest[number:]]
            yield f"pair {name}", "port security", replace(port, allowed_pairs=tuple(changed))


def _state_mutants(policy: Policy) -> Iterator[PolicyMutant]:
    """A group without connections, or with them."""
    for group in policy.groups:
        groups = tuple(replace(one, is_stateful=not one.is_stateful) if one is group else one for one in policy.groups)
        word = "stateless" if group.is_stateful else "stateful"
        yield PolicyMutant(f"group {group.id} {word}", "state", replace(policy, groups=groups))
    for acl in policy.acls:
        if acl.action in (Action.ALLOW, Action.ALLOW_RELATED):
            changed = replace(acl, action=Action.ALLOW_STATELESS)
            acls = tuple(changed if one is acl else one for one in policy.acls)
            yield PolicyMutant(f"{acl.id} stateless", "state", replace(policy, acls=acls))


def _address_group_mutants(policy: Policy) -> Iterator[PolicyMutant]:
    """One of its prefixes, by one bit or altogether."""
    for group in policy.address_groups:
        for number, prefix in enumerate(group.prefixes):
            rest = group.prefixes[:number], group.prefixes[number + 1 :]
            changes = [("removed", ()), *((name, (changed,)) for name, changed in _prefixes(prefix))]
            for name, middle in changes:
                changed = replace(group, prefixes=(*rest[0], *middle, *rest[1]))
                groups = tuple(changed if one is group else one for one in policy.address_groups)
                title = f"address group {group.id}: {prefix} {name}" if name == "removed" else f"{group.id} {name}"
                yield PolicyMutant(title, "address group", replace(policy, address_groups=groups))
