"""Conversations drawn from a policy's own boundaries, seeded: what is sent to a mutant that nobody found. Pure.

Of nothing that `netprobe verify` plans: whoever looks for what it misses must not ask where it looks. First comes a
lattice, every pair of ports with every boundary value; then random ones, with addresses from the edges of prefixes.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import chain, product

from netprobe.model.conntrack_rules import ANSWERS, answer_to
from netprobe.model.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    Check,
    ConnState,
    Decision,
    EnforcementPoint,
    Fragment,
    Kind,
    Neighbour,
    Packet,
    Scenario,
    Stage,
    Step,
)
from netprobe.model.policy import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    WITH_PORTS,
    GroupRule,
    IPAddress,
    IPNetwork,
    Policy,
    PolicyPort,
    Way,
    port_prefixes,
)
from netprobe.plan.port_masks import range_masks
from netprobe.wire.policy_layout import IPV6_EXTENSIONS

_NOBODY = Decision((Check(EnforcementPoint("", Stage.INGRESS), True, "", ""),))
"""Nothing is expected: two runs are compared with each other."""

LATTICE_SHARE = 3
"""Conversations of the lattice for each random one."""

SOLICITED_NODES = 0xFF02_0000_0000_0000_0000_0001_FF00_0000  # RFC 4291 §2.7.1
_DECOY_MAC = "02:6e:70:64:65:64"
_UNREACHABLE = {4: (ICMP, 3, 3), 6: (ICMPV6, 1, 4)}
_DHCP = {4: (68, 67), 6: (546, 547)}
_NEIGHBOURS = (133, 134, 135, 136)
Said = tuple[bool, Packet, ConnState]


@dataclass(frozen=True, slots=True)
class Header:
    """What is above the addresses."""

    family: int
    protocol: int
    dst_port: int = 0
    icmp: tuple[int, int] = (0, 0)


def conversations(policy: Policy, packets: int, seed: int) -> list[Scenario]:
    """Scenarios with at least so many packets.

    Args:
        policy: bound: its ports have their addresses.
        packets: in all of them.
        seed: of all draws.
    """
    return _Drawing(policy, seed).drawn(packets)


class _Drawing:
    def __init__(self, policy: Policy, seed: int) -> None:
        self._policy = policy
        self._rng = random.Random(seed)
        self._headers = _headers(policy)
        self._edges = {family: _edges(policy, family) for family in (4, 6)}
        self._own = {ip for port in policy.ports for ip in port.ips}

    def drawn(self, packets: int) -> list[Scenario]:
        """What every port has to do with, then each rule by itself; then the lattice and random ones in turn."""
        rules, lattice = [*self._rules(), *self._under_acls()], list(self._lattice())
        self._rng.shuffle(rules)
        self._rng.shuffle(lattice)
        drawn = self._random(packets)
        turns = (
            (*lattice[n : n + LATTICE_SHARE], next(drawn)) for n in range(0, LATTICE_SHARE * packets, LATTICE_SHARE)
        )
        found: list[Scenario] = []
        seen: set[tuple[object, ...]] = set()
        count = 0
        for src, dst, said in chain(self._implicit(), rules, chain.from_iterable(turns)):
            if count >= packets:
                break
            if (src.name, dst.name, *said) in seen:
                continue
            seen.add((src.name, dst.name, *said))
            steps = tuple(Step(is_forward, packet, state, _NOBODY) for is_forward, packet, state in said)
            key = f"{src.name}>{dst.name} {steps[0].packet.text()} ({', '.join(step.state.value for step in steps)})"
            found.append(Scenario(len(found), key, src.name, dst.name, steps, frozenset()))
            count += len(steps)
        return found

    def _rules(self) -> Iterator[tuple[PolicyPort, PolicyPort, list[Said]]]:
        """Each rule at each port that has it: edges of its addresses with edges and blocks of its ports."""
        for port, group in ((each, group) for each in self._policy.ports for group in each.groups):
            for rule in self._policy.group(group).rules:
                for family in rule.families if rule.protocol is not None and port.has_port_security else ():
                    prefixes = self._policy.remote_prefixes(rule, family)
                    edges = _edges_of(prefixes, family) if prefixes is not None else ()
                    for header in _rule_headers(rule, family):
                        yield from self._meetings(port, rule.way, header, edges)

    def _under_acls(self) -> Iterator[tuple[PolicyPort, PolicyPort, list[Said]]]:
        """What ACLs match, between any two ports, from every edge that may be used: rules below may want it too."""
        matches = [match for acl in self._policy.acls for match in acl.matches]
        for (src, dst), match in product(self._pairs(), matches):
            for family in match.families if match.dst_ports and match.protocol else ():
                target = dst.ip(family)
                for port, ip in product(sorted(_around(match.dst_ports)), [src.ip(family), *self._edges[family]]):
                    if ip is not None and target is not None and self._may_be(src, ip):
                        header = Header(family, match.protocol, port)
                        yield src, dst, [(True, _packet(header, src.mac, dst.mac, ip, target), ConnState.NEW)]

    def _meetings(
        self, port: PolicyPort, way: Way, header: Header, edges: Sequence[IPAddress]
    ) -> Iterator[tuple[PolicyPort, PolicyPort, list[Said]]]:
        """A port with others: with their own addresses if there are no edges."""
        own = port.ip(header.family)
        others = [other for other in self._policy.ports if other is not port]
        ends = [(other, ip) for ip in edges for other in others if self._may_be(other, ip)]
        for other, ip in ends or [(other, other.ip(header.family)) for other in others]:
            if own is not None and ip is not None and own.version == ip.version:
                src, dst, source, target = (other, port, ip, own) if way is Way.INGRESS else (port, other, own, ip)
                packet = _packet(header, src.mac, dst.mac, source, target)
                yield src, dst, _talk(packet)
                if header.protocol == TCP and not src.has_port_security:  # else its own conntrack stops it
                    yield src, dst, [(True, replace(packet, tcp_flags=SYN | ACK), ConnState.INVALID)]

    def _may_be(self, port: PolicyPort, ip: IPAddress) -> bool:
        """Whether it may use an address, and it is no other's."""
        return ip in port.ips or (port.may_send_from(ip) and ip not in self._own)

    def _pairs(self) -> list[tuple[PolicyPort, PolicyPort]]:
        ports = self._policy.ports
        return [(a, b) for a, b in product(ports, ports) if a is not b]

    def _lattice(self) -> Iterator[tuple[PolicyPort, PolicyPort, list[Said]]]:
        for (src, dst), header in product(self._pairs(), self._headers):
            source, target = src.ip(header.family), dst.ip(header.family)
            if source is not None and target is not None:
                yield src, dst, _talk(_packet(header, src.mac, dst.mac, source, target))

    def _random(self, packets: int) -> Iterator[tuple[PolicyPort, PolicyPort, list[Said]]]:
        pairs = self._pairs()
        for _ in range(packets):
            src, dst = self._rng.choice(pairs)
            header = self._rng.choice(self._headers)
            source, target = self._source(src, header.family), self._address(dst, header.family)
            mac = _DECOY_MAC if self._rng.random() < 0.02 else src.mac
            packet = _packet(header, mac, dst.mac, source, target)
            yield src, dst, self._said(packet)

    def _address(self, port: PolicyPort, family: int) -> IPAddress:
        """One that a port may use; mostly an edge where it has a choice."""
        edges = [ip for ip in self._edges[family] if ip not in self._own and port.may_send_from(ip)]
        own = port.ip(family)
        assert own is not None
        return own if not edges or self._rng.random() < 0.3 else self._rng.choice(edges)

    def _source(self, port: PolicyPort, family: int) -> IPAddress:
        if self._rng.random() < 0.1:
            return self._rng.choice([ip for ip in self._edges[family] if ip not in self._own])
        return self._address(port, family)

    def _said(self, packet: Packet) -> list[Said]:
        """A conversation, or something out of turn."""
        draw = self._rng.random()
        if draw < 0.6:
            return _talk(packet)
        if draw < 0.7:
            return [(True, answer_to(packet).reversed(), ConnState.REPLY)]
        if draw < 0.8 and packet.protocol in (TCP, UDP):
            error = _error(packet, packet.dst_mac)
            return [(True, packet, ConnState.NEW), (False, error, ConnState.RELATED)]
        if draw < 0.85 and packet.protocol in (TCP, UDP):
            error = replace(_error(packet.reversed(), packet.src_mac), src_mac=packet.src_mac)
            return [(True, error, ConnState.INVALID)]
        if draw < 0.95 and packet.protocol == TCP:
            flags = self._rng.choice((ACK, SYN | ACK, RST, RST | ACK, FIN | ACK))
            return [(True, replace(packet, tcp_flags=flags), ConnState.NEW)]
        if packet.protocol == UDP:
            parts = (replace(packet, fragment=part) for part in (Fragment.FIRST, Fragment.LATER))
            return [(True, part, ConnState.NEW) for part in parts]
        return [(True, packet, ConnState.NEW)]

    def _implicit(self) -> Iterator[tuple[PolicyPort, PolicyPort, list[Said]]]:
        """ARP, neighbour discovery and DHCP, with own and with foreign addresses, and neighbours that are asked."""
        ports = self._policy.ports
        others = [port for port in ports if not port.has_port_security][:1]
        for number, src in enumerate(ports):
            for dst in (port for port in (ports[number - 1], *others) if port is not src):
                yield from ((src, dst, [(True, packet, ConnState.NEW)]) for packet in self._discovery(src, dst))

    def _spoofed(self, src: PolicyPort, dst: PolicyPort, sources: Sequence[IPAddress]) -> Iterator[Packet]:
        """What rules let pass, from own and other addresses, and from those beside them."""
        family = sources[0].version
        target = dst.ip(family)
        assert target is not None
        echo = Header(family, ICMP, icmp=(8, 0)) if family == 4 else Header(family, ICMPV6, icmp=(128, 0))
        for ip, mac, header in product(sources, (src.mac, _DECOY_MAC), (echo, Header(family, TCP, 80))):
            for source in (ip, type(ip)(int(ip) ^ 1), ip + 1, ip - 1):
                if source in src.ips or source not in self._own:
                    yield _packet(header, mac, dst.mac, source, target)

    def _discovery(self, src: PolicyPort, dst: PolicyPort) -> Iterator[Packet]:
        foreign = {
            family: self._rng.choice([ip for ip in self._edges[family] if ip not in self._own]) for family in (4, 6)
        }
        for family in (4, 6):
            own, other = src.ip(family), dst.ip(family)
            assert own is not None
            assert other is not None
            pairs = [
                prefix[edge]
                for prefix in port_prefixes(src)[len(src.ips) :]
                if prefix.version == family
                for edge in (0, -1)
            ]
            for ip, mac, body_mac in product(
                (own, foreign[family], *pairs), (src.mac, _DECOY_MAC), (src.mac, _DECOY_MAC)
            ):
                body = Neighbour(body_mac, ip, other if family == 4 else None)
                if family == 4:
                    yield Packet(mac, dst.mac, ip, other, 0, kind=Kind.ARP, neighbour=body)
                    continue
                for kind in _NEIGHBOURS:
                    asked = replace(body, ip=other) if kind == 135 else body
                    if kind == 136 and body_mac == mac:
                        packet = Packet(mac, dst.mac, ip, other, ICMPV6, icmp_type=kind, kind=Kind.ND)
                        yield replace(packet, neighbour=replace(body, mac=""))
                    for source in (ip, own):
                        packet = Packet(mac, dst.mac, source, other, ICMPV6, icmp_type=kind, kind=Kind.ND)
                        yield replace(packet, neighbour=asked)
            if family == 6:
                yield from _detection(src, dst, (own, other, foreign[6]))
            yield from self._spoofed(src, dst, (own, foreign[family], *pairs))
            client, server = _DHCP[family]
            nowhere = ip_address("0.0.0.0" if family == 4 else "::")
            asks = [(client + d, server + e) for d in (-1, 0, 1) for e in (-1, 0, 1)]
            for ports, ip in product((*asks, *(two[::-1] for two in asks)), (own, foreign[family], nowhere)):
                yield Packet(src.mac, dst.mac, ip, other, UDP, *ports)


def _detection(src: PolicyPort, dst: PolicyPort, targets: Sequence[IPAddress]) -> Iterator[Packet]:
    """From the unspecified address, as who looks whether an address is free, or for a router."""
    for kind, target, mac in product((128, 133, 135, 136), targets, (src.mac, _DECOY_MAC)):
        group = ip_address(SOLICITED_NODES | int(target) & 0xFFFFFF)
        packet = Packet(mac, dst.mac, ip_address("::"), group if kind == 135 else dst.ip(6), ICMPV6, icmp_type=kind)
        if kind == 128:
            yield packet
        else:
            yield replace(packet, kind=Kind.ND, neighbour=Neighbour("" if kind != 136 else mac, target))


def _talk(packet: Packet) -> list[Said]:
    """A packet, its answer, and what comes after."""
    if (
        packet.protocol == ICMP + (packet.family == 6) * (ICMPV6 - ICMP)
        and packet.icmp_type not in ANSWERS[packet.family]
    ):
        return [(True, packet, ConnState.NEW)]
    again = replace(packet, tcp_flags=ACK) if packet.protocol == TCP else packet
    answer = replace(answer_to(packet), src_mac=packet.dst_mac)
    return [(True, packet, ConnState.NEW), (False, answer, ConnState.REPLY), (True, again, ConnState.ESTABLISHED)]


def _error(about: Packet, mac: str) -> Packet:
    protocol, icmp_type, icmp_code = _UNREACHABLE[about.family]
    back = about.reversed()
    ends = mac, about.src_mac, back.src_ip, back.dst_ip
    return Packet(*ends, protocol, icmp_type=icmp_type, icmp_code=icmp_code, quoted=about)


def _packet(header: Header, mac: str, to_mac: str, source: IPAddress, target: IPAddress) -> Packet:
    packet = Packet(mac, to_mac, source, target, header.protocol)
    if header.protocol in WITH_PORTS:
        flags = SYN if header.protocol == TCP else 0
        return replace(packet, src_port=None, dst_port=header.dst_port, tcp_flags=flags)
    return replace(packet, icmp_type=header.icmp[0], icmp_code=header.icmp[1])


def _headers(policy: Policy) -> list[Header]:
    """Every boundary of every rule: ports and blocks of ports with both neighbours, types, codes, protocols."""
    ports: dict[int, set[int]] = {TCP: {7}, UDP: {7}, SCTP: {7}}
    types: set[tuple[int, int]] = {(8, 0), (8, 1), (13, 0), (15, 0), (17, 0), (128, 0), (128, 1), (0, 0), (129, 0)}
    others = {47, 253}
    rules = [rule for group in policy.groups for rule in group.rules]
    matches = [match for acl in policy.acls for match in acl.matches]
    for protocol, span in (*((r.protocol, r.ports) for r in rules), *((m.protocol, m.dst_ports) for m in matches)):
        for each in ports if protocol not in ports else (protocol,):
            ports[each] |= _around(span)
        if protocol is not None and protocol not in (*WITH_PORTS, ICMP, ICMPV6):
            others |= {protocol - 1, protocol, protocol + 1}
    for rule in rules:
        if rule.icmp_type is not None:
            types |= {(rule.icmp_type + d, rule.icmp_code or 0) for d in (-1, 0, 1) if rule.icmp_type + d >= 0}
    for port in tuple(ports[TCP]):  # the same number in the other protocol is a boundary too
        if port < 1024:
            ports[UDP].add(port)
    found = [
        Header(family, protocol, port) for family in (4, 6) for protocol in ports for port in sorted(ports[protocol])
    ]
    found += [Header(4, ICMP, icmp=one) for one in sorted(types) if one[0] < 128]
    queries = [one for one in sorted(types) if one[0] >= 128 and one[0] not in range(130, 138)]
    found += [Header(6, ICMPV6, icmp=one) for one in queries]
    plain = [one for one in sorted(others) if one not in (*WITH_PORTS, ICMP, ICMPV6) and 2 < one < 255]
    return [*found, *(Header(f, one) for f in (4, 6) for one in plain if f == 4 or one not in IPV6_EXTENSIONS)]


def _around(span: tuple[int, int] | None) -> set[int]:
    if span is None:
        return set()
    first, last = span
    edges = {first - 1, first, first + 1, last - 1, last, last + 1}
    edges |= {value for value, _ in range_masks(first, last)}
    return {port for port in edges if 0 < port <= 65535}


def _edges(policy: Policy, family: int) -> list[IPAddress]:
    """Addresses at and beside the edges of every prefix that is named anywhere."""
    prefixes = [p for port in policy.ports for p in port_prefixes(port)]
    prefixes += [p for group in policy.address_groups for p in group.prefixes]
    prefixes += [rule.remote_prefix for group in policy.groups for rule in group.rules if rule.remote_prefix]
    prefixes += [p for acl in policy.acls for match in acl.matches for p in (*match.sources, *match.destinations)]
    return _edges_of([prefix for prefix in prefixes if prefix.prefixlen], family)


def _edges_of(prefixes: Iterable[IPNetwork], family: int) -> list[IPAddress]:
    """The first and last addresses of prefixes and of those one bit wider, and the ones beside."""
    found: dict[IPAddress, None] = {}
    for prefix in prefixes:
        if prefix.version == family:
            wider, halves = prefix.supernet(), list(prefix.subnets())
            edges = (
                prefix[0] - 1,
                prefix[0],
                halves[0][-1],
                halves[-1][0],
                prefix[-1],
                prefix[-1] + 1,
                wider[0],
                wider[-1],
            )
            found |= dict.fromkeys(edge for edge in edges if not (edge.is_multicast or edge.is_unspecified))
    return list(found)


def _rule_headers(rule: GroupRule, family: int) -> list[Header]:
    """The edges of a rule's ports and each block of them, its ICMP types and their neighbours, or its protocol's."""
    protocol = rule.protocol_in(family)
    if protocol in WITH_PORTS:
        return [Header(family, protocol, port) for port in sorted(_around(rule.ports))]
    if protocol in (ICMP, ICMPV6):
        queries = ANSWERS[family] if rule.icmp_type is None else (rule.icmp_type,)
        return [Header(family, protocol, icmp=(kind, rule.icmp_code or 0)) for kind in queries]
    return [Header(family, protocol)] if protocol is not None and protocol not in IPV6_EXTENSIONS else []
