"""What is to be tried of one entry at one port: everything that it compiles to, and what stands just beside it. Pure.

A want says which headers would do, the best first, and which ends the other side may be; cover_choice takes the pair
that proves most. An entry of a range of ports is as many value/mask pairs, one of a group as many addresses: a backend
may have lost any one of them, so each is a want. Beside stand: the ports before and after, the addresses before and
after a prefix and in the other half of the next wider one, whoever is not in a group, the other protocols, ICMP types
and codes, the other family, and the other direction.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from netprobe.model.conntrack_rules import ANSWERS, ERRORS, UNTRACKED
from netprobe.model.policy import (
    DCCP,
    DENY_PRIORITY,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    UDPLITE,
    WITH_PORTS,
    Policy,
    Way,
    port_prefixes,
)
from netprobe.model.rule_lists import EPHEMERAL, FAMILIES, AddressSet, Entry
from netprobe.plan.cover_places import BITS, End, Header, Place, Places, header_of
from netprobe.plan.cover_words import Vocabulary
from netprobe.plan.port_masks import ALL_ONES, range_masks
from netprobe.wire.policy_layout import IPV6_EXTENSIONS

BESIDE_MIN, BESIDE_OF_ALL = 3, 60
"""Members of a group whose neighbours are tried at one port, where there are more; fewer where there are many ports."""
_EDGES = ("first port", "first address", "last address")
_ONCE = ("any protocol", "other family", "group ", "code ")
_MEMBER = "from "
_RIVAL_ENDS_MAX = 4
_NEXT_PORTS = ("port-1", "port+1")
_PREFIX_BIT = "prefix bit"
GRID_MIN, GRID_OF_ALL = 16, 1600
"""Pairs of headers and members of one entry that are all tried at each port, fewer where there are many ports.

Of more, each port tries each header and each member once, and other pairs than the port before it.
"""
GROUPS_FEW = 8
"""Up to so many groups each is tried as a wrong remote group; of more only those that the right members don't tell."""
_FAR = {4: (203 << 24) + (113 << 8) + 7, 6: (0x20010DB8 << 96) + 7}
"""Addresses that only rules about everybody hold: of the blocks for documentation (RFC 5737, RFC 3849)."""
_NEXT_PROTOCOL = {TCP: UDP, UDP: TCP, SCTP: TCP, DCCP: SCTP, UDPLITE: UDP}


class Want(NamedTuple):
    """Something to try of an entry at a port.

    Attributes:
        label: in words, "" for the entry itself.
        text: the same with the rule's id.
        headers: any of them would do.
        others: ends of the other side; any would do.
        is_hit: the entry matches; else it would if it were a little wider.
        is_once: tried at one port of all that carry it: only a change of the rule itself could make it pass, not one
            of what a single port has of it.
        is_elsewhere: tried with an own address that the entry is not about.
        is_part: one of the parts that the entry compiles to, no edge of one.
    """

    label: str
    text: str
    headers: tuple[Header, ...]
    others: Sequence[End]
    is_hit: bool
    is_once: bool = False
    is_elsewhere: bool = False
    is_part: bool = False

    def is_in_other_family(self, entry: Entry) -> bool:
        """Whether its packets are of another family than the entry."""
        return bool(self.headers) and self.headers[0].family != entry.family


class _Plan(NamedTuple):
    """The wants of an entry.

    Attributes:
        everywhere: at each port.
        beside: neighbours of members, of which each port takes a few.
        grid: what it compiles to by headers and members, where that is too much for one port; else empty.
    """

    everywhere: tuple[Want, ...]
    beside: tuple[Want, ...]
    grid: tuple[tuple[Want, ...], ...]


_Inside = tuple[str, tuple[End, ...]]
_MakeWant = Callable[[str, tuple[Header, ...], Sequence[End]], Want]


class Wants:
    """Makes the wants of entries; what does not depend on the port is made once."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.words = Vocabulary(places.policy)
        count = max(1, len(places.all))
        self._grid_max = max(GRID_MIN, GRID_OF_ALL // count)
        self._beside_max = max(BESIDE_MIN, BESIDE_OF_ALL // count)
        self._plans: dict[tuple[Entry, bool], _Plan] = {}
        self._hits: dict[Entry, tuple[tuple[str, tuple[Header, ...]], ...]] = {}
        self._misses: dict[Entry, tuple[tuple[str, tuple[Header, ...]], ...]] = {}
        self._inside: dict[tuple[Entry, Way], list[tuple[str, tuple[End, ...]]]] = {}
        self._outside: dict[tuple[Entry, Way], list[tuple[str, tuple[End, ...]]]] = {}
        self._headers: dict[Entry, tuple[Header, ...]] = {}
        self._flat: dict[tuple[Entry, Way], list[End]] = {}
        self._labels: dict[tuple[Entry, Header, int], str] = {}
        self._names = _names(places.policy)
        found = (entry for place in places.all for way in Way for entry in place.stage(way).entries)
        self._entries = tuple(dict.fromkeys(found))
        self._all_ends: dict[int, tuple[End, ...]] = {}
        self.words.add_samples(header for entry in self._entries for header in self.headers(entry)[:1])
        policy = places.policy
        self._are_few = len(policy.groups) <= GROUPS_FEW
        self._group_sets = {
            family: [
                (group.title, AddressSet.of((p for m in policy.members(group.id) for p in port_prefixes(m)), family))
                for group in policy.groups
            ]
            for family in FAMILIES
        }
        self._rules = {rule.id: rule for group in policy.groups for rule in group.rules}

    def of(self, place: Place, way: Way, entry: Entry) -> Iterator[Want]:
        """The wants of an entry at a port, the entry itself first."""
        key = (entry, way is Way.INGRESS)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(entry, way)
        rows = plan.grid
        if rows:  # each header and each member once; other pairs at other ports
            width = len(rows[0])
            for at in range(max(len(rows), width)):
                yield rows[at % len(rows)][(at + place.index) % width]
        yield from plan.everywhere
        beside = plan.beside
        count = min(len(beside), self._beside_max)
        yield from (beside[(place.index + at) % len(beside)] for at in range(count))

    def _plan(self, entry: Entry, way: Way) -> _Plan:
        def want(label: str, headers: tuple[Header, ...], ends: Sequence[End], *, is_hit: bool = False) -> Want:
            text = f"{entry.rule}:{label}" if label else entry.rule
            is_part = is_hit and not label.endswith(_EDGES)
            return Want(label, text, headers, ends, is_hit, label.startswith(_ONCE), is_part=is_part)

        hits, inside = self.hits(entry), self.inside(entry, way)
        members = [each for each in inside if not each[0].endswith(_EDGES)]
        grid = tuple(
            tuple(want(_joined(label, member), headers, ends, is_hit=True) for member, ends in members)
            for label, headers in hits
            if label not in _EDGES
        )
        found = [each for row in grid for each in row]
        if len(found) > self._grid_max and members:
            found = []
        else:
            grid = ()
        in_ends = tuple(self.inside_ends(entry, way))
        edges = [(label, headers, "", in_ends) for label, headers in hits if label in _EDGES]
        edges += [(*hits[0], *each) for each in inside if each[0].endswith(_EDGES)]
        found += [want(_joined(label, member), headers, ends, is_hit=True) for label, headers, member, ends in edges]
        headers = self.headers(entry)
        if _sides(entry, way)[1] is not None:
            found.append(want("other local address", headers, in_ends)._replace(is_elsewhere=True))
        found += [want(label, near, in_ends) for label, near in self.misses(entry)]
        outside = [want(label, headers, ends) for label, ends in self.outside(entry, way)]
        if not grid and self._grid_max > GRID_MIN:  # each pair may be a flow of its own, and any of them too wide
            found += self._beside_each(entry, way, members, want)
        found += [each for each in outside if not each.label.startswith(_MEMBER)]
        beside = tuple(each for each in outside if each.label.startswith(_MEMBER))
        swapped, others = self._other_family(entry)
        if swapped and others:
            found.append(want("other family", swapped, others)._replace(is_elsewhere=False))
        return _Plan(tuple(found), beside, grid)

    def _beside_each(self, entry: Entry, way: Way, members: Sequence[_Inside], want: _MakeWant) -> Iterator[Want]:
        """The ports beside an entry's from each of its members, and each of its blocks from beside each member."""
        for label, near in self.misses(entry):
            if label in _NEXT_PORTS and len(members) > 1:
                yield from (want(_joined(label, member), near, ends) for member, ends in members)
        blocks = [(label, headers) for label, headers in self.hits(entry) if label not in _EDGES]
        if len(blocks) > 1:
            for label, ends in self.outside(entry, way):
                if label.endswith(_PREFIX_BIT):
                    yield from (want(_joined(block, label), headers, ends) for block, headers in blocks)

    def against(self, place: Place, way: Way, entry: Entry) -> Iterator[tuple[Want, int]]:
        """An ACL against entries of other priorities that say the opposite: which of the two is asked first."""
        stage = place.stage(way)
        rivals: dict[int, list[Entry]] = {}
        for other in stage.entries:
            if other.allows is not entry.allows and other.family == entry.family and other is not entry:
                rivals.setdefault(other.priority, []).append(other)
        if entry.allows and not stage.default_allows and entry.priority <= DENY_PRIORITY:
            rivals.setdefault(DENY_PRIORITY, [])
        for priority, others in rivals.items():
            near = [header for other in others for header in self.headers(other)]
            fitting = [header for header in near if stage.matches(entry, header)]
            headers = tuple(dict.fromkeys((*fitting, *self.headers(entry))))
            label = f"priority {priority}"
            # First those whom a rival is about: it may be about few, and the entry about everybody.
            theirs = (end for other in others for end in self.inside_ends(other, way)[:_RIVAL_ENDS_MAX])
            remote = _sides(entry, way)[0]
            held = (end for end in theirs if remote is None or remote.holds(end.number))
            ends = tuple(dict.fromkeys((*held, *self.inside_ends(entry, way))))
            yield Want(label, f"{entry.rule}:{label}", headers, ends, is_hit=False), priority

    def hits(self, entry: Entry) -> tuple[tuple[str, tuple[Header, ...]], ...]:
        """What it compiles to, addresses aside: label and headers."""
        if entry not in self._hits:
            self._hits[entry] = tuple(self._make_hits(entry))
        return self._hits[entry]

    def misses(self, entry: Entry) -> tuple[tuple[str, tuple[Header, ...]], ...]:
        """What stands beside it, addresses aside."""
        if entry not in self._misses:
            found = (_distinct(label, headers) for label, headers in self._make_misses(entry))
            self._misses[entry] = tuple((label, headers) for label, headers in found if headers)
        return self._misses[entry]

    def headers(self, entry: Entry) -> tuple[Header, ...]:
        """Headers that it matches, of each part that it compiles to, the best of each first."""
        if entry not in self._headers:
            parts = [headers for _, headers in self.hits(entry)]
            found = (each for rank in zip_longest(*parts) for each in rank if each is not None)
            self._headers[entry] = tuple(dict.fromkeys(found))
        return self._headers[entry]

    def inside_ends(self, entry: Entry, way: Way) -> list[End]:
        """Ends of the other side that an entry is about."""
        key = (entry, way)
        if key not in self._flat:
            self._flat[key] = [end for _, ends in self.inside(entry, way) for end in ends]
        return self._flat[key]

    def part_of(self, entry: Entry, way: Way, header: Header, remote: int) -> str:
        """The label of the hit that a packet is, of all that the entry compiles to.

        Args:
            entry: matches the packet.
            way: of the list that it stands in.
            header: of the packet.
            remote: address of the other side.
        """
        found = _sides(entry, way)[0]
        number = -1
        if found is not None and len(found.parts) > 1:
            number = next(at for at, part in enumerate(found.parts) if part[0] <= remote <= part[1])
        key = (entry, header, number)
        label = self._labels.get(key)
        if label is None:
            label = self._header_label(entry, header)
            if found is not None and number >= 0:
                label = _joined(label, self._part_name(*found.parts[number], entry.family, number))
            self._labels[key] = label
        return label

    def pings(self, family: int) -> tuple[Header, ...]:
        """ICMP queries."""
        return tuple(self._any(family, ICMP))

    def _header_label(self, entry: Entry, header: Header) -> str:
        if entry.dst_ports and header.dst_port is not None:
            for label, headers in self.hits(entry):
                if any(header.src_port == each.src_port for each in headers) and _in_block(header.dst_port, headers):
                    return label
        return next((label for label, headers in self.hits(entry) if header in headers), "")

    def inside(self, entry: Entry, way: Way) -> list[tuple[str, tuple[End, ...]]]:
        """Ends of the other side that an entry is about, by the prefixes that its condition is made of."""
        key = (entry, way)
        if key not in self._inside:
            remote = _sides(entry, way)[0]
            everybody = [("", self._everybody(entry.family))]
            self._inside[key] = everybody if remote is None else list(self._make_inside(remote, entry.family))
        return self._inside[key]

    def outside(self, entry: Entry, way: Way) -> list[tuple[str, tuple[End, ...]]]:
        """Ends that it is not about: beside each of its prefixes, and elsewhere."""
        key = (entry, way)
        if key not in self._outside:
            remote = _sides(entry, way)[0]
            found = self._make_outside(remote, entry.family) if remote is not None else ()
            self._outside[key] = [(label, ends) for label, ends in found if ends or label == "outside"]
        return self._outside[key]

    def _make_inside(self, remote: AddressSet, family: int) -> Iterator[tuple[str, tuple[End, ...]]]:
        for number, (first, last) in enumerate(remote.parts):
            label = "" if len(remote.parts) == 1 else self._part_name(first, last, family, number)
            yield label, self._places.within(first, last, family)
            if last > first and last - first + 1 < 1 << BITS[family]:  # its own edges, where somebody may use them
                for word, edge in (("first address", first), ("last address", last)):
                    ends = self._places.exact(edge, family)
                    if ends:
                        yield _joined(label, word), ends

    def _make_outside(self, remote: AddressSet, family: int) -> Iterator[tuple[str, tuple[End, ...]]]:
        if remote.holds(0) and remote.lasts[0] == (1 << BITS[family]) - 1:
            return
        for number, (first, last) in enumerate(remote.parts):
            size = last - first + 1
            name = "" if len(remote.parts) == 1 else self._part_name(first, last, family, number)
            for word, edge in (("address before", first - 1), ("address after", last + 1)):
                if not remote.holds(edge) and (first < last or not name):
                    yield _joined(name, word), self._places.exact(edge, family)
            other_half = first ^ size
            if size < 1 << BITS[family]:
                ends = self._places.within(other_half, other_half + size - 1, family)
                yield _joined(name, "prefix bit"), _without(ends, remote)
        yield "outside", _without(self._everybody(family), remote)
        for group, other in self._group_sets[family]:
            # The positive probes find a wrong group that lacks a member; of one that has them all, who is too much.
            if self._are_few or (remote.is_within(other) and not other.is_within(remote)):
                yield f"group {group}", _without(self._ends_of(other, family), remote)

    def _everybody(self, family: int) -> tuple[End, ...]:
        """An end of each port, and decoys that no rule has heard of."""
        if family not in self._all_ends:
            number = _FAR[family]
            self._all_ends[family] = (*self._places.own[family], *self._places.decoys(number, number, family))
        return self._all_ends[family]

    def _part_name(self, first: int, last: int, family: int, number: int) -> str:
        """A member's name: keys are the same wherever the network is."""
        return self._names.get((family, first, last), f"part {number}")

    def locals_of(self, place: Place, way: Way, entry: Entry, want: Want) -> Sequence[End]:
        """The port's own ends that a want is to be tried with."""
        family = want.headers[0].family if want.headers else entry.family
        own = place.own[family]
        local = entry.destinations if way is Way.INGRESS else entry.sources
        if local is None or family != entry.family:
            return own[:1]
        if want.is_elsewhere:
            return [end for end in own if not local.holds(end.number)][:1]
        held = [end for end in own if local.holds(end.number)]
        if held:
            return held
        found = (end for first, last in local.parts for end in self._places.within(first, last, family))
        return [end for end in found if end.place is place and end.mac == place.port.mac]

    def _make_hits(self, entry: Entry) -> Iterator[tuple[str, tuple[Header, ...]]]:
        if entry.protocol is None:
            for protocol in (TCP, UDP, ICMP, self.words.quiet_protocol):
                headers = tuple(self._any(entry.family, protocol))
                yield f"protocol {'other' if protocol == self.words.quiet_protocol else protocol}", headers
            for protocol in self.words.protocols:
                if protocol not in (TCP, UDP) and not is_hidden(entry.family, protocol):
                    yield f"protocol {protocol}", tuple(self._any(entry.family, protocol))
        elif entry.protocol in WITH_PORTS:
            for src_label, src in _source_ports(entry.src_ports):
                for label, ports in self._blocks(entry.dst_ports):
                    made = (header_of(entry.family, entry.protocol, port)._replace(src_port=src) for port in ports)
                    yield _joined(label, src_label), tuple(dict.fromkeys(made))
        elif _is_icmp(entry.family, entry.protocol):
            yield from _icmp_hits(entry)
        elif not is_hidden(entry.family, entry.protocol):
            yield "", (header_of(entry.family, entry.protocol),)
        else:
            yield "", ()

    def _make_misses(self, entry: Entry) -> Iterator[tuple[str, Iterable[Header]]]:
        family, protocol = entry.family, entry.protocol
        if protocol is None:
            return
        if protocol not in WITH_PORTS:
            if _is_icmp(family, protocol):
                yield from _icmp_misses(entry, self.words.samples(family))
            else:
                others = (protocol + 1, protocol - 1)
                yield "protocol", (header_of(family, other) for other in others if _is_plain(family, other))
            yield "any protocol", self._other_protocols(entry)
            return
        for label, port, src in _beside(entry):
            ports = [port] if port is not None else self._ports(entry.dst_ports)
            yield label, (header_of(family, protocol, p)._replace(src_port=src) for p in ports)
        other = _NEXT_PROTOCOL[protocol]
        src = _source_ports(entry.src_ports)[0][1]
        ports = self._ports(entry.dst_ports)
        yield "protocol", (header_of(family, other, port)._replace(src_port=src) for port in ports)
        yield "any protocol", self._other_protocols(entry)

    def _other_protocols(self, entry: Entry) -> Iterator[Header]:
        """What an entry would match too if it had forgotten its protocol: what others name, then what nobody does."""
        known = self.words.samples(entry.family)
        near = _NEXT_PROTOCOL.get(entry.protocol or 0)
        yield from (header for header in known if header.protocol not in (entry.protocol, near))
        yield header_of(entry.family, self.words.quiet_protocol)
        yield from self._any(entry.family, UDP if entry.protocol == TCP else TCP)
        yield from (header for header in known if header.protocol in (entry.protocol, near))
        yield from self._any(entry.family, ICMP)

    def _blocks(self, ports: tuple[int, int] | None) -> Iterator[tuple[str, list[int]]]:
        """Value/mask pairs of a range; of each the port at the range's edge if it has one, then others."""
        if ports is None:
            yield "", self.words.any_port()
            return
        masks = range_masks(*ports)
        for value, mask in masks:
            last = value | ~mask & ALL_ONES
            natural = last if last == ports[1] else value
            label = "" if len(masks) == 1 else f"mask {value:#06x}/{mask:#06x}"
            yield label, [natural, value, last, *self.words.ports_in(value, last), (value + last) // 2]
        if len(masks) == 1 and ports[0] < ports[1]:
            yield "first port", [ports[0]]

    def _ports(self, ports: tuple[int, int] | None) -> list[int]:
        return self.words.any_port() if ports is None else [*ports, *self.words.ports_in(*ports)]

    def _any(self, family: int, protocol: int) -> Iterator[Header]:
        """Headers of a protocol, whatever its ports or types."""
        if protocol in WITH_PORTS:
            yield from (header_of(family, protocol, port) for port in self.words.any_port())
        elif protocol == ICMP:
            number = ICMP if family == 4 else ICMPV6
            yield from (header_of(family, number, icmp_type=icmp_type) for icmp_type in _queries(family))
        else:
            yield header_of(family, protocol)

    def _other_family(self, entry: Entry) -> tuple[tuple[Header, ...], Sequence[End]]:
        """A rule of one family, tried in the other: the same headers, and whom it would be about."""
        family = 6 if entry.family == 4 else 4
        swapped = tuple(_in_family(header, family) for header in self.headers(entry))
        return swapped, self._in_other_family(entry, family)

    def _in_other_family(self, entry: Entry, family: int) -> Sequence[End]:
        """Whom it would be about in the other family."""
        rule = self._rules.get(entry.rule)
        if entry.is_acl or rule is None or rule.remote_prefix is not None:
            return () if _has_prefix(entry) else self._places.own[family]
        prefixes = self._places.policy.remote_prefixes(rule, family)
        if prefixes is None:
            return self._places.own[family]
        return self._ends_of(AddressSet.of(prefixes, family), family)

    def mirrored(self, entry: Entry, way: Way) -> Sequence[End]:
        """The other side's ends if the entry stood in the list of the other way."""
        if not entry.is_acl:
            return self.inside_ends(entry, way)
        remote = _sides(entry, Way.EGRESS if way is Way.INGRESS else Way.INGRESS)[0]
        return self._places.own[entry.family] if remote is None else self._ends_of(remote, entry.family)

    def _ends_of(self, remote: AddressSet, family: int) -> list[End]:
        return [end for first, last in remote.parts for end in self._places.within(first, last, family)]


def is_hidden(family: int, protocol: int) -> bool:
    """Whether no packet shows a protocol to a policy: IPv6 walks over extension headers."""
    return family == 6 and protocol in IPV6_EXTENSIONS


def _is_plain(family: int, protocol: int) -> bool:
    """Whether it is a protocol without ports and types."""
    return 1 < protocol < 255 and protocol not in (*WITH_PORTS, ICMP, ICMPV6) and not is_hidden(family, protocol)


def _names(policy: Policy) -> dict[tuple[int, int, int], str]:
    """What people call prefixes that stand for ports."""
    return {
        (prefix.version, int(prefix.network_address), int(prefix.broadcast_address)): (
            f"{_MEMBER}{port.name}"
            if number < len(port.ips)
            else f"{_MEMBER}pair {number - len(port.ips)} of {port.name}"
        )
        for port in policy.ports
        for number, prefix in enumerate(port_prefixes(port))
    }


def _sides(entry: Entry, way: Way) -> tuple[AddressSet | None, AddressSet | None]:
    """Its condition on the other side's address, and on the port's own."""
    return (entry.sources, entry.destinations) if way is Way.INGRESS else (entry.destinations, entry.sources)


def _has_prefix(entry: Entry) -> bool:
    return entry.sources is not None or entry.destinations is not None


def _without(ends: Iterable[End], remote: AddressSet) -> tuple[End, ...]:
    return tuple(end for end in ends if not remote.holds(end.number))


def _in_block(port: int, headers: Iterable[Header]) -> bool:
    """Whether a port is between those that were tried of a block: its first and last are among them."""
    ports = [header.dst_port for header in headers if header.dst_port is not None]
    return min(ports) <= port <= max(ports)


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)


def _distinct(label: str, headers: Iterable[Header]) -> tuple[str, tuple[Header, ...]]:
    return label, tuple(dict.fromkeys(headers))


def _is_icmp(family: int, protocol: int) -> bool:
    return protocol == (ICMP if family == 4 else ICMPV6)


def _queries(family: int) -> list[int]:
    return list(ANSWERS[family])


def _in_family(header: Header, family: int) -> Header:
    if not _is_icmp(header.family, header.protocol):
        return header._replace(family=family)
    number = ICMP if family == 4 else ICMPV6
    is_ping = header.icmp_type in (8, 128)
    icmp_type = {4: 8, 6: 128}[family] if is_ping else header.icmp_type
    return header._replace(family=family, protocol=number, icmp_type=icmp_type)


def _source_ports(ports: tuple[int, int] | None) -> list[tuple[str, int | None]]:
    """Source ports to send from; None leaves the choice to each attempt."""
    if ports is None or (ports[0] <= EPHEMERAL[0] and EPHEMERAL[1] <= ports[1]):
        return [("", None)]
    first, last = ports
    return [("", first)] if first == last else [("first source port", first), ("last source port", last)]


def _beside(entry: Entry) -> Iterator[tuple[str, int | None, int | None]]:
    """Ports just beside an entry's: label, destination port (None: any of its own) and source port."""
    src = _source_ports(entry.src_ports)[0][1]
    if entry.dst_ports:
        first, last = entry.dst_ports
        if first > 0:
            yield "port-1", first - 1, src
        if last < ALL_ONES:
            yield "port+1", last + 1, src
    if entry.src_ports:
        first, last = entry.src_ports
        if first > 0:
            yield "source port-1", None, first - 1
        if last < ALL_ONES:
            yield "source port+1", None, last + 1


def _icmp_hits(entry: Entry) -> Iterator[tuple[str, tuple[Header, ...]]]:
    family, protocol = entry.family, entry.protocol or 0
    if entry.icmp_type is None:
        yield "", tuple(header_of(family, protocol, icmp_type=each) for each in _queries(family))
        return
    codes = (0, 1) if entry.icmp_code is None else (entry.icmp_code,)
    for code in codes:
        label = "" if code == codes[0] else f"code {code}"
        yield label, (header_of(family, protocol, icmp_type=entry.icmp_type, icmp_code=code),)


def _icmp_misses(entry: Entry, known: Iterable[Header]) -> Iterator[tuple[str, Iterable[Header]]]:
    family, protocol, icmp_type = entry.family, entry.protocol or 0, entry.icmp_type
    if icmp_type is None:
        return
    left_alone = ERRORS[family] | (UNTRACKED if family == 6 else frozenset())
    for label, other in (("type-1", icmp_type - 1), ("type+1", icmp_type + 1)):
        if 0 <= other <= 255 and other not in left_alone:
            yield label, (header_of(family, protocol, icmp_type=other),)
    others = [query for query in _queries(family) if query != icmp_type]
    named = [header for header in known if header.protocol == protocol and header.icmp_type != icmp_type]
    yield "other type", (*(header_of(family, protocol, icmp_type=other) for other in others), *named)
    if entry.icmp_code is not None:
        for label, code in (("code-1", entry.icmp_code - 1), ("code+1", entry.icmp_code + 1)):
            if 0 <= code <= 255:
                yield label, (header_of(family, protocol, icmp_type=icmp_type, icmp_code=code),)
