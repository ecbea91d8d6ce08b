"""A policy as iptables, ip6tables and ipsets, in the layout of Neutron's hybrid iptables firewall. Pure.

One hypervisor's rules: `raw` gives each port a conntrack zone of its own (or none, where its groups are stateless), and
`filter` sends what enters or leaves a guest's tap through sg-chain to the port's own chains: i (to the guest), o (from
it) and s (may it send that?). Every rule has a comment that is a key of `rules`: for a user's rule or ACL its id.

Where Neutron does otherwise:
- INVALID packets are dropped before the rules are asked, not after them: OVS and OVN never let one pass by a rule, and
  the same policy shall mean the same in each lab.
- ICMPv6 from a guest is asked about by the rules, neighbour discovery apart; Neutron lets all of it out.
- DHCP requests pass with whatever source address, as they do in the Open vSwitch firewall.
- Rules that cannot match here are left out: INPUT (the hypervisor has no address on the bridges) and `-i qvb`.
- REJECT is DROP: in a bridge nobody could route the answer (measured: it never reaches the guest).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from netprobe.errors import UsageError
from netprobe.lab.config import LabConfig
from netprobe.lab.flow_table import NA, NS, RA, RS
from netprobe.lab.rule_lists import Entry, Match, RuleInfo, entries, is_stateless, set_prefixes
from netprobe.lab.topology import Endpoint, bound_policy
from netprobe.model.policy import (
    DCCP,
    DENY_PRIORITY,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    WITH_PORTS,
    Action,
    IPNetwork,
    Policy,
    PolicyPort,
    Way,
    protocol_name,
)

WRAP = "neutron-openvswi"
"""Neutron's prefix: the agent's program name, cut to 16 characters."""
CHAIN_ID_MAX = 10
ZONE_FIRST = 4097
"""Neutron numbers zones of ports from here, above those of VLANs."""
SET_NAME_MAX = 31
COMMENT_MAX = 255

_ICMP_WORDS = {4: ("icmp", "icmp", "--icmp-type"), 6: ("ipv6-icmp", "icmp6", "--icmpv6-type")}
_PORT_OPTIONS = (TCP, UDP, DCCP, SCTP)
"""DCCP and SCTP have options of their own too; UDP-Lite has multiport's alone, as Neutron knows."""
_DHCP = {4: ("68", "67"), 6: ("546", "547")}


@dataclass(frozen=True, slots=True)
class CompiledIptables:
    """What iptables-restore, ip6tables-restore and `ipset restore` read, and what the comments mean."""

    tables: dict[int, str]
    ipsets: str
    rules: dict[str, RuleInfo]

    def rules_json(self) -> dict[str, dict[str, str]]:
        """As in the state file: by comment."""
        return {comment: info.to_json() for comment, info in self.rules.items()}


def compile_iptables(config: LabConfig, ends: Sequence[Endpoint]) -> CompiledIptables:
    """Compile a lab's policy.

    Args:
        config: groups, rules and ACLs.
        ends: every guest and bypass NIC of the hypervisor.

    Raises:
        UsageError: something that iptables cannot match.
    """
    policy = bound_policy(config, ends)
    sets = _Sets(policy)
    rules: dict[str, RuleInfo] = {}
    tables = {family: _Family(policy, family, sets, rules).text(ends) for family in (4, 6)}
    return CompiledIptables(tables, sets.text(), rules)


def zone(end: Endpoint) -> int:
    """The conntrack zone of a port."""
    return ZONE_FIRST - 1 + end.ofport


def chain(letter: str, end: Endpoint) -> str:
    """A port's chain, as Neutron names it: the letter and the beginning of the port's UUID."""
    return f"{WRAP}-{letter}{end.iface_id[:CHAIN_ID_MAX]}"


class _Sets:
    """The ipsets that rules refer to, by name."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._names: dict[tuple[tuple[str, str], int], str] = {}

    def name(self, named: tuple[str, str], family: int) -> str:
        """Neutron's name: NIPv4 and the group's id, cut; numbered where two would be the same."""
        key = (named, family)
        if key not in self._names:
            kind, id_ = named
            plain = f"NIPv{family}{'ag-' if kind == 'address-group' else ''}{re.sub(r'[^A-Za-z0-9_-]', '_', id_)}"
            name = plain[:SET_NAME_MAX]
            if name in self._names.values():
                suffix = f".{len(self._names)}"
                name = name[: SET_NAME_MAX - len(suffix)] + suffix
            self._names[key] = name
        return self._names[key]

    def text(self) -> str:
        """What `ipset restore` reads."""
        lines = []
        for (named, family), name in self._names.items():
            lines.append(f"create {name} hash:net family {'inet' if family == 4 else 'inet6'}")
            for prefix in set_prefixes(self._policy, named, family):
                # hash:net takes no prefix of length 0; its halves are the same.
                parts: Iterable[IPNetwork] = prefix.subnets() if prefix.prefixlen == 0 else (prefix,)
                lines += [f"add {name} {part}" for part in parts]
        return "".join(f"{line}\n" for line in lines)


class _Family:
    """The rules of one family."""

    def __init__(self, policy: Policy, family: int, sets: _Sets, rules: dict[str, RuleInfo]) -> None:
        self._policy = policy
        self._family = family
        self._sets = sets
        self._rules = rules
        self._lines: list[str] = []

    def text(self, ends: Sequence[Endpoint]) -> str:
        """Both tables, as iptables-restore reads them."""
        guarded = [end for end in ends if self._policy.port(end.name).has_port_security]
        self._raw(guarded)
        tables = [("raw", [f"{WRAP}-PREROUTING"], self._taken())]
        own = [chain(letter, end) for end in guarded for letter in "ios"]
        self._filter(guarded, [end for end in ends if end not in guarded])
        chains = [f"{WRAP}-FORWARD", f"{WRAP}-sg-chain", f"{WRAP}-sg-fallback", *own]
        tables.append(("filter", chains, self._taken()))
        lines: list[str] = []
        for name, names, rules in tables:
            lines += [f"*{name}", *(f":{each} - [0:0]" for each in names), *rules, "COMMIT"]
        return "".join(f"{line}\n" for line in lines)

    def _taken(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def _add(self, where: str, match: str, target: str, info: RuleInfo) -> None:
        """One rule. The comment is the info's id, which `rules` explains."""
        comment = comment_of(info)
        self._rules.setdefault(comment, info)
        words = ["-A", where, match, f'-m comment --comment "{comment}"', "-j", target]
        self._lines.append(" ".join(filter(None, words)))

    # -- table raw

    def _raw(self, ends: Sequence[Endpoint]) -> None:
        shared = _plumbing("jump", "", "", "where the lab's own chains begin")
        self._add("PREROUTING", "", f"{WRAP}-PREROUTING", shared)
        where = f"{WRAP}-PREROUTING"
        for end in ends:
            port = self._policy.port(end.name)
            stateless = is_stateless(self._policy, port)
            for device, way in ((end.qvb, Way.INGRESS), (end.tap, Way.EGRESS)):
                came = f"-m physdev --physdev-in {device}"
                if not stateless:
                    self._untracked(port, way, came)
                text = "no connections: its groups are stateless" if stateless else "conntrack zone of its own"
                info = _plumbing("zone", end.name, way.value, text)
                self._add(where, came, "CT --notrack" if stateless else f"CT --zone {zone(end)}", info)

    def _untracked(self, port: PolicyPort, way: Way, came: str) -> None:
        """What `allow-stateless` matches is not tracked, so that each packet is asked about."""
        for entry in entries(self._policy, port, way, with_sets=True):
            if entry.action is Action.ALLOW_STATELESS:
                for text in self._matches(entry):
                    self._add(f"{WRAP}-PREROUTING", f"{came} {text}".rstrip(), "CT --notrack", entry.info())

    # -- table filter

    def _filter(self, guarded: Sequence[Endpoint], others: Sequence[Endpoint]) -> None:
        forward, through = f"{WRAP}-FORWARD", f"{WRAP}-sg-chain"
        shared = _plumbing("jump", "", "", "where the lab's own chains begin")
        self._add("FORWARD", "", forward, shared)
        for end in guarded:
            for way, option in ((Way.INGRESS, "out"), (Way.EGRESS, "in")):
                crosses = f"-m physdev --physdev-{option} {end.tap} --physdev-is-bridged"
                info = _plumbing("port", end.name, way.value, f"{way.value} of {end.name}")
                self._add(forward, crosses, through, info)
                self._add(through, crosses, chain("i" if way is Way.INGRESS else "o", end), info)
        for end in others:
            for option in ("out", "in"):
                info = _plumbing("port", end.name, "", f"{end.name} has no port security")
                crosses = f"-m physdev --physdev-{option} {end.tap} --physdev-is-bridged"
                self._add(forward, crosses, "ACCEPT", info)
        self._add(through, "", "ACCEPT", _plumbing("accept", "", "", "what the port's own chain let return"))
        for end in guarded:
            self._to_guest(end)
            self._from_guest(end)
        text = "default deny: no rule allows it"
        self._add(f"{WRAP}-sg-fallback", "", "DROP", RuleInfo("", "", "", text, "default-deny"))

    def _to_guest(self, end: Endpoint) -> None:
        where = chain("i", end)
        info = _plumbing("always", end.name, "ingress", "answers of DHCP servers, neighbours and routers pass")
        if self._family == 6:
            for kind in (RA, NS, NA):
                self._add(where, self._icmp(kind), "RETURN", info)
        client, server = _DHCP[self._family]
        self._add(where, f"-p udp -m udp --sport {server} --dport {client}", "RETURN", info)
        self._asked(end, Way.INGRESS, where)

    def _from_guest(self, end: Endpoint) -> None:
        where, port = chain("o", end), self._policy.port(end.name)
        client, server = _DHCP[self._family]
        always = _plumbing("always", end.name, "egress", "DHCP requests and own neighbour discovery pass")
        mine = f"-m mac --mac-source {end.mac}"
        self._add(where, f"-p udp -m udp --sport {client} --dport {server} {mine}", "RETURN", always)
        if self._family == 6:  # duplicate address detection; Open vSwitch looks at the target
            for kind in (RS, NS):
                self._add(where, f"-s ::/128 {self._icmp(kind)} {mine}", "RETURN", always)
        text = "egress only with the port's own addresses, and no answers of a DHCP server or router"
        spoof = RuleInfo(end.name, "", "egress", text, "anti-spoofing")
        self._add(where, "", chain("s", end), spoof)
        own = _plumbing("addresses", end.name, "egress", f"addresses of {end.name}")
        for mac, prefix in self._own_addresses(end, port):
            self._add(chain("s", end), f"-s {prefix} -m mac --mac-source {mac}", "RETURN", own)
        self._add(chain("s", end), "", "DROP", spoof)
        self._add(where, f"-p udp -m udp --sport {server} --dport {client}", "DROP", spoof)
        if self._family == 6:
            self._add(where, self._icmp(RA), "DROP", spoof)
            for kind in (RS, NS, NA):
                self._add(where, self._icmp(kind), "RETURN", always)
        self._asked(end, Way.EGRESS, where)

    def _own_addresses(self, end: Endpoint, port: PolicyPort) -> list[tuple[str, IPNetwork]]:
        own = ((end.mac, ip_network(ip)) for ip in port.ips)
        pairs = ((pair.mac or end.mac, pair.prefix) for pair in port.allowed_pairs)
        return [(mac, prefix) for mac, prefix in dict.fromkeys((*own, *pairs)) if prefix.version == self._family]

    def _asked(self, end: Endpoint, way: Way, where: str) -> None:
        """The rules of a port, and what holds before and after them."""
        port = self._policy.port(end.name)
        if not is_stateless(self._policy, port):
            text = f"{way.value}: answers of permitted connections"
            answers = _plumbing("answers", end.name, way.value, text)
            self._add(where, "-m conntrack --ctstate RELATED,ESTABLISHED", "RETURN", answers)
            text = f"{way.value}: conntrack knows no such connection"
            invalid = RuleInfo(end.name, "", way.value, text, "conntrack-invalid")
            self._add(where, "-m conntrack --ctstate INVALID", "DROP", invalid)
        seen: set[str] = set()  # where two groups have the same rule, the first is named
        for entry in entries(self._policy, port, way, with_sets=True):
            if entry.priority <= DENY_PRIORITY:
                continue  # below the default deny: never asked
            target = "RETURN" if entry.action.allows else "DROP"
            for text in self._matches(entry):
                if text not in seen:
                    seen.add(text)
                    self._add(where, text, target, entry.info())
        groups, text = ", ".join(end.groups), f"default deny: no {way.value} rule allows it"
        deny = RuleInfo(end.name, groups, way.value, text, "default-deny")
        self._add(where, "", f"{WRAP}-sg-fallback", deny)

    def _matches(self, entry: Entry) -> list[str]:
        here = [match for match in entry.matches if match.family == self._family]
        return list(dict.fromkeys(self._match(match, entry) for match in here))

    def _match(self, match: Match, entry: Entry) -> str:
        words = [
            f"{option} {prefix}"
            for option, prefix in (("-s", match.source), ("-d", match.destination))
            if prefix is not None and prefix.prefixlen
        ]
        words += self._protocol(match, entry)
        if match.remote_set:
            side = "src" if entry.way is Way.INGRESS else "dst"
            words.append(f"-m set --match-set {self._sets.name(match.remote_set, self._family)} {side}")
        return " ".join(words)

    def _protocol(self, match: Match, entry: Entry) -> list[str]:
        protocol, icmp = match.protocol, match.icmp_type
        if protocol is None:
            return []
        if protocol == 0:
            raise UsageError(f"rule {entry.id}.protocol", "is 0, which means any protocol to iptables", allowed="1-255")
        if protocol in (ICMP, ICMPV6):
            return [self._icmp(icmp, match.icmp_code)]
        if protocol not in _PORT_OPTIONS or not (match.src_ports or match.dst_ports):
            return [f"-p {protocol}", *_multiport(match)] if protocol in WITH_PORTS else [f"-p {protocol}"]
        name = protocol_name(protocol)
        sides = (("--sport", match.src_ports), ("--dport", match.dst_ports))
        return [f"-p {name} -m {name}", *(f"{option} {_range(ports)}" for option, ports in sides if ports)]

    def _icmp(self, kind: int | None, code: int | None = None) -> str:
        name, module, option = _ICMP_WORDS[self._family]
        if kind is None:
            return f"-p {name}"
        return f"-p {name} -m {module} {option} {kind}" + ("" if code is None else f"/{code}")


def _multiport(match: Match) -> list[str]:
    sides = (("--sports", match.src_ports), ("--dports", match.dst_ports))
    return [f"-m multiport {option} {_range(ports)}" for option, ports in sides if ports]


def _range(ports: tuple[int, int]) -> str:
    first, last = ports
    return str(first) if first == last else f"{first}:{last}"


def _plumbing(what: str, port: str, direction: str, text: str) -> RuleInfo:
    return RuleInfo(port, "", direction, text, "plumbing", " ".join(filter(None, (what, port, direction))))


def comment_of(info: RuleInfo) -> str:
    """A rule's comment: its id, in characters that iptables-save prints as they are."""
    return re.sub(r"[^ !#-\[\]-~]", "_", info.to_json()["id"])[:COMMENT_MAX]
