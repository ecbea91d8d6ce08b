"""Which packet proves most of a want: a header, and an end on each side. Pure.

The best packet is one whose fate depends on the entry alone: with the entry it arrives and without it it does not, or
the other way round. For that nothing before the entry in its list may match, what comes after must say the opposite,
and the port at the other end must let it pass.
"""

from collections.abc import Iterator
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
        self._open: dict[tuple[Way, Header], frozenset[int]] = {}

    def choose(self, place: Place, way: Way, entry: Entry, want: Want, against: int | None = None) -> Choice | None:
        """The best packet for a want, None where there is none to send.

        Args:
            place: where the entry stands.
            way: in which of the place's lists.
            entry: what is tried.
            want: what would do.
            against: what counts is an entry of this priority that says the opposite, None for any other outcome.
        """
        best: Choice | None = None
        tries = 0
        aim = _Aim(place, way, entry, is_hit=want.is_hit, against=against)
        for header in want.headers:
            is_open = self._opened(aim.other_way, header)
            if aim.is_hopeless(header, best, is_open=bool(is_open)):
                continue
            for local in want.locals:
                for end in self._turned(aim, want, is_open):
                    found = aim.scored(header, local, end, is_open=end.place.index in is_open)
                    tries += 1
                    if found is not None and (best is None or found.score > best.score):
                        best = found
                        if best.score == aim.goal:
                            return best
                    if tries >= self._tries_max:
                        return best
        return best

    def _turned(self, aim: "_Aim", want: Want, is_open: frozenset[int]) -> Iterator[End]:
        """The other side's ends, beginning with another one at each port and entry, those that may answer first."""
        others = want.others
        count = len(others)
        last = None
        for at in range(aim.turn, aim.turn + min(count, self._tries_max)):
            end = others[at % count]
            if end.place.index in is_open:
                yield end
            elif last is None and end.place is not aim.place:
                last = end
        if last is not None:
            yield last

    def _opened(self, way: Way, header: Header) -> frozenset[int]:
        """Ports that let a header pass with some addresses."""
        key = (way, header)
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = self._places.may_allow(way, header)
        return found


class _Aim:
    """An entry at a port, and what a packet is worth to it."""

    def __init__(self, place: Place, way: Way, entry: Entry, *, is_hit: bool, against: int | None) -> None:
        self.place = place
        self.way = way
        self.other_way = Way.EGRESS if way is Way.INGRESS else Way.INGRESS
        self.goal = BEST if is_hit else BEST - DECIDES
        self.turn = place.index + place.stage(way).order.get(entry, 0)
        self._against = against
        self._entry = entry
        self._stage = place.stage(way)
        self._is_hit = is_hit

    def is_hopeless(self, header: Header, best: Choice | None, *, is_open: bool) -> bool:
        """Whether a header can't do better than what there is: nobody lets it pass, or another entry always decides."""
        if not is_open and best is not None and best.score & (PASSES + PIVOTAL):
            return True
        if self._is_hit and best is None:
            return False
        return self._against is None and self._stage.is_settled(self._entry, header)

    def scored(self, header: Header, local: End, end: End, *, is_open: bool) -> Choice | None:
        """A packet with its score, None where it can't be sent.

        Args:
            header: of the packet.
            local: the port itself.
            end: the other side.
            is_open: whether the other side may let the header pass.
        """
        if end.place is self.place:
            return None
        source, target = (end, local) if self.way is Way.INGRESS else (local, end)
        if target.mac != target.place.port.mac:
            return None  # nobody knows where the MAC address of a pair is
        score = PIVOTAL if self._is_pivotal(header, source.number, target.number) else 0
        if self._is_hit and self._stage.first(header, source.number, target.number) is self._entry:
            score += DECIDES
        if is_open and end.place.allows(self.other_way, header, source.number, target.number):
            score += PASSES
        return Choice(score, header, source, target)

    def _is_pivotal(self, header: Header, source: int, target: int) -> bool:
        if self._against is None:
            return self._stage.is_pivotal(self._entry, header, source, target)
        return self._stage.is_rival(self._entry, self._against, header, source, target)
