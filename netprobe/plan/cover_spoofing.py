"""Scenarios about what every port has: anti-spoofing, ARP, neighbour discovery, DHCP, router advertisements. Pure.

Foreign addresses are decoys: nobody's that the policy knows of. Where it can be had the target is one that would let
the packet in, so that only anti-spoofing is between it and its arrival.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from netprobe.model.conntrack_rules import ROUTER_ADVERTISEMENT, first_state
from netprobe.model.packets import Kind, Neighbour, Packet
from netprobe.model.policy import ICMPV6, TCP, UDP, IPAddress, Way, link_local
from netprobe.model.rule_lists import FAMILIES
from netprobe.plan.cover_drafts import Drafts, Sent
from netprobe.plan.cover_places import BITS, End, Header, Place, Places, address, header_of

DECOY_MAC = "02:6e:70:64:65:63"
"""Locally administered; "npdec" in letters."""
_ADVERTISEMENT, _SOLICITATION, _ROUTER_SOLICITATION = 136, 135, 133
_ECHO = 128  # RFC 4443
_PLAIN = ("arp", "neighbour advertisement", "neighbour solicitation", "router solicitation")
"""What passes with one's own addresses."""

_UNSPECIFIED, _BROADCAST = IPv4Address(0), IPv4Address(0xFFFF_FFFF)
_DHCP_SERVERS = IPv6Address("ff02::1:2")  # RFC 8415 §7.1
_SOLICITED_NODES = 0xFF02_0000_0000_0000_0000_0001_FF00_0000
"""RFC 4291 §2.7.1; the address that is asked about has the last 24 bits."""
_DHCP = {4: (67, 68), 6: (547, 546)}
_HEARD = frozenset({"arp", "neighbour advertisement", "neighbour solicitation", "router advertisement"})
_HEADERS_MAX = 6
_STEPS_MAX = 4096
Spoof = tuple[str, Packet]


def add_spoofing(places: Places, drafts: Drafts) -> None:
    """Add the scenarios to `drafts`, whose conversations say what targets let in.

    Args:
        places: of the policy.
        drafts: finished.
    """
    _Spoofing(places, drafts).add()


class _Spoofing:
    def __init__(self, places: Places, drafts: Drafts) -> None:
        self._places = places
        self._drafts = drafts
        self._free: dict[tuple[int, int], int] = {}
        """The next address that is free, by family and address."""
        self._with_pairs = [place for place in places.all if place.port.allowed_pairs]
        self._talks: dict[tuple[int, int], list[tuple[Header, End]]] = {}
        for draft in drafts.all():
            if draft.has_conversation and draft.source.is_own and draft.header.src_port in (None, 0):
                key = (draft.source.place.index, draft.header.family)
                self._talks.setdefault(key, []).append((draft.header, draft.target))

    def add(self) -> None:
        """Scenarios of all ports."""
        for place in self._places.all:
            for family in FAMILIES:
                for end in place.own[family][:1]:
                    for label, other, packet in self._tries(place, end):
                        self._make(place, other, packet, f"{label} v{family}", place)
                    for speaker, label, packet in self._heard(place, end):
                        self._make(speaker, place, packet, f"{label} v{family}", place)

    def _make(self, source: Place, target: Place, packet: Packet, words: str, about: Place) -> None:
        sent = [Sent(True, packet, first_state(packet))]
        self._drafts.make(source, target, sent, words, [f"anti-spoofing:{words} at {about.port.name}"])

    def _tries(self, place: Place, end: End) -> Iterator[tuple[str, Place, Packet]]:
        yield from self._foreign(place, end)
        yield from self._paired(place, end)
        other = self._listener(place, end)
        if other is not None:
            foreign = self._foreign_ip(place, end)
            pairs = self._resolved_pairs(place, end, other)
            for label, packet in (*_resolving(end, other, foreign), *pairs, *_dhcp(end, other, foreign)):
                yield label, other.place, packet

    def _resolved_pairs(self, place: Place, end: End, other: End) -> Iterator[Spoof]:
        """ARP and neighbour discovery about addresses of allowed pairs, and about the ones beside them."""
        family = end.ip.version
        for number, (first, last, mac) in enumerate(place.pairs[family]):
            found = next((e for e in self._places.within(first, last, family) if e.place is place), None)
            if found is not None:
                own = found._replace(mac=mac)
                yield from ((f"pair {number} {label}", packet) for label, packet in _resolving(own, other, None))
            for word, edge in (("before", first - 1), ("after", last + 1)):
                decoy = self._places.decoy(place, edge, edge, family)
                if decoy is not None and found is not None and family == 6:
                    _, packet = next(_resolving(found._replace(mac=mac), other, None))
                    beside = replace(packet, neighbour=Neighbour(mac, decoy.ip))
                    yield f"pair {number} advertises address {word}", beside
                    yield f"pair {number} advertised from address {word}", replace(packet, src_ip=decoy.ip)
                for label, packet in _resolving(decoy._replace(mac=mac), other, None) if decoy is not None else ():
                    if label in _PLAIN:
                        yield f"pair {number} address {word} {label}", packet

    def _foreign(self, place: Place, end: End) -> Iterator[tuple[str, Place, Packet]]:
        """Somebody else's MAC address, and somebody else's IP address."""
        header, target = self._way_in(place, end, end.number)
        if target is not None:
            packet = header.packet(end, target)
            yield "foreign mac", target.place, replace(packet, src_mac=DECOY_MAC)
        ip = self._foreign_ip(place, end)
        if ip is not None:
            header, target = self._way_in(place, end, int(ip))
            if target is not None:
                yield "foreign ip", target.place, replace(header.packet(end, target), src_ip=ip)
        beside = self._places.decoy(place, end.number ^ 1, end.number ^ 1, end.ip.version)
        if beside is not None and beside.ip != ip and not self._is_paired(beside.number, end.ip.version):
            header, target = self._way_in(place, end, beside.number)
            if target is not None:
                yield "foreign ip prefix bit", target.place, replace(header.packet(end, target), src_ip=beside.ip)

    def _paired(self, place: Place, end: End) -> Iterator[tuple[str, Place, Packet]]:
        """Allowed pairs: they work, their MAC and IP addresses belong together, and they end where they end."""
        family = end.ip.version
        for number, (first, last, mac) in enumerate(place.pairs[family]):
            found = next((e for e in self._places.within(first, last, family) if e.place is place), None)
            if found is None:
                continue
            name = f"pair {number}"
            cases = [(name, found.ip, mac), (f"{name} foreign mac", found.ip, DECOY_MAC)]
            if last > found.number:
                ends = self._places.exact(last, family)
                cases += [(f"{name} last address", end.ip, mac) for end in ends if end.place is place][:1]
            if mac != place.port.mac:
                cases += [(f"{name} with own mac", found.ip, place.port.mac), (f"{name} mac with own ip", end.ip, mac)]
            for word, edge in (("address before", first - 1), ("address after", last + 1)):
                decoy = self._places.decoy(place, edge, edge, family)
                if decoy is not None:
                    cases.append((f"{name} {word}", decoy.ip, mac))
            for label, ip, src_mac in cases:
                header, target = self._way_in(place, end, int(ip))
                if target is not None:
                    yield label, target.place, replace(header.packet(end, target), src_ip=ip, src_mac=src_mac)

    def _way_in(self, place: Place, end: End, number: int) -> tuple[Header, End | None]:
        """A header and a target: one that lets it in from an address if there is one."""
        family = end.ip.version
        quiet = header_of(family, TCP, 7)
        talks = self._talks.get((place.index, family), [])
        candidates = [*talks[:_HEADERS_MAX], *talks[-_HEADERS_MAX:]]
        candidates += [(quiet, other) for other in self._others(place, family) if not other.place.is_guarded][:2]
        candidates += [(quiet, other) for other in self._others(place, family)[:1]]
        for header, target in candidates:
            leaves = place.allows(Way.EGRESS, header, number, target.number)
            if leaves and target.place.allows(Way.INGRESS, header, number, target.number):
                return header, target
        return candidates[0] if candidates else (quiet, None)

    def _others(self, place: Place, family: int) -> list[End]:
        own = self._places.own[family]
        at = place.index + 1
        return [end for end in (*own[at:], *own[:at]) if end.place is not place]

    def _listener(self, place: Place, end: End) -> End | None:
        """Another port; what is tried with it passes every port's rules."""
        others = self._others(place, end.ip.version)
        return next((other for other in others if not other.place.is_guarded), others[0] if others else None)

    def _heard(self, place: Place, end: End) -> Iterator[tuple[Place, str, Packet]]:
        """What a port hears whatever its rules say: neighbours, servers and routers, from a port that may play one."""
        other = self._listener(place, end)
        if other is None or other.place.is_guarded or not place.is_guarded:
            return
        family = end.ip.version
        server, client = _DHCP[family]
        answer = Header(family, UDP, client, 0, 0, server).packet(other, end)
        yield other.place, "dhcp answer", answer
        yield other.place, "dhcp answer other source port", replace(answer, src_port=server - 1)
        for label, packet in _resolving(other, end, None):
            if label in _HEARD:
                yield other.place, f"{label} heard", packet

    def _foreign_ip(self, place: Place, end: End) -> IPAddress | None:
        """The next address that is nobody's, and in nobody's pair."""
        family, number = end.ip.version, end.number + 1
        passed: list[int] = []
        while number < 1 << BITS[family] and len(passed) < _STEPS_MAX and (family, number) not in self._free:
            if self._places.decoy(place, number, number, family) is not None and not self._is_paired(number, family):
                self._free[family, number] = number
            else:
                passed.append(number)
                number += 1
        free = self._free.get((family, number))
        if free is not None:
            self._free.update(((family, each), free) for each in passed)
            return address(free, family)
        return None

    def _is_paired(self, number: int, family: int) -> bool:
        return any(first <= number <= last for place in self._with_pairs for first, last, _ in place.pairs[family])


def _resolving(end: End, other: End, foreign: IPAddress | None) -> Iterator[Spoof]:
    """ARP or neighbour discovery about an address; what comes first passes."""
    return _arp(end, other, foreign) if end.ip.version == 4 else _discovery(end, other, foreign)


def _arp(end: End, other: End, foreign: IPAddress | None) -> Iterator[Spoof]:
    packet = Packet(
        end.mac, other.mac, end.ip, other.ip, 0, kind=Kind.ARP, neighbour=Neighbour(end.mac, end.ip, other.ip)
    )
    yield "arp", packet
    yield "arp from a foreign mac", replace(packet, src_mac=DECOY_MAC)
    yield "arp foreign mac", replace(packet, neighbour=Neighbour(DECOY_MAC, end.ip, other.ip))
    if foreign is not None:
        yield "arp foreign ip", replace(packet, src_ip=foreign, neighbour=Neighbour(end.mac, foreign, other.ip))


def _discovery(end: End, other: End, foreign: IPAddress | None) -> Iterator[Spoof]:
    def made(icmp_type: int, mac: str, ip: IPAddress) -> Packet:
        body = Neighbour(mac, ip)
        return Packet(end.mac, other.mac, end.ip, other.ip, ICMPV6, icmp_type=icmp_type, kind=Kind.ND, neighbour=body)

    yield "neighbour advertisement", made(_ADVERTISEMENT, end.mac, end.ip)
    yield "neighbour solicitation", made(_SOLICITATION, end.mac, other.ip)
    bare = made(_ADVERTISEMENT, "", end.ip)
    yield "neighbour advertisement without mac", bare
    yield "neighbour advertisement without mac from a foreign mac", replace(bare, src_mac=DECOY_MAC)
    yield (
        "neighbour advertisement from a foreign mac",
        replace(made(_ADVERTISEMENT, end.mac, end.ip), src_mac=DECOY_MAC),
    )
    yield (
        "neighbour solicitation from a foreign mac",
        replace(made(_SOLICITATION, end.mac, other.ip), src_mac=DECOY_MAC),
    )
    yield "neighbour advertisement foreign mac", made(_ADVERTISEMENT, DECOY_MAC, end.ip)
    yield "neighbour solicitation foreign mac", made(_SOLICITATION, DECOY_MAC, other.ip)
    if foreign is not None:
        yield "neighbour advertisement foreign target", made(_ADVERTISEMENT, end.mac, foreign)
        yield "neighbour advertisement foreign ip", replace(made(_ADVERTISEMENT, end.mac, end.ip), src_ip=foreign)
        yield "neighbour solicitation foreign ip", replace(made(_SOLICITATION, end.mac, other.ip), src_ip=foreign)
    # Duplicate address detection (RFC 4862 §5.4.2): nobody's address asks the group of one's own.
    group = IPv6Address(_SOLICITED_NODES | int(end.ip) & 0xFFFFFF)
    detection = replace(made(_SOLICITATION, "", end.ip), src_ip=IPv6Address(0), dst_ip=group)
    yield "duplicate address detection", detection
    if not other.place.is_guarded:  # a guest is no router: its rules may have something against it
        asked = made(_ROUTER_SOLICITATION, end.mac, end.ip)
        yield "router solicitation", asked
        yield "router solicitation from a foreign mac", replace(asked, src_mac=DECOY_MAC)
        yield "router solicitation from nobody", replace(asked, src_ip=IPv6Address(0), neighbour=Neighbour("", end.ip))
        if foreign is not None:
            yield "router solicitation foreign ip", replace(asked, src_ip=foreign)
    ping = header_of(6, ICMPV6, icmp_type=_ECHO)
    yield "echo from nobody", replace(ping.packet(end, other), src_ip=IPv6Address(0))
    yield "router advertisement", made(ROUTER_ADVERTISEMENT, end.mac, end.ip)


def _dhcp(end: End, other: End, foreign: IPAddress | None) -> Iterator[Spoof]:
    """A guest that plays a DHCP server, and one that looks for a server: whatever address it has by then."""
    family = end.ip.version
    server, client = _DHCP[family]
    answers = Header(family, UDP, client, 0, 0, server).packet(end, other)
    yield "dhcp server", answers
    yield "dhcp server source port-1", replace(answers, src_port=server - 1)
    yield "dhcp server source port+1", replace(answers, src_port=server + 1)
    asks = Header(family, UDP, server, 0, 0, client).packet(end, other)
    yield "dhcp client", asks
    if not other.place.is_guarded:  # as they are in truth, but for the MAC address that they go to
        nowhere, all_servers = (_UNSPECIFIED, _BROADCAST) if family == 4 else (link_local(end.mac), _DHCP_SERVERS)
        yield "dhcp client without address", replace(asks, src_ip=nowhere, dst_ip=all_servers)
    yield "dhcp client own port-1", replace(asks, dst_port=server - 1)
    if foreign is not None:  # from one's own address it might pass as anything else
        beside = ((client - 1, server), (client + 1, server), (client, server - 1))
        for word, ports in zip(("source port-1", "source port+1", "port-1"), beside, strict=True):
            yield f"dhcp client {word}", replace(asks, src_ip=foreign, src_port=ports[0], dst_port=ports[1])
