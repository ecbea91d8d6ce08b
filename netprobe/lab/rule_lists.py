"""What is asked at a port, in order: network ACLs and the rules of its groups as one list a direction. Pure.

The three compilers (flows, acls, iptables_rules) turn these lists into what their backend enforces, and RuleInfo into
what the state file says of it. The order is that of netprobe.model.policy: by priority, and what drops first where two
are equal.
"""

from dataclasses import asdict, dataclass
from itertools import product

from netprobe.model.policy import (
    GROUP_PRIORITY,
    ICMP,
    ICMPV6,
    AclMatch,
    Action,
    Group,
    GroupRule,
    IPAddress,
    IPNetwork,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
)


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """What a flow's cookie, an ACL's name or an iptables rule's comment stands for.

    Attributes:
        port: endpoint whose port it guards, empty for what all share.
        group: security group, empty for what every port has.
        direction: "ingress", "egress" or empty.
        rule: the rule for people.
        kind: "security-group", "network-acl", "default-deny", "anti-spoofing", "conntrack-invalid", "revoked" or
            "plumbing".
        id: the user's own name for the rule or ACL entry; `<kind> <port> <direction>` for what nobody wrote.
    """

    port: str
    group: str
    direction: str
    rule: str
    kind: str
    id: str = ""

    def to_json(self) -> dict[str, str]:
        """As in the state file."""
        values: dict[str, str] = asdict(self)
        return values | {"id": self.id or " ".join(filter(None, (self.kind, self.port, self.direction)))}


@dataclass(frozen=True, slots=True)
class Match:
    """What one line matches in one family: a prefix of each side, None for any.

    Attributes:
        remote_set: the other side is a named set of addresses instead: ("group" or "address-group", its id).
    """

    family: int
    protocol: int | None = None
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    src_ports: tuple[int, int] | None = None
    dst_ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote_set: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a port's list.

    Attributes:
        id: the user's own name for it.
        group: whose rule it is, "" for an ACL.
        text: the rule for people.
        says: how much a group's rule says (port 4, protocol 2, remote side 1); 0 for an ACL.
    """

    id: str
    way: Way
    group: str
    text: str
    priority: int
    action: Action
    matches: tuple[Match, ...]
    says: int = 0

    @property
    def kind(self) -> str:
        """As in RuleInfo."""
        return "security-group" if self.group else "network-acl"

    def info(self, port: str = "") -> RuleInfo:
        """What the state file says of it; `port` is "" where it is made once for all ports."""
        return RuleInfo(port, self.group, self.way.value, self.text, self.kind, self.id)


def is_stateless(policy: Policy, port: PolicyPort) -> bool:
    """Whether a port's groups are stateless; there is no mixture (plan.policy_checks)."""
    return bool(port.groups) and not any(policy.group(group).is_stateful for group in port.groups)


def acl_action(acl: NetworkAcl, *, stateless: bool = False) -> Action:
    """What an entry does: `allow` is `allow-related` on a port that has connections, as all but stateless ones have."""
    if acl.action in (Action.ALLOW, Action.ALLOW_RELATED):
        return Action.ALLOW_STATELESS if stateless else Action.ALLOW_RELATED
    return acl.action


def entries(policy: Policy, port: PolicyPort, way: Way, *, with_sets: bool = False) -> list[Entry]:
    """What is asked at a port, in the order in which it decides. Nothing where port security is off.

    Args:
        policy: bound to the lab's endpoints.
        port: one of its ports.
        way: direction.
        with_sets: remote groups and address groups stay sets, instead of one match for each of their prefixes.
    """
    if not port.has_port_security:
        return []
    stateless = is_stateless(policy, port)
    found = [acl_entry(acl, stateless=stateless) for acl in policy.acls if acl.way is way and acl.is_on(port)]
    for name in port.groups:
        group = policy.group(name)
        found += [rule_entry(policy, group, rule, with_sets=with_sets) for rule in group.rules if rule.way is way]
    return sorted(found, key=lambda entry: (-entry.priority, entry.action.allows))


def acl_entry(acl: NetworkAcl, *, stateless: bool = False) -> Entry:
    """A network ACL's line."""
    text = f"{acl.way.value} network ACL {acl.id}, priority {acl.priority}: {acl.action.value}"
    matches = tuple(match for each in acl.matches for match in _acl_matches(each))
    return Entry(acl.id, acl.way, "", text, acl.priority, acl_action(acl, stateless=stateless), matches)


def _acl_matches(match: AclMatch) -> list[Match]:
    found = []
    for family in match.families:
        sides = [[p for p in side if p.version == family] for side in (match.sources, match.destinations)]
        if (match.sources and not sides[0]) or (match.destinations and not sides[1]):
            continue
        choices: list[list[IPNetwork] | list[None]] = [side or [None] for side in sides]
        for source, destination in product(*choices):
            found.append(
                Match(
                    family,
                    match.protocol,
                    source,
                    destination,
                    match.src_ports,
                    match.dst_ports,
                    match.icmp_type,
                    match.icmp_code,
                )
            )
    return found


def rule_entry(policy: Policy, group: Group, rule: GroupRule, *, with_sets: bool = False) -> Entry:
    """A group rule's line."""
    remote = bool(rule.remote_group or rule.remote_address_group or rule.remote_prefix)
    says = 4 * bool(rule.ports) + 2 * (rule.protocol is not None) + remote
    action = Action.ALLOW_RELATED if group.is_stateful else Action.ALLOW_STATELESS
    matches = tuple(
        match for family in rule.families for match in _rule_matches(policy, rule, family, with_sets=with_sets)
    )
    return Entry(rule.id, rule.way, group.title, rule.text(), GROUP_PRIORITY, action, matches, says)


def remote_set(rule: GroupRule) -> tuple[str, str] | None:
    """The named set that a rule's other side is in."""
    if rule.remote_group:
        return "group", rule.remote_group
    return ("address-group", rule.remote_address_group) if rule.remote_address_group else None


def _rule_matches(policy: Policy, rule: GroupRule, family: int, *, with_sets: bool) -> list[Match]:
    named = remote_set(rule) if with_sets else None
    remotes: tuple[IPNetwork | None, ...] | None = (None,) if named else policy.remote_prefixes(rule, family)
    found = []
    for prefix in (None,) if remotes is None else remotes:
        wide = prefix is None or prefix.prefixlen == 0
        source, destination = (prefix, None) if rule.way is Way.INGRESS else (None, prefix)
        found.append(
            Match(
                family,
                rule.protocol_in(family),
                None if wide else source,
                None if wide else destination,
                None,
                rule.ports,
                rule.icmp_type,
                rule.icmp_code,
                named,
            )
        )
    return found


def set_prefixes(policy: Policy, named: tuple[str, str], family: int) -> tuple[IPNetwork, ...]:
    """The addresses of a named set, in a family."""
    kind, name = named
    rule = GroupRule("", Way.INGRESS, (family,), **{f"remote_{kind.replace('-', '_')}": name})  # type: ignore[arg-type]
    return policy.remote_prefixes(rule, family) or ()


def lets_echo_pass(line: list[Entry], source: IPAddress, target: IPAddress, icmp_type: int) -> bool:
    """Whether the first line that matches an ICMP message with code 0 allows it; what none matches is dropped.

    Args:
        line: of `entries`, without sets.
        source: its sender.
        target: its receiver.
        icmp_type: of its family's ICMP.
    """
    protocol = ICMP if source.version == 4 else ICMPV6
    for entry in line:
        for match in entry.matches:
            if (
                match.family == source.version
                and match.protocol in (None, protocol)
                and match.icmp_type in (None, icmp_type)
                and match.icmp_code in (None, 0)
                and (match.source is None or source in match.source)
                and (match.destination is None or target in match.destination)
            ):
                return entry.action.allows
    return False
