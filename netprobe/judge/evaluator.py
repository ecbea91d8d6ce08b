"""The reference evaluator: what should become of a packet, by the policy's own words. Pure.

A packet passes up to three enforcement points: anti-spoofing and egress at the sender's port, ingress at the
receiver's. Each is asked in turn until one stops it. docs/policy.md says the same for people. Whatever really enforces
the policy is compared with this, so nothing here knows of any backend.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network

from netprobe.model.conntrack_rules import NEIGHBOURS, ROUTER_ADVERTISEMENT, first_state, is_icmp, question_of
from netprobe.model.packets import Check, ConnState, Decision, EnforcementPoint, Fragment, Kind, Packet, Stage
from netprobe.model.policy import ICMPV6, UDP, Action, IPAddress, Policy, PolicyPort, Way, link_local, port_prefixes
from netprobe.model.rule_lists import AddressSet, Entry, PortRules, RuleLists

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
_SPECIAL = frozenset({0, UDP, ICMPV6})
"""Protocols of what passes whatever rules say: ARP, DHCP, discovery."""
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
        stages: dict[PortRules, dict[Way, _RuleStage]] = {}
        self._ports: dict[str, _Port] = {}
        for port in policy.ports:
            rules = lists.at(port)
            if rules not in stages:
                stages[rules] = {
                    way: _RuleStage(rules.entries[way], is_stateful=rules.is_stateful, has_deny=policy.has_default_deny)
                    for way in Way
                }
            is_guarded = lists.is_guarded(port)
            self._ports[port.name] = _Port(
                port, stages[rules], is_guarded=is_guarded, is_bare=not policy.has_default_deny
            )
        self._decisions: dict[tuple[int, ...], Decision] = {}

    def decide(self, packet: Packet, src: str, dst: str, state: ConnState) -> Decision:
        """As `evaluate`."""
        sender = self._ports[src]
        ends = (int(packet.src_ip), int(packet.dst_ip))
        checks: tuple[Check, ...] = ()
        if sender.spoofing is not None:
            checks = (sender.spoofing.judge(packet, ends[0]),)
        if not checks or checks[0].is_allowed:
            egress = sender.egress.judge(packet, ends, state)
            checks += (egress,)
            if egress.is_allowed:
                checks += (self._ports[dst].ingress.judge(packet, ends, state),)
        # Checks are made once, so that their identities name a decision.
        key = tuple([id(check) for check in checks])
        found = self._decisions.get(key)
        if found is None:
            found = self._decisions[key] = Decision(checks, self._is_rejected(checks[-1]))
        return found

    def _is_rejected(self, last: Check) -> bool:
        port = self._ports[last.point.port]
        return any(id(last) in gate.rejecting for gate in (port.egress, port.ingress))


class _RuleStage:
    """The list of one way at ports that share it: finds the entry that decides."""

    def __init__(self, entries: tuple[Entry, ...], *, is_stateful: bool, has_deny: bool) -> None:
        self.is_stateful = is_stateful
        self.last_word = DEFAULT_DENY if has_deny else DEFAULT_ALLOW
        self.stateless = tuple(entry for entry in entries if entry.is_stateless)
        self._entries = entries
        self._by_protocol: dict[tuple[int, int], tuple[Entry, ...]] = {}
        self._by_port: dict[tuple[int, int, int | None], tuple[Entry, ...]] = {}

    def first(self, packet: Packet, ends: tuple[int, int], *, is_tracked: bool) -> Entry | None:
        """The first entry that matches."""
        key = (packet.src_ip.version, packet.protocol, packet.dst_port)
        near = self._by_port.get(key)
        if near is None:
            near = self._by_port[key] = self._near(*key)
        for entry in near:
            if entry.is_between(*ends) and entry.fits(packet, is_tracked=is_tracked):
                return entry
        return None

    def _near(self, family: int, protocol: int, dst_port: int | None) -> tuple[Entry, ...]:
        """Entries that may match, in order: those about a protocol and a port."""
        found = self._by_protocol.get((family, protocol))
        if found is None:
            fitting = (e for e in self._entries if e.family == family and e.protocol in (None, protocol))
            found = self._by_protocol[family, protocol] = tuple(fitting)
        if dst_port is None:
            return found
        return tuple(e for e in found if e.dst_ports is None or e.dst_ports[0] <= dst_port <= e.dst_ports[1])

    def is_tracked(self, packet: Packet, ends: tuple[int, int]) -> bool:
        """Whether conntrack sees it: not where a stateless entry matches."""
        if not self.is_stateful or not self.stateless:
            return self.is_stateful
        return not any(entry.fits(packet, is_tracked=False) and entry.is_between(*ends) for entry in self.stateless)


class _Port:
    """A port with its enforcement points."""

    def __init__(self, port: PolicyPort, stages: dict[Way, _RuleStage], *, is_guarded: bool, is_bare: bool) -> None:
        self.spoofing = _AntiSpoofing(port, is_bare=is_bare) if port.has_port_security else None
        self.egress, self.ingress = (
            _Gate(port, way, stages[way], stages[other], is_guarded=is_guarded)
            for way, other in ((Way.EGRESS, Way.INGRESS), (Way.INGRESS, Way.EGRESS))
        )


class _Gate:
    """One way at a port. Makes each check once.

    Attributes:
        rejecting: identities of checks that tell the sender.
    """

    def __init__(
        self, port: PolicyPort, way: Way, stage: _RuleStage, opposite: _RuleStage, *, is_guarded: bool
    ) -> None:
        self.rejecting: set[int] = set()
        self._point = EnforcementPoint(port.name, _STAGES[way])
        self._is_guarded = is_guarded
        self._is_secured = port.has_port_security
        self._is_egress = way is Way.EGRESS
        self._stage, self._opposite = stage, opposite
        self._words: dict[tuple[str, bool], Check] = {}
        self._entries: dict[Entry, Check] = {}

    def judge(self, packet: Packet, ends: tuple[int, int], state: ConnState) -> Check:
        """What the list says, and what stands before it.

        Args:
            packet: as `evaluate`.
            ends: its source and destination address as numbers.
            state: as `evaluate`.
        """
        if not self._is_guarded:
            return self._word(NO_PORT_SECURITY, is_allowed=True)
        if self._is_secured and packet.protocol in _SPECIAL:  # Neutron lets some pass; bare ACLs have none of it
            word = _implicit(packet, is_egress=self._is_egress)
            if word:
                return self._word(word, is_allowed=True)
        stage = self._stage
        is_tracked = stage.is_stateful and (not stage.stateless or stage.is_tracked(packet, ends))
        if is_tracked and state is not ConnState.NEW:
            seen = self._state_here(packet, state)
            if seen is ConnState.INVALID:
                return self._word(INVALID, is_allowed=False)
            if seen in (ConnState.REPLY, ConnState.RELATED):
                return self._word(ANSWER, is_allowed=True)
        entry = stage.first(packet, ends, is_tracked=is_tracked)
        if entry is None:
            return self._word(stage.last_word, is_allowed=stage.last_word is DEFAULT_ALLOW)
        return self._entries.get(entry) or self._entry_check(entry)

    def _state_here(self, packet: Packet, state: ConnState) -> ConnState:
        """An answer to what passed here untracked is the first packet of a connection, for all that conntrack knows."""
        if state in (ConnState.REPLY, ConnState.RELATED) and self._opposite.stateless:
            question = question_of(packet)
            if not self._opposite.is_tracked(question, (int(question.src_ip), int(question.dst_ip))):
                return first_state(packet)
        return state

    def _word(self, word: str, *, is_allowed: bool) -> Check:
        found = self._words.get((word, is_allowed))
        if found is None:
            found = self._words[word, is_allowed] = Check(self._point, is_allowed, word, WORDS[word])
        return found

    def _entry_check(self, entry: Entry) -> Check:
        found = self._entries[entry] = Check(self._point, entry.allows, entry.rule, entry.text)
        if entry.action is Action.REJECT:
            self.rejecting.add(id(found))
        return found


def _implicit(packet: Packet, *, is_egress: bool) -> str:
    """What passes a port with port security whatever its rules say, as one of WORDS; "" for anything else."""
    if packet.kind is Kind.ARP:
        return ARP
    if packet.kind is Kind.ND or (packet.src_ip.version == 6 and is_icmp(packet)):
        is_heard = packet.icmp_type == ROUTER_ADVERTISEMENT and not is_egress
        return NEIGHBOUR_DISCOVERY if packet.icmp_type in NEIGHBOURS or is_heard else ""
    if packet.protocol == UDP and packet.fragment is Fragment.NONE:
        ports = (packet.src_ip.version, packet.src_port, packet.dst_port)
        return DHCP if ports in (_DHCP_ASKS if is_egress else _DHCP_TELLS) else ""
    return ""


class _AntiSpoofing:
    """Which addresses a port may send from.

    Args:
        port: with port security.
        is_bare: the policy is its ACLs alone (OVN's database): nobody promises that guests are no routers or servers.
    """

    def __init__(self, port: PolicyPort, *, is_bare: bool) -> None:
        self._is_bare = is_bare
        prefixes = {port.mac: list(port_prefixes(port)[: len(port.ips)])}
        for pair in port.allowed_pairs:
            prefixes.setdefault(pair.mac or port.mac, []).append(pair.prefix)
        if port.ip(6) is not None and port.mac:
            prefixes[port.mac].append(IPv6Network(link_local(port.mac)))
        self._owned = {
            mac: {family: AddressSet.of(found, family) for family in (4, 6)} for mac, found in prefixes.items()
        }
        point = EnforcementPoint(port.name, Stage.ANTI_SPOOFING)
        self._checks = {
            (word, is_allowed): Check(point, is_allowed, word, WORDS[word])
            for word in (ANTI_SPOOFING, DHCP, NEIGHBOUR_DISCOVERY)
            for is_allowed in (True, False)
        }
        self._own, self._foreign = self._checks[ANTI_SPOOFING, True], self._checks[ANTI_SPOOFING, False]

    def judge(self, packet: Packet, source: int) -> Check:
        """What the port's anti-spoofing says.

        Args:
            packet: that it sends.
            source: its source address as a number.
        """
        if packet.protocol not in _SPECIAL:
            return self._own if self._is_own(packet, source) else self._foreign
        if packet.protocol == UDP and packet.fragment is Fragment.NONE:
            ports = (packet.src_ip.version, packet.src_port, packet.dst_port)
            if ports in _DHCP_ASKS:
                return self._checks[DHCP, True]
            if ports in _DHCP_TELLS and not self._is_bare:
                return self._checks[DHCP, False]
        if packet.kind is not Kind.ARP and packet.src_ip.version == 6 and is_icmp(packet):
            if packet.icmp_type == ROUTER_ADVERTISEMENT and not self._is_bare:
                return self._checks[NEIGHBOUR_DISCOVERY, False]
            return self._checks[ANTI_SPOOFING, self._is_discovery_own(packet, source)]
        return self._own if self._is_own(packet, source) else self._foreign

    def _is_own(self, packet: Packet, source: int) -> bool:
        if packet.kind is Kind.ARP and packet.neighbour is not None:
            body = packet.neighbour
            return body.mac == packet.src_mac and self._owns(body.mac, body.ip)
        owned = self._owned.get(packet.src_mac)
        return owned is not None and owned[packet.src_ip.version].holds(source)

    def _is_discovery_own(self, packet: Packet, source: int) -> bool:
        """Discovery may come from the unspecified address; whom a solicitation asks about is somebody else."""
        if packet.icmp_type not in NEIGHBOURS:
            return self._is_own(packet, source)
        is_unspecified = packet.src_ip in _UNSPECIFIED and packet.src_mac in self._owned
        if not (is_unspecified or self._is_own(packet, source)):
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
