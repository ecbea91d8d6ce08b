"""The JSON document of a verification (docs/json.md), and who may reach whom as it was proved. Pure."""

from collections import Counter
from collections.abc import Sequence

from netprobe.judge.findings import FindingKind, Judged
from netprobe.judge.proof import Outcome
from netprobe.model.packets import ConnState, Fragment, Kind, Packet
from netprobe.model.policy import protocol_name
from netprobe.model.results import Json
from netprobe.service.verify import VerifyOutcome, VerifyPlan

MOST_CLASSES = 40
"""Classes of packets that are named a pair."""


def plan_document(plan: VerifyPlan) -> Json:
    """What would be sent."""
    policy, cover = plan.policy, plan.cover
    rules = sum(len(group.rules) for group in policy.groups)
    return {
        "backend": plan.backend,
        "policy": {
            "ports": len(policy.ports),
            "groups": len(policy.groups),
            "rules": rules,
            "acls": len(policy.acls),
        },
        "plan": {
            "scenarios": len(cover.scenarios),
            "probes": cover.probes,
            "lower_bound": cover.lower_bound,
            "naive": cover.naive,
            "shadowed": [{"rule": rule, "why": why} for rule, why in cover.shadowed],
            "unproven": [{"what": what, "why": why} for what, why in cover.unproven],
            "unreachable": [{"what": what, "why": why} for what, why in cover.unreachable],
        },
    }


def verify_document(outcome: VerifyOutcome) -> Json:
    """Everything that was found out."""
    order, findings = outcome.order, outcome.findings
    return {
        **plan_document(outcome.plan),
        "source": order.where,
        "vantage": order.vantage,
        "tmax_ms": order.tmax_ns / 1e6,
        "alpha": order.alpha,
        "seed": order.seed,
        "rate_pps": order.rate_pps,
        "sent": outcome.sent,
        "controls": outcome.controls,
        "unsent": outcome.unsent,
        "rounds": outcome.rounds,
        "late": outcome.late,
        "overflow": outcome.dropped,
        "forged": outcome.forged,
        "loss": {"upper": outcome.loss_upper, "misses_needed": outcome.misses_needed},
        "models_asked": outcome.asked,
        "conntrack": {"deleted": outcome.conntrack_deleted, "kept": outcome.conntrack_kept},
        "seconds": round((outcome.ended_ns - outcome.started_ns) / 1e9, 3),
        "counts": {kind.value: findings.count(kind) for kind in FindingKind},
        "findings": [{"number": i, **finding.to_json()} for i, finding in enumerate(findings.found, 1)],
        "differences": [
            {"id": difference.id, "text": difference.text, "steps": len(shown), "packets": shown}
            for difference, shown in findings.differences.items()
        ],
        "matrix": matrix(outcome.steps),
        "truth": findings.truth,
        "strayed": list(outcome.strayed),
        "notes": list(outcome.notes),
    }


def matrix(steps: Sequence[Judged]) -> list[Json]:
    """Who reached whom, by the first packets of new connections; one row a pair, sorted."""
    passed: dict[tuple[str, str], set[str]] = {}
    counts: dict[tuple[str, str], Counter[Outcome]] = {}
    for one in steps:
        packet = one.step.packet
        if one.step.state is not ConnState.NEW or packet.kind is not Kind.IP:
            continue
        counts.setdefault(one.ends, Counter())[one.outcome] += 1
        if one.outcome is Outcome.PASSED:
            passed.setdefault(one.ends, set()).add(class_of(packet))
    return [
        {
            "src": src,
            "dst": dst,
            "reachable": True if passed.get((src, dst)) else None if count[Outcome.OPEN] else False,
            "passes": sorted(passed.get((src, dst), ()), key=_class_order)[:MOST_CLASSES],
            "classes": len(passed.get((src, dst), ())),
            "passed": count[Outcome.PASSED],
            "dropped": count[Outcome.DROPPED],
            "undecided": count[Outcome.OPEN],
        }
        for (src, dst), count in sorted(counts.items())
    ]


def class_of(packet: Packet) -> str:
    """What a packet is to a policy, without its addresses: `tcp/80`, `icmpv6 type 128`."""
    if packet.is_icmp:
        name = f"{protocol_name(packet.protocol)} type {packet.icmp_type} code {packet.icmp_code}"
    else:
        name = protocol_name(packet.protocol) + (f"/{packet.dst_port}" if packet.dst_port else "")
    return f"ipv{packet.family} {name}" + ("" if packet.fragment is Fragment.NONE else f" {packet.fragment.value}")


def _class_order(text: str) -> tuple[str, int, str]:
    name, _, number = text.partition("/")
    return name, int(number) if number.isdigit() else 0, text


def exit_code(outcome: VerifyOutcome) -> int:
    """1 when the policy is not enforced as it is meant, 4 when something stays unproven; 130 after a signal."""
    findings = outcome.findings
    if outcome.stopped.startswith("stopped by"):
        return 130
    if any(finding.kind is not FindingKind.UNPROVEN for finding in findings.found):
        return 1
    return 4 if findings.found else 0
