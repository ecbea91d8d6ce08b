"""Scenarios about connections as such: errors that belong to one, answers to nothing, fragments. Pure.

What conntrack does is the same for all rules of a port, so each of these is tried once a port, way and family, with
packets that the rules themselves let pass: whatever stops them is the state.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from netprobe.model.conntrack_rules import answer_to, first_state, is_icmp
from netprobe.model.packets import ACK, SYN, ConnState, Fragment, Packet, Scenario, Stage
from netprobe.model.policy import ICMP, ICMPV6, TCP, UDP, Way
from netprobe.model.rule_lists import FAMILIES
from netprobe.plan.cover_drafts import Drafts, Sent
from netprobe.plan.cover_places import Place, Places, header_of

_UNREACHABLE = {4: (ICMP, 3, 3), 6: (ICMPV6, 1, 4)}
"""Port unreachable: protocol, type, code (RFC 792, RFC 4443)."""
_WITH_ERRORS = (UDP, TCP)
"""Protocols whose packets errors quote, the best first."""
_EACH_MAX = 200
_TRIES = 8


class _Talk(NamedTuple):
    """A conversation that is let pass, or its first packet if that is stopped."""

    source: Place
    target: Place
    packet: Packet


def add_states(places: Places, drafts: Drafts) -> None:
    """Add the scenarios to what is in `drafts`, whose conversations they build on.

    Args:
        places: of the policy.
        drafts: finished.
    """
    by_name = {place.port.name: place for place in places.all}
    open_, closed = [], []
    for scenario in drafts.scenarios:
        talk = _Talk(by_name[scenario.src], by_name[scenario.dst], scenario.steps[0].packet)
        if talk.packet.src_mac != talk.source.port.mac or scenario.steps[0].state is not ConnState.NEW:
            continue
        if len(scenario.steps) > 1 and scenario.steps[-1].expected.is_allowed:
            open_.append(talk)
        elif _is_stopped_at_target(scenario):
            closed.append(talk)
    stranger = next((place for place in places.all if not place.is_guarded), None)
    for family in FAMILIES:
        talks = [talk for talk in open_ if talk.packet.family == family]
        _States(drafts, family, stranger).add(talks, [talk for talk in closed if talk.packet.family == family])


def _is_stopped_at_target(scenario: Scenario) -> bool:
    expected = scenario.steps[0].expected
    return not expected.is_allowed and expected.point.stage is Stage.INGRESS


class _States:
    def __init__(self, drafts: Drafts, family: int, stranger: Place | None) -> None:
        self._drafts = drafts
        self._family = family
        self._stranger = stranger

    def add(self, talks: list[_Talk], stopped: list[_Talk]) -> None:
        """All kinds, each with the fewest scenarios that meet all ports."""
        quoted = sorted((t for t in talks if t.packet.protocol in _WITH_ERRORS), key=_error_rank)
        tcp = [talk for talk in talks if talk.packet.protocol == TCP]
        udp = [talk for talk in talks if talk.packet.protocol == UDP]
        pings = [talk for talk in talks if is_icmp(talk.packet)]
        self._both_ends("related", quoted, self._related)
        self._both_ends("unsolicited answer", udp, self._lone_answer)
        self._stopping("unsolicited syn-ack", [talk for talk in tcp if talk.source.is_guarded], self._lone_syn_ack)
        self._each("unsolicited syn-ack", tcp, self._lone_syn_ack)
        self._stopping("unsolicited error", quoted, self._lone_error)
        self._stopping("unsolicited echo reply", pings, self._lone_answer, is_back=True)
        self._at_targets("fragments", udp, self._fragments)
        self._at_targets("fragments of what is dropped", _of(stopped, UDP), self._fragments)
        self._at_targets("lone ack", _of(stopped, TCP), self._lone_ack)

    def _both_ends(self, word: str, talks: Iterable[_Talk], make: Callable[[_Talk], list[Sent]]) -> None:
        """Each port once as source and once as target."""
        met: set[tuple[int, bool]] = set()
        for talk in talks:
            ends = {(place.index, place is talk.source) for place in (talk.source, talk.target) if place.is_guarded}
            if not ends <= met:
                met |= ends
                self._make(word, talk, make(talk))

    def _each(self, word: str, talks: Iterable[_Talk], make: Callable[[_Talk], list[Sent]]) -> None:
        """Every rule of a port where its conntrack alone is in the way: any of them may forget to ask it."""
        found: dict[tuple[int, Packet], _Talk] = {}
        for talk in filter(None, map(self._from_stranger, talks)):
            found.setdefault((talk.target.index, talk.packet), talk)
        for talk in list(found.values())[:_EACH_MAX]:
            self._make(word, talk, make(talk))

    def _from_stranger(self, talk: _Talk) -> _Talk | None:
        """The same to a guarded port from one whose own conntrack does not stop it, if the target lets that in."""
        if not talk.target.is_guarded or not talk.source.is_guarded:
            return talk if talk.target.is_guarded else None
        if self._stranger is None or self._stranger is talk.target:
            return None
        ip = self._stranger.port.ip(self._family)
        if ip is None:
            return None
        packet = replace(talk.packet, src_mac=self._stranger.port.mac, src_ip=ip)
        header = header_of(self._family, TCP, packet.dst_port or 0)._replace(src_port=packet.src_port)
        is_let_in = talk.target.allows(Way.INGRESS, header, int(ip), int(packet.dst_ip))
        return _Talk(self._stranger, talk.target, packet) if is_let_in else None

    def _stopping(
        self, word: str, talks: Iterable[_Talk], make: Callable[[_Talk], list[Sent]], *, is_back: bool = False
    ) -> None:
        """Each port once where its own conntrack decides: at the sender's, or where the sender has none.

        Args:
            word: what it is.
            talks: what is let pass.
            make: a scenario of one of them.
            is_back: it is the conversation's target that sends.
        """
        met: set[tuple[int, bool]] = set()
        for talk in talks:
            sender, receiver = (talk.target, talk.source) if is_back else (talk.source, talk.target)
            place = sender if sender.is_guarded else receiver
            if (place.index, sender.is_guarded) not in met:
                met.add((place.index, sender.is_guarded))
                self._make(word, talk, make(talk))

    def _at_targets(self, word: str, talks: Iterable[_Talk], make: Callable[[_Talk], list[Sent]]) -> None:
        met: set[int] = set()
        for talk in talks:
            if talk.target.is_guarded and talk.target.index not in met:
                met.add(talk.target.index)
                self._make(word, talk, make(talk))

    def _make(self, word: str, talk: _Talk, sent: list[Sent]) -> None:
        source, target = talk.source, talk.target
        if not sent[0].is_forward:  # whoever sends first is the scenario's source
            source, target = target, source
            sent = [one._replace(is_forward=not one.is_forward) for one in sent]
        label = f"{word} v{self._family}"
        self._drafts.make(source, target, sent, label, [f"{label}:{talk.source.port.name}>{talk.target.port.name}"])

    def _related(self, talk: _Talk) -> list[Sent]:
        first = talk.packet
        error = _error(first, talk.target.port.mac)
        return [Sent(True, first, ConnState.NEW), Sent(False, error, ConnState.RELATED)]

    def _lone_error(self, talk: _Talk) -> list[Sent]:
        """About a packet that the other side never sent."""
        error = _error(talk.packet.reversed(), talk.packet.src_mac)
        return [Sent(True, replace(error, src_mac=talk.packet.src_mac), ConnState.INVALID)]

    def _lone_answer(self, talk: _Talk) -> list[Sent]:
        answer = replace(answer_to(talk.packet), src_mac=talk.target.port.mac)
        return [Sent(False, answer, first_state(answer))]

    def _lone_syn_ack(self, talk: _Talk) -> list[Sent]:
        return [Sent(True, replace(talk.packet, tcp_flags=SYN | ACK), ConnState.INVALID)]

    def _lone_ack(self, talk: _Talk) -> list[Sent]:
        return [Sent(True, replace(talk.packet, tcp_flags=ACK), ConnState.NEW)]

    def _fragments(self, talk: _Talk) -> list[Sent]:
        parts = (replace(talk.packet, fragment=part) for part in (Fragment.FIRST, Fragment.LATER))
        return [Sent(True, part, ConnState.NEW) for part in parts]


def _of(talks: Iterable[_Talk], protocol: int) -> Iterator[_Talk]:
    return (talk for talk in talks if talk.packet.protocol == protocol)


def _error_rank(talk: _Talk) -> int:
    return _WITH_ERRORS.index(talk.packet.protocol)


def _error(about: Packet, mac: str) -> Packet:
    """Port unreachable, from whom a packet was for to whom it came from."""
    protocol, icmp_type, icmp_code = _UNREACHABLE[about.family]
    back = about.reversed()
    return Packet(
        mac, about.src_mac, back.src_ip, back.dst_ip, protocol, icmp_type=icmp_type, icmp_code=icmp_code, quoted=about
    )
