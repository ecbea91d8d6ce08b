"""Sets of packets as boxes, to say exactly what one list of rules allows and another does not. Pure.

A box is all packets of one family whose protocol, ports, ICMP type and code, addresses and treatment are each in a set
of ranges. What is left of a box without others is boxes again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from netprobe.model.policy import UDP, protocol_name
from netprobe.model.ranges import Ranges, common, prefixes, without
from netprobe.model.rule_lists import AddressSet, Entry

MAX_PIECES = 200
"""More of them would say no more to anybody."""

_NAMES = ("state", "protocol", "sport", "dport", "type", "code", "source", "destination")
_STATE, _PROTOCOL, _SPORT, _DPORT, _TYPE, _CODE, _SOURCE, _DESTINATION = range(len(_NAMES))
_TRACKED, _UNTRACKED = ((0, 0),), ((1, 1),)


@dataclass(frozen=True, slots=True)
class Box:
    """Packets of a family.

    Attributes:
        sides: ranges, in the order of _NAMES; `state` is 0 for what conntrack sees, 1 for what it does not.
    """

    family: int
    sides: tuple[Ranges, ...]

    def minus(self, others: Iterable["Box"]) -> list["Box"]:
        """What is left without the others, in boxes that do not overlap; at most about MAX_PIECES of them."""
        left = [self]
        for other in others:
            left = [piece for box in left for piece in _minus(box, other)]
            if not left or len(left) > MAX_PIECES:
                break
        return left

    def meets(self, other: "Box") -> bool:
        """Whether some packet is in both."""
        return self.family == other.family and all(common(a, b) for a, b in zip(self.sides, other.sides, strict=True))

    def text(self) -> str:
        """The packets for people: `ipv4 tcp dport 80-90 from 10.0.0.0/8`."""
        words = [f"ipv{self.family}", _protocol_text(self.sides[_PROTOCOL])]
        for at, name in ((_SPORT, "sport"), (_DPORT, "dport"), (_TYPE, "type"), (_CODE, "code")):
            if self.sides[at] != _whole(self.family)[at]:
                words.append(f"{name} {_ranges_text(self.sides[at])}")
        for at, name in ((_SOURCE, "from"), (_DESTINATION, "to")):
            if self.sides[at] != _whole(self.family)[at]:
                found = [str(prefix) for prefix in prefixes(self.sides[at], self.family)]
                words.append(f"{name} {', '.join(found[:4])}" + (f" and {len(found) - 4} more" if found[4:] else ""))
        if self.sides[_STATE] == _UNTRACKED:
            words.append("stateless")
        return " ".join(words)


def _whole(family: int) -> tuple[Ranges, ...]:
    addresses = ((0, 2 ** (32 if family == 4 else 128) - 1),)
    byte, port = ((0, 255),), ((0, 65535),)
    return (((0, 1),), byte, port, port, byte, byte, addresses, addresses)


def whole(family: int) -> Box:
    """Every packet of a family."""
    return Box(family, _whole(family))


def box_of(entry: Entry) -> Box | None:
    """What an entry matches; None for nothing. A drop matches whatever would become of it else."""
    sides = list(_whole(entry.family))
    if entry.action.allows:
        sides[_STATE] = _UNTRACKED if entry.is_stateless else _TRACKED
    for at, number in ((_PROTOCOL, entry.protocol), (_TYPE, entry.icmp_type), (_CODE, entry.icmp_code)):
        if number is not None:
            sides[at] = ((number, number),)
    for at, ports in ((_SPORT, entry.src_ports), (_DPORT, entry.dst_ports)):
        if ports is not None:
            sides[at] = (ports,)
    for at, addresses in ((_SOURCE, entry.sources), (_DESTINATION, entry.destinations)):
        if addresses is not None:
            sides[at] = _ranges(addresses)
    return Box(entry.family, tuple(sides)) if all(sides) else None


def udp_box(family: int, sport: int, dport: int) -> Box:
    """UDP between two ports, wherever from and to."""
    sides = list(_whole(family))
    sides[_PROTOCOL], sides[_SPORT], sides[_DPORT] = ((UDP, UDP),), ((sport, sport),), ((dport, dport),)
    return Box(family, tuple(sides))


def _ranges(addresses: AddressSet) -> Ranges:
    return tuple(zip(addresses.firsts, addresses.lasts, strict=True))


def _minus(box: Box, other: Box) -> Iterator[Box]:
    if not box.meets(other):
        yield box
        return
    sides = list(box.sides)
    for at, (mine, theirs) in enumerate(zip(box.sides, other.sides, strict=True)):
        rest = without(mine, theirs)
        if rest:
            yield Box(box.family, (*sides[:at], rest, *sides[at + 1 :]))
        sides[at] = common(mine, theirs)


def _ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:4])


def _protocol_text(ranges: Ranges) -> str:
    if ranges == ((0, 255),):
        return "any protocol"
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return protocol_name(ranges[0][0])
    return f"protocols {_ranges_text(ranges)}"
