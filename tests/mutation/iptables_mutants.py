"""Mutants of compiled iptables, ip6tables and ipsets, as text. Pure."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from mutation.mutants import COMPILED, Mutant, adds_a_tenant

_DROP = "-j DROP"


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that guards a hybrid bridge.

    Attributes:
        tables: what the two restore programs read: IPv4's, IPv6's.
        sets: what `ipset restore` reads.
        flows: of br-int.
    """

    tables: tuple[str, str]
    sets: str
    flows: tuple[str, ...]


def iptables_mutants(rules: Rules, guests: dict[str, str], taken: Collection[str] = ()) -> Iterator[Mutant]:
    """One rule, or member of a set, changed in one respect.

    Args:
        rules: the original.
        guests: the guest's name by its tap, for other devices.
        taken: all guests' own addresses.
    """
    for place, family in enumerate((4, 6)):
        lines = rules.tables[place].splitlines()
        sets = sorted(set(re.findall(r"--match-set (\S+)", rules.tables[place])))
        for number, line in enumerate(lines):
            if line.startswith("-A"):
                for what, kind, changed in _changes(lines, number, guests, sets, taken):
                    tables = list(rules.tables)
                    tables[place] = "".join(f"{one}\n" for one in changed)
                    yield Mutant(
                        f"ip{family} {_short(line)}: {what}", COMPILED, kind, replace(rules, tables=(*tables,))
                    )
    yield from _set_mutants(rules)


def _short(line: str) -> str:
    return line.removeprefix("-A ").replace("neutron-openvswi-", "").replace("-m comment --comment ", "")


def _changes(
    lines: list[str], number: int, guests: dict[str, str], sets: list[str], taken: Collection[str]
) -> Iterator[tuple[str, str, list[str]]]:
    line = lines[number]

    def changed(new: str) -> list[str]:
        return [*lines[:number], new, *lines[number + 1 :]]

    is_jump = re.search(r"-j neutron-openvswi-(sg-chain|sg-fallback|FORWARD|PREROUTING|[ios])", line) is not None
    is_state, is_zone = "--ctstate" in line, "-j CT" in line
    kind = "jump deleted" if is_jump else "state rule deleted" if is_state else "rule deleted"
    yield "deleted", "zone deleted" if is_zone else kind, [*lines[:number], *lines[number + 1 :]]
    if is_zone:
        yield "zone + 1", "zone", changed(re.sub(r"--zone (\d+)", lambda m: f"--zone {int(m[1]) + 1}", line))
    yield from ((what, kind, changed(new)) for what, kind, new in _texts(line, guests, sets, taken))
    yield from _moved(lines, number)


def _texts(
    line: str, guests: dict[str, str], sets: list[str], taken: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """The same rule with one word changed."""
    if line.endswith(("-j RETURN", "-j ACCEPT")):
        yield "DROP", "target", re.sub(r"-j \w+$", _DROP, line)
    elif line.endswith(_DROP):
        yield "RETURN", "target", line.removesuffix(_DROP) + "-j RETURN"
    for option in ("--dport", "--sport"):
        for what, text in _ports(line, option):
            yield what, "port", text
    for option in ("-s", "-d"):
        found = re.search(rf"{option} (\S+/\d+)", line)
        if found:
            prefix = ip_network(found[1])
            if prefix.prefixlen and not adds_a_tenant(prefix, taken):
                yield f"{option} {prefix.supernet()}", "prefix bit", line.replace(found[1], str(prefix.supernet()))
            if prefix.prefixlen < prefix.max_prefixlen:
                half = str(list(prefix.subnets())[1])
                yield f"{option} {half}", "prefix bit", line.replace(found[1], half)
    found = re.search(r"--match-set (\S+)", line)
    if found:
        other = next(one for one in sets if one != found[1])
        yield f"set {other}", "set", line.replace(f"--match-set {found[1]} ", f"--match-set {other} ")
        yield "any address", "set", re.sub(r" -m set --match-set \S+ \S+", "", line)
    for old, new in (("tcp", "udp"), ("udp", "tcp"), ("sctp", "tcp")):
        if f"-p {old} -m {old}" in line:
            yield f"protocol {new}", "protocol", line.replace(f"-p {old} -m {old}", f"-p {new} -m {new}")
    found = re.search(r"-p (\d+) ", line)
    if found:
        yield f"protocol {int(found[1]) + 1}", "protocol", line.replace(found[0], f"-p {int(found[1]) + 1} ")
    found = re.search(r" -m (icmp6?) --icmp(?:v6)?-type (\S+)", line)
    if found and not found[2].startswith("128"):  # no other type of ICMPv6 opens a connection
        yield "any type", "icmp", line.replace(found[0], "")
    yield from _devices(line, guests)
    if "--ctstate RELATED,ESTABLISHED" in line:
        yield "no RELATED", "state", line.replace("RELATED,ESTABLISHED", "ESTABLISHED")
        yield "no ESTABLISHED", "state", line.replace("RELATED,ESTABLISHED", "RELATED")
        yield "NEW too", "state", line.replace("RELATED,ESTABLISHED", "RELATED,ESTABLISHED,NEW")


def _ports(line: str, option: str) -> Iterator[tuple[str, str]]:
    found = re.search(rf"{option} (\d+)(?::(\d+))?", line)
    if not found:
        return
    first, last = int(found[1]), int(found[2] or found[1])
    for low, high in ((first - 1, last), (first, last + 1), (first + 1, last), (first, last - 1)):
        if 1 <= low <= high <= 65535:
            new = f"{option} {low}:{high}" if low < high else f"{option} {low}"
            yield new, line.replace(found[0], new)


def _devices(line: str, guests: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    found = re.search(r"--physdev-(in|out) (tap|qvb)(\S+)", line)
    if found:
        names = list(guests.values())
        other = names[(names.index(found[3]) + 1) % len(names)] if found[3] in names else names[0]
        new = f"--physdev-{found[1]} {found[2]}{other}"
        yield new, "device", line.replace(found[0], new)


def _moved(lines: list[str], number: int) -> Iterator[tuple[str, str, list[str]]]:
    """Behind the chain's last rule, or before its first: the order decides."""
    chain = lines[number].split()[1]
    if not re.fullmatch(r"neutron-openvswi-[ios].*", chain) or chain.endswith(("sg-chain", "sg-fallback")):
        return
    places = [n for n, line in enumerate(lines) if line.startswith(f"-A {chain} ")]
    rest = [*lines[:number], *lines[number + 1 :]]
    if number != places[-1]:
        yield "moved behind all others", "order", [*rest[: places[-1]], lines[number], *rest[places[-1] :]]
    elif lines[number].endswith(("-j DROP", "sg-fallback")):
        yield "moved before all others", "order", [*rest[: places[0]], lines[number], *rest[places[0] :]]


def _set_mutants(rules: Rules) -> Iterator[Mutant]:
    lines = rules.sets.splitlines()
    for number, line in enumerate(lines):
        word, name, *rest = line.split()
        others: list[tuple[str, list[str]]] = []
        if word == "add":
            prefix = ip_network(rest[0])
            others.append(("removed", []))
            others.append((f"{prefix} -> {prefix.supernet()}", [f"add {name} {prefix.supernet()}"]))
            if prefix.prefixlen < prefix.max_prefixlen:
                half = list(prefix.subnets())[1]
                others.append((f"{prefix} -> {half}", [f"add {name} {half}"]))
        for what, new in others:
            text = "".join(f"{one}\n" for one in (*lines[:number], *new, *lines[number + 1 :]))
            yield Mutant(f"ipset {line}: {what}", COMPILED, "set member", replace(rules, sets=text))
