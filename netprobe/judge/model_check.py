"""Reality against model: what a packet did, what it should do, and what the enforcement's own rules say. Pure.

Three accounts of one packet: the policy's (a Decision), the model's (a ModelAnswer) and reality's. Where they differ,
the first point of difference is named, and what commonly makes such a difference.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from netprobe.judge.conntrack import ConntrackEntry
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.packets import ConnState, Decision, EnforcementPoint


class DifferenceKind(Enum):
    """What differs from what."""

    RULES = "rules"  # the enforcement has other rules than the policy; reality follows them
    RULE_NOT_IN_SWITCH = "rule-not-in-switch"  # the database has the rule, the switch has not
    WRONG_PLACE = "wrong-place"  # the right outcome, decided elsewhere
    STALE_CONNECTION = "stale-connection"  # conntrack knows a connection that no rule would open any more
    STALE_FLOW = "stale-flow"  # the datapath does what its tables do not say (any more)
    BEHIND_THE_RULES = "behind-the-rules"  # the rules let it pass, and it does not arrive
    UNKNOWN = "unknown"  # the model cannot say


@dataclass(frozen=True, slots=True)
class ModelDifference:
    """How the three accounts differ.

    Attributes:
        point: the first enforcement point at which they do, None where none is known.
        detail: for people.
    """

    kind: DifferenceKind
    detail: str
    point: EnforcementPoint | None = None


def compare(
    is_passed: bool,  # noqa: FBT001  one of three accounts
    expected: Decision,
    answer: ModelAnswer,
    *,
    state: ConnState = ConnState.NEW,
    had_entry: bool = False,
    missing: Iterable[str] = (),
) -> ModelDifference | None:
    """Where the three accounts of a packet differ; None where they agree.

    Args:
        is_passed: what it really did.
        expected: what the policy says.
        answer: what the model says.
        state: the conntrack state that it was sent in.
        had_entry: conntrack knew its connection before it was sent, though it was sent as a new one.
        missing: user's rules (ids) that the enforcement's database has and the switch has not.
    """
    if answer.is_allowed is None:
        if is_passed is expected.is_allowed:
            return None
        return ModelDifference(DifferenceKind.UNKNOWN, f"the model cannot say why: {answer.detail}", expected.point)
    if answer.is_allowed is not is_passed:
        return _from_model(is_passed=is_passed, answer=answer, state=state, had_entry=had_entry)
    if answer.is_allowed is not expected.is_allowed:
        return _from_policy(expected, answer, frozenset(missing))
    if not is_passed and answer.point is not None and answer.point != expected.point:
        detail = f"dropped as it should be, but at {answer.point} ({answer.place}) instead of {expected.point}"
        return ModelDifference(DifferenceKind.WRONG_PLACE, detail, answer.point)
    return None


def _from_model(*, is_passed: bool, answer: ModelAnswer, state: ConnState, had_entry: bool) -> ModelDifference:
    """Reality is not as the model says."""
    where = f"{answer.place} of {answer.host}" if answer.place else answer.host
    if not is_passed:
        detail = f"the rules let it pass ({where}), and yet it does not arrive: dropped in no rule, or by a cached one"
        return ModelDifference(DifferenceKind.BEHIND_THE_RULES, detail, answer.point)
    if had_entry and state is ConnState.NEW:
        detail = f"{where} would drop a new connection; conntrack already knows this one, so it passes as established"
        return ModelDifference(DifferenceKind.STALE_CONNECTION, detail, answer.point)
    if state in (ConnState.ESTABLISHED, ConnState.REPLY, ConnState.RELATED):
        detail = f"{where} would drop it in state {state.value}; the datapath lets it pass"
        return ModelDifference(DifferenceKind.STALE_CONNECTION, detail, answer.point)
    detail = f"{where} says drop, and the packet passes: the datapath still has a flow of older rules, or another way"
    return ModelDifference(DifferenceKind.STALE_FLOW, detail, answer.point)


def _from_policy(expected: Decision, answer: ModelAnswer, missing: frozenset[str]) -> ModelDifference:
    """Reality follows the enforcement's rules, and these are not the policy's."""
    check = expected.checks[-1]
    lost = sorted(missing & {one.rule for one in expected.checks})
    if lost:
        detail = f"rule {', '.join(lost)} is in the database, and not in the switch of {answer.host}"
        return ModelDifference(DifferenceKind.RULE_NOT_IN_SWITCH, detail, check.point)
    by = answer.rule or answer.match or answer.place
    if answer.is_allowed:
        detail = f"{check.point} should stop it ({check.text or check.rule}); {by} lets it pass"
        return ModelDifference(DifferenceKind.RULES, detail, check.point)
    point = answer.point or check.point
    detail = f"it should pass {point}; {by} in {answer.place} of {answer.host} drops it"
    return ModelDifference(DifferenceKind.RULES, detail, point)


BLOCKED_MARK = 1
"""Conntrack mark of a connection whose permit was revoked: Neutron's firewall, and bit 0 in OVN (ct_mark.blocked)."""


def stale_entries(
    entries: Iterable[ConntrackEntry], is_permitted: Callable[[ConntrackEntry], bool | None]
) -> list[ConntrackEntry]:
    """Entries of connections that the policy does not permit, and that nobody has blocked yet.

    Args:
        entries: a conntrack table's.
        is_permitted: whether the policy lets the connection be opened; None where it says nothing about its ends.
    """
    return [entry for entry in entries if not entry.mark & BLOCKED_MARK and is_permitted(entry) is False]
