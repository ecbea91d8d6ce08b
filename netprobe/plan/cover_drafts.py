"""Scenarios in the making: one draft a first packet, with everything that it proves. Pure.

A draft becomes a conversation where its first packet should arrive: the answer, and what follows it. Expectations are
the decider's, not ours.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from netprobe.model.conntrack_rules import ANSWERS, first_state, is_icmp
from netprobe.model.packets import ACK, SYN, ConnState, Decision, Fragment, Packet, Scenario, Step
from netprobe.model.policy import protocol_name
from netprobe.plan.cover_places import End, Header, Place


class Decider(Protocol):
    """Says what should become of a packet: judge.evaluator's Evaluator."""

    def decide(self, packet: Packet, src: str, dst: str, state: ConnState) -> Decision:
        """The decision about one packet from one port to another."""
        ...


class Sent(NamedTuple):
    """A packet of a scenario before it is judged.

    Attributes:
        is_forward: from the scenario's source.
    """

    is_forward: bool
    packet: Packet
    state: ConnState


@dataclass(slots=True)
class Draft:
    """A scenario in the making.

    Attributes:
        labels: what it proves, `id` or `id:boundary`; the first one names it.
        has_conversation: it goes on where its first packet arrives.
    """

    header: Header
    source: End
    target: End
    labels: list[str] = field(default_factory=list)
    has_conversation: bool = False


class Drafts:
    """Drafts by their first packet, and finished scenarios in order."""

    def __init__(self, decider: Decider, cuts: tuple[int, ...]) -> None:
        """Nothing yet.

        Args:
            decider: says what should become of packets.
            cuts: ports that stand for all that an attempt may choose.
        """
        self._decider = decider
        self._cuts = cuts
        self.left_out: list[tuple[str, str]] = []
        """What was not made, as label and port: its outcome is another for each port that an attempt may choose."""
        self._drafts: dict[tuple[object, ...], Draft] = {}
        self._keys: dict[str, int] = {}
        self._scenarios: list[Scenario] = []

    def add(self, header: Header, source: End, target: End, label: str, *, has_conversation: bool) -> Draft:
        """The draft with this first packet, with one more thing to prove."""
        key = (header, source.number, target.number, source.place.index, target.place.index)
        draft = self._drafts.get(key)
        if draft is None:
            draft = self._drafts[key] = Draft(header, source, target)
        if label not in draft.labels:
            draft.labels.append(label)
        draft.has_conversation |= has_conversation
        return draft

    def all(self) -> Iterable[Draft]:
        """In the order in which they were added."""
        return self._drafts.values()

    def finish(self) -> None:
        """Make scenarios of all drafts."""
        known: dict[Header, str] = {}
        for draft in self._drafts.values():
            words = known.get(draft.header)
            if words is None:
                words = known[draft.header] = _header_words(draft.header)
            source, target = draft.source.place, draft.target.place
            self.make(source, target, _packets(draft), f"{words} {draft.labels[0]}", draft.labels)

    def make(self, source: Place, target: Place, sent: Iterable[Sent], words: str, labels: Sequence[str]) -> None:
        """A scenario; it ends with the first packet that should not arrive. Fragments of a datagram go together.

        Args:
            source: sends the forward packets.
            target: answers.
            sent: its packets in order.
            words: what names it, besides its ports; no addresses.
            labels: what it proves.
        """
        steps = []
        names = (source.port.name, target.port.name)
        for is_forward, packet, state in sent:
            src, dst = names if is_forward else names[::-1]
            expected = self._decider.decide(packet, src, dst, state)
            if len(self._cuts) > 1 and self._is_open(packet, src, dst, state, expected):
                break
            steps.append(Step(is_forward, packet, state, expected))
            if not expected.is_allowed and packet.fragment is not Fragment.FIRST:
                break
        if not steps:
            self.left_out += [(label, source.port.name) for label in labels]
            return
        self._append(source, target, tuple(steps), words, labels)

    def _is_open(self, packet: Packet, src: str, dst: str, state: ConnState, expected: Decision) -> bool:
        """Whether what becomes of a packet depends on the port that an attempt chooses."""
        if packet.src_port is not None and packet.dst_port is not None:
            return False
        for port in self._cuts:
            chosen = packet.with_ephemeral(port)
            if self._decider.decide(chosen, src, dst, state).is_allowed is not expected.is_allowed:
                return True
        return False

    def _append(self, source: Place, target: Place, steps: tuple[Step, ...], words: str, labels: Sequence[str]) -> None:
        key = f"{source.port.name}>{target.port.name} {words}"
        again = self._keys[key] = self._keys.get(key, 0) + 1
        if again > 1:
            key = f"{key} #{again}"
        scenario = Scenario(len(self._scenarios), key, source.port.name, target.port.name, steps, frozenset(labels))
        self._scenarios.append(scenario)

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """What was made so far."""
        return tuple(self._scenarios)


def _packets(draft: Draft) -> Iterator[Sent]:
    """The first packet, and what follows it; nothing where no answer would find its way."""
    header = draft.header
    first = header.packet(draft.source, draft.target)
    state = first_state(first)
    yield Sent(True, first, state)
    if not draft.has_conversation or state is not ConnState.NEW or draft.source.mac != draft.source.place.port.mac:
        return
    back = Header(header.family, header.protocol, header.src_port, 0, header.icmp_code, header.dst_port)
    if is_icmp(first):
        back = back._replace(icmp_type=ANSWERS[header.family][header.icmp_type])
    yield Sent(False, back.packet(draft.target, draft.source, SYN | ACK), ConnState.REPLY)
    if not _is_half_tracked(draft):
        yield Sent(True, header.packet(draft.source, draft.target, ACK), ConnState.ESTABLISHED)


def _is_half_tracked(draft: Draft) -> bool:
    """Whether conntrack may see one direction only: what comes third is then neither new nor established."""
    source, target = draft.source.place, draft.target.place
    return (source.is_guarded and source.is_mixed) or (target.is_guarded and target.is_mixed)


def _header_words(header: Header) -> str:
    """The header for keys: `v4 tcp/80`, `v6 icmpv6/128.0`."""
    name = protocol_name(header.protocol)
    if header.src_port is None or header.dst_port:
        detail = f"/{header.dst_port}" if not header.src_port else f"/{header.src_port}-{header.dst_port}"
    elif header.icmp_type or header.icmp_code:
        detail = f"/{header.icmp_type}.{header.icmp_code}"
    else:
        detail = ""
    return f"v{header.family} {name.removeprefix('protocol ')}{detail}"
