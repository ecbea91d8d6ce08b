"""What is found without sending anything: connections that outlive their rules, and OVN's rules that switches lack."""

from collections.abc import Sequence
from functools import partial

import trio

from netprobe.errors import NetprobeError
from netprobe.host.ovn_consistency import ChassisLack, OvnConsistency
from netprobe.judge.findings import Finding, FindingKind
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.policy import Policy
from netprobe.model.topology import Topology
from netprobe.service.policy_models import ModelAsker
from netprobe.service.stale_connections import LivingConnection, living_connections

MOST_CONNECTIONS = 100
"""Stale connections that are told one by one."""


async def stale_findings(policy: Policy, topology: Topology) -> list[Finding]:
    """Connections between the policy's ports that it permits no more, and that live on in conntrack.

    A connection whose packets still pass is a leak; one that the rules stop anyway is none.
    """
    try:
        with ModelAsker() as asker:
            found = await living_connections(policy, topology, asker)
    except NetprobeError as error:
        return [Finding(FindingKind.UNPROVEN, f"connections that outlive their rules: {error}")]
    leaks = [one for one in found if one.is_leak]
    findings = [_stale(one) for one in leaks[:MOST_CONNECTIONS]]
    if len(leaks) > MOST_CONNECTIONS:
        findings.append(Finding(FindingKind.LEAK, f"{len(leaks) - MOST_CONNECTIONS} more connections like these"))
    return findings


def _stale(one: LivingConnection) -> Finding:
    stale = one.stale
    return Finding(
        FindingKind.LEAK,
        f"stale conntrack: {one.text}",
        src=stale.src,
        dst=stale.dst,
        packet=stale.packet.text(),
        expected=f"be dropped at {stale.check.point}",
        observed="its connection is still known",
        rule=stale.check.text,
        rule_id=stale.check.rule,
        decided=one.onward if one.onward.is_allowed else one.back,
    )


async def consistency_findings(topology: Topology) -> list[Finding]:
    """Where a chassis' switch lacks what OVN's databases want there, or has what nobody wants."""
    if topology.ovn is None:
        return []
    check = partial(OvnConsistency(topology.ovn).check, topology.hosts)
    try:
        lacks: Sequence[ChassisLack] = await trio.to_thread.run_sync(check)
    except NetprobeError as error:
        return [Finding(FindingKind.UNPROVEN, f"whether the switches have what OVN's databases want: {error}")]
    return [_lack(one, topology) for one in lacks]


def _lack(one: ChassisLack, topology: Topology) -> Finding:
    row = one.row
    known = topology.rules.get(row.name, {}) if row is not None else {}
    flow = one.found.flow
    decided = ModelAnswer(
        None,
        host=one.host,
        place="" if flow is None else f"stage {flow.stage} of {one.found.switch}",
        rule=row.title if row is not None else "",
        rule_id=known.get("id", "") or (row.name if row is not None else ""),
        detail=one.found.detail,
    )
    return Finding(
        FindingKind.DIVERGENCE,
        f"the switch is not what OVN's database says: {one.text}",
        src=", ".join(one.found.ports),
        rule=known.get("rule", ""),
        rule_id=decided.rule_id,
        decided=decided,
    )
