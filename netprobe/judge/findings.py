"""Findings: where what was proved, what should be, and what the enforcement's own model says do not agree. Pure.

From judge.proof's outcomes and the models' answers (model.model_answers) to findings, worst first, and to the matrix of
who may reach whom. What a backend does otherwise by its nature is a difference, listed and explained, never a finding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum

from netprobe.judge.inherent import REJECT, Difference, inherent_difference, inherent_place, silent_reject
from netprobe.judge.proof import Outcome
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.packets import Scenario, Step
from netprobe.model.results import Json


class FindingKind(Enum):
    """What is wrong; the worst first."""

    LEAK = "leak"  # it passes, and should not
    OVERBLOCK = "overblock"  # it is dropped, and should pass
    WRONG_PLACE = "wrong place"  # dropped as it should be, at another enforcement point
    DIVERGENCE = "divergence"  # the enforcement is not what its own database, or the other source, says
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was counted of one step.

    Attributes:
        sent, arrived: packets; those of rounds in which nothing came through do not count.
        rejected: packets whose sender was told so.
        last_seen: id of the last point that saw it; "" where it went in unseen.
        missing: id of the first point that did not; "" where it arrived.
    """

    sent: int
    arrived: int
    rejected: int = 0
    last_seen: str = ""
    missing: str = ""

    def to_json(self) -> Json:
        """As in docs/json.md."""
        segment = f"{self.last_seen}..{self.missing}" if self.missing else None
        return {
            "sent": self.sent,
            "arrived": self.arrived,
            "rejected": self.rejected,
            "last_seen": self.last_seen or None,
            "missing": self.missing or None,
            "segment": segment,
        }


def _answer_json(answer: ModelAnswer) -> Json:
    """As in docs/json.md."""
    fields: Json = asdict(answer)
    return fields | {"point": None if answer.point is None else str(answer.point), "cookie": answer.cookie or None}


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        scenario: its number, None where it is about no packet.
        step: which of its packets.
        src, dst: who sent that packet to whom; names of ports.
        packet: the packet for people.
        expected: what should become of it, and by which rule, for people.
        observed: what did.
        rule, rule_id: the user's rule that the policy names for it.
        decided: what the enforcement's model says decided, None where nobody could say.
        detail: why it is a finding, in a sentence.
        alike: steps whose findings have the same cause and are not listed one by one, named as in Findings.truth.
    """

    kind: FindingKind
    detail: str
    src: str = ""
    dst: str = ""
    scenario: int | None = None
    step: int = 0
    key: str = ""
    packet: str = ""
    expected: str = ""
    observed: str = ""
    rule: str = ""
    rule_id: str = ""
    evidence: Evidence | None = None
    decided: ModelAnswer | None = None
    alike: tuple[str, ...] = ()

    @property
    def repeats(self) -> int:
        """How many are alike, besides this one."""
        return len(self.alike)

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "kind": self.kind.value,
            "src": self.src,
            "dst": self.dst,
            "scenario": self.key or None,
            "step": self.step,
            "packet": self.packet,
            "expected": self.expected,
            "observed": self.observed,
            "rule": self.rule,
            "rule_id": self.rule_id,
            "evidence": None if self.evidence is None else self.evidence.to_json(),
            "decided": None if self.decided is None else _answer_json(self.decided),
            "detail": self.detail,
            "repeats": self.repeats,
            "alike": list(self.alike),
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """One step with everything that is known about it."""

    scenario: Scenario
    number: int
    outcome: Outcome
    evidence: Evidence
    model: ModelAnswer | None = None

    @property
    def step(self) -> Step:
        """The step."""
        return self.scenario.steps[self.number]

    @property
    def ends(self) -> tuple[str, str]:
        """Sender and receiver of this step."""
        ends = self.scenario.src, self.scenario.dst
        return ends if self.step.is_forward else (ends[1], ends[0])

    @property
    def name(self) -> str:
        """`<scenario key>#<step>`."""
        return f"{self.scenario.key}#{self.number}"

    @property
    def is_decided_otherwise(self) -> bool:
        """Whether the contrary of what should become of it is proved."""
        passed = self.outcome is Outcome.PASSED
        return self.outcome is not Outcome.OPEN and passed is not self.step.expected.is_allowed

    @property
    def is_told_unasked(self) -> bool:
        """Whether its sender was told of a drop that should be silent."""
        expected = self.step.expected
        is_silent = not expected.is_allowed and not expected.is_rejected
        return is_silent and self.outcome is Outcome.DROPPED and self.evidence.rejected > 0


@dataclass(slots=True)
class Findings:
    """Everything that was found, and what was not.

    Attributes:
        found: findings, worst first.
        differences: inherent ones, each with the steps that show it, named as in `truth`.
        truth: what was proved, by `<scenario key>#<step>`: True passed, False dropped, None not decided.
    """

    found: list[Finding] = field(default_factory=list)
    differences: dict[Difference, list[str]] = field(default_factory=dict)
    truth: dict[str, bool | None] = field(default_factory=dict)

    def sort(self) -> None:
        """Worst first."""
        self.found.sort(key=lambda finding: _ORDER[finding.kind])

    def count(self, kind: FindingKind) -> int:
        """How many findings of a kind."""
        return sum(finding.kind is kind for finding in self.found)


_TRUTH = {Outcome.PASSED: True, Outcome.DROPPED: False, Outcome.OPEN: None}


def judge_steps(steps: Iterable[Judged], backend: str, not_sent: Mapping[tuple[int, int], str]) -> Findings:
    """Findings of all steps.

    Args:
        steps: each step once, those of a scenario in their order.
        backend: how the policy is enforced: "ovs-ct", "bridge", "ovn", "ovs-dpdk".
        not_sent: why a step could not be judged, by (scenario, step): no way in, absorption not confirmed.
    """
    result = Findings()
    broken: set[int] = set()
    found: list[tuple[Finding, Cause]] = []
    for one in steps:
        number = one.scenario.number
        if number in broken:
            continue
        if one.is_decided_otherwise or one.outcome is Outcome.OPEN:
            broken.add(number)  # what comes after it follows from it
        result.truth[one.name] = _TRUTH[one.outcome]
        difference = _inherent(one, backend)
        if difference is not None:
            result.differences.setdefault(difference, []).append(one.name)
            if difference is not REJECT:  # which says nothing of the rest
                continue
        why_not = not_sent.get((number, one.number), "")
        finding = _finding(one, why_not, backend)
        if finding is not None:
            found.append((finding, _cause(one, finding, why_not)))
    result.found = _grouped(found)
    return result


def _inherent(one: Judged, backend: str) -> Difference | None:
    """What the backend does otherwise here by its nature."""
    if one.is_decided_otherwise:
        return inherent_difference(one.step, backend, is_passed=one.outcome is Outcome.PASSED, model=one.model)
    if one.is_told_unasked:
        return None
    if one.outcome is Outcome.DROPPED and _is_misplaced(one):
        assert one.model is not None and one.model.point is not None  # noqa: PT018  else it is in no place
        return inherent_place(one.step, backend, one.model.point)
    is_silent = one.outcome is Outcome.DROPPED and not one.evidence.rejected
    return silent_reject(one.step, backend) if is_silent else None


def _is_misplaced(one: Judged) -> bool:
    """Whether the model says that it is dropped, but not where it should be."""
    model, expected = one.model, one.step.expected
    if expected.is_allowed or model is None or model.is_allowed is not False or model.point is None:
        return False
    if model.point.port == expected.point.port and model.rule_id and model.rule_id == expected.checks[-1].rule:
        return False  # the very rule decides, whatever its stage is called
    return model.point != expected.point


def _finding(one: Judged, not_sent: str, backend: str) -> Finding | None:
    expected = one.step.expected
    if one.outcome is Outcome.OPEN:
        return _make(one, FindingKind.UNPROVEN, not_sent or _undecided(one))
    if one.is_decided_otherwise:
        kind = FindingKind.LEAK if one.outcome is Outcome.PASSED else FindingKind.OVERBLOCK
        return _make(one, kind, _why(one))
    if expected.is_rejected and not one.evidence.rejected and silent_reject(one.step, backend) is None:
        return _make(
            one, FindingKind.UNPROVEN, "dropped, but nobody saw its sender being told; OVN tells at a low rate"
        )
    other = _against_model(one)
    if one.is_told_unasked:
        detail = "its sender is told, where the policy drops silently"
        return _make(one, FindingKind.DIVERGENCE, f"{detail}; {other.detail}" if other else detail)
    return other


def _against_model(one: Judged) -> Finding | None:
    """What is as it should be, but not by the rule, or not by the rules' own account."""
    expected, model = one.step.expected, one.model
    if model is None or model.is_allowed is None:
        return None
    if model.is_allowed is not expected.is_allowed:
        said = "lets it pass" if model.is_allowed else "drops it"
        proved = "arrives" if expected.is_allowed else "does not"
        return _make(
            one, FindingKind.DIVERGENCE, f"the enforcement's model {said}, the packet {proved}: {model.detail}"
        )
    if _is_misplaced(one):
        detail = f"dropped as it should be, but at {model.point} instead of {expected.point}"
        return _make(one, FindingKind.WRONG_PLACE, detail)
    return None


def _undecided(one: Judged) -> str:
    if not one.evidence.sent:
        return "it was never sent, since a step before it was not decided or nothing came through"
    return f"{one.evidence.arrived} of {one.evidence.sent} arrived: that may be loss"


def _why(one: Judged) -> str:
    check = one.step.expected.checks[-1]
    if one.outcome is Outcome.PASSED:
        text = f"{check.point} should drop it ({check.text or check.rule})"
    else:
        text = f"{check.point} should let it pass ({check.text or check.rule})"
    model = one.model
    if model is None or model.is_allowed is None:
        return text
    if model.is_allowed is (one.outcome is Outcome.PASSED):
        return f"{text}; the enforcement's own rules say the same as the packet"
    return f"{text}, and so do the enforcement's own rules: the real packet differs from its model"


def _make(one: Judged, kind: FindingKind, detail: str) -> Finding:
    expected = one.step.expected
    last = expected.checks[-1]
    src, dst = one.ends
    word = "pass" if expected.is_allowed else "be rejected" if expected.is_rejected else "be dropped"
    observed = {Outcome.PASSED: "passed", Outcome.DROPPED: "dropped", Outcome.OPEN: "not decided"}[one.outcome]
    return Finding(
        kind=kind,
        detail=detail,
        src=src,
        dst=dst,
        scenario=one.scenario.number,
        step=one.number,
        key=one.scenario.key,
        packet=one.step.packet.text(),
        expected=f"{word} at {last.point}",
        observed=observed,
        rule=last.text,
        rule_id=last.rule,
        evidence=one.evidence,
        decided=one.model,
    )


_ORDER = {kind: i for i, kind in enumerate(FindingKind)}

Cause = tuple[object, ...]
"""What findings that are told as one have in common."""


def _cause(one: Judged, finding: Finding, why_not: str) -> Cause:
    """What is wrong, with which class of packets, by what the policy says and by what the enforcement does.

    iptables' rules have no cookies, and default denies have no rules: all of them together tell causes apart. The
    family does not: a rule that holds for both goes wrong with both.
    """
    packet, decided = one.step.packet, one.model or ModelAnswer(None)
    if packet.is_icmp:
        what: Cause = ("icmp", packet.icmp_type)
    else:
        # An answer goes to a port that is chosen anew each time; what it answers is told by the port it comes from.
        what = (packet.protocol, packet.dst_port, packet.src_port if packet.dst_port is None else None)
    by = (decided.cookie, decided.place, decided.rule)
    return finding.kind, finding.expected, finding.rule_id, what, by, one.outcome, one.is_told_unasked, why_not


def _grouped(findings: Sequence[tuple[Finding, Cause]]) -> list[Finding]:
    """Worst first; what has one cause is told once, with the names of its like."""
    kept: list[Finding] = []
    alike: dict[Cause, list[str]] = {}
    causes: list[Cause] = []
    for finding, cause in sorted(findings, key=lambda pair: _rank(pair[0])):
        if cause in alike:
            alike[cause].append(f"{finding.key}#{finding.step}")
        else:
            alike[cause] = []
            causes.append(cause)
            kept.append(finding)
    return [replace(finding, alike=tuple(alike[cause])) for finding, cause in zip(kept, causes, strict=True)]


def _rank(finding: Finding) -> tuple[int, int, int]:
    return _ORDER[finding.kind], finding.scenario or 0, finding.step
