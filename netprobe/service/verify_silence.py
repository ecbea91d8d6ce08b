"""Ports that are cut off: nothing comes through, not even what every policy lets pass. Rules, or a dead link?

Proofs say nothing of such ports, since loss is not a drop. So the enforcement's own model is asked about a neighbour's
answer: if its rules drop that, it is an overblock; if they let it pass, it is lost outside them, and all that the port
would have shown stays unproven.
"""

from netprobe.judge.findings import Finding, FindingKind
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import ConnState
from netprobe.model.topology import Attachment, Topology
from netprobe.service.policy_models import ModelAsker
from netprobe.service.verify_rounds import Rounds, control_packet


async def silence_findings(rounds: Rounds, attachments: tuple[Attachment, ...], topology: Topology) -> list[Finding]:
    """A finding for each port that is cut off, as a sender or as a receiver, and for each pair that no control passes.

    Args:
        rounds: over.
        attachments: of its ports, by number.
        topology: where they are.
    """
    numbers = {port.name: number for number, port in enumerate(rounds.ports)}
    found = []
    for name, is_sender in rounds.silent():
        number = numbers[name]
        pair = next((pair for pair in rounds.pairs if pair[0 if is_sender else 1] == number), None)
        if pair is None:
            continue  # alone on its network, it has no neighbour to hear from: its steps stay undecided
        which = "that it sends" if is_sender else "that is sent to it"
        what = f"{name} is cut off: nothing {which} arrives in any of {rounds.made} rounds, not even"
        packet, answer = await _asked(rounds, pair, attachments, topology)
        found.append(_finding((name, "") if is_sender else ("", name), what, packet, answer))
    for src, dst in rounds.unheard():
        what = f"{dst} gets other packets, and {src} sends some that arrive, but in {rounds.made} rounds never"
        packet, answer = await _asked(rounds, (numbers[src], numbers[dst]), attachments, topology)
        found.append(_finding((src, dst), what, packet, answer))
    return found


async def _asked(
    rounds: Rounds, pair: tuple[int, int], attachments: tuple[Attachment, ...], topology: Topology
) -> tuple[str, ModelAnswer]:
    """A control between two ports, and what the enforcement's own rules say of it."""
    sender, receiver = pair
    packet = control_packet(rounds.ports[sender], rounds.ports[receiver])
    with ModelAsker() as asker:
        question = ModelQuestion(packet, attachments[sender], attachments[receiver], ConnState.NEW)
        (answer,) = await asker.ask([question], topology)
    return packet.text(), answer


def _finding(ends: tuple[str, str], what: str, packet: str, answer: ModelAnswer) -> Finding:
    is_dropped = answer.is_allowed is False
    why = "the enforcement's own rules drop it" if is_dropped else "the rules would let that pass: look at the link"
    return Finding(
        FindingKind.OVERBLOCK if is_dropped else FindingKind.UNPROVEN,
        f"{what} a neighbour's answer, which every policy lets pass; {why}",
        src=ends[0],
        dst=ends[1],
        packet=packet,
        expected="pass",
        observed="dropped" if is_dropped else "never arrived",
        decided=answer,
    )
