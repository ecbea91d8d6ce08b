"""What a match expression of OVN's matches, as a list of terms: conditions that all hold. Pure.

Fields bring their prerequisites along (`tcp.dst` is about TCP, `ip4.src` about IPv4), as ovn-sb(5) says. Fields that a
policy has no word for make a term unknown, with the reason; they are never left out silently.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from netprobe.model.policy import ICMP, ICMPV6, SCTP, TCP, UDP, IPNetwork
from netprobe.model.ranges import Ranges, common, of_prefixes, others, ranges_of
from netprobe.plan.ovn_expression import Comparison, ExpressionError, Node, parse_expression

MAX_TERMS = 1000
OTHER = 0
"""Among a term's families: frames that are neither IPv4 nor IPv6, as ARP."""

_ALL = frozenset({4, 6, OTHER})
_IP = frozenset({4, 6})
_FAMILY_OF = {0x0800: 4, 0x86DD: 6}
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
_HIGHEST = {"protocol": 255, "type": 255, "code": 255, "sport": 65535, "dport": 65535}
_NO_IP = frozenset({"arp", "rarp"})
_DISCOVERY = frozenset({"nd", "nd_ns", "nd_na", "nd_rs", "nd_ra"})
_PREDICATES = {
    "ip": "eth.type == {0x800, 0x86dd}",
    "ip4": "eth.type == 0x800",
    "ip6": "eth.type == 0x86dd",
    "icmp": "(eth.type == 0x800 && ip.proto == 1) || (eth.type == 0x86dd && ip.proto == 58)",
    "icmp4": "eth.type == 0x800 && ip.proto == 1",
    "icmp6": "eth.type == 0x86dd && ip.proto == 58",
    "tcp": "ip.proto == 6",
    "udp": "ip.proto == 17",
    "sctp": "ip.proto == 132",
    "arp": "eth.type == 0x806",
    "rarp": "eth.type == 0x8035",
    "ip4.mcast": "ip4.dst == 224.0.0.0/4",
    "ip4.src_mcast": "ip4.src == 224.0.0.0/4",
}
_TREES = {name: parse_expression(text) for name, text in _PREDICATES.items()}


@dataclass(frozen=True, slots=True)
class Term:
    """Conditions that all hold.

    Attributes:
        families: 4, 6, OTHER.
        ranges: by "protocol", "type", "code" (ICMP's), "sport", "dport", "src4", "dst4", "src6", "dst6"; what is not
            there is free.
        ports: names of logical ports that the packet comes from or goes to; None for any.
        unknown: conditions that nothing here can express, as they are written.
        is_discovery: it is about neighbour or router discovery only, further conditions of which are not kept.
    """

    families: frozenset[int] = _ALL
    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    ports: frozenset[str] | None = None
    unknown: tuple[str, ...] = ()
    is_discovery: bool = False

    def and_(self, other: "Term") -> "Term | None":
        """Both; None where they contradict each other."""
        families = self.families & other.families
        ranges = dict(self.ranges)
        for key, theirs in other.ranges.items():
            ranges[key] = common(ranges[key], theirs) if key in ranges else theirs
            if not ranges[key]:
                return None
        ports = other.ports if self.ports is None else self.ports if other.ports is None else self.ports & other.ports
        if not families or (ports is not None and not ports):
            return None
        unknown = tuple(dict.fromkeys((*self.unknown, *other.unknown)))
        return Term(families, ranges, ports, unknown, self.is_discovery or other.is_discovery)


def _protocol(number: int) -> dict[str, Ranges]:
    return {"protocol": ((number, number),)}


_ADDRESSES = frozenset({"ip4.src", "ip4.dst", "ip6.src", "ip6.dst"})
_NUMBERS = {
    "ip.proto": ("protocol", Term(_IP)),
    **{f"{name}.src": ("sport", Term(_IP, _protocol(number))) for name, number in _PROTOCOLS.items()},
    **{f"{name}.dst": ("dport", Term(_IP, _protocol(number))) for name, number in _PROTOCOLS.items()},
    **{f"icmp4.{key}": (key, Term(frozenset({4}), _protocol(ICMP))) for key in ("type", "code")},
    **{f"icmp6.{key}": (key, Term(frozenset({6}), _protocol(ICMPV6))) for key in ("type", "code")},
}
"""Fields that are numbers: which of a term's ranges they are, and what they are about (their prerequisite)."""


@dataclass(frozen=True, slots=True)
class Names:
    """What names in expressions stand for.

    Attributes:
        port_field: "outport" in ACLs to-lport, "inport" in those from-lport.
        groups: logical ports by port group.
        address_sets: by name, those that OVN makes of port groups too.
    """

    port_field: str
    groups: Mapping[str, frozenset[str]]
    address_sets: Mapping[str, tuple[str, ...]]


def terms_of(text: str, names: Names) -> tuple[Term, ...]:
    """The terms of a match expression: it matches what any of them does.

    Raises:
        ExpressionError: OVN would not understand it either, or it has more than MAX_TERMS terms.
    """
    return tuple(term for term in _terms(parse_expression(text), names) if term.families)


def _terms(node: Node, names: Names) -> list[Term]:
    if isinstance(node, Comparison):
        return _comparison(node, names)
    if not node.is_all:
        return _limited([term for part in node.parts for term in _terms(part, names)])
    found = [Term()]
    for part in node.parts:
        theirs = _terms(part, names)
        found = _limited([both for one in found for other in theirs if (both := one.and_(other)) is not None])
    return found


def _limited(terms: list[Term]) -> list[Term]:
    if len(terms) > MAX_TERMS:
        raise ExpressionError(f"more than {MAX_TERMS} alternatives")
    return terms


def _comparison(node: Comparison, names: Names) -> list[Term]:
    if node.is_bare:
        return _predicate(node, names)
    owner, _, key = node.name.partition(".")
    if node.name in {"inport", "outport"}:
        term = _at_port(node, names)
    elif node.name == "eth.type":
        term = _ethertype(node)
    elif node.name in _ADDRESSES:
        term = _addressed(node, f"{key}{owner[2]}", int(owner[2]), names)
    elif node.name in _NUMBERS:
        term = _numbered(node, *_NUMBERS[node.name])
    else:
        term = _unknown(node)
    return [term]


def _predicate(node: Comparison, names: Names) -> list[Term]:
    """A name alone. OVN takes no `!` with those that a policy has words for."""
    if node.relation == "==" and node.name in _TREES:
        return _terms(_TREES[node.name], names)
    if node.relation == "==" and node.name in _DISCOVERY:
        return [Term(frozenset({6}), _protocol(ICMPV6), is_discovery=True)]
    return [_unknown(node)]


def _unknown(node: Comparison, why: str = "") -> Term:
    """Whatever is known of a field that is not: the family that it is in."""
    owner = node.name.partition(".")[0].partition("[")[0]
    families = {"ip": _IP, "ip4": frozenset({4}), "ip6": frozenset({6}), "nd": frozenset({6})}.get(owner, _ALL)
    if owner in _NO_IP:
        families = frozenset({OTHER})
    ranges: dict[str, Ranges] = {}
    if owner in _PROTOCOLS:
        families, ranges = _IP, _protocol(_PROTOCOLS[owner])
    text = node.text() + (f" ({why})" if why else "")
    is_negated = node.relation != "=="
    return Term(_ALL if is_negated and node.is_bare else families, ranges, unknown=(text,))


def _at_port(node: Comparison, names: Names) -> Term:
    if node.name != names.port_field:
        return _unknown(node, f"only {names.port_field} is known there")
    if node.relation != "==":
        return _unknown(node, "OVN takes only == there")
    ports: set[str] = set()
    for constant in node.constants:
        if constant.startswith("@"):
            if constant[1:] not in names.groups:
                return _unknown(node, f"there is no port group {constant[1:]}")
            ports |= names.groups[constant[1:]]
        elif constant.startswith('"'):
            ports.add(_text(constant))
        else:
            return _unknown(node, f"{constant} is no port")
    return Term(ports=frozenset(ports))


def _text(constant: str) -> str:
    """What a quoted text says; OVN quotes as JSON does."""
    try:
        return str(json.loads(constant))
    except ValueError:
        raise ExpressionError(f"{constant} is no text") from None


def _ethertype(node: Comparison) -> Term:
    numbers = [_integer(constant) for constant in node.constants]
    if node.relation != "==" or None in numbers:
        return _unknown(node, "OVN takes only == there")
    return Term(frozenset(_FAMILY_OF.get(number or 0, OTHER) for number in numbers))


def _numbered(node: Comparison, key: str, prerequisite: Term) -> Term:
    """Ports, protocols, ICMP types: numbers, or those with some leading bits."""
    high = _HIGHEST[key]
    pairs = [_masked(constant, high) for constant in node.constants]
    ranges = None if None in pairs else _related(node.relation, [pair for pair in pairs if pair], high)
    is_nominal = key not in {"sport", "dport"}
    if ranges is None or (is_nominal and node.relation != "=="):
        why = " (OVN takes only == there)" if is_nominal and node.relation != "==" else ""
        return Term(prerequisite.families, prerequisite.ranges, unknown=(node.text() + why,))
    if not ranges:
        return Term(frozenset(), {})
    return Term(prerequisite.families, {**prerequisite.ranges, key: ranges})


def _related(relation: str, pairs: Sequence[tuple[int, int]], high: int) -> Ranges | None:
    """The numbers that stand in a relation to a constant; None where it is masked and the relation is one of order."""
    if relation == "==":
        return ranges_of(pairs)
    if relation == "!=":
        return others(ranges_of(pairs), high)
    first, last = pairs[0]
    if first != last:
        return None
    bounds = {"<": (0, first - 1), "<=": (0, first), ">": (first + 1, high), ">=": (first, high)}
    low, top = bounds[relation]
    return ((low, top),) if low <= top else ()


def _integer(constant: str) -> int | None:
    try:
        return int(constant, 16 if constant.lower().startswith("0x") else 10)
    except ValueError:
        return None


def _masked(constant: str, high: int) -> tuple[int, int] | None:
    """First and last number of `80` or `0x50/0xfff0`; None for other text, or a mask that leaves no range."""
    word, _, mask_word = constant.partition("/")
    value, mask = _integer(word), _integer(mask_word) if mask_word else high
    if value is None or mask is None or not 0 <= value <= high or not 0 <= mask <= high:
        return None
    free = high & ~mask
    if free & (free + 1):  # not all of the free bits are the last ones
        return None
    return value & mask, (value & mask) | free


def _addressed(node: Comparison, key: str, family: int, names: Names) -> Term:
    prefixes: list[IPNetwork] = []
    for constant in node.constants:
        name = constant[1:]
        if constant.startswith("$") and name not in names.address_sets:
            return _unknown(node, f"there is no address set {name}")
        for text in names.address_sets[name] if constant.startswith("$") else (constant,):
            prefix = prefix_of(text)
            if prefix is None or prefix.version != family:
                return _unknown(node, f"{text} is no IPv{family} address or prefix")
            prefixes.append(prefix)
    high = 2 ** (32 if family == 4 else 128) - 1
    pairs = of_prefixes(prefixes)
    if node.relation in {"==", "!="}:
        ranges: Ranges | None = _related(node.relation, pairs, high)
    else:
        ranges = _related(node.relation, pairs, high) if len(pairs) == 1 else None
    if ranges is None:
        return _unknown(node)
    return Term(frozenset({family}) if ranges else frozenset(), {key: ranges} if ranges else {})


def prefix_of(text: str) -> IPNetwork | None:
    """An address or prefix, with bits beyond its length or without; None for other text and for other masks."""
    word, _, mask = text.partition("/")
    try:
        ip_address(word)
        prefix = ip_network(text, strict=False)
    except ValueError:
        return None
    # Python would take a mask that is the wrong way round for a prefix; OVN takes it as it is.
    return None if "%" in text or ("." in mask and str(prefix.netmask) != mask) else prefix
