"""What iptables does with a packet that crosses a Linux bridge: a walk through the chains. Pure.

For the rules that Neutron's hybrid firewall uses; a condition or target that is not known makes the answer "cannot
tell" and says which it was. judge.iptables_rules, below, reads the texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from netprobe.judge.iptables_conditions import Crossing, IpSet, Passing
from netprobe.judge.iptables_rules import Chain, IptablesRule, RuleSet
from netprobe.model.packets import ConnState, Packet
from netprobe.model.policy import ICMPV6

HOOKS = (
    ("raw", "PREROUTING"),
    ("mangle", "PREROUTING"),
    ("mangle", "FORWARD"),
    ("filter", "FORWARD"),
    ("mangle", "POSTROUTING"),
)
"""What a bridged packet goes through, in this order. nat sees first packets only, and never drops one."""

VERDICTS = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN"})
PASSING_ON = frozenset(
    {"LOG", "NFLOG", "TRACE", "MARK", "CONNMARK", "CT", "NOTRACK", "CHECKSUM", "TCPMSS", "SECMARK", ""}
)
"""Targets behind which the walk goes on."""

_NEVER_TRACKED = frozenset({*range(130, 137), 143})
"""ICMPv6 types that Linux tracks no connection of (nf_conntrack_proto_icmpv6.c): listeners and neighbours."""

_CT_STATES = {
    ConnState.NEW: "NEW",
    ConnState.ESTABLISHED: "ESTABLISHED",
    ConnState.REPLY: "ESTABLISHED",
    ConnState.RELATED: "RELATED",
    ConnState.INVALID: "INVALID",
}

MAX_DEPTH = 64
"""Chains in chains; the kernel allows no loop, a text may."""


@dataclass(frozen=True, slots=True)
class IptablesVerdict:
    """What the chains do with a packet.

    Attributes:
        is_allowed: None where that cannot be told.
        table, chain: where it was decided.
        rule: the rule that decided, None where a chain's policy did.
        trail: the rules that matched, in order.
        zone: of conntrack, None where no rule set one.
        unknown: the condition, target or chain that is not known, "" where all was.
    """

    is_allowed: bool | None
    table: str = ""
    chain: str = ""
    rule: IptablesRule | None = None
    trail: tuple[IptablesRule, ...] = ()
    zone: int | None = None
    unknown: str = ""

    @property
    def is_rejected(self) -> bool:
        """Dropped, and its sender told."""
        return self.rule is not None and self.rule.target == "REJECT"

    @property
    def deciding(self) -> IptablesRule | None:
        """The rule that says why, where the last one only says what.

        A port's chain returns what it permits, and a common chain accepts it; what nothing permits it sends to a common
        chain that drops. So it is the last return of one that passes, and the last rule that is not alone in its chain.
        """
        if self.is_allowed:
            returns = [rule for rule in self.trail if rule.target == "RETURN"]
            return returns[-1] if returns else self.rule
        jumps = [rule for rule in self.trail if rule is not self.rule]
        if self.rule is not None and not self.rule.conditions and self.rule.number == 1 and jumps:
            return jumps[-1]
        return self.rule


@dataclass(slots=True)
class _Walk:
    rules: RuleSet
    at: Passing
    table: str = ""
    trail: list[IptablesRule] = field(default_factory=list)
    zone: int | None = None

    def hook(self, table: str, name: str) -> IptablesVerdict | None:
        """The verdict of one hook; None where the packet goes on."""
        self.table = table
        chain = self.rules.chain(table, name)
        if chain is None:
            return None
        found = self._chain(chain, 0)
        if found is not None:
            return None if found.is_allowed and table != "filter" else found
        if chain.policy == "DROP" or table == "filter":
            return self._said(chain.policy, chain)
        return None

    def _said(self, target: str, chain: Chain, rule: IptablesRule | None = None, unknown: str = "") -> IptablesVerdict:
        is_allowed = None if unknown else target == "ACCEPT"
        return IptablesVerdict(is_allowed, self.table, chain.name, rule, tuple(self.trail), self.zone, unknown)

    def _chain(self, chain: Chain, depth: int) -> IptablesVerdict | None:
        """The verdict of a chain; None where it returns."""
        for rule in chain.rules:
            unknown = self._unknown_of(rule)
            if unknown is None:
                continue
            if unknown and rule.target not in PASSING_ON:
                return self._said(rule.target, chain, rule, unknown)
            self.trail.append(rule)
            if rule.target == "RETURN":
                return None
            found = self._target(chain, rule, depth)
            if found is not None:
                return found
            if rule.is_goto:
                return None
        return self._said(chain.policy, chain) if depth and chain.policy in {"ACCEPT", "DROP"} else None

    def _unknown_of(self, rule: IptablesRule) -> str | None:
        """None where the rule does not match; the first condition that cannot be told, "" where all hold."""
        unknown = ""
        for condition in rule.conditions:
            holds = condition.holds(self.at)
            if holds is False:
                return None
            if holds is None:
                unknown = unknown or condition.text
        return unknown

    def _target(self, chain: Chain, rule: IptablesRule, depth: int) -> IptablesVerdict | None:
        if rule.target in VERDICTS:
            return self._said(rule.target, chain, rule)
        if rule.target in PASSING_ON:
            return self._track(chain, rule)
        inner = self.rules.chain(self.table, rule.target)
        if inner is None or depth >= MAX_DEPTH:
            return self._said(rule.target, chain, rule, f"-j {rule.target}")
        return self._chain(inner, depth + 1)

    def _track(self, chain: Chain, rule: IptablesRule) -> IptablesVerdict | None:
        """What the target says about conntrack."""
        if rule.target == "NOTRACK" or (rule.target == "CT" and "--notrack" in rule.options):
            self.at = replace(self.at, ct_state="UNTRACKED")
        elif rule.target == "CT" and "--zone" in rule.options:
            zone = rule.options[rule.options.index("--zone") + 1 :][:1]
            if not zone or not zone[0].isascii() or not zone[0].isdigit():
                return self._said(rule.target, chain, rule, f"-j {' '.join([rule.target, *rule.options])}")
            self.zone = int(zone[0])
        return None


def evaluate(
    rules: RuleSet,
    sets: Mapping[str, IpSet],
    packet: Packet,
    state: ConnState,
    crossing: Crossing,
    *,
    hooks: Sequence[tuple[str, str]] = HOOKS,
) -> IptablesVerdict:
    """What iptables does with a packet at one bridge.

    Args:
        rules: of the packet's family.
        sets: the ipsets that the rules refer to.
        packet: with concrete ports. Fragments count as the whole datagram, because it is put together before the rules.
        state: what conntrack makes of it in its zone.
        crossing: where.
        hooks: tables and chains that it goes through; the last chain of table filter has the last word.
    """
    is_untracked = packet.protocol == ICMPV6 and packet.icmp_type in _NEVER_TRACKED
    walk = _Walk(rules, Passing(packet, crossing, "UNTRACKED" if is_untracked else _CT_STATES[state], sets))
    accepted = IptablesVerdict(True, "filter", "FORWARD")
    for table, chain in hooks:
        found = walk.hook(table, chain)
        if found is not None and not found.is_allowed:
            return found
        accepted = found if found is not None else accepted
    return replace(accepted, zone=walk.zone)
