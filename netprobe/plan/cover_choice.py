"""Which packet proves most of a want: a header, and an end on each side. Pure.

The best packet is one whose fate depends on the entry alone: with the entry it arrives and without it it does not, or
the other way round. For that nothing before the entry in its list may match, what comes after must say the opposite,
and the port at the other end must let it pass.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from netprobe.model.policy import Way
from netprobe.model.rule_lists import Entry
from netprobe.plan.cover_places import End, Header, Place, Places
from netprobe.plan.cover_wants import Want

TRIES_MAX, TRIES_MIN, TRIES_OF_ALL = 400, 48, 6000
"""Packets that are looked at for one want, fewer where there are many ports; the first ones are nearly always good."""
PASSES, PIVOTAL, DECIDES = 4, 2, 1
BEST = PASSES + PIVOTAL + DECIDES


class Choice(NamedTuple):
    """A packet for a want.

    Attributes:
        score: PASSES (the other port lets it pass), PIVOTAL (the entry makes the difference) and DECIDES (it is the
            first that matches), added up.
    """

    score: int
    header: Header
    source: End
    target: End


class Chooser:
    """Finds packets; remembers which ports may let a header pass at all."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tries_max = min(TRIES_MAX, max(TRIES_MIN, TRIES_OF_ALL // max(1, len(places.all))))
        self._open_in: dict[Header, frozenset[int]] = {}
        self._open_out: dict[Header, frozenset[int]] = {}

    def choose(self, aim: "Aim", want: Want, locals_: Sequence[End]) -> Choice | None:
        """The best packet for a want, None where there is none to send.

        Args:
            aim: what it is worth to which entry.
            want: what would do.
            locals_: the port's own ends.
        """
        best: Choice | None = None
        tries = 0
        goal = aim.goal(want)
        if goal is None:
            return None
        for header in want.headers:
            is_open = self._opened(aim.other_way, header)
            if not is_open and best is not None and best.score & (PASSES + PIVOTAL):
                continue
            for end in self._turned(aim, want.others, is_open):
                for local in locals_:
                    found = aim.scored(header, local, end, is_hit=want.is_hit, is_open=end.place.index in is_open)
                    if found is not None and (best is None or found.score > best.score):
                        best = found
                tries += 1
                if tries >= self._tries_max or (best is not None and best.score >= goal):
                    return best
                if aim.is_settled(header) and not (want.is_hit and (best is None or not best.score & PASSES)):
                    break
        return best

    def _opened(self, way: Way, header: Header) -> frozenset[int]:
        """Ports that let a header pass with some addresses."""
        opened = self._open_in if way is Way.INGRESS else self._open_out
        found = opened.get(header)
        if found is None:
            found = opened[header] = self._places.may_allow(way, header)
        return found

    def _turned(self, aim: "Aim", others: Sequence[End], is_open: frozenset[int]) -> Iterator[End]:
        """The other side's ends, beginning with another one at each port and entry, those that may answer first.

        Of those that may not, one; never the port itself.
        """
        count = len(others)
        last = None
        for at in range(aim.turn, aim.turn + min(count, self._tries_max)):
            end = others[at % count]
            if end.place is aim.place:
                continue
            if end.place.index in is_open:
                yield end
            elif last is None:
                last = end
        if last is not None:
            yield last


class Aim:
    """An entry at a port, and what a packet is worth to it.

    Attributes:
        turn: which of the other side's ends comes first.
    """

    def __init__(self, place: Place, way: Way, entry: Entry, against: int | None = None) -> None:
        """An aim.

        Args:
            place: where the entry stands.
            way: in which of the place's lists.
            entry: what is tried.
            against: what counts is an entry of this priority that says the opposite, None for any other outcome.
        """
        self.place = place
        self.way = way
        self.other_way = Way.EGRESS if way is Way.INGRESS else Way.INGRESS
        self._stage = place.stage(way)
        self.turn = place.index + self._stage.order.get(entry, 0)
        self._against = against
        self._entry = entry
        self._is_in = way is Way.INGRESS

    def goal(self, want: Want) -> int | None:
        """The score that can't be beaten, None where the want is idle: others allow everything anyway."""
        is_idle = want.headers and self._against is None and self._stage.is_idle(self._entry, want.headers[0].family)
        if is_idle:
            return PASSES if want.is_hit else None
        return BEST if want.is_hit else BEST - DECIDES

    def is_settled(self, header: Header) -> bool:
        """Whether another entry decides about a header, whatever the addresses."""
        return self._against is None and self._stage.is_settled(self._entry, header)

    def scored(self, header: Header, local: End, end: End, *, is_hit: bool, is_open: bool) -> Choice | None:
        """A packet with its score, None where it can't be sent.

        Args:
            header: of the packet.
            local: the port itself.
            end: the other side.
            is_hit: whether the entry matches it.
            is_open: whether the other side may let the header pass.
        """
        source, target = (end, local) if self._is_in else (local, end)
        if target.mac != target.place.port.mac:
            return None  # nobody knows where the MAC address of a pair is
        if self._against is None:
            is_first, is_pivotal = self._stage.weigh(self._entry, header, source.number, target.number)
        else:
            is_first = False
            is_pivotal = self._stage.is_rival(self._entry, self._against, header, source.number, target.number)
        score = PIVOTAL * is_pivotal + DECIDES * (is_first and is_hit)
        if is_open and end.place.allows(self.other_way, header, source.number, target.number):
            score += PASSES
        return Choice(score, header, source, target)
