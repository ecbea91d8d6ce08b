"""What cannot be proved from here, as findings: no run, however long, would decide it. Pure."""

from collections.abc import Iterable, Sequence

from netprobe.judge.findings import Finding, FindingKind
from netprobe.model.packets import Cover
from netprobe.model.policy import Policy, PolicyPort

ALONE = "there is no other port to try it with"


def gap_findings(policy: Policy, cover: Cover, ports: Sequence[PolicyPort]) -> list[Finding]:
    """An unproven finding for each remark of the policy, gap of its scenarios, rule that nothing shows, and lone port.

    Args:
        policy: bound.
        cover: what is sent.
        ports: those that are attached within reach.
    """
    remarks = [Finding(FindingKind.UNPROVEN, remark) for remark in policy.remarks]
    gaps = [*cover.unproven, *_unseen_rules(policy, cover), *_lone_ports(cover, ports)]
    return [*remarks, *(Finding(FindingKind.UNPROVEN, why, rule_id=what, expected=what) for what, why in gaps)]


def _unseen_rules(policy: Policy, cover: Cover) -> list[tuple[str, str]]:
    """Rules that no packet shows, each with the reason: another enforcement point stops all that would."""
    steps = (step for scenario in cover.scenarios for step in scenario.steps)
    seen = {check.rule for step in steps for check in step.expected.checks}
    known = seen | {rule.id for group in policy.groups for rule in group.rules}
    told = {what for what, _ in cover.unproven}
    found = {_rule_of(what, known): why for what, why in cover.unreachable}
    unseen = ((rule, why) for rule, why in found.items() if rule not in seen | told)
    return [(rule, f"no packet between these ports can show it: {why}") for rule, why in unseen]


def _rule_of(what: str, known: Iterable[str]) -> str:
    """The rule that a gap is about: `<rule>` or `<rule>:<part>`; OVN's names have colons too."""
    return max((rule for rule in known if what == rule or what.startswith(f"{rule}:")), key=len, default=what)


def _lone_ports(cover: Cover, ports: Sequence[PolicyPort]) -> list[tuple[str, str]]:
    tried = {name for scenario in cover.scenarios for name in (scenario.src, scenario.dst)}
    return [(port.name, ALONE) for port in ports if port.name not in tried]
