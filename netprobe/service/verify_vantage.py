"""What cannot be proved from here: left out of what is sent, and said. Pure.

A packet-out starts at the vswitch. Before a hybrid bridge's iptables nothing of it is seen, so it proves neither the
rules of its sender's port, nor answers: to the iptables at whose port they arrive, nobody asked. Between networks
packets go to the router's MAC; where a NAT would change their addresses, or no router is known, they are not sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from netprobe.model.packets import Cover, Kind, Scenario, Stage, Step
from netprobe.model.topology import Attachment

PACKET_OUT_NOTE = "packet-out proves the switch's tables and conntrack, not megaflows that are cached already"
NO_ROUTE = "they are on two networks, and no router takes such packets from one to the other as they are"
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


def routed(cover: Cover, attachments: Mapping[str, Attachment]) -> Cover:
    """Scenarios between networks go by the router; those that cannot are left out, and said to be unproven.

    Args:
        cover: of the policy, whose ports all seem to be neighbours.
        attachments: by the names of the policy's ports.
    """
    kept: list[Scenario] = []
    left: dict[str, None] = {}
    for scenario in cover.scenarios:
        src, dst = attachments[scenario.src], attachments[scenario.dst]
        steps = scenario.steps if src.network == dst.network else _by_router(scenario, src, dst)
        if steps is None:
            left[f"{scenario.src} to {scenario.dst}"] = None
        else:
            kept.append(replace(scenario, number=len(kept), steps=steps))
    unproven = tuple((what, NO_ROUTE) for what in left)
    return replace(cover, scenarios=tuple(kept), unproven=(*cover.unproven, *unproven))


def _by_router(scenario: Scenario, src: Attachment, dst: Attachment) -> tuple[Step, ...] | None:
    """The steps as they go to the router; None where they would not arrive as they are."""
    is_translated = dst.network in src.behind_nat or src.network in dst.behind_nat
    is_plain = all(step.packet.kind is Kind.IP for step in scenario.steps)
    if is_translated or not is_plain or not src.gateway_mac or not dst.gateway_mac:
        return None
    return tuple(
        replace(step, packet=replace(step.packet, dst_mac=(src if step.is_forward else dst).gateway_mac))
        for step in scenario.steps
    )


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
