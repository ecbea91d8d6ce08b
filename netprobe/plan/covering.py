"""Covering probes: from a policy the small set of scenarios that exercises every rule and both sides of each boundary.

Pure and deterministic. At each port every entry of both lists has its wants (cover_wants); each is met by the packet
that proves most (cover_choice), and a packet that arrives meets one of its sender's egress wants with one of its
receiver's ingress wants. Then come what no rule is about: states of connections and fragments (cover_states),
anti-spoofing (cover_spoofing), the default deny. What can't be sent is said, and so is what can never decide.
"""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, product

from netprobe.model.packets import Cover
from netprobe.model.policy import TCP, UDP, IPAddress, Policy, Way
from netprobe.model.rule_lists import FAMILIES, Entry
from netprobe.plan.cover_choice import DECIDES, PASSES, PIVOTAL, Aim, Choice, Chooser
from netprobe.plan.cover_drafts import Decider, Drafts
from netprobe.plan.cover_places import End, Header, Place, Places, header_of
from netprobe.plan.cover_shadows import shadowed_rules
from netprobe.plan.cover_spoofing import add_spoofing
from netprobe.plan.cover_states import add_states
from netprobe.plan.cover_wants import Want, Wants

__all__ = ["Decider", "cover"]

WRONG_STAGE = "wrong stage only"
_OTHER = {Way.INGRESS: Way.EGRESS, Way.EGRESS: Way.INGRESS}
_NAMED_MAX = 3
_MIRRORS_MAX = 100
_MEMBERSHIPS_MAX = 400
"""Pairs of ports and groups; where there are more, nobody's being in a group too many is tried."""
_ONCE_MAX = 8
"""Ports at which something is tried that one port is enough for, if it does not work at the first."""


def cover(policy: Policy, decide: Decider, others: Iterable[IPAddress] = ()) -> Cover:
    """The scenarios that prove a policy.

    The lower bound: a first packet has one fate. It is stopped at one of three points, or it arrives. What is to be
    seen stopped at a point, with a header of its own at a port of its own, needs a packet of its own; what is to be
    seen arriving is an entry's part (addresses and port mask) at one port and way, and an arriving packet has one
    deciding entry, address and port at its sender and one at its receiver. So no set is smaller than what is stopped,
    plus the greater of what leaves and what enters. One port at each end counts also where the entries are several.

    Args:
        policy: bound: its ports have their addresses.
        decide: says what should become of a packet (judge.evaluator.Evaluator); expectations are its, not ours.
        others: addresses of those who are in no policy, so that nothing is sent in their name.
    """
    with _collector_at_rest():
        return _Covering(policy, decide, others).made()


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Half a million values are made and none is garbage: looking for some would take a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _turned(ends: Sequence[End], start: int) -> Sequence[End]:
    """All of them, beginning somewhere else at each port."""
    at = start % len(ends) if ends else 0
    return (*ends[at:], *ends[:at])


class _Gaps:
    """What was not to be had, and at which ports."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, label: str, why: str, place: str = "") -> None:
        places = self._found.setdefault((label, why), [])
        if place and place not in places:
            places.append(place)

    def labels(self) -> set[str]:
        return {label for label, _ in self._found}

    def lines(self) -> tuple[tuple[str, str], ...]:
        return tuple((label, why + _at_places(places)) for (label, why), places in self._found.items())


def _at_places(places: list[str]) -> str:
    if not places:
        return ""
    more = len(places) - _NAMED_MAX
    return f" (at {', '.join(places[:_NAMED_MAX])}" + (f" and {more} more)" if more > 0 else ")")


class _Covering:
    def __init__(self, policy: Policy, decider: Decider, others: Iterable[IPAddress]) -> None:
        self._policy = policy
        self._places = Places(policy, others)
        self._wants = Wants(self._places)
        self._chooser = Chooser(self._places)
        self._drafts = Drafts(decider, self._wants.words.cuts())
        self._gaps = _Gaps()
        self._tried: Counter[tuple[int, str]] = Counter()
        """How often something was tried that one port is enough for."""
        self._arriving: dict[Way, set[tuple[int, Entry, str]]] = {way: set() for way in Way}
        """Parts of entries that a packet which arrives has shown: port, entry and label."""

    def made(self) -> Cover:
        for way in (Way.INGRESS, Way.EGRESS):
            for place in self._places.all:
                if place.is_guarded:
                    self._add_entries(place, way)
        for place in self._places.all:
            if place.is_guarded and not place.stage(Way.INGRESS).default_allows:
                self._add_default_deny(place)
        if len(self._policy.groups) * len(self._places.all) <= _MEMBERSHIPS_MAX:
            self._add_memberships()
        self._drafts.finish()
        add_states(self._places, self._drafts)
        add_spoofing(self._places, self._drafts)
        for label, place_name in self._drafts.left_out:
            self._gaps.add(label, "its outcome depends on the source port, which each attempt chooses", place_name)
        shadowed = self._shadowed()
        self._add_unnamed(shadowed)
        scenarios = self._drafts.scenarios
        return Cover(
            scenarios,
            self._lower_bound(),
            self._naive(),
            tuple(sorted(shadowed.items())),
            tuple(line for line in self._gaps.lines() if not line[1].startswith(WRONG_STAGE)),
            tuple(line for line in self._gaps.lines() if line[1].startswith(WRONG_STAGE)),
        )

    def _add_entries(self, place: Place, way: Way) -> None:
        shown = self._arriving[way]
        for entry in place.stage(way).entries:
            aim = Aim(place, way, entry)
            wants = self._wants.of(place, way, entry)
            if place.stage(way).is_idle(entry, entry.family):  # once is enough for what makes no difference
                wants = (want for at, want in enumerate(wants) if at == 0 or want.is_in_other_family(entry))
            for want in wants:
                if way is Way.EGRESS and want.is_hit and (place.index, entry, want.label) in shown:
                    continue
                if not want.is_once:
                    self._meet(aim, entry, want)
                elif self._tried[entry.family, want.text] < _ONCE_MAX:
                    is_best = self._meet(aim, entry, want)
                    self._tried[entry.family, want.text] += _ONCE_MAX if is_best else 1
            self._mirror(place, way, entry)
        for entry in (*place.stage(way).entries, *place.stage(way).buried):
            if entry.is_acl:
                self._add_rivals(place, way, entry)

    def _add_memberships(self) -> None:
        """At each port what a group that it does not have would let pass: it may have been given one too many."""
        guarded = [place for place in self._places.all if place.is_guarded]
        for way, group in product(Way, self._policy.groups):
            rules = {rule.id for rule in group.rules if rule.way is way}
            found = (entry for place in guarded for entry in place.stage(way).entries if entry.rule in rules)
            entries = tuple(dict.fromkeys(found))
            for place in guarded:
                if group.id not in place.port.groups:
                    self._add_stranger(place, way, entries)

    def _add_stranger(self, place: Place, way: Way, entries: Sequence[Entry]) -> None:
        """One packet that one of the entries would let pass, if the port had them."""
        for entry in entries:
            ends = self._wants.inside_ends(entry, way)
            found = product(self._wants.headers(entry), place.own[entry.family][:1], _turned(ends, place.index))
            for header, local, end in islice(found, _MIRRORS_MAX):
                source, target = (end, local) if way is Way.INGRESS else (local, end)
                ends_at = (source.number, target.number)
                if end.place is place or target.mac != target.place.port.mac or place.allows(way, header, *ends_at):
                    continue
                if place.stage(way).yields(entry, header, *ends_at) and end.place.allows(_OTHER[way], header, *ends_at):
                    label = f"{entry.rule}:not a member"
                    self._drafts.add(header, source, target, label, has_conversation=False)
                    return

    def _add_rivals(self, place: Place, way: Way, entry: Entry) -> None:
        for want, priority in self._wants.against(place, way, entry):
            locals_ = self._wants.locals_of(place, way, entry, want)
            choice = self._chooser.choose(Aim(place, way, entry, priority), want, locals_)
            if choice is not None and choice.score & PIVOTAL and choice.score & PASSES:
                self._draft(choice, want.text, is_hit=False)

    def _meet(self, aim: Aim, entry: Entry, want: Want) -> bool:
        """Add the best packet for a want, or say why there is none. Whether it could not be better."""
        place, way = aim.place, aim.way
        locals_ = self._wants.locals_of(place, way, entry, want)
        if not locals_:
            return False
        if not want.others:
            if want.is_hit or want.label == "outside":
                verb = "may send from" if way is Way.INGRESS else "has"
                self._gaps.add(want.text, f"no port {verb} such an address", place.port.name)
            return False
        choice = self._chooser.choose(aim, want, locals_)
        if choice is None or not (want.is_hit or choice.score & PIVOTAL):
            return False
        if not choice.score & PASSES and not self._is_worth(place, way, want, choice):
            return False
        self._draft(choice, want.text, is_hit=want.is_hit)
        if want.is_part and choice.score & PASSES and choice.score & DECIDES and entry.allows:
            self._arriving[way].add((place.index, entry, want.label))
            if way is Way.INGRESS:
                self._mark_sender(choice)
        return choice.score & (PIVOTAL + PASSES) == PIVOTAL + PASSES

    def _is_worth(self, place: Place, way: Way, want: Want, choice: Choice) -> bool:
        """Whether to send what the other port stops; says that it does."""
        if way is Way.INGRESS:
            self._gaps.add(want.text, f"{WRONG_STAGE}: no port that it is about may send this", place.port.name)
            return False
        if want.is_hit:
            self._gaps.add(want.text, f"{WRONG_STAGE}: no port that it is about lets this in", place.port.name)
        return choice.score > 0  # else it is not even this entry that lets it leave

    def _draft(self, choice: Choice, label: str, *, is_hit: bool) -> None:
        self._drafts.add(choice.header, choice.source, choice.target, label, has_conversation=is_hit)

    def _mark_sender(self, choice: Choice) -> None:
        """A packet that arrives has met a want of its sender's too, if one entry alone let it leave."""
        place, header = choice.source.place, choice.header
        if not place.is_guarded:
            return
        stage = place.stage(Way.EGRESS)
        ends = (choice.source.number, choice.target.number)
        entry = stage.first(header, *ends)
        if entry is not None and stage.is_pivotal(entry, header, *ends):
            label = self._wants.part_of(entry, Way.EGRESS, header, choice.target.number)
            self._arriving[Way.EGRESS].add((place.index, entry, label))
            self._draft(choice, f"{entry.rule}:{label}" if label else entry.rule, is_hit=True)

    def _mirror(self, place: Place, way: Way, entry: Entry) -> None:
        """The same in the other direction, where that must end otherwise and the other port would let it pass.

        Best where the other port does so for a reason of its own: a rule that was turned round is missing there.
        """
        label = f"{entry.rule}:other direction"
        once = (entry.family, label)
        if self._tried[once] >= _ONCE_MAX:
            return
        self._tried[once] += 1
        second: tuple[Header, End, End] | None = None
        for header, source, target, end in self._mirrored(place, way, entry):
            ends = (source.number, target.number)
            if not end.place.allows(way, header, *ends):
                continue
            found = end.place.stage(way).first(header, *ends) if end.place.is_guarded else None
            if found is None or found.rule != entry.rule:
                self._drafts.add(header, source, target, label, has_conversation=False)
                self._tried[once] = _ONCE_MAX
                return
            second = second or (header, source, target)
        if second is not None:
            self._drafts.add(*second, label, has_conversation=False)

    def _mirrored(self, place: Place, way: Way, entry: Entry) -> Iterator[tuple[Header, End, End, End]]:
        """Packets that an entry would decide about if it were in the list of the other way: with the other end."""
        stage = place.stage(_OTHER[way])
        ends = self._wants.mirrored(entry, way)
        headers = [header for header in self._wants.headers(entry) if stage.always(header) is not entry.allows]
        found = product(headers, place.own[entry.family][:1], _turned(ends, place.index))
        for header, local, end in islice(found, _MIRRORS_MAX):
            source, target = (local, end) if way is Way.INGRESS else (end, local)
            ends_at = (source.number, target.number)
            if end.place is place or target.mac != target.place.port.mac:
                continue
            if stage.yields(entry, header, *ends_at) and not (entry.is_acl and not entry.is_between(*ends_at)):
                yield header, source, target, end

    def _add_default_deny(self, place: Place) -> None:
        for family in FAMILIES:
            for local in place.own[family][:1]:
                for way in Way:
                    self._deny(place, way, local)

    def _deny(self, place: Place, way: Way, local: End) -> None:
        """Something that no entry of a list lets pass, with a partner that would."""
        family = local.ip.version
        label = f"default deny {way.value} v{family}"
        fallback = None
        for header in self._quiet(family):
            for end in self._partners(place, family):
                source, target = (end, local) if way is Way.INGRESS else (local, end)
                stage = place.stage(way)
                if stage.first(header, source.number, target.number) is not None or stage.is_invalid(header):
                    continue
                if end.place.allows(_OTHER[way], header, source.number, target.number):
                    self._drafts.add(header, source, target, f"{label}", has_conversation=False)
                    return
                fallback = fallback or (header, source, target)
        if fallback is None:
            return  # its rules leave nothing to it
        if way is Way.EGRESS:
            self._drafts.add(*fallback, label, has_conversation=False)
        else:
            self._gaps.add(label, f"{WRONG_STAGE}: no port may send what it would stop", place.port.name)

    def _quiet(self, family: int) -> list[Header]:
        words = self._wants.words
        ports = [header_of(family, protocol, words.quiet_port) for protocol in (TCP, UDP)]
        return [*ports, header_of(family, words.quiet_protocol), *self._wants.pings(family)]

    def _partners(self, place: Place, family: int) -> list[End]:
        """Other ports, those after this one first."""
        own = self._places.own[family]
        found = [end for end in (*own[place.index + 1 :], *own[: place.index + 1]) if end.place is not place]
        return found[:16]

    def _shadowed(self) -> dict[str, str]:
        found = shadowed_rules(self._places.all)
        asked = {
            entry.rule
            for place in self._places.all
            if place.is_guarded
            for way in Way
            for entry in (*place.stage(way).entries, *place.stage(way).buried)
        }
        carried = {group for port in self._policy.ports for group in port.groups}
        for group in self._policy.groups:
            why = "its ports have no port security" if group.id in carried else f"no port has the group {group.title}"
            found.update({rule.id: why for rule in group.rules if rule.id not in asked})
        found.update({acl.id: "it is on no port that asks it" for acl in self._policy.acls if acl.id not in asked})
        return found

    def _add_unnamed(self, shadowed: dict[str, str]) -> None:
        """Rules that no expectation names, and nothing else explains."""
        named = {
            check.rule
            for scenario in self._drafts.scenarios
            for step in scenario.steps
            for check in step.expected.checks
        }
        explained = named | set(shadowed) | self._gaps.labels()
        rules = [rule.id for group in self._policy.groups for rule in group.rules]
        for rule in (*rules, *(acl.id for acl in self._policy.acls)):
            if rule not in explained:
                self._gaps.add(rule, "nothing that these ports may send is decided by it")

    def _lower_bound(self) -> int:
        """See `cover`."""
        stopped = set()
        for scenario in self._drafts.scenarios:
            step = scenario.steps[0]
            if not step.expected.is_allowed:
                p = step.packet
                header = (p.kind, p.family, p.protocol, p.dst_port, p.icmp_type, p.icmp_code, p.tcp_flags, p.fragment)
                stopped.add((step.expected.point, header))
        return len(stopped) + max(len(shown) for shown in self._arriving.values())

    def _naive(self) -> int:
        """All ordered pairs of ports, each family, every TCP and UDP port and every ICMP type."""
        count = 0
        for family in FAMILIES:
            ports = sum(1 for place in self._places.all if place.own[family])
            count += ports * (ports - 1)
        return count * (65_536 + 65_536 + 256)
