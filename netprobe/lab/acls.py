"""A policy as OVN port groups, address sets and ACLs, as Neutron's OVN driver compiles them. Pure.

A port group a security group; each rule is one ACL that allows, with its connection's answers; a port group of all
guarded ports has two ACLs that drop what no rule allows, and what DHCP needs. Remote groups are the address sets that
OVN makes of each port group, where those say it all: they have neither allowed pairs nor ports without port security,
so that a set of our own stands in there. A network ACL is an ACL of a port group of its own.
What an ACL's name means is in `rules`, for the state file.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netprobe.errors import UsageError
from netprobe.lab.config import LabConfig
from netprobe.lab.rule_lists import Entry, RuleInfo, acl_entry, is_stateless, remote_set, rule_entry, set_prefixes
from netprobe.lab.topology import Endpoint, bound_policy
from netprobe.model.policy import (
    ACL_PRIORITY_MAX,
    DENY_PRIORITY,
    GROUP_PRIORITY,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    AclMatch,
    Action,
    Group,
    GroupRule,
    IPNetwork,
    NetworkAcl,
    Policy,
    Way,
    protocol_name,
)

ALLOW_PRIORITY = GROUP_PRIORITY
DROP_PRIORITY = DENY_PRIORITY
NAME_MAX = 63
"""OVN's schema says so."""

ALL = "pg_all"

_WAYS = {Way.INGRESS: ("to-lport", "outport", "src"), Way.EGRESS: ("from-lport", "inport", "dst")}
_FAMILIES = {(4,): "ip4", (6,): "ip6", (4, 6): "ip"}
_ICMP = {(4,): "icmp4", (6,): "icmp6", (4, 6): "(icmp4 || icmp6)"}
_WITH_PORTS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
_DHCP_REQUEST = "((ip4 && udp.src == 68 && udp.dst == 67) || (ip6 && udp.src == 546 && udp.dst == 547))"
_DHCP_ANSWER = "((ip4 && udp.src == 67 && udp.dst == 68) || (ip6 && udp.src == 547 && udp.dst == 546))"


@dataclass(frozen=True, slots=True)
class Acl:
    """An ACL of a port group.

    Attributes:
        label: marks the connections that it admitted, in conntrack; 0 for those that admit none, which may have none.
        rule: what it stands for, as in the state file's `rules`.
    """

    name: str
    port_group: str
    way: Way
    priority: int
    match: str
    action: Action
    label: int
    rule: dict[str, str]

    @property
    def direction(self) -> str:
        """The direction as in the state file."""
        return self.way.value

    @property
    def words(self) -> list[str]:
        """The command of ovn-nbctl that adds it."""
        options = [f"--name={self.name}", *([f"--label={self.label}"] if self.label else [])]
        way = _WAYS[self.way][0]
        return [*options, "acl-add", self.port_group, way, str(self.priority), self.match, self.action.value]


@dataclass(frozen=True, slots=True)
class CompiledAcls:
    """Port groups with their endpoints, address sets with their prefixes, ACLs, and what is not an ACL's to guard.

    Attributes:
        port_security: what port security of an endpoint stands for, by a name of its own.
    """

    port_groups: dict[str, tuple[Endpoint, ...]]
    acls: tuple[Acl, ...]
    address_sets: dict[str, tuple[IPNetwork, ...]]
    port_security: dict[str, RuleInfo]

    def rules_json(self) -> dict[str, dict[str, str]]:
        """As in the state file: by the ACL's name."""
        guarded = {name: info.to_json() | {"label": ""} for name, info in self.port_security.items()}
        return {acl.name: acl.rule for acl in self.acls} | guarded


class _Compiler:
    """Collects ACLs, and the address sets that they need."""

    def __init__(self, policy: Policy, ends: Sequence[Endpoint]) -> None:
        self.policy = policy
        self.ends = [end for end in ends if policy.port(end.name).has_port_security]
        self.names = _distinct_names("sg_", (group.id for group in policy.groups))
        self.set_names = _distinct_names("ag_", (group.id for group in policy.address_groups))
        self.acls: list[Acl] = []
        self.address_sets: dict[str, tuple[IPNetwork, ...]] = {}

    def add(
        self, name: str, port_group: str, *, way: Way, priority: int, match: str, action: Action, info: RuleInfo
    ) -> None:
        """An ACL under a name that nobody else has; those that admit connections get a label."""
        taken = {acl.name for acl in self.acls}
        label = 1 + sum(bool(acl.label) for acl in self.acls) if action is Action.ALLOW_RELATED else 0
        rule = info.to_json() | {"label": str(label or "")}
        self.acls.append(Acl(_name(name, taken), port_group, way, priority, match, action, label, rule))

    def set_name(self, named: tuple[str, str], family: int) -> str:
        """The address set of a remote group or an address group, made where OVN does not."""
        kind, id_ = named
        if kind == "group":
            members = self.policy.members(id_)
            if all(port.has_port_security and not port.allowed_pairs for port in members):
                return f"{self.names[id_]}_ip{family}"
            name = f"as_{self.names[id_]}_ip{family}"
        else:
            name = f"{self.set_names[id_]}_ip{family}"
        self.address_sets[name] = set_prefixes(self.policy, named, family)
        return name


def compile_acls(config: LabConfig, ends: Sequence[Endpoint]) -> CompiledAcls:
    """Compile a lab's policy.

    Args:
        config: groups, rules and ACLs.
        ends: every guest and bypass NIC.

    Raises:
        UsageError: something that OVN's expressions cannot say.
    """
    policy = bound_policy(config, ends)
    c = _Compiler(policy, ends)
    groups = {c.names[g.id]: tuple(end for end in c.ends if g.id in end.groups) for g in policy.groups}
    for group in policy.groups:
        for rule in group.rules:
            _allow(c, group, rule)
    acl_names = _distinct_names("acl_", (acl.id for acl in policy.acls))
    for acl in policy.acls:
        on = [end for end in c.ends if acl.is_on(policy.port(end.name))]
        # Ports of stateless groups have no connections, so that `allow` means each packet there.
        stateless = [end for end in on if is_stateless(policy, policy.port(end.name))]
        for suffix, members in (("", [end for end in on if end not in stateless]), ("_stateless", stateless)):
            if members:
                groups[acl_names[acl.id] + suffix] = tuple(members)
                _network_acl(c, acl, acl_names[acl.id] + suffix, is_for_stateless=bool(suffix))
    for way in _WAYS:
        _deny(c, way)
    _dhcp(c)
    guards = {f"port security of {end.name}": _port_security(end) for end in c.ends}
    return CompiledAcls({ALL: tuple(c.ends), **groups}, tuple(c.acls), c.address_sets, guards)


def _distinct_names(prefix: str, ids: Iterable[str]) -> dict[str, str]:
    """Names for OVN: it allows letters, digits, dots and underscores, and two ids may look alike then."""
    names: dict[str, str] = {}
    for number, id_ in enumerate(ids):
        plain = prefix + re.sub(r"[^A-Za-z0-9_]", "_", id_)
        names[id_] = plain if plain not in names.values() else f"{plain}.{number}"
    return names


def _allow(c: _Compiler, group: Group, rule: GroupRule) -> None:
    entry = rule_entry(c.policy, group, rule, with_sets=True)
    c.add(
        f"{group.title}: {entry.text}",
        c.names[group.id],
        way=rule.way,
        priority=ALLOW_PRIORITY,
        match=_rule_match(c, group, rule),
        action=entry.action,
        info=entry.info(),
    )


def _network_acl(c: _Compiler, acl: NetworkAcl, port_group: str, *, is_for_stateless: bool) -> None:
    entry: Entry = acl_entry(acl, stateless=is_for_stateless)
    port = _WAYS[acl.way][1]
    matches = [_acl_match(match, acl.id) for match in acl.matches]
    either = matches[0] if len(matches) == 1 else f"({' || '.join(f'({match})' for match in matches)})"
    c.add(
        f"acl {acl.id}",
        port_group,
        way=acl.way,
        priority=acl.priority,
        match=f"{port} == @{port_group} && {either}",
        action=entry.action,
        info=entry.info(),
    )


def _deny(c: _Compiler, way: Way) -> None:
    text = f"default deny: no {way.value} rule allows it"
    info = RuleInfo("", "", way.value, text, "default-deny")
    match = f"{_WAYS[way][1]} == @{ALL} && ip"
    c.add(text, ALL, way=way, priority=DROP_PRIORITY, match=match, action=Action.DROP, info=info)


def _dhcp(c: _Compiler) -> None:
    """What passes, and what never does, whatever the rules say."""
    for name, way, match, action, kind in (
        ("DHCP clients may ask", Way.EGRESS, _DHCP_REQUEST, Action.ALLOW_STATELESS, "plumbing"),
        ("DHCP servers may answer", Way.INGRESS, _DHCP_ANSWER, Action.ALLOW_STATELESS, "plumbing"),
        ("guests are no DHCP servers", Way.EGRESS, _DHCP_ANSWER, Action.DROP, "anti-spoofing"),
    ):
        full = f"{_WAYS[way][1]} == @{ALL} && {match}"
        info = RuleInfo("", "", way.value, name, kind, name)
        c.add(name, ALL, way=way, priority=ACL_PRIORITY_MAX, match=full, action=action, info=info)


def _port_security(end: Endpoint) -> RuleInfo:
    text = "egress only with the port's own addresses"
    return RuleInfo(end.name, "", Way.EGRESS.value, text, "anti-spoofing")


def _name(text: str, taken: set[str]) -> str:
    """The text, cut where OVN would refuse it, and numbered where it isn't the only one."""
    name, number = text[:NAME_MAX], 2
    while name in taken:
        suffix = f" #{number}"
        name, number = text[: NAME_MAX - len(suffix)] + suffix, number + 1
    return name


def _rule_match(c: _Compiler, group: Group, rule: GroupRule) -> str:
    """The rule in OVN's expression language."""
    _, port, side = _WAYS[rule.way]
    parts = [f"{port} == @{c.names[group.id]}", *_protocol_match(rule.protocol, rule.families)]
    parts += _icmp_match(rule.families, rule.icmp_type, rule.icmp_code)
    parts += _port_match("dst", rule.protocol, rule.ports, rule.id)
    named = remote_set(rule)
    if rule.remote_prefix is not None and rule.remote_prefix.prefixlen:
        parts.append(f"ip{rule.remote_prefix.version}.{side} == {rule.remote_prefix}")
    elif named:
        sets = [f"ip{family}.{side} == ${c.set_name(named, family)}" for family in rule.families]
        parts.append(sets[0] if len(sets) == 1 else f"({' || '.join(sets)})")
    return " && ".join(parts)


def _acl_match(match: AclMatch, acl_id: str) -> str:
    """One of an ACL entry's matches in OVN's expression language."""
    parts = _protocol_match(match.protocol, match.families)
    parts += _icmp_match(match.families, match.icmp_type, match.icmp_code)
    parts += _port_match("src", match.protocol, match.src_ports, acl_id)
    parts += _port_match("dst", match.protocol, match.dst_ports, acl_id)
    for side, prefixes in (("src", match.sources), ("dst", match.destinations)):
        texts = [f"ip{prefix.version}.{side} == {prefix}" for prefix in prefixes if prefix.prefixlen]
        if len(texts) == len(prefixes) > 0:
            parts.append(texts[0] if len(texts) == 1 else f"({' || '.join(texts)})")
    return " && ".join(parts)


def _protocol_match(protocol: int | None, families: tuple[int, ...]) -> list[str]:
    if protocol in (ICMP, ICMPV6):
        return [_ICMP[families]]
    parts = [_FAMILIES[families]] if protocol not in _WITH_PORTS or len(families) == 1 else []
    if protocol is None:
        return parts
    return [*parts, _WITH_PORTS.get(protocol, f"ip.proto == {protocol}")]


def _icmp_match(families: tuple[int, ...], icmp_type: int | None, icmp_code: int | None) -> list[str]:
    word = f"icmp{families[0]}"
    parts = [] if icmp_type is None else [f"{word}.type == {icmp_type}"]
    return parts if icmp_code is None else [*parts, f"{word}.code == {icmp_code}"]


def _port_match(side: str, protocol: int | None, ports: tuple[int, int] | None, rule_id: str) -> list[str]:
    if ports is None:
        return []
    if protocol not in _WITH_PORTS:
        raise UsageError(
            f"rule {rule_id}.port",
            f"OVN cannot match ports of {protocol_name(protocol or 0)}",
            allowed=", ".join(_WITH_PORTS.values()),
        )
    first, last = ports
    field = f"{_WITH_PORTS[protocol]}.{side}"
    return [f"{field} == {first}" if first == last else f"{first} <= {field} <= {last}"]
