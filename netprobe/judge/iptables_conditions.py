"""Conditions of iptables' rules: each says whether it holds for a packet at a bridge, or that it cannot tell. Pure.

judge.iptables_rules, above, reads them out of texts; judge.ebtables adds those for frames.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from netprobe.model.packets import Packet
from netprobe.model.policy import ICMP, ICMPV6, PROTOCOL_NAMES, TCP, WITH_PORTS


@dataclass(frozen=True, slots=True)
class Crossing:
    """One pass of a packet through a Linux bridge.

    Attributes:
        bridge: its device.
        physdev_in, physdev_out: the bridge's ports that it comes in and goes out by.
    """

    bridge: str
    physdev_in: str
    physdev_out: str


@dataclass(frozen=True, slots=True)
class Passing:
    """A packet at a rule.

    Attributes:
        ct_state: as iptables names it: NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED.
        sets: the members of ipsets, by name.
    """

    packet: Packet
    crossing: Crossing
    ct_state: str
    sets: Mapping[str, "IpSet"] = field(default_factory=dict)


Holds = Callable[[Passing], bool | None]
"""Whether a condition holds; None where that cannot be told."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule.

    Attributes:
        text: as it is written.
        holds: whether it does.
    """

    text: str
    holds: Holds = field(compare=False)


@dataclass(frozen=True, slots=True)
class IpSet:
    """A set of prefixes. `kind` is ipset's type; only hash:ip and hash:net can be looked into."""

    name: str
    kind: str
    members: tuple[IPv4Network | IPv6Network, ...] = ()
    exceptions: tuple[IPv4Network | IPv6Network, ...] = ()

    def holds(self, packet: Packet, side: str) -> bool | None:
        """Whether it has a packet's source or destination; None where the set is of a kind that is not known here."""
        if self.kind not in {"hash:net", "hash:ip"} or side not in {"src", "dst"}:
            return None
        address = packet.src_ip if side == "src" else packet.dst_ip
        best = max((net.prefixlen for net in self.members if address in net), default=-1)
        return best > max((net.prefixlen for net in self.exceptions if address in net), default=-1)


FLAG_BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}
_ETC_PROTOCOLS = """
ggp 3 ipencap 4 st 5 igp 9 pup 12 hmp 20 xns-idp 22 rdp 27 iso-tp4 29 xtp 36 ddp 37 idpr-cmtp 38 ipv6 41 ipv6-route 43
ipv6-frag 44 idrp 45 skip 57 ipv6-nonxt 59 ipv6-opts 60 rspf 73 vmtp 81 eigrp 88 ax.25 93 ipip 94 etherip 97 encap 98
pim 103 ipcomp 108 l2tp 115 isis 124 fc 133 mobility-header 135 mpls-in-ip 137 manet 138 hip 139 shim6 140 wesp 141
rohc 142"""
"""How Debian's /etc/protocols, and so iptables-save, names protocols; 4 and 94 are called otherwise in Neutron."""

_NAMES_AND_NUMBERS = _ETC_PROTOCOLS.split()
_SYSTEM_NAMES = dict(zip(_NAMES_AND_NUMBERS[::2], map(int, _NAMES_AND_NUMBERS[1::2]), strict=True))
_PROTOCOLS: dict[str, int | None] = {**PROTOCOL_NAMES, **_SYSTEM_NAMES, "icmp6": ICMPV6, "all": None}
_ICMP_NAMES = {
    "echo-reply": (0, None),
    "destination-unreachable": (3, None),
    "echo-request": (8, None),
    "time-exceeded": (11, None),
    "any": (None, None),
}
_ICMPV6_NAMES = {
    "destination-unreachable": (1, None),
    "packet-too-big": (2, None),
    "time-exceeded": (3, None),
    "echo-request": (128, None),
    "echo-reply": (129, None),
    "router-solicitation": (133, None),
    "router-advertisement": (134, None),
    "neighbour-solicitation": (135, None),
    "neighbor-solicitation": (135, None),
    "neighbour-advertisement": (136, None),
    "neighbor-advertisement": (136, None),
}


def _protocol(word: str) -> Holds:
    if word in _PROTOCOLS:
        wanted = _PROTOCOLS[word]
    else:
        number = int(word)
        wanted = number or None  # iptables takes 0 for "all"
    return lambda at: wanted is None or at.packet.protocol == wanted


def _address(word: str, side: str) -> Holds:
    net = ip_network(word, strict=False)

    def holds(at: Passing) -> bool:
        address = at.packet.src_ip if side == "src" else at.packet.dst_ip
        return address.version == net.version and address in net

    return holds


def _device(word: str, of: Callable[[Crossing], str]) -> Holds:
    if word.endswith("+"):
        return lambda at: of(at.crossing).startswith(word[:-1])
    return lambda at: of(at.crossing) == word


def _range(word: str) -> tuple[int, int]:
    first, colon, last = word.partition(":")
    low = int(first) if first else 0
    return low, (int(last) if last else 0xFFFF) if colon else low


def _ports(words: str, sides: str) -> Holds:
    ranges = [_range(word) for word in words.split(",")]

    def holds(at: Passing) -> bool | None:
        if at.packet.protocol not in WITH_PORTS:
            return False
        ports = [at.packet.src_port] * ("s" in sides) + [at.packet.dst_port] * ("d" in sides)
        if None in ports:
            return None
        return any(low <= (port or 0) <= high for low, high in ranges for port in ports)

    return holds


def _icmp(word: str, protocol: int) -> Holds:
    names = _ICMP_NAMES if protocol == ICMP else _ICMPV6_NAMES
    if word in names:
        kind, code = names[word]
    else:
        given, _, detail = word.partition("/")
        kind, code = int(given), int(detail) if detail else None
        kind = None if (protocol == ICMP and kind == 255) else kind  # iptables' "any"

    def holds(at: Passing) -> bool:
        if at.packet.protocol != protocol:
            return False
        return kind is None or (at.packet.icmp_type == kind and code in (None, at.packet.icmp_code))

    return holds


def _tcp_flags(mask_words: str, value_words: str) -> Holds:
    mask = sum({FLAG_BITS[word] for word in mask_words.split(",")})
    value = sum({FLAG_BITS[word] for word in value_words.split(",")})
    return lambda at: at.packet.protocol == TCP and at.packet.tcp_flags & mask == value


def _states(words: str) -> Holds:
    wanted = frozenset(words.split(","))
    if not wanted <= {"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"}:
        return lambda _at: None
    return lambda at: at.ct_state in wanted


def _set(name: str, sides: str) -> Holds:
    def holds(at: Passing) -> bool | None:
        found = at.sets.get(name)
        return None if found is None else found.holds(at.packet, sides)

    return holds


def _mac(word: str) -> Holds:
    wanted = word.lower()
    return lambda at: at.packet.src_mac == wanted


def _always(_at: Passing) -> bool:
    return True


def never_known(_at: Passing) -> None:
    """What is not known here."""
    return


_NAMED: dict[str, tuple[int, Callable[..., Holds]]] = {
    "-p": (1, _protocol),
    "-s": (1, lambda word: _address(word, "src")),
    "-d": (1, lambda word: _address(word, "dst")),
    "-i": (1, lambda word: _device(word, lambda c: c.bridge)),
    "-o": (1, lambda word: _device(word, lambda c: c.bridge)),
    "--physdev-in": (1, lambda word: _device(word, lambda c: c.physdev_in)),
    "--physdev-out": (1, lambda word: _device(word, lambda c: c.physdev_out)),
    "--physdev-is-bridged": (0, lambda: _always),
    "--physdev-is-in": (0, lambda: _always),
    "--physdev-is-out": (0, lambda: _always),
    "--sport": (1, lambda word: _ports(word, "s")),
    "--dport": (1, lambda word: _ports(word, "d")),
    "--sports": (1, lambda word: _ports(word, "s")),
    "--dports": (1, lambda word: _ports(word, "d")),
    "--ports": (1, lambda word: _ports(word, "sd")),
    "--icmp-type": (1, lambda word: _icmp(word, ICMP)),
    "--icmpv6-type": (1, lambda word: _icmp(word, ICMPV6)),
    "--tcp-flags": (2, _tcp_flags),
    "--syn": (0, lambda: _tcp_flags("FIN,SYN,RST,ACK", "SYN")),
    "--mac-source": (1, _mac),
    "--match-set": (2, _set),
    "--state": (1, _states),
    "--ctstate": (1, _states),
    # Fragments are put together before the rules, wherever connections are tracked.
    "-f": (0, lambda: lambda _at: False),
}
"""Conditions by the option that begins them: how many words follow, and what makes it."""

_MODULES = frozenset({*PROTOCOL_NAMES, "icmp6", "physdev", "multiport", "mac", "set", "state", "conntrack", "comment"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a program's rules are made of.

    Attributes:
        options: conditions by the option that begins them: how many words follow, and what makes it.
        modules: `-m` that need no telling what they do: their conditions are known.
    """

    options: Mapping[str, tuple[int, Callable[..., Holds]]]
    modules: frozenset[str] = frozenset()


IPTABLES = Dialect(_NAMED, _MODULES)


def negated(holds: Holds) -> Holds:
    """The contrary; what cannot be told stays so."""

    def inverse(at: Passing) -> bool | None:
        found = holds(at)
        return None if found is None else not found

    return inverse
