"""A security policy: groups, network ACLs and ports, in Neutron's words. Plain values.

Filled by plan.policy_file, plan.policy_neutron and plan.policy_ovn; read by judge.evaluator (what should happen),
plan.covering (what to try) and the lab's compilers. Rules of groups only allow; what nothing allows is dropped, both
ways.
"""

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

ICMP, TCP, UDP, DCCP, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 58, 132, 136  # IANA protocol numbers
WITH_PORTS = frozenset({TCP, UDP, DCCP, SCTP, UDPLITE})
PROTOCOL_NAMES = {
    "icmp": ICMP,
    "igmp": 2,
    "ipip": 4,
    "tcp": TCP,
    "egp": 8,
    "udp": UDP,
    "dccp": DCCP,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": ICMPV6,
    "ipv6-icmp": ICMPV6,
    "ospf": 89,
    "pgm": 113,
    "vrrp": 112,
    "sctp": SCTP,
    "udplite": UDPLITE,
}
"""As Neutron's API names them; any other protocol goes by its number, 0-255."""

GROUP_PRIORITY = 1002
DENY_PRIORITY = 1001
"""Where Neutron's OVN driver puts the rules of groups and the default deny among ACLs; other backends follow it."""
ACL_PRIORITY_MAX = 32767


class Way(Enum):
    """Direction of a rule, seen from the guest: into it or out of it."""

    INGRESS = "ingress"  # OVN: to-lport
    EGRESS = "egress"  # OVN: from-lport


class Action(Enum):
    """What a rule does with what it matches. `allow` is `allow-related` where anything on the switch is stateful."""

    ALLOW = "allow"
    ALLOW_RELATED = "allow-related"
    ALLOW_STATELESS = "allow-stateless"
    DROP = "drop"
    REJECT = "reject"

    @property
    def allows(self) -> bool:
        """Whether what matches goes on."""
        return self not in (Action.DROP, Action.REJECT)


@dataclass(frozen=True, slots=True)
class GroupRule:
    """One rule of a security group. It allows; nothing else.

    Attributes:
        id: the user's own name for it: Neutron's UUID, or `web[3]` for the fourth rule of group web.
        families: 4, 6 or both.
        protocol: IANA number, None for any. 1 and 58 both mean ICMP of the packet's own family, as in Neutron.
        ports: first and last destination port, None for all; only with a protocol in WITH_PORTS.
        icmp_type, icmp_code: None for any; a code only with a type.
        remote_prefix, remote_group, remote_address_group: the other side's addresses; at most one of them is given.
    """

    id: str
    way: Way
    families: tuple[int, ...]
    protocol: int | None = None
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote_prefix: IPNetwork | None = None
    remote_group: str = ""
    remote_address_group: str = ""

    def protocol_in(self, family: int) -> int | None:
        """Its protocol number in packets of a family: ICMP is ICMPv6 in IPv6."""
        if self.protocol in (ICMP, ICMPV6):
            return ICMP if family == 4 else ICMPV6
        return self.protocol

    def text(self) -> str:
        """The rule for people: `ingress tcp dport 80 from any`."""
        words = [self.way.value]
        if len(self.families) == 1:
            words.append(f"ipv{self.families[0]}")
        words.append("any protocol" if self.protocol is None else protocol_name(self.protocol))
        if self.ports:
            first, last = self.ports
            words.append(f"dport {first}" if first == last else f"dport {first}-{last}")
        if self.icmp_type is not None:
            words.append(f"type {self.icmp_type}" + ("" if self.icmp_code is None else f" code {self.icmp_code}"))
        remote = str(self.remote_prefix or "any")
        if self.remote_group:
            remote = f"group {self.remote_group}"
        elif self.remote_address_group:
            remote = f"address group {self.remote_address_group}"
        return f"{' '.join(words)} {'from' if self.way is Way.INGRESS else 'to'} {remote}"


@dataclass(frozen=True, slots=True)
class Group:
    """A security group. `id` is what ports and remote groups refer to; names need not be unique in Neutron."""

    id: str
    rules: tuple[GroupRule, ...]
    name: str = ""
    is_stateful: bool = True

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class AddressGroup:
    """A named set of prefixes."""

    id: str
    prefixes: tuple[IPNetwork, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class AclMatch:
    """What an ACL entry matches: all conditions hold. None, or an empty tuple, is "whatever".

    Attributes:
        families: 4, 6 or both.
        sources, destinations: one of the prefixes must hold the address.
        src_ports, dst_ports: first and last.
    """

    families: tuple[int, ...] = (4, 6)
    protocol: int | None = None
    sources: tuple[IPNetwork, ...] = ()
    destinations: tuple[IPNetwork, ...] = ()
    src_ports: tuple[int, int] | None = None
    dst_ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkAcl:
    """One entry of the ACLs of a network, or of some ports.

    At a port, entries and group rules make one list by priority, as in OVN: the rules of groups stand at
    GROUP_PRIORITY, the default deny of ports with groups at DENY_PRIORITY. The first that matches decides.

    Attributes:
        id: the user's own name for it.
        way: EGRESS (from-lport) is asked at the sender's port, INGRESS (to-lport) at the receiver's.
        matches: it matches where any of these does.
        network: on every port of this network; "" where `ports` says which.
        ports: names of ports.
    """

    id: str
    way: Way
    priority: int
    action: Action
    matches: tuple[AclMatch, ...]
    network: str = ""
    ports: tuple[str, ...] = ()

    def is_on(self, port: "PolicyPort") -> bool:
        """Whether it applies at a port."""
        return port.name in self.ports or (bool(self.network) and self.network == port.network)


@dataclass(frozen=True, slots=True)
class AddressPair:
    """Addresses that a port may use besides its own (Neutron's allowed address pair); `mac` "" is the port's own."""

    prefix: IPNetwork
    mac: str = ""


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """A port that the policy is about.

    Attributes:
        name: the guest's, unique.
        network: "" where there is only one.
        mac: lower case with colons; "" until it is bound to a topology.
        ips: its fixed addresses.
        groups: ids.
        has_port_security: False: anything may be sent and received, whatever groups and ACLs say of other ports.
        id: the cloud's UUID of the port, "" where unknown.
    """

    name: str
    network: str = ""
    mac: str = ""
    ips: tuple[IPAddress, ...] = ()
    groups: tuple[str, ...] = ()
    has_port_security: bool = True
    allowed_pairs: tuple[AddressPair, ...] = ()
    id: str = ""

    def ip(self, family: int) -> IPAddress | None:
        """Its first address of a family, None where it has none."""
        return next((ip for ip in self.ips if ip.version == family), None)

    def may_send_from(self, ip: IPAddress) -> bool:
        """Whether anti-spoofing lets it use an address with its own MAC."""
        if not self.has_port_security or ip in self.ips:
            return True
        return any(pair.mac in ("", self.mac) and _holds(pair.prefix, ip) for pair in self.allowed_pairs)


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that should hold. References between its parts are complete: whoever makes one checks them.

    Attributes:
        remarks: what its source says and nobody can check (an ACL that matches on something unknown), one line each;
            each becomes a finding `unproven`.
        has_default_deny: at a port with port security, what no rule allows is dropped at DENY_PRIORITY. False for a
            policy that is made of ACLs alone, as OVN's northbound database has it: there the default deny is an ACL
            like the others, what no ACL matches goes on, and ACLs hold also where there is no port security.
    """

    groups: tuple[Group, ...] = ()
    ports: tuple[PolicyPort, ...] = ()
    address_groups: tuple[AddressGroup, ...] = ()
    acls: tuple[NetworkAcl, ...] = ()
    remarks: tuple[str, ...] = ()
    has_default_deny: bool = True
    left_out: tuple[PolicyPort, ...] = ()
    _groups: dict[str, Group] = field(default_factory=dict, init=False, repr=False, compare=False)
    _members: dict[str, tuple[PolicyPort, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._groups.update({group.id: group for group in self.groups})
        members: dict[str, list[PolicyPort]] = {group.id: [] for group in self.groups}
        for port in self.ports:
            for group in dict.fromkeys(port.groups):
                members.setdefault(group, []).append(port)
        self._members.update({group: tuple(found) for group, found in members.items()})

    def group(self, id_: str) -> Group:
        """A group by its id; it is known to exist."""
        return self._groups[id_]

    def members(self, group: str) -> tuple[PolicyPort, ...]:
        """The ports that carry a group."""
        return self._members.get(group, ())

    def port(self, name: str) -> PolicyPort:
        """A port by name; it is known to exist."""
        return next(port for port in self.ports if port.name == name)

    def address_group(self, id_: str) -> AddressGroup:
        """An address group by its id; it is known to exist."""
        return next(group for group in self.address_groups if group.id == id_)

    def remote_prefixes(self, rule: GroupRule, family: int) -> tuple[IPNetwork, ...] | None:
        """The addresses of a rule's other side in a family; None for all.

        Members of a group count with their fixed addresses and their allowed pairs, as in Neutron.
        """
        if rule.remote_group:
            found = [prefix for port in self.members(rule.remote_group) for prefix in port_prefixes(port)]
        elif rule.remote_address_group:
            found = list(self.address_group(rule.remote_address_group).prefixes)
        elif rule.remote_prefix is not None:
            found = [rule.remote_prefix]
        else:
            return None
        return tuple(dict.fromkeys(prefix for prefix in found if prefix.version == family))


def port_prefixes(port: PolicyPort) -> tuple[IPNetwork, ...]:
    """The addresses that stand for a port where its group is a remote group."""
    own: list[IPNetwork] = [IPv4Network(ip) if isinstance(ip, IPv4Address) else IPv6Network(ip) for ip in port.ips]
    return (*own, *(pair.prefix for pair in port.allowed_pairs))


def link_local(mac: str) -> IPv6Address:
    """The address that a guest makes of its MAC address: RFC 4291 appendix A."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])


def protocol_name(number: int) -> str:
    """What people call a protocol; its number where it has no name here."""
    return next((name for name, known in PROTOCOL_NAMES.items() if known == number), f"protocol {number}")


def _holds(prefix: IPNetwork, ip: IPAddress) -> bool:
    return prefix.version == ip.version and ip in prefix
