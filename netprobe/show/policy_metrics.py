"""Proofs of policies and watched changes as readings (model.metric_catalogue), out of their documents. Pure.

Rules' texts and packets are told in text fields, never in tags: there are too many different ones.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from netprobe.model.metric_catalogue import ENFORCEMENT, FINDING, VERDICT, VERIFICATION
from netprobe.model.metrics import Reading

KINDS = ("leak", "overblock", "wrong place", "divergence", "unproven")
MAX_FINDINGS = 1_000
"""Of one proof; the counts are of all."""


def policy_name(source: str) -> str:
    """The tag of a policy: its file's name without folders, or where else it was read."""
    return source.rstrip("/").rpartition("/")[2] or source


def verification_readings(document: Mapping[str, Any], t_ns: int) -> Iterator[Reading]:
    """A proof: as a whole, who reaches whom, findings.

    Args:
        document: of `verify` (docs/json.md).
        t_ns: when it ended.
    """
    policy = policy_name(document["source"])
    # Who was stopped has not shown that there is nothing: an older proof's finding must not look as if it were gone.
    unseen = None if document["stopped"] else 0
    counts = {kind: document["counts"][kind] or unseen for kind in KINDS}
    yield VERIFICATION.reading(
        t_ns,
        {"policy": policy, "backend": document["backend"], "vantage": document["vantage"]},
        leak_findings=counts["leak"],
        overblock_findings=counts["overblock"],
        wrong_place_findings=counts["wrong place"],
        divergence_findings=counts["divergence"],
        unproven_findings=counts["unproven"],
        violated=1 if any(counts[kind] for kind in KINDS[:-1]) else unseen,
        sent_packets=document["sent"],
        unsent_packets=document["unsent"],
        rounds=document["rounds"],
        duration_ns=round(document["seconds"] * 1e9),
        overflowed_frames=document["overflow"],
        forged_frames=document["forged"],
        stopped=document["stopped"] or "",
    )
    for row in document["matrix"]:
        yield VERDICT.reading(
            t_ns,
            {"policy": policy, "src": row["src"], "dst": row["dst"]},
            reachable=None if row["reachable"] is None else int(row["reachable"]),
            passed_packets=row["passed"],
            dropped_packets=row["dropped"],
            undecided_packets=row["undecided"],
            passes=", ".join(row["passes"]),
        )
    for finding in document["findings"][:MAX_FINDINGS]:
        yield _finding(finding, policy, t_ns)


def _finding(finding: Mapping[str, Any], policy: str, t_ns: int) -> Reading:
    evidence, decided = finding["evidence"] or {}, finding["decided"] or {}
    places = (decided.get(name) for name in ("rule", "place", "table", "chain"))
    return FINDING.reading(
        t_ns + int(finding["number"]),
        {"policy": policy, "kind": finding["kind"], "src": finding["src"], "dst": finding["dst"]},
        packets=1 + int(finding["repeats"]),
        packet=finding["packet"],
        expected=finding["expected"],
        observed=finding["observed"],
        rule=finding["rule"] or finding["rule_id"],
        decided_by=next((str(place) for place in places if place not in (None, "")), None),
        segment=evidence.get("segment"),
        detail=finding["detail"],
    )


def enforcement_readings(document: Mapping[str, Any], source: str, t_ns: int) -> Iterator[Reading]:
    """How long a change took.

    Args:
        document: of `verify --watch-change` (docs/json.md).
        source: the policy's file.
        t_ns: when it ended.
    """
    for i, row in enumerate(document["classes"]):
        for stream in ("existing", "new"):
            change = row[stream]
            if change is None:
                continue
            yield ENFORCEMENT.reading(
                t_ns + i,
                {
                    "policy": policy_name(source),
                    "rule": row["rule"],
                    "src": row["src"],
                    "dst": row["dst"],
                    "stream": stream,
                },
                after_commit_ns=change["after_commit_ns"],
                after_begin_ns=change["after_begin_ns"],
                uncertainty_ns=change["uncertainty_ns"],
                leaked_packets=change["leaked"],
                blocked_packets=change["blocked"],
                flaps=change["flaps"],
                sent_packets=change["sent"],
                undecided_packets=change["undecided"],
                old=change["old"],
                new=change["new"],
                connection=row["connection"],
            )
