"""Whether `netprobe verify` finds a mutant: a verification of the original policy against what is enforced now."""

from dataclasses import dataclass, replace
from functools import partial

import trio

from mutation.enforcement import Pace
from netprobe.host.signals import StopRequest
from netprobe.judge.findings import Finding, FindingKind
from netprobe.model.topology import Topology
from netprobe.plan.policy_file import parse_policy
from netprobe.service.discovery import read_topology
from netprobe.service.verify import VerifyOrder, VerifyPlan, plan_verify, verify

KILLING = (FindingKind.LEAK, FindingKind.OVERBLOCK, FindingKind.WRONG_PLACE, FindingKind.DIVERGENCE)


@dataclass(frozen=True, slots=True)
class Hunter:
    """A verification that is planned once and carried out again and again."""

    order: VerifyOrder
    plan: VerifyPlan
    topology: Topology

    @classmethod
    def of(cls, text: str, where: str, pace: Pace) -> "Hunter":
        """For a policy's text and the lab that is up."""
        terms = {"rate_pps": pace.verify_pps, "tmax_ns": pace.tmax_ns}
        order = VerifyOrder(parse_policy(text, where), where, **terms, until_finding=True)
        topology = read_topology()
        return cls(order, plan_verify(order, topology), topology)

    def findings(self, *, is_thorough: bool = False) -> list[Finding]:
        """What gives a mutant away; nothing where it goes unnoticed.

        Args:
            is_thorough: all that there is, not only the first.
        """
        order = replace(self.order, until_finding=not is_thorough)
        outcome = trio.run(partial(verify, order, self.plan, self.topology, StopRequest(), lambda _: None))
        return [finding for finding in outcome.findings.found if finding.kind in KILLING]
