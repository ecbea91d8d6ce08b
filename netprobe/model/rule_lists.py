"""What stands at each port, as one list by priority: rules of groups and ACL entries in the same form. Pure values.

The first entry that matches decides. Ports with the same groups and ACLs share one list. Used by judge.evaluator,
which decides with it, and by plan.covering, which chooses packets that exercise every entry.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from netprobe.model.conntrack_rules import is_icmp
from netprobe.model.packets import Fragment, Packet
from netprobe.model.policy import (
    DENY_PRIORITY,
    GROUP_PRIORITY,
    ICMP,
    ICMPV6,
    AclMatch,
    Action,
    Group,
    GroupRule,
    IPNetwork,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
    protocol_name,
)

EPHEMERAL = (61000, 65535)
"""netprobe's own block, from which ports that a packet leaves open are chosen (plan.budget.PORT_BLOCK)."""
FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Addresses of one family, as numbers: ranges that are sorted, disjoint and do not touch.

    Attributes:
        firsts, lasts: of each range, both inclusive.
        parts: the prefixes that it was made of, as first and last: what a backend compiles one by one.
    """

    firsts: tuple[int, ...]
    lasts: tuple[int, ...]
    parts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, prefixes: Iterable[IPNetwork], family: int) -> "AddressSet":
        """The addresses of a family in any of the prefixes."""
        found = [prefix for prefix in prefixes if prefix.version == family]
        return cls.of_ranges((int(prefix.network_address), int(prefix.broadcast_address)) for prefix in found)

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> "AddressSet":
        """The addresses in any of the ranges: first and last, inclusive, in any order."""
        parts = tuple(sorted(set(ranges)))
        merged: list[list[int]] = []
        for first, last in parts:
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        return cls(tuple(first for first, _ in merged), tuple(last for _, last in merged), parts)

    def holds(self, number: int) -> bool:
        """Whether an address is among them."""
        at = bisect_right(self.firsts, number) - 1
        return at >= 0 and number <= self.lasts[at]

    def is_within(self, other: "AddressSet") -> bool:
        """Whether all of it is in the other."""
        for first, last in zip(self.firsts, self.lasts, strict=True):
            at = bisect_right(other.firsts, first) - 1
            if at < 0 or last > other.lasts[at]:
                return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One entry of a port's list, for one family. None is "any". Two entries that say the same are still two.

    Attributes:
        rule: the user's id of the rule or ACL.
        text: the rule for people.
        action: never ALLOW: it is known here what that means; at a stateless port every allow is so.
        protocol: the number in packets of this family.
        dst_ports, src_ports: first and last.
        sources, destinations: whom it is about; empty where a group has no member of the family.
        is_acl: not a group's rule.
        allows: what its action says, at hand.
    """

    rule: str
    text: str
    family: int
    priority: int
    action: Action
    protocol: int | None = None
    dst_ports: tuple[int, int] | None = None
    src_ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    sources: AddressSet | None = None
    destinations: AddressSet | None = None
    is_acl: bool = False
    allows: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allows", self.action.allows)

    @property
    def is_stateless(self) -> bool:
        """Whether what it lets pass is not tracked."""
        return self.action is Action.ALLOW_STATELESS

    def fits(self, packet: Packet, *, is_tracked: bool) -> bool:
        """Whether it matches, addresses aside.

        Args:
            packet: of any family.
            is_tracked: conntrack puts datagrams together, so that later fragments have their ports. Without it they
                match only entries that ask for none.
        """
        if self.protocol != packet.protocol and self.protocol is not None:
            return False
        if not (_within(packet.dst_port, self.dst_ports) and _within(packet.src_port, self.src_ports)):
            return False
        if packet.src_ip.version != self.family:
            return False
        if not is_tracked and packet.fragment is Fragment.LATER:
            return not (self.dst_ports or self.src_ports or self.icmp_type is not None)
        if self.icmp_type is None:
            return True
        return is_icmp(packet) and packet.icmp_type == self.icmp_type and self.icmp_code in (None, packet.icmp_code)

    def is_between(self, source: int, destination: int) -> bool:
        """Whether its addresses match."""
        return (self.sources is None or self.sources.holds(source)) and (
            self.destinations is None or self.destinations.holds(destination)
        )


@dataclass(frozen=True, slots=True, eq=False)
class PortRules:
    """Both lists of ports that have the same groups and ACLs.

    Attributes:
        entries: by way, in the order in which they decide.
        buried: by way, entries that the default deny leaves nothing to.
        is_stateful: conntrack looks at what no stateless entry matches.
    """

    entries: dict[Way, tuple[Entry, ...]]
    buried: dict[Way, tuple[Entry, ...]]
    is_stateful: bool


@dataclass(frozen=True, slots=True, eq=False)
class RuleLists:
    """The lists of a policy's ports, made when they are asked for."""

    policy: Policy
    _by_profile: dict[tuple[object, ...], PortRules] = field(default_factory=dict, repr=False)
    _by_group: dict[str, dict[Way, tuple[Entry, ...]]] = field(default_factory=dict, repr=False)
    _remotes: dict[tuple[object, ...], AddressSet] = field(default_factory=dict, repr=False)
    _stateful_networks: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        related = [acl for acl in self.policy.acls if acl.action is Action.ALLOW_RELATED]
        self._stateful_networks.update(
            port.network for port in self.policy.ports if any(acl.is_on(port) for acl in related)
        )

    def at(self, port: PolicyPort) -> PortRules:
        """What stands at a port, whether or not it has port security."""
        acls = tuple(acl for acl in self.policy.acls if acl.is_on(port))
        groups = tuple(dict.fromkeys(port.groups))
        is_stateful = self._is_stateful(port)
        profile = (groups, tuple(id(acl) for acl in acls), is_stateful)
        if profile not in self._by_profile:
            lists = {way: self._entries(groups, acls, way, is_stateful=is_stateful) for way in Way}
            floor = DENY_PRIORITY if self.policy.has_default_deny else -1
            self._by_profile[profile] = PortRules(
                {way: tuple(entry for entry in found if entry.priority > floor) for way, found in lists.items()},
                {way: tuple(entry for entry in found if entry.priority <= floor) for way, found in lists.items()},
                is_stateful,
            )
        return self._by_profile[profile]

    def is_guarded(self, port: PolicyPort) -> bool:
        """Whether its list is asked at all. Neutron turns everything off with port security; bare ACLs know of none."""
        return port.has_port_security or not self.policy.has_default_deny

    def _is_stateful(self, port: PolicyPort) -> bool:
        """Groups of a port are of one kind. Among bare ACLs one `allow-related` makes all of its network so (OVN)."""
        if port.groups:
            return any(self.policy.group(group).is_stateful for group in port.groups)
        return self.policy.has_default_deny or port.network in self._stateful_networks

    def _entries(
        self, groups: tuple[str, ...], acls: tuple[NetworkAcl, ...], way: Way, *, is_stateful: bool
    ) -> tuple[Entry, ...]:
        found = [entry for acl in acls if acl.way is way for entry in _acl_entries(acl, is_stateful=is_stateful)]
        for group in groups:
            found += self._group_entries(group)[way]
        # Of equal ones a drop comes before an allow; else the policy's own order, so that names are always the same.
        return tuple(sorted(found, key=lambda entry: (-entry.priority, entry.allows)))

    def _group_entries(self, group_id: str) -> dict[Way, tuple[Entry, ...]]:
        if group_id not in self._by_group:
            group = self.policy.group(group_id)
            self._by_group[group_id] = {
                way: tuple(
                    self._rule_entry(group, rule, family)
                    for rule in group.rules
                    if rule.way is way
                    for family in rule.families
                )
                for way in Way
            }
        return self._by_group[group_id]

    def _rule_entry(self, group: Group, rule: GroupRule, family: int) -> Entry:
        remote = self._remote(rule, family)
        return Entry(
            rule=rule.id,
            text=f"{group.title}: {rule.text()}",
            family=family,
            priority=GROUP_PRIORITY,
            action=Action.ALLOW_RELATED if group.is_stateful else Action.ALLOW_STATELESS,
            protocol=rule.protocol_in(family),
            dst_ports=rule.ports,
            icmp_type=rule.icmp_type,
            icmp_code=rule.icmp_code,
            sources=remote if rule.way is Way.INGRESS else None,
            destinations=remote if rule.way is Way.EGRESS else None,
        )

    def _remote(self, rule: GroupRule, family: int) -> AddressSet | None:
        key = (rule.remote_group, rule.remote_address_group, rule.remote_prefix, family)
        if not any(key[:3]):
            return None
        if key not in self._remotes:
            self._remotes[key] = AddressSet.of(self.policy.remote_prefixes(rule, family) or (), family)
        return self._remotes[key]


def _acl_entries(acl: NetworkAcl, *, is_stateful: bool) -> Iterable[Entry]:
    action = acl.action
    if action in (Action.ALLOW, Action.ALLOW_RELATED):
        action = Action.ALLOW_RELATED if is_stateful else Action.ALLOW_STATELESS
    for match in acl.matches:
        for family in match.families:
            protocol = match.protocol
            if protocol in (ICMP, ICMPV6):
                protocol = ICMP if family == 4 else ICMPV6
            yield Entry(
                rule=acl.id,
                text=f"acl {acl.id}: {acl.action.value} {acl.way.value} {_match_text(match)}, priority {acl.priority}",
                family=family,
                priority=acl.priority,
                action=action,
                protocol=protocol,
                dst_ports=match.dst_ports,
                src_ports=match.src_ports,
                icmp_type=match.icmp_type,
                icmp_code=match.icmp_code,
                sources=AddressSet.of(match.sources, family) if match.sources else None,
                destinations=AddressSet.of(match.destinations, family) if match.destinations else None,
                is_acl=True,
            )


def _match_text(match: AclMatch) -> str:
    words = ["any protocol" if match.protocol is None else protocol_name(match.protocol)]
    for name, ports in (("sport", match.src_ports), ("dport", match.dst_ports)):
        if ports:
            words.append(f"{name} {ports[0]}" if ports[0] == ports[1] else f"{name} {ports[0]}-{ports[1]}")
    if match.icmp_type is not None:
        words.append(f"type {match.icmp_type}" + ("" if match.icmp_code is None else f" code {match.icmp_code}"))
    for name, prefixes in (("from", match.sources), ("to", match.destinations)):
        if prefixes:
            words.append(f"{name} {', '.join(map(str, prefixes))}")
    return " ".join(words)


def _within(port: int | None, ports: tuple[int, int] | None) -> bool:
    """An open port is within where all that may be chosen for it are."""
    if ports is None:
        return True
    if port is None:
        return ports[0] <= EPHEMERAL[0] and EPHEMERAL[1] <= ports[1]
    return ports[0] <= port <= ports[1]
