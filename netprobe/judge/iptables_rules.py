"""The rules of iptables-save, ip6tables-save and ipset save as values; each condition says whether it holds. Pure.

Total: any text is a rule set or a RulesTextError. What a rule says that is not known here is kept as an unknown
condition, so that whoever evaluates can tell that he cannot tell. judge.iptables, above, walks the chains.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range

from netprobe.errors import NoAnswerError
from netprobe.model.packets import Packet
from netprobe.model.policy import ICMP, ICMPV6, PROTOCOL_NAMES, TCP, WITH_PORTS


class RulesTextError(NoAnswerError):
    """A text that no iptables-save or ipset save can have printed."""


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
class IptablesRule:
    """One rule of a chain.

    Attributes:
        number: from 1, in its chain.
        target: a verdict, an extension's name, or another chain; "" where it only counts.
        options: the target's own words.
        is_goto: `-g`: a return from its target leaves this chain, too.
        packets, octets: its counters; 0 where they were not printed.
        text: the rule as printed, without counters.
    """

    chain: str
    number: int
    conditions: tuple[Condition, ...]
    target: str = ""
    options: tuple[str, ...] = ()
    comment: str = ""
    is_goto: bool = False
    packets: int = 0
    octets: int = 0
    text: str = ""

    @property
    def match(self) -> str:
        """Its conditions, as iptables prints them."""
        return " ".join(condition.text for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain. `policy` is what becomes of what falls through; "-" in chains of the user's own."""

    name: str
    policy: str
    rules: tuple[IptablesRule, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Tables by name, each with its chains by name."""

    tables: Mapping[str, Mapping[str, Chain]]

    def chain(self, table: str, name: str) -> Chain | None:
        """A chain, None where there is none of that name."""
        return self.tables.get(table, {}).get(name)

    @property
    def rules(self) -> Iterator[IptablesRule]:
        """All rules of all tables."""
        return (rule for chains in self.tables.values() for chain in chains.values() for rule in chain.rules)


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


# ---------------------------------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------------------------------

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


def _never_known(_at: Passing) -> None:
    return None


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


def _negated(holds: Holds) -> Holds:
    def inverse(at: Passing) -> bool | None:
        found = holds(at)
        return None if found is None else not found

    return inverse


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------

_COUNTED = re.compile(r"\[(\d{1,20}):(\d{1,20})\] (.*)")
_CHAIN_LINE = re.compile(r":(\S+) (\S+)(?: \[\d{1,20}:\d{1,20}\])?")


@dataclass(slots=True)
class _Words:
    """The words of a rule, read one after the other."""

    words: list[str]
    dialect: Dialect
    at: int = 0

    @property
    def is_over(self) -> bool:
        return self.at >= len(self.words)

    def next(self) -> str:
        self.at += 1
        return self.words[self.at - 1]

    def take(self, count: int) -> list[str]:
        taken = self.words[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("words are missing")
        self.at += count
        return taken

    def rest_of_option(self) -> list[str]:
        """The words up to the next option."""
        start = self.at
        while not self.is_over and not self.words[self.at].startswith("-") and self.words[self.at] != "!":
            self.at += 1
        return self.words[start : self.at]


def parse_rules(text: str, dialect: Dialect = IPTABLES) -> RuleSet:
    """The output of iptables-save, ip6tables-save or ebtables-save, with or without counters.

    Raises:
        RulesTextError: it is none.
    """
    tables: dict[str, dict[str, Chain]] = {}
    chains: dict[str, Chain] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("*"):
            chains = tables.setdefault(stripped[1:], {})
        elif stripped == "COMMIT":
            chains = None
        elif chains is None:
            raise RulesTextError(f"iptables, line {number}", f"{stripped[:80]!r} stands in no table")
        elif (made := _CHAIN_LINE.fullmatch(stripped)) is not None:
            chains.setdefault(made[1], Chain(made[1], made[2]))
        else:
            _add_rule(chains, stripped, number, dialect)
    return RuleSet(tables)


def _add_rule(chains: dict[str, Chain], line: str, number: int, dialect: Dialect) -> None:
    counted = _COUNTED.fullmatch(line)
    packets, octets, text = (int(counted[1]), int(counted[2]), counted[3]) if counted else (0, 0, line)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RulesTextError(f"iptables, line {number}", f"{text[:80]!r}: {error}") from error
    if len(words) < 2 or words[0] != "-A" or words[1] not in chains:
        raise RulesTextError(f"iptables, line {number}", f"{text[:80]!r} is no rule of a chain that is known")
    chain = chains[words[1]]
    rule = _rule(chain, _Words(words, dialect, 2), (packets, octets), text)
    chains[chain.name] = Chain(chain.name, chain.policy, (*chain.rules, rule))


def _rule(chain: Chain, words: _Words, counts: tuple[int, int], text: str) -> IptablesRule:
    conditions: list[Condition] = []
    comment = target = ""
    options: tuple[str, ...] = ()
    is_goto = False
    while not words.is_over:
        word = words.next()
        if word in ("-j", "-g") and not words.is_over:
            target, is_goto = words.next(), word == "-g"
            options = tuple(words.take(len(words.words) - words.at))
        elif word == "--comment" and not words.is_over:
            comment = words.next()
        elif word == "-m" and not words.is_over:
            module = words.next()
            if module not in words.dialect.modules:
                conditions.append(Condition(f"-m {module}", _never_known))
        else:
            conditions.append(_condition(word, words))
    number = len(chain.rules) + 1
    return IptablesRule(
        chain.name, number, tuple(conditions), target, options, comment, is_goto, counts[0], counts[1], text
    )


def _condition(word: str, words: _Words) -> Condition:
    """One condition; one that is not known takes all words up to the next option."""
    is_negated = word == "!" and not words.is_over
    option = words.next() if is_negated else word
    known = words.dialect.options.get(option)
    if known is not None and words.words[words.at : words.at + 1] == ["!"]:  # ebtables writes it behind the option
        is_negated = bool(words.next())
    start = words.at
    if known is not None:
        count, make = known
        try:
            given = words.take(count)
            holds = make(*given)
        except (ValueError, KeyError):  # a value that is not known here
            words.at = start
        else:
            text = " ".join(["!"] * is_negated + [option, *given])
            return Condition(text, _negated(holds) if is_negated else holds)
    text = " ".join(["!"] * is_negated + [option, *words.rest_of_option()])
    return Condition(text, _never_known)


def zones_by_device(rules: RuleSet) -> dict[str, int]:
    """The conntrack zone that table raw gives to what comes in by each port of a bridge."""
    zones: dict[str, int] = {}
    for chain in rules.tables.get("raw", {}).values():
        for rule in chain.rules:
            words = [condition.text.split() for condition in rule.conditions]
            devices = [word[1] for word in words if word[0] == "--physdev-in" and len(word) == 2]
            given = rule.options[-1] if rule.target == "CT" and rule.options[:1] == ("--zone",) else ""
            if devices and given.isascii() and given.isdigit():
                zones.setdefault(devices[0], int(given))
    return zones


def parse_sets(text: str) -> dict[str, IpSet]:
    """The output of `ipset save`.

    Raises:
        RulesTextError: it is none.
    """
    kinds: dict[str, str] = {}
    members: dict[str, list[IPv4Network | IPv6Network]] = {}
    exceptions: dict[str, list[IPv4Network | IPv6Network]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "create" and len(words) >= 3:
            kinds[words[1]] = words[2]
        elif words[0] == "add" and len(words) >= 3 and words[1] in kinds:
            into = exceptions if "nomatch" in words[3:] else members
            if kinds[words[1]] in {"hash:ip", "hash:net"}:
                into.setdefault(words[1], []).extend(_networks(words[2], number))
        else:
            raise RulesTextError(f"ipset, line {number}", f"{line[:80]!r} is neither a set nor a member of one")
    return {
        name: IpSet(name, kind, tuple(members.get(name, ())), tuple(exceptions.get(name, ())))
        for name, kind in kinds.items()
    }


def _networks(word: str, number: int) -> list[IPv4Network | IPv6Network]:
    first, dash, last = word.partition("-")
    try:
        if dash:
            return list(summarize_address_range(ip_address(first), ip_address(last)))
        return [ip_network(word, strict=False)]
    except (ValueError, TypeError) as error:
        raise RulesTextError(f"ipset, line {number}", f"{word!r} is no address") from error
