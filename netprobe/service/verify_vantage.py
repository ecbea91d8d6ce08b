"""What a vantage cannot prove: left out of what is sent, and said. Pure.

A packet-out starts at the vswitch. Before a hybrid bridge's iptables nothing of it is seen, so it proves neither the
rules of its sender's port, nor answers: to the iptables at whose port they arrive, nobody asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from netprobe.model.packets import Cover, Scenario, Stage, Step

PACKET_OUT_NOTE = "packet-out proves the switch's tables and conntrack, not megaflows that are cached already"
BEHIND_IPTABLES = "packet-out starts behind that port's iptables: prove it with --vantage tap or guest"


def cover_from(cover: Cover, vantage: str, backend: str) -> Cover:
    """The scenarios that a vantage can prove, and with the others what stays unproven from there.

    Args:
        cover: of the policy.
        vantage: "tap", "vswitch" or "guest".
        backend: how the policy is enforced.
    """
    if vantage != "vswitch" or backend != "bridge":
        return cover
    kept: list[Scenario] = []
    left: dict[str, None] = {}
    for scenario in cover.scenarios:
        first = scenario.steps[0]
        if _is_stopped_at_its_sender(first):
            left[f"{first.expected.point}"] = None
            continue
        if len(scenario.steps) > 1:
            left[f"connections of {scenario.src}, after their first packet"] = None
        kept.append(replace(scenario, number=len(kept), steps=_together(scenario.steps)))
    unproven = tuple((what, BEHIND_IPTABLES) for what in left)
    return replace(cover, scenarios=tuple(kept), unproven=(*cover.unproven, *unproven))


def notes_of(vantage: str) -> tuple[str, ...]:
    """What one should know of everything that a vantage proves."""
    return (PACKET_OUT_NOTE,) if vantage == "vswitch" else ()


def _is_stopped_at_its_sender(step: Step) -> bool:
    return not step.expected.is_allowed and step.expected.point.stage is not Stage.INGRESS


def _together(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The first step, and with it the later fragments of its datagram."""
    return (steps[0], *_fragments(steps[1:]))


def _fragments(steps: Iterable[Step]) -> Iterable[Step]:
    for step in steps:
        if step.packet.fragment.value != "later":
            return
        yield step
