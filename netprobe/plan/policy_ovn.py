"""A policy as OVN's northbound database has it: ACLs, and the ports that they stand at. Pure.

There are no groups here: what OVN enforces are ACLs, the default deny among them. What an ACL matches and a policy has
no word for cannot be judged: then its ports are left out, and a remark says why.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from netprobe.model.northbound import AclHolder, AclRow, LogicalPortRow, NorthboundPolicy
from netprobe.model.policy import (
    ICMP,
    ICMPV6,
    AclMatch,
    Action,
    AddressPair,
    IPAddress,
    IPNetwork,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
)
from netprobe.model.ranges import Ranges, prefixes, size
from netprobe.plan.ovn_expression import ExpressionError
from netprobe.plan.ovn_terms import OTHER, Names, Term, prefix_of, terms_of
from netprobe.plan.policy_checks import check_policy

_WAYS = {"to-lport": Way.INGRESS, "from-lport": Way.EGRESS}
_PORT_FIELDS = {Way.INGRESS: "outport", Way.EGRESS: "inport"}
_EVERY_IP = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
MAX_SPREAD = 16
"""So many protocols, or ICMP types times codes, of one term are still written out."""
MAC_COLONS = 5
MAX_NAMED = 5
"""Ports that a remark names."""


def policy_from_northbound(rows: NorthboundPolicy, where: str) -> Policy:
    """The policy that OVN's northbound database asks for.

    Args:
        rows: from host.ovn_policy.
        where: the remote, for messages.

    Raises:
        UsageError: two ports on one network have the same address.
    """
    reader = _Reader(rows)
    acls = [made for holder, row, ports in reader.acls() for made in reader.network_acls(holder, row, ports)]
    ports = tuple(port for name, port in reader.ports.items() if name not in reader.left_out)
    kept = {port.name for port in ports}
    acls = [replace(acl, ports=tuple(name for name in acl.ports if name in kept)) for acl in acls]
    policy = Policy(
        ports=ports,
        acls=_renamed(acl for acl in acls if acl.ports),
        remarks=tuple(reader.remarks),
        has_default_deny=False,
        left_out=tuple(port for name, port in reader.ports.items() if name in reader.left_out),
    )
    return check_policy(policy, where)


def _renamed(acls: Iterable[NetworkAcl]) -> tuple[NetworkAcl, ...]:
    """Names are not unique in OVN: the second of one name becomes `name #2`."""
    seen: Counter[str] = Counter()
    names: set[str] = set()
    found: list[NetworkAcl] = []
    for acl in acls:
        name = acl.id
        while name in names:
            seen[acl.id] += 1
            name = f"{acl.id} #{seen[acl.id] + 1}"
        names.add(name)
        found.append(replace(acl, id=name))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Addresses:
    """What a column of addresses says: the first MAC that has addresses, and what goes with it; then of all MACs."""

    mac: str = ""
    ips: tuple[IPAddress, ...] = ()
    every_ip: tuple[IPAddress, ...] = ()
    pairs: tuple[tuple[str, IPNetwork], ...] = ()


class _Reader:
    """The rows, and what is said of them on the way.

    Attributes:
        ports: guests' ports, by logical port.
        left_out: logical ports at which something stands that cannot be judged.
        remarks: what is said about that.
    """

    def __init__(self, rows: NorthboundPolicy) -> None:
        self._rows = rows
        self.remarks: list[str] = []
        self.left_out: set[str] = set()
        self._switch_of = {name: switch for switch in rows.switches for name in switch.ports}
        self.ports = self._guests()
        groups = {group.name: frozenset(group.ports) for group in rows.port_groups}
        sets = self._address_sets(groups)
        self._names = {way: Names(_PORT_FIELDS[way], groups, sets) for way in Way}

    def _guests(self) -> dict[str, PolicyPort]:
        rows = [row for row in self._rows.ports if not row.kind and row.name in self._switch_of]
        labels = Counter(row.label for row in rows)
        networks = Counter(switch.label for switch in self._rows.switches)
        found: dict[str, PolicyPort] = {}
        for row in rows:
            name = row.label if row.label and labels[row.label] == 1 else row.name
            switch = self._switch_of[row.name]
            network = switch.label if networks[switch.label] == 1 else switch.name
            found[row.name] = self._port(row, name, network)
            if not row.is_enabled:
                self.remarks.append(f"port {name} is switched off (enabled=false): nothing passes there")
        return found

    def _port(self, row: LogicalPortRow, name: str, network: str) -> PolicyPort:
        own = _addresses(_given(row))
        allowed = _addresses(row.port_security)
        pairs: list[AddressPair] = []
        for mac, prefix in allowed.pairs:
            if mac != own.mac or prefix.num_addresses > 1 or prefix.network_address not in own.ips:
                pairs.append(AddressPair(prefix, "" if mac == own.mac else mac))
        port = PolicyPort(name, network, own.mac, own.ips, (), bool(row.port_security), tuple(pairs), row.name)
        if port.has_port_security:
            for ip in own.ips:
                if not any(mac == own.mac and p.version == ip.version and ip in p for mac, p in allowed.pairs):
                    self.remarks.append(f"port {name} may not send from its own address {ip}: port_security has it not")
        return port

    def _address_sets(self, groups: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
        """Those of the table, and the two that OVN makes of each port group."""
        rows = {row.name: row for row in self._rows.ports}
        ips = {name: [str(ip) for ip in _addresses(_given(row)).every_ip] for name, row in rows.items()}
        found: dict[str, tuple[str, ...]] = {}
        for group, members in groups.items():
            own = [ip for name in sorted(members) for ip in ips.get(name, [])]
            found[f"{group}_ip4"] = tuple(ip for ip in own if ":" not in ip)
            found[f"{group}_ip6"] = tuple(ip for ip in own if ":" in ip)
        return found | {row.name: row.addresses for row in self._rows.address_sets}

    def acls(self) -> Iterator[tuple[AclHolder, AclRow, frozenset[str]]]:
        """Each ACL with who holds it and the guests' ports at which it may stand."""
        for switch in self._rows.switches:
            on_switch = frozenset(name for name in switch.ports if name in self.ports)
            yield from ((switch, acl, on_switch) for acl in switch.acls)
        for group in self._rows.port_groups:
            # An ACL of a port group stands on every switch that has one of its ports, whatever port it is about.
            switches = {id(s): s for name in group.ports if (s := self._switch_of.get(name)) is not None}
            near = frozenset(name for s in switches.values() for name in s.ports if name in self.ports)
            yield from ((group, acl, near) for acl in group.acls)

    def network_acls(self, holder: AclHolder, row: AclRow, ports: frozenset[str]) -> list[NetworkAcl]:
        """An ACL as entries, one for each set of ports that it names."""
        name = row.rule or row.name or f"{holder.name} {row.way} {row.priority} {row.match}"
        way, action = _WAYS.get(row.way), next((a for a in Action if a.value == row.action), None)
        for is_so, why in (
            (way is None, f"its direction is {row.way!r}"),
            (action is None, f"its action is {row.action!r}"),
            (row.is_late, "it is asked after load balancing, in a stage of its own"),
            (row.tier != 0, f"it is in tier {row.tier}"),
        ):
            if is_so:
                self._leave_out(name, ports, why)
                return []
        assert way is not None and action is not None, row  # noqa: PT018  both are among the reasons above
        try:
            terms = terms_of(row.match, self._names[way])
        except ExpressionError as error:
            self._leave_out(name, ports, f"its match cannot be read: {error}: {row.match}")
            return []
        by_ports: dict[frozenset[str], list[AclMatch]] = {}
        for term in terms:
            there = ports if term.ports is None else term.ports & ports
            if there:
                by_ports.setdefault(there, []).extend(self._matches(name, term, there, action))
        return [
            NetworkAcl(name, way, row.priority, action, tuple(dict.fromkeys(matches)), ports=self._named(there))
            for there, matches in by_ports.items()
            if matches
        ]

    def _matches(self, name: str, term: Term, ports: frozenset[str], action: Action) -> list[AclMatch]:
        if term.is_discovery or term.families <= {OTHER}:
            if not action.allows:
                what = "neighbour discovery" if term.is_discovery else "frames that are not IP"
                self.remarks.append(f"ACL {name} drops {what} at {self._list(ports)}: that it does is not proved")
            return []
        if term.unknown:
            self._leave_out(name, ports, f"it matches on {', '.join(term.unknown)}")
            return []
        if OTHER in term.families and not action.allows:
            self.remarks.append(f"ACL {name} drops frames that are not IP too, as ARP, at {self._list(ports)}")
        found = _acl_matches(term)
        if found is None:
            self._leave_out(name, ports, "it matches on too many protocols or ICMP types to write them out")
        return found or []

    def _leave_out(self, acl: str, ports: frozenset[str], why: str) -> None:
        if ports:
            self.left_out |= ports
            self.remarks.append(f"{self._list(ports)} cannot be judged and is left out: of ACL {acl} {why}")

    def _named(self, ports: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted(self.ports[name].name for name in ports))

    def _list(self, ports: frozenset[str]) -> str:
        names = self._named(ports)
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        return f"port {', '.join(names[:MAX_NAMED])}{more}"


def _given(row: LogicalPortRow) -> tuple[str, ...]:
    """The addresses of a port, with those that OVN chose."""
    chosen = [row.dynamic] if row.dynamic else []
    return (*chosen, *(text for text in row.addresses if "dynamic" not in text.split()))


def _addresses(texts: Iterable[str]) -> _Addresses:
    """What texts "MAC IP…" say; a MAC without an address stands for every address."""
    found: list[tuple[str, list[IPNetwork], list[IPAddress]]] = []
    for text in texts:
        words = text.split()
        if words and words[0].count(":") == MAC_COLONS:
            ips = [word for word in words[1:] if prefix_of(word) is not None]
            allowed = [prefix for word in ips if (prefix := _sendable(word)) is not None]
            found.append((words[0].lower(), allowed, [_address(word) for word in ips]))
    if not found:
        return _Addresses()
    mac, _, ips_of_mac = next((entry for entry in found if entry[2]), found[0])
    pairs = [(each, prefix) for each, allowed, _ in found for prefix in (allowed or _EVERY_IP)]
    every = tuple(dict.fromkeys(ip for _, _, ips in found for ip in ips))
    return _Addresses(mac, tuple(dict.fromkeys(ips_of_mac)), every, tuple(dict.fromkeys(pairs)))


def _sendable(word: str) -> IPNetwork | None:
    """What may be sent from: a prefix, or of 10.0.0.5/24 the one address (ovn-nb(5), `port_security`)."""
    prefix = prefix_of(word)
    if prefix is None or prefix.network_address == _address(word):
        return prefix
    return prefix_of(word.partition("/")[0])


def _address(word: str) -> IPAddress:
    text = word.partition("/")[0]
    return IPv6Address(text) if ":" in text else IPv4Address(text)


def _acl_matches(term: Term) -> list[AclMatch] | None:
    """A term's matches; None where there would be too many."""
    found: list[AclMatch] = []
    for family in sorted(term.families - {OTHER}):
        ranges = term.ranges
        protocols = _spread(ranges.get("protocol"), 255)
        types, codes = _spread(ranges.get("type"), 255), _spread(ranges.get("code"), 255)
        if protocols is None or types is None or codes is None or len(types) * len(codes) > MAX_SPREAD:
            return None
        if any(code is not None for code in codes) and types == [None]:
            types = list(range(256))  # a code needs a type
        sources, destinations = (_prefixes(ranges.get(f"{side}{family}"), family) for side in ("src", "dst"))
        found += [
            AclMatch((family,), protocol, sources, destinations, sport, dport, type_, code)
            for protocol in protocols
            # ICMP of the other family is a protocol that no host knows, and a policy has no word for.
            if protocol != (ICMP if family == 6 else ICMPV6)
            for sport in ranges.get("sport") or (None,)
            for dport in ranges.get("dport") or (None,)
            for type_ in types
            for code in codes
        ]
    return _both_families(found)


def _spread(ranges: Ranges | None, high: int) -> list[int | None] | None:
    """Single numbers; one None for all of them; None where there are too many."""
    if ranges is None or ranges == ((0, high),):
        return [None]
    if size(ranges) > MAX_SPREAD:
        return None
    return [number for first, last in ranges for number in range(first, last + 1)]


def _prefixes(ranges: Ranges | None, family: int) -> tuple[IPNetwork, ...]:
    if ranges is None or ranges == ((0, 2 ** (32 if family == 4 else 128) - 1),):
        return ()
    return prefixes(ranges, family)


def _both_families(matches: list[AclMatch]) -> list[AclMatch]:
    """One match for both families where nothing tells them apart."""
    found: dict[AclMatch, None] = {}
    for match in matches:
        twin = replace(match, families=(4,))
        is_plain = not match.sources and not match.destinations and match.protocol not in (ICMP, ICMPV6)
        if match.families == (6,) and is_plain and twin in found:
            found = {replace(each, families=(4, 6)) if each == twin else each: None for each in found}
        else:
            found[match] = None
    return list(found)
