"""Where one policy is not what another promises: OVN's northbound database against Neutron's API, port by port. Pure.

Lists of rules are compared by what they allow, not by how they are written: an ACL for ports 1-100 and another for
101-200 keep the promise of one rule for 1-200. What neither policy says, because everybody does it (DHCP), is left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from netprobe.judge.boxes import Box, box_of, udp_box, whole
from netprobe.model.policy import Policy, PolicyPort, Way, port_prefixes
from netprobe.model.rule_lists import Entry, PortRules, RuleLists

MAX_NAMED = 5
"""Ports that a text names, and pieces of what is missing that it lists."""

_DHCP = [udp_box(*pair) for pair in ((4, 68, 67), (4, 67, 68), (6, 546, 547), (6, 547, 546))]
_NOTHING = "nothing"


class DiscrepancyKind(Enum):
    """In what two policies differ."""

    PORT_MISSING = "port missing"
    PORT_EXTRA = "port extra"
    ADDRESSES = "addresses"
    PORT_SECURITY = "port security"
    NO_DEFAULT_DENY = "no default deny"
    RULE_MISSING = "rule missing"
    RULE_NARROWER = "rule narrower"
    RULE_WIDER = "rule wider"
    RULE_EXTRA = "rule extra"


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One difference, at one port or at several.

    Attributes:
        ports: names, as the promise has them.
        promised, actual: what each policy says, for people; "nothing" where it says nothing.
        promised_rule, actual_rule: ids of the rules that say so, "" where there is none.
        detail: what exactly is too much or too little.
    """

    kind: DiscrepancyKind
    ports: tuple[str, ...]
    promised: str
    actual: str
    promised_rule: str = ""
    actual_rule: str = ""
    detail: str = ""

    def text(self) -> str:
        """The difference for people, in a sentence."""
        names = ", ".join(self.ports[:MAX_NAMED])
        more = f" and {len(self.ports) - MAX_NAMED} more" if len(self.ports) > MAX_NAMED else ""
        detail = f"; {self.detail}" if self.detail else ""
        return f"{names}{more}: {self.kind.value}: promised {self.promised}; there is {self.actual}{detail}"


def compare_policies(promised: Policy, actual: Policy) -> tuple[Discrepancy, ...]:
    """Where the second policy is not what the first one promises; what is alike at several ports is said once.

    Args:
        promised: Neutron's, or a user's.
        actual: OVN's.
    """
    return tuple(_merged(_Comparison(promised, actual).discrepancies()))


def _merged(found: Iterable[Discrepancy]) -> list[Discrepancy]:
    ports: dict[Discrepancy, list[str]] = {}
    for each in found:
        ports.setdefault(replace(each, ports=()), []).extend(each.ports)
    return [replace(each, ports=tuple(dict.fromkeys(names))) for each, names in ports.items()]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What an entry allows, as far as no earlier one drops it."""

    box: Box
    entry: Entry


@dataclass(slots=True)
class _Comparison:
    """Both policies with their lists of rules. Ports that share lists are compared once."""

    promised: Policy
    actual: Policy
    _lists: tuple[RuleLists, RuleLists] = field(init=False)
    _seen: dict[tuple[int, int, Way], list[Discrepancy]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lists = (RuleLists(self.promised), RuleLists(self.actual))

    def discrepancies(self) -> Iterator[Discrepancy]:
        """All of them, port by port."""
        by_id = {port.id: port for port in self.actual.ports if port.id}
        by_name = {port.name: port for port in self.actual.ports}
        left_out = {name for port in self.actual.left_out for name in (port.id, port.name)}
        met: set[str] = set()
        for port in self.promised.ports:
            there = by_id.get(port.id) if port.id else None
            there = there or by_name.get(port.name)
            if there is None:
                if not left_out & {port.id, port.name}:
                    yield Discrepancy(DiscrepancyKind.PORT_MISSING, (port.name,), f"port {port.name}", _NOTHING)
                continue
            met.add(there.name)
            yield from _port_discrepancies(port, there)
            yield from self._rule_discrepancies(port, there)
        extra = tuple(port.name for port in self.actual.ports if port.name not in met)
        if extra:
            yield Discrepancy(DiscrepancyKind.PORT_EXTRA, extra, _NOTHING, f"{len(extra)} more ports")

    def _rule_discrepancies(self, port: PolicyPort, there: PolicyPort) -> Iterator[Discrepancy]:
        promised, actual = (lists.at(each) for lists, each in zip(self._lists, (port, there), strict=True))
        for way in Way:
            if not self._lists[0].is_guarded(port):
                found = _unguarded(actual, way)
            else:
                key = (id(promised), id(actual), way)
                if key not in self._seen:
                    self._seen[key] = _compared(promised, actual, way, has_deny=self.actual.has_default_deny)
                found = self._seen[key]
            yield from (replace(each, ports=(port.name,)) for each in found)


def _port_discrepancies(port: PolicyPort, there: PolicyPort) -> Iterator[Discrepancy]:
    """MAC and addresses, and what anti-spoofing allows."""
    for said, real in ((port.mac, there.mac), (_listed(port.ips), _listed(there.ips))):
        if said and said != real:
            yield Discrepancy(DiscrepancyKind.ADDRESSES, (port.name,), said, real or _NOTHING)
    if port.has_port_security != there.has_port_security:
        words = {
            True: "only its own addresses and allowed pairs may be sent from",
            False: "any address may be sent from",
        }
        yield Discrepancy(
            DiscrepancyKind.PORT_SECURITY, (port.name,), words[port.has_port_security], words[there.has_port_security]
        )
    elif port.has_port_security:
        said_pairs, real_pairs = _pairs(port), _pairs(there)
        if said_pairs != real_pairs:
            yield Discrepancy(
                DiscrepancyKind.PORT_SECURITY,
                (port.name,),
                f"addresses to send from besides its own: {_listed(said_pairs) or 'none'}",
                _listed(real_pairs) or "none",
            )


def _pairs(port: PolicyPort) -> set[str]:
    own = set(port_prefixes(replace(port, allowed_pairs=())))
    return {
        f"{pair.prefix} with {pair.mac if pair.mac and pair.mac != port.mac else 'its own MAC'}"
        for pair in port.allowed_pairs
        if pair.prefix not in own or pair.mac not in {"", port.mac}
    }


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, values)))


def _unguarded(actual: PortRules, way: Way) -> list[Discrepancy]:
    dropping = next((entry for entry in actual.entries[way] if not entry.action.allows), None)
    if dropping is None:
        return []
    return [_difference(DiscrepancyKind.RULE_EXTRA, None, dropping, "port security is off: nothing should be dropped")]


def _compared(promised: PortRules, actual: PortRules, way: Way, *, has_deny: bool) -> list[Discrepancy]:
    said, real = _pieces(promised.entries[way]), _pieces(actual.entries[way])
    found = [] if has_deny else _without_deny(actual.entries[way], way)
    differing = _Differing()
    for piece, rest in _beyond(said, real):
        other = _counterpart(piece, said, real)
        kind = DiscrepancyKind.RULE_MISSING if other is None else DiscrepancyKind.RULE_NARROWER
        differing.add(kind, piece.entry, other, rest)
    for piece, rest in _beyond(real, said):
        other = _counterpart(piece, real, said)
        kind = DiscrepancyKind.RULE_EXTRA if other is None else DiscrepancyKind.RULE_WIDER
        differing.add(kind, other, piece.entry, rest)
    return found + differing.discrepancies()


class _Differing:
    """What differs, by the rules of both sides: entries of one rule, as those of its two families, go together."""

    def __init__(self) -> None:
        self._found: dict[tuple[DiscrepancyKind, str, str], tuple[Entry | None, Entry | None, list[Box]]] = {}

    def add(self, kind: DiscrepancyKind, promised: Entry | None, actual: Entry | None, boxes: list[Box]) -> None:
        """One piece, and what of it is too much or too little."""
        key = (kind, promised.rule if promised else "", actual.rule if actual else "")
        self._found.setdefault(key, (promised, actual, []))[2].extend(boxes)

    def discrepancies(self) -> list[Discrepancy]:
        """In the order in which they were added."""
        words = {True: "not allowed: ", False: "allowed besides: "}
        less = {DiscrepancyKind.RULE_MISSING, DiscrepancyKind.RULE_NARROWER}
        return [
            _difference(kind, promised, actual, words[kind in less], boxes)
            for (kind, _, _), (promised, actual, boxes) in self._found.items()
        ]


def _without_deny(entries: Iterable[Entry], way: Way) -> list[Discrepancy]:
    whole_drops = {
        entry.family for entry in entries if not entry.action.allows and box_of(entry) == whole(entry.family)
    }
    open_families = [f"ipv{family}" for family in (4, 6) if family not in whole_drops]
    if not open_families:
        return []
    words = f"{way.value} {' and '.join(open_families)}: what no rule allows is dropped"
    return [Discrepancy(DiscrepancyKind.NO_DEFAULT_DENY, (), words, "no ACL that drops all the rest")]


def _pieces(entries: Iterable[Entry]) -> list[_Piece]:
    """What each entry allows, in their order, without what earlier ones drop."""
    dropped: list[Box] = []
    found: list[_Piece] = []
    for entry in entries:
        box = box_of(entry)
        if box is None:
            continue
        if entry.action.allows:
            found += [_Piece(piece, entry) for piece in box.minus(dropped)]
        else:
            dropped.append(box)
    return found


def _beyond(these: list[_Piece], those: list[_Piece]) -> Iterator[tuple[_Piece, list[Box]]]:
    """What of these is in none of those; not where it is DHCP, which goes without saying."""
    same = {piece.box for piece in those}
    for piece in these:
        if piece.box not in same:
            rest = piece.box.minus(other.box for other in those if other.box.meets(piece.box))
            if any(box.minus(_DHCP) for box in rest):
                yield piece, rest


def _counterpart(piece: _Piece, own: list[_Piece], theirs: list[_Piece]) -> Entry | None:
    """The other side's entry of the same name, else one without an equal here about some of the same packets."""
    for other in theirs:
        if other.entry.rule == piece.entry.rule and other.entry.family == piece.entry.family:
            return other.entry
    equal = {each.box for each in own}
    return next((other.entry for other in theirs if other.box not in equal and other.box.meets(piece.box)), None)


def _difference(
    kind: DiscrepancyKind, promised: Entry | None, actual: Entry | None, words: str, boxes: Iterable[Box] = ()
) -> Discrepancy:
    texts = list(dict.fromkeys(box.text() for box in boxes))
    more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return Discrepancy(
        kind,
        (),
        promised.text if promised else _NOTHING,
        actual.text if actual else _NOTHING,
        promised.rule if promised else "",
        actual.rule if actual else "",
        words + "; ".join(texts[:MAX_NAMED]) + more,
    )
