"""Security groups as OVN port groups and ACLs, as Neutron's OVN driver compiles them. Pure.

A port group a security group; each rule is one ACL that allows, with its connection's answers; a port group of all
ports has two ACLs that drop what no rule allows. Remote groups are the address sets that OVN makes of each port group.
What an ACL's name means is in `rules`, for the state file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from netprobe.lab.config import Group, LabConfig, Rule
from netprobe.lab.topology import Endpoint

ALLOW_PRIORITY = 1002
DROP_PRIORITY = 1001
NAME_MAX = 63
"""OVN's schema says so."""

ALL = "pg_all"

_WAYS = {"ingress": ("to-lport", "outport", "src"), "egress": ("from-lport", "inport", "dst")}
_FAMILIES = {(4,): "ip4", (6,): "ip6", (4, 6): "ip"}
_ICMP = {(4,): "icmp4", (6,): "icmp6", (4, 6): "(icmp4 || icmp6)"}


@dataclass(frozen=True, slots=True)
class Acl:
    """An ACL of a port group.

    Attributes:
        label: marks the connections that it admitted, in conntrack; 0 for those that drop, which may have none.
        rule: what it stands for, as in the state file's `rules`.
    """

    name: str
    port_group: str
    direction: str
    priority: int
    match: str
    label: int
    rule: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The command of ovn-nbctl that adds it."""
        options = [f"--name={self.name}", *([f"--label={self.label}"] if self.label else [])]
        verdict = "allow-related" if self.label else "drop"
        way = _WAYS[self.direction][0]
        return [*options, "acl-add", self.port_group, way, str(self.priority), self.match, verdict]


@dataclass(frozen=True, slots=True)
class CompiledAcls:
    """Port groups with the names of their endpoints, and ACLs."""

    port_groups: dict[str, tuple[Endpoint, ...]]
    acls: tuple[Acl, ...]

    def rules_json(self) -> dict[str, dict[str, str]]:
        """As in the state file: by the ACL's name."""
        return {acl.name: acl.rule for acl in self.acls}


def compile_acls(config: LabConfig, ends: Sequence[Endpoint]) -> CompiledAcls:
    """Compile a lab's security groups.

    Args:
        config: groups and rules.
        ends: every guest and bypass NIC.
    """
    names = _port_group_names(config.groups)
    members = {names[g.name]: tuple(end for end in ends if g.name in end.groups) for g in config.groups}
    acls: list[Acl] = []
    for group in config.groups:
        for rule in group.rules:
            acls.append(_allow(group, rule, names, taken={acl.name for acl in acls}, label=len(acls) + 1))
    return CompiledAcls({ALL: tuple(ends), **members}, (*acls, *map(_drop, _WAYS)))


def _port_group_names(groups: Sequence[Group]) -> dict[str, str]:
    """Port groups' names: OVN allows letters, digits, dots and underscores, and two groups may look alike then."""
    names: dict[str, str] = {}
    for number, group in enumerate(groups):
        plain = "sg_" + re.sub(r"[^A-Za-z0-9_]", "_", group.name)
        names[group.name] = plain if plain not in names.values() else f"{plain}.{number}"
    return names


def _allow(group: Group, rule: Rule, names: dict[str, str], *, taken: set[str], label: int) -> Acl:
    text = rule.text()
    info = {"port": "", "group": group.name, "direction": rule.direction, "rule": text}
    return Acl(
        _name(f"{group.name}: {text}", taken),
        names[group.name],
        rule.direction,
        ALLOW_PRIORITY,
        _match(rule, names, group.name),
        label,
        info | {"kind": "security-group", "label": str(label)},
    )


def _drop(direction: str) -> Acl:
    text = f"default deny: no {direction} rule allows it"
    port = _WAYS[direction][1]
    info = {"port": "", "group": "", "direction": direction, "rule": text, "kind": "default-deny", "label": ""}
    return Acl(text, ALL, direction, DROP_PRIORITY, f"{port} == @{ALL} && ip", 0, info)


def _name(text: str, taken: set[str]) -> str:
    """The text, cut where OVN would refuse it, and numbered where it isn't the only one."""
    name, number = text[:NAME_MAX], 2
    while name in taken:
        suffix = f" #{number}"
        name, number = text[: NAME_MAX - len(suffix)] + suffix, number + 1
    return name


def _match(rule: Rule, names: dict[str, str], group: str) -> str:
    """The rule in OVN's expression language."""
    _, port, side = _WAYS[rule.direction]
    parts = [f"{port} == @{names[group]}"]
    if rule.protocol == "icmp":
        parts.append(_ICMP[rule.families])
    elif rule.protocol == "any" or len(rule.families) == 1:
        parts.append(_FAMILIES[rule.families])
    if rule.protocol in ("tcp", "udp"):
        parts.append(rule.protocol)
    if rule.ports:
        first, last = rule.ports
        field = f"{rule.protocol}.dst"
        parts.append(f"{field} == {first}" if first == last else f"{first} <= {field} <= {last}")
    if rule.remote_prefix is not None and rule.remote_prefix.prefixlen:
        parts.append(f"ip{rule.remote_prefix.version}.{side} == {rule.remote_prefix}")
    elif rule.remote_group:
        sets = [f"ip{family}.{side} == ${names[rule.remote_group]}_ip{family}" for family in rule.families]
        parts.append(sets[0] if len(sets) == 1 else f"({' || '.join(sets)})")
    return " && ".join(parts)
