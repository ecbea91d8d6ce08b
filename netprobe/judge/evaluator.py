"""The reference evaluator: what should become of a packet, by the policy's own words. Pure.

A packet passes up to three enforcement points: anti-spoofing and egress at the sender's port, ingress at the
receiver's. Each is asked in turn until one stops it. docs/policy.md says the same for people. Whatever really enforces
the policy is compared with this, so nothing here knows of any backend.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from netprobe.model.conntrack_rules import NEIGHBOURS, ROUTER_ADVERTISEMENT, first_state, is_icmp, question_of
from netprobe.model.packets import Check, ConnState, Decision, EnforcementPoint, Fragment, Kind, Packet, Stage
from netprobe.model.policy import UDP, Action, IPAddress, Policy, PolicyPort, Way, port_prefixes
from netprobe.model.rule_lists import AddressSet, Entry, RuleLists

ANTI_SPOOFING = "anti-spoofing"
ANSWER = "answer"
ARP = "arp"
DEFAULT_ALLOW = "default allow"
DEFAULT_DENY = "default deny"
DHCP = "dhcp"
INVALID = "invalid"
NEIGHBOUR_DISCOVERY = "neighbour discovery"
NO_PORT_SECURITY = "no port security"
WORDS = {
    ANTI_SPOOFING: "addresses that are not the port's own are dropped",
    ANSWER: "packets of a connection that was let pass, in the other direction, and errors about it, pass",
    ARP: "ARP with a port's own addresses passes",
    DEFAULT_ALLOW: "what no ACL matches goes on",
    DEFAULT_DENY: "what no rule allows is dropped",
    DHCP: "guests may ask DHCP servers and hear them, and not be one",
    INVALID: "what can't be part of any connection is dropped",
    NEIGHBOUR_DISCOVERY: "neighbour discovery with a port's own addresses passes; guests are no routers",
    NO_PORT_SECURITY: "the port has no port security: anything goes",
}
"""`Check.rule` where no rule of the user's decides, and what it means."""

_DHCP_ASKS = frozenset({(4, 68, 67), (6, 546, 547)})
_DHCP_TELLS = frozenset({(4, 67, 68), (6, 547, 546)})
_UNSPECIFIED = frozenset({IPv4Address(0), IPv6Address(0)})
_STAGES = {Way.EGRESS: Stage.EGRESS, Way.INGRESS: Stage.INGRESS}


def evaluate(policy: Policy, packet: Packet, src: str, dst: str, state: ConnState) -> Decision:
    """What should become of one packet. For many of one policy, `Evaluator` prepares what they share.

    Args:
        policy: its ports are bound: they have their MAC addresses.
        packet: may have any addresses, also ones that the sender must not use.
        src: name of the port that sends it.
        dst: name of the port that would receive it.
        state: what conntrack makes of it. At a port whose conntrack saw nothing of the connection, because stateless
            entries let it pass, a packet counts as the first of its own.
    """
    return Evaluator(policy).decide(packet, src, dst, state)


class Evaluator:
    """Decides about the packets of one policy; keeps indexes, and the checks that it made."""

    def __init__(self, policy: Policy) -> None:
        lists = RuleLists(policy)
        stages: dict[int, dict[Way, _RuleStage]] = {}
        self._ports: dict[str, _Port] = {}
        for port in policy.ports:
            rules = lists.at(port)
            if id(rules) not in stages:
                stages[id(rules)] = {
                    way: _RuleStage(rules.entries[way], is_stateful=rules.is_stateful, has_deny=policy.has_default_deny)
                    for way in Way
                }
            self._ports[port.name] = _Port(port, stages[id(rules)], is_guarded=lists.is_guarded(port))
        self._decisions: dict[tuple[int, ...], Decision] = {}
        self._lists = lists  # keeps the lists alive, whose identities are keys

    def decide(self, packet: Packet, src: str, dst: str, state: ConnState) -> Decision:
        """As `evaluate`."""
        sender, receiver = self._ports[src], self._ports[dst]
        checks: list[Check] = []
        if sender.spoofing is not None:
            checks.append(sender.spoofing(packet))
        if not checks or checks[-1].is_allowed:
            checks.append(sender.judge(packet, Way.EGRESS, state))
        if checks[-1].is_allowed:
            checks.append(receiver.judge(packet, Way.INGRESS, state))
        return self._decision(checks)

    def _decision(self, checks: list[Check]) -> Decision:
        """Checks are made once, so that their identities name a decision."""
        key = tuple(map(id, checks))
        found = self._decisions.get(key)
        if found is None:
            last = checks[-1].point
            is_rejected = self._ports[last.port].is_rejecting(checks[-1])
            found = self._decisions[key] = Decision(tuple(checks), is_rejected)
        return found


class _RuleStage:
    """The list of one way at ports that share it: finds the entry that decides."""

    def __init__(self, entries: tuple[Entry, ...], *, is_stateful: bool, has_deny: bool) -> None:
        self.is_stateful = is_stateful
        self.last_word = DEFAULT_DENY if has_deny else DEFAULT_ALLOW
        self.stateless = tuple(entry for entry in entries if entry.is_stateless)
        self._entries = entries
        self._fitting: dict[tuple[object, ...], tuple[Entry, ...]] = {}

    def first(self, packet: Packet, *, is_tracked: bool) -> Entry | None:
        """The first entry that matches."""
        key = (
            packet.protocol,
            packet.dst_port,
            packet.icmp_type,
            packet.src_port,
            packet.icmp_code,
            packet.src_ip.version,
            packet.fragment is Fragment.LATER and not is_tracked,
        )
        fitting = self._fitting.get(key)
        if fitting is None:
            fitting = tuple(entry for entry in self._entries if entry.fits(packet, is_tracked=is_tracked))
            self._fitting[key] = fitting
        if not fitting:
            return None
        source, destination = int(packet.src_ip), int(packet.dst_ip)
        return next((entry for entry in fitting if entry.is_between(source, destination)), None)

    def is_tracked(self, packet: Packet) -> bool:
        """Whether conntrack sees it: not where a stateless entry matches."""
        if not self.is_stateful:
            return False
        if not self.stateless:
            return True
        source, destination = int(packet.src_ip), int(packet.dst_ip)
        return not any(
            entry.fits(packet, is_tracked=False) and entry.is_between(source, destination) for entry in self.stateless
        )


class _Port:
    """A port with its two lists. Makes each check once."""

    def __init__(self, port: PolicyPort, stages: dict[Way, _RuleStage], *, is_guarded: bool) -> None:
        self.spoofing: Callable[[Packet], Check] | None = None
        if port.has_port_security:
            self.spoofing = _AntiSpoofing(port).judge
        self._name = port.name
        self._is_guarded = is_guarded
        self._is_secured = port.has_port_security
        self._stages = stages
        self._checks: dict[tuple[Way, object, bool], Check] = {}
        self._rejecting: set[int] = set()

    def is_rejecting(self, check: Check) -> bool:
        """Whether a check of this port's tells the sender."""
        return id(check) in self._rejecting

    def judge(self, packet: Packet, way: Way, state: ConnState) -> Check:
        """What the list of one way says."""
        if not self._is_guarded:
            return self._check(way, NO_PORT_SECURITY, is_allowed=True)
        if self._is_secured:  # what Neutron lets pass implicitly; bare ACLs have none of it
            word = _implicit(packet, way)
            if word:
                return self._check(way, word, is_allowed=True)
        stage = self._stages[way]
        is_tracked = stage.is_tracked(packet)
        if is_tracked:
            seen = self._state_here(packet, way, state)
            if seen is ConnState.INVALID:
                return self._check(way, INVALID, is_allowed=False)
            if seen in (ConnState.REPLY, ConnState.RELATED):
                return self._check(way, ANSWER, is_allowed=True)
        entry = stage.first(packet, is_tracked=is_tracked)
        if entry is None:
            return self._check(way, stage.last_word, is_allowed=stage.last_word is DEFAULT_ALLOW)
        return self._entry_check(way, entry)

    def _state_here(self, packet: Packet, way: Way, state: ConnState) -> ConnState:
        """An answer to what passed here untracked is the first packet of a connection, for all that conntrack knows."""
        if state in (ConnState.REPLY, ConnState.RELATED):
            other = self._stages[Way.EGRESS if way is Way.INGRESS else Way.INGRESS]
            if other.stateless and not other.is_tracked(question_of(packet)):
                return first_state(packet)
        return state

    def _check(self, way: Way, word: str, *, is_allowed: bool) -> Check:
        key = (way, word, is_allowed)
        found = self._checks.get(key)
        if found is None:
            point = EnforcementPoint(self._name, _STAGES[way])
            found = self._checks[key] = Check(point, is_allowed, word, WORDS[word])
        return found

    def _entry_check(self, way: Way, entry: Entry) -> Check:
        key = (way, entry, entry.action.allows)
        found = self._checks.get(key)
        if found is None:
            point = EnforcementPoint(self._name, _STAGES[way])
            found = self._checks[key] = Check(point, entry.action.allows, entry.rule, entry.text)
            if entry.action is Action.REJECT:
                self._rejecting.add(id(found))
        return found


def _implicit(packet: Packet, way: Way) -> str:
    """What passes a port with port security whatever its rules say, as one of WORDS; "" for anything else."""
    if packet.kind is Kind.ARP:
        return ARP
    if packet.kind is Kind.ND or (packet.src_ip.version == 6 and is_icmp(packet)):
        is_heard = packet.icmp_type == ROUTER_ADVERTISEMENT and way is Way.INGRESS
        return NEIGHBOUR_DISCOVERY if packet.icmp_type in NEIGHBOURS or is_heard else ""
    if packet.protocol == UDP and packet.fragment is Fragment.NONE:
        ports = (packet.src_ip.version, packet.src_port, packet.dst_port)
        return DHCP if ports in (_DHCP_ASKS if way is Way.EGRESS else _DHCP_TELLS) else ""
    return ""


class _AntiSpoofing:
    """Which addresses a port may send from."""

    def __init__(self, port: PolicyPort) -> None:
        prefixes = {port.mac: list(port_prefixes(port)[: len(port.ips)])}
        for pair in port.allowed_pairs:
            prefixes.setdefault(pair.mac or port.mac, []).append(pair.prefix)
        if port.ip(6) is not None and port.mac:
            prefixes[port.mac].append(IPv6Network(_link_local(port.mac)))
        self._owned = {
            mac: {family: AddressSet.of(found, family) for family in (4, 6)} for mac, found in prefixes.items()
        }
        point = EnforcementPoint(port.name, Stage.ANTI_SPOOFING)
        self._checks = {
            (word, is_allowed): Check(point, is_allowed, word, WORDS[word])
            for word in (ANTI_SPOOFING, DHCP, NEIGHBOUR_DISCOVERY)
            for is_allowed in (True, False)
        }

    def judge(self, packet: Packet) -> Check:
        """What the port's anti-spoofing says."""
        if packet.kind is Kind.IP and packet.protocol == UDP and packet.fragment is Fragment.NONE:
            ports = (packet.src_ip.version, packet.src_port, packet.dst_port)
            if ports in _DHCP_ASKS:
                return self._checks[DHCP, True]
            if ports in _DHCP_TELLS:
                return self._checks[DHCP, False]
        if packet.kind is not Kind.ARP and packet.src_ip.version == 6 and is_icmp(packet):
            if packet.icmp_type == ROUTER_ADVERTISEMENT:
                return self._checks[NEIGHBOUR_DISCOVERY, False]
            return self._checks[ANTI_SPOOFING, self._is_discovery_own(packet)]
        return self._checks[ANTI_SPOOFING, self._is_own(packet)]

    def _is_own(self, packet: Packet) -> bool:
        if packet.kind is Kind.ARP and packet.neighbour is not None:
            body = packet.neighbour
            return body.mac == packet.src_mac and self._owns(body.mac, body.ip)
        return self._owns(packet.src_mac, packet.src_ip)

    def _is_discovery_own(self, packet: Packet) -> bool:
        """Discovery may come from the unspecified address; whom a solicitation asks about is somebody else."""
        if packet.icmp_type not in NEIGHBOURS:
            return self._owns(packet.src_mac, packet.src_ip)
        is_unspecified = packet.src_ip in _UNSPECIFIED and packet.src_mac in self._owned
        if not (is_unspecified or self._owns(packet.src_mac, packet.src_ip)):
            return False
        body = packet.neighbour
        if body is None:
            return True
        if body.mac not in ("", packet.src_mac):
            return False
        return packet.icmp_type != 136 or self._owns(packet.src_mac, body.ip)

    def _owns(self, mac: str, ip: IPAddress) -> bool:
        owned = self._owned.get(mac)
        return owned is not None and owned[ip.version].holds(int(ip))


def _link_local(mac: str) -> IPv6Address:
    """The address that a guest makes of its MAC address: RFC 4291 appendix A."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])
