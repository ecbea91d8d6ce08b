"""What must be true of a policy whatever it was read from: rules without contradictions, complete references.

Pure. The readers (plan.policy_file, plan.policy_neutron, plan.policy_ovn) end here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from netprobe.errors import UsageError, unknown_name
from netprobe.model.policy import (
    DENY_PRIORITY,
    GROUP_PRIORITY,
    ICMP,
    ICMPV6,
    AclMatch,
    GroupRule,
    IPNetwork,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
    protocol_name,
)
from netprobe.plan.policy_values import check_has_ports

MAX_TIES = 100
"""Remarks about entries of equal priority; more of them would say nothing new."""


def checked_rule(rule: GroupRule, where: str) -> GroupRule:
    """The rule with its families narrowed to what its protocol and prefix can be in.

    Raises:
        UsageError: it contradicts itself.
    """
    remotes = {
        "remote_prefix": rule.remote_prefix is not None,
        "remote_group": bool(rule.remote_group),
        "remote_address_group": bool(rule.remote_address_group),
    }
    given = [key for key, is_given in remotes.items() if is_given]
    if len(given) > 1:
        raise UsageError(where, f"has {' and '.join(given)}", allowed="one of them")
    if rule.ports:
        check_has_ports(rule.protocol, f"{where}.port")
    families = narrowed(rule.families, rule.protocol, where)
    if rule.remote_prefix is not None:
        families = _in_prefix(families, rule.remote_prefix, f"{where}.remote_prefix")
    check_icmp(families, rule.protocol, rule.icmp_type, rule.icmp_code, where)
    return replace(rule, families=families)


def narrowed(families: tuple[int, ...], protocol: int | None, where: str) -> tuple[int, ...]:
    """The families in which a protocol exists: ICMPv6 is IPv6's; ICMP means that of the packet's own family.

    Raises:
        UsageError: there is none.
    """
    if protocol != ICMPV6:
        return families
    if 6 not in families:
        raise UsageError(f"{where}.protocol", "icmpv6 is not in IPv4", allowed="ethertype ipv6, or protocol icmp")
    return (6,)


def _in_prefix(families: tuple[int, ...], prefix: IPNetwork, where: str) -> tuple[int, ...]:
    if prefix.version not in families:
        raise UsageError(where, f"{prefix} is not of the rule's family IPv{families[0]}", allowed="one family")
    return (prefix.version,)


def check_icmp(
    families: tuple[int, ...], protocol: int | None, icmp_type: int | None, icmp_code: int | None, where: str
) -> None:
    """Refuse types and codes that mean nothing, or two things.

    Raises:
        UsageError: a code without a type, a type without ICMP, or a type that would mean one thing in each family.
    """
    if icmp_type is None:
        if icmp_code is not None:
            raise UsageError(where, f"has icmp_code {icmp_code} and no icmp_type", advice="give it an icmp_type")
        return
    if protocol not in (ICMP, ICMPV6):
        named = "any protocol" if protocol is None else protocol_name(protocol)
        raise UsageError(f"{where}.icmp_type", f"goes with {named}", allowed="protocol icmp or icmpv6")
    if len(families) > 1:
        raise UsageError(
            f"{where}.icmp_type",
            f"{icmp_type} is one thing in ICMP and another in ICMPv6",
            allowed="ethertype ipv4 or ipv6",
            advice="write a rule for each",
        )


def acl_matches(match: AclMatch, where: str) -> tuple[AclMatch, ...]:
    """An entry's match, checked, as one a family wherever families differ in addresses or ICMP.

    Raises:
        UsageError: it contradicts itself.
    """
    for key, ports in (("source_port", match.src_ports), ("port", match.dst_ports)):
        if ports:
            check_has_ports(match.protocol, f"{where}.{key}")
    families = narrowed(match.families, match.protocol, where)
    for key, prefixes in (("source", match.sources), ("destination", match.destinations)):
        for prefix in prefixes:
            _in_prefix(match.families, prefix, f"{where}.{key}")
        if prefixes:
            families = tuple(f for f in families if any(p.version == f for p in prefixes))
        if not families:
            raise UsageError(f"{where}.{key}", "no packet has such addresses", allowed="one family in all of it")
    check_icmp(families, match.protocol, match.icmp_type, match.icmp_code, where)
    if not match.sources and not match.destinations and match.protocol not in (ICMP, ICMPV6):
        return (replace(match, families=families),)
    return tuple(_in_family(match, family) for family in families)


def _in_family(match: AclMatch, family: int) -> AclMatch:
    protocol = match.protocol
    if protocol in (ICMP, ICMPV6):
        protocol = ICMP if family == 4 else ICMPV6
    return replace(
        match,
        families=(family,),
        protocol=protocol,
        sources=tuple(p for p in match.sources if p.version == family),
        destinations=tuple(p for p in match.destinations if p.version == family),
    )


def check_policy(policy: Policy, where: str) -> Policy:
    """The policy, if its parts fit together, with a remark for each pair of ACL entries whose order is undefined.

    Args:
        policy: as a reader made it.
        where: what it was read from, for messages.

    Raises:
        UsageError: two things of one name, a reference to nothing, two ports with one address, or a port with
            stateful and stateless groups.
    """
    _check_names(policy, where)
    groups, address_groups = {g.id for g in policy.groups}, {g.id for g in policy.address_groups}
    for rule in (rule for group in policy.groups for rule in group.rules):
        if rule.remote_group and rule.remote_group not in groups:
            raise unknown_name(f"{where}: rule {rule.id}.remote_group", rule.remote_group, groups, kind="group")
        if rule.remote_address_group and rule.remote_address_group not in address_groups:
            place = f"{where}: rule {rule.id}.remote_address_group"
            raise unknown_name(place, rule.remote_address_group, address_groups, kind="address group")
    for port in policy.ports:
        for group in port.groups:
            if group not in groups:
                raise unknown_name(f"{where}: guest {port.name}.groups", group, groups, kind="group")
        _check_state(policy, port, where)
    _check_acls(policy, where)
    check_addresses(policy.ports, where)
    return replace(policy, remarks=tuple(dict.fromkeys((*policy.remarks, *ties(policy)))))


def _check_names(policy: Policy, where: str) -> None:
    rules = [rule.id for group in policy.groups for rule in group.rules]
    for kind, names in (
        ("groups", [group.id for group in policy.groups]),
        ("address groups", [group.id for group in policy.address_groups]),
        ("rules or ACL entries", [*rules, *(acl.id for acl in policy.acls)]),
        ("guests", [port.name for port in policy.ports]),
    ):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise UsageError(where, f"two {kind} are called {name!r}", advice="give each a name of its own")
            seen.add(name)


def _check_state(policy: Policy, port: PolicyPort, where: str) -> None:
    """Neutron's own drivers refuse such a port: whether its connections are tracked would be undefined."""
    kinds = {policy.group(group).is_stateful: policy.group(group).title for group in port.groups}
    if len(kinds) > 1:
        raise UsageError(
            f"{where}: guest {port.name}.groups",
            f"group {kinds[True]!r} is stateful and group {kinds[False]!r} is stateless",
            allowed="one kind on a port",
        )


def _check_acls(policy: Policy, where: str) -> None:
    names = {port.name for port in policy.ports}
    networks = {port.network for port in policy.ports if port.network}
    for acl in policy.acls:
        for port in acl.ports:
            if port not in names:
                raise unknown_name(f"{where}: acl {acl.id}.ports", port, names, kind="guest")
        # Guests may get their networks later, when they are bound.
        if acl.network and networks and acl.network not in networks:
            raise unknown_name(f"{where}: acl {acl.id}.network", acl.network, networks, kind="network")


def check_addresses(ports: Iterable[PolicyPort], where: str) -> None:
    """Refuse two ports with one MAC or one fixed address on a network.

    Raises:
        UsageError: there are two.
    """
    owners: dict[tuple[str, str], str] = {}
    for port in ports:
        for address in dict.fromkeys(filter(None, (port.mac, *map(str, port.ips)))):
            owner = owners.setdefault((port.network, address), port.name)
            if owner != port.name:
                on = f" on network {port.network}" if port.network else ""
                raise UsageError(
                    f"{where}: guest {port.name}",
                    f"has {address}, which guest {owner} has too{on}",
                    advice="give each guest addresses of its own",
                )


def ties(policy: Policy) -> tuple[str, ...]:
    """A remark for each entry that drops where another of its priority allows the same packet: OVN takes either."""
    by_rank: dict[tuple[object, int], list[NetworkAcl]] = {}
    for acl in policy.acls:
        by_rank.setdefault((acl.way, acl.priority), []).append(acl)
    found: list[str] = []
    for acls in by_rank.values():
        found += _ties_among(policy, acls)
    found += [remark for acl in policy.acls if (remark := _tie_with_groups(policy, acl))]
    return tuple(found[:MAX_TIES])


def _ties_among(policy: Policy, acls: Sequence[NetworkAcl]) -> list[str]:
    allowing = [acl for acl in acls if acl.action.allows]
    found: list[str] = []
    for dropping in (acl for acl in acls if not acl.action.allows):
        for other in allowing:
            if _share_a_port(policy, dropping, other) and _overlap(dropping.matches, other.matches):
                found.append(_undefined(f"ACL entries {dropping.id} and {other.id}", dropping.priority))
                break
        if len(found) >= MAX_TIES:
            break
    return found


def _undefined(who: str, priority: int) -> str:
    return f"{who} have priority {priority} both, and match the same packets: which one decides is undefined"


def _tie_with_groups(policy: Policy, acl: NetworkAcl) -> str:
    """Beside the rules of groups, or beside the default deny."""
    if not policy.has_default_deny or acl.priority != (DENY_PRIORITY if acl.action.allows else GROUP_PRIORITY):
        return ""
    ports = [port for port in policy.ports if port.has_port_security and acl.is_on(port)]
    if not ports:
        return ""
    if acl.action.allows:
        return _undefined(f"ACL entry {acl.id} and the default deny", acl.priority)
    for group in dict.fromkeys(group for port in ports for group in port.groups):
        for rule in policy.group(group).rules:
            if rule.way is acl.way and _overlap(_rule_matches(policy, rule), acl.matches):
                return _undefined(f"ACL entry {acl.id} and rule {rule.id}", acl.priority)
    return ""


def _rule_matches(policy: Policy, rule: GroupRule) -> tuple[AclMatch, ...]:
    matches = []
    for family in rule.families:
        remotes = policy.remote_prefixes(rule, family)
        if remotes == ():
            continue
        sources, destinations = (remotes or (), ()) if rule.way is Way.INGRESS else ((), remotes or ())
        protocol = rule.protocol_in(family)
        matches.append(
            AclMatch((family,), protocol, sources, destinations, None, rule.ports, rule.icmp_type, rule.icmp_code)
        )
    return tuple(matches)


def _share_a_port(policy: Policy, one: NetworkAcl, other: NetworkAcl) -> bool:
    if one.network and one.network == other.network:
        return True
    return any(one.is_on(port) and other.is_on(port) for port in policy.ports)


def _overlap(ones: Sequence[AclMatch], others: Sequence[AclMatch]) -> bool:
    return any(_meet(one, other) for one in ones for other in others)


def _meet(one: AclMatch, other: AclMatch) -> bool:
    """Whether some packet fits both."""
    same = ((one.protocol, other.protocol), (one.icmp_type, other.icmp_type), (one.icmp_code, other.icmp_code))
    ranges = ((one.src_ports, other.src_ports), (one.dst_ports, other.dst_ports))
    prefixes = ((one.sources, other.sources), (one.destinations, other.destinations))
    return (
        bool(set(one.families) & set(other.families))
        and all(a is None or b is None or a == b for a, b in same)
        and all(a is None or b is None or (a[0] <= b[1] and b[0] <= a[1]) for a, b in ranges)
        and all(not a or not b or _prefixes_meet(a, b) for a, b in prefixes)
    )


def _prefixes_meet(ones: Sequence[IPNetwork], others: Sequence[IPNetwork]) -> bool:
    return any(a.version == b.version and a.overlaps(b) for a in ones for b in others)
