"""Where covering probes start and end: ports with their rule lists, and who may use which address. Pure.

Below: model.rule_lists. Above: cover_wants (what to try at a place) and cover_choice (with whom to try it).
"""

from collections.abc import Iterable
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from netprobe.model.conntrack_rules import first_state
from netprobe.model.packets import SYN, ConnState, Packet
from netprobe.model.policy import DENY_PRIORITY, ICMP, ICMPV6, TCP, WITH_PORTS, IPAddress, Policy, PolicyPort, Way
from netprobe.model.rule_lists import FAMILIES, Entry, PortRules, RuleLists

BITS = {4: 32, 6: 128}
_ICMPS = (ICMP, ICMPV6)
_ZERO: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}
_RESERVED_4 = ((0, 1 << 24), (127 << 24, 128 << 24), (224 << 24, 1 << 32))
_RESERVED_6 = ((0, 1 << 64), (0xFE80 << 112, 0xFEC0 << 112), (0xFF << 120, 1 << 128))
"""First, and first after: what means something else than a host (RFC 6890), and so is no address for a decoy."""


class Header(NamedTuple):
    """What a rule matches besides addresses. An open source port is None."""

    family: int
    protocol: int
    dst_port: int | None = 0
    icmp_type: int = 0
    icmp_code: int = 0
    src_port: int | None = 0

    def packet(self, end: "End", other: "End", flags: int = SYN) -> Packet:
        """The packet from one end to another; `flags` are TCP's."""
        return Packet(
            end.mac,
            other.place.port.mac,
            end.ip,
            other.ip,
            self.protocol,
            self.src_port,
            self.dst_port,
            self.icmp_type,
            self.icmp_code,
            flags if self.protocol == TCP else 0,
        )


class End(NamedTuple):
    """A port under one of the addresses that it may use.

    Attributes:
        mac: what it sends from with this address.
        is_own: a fixed address, not that of a pair or a decoy.
    """

    place: "Place"
    number: int
    ip: IPAddress
    mac: str
    is_own: bool


class Headers:
    """Which of all entries of one way match a header, addresses aside. Ports share entries: each is looked at once."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._near: dict[tuple[int, int | None, int | None], list[Entry]] = {}
        for entry in entries:
            self._near.setdefault((entry.family, entry.protocol, _one_value(entry)), []).append(entry)
        self._wide = {family: frozenset(self._near.pop((family, None, None), ())) for family in FAMILIES}
        self._fitting: dict[Header, frozenset[Entry]] = {}
        self._invalid: dict[Header, bool] = {}

    def fitting(self, header: Header) -> frozenset[Entry]:
        """Entries that match, in no order."""
        found = self._fitting.get(header)
        if found is None:
            packet, family, protocol = _template(header), header.family, header.protocol
            value = header.dst_port if protocol in WITH_PORTS else header.icmp_type
            near = list(self._near.get((family, protocol, value), ()))
            if value is not None:
                wide = self._near.get((family, protocol, None), ())
                near += (e for e in wide if e.dst_ports is None or e.dst_ports[0] <= value <= e.dst_ports[1])
            fitting = [entry for entry in near if entry.fits(packet, is_tracked=True)]
            # One set for all headers that only entries about everything match: may_allow knows it again.
            found = self._wide[family].union(fitting) if fitting else self._wide[family]
            self._fitting[header] = found
        return found

    def is_invalid(self, header: Header) -> bool:
        """Whether it is no packet that a connection begins with."""
        found = self._invalid.get(header)
        if found is None:
            found = self._invalid[header] = first_state(_template(header)) is ConnState.INVALID
        return found


def _one_value(entry: Entry) -> int | None:
    """The port or ICMP type that an entry is about, None where there are several."""
    if entry.dst_ports is not None and entry.dst_ports[0] == entry.dst_ports[1]:
        return entry.dst_ports[0]
    return entry.icmp_type


class Stage:
    """The list of one way at ports that share it."""

    def __init__(self, rules: PortRules, way: Way, headers: Headers, *, default_allows: bool) -> None:
        self.entries = rules.entries[way]
        self.buried = rules.buried[way]
        self.is_stateful = rules.is_stateful
        self.is_mixed = rules.is_stateful and any(entry.is_stateless for entry in self.entries)
        self.default_allows = default_allows
        self.order = {entry: at for at, entry in enumerate(self.entries)}
        self._headers = headers
        self._fitting: dict[Header, tuple[Entry, ...]] = {}
        self._always: dict[Header, bool | None] = {}
        self._doors = {family: self._open_doors(family) for family in FAMILIES}

    def is_idle(self, entry: Entry, family: int) -> bool:
        """Whether an allowing entry makes no difference to any packet of a family: others allow everything."""
        return entry.allows and any(door is not entry for door in self._doors[family])

    def _open_doors(self, family: int) -> list[Entry]:
        """Entries that match all packets of a family, if nothing in the list stops any."""
        found = [entry for entry in self.entries if entry.family == family]
        if not all(entry.allows for entry in found) or any(entry.is_stateless for entry in found):
            return []
        return [e for e in found if e.protocol is None and e.sources is None and e.destinations is None]

    def fitting(self, header: Header) -> tuple[Entry, ...]:
        """Entries that match it, addresses aside, in order."""
        try:
            return self._fitting[header]
        except KeyError:
            pass
        known, order = self._headers.fitting(header), self.order
        if len(known) < len(order):
            found = tuple(sorted((entry for entry in known if entry in order), key=order.__getitem__))
        else:
            found = tuple(entry for entry in self.entries if entry in known)
        self._fitting[header] = found
        return found

    def is_invalid(self, header: Header) -> bool:
        """Whether conntrack stops it here, unless a stateless entry matches. Only ICMP has types that begin nothing."""
        return self.is_stateful and header.protocol in _ICMPS and self._headers.is_invalid(header)

    def first(self, header: Header, source: int, destination: int) -> Entry | None:
        """The entry that decides."""
        for entry in self.fitting(header):
            if entry.is_between(source, destination):
                return entry
        return None

    def allows(self, header: Header, source: int, destination: int) -> bool:
        """Whether a connection may begin with it."""
        found = None
        for entry in self.fitting(header):
            if entry.is_between(source, destination):
                found = entry
                break
        if self.is_invalid(header) and not self._is_untracked(header, source, destination):
            return False
        return self.default_allows if found is None else found.allows

    def is_pivotal(self, entry: Entry, header: Header, source: int, destination: int) -> bool:
        """Whether it makes a difference to a packet if an entry matches it."""
        return self.weigh(entry, header, source, destination)[1]

    def weigh(self, entry: Entry, header: Header, source: int, destination: int) -> tuple[bool, bool]:
        """Whether nothing before an entry matches a packet, and whether the entry makes a difference to it."""
        after = self.default_allows
        for other in self.fitting(header):
            if other is not entry and other.is_between(source, destination):
                if self.order[other] < self.order[entry]:
                    return False, False
                after = other.allows
                break
        if self.is_invalid(header) and not entry.is_stateless:
            return True, False
        return True, after is not entry.allows

    def always(self, header: Header) -> bool | None:
        """Whether a header passes whatever its addresses, None where that depends on them."""
        found = self._always.get(header, ...)
        if found is ...:
            found = self._always[header] = self._make_always(header)
        return found

    def _make_always(self, header: Header) -> bool | None:
        if self.is_invalid(header) and not self.is_mixed:
            return False
        found = None
        for entry in self.fitting(header):
            if found is not None and entry.allows is not found:
                return None
            found = entry.allows
            if entry.sources is None and entry.destinations is None:
                return found
        return self.default_allows if found in (None, self.default_allows) else None

    def is_settled(self, entry: Entry, header: Header) -> bool:
        """Whether an entry makes no difference to a header, whatever the addresses: one before it takes all."""
        at = self.order[entry]
        for other in self.fitting(header):
            if self.order[other] >= at:
                break
            if other.sources is None and other.destinations is None:
                return True
        return self.is_invalid(header) and not entry.is_stateless

    def matches(self, entry: Entry, header: Header) -> bool:
        """Whether an entry matches, addresses aside; it need not be one that is asked."""
        return entry.fits(_template(header), is_tracked=True)

    def is_rival(self, entry: Entry, priority: int, header: Header, source: int, destination: int) -> bool:
        """Whether what decides besides an ACL stands at a priority and says the opposite; none is the default deny."""
        if self.is_invalid(header) and not entry.is_stateless:
            return False
        for other in self.fitting(header):
            if other is not entry and other.is_between(source, destination):
                return other.priority == priority and other.allows is not entry.allows
        return priority == DENY_PRIORITY and self.default_allows is not entry.allows

    def yields(self, entry: Entry, header: Header, source: int, destination: int) -> bool:
        """Whether another list's entry, put in this one, would make a difference to a packet that it matches."""
        if self.is_invalid(header) and not entry.is_stateless:
            return False
        found = self.first(header, source, destination)
        if found is None:
            return self.default_allows is not entry.allows
        return found.allows is not entry.allows and found.priority <= entry.priority

    def _is_untracked(self, header: Header, source: int, destination: int) -> bool:
        return any(entry.is_stateless and entry.is_between(source, destination) for entry in self.fitting(header))


class Place:
    """A port, with its lists and the ends that it can be."""

    def __init__(self, port: PolicyPort, index: int, stages: dict[Way, Stage], *, is_guarded: bool) -> None:
        self.port = port
        self.index = index
        self.is_guarded = is_guarded
        self.is_mixed = stages[Way.EGRESS].is_mixed or stages[Way.INGRESS].is_mixed
        self._egress, self._ingress = stages[Way.EGRESS], stages[Way.INGRESS]

    def stage(self, way: Way) -> Stage:
        """Its list of one way. No dictionary: hashing an enum is slow, and this is asked a million times."""
        return self._egress if way is Way.EGRESS else self._ingress

    @cached_property
    def own(self) -> dict[int, tuple[End, ...]]:
        """Its fixed addresses by family."""
        ips = (
            self.port.ips if self.port.mac else ()
        )  # without a MAC it is attached elsewhere: nobody plays it from here
        ends = [End(self, int(ip), ip, self.port.mac, is_own=True) for ip in ips]
        return {family: tuple(end for end in ends if end.ip.version == family) for family in FAMILIES}

    @cached_property
    def pairs(self) -> dict[int, tuple[tuple[int, int, str], ...]]:
        """Prefixes of its allowed pairs by family: first, last and MAC address."""
        pairs = self.port.allowed_pairs
        return {
            family: tuple(
                (int(pair.prefix.network_address), int(pair.prefix.broadcast_address), pair.mac or self.port.mac)
                for pair in pairs
                if pair.prefix.version == family
            )
            for family in FAMILIES
        }

    def allows(self, way: Way, header: Header, source: int, destination: int) -> bool:
        """Whether a connection may begin with a packet, as far as this port is asked."""
        return not self.is_guarded or self.stage(way).allows(header, source, destination)


class Places:
    """The ports of a policy.

    Args:
        policy: bound.
        others: addresses of who is in no policy.
    """

    def __init__(self, policy: Policy, others: Iterable[IPAddress] = ()) -> None:
        self.policy = policy
        self.all: list[Place] = []
        lists = RuleLists(policy)
        rules = [lists.at(port) for port in policy.ports]
        self._headers = {
            way: Headers(dict.fromkeys(entry for each in dict.fromkeys(rules) for entry in each.entries[way]))
            for way in Way
        }
        stages = {
            each: {way: Stage(each, way, self._headers[way], default_allows=not policy.has_default_deny) for way in Way}
            for each in dict.fromkeys(rules)
        }
        for index, (port, each) in enumerate(zip(policy.ports, rules, strict=True)):
            self.all.append(Place(port, index, stages[each], is_guarded=lists.is_guarded(port)))
        self._allowing: dict[Way, dict[Entry, set[int]]] = {way: {} for way in Way}
        self._always: dict[Way, frozenset[int]] = {}
        self._may: dict[tuple[Way, frozenset[Entry]], frozenset[int]] = {}
        self._index_allowing()
        self._by_number: dict[tuple[int, int], Place] = {}
        for place in self.all:
            for family in FAMILIES:
                for end in place.own[family]:
                    self._by_number.setdefault((family, end.number), place)
        # Those of ports that are elsewhere, or in no policy, are somebody's too: no decoy's.
        known = (*others, *(ip for place in self.all for ip in place.port.ips))
        self._taken = {(ip.version, int(ip)) for ip in known}
        self._wild = [place for place in self.all if not place.port.has_port_security and place.port.mac]
        self._paired = [place for place in self.all if place.port.allowed_pairs and place.port.mac]
        self.own = {family: [end for place in self.all for end in place.own[family][:1]] for family in FAMILIES}
        self._sorted = {
            family: sorted((end for place in self.all for end in place.own[family]), key=lambda end: end.number)
            for family in FAMILIES
        }
        self._within: dict[tuple[int, int, int], tuple[End, ...]] = {}

    def may_allow(self, way: Way, header: Header) -> frozenset[int]:
        """Indexes of ports that let a header pass with some addresses."""
        fitting = self._headers[way].fitting(header)
        key = (way, fitting)
        found = self._may.get(key)
        if found is None:
            allowing = self._allowing[way]
            found = self._may[key] = self._always[way].union(*(allowing.get(entry, ()) for entry in fitting))
        return found

    def _index_allowing(self) -> None:
        for way in Way:
            always = [place.index for place in self.all if not place.is_guarded or place.stage(way).default_allows]
            self._always[way] = frozenset(always)
            for place in self.all:
                for entry in place.stage(way).entries if place.is_guarded else ():
                    if entry.allows:
                        self._allowing[way].setdefault(entry, set()).add(place.index)

    def within(self, first: int, last: int, family: int) -> tuple[End, ...]:
        """Ends with an address of a range: ports that have one or a pair there, then decoys."""
        key = (family, first, last)
        found = self._within.get(key)
        if found is None:
            ends = [end for end in self._sorted[family] if first <= end.number <= last]
            ends += self._pair_ends(first, last, family)
            if first < last or not ends:
                ends += self.decoys(first, last, family)
            found = self._within[key] = tuple(ends)
        return found

    def exact(self, number: int, family: int) -> tuple[End, ...]:
        """Ends that may use one address: its owner, or whoever has it in a pair, or may use any."""
        owner = self._by_number.get((family, number))
        if owner is not None:
            return tuple(end for end in owner.own[family] if end.number == number)
        if (family, number) in self._taken:
            return ()
        return (*self._pair_ends(number, number, family), *self.decoys(number, number, family))

    def decoys(self, first: int, last: int, family: int) -> tuple[End, ...]:
        """Ends that only ports without port security can be, one a port."""
        found = (self.decoy(place, first, last, family) for place in self._wild)
        return tuple(end for end in found if end is not None)

    def decoy(self, place: Place, first: int, last: int, family: int) -> End | None:
        """A port under the first address of a range that is nobody's, None where all are somebody's or special."""
        if not 0 <= first <= last < 1 << BITS[family]:
            return None
        for low, after in _RESERVED_4 if family == 4 else _RESERVED_6:
            if low <= first < after:
                first = after
        number = first
        while (family, number) in self._taken:
            number += 1
        if number > last:
            return None
        return End(place, number, address(number, family), place.port.mac, is_own=False)

    def _pair_ends(self, first: int, last: int, family: int) -> Iterable[End]:
        for place in self._paired:
            for low, high, mac in place.pairs[family]:
                number = max(low, first)
                while number <= min(high, last) and (family, number) in self._taken:
                    number += 1
                if number <= min(high, last):
                    yield End(place, number, address(number, family), mac, is_own=False)


def address(number: int, family: int) -> IPAddress:
    """An address from its number."""
    return IPv4Address(number) if family == 4 else IPv6Address(number)


def header_of(family: int, protocol: int, dst_port: int = 0, icmp_type: int = 0, icmp_code: int = 0) -> Header:
    """A header whose source port is open where the protocol has ports."""
    if protocol in WITH_PORTS:
        return Header(family, protocol, dst_port, 0, 0, None)
    return Header(family, protocol, 0, icmp_type, icmp_code, 0)


def _template(header: Header) -> Packet:
    ip = _ZERO[header.family]
    flags = SYN if header.protocol == TCP else 0
    return Packet(
        "", "", ip, ip, header.protocol, header.src_port, header.dst_port, header.icmp_type, header.icmp_code, flags
    )
