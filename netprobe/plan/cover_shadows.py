"""Rules that can never decide anything, by set reasoning alone. Pure.

An entry is shadowed where others that come first, or allow the same at the same priority, match all that it matches.
One such entry is proof, and so are several that differ in their ports only, or in their addresses only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from netprobe.model.conntrack_rules import can_open
from netprobe.model.policy import DENY_PRIORITY, ICMP, ICMPV6, WITH_PORTS, Way
from netprobe.model.rule_lists import AddressSet, Entry
from netprobe.plan.cover_places import BITS, Place, Stage
from netprobe.plan.cover_wants import is_hidden
from netprobe.plan.port_masks import ALL_ONES


def shadowed_rules(places: Sequence[Place]) -> dict[str, str]:
    """Rules and ACLs that decide nothing at any port that asks them, and why.

    Args:
        places: all ports of a policy.
    """
    whys: dict[str, str] = {}
    seen: set[Stage] = set()
    for place in places:
        if not place.is_guarded:
            continue
        for way in Way:
            stage = place.stage(way)
            if stage not in seen:
                seen.add(stage)
                for rule, why in _at(stage, decides=lambda rule: whys.get(rule) == ""):
                    whys[rule] = why and whys.get(rule, why)
    return {rule: why for rule, why in whys.items() if why}


def _at(stage: Stage, *, decides: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Each entry of a list, and why it decides nothing there; "" where it does. Not those that `decides` knows of."""
    for entry in stage.entries:
        if not decides(entry.rule):
            yield entry.rule, _why(stage, entry)
    for entry in stage.buried:
        yield entry.rule, f"the default deny stands above it, at priority {DENY_PRIORITY}"


def _why(stage: Stage, entry: Entry) -> str:
    return _why_alone(stage, entry) or _why_after(stage, entry)


def _why_alone(stage: Stage, entry: Entry) -> str:
    """Why no packet matches it, or none is asked about."""
    if any(found is not None and not found.firsts for found in (entry.sources, entry.destinations)):
        return f"nobody is in what it is about: no such IPv{entry.family} address"
    if entry.protocol is not None and is_hidden(entry.family, entry.protocol):
        return f"IPv6 walks over headers of protocol {entry.protocol}: no packet shows it"
    is_icmp = entry.protocol == (ICMP if entry.family == 4 else ICMPV6)
    is_judged = stage.is_stateful and not entry.is_stateless
    if is_icmp and is_judged and entry.icmp_type is not None and not can_open(entry.family, entry.icmp_type):
        return f"no connection begins with ICMP type {entry.icmp_type}: connection tracking decides before rules"
    return ""


def _why_after(stage: Stage, entry: Entry) -> str:
    """Why others leave nothing to it."""
    before = [other for other in stage.entries if other is not entry and _is_before(stage, other, entry)]
    for other in before:
        if _holds_rest(other, entry) and _holds_ports(other, entry) and _holds_addresses(other, entry):
            return f"{other.text} matches all of it first"
    apart = [other for other in before if _holds_rest(other, entry)]
    if _ports_filled((other for other in apart if _holds_addresses(other, entry)), entry):
        return "several entries together match all of its ports first"
    if _addresses_filled([other for other in apart if _holds_ports(other, entry)], entry):
        return "several entries together match all of its addresses first"
    return ""


def _is_before(stage: Stage, other: Entry, entry: Entry) -> bool:
    """Whether another entry leaves nothing to this one of what both match.

    Of two that allow at the same priority nobody knows which is asked; but one that is wider makes the other idle.
    """
    if stage.order[other] < stage.order[entry]:
        return True
    return (
        other.priority == entry.priority
        and other.action is entry.action
        and not (_holds_rest(entry, other) and _holds_ports(entry, other) and _holds_addresses(entry, other))
    )


def _holds_rest(other: Entry, entry: Entry) -> bool:
    """Family, protocol and ICMP."""
    return (
        other.family == entry.family
        and other.protocol in (None, entry.protocol)
        and other.icmp_type in (None, entry.icmp_type)
        and other.icmp_code in (None, entry.icmp_code)
        and _range_holds(other.src_ports, entry.src_ports)
    )


def _holds_ports(other: Entry, entry: Entry) -> bool:
    return _range_holds(other.dst_ports, entry.dst_ports)


def _range_holds(other: tuple[int, int] | None, inner: tuple[int, int] | None) -> bool:
    if other is None:
        return True
    first, last = inner or (0, ALL_ONES)
    return other[0] <= first and last <= other[1]


def _holds_addresses(other: Entry, entry: Entry) -> bool:
    return _set_holds(other.sources, entry.sources, entry.family) and _set_holds(
        other.destinations, entry.destinations, entry.family
    )


def _set_holds(other: AddressSet | None, inner: AddressSet | None, family: int) -> bool:
    return other is None or _all(inner, family).is_within(other)


def _all(found: AddressSet | None, family: int) -> AddressSet:
    return AddressSet((0,), ((1 << BITS[family]) - 1,)) if found is None else found


def _ports_filled(others: Iterable[Entry], entry: Entry) -> bool:
    if entry.protocol not in WITH_PORTS:
        return False
    ranges = [other.dst_ports or (0, ALL_ONES) for other in others]
    return AddressSet.of_ranges([entry.dst_ports or (0, ALL_ONES)]).is_within(AddressSet.of_ranges(ranges))


def _addresses_filled(others: list[Entry], entry: Entry) -> bool:
    """Several sources with one destination, or the other way round."""
    by_source = [o for o in others if _set_holds(o.destinations, entry.destinations, entry.family)]
    by_destination = [o for o in others if _set_holds(o.sources, entry.sources, entry.family)]
    return _filled([o.sources for o in by_source], entry.sources, entry.family) or _filled(
        [o.destinations for o in by_destination], entry.destinations, entry.family
    )


def _filled(sets: list[AddressSet | None], inner: AddressSet | None, family: int) -> bool:
    ranges = [pair for found in sets for pair in zip(*_bounds(_all(found, family)), strict=True)]
    return _all(inner, family).is_within(AddressSet.of_ranges(ranges))


def _bounds(found: AddressSet) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return found.firsts, found.lasts
