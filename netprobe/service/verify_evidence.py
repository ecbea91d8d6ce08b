"""Proves for the first findings which rule it was: bursts of the very packet, and the rule's own counter.

Six seconds a rule in a switch, since an idle one counts every half second; a moment with iptables. Only first packets
of scenarios can be sent again and again, so only for them.
"""

from collections.abc import Sequence
from dataclasses import replace

from netprobe.judge.findings import Finding, FindingKind
from netprobe.model.packets import Scenario
from netprobe.model.topology import Topology
from netprobe.service.rule_evidence import prove
from netprobe.service.verify_rounds import Rounds

PROVABLE = (FindingKind.LEAK, FindingKind.OVERBLOCK, FindingKind.WRONG_PLACE)


async def prove_findings(
    findings: Sequence[Finding], scenarios: Sequence[Scenario], rounds: Rounds, topology: Topology, most: int
) -> list[Finding]:
    """The findings, the first of them with what the counter of the rule says that the model blames.

    Args:
        findings: worst first.
        scenarios: by number.
        rounds: over, with its wire still open.
        topology: where rules' hosts are.
        most: so many are proved at the most.
    """
    proved: list[Finding] = []
    for finding in findings:
        is_next = most > 0 and finding.kind in PROVABLE and finding.scenario is not None and not finding.step
        if is_next and finding.decided is not None and not rounds.stop.asked():
            most -= 1
            finding = await _proved(finding, scenarios[finding.scenario or 0], rounds, topology)  # noqa: PLW2901
        proved.append(finding)
    return proved


async def _proved(finding: Finding, scenario: Scenario, rounds: Rounds, topology: Topology) -> Finding:
    async def send(count: int) -> int:
        return await rounds.burst(scenario, count)

    assert finding.decided is not None, finding
    answer = await prove(finding.decided, scenario.steps[0].packet.family, topology, send)
    return replace(finding, decided=answer)
