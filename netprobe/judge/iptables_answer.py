"""The iptables verdicts at the bridges of a packet's sender and target as an answer about a policy. Pure.

A rule's comment names the user's own rule where the cloud writes it there. Chains of Neutron's are known by the letter
in their names: `i` into the guest, `o` out of it, `s` anti-spoofing.
"""

import re
from collections.abc import Mapping

from netprobe.judge.iptables import IptablesVerdict
from netprobe.judge.iptables_rules import IptablesRule
from netprobe.judge.reason import Rules
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import EnforcementPoint, Stage

_NEUTRON_CHAIN = re.compile(r"neutron-\w+-([ios])")
_LETTERS = {"i": Stage.INGRESS, "o": Stage.EGRESS, "s": Stage.ANTI_SPOOFING}
_STAGES = {"egress": Stage.EGRESS, "ingress": Stage.INGRESS}


def bridge_answer(
    verdict: IptablesVerdict, rules: Rules, question: ModelQuestion, host: str, *, is_target: bool
) -> ModelAnswer:
    """What iptables says of a packet at the bridge that decides: the first that stops it, else the target's.

    Args:
        verdict: of that bridge.
        rules: the user's rules by comment; may be empty.
        question: the packet.
        host: where the bridge is.
        is_target: it is the target's bridge, not the sender's.
    """
    rule = verdict.deciding
    chain = rule.chain if rule is not None else verdict.chain
    known = rules.get(rule.comment, {}) if rule is not None else {}
    place = f"chain {chain}" + (f", rule {rule.number}" if rule is not None else ", its policy")
    if verdict.is_allowed is None:
        detail = f"iptables' {verdict.unknown} in {place} of {host} is not known to netprobe"
        return ModelAnswer(None, host=host, place=place, chain=chain, detail=detail)
    return ModelAnswer(
        verdict.is_allowed,
        host=host,
        place=place,
        chain=chain,
        match=rule.match if rule is not None else "",
        rule=known.get("rule", "") or (rule.comment or rule.text if rule is not None else "the chain's policy"),
        rule_id=known.get("id", ""),
        kind=_kind(verdict, rule, known),
        point=_point(chain, known, question, is_target=is_target),
        detail="dropped; the reset or ICMP error is sent, but rarely gets out of a bridge"
        if verdict.is_rejected
        else "",
    )


def _kind(verdict: IptablesVerdict, rule: IptablesRule | None, known: Mapping[str, str]) -> str:
    if known.get("kind"):
        return known["kind"]
    stage = _NEUTRON_CHAIN.match(rule.chain) if rule is not None else None
    if stage is None or rule is None:
        return ""
    states = " ".join(c.text for c in rule.conditions if c.text.startswith(("--state", "--ctstate")))
    if verdict.is_allowed:
        return "plumbing" if "ESTABLISHED" in states else "security-group"
    if "INVALID" in states:
        return "conntrack-invalid"
    if stage[1] == "s" or rule.target == "DROP":
        return "anti-spoofing"
    return "default-deny"


def _point(
    chain: str, known: Mapping[str, str], question: ModelQuestion, *, is_target: bool
) -> EnforcementPoint | None:
    letter = _NEUTRON_CHAIN.match(chain)
    stage = _LETTERS[letter[1]] if letter is not None else _STAGES.get(known.get("direction", ""))
    if known.get("kind") == "anti-spoofing":
        stage = Stage.ANTI_SPOOFING
    if stage is None:
        return None
    ours = question.dst if is_target else question.src
    return EnforcementPoint(known.get("port") or ours.name, stage)


def frame_answer(verdict: IptablesVerdict, question: ModelQuestion, host: str) -> ModelAnswer:
    """What ebtables says of an ARP packet at the sender's bridge, or at the target's, where that lets it in."""
    rule = verdict.deciding
    if verdict.is_allowed is None:
        return ModelAnswer(None, host=host, detail=f"ebtables' {verdict.unknown} is not known to netprobe")
    place = f"chain {rule.chain if rule is not None else verdict.chain} of ebtables"
    if verdict.is_allowed:
        return ModelAnswer(True, host=host, place=place, rule=rule.text if rule is not None else "", kind="plumbing")
    return ModelAnswer(
        False,
        host=host,
        place=place,
        chain=verdict.chain,
        match=rule.match if rule is not None else "",
        rule=rule.text if rule is not None else "the chain's policy",
        kind="anti-spoofing",
        point=EnforcementPoint(question.src.name, Stage.ANTI_SPOOFING),
    )
